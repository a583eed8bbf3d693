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
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg import conninfo
from psycopg.errors import DeadlockDetected, LockNotAvailable, SerializationFailure, UniqueViolation
from psycopg.pq import Format
from psycopg.rows import tuple_row

from postgres_store.pipeline import Prepared, Told, tell

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

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
# of each transaction: a pooler may hand its connection on. Without an index a whole table would be in a serializable
# transaction's way; what has none all the same is dear, and would be compiled for it
_SETTINGS: Final = ", ".join(
    f"set_config('{name}', '{value}', true)"
    for name, value in (
        ("statement_timeout", "5000"),
        ("idle_in_transaction_session_timeout", "15000"),
        ("enable_seqscan", "off"),
        ("jit", "off"),
    )
)
# the first statement of each transaction: its settings, and the server's clock
_BEGINNING: Final = f"SELECT {_SETTINGS}, extract(epoch FROM clock_timestamp())::float8"  # noqa: S608  words of ours

T = TypeVar("T")
# looks the names of hosts up until it is over; returns the addresses of each, or why it has none
LookUp = Callable[[Sequence[str], Callable[[], bool]], Mapping[str, Sequence[str] | Exception]]


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
        return f"BEGIN ISOLATION LEVEL {self.value}"


class Connection(psycopg.Connection[Any]):
    """A connection, which another thread may cut off."""

    _wire: socket.socket | None = None  # the same socket once more: it is never another one's when it is cut
    _until = inf  # by the monotonic clock: when an answer is due
    _patience = inf  # seconds for each answer
    encoding = "utf-8"
    _kept: Prepared | None = None  # None: it prepares none

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._loads: dict[int, Callable[[bytes], Any]] = {}

    def be_taken(self, *, prepares: bool) -> None:
        """Begin to serve a transaction, of which each answer is due in time. prepares: see `Database.prepare`."""
        self._patience = SILENT_SECONDS
        if prepares and self._kept is None:
            self._kept = Prepared()

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

    def tell(self, statements: Sequence[Told]) -> "list[PGresult]":
        """Execute statements of ours in order, in one round trip; those after one that fails are not executed."""
        try:
            with self.awaited():
                return tell(self.pgconn, statements, encoding=self.encoding, prepared=self._kept)
        except BaseException:
            if self.pgconn.pipeline_status:  # it was broken off
                self.close()
            raise

    def take_time(self, seconds: float) -> None:
        """Wait for each answer of this transaction so long."""
        self._patience = seconds

    @property
    def is_silent(self) -> bool:
        """Whether the server should have answered long ago."""
        return monotonic() >= self._until

    def cut(self) -> None:
        """Let the thread that waits for the server find the connection dead."""
        if self._wire is not None:
            with contextlib.suppress(OSError):
                self._wire.shutdown(socket.SHUT_RDWR)

    def be_ready(self) -> None:
        """Look at what it is once, when it has connected."""
        self._wire = socket.socket(fileno=os.dup(self.fileno()))
        self.encoding = self.info.encoding

    def read(self, value: bytes, kind: int) -> Any:
        """A value of a result. kind: the object id of its type."""
        load = self._loads.get(kind)
        if load is None:
            loader = self.adapters.get_loader(kind, Format.BINARY) or self.adapters.get_loader(
                0, Format.BINARY
            )
            assert loader is not None  # noqa: S101  of the unknown type
            load = self._loads[kind] = loader(kind, self).load
        return load(value)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
        super().close()


