"""Our side, for every peer."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.ble.lab.guest import Guest
from tests.ble.peers.parties import Parties


@pytest.fixture
async def parties(guest: Guest, tmp_path: Path) -> AsyncIterator[Parties]:
    async with Parties.meet(guest, tmp_path) as parties:
        yield parties
