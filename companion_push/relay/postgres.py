"""The relay's store in a database of PostgreSQL 15 or newer.

A transaction is serializable and runs in a thread, again where it meets another one (`postgres_store.database`). Any number of
relays may use one database: what they share beside its rows is in `postgres_nodes`. Times are of the server's clock, so that the
clocks of the relays decide nothing.

A relay holds a shared advisory lock of its listening connection; a command that needs the database for itself takes it alone.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, TypeVar

from companion_push.errors import StoreBusy, StoreUnavailable, StoreUnusable
from companion_push.relay.database import MIGRATIONS, statements
from companion_push.relay.nodes import WakeUp
from companion_push.relay.store_place import PostgresUri
from companion_push.relay.transaction import Transaction
from headless_passkey.errors import SetupReason
from headless_passkey.mends import setup_error
from name_lookups.resolver import OURS

try:
    import psycopg

    from postgres_store import database, schema
    from postgres_store.copying import Plan
except ImportError as error:
    raise setup_error(
        "a store in PostgreSQL needs psycopg", SetupReason.MISSING_PACKAGE, extra="postgres"
    ) from error

if TYPE_CHECKING:
    from companion_push.relay.postgres_nodes import PostgresNodes

_VERSION: Final = "headless_passkey_relay"  # the table of its number
_LOCK: Final = 0x68704B32_72656C79  # "hpK2rely": the advisory lock of relays, which share it
# values: the halves of the lock
_SHARING: Final = """
    SELECT pid::text FROM pg_locks
        WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted AND classid::bigint = %s AND objid::bigint = %s
        AND objsubid = 1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_ENDING_SECONDS: Final = 1.0  # for which the server may still know a relay that has ended
_ENDING_PAUSE: Final = 0.05

