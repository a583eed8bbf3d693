"""The software phone and the devices that it is linked with, over a real tunnel service with TLS (CTAP 2.2 §11.5.2)."""

import asyncio
import contextlib
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from certificates import Certificate

from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.link_file import LinkFile
from companion_push.companion.linked import LinkedWaiting, forget_link
from companion_push.companion.phone import (
    _FIRST_MESSAGE,
    Question,
    SoftwarePhone,
    TunnelService,
    _title,
    accept,
    decline,
)
from companion_push.companion.waking_client import open_waking
from companion_push.tunnel_service.app import _TUNNELS, make_app
from companion_push.tunnel_service.contacts import ContactLimits, KnownContacts
from headless_passkey.errors import (
    HeadlessPasskeyError,
    NotApproved,
    RemoteProtocolError,
    SetupError,
    TransportError,
    TrustError,
    UsageError,
)
from headless_passkey.hybrid.client_platform import QrTransaction, StateAssistedTransaction
from headless_passkey.hybrid.ctap2 import GetAssertionRequest, MakeCredentialRequest
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.hybrid.linking import LinkedPhone, NoLink
from headless_passkey.hybrid.messages import Ctap, Update
from headless_passkey.net.tunnel import TunnelRefused
from tests.companion.device import Air, Device, assertion, creation, ok
from tests.companion.program import Program, at_terminal, running
from tests.loop_clock import LoopClock
from tests.open_things import Interruption, cancel_everywhere, interrupted
from tests.ports import reserved_port

SOON = 1.0  # seconds until the phone is woken anew
TIMEOUT = 40.0
GA, MC = RequestKind.GET_ASSERTION, RequestKind.MAKE_CREDENTIAL


