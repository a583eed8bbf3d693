"""The software phone that listens for the direct channel: devices, strangers near by, and both at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from certificates import Certificate

from companion_push.companion.arrivals import HANDSHAKE_TIMEOUT, MAX_MET, MAX_STRANGERS
from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.phone import (
    TUNNEL_PATIENCE,
    SoftwarePhone,
    TunnelService,
    accept,
    check_url,
)
from headless_passkey.errors import (
    HeadlessPasskeyError,
    NotApproved,
    RemoteProtocolError,
    TransportError,
)
from headless_passkey.hybrid.channel import ClientChannel
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.data_channel import MAX_DIRECT_MESSAGE_SIZE
from headless_passkey.hybrid.eid import Eid, parse_suffix
from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.hybrid.messages import Ctap
from headless_passkey.hybrid.noise import MESSAGE_SIZE
from headless_passkey.hybrid.tunnel_url import connect_url
from headless_passkey.net.tunnel import Tunnel, open_tunnel
from headless_passkey.process.tasks import end_quietly
from headless_passkey.radio.direct import DirectChannel
from headless_passkey.radio.source import Advert
from tests.companion.device import creation, ok, tunnel_service
from tests.device.direct_air import DirectAir, Listening
from tests.l2cap import MemoryChannel
from tests.loop_clock import LoopClock
from tests.ports import reserved_port

TIMEOUT = 1000.0


class Bench:
    """A phone, and a device that has made a URL for it."""

    def __init__(self, base: str, certificate: Certificate, folder: Path) -> None:
        self.air, self.base, self.tls = DirectAir(), base, certificate.client_context()
        self.stages: list[str] = []
        self.device = QrTransaction.create(
            hint=RequestKind.MAKE_CREDENTIAL, time=int(time.time()), direct=True
        )
        self._folder = folder
        self.withdrawn = asyncio.Event()

    @contextlib.asynccontextmanager
    async def answering(self) -> AsyncIterator["asyncio.Task[None]"]:
        """The phone, until the context is left; what becomes of it is the test's affair."""
        phone = SoftwarePhone(
            credentials=CredentialFile(path=self._folder / "passkeys.json"),
            advertiser=self.air,
            tunnel_service=TunnelService(number=300, base=self.base),
            tls=self.tls,
            verify_user=accept,
            on_stage=self.stages.append,
        )
        task = asyncio.create_task(
            phone.answer(self.device.url.encode(), timeout=TIMEOUT, withdrawn=self.withdrawn)
        )
        try:
            yield task
        finally:
            await end_quietly(task)
            assert self.air.all_closed()

    async def heard(self) -> tuple[Eid, Listening | None]:
        """The phone's advert, and where it listens."""
        advert = await self.air._adverts.get()
        assert isinstance(advert, Advert)
        eid = self.device.open_advert(advert.service_data)
        assert eid is not None
        suffix = parse_suffix(advert.service_data)
        if suffix is None:
            return eid, None
        assert advert.address is not None
        phone = self.air.phones[advert.address]
        assert suffix.psm == phone.psm
        return eid, phone

    def open(self, phone: Listening | None) -> tuple[MemoryChannel, DirectChannel]:
        """A channel of anybody's to the phone."""
        assert phone is not None
        end = self.air.open(phone)
        return end, DirectChannel(end)

    async def met(self, carrier: DirectChannel | Tunnel, eid: Eid) -> ClientChannel:
        """The device's handshake."""
        pending = self.device.handshake(eid)
        await carrier.send(pending.message)
        channel = pending.finish(await carrier.receive())
        channel.receive_post_handshake(await carrier.receive(channel.opens))
        return channel

    async def asked(self, carrier: DirectChannel | Tunnel, channel: ClientChannel) -> None:
        """The command, its reply, and goodbye."""
        await carrier.send(channel.send(creation()))
        reply = channel.receive(await carrier.receive(channel.opens))
        assert isinstance(reply, Ctap)
        ok(reply)
        goodbye = channel.shutdown()
        assert goodbye is not None
        await carrier.send(goodbye)

    @contextlib.asynccontextmanager
    async def tunnel(self, eid: Eid) -> AsyncIterator[Tunnel]:
        url = connect_url(self.base, eid.routing_id, self.device.url.tunnel_id)
        async with open_tunnel(url, tls=self.tls) as tunnel:
            yield tunnel


@pytest.fixture
async def bench(loopback_certificate: Certificate, tmp_path: Path) -> AsyncIterator[Bench]:
    async with tunnel_service(loopback_certificate) as base:
        yield Bench(base, loopback_certificate, tmp_path)


async def closed(end: MemoryChannel) -> None:
    """Wait until the phone has closed a channel."""
    with pytest.raises(TransportError):
        await end.receive()


