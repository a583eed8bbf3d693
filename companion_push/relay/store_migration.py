"""What it takes to bring a relay's store to the newest schema, without doing it."""

import asyncio
from pathlib import Path

from companion_push.relay import database
from companion_push.relay.store_place import StorePlace
from postgres_store.copying import Plan


async def planned(place: StorePlace) -> Plan:
    """Look at a store, and change nothing. Raises as `open_store`."""
    return await asyncio.to_thread(_planned, place)


def _planned(place: StorePlace) -> Plan:
    if isinstance(place, Path):
        version = database.version_of(place)
        missing = (tuple(database.statements(step)) for step in database.MIGRATIONS[version:])
        return Plan(version=version, steps=tuple(missing))
    from companion_push.relay import postgres  # noqa: PLC0415  it needs an extra

    return postgres.planned(place)
