"""How often one address may ask: a bucket of tokens for each, refilled with time. Pure."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from relying_party.errors import RateLimited
from relying_party.http.addresses import neighbourhood

MAX_ADDRESSES: Final = 50_000


@dataclass(slots=True)
class RateLimit:
    """`per_minute` requests a minute and address, and as many at once."""

    per_minute: int
    _spent: OrderedDict[str, tuple[float, float]] = field(
        default_factory=OrderedDict, repr=False
    )  # tokens gone, when; the address that asked last at the end

    def take(self, address: str, *, now: float) -> None:
        """One request from `address`; `RateLimited` when that is one too many.

        Of more than `MAX_ADDRESSES` the one that has not asked for longest is forgotten: many addresses keep nobody out.
        """
        address = neighbourhood(address)
        rate = self.per_minute / 60
        spent, before = self._spent.get(address, (0.0, now))
        spent = max(0.0, spent - max(0.0, now - before) * rate)
        if spent + 1 > self.per_minute:
            raise RateLimited(retry_after=max(1, round((spent + 1 - self.per_minute) / rate)))
        self._spent[address] = (spent + 1, now)
        self._spent.move_to_end(address)
        if len(self._spent) > MAX_ADDRESSES:
            self._spent.popitem(last=False)
