"""The ceremony with linked phones (CTAP 2.2 §11.5.2): the software phone over a real tunnel service that wakes it, and services that do not."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from certificates import Certificate

from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.link_file import LinkFile
from companion_push.companion.linked import LinkedWaiting
from companion_push.companion.phone import Question, SoftwarePhone
from companion_push.companion.software_key import ES256, SoftwareKey
from headless_passkey import ceremony
from headless_passkey.ceremony import LINKED_FIRST, CeremonyResult, ForgottenLink
from headless_passkey.delivery import Ask
from headless_passkey.errors import (
    CtapError,
    HeadlessPasskeyError,
    LocalProtocolError,
    NotApproved,
    Outcome,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid.ctap2 import MakeCredentialRequest, User
from headless_passkey.hybrid.keys import generate, uncompressed
from headless_passkey.hybrid.linking import LinkedPhone, LinkingInformation, OfferedLink
from headless_passkey.phone_channel import LINK_TIMEOUT, MAX_UPDATES
from headless_passkey.radio.source import Advert
from headless_passkey.request import DeviceEvent
from headless_passkey.stages import Stage, StageEvent
from tests.companion.test_linked import serving
from tests.device.test_ceremony import (
    DOMAIN,
    TIMEOUT,
    USER,
    Air,
    Bench,
    Carrier,
    Gate,
    Pins,
    Tunnels,
    accept_it,
    claimed,
    tunnels,
)
from tests.loop_clock import LoopClock
from tests.ports import reserved_port

__all__ = ["tunnels"]  # a fixture


class Kept:
    """Links in memory."""

    def __init__(self, *phones: LinkedPhone) -> None:
        self.phones = list(phones)
        self.came_from: list[str] = []
        self.uses = 0
        self.error: HeadlessPasskeyError | None = None
        self.room = True

    async def usable(
        self, _ask: Ask, _on_forgotten: Callable[[str, ForgottenLink], None]
    ) -> Sequence[LinkedPhone]:
        return list(self.phones)

    async def keep(self, phone: LinkedPhone, recipient: str) -> str | None:
        self._fail()
        if not self.room:
            return None
        self.phones.append(phone)
        self.came_from.append(recipient)
        return phone.name

    async def used(self, _phone: LinkedPhone) -> None:
        self._fail()
        self.uses += 1

    async def forget(self, phone: LinkedPhone) -> None:
        self._fail()
        self.phones.remove(phone)

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class NobodyAsked(Carrier):
    """A delivery that is not to be used."""

    async def recipients(self) -> Sequence[str]:
        pytest.fail("the request was to go out")


class RelayAway(Carrier):
    """A delivery that cannot be reached."""

    async def recipients(self) -> Sequence[str]:
        raise TransportError("the relay does not answer", reason=TransportReason.UNREACHABLE)


@dataclass
class LinkedBench(Bench):
    """The bench of a ceremony, with a phone that links devices."""

    events: list[StageEvent] = field(default_factory=list)
    asked: list[Question] = field(default_factory=list)  # of the phone's user

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kept = Kept()
        self.woken = asyncio.Event()  # the silent phone is in its tunnel

    def phone(self, *, yes: bool = True) -> SoftwarePhone:
        async def asks(question: Question) -> int | None:
            self.asked.append(question)
            return 0 if yes else None

        links = LinkFile(path=self.folder / "phone-links.json")
        return replace(super().phone(), verify_user=asks, links=links)

    def _on_stage(self, event: StageEvent) -> None:
        self.events.append(event)
        super()._on_stage(event)

    async def sign_in(self, ask: Ask | None = None, options: Any = None, **more: Any) -> CeremonyResult:
        return await super().sign_in(ask, options, **{"links": self.kept, **more})

    async def register(self) -> Any:
        """A passkey on the phone, as a registration makes it."""
        request = MakeCredentialRequest(
            client_data_hash=bytes(32),
            rp_id="login.example",
            rp_name="Example",
            user=User(id=USER, name="ada", display_name="Ada"),
            algorithms=(ES256,),
            resident_key=True,
            user_verification=True,
        )
        file = CredentialFile(path=self.folder / "passkeys.json")
        await file.register(SoftwareKey().make_credential(request), now=0)

    async def linked(self) -> LinkedPhone:
        """A device that is linked, and a passkey on the phone."""
        await self.register()
        phone = self.phone()
        assert phone.links is not None
        made = await phone.links.add(device="Hub", tunnel_domain=DOMAIN, now=0)
        assert made is not None
        offered = made.offered
        (self.contacts / hashlib.sha256(offered.contact_id).hexdigest()).touch()
        link = LinkedPhone(
            contact_id=offered.contact_id,
            link_id=offered.link_id,
            link_secret=offered.link_secret,
            public_key=uncompressed(offered.identity.public_key()),
            name=offered.name,
            tunnel_domain=DOMAIN,
        )
        self.kept.phones.append(link)
        return link

    @property
    def contacts(self) -> Path:
        """The tunnel service's folder of contact IDs that it knows."""
        return self.folder / "contacts"

    def forget_contacts(self) -> None:
        for file in self.contacts.iterdir():
            file.unlink()

    def again(self, carrier: Carrier | None = None) -> None:
        """Make ready for another sign-in."""
        self.carrier = carrier or Carrier(self.air)
        self.stages, self.events, self.asked = [], [], []
        self._reached.clear()

    @contextlib.asynccontextmanager
    async def waiting(self, phone: SoftwarePhone | None = None) -> AsyncIterator[None]:
        """The phone waits to be woken; entered once it is registered."""
        waits, phone = asyncio.Event(), phone or self.phone()
        waiting = LinkedWaiting(
            phone=replace(phone, on_stage=lambda stage: waits.set() if stage == "waiting" else None),
            links=phone.links or pytest.fail("no links"),
            timeout=TIMEOUT,
            on_end=lambda _: None,
        )
        running = asyncio.create_task(waiting.run())
        try:
            async with asyncio.timeout(TIMEOUT):
                await waits.wait()
            yield
        finally:
            running.cancel()
            await asyncio.wait({running})

    def detail(self, stage: Stage) -> Any:
        """The detail of the one event of this stage."""
        (event,) = (event for event in self.events if event.stage is stage)
        return event.detail


