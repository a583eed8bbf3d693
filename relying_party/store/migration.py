"""Brings a relying party's store to the newest schema, or says what that would do."""

from dataclasses import dataclass
from pathlib import Path

from relying_party.place import StorePlace
from relying_party.store.copying import open_store
from relying_party.store.sql import MIGRATIONS
from relying_party.store.sqlite import version_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of the schema that a store lacks."""

    version: int  # of the store: the number of the last step that was made, 0 of an empty one
    steps: tuple[tuple[str, ...], ...]  # the statements of each, as its engine takes them

    @property
    def newest(self) -> int:
        return self.version + len(self.steps)


def planned(place: StorePlace) -> Plan:
    """Look at a store, and change nothing.

    `SetupError` where it cannot be a store, `StoreUnavailable` where it does not answer.
    """
    version, steps = _planned(place)
    return Plan(version=version, steps=tuple(map(tuple, steps)))


def _planned(place: StorePlace) -> tuple[int, list[list[str]]]:
    if isinstance(place, Path):
        version = version_of(place.absolute())
        return version, [list(step) for step in MIGRATIONS[version:]]
    from relying_party.store import postgres  # noqa: PLC0415  it needs an extra

    return postgres.planned(place)


def migrate(place: StorePlace) -> None:
    """Make the steps that are missing. Raises as `planned`; `StoreUnavailable` too where a program uses the file."""
    with open_store(place, alone=True):
        pass  # that is all it takes
