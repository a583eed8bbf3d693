"""One WebAuthn ceremony on the device, over the hybrid transport (CTAP 2.2 §11.5.1): from FIDO URL to checked response.

`run_ceremony` does one ceremony, a sign-in or a registration: it makes a FIDO URL for every recipient, turns
the radio on, delivers the URLs, and waits for the first of these: a phone's advert, the end of the request, the
deadline. The first phone that completes the handshake gets the one CTAP command; its reply is checked and returned.
Where the delivery knows of claims, that phone is the claimer's (T3). When another recipient has the claim before the reply has
come, that phone is left, and the claimer's phone is waited for and gets the command. The module does I/O and timing; other
modules parse and decide.

The state of each recipient follows from the claim (`_Standing`):

    waiting   nobody holds the claim: adverts are pursued; a channel that opens is held for `CLAIM_TIMEOUT`, one a recipient
    active    the recipient holds the claim, or the delivery knows of no claims: its phone gets the command
    aside     another recipient holds the claim: adverts are kept, and pursued when that claim is gone
    out       the recipient has refused

Cancellation at any point is a normal exit: the radio stops, tunnels close, the request is withdrawn. Each open resource
belongs to one task of the ceremony's task group, which closes it and is awaited, also when the ceremony is cancelled a
second time.
"""

import asyncio
import logging
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from http import HTTPStatus
from typing import (
    Any,
    Final,
    Generic,
    NoReturn,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
    runtime_checkable,
)