class Database:
    """An open database, and its connections."""

    def __init__(
        self,
        uri: str,
        *,
        program: str,
        errors: Errors,
        connections: int = CONNECTIONS,
        named: bool = False,
        addresses: LookUp | None = None,
    ) -> None:
        """uri: checked by `check_uri`. program: its name, which the server shows. named: whether rows are dictionaries.

        addresses: looks names up, in bounded time. None: libpq or its driver does, for as long as it takes.
        """
        self._uri, self._program, self._named = uri, program, named
        self._addresses = addresses
        self._prepares = False
        self.errors: Final = errors
        self._threads = ThreadPoolExecutor(max_workers=connections, thread_name_prefix="store")
        self._idle: queue.LifoQueue[Connection] = queue.LifoQueue()
        self._used: set[Connection] = set()
        self._looking: asyncio.TimerHandle | None = None
        self._closed = self._ends = False
        self._away_until = (
            0.0  # by the monotonic clock: a server that was away a moment ago is not waited for
        )

    def prepare(self) -> None:
        """Prepare statements from now on, which the server then parses and plans once for each connection.

        For whoever knows that a connection is to one process of the server as long as it lasts: behind a pooler in transaction mode it
        is not.
        """
        self._prepares = True

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
        connection.be_taken(prepares=self._prepares)
        try:
            yield connection
        finally:
            self._used.discard(connection)
            self.give_back(connection)

    def _one(self, statement: str, values: Sequence[Any]) -> list[Any]:
        until = monotonic() + BUSY_SECONDS
        whole = f"{Isolation.READ_COMMITTED.begin}; {_BEGINNING}; {statement}; COMMIT"
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
        statements = Statements(connection, isolation, named=self._named)
        try:
            result = work(statements)
            may_be_done = isolation is not Isolation.SNAPSHOT
            statements.commit()
        except BaseException as error:
            if statements.is_begun and not connection.closed:
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
        """What libpq is told to connect to `uri`. Names are looked up, which may take a while; `psycopg.OperationalError` where none is known."""
        known = conninfo.conninfo_to_dict(uri)
        told = {**_DEFAULTS, "application_name": self._program, **known, **self._places(known)}
        return conninfo.make_conninfo("", **told)

    def _places(self, known: Mapping[str, Any]) -> Mapping[str, str]:
        """Hosts with each of their addresses, for libpq to look no name up; nothing where hosts or addresses are not in the URI."""
        hosts, ports = (str(known.get(name) or "").split(",") for name in ("host", "port"))
        if self._addresses is None or not known.get("host"):
            return {}
        if known.get("hostaddr") or os.environ.get("PGHOSTADDR") or len(ports) not in (1, len(hosts)):
            return {}  # of the last the driver says what is wrong
        found = self._addresses([host for host in hosts if _is_name(host)], lambda: self._ends)
        places: list[tuple[str, str, str]] = []
        failed: Exception | None = None
        for host, port in zip(hosts, ports if len(ports) > 1 else ports * len(hosts), strict=True):
            addresses = found[host] if _is_name(host) else [""]
            if isinstance(addresses, Exception):
                failed = addresses
            else:
                places += [(host, address, port) for address in addresses]
        if not places:
            raise psycopg.OperationalError(f"its name cannot be resolved ({failed})") from failed
        names, addresses_, numbers = map(",".join, zip(*places, strict=True))
        told = {"host": names, "hostaddr": addresses_}
        return told | {"port": numbers} if known.get("port") else told

    def connected(self) -> Connection:
        """Connect. `Errors.unavailable` where that fails."""
        try:
            connection = Connection.connect(
                self.conninfo(self._uri),
                autocommit=True,
                prepare_threshold=None,  # nothing is prepared, so a pool may be between
            )
        except psycopg.Error as error:
            self._away_until = monotonic() + AWAY_SECONDS
            raise self.errors.unavailable(f"the database cannot be connected to: {said(error)}") from error
        try:
            connection.be_ready()
        except OSError as error:  # such as EMFILE: libpq got the last file that the process may have
            connection.close()
            raise self.errors.unavailable(f"the database cannot be connected to: {error.strerror}") from error
        return connection

    def leave(self) -> None:
        """Wait for no name server any more: the program ends."""
        self._ends = True

    def close(self) -> None:
        """Close the connections, once no thread uses one. None of its own threads may call this."""
        self.leave()
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


class Rows:
    """What a statement has found or changed. The statement is sent when that is asked for, or before."""

    def __init__(self, statements: "Statements") -> None:
        self._statements = statements
        self._result: PGresult | None = None
        self._rows: Iterator[Any] | None = None

    def take(self, result: "PGresult") -> None:
        self._result = result

    def _sent(self) -> "PGresult":
        if self._result is None:
            self._statements.send()
        if self._result is None:
            raise psycopg.OperationalError("the transaction has failed")
        return self._result

    @property
    def rowcount(self) -> int:
        return self._sent().command_tuples or 0

    def __iter__(self) -> Iterator[Any]:
        if self._rows is None:
            self._rows = self._statements.rows_of(self._sent())
        return self._rows

    def fetchone(self) -> Any:
        return next(iter(self), None)

    def fetchall(self) -> list[Any]:
        return list(self)


