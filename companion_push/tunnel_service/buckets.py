"""Token buckets: how often one address, or one contact ID, may ask. Pure: time is passed in."""

from collections import OrderedDict
from typing import Final

REMEMBERED: Final = 1 << 16  # keys, of each kind of bucket


class Buckets:
    """A token bucket for each key, of which the ones used last are remembered."""

    def __init__(self, count: float, seconds: float) -> None:
        """count: tokens that come in so many seconds, and the size of a burst, which is one token at least."""
        self._count, self._seconds, self._size = count, seconds, max(1.0, count)
        self._left: OrderedDict[bytes | str, tuple[float, float]] = OrderedDict()  # tokens, at time

    def __len__(self) -> int:
        return len(self._left)

    def take(self, key: bytes | str, *, now: float, tokens: int = 1) -> bool:
        """Take tokens out of the key's bucket; False, and none is taken, where it has not as many.

        now: seconds by a clock that never goes back.
        """
        left, before = self._left.pop(key, (self._size, now))
        left = min(self._size, left + (now - before) * self._count / self._seconds)
        allowed = left >= tokens
        self._left[key] = (left - tokens if allowed else left, now)
        if len(self._left) > REMEMBERED:
            self._left.popitem(last=False)
        return allowed

    def give_back(self, key: bytes | str) -> None:
        """Give back one token that `take` has taken."""
        left, before = self._left[key]
        self._left[key] = min(self._size, left + 1), before