async def test_a_passkey_is_made_directly(bench: Bench) -> None:
    async with bench.answering() as phone:
        eid, listening = await bench.heard()
        end, carrier = bench.open(listening)
        await bench.asked(carrier, await bench.met(carrier, eid))
        await phone
        await end.close()
    assert bench.stages == ["connecting", "advertising", "connected", "asked", "verified", "answered"]


async def test_a_device_that_gives_the_direct_channel_up_comes_through_the_tunnel(bench: Bench) -> None:
    async with bench.answering() as phone:
        eid, listening = await bench.heard()
        end, carrier = bench.open(listening)
        await bench.met(carrier, eid)
        await end.close()
        async with bench.tunnel(eid) as tunnel:
            await bench.asked(tunnel, await bench.met(tunnel, eid))
            await phone


@pytest.mark.threat("T5")
async def test_the_first_command_decides_and_the_other_channels_are_closed_before_it_is_served(
    bench: Bench,
) -> None:
    async with bench.answering() as phone:
        eid, listening = await bench.heard()
        ends = [bench.open(listening) for _ in range(2)]
        channels = [await bench.met(carrier, eid) for _, carrier in ends]
        async with bench.tunnel(eid) as tunnel:
            await bench.met(tunnel, eid)
            (_, carrier), channel = ends[1], channels[1]
            await carrier.send(channel.send(creation()))
            await closed(ends[0][0])
            with pytest.raises(TransportError):
                await tunnel.receive()
            await carrier.receive(channel.opens)  # the response
            for each, _ in ends:
                await each.close()
            await phone


async def test_without_a_tunnel_service_the_phone_is_reached_directly(bench: Bench) -> None:
    bench.base = f"wss://localhost:{reserved_port()}"
    async with bench.answering() as phone:
        eid, listening = await bench.heard()
        assert eid.routing_id == bytes(3)
        end, carrier = bench.open(listening)
        await bench.asked(carrier, await bench.met(carrier, eid))
        await phone
        await end.close()


async def test_a_tunnel_service_that_does_not_answer_is_not_waited_for(
    bench: Bench, loop_clock: LoopClock
) -> None:
    came = asyncio.Event()

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    async with server:
        bench.base = f"wss://localhost:{server.sockets[0].getsockname()[1]}"
        async with bench.answering() as phone:
            await came.wait()
            loop_clock.passes(TUNNEL_PATIENCE)
            eid, listening = await bench.heard()
            end, carrier = bench.open(listening)
            await bench.asked(carrier, await bench.met(carrier, eid))
            await phone
            await end.close()


async def test_a_radio_that_cannot_listen_now_leaves_the_tunnel(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.asynccontextmanager
    async def listen() -> AsyncIterator[Listening]:
        raise TransportError("no sockets")
        yield

    monkeypatch.setattr(bench.air, "listen", listen)
    async with bench.answering() as phone:
        service_data = await bench.air._adverts.get()
        assert isinstance(service_data, Advert)
        assert len(service_data.service_data) == 20
        eid = bench.device.open_advert(service_data.service_data)
        assert eid is not None
        async with bench.tunnel(eid) as tunnel:
            await bench.asked(tunnel, await bench.met(tunnel, eid))
            await phone


def test_a_url_for_the_direct_channel_alone_needs_a_radio_that_listens() -> None:
    url = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=0, direct=True).url
    text = FidoUrl(public_key=url.public_key, secret=url.secret, time=0, channels=(1,)).encode()
    assert check_url(text, now=0, direct=True).channels == (1,)
    with pytest.raises(RemoteProtocolError, match="data channel"):
        check_url(text, now=0)


# Strangers


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "sent",
    [b"", bytes(MESSAGE_SIZE), b"\r\n" * 100, b"\xff" * 4096],
    ids=["nothing", "zeros", "ends", "a flood"],
)
async def test_a_stranger_is_closed_and_the_device_is_served(
    bench: Bench, sent: bytes, loop_clock: LoopClock
) -> None:
    async with bench.answering() as phone:
        eid, listening = await bench.heard()
        stranger, _ = bench.open(listening)
        if sent:
            await stranger.send(sent)
        else:
            await asyncio.sleep(0.05)  # it is accepted
            loop_clock.passes(HANDSHAKE_TIMEOUT)
        await closed(stranger)
        await stranger.close()
        end, carrier = bench.open(listening)
        await bench.asked(carrier, await bench.met(carrier, eid))
        await phone
        await end.close()


@pytest.mark.threat("T12")
async def test_strangers_keep_nobody_out(bench: Bench) -> None:
    async with bench.answering() as phone:
        eid, listening = await bench.heard()
        strangers = [bench.open(listening)[0] for _ in range(MAX_STRANGERS)]
        end, carrier = bench.open(listening)
        await closed(strangers[0])  # the oldest makes room
        channel = await bench.met(carrier, eid)
        more = [bench.open(listening)[0] for _ in range(MAX_STRANGERS + 1)]
        await closed(strangers[-1])
        await bench.asked(carrier, channel)  # whoever made the handshake is no stranger
        await phone
        for each in (*strangers, *more, end):
            await each.close()


