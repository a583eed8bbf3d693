"""Copies a relay's store to another place, all of it or nothing: from a file into PostgreSQL, or back."""

import re
from typing import Final

from companion_push.errors import StoreUnusable
from companion_push.relay.database import MIGRATIONS
from companion_push.relay.store_migration import planned
from companion_push.relay.store_place import StorePlace
from companion_push.relay.stores import Store, open_store
from companion_push.relay.transaction import Transaction
from headless_passkey.errors import SetupReason
from postgres_store import copying
from postgres_store.copying import Checked


def _tables(version: int) -> tuple[str, ...]:
    """The tables of a version of the schema; those that others refer to come first, as they were made."""
    return tuple(re.findall(r"CREATE TABLE (\w+)", "".join(MIGRATIONS[:version])))


TABLES: Final = _tables(len(MIGRATIONS))


async def checked(place: StorePlace) -> Checked:
    """Check a store, beside a relay that uses it. Raises `StoreUnusable` where it is damaged, `StoreUnavailable` where it does not answer.

    A store of an older version is left as it is: the relay may be of that version.
    """
    plan = await planned(place)

    def work(db: Transaction) -> Checked:
        damage = copying.damage_of(db)
        if damage is not None:
            raise StoreUnusable(f"the store is damaged: {damage}", reason=SetupReason.STATE_DAMAGED)
        engine, warnings = copying.engine_of(db)
        if plan.steps:
            old = f"it has version {plan.version} of the schema, and this program makes it version {plan.newest} when it starts"
            warnings = (*warnings, old)
        return Checked(engine=engine, counts=copying.counted(db, _tables(plan.version)), warnings=warnings)

    async with open_store(place, migrates=False) as store:
        return await store.transact(work, durable=lambda _: False)


async def copy_store(source: Store, target: Store) -> dict[str, int]:
    """Copy all rows into an empty store, in one transaction of it; returns how many by table.

    Both are open as for a relay, so that none uses them. A copy that is broken off has copied nothing. Raises `StoreUnusable`
    where the target has rows.
    """

    def read(rows_of: Transaction) -> dict[str, int]:
        return target.now(lambda db: _copied(rows_of, db))

    counts = await source.transact(read, durable=lambda _: False)
    return await target.on_disk(counts)


def _copied(source: Transaction, target: Transaction) -> dict[str, int]:
    return copying.copied(source, target, TABLES, numbered={"pushes": "id"}, not_empty=_not_empty)


def _not_empty() -> StoreUnusable:
    return StoreUnusable("the store to copy into is not empty", reason=SetupReason.STATE_INCOMPATIBLE)
