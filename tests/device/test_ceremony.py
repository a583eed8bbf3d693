"""The ceremony, with a radio and a delivery in memory, and the software phone over a real tunnel service."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar
from unittest.mock import AsyncMock

import pytest
from certificates import Certificate

from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.phone import Question, SoftwarePhone, TunnelService, accept, decline
from companion_push.companion.software_key import SoftwareKey
from headless_passkey.ceremony import (
    CLAIM_TIMEOUT,
    LAST_PAUSE,
    MAX_ADVERTS,
    MAX_ATTEMPTS,
    CeremonyResult,
    Settled,
    run_ceremony,
)
from headless_passkey.delivery import Ask, Notified, Progress, Unconfirmed
from headless_passkey.errors import (
    CtapError,
    EnrolmentReason,
    HeadlessPasskeyError,
    LocalProtocolError,
    NotApproved,
    NotEnrolled,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid.authenticator import PhoneTransaction
from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.hybrid.messages import Ctap, MessageType, frame
from headless_passkey.hybrid.tunnel_url import new_url
from headless_passkey.net.tunnel import Tunnel, open_tunnel
from headless_passkey.phone_channel import PhoneChannel
from headless_passkey.radio.source import Advert
from headless_passkey.refusals import VANISHED, Refusal
from headless_passkey.request import DeviceEvent, RequestState
from headless_passkey.stages import Stage, StageEvent
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.freshness import ForgottenRings
from headless_passkey.webauthn.options import AuthenticationOptions, Credential, RegistrationOptions
from headless_passkey.webauthn.origins import RelatedOrigins
from program_parts.base64url import base64url
from tests.companion.device import tunnel_service
from tests.loop_clock import LoopClock

T = TypeVar("T")
DOMAIN = 300
TIMEOUT = 20.0  # seconds
ORIGIN = "https://login.example"
USER = b"ada's handle"
CREATION: dict[str, Any] = {
    "rp": {"id": "login.example", "name": "Example"},
    "user": {"id": base64url(USER), "name": "ada", "displayName": "Ada"},
    "challenge": base64url(bytes(32)),
    "pubKeyCredParams": [{"type": "public-key", "alg": -7}],
    "authenticatorSelection": {"residentKey": "required", "userVerification": "required"},
}
REQUEST: dict[str, Any] = {
    "challenge": base64url(bytes(32)),
    "rpId": "login.example",
    "userVerification": "required",
}


class Air:
    """The radio of both ends: what a phone sends, the device hears while it listens."""

    def __init__(self) -> None:
        self._adverts: asyncio.Queue[Advert | TransportError | None] = asyncio.Queue()
        self.listening = False
        self.heard = asyncio.Event()  # something was sent

    def put(self, what: bytes | Advert | TransportError | None) -> None:
        self._adverts.put_nowait(Advert(service_data=what) if isinstance(what, bytes) else what)
        self.heard.set()

    async def drained(self) -> None:
        """All that was put has been heard."""
        await self._adverts.join()

    @contextlib.asynccontextmanager
    async def adverts(self) -> AsyncIterator[AsyncIterator[Advert]]:
        async def heard() -> AsyncIterator[Advert]:
            while (what := await self._adverts.get()) is not None:
                self._adverts.task_done()
                if isinstance(what, TransportError):
                    raise what
                yield what

        self.listening = True
        try:
            yield heard()
        finally:
            self.listening = False

    @contextlib.asynccontextmanager
    async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
        self.put(service_data)
        yield


class Carrier:
    """A delivery that hands URLs to the test, and says of the request what the test says."""

    def __init__(
        self, air: Air, recipients: Sequence[str] = ("phone",), *, needs_claim: bool = False
    ) -> None:
        self._air, self._recipients, self.needs_claim = air, recipients, needs_claim
        self.urls: asyncio.Future[Mapping[str, FidoUrl]] = asyncio.get_running_loop().create_future()
        self.states: asyncio.Queue[Progress | HeadlessPasskeyError] = asyncio.Queue()
        self.listening_at_submit = False
        self.finished: list[tuple[DeviceEvent, str | None]] = []
        self.gone = False
        self.held_by: str | None = None  # the claim that is learnt of at the end

    async def recipients(self) -> Sequence[str]:
        return self._recipients

    async def submit(self, ask: Ask, urls: Mapping[str, FidoUrl], *, lifetime: float) -> None:
        self.listening_at_submit = self._air.listening
        self.urls.set_result(urls)

    async def progress(self) -> AsyncGenerator[Progress, None]:
        while True:
            state = await self.states.get()
            if isinstance(state, HeadlessPasskeyError):
                raise state
            yield state

    async def finish(self, outcome: DeviceEvent, reason: str | None = None) -> str | None:
        self.finished.append((outcome, reason))
        if self.gone:
            raise TransportError("the relay has gone")
        return self.held_by


@dataclass
class Bench:
    """Everything around one ceremony."""

    base: str
    certificate: Certificate
    folder: Path
    clock: LoopClock
    air: Air = field(default_factory=Air)
    stages: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.carrier = Carrier(self.air)
        self._reached: dict[Stage, asyncio.Event] = {}
        self.tls = self.certificate.client_context()

    def phone(self, *, yes: bool = True) -> SoftwarePhone:
        return SoftwarePhone(
            credentials=CredentialFile(path=self.folder / "passkeys.json"),
            advertiser=self.air,
            tunnel_service=TunnelService(number=DOMAIN, base=self.base),
            tls=self.tls,
            verify_user=accept if yes else decline,
        )

    async def answered(self, *, recipient: str = "phone", yes: bool = True) -> None:
        """The phone answers what was delivered to `recipient`; how it fares is its own affair."""
        urls = await self.carrier.urls
        with contextlib.suppress(HeadlessPasskeyError):
            await self.phone(yes=yes).answer(urls[recipient].encode(), timeout=20)

    async def sign_in(self, ask: Ask | None = None, options: Any = None, **more: Any) -> CeremonyResult:
        known = AuthenticationOptions.parse(REQUEST, origin=ORIGIN)
        signed_in: CeremonyResult = await run_ceremony(
            ask or Ask.of(known),
            options or known,
            **{
                "delivery": self.carrier,
                "radio": self.air,
                "tunnels": {DOMAIN: self.base},
                "tls": self.tls,
                "timeout": TIMEOUT,
                "on_stage": self._on_stage,
                **more,
            },
        )
        return signed_in

    async def register(self) -> CeremonyResult:
        known = RegistrationOptions.parse(CREATION, origin=ORIGIN)
        signed_in, _ = await asyncio.gather(self.sign_in(Ask.of(known), known), self.answered())
        self.carrier, self.stages = Carrier(self.air), []
        self._reached.clear()
        return signed_in

    async def expires(self, after: Stage = Stage.SUBMITTED, **more: Any) -> NotApproved:
        """What a ceremony raises whose deadline passes as soon as `after` is reached."""

        def pass_time(event: StageEvent) -> None:
            self._on_stage(event)
            if event.stage is after:
                self.clock.passes(TIMEOUT)

        with pytest.raises(NotApproved) as caught:
            await self.sign_in(on_stage=pass_time, **more)
        assert self.stages[-1] is after
        assert caught.value.reason is Outcome.EXPIRED
        return caught.value

    def _on_stage(self, event: StageEvent) -> None:
        self.stages.append(event.stage)
        self.reached(event.stage).set()

    def reached(self, stage: Stage) -> asyncio.Event:
        """Set when the stage is reached for the first time."""
        return self._reached.setdefault(stage, asyncio.Event())


class Gate:
    """A way to the tunnel service that turns the first connections away, or lets everybody wait."""

    def __init__(self, bench: Bench, *, refuse: int = 0, silent: bool = False) -> None:
        self._to, self._refuse, self._silent = int(bench.base.rpartition(":")[2]), refuse, silent
        self.base = ""
        self.came = self.most = 0
        self._inside: set[asyncio.Task[Any]] = set()
        self.entered, self.left = asyncio.Event(), asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._let_in, "127.0.0.1", 0)
        self.base = f"wss://localhost:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._inside:
            task.cancel()
        if self._inside:
            await asyncio.wait(self._inside)
        await self._server.wait_closed()

    async def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1
        task = asyncio.current_task()
        assert task is not None
        self._inside.add(task)
        self.most = max(self.most, len(self._inside))
        self.entered.set()
        try:
            if self._silent:
                await reader.read()
            elif self.came > self._refuse:
                far, to_far = await asyncio.open_connection("localhost", self._to)
                try:
                    await asyncio.gather(_pump(reader, to_far), _pump(far, writer))
                finally:
                    to_far.close()
                    await to_far.wait_closed()
        except (asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._inside.discard(task)
            self.left.set()
            writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()


class Tunnels:
    """The device's tunnels, counted; the last step of closing one can be held up."""

    def __init__(self) -> None:
        self.opened = self.closed = 0
        self.closing, self.may_close = asyncio.Event(), asyncio.Event()
        self.may_close.set()

    @contextlib.asynccontextmanager
    async def open(self, url: str, **options: Any) -> AsyncIterator[Tunnel]:
        async with contextlib.AsyncExitStack() as stack:
            tunnel = await stack.enter_async_context(open_tunnel(url, **options))
            self.opened += 1
            try:
                yield tunnel
            finally:
                try:
                    self.closing.set()
                    await self.may_close.wait()
                    await stack.aclose()
                finally:
                    self.closed += 1


