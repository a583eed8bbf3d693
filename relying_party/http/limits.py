"""How often one address may ask: a bucket of tokens for each, refilled with time. Pure."""

from dataclasses import dataclass, field
from typing import Final

from relying_party.errors import RateLimited
from relying_party.http.addresses import neighbourhood

MAX_ADDRESSES: Final = 50_000


@dataclass(slots=True)
class RateLimit:
    """`per_minute` requests a minute and address, and as many at once."""

    per_minute: int
    _spent: dict[str, tuple[float, float]] = field(default_factory=dict, repr=False)  # tokens gone, when

    def take(self, address: str, *, now: float) -> None:
        """One request from `address`; `RateLimited` when that is one too many."""
        address = neighbourhood(address)
        rate = self.per_minute / 60
        spent, before = self._spent.get(address, (0.0, now))
        spent = max(0.0, spent - max(0.0, now - before) * rate)
        if spent + 1 > self.per_minute:
            raise RateLimited(retry_after=max(1, round((spent + 1 - self.per_minute) / rate)))
        if len(self._spent) >= MAX_ADDRESSES and address not in self._spent:
            self._forget_the_idle(now)
        self._spent[address] = (spent + 1, now)

    def _forget_the_idle(self, now: float) -> None:
        self._spent = {
            address: (spent, before) for address, (spent, before) in self._spent.items() if now - before < 60
        }
        if len(self._spent) >= MAX_ADDRESSES:
            raise RateLimited(retry_after=60)
