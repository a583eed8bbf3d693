"""The guest, as a test finds it and leaves it."""

import os
from collections.abc import AsyncIterator

import pytest
from certificates import Certificate

from tests.ble.lab.guest import Guest
from tests.companion.device import tunnel_service


def pytest_sessionstart() -> None:
    if "BLE_LAB" not in os.environ:
        pytest.exit("these tests run in a guest: make ble-test", returncode=4)


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    """The guest with two adapters on, nobody scanning or advertising, no device known; and so it is left."""
    async with Guest.open() as guest:
        await guest.forget()
        yield guest
        if amiss := await guest.amiss():
            await guest.restore()
            pytest.fail(f"left behind: {'; '.join(amiss)}")


@pytest.fixture
async def tunnels(loopback_certificate: Certificate) -> AsyncIterator[str]:
    """The base URL of a tunnel service with TLS."""
    async with tunnel_service(loopback_certificate) as base:
        yield base