@pytest.fixture
async def tunnels(monkeypatch: pytest.MonkeyPatch) -> Tunnels:
    counted = Tunnels()
    monkeypatch.setattr("headless_passkey.ceremony.open_tunnel", counted.open)
    return counted


@pytest.fixture
async def bench(
    loopback_certificate: Certificate, tmp_path: Path, loop_clock: LoopClock
) -> AsyncIterator[Bench]:
    async with tunnel_service(loopback_certificate) as base:
        yield Bench(base, loopback_certificate, tmp_path, loop_clock)


async def test_a_registration_and_a_sign_in_come_home(bench: Bench) -> None:
    registered = await bench.register()
    signed_in, _ = await asyncio.gather(bench.sign_in(), bench.answered())
    assert registered.user_checked
    assert signed_in.credential.credential_id == registered.credential.credential_id
    assert signed_in.credential.user_handle == USER
    assert signed_in.credential.user_name == "ada"
    assert not signed_in.user_checked
    assert bench.stages == [
        Stage.PREPARED,
        Stage.SUBMITTED,
        Stage.ADVERT_HEARD,
        Stage.TUNNEL_JOINED,
        Stage.CHANNEL_OPEN,
        Stage.REQUEST_SENT,
        Stage.REPLY_CHECKED,
        Stage.COMPLETED,
    ]
    assert bench.carrier.finished == [(DeviceEvent.COMPLETED, None)]


def with_digits() -> Ask:
    return Ask.of(AuthenticationOptions.parse(REQUEST, origin=ORIGIN), digits="07")


@pytest.mark.threat("T4")
async def test_the_digits_are_a_stage_before_anybody_asks_for_them(bench: Bench) -> None:
    await bench.register()
    events: list[StageEvent] = []
    await asyncio.gather(bench.sign_in(with_digits(), on_stage=events.append), bench.answered())
    assert [event.stage for event in events][:3] == [Stage.PREPARED, Stage.DIGITS, Stage.SUBMITTED]
    assert [event.digits for event in events if event.digits is not None] == ["07"]


async def test_the_radio_is_on_before_delivery_and_off_once_the_channel_is_open(bench: Bench) -> None:
    await bench.register()
    listening: dict[Stage, bool] = {}
    signed_in, _ = await asyncio.gather(
        bench.sign_in(on_stage=lambda event: listening.setdefault(event.stage, bench.air.listening)),
        bench.answered(),
    )
    assert signed_in
    assert bench.carrier.listening_at_submit
    assert listening[Stage.CHANNEL_OPEN]
    assert not listening[Stage.REQUEST_SENT]


async def test_every_ceremony_and_every_recipient_has_a_url_of_its_own(bench: Bench) -> None:
    seen: list[FidoUrl] = []
    for _ in range(3):
        bench.carrier = Carrier(bench.air, ("one", "two"))
        await bench.expires()
        seen += (await bench.carrier.urls).values()
    assert len({url.secret for url in seen}) == len({url.public_key for url in seen}) == 6


@pytest.mark.threat("T12")
async def test_foreign_adverts_and_rubbish_are_passed_over(bench: Bench) -> None:
    await bench.register()
    for rubbish in (b"", bytes(19), bytes(20), bytes(4096), b"\xff" * 24):
        bench.air.put(rubbish)
    signed_in, _ = await asyncio.gather(bench.sign_in(), bench.answered())
    assert signed_in.credential.user_handle == USER
    assert bench.stages.count(Stage.ADVERT_HEARD) == 1


@pytest.mark.threat("T9")
async def test_a_failed_attempt_does_not_end_the_listening(bench: Bench) -> None:
    await bench.register()

    async def phones() -> None:
        urls = await bench.carrier.urls
        lost = PhoneTransaction(urls["phone"]).advertise(routing_id=b"abc", tunnel_domain=DOMAIN)
        unassigned = PhoneTransaction(urls["phone"]).advertise(routing_id=b"abc", tunnel_domain=7)
        bench.air.put(lost.service_data)
        bench.air.put(unassigned.service_data)
        await bench.answered()

    signed_in, _ = await asyncio.gather(bench.sign_in(), phones())
    assert signed_in.credential.user_handle == USER
    assert Stage.ATTEMPT_FAILED in bench.stages


@pytest.mark.threat("T9")
async def test_adverts_cannot_make_it_join_many_tunnels_at_once(bench: Bench) -> None:
    async def flood(gate: Gate) -> None:
        urls = await bench.carrier.urls
        phone = PhoneTransaction(urls["phone"])
        for number in range(100):
            routing_id = number.to_bytes(3, "big")
            bench.air.put(phone.advertise(routing_id=routing_id, tunnel_domain=DOMAIN).service_data)
        await bench.air.drained()
        while gate.most < MAX_ATTEMPTS:
            gate.entered.clear()
            await gate.entered.wait()
        for _ in range(100):  # more would come now
            await asyncio.sleep(0.001)
        bench.clock.passes(TIMEOUT)

    async with Gate(bench, silent=True) as gate:
        with pytest.raises(NotApproved):
            await asyncio.gather(bench.sign_in(tunnels={DOMAIN: gate.base}), flood(gate))
    assert gate.most == MAX_ATTEMPTS


async def test_an_advert_that_is_heard_once_is_enough_when_the_tunnel_fails_at_first(bench: Bench) -> None:
    """BlueZ says an advert once, however often it hears it."""
    await bench.register()
    async with Gate(bench, refuse=2) as gate:
        signed_in, _ = await asyncio.gather(bench.sign_in(tunnels={DOMAIN: gate.base}), bench.answered())
    assert signed_in.credential.user_handle == USER
    assert bench.stages.count(Stage.ADVERT_HEARD) == 1
    assert bench.stages.count(Stage.ATTEMPT_FAILED) == 2


@pytest.mark.threat("T7")
async def test_only_what_is_strong_enough_is_heard(bench: Bench) -> None:
    await bench.register()
    strong: list[bytes] = []

    class Weak(Air):
        @contextlib.asynccontextmanager
        async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
            for rssi in (None, -81, -80):
                strong[:] = [service_data]
                self.put(Advert(service_data=service_data, rssi=rssi))
                await asyncio.sleep(0)
            yield

    async def heard_in_vain() -> None:
        answering = asyncio.create_task(bench.answered())
        await bench.air.heard.wait()
        await bench.air.drained()
        bench.clock.passes(TIMEOUT)
        await answering

    bench.air = Weak()
    bench.carrier = Carrier(bench.air)
    with pytest.raises(NotApproved, match="the last stage was submitted"):
        await asyncio.gather(bench.sign_in(min_rssi=-79), heard_in_vain())
    assert strong
    bench.carrier = Carrier(bench.air)
    heard: list[StageEvent] = []
    signed_in, _ = await asyncio.gather(bench.sign_in(min_rssi=-80, on_stage=heard.append), bench.answered())
    assert signed_in.credential.user_handle == USER
    assert [event.detail["rssi"] for event in heard if event.stage is Stage.ADVERT_HEARD] == [-80]


@pytest.mark.threat("T7")
async def test_a_tunnel_that_does_not_open_in_time_is_not_tried_again(bench: Bench) -> None:
    async def again_and_again(gate: Gate) -> None:
        urls = await bench.carrier.urls
        advert = PhoneTransaction(urls["phone"]).advertise(routing_id=b"abc", tunnel_domain=DOMAIN)
        bench.air.put(advert.service_data)
        await gate.entered.wait()
        bench.air.put(advert.service_data)
        bench.clock.passes(5)
        await bench.reached(Stage.ATTEMPT_FAILED).wait()
        for _ in range(3):
            bench.air.put(advert.service_data)
            await bench.air.drained()
            bench.clock.passes(LAST_PAUSE)
            await asyncio.sleep(0.01)
        bench.clock.passes(5 * TIMEOUT)

    async with Gate(bench, silent=True) as gate:
        with pytest.raises(NotApproved):
            await asyncio.gather(
                bench.sign_in(timeout=5 * TIMEOUT, tunnels={DOMAIN: gate.base}, join_within=5),
                again_and_again(gate),
            )
    assert gate.came == 1
    assert bench.stages.count(Stage.ADVERT_HEARD) == 1


async def test_a_radio_that_is_lost_after_the_advert_does_not_matter_yet(bench: Bench) -> None:
    await bench.register()
    lost = TransportError("gone", reason=TransportReason.NO_ADAPTER)

    async def last_advert() -> None:
        answering = asyncio.create_task(bench.answered())
        await bench.reached(Stage.ADVERT_HEARD).wait()
        bench.air.put(lost)
        await answering

    signed_in, _ = await asyncio.gather(bench.sign_in(), last_advert())
    assert signed_in.credential.user_handle == USER
    bench.carrier = Carrier(bench.air)
    bench.air.put(lost)
    with pytest.raises(TransportError) as caught:
        await bench.sign_in()
    assert caught.value is lost


async def test_options_are_asked_for_when_the_phone_is_there(bench: Bench) -> None:
    await bench.register()

    async def options() -> dict[str, Any]:
        assert bench.stages[-1] is Stage.CHANNEL_OPEN
        return {"publicKey": REQUEST}

    ask = Ask(kind=RequestKind.GET_ASSERTION, origin=ORIGIN, rp_id="login.example")
    signed_in, _ = await asyncio.gather(bench.sign_in(ask, options), bench.answered())
    assert signed_in.credential.user_handle == USER


