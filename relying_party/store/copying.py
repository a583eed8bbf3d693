"""Checks a relying party's store, and copies it to another place, all of it or nothing: from a file into PostgreSQL, or back."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from postgres_store import copying
from relying_party.errors import SetupError, StoreUnavailable
from relying_party.place import StorePlace
from relying_party.store.sql import MIGRATIONS, USED_PROOFS
from relying_party.store.sqlite import all_or_nothing, locked, opened

_Value = TypeVar("_Value")

# those that others refer to come first, as they were made; what lives minutes stays behind
_MADE: Final = dict.fromkeys(
    name.removesuffix("_2")
    for step in MIGRATIONS
    if step is not USED_PROOFS
    for name in re.findall(r"CREATE TABLE (\w+)", "\n".join(step))
)
TABLES: Final = tuple(_MADE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check of a store has found."""

    engine: str  # with its version
    counts: dict[str, int]  # rows, by table
    warnings: tuple[str, ...]


def checked(place: StorePlace) -> Checked:
    """Check a store, beside a program that uses it. `SetupError` where it is damaged, `StoreUnavailable` without an answer."""

    def work(db: Any) -> Checked:
        damage = copying.damage_of(db)
        if damage is not None:
            raise SetupError(f"the store is damaged: {damage}")
        engine, warnings = copying.engine_of(db)
        return Checked(engine=engine, counts=copying.counted(db, TABLES), warnings=warnings)

    with open_store(place, alone=False) as store:
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

    with open_store(source, alone=True) as rows, open_store(target, alone=True) as into:
        return rows.now(write)


class _Store(Protocol):
    def now(self, work: Callable[[Any], _Value]) -> _Value:
        """Run `work` as one transaction in this thread."""
        ...


class _File:
    def __init__(self, connection: sqlite3.Connection, kind: str) -> None:
        self._connection, self._kind = connection, kind

    def now(self, work: Callable[[Any], _Value]) -> _Value:
        try:
            with all_or_nothing(self._connection, self._kind):
                return work(self._connection)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the store does not answer: {error}") from error


@contextmanager
def open_store(place: StorePlace, *, alone: bool) -> Iterator[_Store]:
    """Open a store, and make a missing one. alone: no program may use it, as far as a file can tell."""
    if isinstance(place, Path):
        path = place.absolute()
        with locked(path, shared=False) if alone else nullcontext(), closing(opened(path)) as connection:
            yield _File(connection, "IMMEDIATE" if alone else "DEFERRED")
        return
    from relying_party.store.postgres import opened_database  # noqa: PLC0415  it needs an extra

    with closing(opened_database(place)) as database:
        yield database
