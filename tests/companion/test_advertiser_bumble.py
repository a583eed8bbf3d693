"""The bumble advertiser against emulated controllers in this process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_push.companion.advertiser.bumble import BumbleAdvertiser, advertising_data
from companion_push.emulation.controllers import Air, Host
from headless_passkey.errors import LocalProtocolError, TransportError
from headless_passkey.radio.bumble import BumbleRadio, open_device
from tests.ports import reserved_port

SENT = bytes(range(20))


@pytest.fixture
async def air() -> AsyncIterator[tuple[Air, str]]:
    air = Air(8)
    server = await asyncio.get_running_loop().create_server(lambda: Host(air), "127.0.0.1", 0)
    async with server:
        yield air, f"tcp-client:127.0.0.1:{server.sockets[0].getsockname()[1]}"
        air.close()


def on_the_air(air: Air) -> int:
    """How many adverts are being sent now."""
    return sum(
        advertising_set.enabled
        for controller in air.link.controllers
        for advertising_set in controller.advertising_sets.values()
    )


def test_twenty_bytes_travel_with_a_list_of_their_uuid() -> None:
    assert advertising_data(SENT) == bytes.fromhex("0303f9ff 1716f9ff") + SENT


def test_the_list_goes_first_when_there_is_no_room() -> None:
    assert advertising_data(bytes(24)) == bytes.fromhex("1b16f9ff") + bytes(24)


@given(st.binary(min_size=20, max_size=247))
def test_any_service_data_is_in_there_once(service_data: bytes) -> None:
    data = advertising_data(service_data)
    size = len(service_data) + 4
    assert data[-size:] == bytes([size - 1]) + b"\x16\xf9\xff" + service_data
    assert len(data) - size == (4 if size + 4 <= 31 else 0)


def test_too_much_service_data_is_a_bug() -> None:
    with pytest.raises(LocalProtocolError):
        advertising_data(bytes(248))


@pytest.mark.parametrize("size", [20, 27, 28, 100])
async def test_a_device_hears_what_the_phone_advertises(air: tuple[Air, str], size: int) -> None:
    sent = bytes(range(size))
    async with BumbleRadio(air[1]).adverts() as adverts, BumbleAdvertiser(air[1]).advertise(sent):
        async with asyncio.timeout(60):
            assert (await anext(adverts)).service_data == sent


async def test_the_advert_is_neither_connectable_nor_scannable_and_repeats(air: tuple[Air, str]) -> None:
    reports: asyncio.Queue[int] = asyncio.Queue()
    async with open_device(air[1]) as (device, _), BumbleAdvertiser(air[1]).advertise(SENT):
        device.host.on("advertising_report", lambda report: reports.put_nowait(report.event_type))
        await device.start_scanning()
        async with asyncio.timeout(60):
            assert {await reports.get() for _ in range(3)} == {0x10}  # legacy, and nothing else
        (controller,) = [one for one in air[0].link.controllers if one.advertising_sets]
        (advertising_set,) = controller.advertising_sets.values()
        assert advertising_set.parameters is not None
        assert advertising_set.parameters.primary_advertising_interval_min == 160  # x 0.625 ms


async def test_leaving_takes_the_advert_down(air: tuple[Air, str]) -> None:
    async with BumbleAdvertiser(air[1]).advertise(SENT):
        assert on_the_air(air[0]) == 1
    assert on_the_air(air[0]) == 0


async def test_an_error_inside_takes_the_advert_down_and_stays_what_it_is(air: tuple[Air, str]) -> None:
    with pytest.raises(KeyError):
        async with BumbleAdvertiser(air[1]).advertise(SENT):
            raise KeyError
    assert on_the_air(air[0]) == 0


async def test_cancelling_takes_the_advert_down(air: tuple[Air, str]) -> None:
    advertising = asyncio.Event()

    async def phone() -> None:
        async with BumbleAdvertiser(air[1]).advertise(SENT):
            advertising.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(phone())
    await advertising.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert on_the_air(air[0]) == 0


async def test_when_the_controller_goes_what_runs_inside_ends_with_a_transport_error(
    air: tuple[Air, str],
) -> None:
    async def phone() -> None:
        async with BumbleAdvertiser(air[1]).advertise(SENT):
            air[0].close()
            await asyncio.Event().wait()

    async with asyncio.timeout(60):
        with pytest.raises(TransportError, match="has gone"):
            await phone()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_cancellation_of_our_own_is_not_taken_for_a_lost_controller(air: tuple[Air, str]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), BumbleAdvertiser(air[1]).advertise(SENT):
            await asyncio.Event().wait()


async def test_a_controller_that_goes_after_the_work_is_done_is_no_error(air: tuple[Air, str]) -> None:
    with contextlib.suppress(TransportError):
        async with BumbleAdvertiser(air[1]).advertise(SENT):
            air[0].close()
    await asyncio.sleep(0)


async def test_without_a_controller_it_is_a_transport_error() -> None:
    with pytest.raises(TransportError):
        async with BumbleAdvertiser(f"tcp-client:127.0.0.1:{reserved_port()}").advertise(SENT):
            pass
