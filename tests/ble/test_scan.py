"""The device's radio hears adverts through real BlueZ, from one adapter to the other."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from headless_passkey.radio.bleak import BleakRadio
from headless_passkey.radio.source import Advert
from tests.ble.lab.guest import PATIENCE, Guest, Phone
from tests.ble.lab.rubbish import broadcasting, service_data

SENT = bytes(range(20))


async def hears(adverts: AsyncIterator[Advert], service_data: bytes) -> Advert:
    """The first advert with that service data."""
    async with asyncio.timeout(PATIENCE):
        while (advert := await anext(adverts)).service_data != service_data:
            pass
    return advert


@pytest.mark.short
@pytest.mark.parametrize("uuid", [0xFFF9, 0xFDE2])
@pytest.mark.parametrize("with_list", [True, False], ids=["listed", "service data alone"])
async def test_an_advert_is_heard_under_either_uuid(guest: Guest, uuid: int, *, with_list: bool) -> None:
    phone = Phone(uuid=uuid, with_list=with_list)
    async with BleakRadio(adapter="hci1").adverts() as adverts, phone.advertise(SENT):
        advert = await hears(adverts, SENT)
    assert advert.address is not None
    assert advert.rssi == -50


async def test_a_scan_that_starts_later_hears_what_is_on_the_air_already(guest: Guest) -> None:
    async with Phone().advertise(SENT), BleakRadio(adapter="hci1").adverts() as adverts:
        await hears(adverts, SENT)


async def test_the_signal_strength_is_that_of_the_phone(guest: Guest) -> None:
    await guest.heard_at("hci0", -93)
    try:
        async with BleakRadio(adapter="hci1").adverts() as adverts, Phone().advertise(SENT):
            assert (await hears(adverts, SENT)).rssi == -93
    finally:
        await guest.heard_at("hci0", -50)


# with 28 it takes an extended advert, of which BlueZ 5.66 keeps the service data to itself
@pytest.mark.parametrize("size", [20, 24, 27])
async def test_service_data_with_a_suffix_is_heard_whole(guest: Guest, size: int) -> None:
    sent = secrets.token_bytes(size)
    async with (
        BleakRadio(adapter="hci1").adverts() as adverts,
        broadcasting(guest.air, [service_data(sent)], interval=100),
    ):
        await hears(adverts, sent)


async def test_a_passive_scan_hears_the_same(guest: Guest) -> None:
    async with guest.experiments():
        for uuid in (0xFFF9, 0xFDE2):
            phone = Phone(uuid=uuid)
            async with BleakRadio(adapter="hci1", passive=True).adverts() as adverts, phone.advertise(SENT):
                await hears(adverts, SENT)


async def test_a_scan_that_is_begun_anew_hears_on(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headless_passkey.radio.bleak.SILENCE", 0.2)
    async with BleakRadio(adapter="hci1").adverts() as adverts:
        for number in range(5):
            await guest.until(lambda: guest.discovering("hci1"))
            sent = bytes([number]) * 20
            async with Phone().advertise(sent):
                await hears(adverts, sent)