@pytest.mark.threat("T14")
async def test_an_origin_of_another_domain_needs_the_rp_ids_word(bench: Bench) -> None:
    await bench.register()
    document = b'{"origins": ["https://login.other"]}'
    related = RelatedOrigins.parse(document, rp_id="login.example")

    async def late() -> dict[str, Any]:
        return REQUEST

    ask = Ask(
        kind=RequestKind.GET_ASSERTION, origin="https://login.other", rp_id="login.example", related=related
    )
    signed_in, _ = await asyncio.gather(bench.sign_in(ask, late), bench.answered())
    client_data = from_base64url(signed_in.credential.response["response"]["clientDataJSON"])
    assert b'"origin":"https://login.other"' in client_data
    bench.carrier = Carrier(bench.air)
    with pytest.raises(RemoteProtocolError, match="does not belong"):
        await asyncio.gather(bench.sign_in(replace(ask, related=None), late), bench.answered())


async def test_what_the_phone_says_of_itself_is_told_when_the_channel_is_open(bench: Bench) -> None:
    await bench.register()
    events: list[StageEvent] = []
    await asyncio.gather(bench.sign_in(on_stage=events.append), bench.answered())
    (said,) = (event for event in events if event.phone is not None)
    assert said.stage is Stage.CHANNEL_OPEN
    assert said.phone == SoftwareKey().info


@pytest.mark.threat("T4")
@pytest.mark.parametrize(
    ("ask", "options"),
    [
        (
            Ask(kind=RequestKind.GET_ASSERTION, origin=ORIGIN, rp_id="login.example"),
            {**REQUEST, "rpId": None},
        ),
        (
            Ask(kind=RequestKind.MAKE_CREDENTIAL, origin=ORIGIN, rp_id="login.example", user_handle=b"eve"),
            CREATION,
        ),
    ],
    ids=["another relying party", "another user"],
)
async def test_options_that_differ_from_what_was_announced_are_refused(
    bench: Bench, ask: Ask, options: dict[str, Any]
) -> None:
    ask = Ask(
        kind=ask.kind, origin="https://www.login.example", rp_id="login.example", user_handle=ask.user_handle
    )

    async def late() -> dict[str, Any]:
        return options

    with pytest.raises(TrustError) as refusal:
        await asyncio.gather(bench.sign_in(ask, late), bench.answered())
    assert refusal.value.reason is TrustReason.OPTIONS_DIFFER
    assert Stage.REQUEST_SENT not in bench.stages
    assert bench.carrier.finished == [(DeviceEvent.FAILED, "options-differ")]


@pytest.mark.threat("T3")
async def test_a_passkey_of_another_account_is_refused(bench: Bench) -> None:
    await bench.register()
    known = AuthenticationOptions.parse(REQUEST, origin=ORIGIN)
    settled: list[Credential] = []

    async def settle(credential: Credential) -> None:
        settled.append(credential)

    with pytest.raises(TrustError) as refusal:
        await asyncio.gather(
            bench.sign_in(Ask.of(known, user_handle=b"eve"), known, settle=settle), bench.answered()
        )
    assert refusal.value.reason is TrustReason.UNEXPECTED_USER
    assert not settled


@pytest.mark.threat("T3")
async def test_the_expected_account_is_accepted_and_said_to_be_checked(bench: Bench) -> None:
    await bench.register()
    known = AuthenticationOptions.parse(REQUEST, origin=ORIGIN)
    signed_in, _ = await asyncio.gather(
        bench.sign_in(Ask.of(known, user_handle=USER), known), bench.answered()
    )
    assert signed_in.user_checked


@dataclass
class Pins:
    """Pinned users in memory, which refuse everybody but theirs."""

    known: bytes | None
    checked: list[bytes | None] = field(default_factory=list)
    settled: list[bool] = field(default_factory=list)  # whether the user was expected

    def check(self, handle: bytes | None) -> bool:
        self.checked.append(handle)
        if self.known not in (None, handle):
            raise TrustError(TrustReason.UNEXPECTED_USER, "not pinned")
        return self.known is not None

    async def settle(
        self, credential: Credential, settle: Callable[[Credential], Awaitable[T]], *, expected: bool
    ) -> T:
        self.settled.append(expected)
        return await settle(credential)


async def accept_it(_credential: Credential) -> str:
    return "accepted"


@pytest.mark.threat("T3")
@pytest.mark.parametrize("known", [None, USER], ids=["nobody yet", "the user"])
async def test_pinned_users_judge_who_answers_and_hear_what_the_relying_party_says(
    bench: Bench, known: bytes | None
) -> None:
    await bench.register()
    pins = Pins(known)
    ended, _ = await asyncio.gather(bench.sign_in(users=pins, settle=accept_it), bench.answered())
    assert isinstance(ended, Settled)
    assert ended.result == "accepted"
    assert (pins.checked, pins.settled) == ([USER], [False])
    assert ended.user_checked is (known is not None)


@pytest.mark.threat("T3")
async def test_a_user_who_is_not_pinned_is_refused_before_anything_is_handed_in(bench: Bench) -> None:
    await bench.register()
    pins = Pins(b"eve")
    with pytest.raises(TrustError) as refused:
        await asyncio.gather(bench.sign_in(users=pins, settle=accept_it), bench.answered())
    assert refused.value.reason is TrustReason.UNEXPECTED_USER
    assert pins.settled == []
    assert bench.carrier.finished == [(DeviceEvent.FAILED, "unexpected-user")]


@pytest.mark.threat("T3")
@pytest.mark.parametrize("how", ["a handle", "an allow list"])
async def test_pinned_users_have_no_say_where_somebody_is_expected_otherwise(bench: Bench, how: str) -> None:
    registered = await bench.register()
    allowed = {"allowCredentials": [{"type": "public-key", "id": registered.credential.response["id"]}]}
    options = REQUEST if how == "a handle" else REQUEST | allowed
    known = AuthenticationOptions.parse(options, origin=ORIGIN)
    ask = Ask.of(known, user_handle=USER if how == "a handle" else None)
    pins = Pins(b"eve")
    ended, _ = await asyncio.gather(bench.sign_in(ask, known, users=pins, settle=accept_it), bench.answered())
    assert ended.user_checked
    assert (pins.checked, pins.settled) == ([], [True])


@pytest.mark.threat("T3")
@pytest.mark.parametrize("late", [False, True], ids=["known options", "late options"])
async def test_a_registration_of_a_user_who_is_not_pinned_makes_no_passkey(
    bench: Bench, *, late: bool
) -> None:
    known = RegistrationOptions.parse(CREATION, origin=ORIGIN)

    async def begin() -> RegistrationOptions:
        return known

    phone = asyncio.create_task(bench.answered()) if late else None
    with pytest.raises(TrustError) as refused:
        await bench.sign_in(Ask.of(known), begin if late else known, users=Pins(b"eve"), settle=accept_it)
    assert refused.value.reason is TrustReason.UNEXPECTED_USER
    assert Stage.REQUEST_SENT not in bench.stages
    assert not (bench.folder / "passkeys.json").exists()
    if phone is None:
        assert bench.stages == []
    else:
        await phone


async def test_a_no_of_the_phone_is_a_ctap_error(bench: Bench) -> None:
    await bench.register()
    with pytest.raises(CtapError, match="OPERATION_DENIED"):
        await asyncio.gather(bench.sign_in(), bench.answered(yes=False))
    assert bench.carrier.finished == [(DeviceEvent.FAILED, "CTAP2_ERR_OPERATION_DENIED")]


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_the_end_of_the_request_ends_the_ceremony(bench: Bench, outcome: Outcome) -> None:
    bench.carrier.states.put_nowait(Progress(state=RequestState.DELIVERED))
    bench.carrier.states.put_nowait(NotApproved(outcome, "over"))
    with pytest.raises(NotApproved) as end:
        await bench.sign_in()
    assert end.value.reason is outcome
    assert not bench.air.listening


@pytest.mark.threat("T5")
async def test_only_the_claimer_may_go_on(bench: Bench) -> None:
    await bench.register()
    bench.carrier = Carrier(bench.air, ("honest", "greedy"))
    bench.carrier.states.put_nowait(Progress(state=RequestState.CLAIMED, claimed_by="honest"))

    async def phones() -> None:
        await bench.reached(Stage.CLAIMED).wait()
        greedy = asyncio.create_task(bench.answered(recipient="greedy"))
        await bench.answered(recipient="honest")
        greedy.cancel()

    signed_in, _ = await asyncio.gather(bench.sign_in(), phones())
    assert signed_in.credential.user_handle == USER
    assert bench.stages.count(Stage.ADVERT_HEARD) == 1


@pytest.mark.threat("T5")
async def test_adverts_for_others_than_the_claimer_do_not_use_up_what_is_remembered(bench: Bench) -> None:
    await bench.register()
    bench.carrier = Carrier(bench.air, ("honest", "greedy"))

    async def phones() -> None:
        greedy = PhoneTransaction((await bench.carrier.urls)["greedy"])
        for number in range(MAX_ADVERTS):
            routing_id = number.to_bytes(3, "big")
            bench.air.put(greedy.advertise(routing_id=routing_id, tunnel_domain=DOMAIN).service_data)
        await bench.air.drained()
        bench.carrier.states.put_nowait(Progress(state=RequestState.CLAIMED, claimed_by="honest"))
        await bench.reached(Stage.CLAIMED).wait()
        await bench.answered(recipient="honest")

    signed_in, _ = await asyncio.gather(bench.sign_in(), phones())
    assert signed_in.credential.user_handle == USER


def refusal(recipient: str, reason: str) -> Refusal:
    return Refusal(companion=recipient, label=f"{recipient}'s phone", reason=reason)