@pytest.fixture
async def bench(
    loopback_certificate: Certificate, tmp_path: Path, loop_clock: LoopClock
) -> AsyncIterator[LinkedBench]:
    async with serving(loopback_certificate, tmp_path / "contacts") as base:
        yield LinkedBench(base, loopback_certificate, tmp_path, loop_clock)


# Linking


async def test_a_sign_in_that_asks_for_a_link_keeps_it_and_the_next_needs_no_request(
    bench: LinkedBench,
) -> None:
    await bench.register()
    signed_in, _ = await asyncio.gather(bench.sign_in(link=True), bench.answered())
    assert signed_in.credential.user_handle == USER
    assert [url.linking for url in (await bench.carrier.urls).values()] == [True]
    assert bench.kept.came_from == ["phone"]
    assert bench.detail(Stage.LINKED) == {"phone": "Software phone"}
    assert bench.stages[-2:] == [Stage.LINKED, Stage.COMPLETED]

    bench.again(NobodyAsked(bench.air, needs_claim=True))  # a linked phone needs no claim
    async with bench.waiting():
        signed_in = await bench.sign_in()
    assert signed_in.credential.user_handle == USER
    assert bench.stages == [
        Stage.PREPARED,
        Stage.CONTACTING,
        Stage.ADVERT_HEARD,
        Stage.TUNNEL_JOINED,
        Stage.CHANNEL_OPEN,
        Stage.REQUEST_SENT,
        Stage.REPLY_CHECKED,
        Stage.COMPLETED,
    ]
    assert bench.detail(Stage.PREPARED) == {"links": 1}
    assert bench.detail(Stage.CHANNEL_OPEN) == {"phone": "Software phone"}
    assert bench.carrier.finished == []
    assert bench.kept.uses == 1
    assert len(bench.kept.phones) == 1


async def test_a_device_that_does_not_ask_gets_no_link(bench: LinkedBench) -> None:
    await bench.register()
    await asyncio.gather(bench.sign_in(), bench.answered())
    assert [url.linking for url in (await bench.carrier.urls).values()] == [False]
    assert bench.kept.phones == []
    assert not {Stage.LINKED, Stage.NOT_LINKED} & set(bench.stages)


