"""Listening over and over leaves process, bus and BlueZ as they were."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from headless_passkey.radio.bleak import BleakRadio
from tests.ble.lab.guest import Guest


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@dataclass(frozen=True)
class Held:
    """What a scan might leave behind."""

    descriptors: int
    connections: frozenset[str]
    match_rules: int
    discovering: bool

    @classmethod
    async def by(cls, guest: Guest) -> "Held":
        return cls(
            descriptors(),
            frozenset(await guest.connections()),
            await guest.match_rules(),
            await guest.discovering("hci1"),
        )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("times", [pytest.param(20, marks=pytest.mark.short), 1000])
async def test_scans_leave_nothing_behind(guest: Guest, times: int) -> None:
    async with BleakRadio(adapter="hci1").adverts():
        pass  # bleak keeps one connection to the bus for good
    before = await Held.by(guest)
    for _ in range(times):
        async with BleakRadio(adapter="hci1").adverts():
            pass
    assert await Held.by(guest) == before


@pytest.mark.parametrize("times", [pytest.param(20, marks=pytest.mark.short), 300])
async def test_scans_that_are_cancelled_at_any_point_leave_nothing_behind(guest: Guest, times: int) -> None:
    async def listen() -> None:
        async with BleakRadio(adapter="hci1").adverts() as adverts:
            await anext(adverts)

    async with BleakRadio(adapter="hci1").adverts():
        pass
    before = await Held.by(guest)
    for number in range(times):
        task = asyncio.create_task(listen())
        for _ in range(number % 60):  # so many turns of the loop later
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert await Held.by(guest) == before