async def test_the_others_come_back_when_the_claim_is_gone(bench: Bench) -> None:
    await bench.register()
    bench.carrier = Carrier(bench.air, ("anna", "bert"))

    async def phones() -> None:
        bench.carrier.states.put_nowait(Progress(state=RequestState.CLAIMED, claimed_by="anna"))
        await bench.reached(Stage.CLAIMED).wait()
        bench.carrier.states.put_nowait(
            Progress(state=RequestState.DELIVERED, refusals=(refusal("anna", "vanished"),))
        )
        await bench.reached(Stage.DELIVERED).wait()
        bench.carrier.states.put_nowait(
            Progress(state=RequestState.CLAIMED, claimed_by="bert", refusals=(refusal("anna", "vanished"),))
        )
        await bench.answered(recipient="bert")

    signed_in, _ = await asyncio.gather(bench.sign_in(), phones())
    assert signed_in.credential.user_handle == USER
    assert bench.stages[2:6] == [Stage.CLAIMED, Stage.REFUSED, Stage.DELIVERED, Stage.CLAIMED]


async def test_what_was_heard_of_another_while_it_was_aside_is_pursued_when_the_claim_is_gone(
    bench: Bench,
) -> None:
    """BlueZ says an advert once, however often it hears it."""
    await bench.register()
    bench.carrier = Carrier(bench.air, ("anna", "bert"))

    async def phones() -> None:
        bench.carrier.states.put_nowait(Progress(state=RequestState.CLAIMED, claimed_by="anna"))
        await bench.reached(Stage.CLAIMED).wait()
        answering = asyncio.create_task(bench.answered(recipient="bert"))
        await bench.air.heard.wait()
        await bench.air.drained()
        assert Stage.ADVERT_HEARD not in bench.stages
        bench.carrier.states.put_nowait(Progress(state=RequestState.DELIVERED))
        await answering

    signed_in, _ = await asyncio.gather(bench.sign_in(), phones())
    assert signed_in.credential.user_handle == USER
    assert bench.stages.count(Stage.ADVERT_HEARD) == 1


@pytest.mark.threat("T5")
async def test_a_claim_takes_the_others_out_of_their_tunnels(bench: Bench) -> None:
    await bench.register()
    bench.carrier = Carrier(bench.air, ("honest", "greedy"))

    async def phones(gate: Gate) -> None:
        greedy = PhoneTransaction((await bench.carrier.urls)["greedy"])
        bench.air.put(greedy.advertise(routing_id=b"abc", tunnel_domain=DOMAIN + 1).service_data)
        await gate.entered.wait()
        bench.carrier.states.put_nowait(Progress(state=RequestState.CLAIMED, claimed_by="honest"))
        await gate.left.wait()
        await bench.answered(recipient="honest")

    async with Gate(bench, silent=True) as gate:
        tunnels = {DOMAIN: bench.base, DOMAIN + 1: gate.base}
        signed_in, _ = await asyncio.gather(bench.sign_in(tunnels=tunnels), phones(gate))
    assert signed_in.credential.user_handle == USER


async def test_each_refusal_is_told_at_once_with_who_and_why(bench: Bench) -> None:
    bench.carrier = Carrier(bench.air, ("anna", "bert"))
    events: list[StageEvent] = []
    skewed, vanished = refusal("anna", "clock-skew"), refusal("bert", "vanished")
    for progress in (
        Progress(state=RequestState.DELIVERED, refusals=(skewed,)),
        Progress(state=RequestState.CLAIMED, claimed_by="bert", refusals=(skewed,)),
        Progress(state=RequestState.DELIVERED, refusals=(skewed, vanished)),
        Progress(state=RequestState.CLAIMED, claimed_by="bert", refusals=(skewed,)),
        Progress(state=RequestState.DELIVERED, refusals=(skewed, vanished)),
    ):
        bench.carrier.states.put_nowait(progress)
    bench.carrier.states.put_nowait(TrustError(TrustReason.CLOCK_SKEW, "over"))
    with pytest.raises(TrustError):
        await bench.sign_in(on_stage=events.append)
    told = [event for event in events if event.stage is Stage.REFUSED]
    assert [event.refusal for event in told] == [skewed, vanished, vanished]
    assert told[0].detail == {"companion": "anna", "label": "anna's phone", "reason": "clock-skew"}


async def test_a_deadline_says_who_had_refused(bench: Bench) -> None:
    for seconds in (0.2, 2, 20):  # as long as this machine takes to come that far
        bench.carrier = Carrier(bench.air)
        skewed = Progress(state=RequestState.DELIVERED, refusals=(refusal("phone", "clock-skew"),))
        bench.carrier.states.put_nowait(skewed)
        with pytest.raises(NotApproved) as caught:
            await bench.sign_in(timeout=seconds)
        if Stage.DELIVERED in bench.stages:
            break
    assert 'the last stage was delivered; "phone\'s phone" refuses the request' in str(caught.value)


@pytest.mark.threat("T5")
async def test_a_companion_that_refused_has_no_phone_that_may_answer(bench: Bench) -> None:
    await bench.register()
    bench.carrier = Carrier(bench.air, ("anna", "bert"))
    bench.carrier.states.put_nowait(
        Progress(state=RequestState.DELIVERED, refusals=(refusal("anna", "clock-skew"),))
    )

    async def phones() -> None:
        await bench.reached(Stage.REFUSED).wait()
        anna = asyncio.create_task(bench.answered(recipient="anna"))
        await bench.air.heard.wait()
        await bench.air.drained()
        await bench.answered(recipient="bert")
        anna.cancel()

    signed_in, _ = await asyncio.gather(bench.sign_in(), phones())
    assert signed_in.credential.user_handle == USER
    assert bench.stages.count(Stage.ADVERT_HEARD) == 1


@pytest.mark.threat("T2")
async def test_a_membership_that_nobody_confirmed_is_told_once(bench: Bench) -> None:
    events: list[StageEvent] = []
    silent = Unconfirmed(companion="tablet", label="the tablet", days=9)
    for state in (RequestState.PENDING, RequestState.DELIVERED):
        bench.carrier.states.put_nowait(Progress(state=state, unconfirmed=silent))
    bench.carrier.states.put_nowait(NotApproved(Outcome.DECLINED, "over"))
    with pytest.raises(NotApproved):
        await bench.sign_in(on_stage=events.append)
    (told,) = (event for event in events if event.stage is Stage.RING_UNCONFIRMED)
    assert told.detail == {"companion": "tablet", "label": "the tablet", "days": 9}


def pushes(**outcomes: str) -> tuple[Notified, ...]:
    """By the companion's name; the channel of one that was waiting is its inbox."""
    return tuple(
        Notified(
            companion=name,
            label=f"the {name}",
            channel="inbox" if outcome == "waiting" else "fcm",
            outcome="sent" if outcome == "waiting" else outcome,
        )
        for name, outcome in outcomes.items()
    )


PENDING, DELIVERED = RequestState.PENDING, RequestState.DELIVERED


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([(PENDING, ())], ["not-notified"]),
        ([(PENDING, pushes(phone="failed", tablet="gone"))] * 2, ["not-notified"]),
        ([(PENDING, pushes(phone="pending")), (PENDING, pushes(phone="late"))], ["not-notified"]),
        ([(PENDING, pushes(phone="pending")), (PENDING, pushes(phone="sent"))], ["the phone"]),
        ([(PENDING, pushes(phone="sent", tablet="failed"))] * 2, ["the phone"]),
        ([(PENDING, pushes(phone="sent", tablet="sent"))], ["the phone", "the tablet"]),
        ([(PENDING, pushes(phone="waiting"))], []),
        ([(DELIVERED, ())], []),
        ([(PENDING, None)], []),
    ],
    ids=[
        "no channel",
        "all failed",
        "failed later",
        "sent",
        "one of two",
        "both",
        "waiting",
        "delivered",
        "unknown",
    ],
)
async def test_who_was_notified_is_told_once_and_that_nobody_was(
    bench: Bench, steps: list[tuple[RequestState, tuple[Notified, ...] | None]], told: list[str]
) -> None:
    events: list[StageEvent] = []
    for state, notified in steps:
        bench.carrier.states.put_nowait(Progress(state=state, notified=notified))
    bench.carrier.states.put_nowait(NotApproved(Outcome.DECLINED, "over"))
    with pytest.raises(NotApproved):
        await bench.sign_in(on_stage=events.append)
    about = [event for event in events if event.stage in (Stage.NOTIFIED, Stage.NOT_NOTIFIED)]
    assert [event.detail.get("label", str(event.stage)) for event in about] == told
    assert all(event.detail["channel"] == "fcm" for event in about if event.stage is Stage.NOTIFIED)


@pytest.mark.threat("T16")
async def test_rings_that_the_relay_has_forgotten_are_told_once(bench: Bench) -> None:
    events: list[StageEvent] = []
    given = ForgottenRings(first=5, last=7, given=True)
    kept_out = ForgottenRings(first=5, last=7, given=False, why_not="rate-limited")
    for lost in (None, given, given, kept_out):
        bench.carrier.states.put_nowait(Progress(state=RequestState.PENDING, forgotten=lost))
    bench.carrier.states.put_nowait(NotApproved(Outcome.DECLINED, "over"))
    with pytest.raises(NotApproved):
        await bench.sign_in(on_stage=events.append)
    assert [event.detail for event in events if event.stage is Stage.RELAY_FORGOT_RINGS] == [
        {"first": 5, "last": 7, "given": True},
        {"first": 5, "last": 7, "given": False, "reason": "rate-limited"},
    ]


# The claim, where the delivery knows of claims