from headless_passkey.delivery import Ask, Delivery, Progress
from headless_passkey.errors import (
    ExitStatus,
    HeadlessPasskeyError,
    LocalProtocolError,
    NotApproved,
    Outcome,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.hybrid.client_platform import QrTransaction, StateAssistedTransaction
from headless_passkey.hybrid.ctap2 import GetInfoResponse, Status
from headless_passkey.hybrid.eid import Eid, parse_suffix
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.hybrid.linking import LinkedPhone
from headless_passkey.hybrid.messages import Ctap
from headless_passkey.hybrid.tunnel_url import connect_url, tunnel_domain
from headless_passkey.net.tunnel import Tunnel, TunnelRefused, open_tunnel
from headless_passkey.phone_channel import PhoneChannel
from headless_passkey.process.tasks import end, end_quietly, task_group
from headless_passkey.radio.direct import DirectChannel
from headless_passkey.radio.l2cap import ConnectingSource
from headless_passkey.radio.source import Advert, AdvertSource
from headless_passkey.refusals import Refusal, ctap_error, refused
from headless_passkey.request import CEREMONY_TIMEOUT, DeviceEvent, RequestState
from headless_passkey.stages import Stage, StageDetail, StageEvent
from headless_passkey.webauthn.options import AuthenticationOptions, Credential, Options, RegistrationOptions

LINKED_FIRST: Final = 3.0  # seconds that a linked phone has until others are asked as well
WITHDRAWAL: Final = 0.5  # seconds that the command to a linked phone waits for the request's withdrawal
CLAIM_TIMEOUT: Final = 20.0  # seconds that an open channel waits for the claim of its recipient
HUNG_UP_TIMEOUT: Final = 5.0  # seconds in which a phone that has hung up may lose the claim to another
DIRECT_TIMEOUT: Final = 6.0  # seconds for link, direct channel and handshake, until the tunnel is tried
HANDSHAKE_TIMEOUT: Final = 20.0  # seconds from joining a tunnel to the post-handshake message
REPORT_TIMEOUT: Final = 3.0  # seconds for the report of the end to the relay
MAX_PHONES: Final = 8  # reached one after another, a bound on what a relay that moves claims can cause
MAX_ATTEMPTS: Final = 8  # concurrent attempts, a bound on the work that adverts can cause
MAX_WAYS: Final = 4  # addresses from which one advert came, as it should from one
MAX_ADVERTS: Final = 256  # different adverts that our key opens; a phone makes one or a few
FIRST_PAUSE: Final = 0.25  # seconds before the next attempt with the same advert; doubled after each failure
LAST_PAUSE: Final = 8.0
FRESHNESS: Final = 30.0  # seconds since its last reception in which an advert is tried again

logger = logging.getLogger(__name__)


class ForgottenLink(StrEnum):
    """Why a link is deleted."""

    GONE = "gone"  # the tunnel service says so: the phone has forgotten this device (410)
    COMPANION_GONE = "companion-gone"  # the companion through which it came is not in the account any more
    ACCOUNT_LEFT = "account-left"  # nor is this device, or the account is closed


class Links(Protocol):
    """The links that a device keeps; `headless_passkey.account.links.AccountLinks` is one."""

    async def usable(
        self, ask: Ask, on_forgotten: Callable[[str, ForgottenLink], None]
    ) -> Sequence[LinkedPhone]:
        """The links that may be tried for `ask`, in this order, each named as people call the phone; deletes those that may never be used again.

        on_forgotten: told of the label of each deleted link, and why.
        """

    async def keep(self, phone: LinkedPhone, recipient: str) -> str | None:
        """Store a link that came from the phone of `recipient`; returns its label, and None when there are too many."""

    async def used(self, phone: LinkedPhone) -> None:
        """Note that a response through this link was accepted."""

    async def forget(self, phone: LinkedPhone) -> None:
        """Delete a link that is dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CeremonyResult:
    """The result of a ceremony: the response for the relying party, and whether its user was checked."""

    credential: Credential
    user_checked: bool  # False: no user was expected, so the phone chose one (T3)


_T = TypeVar("_T")
_Result_co = TypeVar("_Result_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled(CeremonyResult, Generic[_T]):
    """The result of a ceremony whose response the relying party has accepted."""

    result: _T  # of `Begun.complete` or `settle`


class Users(Protocol):
    """The users whom a device expects at a relying party; `headless_passkey.rp.users.PinnedUsers` is one (T3)."""

    def check(self, handle: bytes | None) -> bool:
        """Refuse a user who is not expected, with `TrustError` (unexpected-user); returns whether somebody was expected."""

    async def settle(
        self, credential: Credential, settle: Callable[[Credential], Awaitable[_T]], *, expected: bool
    ) -> _T:
        """Call `settle`, which hands the response to the relying party, and store the user whom this accepts.

        expected: the user was expected by the caller, or the credential by the relying party.
        """


@runtime_checkable
class Begun(Protocol[_Result_co]):
    """A ceremony that a relying party has begun: its options, and where the response goes."""

    @property
    def options(self) -> Options | Mapping[str, Any]:
        """The WebAuthn options with their challenge, as JSON or parsed."""

    async def complete(self, credential: Credential, /) -> _Result_co:
        """Complete the ceremony with the response; returns the relying party's result, such as a session."""


OptionsSource = Options | Callable[[], Awaitable[Options | Mapping[str, Any]]]


class Choices(TypedDict, total=False):
    """The optional arguments of `run_ceremony`."""

    tunnels: Mapping[int, str] | None
    tls: ssl.SSLContext | None
    timeout: float
    on_stage: Callable[[StageEvent], None]
    users: Users | None
    links: Links | None
    link: bool
    min_rssi: int | None
    join_within: float | None
    direct: bool
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
    users: Users | None = None,
    links: Links | None = None,
    link: bool = False,
    min_rssi: int | None = None,
    join_within: float | None = None,
    direct: bool = False,
    clock: Callable[[], float] = time.time,
) -> CeremonyResult:
    """Run one ceremony, from FIDO URL to checked response.

    options: known options, or a callable that is called once the channel is open, so that the challenge is fresh, and again
    for each further phone that is reached. It returns WebAuthn JSON, parsed options, or a `Begun`, of which the last one gets the response.
    tunnels: base URLs (``wss://host:port``) by tunnel domain number, in place of the built-in names.
    tls: trusted roots for the tunnel; None for the system's. timeout: seconds for everything.
    settle: takes the response to the relying party, where the options are no `Begun`. Its value is the `result`. `settle` does
    not wait for the tunnel to close; the report of completion follows both. Closing does not count for the deadline.
    users: those who are expected at the relying party. Another user is refused, before the command where the options name
    the user and before `settle` otherwise, unless `Ask.user_handle` or an allow list says whom this ceremony expects.
    links: linked phones, which are tried first: the request goes to the delivery when none can be reached, or after
    `LINKED_FIRST` seconds, and then the first that approves counts. A linked phone needs no claim. link: ask for a link, which is
    kept in `links` once the response is settled.
    min_rssi: adverts weaker than this many dBm, or of unknown strength, are ignored. join_within: seconds
    from the first reception of an advert until its channel must be open. Both make it harder to relay adverts, and neither
    proves that the phone is near (T7). direct: offer the phone the direct channel, which needs no tunnel service; the tunnel is used
    where it fails. Some older phones refuse a FIDO URL that offers it. `UsageError` for a radio that cannot connect.

    Raises the branches of `HeadlessPasskeyError`; at the deadline that is `NotApproved` (expired).
    """
    if link and links is None:
        raise LocalProtocolError("a link that is asked for needs a place where it is kept")
    ceremony = _Ceremony(
        ask=ask,
        options=options,
        delivery=delivery,
        tunnels=tunnels or {},
        tls=tls,
        on_stage=on_stage,
        settle=settle,
        users=users,
        links=links,
        link=link,
        min_rssi=min_rssi,
        join_within=join_within,
        direct=_connecting(radio) if direct else None,
        clock=clock,
    )
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            completed = await ceremony.run(radio, limit, timeout)
    except asyncio.CancelledError:
        await ceremony.tell_the_end(DeviceEvent.CANCELLED, None)
        raise
    except Exception as error:
        if limit.expired():
            await ceremony.tell_the_end(DeviceEvent.CANCELLED, "deadline")
            stage = ceremony.stage or "the beginning"
            message = f"not done within {timeout:g} seconds; the last stage was {stage}"
            message = "; ".join([message, *map(str, ceremony.refusals.values())])
            raise ceremony.explain(NotApproved(Outcome.EXPIRED, message)) from error
        # an error of the caller's options or settle: reported to the delivery, and raised unchanged
        await ceremony.tell_the_end(
            DeviceEvent.FAILED, error.reason if isinstance(error, HeadlessPasskeyError) else None
        )
        explained = ceremony.explain(error)
        if explained is not error:
            raise explained from error
        raise
    await ceremony.tell_the_end(DeviceEvent.COMPLETED, None)
    ceremony.report(Stage.COMPLETED)
    return completed


@dataclass(slots=True)
class _Heard:
    """An advert that our key opened, with its times on the event loop's clock and its attempts."""

    first: float
    last: float
    rssi: int | None  # dBm, of the first reception
    eid: Eid
    base: str  # of the tunnel service it leads to
    ways: list["_Way"] = field(default_factory=list)  # of the direct channel, the next to try last
    is_news: bool = True  # no attempt has failed since its last reception
    pursued: bool = False  # a task tries it, or has reached the phone
    attempts: int = 0
    pause: float = FIRST_PAUSE  # seconds after the next attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """Where an advert came from, and its PSM. Anybody can repeat an advert, from an address and with a PSM of its own."""

    advert: Advert
    psm: int

    def same_as(self, other: "_Way") -> bool:
        one, another = self.advert, other.advert
        return (one.address, one.address_type, self.psm) == (
            another.address,
            another.address_type,
            other.psm,
        )


