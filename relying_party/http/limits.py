"""Rate limits by client address: a token bucket for each. Pure."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from http_serving.addresses import neighbourhood
from http_serving.rate_limit import Policy
from relying_party.errors import RateLimited

MAX_ADDRESSES: Final = 50_000


@dataclass(slots=True)
class RateLimit:
    """A rate limit of `most` in `seconds` for each address, with bursts of the same size."""

    name: str  # of the limit, in headers
    most: int
    seconds: float = 60.0
    _spent: OrderedDict[str, tuple[float, float]] = field(
        default_factory=OrderedDict, repr=False
    )  # tokens gone, when; the address that asked last at the end

    def take(self, address: str, *, now: float) -> None:
        """Take a token of the address's bucket; `RateLimited` when none is left.

        Of more than `MAX_ADDRESSES` the one that has not asked for longest is forgotten: many addresses keep nobody out.
        """
        address = neighbourhood(address)
        spent = self._spent_by(address, now)
        self._spent[address] = (spent + 1, now)
        self._spent.move_to_end(address)
        if len(self._spent) > MAX_ADDRESSES:
            self._spent.popitem(last=False)

    def check(self, address: str, *, now: float) -> None:
        """Take nothing; `RateLimited` where `take` would be refused."""
        self._spent_by(neighbourhood(address), now)

    def _spent_by(self, address: str, now: float) -> float:
        """What a neighbourhood has spent by `now`; `RateLimited` when no token is left."""
        rate = self.most / self.seconds
        spent, before = self._spent.get(address, (0.0, now))
        if now < before:  # the clock has gone back since
            self._spent[address] = spent, now
        spent = max(0.0, spent - max(0.0, now - before) * rate)
        if spent + 1 > self.most:
            policy = Policy(name=self.name, quota=self.most, seconds=self.seconds)
            raise RateLimited(max(1, round((spent + 1 - self.most) / rate)), policy)
        return spent