def claimed(by: str | None) -> Progress:
    return Progress(state=RequestState.CLAIMED if by else RequestState.DELIVERED, claimed_by=by)


@pytest.mark.threat("T3")
async def test_the_command_goes_out_once_the_companion_has_claimed(bench: Bench) -> None:
    await bench.register()
    bench.carrier = Carrier(bench.air, needs_claim=True)

    async def claim_later() -> None:
        await bench.reached(Stage.CHANNEL_OPEN).wait()
        bench.carrier.states.put_nowait(claimed(None))
        await bench.reached(Stage.DELIVERED).wait()
        assert bench.stages[-2:] == [Stage.CHANNEL_OPEN, Stage.DELIVERED]
        assert bench.air.listening  # another companion may still claim
        bench.carrier.states.put_nowait(claimed("phone"))

    signed_in, *_ = await asyncio.gather(bench.sign_in(), bench.answered(), claim_later())
    assert signed_in.credential.user_handle == USER
    sent = bench.stages.index(Stage.REQUEST_SENT)
    assert bench.stages[sent - 1] is Stage.CLAIMED


@pytest.mark.threat("T3")
@pytest.mark.parametrize("end", ["deadline", "request expired", "radio"])
async def test_a_phone_whose_companion_never_claims_gets_no_command(
    bench: Bench, tunnels: Tunnels, end: str
) -> None:
    await bench.register()
    tunnels.opened = tunnels.closed = 0
    bench.carrier = Carrier(bench.air, needs_claim=True)
    ends = {
        "deadline": lambda: bench.clock.passes(5 * TIMEOUT),
        "request expired": lambda: bench.carrier.states.put_nowait(
            NotApproved(Outcome.EXPIRED, "nobody approved in time")
        ),
        "radio": lambda: bench.air.put(TransportError("gone", reason=TransportReason.NO_ADAPTER)),
    }

    async def never_claims() -> None:
        await bench.reached(Stage.CHANNEL_OPEN).wait()
        bench.clock.passes(CLAIM_TIMEOUT)
        await bench.reached(Stage.ATTEMPT_FAILED).wait()
        ends[end]()

    answering = asyncio.create_task(bench.answered())
    with pytest.raises(TrustError, match="had not claimed") as caught:
        await asyncio.gather(bench.sign_in(timeout=5 * TIMEOUT), never_claims())
    assert caught.value.reason is TrustReason.NOT_CLAIMED
    assert Stage.REQUEST_SENT not in bench.stages
    assert (tunnels.opened, tunnels.closed) == (1, 1)
    await answering


@pytest.mark.threat("T3")
@pytest.mark.parametrize("end", ["deadline", "relay"])
@pytest.mark.parametrize(
    ("learns", "accused"),
    [
        ("that it claimed", False),
        ("that another claimed", True),
        ("nothing", False),
    ],
)
async def test_of_whom_no_claim_was_heard_it_is_not_said_that_they_did_not_claim(
    bench: Bench, end: str, learns: str, *, accused: bool
) -> None:
    """The connection to the relay was cut; what it says when the device tells it the end is the last word."""
    await bench.register()
    bench.carrier = Carrier(bench.air, ("phone", "tablet"), needs_claim=True)
    bench.carrier.held_by = {"that it claimed": "phone", "that another claimed": "tablet"}.get(learns)
    bench.carrier.gone = learns == "nothing"

    async def hears_no_claim() -> None:
        await bench.reached(Stage.CHANNEL_OPEN).wait()
        if end == "deadline":
            bench.clock.passes(TIMEOUT)
        else:
            bench.carrier.states.put_nowait(TransportError("the relay is away"))

    answering = asyncio.create_task(bench.answered())
    with pytest.raises(HeadlessPasskeyError) as caught:
        await asyncio.gather(bench.sign_in(), hears_no_claim())
    expected = TrustError if accused else NotApproved if end == "deadline" else TransportError
    assert type(caught.value) is expected
    assert Stage.REQUEST_SENT not in bench.stages
    await answering


@pytest.mark.threat("T3")
@pytest.mark.parametrize("end", ["deadline", "relay"])
async def test_of_whose_claim_was_given_back_it_is_not_said_that_there_was_none(
    bench: Bench, end: str
) -> None:
    """The phone came before the device heard of the claim, and its companion gave the claim back."""
    await bench.register()
    bench.carrier = Carrier(bench.air, ("anna", "bert"), needs_claim=True)

    async def claims_late_and_for_a_while() -> None:
        await bench.reached(Stage.CHANNEL_OPEN).wait()
        bench.clock.passes(CLAIM_TIMEOUT)
        await bench.reached(Stage.ATTEMPT_FAILED).wait()
        bench.carrier.states.put_nowait(claimed("anna"))
        await bench.reached(Stage.CLAIMED).wait()
        bench.carrier.states.put_nowait(claimed(None))
        await bench.reached(Stage.DELIVERED).wait()
        if end == "deadline":
            bench.clock.passes(5 * TIMEOUT)
        else:
            bench.carrier.states.put_nowait(TransportError("the relay is away"))

    answering = asyncio.create_task(bench.answered(recipient="anna"))
    with pytest.raises(HeadlessPasskeyError) as caught:
        await asyncio.gather(bench.sign_in(timeout=5 * TIMEOUT), claims_late_and_for_a_while())
    assert type(caught.value) is (NotApproved if end == "deadline" else TransportError)
    assert Stage.REQUEST_SENT not in bench.stages
    await answering


@pytest.mark.threat("T3")
@pytest.mark.threat("T5")
async def test_a_companion_that_does_not_claim_keeps_nobody_else_from_it(bench: Bench) -> None:
    await bench.register()
    bench.carrier = Carrier(bench.air, ("rogue", "honest"), needs_claim=True)

    async def phones() -> None:
        rogue = asyncio.create_task(bench.answered(recipient="rogue"))
        await bench.reached(Stage.CHANNEL_OPEN).wait()
        bench.carrier.states.put_nowait(claimed("honest"))
        await rogue  # the device has left its tunnel
        assert Stage.REQUEST_SENT not in bench.stages
        await bench.answered(recipient="honest")

    signed_in, _ = await asyncio.gather(bench.sign_in(), phones())
    assert signed_in.credential.user_handle == USER
    assert bench.stages.count(Stage.CHANNEL_OPEN) == 2


@pytest.mark.threat("T3")
async def test_a_companion_has_one_channel_before_it_claims_and_another_one_after(bench: Bench) -> None:
    await bench.register()
    bench.carrier = Carrier(bench.air, needs_claim=True)

    async def phones() -> None:
        first = asyncio.create_task(bench.answered())
        await bench.reached(Stage.CHANNEL_OPEN).wait()
        bench.clock.passes(CLAIM_TIMEOUT)
        await bench.reached(Stage.ATTEMPT_FAILED).wait()
        await first
        bench.air.heard.clear()
        second = asyncio.create_task(bench.answered())
        await bench.air.heard.wait()
        await bench.air.drained()
        assert bench.stages.count(Stage.ADVERT_HEARD) == 1
        bench.carrier.states.put_nowait(claimed("phone"))
        await second

    signed_in, _ = await asyncio.gather(bench.sign_in(timeout=5 * TIMEOUT), phones())
    assert signed_in.credential.user_handle == USER


@pytest.mark.threat("T3")
async def test_adverts_of_a_companion_whose_channel_waits_for_the_claim_are_kept_for_later(
    bench: Bench,
) -> None:
    await bench.register()
    bench.carrier = Carrier(bench.air, needs_claim=True)

    async def phones() -> None:
        held = asyncio.create_task(bench.answered())
        await bench.reached(Stage.CHANNEL_OPEN).wait()
        other = PhoneTransaction((await bench.carrier.urls)["phone"])
        bench.air.put(other.advertise(routing_id=b"abc", tunnel_domain=DOMAIN + 1).service_data)
        await bench.air.drained()
        assert bench.stages.count(Stage.ADVERT_HEARD) == 1
        bench.carrier.states.put_nowait(claimed("phone"))
        await held

    async with Gate(bench, silent=True) as gate:
        tunnels = {DOMAIN: bench.base, DOMAIN + 1: gate.base}
        signed_in, _ = await asyncio.gather(bench.sign_in(tunnels=tunnels), phones())
    assert signed_in.credential.user_handle == USER
    assert bench.stages.count(Stage.CHANNEL_OPEN) == 1


