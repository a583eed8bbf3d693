"""Channels over bumble, from both ends, on emulated controllers in this process."""

import asyncio
import contextlib
import gc
import logging
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from bumble.controller import Controller
from bumble.hci import HCI_LE_Create_Connection_Cancel_Command
from bumble.l2cap import LeCreditBasedChannel

from companion_push.companion.advertiser.advertiser import ListeningAdvertiser
from companion_push.companion.advertiser.bumble import BumbleAdvertiser, BumbleListener
from companion_push.emulation.controllers import Air, Host
from headless_passkey.errors import ProtocolReason, RemoteProtocolError, TransportError
from headless_passkey.process.tasks import end_quietly
from headless_passkey.radio.bumble import BumbleRadio, open_device
from headless_passkey.radio.bumble_channel import MAX_UNREAD, BumbleChannel, channel_spec
from headless_passkey.radio.l2cap import CLOSE_TIMEOUT, CONNECT_TIMEOUT, MTU, ConnectingSource, L2capChannel
from headless_passkey.radio.source import Advert
from tests.loop_clock import LoopClock

SHORT, LONG = bytes(range(24)), bytes(range(60))


@pytest.fixture
async def air() -> AsyncIterator[tuple[Air, str]]:
    air = Air(8)
    server = await asyncio.get_running_loop().create_server(lambda: Host(air), "127.0.0.1", 0)
    async with server:
        yield air, f"tcp-client:127.0.0.1:{server.sockets[0].getsockname()[1]}"
        air.close()


@asynccontextmanager
async def heard(
    transport: str, service_data: bytes = SHORT
) -> AsyncIterator[tuple[BumbleRadio, Advert, BumbleListener]]:
    """A device's radio that has received the advert of a phone that listens."""
    radio = BumbleRadio(transport)
    async with (
        BumbleAdvertiser(transport).listen() as listener,
        listener.advertise(service_data),
        radio.adverts() as adverts,
    ):
        yield radio, await anext(adverts), listener


@asynccontextmanager
async def connected(transport: str) -> AsyncIterator[tuple[L2capChannel, L2capChannel]]:
    """The device's end and the phone's."""
    async with heard(transport) as (radio, advert, listener), radio.connect(advert, listener.psm) as near:
        far = await listener.accept()
        try:
            yield near, far
        finally:
            await far.close()


def links(air: Air) -> int:
    """How many ends of links there are."""
    return sum(len(controller.le_connections) for controller in air.link.controllers)


def test_they_are_radios_of_their_kind() -> None:
    assert isinstance(BumbleRadio("x"), ConnectingSource)
    assert isinstance(BumbleAdvertiser("x"), ListeningAdvertiser)


@pytest.mark.parametrize("service_data", [SHORT, LONG], ids=["legacy", "extended"])
async def test_sdus_go_both_ways(air: tuple[Air, str], service_data: bytes) -> None:
    async with heard(air[1], service_data) as (radio, advert, listener):
        assert advert.service_data == service_data
        async with radio.connect(advert, listener.psm) as near:
            far = await listener.accept()
            assert near.mtu == far.mtu == MTU
            for sdu in (b"x", bytes(500), bytes(MTU)):
                await near.send(sdu)
                assert await far.receive() == sdu
                await far.send(sdu)
                assert await near.receive() == sdu
            await far.close()
    assert links(air[0]) == 0


async def test_a_close_reaches_the_other_end_and_ends_the_link(air: tuple[Air, str]) -> None:
    async with connected(air[1]) as (near, far):
        await near.send(b"last")
        await near.close()
        assert await far.receive() == b"last"
        with pytest.raises(TransportError, match="closed"):
            await far.receive()
        with pytest.raises(TransportError, match="closed"):
            await far.send(b"x")
        await far.close()
        assert links(air[0]) == 0


async def test_a_channel_outlives_the_scan_in_which_it_was_opened(air: tuple[Air, str]) -> None:
    radio = BumbleRadio(air[1])
    async with contextlib.AsyncExitStack() as stack:
        listener = await stack.enter_async_context(BumbleAdvertiser(air[1]).listen())
        await stack.enter_async_context(listener.advertise(SHORT))
        async with radio.adverts() as adverts:
            advert = await anext(adverts)
            near = await stack.enter_async_context(radio.connect(advert, listener.psm))
        far = await listener.accept()
        await near.send(b"still here")
        assert await far.receive() == b"still here"
        await far.close()
        with pytest.raises(TransportError, match="while the radio scans"):
            async with radio.connect(advert, listener.psm):
                pass


@pytest.mark.threat("T12")
async def test_a_forged_psm_leads_nowhere_and_the_right_one_still_does(air: tuple[Air, str]) -> None:
    async with heard(air[1]) as (radio, advert, listener):
        with pytest.raises(TransportError, match="cannot be reached"):
            async with radio.connect(advert, listener.psm + 1):
                pass
        assert links(air[0]) == 0
        async with radio.connect(advert, listener.psm):
            await (await listener.accept()).close()


@pytest.mark.threat("T12")
async def test_a_forged_address_costs_a_bounded_time(air: tuple[Air, str], loop_clock: LoopClock) -> None:
    async with heard(air[1]) as (radio, advert, listener):
        forged = Advert(service_data=SHORT, address="C0:00:00:00:00:01")
        task = asyncio.create_task(opened(radio, forged, listener.psm))
        controller = await pending(air[0])
        loop_clock.passes(CONNECT_TIMEOUT)
        with pytest.raises(TransportError, match="cannot be reached"):
            await task
        assert controller.pending_le_connection is None
        async with radio.connect(advert, listener.psm):
            await (await listener.accept()).close()


async def opened(radio: BumbleRadio, advert: Advert, psm: int) -> None:
    async with radio.connect(advert, psm):
        pass


