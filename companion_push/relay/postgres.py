"""The relay's store in a database of PostgreSQL 15 or newer.

A transaction is serializable and runs in a thread, again where it meets another one (`postgres_store.database`).

One relay at a time uses a database: it holds an advisory lock on a connection that it watches. Another one that is started
meanwhile is refused (`StoreBusy`); started again and again by its supervisor, it takes over when the first one is gone. A
relay that has lost the lock takes nothing until it has it again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeVar

from companion_push.errors import StoreBusy, StoreUnavailable, StoreUnusable
from companion_push.relay.database import MIGRATIONS
from companion_push.relay.store_place import PostgresUri
from companion_push.relay.transaction import Transaction
from headless_passkey.errors import SetupReason
from headless_passkey.mends import setup_error
from headless_passkey.process.tasks import end, to_its_end

try:
    import psycopg

    from postgres_store import database, schema
except ImportError as error:
    raise setup_error(
        "a store in PostgreSQL needs psycopg", SetupReason.MISSING_PACKAGE, extra="postgres"
    ) from error

_WATCH_SECONDS: Final = 5.0  # between looks at the lock's connection
_LOCK: Final = 0x68704B32_72656C79  # "hpK2rely": of one relay

T = TypeVar("T")


def _unusable(message: str, reason: SetupReason = SetupReason.STATE_UNWRITABLE) -> StoreUnusable:
    error = StoreUnusable(message, reason=reason)
    error.advice = "look at the database, and at what its user may do"
    return error


_ERRORS: Final = database.Errors(
    unavailable=StoreUnavailable,
    busy=StoreBusy,
    unusable=_unusable,
    incompatible=lambda message: _unusable(message, SetupReason.STATE_INCOMPATIBLE),
)


class PostgresStore(database.Database):
    """An open store in PostgreSQL. Made by `open_postgres`."""

    def __init__(self, place: PostgresUri) -> None:
        super().__init__(place.uri, program="companion-push relay", errors=_ERRORS)
        self.lock: database.Connection | None = None
        self._has_lock = True  # also of a command beside the relay, which needs none

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
        result = await self.run(work)
        committed(result)
        return result

    @property
    def is_remote(self) -> bool:
        return True

    @property
    def is_on_disk(self) -> bool:
        return True

    async def on_disk(self) -> None:
        """Every commit is on the disk when it is done."""

    @property
    def nodes(self) -> None:
        """One relay uses a database at a time."""

    def _check(self) -> None:
        if not self._has_lock:
            raise StoreUnavailable("another relay may be using the database: this one has lost its lock")

    def open(self, *, alone: bool) -> None:
        """Migrate the database, and take the relay's lock."""
        connection = self.connected()
        try:
            migrate(connection)
        except BaseException:
            connection.close()
            raise
        self.give_back(connection)
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
        """Close all connections, once no thread uses one: an opening that was cancelled goes on in its thread."""
        self._threads.shutdown()
        if self.lock is not None:
            self.lock.close()
        super().close()


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
        try:
            if watching is not None:
                await end(watching)
        finally:
            await to_its_end(asyncio.to_thread(store.close))


def migrate(connection: "psycopg.Connection[Any]") -> None:
    """Migrate the database to the newest schema."""
    steps = [text.split(";\n") for text in MIGRATIONS]
    schema.migrate(connection, steps, table="headless_passkey_relay", errors=_ERRORS)
