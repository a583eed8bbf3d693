"""The relay's store in a database of PostgreSQL 15 or newer.

A transaction is serializable and runs in a thread, on a connection of its own. Where it meets another one, it is rolled back
and run again. A connection that is found dead is made anew, and the transaction is run again if its COMMIT was not sent.

One relay at a time uses a database: it holds an advisory lock on a connection that it watches. Another one that is started
meanwhile is refused (`StoreBusy`); started again and again by its supervisor, it takes over when the first one is gone. A
relay that has lost the lock takes nothing until it has it again.
"""

import asyncio
import contextlib
import queue
import random
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import lru_cache
from time import monotonic, sleep
from typing import Any, Final, TypeVar

from companion_push.errors import StoreBusy, StoreUnavailable, StoreUnusable
from companion_push.relay.database import MIGRATIONS
from companion_push.relay.store_place import PostgresUri
from companion_push.relay.transaction import Rows, Transaction
from headless_passkey.errors import SetupReason
from headless_passkey.mends import setup_error
from headless_passkey.process.tasks import end

try:
    import psycopg
    from psycopg import conninfo
    from psycopg.errors import DeadlockDetected, LockNotAvailable, SerializationFailure, UniqueViolation
except ImportError as error:
    raise setup_error(
        "a store in PostgreSQL needs psycopg", SetupReason.MISSING_PACKAGE, extra="postgres"
    ) from error

CONNECTIONS: Final = 8  # transactions at a time
OLDEST: Final = 150000  # the version of the server
_BUSY_SECONDS: Final = 5.0  # in which a transaction is run again and again
_AWAY_SECONDS: Final = 1.0  # for which a server that is away is not asked: thousands would wait for each try
_TWICE: Final = 3  # tries after which a row that is there already is a fault of ours
_WATCH_SECONDS: Final = 5.0  # between looks at the lock's connection
_LOCK: Final = 0x68704B32_72656C79  # "hpK2rely": of one relay
_MIGRATING: Final = 0x68704B32_6D696772  # "hpK2migr": of one migration
# what libpq does where the URL says nothing else: a peer that is gone is noticed
_DEFAULTS: Final = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "application_name": "companion-push relay",
}
_BEGIN: Final = (
    "BEGIN ISOLATION LEVEL SERIALIZABLE; SET LOCAL statement_timeout = 5000;"
    " SET LOCAL idle_in_transaction_session_timeout = 15000"
)

T = TypeVar("T")


