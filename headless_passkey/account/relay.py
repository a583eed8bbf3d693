"""The device's client of the relay (docs/protocol/relay.md).

The relay carries envelopes that it cannot open, and is trusted for availability only: rings are verified one by one, and
the state of a request only tells the device what to wait for.
"""

import asyncio
import logging
import random
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Self

from headless_passkey.errors import (
    EnrolmentReason,
    HeadlessPasskeyError,
    NotApproved,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
)
from headless_passkey.mends import clock_skew, mend, transport_error
from headless_passkey.net.proven_http import MAX_WAIT, PATIENCE, ProblemAnswer, ProvenHttp, open_session
from headless_passkey.refusals import Refusal, refused
from headless_passkey.request import MUTED, NOT_ME, DeviceEvent, InvitationState, RequestState
from headless_passkey.text.base64url import from_base64url
from headless_passkey.text.members import Members
from headless_passkey.trust.admission import Newcomer
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.freshness import ForgottenRings, hear, take_over, withheld
from headless_passkey.trust.introduction import MAC_SIZE, NONCE_SIZE
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import MAX_DOCUMENT, Ring
from headless_passkey.trust.signing import SigningKey
from headless_passkey.trust.word import MAX_WORD
from program_parts.base64url import base64url

WATCH_PATIENCE: Final = 60.0  # seconds the relay may be unreachable during a request
RESUBMISSIONS: Final = 3  # of a request that the relay loses again and again
PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between tries to append a ring
_MAX_PUSHES: Final = 128  # more than an account's companions have channels
_MAX_WORDS: Final = 64  # more than an account has companions
_MAX_LINKS: Final = 32  # rings in one call
_BURST: Final = 8  # changes of a request that come without a pause: more than an honest relay has to tell
_QUICK: Final = 1.0  # seconds: the relay did not hold an unchanged answer that came sooner


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A companion's failure."""

    by: str  # a companion's name
    reason: str  # a word


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPush:
    """What has become of a push to a companion, as the relay says."""

    to: str  # a companion's name
    channel: str  # a word
    outcome: str  # a word


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownClaim:
    """The claim as the relay shows it, unverified."""

    by: str  # a companion's name
    word: bytes = field(repr=False)  # at most 512 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStatus:
    """The relay's status of a request."""

    state: RequestState
    version: int  # grows with every change
    expires_at: int  # Unix seconds by the relay's clock
    now: int  # the relay's clock
    claim: ShownClaim | None
    ring_version: int  # of the account's newest ring, as the relay says
    ring_hash: bytes  # 32 bytes
    reason: str | None  # a word
    failures: tuple[Failure, ...]
    notified: tuple[ShownPush, ...]

    @classmethod
    def parse(cls, members: Members) -> "RequestStatus":
        claim, ring = members.optional_object("claim"), members.object("ring")
        return cls(
            state=request_state(members),
            version=members.integer("version"),
            expires_at=members.integer("expires_at"),
            now=members.integer("now"),
            claim=None
            if claim is None
            else ShownClaim(by=claim.text("by", 64), word=claim.octets("word", 1, MAX_WORD)),
            ring_version=ring.integer("version"),
            ring_hash=ring.octets("hash", 32),
            reason=members.optional_word("reason"),
            failures=tuple(
                Failure(by=failure.text("by", 64), reason=failure.word("reason"))
                for failure in members.objects("failures", 16)
            ),
            notified=tuple(
                ShownPush(to=push.text("to", 64), channel=push.word("channel"), outcome=push.word("outcome"))
                for push in members.objects("notified", _MAX_PUSHES)
            ),
        )

    def refusals(self, label: Callable[[str], str | None] = lambda _name: None) -> tuple[Refusal, ...]:
        """The refusals by companions. label: looks up a companion's label by its name."""
        return tuple(
            Refusal(companion=failure.by, label=label(failure.by), reason=failure.reason)
            for failure in self.failures
        )

    def error(self, label: Callable[[str], str | None] = lambda _name: None) -> HeadlessPasskeyError | None:
        """The error of a request that ended without an answer; None while it lives and when it completed.

        label: as with `refusals`.
        """
        match self.state:
            case RequestState.DECLINED | RequestState.CANCELLED:
                outcome = Outcome(self.state)
                if self.reason == (NOT_ME if outcome is Outcome.DECLINED else MUTED):
                    return NotApproved(
                        outcome,
                        'somebody who was asked said "not me", and the relay takes no requests of this device now',
                        advice=mend(EnrolmentReason.DEVICE_MUTED),
                    )
                why = f" ({self.reason})" if self.reason else ""
                return NotApproved(outcome, f"the request was {self.state}{why}")
            case RequestState.EXPIRED:
                said = "; ".join(["nobody approved in time", *map(str, self.refusals(label))])
                return NotApproved(Outcome.EXPIRED, said)
            case RequestState.SUPERSEDED:
                return NotApproved(Outcome.SUPERSEDED, "a newer request of this device took its place")
            case RequestState.FAILED:
                refusals = [each for each in self.refusals(label) if not each.may_change]
                unnamed = Refusal(companion="", label=None, reason=self.reason or "unspecified")
                return refused(refusals or [unnamed], holder=None if self.claim is None else self.claim.by)
            case _:
                return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The inviter's answer, unverified until `Newcomer.accept`."""

    ring: bytes
    mac: bytes


