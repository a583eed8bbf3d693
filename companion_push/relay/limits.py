"""The limits of the mailbox: how long a request waits, a claim lasts, and how much each member and its account may do.

The module is pure: `now` is passed in, Unix seconds by the relay's clock. The configuration is made of these, so it needs no extra.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from companion_push.relay.problems import Problem, Slug
from companion_push.serving.bounds import check_bounds
from headless_passkey.errors import UsageError
from http_serving.rate_limit import Policy, Unit

if TYPE_CHECKING:
    from companion_push.relay.mailbox import Request

CEILING: Final = 300  # seconds a request may wait for a claim; configuration only shortens it
# seconds without a call of its holder after which a claim ends; configuration only shortens it
LEASE: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A rate limit: a burst of `count`, and `count` more every `seconds`.

    A time `full_at` that is further ahead than the rate can reach is of a clock that has gone back since: nothing is used.
    """

    count: int
    seconds: float

    def __post_init__(self) -> None:
        check_bounds(self, "count", lowest=1)
        check_bounds(self, "seconds", lowest=0, whole=False)

    def take(self, full_at: float | None, now: float, *, of: str = "requests") -> float:
        """Take one (GCRA). full_at: when the limit is unused again; None when it is. Returns the new `full_at`.

        Refuses with `rate-limited` when none is left. of: the limit's name.
        """
        interval = self.seconds / self.count
        next_full = self._used_until(full_at, now) + interval
        over = next_full - now - self.seconds
        if over > ROUNDING:
            policy = Policy(name=of, quota=self.count, seconds=self.seconds)
            raise Problem(Slug.RATE_LIMITED, policy=policy, retry_after=math.ceil(over))
        return next_full

    def left(self, full_at: float | None, now: float) -> bool:
        """Whether one is left."""
        return self._used_until(full_at, now) + self.seconds / self.count - now - self.seconds <= ROUNDING

    def take_up_to(self, full_at: float | None, now: float) -> float:
        """Take one if one is left, as `take`; else nothing."""
        return self.take(full_at, now) if self.left(full_at, now) else full_at or 0.0

    def _used_until(self, full_at: float | None, now: float) -> float:
        if full_at is None or not now < full_at <= now + self.seconds + ROUNDING:
            return now
        return full_at


ROUNDING: Final = 1e-3  # seconds, of floating point


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """The limits of requests to the companions of one account. Claims and declines are not limited.

    Each device has limits of its own, inside those of its account. The account's refuse no device that has submitted
    little, so that one device cannot spend the day of the others.
    """

    pending: int = 3  # unclaimed requests of the account, one per device
    rates: tuple[Rate, ...] = (Rate(count=3, seconds=60), Rate(count=20, seconds=86_400))  # of each device
    account_rates: tuple[Rate, ...] = (Rate(count=100, seconds=86_400),)
    spared: Rate = Rate(count=5, seconds=86_400)  # of each device: within it the account's refuse nothing

    def __post_init__(self) -> None:
        check_bounds(self, "pending", lowest=1)
        for name in ("rates", "account_rates"):
            if not all(isinstance(rate, Rate) for rate in getattr(self, name)):
                raise UsageError(f"{name}: expected several of Rate")
        if not isinstance(self.spared, Rate):
            raise UsageError("spared: expected a Rate")

    def admit(
        self,
        others: "Iterable[Request]",
        device: Mapping[str, float],
        account: Mapping[str, float],
        now: float,
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Admit one more request, or refuse it; returns the used rate limits of the device and of the account.

        others: the account's requests of other devices. device, account: what was used of the limits, from the last call.
        """
        waiting = sorted(request.ends_at for request in others if request.unclaimed)
        if len(waiting) >= self.pending:
            retry_after = max(1, math.ceil(waiting[0] - now))
            policy = Policy(name="pending-requests", quota=self.pending, unit=Unit.AT_A_TIME)
            raise Problem(Slug.TOO_MANY_PENDING, policy=policy, retry_after=retry_after)
        of_device = take_all(self.rates, device, now, of="requests-of-device")
        spared = self.spared.left(device.get(_SPARED), now)
        of_device[_SPARED] = self.spared.take_up_to(device.get(_SPARED), now)
        try:
            return of_device, take_all(self.account_rates, account, now, of="requests-of-account")
        except Problem:
            if not spared:
                raise
        return of_device, {}


_SPARED: Final = "spared"


def take_all(rates: Iterable[Rate], spent: Mapping[str, float], now: float, *, of: str) -> dict[str, float]:
    """Take one of each rate (`rate-limited`). spent: from the last call; returns what is used then, by rate. of: their name."""
    keys = {f"{rate.count}/{rate.seconds:g}": rate for rate in rates}
    return {key: rate.take(spent.get(key), now, of=of) for key, rate in keys.items()}