# tables that only several processes need, and only PostgreSQL has
TABLES: Final = (
    # a nonce is taken while it is one of the newest two; `began` by the server's clock, Unix seconds
    "CREATE UNLOGGED TABLE proof_nonces (step INTEGER PRIMARY KEY, nonce TEXT NOT NULL UNIQUE, began REAL NOT NULL)",
    # taker: of the call that has taken it, so that the same statement may run again
    "CREATE UNLOGGED TABLE used_proofs (step INTEGER NOT NULL, id BLOB NOT NULL, taker BLOB NOT NULL, PRIMARY KEY (step, id))",
    # work that one process does at a time
    "CREATE TABLE turns (work TEXT PRIMARY KEY, until REAL NOT NULL)",
)

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
        super().__init__(place.uri, program="companion-push relay", errors=_ERRORS, addresses=OURS.addresses)
        self._place = place
        self._lock: database.Connection | None = None  # of a command that is alone
        self._nodes: PostgresNodes | None = None
        self._ahead = 0.0  # seconds from the monotonic clock to the server's

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

    @property
    def log_bytes(self) -> int:
        return 0

    def on_disk(self, result: T) -> "asyncio.Future[T]":
        """Every commit is on the disk when it is done."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        done.set_result(result)
        return done

    def time_of(self, db: Transaction) -> float:
        """When a transaction began, by the server's clock."""
        assert isinstance(db, database.Statements)  # noqa: S101  for mypy
        self._ahead = db.began - monotonic()
        return db.began

    def clock(self) -> float:
        """The server's clock, as the last transaction has shown it."""
        return monotonic() + self._ahead

    def others_wrote(self) -> bool:
        """They tell it."""
        return False

    def tell(self, db: Transaction, wake: WakeUp) -> None:
        from companion_push.relay.postgres_nodes import notify  # noqa: PLC0415  of the commands that close an account

        notify(db, "", wake)

    @property
    def nodes(self) -> "PostgresNodes | None":
        return self._nodes

    def open(self, *, migrates: bool = True) -> None:
        """Migrate the database, and read its clock. migrates: else it is left in its version."""
        connection = self.connected()
        try:
            if migrates:
                migrate(connection)
        except BaseException:
            connection.close()
            raise
        self.give_back(connection)
        self.now(self.time_of)

    def lock(self) -> None:
        """Keep relays and other such commands from the database until it is closed."""
        self._lock, until = self.connected(), monotonic() + _ENDING_SECONDS
        # its transaction ends with it, also behind a pooler, which keeps the server's session and would keep the session's lock
        self._lock.execute("BEGIN")
        self._lock.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        while True:
            row = self._lock.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,)).fetchone()
            if row is not None and row[0]:
                return
            if monotonic() >= until:
                raise StoreBusy("a relay is using the database")
            sleep(_ENDING_PAUSE)

    async def listening_place(self) -> str:
        """What libpq is told to connect to the server itself. `StoreUnavailable` where no host is known."""
        with _unheard():
            return await self.in_thread(lambda: self.conninfo(self._place.direct or self._place.uri))

    async def listening_connection(self, place: str) -> "psycopg.AsyncConnection[Any]":
        """Connect to the server itself. place: see `listening_place`. `StoreUnavailable` where that fails."""
        with _unheard():
            return await psycopg.AsyncConnection.connect(place, autocommit=True)

    async def share(self, connection: "psycopg.AsyncConnection[Any]") -> None:
        """Be one of the relays that use the database, for as long as the connection lasts.

        `StoreBusy` where a command has it alone.
        """
        found = await connection.execute("SELECT pg_try_advisory_lock_shared(%s)", (_LOCK,))
        row = await found.fetchone()
        if row is None or not row[0]:
            raise StoreBusy("a command is using the database alone")

    async def sharing(self, connection: "psycopg.AsyncConnection[Any]") -> frozenset[str]:
        """The relays that use the database, by the processes of their listening connections at the server."""
        found = await connection.execute(_SHARING, (_LOCK >> 32, _LOCK & 0xFFFFFFFF))
        return frozenset([pid for (pid,) in await found.fetchall()])

    @contextlib.asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Share the database with other relays while the context is open."""
        from companion_push.relay.postgres_nodes import PostgresNodes  # noqa: PLC0415  a command needs it not

        nodes = PostgresNodes(self)
        async with nodes.opened():
            self._nodes = nodes
            if self._place.direct is None:  # it has heard itself: no pooler in transaction mode is between
                self.prepare()
            yield

    def close(self) -> None:
        """Close all connections, once no thread uses one: an opening that was cancelled goes on in its thread."""
        super().close()
        if self._lock is not None:
            self._lock.close()


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise StoreUnavailable(f"the database cannot be listened to: {database.said(error)}") from error


@contextlib.asynccontextmanager
async def open_postgres(
    place: PostgresUri, *, alone: bool = False, serves: bool = False, migrates: bool = True
) -> AsyncIterator[PostgresStore]:
    """Open a store in PostgreSQL, and make its tables where they are missing. alone, serves, migrates: as for `open_store`.

    Raises `StoreUnusable` where it cannot be a store, `StoreUnavailable` where it cannot be connected to, `StoreBusy` when
    somebody else has it alone, or is in the way of that.
    """
    store = PostgresStore(place)
    try:
        if alone:
            await store.in_thread(store.lock)
        await store.in_thread(lambda: store.open(migrates=migrates))
        async with store.shared() if serves else contextlib.nullcontext():
            yield store
    finally:
        await store.aclose()


def migrate(connection: "psycopg.Connection[Any]") -> None:
    """Migrate the database to the newest schema."""
    schema.migrate(connection, _steps(), table=_VERSION, errors=_ERRORS)


def planned(place: PostgresUri) -> Plan:
    """Look which steps of the schema are missing, and change nothing."""
    steps = _steps()
    with contextlib.closing(PostgresStore(place)) as store, store.connected() as connection:
        version = schema.version_of(connection, table=_VERSION, newest=len(steps), errors=_ERRORS)
    missing = (tuple(map(schema.translated, step)) for step in steps[version:])
    return Plan(version=version, steps=tuple(missing))


def _steps() -> list[list[str]]:
    steps = [statements(step) for step in MIGRATIONS]
    return [[*steps[0], *TABLES], *steps[1:]]