class _Standing(Enum):
    """A recipient's state, as the module's docstring has it."""

    WAITING, ACTIVE, ASIDE, OUT = range(4)


@dataclass(slots=True)
class _Candidate:
    """One recipient's URL, with the adverts of its phone. `_Ceremony._may_go_on` decides whether its adverts are tried."""

    recipient: str
    transaction: QrTransaction
    unclaimed: bool = False  # a channel was opened before the claim: there is no other one before it
    claimed: bool = False  # it has held the claim, of which the delivery has told
    heard: dict[bytes, _Heard] = field(default_factory=dict)  # by advert
    pursuits: set[asyncio.Task[None]] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Contact:
    """An attempt to reach a phone through a link."""

    transaction: StateAssistedTransaction
    heard: "asyncio.Future[tuple[Eid, float]]" = (
        field(  # the phone's advert, and when it came, by the event loop's clock
            default_factory=lambda: asyncio.get_running_loop().create_future()
        )
    )


class _PhoneLeft(Exception):  # noqa: N818  the ceremony goes on
    """A phone that was reached is left, since another recipient has the claim or may get it. Its cause says why."""

    def __init__(self, why: HeadlessPasskeyError) -> None:
        super().__init__()
        self.why = why


@dataclass(slots=True, kw_only=True)
class _Ceremony:
    """One ceremony: the state that its tasks share."""

    ask: Ask
    options: OptionsSource | Callable[[], Awaitable[Begun[Any]]]
    delivery: Delivery
    tunnels: Mapping[int, str]
    tls: ssl.SSLContext | None
    on_stage: Callable[[StageEvent], None]
    settle: Callable[[Credential], Awaitable[Any]] | None
    users: Users | None
    links: Links | None
    link: bool
    min_rssi: int | None
    join_within: float | None
    direct: ConnectingSource | None  # where the direct channel is offered
    clock: Callable[[], float]

    stage: Stage | None = None  # the last stage
    _callers_error: Exception | None = (
        None  # what `on_stage` has raised: it ends the ceremony, whatever its kind
    )
    refusals: dict[str, Refusal] = field(default_factory=dict)  # by recipient
    _now: Callable[[], float] = field(default_factory=lambda: asyncio.get_running_loop().time)
    _name: str = field(default_factory=lambda: secrets.token_hex(4))  # for the log
    _began: float = field(default_factory=time.monotonic)
    _candidates: dict[str, _Candidate] = field(default_factory=dict)  # by recipient
    _contacts: dict[asyncio.Task[None], _Contact] = field(
        default_factory=dict
    )  # without the one that has reached its phone
    _trying: asyncio.Task[None] | None = None  # the links, one after another
    _claimer: str | None = None  # the recipient that holds the claim
    _has_ended: bool = False  # the request has: its error comes next, or it was completed
    _turn: asyncio.Event = field(default_factory=asyncio.Event)  # set, and replaced, at the next progress
    _listening: bool = False
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_ATTEMPTS))
    _reached: "asyncio.Future[PhoneChannel]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    _begun: Begun[Any] | None = None  # what the relying party has begun last; it gets the response
    _hung_up: TransportError | None = None  # how the phone that was reached hung up
    _put_out: HeadlessPasskeyError | None = (
        None  # the account is closed to this device, as it heard at the end
    )
    _submitted: bool = False  # the delivery may have sent the request
    _told_the_end: bool = False  # the delivery was reached at the end
    _notified: set[str] = field(default_factory=set)  # companions of whom NOTIFIED was told
    _told_nobody: bool = False  # whether NOT_NOTIFIED was

    async def run(self, radio: AdvertSource, limit: asyncio.Timeout, lifetime: float) -> CeremonyResult:
        """Find the phone, send it the command, and settle the response. limit: lifted once the response is settled."""
        if not callable(self.options):
            self._check_options(self.options)
        links = () if self.links is None else await self.links.usable(self.ask, self._tell_forgotten)
        if not links:
            await self._make_urls()
        async with task_group() as tasks:
            async with AsyncExitStack() as until_answered:
                phone, (credential, expected, user_checked) = await self._get_answer(
                    radio, links, lifetime, tasks, until_answered
                )
            # the tunnel closes concurrently
            settle = self.settle if self._begun is None else self._begun.complete
            if settle is None:
                completed = CeremonyResult(credential=credential, user_checked=user_checked)
            else:
                result = await (
                    settle(credential)
                    if self.users is None
                    else self.users.settle(credential, settle, expected=expected)
                )
                completed = Settled(credential=credential, user_checked=user_checked, result=result)
            if not limit.expired():
                limit.reschedule(
                    None
                )  # only the tunnel's closing and the link are left, which have time limits of their own
        await self._settle_link(phone)
        return completed

    async def _make_urls(self) -> None:
        """Make a URL for each recipient of the delivery."""
        recipients = await self.delivery.recipients()
        if not recipients:
            raise LocalProtocolError("the delivery has no recipients")
        for recipient in recipients:
            transaction = QrTransaction.create(
                hint=self.ask.kind,
                time=int(self.clock()),
                linking=self.link,
                direct=self.direct is not None,
            )
            self._candidates[recipient] = _Candidate(recipient, transaction)

    def _tell_forgotten(self, label: str, why: ForgottenLink) -> None:
        self.report(Stage.LINK_FORGOTTEN, {"phone": label, "reason": why})

    async def _settle_link(self, phone: PhoneChannel) -> None:
        """Store the link that the phone has offered, or note that its link was used. The response is settled, whatever becomes of it."""
        if self.links is None:
            return
        label, reason = None, "too-many-links"
        try:
            if phone.linked is not None:
                await self.links.used(phone.linked)
            elif isinstance(phone.offered, LinkedPhone):
                label = await self.links.keep(phone.offered, phone.recipient or "")
            else:
                reason = phone.offered
        except HeadlessPasskeyError as error:
            logger.warning("ceremony %s: the file of links was not changed: %s", self._name, error)
            reason = error.reason or "not-stored"
        if label is not None:
            self.report(Stage.LINKED, {"phone": label})
        elif phone.was_asked_for_a_link:
            self.report(Stage.NOT_LINKED, {"reason": reason})

    def explain(self, error: Exception) -> Exception:
        """The error of a ceremony that found no phone: that a phone answered without a claim (T3), else `error`.

        Of a phone that has hung up it is how it did, which tells more than what its companion then says of its connection, or
        that the account is closed to this device, which ends companions and their phones as well.
        Without a claim means that the delivery has told of none, and knows of none when it is told of the end: a relay that is not
        reached has shown none.
        """
        if (
            self._hung_up is not None
            and isinstance(error, TransportError)
            and error is not self._callers_error
        ):
            return self._put_out or self._hung_up
        found_nobody = isinstance(error, TransportError) or (
            isinstance(error, NotApproved) and error.outcome is Outcome.EXPIRED
        )
        waited_in_vain = self._told_the_end and any(
            candidate.unclaimed and not candidate.claimed and candidate.recipient != self._claimer
            for candidate in self._candidates.values()
        )
        return _not_claimed() if found_nobody and waited_in_vain and not self._reached.done() else error

    def report(
        self,
        stage: Stage,
        detail: StageDetail | None = None,
        *,
        phone: GetInfoResponse | None = None,
        refusal: Refusal | None = None,
        digits: str | None = None,
    ) -> None:
        self.stage = stage
        elapsed = time.monotonic() - self._began
        logger.info("ceremony %s: %s after %.3f s", self._name, stage, elapsed)
        event = StageEvent(
            stage=stage, elapsed=elapsed, detail=detail or {}, phone=phone, refusal=refusal, digits=digits
        )
        try:
            self.on_stage(event)
        except Exception as error:
            self._callers_error = error
            raise

    async def tell_the_end(self, outcome: DeviceEvent, reason: str | None) -> None:
        """Report the end to the delivery. A failure or timeout is ignored, since the request expires by itself."""
        if not self._submitted:
            return
        self._submitted = False
        try:
            async with asyncio.timeout(REPORT_TIMEOUT):
                self._claimer = await self.delivery.finish(outcome, reason) or self._claimer
            self._told_the_end = True
        except (TimeoutError, HeadlessPasskeyError) as error:
            logger.info("ceremony %s: %s was not reported (%s)", self._name, outcome, type(error).__name__)
            if isinstance(error, HeadlessPasskeyError) and error.exit_status is ExitStatus.NOT_ENROLLED:
                self._put_out = error
        except Exception as error:  # noqa: BLE001  a fault of the delivery; its message may hold anything
            what = "ceremony %s: %s was not reported: the delivery raised %s"
            logger.error(what, self._name, outcome, type(error).__name__)  # noqa: TRY400  no traceback either

    async def _get_answer(
        self,
        radio: AdvertSource,
        links: Sequence[LinkedPhone],
        lifetime: float,
        tasks: asyncio.TaskGroup,
        until_answered: AsyncExitStack,
    ) -> tuple[PhoneChannel, tuple[Credential, bool, bool]]:
        """Find a phone and use it, and the next one where it is left; returns the phone that answered, and what `_use` does.

        The radio is on while no phone is reached. until_answered: while it is open, the request is followed.
        """
        requesting = None
        for _ in range(MAX_PHONES):
            async with radio.adverts() as adverts:
                if requesting is None:
                    requesting = await self._request(links, lifetime, tasks)
                    until_answered.push_async_callback(end, requesting)
                phone = await self._find_phone(adverts, tasks)
            try:
                if phone.linked is not None:
                    # no other phone is to ask its user, nor this one for the request
                    await end(requesting)
                    withdrawing = tasks.create_task(self.tell_the_end(DeviceEvent.CANCELLED, "linked-phone"))
                    await asyncio.wait({withdrawing}, timeout=WITHDRAWAL)
                return phone, await self._use(phone)
            except _PhoneLeft as left:
                self._tell_failed(left.why, {})
                self._reached, self._hung_up = asyncio.get_running_loop().create_future(), None
            finally:
                phone.let_go.set()
        raise TrustError(
            TrustReason.RECIPIENT_MISMATCH,
            f"{MAX_PHONES} phones were reached, and each one's companion has lost the request",
            advice="try again",
        )

    async def _request(
        self, links: Sequence[LinkedPhone], lifetime: float, tasks: asyncio.TaskGroup
    ) -> asyncio.Task[None]:
        """Try the links, or deliver the URLs, while the radio is on already; returns the task that follows the request."""
        self.report(
            Stage.PREPARED,
            {"links": len(links)} if links else {"recipients": len(self._candidates)},
        )
        if self.ask.digits is not None:
            self.report(Stage.DIGITS, digits=self.ask.digits)
        if links:
            return tasks.create_task(self._race(links, lifetime, tasks))
        await self._submit(lifetime)
        return tasks.create_task(self._follow(tasks))

    async def _find_phone(self, adverts: AsyncIterator[Advert], tasks: asyncio.TaskGroup) -> PhoneChannel:
        """Listen until a channel to a phone is open."""
        listening = tasks.create_task(self._listen(adverts, tasks))
        try:
            return await asyncio.shield(self._reached)
        finally:
            self._listening = False
            await end(listening, *self._pursuits)
            for candidate in self._candidates.values():
                for heard in candidate.heard.values():
                    heard.pursued = False

    async def _submit(self, lifetime: float) -> None:
        urls = {name: candidate.transaction.url for name, candidate in self._candidates.items()}
        self._submitted = True  # also when the call fails
        try:
            await self.delivery.submit(self.ask, urls, lifetime=lifetime)
        except LocalProtocolError:  # nothing was sent; the delivery's request may be another ceremony's
            self._submitted = False
            raise
        self.report(Stage.SUBMITTED)

    async def _race(self, links: Sequence[LinkedPhone], lifetime: float, tasks: asyncio.TaskGroup) -> None:
        """Try the links, and send the request as well when all have failed or `LINKED_FIRST` seconds have gone by.

        A delivery that cannot be reached is no error while a linked phone may still come.
        """
        began = self._now()
        trying = self._trying = tasks.create_task(self._try_links(links, tasks))
        await asyncio.wait({trying}, timeout=LINKED_FIRST)
        if self._reached.done() or trying.cancelled():  # the ceremony ends
            return
        try:
            await self._make_urls()
            await self._submit(lifetime - (self._now() - began))
            await self._follow(tasks)
        except TransportError as error:
            if error is self._callers_error:
                raise
            logger.info("ceremony %s: the request was not delivered: %s", self._name, error)
            await asyncio.wait({trying})
            if not self._reached.done():
                raise

    async def _try_links(self, links: Sequence[LinkedPhone], tasks: asyncio.TaskGroup) -> None:
        """Contact one linked phone after another, each when the last one has failed or `LINKED_FIRST` seconds have gone by."""
        for link in links:
            contact = _Contact(StateAssistedTransaction.create(link, hint=self.ask.kind))
            contacting = tasks.create_task(self._contact(contact))
            self._contacts[contacting] = contact
            contacting.add_done_callback(lambda task: self._contacts.pop(task, None))
            await asyncio.wait({contacting}, timeout=LINKED_FIRST)
        while self._contacts:
            await asyncio.wait(self._contacts)

    async def _contact(self, contact: _Contact) -> None:
        """Have a linked phone woken, and open a channel to it (§11.5.2). A failure ends this attempt only, and a dead link."""
        phone = contact.transaction.phone
        self.report(Stage.CONTACTING, {"phone": phone.name})
        failed = await self._reach_linked(contact)
        if failed is None:
            return
        if isinstance(failed, TunnelRefused) and failed.status == HTTPStatus.GONE and self.links is not None:
            try:
                await self.links.forget(phone)
            except HeadlessPasskeyError as error:
                failed = error
            else:
                self._tell_forgotten(phone.name, ForgottenLink.GONE)
                return
        self._tell_failed(failed, {"phone": phone.name})

    async def _reach_linked(self, contact: _Contact) -> Exception | None:
        """Open the tunnel, wait for the phone's advert, and make the handshake; returns the error of a failure."""
        transaction, detail = contact.transaction, StageDetail(phone=contact.transaction.phone.name)
        number = transaction.phone.tunnel_domain
        base = self._tunnel_service(number)
        if base is None:
            return SetupError(
                f"no tunnel service is known for domain {number}", reason=SetupReason.WRONG_SERVER
            )
        async with AsyncExitStack() as stack:
            try:
                tunnel = await stack.enter_async_context(
                    open_tunnel(transaction.contact_url(base), headers=transaction.headers, tls=self.tls)
                )
                eid, heard_at = await tunnel.unless_it_ends(contact.heard)
            except (TransportError, RemoteProtocolError, SetupError) as error:
                return error
            self.report(Stage.ADVERT_HEARD, detail)
            self.report(Stage.TUNNEL_JOINED, detail)
            limit = None if self.join_within is None else heard_at + self.join_within
            phone = await self._shake_hands(tunnel, transaction, eid, limit=limit)
            if isinstance(phone, Exception):
                return phone
            if not self._reached.done() and self._claimer is None:
                self.report(Stage.CHANNEL_OPEN, detail, phone=phone.get_info)
                self._contacts.pop(_this_task())
                self._reached.set_result(phone)
                await phone.hold()
            return None

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        """Follow the request; any end but completion ends the ceremony."""
        seen: RequestState | None = None
        told_unconfirmed, told_forgotten = False, None
        async with aclosing(self.delivery.progress()) as states:
            async for progress in states:
                if progress.unconfirmed is not None and not told_unconfirmed:
                    told_unconfirmed, who = True, progress.unconfirmed
                    self.report(
                        Stage.RING_UNCONFIRMED,
                        {"companion": who.companion, "label": who.label, "days": who.days},
                    )
                lost = progress.forgotten
                if lost is not None and lost != told_forgotten:
                    told_forgotten = lost
                    detail: StageDetail = {"first": lost.first, "last": lost.last, "given": lost.given}
                    if lost.why_not is not None:
                        detail["reason"] = lost.why_not
                    self.report(Stage.RELAY_FORGOT_RINGS, detail)
                self._note_notified(progress)
                self._note_refusals(progress.refusals)
                self._claimer, self._has_ended = progress.claimed_by, progress.state.terminal
                if self._claimer is not None:  # who has claimed has approved, and nobody else is to be asked
                    if (claimer := self._candidates.get(self._claimer)) is not None:
                        claimer.claimed = True
                    self._stop_contacts()
                self._turn.set()
                self._turn = asyncio.Event()
                self._turn_to_who_may_go_on(tasks)
                stage = _STAGES.get(progress.state)
                if progress.state != seen and stage is not None:
                    self.report(stage)
                seen = progress.state

    def _note_notified(self, progress: Progress) -> None:
        """Give an event for each companion that was notified, and one when none could be."""
        if progress.notified is None:
            return
        for each in progress.notified:
            is_push = each.outcome == "sent" and each.channel != "inbox"
            if is_push and each.companion not in self._notified:
                self._notified.add(each.companion)
                detail: StageDetail = {"companion": each.companion, "channel": each.channel}
                if each.label is not None:
                    detail["label"] = each.label
                self.report(Stage.NOTIFIED, detail)
        in_vain = not any(each.outcome in ("sent", "pending") for each in progress.notified)
        if in_vain and progress.state is RequestState.PENDING and not self._told_nobody:
            self._told_nobody = True
            self.report(Stage.NOT_NOTIFIED)

    def _note_refusals(self, refusals: Sequence[Refusal]) -> None:
        """Give events for new refusals."""
        before, self.refusals = self.refusals, {refusal.companion: refusal for refusal in refusals}
        for refusal in refusals:
            if before.get(refusal.companion) != refusal:
                detail: StageDetail = {"companion": refusal.companion, "reason": refusal.reason}
                if refusal.label is not None:
                    detail["label"] = refusal.label
                self.report(Stage.REFUSED, detail, refusal=refusal)

    def _has_refused(self, recipient: str) -> bool:
        refusal = self.refusals.get(recipient)
        return refusal is not None and not refusal.may_change

    def _standing(self, recipient: str) -> _Standing:
        if self._has_refused(recipient):
            return _Standing.OUT
        if self._claimer is None:
            return _Standing.WAITING if self.delivery.needs_claim else _Standing.ACTIVE
        return _Standing.ACTIVE if self._claimer == recipient else _Standing.ASIDE

    def _may_go_on(self, candidate: _Candidate) -> bool:
        """Whether adverts of this recipient's phone are tried (T5)."""
        standing = self._standing(candidate.recipient)
        return standing is _Standing.ACTIVE or (standing is _Standing.WAITING and not candidate.unclaimed)

    async def _claim_of(self, recipient: str) -> _Standing:
        """Wait for the claim of `recipient`, at most `CLAIM_TIMEOUT`; returns its standing then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLAIM_TIMEOUT):
                while self._standing(recipient) is _Standing.WAITING:
                    await self._turn.wait()
        return self._standing(recipient)

    def _turn_to_who_may_go_on(self, tasks: asyncio.TaskGroup) -> None:
        """Stop attempts with other candidates' adverts. They resume, with adverts received meanwhile, when the claim is given back."""
        for candidate in self._candidates.values():
            if self._standing(candidate.recipient) in (_Standing.ASIDE, _Standing.OUT):
                for task in candidate.pursuits:
                    task.cancel()
                for heard in candidate.heard.values():
                    heard.pursued = False
            elif self._listening and self._may_go_on(candidate):
                for heard in candidate.heard.values():
                    self._begin_pursuit(candidate, heard, tasks)

    def _stop_contacts(self, *, unheard: bool = False) -> None:
        """Give up linked phones that are not reached, or with `unheard` those only whose advert was not heard."""
        if self._trying is not None:
            self._trying.cancel()
        for task, contact in self._contacts.items():
            if not (unheard and contact.heard.done()):
                task.cancel()

    @property
    def _pursuits(self) -> set[asyncio.Task[None]]:
        pursuits = {task for candidate in self._candidates.values() for task in candidate.pursuits}
        return pursuits | set(self._contacts) | ({self._trying} if self._trying is not None else set())

    async def _listen(self, adverts: AsyncIterator[Advert], tasks: asyncio.TaskGroup) -> None:
        self._listening = True
        self._turn_to_who_may_go_on(tasks)  # to what was heard before, when a phone was left
        try:
            async for advert in adverts:
                if self._is_near(advert):
                    self._hear_linked(advert)
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
        self._stop_contacts(unheard=True)
        while pursuits := {each for each in self._pursuits if not each.done()}:
            await asyncio.wait(pursuits)  # adverts that were received before may still lead to the phone
        if not self._reached.done():
            raise ended

    def _is_near(self, advert: Advert) -> bool:
        return self.min_rssi is None or (advert.rssi is not None and advert.rssi >= self.min_rssi)

    def _hear_linked(self, advert: Advert) -> None:
        """Record the advert of a linked phone. Its routing ID and tunnel domain have no meaning."""
        for contact in self._contacts.values():
            if not contact.heard.done():
                eid = contact.transaction.open_advert(advert.service_data)
                if eid is not None:
                    contact.heard.set_result((eid, self._now()))

    def _hear(self, candidate: _Candidate, advert: Advert) -> _Heard | None:
        """Record an advert of this candidate's phone; None for others. Some radios report an advert only once."""
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
        self._note_way(heard, advert)
        return heard

    def _note_way(self, heard: _Heard, advert: Advert) -> None:
        """Record how the phone is reached directly, if it says so."""
        suffix = None if self.direct is None else parse_suffix(advert.service_data)
        if suffix is None or suffix.psm is None or advert.address is None:
            return
        way = _Way(advert=advert, psm=suffix.psm)
        if not any(way.same_as(other) for other in heard.ways):
            heard.ways.append(way)
            del heard.ways[:-MAX_WAYS]

    def _begin_pursuit(self, candidate: _Candidate, heard: _Heard, tasks: asyncio.TaskGroup) -> None:
        """Start a task that tries the advert, unless one runs, its time is over, or the candidate may not go on."""
        may_try = self._in_time(heard) and self._may_go_on(candidate)
        if heard.is_news and not heard.pursued and may_try:
            heard.pursued = True
            pursuit = tasks.create_task(self._pursue(candidate, heard))
            candidate.pursuits.add(pursuit)
            pursuit.add_done_callback(candidate.pursuits.discard)

    def _tunnel_service(self, number: int) -> str | None:
        """The base URL of a tunnel domain; None for an unassigned one, whose adverts are ignored (§11.5.1)."""
        try:
            return self.tunnels.get(number) or f"wss://{tunnel_domain(number)}"
        except RemoteProtocolError:
            logger.info("ceremony %s: no tunnel service is known for domain %d", self._name, number)
            return None

    async def _pursue(self, candidate: _Candidate, heard: _Heard) -> None:
        """Try an advert until it is too old. Attempts repeat because networks fail and some radios report an advert only once."""
        detail: StageDetail = {"tunnel_domain": heard.eid.tunnel_domain}
        if heard.rssi is not None:
            detail["rssi"] = heard.rssi
        self.report(Stage.ADVERT_HEARD, detail)
        while self._in_time(heard):
            async with self._slots:
                failed = await self._attempt(candidate, heard)
            if failed is None:
                return
            heard.attempts += 1
            self._tell_failed(failed, {"attempt": heard.attempts})
            if isinstance(failed, TrustError):  # not claimed: it is tried again when it is
                heard.pursued = False
                return
            await asyncio.sleep(heard.pause)
            heard.pause = min(2 * heard.pause, LAST_PAUSE)
            if isinstance(failed, RemoteProtocolError | SetupError):
                break  # permanent, unless the advert is received again
        heard.pursued, heard.is_news = False, False

    def _tell_failed(self, failed: Exception, detail: StageDetail) -> None:
        why = str(failed) or "the phone did not finish the handshake in time"
        logger.info("ceremony %s: attempt failed: %s", self._name, why)
        self.report(Stage.ATTEMPT_FAILED, {"why": why, **detail})

    def _in_time(self, heard: _Heard) -> bool:
        """Whether the advert may still be tried."""
        now, limit = self._now(), self._limit(heard)
        return now - heard.last < FRESHNESS and (limit is None or now < limit)

    def _limit(self, heard: _Heard) -> float | None:
        """The time by which the advert's channel must be open, on the event loop's clock."""
        return None if self.join_within is None else heard.first + self.join_within

    async def _attempt(self, candidate: _Candidate, heard: _Heard) -> Exception | None:
        """Open a channel to the phone that sent the advert, and wait for the claim; returns the error of a failure.

        The direct channel comes first, where there is one, and the tunnel when that has failed.
        """
        limit = self._limit(heard)
        if self.direct is not None and heard.ways:
            way = heard.ways.pop()
            heard.ways.insert(0, way)
            soon = self._now() + DIRECT_TIMEOUT
            failed = await self._attempt_over(
                _connected(self.direct, way),
                Stage.DIRECT_JOINED,
                candidate,
                heard,
                soon if limit is None else min(soon, limit),
            )
            if failed is None or isinstance(failed, TrustError):
                return failed
            self.report(Stage.DIRECT_FAILED, {"why": str(failed) or "it took too long"})
        url = connect_url(heard.base, heard.eid.routing_id, candidate.transaction.url.tunnel_id)
        return await self._attempt_over(
            open_tunnel(url, tls=self.tls), Stage.TUNNEL_JOINED, candidate, heard, limit
        )

    async def _attempt_over(
        self,
        opening: AbstractAsyncContextManager[Tunnel | DirectChannel],
        opened: Stage,
        candidate: _Candidate,
        heard: _Heard,
        limit: float | None,
    ) -> Exception | None:
        """Open a channel, make the handshake, and wait for the claim; returns the error of a failure.

        opened: the stage once the channel is open. limit: of the handshake, on the event loop's clock.
        """
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout_at(limit):
                    carrier = await stack.enter_async_context(opening)
            except (TransportError, RemoteProtocolError, SetupError, TimeoutError) as error:
                return error
            self.report(opened)  # what the caller's `on_stage` raises is no failed attempt
            phone = await self._shake_hands(
                carrier, candidate.transaction, heard.eid, limit=limit, recipient=candidate.recipient
            )
            if isinstance(phone, Exception):
                return phone
            if self._reached.done():
                return None
            if not self._may_go_on(candidate):  # it has a channel already
                return _not_claimed()
            candidate.unclaimed |= self._standing(candidate.recipient) is _Standing.WAITING
            self.report(Stage.CHANNEL_OPEN, phone=phone.get_info)
            if await self._claim_of(candidate.recipient) is not _Standing.ACTIVE:
                return _not_claimed()
            if not self._reached.done():
                candidate.pursuits.remove(_this_task())  # no longer ended by the state of its candidate
                heard.is_news = False
                self._reached.set_result(phone)
                await phone.hold()
            return None

    async def _shake_hands(
        self,
        carrier: Tunnel | DirectChannel,
        transaction: QrTransaction | StateAssistedTransaction,
        eid: Eid,
        *,
        limit: float | None,
        recipient: str | None = None,
    ) -> PhoneChannel | Exception:
        """Make the handshake in time; returns the error of a failure. limit: on the event loop's clock."""
        try:
            async with asyncio.timeout_at(limit), asyncio.timeout(HANDSHAKE_TIMEOUT):
                return await PhoneChannel.open(carrier, transaction, eid, recipient=recipient)
        except (TransportError, RemoteProtocolError, SetupError, TimeoutError) as error:
            return error

    async def _use(self, phone: PhoneChannel) -> tuple[Credential, bool, bool]:
        """Send exactly one CTAP command; returns its checked reply, whether caller or relying party expected this user, and whether the user was checked."""
        options = await self._known_options()
        if phone.recipient is not None:
            await self._check_claim(phone.recipient)
        reply = await self._unless_left(phone, self._ask_phone(phone, options))
        if reply.code != Status.SUCCESS:
            raise ctap_error(reply.code)
        credential = options.accept(reply.payload, phone.get_info)
        expected = isinstance(options, AuthenticationOptions) and self._expects(options)
        user_checked = self._check_user(options, credential)
        self.report(Stage.REPLY_CHECKED)
        return credential, expected, user_checked

    async def _ask_phone(self, phone: PhoneChannel, options: Options) -> Ctap:
        """Send the command; returns the reply. `_PhoneLeft` when the phone hangs up and another one may answer in its place."""
        try:
            await phone.send(options.ctap_request(phone.get_info))
            self.report(Stage.REQUEST_SENT)
            return await phone.reply()
        except TransportError as error:
            if error is self._callers_error:
                raise
            self._hung_up = error
            if not await self._may_another_answer(phone):
                raise
            raise _PhoneLeft(error) from error

    async def _may_another_answer(self, phone: PhoneChannel) -> bool:
        """Whether a phone that has hung up loses the claim, at most `HUNG_UP_TIMEOUT` later, and another recipient may get it.

        A companion that is ended gives its claim back, of which the relay tells after the phone in it has hung up.
        """
        others = (
            each for each in self._candidates if each != phone.recipient and not self._has_refused(each)
        )
        if phone.recipient is None or not self.delivery.needs_claim or not any(others):
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(HUNG_UP_TIMEOUT):
                while self._standing(phone.recipient) is _Standing.ACTIVE:
                    await self._turn.wait()
        return self._standing(phone.recipient) is not _Standing.ACTIVE and not self._has_ended

    async def _unless_left(self, phone: PhoneChannel, work: Coroutine[Any, Any, _T]) -> _T:
        """Await `work` with a phone; `_PhoneLeft`, also when `work` is done, once its companion cannot have the claim any more.

        A claim that is gone, and that nobody else has, leaves the phone its answer: it may act without its companion.
        """
        working = asyncio.ensure_future(work)
        try:
            while True:
                if phone.recipient is not None:
                    self._check_standing(phone.recipient)
                if working.done():
                    return working.result()
                turning = asyncio.ensure_future(self._turn.wait())
                try:
                    await asyncio.wait({working, turning}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await end_quietly(turning)
        finally:
            await end_quietly(working)

    async def _check_claim(self, recipient: str) -> None:
        """Leave a phone whose companion holds the claim no more (T3, T5): the claim may end after the phone was reached."""
        if await self._claim_of(recipient) is _Standing.WAITING:
            self._leave(TrustReason.NOT_CLAIMED, "the companion whose phone answered has lost its claim")
        self._check_standing(recipient)

    def _check_standing(self, recipient: str) -> None:
        """Leave a phone whose companion has refused, or where another one has the claim, while the request lives."""
        if self._has_ended:
            return
        match self._standing(recipient):
            case _Standing.OUT:
                raise _PhoneLeft(refused([self.refusals[recipient]]))
            case _Standing.ASIDE:
                what = "another companion has the claim now than the one whose phone answered"
                self._leave(TrustReason.RECIPIENT_MISMATCH, what)

    def _leave(self, reason: TrustReason, what: str) -> NoReturn:
        raise _PhoneLeft(TrustError(reason, "; ".join([what, *map(str, self.refusals.values())])))

    async def _known_options(self) -> Options:
        """Get the options, and check that they match the announcement."""
        options = self.options
        if callable(options):
            given = await options()
            if isinstance(given, Begun):
                if self.settle is not None:
                    raise LocalProtocolError(
                        "a ceremony begun gets the response itself: nothing is left to settle"
                    )
                self._begun, given = given, given.options
            if isinstance(given, AuthenticationOptions | RegistrationOptions):
                options = given
            else:
                is_get = self.ask.kind is RequestKind.GET_ASSERTION
                parse = AuthenticationOptions.parse if is_get else RegistrationOptions.parse
                options = parse(given, origin=self.ask.origin, related=self.ask.related)
            self._check_options(options)
        return options

    def _check_options(self, options: Options) -> None:
        """Check that the options match what the user approved (T4)."""
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
        if isinstance(options, RegistrationOptions) and self.users is not None:
            self.users.check(options.user.id)

    def _expects(self, options: AuthenticationOptions) -> bool:
        """Whether the caller expects a user, or the relying party a credential: then pinned users have no say."""
        return self.ask.user_handle is not None or bool(options.allow_list)

    def _check_user(self, options: Options, credential: Credential) -> bool:
        """Check that an expected user answered; False when nobody was expected (T3)."""
        if isinstance(options, RegistrationOptions):
            return True
        expected, came = self.ask.user_handle, credential.user_handle
        if expected is not None and came != expected and not (came is None and options.allow_list):
            raise TrustError(
                TrustReason.UNEXPECTED_USER, "a passkey of another account than expected answered"
            )
        return self._expects(options) or (self.users is not None and self.users.check(came))


@asynccontextmanager
async def _connected(radio: ConnectingSource, way: _Way) -> AsyncIterator[DirectChannel]:
    async with radio.connect(way.advert, way.psm) as channel:
        yield DirectChannel(channel)


def _connecting(radio: AdvertSource) -> ConnectingSource:
    """Refuse a radio that cannot open the direct channel."""
    if isinstance(radio, ConnectingSource) and radio.connects:
        return radio
    raise UsageError("the direct channel needs a radio that connects: bleak on Linux, or bumble")


def _not_claimed() -> TrustError:
    return TrustError(
        TrustReason.NOT_CLAIMED,
        "a phone answered whose companion had not claimed the request; it got no command",
    )


_STAGES: Final = {
    RequestState.DELIVERED: Stage.DELIVERED,
    RequestState.CLAIMED: Stage.CLAIMED,
    RequestState.OPENED: Stage.OPENED,
}


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise LocalProtocolError("a ceremony runs in a task")
    return task