@pytest.mark.threat("T3")
async def test_of_two_channels_that_open_at_once_before_the_claim_one_is_held(
    bench: Bench, loopback_certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.register()
    bench.carrier = Carrier(bench.air, needs_claim=True)
    both_joined = asyncio.Barrier(2)
    shake_hands = PhoneChannel.open

    async def together(*tunnel: Any, **of: Any) -> Any:
        await both_joined.wait()
        return await shake_hands(*tunnel, **of)

    async def phones(elsewhere: str) -> None:
        url = (await bench.carrier.urls)["phone"].encode()
        answering = [asyncio.create_task(bench.phone().answer(url, timeout=20))]
        other = replace(bench.phone(), tunnel_service=TunnelService(number=DOMAIN + 1, base=elsewhere))
        answering.append(asyncio.create_task(other.answer(url, timeout=20)))
        await bench.reached(Stage.ATTEMPT_FAILED).wait()
        assert bench.stages.count(Stage.CHANNEL_OPEN) == 1
        bench.carrier.states.put_nowait(claimed("phone"))
        await asyncio.wait(answering, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*answering, return_exceptions=True)

    monkeypatch.setattr(PhoneChannel, "open", together)
    async with tunnel_service(loopback_certificate) as elsewhere:
        tunnels = {DOMAIN: bench.base, DOMAIN + 1: elsewhere}
        signed_in, _ = await asyncio.gather(bench.sign_in(tunnels=tunnels), phones(elsewhere))
    assert signed_in.credential.user_handle == USER
    assert bench.stages.count(Stage.REQUEST_SENT) == 1


# A phone that was reached, and whose companion loses the claim

LATE: Ask = Ask(kind=RequestKind.GET_ASSERTION, origin=ORIGIN, rp_id="login.example")  # options come later


@dataclass
class Couple:
    """A bench with two companions, Anna and Bert; Anna has the claim, and her phone answers."""

    bench: Bench
    events: list[StageEvent] = field(default_factory=list)
    begun: int = 0  # how often the relying party was asked for options
    anna: "asyncio.Task[None] | None" = None

    @classmethod
    async def of(cls, bench: Bench) -> Self:
        await bench.register()
        bench.carrier = Carrier(bench.air, ("anna", "bert"), needs_claim=True)
        return cls(bench)

    async def sign_in(self, meanwhile: Awaitable[None], **more: Any) -> CeremonyResult:
        """The ceremony, in which Anna's phone asks its user for ever."""

        async def options() -> dict[str, Any]:
            self.begun += 1
            return REQUEST

        def on_stage(event: StageEvent) -> None:
            self.events.append(event)
            self.bench._on_stage(event)

        self.bench.carrier.states.put_nowait(claimed("anna"))
        self.anna = asyncio.create_task(self._answers_never("anna"))
        acting = asyncio.ensure_future(meanwhile)
        try:
            signed_in = await self.bench.sign_in(
                LATE, **{"options": options, "timeout": 20 * TIMEOUT, "on_stage": on_stage, **more}
            )
            await acting
        finally:
            acting.cancel()
            self.anna.cancel()
            await asyncio.wait({acting, self.anna})
        return signed_in

    async def _answers_never(self, who: str) -> None:
        async def never(_question: Question) -> int:
            return await asyncio.Future()

        url = (await self.bench.carrier.urls)[who].encode()
        await replace(self.bench.phone(), verify_user=never).answer(url, timeout=20)

    async def says(self, progress: Progress) -> None:
        """Let the relay say so, until the ceremony has heard it."""
        self.bench.carrier.states.put_nowait(progress)
        while not self.bench.carrier.states.empty():  # noqa: ASYNC110  who has taken it acts before others run
            await asyncio.sleep(0)

    async def bert_takes_over(self, *refusals: Refusal) -> None:
        await self.says(replace(claimed("bert"), refusals=refusals))
        await self.bench.answered(recipient="bert")

    @property
    def why_left(self) -> list[str]:
        return [event.detail["why"] for event in self.events if event.stage is Stage.ATTEMPT_FAILED]


@pytest.fixture
async def couple(bench: Bench) -> Couple:
    return await Couple.of(bench)


def lost_by_anna(reason: str) -> Progress:
    return replace(claimed(None), refusals=(refusal("anna", reason),))


@pytest.mark.threat("T3")
@pytest.mark.threat("T5")
@pytest.mark.parametrize("lost", [None, "vanished", "interrupted", "removed"])
async def test_whoever_takes_over_while_a_phone_asks_its_user_is_signed_in(
    couple: Couple, lost: str | None
) -> None:
    async def meanwhile() -> None:
        await couple.bench.reached(Stage.REQUEST_SENT).wait()
        if lost is None:
            await couple.bert_takes_over()
        else:
            await couple.says(lost_by_anna(lost))
            await couple.bert_takes_over(*lost_by_anna(lost).refusals)

    signed_in = await couple.sign_in(meanwhile())
    assert signed_in.credential.user_handle == USER
    assert couple.anna is not None
    with pytest.raises(
        NotApproved, match="said goodbye before it was answered"
    ):  # its question is taken back
        couple.anna.result()
    stages = couple.bench.stages
    assert stages.count(Stage.REQUEST_SENT) == 2
    assert couple.begun == 2  # each phone signs a challenge of its own
    (why,) = couple.why_left
    assert ("another companion has the claim now" in why) is (lost in (None, "vanished"))


async def test_a_phone_that_was_heard_before_the_other_one_was_left_is_pursued_then(
    couple: Couple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BlueZ says an advert once, however often it hears it."""
    asks_for_ever, air = Couple._answers_never, couple.bench.air

    async def after_bert(self: Couple, who: str) -> None:
        await air.heard.wait()
        await air.drained()
        await asks_for_ever(self, who)

    async def meanwhile() -> None:
        bert = asyncio.create_task(couple.bench.answered(recipient="bert"))
        await couple.bench.reached(Stage.REQUEST_SENT).wait()
        await couple.says(claimed("bert"))
        await bert

    monkeypatch.setattr(Couple, "_answers_never", after_bert)
    assert (await couple.sign_in(meanwhile())).credential.user_handle == USER


@pytest.mark.threat("T3")
async def test_whoever_takes_over_before_the_command_is_signed_in_and_the_other_phone_gets_none(
    couple: Couple,
) -> None:
    async def options() -> dict[str, Any]:
        if not couple.why_left:
            await couple.says(claimed("bert"))
        return REQUEST

    async def meanwhile() -> None:
        await couple.bench.reached(Stage.ATTEMPT_FAILED).wait()
        await couple.bench.answered(recipient="bert")

    signed_in = await couple.sign_in(meanwhile(), options=options)
    assert signed_in.credential.user_handle == USER
    assert couple.bench.stages.count(Stage.REQUEST_SENT) == 1
    assert couple.bench.stages.count(Stage.CHANNEL_OPEN) == 2


@pytest.mark.threat("T3")
@pytest.mark.parametrize("back", [False, True], ids=["another one's", "back in time"])
async def test_a_claim_that_is_gone_before_the_command_is_waited_for(couple: Couple, *, back: bool) -> None:
    async def options() -> dict[str, Any]:
        if not couple.why_left:
            await couple.says(lost_by_anna(VANISHED))
            asyncio.get_running_loop().call_soon(passes)
        return REQUEST

    def passes() -> None:
        if back:
            couple.bench.carrier.states.put_nowait(claimed("anna"))
        else:
            couple.bench.clock.passes(CLAIM_TIMEOUT)

    async def meanwhile() -> None:
        if back:
            await couple.bench.reached(Stage.REQUEST_SENT).wait()
            assert couple.why_left == []
            await couple.bert_takes_over()
        else:
            await couple.bench.reached(Stage.ATTEMPT_FAILED).wait()
            assert Stage.REQUEST_SENT not in couple.bench.stages
            await couple.bert_takes_over()

    assert (await couple.sign_in(meanwhile(), options=options)).credential.user_handle == USER
    if not back:
        (why,) = couple.why_left
        assert "has lost its claim" in why
        assert why.endswith('"anna\'s phone" has vanished')


@pytest.mark.threat("T3")
@pytest.mark.threat("T5")
async def test_a_reply_that_comes_after_another_ones_claim_is_not_taken(
    couple: Couple, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies, reply = [], PhoneChannel.reply

    async def late(phone: PhoneChannel) -> Ctap:
        came = await reply(phone)
        replies.append(phone.recipient)
        if phone.recipient == "anna":
            await couple.says(claimed("bert"))
        return came

    async def meanwhile() -> None:
        await couple.bench.reached(Stage.ATTEMPT_FAILED).wait()
        await couple.bench.answered(recipient="bert")

    monkeypatch.setattr(PhoneChannel, "reply", late)
    monkeypatch.setattr(Couple, "_answers_never", lambda self, who: self.bench.answered(recipient=who))
    assert (await couple.sign_in(meanwhile())).credential.user_handle == USER
    assert replies == ["anna", "bert"]
    assert couple.bench.stages.count(Stage.REPLY_CHECKED) == 1


@pytest.mark.threat("T3")
async def test_a_phone_answers_without_its_companion_while_nobody_else_has_the_claim(
    couple: Couple, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = PhoneChannel.reply

    async def late(phone: PhoneChannel) -> Ctap:
        came = await reply(phone)
        await couple.says(lost_by_anna(VANISHED))
        return came

    async def nothing() -> None:
        pass

    monkeypatch.setattr(PhoneChannel, "reply", late)
    monkeypatch.setattr(Couple, "_answers_never", lambda self, who: self.bench.answered(recipient=who))
    assert (await couple.sign_in(nothing())).credential.user_handle == USER
    assert couple.why_left == []


async def test_of_a_phone_that_hangs_up_since_its_companion_was_ended_another_one_takes_over(
    couple: Couple,
) -> None:
    """The phone is in the companion: it hangs up before the relay has its companion's word."""

    async def meanwhile() -> None:
        await couple.bench.reached(Stage.REQUEST_SENT).wait()
        assert couple.anna is not None
        couple.anna.cancel()
        await asyncio.wait({couple.anna})
        await couple.says(claimed(None))
        await couple.says(lost_by_anna("interrupted"))
        await couple.bert_takes_over()

    assert (await couple.sign_in(meanwhile())).credential.user_handle == USER
    assert len(couple.why_left) == 1


@pytest.mark.parametrize("then", ["silence", "its companion's word", "nobody else"])
async def test_a_phone_that_hangs_up_while_its_companion_has_the_claim_ends_the_ceremony(
    couple: Couple, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, states = PhoneChannel.reply, couple.bench.carrier.states
    if then == "nobody else":
        couple.bench.carrier = Carrier(couple.bench.air, ("anna",), needs_claim=True)
    elif then == "silence":
        monkeypatch.setattr("headless_passkey.ceremony.HUNG_UP_TIMEOUT", 0)

    async def fails(phone: PhoneChannel) -> Ctap:
        try:
            return await reply(phone)
        except TransportError:
            if then == "its companion's word":
                states.put_nowait(TransportError("could not hand the request to the phone"))
            raise

    monkeypatch.setattr(PhoneChannel, "reply", fails)

    async def meanwhile() -> None:
        await couple.bench.reached(Stage.REQUEST_SENT).wait()
        assert couple.anna is not None
        couple.anna.cancel()
        await asyncio.wait({couple.anna})

    with pytest.raises(TransportError, match=r"the other end closed the tunnel|broke off") as caught:
        await couple.sign_in(meanwhile())
    assert caught.value.reason is TransportReason.UNREACHABLE
    assert caught.value.advice is not None
    assert [event for event, _ in couple.bench.carrier.finished] == [DeviceEvent.FAILED]


@pytest.mark.threat("T16")
@pytest.mark.parametrize(
    "put_out",
    [
        NotEnrolled("closed", reason=EnrolmentReason.ACCOUNT_CLOSED),
        NotEnrolled("suspended", reason=EnrolmentReason.ACCOUNT_SUSPENDED),
        TrustError(TrustReason.NOT_A_MEMBER, "removed"),
    ],
    ids=lambda error: error.reason,
)
async def test_a_phone_that_hangs_up_since_the_account_is_closed_to_all_ends_the_ceremony_with_that(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, put_out: HeadlessPasskeyError
) -> None:
    """Its companion may hear of it before the device does."""
    couple = await Couple.of(bench)
    bench.carrier = Carrier(bench.air, ("anna",), needs_claim=True)
    monkeypatch.setattr(bench.carrier, "finish", AsyncMock(side_effect=put_out))

    async def meanwhile() -> None:
        await couple.bench.reached(Stage.REQUEST_SENT).wait()
        assert couple.anna is not None
        couple.anna.cancel()

    with pytest.raises(type(put_out)) as caught:
        await couple.sign_in(meanwhile())
    assert caught.value is put_out


async def test_a_request_that_has_ended_leaves_no_phone_for_another_one(couple: Couple) -> None:
    async def meanwhile() -> None:
        await couple.bench.reached(Stage.REQUEST_SENT).wait()
        failed = Progress(state=RequestState.FAILED, refusals=(refusal("anna", "no-adapter"),))
        await couple.says(failed)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not couple.bench.air.listening
        couple.bench.carrier.states.put_nowait(NotApproved(Outcome.CANCELLED, "over"))

    with pytest.raises(NotApproved, match="over"):
        await couple.sign_in(meanwhile())
    assert couple.why_left == []


@pytest.mark.threat("T12")
async def test_a_claim_that_wanders_without_end_ends_the_ceremony(
    couple: Couple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headless_passkey.ceremony.MAX_PHONES", 2)

    async def meanwhile() -> None:
        await couple.bench.reached(Stage.REQUEST_SENT).wait()
        couple.bench._reached.pop(Stage.REQUEST_SENT)
        await couple.says(claimed("bert"))
        bert = asyncio.create_task(couple._answers_never("bert"))
        await couple.bench.reached(Stage.REQUEST_SENT).wait()
        await couple.says(claimed("anna"))
        await asyncio.wait({bert})

    with pytest.raises(TrustError, match="2 phones were reached") as caught:
        await couple.sign_in(meanwhile())
    assert caught.value.reason is TrustReason.RECIPIENT_MISMATCH
    assert caught.value.advice == "try again"


async def test_of_two_ceremonies_that_were_begun_the_last_one_gets_the_response(couple: Couple) -> None:
    begun: list[BegunHere] = []

    async def begin() -> BegunHere:
        begun.append(BegunHere())
        return begun[-1]

    async def meanwhile() -> None:
        await couple.bench.reached(Stage.REQUEST_SENT).wait()
        await couple.bert_takes_over()

    signed_in = await couple.sign_in(meanwhile(), options=begin)
    assert isinstance(signed_in, Settled)
    assert [len(each.completed) for each in begun] == [0, 1]


@pytest.mark.threat("T3")
async def test_a_claim_that_the_delivery_refuses_ends_the_ceremony(bench: Bench) -> None:
    bench.carrier = Carrier(bench.air, needs_claim=True)
    bench.carrier.states.put_nowait(TrustError(TrustReason.BAD_CLAIM, "invented"))
    with pytest.raises(TrustError) as caught:
        await bench.sign_in()
    assert caught.value.reason is TrustReason.BAD_CLAIM
    assert bench.carrier.finished == [(DeviceEvent.FAILED, "bad-claim")]


async def test_a_delivery_to_nobody_says_so_at_once(bench: Bench) -> None:
    bench.carrier = Carrier(bench.air, ())
    with pytest.raises(LocalProtocolError, match="has no recipients"):
        await bench.sign_in()
    assert bench.stages == []
    assert bench.carrier.finished == []


async def test_nobody_answering_expires_and_is_said(bench: Bench) -> None:
    assert str(await bench.expires()) == "not done within 20 seconds; the last stage was submitted"
    assert bench.carrier.finished == [(DeviceEvent.CANCELLED, "deadline")]
    assert not bench.air.listening


async def test_a_radio_that_ends_before_an_advert_is_a_transport_error(bench: Bench) -> None:
    bench.air.put(bytes(20))
    bench.air.put(None)
    with pytest.raises(TransportError, match="before a phone"):
        await bench.sign_in()


async def test_a_radio_that_ends_after_the_advert_does_not_matter(bench: Bench) -> None:
    await bench.register()

    async def last_advert() -> None:
        answering = asyncio.create_task(bench.answered())
        await bench.reached(Stage.ADVERT_HEARD).wait()
        bench.air.put(None)
        await answering

    signed_in, _ = await asyncio.gather(bench.sign_in(), last_advert())
    assert signed_in.credential.user_handle == USER


async def test_a_radio_that_ends_after_an_advert_that_leads_nowhere_is_a_transport_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headless_passkey.ceremony.FRESHNESS", 0.1)

    async def gone() -> None:
        phone = PhoneTransaction((await bench.carrier.urls)["phone"])
        bench.air.put(phone.advertise(routing_id=b"abc", tunnel_domain=DOMAIN).service_data)
        bench.air.put(None)

    with pytest.raises(TransportError, match="what was heard led to no phone"):
        await asyncio.gather(bench.sign_in(), gone())


WITH_RELAY = (
    Stage.RING_UNCONFIRMED,
    Stage.RELAY_FORGOT_RINGS,
    Stage.NOTIFIED,
    Stage.NOT_NOTIFIED,
    Stage.DELIVERED,
    Stage.CLAIMED,
    Stage.REFUSED,
    Stage.OPENED,
)
WITH_LINKS = (Stage.CONTACTING, Stage.LINK_FORGOTTEN, Stage.LINKED, Stage.NOT_LINKED)  # test_linked.py
WITH_DIRECT = (Stage.DIRECT_JOINED, Stage.DIRECT_FAILED)  # test_direct_ceremony.py
CANCELLABLE = [
    stage
    for stage in Stage
    if stage not in (*WITH_RELAY, *WITH_LINKS, *WITH_DIRECT, Stage.ATTEMPT_FAILED, Stage.COMPLETED)
]


@pytest.mark.parametrize("stage", CANCELLABLE)
async def test_it_can_be_cancelled_at_every_stage(bench: Bench, stage: Stage, tunnels: Tunnels) -> None:
    await bench.register()
    tasks: list[asyncio.Task[CeremonyResult]] = []

    def cancel(event: StageEvent) -> None:
        if event.stage is stage:
            tasks[0].cancel()

    before = asyncio.all_tasks()
    tasks.append(asyncio.create_task(bench.sign_in(with_digits(), on_stage=cancel)))
    phone = asyncio.create_task(bench.answered())
    try:
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert bench.carrier.finished == [(DeviceEvent.CANCELLED, None)]
    finally:
        phone.cancel()
        await asyncio.wait({phone})
    assert not bench.air.listening
    leftover = {task for task in asyncio.all_tasks() - before if "sign_in" in str(task.get_coro())}
    assert not leftover
    assert tunnels.closed == tunnels.opened


@pytest.mark.parametrize("stage", [Stage.CHANNEL_OPEN, Stage.REQUEST_SENT, Stage.REPLY_CHECKED])
async def test_a_deadline_closes_the_tunnel_at_every_stage(
    bench: Bench, stage: Stage, tunnels: Tunnels
) -> None:
    await bench.register()
    tunnels.opened = tunnels.closed = 0
    phone = asyncio.create_task(bench.answered())
    await bench.expires(after=stage)
    phone.cancel()
    await asyncio.wait({phone})
    assert (tunnels.opened, tunnels.closed) == (1, 1)
    assert bench.carrier.finished == [(DeviceEvent.CANCELLED, "deadline")]


@dataclass
class BegunHere:
    """A relying party's ceremony: options, and where the response goes."""

    options: dict[str, Any] = field(default_factory=lambda: REQUEST)
    completed: list[Credential] = field(default_factory=list)

    async def complete(self, credential: Credential, /) -> str:
        self.completed.append(credential)
        return "a session"


async def test_a_ceremony_that_was_begun_gets_the_response_and_gives_the_result(bench: Bench) -> None:
    await bench.register()
    begun = BegunHere()

    async def begin() -> BegunHere:
        assert bench.stages[-1] is Stage.CHANNEL_OPEN
        return begun

    ask = Ask(kind=RequestKind.GET_ASSERTION, origin=ORIGIN, rp_id="login.example")
    ended, _ = await asyncio.gather(bench.sign_in(ask, begin), bench.answered())
    assert isinstance(ended, Settled)
    assert ended.result == "a session"
    assert begun.completed == [ended.credential]


async def test_a_ceremony_that_was_begun_leaves_nothing_to_settle(bench: Bench) -> None:
    async def begin() -> BegunHere:
        return BegunHere()

    async def settle(_credential: Credential) -> None:
        pytest.fail("settled twice")

    ask = Ask(kind=RequestKind.GET_ASSERTION, origin=ORIGIN, rp_id="login.example")
    phone = asyncio.create_task(bench.answered())
    with pytest.raises(LocalProtocolError, match="nothing is left to settle"):
        await bench.sign_in(ask, begin, settle=settle)
    await phone


async def test_what_settling_gives_is_the_result(bench: Bench) -> None:
    await bench.register()

    async def settle(_credential: Credential) -> int:
        return 201

    ended, _ = await asyncio.gather(bench.sign_in(settle=settle), bench.answered())
    assert isinstance(ended, Settled)
    assert ended.result == 201


async def test_the_response_is_settled_while_the_tunnel_closes(bench: Bench, tunnels: Tunnels) -> None:
    await bench.register()
    tunnels.may_close.clear()

    async def settle(_credential: Credential) -> None:
        tunnels.may_close.set()

    await asyncio.gather(bench.sign_in(settle=settle), bench.answered())
    assert tunnels.closed == tunnels.opened


@pytest.mark.threat("T9")
@pytest.mark.parametrize("settles", [True, False])
async def test_a_response_that_is_there_in_time_counts_however_long_the_tunnel_takes_to_close(
    bench: Bench, tunnels: Tunnels, *, settles: bool
) -> None:
    await bench.register()
    tunnels.closing.clear()
    tunnels.may_close.clear()

    async def settle(_credential: Credential) -> None:
        await tunnels.closing.wait()

    signing_in = asyncio.create_task(bench.sign_in(settle=settle if settles else None))
    answering = asyncio.create_task(bench.answered())
    await tunnels.closing.wait()
    await bench.reached(Stage.REPLY_CHECKED).wait()
    for _ in range(3):  # whoever waited for the closing goes on
        await asyncio.sleep(0)
    bench.clock.passes(TIMEOUT)
    await asyncio.wait({signing_in}, timeout=0)
    tunnels.may_close.set()
    await asyncio.gather(signing_in, answering)
    assert bench.stages[-1] is Stage.COMPLETED
    assert bench.carrier.finished == [(DeviceEvent.COMPLETED, None)]


async def test_a_ceremony_that_its_delivery_refuses_does_not_end_the_one_under_way(bench: Bench) -> None:
    class Busy(Carrier):
        async def submit(self, ask: Ask, urls: Mapping[str, FidoUrl], *, lifetime: float) -> None:
            raise LocalProtocolError("a delivery serves one ceremony at a time")

    delivery = Busy(bench.air)
    with pytest.raises(LocalProtocolError, match="one ceremony at a time"):
        await bench.sign_in(delivery=delivery)
    assert delivery.finished == []


@pytest.mark.parametrize("how", ["cancelled", "withdrawn"])
async def test_a_device_that_waits_no_longer_says_goodbye_to_the_phone_that_asks_its_user(
    bench: Bench, how: str
) -> None:
    await bench.register()
    asked = asyncio.Event()

    async def never(_question: Question) -> int:
        asked.set()
        return await asyncio.Future()

    async def answered() -> None:
        url = (await bench.carrier.urls)["phone"].encode()
        await replace(bench.phone(), verify_user=never).answer(url, timeout=20)

    signing_in = asyncio.create_task(bench.sign_in())
    answering = asyncio.create_task(answered())
    await asked.wait()
    if how == "cancelled":
        signing_in.cancel()
    else:
        bench.carrier.states.put_nowait(NotApproved(Outcome.SUPERSEDED, "a newer request took its place"))
    with pytest.raises(asyncio.CancelledError if how == "cancelled" else NotApproved):
        await signing_in
    with pytest.raises(NotApproved, match="said goodbye before it was answered") as caught:
        await answering
    assert caught.value.reason is Outcome.CANCELLED


@pytest.mark.parametrize("when", ["before the request", "in place of the reply"])
async def test_a_phone_that_says_goodbye_in_place_of_an_answer_breaks_the_protocol(
    bench: Bench, when: str
) -> None:
    """As Chromium judges it: only a client platform has a shutdown to send."""
    gate = asyncio.Event()

    async def options() -> dict[str, Any]:
        await gate.wait()
        return REQUEST

    async def answered() -> None:
        transaction = PhoneTransaction((await bench.carrier.urls)["phone"])
        async with open_tunnel(new_url(bench.base, transaction.tunnel_id), tls=bench.tls) as tunnel:
            assert tunnel.routing_id is not None
            advertised = transaction.advertise(routing_id=tunnel.routing_id, tunnel_domain=DOMAIN)
            bench.air.put(advertised.service_data)
            message2, channel = advertised.respond(await tunnel.receive())
            await tunnel.send(message2)
            await tunnel.send(channel.post_handshake(SoftwareKey().info))
            if when == "before the request":
                await tunnel.send(channel._seal(frame(MessageType.SHUTDOWN)))
            gate.set()
            assert isinstance(channel.receive(await tunnel.receive()), Ctap)
            if when == "in place of the reply":
                await tunnel.send(channel._seal(frame(MessageType.SHUTDOWN)))
            with contextlib.suppress(TransportError):
                await tunnel.receive()

    ask = Ask.of(AuthenticationOptions.parse(REQUEST, origin=ORIGIN))
    phone = asyncio.create_task(answered())
    with pytest.raises(RemoteProtocolError, match="a CTAP reply was expected, not shutdown"):
        await bench.sign_in(ask, options)
    await phone


async def test_a_relying_party_that_refuses_fails_the_request(bench: Bench) -> None:
    await bench.register()

    async def settle(_credential: Credential) -> None:
        raise RemoteProtocolError("no", reason=ProtocolReason.MALFORMED_OPTIONS)

    with pytest.raises(RemoteProtocolError):
        await asyncio.gather(bench.sign_in(settle=settle), bench.answered())
    assert bench.carrier.finished == [(DeviceEvent.FAILED, "malformed-options")]


@pytest.mark.parametrize("error", [TimeoutError("theirs"), ZeroDivisionError()], ids=["timeout", "bug"])
async def test_what_the_caller_raises_is_passed_on_and_fails_the_request(
    bench: Bench, error: Exception
) -> None:
    await bench.register()

    async def settle(_credential: Credential) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        await asyncio.gather(bench.sign_in(settle=settle), bench.answered())
    assert raised.value is error
    assert bench.carrier.finished == [(DeviceEvent.FAILED, None)]


CAUSED = TransportError("lost", reason=TransportReason.NO_ADAPTER)
CAUSED.__cause__ = OSError(19, "no such device")


@pytest.mark.parametrize("of", ["the radio", "the delivery", "the options", "settling"])
async def test_an_error_keeps_its_cause(bench: Bench, of: str) -> None:
    await bench.register()

    async def fails(*_: object) -> None:
        raise CAUSED

    ask = Ask(kind=RequestKind.GET_ASSERTION, origin=ORIGIN, rp_id="login.example")
    phone = asyncio.create_task(bench.answered()) if of in ("the options", "settling") else None
    if of == "the radio":
        bench.air.put(CAUSED)
    elif of == "the delivery":
        bench.carrier.states.put_nowait(CAUSED)
    options, settle = fails if of == "the options" else None, fails if of == "settling" else None
    with pytest.raises(TransportError) as caught:
        await bench.sign_in(ask, options, settle=settle)
    assert caught.value is CAUSED
    assert isinstance(caught.value.__cause__, OSError)
    assert not isinstance(caught.value.__context__, BaseExceptionGroup)
    if phone is not None:
        await phone


@pytest.mark.parametrize("end", ["success", "failure", "deadline", "cancellation"])
async def test_a_bug_in_a_delivery_is_logged_and_replaces_no_end(
    bench: Bench, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.register()

    class Broken(Carrier):
        async def finish(self, outcome: DeviceEvent, reason: str | None = None) -> None:
            await super().finish(outcome, reason)
            raise ZeroDivisionError

    bench.carrier = Broken(bench.air)
    match end:
        case "success":
            signed_in, _ = await asyncio.gather(bench.sign_in(), bench.answered())
            assert signed_in.credential.user_handle == USER
        case "failure":
            bench.air.put(None)
            with pytest.raises(TransportError):
                await bench.sign_in()
        case "deadline":
            await bench.expires()
        case "cancellation":
            signing_in = asyncio.create_task(bench.sign_in())
            await bench.reached(Stage.SUBMITTED).wait()
            signing_in.cancel()
            with pytest.raises(asyncio.CancelledError):
                await signing_in
    assert len(bench.carrier.finished) == 1
    assert "ZeroDivisionError" in caplog.text


async def test_a_farewell_that_cannot_be_told_changes_nothing(bench: Bench) -> None:
    await bench.register()

    bench.carrier.gone = True
    signed_in, _ = await asyncio.gather(bench.sign_in(), bench.answered())
    assert signed_in.credential.user_handle == USER
