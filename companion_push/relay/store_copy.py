"""Copies a relay's store to another place, all of it or nothing: from a file into PostgreSQL, or back."""

import re
import sqlite3
from dataclasses import dataclass
from itertools import islice
from typing import Final

from companion_push.errors import StoreUnusable
from companion_push.relay.database import MIGRATIONS
from companion_push.relay.stores import Store
from companion_push.relay.transaction import Transaction
from headless_passkey.errors import SetupReason

# those that others refer to come first, as they were made
TABLES: Final = tuple(re.findall(r"CREATE TABLE (\w+)", "".join(MIGRATIONS)))
_DURABLE: Final = ("fsync", "full_page_writes", "synchronous_commit")  # settings of PostgreSQL
_PORTION: Final = 500  # rows that are in memory


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
    counts = {
        table: int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608  a name of ours
        for table in TABLES
    }
    if isinstance(db, sqlite3.Connection):
        (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise StoreUnusable(f"the store is damaged: {said}", reason=SetupReason.STATE_DAMAGED)
        return Checked(engine=f"SQLite {sqlite3.sqlite_version}", counts=counts, warnings=())
    settings = {name: db.execute(f"SHOW {name}").fetchone()[0] for name in ("server_version", *_DURABLE)}
    warnings = tuple(
        f"{name} is off: the server may lose what it has acknowledged when it stops without notice"
        for name in _DURABLE
        if settings[name] == "off"
    )
    return Checked(engine=f"PostgreSQL {settings['server_version']}", counts=counts, warnings=warnings)


async def copy_store(source: Store, target: Store) -> dict[str, int]:
    """Copy all rows into an empty store, in one transaction of it; returns how many by table.

    Both are open as for a relay, so that none uses them. A copy that is broken off has copied nothing. Raises `StoreUnusable`
    where the target has rows.
    """

    def read(rows_of: Transaction) -> dict[str, int]:
        return target.now(lambda db: _copied(rows_of, db))

    counts = await source.transact(read, durable=lambda _: False)
    await target.on_disk()
    return counts


def _copied(source: Transaction, target: Transaction) -> dict[str, int]:
    for table in TABLES:
        if target.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None:  # noqa: S608  a name of ours
            raise StoreUnusable("the store to copy into is not empty", reason=SetupReason.STATE_INCOMPATIBLE)
    counts = {table: _copied_table(source, target, table) for table in TABLES}
    if not isinstance(target, sqlite3.Connection):  # numbers go on after those that were copied
        target.execute(
            "SELECT setval(pg_get_serial_sequence('pushes', 'id'), coalesce(max(id), 0) + 1, false) FROM pushes"
        )
    return counts


def _copied_table(source: Transaction, target: Transaction, table: str) -> int:
    rows = iter(source.execute(f"SELECT * FROM {table}"))  # noqa: S608  a name of ours
    count = 0
    while portion := list(islice(rows, _PORTION)):
        values = ", ".join("?" * len(portion[0]))
        target.executemany(f"INSERT INTO {table} VALUES ({values})", portion)  # noqa: S608  as above
        count += len(portion)
    return count
