"""What goes wrong with a radio, before and while the device listens: each with the word for it, and what comes after."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from companion_push.companion.advertiser.bluez import BluezAdvertiser
from companion_push.companion.advertiser.bumble import BumbleAdvertiser
from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.radio.bleak import BleakRadio
from headless_passkey.stages import Stage
from tests.ble.lab.ceremony import Ceremony
from tests.ble.lab.guest import PATIENCE, Guest, running_as

SENT = bytes(range(20))
LISTEN = """
import asyncio
from headless_passkey.errors import TransportError
from headless_passkey.radio.bleak import BleakRadio

async def main():
    try:
        async with BleakRadio(adapter="hci1").adverts():
            print("listening")
    except TransportError as error:
        print(error.reason)

asyncio.run(main())
"""


# Before


@asynccontextmanager
async def off(guest: Guest) -> AsyncIterator[None]:
    await guest.power("hci1", on=False)
    yield
    await guest.power("hci1", on=True)


@asynccontextmanager
async def blocked(guest: Guest) -> AsyncIterator[None]:
    guest.block("hci1")

    async def is_off() -> bool:
        return not await guest.powered("hci1")

    await guest.until(is_off)
    yield
    guest.block("hci1", blocked=False)
    await guest.turn_on("hci1")


@asynccontextmanager
async def pulled_out(guest: Guest) -> AsyncIterator[None]:
    await guest.unplug("hci1")
    yield
    assert await guest.plug() == "hci1"


@asynccontextmanager
async def stopped(guest: Guest) -> AsyncIterator[None]:
    await guest.stop_service()
    yield
    await guest.start_service()


@asynccontextmanager
async def killed(guest: Guest) -> AsyncIterator[None]:
    await guest.crash_service()
    yield
    await guest.start_service()


TROUBLES = [
    pytest.param(off, TransportReason.ADAPTER_OFF, marks=pytest.mark.short, id="off"),
    pytest.param(blocked, TransportReason.ADAPTER_BLOCKED, id="blocked"),
    pytest.param(pulled_out, TransportReason.NO_ADAPTER, id="pulled out"),
    pytest.param(stopped, TransportReason.NO_BLUETOOTH_SERVICE, id="stopped"),
    pytest.param(killed, TransportReason.NO_BLUETOOTH_SERVICE, marks=pytest.mark.short, id="killed"),
]
Trouble = Callable[[Guest], AbstractAsyncContextManager[None]]


@pytest.mark.parametrize(("trouble", "reason"), TROUBLES)
async def test_what_is_wrong_is_told_in_a_word(
    guest: Guest, trouble: Trouble, reason: TransportReason
) -> None:
    async with trouble(guest):
        with pytest.raises(TransportError) as failed:
            async with BleakRadio(adapter="hci1").adverts():
                pass
        assert failed.value.reason is reason


async def test_a_scan_starts_after_a_killed_service_whose_scan_the_kernel_goes_on_with(guest: Guest) -> None:
    async with BleakRadio(adapter="hci1", patience=0).adverts() as adverts:
        await guest.crash_service()
        with pytest.raises(TransportError):
            await anext(adverts)
    await guest.start_service()
    async with BleakRadio(adapter="hci1").adverts() as adverts, BluezAdvertiser("hci0").advertise(SENT):
        async with asyncio.timeout(PATIENCE):
            assert (await anext(adverts)).service_data == SENT


async def test_without_any_adapter_it_says_so(guest: Guest) -> None:
    await guest.unplug("hci1")
    await guest.unplug("hci0")
    with pytest.raises(TransportError) as failed:
        async with BleakRadio().adverts():
            pass
    assert failed.value.reason is TransportReason.NO_ADAPTER
    assert {await guest.plug(), await guest.plug()} == {"hci0", "hci1"}


async def test_a_user_who_may_not_is_told_so(guest: Guest) -> None:
    async def listens() -> str:
        async with running_as("nobody", "-c", LISTEN) as program:
            output, complaints = await program.communicate()
            return output.decode() or complaints.decode()

    assert await listens() == "listening\n"
    async with guest.denied("nobody"):
        assert await listens() == f"{TransportReason.BLUETOOTH_FORBIDDEN}\n"


# While it listens


@pytest.mark.parametrize(("trouble", "reason"), TROUBLES)
async def test_listening_goes_on_when_the_radio_is_back(
    guest: Guest, trouble: Trouble, reason: TransportReason
) -> None:
    async with BleakRadio(adapter="hci1").adverts() as adverts:
        async with trouble(guest):
            pass
        async with BumbleAdvertiser(guest.air).advertise(SENT), asyncio.timeout(PATIENCE):
            assert (await anext(adverts)).service_data == SENT


@pytest.mark.parametrize(("trouble", "reason"), TROUBLES)
async def test_when_the_radio_stays_away_listening_ends_with_the_word_for_it(
    guest: Guest, trouble: Trouble, reason: TransportReason
) -> None:
    async with BleakRadio(adapter="hci1", patience=0).adverts() as adverts, trouble(guest):
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(TransportError) as failed:
                await anext(adverts)
        assert failed.value.reason is reason


@pytest.mark.parametrize(("trouble", "reason"), TROUBLES)
async def test_a_sign_in_survives_it(
    guest: Guest, trouble: Trouble, reason: TransportReason, ceremony: Callable[..., Ceremony]
) -> None:
    asked = ceremony()

    async def around_it() -> None:
        await asked.reached(Stage.SUBMITTED).wait()
        async with trouble(guest):
            pass
        await asked.phone(BumbleAdvertiser(guest.air))

    await asyncio.gather(asked.sign_in(BleakRadio(adapter="hci1"), new=True), around_it())
    assert asked.stages[-1] is Stage.COMPLETED
