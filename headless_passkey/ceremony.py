"""One ceremony on the device: a FIDO URL out to the phone, an assertion home (CTAP 2.2 §11.5.1).

`run_ceremony` does one ceremony, a sign-in or a registration: it makes a FIDO URL for every recipient, turns
the radio on, has the URLs delivered, and races what can happen next: a phone's advert, the end of the
request, the deadline. The first phone that completes the handshake gets the one CTAP command; its reply is
checked and handed on. It keeps time and moves bytes; other modules decide what they mean.

Cancelling it at any point is a normal exit: the radio stops, tunnels close, the request is withdrawn. To see to
that, whatever is open belongs to one task of the ceremony's task group, which closes it and is waited for, also when
the ceremony is cancelled a second time.
"""

import asyncio
import logging
import secrets
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Generic, Protocol, TypedDict, TypeVar, Unpack, overload, runtime_checkable

from headless_passkey.errors import (
    CtapError,
    HeadlessPasskeyError,
    LocalProtocolError,
    NotApproved,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    TransportError,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid.channel import ClientChannel
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.ctap2 import GetInfoResponse, Status, status_name
from headless_passkey.hybrid.eid import Eid
from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.hybrid.messages import Ctap
from headless_passkey.hybrid.tunnel_url import connect_url, tunnel_domain
from headless_passkey.net.tunnel import Tunnel, open_tunnel
from headless_passkey.radio.source import Advert, AdvertSource
from headless_passkey.refusals import Refusal, refused
from headless_passkey.request import CEREMONY_TIMEOUT, DeviceEvent, RequestState
from headless_passkey.tasks import end, task_group
from headless_passkey.webauthn.options import AuthenticationOptions, Credential, Options, RegistrationOptions
from headless_passkey.webauthn.origins import RelatedOrigins

HANDSHAKE_TIMEOUT: Final = 20.0  # seconds from joining a tunnel to the post-handshake message
FAREWELL_TIMEOUT: Final = 3.0  # seconds to tell the relay how it ended
GOODBYE_TIMEOUT: Final = 1.0  # seconds to tell a phone that there will be no more requests
MAX_ATTEMPTS: Final = 8  # tunnels tried at a time, so that adverts cannot keep us as busy as they like
MAX_ADVERTS: Final = 256  # different ones that open with our key; a phone makes one, or a few
FIRST_PAUSE: Final = 0.25  # seconds before the same advert is tried again; doubled after each failure
LAST_PAUSE: Final = 8.0
FRESHNESS: Final = 30.0  # seconds for which an advert is tried again without being heard again

logger = logging.getLogger(__name__)


class Stage(StrEnum):
    """Where a ceremony is, for a user interface."""

    PREPARED = "prepared"  # FIDO URLs made, radio on
    SUBMITTED = "submitted"  # handed over for delivery
    DELIVERED = "delivered"  # a companion has fetched its URL
    CLAIMED = "claimed"  # a companion's user approved
    REFUSED = "refused"  # a companion cannot take it, failed or vanished; the others may
    OPENED = "opened"  # a companion passes the URL to a phone: with a QR code it may still be scanned
    ADVERT_HEARD = "advert-heard"  # the phone is near
    TUNNEL_JOINED = "tunnel-joined"
    CHANNEL_OPEN = "channel-open"  # the phone proved that it read our URL
    ATTEMPT_FAILED = "attempt-failed"  # tunnel or handshake failed, still listening
    REQUEST_SENT = "request-sent"  # the challenge is with the phone
    REPLY_CHECKED = "reply-checked"
    COMPLETED = "completed"


class StageDetail(TypedDict, total=False):
    """What is known at a stage beside the stage; never a secret."""

    recipients: int  # PREPARED: how many URLs there are
    companion: str  # REFUSED: its name in the ring
    label: str  # REFUSED: what people call it, where that is known
    reason: str  # REFUSED: a word
    tunnel_domain: int  # ADVERT_HEARD: the number of the phone's tunnel service
    rssi: int  # ADVERT_HEARD: dBm, where the radio tells
    why: str  # ATTEMPT_FAILED: for people
    attempt: int  # ATTEMPT_FAILED: 1 and upwards, for this advert


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEvent:
    """A stage was reached."""

    stage: Stage
    elapsed: float  # seconds since the ceremony began
    detail: StageDetail = field(default_factory=StageDetail)
    phone: GetInfoResponse | None = None  # what the phone says of itself, at CHANNEL_OPEN
    refusal: Refusal | None = None  # which companion cannot take it, and why, at REFUSED; also in detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What the ceremony is for, stated before delivery; options that come later must not differ."""

    kind: RequestKind  # GET_ASSERTION or MAKE_CREDENTIAL
    origin: str
    rp_id: str
    rp_name: str | None = None  # shown on the companion, as the device's word
    note: str | None = None  # shown on the companion
    # to be typed on the companion, where the device can show or speak them
    digits: str | None = field(default=None, repr=False)
    user_handle: bytes | None = field(default=None, repr=False)  # whose passkey must answer (T3)
    related: RelatedOrigins | None = None  # what the RP ID's host says, where the origin is of another domain

    @classmethod
    def of(
        cls,
        options: Options,
        *,
        note: str | None = None,
        digits: str | None = None,
        user_handle: bytes | None = None,
    ) -> "Ask":
        """What known options ask for. user_handle: whose passkey must answer; of a registration it is the new user's."""
        rp_name = None
        if isinstance(options, RegistrationOptions):
            rp_name, user_handle = options.rp_name, user_handle or options.user.id
        return cls(
            kind=options.hint,
            origin=options.origin,
            rp_id=options.rp_id,
            rp_name=rp_name,
            note=note,
            digits=digits,
            user_handle=user_handle,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a delivery says of its request."""

    state: RequestState
    claimed_by: str | None = None  # the recipient that may complete it; None: whoever comes first
    refusals: tuple[Refusal, ...] = ()  # by recipients that cannot take it


class Delivery(Protocol):
    """How FIDO URLs reach phones: for one ceremony after the other."""

    async def recipients(self) -> Sequence[str]:
        """Who gets a URL of its own; a ceremony begins with this call. `LocalProtocolError` while another one goes on."""

    async def submit(self, ask: Ask, urls: Mapping[str, FidoUrl], *, lifetime: float) -> None:
        """Hand the URLs over; they are worth nothing after `lifetime` seconds."""

    def progress(self) -> AsyncGenerator[Progress, None]:
        """What becomes of the request; raises what ends it (`NotApproved`, `TrustError`, …)."""

    async def finish(self, outcome: DeviceEvent, reason: str | None = None) -> None:
        """Say how it ended. reason: a word for it, such as an error's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CeremonyResult:
    """The ceremony's end: the response for the relying party, and whose passkey made it."""

    credential: Credential
    user_checked: bool  # False: nobody was expected, so the account is the phone's choice (T3)


_T = TypeVar("_T")
_Result_co = TypeVar("_Result_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled(CeremonyResult, Generic[_T]):
    """The ceremony's end, after the relying party has taken the response."""

    result: _T  # what `Begun.complete`, or `settle`, gave


@runtime_checkable
class Begun(Protocol[_Result_co]):
    """A ceremony that a relying party has begun: what it asks for, and where the response goes."""

    @property
    def options(self) -> Options | Mapping[str, Any]:
        """With the challenge; as WebAuthn JSON, or parsed."""

    async def complete(self, credential: Credential, /) -> _Result_co:
        """Hand in the response: the session, or whatever the relying party gives for it."""


OptionsSource = Options | Callable[[], Awaitable[Options | Mapping[str, Any]]]


class Choices(TypedDict, total=False):
    """What `run_ceremony` takes beside what it needs."""

    tunnels: Mapping[int, str] | None
    tls: ssl.SSLContext | None
    timeout: float
    on_stage: Callable[[StageEvent], None]
    min_rssi: int | None
    join_within: float | None
    clock: Callable[[], float]


@overload
async def run_ceremony(
    ask: Ask,
    options: Callable[[], Awaitable[Begun[_T]]],
    *,
    delivery: Delivery,
    radio: AdvertSource,
    **choices: Unpack[Choices],
) -> Settled[_T]: ...


@overload
async def run_ceremony(
    ask: Ask,
    options: OptionsSource,
    *,
    delivery: Delivery,
    radio: AdvertSource,
    settle: Callable[[Credential], Awaitable[_T]],
    **choices: Unpack[Choices],
) -> Settled[_T]: ...


@overload
async def run_ceremony(
    ask: Ask,
    options: OptionsSource,
    *,
    delivery: Delivery,
    radio: AdvertSource,
    **choices: Unpack[Choices],
) -> CeremonyResult: ...


async def run_ceremony(
    ask: Ask,
    options: OptionsSource | Callable[[], Awaitable[Begun[Any]]],
    *,
    delivery: Delivery,
    radio: AdvertSource,
    tunnels: Mapping[int, str] | None = None,
    tls: ssl.SSLContext | None = None,
    timeout: float = CEREMONY_TIMEOUT,  # noqa: ASYNC109  one deadline over all steps is the interface
    on_stage: Callable[[StageEvent], None] = lambda _event: None,
    settle: Callable[[Credential], Awaitable[Any]] | None = None,
    min_rssi: int | None = None,
    join_within: float | None = None,
    clock: Callable[[], float] = time.time,
) -> CeremonyResult:
    """One ceremony, from FIDO URL to checked response.

    options: known options, or a callable asked for them once the phone is there. It gives them as WebAuthn JSON, parsed, or
    as a ceremony begun at a relying party, which gets the response then.
    tunnels: base URLs (``wss://host:port``) by tunnel domain number, in place of the built-in names.
    tls: whom to believe on the tunnel; None means the system's roots. timeout: seconds for everything.
    settle: takes the response to the relying party, where options are not a ceremony begun. What it gives is the `result`;
    only after it is the request reported as completed, and it need not wait for the tunnel to close.
    min_rssi: adverts weaker than this many dBm, or of unknown strength, are not heard; join_within: seconds
    from hearing an advert for the first time until its channel must be open. Both make relaying an advert
    harder, and neither proves that the phone is near (T7).

    Raises the branches of `HeadlessPasskeyError`; at the deadline that is `NotApproved` (expired).
    """
    ceremony = _Ceremony(
        ask=ask,
        options=options,
        delivery=delivery,
        tunnels=tunnels or {},
        tls=tls,
        on_stage=on_stage,
        settle=settle,
        min_rssi=min_rssi,
        join_within=join_within,
    )
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            completed = await ceremony.run(radio, timeout, int(clock()))
    except asyncio.CancelledError:
        await ceremony.tell_the_end(DeviceEvent.CANCELLED, None)
        raise
    except Exception as error:
        if limit.expired():
            await ceremony.tell_the_end(DeviceEvent.CANCELLED, "deadline")
            stage = ceremony.stage or "the beginning"
            message = f"not done within {timeout:g} seconds; the last stage was {stage}"
            message = "; ".join([message, *map(str, ceremony.refusals.values())])
            raise NotApproved(Outcome.EXPIRED, message) from error
        # what a caller's own options or settle raised is told to the phone's side too, and passed on as it is
        await ceremony.tell_the_end(
            DeviceEvent.FAILED, error.reason if isinstance(error, HeadlessPasskeyError) else None
        )
        raise
    await ceremony.tell_the_end(DeviceEvent.COMPLETED, None)
    ceremony.report(Stage.COMPLETED)
    return completed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Phone:
    """The phone at the other end of an open channel. The pursuit that reached it holds the tunnel until `let_go` is set."""

    recipient: str
    tunnel: Tunnel
    channel: ClientChannel
    get_info: GetInfoResponse
    let_go: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Heard:
    """An advert that opened: when it was heard, on the event loop's clock, and what came of it."""

    first: float
    last: float
    rssi: int | None  # dBm, the first time
    eid: Eid
    base: str  # of the tunnel service it leads to
    is_news: bool = True  # nobody has gone after it in vain since it was heard last
    pursued: bool = False  # somebody goes after it, or has reached the phone
    attempts: int = 0
    pause: float = FIRST_PAUSE  # seconds after the next attempt

    def is_fresh(self, now: float) -> bool:
        return now - self.last < FRESHNESS


@dataclass(slots=True)
class _Candidate:
    """One recipient's URL, and what its phone's adverts have led to. Only `_Ceremony._may_go_on` says whether to go on."""

    recipient: str
    transaction: QrTransaction
    heard: dict[bytes, _Heard] = field(default_factory=dict)  # by advert
    pursuits: set[asyncio.Task[None]] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class _Ceremony:
    """One ceremony: what its tasks share."""

    ask: Ask
    options: OptionsSource | Callable[[], Awaitable[Begun[Any]]]
    delivery: Delivery
    tunnels: Mapping[int, str]
    tls: ssl.SSLContext | None
    on_stage: Callable[[StageEvent], None]
    settle: Callable[[Credential], Awaitable[Any]] | None
    min_rssi: int | None
    join_within: float | None

    stage: Stage | None = None  # the last one
    refusals: dict[str, Refusal] = field(default_factory=dict)  # by recipient
    _now: Callable[[], float] = field(default_factory=lambda: asyncio.get_running_loop().time)
    _name: str = field(default_factory=lambda: secrets.token_hex(4))  # for the log
    _began: float = field(default_factory=time.monotonic)
    _candidates: dict[str, _Candidate] = field(default_factory=dict)  # by recipient
    _claimer: str | None = None  # the recipient that alone may go on; None: whoever comes first
    _listening: bool = False
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_ATTEMPTS))
    _reached: "asyncio.Future[_Phone]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    _submitted: bool = False  # the other side may know of it

    async def run(self, radio: AdvertSource, lifetime: float, now: int) -> CeremonyResult:
        """Find the phone, use it, and settle what it answered."""
        if not callable(self.options):
            self._check_options(self.options)
        recipients = await self.delivery.recipients()
        if not recipients:
            raise LocalProtocolError("the delivery names nobody who could be asked")
        for recipient in recipients:
            transaction = QrTransaction.create(hint=self.ask.kind, time=now)
            self._candidates[recipient] = _Candidate(recipient, transaction)
        async with task_group() as tasks:
            async with AsyncExitStack() as until_answered:
                phone = await self._find_phone(radio, lifetime, tasks, until_answered)
                try:
                    credential, user_checked = await self._use(phone)
                finally:
                    phone.let_go.set()
            # the tunnel closes meanwhile
            if self.settle is None:
                completed = CeremonyResult(credential=credential, user_checked=user_checked)
            else:
                result = await self.settle(credential)
                completed = Settled(credential=credential, user_checked=user_checked, result=result)
        return completed

    def report(
        self,
        stage: Stage,
        detail: StageDetail | None = None,
        *,
        phone: GetInfoResponse | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        self.stage = stage
        elapsed = time.monotonic() - self._began
        logger.info("ceremony %s: %s after %.3f s", self._name, stage, elapsed)
        self.on_stage(
            StageEvent(stage=stage, elapsed=elapsed, detail=detail or {}, phone=phone, refusal=refusal)
        )

    async def tell_the_end(self, outcome: DeviceEvent, reason: str | None) -> None:
        """Tell the delivery how it ended; what cannot be told in time expires by itself, and changes nothing here."""
        if not self._submitted:
            return
        try:
            async with asyncio.timeout(FAREWELL_TIMEOUT):
                await self.delivery.finish(outcome, reason)
        except (TimeoutError, HeadlessPasskeyError) as error:
            logger.info("ceremony %s: %s was not reported (%s)", self._name, outcome, type(error).__name__)
        except Exception:
            logger.exception("ceremony %s: %s was not reported: the delivery failed", self._name, outcome)

    async def _find_phone(
        self,
        radio: AdvertSource,
        lifetime: float,
        tasks: asyncio.TaskGroup,
        until_answered: AsyncExitStack,
    ) -> _Phone:
        """Deliver the URLs, and listen until a phone has opened the channel; then the radio is off.

        until_answered: as long as it is open the request is followed.
        """
        async with radio.adverts() as adverts:
            self.report(Stage.PREPARED, {"recipients": len(self._candidates)})
            self._submitted = True  # from here on
            urls = {name: candidate.transaction.url for name, candidate in self._candidates.items()}
            await self.delivery.submit(self.ask, urls, lifetime=lifetime)
            self.report(Stage.SUBMITTED)
            following = tasks.create_task(self._follow(tasks))
            until_answered.push_async_callback(end, following)
            listening = tasks.create_task(self._listen(adverts, tasks))
            try:
                return await asyncio.shield(self._reached)
            finally:
                self._listening = False
                await end(listening, *self._pursuits)

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        """Follow the request; its end, other than completion, ends the ceremony."""
        seen: RequestState | None = None
        async with aclosing(self.delivery.progress()) as states:
            async for progress in states:
                self._note_refusals(progress.refusals)
                self._claimer = progress.claimed_by
                self._turn_to_who_may_go_on(tasks)
                stage = _STAGES.get(progress.state)
                if progress.state != seen and stage is not None:
                    self.report(stage)
                seen = progress.state

    def _note_refusals(self, refusals: Sequence[Refusal]) -> None:
        """Say which are new. When the companion refuses whose phone is connected already, that ends the ceremony."""
        before, self.refusals = self.refusals, {refusal.companion: refusal for refusal in refusals}
        for refusal in refusals:
            if before.get(refusal.companion) != refusal:
                detail: StageDetail = {"companion": refusal.companion, "reason": refusal.reason}
                if refusal.label is not None:
                    detail["label"] = refusal.label
                self.report(Stage.REFUSED, detail, refusal=refusal)
        if self._reached.done() and self._has_refused(self._reached.result().recipient):
            raise refused([self.refusals[self._reached.result().recipient]])

    def _has_refused(self, recipient: str) -> bool:
        refusal = self.refusals.get(recipient)
        return refusal is not None and not refusal.may_change

    def _may_go_on(self, recipient: str) -> bool:
        """Whether what this recipient's URL leads to is pursued: anybody's until there is a claim, then its holder's (T5)."""
        return self._claimer in (None, recipient) and not self._has_refused(recipient)

    def _turn_to_who_may_go_on(self, tasks: asyncio.TaskGroup) -> None:
        """Leave the other candidates aside. They come back when the claim is gone, with what was heard meanwhile."""
        for candidate in self._candidates.values():
            if not self._may_go_on(candidate.recipient):
                for task in candidate.pursuits:
                    task.cancel()
                for heard in candidate.heard.values():
                    heard.pursued = False
            elif self._listening:
                for heard in candidate.heard.values():
                    self._begin_pursuit(candidate, heard, tasks)

    @property
    def _pursuits(self) -> set[asyncio.Task[None]]:
        return {task for candidate in self._candidates.values() for task in candidate.pursuits}

    async def _listen(self, adverts: AsyncIterator[Advert], tasks: asyncio.TaskGroup) -> None:
        self._listening = True
        try:
            async for advert in adverts:
                if self._is_near(advert):
                    for candidate in self._candidates.values():
                        if (heard := self._hear(candidate, advert)) is not None:
                            self._begin_pursuit(candidate, heard, tasks)
            in_vain = (
                "and what was heard led to no phone"
                if any(candidate.heard for candidate in self._candidates.values())
                else "before a phone's advert was heard"
            )
            ended = TransportError(f"the radio's input ended {in_vain}")
        except TransportError as error:
            ended = error
        while pursuits := self._pursuits:  # what was heard before may yet lead to the phone
            await asyncio.wait(pursuits)
        if not self._reached.done():
            raise ended

    def _is_near(self, advert: Advert) -> bool:
        return self.min_rssi is None or (advert.rssi is not None and advert.rssi >= self.min_rssi)

    def _hear(self, candidate: _Candidate, advert: Advert) -> _Heard | None:
        """What is known of this advert, when it is of this candidate's phone; some radios say a thing once."""
        eid = candidate.transaction.open_advert(advert.service_data)
        base = None if eid is None else self._tunnel_service(eid.tunnel_domain)
        if eid is None or base is None:
            return None
        key, now = eid.encode(), self._now()
        heard = candidate.heard.get(key)
        if heard is None:
            if len(candidate.heard) == MAX_ADVERTS:
                logger.info("ceremony %s: too many different adverts, ignored one", self._name)
                return None
            heard = candidate.heard[key] = _Heard(first=now, last=now, rssi=advert.rssi, eid=eid, base=base)
        heard.last, heard.is_news = now, True
        return heard

    def _begin_pursuit(self, candidate: _Candidate, heard: _Heard, tasks: asyncio.TaskGroup) -> None:
        """Go after the advert's phone, unless somebody does, or it is too late, or not its turn."""
        now, limit = self._now(), self._limit(heard)
        in_time = heard.is_fresh(now) and (limit is None or now < limit)
        if heard.is_news and not heard.pursued and in_time and self._may_go_on(candidate.recipient):
            heard.pursued = True
            pursuit = tasks.create_task(self._pursue(candidate, heard))
            candidate.pursuits.add(pursuit)
            pursuit.add_done_callback(candidate.pursuits.discard)

    def _tunnel_service(self, number: int) -> str | None:
        """The base URL of a tunnel domain; None for one that nobody knows, whose adverts are ignored (§11.5.1)."""
        try:
            return self.tunnels.get(number) or f"wss://{tunnel_domain(number)}"
        except RemoteProtocolError:
            logger.info("ceremony %s: no tunnel service is known for domain %d", self._name, number)
            return None

    async def _pursue(self, candidate: _Candidate, heard: _Heard) -> None:
        """Try where an advert leads until it is old: networks fail, and some radios say a thing once."""
        limit = self._limit(heard)
        detail: StageDetail = {"tunnel_domain": heard.eid.tunnel_domain}
        if heard.rssi is not None:
            detail["rssi"] = heard.rssi
        self.report(Stage.ADVERT_HEARD, detail)
        while heard.is_fresh(self._now()) and (limit is None or self._now() < limit):
            async with self._slots:
                failed = await self._attempt(candidate, heard, limit)
            if failed is None:
                return
            heard.attempts += 1
            why = str(failed) or "the phone did not finish the handshake in time"
            logger.info("ceremony %s: attempt failed: %s", self._name, why)
            self.report(Stage.ATTEMPT_FAILED, {"why": why, "attempt": heard.attempts})
            await asyncio.sleep(heard.pause)
            heard.pause = min(2 * heard.pause, LAST_PAUSE)
            if isinstance(failed, RemoteProtocolError):
                break  # it will not be otherwise, unless whoever it was advertises it again
        heard.pursued, heard.is_news = False, False

    def _limit(self, heard: _Heard) -> float | None:
        """By when the advert's phone must have been reached, on the event loop's clock."""
        return None if self.join_within is None else heard.first + self.join_within

    async def _attempt(self, candidate: _Candidate, heard: _Heard, limit: float | None) -> Exception | None:
        """Join the tunnel the advert leads to and prove ourselves to the phone; why not, when that fails.

        limit: by when, on the event loop's clock.
        """
        transaction, eid = candidate.transaction, heard.eid
        async with AsyncExitStack() as stack:
            try:
                url = connect_url(heard.base, eid.routing_id, transaction.url.tunnel_id)
                async with asyncio.timeout_at(limit):
                    tunnel = await stack.enter_async_context(open_tunnel(url, tls=self.tls))
                    self.report(Stage.TUNNEL_JOINED)
                    async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                        channel, get_info = await _shake_hands(tunnel, transaction, eid)
            except (TransportError, RemoteProtocolError, TimeoutError) as error:
                return error
            if not self._reached.done():
                phone = _Phone(
                    recipient=candidate.recipient, tunnel=tunnel, channel=channel, get_info=get_info
                )
                candidate.pursuits.remove(
                    _this_task()
                )  # it is not to be ended for what its companion does from now on
                self.report(Stage.CHANNEL_OPEN, phone=get_info)
                self._reached.set_result(phone)
                await _hold(phone)
            return None

    async def _use(self, phone: _Phone) -> tuple[Credential, bool]:
        """Exactly one CTAP command over the open channel; its checked reply, and whether the user was checked."""
        options = await self._known_options()
        if not self._may_go_on(phone.recipient):
            raise TrustError(
                TrustReason.RECIPIENT_MISMATCH, "another companion answered than the one that claimed"
            )
        await phone.tunnel.send(phone.channel.send(options.ctap_request(phone.get_info)))
        self.report(Stage.REQUEST_SENT)
        reply = await _reply(phone)
        if reply.code != Status.SUCCESS:
            raise CtapError(reply.code, status_name(reply.code))
        credential = options.accept(reply.payload, phone.get_info)
        user_checked = self._check_user(options, credential)
        self.report(Stage.REPLY_CHECKED)
        return credential, user_checked

    async def _known_options(self) -> Options:
        """The options, when they ask for what was announced."""
        options = self.options
        if callable(options):
            given = await options()
            if isinstance(given, Begun):
                if self.settle is not None:
                    raise LocalProtocolError(
                        "a ceremony begun gets the response itself: nothing is left to settle"
                    )
                self.settle, given = given.complete, given.options
            if isinstance(given, AuthenticationOptions | RegistrationOptions):
                options = given
            else:
                is_get = self.ask.kind is RequestKind.GET_ASSERTION
                parse = AuthenticationOptions.parse if is_get else RegistrationOptions.parse
                options = parse(given, origin=self.ask.origin, related=self.ask.related)
            self._check_options(options)
        return options

    def _check_options(self, options: Options) -> None:
        """That nobody approves one thing and gets another (T4)."""
        if (options.hint, options.rp_id, options.origin) != (
            self.ask.kind,
            self.ask.rp_id,
            self.ask.origin,
        ):
            raise TrustError(
                TrustReason.OPTIONS_DIFFER, "the options ask for something else than was announced"
            )
        if isinstance(options, RegistrationOptions) and self.ask.user_handle not in (None, options.user.id):
            raise TrustError(
                TrustReason.OPTIONS_DIFFER, "the options are for another user than was announced"
            )

    def _check_user(self, options: Options, credential: Credential) -> bool:
        """Whether the account that answered was the one asked for; False when nobody was expected (T3)."""
        if isinstance(options, RegistrationOptions):
            return True
        expected, came = self.ask.user_handle, credential.user_handle
        if expected is not None and came != expected and not (came is None and options.allow_list):
            raise TrustError(
                TrustReason.UNEXPECTED_USER, "a passkey of another account than expected answered"
            )
        return expected is not None or bool(options.allow_list)


async def _shake_hands(
    tunnel: Tunnel, transaction: QrTransaction, eid: Eid
) -> tuple[ClientChannel, GetInfoResponse]:
    """The handshake and the post-handshake message: the phone proved itself and said what it is."""
    pending = transaction.handshake(eid)
    await tunnel.send(pending.message)
    channel = pending.finish(await tunnel.receive())
    peer = channel.receive_post_handshake(await tunnel.receive())
    if peer.get_info is None:
        raise RemoteProtocolError("the phone does not speak CTAP", reason=ProtocolReason.NO_CTAP)
    return channel, peer.get_info


_STAGES: Final = {
    RequestState.DELIVERED: Stage.DELIVERED,
    RequestState.CLAIMED: Stage.CLAIMED,
    RequestState.OPENED: Stage.OPENED,
}


async def _reply(phone: _Phone) -> Ctap:
    while True:
        event = phone.channel.receive(await phone.tunnel.receive())
        if isinstance(event, Ctap):
            return event


async def _hold(phone: _Phone) -> None:
    """Keep the tunnel open until it is let go, or this task is cancelled; then say that there will be no more requests.

    The phone takes back what it asks its user. That it has gone already, or spoiled the channel, is no news.
    """
    try:
        await phone.let_go.wait()
    finally:
        with suppress(HeadlessPasskeyError, TimeoutError):
            goodbye = phone.channel.shutdown()
            if goodbye is not None:
                async with asyncio.timeout(GOODBYE_TIMEOUT):
                    await phone.tunnel.send(goodbye)


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise LocalProtocolError("a ceremony runs in a task")
    return task
