"""Connections to a database in PostgreSQL 15 or newer, and transactions on them.

A transaction runs in a thread, on a connection of its own. A serializable one is rolled back where it meets another one, and
run again. A connection that is found dead is made anew, and the transaction is run again if its COMMIT was not sent. So is a
connection on which the server says nothing for too long, as when a network is cut in two.
"""

import asyncio
import contextlib
import os
import queue
import random
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from math import inf
from time import monotonic, sleep
from typing import Any, Final, TypeVar

import psycopg
from psycopg import conninfo
from psycopg.errors import DeadlockDetected, LockNotAvailable, SerializationFailure, UniqueViolation
from psycopg.rows import tuple_row

from postgres_store.pipeline import Told, tell

CONNECTIONS: Final = 8  # transactions at a time
BUSY_SECONDS: Final = 5.0  # in which a transaction is run again and again
AWAY_SECONDS: Final = 1.0  # for which a server that is away is not asked: thousands would wait for each try
SILENT_SECONDS: Final = 15.0  # after which a connection is cut off whose server answers nothing
LOOK_SECONDS: Final = 1.0  # between looks for those
_AT_ONCE: Final = 500  # statements in one round trip
_TWICE: Final = 3  # tries after which a row that is there already is a fault of ours
# what libpq does where the URL says nothing else: a peer that is gone is noticed
_DEFAULTS: Final = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_CLOCK: Final = "; SELECT extract(epoch FROM clock_timestamp())::float8"
# without an index a whole table would be in a serializable transaction's way; what has none all the same is dear, and would
# be compiled for it
_SETTINGS: Final = (
    "; SET LOCAL statement_timeout = 5000; SET LOCAL idle_in_transaction_session_timeout = 15000"
    "; SET LOCAL enable_seqscan = off; SET LOCAL jit = off"
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """What a program raises, each made of a message."""

    unavailable: Callable[[str], Exception]  # the database does not answer: retrying may help
    busy: type[
        Exception
    ]  # other transactions are in the way; raised by a transaction too, which is then run again
    unusable: Callable[[str], Exception]  # the database cannot be a store
    incompatible: Callable[[str], Exception]  # the server, or what is stored, has another version


class Isolation(Enum):
    """What a transaction sees of others."""

    SERIALIZABLE = "SERIALIZABLE"  # as if they ran one after the other
    READ_COMMITTED = "READ COMMITTED"  # each statement sees what was committed before it
    SNAPSHOT = "REPEATABLE READ READ ONLY"  # what was committed before; it never meets another one

    @property
    def begin(self) -> str:
        return f"BEGIN ISOLATION LEVEL {self.value}{_SETTINGS}"


class Connection(psycopg.Connection[Any]):
    """A connection, which another thread may cut off."""

    _wire: socket.socket | None = None  # the same socket once more: it is never another one's when it is cut
    _until = inf  # by the monotonic clock: when an answer is due
    _patience = inf  # seconds for each answer

    def be_taken(self) -> None:
        """Begin to serve a transaction, of which each answer is due in time."""
        self._patience = SILENT_SECONDS

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """While the server is asked something."""
        self._until = monotonic() + self._patience
        try:
            yield
        finally:
            self._until = inf

    def ask(self, statement: str, values: Any = None) -> "psycopg.Cursor[Any]":
        """Execute a statement of ours; values are never part of its text."""
        with self.awaited():
            return self.execute(_as_it_is(statement), values)

    def tell(self, statements: Sequence[Told]) -> None:
        """Execute statements of ours in order, in one round trip; those after one that fails are not executed."""
        try:
            with self.awaited():
                tell(self.pgconn, statements, encoding=self.info.encoding)
        except BaseException:
            if self.pgconn.pipeline_status:  # it was broken off
                self.close()
            raise

    def take_time(self) -> None:
        """Let this transaction take as long as it needs."""
        self._patience = inf
        self.ask("SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0")

    @property
    def is_silent(self) -> bool:
        """Whether the server should have answered long ago."""
        return monotonic() >= self._until

    def cut(self) -> None:
        """Let the thread that waits for the server find the connection dead."""
        if self._wire is not None:
            with contextlib.suppress(OSError):
                self._wire.shutdown(socket.SHUT_RDWR)

    def can_be_cut(self) -> None:
        self._wire = socket.socket(fileno=os.dup(self.fileno()))

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
        super().close()


class Database:
    """An open database, and its connections."""

    def __init__(
        self, uri: str, *, program: str, errors: Errors, connections: int = CONNECTIONS, rows: Any = tuple_row
    ) -> None:
        """uri: checked by `check_uri`. program: its name, which the server shows. rows: psycopg's row factory."""
        self._uri, self._program, self._rows = uri, program, rows
        self.errors: Final = errors
        self._threads = ThreadPoolExecutor(max_workers=connections, thread_name_prefix="store")
        self._idle: queue.LifoQueue[Connection] = queue.LifoQueue()
        self._used: set[Connection] = set()
        self._looking: asyncio.TimerHandle | None = None
        self._closed = False
        self._away_until = (
            0.0  # by the monotonic clock: a server that was away a moment ago is not waited for
        )

    async def in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def run(
        self, work: Callable[["Statements"], T], *, isolation: Isolation = Isolation.SERIALIZABLE
    ) -> T:
        """Run `work` as one transaction in a thread, as `now` does."""
        return await self._watched(lambda: self.now(work, isolation=isolation))

    async def one(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run a statement, or several, as a transaction of its own in a thread, in one round trip; returns the last rows.

        It sees what was committed before (READ COMMITTED), and waits for no other transaction but for a row that both write.
        It is run again where the connection was lost, though its commit may be done: running it twice has to change nothing.
        """
        return await self._watched(lambda: self._one(statement, values))

    async def _watched(self, work: Callable[[], T]) -> T:
        """Do `work` in a thread, while its connections are looked at."""
        if self._closed:
            raise self.errors.unavailable("the store is closed")
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        return await self.in_thread(work)

    def _look(self) -> None:
        """Cut the connections off on which the server has said nothing for too long."""
        for connection in list(self._used):
            if connection.is_silent:
                connection.cut()
        self._looking = None
        if self._used:
            self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def now(self, work: Callable[["Statements"], T], *, isolation: Isolation = Isolation.SERIALIZABLE) -> T:
        """Run `work` as one transaction in this thread, again where it meets another one; rolled back when it raises.

        Raises `Errors.unavailable`, or `Errors.busy` where others are in its way for too long.
        """
        until = monotonic() + BUSY_SECONDS
        tries = 0
        while True:
            tries += 1
            self._check()
            try:
                return self._once(work, isolation, may_be_twice=tries >= _TWICE)
            except _RunAgain as again:
                if monotonic() >= until:
                    raise self.errors.busy(f"the database does not come to it: {again}") from again
            except self.errors.busy:  # somebody else has changed a state since it was read
                if monotonic() >= until:
                    raise
            sleep(random.uniform(0.001, 0.02))  # noqa: S311  so that two do not meet again

    def _check(self) -> None:
        """Raise where no transaction may begin now."""

    def _once(self, work: Callable[["Statements"], T], isolation: Isolation, *, may_be_twice: bool) -> T:
        with self._taken() as connection:
            return self._transaction(connection, work, isolation, may_be_twice=may_be_twice)

    @contextlib.contextmanager
    def _taken(self) -> Iterator[Connection]:
        connection = self._connection()
        self._used.add(connection)
        connection.be_taken()
        try:
            yield connection
        finally:
            self._used.discard(connection)
            self.give_back(connection)

    def _one(self, statement: str, values: Sequence[Any]) -> list[Any]:
        until = monotonic() + BUSY_SECONDS
        whole = f"{Isolation.READ_COMMITTED.begin}; {statement}; COMMIT"
        while True:
            with self._taken() as connection:
                try:
                    return _rows(connection, whole, [_plain(value) for value in values])
                except psycopg.Error as error:
                    if not connection.closed:
                        with contextlib.suppress(psycopg.Error):
                            connection.ask("ROLLBACK")
                    meets = isinstance(error, SerializationFailure | DeadlockDetected | LockNotAvailable)
                    if not (connection.closed or meets) or monotonic() >= until:
                        raise self.errors.unavailable(
                            f"the database does not answer: {said(error)}"
                        ) from error

    def _transaction(
        self,
        connection: Connection,
        work: Callable[["Statements"], T],
        isolation: Isolation,
        *,
        may_be_twice: bool,
    ) -> T:
        """Run `work` as a transaction. may_be_twice: whether a row that is there already is a fault of ours.

        Else another transaction may have made it meanwhile, which PostgreSQL says as if it had been there.
        """
        may_be_done = False
        try:
            (began,) = _rows(connection, isolation.begin + _CLOCK)[0]
            statements = Statements(connection, began=began)
            result = work(statements)
            may_be_done = isolation is not Isolation.SNAPSHOT
            statements.commit()
        except BaseException as error:
            if not connection.closed:
                with contextlib.suppress(psycopg.Error):
                    connection.ask("ROLLBACK")
            if not isinstance(error, psycopg.Error):
                raise
            meets = isinstance(error, SerializationFailure | DeadlockDetected | LockNotAvailable)
            if meets or (isinstance(error, UniqueViolation) and not may_be_twice):
                raise _RunAgain("other transactions are in its way") from error
            if connection.closed and not may_be_done:
                raise _RunAgain("the connection is lost") from error
            raise self.errors.unavailable(f"the database does not answer: {said(error)}") from error
        return result

    def _connection(self) -> Connection:
        while True:
            try:
                idle = self._idle.get_nowait()
            except queue.Empty:
                if monotonic() < self._away_until:
                    raise self.errors.unavailable(
                        "the database could not be connected to a moment ago"
                    ) from None
                return self.connected()
            if not idle.closed:
                return idle
            idle.close()

    def give_back(self, connection: Connection) -> None:
        """Keep an idle connection for the next transaction."""
        if connection.closed or self._closed:
            connection.close()
        else:
            self._idle.put(connection)

    def conninfo(self, uri: str) -> str:
        """What libpq is told to connect to `uri`."""
        known = conninfo.conninfo_to_dict(uri)
        return conninfo.make_conninfo("", **{**_DEFAULTS, "application_name": self._program, **known})

    def connected(self) -> Connection:
        """Connect. `Errors.unavailable` where that fails."""
        try:
            connection = Connection.connect(
                self.conninfo(self._uri),
                autocommit=True,
                row_factory=self._rows,
                prepare_threshold=None,  # nothing is prepared, so a pool may be between
            )
        except psycopg.Error as error:
            self._away_until = monotonic() + AWAY_SECONDS
            raise self.errors.unavailable(f"the database cannot be connected to: {said(error)}") from error
        connection.can_be_cut()
        return connection

    def close(self) -> None:
        """Close the connections, once no thread uses one. None of its own threads may call this."""
        self._closed = True
        self._threads.shutdown()
        while not self._idle.empty():
            self._idle.get_nowait().close()

    async def aclose(self) -> None:
        """Close it, and wait for that: a cancellation of the caller is raised afterwards."""
        closing = asyncio.ensure_future(asyncio.to_thread(self.close))
        cancelled: asyncio.CancelledError | None = None
        while not closing.done():
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError as error:
                cancelled = error
        closing.result()
        if cancelled is not None:
            raise cancelled


class _RunAgain(Exception):  # noqa: N818  no fault
    """The transaction is rolled back, and may succeed when it is run again."""


class Statements:
    """A transaction, in which ``?`` or ``:name`` stands for values, and numbers for the values of enumerations and truths."""

    def __init__(self, connection: Connection, *, began: float) -> None:
        """began: when the transaction began by the server's clock, Unix seconds."""
        self._connection = connection
        self._told: list[Told] = []  # to be sent with the next statement
        self.began: Final = began

    def take_time(self) -> None:
        """Let this transaction take as long as it needs, as a command may."""
        self._connection.take_time()

    def execute(
        self, statement: str, values: Sequence[Any] | Mapping[str, Any] = (), /
    ) -> "psycopg.Cursor[Any]":
        self._send()
        if isinstance(values, Mapping):
            named = {name: _plain(value) for name, value in values.items()}
            return self._connection.ask(_with_names(statement), named)
        return self._connection.ask(_with_places(statement), [_plain(value) for value in values])

    def executemany(self, statement: str, values: Iterable[Sequence[Any]], /) -> None:
        """Execute a statement for each of `values`: at the latest before the next one whose rows are asked for, or with the
        COMMIT, all of them in one round trip. What fails then is raised there.
        """
        for each in values:
            self._told.append(Told(statement, [_plain(value) for value in each]))
            if len(self._told) >= _AT_ONCE:
                self._send()

    def _send(self) -> None:
        told, self._told = self._told, []
        if told:
            self._connection.tell(told)

    def commit(self) -> None:
        """End the transaction, with all that is to be sent before."""
        if self._told:
            self._told.append(Told("COMMIT"))
            self._send()
        else:
            self._connection.ask("COMMIT")


@lru_cache(maxsize=512)
def _with_places(statement: str) -> str:
    return statement.replace("%", "%%").replace("?", "%s")


@lru_cache(maxsize=512)
def _with_names(statement: str) -> str:
    return re.sub(r":(\w+)", r"%(\1)s", statement.replace("%", "%%"))


def _as_it_is(statement: str) -> Any:
    """Ours: psycopg's types want literals, so that nobody puts values into a statement."""
    return statement


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return int(value) if isinstance(value, bool) else value


def _rows(connection: Connection, statements: str, values: Sequence[Any] = ()) -> list[Any]:
    """Run statements at once; returns the rows of the last one that has some."""
    rows: list[Any] = []
    # values are put into the text: the server takes several statements only without values beside them
    with connection.awaited(), psycopg.ClientCursor(connection, row_factory=tuple_row) as cursor:
        cursor.execute(_with_places(statements) if values else _as_it_is(statements), values or None)
        while True:
            if cursor.description is not None:
                rows = cursor.fetchall()
            if not cursor.nextset():
                return rows


def said(error: "psycopg.Error") -> str:
    """What the server or libpq has said, without the values of the statement."""
    return error.diag.message_primary or " ".join(str(error).split()) or type(error).__name__
