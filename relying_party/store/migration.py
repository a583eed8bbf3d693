"""Brings a relying party's store to the newest schema, or says what that would do."""

from pathlib import Path

from postgres_store.copying import Plan
from relying_party.place import StorePlace
from relying_party.store.copying import open_store
from relying_party.store.sql import MIGRATIONS
from relying_party.store.sqlite import version_of


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
    with open_store(place, alone=True):
        pass  # that is all it takes
