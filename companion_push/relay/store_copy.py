"""Copies a relay's store to another place, all of it or nothing: from a file into PostgreSQL, or back."""

import re
from dataclasses import dataclass
from typing import Final

from companion_push.errors import StoreUnusable
from companion_push.relay.database import MIGRATIONS
from companion_push.relay.stores import Store
from companion_push.relay.transaction import Transaction
from headless_passkey.errors import SetupReason
from postgres_store import copying

# those that others refer to come first, as they were made
TABLES: Final = tuple(re.findall(r"CREATE TABLE (\w+)", "".join(MIGRATIONS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check of a store has found."""

    engine: str  # with its version
    counts: dict[str, int]  # rows, by table
    warnings: tuple[str, ...]


async def checked(store: Store) -> Checked:
    """Check a store. Raises `StoreUnusable` where it is damaged, `StoreUnavailable` where it does not answer."""
    return await store.transact(_checked, durable=lambda _: False)


def _checked(db: Transaction) -> Checked:
    damage = copying.damage_of(db)
    if damage is not None:
        raise StoreUnusable(f"the store is damaged: {damage}", reason=SetupReason.STATE_DAMAGED)
    engine, warnings = copying.engine_of(db)
    return Checked(engine=engine, counts=copying.counted(db, TABLES), warnings=warnings)


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
