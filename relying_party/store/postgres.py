"""The store in a database of PostgreSQL 15 or newer, for any number of processes on any number of machines.

A transaction that writes is serializable, and is run again where it meets another one; one that reads sees a moment of the
database, and meets nobody. What lives minutes is in the database too (`relying_party.store.minutes`), and so is the time:
whatever a machine's own clock says, all that use a database count by the database's.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from name_lookups.resolver import OURS
from relying_party.core.proofs import Proof
from relying_party.core.sessions import Session
from relying_party.errors import SetupError, StoreUnavailable
from relying_party.place import PostgresUri
from relying_party.store.sql import (
    MIGRATIONS,
    USED_PROOFS,
    SqlStore,
    Transaction,
    forget_ended,
    forget_spent,
    forget_spent_of_going,
)

try:
    from postgres_store.copying import Plan
    from postgres_store.database import Database, Errors, Isolation, Statements
    from postgres_store.schema import migrate, translated, version_of
    from relying_party.store.minutes import MINUTES, PostgresChallenges, PostgresProofs
except ImportError as error:
    raise SetupError(
        "a store in PostgreSQL needs psycopg: pip install '.[postgres]' in the clone of headless-passkey"
    ) from error

_VERSION: Final = "headless_passkey_relying_party"  # the table of the schema's number
HOUSE_SECONDS: Final = 30.0  # between looks at the database's clock, and at what has ended
# rows that one transaction forgets: all that a night has ended would take longer than a statement may, each time anew
FORGOTTEN: Final = 2_000
# for a statement that ends sessions: with them go their spent refresh tokens, of an account up to 4 million, which took 49 s
ENDING_SECONDS: Final = 600.0

logger = logging.getLogger(__name__)

_Value = TypeVar("_Value")


class _StoreBusy(StoreUnavailable):
    """Other transactions are in the way for too long."""


ERRORS: Final = Errors(
    unavailable=StoreUnavailable, busy=_StoreBusy, unusable=SetupError, incompatible=SetupError
)
# the steps are those of a file, but for what lives minutes
STEPS: Final = tuple(MINUTES if step is USED_PROOFS else step for step in MIGRATIONS)


class DatabaseClock:
    """The database's time in Unix seconds, carried on by the monotonic clock of this machine."""

    def __init__(self) -> None:
        self._ahead = 0.0  # of the monotonic clock

    def __call__(self) -> float:
        return monotonic() + self._ahead

    def read(self, database: Database) -> None:
        """Set it by the database, half a round trip ago."""

        def work(db: Any) -> float:
            asked = monotonic()
            row = db.execute("SELECT extract(epoch FROM clock_timestamp())::float8 AS now").fetchone()
            return float(row["now"]) - (asked + monotonic()) / 2

        self._ahead = database.now(work, isolation=Isolation.SNAPSHOT)


def opened_database(place: PostgresUri, *, migrated: bool = True) -> Database:
    """Open a database that is a store, and make its tables where they are missing. migrated: else it is left as it is.

    `SetupError` where it cannot be a store, `StoreUnavailable` where it does not answer.
    """
    database = _database(place)
    try:
        if migrated:
            _migrate(database)
    except BaseException:
        database.close()
        raise
    return database


def planned(place: PostgresUri) -> Plan:
    """Look which steps of the schema are missing, and change nothing."""
    with closing(_database(place)) as database, database.connected() as connection:
        version = version_of(connection, table=_VERSION, newest=len(STEPS), errors=ERRORS)
    return Plan(version=version, steps=tuple(tuple(map(translated, step)) for step in STEPS[version:]))


def _database(place: PostgresUri) -> Database:
    return Database(place.uri, program="relying-party", errors=ERRORS, named=True, addresses=OURS.addresses)


def _migrate(database: Database) -> None:
    connection = database.connected()
    try:
        migrate(connection, STEPS, table=_VERSION, errors=ERRORS)
    except BaseException:
        connection.close()
        raise
    database.give_back(connection)


class PostgresStore(SqlStore):
    """A `CredentialStore` in PostgreSQL; an async context manager that opens and closes it."""

    def __init__(self, place: PostgresUri) -> None:
        self.database: Final = _database(place)
        self.clock: Final = DatabaseClock()
        self.challenges: Final = PostgresChallenges(self.database)
        self._proofs = PostgresProofs(self.database)
        self._house: asyncio.Task[None] | None = None
        self._looking: asyncio.Future[None] | None = None  # at the clock

    async def __aenter__(self) -> Self:
        try:
            await self.database.in_thread(self._open)
        except BaseException:
            await self.database.aclose()
            raise
        self._house = asyncio.create_task(self._keep_house())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._house is not None:
                self._house.cancel()
                await asyncio.wait((self._house,))
        finally:
            await self.database.aclose()

    async def take_proof(self, proof: Proof, *, now: float) -> str:
        return await self._proofs.take_proof(proof, now=now)

    def _open(self) -> None:
        _migrate(self.database)
        self.clock.read(self.database)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSE_SECONDS)
            try:
                await self.keep_house()
            except StoreUnavailable as error:
                logger.warning("what has ended could not be forgotten: %s", error)

    async def keep_house(self) -> None:
        """Follow the database's clock, and forget sessions that have ended, and the most of what removals take with them."""
        await self.look_at_clock()
        now = self.clock()
        for forget in (forget_spent_of_going, forget_spent, forget_ended):
            work = partial(forget, now=now, most=FORGOTTEN)
            while await self.database.run(work, isolation=Isolation.READ_COMMITTED) == FORGOTTEN:
                pass

    async def look_at_clock(self) -> None:
        """Read the database's clock, once for all who ask meanwhile."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(
                self.database.in_thread(lambda: self.clock.read(self.database))
            )
        await asyncio.shield(self._looking)

    def _tidy(self, connection: Transaction, session: Session, ends: bytes | None) -> bool:  # noqa: ARG002
        """Leave it to `keep_house`: each sign-in would meet all others."""
        return True

    def _make_ready(
        self,
        connection: Transaction,
        which: str,  # noqa: ARG002
        values: Sequence[Any] | Mapping[str, Any],  # noqa: ARG002
    ) -> bool:
        """Take the time that it needs: others go on meanwhile, and in portions it would take far longer."""
        assert isinstance(connection, Statements)  # noqa: S101  for mypy
        connection.take_time(ENDING_SECONDS)
        return True

    async def _transaction(self, work: Callable[[Any], _Value], *, writes: bool = False) -> _Value:
        isolation = Isolation.SERIALIZABLE if writes else Isolation.SNAPSHOT
        return await self.database.run(work, isolation=isolation)
