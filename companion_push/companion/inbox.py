"""A companion's inbox: it receives the requests of devices, and checks them before the user sees them.

The inbox receives requests from the relay, by a stream or by polling, updates the chain of rings, decrypts each
envelope, and makes the checks of docs/protocol/trust.md in their order. A request that passes is `pending` until it is
approved or declined here, cancelled by its device, claimed by another companion, or expired. A request that fails is
shown with its reason; the inbox reports the refusal of this companion, and the others may take the request.

The relay is trusted for delivery only. Whatever it sends, an answer that fails a check costs one refusal, and
the client waits before it polls again after an answer that came too fast.
"""

import asyncio
import logging
import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from companion_push.companion.cancelling import CANCEL_TIMEOUT, finish_when_cancelled
from companion_push.companion.inbox_stream import NoStream, StreamOver, Ways, streaming
from companion_push.companion.keys import KEEP_PREVIOUS, CompanionState
from companion_push.companion.members import refuse_removed
from companion_push.companion.openers import Opener, Opening
from companion_push.companion.phone import Announced
from companion_push.companion.relay_client import CompanionRelay, Event, Item, Page
from companion_push.companion.wording import known_as, must_say
from headless_passkey.errors import (
    HeadlessPasskeyError,
    NotApproved,
    NotEnrolled,
    Outcome,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
)
from headless_passkey.net.proven_http import MAX_WAIT, ProblemAnswer
from headless_passkey.refusals import INTERRUPTED, MALFORMED, UNANSWERED
from headless_passkey.request import NOT_ME, RequestState
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.checks import check_envelope, recheck, untold_ring, usable_until
from headless_passkey.trust.envelope import Announcement
from headless_passkey.trust.freshness import DAY, UNCONFIRMED_AFTER, witnesses
from headless_passkey.trust.hpke import SoftwareHpkeKey
from headless_passkey.trust.ring import MAX_SKEW, Member
from headless_passkey.trust.word import Claim, Word
from program_parts.base64url import base64url
from program_parts.names import quoted

FINISH: Final = 120  # seconds that a claimed request may last after its expiry

_MIN_PAUSE: Final = 0.5  # seconds between polls without news, and before the first reconnection
_MAX_PAUSE: Final = 30.0
_KEEP: Final = 15.0  # seconds between the calls that keep our claims: an open stream keeps none
_LATE: Final = 25.0  # seconds after which such a call waits no longer for a comment, which comes every 20
_HELD: Final = 1.0  # seconds after which an answer counts as held by the relay
_REPORT_TIMEOUT: Final = 10.0  # seconds for a report that the relay can do without
_WORD_PAUSE: Final = 60.0  # seconds between two words
_KEY_PAUSE: Final = 3600.0  # seconds until a replacement of the HPKE key that failed is tried again
_MAX_SETTLED: Final = 1024  # requests that are settled here and that the relay may still list
_KEEP_OPENED: Final = (
    600  # seconds after its expiry that an opened request is remembered, since clocks are adjusted
)

logger = logging.getLogger(__name__)

Key = tuple[str, bytes]  # device, request id


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CheckedRequest:
    """A request that passed every check; the device has signed its content."""

    announcement: Announcement
    claim: Claim = field(repr=False)  # what approving it claims: the very bytes that came
    device: Member  # from the ring, with the label that people gave it when it joined
    known_as: str  # how people are shown the device: its label, and more where another's looks the same
    over: asyncio.Event = field(
        default_factory=asyncio.Event, repr=False
    )  # set when the relay lists the request no more

    @property
    def key(self) -> Key:
        return self.announcement.device, self.announcement.request_id

    @property
    def short_id(self) -> str:
        """The start of the request id, for people and logs."""
        return _short(self.announcement.request_id)

    def seconds_left(self, now: float) -> float:
        """Seconds until the request can no longer be approved, by our clock."""
        return max(0.0, usable_until(self.announcement) - now)


