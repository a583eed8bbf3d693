"""The rules of the mailbox: who may do what to a request, when it ends, how many there may be.

A request is a value that each event turns into the next, or refuses. Nothing here keeps time or stores
anything: `now` is passed in, Unix seconds by the relay's clock (docs/protocol/relay.md, States).

    pending → delivered → claimed → opened → completed
    from claimed or opened back to delivered, when the claim is given back or its lease has run out
    and from any of the first four: declined | failed | cancelled | superseded | expired
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from companion_push.bounds import check_bounds
from companion_push.relay.problems import Problem, Slug
from headless_passkey.errors import UsageError

CEILING: Final = 300  # seconds a request may wait for a claim; configuration only shortens it
GRACE: Final = 120  # seconds a claimed request may go on after that
LEASE: Final = (
    60  # seconds without a call of its holder after which a claim ends; configuration only shortens it
)
LAST_CHANCE: Final = 8  # seconds others have to fetch what every companion that fetched it has refused
VANISHED: Final = "vanished"  # the reason of a companion whose lease ran out: it may come back
UNSPECIFIED: Final = "unspecified"  # the reason of a companion that failed and gave none
KEPT: Final = 300  # seconds the outcome stays readable after the last moment it could come


class State(StrEnum):
    """Where a request stands. `LIVE` ones change; all others are terminal and never do."""

    PENDING = "pending"
    DELIVERED = "delivered"  # a recipient has fetched it
    CLAIMED = "claimed"  # by one companion, which alone may go on
    OPENED = "opened"  # handed to the opener
    COMPLETED = "completed"  # says the device, which alone knows
    DECLINED = "declined"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"


UNCLAIMED: Final = frozenset({State.PENDING, State.DELIVERED})
HELD: Final = frozenset({State.CLAIMED, State.OPENED})
LIVE: Final = UNCLAIMED | HELD


class DeviceEvent(StrEnum):
    """What a device may tell about its request."""

    CANCELLED = "cancelled"
    COMPLETED = "completed"
    FAILED = "failed"


class CompanionEvent(StrEnum):
    """What a companion may tell about a request with an envelope for it."""

    CLAIMED = "claimed"
    OPENED = "opened"
    RELEASED = "released"  # the claim is given back: any recipient may have it
    DECLINED = "declined"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One companion cannot take this request, or has vanished; the others may."""

    by: str
    reason: str  # a word
    at: float  # Unix seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as the relay knows it: everything but the envelopes."""

    account: str
    device: str  # the submitting device's name
    id: str  # base64url of 16 bytes, chosen by the device
    recipients: tuple[str, ...]  # companions' names, sorted
    fingerprint: bytes  # of what was submitted, 32 bytes: the same again is no conflict
    submitted_at: int
    expires_at: int
    state: State = State.PENDING
    version: int = 1
    claimed_by: str | None = None
    stays: bool = False  # opened by a holder that goes on calling until the end, so its lease still counts
    reason: str | None = None
    failures: tuple[Failure, ...] = ()
    fetched_by: frozenset[str] = frozenset()  # recipients that have read it

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def ends_at(self) -> int:
        """When it expires if nothing happens: an expiry ends claims, and a claimed request may finish."""
        return self.expires_at + (GRACE if self.state in HELD else 0)

    @property
    def leased(self) -> bool:
        """Whether the claim ends when its holder makes no call."""
        return self.state is State.CLAIMED or (self.state is State.OPENED and self.stays)

    @property
    def given_up_at(self) -> float:
        """When it fails, because every companion that fetched it has failed, although others might yet fetch it."""
        failed = {failure.by: failure.at for failure in self.failures if failure.reason != VANISHED}
        hopes = self.fetched_by.union(failure.by for failure in self.failures).difference(failed)
        if self.state not in UNCLAIMED or not failed or hopes:
            return math.inf
        return max(failed.values()) + LAST_CHANCE

    def changes_at(self, lease: float) -> float:
        """When it changes if nothing happens. lease: as with `at`."""
        return min(self.ends_at, lease if self.leased else self.given_up_at)

    def waits_for(self, companion: str) -> bool:
        """Whether it belongs in this companion's inbox."""
        return self.live and companion in self.recipients and not self._has_failed(companion)

    def at(self, now: float, lease: float) -> "Request":
        """As it is at `now`: expired, once its time is over; not claimed any more, once the claim's lease has run out;
        failed, once every companion that fetched it has, and nobody else has come.

        lease: when that is, unless its holder makes another call (`Leases.end`).
        """
        if self.leased and lease <= now and lease < self.ends_at:
            return self._vanished(lease).at(now, lease)
        if self.given_up_at <= now and self.given_up_at < self.ends_at:
            return self._become(State.FAILED, reason=self.failures[-1].reason)
        return self._become(State.EXPIRED) if self.live and now >= self.ends_at else self

    def fetched(self, by: str) -> "Request":
        """`by`, a recipient, has read it."""
        readers = self.fetched_by | {by}
        if self.state is State.PENDING:
            return self._become(State.DELIVERED, fetched_by=readers)
        return self if by in self.fetched_by else replace(self, fetched_by=readers)

    def superseded(self) -> "Request":
        """Its device has submitted another."""
        return self._become(State.SUPERSEDED) if self.live else self

    def withdrawn(self, reason: str) -> "Request":
        """Its device is no longer a member."""
        return self._become(State.CANCELLED, reason=reason) if self.live else self

    def device_says(self, event: DeviceEvent, reason: str | None) -> "Request":
        """After the device's event. Telling the same again changes nothing."""
        target = State(event)
        if self.state is target:
            return self
        if not self.live or (event is DeviceEvent.COMPLETED and self.state not in HELD):
            raise self._conflict()
        return self._become(target, reason=reason)

    def companion_says(
        self, by: str, event: CompanionEvent, reason: str | None, *, now: float, stays: bool = False
    ) -> "Request":
        """After a recipient's event at `now`. Telling the same again changes nothing.

        stays: with `opened`, whether `by` goes on calling until the end.
        """
        match event:
            case CompanionEvent.CLAIMED:
                return self._claimed(by)
            case CompanionEvent.OPENED:
                return self._opened(by, stays=stays)
            case CompanionEvent.RELEASED:
                return self._released(by)
            case CompanionEvent.DECLINED:
                return self._declined(by, reason)
            case CompanionEvent.FAILED:
                return self._failed(by, reason, now)

    def _claimed(self, by: str) -> "Request":
        if self.state in HELD:
            if self.claimed_by == by:
                return self
            raise self._lost()
        if not self.live or self._has_failed(by):
            raise self._conflict()
        return self._become(State.CLAIMED, claimed_by=by, failures=self._failures_but(by))

    def _opened(self, by: str, *, stays: bool) -> "Request":
        if self.state in HELD and self.claimed_by != by:
            raise self._lost()
        if self.state is State.OPENED:
            return self if stays == self.stays else replace(self, stays=stays)
        if self.state is not State.CLAIMED:
            raise self._conflict()
        return self._become(State.OPENED, stays=stays)

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
        return self._become(State.DELIVERED, claimed_by=None, stays=False, **changes)

    def _declined(self, by: str, reason: str | None) -> "Request":
        if self.state is State.DECLINED:
            return self
        if self.state in HELD and self.claimed_by != by:
            raise self._lost()
        if not self.live:
            raise self._conflict()
        return self._become(State.DECLINED, reason=reason)

    def _failed(self, by: str, reason: str | None, now: float) -> "Request":
        if self._has_failed(by):
            return self
        if not self.live:
            raise self._conflict()
        word = UNSPECIFIED if reason in (None, VANISHED) else reason
        failures = (*self._failures_but(by), Failure(by=by, reason=word, at=now))
        failed = {failure.by for failure in failures if failure.reason != VANISHED}
        if by == self.claimed_by or failed.issuperset(self.recipients):
            return self._become(State.FAILED, reason=reason, failures=failures)
        return replace(self, failures=failures, version=self.version + 1)

    def _become(self, state: State, **changes: Any) -> "Request":
        return replace(self, state=state, version=self.version + 1, **changes)

    def _has_failed(self, companion: str) -> bool:
        return any(failure.by == companion and failure.reason != VANISHED for failure in self.failures)

    def _failures_but(self, companion: str) -> tuple[Failure, ...]:
        return tuple(failure for failure in self.failures if failure.by != companion)

    def _lost(self) -> Problem:
        return Problem(Slug.ALREADY_CLAIMED, state=self.state, version=self.version)

    def _conflict(self) -> Problem:
        slug = Slug.EXPIRED if self.state is State.EXPIRED else Slug.STATE_CONFLICT
        return Problem(slug, state=self.state, version=self.version)