class PostgresStore:
    """An open store in PostgreSQL. Made by `open_postgres`."""

    def __init__(self, place: PostgresUri) -> None:
        self._place = place
        self._threads = ThreadPoolExecutor(max_workers=CONNECTIONS, thread_name_prefix="store")
        self._idle: queue.LifoQueue[psycopg.Connection[Any]] = queue.LifoQueue()
        self.lock: psycopg.Connection[Any] | None = None
        self._has_lock = True  # also of a command beside the relay, which needs none
        self._away_until = (
            0.0  # by the monotonic clock: a server that was away a moment ago is not waited for
        )

    async def transact(
        self,
        work: Callable[[Transaction], T],
        *,
        committed: Callable[[T], None] = lambda _result: None,
        durable: Callable[[T], bool] = lambda _result: True,  # noqa: ARG002  each commit is
    ) -> T:
        """Run `work` as one transaction in a thread, again where it meets another one; rolled back when it raises.

        committed: is called on the event loop after the commit. `StoreUnavailable`, of which `StoreBusy` is one, when the
        database does not answer.
        """
        result = await self.in_thread(lambda: self.now(work))
        committed(result)
        return result

    def at_once(self, work: Callable[[Transaction], T]) -> T:  # noqa: ARG002  nothing is
        raise StoreBusy("a database on a network is waited for")

    @property
    def is_on_disk(self) -> bool:
        return True

    async def on_disk(self) -> None:
        """Every commit is on the disk when it is done."""

    async def in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def now(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` as one transaction in this thread, again where it meets another one."""
        until = monotonic() + _BUSY_SECONDS
        tries = 0
        while True:
            tries += 1
            if not self._has_lock:
                raise StoreUnavailable("another relay may be using the database: this one has lost its lock")
            try:
                return self._once(work, may_be_twice=tries >= _TWICE)
            except _RunAgain as again:
                if monotonic() >= until:
                    raise StoreBusy(f"the database does not come to it: {again}") from again
            except StoreBusy:  # somebody else has changed a state since it was read
                if monotonic() >= until:
                    raise
            sleep(random.uniform(0.001, 0.02))  # noqa: S311  so that two do not meet again

    def _once(self, work: Callable[[Transaction], T], *, may_be_twice: bool) -> T:
        connection = self._connection()
        try:
            result = self._transaction(connection, work, may_be_twice=may_be_twice)
        except BaseException:
            self._give_back(connection)
            raise
        self._give_back(connection)
        return result

    def _transaction(
        self, connection: "psycopg.Connection[Any]", work: Callable[[Transaction], T], *, may_be_twice: bool
    ) -> T:
        """Run `work` as a transaction. may_be_twice: whether a row that is there already is a fault of ours.

        Else another transaction may have made it meanwhile, which PostgreSQL says as if it had been there.
        """
        may_be_done = False
        try:
            connection.execute(_BEGIN)
            result = work(_Statements(connection))
            may_be_done = True
            connection.execute("COMMIT")
        except BaseException as error:
            if not connection.closed:
                with contextlib.suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
            if not isinstance(error, psycopg.Error):
                raise
            meets = isinstance(error, SerializationFailure | DeadlockDetected | LockNotAvailable)
            if meets or (isinstance(error, UniqueViolation) and not may_be_twice):
                raise _RunAgain("other transactions are in its way") from error
            if connection.closed and not may_be_done:
                raise _RunAgain("the connection is lost") from error
            raise StoreUnavailable(f"the database does not answer: {_said(error)}") from error
        return result

    def _connection(self) -> "psycopg.Connection[Any]":
        while True:
            try:
                idle = self._idle.get_nowait()
            except queue.Empty:
                if monotonic() < self._away_until:
                    raise StoreUnavailable("the database could not be connected to a moment ago") from None
                return self.connected()
            if not idle.closed:
                return idle

    def _give_back(self, connection: "psycopg.Connection[Any]") -> None:
        if not connection.closed:
            self._idle.put(connection)

    def connected(self) -> "psycopg.Connection[Any]":
        """Connect. `StoreUnavailable` where that fails."""
        try:
            known = conninfo.conninfo_to_dict(self._place.uri)
            return psycopg.connect(
                conninfo.make_conninfo("", **{**_DEFAULTS, **known}),
                autocommit=True,
                cursor_factory=psycopg.ClientCursor,  # nothing is prepared, so a pool may be between
            )
        except psycopg.Error as error:
            self._away_until = monotonic() + _AWAY_SECONDS
            raise StoreUnavailable(f"the database cannot be connected to: {_said(error)}") from error

    def open(self, *, alone: bool) -> None:
        """Migrate the database, and take the relay's lock."""
        connection = self.connected()
        try:
            migrate(connection)
        except psycopg.Error as error:
            connection.close()
            raise _unusable(f"the database cannot be used: {_said(error)}") from error
        self._give_back(connection)
        if alone:
            self._has_lock = False
            self.take_lock()
            if not self._has_lock:
                raise StoreBusy("another relay is using the database")

    def take_lock(self) -> None:
        """Take the relay's lock, where it is free."""
        if self.lock is None or self.lock.closed:
            self.lock = self.connected()
        row = self.lock.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone()
        self._has_lock = row is not None and bool(row[0])

    async def watch(self) -> None:
        """Watch the lock's connection, and take the lock again when it was lost."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            await self.in_thread(self.look_at_lock)

    def look_at_lock(self) -> bool:
        """Look at the lock's connection, and take the lock again when it was lost; returns whether this relay has it."""
        try:
            if self.lock is not None and not self.lock.closed and self._has_lock:
                self.lock.execute("SELECT 1")
                return True
        except psycopg.Error:
            pass
        self._has_lock = False
        if self.lock is not None:
            self.lock.close()
        with contextlib.suppress(StoreUnavailable, psycopg.Error):
            self.take_lock()
        return self._has_lock

    def close(self) -> None:
        if self.lock is not None:
            self.lock.close()
        while not self._idle.empty():
            self._idle.get_nowait().close()


class _RunAgain(Exception):  # noqa: N818  no fault
    """The transaction is rolled back, and may succeed when it is run again."""


class _Statements:
    """A transaction, in which ``?`` stands for values, and numbers for the values of enumerations and truths."""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self._connection = connection

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Rows:
        return self._connection.execute(_translated(statement), [_plain(value) for value in values])

    def executemany(self, statement: str, values: Iterable[Sequence[Any]], /) -> None:
        for each in values:
            self.execute(statement, each)


@contextlib.asynccontextmanager
async def open_postgres(place: PostgresUri, *, alone: bool) -> AsyncIterator[PostgresStore]:
    """Open a store in PostgreSQL, and make its tables where they are missing.

    alone: take the relay's lock, and watch it. Raises `StoreUnusable` where it cannot be a store, `StoreUnavailable` where it
    cannot be connected to, `StoreBusy` when another relay uses it.
    """
    store = PostgresStore(place)
    watching: asyncio.Task[None] | None = None
    try:
        await store.in_thread(lambda: store.open(alone=alone))
        if alone:
            watching = asyncio.create_task(store.watch())
        yield store
    finally:
        if watching is not None:
            await end(watching)
        await store.in_thread(store.close)
        store._threads.shutdown(wait=False)  # noqa: SLF001  opening and closing are its other half


def migrate(connection: "psycopg.Connection[Any]") -> None:
    """Migrate the database to the newest schema: each step is one transaction, and stores its number."""
    if connection.info.server_version < OLDEST:
        raise _unusable("the server is older than PostgreSQL 15", SetupReason.STATE_INCOMPATIBLE)
    while True:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
            connection.execute("CREATE TABLE IF NOT EXISTS headless_passkey_relay (version BIGINT NOT NULL)")
            row = connection.execute("SELECT version FROM headless_passkey_relay").fetchone()
            version = 0 if row is None else int(row[0])
            if version > len(MIGRATIONS):
                raise _unusable(
                    "the store was made by a newer version of this program", SetupReason.STATE_INCOMPATIBLE
                )
            if version == len(MIGRATIONS):
                return
            for statement in MIGRATIONS[version].split(";\n"):
                connection.execute(_schema(statement))
            connection.execute("DELETE FROM headless_passkey_relay")
            connection.execute("INSERT INTO headless_passkey_relay VALUES (%s)", (version + 1,))


_SCHEMA: Final = (
    (r"--[^\n]*", ""),
    (r"\) STRICT(, WITHOUT ROWID)?", ")"),
    (r"INTEGER PRIMARY KEY AUTOINCREMENT", "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"),
    (r"\bINTEGER\b", "BIGINT"),
    (r"\bREAL\b", "DOUBLE PRECISION"),
    (r"\bBLOB\b", "BYTEA"),
    (r"\bTEXT\b", 'TEXT COLLATE "C"'),
)


def _schema(statement: str) -> Any:
    """A statement that makes a table or an index, as PostgreSQL takes it."""
    for ours, theirs in _SCHEMA:
        statement = re.sub(ours, theirs, statement)
    return statement


@lru_cache(maxsize=512)
def _translated(statement: str) -> Any:
    return statement.replace("%", "%%").replace("?", "%s")


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return int(value) if isinstance(value, bool) else value


def _said(error: "psycopg.Error") -> str:
    """What the server or libpq has said, without the values of the statement."""
    return error.diag.message_primary or " ".join(str(error).split()) or type(error).__name__


def _unusable(message: str, reason: SetupReason = SetupReason.STATE_UNWRITABLE) -> StoreUnusable:
    error = StoreUnusable(message, reason=reason)
    error.advice = "look at the database, and at what its user may do"
    return error
