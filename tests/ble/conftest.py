"""The guest, as a test finds it and leaves it."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
from certificates import Certificate

from companion_push.companion.advertiser.bluez import BluezAdvertiser
from headless_passkey.radio.bleak import BleakRadio
from tests.ble.lab.ceremony import Ceremony
from tests.ble.lab.guest import Guest
from tests.companion.device import tunnel_service


def pytest_sessionstart() -> None:
    if "BLE_LAB" not in os.environ:
        pytest.exit("these tests run in a guest: make ble-test", returncode=4)


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> None:
    """What is open is not counted here: bleak keeps its D-Bus connection as long as the loop exists.

    `guest` finds what a test leaves behind in BlueZ; test_leaks.py counts descriptors over many scans.
    """


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    """The guest with two adapters on, nobody scanning or advertising, no device known; and so it is left."""
    async with Guest.open() as guest:
        yield guest
        await guest.settle()
        if amiss := await guest.amiss():
            await guest.restore()
            pytest.fail(f"left behind: {'; '.join(amiss)}")


@pytest.fixture
async def tunnels(loopback_certificate: Certificate) -> AsyncIterator[str]:
    """The base URL of a tunnel service with TLS."""
    async with tunnel_service(loopback_certificate) as base:
        yield base


@pytest.fixture
def ceremony(tunnels: str, loopback_certificate: Certificate, tmp_path: Path) -> Callable[..., Ceremony]:
    """Makes ceremonies whose phones all have the same passkeys."""
    return partial(Ceremony, tunnels, loopback_certificate, tmp_path)


@pytest.fixture
async def registered(guest: Guest, ceremony: Callable[..., Ceremony]) -> bytes:
    """The id of a passkey that was made over the air."""
    made = ceremony()
    signed_in, _ = await asyncio.gather(
        made.sign_in(BleakRadio(adapter="hci1"), new=True), made.phone(BluezAdvertiser("hci0"))
    )
    return signed_in.credential.credential_id
