"""The rules of the mailbox: transitions of a request, its expiry, and its claim's lease.

A request is an immutable value; each event returns the next one, or is refused. The module is pure: `now` is passed in,
Unix seconds by the relay's clock (docs/protocol/relay.md, States).

    pending → delivered → claimed → opened → completed
    from claimed or opened back to delivered, when the claim is given back or its lease has run out
    and from any of the first four: declined | failed | cancelled | superseded | expired
"""

import math
from collections import Counter
from enum import StrEnum
from typing import Any, Final, Protocol, TypeAlias

import msgspec
from msgspec.structs import replace

from companion_push.push.channel import PushOutcome
from companion_push.relay.problems import Problem, Slug
from headless_passkey.request import DeviceEvent, RequestState

GRACE: Final = 120  # more seconds for a claimed request
RENEWED: Final = 15.0  # seconds after which a claim's record notes again that its holder was heard of
INBOX: Final = "inbox"  # in place of a channel's kind: the companion was waiting at its inbox
INBOX_SECONDS: Final = 3  # for a companion that waits at another process of the relay to fetch a request
LAST_CHANCE: Final = 8  # seconds for other companions to fetch a request that all who fetched it have refused
VANISHED: Final = "vanished"  # reason: the lease of a companion's claim has expired; it may come back
REMOVED: Final = "removed"  # reason: the companion was taken out of the account
UNSPECIFIED: Final = "unspecified"  # reason: a companion failed without giving one
KEPT: Final = 300  # seconds the outcome stays readable after the latest end of the request


UNCLAIMED: Final = frozenset({RequestState.PENDING, RequestState.DELIVERED})
HELD: Final = frozenset({RequestState.CLAIMED, RequestState.OPENED})
LIVE: Final = UNCLAIMED | HELD

Key: TypeAlias = tuple[str, str]  # of a request: its device's name, and its id


class CompanionEvent(StrEnum):
    """The events that a companion reports about a request with an envelope for it."""

    CLAIMED = "claimed"
    OPENED = "opened"
    RELEASED = "released"  # the claim is given back, so that any recipient may claim
    DECLINED = "declined"
    FAILED = "failed"


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A companion's failure: it cannot take the request, has vanished or was removed. Others may still take it."""

    by: str
    reason: str  # a word
    at: float  # Unix seconds