class Leases:
    """How long each member may hold a claim without another call: every call begins the time anew.

    A call that is held counts as long as it is open. Nobody is blamed for not having called a relay that was not there.
    """

    def __init__(self, seconds: float, *, began: float) -> None:
        """began: when the relay began to listen, Unix seconds as all times here."""
        self._seconds, self._began = seconds, began
        self._last: dict[str, float] = {}  # by member: when its last call was answered
        self._open: Counter[str] = Counter()

    def called(self, member: str, now: float) -> None:
        self._last[member] = now

    @contextlib.contextmanager
    def held(self, member: str, clock: Callable[[], float]) -> Iterator[None]:
        """A call of `member` is held while this is open."""
        self._open[member] += 1
        try:
            yield
        finally:
            self._open[member] -= 1
            self.called(member, clock())

    def end(self, member: str | None, now: float) -> float:
        """When a claim of `member` ends, unless it makes another call."""
        if member is None or self._open[member]:
            return now + self._seconds
        return self._last.get(member, self._began) + self._seconds

    def forget(self, now: float) -> None:
        """Forget what makes no difference any more."""
        if self._began + self._seconds <= now:
            self._last = {member: last for member, last in self._last.items() if last + self._seconds > now}
        self._open += Counter()  # drops the zeros


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """`count` at once, and as many again every `seconds`."""

    count: int
    seconds: float

    def __post_init__(self) -> None:
        check_bounds(self, "count", lowest=1)
        check_bounds(self, "seconds", lowest=0, whole=False)

    def take(self, full_at: float | None, now: float) -> float:
        """Take one (GCRA): `full_at` is the time at which all are there again, None when they are; returns the next.

        Refuses with `rate-limited` when none is left.
        """
        interval = self.seconds / self.count
        next_full = max(full_at or 0.0, now) + interval
        over = next_full - now - self.seconds
        if over > _ROUNDING:
            raise Problem(Slug.RATE_LIMITED, retry_after=math.ceil(over))
        return next_full


_ROUNDING: Final = 1e-3  # seconds: times are floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How much one account may ask of its companions. Claiming and declining are never limited."""

    pending: int = 3  # unclaimed requests, one per device
    rates: tuple[Rate, ...] = (Rate(count=5, seconds=60), Rate(count=30, seconds=86_400))

    def __post_init__(self) -> None:
        check_bounds(self, "pending", lowest=1)
        if not all(isinstance(rate, Rate) for rate in self.rates):
            raise UsageError("rates: expected several of Rate")

    def admit(self, others: Iterable[Request], spent: Mapping[str, float], now: float) -> dict[str, float]:
        """What is spent after one more request, or a refusal.

        others: the account's requests of other devices. spent: what the last call returned.
        """
        waiting = sorted(request.ends_at for request in others if request.state in UNCLAIMED)
        if len(waiting) >= self.pending:
            retry_after = max(1, math.ceil(waiting[0] - now))
            raise Problem(Slug.TOO_MANY_PENDING, retry_after=retry_after)
        keys = {f"{rate.count}/{rate.seconds:g}": rate for rate in self.rates}
        return {key: rate.take(spent.get(key), now) for key, rate in keys.items()}
