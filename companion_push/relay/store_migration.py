"""What it takes to bring a relay's store to the newest schema, without doing it."""

import asyncio
import textwrap
from dataclasses import dataclass
from pathlib import Path

from companion_push.relay import database
from companion_push.relay.store_place import StorePlace


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of the schema that a store lacks."""

    version: int  # of the store: the number of the last step that was made, 0 of an empty one
    steps: tuple[tuple[str, ...], ...]  # the statements of each, as its engine takes them

    @property
    def newest(self) -> int:
        return self.version + len(self.steps)


async def planned(place: StorePlace) -> Plan:
    """Look at a store, and change nothing. Raises as `open_store`."""
    version, steps = await asyncio.to_thread(_planned, place)
    return Plan(version=version, steps=tuple(tuple(map(_shown, step)) for step in steps))


def _planned(place: StorePlace) -> tuple[int, list[list[str]]]:
    if isinstance(place, Path):
        version = database.version_of(place)
        return version, [database.statements(step) for step in database.MIGRATIONS[version:]]
    from companion_push.relay import postgres  # noqa: PLC0415  it needs an extra

    return postgres.planned(place)


def _shown(statement: str) -> str:
    return textwrap.dedent(statement).strip().removesuffix(";")