class Notice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What has become of the pushes for a request over one channel of a recipient, or that it was waiting at its inbox."""

    to: str  # the recipient's name
    handle: str  # the channel's; empty for the inbox
    kind: str  # the channel's, or the inbox
    outcome: str | None = None  # None while the first one is under way
    dismissed: bool = False
    again: int = 0  # how often it was notified again


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request without its envelopes. Stores keep it by the names of its fields: a new one has a default."""

    account: str
    device: str  # the submitting device's name
    id: str  # base64url of 16 bytes, chosen by the device
    recipients: tuple[str, ...]  # companions' names, sorted
    fingerprint: (
        bytes  # hash of the submission, 32 bytes: the same submission again is no conflict (idempotent)
    )
    submitted_at: int
    expires_at: int
    digests: tuple[bytes, ...] = ()  # SHA-256 of each recipient's envelope, in their order, while it lives
    state: RequestState = RequestState.PENDING
    version: int = 1
    claimed_by: str | None = None
    word: bytes | None = None  # the holder's word with its claim (docs/protocol/trust.md)
    stays: bool = False  # whether the holder goes on calling after `opened`, so that the lease still applies
    reason: str | None = None
    failures: tuple[Failure, ...] = ()
    fetched_by: frozenset[str] = frozenset()  # recipients that have fetched it
    notices: tuple[Notice, ...] = ()
    heard_at: float = 0.0  # of its holder, by the records of several processes: see `LeasesInRecords`

    @property
    def key(self) -> Key:
        return self.device, self.id

    def digest_for(self, recipient: str) -> bytes | None:
        """SHA-256 of the envelope for a recipient; None once the request is over."""
        return dict(zip(self.recipients, self.digests, strict=False)).get(recipient)

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def unclaimed(self) -> bool:
        """Whether it waits for a claim."""
        return self.state in UNCLAIMED

    @property
    def ends_at(self) -> int:
        """When the request expires without further events. A claimed request has `GRACE` seconds more."""
        return self.expires_at + (GRACE if self.state in HELD else 0)

    @property
    def forgotten_at(self) -> int:
        """When its outcome is not readable any more."""
        return self.expires_at + GRACE + KEPT

    @property
    def leased(self) -> bool:
        """Whether the claim ends with its holder's lease."""
        return self.state is RequestState.CLAIMED or (self.state is RequestState.OPENED and self.stays)

    @property
    def given_up_at(self) -> float:
        """When the request fails because every companion that fetched it has failed; others have `LAST_CHANCE` seconds."""
        # a removal says nothing of the request: it takes a hope away, and ends nothing by itself
        failed = {each.by: each.at for each in self.failures if each.reason not in (VANISHED, REMOVED)}
        hopes = {*self.fetched_by, *(each.by for each in self.failures if each.reason == VANISHED)}
        hopes = {each for each in hopes if not self._has_failed(each)}
        if not self.unclaimed or not failed or hopes:
            return math.inf
        return max(failed.values()) + LAST_CHANCE

    @property
    def unreached_at(self) -> float:
        """When the companions of whom it is not known whether they wait at their inboxes count as away."""
        for each in self.notices:
            if each.outcome is None and each.kind == INBOX and self.live:
                return self.submitted_at + INBOX_SECONDS
        return math.inf

    def changes_at(self, lease: float) -> float:
        """When time alone changes the request. lease: as with `at`."""
        return min(self.ends_at, lease if self.leased else self.given_up_at, self.unreached_at)

    def waits_for(self, companion: str) -> bool:
        """Whether the request belongs in this companion's inbox."""
        return self.live and companion in self.recipients and not self._has_failed(companion)

    def at(self, now: float, lease: float) -> "Request":
        """The request's state at `now`, after expiry of the request or of its claim's lease, or after the failure of every
        companion that fetched it.

        lease: when the claim ends unless its holder makes another call (`Leases.end`).
        """
        if not self.live:
            return self
        if self.unreached_at <= now:
            late = tuple(_at_inbox(each, PushOutcome.LATE) for each in self.notices)
            return replace(self, notices=late).at(now, lease)  # news to the device alone: see `_status`
        if self.leased and lease <= now and lease < self.ends_at:
            return self._vanished(lease).at(now, lease)
        if self.given_up_at <= now and self.given_up_at < self.ends_at:
            return self._become(RequestState.FAILED, reason=self.failures[-1].reason)
        return self._become(RequestState.EXPIRED) if self.live and now >= self.ends_at else self

    def fetched(self, by: str) -> "Request":
        """The request after `by`, a recipient, has fetched it."""
        if by in self.fetched_by:
            return self
        readers = self.fetched_by | {by}
        notices = tuple(_at_inbox(each, PushOutcome.SENT) if each.to == by else each for each in self.notices)
        if self.state is RequestState.PENDING:
            return self._become(RequestState.DELIVERED, fetched_by=readers, notices=notices)
        return replace(self, fetched_by=readers, notices=notices)

    def superseded(self) -> "Request":
        """The request after its device has submitted another one."""
        return self._become(RequestState.SUPERSEDED) if self.live else self

    def withdrawn(self, reason: str) -> "Request":
        """The request after the relay has ended it: its device was removed or muted, or its account suspended."""
        return self._become(RequestState.CANCELLED, reason=reason) if self.live else self

    def without(self, names: frozenset[str], now: float) -> "Request":
        """The request after these companions were removed from the ring: they have failed, and a claim of one of them ends at once."""
        gone = {each for each in names.intersection(self.recipients) if not self._has_failed(each)}
        if not self.live or not gone:
            return self
        kept = (failure for failure in self.failures if failure.by not in gone)
        failures = (*kept, *(Failure(by=name, reason=REMOVED, at=now) for name in sorted(gone)))
        if self._is_hopeless(failures):
            return self._become(RequestState.FAILED, reason=REMOVED, failures=failures)
        if self.state in HELD and self.claimed_by in gone:
            return self._unclaimed(failures=failures)
        return replace(self, failures=failures, version=self.version + 1)

    def device_says(self, event: DeviceEvent, reason: str | None) -> "Request":
        """The request after its device's event (idempotent)."""
        target = RequestState(event)
        if self.state is target:
            return self
        if not self.live or (event is DeviceEvent.COMPLETED and self.state not in HELD):
            raise self._conflict()
        return self._become(target, reason=reason)

    def companion_says(
        self,
        by: str,
        event: CompanionEvent,
        reason: str | None,
        *,
        now: float,
        stays: bool = False,
        word: bytes | None = None,
    ) -> "Request":
        """The request after a recipient's event at `now` (idempotent).

        stays: with `opened`, whether `by` goes on calling until the end. word: with `claimed`, the verified word.
        """
        match event:
            case CompanionEvent.CLAIMED:
                return self._claimed(by, word, now)
            case CompanionEvent.OPENED:
                return self._opened(by, stays=stays)
            case CompanionEvent.RELEASED:
                return self._released(by)
            case CompanionEvent.DECLINED:
                return self._declined(by, reason)
            case CompanionEvent.FAILED:
                return self._failed(by, reason, now)

    def earlier(self, seconds: int) -> "Request":
        """The request as if all that has happened to it had been so many seconds earlier."""
        return replace(
            self,
            submitted_at=self.submitted_at - seconds,
            expires_at=self.expires_at - seconds,
            failures=tuple(replace(each, at=each.at - seconds) for each in self.failures),
            heard_at=max(0.0, self.heard_at - seconds),
        )

    def heard(self, now: float, every: float) -> "Request":
        """The request after its holder was heard of; itself where its record says nearly that."""
        return self if now - every < self.heard_at <= now else replace(self, heard_at=now)

    def _claimed(self, by: str, word: bytes | None, now: float) -> "Request":
        if self.state in HELD:
            if self.claimed_by == by:
                return self
            raise self._lost()
        if not self.live or self._has_failed(by):
            raise self._conflict()
        failures = self._failures_but(by)
        return self._become(RequestState.CLAIMED, claimed_by=by, word=word, failures=failures, heard_at=now)

    def _opened(self, by: str, *, stays: bool) -> "Request":
        if self.state in HELD and self.claimed_by != by:
            raise self._lost()
        if self.state is RequestState.OPENED:
            return self if stays == self.stays else replace(self, stays=stays)
        if self.state is not RequestState.CLAIMED:
            raise self._conflict()
        return self._become(RequestState.OPENED, stays=stays)

    def _released(self, by: str) -> "Request":
        if self.state in HELD:
            if self.claimed_by != by:
                raise self._lost()
            return self._unclaimed()
        if not self.live:
            raise self._conflict()
        return self

    def _vanished(self, now: float) -> "Request":
        holder = self.claimed_by or ""
        return self._unclaimed(
            failures=(*self._failures_but(holder), Failure(by=holder, reason=VANISHED, at=now))
        )

    def _unclaimed(self, **changes: Any) -> "Request":
        return self._become(RequestState.DELIVERED, claimed_by=None, word=None, stays=False, **changes)

    def _declined(self, by: str, reason: str | None) -> "Request":
        if self.state is RequestState.DECLINED:
            return self
        if self.state in HELD and self.claimed_by != by:
            raise self._lost()
        if not self.live:
            raise self._conflict()
        return self._become(RequestState.DECLINED, reason=reason)

    def _failed(self, by: str, reason: str | None, now: float) -> "Request":
        if self._has_failed(by):
            return self
        if not self.live:
            raise self._conflict()
        word = UNSPECIFIED if reason in (None, VANISHED, REMOVED) else reason
        failures = (*self._failures_but(by), Failure(by=by, reason=word, at=now))
        if by == self.claimed_by or self._is_hopeless(failures):
            return self._become(RequestState.FAILED, reason=reason, failures=failures)
        return replace(self, failures=failures, version=self.version + 1)

    def _become(self, state: RequestState, **changes: Any) -> "Request":
        digests = self.digests if state in LIVE else ()
        return replace(self, state=state, version=self.version + 1, digests=digests, **changes)

    def _is_hopeless(self, failures: tuple[Failure, ...]) -> bool:
        """Whether every recipient has failed."""
        return {each.by for each in failures if each.reason != VANISHED}.issuperset(self.recipients)

    def _has_failed(self, companion: str) -> bool:
        return any(failure.by == companion and failure.reason != VANISHED for failure in self.failures)

    def _failures_but(self, companion: str) -> tuple[Failure, ...]:
        return tuple(failure for failure in self.failures if failure.by != companion)

    def _lost(self) -> Problem:
        return Problem(Slug.ALREADY_CLAIMED, state=self.state, version=self.version)

    def _conflict(self) -> Problem:
        slug = Slug.EXPIRED if self.state is RequestState.EXPIRED else Slug.STATE_CONFLICT
        return Problem(slug, state=self.state, version=self.version)