def log_forgotten(rings: ForgottenRings) -> None:
    """Log the alarm, where no user is told of it."""
    logger.warning("relay-forgot-rings: %s", rings)


class MemberClient:
    """Makes the calls that devices and companions share: for rings and introductions."""

    _unknown: ClassVar = "the relay knows no member with this key"

    def __init__(
        self,
        http: ProvenHttp,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._http, self._sleep, self._chance = http, sleep, chance

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        url: str,
        key: SigningKey,
        *,
        tls: ssl.SSLContext | None,
        clock: Callable[[], float] = time.time,
    ) -> AsyncIterator[Self]:
        """A relay at `url`, asked with proofs of `key`. tls: whom to believe; None for the system's roots."""
        async with open_session(tls) as session:
            yield cls(ProvenHttp(session, url, key, clock=clock))

    async def catch_up(
        self,
        chain: RingChain,
        *,
        patience: float = PATIENCE,
        keep: Callable[[RingChain], Awaitable[object]] | None = None,
        links: bool = True,
        on_forgotten: Callable[[ForgottenRings], None] = log_forgotten,
    ) -> tuple[RingChain, Mapping[str, int]]:
        """Fetch and verify the relay's newer rings; returns our chain with them, and the newest word's time of each companion.

        `TrustError` (forked-ring) when the rings do not extend `chain`, or a companion holds another ring than we do;
        (withheld-ring) when a companion holds one that the relay does not show. The newest ring may be the one that took
        this member out: then the relay shows no later one. `TransportError` (unknown-to-relay) when the relay does not
        know this key and shows no such ring.

        Where the relay has dropped rings in between, the newest is taken over by the words of companions, else `TrustError`
        (ring-gap).

        keep: stores the chain after every answer, so that an interruption loses nothing. links: whether to hand in rings
        that we hold and the relay has forgotten, such as after it was restored from a backup. on_forgotten: told of these
        (the alarm relay-forgot-rings); it is logged where nobody asks for it.
        """
        looked_again = False
        while True:
            with self._known():
                answer = await self._http.get("/v1/ring", after=chain.head.version, patience=patience)
            documents = [_ring_document(item) for item in answer.items("rings")]
            if answer.boolean("gap") and documents:
                longer = take_over(
                    chain, documents[-1], words=_words(answer), me=self._http.name, now=self._http.now()
                )
            else:
                longer = chain.extend(documents, now=self._http.now())
            version, ring_hash = answer.integer("version"), answer.octets("hash", 32)
            if keep is not None and longer.head is not chain.head:
                await keep(longer)
            if longer.agrees(version, ring_hash):
                if version < longer.head.version and longer.ancestor(version, ring_hash):
                    lost = ForgottenRings(first=version + 1, last=longer.head.version, given=False)
                    on_forgotten(await self._hand_in(longer, lost) if links else lost)
                words = hear(_words(answer), longer, now=self._http.now())
                if words.ahead is None:
                    return longer, words.at
                if looked_again:
                    raise withheld(words.ahead)
                looked_again = True  # its ring may have been appended meanwhile
            elif longer.head is chain.head:
                raise RemoteProtocolError(
                    "the relay names a ring that it does not show", reason=ProtocolReason.CONTRADICTION
                )
            chain = longer

    async def bring_up_to_date(
        self,
        chain: RingChain,
        *,
        patience: float = PATIENCE,
        keep: Callable[[RingChain], Awaitable[object]] | None = None,
        on_forgotten: Callable[[ForgottenRings], None] = log_forgotten,
    ) -> RingChain:
        """As `catch_up`, without the words."""
        longer, _ = await self.catch_up(chain, patience=patience, keep=keep, on_forgotten=on_forgotten)
        return longer

    async def _hand_in(self, chain: RingChain, lost: ForgottenRings) -> ForgottenRings:
        """Hand in the rings that the relay has forgotten; returns what became of it, and a failure is no error."""
        missing = [ring.document for ring in chain.rings if ring.version >= lost.first]
        try:
            while missing:
                count, size = 1, len(missing[0])
                while (
                    count < len(missing) and count < _MAX_LINKS and size + len(missing[count]) <= MAX_DOCUMENT
                ):
                    size += len(missing[count])
                    count += 1
                body = {"rings": [base64url(document) for document in missing[:count]]}
                await self._http.post("/v1/ring/links", body)
                missing = missing[count:]
        except HeadlessPasskeyError as error:
            return replace(lost, why_not=error.reason or type(error).__name__)
        return replace(lost, given=True)

    async def append_ring(self, ring: Ring) -> bool:
        """Append a ring (compare and set); False when another ring was appended meanwhile.

        `TrustError` with the rule that the relay says it breaks.
        """
        try:
            with self._known():
                await self._http.post("/v1/ring", {"ring": base64url(ring.document)})
        except ProblemAnswer as problem:
            if problem.slug == "ring-conflict":
                return False
            if problem.slug == "bad-ring":
                raise _bad_ring(problem) from problem
            if problem.slug == "not-allowed":
                raise TrustError(
                    TrustReason.CHANGE_NOT_ALLOWED,
                    f"the account service does not allow this change of the account: {problem.detail}",
                ) from problem
            raise
        return True

    # A newcomer's calls, with its new key

    async def introduce(self, newcomer: Newcomer) -> None:
        """Send the introduction with the invitation's ticket. Idempotent.

        `NotApproved` (withdrawn) when the inviter has taken it back.
        """
        invitation, introduction = newcomer.invitation, newcomer.introduction
        body = {
            "account": invitation.account,
            "ticket": base64url(invitation.ticket),
            "body": base64url(introduction.body),
            "signature": base64url(introduction.signature),
            "mac": base64url(introduction.mac),
        }
        try:
            await self._http.post("/v1/introductions", body)
        except NotApproved as error:
            if error.reason is not Outcome.EXPIRED:
                raise
            raise TrustError(
                TrustReason.INVITATION_EXPIRED, "by the relay's clock the invitation has expired"
            ) from error
        except ProblemAnswer as problem:
            if problem.slug != "not-found":
                raise
            raise TrustError(
                TrustReason.INVITATION_EXPIRED,
                "the relay knows no such invitation: it is over, or of another relay",
            ) from problem

    async def inviter_nonce(self, invitation: Invitation, *, patience: float = WATCH_PATIENCE) -> bytes:
        """Wait for the inviter's nonce, 32 bytes, without a timeout. `NotApproved` as with `admission`."""
        answer = await self._introduction(invitation, InvitationState.INTRODUCED, patience)
        return answer.octets("nonce", NONCE_SIZE)

    async def reveal(self, newcomer: Newcomer) -> None:
        """Reveal the newcomer's nonce. Idempotent."""
        body = {"nonce": base64url(newcomer.nonce)}
        with self._waiting():
            await self._http.post(f"/v1/introductions/{newcomer.invitation.id}/nonce", body)

    async def admission(self, invitation: Invitation, *, patience: float = WATCH_PATIENCE) -> Admission:
        """Wait for the inviter's answer, without a timeout.

        `NotApproved` when the inviter has withdrawn the invitation (withdrawn), or has let it expire.
        """
        answer = await self._introduction(invitation, InvitationState.REVEALED, patience)
        return Admission(ring=answer.octets("ring", 1, MAX_DOCUMENT), mac=answer.octets("mac", MAC_SIZE))

    async def withdraw(self, invitation: Invitation) -> None:
        """Withdraw the invitation, as its inviter or its newcomer; the other side is told so. Idempotent."""
        await self._http.delete(f"/v1/invitations/{invitation.id}", any_clock=True)

    async def _introduction(self, invitation: Invitation, state: InvitationState, patience: float) -> Members:
        """Wait until the introduction has left `state`, which it is in or will come to."""
        with self._waiting():
            return await self._left_state(f"/v1/introductions/{invitation.id}", state, patience)

    async def _left_state(self, path: str, state: InvitationState, patience: float) -> Members:
        """Wait at `path` until the invitation has left `state`; asks at most once a second."""
        while True:
            asked = time.monotonic()
            answer = await self._http.get(path, wait=MAX_WAIT, patience=patience, state=str(state))
            now = _invitation_state(answer)
            if now is not state:
                if _ORDER.index(now) < _ORDER.index(state):
                    raise RemoteProtocolError(
                        f"the relay goes back to {now} from {state}", reason=ProtocolReason.CONTRADICTION
                    )
                return answer
            if time.monotonic() < asked + _QUICK:
                await self._sleep(_QUICK * (1 + self._chance()))

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Translate `not-found` of an introduction that was sent: it is over."""
        try:
            yield
        except ProblemAnswer as problem:
            if problem.slug != "not-found":
                raise
            raise NotApproved(Outcome.EXPIRED, "nobody answered the introduction in time") from problem

    @contextmanager
    def _known(self) -> Iterator[None]:
        """Translate `not-found` where every member would get an answer (unknown-to-relay): a relay's word removes nobody."""
        try:
            yield
        except ProblemAnswer as problem:
            if problem.slug == "not-found":
                raise transport_error(self._unknown, TransportReason.UNKNOWN_TO_RELAY) from problem
            raise