class NoticeKind(StrEnum):
    """What a `Notice` tells a user interface."""

    LISTENING = "listening"  # the relay has answered
    UNREACHABLE = "unreachable"  # the relay has not answered; the inbox tries again
    RING_CHANGED = "ring-changed"
    RING_UNCONFIRMED = (
        "ring-unconfirmed"  # no other companion has confirmed the ring lately, or one contradicts it
    )
    RELAY_FORGOT_RINGS = "relay-forgot-rings"  # the relay had lost rings that this companion holds
    KEY_REPLACED = "key-replaced"  # this companion's HPKE key, as every 30 days
    RING_REFUSED = "ring-refused"  # the relay's newer ring does not verify
    ARRIVED = "arrived"
    REFUSED = "refused"  # by a check
    GONE = "gone"  # cancelled, expired or claimed elsewhere while it was pending here
    CLAIMED = "claimed"
    CLAIM_LOST = "claim-lost"
    OPENED = "opened"  # handed to the opener
    FINISHED = "finished"  # the opener has done its part
    GIVEN_BACK = "given-back"  # this companion ends, and gives its claim to the others
    DEVICE_BEHIND = "device-behind"  # the relay keeps a ring from a device that asks
    DECLINED = "declined"
    MUTED = "device-muted"  # the relay takes no requests of a device
    UNMUTED = "device-unmuted"
    FAILED = "failed"


@dataclass(slots=True, kw_only=True)
class _Claim:
    """A claim that this companion holds."""

    stays: bool  # as `Opener.stays`
    used: bool = False  # the URL was, or may have been, handed to the opener, which happens once
    lost: bool = False  # to another companion


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """An event for a user interface. It holds no secret."""

    kind: NoticeKind
    message: str  # a sentence; it holds no text of others
    request: str | None = None  # short id
    reason: str | None = None
    advice: str | None = None  # what a person can do about it
    error: HeadlessPasskeyError | None = None  # of a request that ended without an answer
    arrived: CheckedRequest | None = None  # the request, with `NoticeKind.ARRIVED`