@pytest.mark.threat("T5")
async def test_a_replayed_handshake_message_gets_no_further(bench: Bench) -> None:
    async with bench.answering() as phone:
        eid, listening = await bench.heard()
        recorded = bench.device.handshake(eid).message
        stranger, replay = bench.open(listening)
        await replay.send(recorded)
        await replay.receive()
        await stranger.send(b"\0" * 48 + b"\r\n")  # without the key, nothing opens
        end, carrier = bench.open(listening)
        await bench.asked(carrier, await bench.met(carrier, eid))
        await closed_after(stranger)
        await phone
        await stranger.close()
        await end.close()


@pytest.mark.threat("T5")
async def test_many_replays_do_not_displace_the_device(bench: Bench) -> None:
    async with bench.answering() as phone:
        eid, listening = await bench.heard()
        pending = bench.device.handshake(eid)
        end, carrier = bench.open(listening)
        await carrier.send(pending.message)
        channel = pending.finish(await carrier.receive())
        channel.receive_post_handshake(await carrier.receive(channel.opens))
        replays = []
        for number in range(MAX_MET + 2):
            replaying, replay = bench.open(listening)
            replays.append(replaying)
            await replay.send(pending.message)
            if number < MAX_MET - 1:
                await replay.receive()
            else:
                await closed(replaying)
        await bench.asked(carrier, channel)
        await phone
        for each in (*replays, end):
            await each.close()


async def closed_after(end: MemoryChannel) -> None:
    """Read what is left, until the phone has closed the channel."""
    with contextlib.suppress(TransportError):
        while True:
            await end.receive()


@pytest.mark.threat("T12")
async def test_a_device_that_breaks_the_framing_ends_that_channel_only(bench: Bench) -> None:
    async with bench.answering() as phone:
        eid, listening = await bench.heard()
        broken, carrier = bench.open(listening)
        await bench.met(carrier, eid)
        for _ in range(MAX_DIRECT_MESSAGE_SIZE // 4096 + 2):
            await broken.send(b"\xff" * 4096)
        await closed_after(broken)
        await broken.close()
        end, carrier = bench.open(listening)
        await bench.asked(carrier, await bench.met(carrier, eid))
        await phone
        await end.close()


@pytest.mark.threat("T12")
async def test_a_device_that_never_reads_is_given_up_at_the_deadline(
    bench: Bench, loop_clock: LoopClock
) -> None:
    bench.air.room = 0
    async with bench.answering() as phone:
        eid, listening = await bench.heard()
        end, _ = bench.open(listening)
        assert end.peer is not None
        end.peer._room.release()
        await end.send(bench.device.handshake(eid).message + b"\r\n")
        while not end.peer.sent:  # noqa: ASYNC110  the phone answers, and waits for room
            await asyncio.sleep(0)
        loop_clock.passes(TIMEOUT)
        with pytest.raises(NotApproved):
            await phone
        await end.close()


# Ends


@pytest.mark.parametrize("moment", ["advertising", "handshake", "met", "asked"])
@pytest.mark.parametrize("how", ["cancelled", "withdrawn"])
async def test_it_ends_at_any_moment_and_leaves_nothing_open(bench: Bench, moment: str, how: str) -> None:
    def end_it(phone: "asyncio.Task[None]") -> None:
        if how == "cancelled":
            phone.cancel()
        else:
            bench.withdrawn.set()

    async with bench.answering() as phone:
        eid, listening = await bench.heard()
        if moment != "advertising":
            end, carrier = bench.open(listening)
            if moment == "handshake":
                await end.send(b"\4" * 10)
            else:
                channel = await bench.met(carrier, eid)
            if moment == "asked":
                await carrier.send(channel.send(creation()))
                await carrier.receive(channel.opens)  # answered: it waits for our goodbye
        end_it(phone)
        with contextlib.suppress(asyncio.CancelledError, HeadlessPasskeyError):
            await phone
        for each in bench.air.ends:
            await each.close()


async def test_a_device_that_hangs_up_before_its_command_leaves_the_phone_waiting(bench: Bench) -> None:
    async with bench.answering() as phone:
        eid, listening = await bench.heard()
        end, carrier = bench.open(listening)
        await bench.met(carrier, eid)
        await end.close()
        assert not phone.done()
        bench.withdrawn.set()
        with pytest.raises(NotApproved):
            await phone


async def test_a_device_that_hangs_up_after_its_command_is_an_error(bench: Bench) -> None:
    async with bench.answering() as phone:
        eid, listening = await bench.heard()
        end, carrier = bench.open(listening)
        channel = await bench.met(carrier, eid)
        await carrier.send(channel.send(creation()))
        await end.close()
        with pytest.raises(TransportError):
            await phone