class Statements:
    """A transaction, in which ``?`` or ``:name`` stands for values, and numbers for the values of enumerations and truths.

    A statement is sent when somebody asks for what it has found or changed, or a later one has, or with the COMMIT: all of them
    in order, in one round trip. What fails then is raised there.
    """

    def __init__(self, connection: Connection, isolation: Isolation, *, named: bool = False) -> None:
        """named: whether rows are dictionaries, and not tuples."""
        self._connection, self._named = connection, named
        self._told: list[Told] = [Told(isolation.begin)]  # to be sent
        self._asked: list[Rows | None] = [None]  # whose results they are
        self._beginning = self.execute(_BEGINNING)
        self._began: float | None = None
        self.is_begun = False

    @property
    def began(self) -> float:
        """When the transaction began by the server's clock, Unix seconds."""
        if self._began is None:
            row = self._beginning.fetchone()
            self._began = float(next(reversed(row.values())) if self._named else row[-1])
        return self._began

    def take_time(self, seconds: float | None = None) -> None:
        """Let each statement of this transaction take so long. None: as long as it needs, as a command may, and between them too."""
        if seconds is not None:
            self._connection.take_time(seconds + SILENT_SECONDS)
            self.execute(f"SET LOCAL statement_timeout = {int(seconds * 1000)}")
            return
        self._connection.take_time(inf)
        for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
            self.execute(f"SET LOCAL {setting} = 0")

    def execute(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = (), /) -> Rows:
        if isinstance(values, Mapping):
            statement, names = _with_places(statement)
            values = [values[name] for name in names]
        rows = Rows(self)
        self._tell(statement, values, rows)
        return rows

    def executemany(self, statement: str, values: Iterable[Sequence[Any]], /) -> None:
        """Execute a statement for each of `values`; nobody asks for what it finds."""
        for each in values:
            self._tell(statement, each, None)

    def _tell(self, statement: str, values: Iterable[Any], rows: Rows | None) -> None:
        self._told.append(Told(statement, [_plain(value) for value in values]))
        self._asked.append(rows)
        if len(self._told) >= _AT_ONCE:
            self.send()

    def send(self) -> None:
        """Send what is to be sent, and wait for what comes of it."""
        told, asked, self._told, self._asked = self._told, self._asked, [], []
        self.is_begun = True
        if told:
            for rows, result in zip(asked, self._connection.tell(told), strict=True):
                if rows is not None:
                    rows.take(result)

    def commit(self) -> None:
        """End the transaction, with all that is to be sent before; where nothing was asked, there is none."""
        if self.is_begun or len(self._told) > _OF_BEGINNING:
            self._told.append(Told("COMMIT"))
            self._asked.append(None)
            self.send()

    def rows_of(self, result: "PGresult") -> Iterator[Any]:
        kinds = [result.ftype(column) for column in range(result.nfields)]
        names = (
            [(result.fname(column) or b"").decode() for column in range(result.nfields)]
            if self._named
            else []
        )
        for row in range(result.ntuples):
            values = [result.get_value(row, column) for column in range(result.nfields)]
            read = (
                None if value is None else self._connection.read(value, kind)
                for value, kind in zip(values, kinds, strict=True)
            )
            yield dict(zip(names, read, strict=True)) if self._named else tuple(read)


_OF_BEGINNING: Final = 2  # statements with which each transaction begins


@lru_cache(maxsize=512)
def _with_places(statement: str) -> tuple[str, tuple[str, ...]]:
    """A statement with ``?`` in place of names, and these in order."""
    return re.sub(r":\w+", "?", statement), tuple(re.findall(r":(\w+)", statement))


def _as_it_is(statement: str) -> Any:
    """Ours: psycopg's types want literals, so that nobody puts values into a statement."""
    return statement


def _is_name(host: str) -> bool:
    return bool(host) and not host.startswith(("/", "@"))  # a socket's folder


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return int(value) if isinstance(value, bool) else value


def _rows(connection: Connection, statements: str, values: Sequence[Any]) -> list[Any]:
    """Run statements at once; returns the rows of the last one that has some."""
    rows: list[Any] = []
    # values are put into the text: the server takes several statements only without values beside them
    with connection.awaited(), psycopg.ClientCursor(connection, row_factory=tuple_row) as cursor:
        whole = statements.replace("%", "%%").replace("?", "%s") if values else statements
        cursor.execute(_as_it_is(whole), values or None)
        while True:
            if cursor.description is not None:
                rows = cursor.fetchall()
            if not cursor.nextset():
                return rows


def said(error: "psycopg.Error") -> str:
    """What the server or libpq has said, without the values of the statement."""
    return error.diag.message_primary or " ".join(str(error).split()) or type(error).__name__
