"""A relay for the tests of this room."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.relay.household import Household, Relay, running_relay


@pytest_asyncio.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    async with running_relay(tmp_path / "relay.sqlite3") as running:
        yield running


@pytest_asyncio.fixture
async def home(relay: Relay) -> Household:
    """An account with two companions and one device."""
    return await relay.household()
