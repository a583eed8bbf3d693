"""Opens a relying party's store for a command: brings it to the newest schema, leaves it as it is, or says what is missing."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from postgres_store.copying import Plan
from relying_party.errors import StoreUnavailable
from relying_party.place import StorePlace
from relying_party.store.sql import MIGRATIONS
from relying_party.store.sqlite import all_or_nothing, locked, opened, opened_as_it_is, version_of

_Value = TypeVar("_Value")


def planned(place: StorePlace) -> Plan:
    """Look at a store, and change nothing.

    `SetupError` where it cannot be a store, `StoreUnavailable` where it does not answer.
    """
    if isinstance(place, Path):
        version = version_of(place.absolute())
        return Plan(version=version, steps=MIGRATIONS[version:])
    from relying_party.store import postgres  # noqa: PLC0415  it needs an extra

    return postgres.planned(place)


def migrate(place: StorePlace) -> None:
    """Make the steps that are missing. Raises as `planned`; `StoreUnavailable` too where a program uses the file."""
    with open_store(place, migrated=True):
        pass  # that is all it takes


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
def open_store(place: StorePlace, *, migrated: bool) -> Iterator[_Store]:
    """Open a store. migrated: brought to the newest schema, and made where it is missing; no program may use it then, as far as a file can tell.

    Else it is left as it is, whatever uses it.
    """
    if isinstance(place, Path):
        path = place.absolute()
        if migrated:
            with locked(path, shared=False), closing(opened(path)) as connection:
                yield _File(connection, "IMMEDIATE")
        else:
            with closing(opened_as_it_is(path)) as connection:
                yield _File(connection, "DEFERRED")
        return
    from relying_party.store import postgres  # noqa: PLC0415  it needs an extra

    with closing(postgres.opened_database(place, migrated=migrated)) as database:
        yield database