class Inbox:
    """Receives and handles the requests for one companion."""

    def __init__(
        self,
        state: CompanionState,
        relay: CompanionRelay,
        *,
        on_notice: Callable[[Notice], None] = lambda _notice: None,
        clock: Callable[[], float] = time.time,
        needs_digits: bool = False,
    ) -> None:
        """needs_digits: whether a request without match digits is refused (digits-missing)."""
        self._needs_digits = needs_digits
        self._state, self._relay, self._on_notice, self._clock = state, relay, on_notice, clock
        keys = state.identity().keys
        self._key, self._me = (
            keys.signing,
            keys.name,
        )  # an HPKE key is read when needed, so that it can be erased
        self._cursor: str | None = None
        self._page: Page | None = None  # the newest one
        self._ways = Ways()
        self._word_due: float = 0  # Unix seconds: when the next word is to be given
        self._word_earliest: float = 0  # and when it may be
        self._keys_settle: float = 0  # Unix seconds: when a key on disk is to be put in place or erased
        self._keys_due: float = 0  # and when to see whether the HPKE key is to be replaced
        self._keys_earliest: float = 0  # and when it may be: two with one state do not outdo each other
        self._ring = state.chain().head.version  # that the relay named last, or the newest that is kept here
        self._heard_of: bool | None = None  # whether the relay has answered; None: not asked yet
        self._muted: frozenset[str] = frozenset()  # devices, as the relay said last
        self._pending: dict[Key, CheckedRequest] = {}
        self._in_hand: dict[Key, CheckedRequest] = {}  # being claimed, opened or declined by this process
        self._claims: dict[Key, _Claim] = {}  # of the requests in `_in_hand`
        self._elsewhere: dict[
            Key, int
        ] = {}  # requests that another companion holds and may give back, by version
        self._settled: OrderedDict[Key, str | None] = (
            OrderedDict()
        )  # with the refusal that is still to be reported
        self._news = asyncio.Event()

    @property
    def pending(self) -> tuple[CheckedRequest, ...]:
        """The requests that can be approved or declined now, in the order of arrival."""
        return tuple(self._pending.values())

    def drop_expired(self) -> float | None:
        """Drop requests that have expired by our clock, whatever the relay says; returns the seconds until the next expires."""
        now = self._clock()
        for request in self.pending:
            if request.seconds_left(now) <= 0:
                self._drop(request.key, NotApproved(Outcome.EXPIRED, "the request has expired"))
        return min((request.seconds_left(now) for request in self.pending), default=None)

    async def changed(self) -> None:
        """Return when `pending` has changed since this was last awaited."""
        await self._news.wait()
        self._news.clear()

    # Listening

    async def listen(self, *, arrivals: bool = True) -> None:
        """Follow the relay's stream until cancelled, or poll where there is none, and reconnect after failures, a wrong clock too.

        arrivals: whether to take new requests. Raises permanent failures: `TrustError` when this companion is no member
        any more, `RemoteProtocolError` when the relay does not speak the protocol.
        """
        pause = _MIN_PAUSE
        while True:
            try:
                if self._ways.streams(time.monotonic()):
                    await self.poll(arrivals=arrivals)  # which tells what is wrong, where a stream only ends
                    delay, pause = await self._follow(arrivals=arrivals), _MIN_PAUSE
                elif await self.poll(wait=MAX_WAIT, arrivals=arrivals):
                    pause = _MIN_PAUSE
                    continue
                else:
                    delay = _MIN_PAUSE * _jitter()
            except (TransportError, TrustError) as error:
                if isinstance(error, TrustError) and error.reason is not TrustReason.CLOCK_SKEW:
                    raise  # a clock is set again, soon after the start of a machine mostly
                if self._heard_of is not False:
                    self._tell(NoticeKind.UNREACHABLE, f"{error.explain()}; trying again")
                self._heard_of, self._cursor = False, None
                if isinstance(error, TrustError):
                    await self._keep_claims()
                delay, pause = pause * _jitter(), min(2 * pause, _MAX_PAUSE)
            await asyncio.sleep(delay)

    async def _keep_claims(self) -> None:
        """Keep what is in hand while our clock is wrong, since its user has consented, and end it when it is over."""
        if self._in_hand:
            with suppress(HeadlessPasskeyError):
                page = await self._relay.inbox(cursor=None, wait=0, any_clock=True)
                self._drop_vanished({item.key: item for item in page.items})

    async def _follow(self, *, arrivals: bool) -> float:
        """Follow one stream to its end; returns the seconds until the next connection."""
        began = called = heard = time.monotonic()
        idle_at = -math.inf  # when a page came that changed no request
        try:
            async with streaming(self._relay, self._cursor) as stream:
                while True:
                    page = None
                    try:
                        async with asyncio.timeout(_LATE):
                            page = await stream.read()
                        heard = time.monotonic()
                    except TimeoutError:
                        pass  # the connection may be dead, which takes longer to notice than a claim lasts
                    now = time.monotonic()
                    if self._claims and now - called > (_MIN_PAUSE if page is None else _KEEP):
                        called = now
                        # a call; what it lists comes by the stream
                        await self._relay.inbox(cursor=None, wait=0, any_clock=True)
                    if page is None:
                        await self._keep_up(arrivals=arrivals)
                    elif not await self._take(page, arrivals=arrivals):
                        # a relay that always has a change of nothing is read with pauses, as it is polled
                        await asyncio.sleep(_MIN_PAUSE if now - idle_at < _MIN_PAUSE else 0)
                        idle_at = time.monotonic()
        except (NoStream, StreamOver) as error:
            now = time.monotonic()
            logger.info("the stream is over after %.0f s: %s", now - began, error)
            return self._ways.ended(error, lived=heard - began, now=now)

    async def poll(self, *, wait: int = 0, arrivals: bool = True) -> bool:
        """Poll the relay once; returns whether to poll again at once: a request came or went, or the relay held the answer.

        wait: seconds the relay may hold the answer while nothing is new. arrivals: as with `listen`.
        """
        asked = time.monotonic()
        await self._settle_keys()
        try:
            page = await self._relay.inbox(cursor=self._cursor, wait=wait)
        except TransportError as error:
            if error.reason is TransportReason.UNKNOWN_TO_RELAY:
                await self.catch_up()  # which has the proof, where this companion was removed
            raise
        held = time.monotonic() - asked > _HELD
        return await self._take(page, arrivals=arrivals) or held

    async def _take(self, page: Page, *, arrivals: bool) -> bool:
        """Take in what the relay lists now; returns whether a request came or went."""
        if not self._heard_of:
            self._heard_of = True
            self._tell(NoticeKind.LISTENING, "connected to the relay")
        self._page = page
        listed = {item.key: item for item in page.items}
        news = self._drop_vanished(listed)
        self._pass_over(page.items, first=self._cursor is None)
        await self._claim_again(listed)
        await self._give_back_what_ended(page.items)
        if arrivals:
            news |= await self._receive([item for item in page.items if self._is_fresh(item)])
        if page.ring_version != self._ring:  # lower: the relay has forgotten rings, and gets them again
            await self._learn_of_change()
            self._ring = page.ring_version
        self._tell_of_mutes(page.muted)
        await self._do_what_is_due(page)
        self._cursor = page.cursor
        return news

    def _tell_of_mutes(self, muted: frozenset[str]) -> None:
        """Tell which devices are muted, and which are no longer."""
        before, self._muted = self._muted, muted
        for device in self._state.chain().head.members if before != muted else ():
            if device.name in muted - before:
                message = f"{quoted(device.label)} is muted: the relay takes no requests of it"
                self._tell(NoticeKind.MUTED, message, advice=_UNMUTE)
            elif device.name in before - muted:
                self._tell(NoticeKind.UNMUTED, f"{quoted(device.label)} is not muted any more")

    async def _keep_up(self, *, arrivals: bool) -> None:
        """Do what time makes due while nothing changes, and take requests again whose answer did not reach the relay."""
        await self._settle_keys()
        if self._page is not None:
            if arrivals:
                await self._receive([item for item in self._page.items if self._is_fresh(item)])
            await self._do_what_is_due(self._page)

    async def _do_what_is_due(self, page: Page) -> None:
        """Report refusals that could not be reported, replace our HPKE key, and give a word. page: the newest one."""
        for item in page.items:
            await self._report_refused(item)
        under_way = page.items or self._in_hand  # requests sealed to the key as it is
        if not under_way and self._clock() >= self._keys_due:
            await self._replace_key()
        if self._word_is_due(wanted=page.word_wanted):
            await self._give_word()

    def _is_fresh(self, item: Item) -> bool:
        known = item.key in self._pending or item.key in self._in_hand or item.key in self._settled
        return not known and item.key not in self._elsewhere and self._may_claim(item)

    def _may_claim(self, item: Item) -> bool:
        """Whether the request is unclaimed, or claimed by an earlier run of this companion that did not open it."""
        unclaimed = item.state in (RequestState.PENDING, RequestState.DELIVERED)
        return unclaimed or (item.state is RequestState.CLAIMED and item.claimed_by == self._me)

    def _drop_vanished(self, listed: Mapping[Key, Item]) -> bool:
        for key, request in self._in_hand.items():
            if key not in listed:
                request.over.set()
            elif key in self._claims and listed[key].claimed_by not in (None, self._me):
                self._lose(key)
        vanished = [key for key in self._pending if key not in listed or not self._may_claim(listed[key])]
        for key in vanished:
            expired = self._pending[key].announcement.expires <= self._clock()
            outcome = Outcome.EXPIRED if expired else Outcome.CANCELLED
            gone = NotApproved(
                outcome, "the request has expired" if expired else "the device withdrew the request"
            )
            if key in listed:
                self._elsewhere[key] = listed[key].version
            self._drop(key, gone if key not in listed else None)
        return bool(vanished)

    def _drop(self, key: Key, error: NotApproved | None) -> None:
        """Drop a pending request that has ended. error: None when another companion has it."""
        request = self._pending.pop(key)
        request.over.set()
        if error is not None:
            self._settle(key)
        self._news.set()
        self._on_notice(
            Notice(
                kind=NoticeKind.GONE,
                message="another companion has the request" if error is None else str(error),
                request=request.short_id,
                reason="already-claimed" if error is None else error.reason,
                advice=None if error is None else error.advice,
                error=error,
            )
        )

    def _pass_over(self, items: tuple[Item, ...], *, first: bool) -> None:
        """Note requests that another companion claimed before we saw them. first: they may be old, so no notice is given."""
        elsewhere: dict[Key, int] = {}
        for item in items:
            dealt_with = item.key in self._settled or item.key in self._in_hand
            since = self._elsewhere.get(item.key)
            if item.claimed_by not in (None, self._me):
                elsewhere[item.key] = item.version
            elif since is not None and item.version <= since:
                elsewhere[item.key] = since  # the answer was made before
            if item.key in elsewhere and since is None and not dealt_with and not first:
                self._on_notice(
                    Notice(
                        kind=NoticeKind.GONE,
                        message="another companion has the request",
                        request=_short(item.request_id),
                        reason="already-claimed",
                    )
                )
        self._elsewhere = elsewhere

    async def _claim_again(self, listed: Mapping[Key, Item]) -> None:
        """Claim again what we lost while the relay was unreachable: the user has consented already."""
        lost = [
            (key, self._in_hand[key])
            for key in self._claims
            if key in listed and listed[key].claimed_by is None
        ]
        for key, request in lost:
            claim = self._claims.get(key)
            if claim is None:  # the opener has ended while another one was claimed
                continue
            with suppress(NotApproved, ProblemAnswer):  # it has ended, or we have failed, meanwhile
                taken = await self._relay.claim(*key, self._word(request))
                if taken is not None:
                    self._lose(key)
                elif claim.used:
                    await self._relay.opened(*key, stays=claim.stays)
                elif key not in self._claims:  # it was given up while it was claimed
                    await self._relay.release(*key)

    def _lose(self, key: Key) -> None:
        """Take note that another companion has our claim, and end what we show of the request, unless that has ended."""
        claim = self._claims.get(key)
        if claim is not None:
            claim.lost = True
            self._in_hand[key].over.set()

    async def _give_back_what_ended(self, items: tuple[Item, ...]) -> None:
        """Give back claims of an earlier run of this companion, which our calls would otherwise keep alive."""
        for item in items:
            ours = item.state is RequestState.OPENED and item.stays and item.claimed_by == self._me
            if ours and item.key not in self._in_hand and item.key not in self._settled:
                with suppress(NotApproved, ProblemAnswer):  # it has ended meanwhile
                    await self._relay.release(*item.key)
                    await self._relay.report(*item.key, Event.FAILED, INTERRUPTED)
                self._settle(item.key)
                self._on_notice(
                    Notice(
                        kind=NoticeKind.GIVEN_BACK,
                        message="a request that was approved before this companion was restarted is left to others",
                        request=_short(item.request_id),
                        reason=INTERRUPTED,
                    )
                )

    async def _receive(self, items: list[Item]) -> bool:
        """Check new requests; returns whether any of them became pending."""
        if not items:
            return False
        try:
            await self.catch_up()
        except (
            TrustError,
            RemoteProtocolError,
            NotEnrolled,
            SetupError,
        ) as error:  # TransportError: it is asked again
            for item in items:  # without a verified ring no request can be checked
                await self._refuse(item, error)
            if not isinstance(error, TrustError) and error.reason not in _DISK:
                raise  # the relay or the state here is unusable
            return False
        before = len(self._pending)
        for item in items:
            try:
                request = self._check(item)
            except (TrustError, RemoteProtocolError, NotEnrolled, SetupError) as error:
                await self._refuse(item, error)
            else:
                self._pending[item.key] = request
                self._news.set()
                self._tell_of_stale_rings(request)
                self._on_notice(
                    Notice(
                        kind=NoticeKind.ARRIVED,
                        message="a request has arrived",
                        request=request.short_id,
                        arrived=request,
                    )
                )
        return len(self._pending) > before

    def _word_is_due(self, *, wanted: bool) -> bool:
        now = self._clock()
        return now >= self._word_earliest and (wanted or now >= self._word_due)

    async def _give_word(self) -> None:
        """Catch up, say which ring this companion holds, and look who confirms it. What fails is tried again later."""
        now = self._clock()
        self._word_earliest = now + _WORD_PAUSE
        try:
            chain, at = await self._caught_up()
            await self._relay.give_word(Word.give(self._key, ring=chain.head, now=now))
        except TrustError as error:
            self._tell(NoticeKind.RING_UNCONFIRMED, str(error), reason=error.reason, advice=error.advice)
        except HeadlessPasskeyError as error:
            logger.info("no word was given: %s", type(error).__name__)
        else:
            self._word_due = now + DAY
            others = [each for each in witnesses(chain, at) if each.member.name != self._me]
            if others and others[0].is_silent(now):
                message = f"no word from {quoted(others[0].member.label)} for {others[0].days(now)} days"
                self._tell(NoticeKind.RING_UNCONFIRMED, message, reason=TrustReason.UNCONFIRMED_RING)

    async def _settle_keys(self) -> None:
        """Put the HPKE key that the ring names in place, and erase the one before when its time is up."""
        now = self._clock()
        if now < self._keys_settle <= now + KEEP_PREVIOUS or self._keys_settle == math.inf:
            return
        try:
            erased_at = await self._state.settle_hpke_keys(now)
        except HeadlessPasskeyError as error:  # the disk is full, or another process is slow
            logger.warning("the HPKE keys were not put in order: %s", type(error).__name__)
            self._keys_settle = now + _MAX_PAUSE
        else:
            self._keys_settle = math.inf if erased_at is None else erased_at

    async def _replace_key(self) -> None:
        """Replace the HPKE key when it has had its time. What fails is tried again later, with the same new key."""
        now = self._clock()
        self._keys_due = now + DAY
        try:
            if not self._state.wants_new_hpke_key(now):
                return
            self._keys_due = self._keys_earliest = now + _KEY_PAUSE
            chain, _ = await self._caught_up()
            if self._state.wants_new_hpke_key(now):  # still: the relay may have had our ring already
                key = await self._state.next_hpke_key()
                ring = chain.head.with_hpke_key(self._key, key.public, now=now)
                if not await self._relay.append_ring(ring):
                    return
                chain = await self._state.extend([ring.document], now=now)
                self._ring, self._word_due = chain.head.version, 0  # the others may wait for the word
            self._keys_settle = 0
            await self._settle_keys()
        except HeadlessPasskeyError as error:
            logger.info("the HPKE key was not replaced: %s", type(error).__name__)
        else:
            self._tell(NoticeKind.KEY_REPLACED, "this companion has a new key for requests")

    async def _learn_of_change(self) -> None:
        """Catch up because the relay names a newer ring; what is wrong with it is told, and refuses the next request."""
        try:
            await self.catch_up()
        except (RemoteProtocolError, TrustError, SetupError) as error:
            if error.reason is TrustReason.NOT_A_MEMBER or (
                isinstance(error, SetupError) and error.reason not in _DISK
            ):
                raise
            self._on_notice(
                Notice(
                    kind=NoticeKind.RING_REFUSED,
                    message=str(error),
                    reason=error.reason,
                    advice=error.advice,
                )
            )

    async def catch_up(self) -> None:
        """Fetch, verify and store the relay's newer rings.

        `TrustError` (forked-ring) when they do not follow our chain; (withheld-ring) when a companion holds one that the
        relay does not show; (not-a-member) when the newest does not hold us.
        """
        await self._caught_up()

    async def _caught_up(self) -> tuple[RingChain, Mapping[str, int]]:
        """As `catch_up`; returns our chain, and the newest word's time of each companion."""
        chain = self._state.chain()
        newer, at = await self._relay.catch_up(
            chain,
            keep=lambda longer: self._state.adopt(longer, now=self._clock()),
            on_forgotten=lambda rings: self._tell(NoticeKind.RELAY_FORGOT_RINGS, str(rings)),
        )
        if newer.head.version != chain.head.version:
            before = chain.head.version
            chain = await self._state.adopt(newer, now=self._clock())
            self._word_due = 0  # the others may wait for it
            self._keys_settle = 0  # it may name our next key, or one that we do not hold
            self._keys_due = min(self._keys_due, self._keys_earliest)
            self._tell(
                NoticeKind.RING_CHANGED,
                f"the membership is now version {chain.head.version}: {chain.changes_since(before)}",
            )
        self._ring = max(self._ring, chain.head.version)
        refuse_removed(chain, self._me)
        return chain, at

    def _check(self, item: Item) -> CheckedRequest:
        chain = self._state.chain()
        announcement = self._announcement(item, chain)
        device = chain.head.member(item.device)
        if device is None:
            raise TrustError(TrustReason.UNKNOWN_DEVICE, "the request is from no device of this account")
        claim = Claim.of(device=item.device, request_id=item.request_id, sealed=item.sealed)
        shown = known_as(device, chain.head.members)
        return CheckedRequest(announcement=announcement, claim=claim, device=device, known_as=shown)

    def _announcement(self, item: Item, chain: RingChain) -> Announcement:
        """Open and check the envelope with the HPKE key that it was sealed to."""
        now = self._clock()
        current, *others = self._state.hpke_keys(now)
        opened_before = self._state.opened_before()

        def check(key: SoftwareHpkeKey) -> Announcement:
            return check_envelope(
                item.sealed,
                device=item.device,
                request_id=item.request_id,
                hpke_private=key,
                me=self._me,
                chain=chain,
                opened_before=opened_before,
                now=now,
                needs_digits=self._needs_digits,
            )

        for key in others:
            try:
                return check(key)
            except TrustError as error:
                if error.reason is not TrustReason.CANNOT_OPEN:
                    raise
        return check(current)

    def _tell_of_stale_rings(self, request: CheckedRequest) -> None:
        """Warn when the relay keeps rings or words from the device. Its request is good: nobody whom it concerns was removed."""
        said, label = request.announcement, quoted(request.device.label)
        untold = untold_ring(said, self._state.chain())
        if untold is not None:
            message = f"the relay has not told {label} of ring version {untold}"
            self._tell(NoticeKind.DEVICE_BEHIND, message, request)
        elif said.issued - said.confirmed > UNCONFIRMED_AFTER:
            days = (said.issued - said.confirmed) // DAY
            message = f"{label} has had no word that confirms the membership for {days} days"
            self._tell(NoticeKind.RING_UNCONFIRMED, message, request, reason=TrustReason.UNCONFIRMED_RING)

    async def _refuse(self, item: Item, error: HeadlessPasskeyError) -> None:
        """Report a refusal to the relay, and then give the notice, on which the program may end."""
        reason = _word(error)
        self._settle(item.key, reason)
        with suppress(TransportError):  # reported again with the next answer
            await self._report_refused(item)
        self._on_notice(
            Notice(
                kind=NoticeKind.REFUSED,
                message=str(error),
                request=_short(item.request_id),
                reason=reason,
                advice=error.advice,
                error=error,
            )
        )

    async def _report_refused(self, item: Item) -> None:
        """Report a refusal to the relay, unless that is done."""
        reason = self._settled.get(item.key)
        if reason is not None:
            with suppress(NotApproved, ProblemAnswer):  # it has ended meanwhile
                if item.claimed_by == self._me:  # by an earlier run: another companion may take the request
                    await self._relay.release(*item.key)
                await self._relay.report(*item.key, Event.FAILED, reason)
            self._settled[item.key] = None

    def _settle(self, key: Key, reason: str | None = None) -> None:
        self._settled[key] = reason
        while len(self._settled) > _MAX_SETTLED:
            self._settled.popitem(last=False)

    # Deciding

    async def decline(self, request: CheckedRequest, *, not_me: bool = False) -> None:
        """Decline a request for the user, which ends it for all companions.

        not_me: the user did not ask for it. The relay then takes no requests of the device until a companion ends that.
        """
        reason = NOT_ME if not_me else None
        with self._in_hands(request):
            await finish_when_cancelled(self._relay.report(*request.key, Event.DECLINED, reason))
            self._settle(request.key)
            self._tell(NoticeKind.DECLINED, "declined", request, reason=reason)

    async def reject(self, request: CheckedRequest, error: TrustError | TransportError) -> None:
        """Report that this companion cannot take the request: a check with the user failed, or nobody can be asked. Others may take it."""
        with self._in_hands(request):
            await self._reject(request, error)

    async def _reject(self, request: CheckedRequest, error: TrustError | TransportError) -> None:
        reason = _word(error)
        self._tell(NoticeKind.REFUSED, str(error), request, reason=reason, advice=error.advice)
        self._settle(request.key, reason)
        await finish_when_cancelled(self._relay.report(*request.key, Event.FAILED, reason))
        self._settle(request.key)

    async def approve(self, request: CheckedRequest, opener: Opener) -> bool:
        """The user says yes: claim, check the times again, remember, open. False when the claim is lost.

        Raises `NotApproved` when the request has ended meanwhile, `TrustError` when consent took too long, and
        whatever the opener raises. Whatever it raises, cancelling included, the claim does not stay here.
        """
        with self._in_hands(request):
            claim = await self._claim(request, opener)
            if claim is None or not await self._open(request, claim, opener):
                message = "another companion has the request now"
                self._tell(NoticeKind.CLAIM_LOST, message, request, reason="already-claimed")
                return False
            self._tell(NoticeKind.FINISHED, "done", request)
            return True

    async def _claim(self, request: CheckedRequest, opener: Opener) -> _Claim | None:
        """The claim, None when another companion has it."""
        try:
            taken = await self._relay.claim(*request.key, self._word(request))
        except asyncio.CancelledError:
            # the relay may have granted it
            await finish_when_cancelled(self._give_back(request, INTERRUPTED, used=False))
            raise
        except TrustError as error:  # this clock was turned since the request was checked
            with suppress(NotApproved, TransportError):  # it has ended, or is reported with the next answer
                await self._reject(request, error)
            raise
        if taken is not None:
            self._elsewhere[request.key] = taken
            return None
        self._settle(request.key)
        self._tell(NoticeKind.CLAIMED, "the request is ours to open", request)
        claim = self._claims[request.key] = _Claim(stays=opener.stays)
        return claim

    def _word(self, request: CheckedRequest) -> Word:
        """Give this companion's word that it claims the request, by the newest ring that it holds."""
        ring = self._state.chain().head
        return Word.give(self._key, ring=ring, now=self._clock(), claim=request.claim)

    async def _open(self, request: CheckedRequest, claim: _Claim, opener: Opener) -> bool:
        """Hand the URL to the opener, and wait for what it waits for. False when another companion took over."""
        try:
            opening = await self._prepare(request)
            claim.used = True
            async with opener.open(opening):
                done = opener.handed_over
                if not opener.phone_checks:
                    done += f". {must_say(request.announcement.rp_id)}"
                self._tell(NoticeKind.OPENED, done, request)
                await self._try_to_tell(request, self._relay.opened(*request.key, stays=claim.stays))
        except HeadlessPasskeyError as error:
            if claim.lost:
                return False
            self._tell(NoticeKind.FAILED, str(error), request, reason=_word(error), advice=error.advice)
            declined = isinstance(error, NotApproved) and error.reason is Outcome.DECLINED
            event = Event.DECLINED if declined else Event.FAILED
            reason = "on-the-phone" if declined else _word(error)
            await finish_when_cancelled(
                self._try_to_tell(request, self._relay.report(*request.key, event, reason))
            )
            raise
        except BaseException as error:
            del self._claims[request.key]
            why = INTERRUPTED if isinstance(error, asyncio.CancelledError) else "failed"
            await finish_when_cancelled(self._give_back(request, why, used=claim.used))
            raise
        finally:
            self._claims.pop(request.key, None)
        return not claim.lost

    async def _give_back(self, request: CheckedRequest, why: str, *, used: bool) -> None:
        """Give the claim back, so that others may take the request. used: the URL was opened, so not this companion again."""

        async def tell() -> None:
            await self._relay.release(*request.key)
            if used:
                await self._relay.report(*request.key, Event.FAILED, why)

        error = await self._try_to_tell(request, tell(), seconds=CANCEL_TIMEOUT)
        if not isinstance(error, NotEnrolled):  # whose account is closed leaves it to nobody
            self._tell(NoticeKind.GIVEN_BACK, "the request is left to other companions", request, reason=why)

    async def _prepare(self, request: CheckedRequest) -> Opening:
        """Check the times again after the claim, and record the request, so that its URL is opened at most once (replay)."""
        announcement, now = request.announcement, self._clock()
        recheck(announcement, now)
        first = await self._state.record_opened(
            *request.key, until=announcement.expires + MAX_SKEW + _KEEP_OPENED, now=now
        )
        if not first:
            raise TrustError(TrustReason.REPLAYED, "this request was opened before")
        return Opening(
            url=announcement.url,
            device=request.known_as,
            announced=Announced(kind=announcement.kind, rp_id=announcement.rp_id),
            seconds=max(1.0, announcement.expires + FINISH - now),
            over=request.over,
        )

    @contextmanager
    def _in_hands(self, request: CheckedRequest) -> Iterator[None]:
        """Take a request out of `pending` while it is handled here.

        One that is not settled then, since the relay did not answer for instance, becomes pending again with the relay's next
        sign of life.
        """
        if self._pending.pop(request.key, None) is None:
            raise NotApproved(Outcome.CANCELLED, "the request has gone meanwhile")
        self._in_hand[request.key] = request
        self._news.set()
        try:
            yield
        except NotApproved:  # it has ended, and the relay lists it no more
            self._settle(request.key)
            raise
        finally:
            del self._in_hand[request.key]

    async def _try_to_tell(
        self, request: CheckedRequest, what: Coroutine[Any, Any, None], *, seconds: float = _REPORT_TIMEOUT
    ) -> HeadlessPasskeyError | TimeoutError | None:
        """Report to the relay; returns a failure, which is no error: the device learns the outcome through the tunnel too."""
        try:
            async with asyncio.timeout(seconds):
                await what
        except (HeadlessPasskeyError, TimeoutError) as error:
            logger.info("request %s: its state was not reported (%s)", request.short_id, type(error).__name__)
            return error
        return None

    def _tell(
        self,
        kind: NoticeKind,
        message: str,
        request: CheckedRequest | None = None,
        *,
        reason: str | None = None,
        advice: str | None = None,
    ) -> None:
        self._on_notice(
            Notice(
                kind=kind,
                message=message,
                request=None if request is None else request.short_id,
                reason=reason,
                advice=advice,
            )
        )


_UNMUTE: Final = "`companion-push companion mute remove WHO` ends that, and `companion-push companion remove WHO` takes it out of the account"


def _jitter() -> float:
    """A factor that spreads the load on the relay."""
    return random.uniform(0.5, 1.5)  # noqa: S311  keeps no secret


def _short(request_id: bytes) -> str:
    """The start of a request id, which tells two requests apart for people and logs."""
    return base64url(request_id)[:6]


def _word(error: HeadlessPasskeyError) -> str:
    """The reason in the relay's format: at most 64 of [a-z0-9-]."""
    if isinstance(error, NotApproved) and error.reason is Outcome.EXPIRED:
        return (
            UNANSWERED  # by whoever was asked on the phone; a check that finds it expired is a `TrustError`
        )
    if isinstance(error, RemoteProtocolError):
        return MALFORMED
    if isinstance(error, TransportError) and error.reason is None:
        return TransportReason.UNREACHABLE
    return (error.reason or "failed").lower().replace("_", "-")[:64]


# what may be well again by the next request
_DISK: Final = (SetupReason.DISK_FULL, SetupReason.STATE_UNREADABLE, SetupReason.STATE_UNWRITABLE)