def _at_inbox(notice: Notice, outcome: PushOutcome) -> Notice:
    """The notice with what became of it, where it is of an inbox and nothing is known yet."""
    is_open = notice.kind == INBOX and notice.outcome is None
    return replace(notice, outcome=outcome) if is_open else notice


class Leases(Protocol):
    """The leases of claims: a claim ends some time after the last call of its holder."""

    def end_of(self, request: Request, now: float) -> float:
        """When the claim of `request` ends unless its holder makes another call."""
        ...

    def called(self, member: str, now: float) -> None: ...

    def hold(self, member: str) -> None:
        """Begin a held call of `member`."""
        ...

    def let_go(self, member: str, now: float) -> None:
        """End a held call, which is a call at `now`."""
        ...

    def forget(self, now: float) -> None:
        """Drop what is over."""
        ...

    @property
    def noted_every(self) -> float | None:
        """Seconds after which the record of a claim notes a call of its holder, held ones too; None where none does."""
        ...


class LeasesInRecords:
    """The leases of claims whose records note when their holders were heard of, for several processes.

    They note a call where the last one that they know is `RENEWED` seconds old or a quarter of the lease, so that a claim ends
    between the lease and so much more after the last call of its holder.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    @property
    def noted_every(self) -> float:
        return min(RENEWED, self._seconds / 4)

    def end_of(self, request: Request, now: float) -> float:
        heard_at = min(request.heard_at, now)  # of a clock that has gone back since
        return heard_at + self._seconds + self.noted_every

    def called(self, member: str, now: float) -> None:
        """The transaction of the call notes it."""

    def hold(self, member: str) -> None:
        """A held call that holds a claim reads again in time."""

    def let_go(self, member: str, now: float) -> None: ...

    def forget(self, now: float) -> None: ...


class LeasesInMemory:
    """The leases of claims in one process: a member's claims end some time after its last call.

    A held call counts while it is open. A restart of the relay renews all leases, since nobody could call meanwhile.
    """

    noted_every = None

    def __init__(self, seconds: float, *, began: float) -> None:
        """began: when the relay started, Unix seconds as all times here."""
        self._seconds, self._began = seconds, began
        self._last: dict[str, float] = {}  # time of the last answered call, by member
        self._open: Counter[str] = Counter()

    def called(self, member: str, now: float) -> None:
        self._last[member] = now

    def hold(self, member: str) -> None:
        """Count a held call of `member` until `let_go`."""
        self._open[member] += 1

    def let_go(self, member: str, now: float) -> None:
        """End the count of a held call, which is a call at `now`."""
        self._open[member] -= 1
        self._last[member] = now

    def end_of(self, request: Request, now: float) -> float:
        return self.end(request.claimed_by, now)

    def end(self, member: str | None, now: float) -> float:
        """When the claims of `member` end unless it makes another call."""
        if member is None or self._open[member]:
            return now + self._seconds
        return self._last.get(member, self._began) + self._seconds

    def forget(self, now: float) -> None:
        """Drop members whose lease has expired."""
        if self._began + self._seconds <= now:
            self._last = {member: last for member, last in self._last.items() if last + self._seconds > now}
        self._open += Counter()  # drops members without held calls
