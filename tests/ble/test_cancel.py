"""Scans that are cancelled wherever they are leave nothing behind at bluetoothd."""

import asyncio

from headless_passkey.radio.bleak import BleakRadio
from tests.ble.lab.guest import PATIENCE, Guest, Phone
from tests.ble.test_scan import SENT, hears


async def test_scans_cancelled_at_any_point_do_not_hinder_the_next(guest: Guest) -> None:
    """The guest is checked afterwards: nobody may be scanning."""
    radio = BleakRadio(adapter="hci1")

    async def listen() -> None:
        async with radio.adverts() as adverts:
            await anext(adverts)

    listeners = []
    for turn in range(40):
        listeners.append(asyncio.create_task(listen()))
        for _ in range(turn):
            await asyncio.sleep(0.002)  # to be caught in another place each time
        listeners[-1].cancel()
        if turn % 2:
            await asyncio.wait(listeners, timeout=PATIENCE)
    async with radio.adverts() as adverts, Phone().advertise(SENT):
        await hears(adverts, SENT)
    await asyncio.wait(listeners)
    assert all(listener.cancelled() for listener in listeners)


async def test_two_ceremonies_of_one_program_share_the_scan(guest: Guest) -> None:
    first, second = BleakRadio(adapter="hci1"), BleakRadio(adapter="hci1")
    async with first.adverts() as one, second.adverts() as other, Phone().advertise(SENT):
        await hears(one, SENT)
        await hears(other, SENT)
