"""Checks a relying party's store, and copies it to another place, all of it or nothing: from a file into PostgreSQL, or back."""

import re
from typing import Any, Final

from postgres_store import copying
from postgres_store.copying import Checked
from relying_party.errors import SetupError
from relying_party.place import StorePlace
from relying_party.store.migration import open_store, planned
from relying_party.store.sql import MIGRATIONS, USED_PROOFS


def _tables(version: int) -> tuple[str, ...]:
    """The tables of a version of the schema; those that others refer to come first, as they were made. What lives minutes stays behind."""
    made = (
        name.removesuffix("_2")
        for step in MIGRATIONS[:version]
        if step is not USED_PROOFS
        for name in re.findall(r"CREATE TABLE (\w+)", "\n".join(step))
    )
    return tuple(dict.fromkeys(made))


TABLES: Final = _tables(len(MIGRATIONS))


def checked(place: StorePlace) -> Checked:
    """Check a store, beside a program that uses it. `SetupError` where it is damaged, `StoreUnavailable` without an answer.

    A store of an older version is left as it is: the program that uses it may be of that version.
    """
    plan = planned(place)

    def work(db: Any) -> Checked:
        damage = copying.damage_of(db)
        if damage is not None:
            raise SetupError(f"the store is damaged: {damage}")
        engine, warnings = copying.engine_of(db)
        if plan.steps:
            old = f"it has version {plan.version} of the schema, and this program makes it version {plan.newest} when it starts"
            warnings = (*warnings, old)
        return Checked(engine=engine, counts=copying.counted(db, _tables(plan.version)), warnings=warnings)

    with open_store(place, migrated=False) as store:
        return store.now(work)


def copy_store(source: StorePlace, target: StorePlace) -> dict[str, int]:
    """Copy all rows into an empty store, in one transaction of it; returns how many by table.

    A copy that is broken off has copied nothing. `SetupError` where the target has rows; `StoreUnavailable` where a program
    uses either file.
    """

    def not_empty() -> SetupError:
        return SetupError("the store to copy into is not empty")

    def write(rows_of: Any) -> dict[str, int]:
        return into.now(
            lambda db: copying.copied(
                rows_of, db, TABLES, numbered={"changes": "change_id"}, not_empty=not_empty
            )
        )

    with open_store(source, migrated=True) as rows, open_store(target, migrated=True) as into:
        return rows.now(write)
