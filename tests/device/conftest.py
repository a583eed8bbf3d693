"""What several tests of the device share."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from dbus_fast.aio import MessageBus

from tests.device.bluetooth import Bluetooth, bluetooth_service, program
from tests.relay import household
from tests.relay.household import running_relay


@pytest.fixture
async def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MessageBus]:
    """A private D-Bus that bleak takes for the system's, with nobody on it."""
    if shutil.which("dbus-daemon") is None:
        pytest.fail("dbus-daemon is missing: run scripts/install-test-packages")
    words = ("dbus-daemon", "--session", "--nofork", "--print-address", f"--address=unix:path={tmp_path}/bus")
    async with program(*words) as stdout:
        address = (await stdout.readline()).decode().strip()
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        control = await MessageBus(bus_address=address).connect()
        try:
            yield control
        finally:
            control.disconnect()
            await control.wait_for_disconnect()  # type: ignore[no-untyped-call]


@pytest.fixture
async def bluetooth(bus: MessageBus) -> AsyncIterator[Bluetooth]:
    """A Bluetooth service without adapters."""
    async with bluetooth_service(bus) as service:
        yield service


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[household.Relay]:
    """The real relay, without accounts."""
    async with running_relay(tmp_path / "relay.sqlite3") as running:
        yield running