async def pending(air: Air) -> Controller:
    """The controller that has been told to connect."""
    while True:
        for controller in air.link.controllers:
            if controller.pending_le_connection is not None:
                return controller
        await asyncio.sleep(0)


async def test_a_cancelled_connection_is_called_off(air: tuple[Air, str]) -> None:
    async with heard(air[1]) as (radio, advert, listener):
        forged = Advert(service_data=SHORT, address="C0:00:00:00:00:01")
        task = asyncio.create_task(opened(radio, forged, listener.psm))
        controller = await pending(air[0])
        await end_quietly(task)
        assert controller.pending_le_connection is None
        async with radio.connect(advert, listener.psm):
            await (await listener.accept()).close()


@pytest.mark.threat("T12")
async def test_a_strangers_link_does_not_silence_the_phone(air: tuple[Air, str]) -> None:
    async with heard(air[1]) as (radio, advert, listener), radio.connect(advert, listener.psm):
        stranger = await listener.accept()
        other = BumbleRadio(air[1])
        async with other.adverts() as adverts:
            again = await anext(adverts)
            async with other.connect(again, listener.psm) as near:
                far = await listener.accept()
                await near.send(b"hello")
                assert await far.receive() == b"hello"
                await far.close()
        await stranger.close()


@pytest.mark.threat("T12")
async def test_a_peer_that_floods_is_cut_off(air: tuple[Air, str]) -> None:
    async with connected(air[1]) as (near, far):
        with contextlib.suppress(TransportError):
            for _ in range(MAX_UNREAD // MTU + 1):
                await near.send(bytes(MTU))
        assert isinstance(far, BumbleChannel)
        await far._ended
        with pytest.raises(RemoteProtocolError) as caught:
            await far.receive()
        assert caught.value.reason is ProtocolReason.TOO_MANY_MESSAGES


@pytest.mark.threat("T12")
@pytest.mark.parametrize("rude", ["device", "phone"])
async def test_a_peer_that_does_not_answer_a_close_leaves_nothing_behind(
    air: tuple[Air, str], caplog: pytest.LogCaptureFixture, rude: str
) -> None:
    async with heard(air[1]) as (radio, advert, listener), radio.connect(advert, listener.psm) as near:
        far = await listener.accept()
        assert isinstance(near, BumbleChannel)
        assert isinstance(far, BumbleChannel)
        own, peer = (far, near) if rude == "device" else (near, far)
        peer._channel.manager.on_l2cap_disconnection_request = lambda *_: None  # type: ignore[method-assign]
        host = own._channel.connection.device.host
        assert host.connections
        await own.close()
        assert host.connections == {}  # and with each what was still to be sent to it
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.threat("T12")
async def test_channels_that_are_closed_are_forgotten_while_the_controller_is_in_use(
    air: tuple[Air, str],
) -> None:
    async with heard(air[1]) as (radio, advert, listener):
        async with radio.connect(advert, listener.psm) as near:
            far = await listener.accept()
            await far.close()
        ends = [weakref.ref(near), weakref.ref(far)]
        del near, far
        gc.collect()
        assert [end() for end in ends] == [None, None]


@pytest.mark.threat("T12")
async def test_strangers_that_answer_no_close_hold_the_end_up_for_as_long_as_one(
    air: tuple[Air, str], loop_clock: LoopClock
) -> None:
    async with contextlib.AsyncExitStack() as strangers, contextlib.AsyncExitStack() as phone:
        listener = await phone.enter_async_context(BumbleAdvertiser(air[1]).listen())
        await phone.enter_async_context(listener.advertise(SHORT))
        for number in range(3):
            radio = BumbleRadio(air[1])
            adverts = await strangers.enter_async_context(radio.adverts())
            near = await strangers.enter_async_context(radio.connect(await anext(adverts), listener.psm))
            assert isinstance(near, BumbleChannel)
            near._channel.manager.on_l2cap_disconnection_request = lambda *_: None  # type: ignore[method-assign]
            while len(listener._waiting) <= number:  # noqa: ASYNC110  nothing says so
                await asyncio.sleep(0)
        closing = asyncio.create_task(listener.close())
        for _ in range(10):
            await asyncio.sleep(0)
        states = {channel._channel.state for channel in listener._waiting}
        assert LeCreditBasedChannel.State.CONNECTED not in states  # each was told
        loop_clock.passes(CLOSE_TIMEOUT)
        await closing


@pytest.mark.threat("T12")
async def test_a_peer_that_takes_less_than_any_may_is_refused(
    air: tuple[Air, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrow(psm: int | None = None) -> object:
        spec = channel_spec(psm)
        spec.mtu = 1
        return spec

    monkeypatch.setattr("headless_passkey.radio.bumble_channel.channel_spec", narrow)
    async with heard(air[1]) as (radio, advert, listener), radio.connect(advert, listener.psm):
        far = await listener.accept()
        for use in (far.receive, lambda: far.send(b"x")):
            with pytest.raises(RemoteProtocolError):
                await use()
        await far.close()


async def test_a_lost_controller_ends_channel_and_listener(air: tuple[Air, str]) -> None:
    with contextlib.suppress(TransportError):
        async with connected(air[1]) as (near, far):
            receiving = [asyncio.create_task(end.receive()) for end in (near, far)]
            await asyncio.sleep(0)
            air[0].close()
            for task in receiving:
                with pytest.raises(TransportError):
                    await task


async def test_a_connection_that_nobody_asked_for_cannot_be_called_off(air: tuple[Air, str]) -> None:
    async with open_device(air[1]) as (device, _):
        with pytest.raises(Exception, match="COMMAND_DISALLOWED"):
            await device.host.send_sync_command(HCI_LE_Create_Connection_Cancel_Command())
