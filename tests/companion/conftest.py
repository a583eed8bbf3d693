"""Fixtures of this room: an account with two companions and a device, on a real relay."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.companion.family import Companion, Frame, awake
from tests.relay.household import Household, Relay, running_relay


@pytest_asyncio.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    async with running_relay(tmp_path / "relay.sqlite3") as running:
        yield running


@pytest_asyncio.fixture
async def home(relay: Relay) -> Household:
    """An account with two companions and one device."""
    return await relay.household()


@pytest_asyncio.fixture
async def frame(home: Household) -> Frame:
    return Frame(caller=home.devices[0], home=home)


@pytest_asyncio.fixture
async def anna(home: Household, tmp_path: Path) -> AsyncIterator[Companion]:
    async with awake(tmp_path, home.companions[0], home) as companion:
        yield companion


@pytest_asyncio.fixture
async def bert(home: Household, tmp_path: Path) -> AsyncIterator[Companion]:
    async with awake(tmp_path, home.companions[1], home) as companion:
        yield companion