async def test_a_link_that_is_asked_for_needs_a_place(bench: LinkedBench) -> None:
    with pytest.raises(LocalProtocolError):
        await bench.sign_in(link=True, links=None)


async def test_that_a_phone_offers_no_link_is_told(
    bench: LinkedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.register()
    monkeypatch.setattr(LinkedBench, "phone", Bench.phone)
    signed_in, *_ = await asyncio.gather(bench.sign_in(link=True), bench.answered(), no_update(bench))
    assert signed_in.credential.user_handle == USER
    assert bench.detail(Stage.NOT_LINKED) == {"reason": "not-offered"}


async def no_update(bench: Bench) -> None:
    """No update comes in the time that a phone has for it after its reply."""
    await bench.reached(Stage.REPLY_CHECKED).wait()
    bench.clock.passes(LINK_TIMEOUT)


@pytest.mark.threat("T10")
@pytest.mark.parametrize("wrong", ["signature", "session", "name"])
async def test_a_link_counts_that_the_phone_has_signed_in_this_session(
    bench: LinkedBench, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    sign = OfferedLink.sign

    def badly(self: OfferedLink, **of: Any) -> LinkingInformation:
        if wrong == "session":
            return sign(self, **of | {"handshake_hash": bytes(32)})
        signed = sign(self, **of)
        if wrong == "name":  # which the signature does not cover
            return replace(signed, name="\x1b[2J\u202eAda's phone" + 300 * "!")
        return replace(signed, signature=bytes(32))

    monkeypatch.setattr(OfferedLink, "sign", badly)
    await bench.register()
    signed_in, _ = await asyncio.gather(bench.sign_in(link=True), bench.answered())
    assert signed_in.credential.user_handle == USER
    if wrong == "name":
        (link,) = bench.kept.phones
        assert link.name.startswith("[2J Ada's phone!")
        assert len(link.name) == 64
    else:
        assert bench.kept.phones == []
        assert bench.detail(Stage.NOT_LINKED) == {"reason": "bad-signature"}


@pytest.mark.threat("T3")
@pytest.mark.parametrize("who", ["device", "relying party"])
async def test_a_sign_in_that_is_refused_brings_no_link(bench: LinkedBench, who: str) -> None:
    await bench.register()

    async def refuse(_credential: object) -> None:
        raise TrustError(TrustReason.RP_REFUSED, "not you")

    users, settle = (Pins(b"eve"), accept_it) if who == "device" else (None, refuse)
    with pytest.raises(TrustError):
        await asyncio.gather(bench.sign_in(link=True, users=users, settle=settle), bench.answered())
    assert bench.kept.phones == []


@pytest.mark.parametrize("trouble", ["no room", "disk full"])
async def test_a_link_that_cannot_be_kept_costs_nothing_else(bench: LinkedBench, trouble: str) -> None:
    await bench.register()
    bench.kept.room = False
    if trouble == "disk full":
        bench.kept.error = SetupError("cannot write", reason=SetupReason.DISK_FULL)
    signed_in, _ = await asyncio.gather(bench.sign_in(link=True), bench.answered())
    assert signed_in.credential.user_handle == USER
    reason = "too-many-links" if trouble == "no room" else "disk-full"
    assert bench.detail(Stage.NOT_LINKED) == {"reason": reason}


async def test_an_update_that_comes_after_the_reply_is_taken(
    bench: LinkedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = "companion_push.companion.phone._Conversation"
    offered: list[OfferedLink | None] = []

    async def later(_self: object, link: OfferedLink | None) -> None:
        offered.append(link)

    async def reply_first(self: Any, status: int, payload: bytes = b"") -> None:
        await self._carrier.send(self._channel.reply(status, payload))
        for link in offered:
            await bench.reached(Stage.REPLY_CHECKED).wait()
            await self._carrier.send(self._channel.update(link))

    await bench.register()
    monkeypatch.setattr(f"{conversation}.update", later)
    monkeypatch.setattr(f"{conversation}.reply", reply_first)
    await asyncio.gather(bench.sign_in(link=True), bench.answered())
    assert bench.stages[-2:] == [Stage.LINKED, Stage.COMPLETED]


@pytest.mark.threat("T10")
async def test_a_phone_that_sends_nothing_but_updates_is_left(
    bench: LinkedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def flood(self: Any, _link: object) -> None:
        for _ in range(MAX_UPDATES + 1):
            await self._carrier.send(self._channel.update(None))

    await bench.register()
    monkeypatch.setattr("companion_push.companion.phone._Conversation.update", flood)
    with pytest.raises(RemoteProtocolError, match="updates"):
        await asyncio.gather(bench.sign_in(link=True), bench.answered())


# Which failures delete a link, and what follows them: the request, in the same call


async def falls_back(bench: LinkedBench, **more: Any) -> None:
    """A sign-in whose link leads nowhere, so that the request goes out."""
    signed_in, _ = await asyncio.gather(bench.sign_in(**more), bench.answered())
    assert signed_in.credential.user_handle == USER
    assert bench.carrier.finished == [(DeviceEvent.COMPLETED, None)]
    assert bench.kept.uses == 0


@pytest.fixture
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else is asked as long as a linked phone may come."""
    monkeypatch.setattr(ceremony, "LINKED_FIRST", 1e6)


@pytest.mark.usefixtures("no_hurry")
async def test_a_phone_that_has_forgotten_the_device_is_forgotten(bench: LinkedBench) -> None:
    link = await bench.linked()
    bench.forget_contacts()
    await falls_back(bench)
    assert bench.kept.phones == []
    assert bench.detail(Stage.LINK_FORGOTTEN) == {"phone": link.name, "reason": "gone"}
    assert Stage.ATTEMPT_FAILED not in bench.stages


@pytest.mark.usefixtures("no_hurry")
async def test_a_dead_link_that_cannot_be_deleted_is_a_failed_attempt(bench: LinkedBench) -> None:
    await bench.linked()
    bench.kept.error = SetupError("cannot write", reason=SetupReason.STATE_UNWRITABLE)
    bench.forget_contacts()
    await falls_back(bench)
    assert bench.detail(Stage.ATTEMPT_FAILED)["why"] == "cannot write"


@contextlib.asynccontextmanager
async def answering(
    certificate: Certificate, status: int, came: list[str] | None = None
) -> AsyncIterator[str]:
    """A tunnel service that answers everything with this status."""

    async def answer(request: web.Request) -> web.Response:
        if came is not None:
            came.append(request.path)
        return web.Response(status=status, headers={"Location": "/cable/elsewhere"})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.server_context()).start()
        yield f"wss://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.threat("T9")
@pytest.mark.usefixtures("no_hurry")
@pytest.mark.parametrize("status", [200, 302, 307, 400, 404, 429, 500, 503])
async def test_every_other_answer_keeps_the_link(
    bench: LinkedBench, loopback_certificate: Certificate, status: int
) -> None:
    await bench.linked()
    came: list[str] = []
    async with answering(loopback_certificate, status, came) as elsewhere:
        bench.kept.phones[0] = link = replace(bench.kept.phones[0], tunnel_domain=DOMAIN + 1)
        await falls_back(bench, tunnels={DOMAIN: bench.base, DOMAIN + 1: elsewhere})
    assert bench.kept.phones == [link]
    assert len(came) == 1  # redirects are not followed
    assert bench.detail(Stage.ATTEMPT_FAILED)["phone"] == link.name


@pytest.mark.threat("T9")
@pytest.mark.usefixtures("no_hurry")
@pytest.mark.parametrize("trouble", ["phone away", "no service", "unknown domain", "no TLS of ours"])
async def test_every_other_failure_keeps_the_link(
    bench: LinkedBench, loopback_certificate: Certificate, trouble: str
) -> None:
    await bench.linked()
    number = {"phone away": DOMAIN, "unknown domain": 7}.get(trouble, DOMAIN + 1)
    bench.kept.phones[0] = link = replace(bench.kept.phones[0], tunnel_domain=number)
    nobody = f"wss://localhost:{reserved_port()}"
    # a name that the certificate does not have
    stranger = bench.base.replace("localhost", "127.0.0.2").replace("127.0.0.1", "127.0.0.2")
    elsewhere = nobody if trouble == "no service" else stranger
    await falls_back(bench, tunnels={DOMAIN: bench.base, DOMAIN + 1: elsewhere})
    assert bench.kept.phones == [link]
    why = bench.detail(Stage.ATTEMPT_FAILED)["why"]
    assert ("503" in why) == (trouble == "phone away")
    assert ("domain 7" in why) == (trouble == "unknown domain")


@pytest.mark.threat("T9")
@pytest.mark.usefixtures("no_hurry")
@pytest.mark.parametrize("holds", ["no key", "no secret"])
async def test_who_stands_for_the_phone_without_its_key_or_secret_gets_no_command(
    bench: LinkedBench, monkeypatch: pytest.MonkeyPatch, holds: str
) -> None:
    """The link secret alone opens the advert, and does not stand for the phone."""
    link = await bench.linked()
    load = LinkFile.load

    def stolen(self: LinkFile) -> Any:
        change = {"identity": generate()} if holds == "no key" else {"link_secret": bytes(32)}
        return tuple(replace(each, offered=replace(each.offered, **change)) for each in load(self))

    async def in_vain() -> None:
        await bench.air.heard.wait()
        await bench.air.drained()
        bench.clock.passes(TIMEOUT)

    monkeypatch.setattr(LinkFile, "load", stolen)
    bench.air.heard.clear()
    async with bench.waiting():
        if holds == "no key":
            await falls_back(bench)
            assert bench.stages.count(Stage.ADVERT_HEARD) == 2
        else:
            with pytest.raises(NotApproved):
                await asyncio.gather(bench.sign_in(), in_vain())
            assert Stage.ADVERT_HEARD not in bench.stages
    assert bench.kept.phones == [link]
    assert [question.device for question in bench.asked] == [None] * (holds == "no key")


# The race


async def test_a_linked_phone_that_does_not_come_is_overtaken_by_the_request(
    bench: LinkedBench, tunnels: Tunnels
) -> None:
    await bench.linked()
    tunnels.opened = tunnels.closed = 0
    async with silent_phone(bench):
        signed_in, *_ = await asyncio.gather(
            bench.sign_in(), bench.answered(), time_passes(bench, bench.woken)
        )
    assert signed_in.credential.user_handle == USER
    assert bench.stages.index(Stage.CONTACTING) < bench.stages.index(Stage.SUBMITTED)
    assert (tunnels.opened, tunnels.closed) == (2, 2)
    assert bench.carrier.finished == [(DeviceEvent.COMPLETED, None)]
    assert len(bench.kept.phones) == 1


@contextlib.asynccontextmanager
async def silent_phone(bench: LinkedBench) -> AsyncIterator[None]:
    """The linked phone is woken, and its advert reaches nobody."""

    class Lead(Air):
        @contextlib.asynccontextmanager
        async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
            bench.woken.set()
            yield

    async with bench.waiting(replace(bench.phone(), advertiser=Lead())):
        yield


async def time_passes(bench: LinkedBench, since: asyncio.Event | None = None) -> None:
    """The time that a linked phone has for itself goes by once it has been asked for."""
    await (since or bench.reached(Stage.CONTACTING)).wait()
    bench.clock.passes(LINKED_FIRST)


@pytest.mark.threat("T5")
async def test_a_claim_ends_the_attempt_to_reach_a_linked_phone(bench: LinkedBench, tunnels: Tunnels) -> None:
    await bench.linked()
    tunnels.opened = tunnels.closed = 0
    bench.carrier = Carrier(bench.air, needs_claim=True)

    async def claims() -> None:
        await bench.carrier.urls
        assert (tunnels.opened, tunnels.closed) == (1, 0)
        bench.carrier.states.put_nowait(claimed("phone"))
        await bench.reached(Stage.CLAIMED).wait()
        await tunnels.closing.wait()  # before the phone has its URL
        await bench.answered()

    async with silent_phone(bench):
        signed_in, *_ = await asyncio.gather(bench.sign_in(), claims(), time_passes(bench, bench.woken))
    assert signed_in.credential.user_handle == USER
    assert [question.device for question in bench.asked] == [None]  # no prompt by the link


@pytest.mark.threat("T5")
async def test_a_linked_phone_that_comes_late_ends_the_request_and_gets_the_command(
    bench: LinkedBench,
) -> None:
    await bench.linked()
    withdrawn_at: list[int] = []

    class Withdrawn(Carrier):
        async def finish(self, outcome: DeviceEvent, reason: str | None = None) -> None:
            withdrawn_at.append(len(bench.stages))
            await super().finish(outcome, reason)

    late = asyncio.Event()

    class Late(Air):
        @contextlib.asynccontextmanager
        async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
            await late.wait()
            bench.air.put(service_data)
            yield

    async def comes_late() -> None:
        await bench.reached(Stage.SUBMITTED).wait()
        late.set()

    bench.again(Withdrawn(bench.air, needs_claim=True))
    async with bench.waiting(replace(bench.phone(), advertiser=Late())):
        signed_in, *_ = await asyncio.gather(bench.sign_in(), comes_late(), time_passes(bench))
    assert signed_in.credential.user_handle == USER
    assert bench.carrier.finished == [(DeviceEvent.CANCELLED, "linked-phone")]
    assert withdrawn_at == [bench.stages.index(Stage.REQUEST_SENT)]
    assert bench.kept.uses == 1


async def test_a_relay_that_is_away_does_not_matter_while_a_linked_phone_may_come(bench: LinkedBench) -> None:
    await bench.linked()
    late = asyncio.Event()

    class Late(Air):
        @contextlib.asynccontextmanager
        async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
            await late.wait()
            bench.air.put(service_data)
            yield

    class Away(RelayAway):
        async def recipients(self) -> Sequence[str]:
            late.set()
            return await super().recipients()

    bench.again(Away(bench.air))
    async with bench.waiting(replace(bench.phone(), advertiser=Late())):
        signed_in, _ = await asyncio.gather(bench.sign_in(), time_passes(bench))
    assert signed_in.credential.user_handle == USER
    assert bench.carrier.finished == []


async def test_where_nobody_can_be_reached_the_delivery_says_why(bench: LinkedBench) -> None:
    await bench.linked()
    bench.again(RelayAway(bench.air))
    with pytest.raises(TransportError, match="the relay does not answer"):
        await bench.sign_in()
    assert bench.detail(Stage.ATTEMPT_FAILED)["phone"] == "Software phone"


async def test_a_no_of_a_companion_is_the_end_for_a_linked_phone_too(
    bench: LinkedBench, tunnels: Tunnels
) -> None:
    await bench.linked()
    tunnels.opened = tunnels.closed = 0
    bench.carrier.states.put_nowait(NotApproved(Outcome.DECLINED, "no"))
    async with silent_phone(bench):
        with pytest.raises(NotApproved, match="no"):
            await asyncio.gather(bench.sign_in(), time_passes(bench, bench.woken))
    assert (tunnels.opened, tunnels.closed) == (1, 1)


@pytest.mark.threat("T10")
async def test_a_no_of_the_linked_phone_is_final(bench: LinkedBench) -> None:
    await bench.linked()
    bench.again(NobodyAsked(bench.air))
    async with bench.waiting(bench.phone(yes=False)):
        with pytest.raises(CtapError):
            await bench.sign_in()
    assert bench.kept.uses == 0
    assert len(bench.kept.phones) == 1


@pytest.mark.threat("T3")
async def test_the_pinned_user_holds_for_a_linked_phone(bench: LinkedBench) -> None:
    await bench.linked()
    bench.again(NobodyAsked(bench.air))
    pins = Pins(b"eve")
    async with bench.waiting():
        with pytest.raises(TrustError) as refused:
            await bench.sign_in(users=pins, settle=accept_it)
    assert refused.value.reason is TrustReason.UNEXPECTED_USER
    assert pins.settled == []
    assert bench.kept.uses == 0


async def test_the_next_linked_phone_is_tried_when_the_last_one_does_not_come(bench: LinkedBench) -> None:
    first = await bench.linked()
    away = replace(first, contact_id=b"somebody", name="Away", tunnel_domain=DOMAIN + 1)
    bench.kept.phones.insert(0, away)
    async with Gate(bench, silent=True) as gate, bench.waiting():
        ways = {DOMAIN: bench.base, DOMAIN + 1: gate.base}
        signed_in, _ = await asyncio.gather(bench.sign_in(tunnels=ways), time_passes(bench, gate.entered))
    assert signed_in.credential.user_handle == USER
    contacted = [event.detail["phone"] for event in bench.events if event.stage is Stage.CONTACTING]
    assert contacted == ["Away", "Software phone"]
    assert gate.came == 1
    assert bench.carrier.finished == [(DeviceEvent.CANCELLED, "linked-phone")]


@pytest.mark.threat("T7")
async def test_a_linked_phone_that_is_too_weak_or_too_slow_is_not_taken(bench: LinkedBench) -> None:
    await bench.linked()
    heard: list[bytes] = []

    class Weak(Air):
        @contextlib.asynccontextmanager
        async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
            heard.append(service_data)
            bench.air.put(Advert(service_data=service_data, rssi=-81))
            yield

    async def in_vain() -> None:
        await bench.air.heard.wait()
        await bench.air.drained()
        bench.clock.passes(TIMEOUT)

    bench.air.heard.clear()
    async with bench.waiting(replace(bench.phone(), advertiser=Weak())):
        with pytest.raises(NotApproved):
            await asyncio.gather(bench.sign_in(min_rssi=-80), in_vain())
    assert heard
    assert Stage.ADVERT_HEARD not in bench.stages


async def test_a_radio_that_is_lost_ends_the_wait_for_linked_phones(
    bench: LinkedBench, tunnels: Tunnels
) -> None:
    first = await bench.linked()
    bench.kept.phones.append(replace(first, name="Another", tunnel_domain=DOMAIN + 1))
    tunnels.opened = tunnels.closed = 0
    lost = TransportError("gone", reason=TransportReason.NO_ADAPTER)

    async def lose() -> None:
        await bench.reached(Stage.CONTACTING).wait()
        bench.air.put(lost)

    async with silent_phone(bench):
        with pytest.raises(TransportError) as caught:
            await asyncio.gather(bench.sign_in(), lose())
    assert caught.value is lost
    assert bench.stages.count(Stage.CONTACTING) == 1
    assert tunnels.opened == tunnels.closed


# Cancelled, and errors of the caller

LINKED_STAGES = (
    Stage.PREPARED,
    Stage.CONTACTING,
    Stage.ADVERT_HEARD,
    Stage.TUNNEL_JOINED,
    Stage.CHANNEL_OPEN,
    Stage.REQUEST_SENT,
    Stage.REPLY_CHECKED,
)


@pytest.mark.parametrize("stage", LINKED_STAGES)
async def test_it_can_be_cancelled_at_every_stage_of_a_linked_phone(
    bench: LinkedBench, stage: Stage, tunnels: Tunnels
) -> None:
    await bench.linked()
    tunnels.opened = tunnels.closed = 0
    tasks: list[asyncio.Task[CeremonyResult]] = []

    def cancel(event: StageEvent) -> None:
        if event.stage is stage:
            tasks[0].cancel()

    before = asyncio.all_tasks()
    bench.again(NobodyAsked(bench.air))
    async with bench.waiting():
        tasks.append(asyncio.create_task(bench.sign_in(on_stage=cancel)))
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
    assert bench.carrier.finished == []
    assert not bench.air.listening
    assert not {task for task in asyncio.all_tasks() - before if "sign_in" in str(task.get_coro())}
    assert tunnels.closed == tunnels.opened


@pytest.mark.parametrize(
    "stage", [*LINKED_STAGES, Stage.LINKED, Stage.NOT_LINKED, Stage.LINK_FORGOTTEN, Stage.SUBMITTED]
)
async def test_what_is_raised_at_a_stage_of_a_link_ends_the_ceremony(
    bench: LinkedBench, tunnels: Tunnels, stage: Stage
) -> None:
    error = TransportError("the caller's display has gone")
    await bench.linked()
    tunnels.opened = tunnels.closed = 0
    if stage is Stage.LINK_FORGOTTEN:
        bench.forget_contacts()
    linking = stage in (Stage.LINKED, Stage.NOT_LINKED)
    if linking:
        bench.kept.phones, bench.kept.room = [], stage is Stage.LINKED

    def spoil(event: StageEvent) -> None:
        if event.stage is stage:
            raise error

    async with contextlib.AsyncExitStack() as around:
        if linking:
            phone = asyncio.create_task(bench.answered())
            around.push_async_callback(asyncio.wait, {phone})
        elif stage not in (Stage.LINK_FORGOTTEN, Stage.SUBMITTED):
            await around.enter_async_context(bench.waiting())
        with pytest.raises(TransportError) as caught:
            await bench.sign_in(on_stage=spoil, link=linking)
    assert caught.value is error
    assert not bench.air.listening
    assert tunnels.opened == tunnels.closed