class RelayClient(MemberClient):
    """Makes a device's calls to the relay."""

    async def submit(
        self, request_id: bytes, envelopes: Mapping[str, bytes], *, expires_in: int
    ) -> RequestStatus:
        """Submit a request with an envelope for each companion, by its name. A retry sends the same bytes."""
        body = {
            "expires_in": expires_in,
            "envelopes": [{"to": name, "sealed": base64url(sealed)} for name, sealed in envelopes.items()],
        }
        with self._known():
            return RequestStatus.parse(await self._http.put(_request_path(request_id), body))

    async def status(
        self, request_id: bytes, *, after: int | None = None, wait: int = 0, patience: float = PATIENCE
    ) -> RequestStatus:
        """Fetch the request's status, by whatever clock. after, wait: hold the answer until its version differs from `after`, at most `wait` seconds."""
        query = {} if after is None else {"version": after}
        return RequestStatus.parse(
            await self._http.get(
                _request_path(request_id), wait=wait, patience=patience, any_clock=True, **query
            )
        )

    async def watch(
        self,
        request_id: bytes,
        *,
        patience: float = WATCH_PATIENCE,
        on_lost: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncGenerator[RequestStatus, None]:
        """Follow the request's changes until a terminal state.

        patience: seconds the relay may be unreachable before that is a `TransportError`. on_lost: submits the same bytes again when
        the relay does not know the request any more, as after a crash of what it keeps requests in; `RESUBMISSIONS` times at the
        most, after which, and without `on_lost`, that is a `TransportError` too.
        """
        lost = 0
        seen: int | None = None
        quick = 0  # changes in a row that came at once
        while True:
            asked = time.monotonic()
            try:
                status = await self.status(
                    request_id, after=seen, wait=MAX_WAIT if seen else 0, patience=patience
                )
            except ProblemAnswer as problem:
                if problem.slug != "not-found":
                    raise
                lost += 1
                if on_lost is None or lost > RESUBMISSIONS:
                    raise TransportError("the relay has lost the request") from problem
                await on_lost()
                seen = None
                continue
            if status.version != seen:
                seen = status.version
                yield status
                if status.state.terminal:
                    return
                quick = quick + 1 if time.monotonic() < asked + _QUICK else 0
                if quick > _BURST:
                    await self._sleep(_QUICK * (1 + self._chance()))
            elif time.monotonic() < asked + _QUICK:
                await self._sleep(_QUICK * (1 + self._chance()))

    async def call_for_words(self) -> None:
        """Ask the companions for their words, with their next call; the answer comes with a later ring answer."""
        with self._known():
            await self._http.post("/v1/words/call", {}, patience=0)

    async def report(self, request_id: bytes, event: DeviceEvent, reason: str | None = None) -> RequestStatus:
        """Report the end of a request, by whatever clock. reason: at most 64 of [a-z0-9-].

        A completed request without a claim is reported as cancelled.
        """
        body = {"event": event} if reason is None else {"event": event, "reason": reason}
        try:
            path = f"{_request_path(request_id)}/events"
            return RequestStatus.parse(await self._http.post(path, body, any_clock=True))
        except ProblemAnswer as problem:
            if problem.slug != "state-conflict":
                raise
            state = problem.members.optional_text("state")
            if state == event:
                return await self.status(request_id)  # an earlier attempt arrived, and its answer was lost
            if event is DeviceEvent.COMPLETED and state in (RequestState.PENDING, RequestState.DELIVERED):
                return await self.report(request_id, DeviceEvent.CANCELLED, "completed")
            raise


def request_state(members: Members) -> RequestState:
    """Parse the member ``state`` of a request."""
    try:
        return RequestState(members.text("state"))
    except ValueError as error:
        raise RemoteProtocolError(
            "the relay names a state that does not exist", reason=ProtocolReason.UNKNOWN_STATE
        ) from error


def _invitation_state(members: Members) -> InvitationState:
    try:
        return InvitationState(members.text("state"))
    except ValueError as error:
        raise RemoteProtocolError(
            "the relay names a state of the invitation that does not exist",
            reason=ProtocolReason.UNKNOWN_STATE,
        ) from error


_ORDER: Final = tuple(InvitationState)


def inconsistent() -> TransportError:
    """The error for a relay that refuses a ring because of a newer one, try after try, and shows none (relay-inconsistent)."""
    return transport_error(
        "the relay says that the account has changed meanwhile, and shows no change",
        TransportReason.RELAY_INCONSISTENT,
    )


def _bad_ring(problem: ProblemAnswer) -> HeadlessPasskeyError:
    """The error for a ring that the relay refuses. Its reason is a word of ours, or it is not believed."""
    reason = problem.members.optional_text("reason", 64)
    if reason == TrustReason.CLOCK_SKEW:
        return clock_skew("the relay's clock and this one differ too much for a change of the account")
    if reason in tuple(TrustReason):
        return TrustError(
            TrustReason(reason), "the relay refuses the change of the account", advice=mend(reason)
        )
    return problem


def _request_path(request_id: bytes) -> str:
    return f"/v1/requests/{base64url(request_id)}"


def _words(answer: Members) -> list[tuple[str, bytes]]:
    """The words of a ring answer, with the names of their signers."""
    return [
        (word.text("by", 64), word.octets("word", 1, MAX_WORD))
        for word in answer.objects("words", _MAX_WORDS)
    ]


def _ring_document(item: object) -> bytes:
    if not isinstance(item, str) or len(item) > 2 * MAX_DOCUMENT:
        raise RemoteProtocolError("the relay's rings are not text", reason=ProtocolReason.MALFORMED_ANSWER)
    return from_base64url(item)