@dataclass(kw_only=True)
class Bench:
    """A phone with a file of links, its air and its tunnel service."""

    air: Air
    base: str
    tls: ssl.SSLContext
    links: LinkFile
    phone: SoftwarePhone
    stages: list[str]
    ends: "asyncio.Queue[HeadlessPasskeyError | None]"

    async def transact(
        self,
        request: GetAssertionRequest | MakeCredentialRequest,
        *,
        linking: bool = True,
        name: str = "Living room",
    ) -> tuple[Ctap, list[LinkedPhone | NoLink]]:
        """A QR-initiated transaction: the reply, and what updates brought."""
        kind = GA if isinstance(request, GetAssertionRequest) else MC
        transaction = QrTransaction.create(hint=kind, time=int(time.time()), linking=linking)
        device = Device(self.air, self.base, self.tls, transaction)
        answering = asyncio.ensure_future(self.phone.answer(device.url, timeout=TIMEOUT, device=name))
        links = []
        async with device.joined() as (tunnel, channel):
            await tunnel.send(channel.send(request))
            while not isinstance(event := channel.receive(await tunnel.receive()), Ctap):
                assert isinstance(event, Update)
                links.append(event.link)
            await tunnel.send(device.goodbye(channel))
        with contextlib.suppress(HeadlessPasskeyError):
            await answering
        return event, links

    async def linked(self) -> LinkedPhone:
        reply, (link,) = await self.transact(creation())
        ok(reply)
        assert isinstance(link, LinkedPhone)
        return link

    @contextlib.asynccontextmanager
    async def waiting(self, phone: SoftwarePhone | None = None) -> AsyncIterator[None]:
        """The phone waits for its devices; entered once it is registered."""
        waits = asyncio.Event()

        def on_stage(stage: str) -> None:
            self.stages.append(stage)
            if stage == "waiting":
                waits.set()

        waiting = LinkedWaiting(
            phone=replace(phone or self.phone, on_stage=on_stage),
            links=self.links,
            timeout=TIMEOUT,
            on_end=self.ends.put_nowait,
        )
        running = asyncio.create_task(waiting.run())
        try:
            async with asyncio.timeout(TIMEOUT):
                await waits.wait()
            yield
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    async def ask(
        self,
        link: LinkedPhone,
        request: GetAssertionRequest | MakeCredentialRequest,
        *,
        hint: RequestKind | None = None,
        base: str | None = None,
    ) -> Ctap:
        """A state-assisted transaction, as a client platform does it."""
        kind = GA if isinstance(request, GetAssertionRequest) else MC
        transaction = StateAssistedTransaction.create(link, hint=hint or kind)
        async with aiohttp.ClientSession() as session:
            url = transaction.contact_url(base or self.base)
            async with session.ws_connect(
                url, protocols=("fido.cable",), headers=transaction.headers, ssl=self.tls
            ) as tunnel:
                assert await tunnel.receive_bytes() == b"\0"  # the phone has come
                async with asyncio.timeout(TIMEOUT):
                    while (eid := transaction.open_advert(await self.air.adverts.get())) is None:
                        pass
                pending = transaction.handshake(eid)
                await tunnel.send_bytes(pending.message)
                channel = pending.finish(await tunnel.receive_bytes())
                channel.receive_post_handshake(await tunnel.receive_bytes())
                await tunnel.send_bytes(channel.send(request))
                event = channel.receive(await tunnel.receive_bytes())
                assert isinstance(event, Ctap)
                goodbye = channel.shutdown()
                assert goodbye is not None
                await tunnel.send_bytes(goodbye)
                return event

    @contextlib.asynccontextmanager
    async def contacting(self, link: LinkedPhone) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A contact request that the tunnel service has taken; nothing is said on its tunnel."""
        transaction = StateAssistedTransaction.create(link, hint=GA)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(
                transaction.contact_url(self.base),
                protocols=("fido.cable",),
                headers=transaction.headers,
                ssl=self.tls,
            ) as tunnel,
        ):
            yield tunnel

    async def status(self, link: LinkedPhone) -> int:
        """What the tunnel service answers to a contact request."""
        try:
            async with self.contacting(link):
                return 101
        except aiohttp.WSServerHandshakeError as error:
            return error.status

    async def comes(self, link: LinkedPhone) -> bool:
        """Whether the phone comes when it is woken: a connection that has only registered the link may be the one that is."""
        try:
            async with self.contacting(link) as tunnel:
                message = await tunnel.receive(timeout=SOON)
                return bool(message.data == b"\0")
        except (aiohttp.WSServerHandshakeError, TimeoutError):
            return False

    async def reachable(self, link: LinkedPhone) -> None:
        """Wait until the phone can be woken; what it advertised for that is gone."""
        async with asyncio.timeout(TIMEOUT):
            while not await self.comes(link):  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.01)
        while not self.air.adverts.empty():
            self.air.adverts.get_nowait()


@contextlib.asynccontextmanager
async def serving(
    certificate: Certificate, contacts: Path | None, apps: list[web.Application] | None = None
) -> AsyncIterator[str]:
    """A tunnel service on loopback; its base URL. apps: gets its application."""
    limits = ContactLimits(requests_per_contact=1e6, new_per_address=1e6)
    known = None if contacts is None else KnownContacts(contacts, limits)
    app = make_app(contacts=known)
    if apps is not None:
        apps.append(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.server_context()).start()
        yield f"wss://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def bench(loopback_certificate: Certificate, tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(loopback_certificate, tmp_path / "contacts") as base:
        yield a_bench(base, loopback_certificate, tmp_path)


def a_bench(base: str, certificate: Certificate, folder: Path) -> Bench:
    air, tls, stages = Air(), certificate.client_context(), list[str]()
    links = LinkFile(path=folder / "links.json")
    phone = SoftwarePhone(
        credentials=CredentialFile(path=folder / "passkeys.json"),
        advertiser=air,
        tunnel_service=TunnelService(number=300, base=base),
        tls=tls,
        verify_user=accept,
        links=links,
        on_stage=stages.append,
    )
    return Bench(air=air, base=base, tls=tls, links=links, phone=phone, stages=stages, ends=asyncio.Queue())


async def test_a_device_is_linked_by_one_sign_in_and_asks_again_without_a_url(bench: Bench) -> None:
    link = await bench.linked()
    assert link.name == "Software phone"
    assert link.tunnel_domain == 300
    async with bench.waiting():
        ok(await bench.ask(link, assertion()))
        ok(await bench.ask(link, creation()))  # and again
        assert await bench.ends.get() is None
    (kept,) = bench.links.load()
    assert (kept.device, kept.offered.contact_id) == ("Living room", link.contact_id)
    assert kept.offered.link_secret == link.link_secret


async def test_each_device_has_a_contact_id_and_a_secret_of_its_own(bench: Bench) -> None:
    one, two = await bench.linked(), await bench.linked()
    assert one.public_key == two.public_key
    assert {one.contact_id, one.link_id, one.link_secret}.isdisjoint(
        {two.contact_id, two.link_id, two.link_secret}
    )
    assert len(one.contact_id) == 32


async def test_a_link_that_is_made_while_the_phone_waits_works(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("companion_push.companion.linked.LOOK", 0.01)
    async with bench.waiting():
        link = await bench.linked()
        await bench.reachable(link)
        ok(await bench.ask(link, assertion()))


async def test_no_device_is_linked_that_does_not_ask_for_it(bench: Bench) -> None:
    reply, links = await bench.transact(creation(), linking=False)
    ok(reply)
    assert links == [NoLink.NOT_OFFERED]  # an update as long as one with a link
    assert bench.links.load() == ()


async def test_a_phone_without_a_file_of_links_sends_no_update(bench: Bench) -> None:
    bench.phone = replace(bench.phone, links=None)
    reply, links = await bench.transact(creation())
    ok(reply)
    assert links == []


@pytest.mark.threat("T10")
async def test_a_no_links_nothing(bench: Bench) -> None:
    await bench.linked()
    bench.phone = replace(bench.phone, verify_user=decline)
    reply, links = await bench.transact(assertion())
    assert (reply.code, links) == (0x27, [])
    assert len(bench.links.load()) == 1


async def test_a_device_that_leaves_before_it_has_its_link_leaves_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(_conversation: object, _link: object) -> None:
        raise TransportError("the device has gone")

    monkeypatch.setattr("companion_push.companion.phone._Conversation.update", gone)
    transaction = QrTransaction.create(hint=MC, time=int(time.time()), linking=True)
    device = Device(bench.air, bench.base, bench.tls, transaction)
    answering = asyncio.ensure_future(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(channel.send(creation()))
        with pytest.raises(TransportError):
            await answering
    assert bench.links.load() == ()


@pytest.mark.parametrize("where", ["phone._Conversation.update", "waking_client.WakingClient.register"])
async def test_a_phone_that_is_ended_before_the_device_has_its_link_keeps_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    reached = asyncio.Event()

    async def stuck(_self: object, _what: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(f"companion_push.companion.{where}", stuck)
    monkeypatch.setattr("companion_push.companion.phone._LINKING", TIMEOUT)
    transaction = QrTransaction.create(hint=MC, time=int(time.time()), linking=True)
    device = Device(bench.air, bench.base, bench.tls, transaction)
    answering = asyncio.ensure_future(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(channel.send(creation()))
        async with asyncio.timeout(TIMEOUT):
            await reached.wait()
        assert len(bench.links.load()) == 1
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
    assert bench.links.load() == ()


@pytest.mark.parametrize("trouble", ["wakes no phones", "is not there"])
async def test_a_tunnel_service_that_takes_no_registration_costs_the_link_and_not_the_sign_in(
    loopback_certificate: Certificate, tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(loopback_certificate, None) as base:
        bench = a_bench(base, loopback_certificate, tmp_path)
        if trouble == "is not there":
            nobody = f"wss://127.0.0.1:{reserved_port()}"
            monkeypatch.setattr(
                "companion_push.companion.phone.open_waking",
                lambda _base, tls: open_waking(nobody, tls=tls),
            )
        reply, links = await bench.transact(creation())
    ok(reply)
    assert links == [NoLink.NOT_OFFERED]
    assert bench.links.load() == ()
    assert "not-linked" in bench.stages


async def test_a_forgotten_link_is_410_and_the_other_goes_on(bench: Bench) -> None:
    one, two = await bench.linked(), await bench.linked()
    async with bench.waiting():
        forgotten = await forget_link(bench.links, one.link_id.hex(), bench.phone.tunnel_service, bench.tls)
        assert forgotten.device == "Living room"
        assert await bench.status(one) == 410
        ok(await bench.ask(two, assertion()))
    assert [each.offered.link_id for each in bench.links.load()] == [two.link_id]


async def test_a_link_is_kept_when_the_tunnel_service_cannot_be_told(bench: Bench) -> None:
    link = await bench.linked()
    nobody = TunnelService(number=300, base=f"wss://127.0.0.1:{reserved_port()}")
    with pytest.raises(TransportError):
        await forget_link(bench.links, link.link_id.hex(), nobody, bench.tls)
    another = TunnelService(number=301, base=bench.base)
    with pytest.raises(TransportError, match="domain 300"):
        await forget_link(bench.links, link.link_id.hex(), another, bench.tls)
    with pytest.raises(UsageError):
        await forget_link(bench.links, "00" * 8, bench.phone.tunnel_service, bench.tls)
    assert len(bench.links.load()) == 1


@pytest.mark.threat("T10")
async def test_the_user_is_told_which_device_asks_and_may_decline(bench: Bench) -> None:
    link = await bench.linked()
    shown: list[Question] = []

    async def see(question: Question) -> None:
        shown.append(question)

    async with bench.waiting(replace(bench.phone, verify_user=see)):
        assert (await bench.ask(link, assertion())).code == 0x27
        assert isinstance(await bench.ends.get(), NotApproved)
    assert [(each.device, each.links) for each in shown] == [("Living room", False)]


@pytest.mark.threat("T10")
async def test_the_command_is_of_the_kind_in_the_client_payload(bench: Bench) -> None:
    link = await bench.linked()
    async with bench.waiting():
        assert (await bench.ask(link, creation(), hint=GA)).code == 0x30
        assert isinstance(await bench.ends.get(), TrustError)


@pytest.mark.threat("T9")
@pytest.mark.parametrize("change", ["link ID", "link secret"])
async def test_who_does_not_hold_the_link_gets_no_question(
    bench: Bench, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    link = await bench.linked()
    stranger = (
        replace(link, link_id=bytes(8)) if change == "link ID" else replace(link, link_secret=bytes(32))
    )
    asked: list[Question] = []

    async def never(question: Question) -> None:
        asked.append(question)

    async with bench.waiting(replace(bench.phone, verify_user=never)):
        transaction = StateAssistedTransaction.create(stranger, hint=GA)
        async with aiohttp.ClientSession() as session:
            tunnel = await session.ws_connect(
                transaction.contact_url(bench.base),
                protocols=("fido.cable",),
                headers=transaction.headers,
                ssl=bench.tls,
            )
            if change == "link secret":
                assert await tunnel.receive_bytes() == b"\0"
                await tunnel.send_bytes(bytes(81))
                assert isinstance(await bench.ends.get(), RemoteProtocolError)
            await tunnel.close()
        ok_link = await bench.ask(link, assertion()) if asked else None
    assert ok_link is None
    assert asked == []


@pytest.mark.threat("T9")
async def test_who_wakes_the_phone_and_says_nothing_does_not_keep_it_long(
    bench: Bench, loop_clock: LoopClock
) -> None:
    link = await bench.linked()
    async with bench.waiting():
        transaction = StateAssistedTransaction.create(link, hint=GA)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(
                transaction.contact_url(bench.base),
                protocols=("fido.cable",),
                headers=transaction.headers,
                ssl=bench.tls,
            ) as tunnel,
        ):
            assert await tunnel.receive_bytes() == b"\0"
            while transaction.open_advert(await bench.air.adverts.get()) is None:
                pass
            loop_clock.passes(_FIRST_MESSAGE)  # less than TIMEOUT
            assert isinstance(await bench.ends.get(), TransportError)
        ok(await bench.ask(link, assertion()))


async def test_a_phone_whose_connection_is_lost_comes_again(
    loopback_certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("companion_push.companion.linked.FIRST_PAUSE", 0.0)
    apps: list[web.Application] = []
    async with serving(loopback_certificate, tmp_path / "contacts", apps) as base:
        bench = a_bench(base, loopback_certificate, tmp_path)
        link = await bench.linked()
        async with bench.waiting():
            phones = apps[0][_TUNNELS].phones
            assert phones is not None
            (phone,) = phones._phones
            phone.end(1001)
            async with asyncio.timeout(TIMEOUT):
                while phone in phones._phones or not len(phones):  # noqa: ASYNC110  nobody tells
                    await asyncio.sleep(0.001)
            await bench.reachable(link)
            ok(await bench.ask(link, assertion()))


async def test_a_tunnel_service_that_wakes_no_phones_is_said_at_once(
    loopback_certificate: Certificate, tmp_path: Path
) -> None:
    async with serving(loopback_certificate, None) as base:
        bench = a_bench(base, loopback_certificate, tmp_path)
        waiting = LinkedWaiting(
            phone=bench.phone, links=bench.links, timeout=TIMEOUT, on_end=bench.ends.put_nowait
        )
        with pytest.raises(TunnelRefused):
            await waiting.run()


async def test_at_64_links_no_further_one_is_offered(bench: Bench) -> None:
    for number in range(64):
        await bench.links.add(device=f"device {number}", tunnel_domain=300, now=0)
    reply, links = await bench.transact(creation())
    ok(reply)
    assert links == [NoLink.NOT_OFFERED]
    assert len(bench.links.load()) == 64


@pytest.mark.threat("T11")
async def test_the_file_is_private_and_nothing_shows_its_secrets(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    link = await bench.linked()
    async with bench.waiting():
        ok(await bench.ask(link, assertion()))
    (kept,) = bench.links.load()
    assert bench.links.path.stat().st_mode & 0o777 == 0o600
    for secret in (link.link_secret, link.contact_id, kept.registration_secret):
        assert secret.hex() not in caplog.text.lower()
        assert repr(secret) not in repr(kept)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file | {"version": 2},
        lambda file: file | {"private_key": "AAAA"},
        lambda file: file | {"private_key": "A" * 43 + "="},
        lambda file: file | {"links": [{}]},
        lambda file: file | {"more": 1},
        lambda _file: [],
    ],
    ids=["another version", "a short key", "no key", "an empty link", "an unknown member", "a list"],
)
async def test_a_file_that_is_damaged_is_refused_and_left_as_it_is(bench: Bench, change: object) -> None:
    await bench.linked()
    assert callable(change)
    damaged = json.dumps(change(json.loads(bench.links.path.read_text())))
    bench.links.path.write_text(damaged)
    with pytest.raises(SetupError):
        bench.links.load()
    with pytest.raises(SetupError):
        await bench.links.add(device="x", tunnel_domain=300, now=0)
    assert bench.links.path.read_text() == damaged


def test_the_title_names_the_linked_device_and_says_that_a_yes_links() -> None:
    question = Question(kind=GA, rp_id="example.com", accounts=(), device="Kitchen\n\x1b[2J")
    assert "\n" not in _title(question)
    assert "\x1b" not in _title(question)
    assert "Kitchen" in _title(question)
    assert "links the device" in _title(replace(question, device=None, links=True))


@pytest.mark.parametrize("again", [None, 1], ids=["once", "and at once"])
async def test_waiting_cancelled_everywhere_leaves_nothing(bench: Bench, again: int | None) -> None:
    link = await bench.linked()

    async def one(interruption: Interruption) -> Interruption:
        done = asyncio.Event()

        async def verify(_question: Question) -> int:
            return 0

        waiting = LinkedWaiting(
            phone=replace(bench.phone, verify_user=verify),
            links=bench.links,
            timeout=TIMEOUT,
            on_end=lambda _error: done.set(),
        )
        running = asyncio.create_task(interrupted(waiting.run(), interruption))
        asking = asyncio.create_task(_until_asked(bench, link))
        stopped = asyncio.create_task(done.wait())
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        for task in (running, asking, stopped):
            task.cancel()
        await asyncio.gather(running, asking, stopped, return_exceptions=True)
        assert bench.air.sending == 0
        return interruption

    await one(Interruption(at=0))
    assert await cancel_everywhere(one, again=(again,)) >= 1


async def _until_asked(bench: Bench, link: LinkedPhone) -> None:
    while True:
        with contextlib.suppress(aiohttp.ClientError, TypeError, AssertionError):
            await bench.ask(link, assertion())
        await asyncio.sleep(0.005)


async def test_the_program_links_waits_lists_and_forgets(
    loopback_certificate: Certificate, tmp_path: Path
) -> None:
    async with serving(loopback_certificate, tmp_path / "contacts") as base:
        bench = a_bench(base, loopback_certificate, tmp_path)
        link = await bench.linked()
        words = [
            *("phone", "--radio", "stdout", "--tunnel", f"300={base}", "--uv", "accept"),
            *("--links", bench.links.path, "--ca", loopback_certificate.ca, "--json"),
        ]
        passkeys = ("--credentials", bench.links.path.with_name("passkeys.json"))
        async with running(*words, *passkeys, "--linked") as program:
            await bench.reachable(link)
            asking = asyncio.create_task(_program_asks(bench, link))
            async with asyncio.timeout(TIMEOUT):
                while not asking.done():
                    reading = asyncio.create_task(program.line())
                    await asyncio.wait({asking, reading}, return_when=asyncio.FIRST_COMPLETED)
                    if reading.done():
                        bench.air.adverts.put_nowait(bytes.fromhex(reading.result()))
                    else:
                        reading.cancel()
            ok(asking.result())
        async with running(*words, "--list-links") as program:
            listed = json.loads(await program.line())
            assert await program.ended() == 0
        assert (listed["link"], listed["device"]) == (link.link_id.hex(), "Living room")
        assert sorted(listed) == ["device", "link", "linked_at", "tunnel_domain"]
        async with running(*words, "--forget", listed["link"]) as program:
            assert await program.ended() == 0
        assert await bench.status(link) == 410
        async with running(*words, "--forget", listed["link"]) as program:
            assert await program.ended() == 2
        async with running(*words) as program:  # nothing to do is named
            assert await program.ended() == 2


async def test_ctrl_c_at_a_question_ends_the_program_in_order_and_declines_nothing(
    loopback_certificate: Certificate, tmp_path: Path
) -> None:
    async with serving(loopback_certificate, tmp_path / "contacts") as base:
        bench = a_bench(base, loopback_certificate, tmp_path)
        link = await bench.linked()
        words = (
            *("phone", "--linked", "--radio", "stdout", "--tunnel", f"300={base}", "--uv", "ask"),
            *("--links", bench.links.path, "--ca", loopback_certificate.ca),
            *("--credentials", bench.links.path.with_name("passkeys.json")),
        )
        async with at_terminal(*words, raw=False) as (program, screen):
            await bench.reachable(link)
            asking = asyncio.create_task(_program_asks(bench, link))
            hearing = asyncio.create_task(_hears(bench, program))
            await screen.until("y or n:")
            screen.type("\x03")
            with pytest.raises(TypeError, match="message 8"):  # of aiohttp: a close frame came, and no answer
                await asking
            assert await program.ended() == 0
            await hearing


async def _hears(bench: Bench, program: Program) -> None:
    """Hear what the program advertises, until it ends."""
    while line := await program.line():
        bench.air.adverts.put_nowait(bytes.fromhex(line))


async def _program_asks(bench: Bench, link: LinkedPhone) -> Ctap:
    return await bench.ask(link, assertion())
