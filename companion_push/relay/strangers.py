"""Budgets that are kept in memory: for callers whose requests fail, how many of them one network address may have before its
requests are refused without verifying a signature; and for the calls of one key and the rings that one member reads.

Members and newcomers are not refused because of strangers at the same address: a key whose last call succeeded is known, and
an open ticket or account code has a budget of its own. All tables are bounded, and the longest unused entry makes room.
Nothing here survives a restart. `now` is of a clock that never goes back, in seconds.
"""

import math
from typing import Final, TypeVar

from companion_push.relay.limits import ROUNDING, Rate
from companion_push.relay.problems import Problem, Slug
from http_serving.addresses import neighbourhood
from http_serving.rate_limit import Policy, Unit

TRIES: Final = 10  # requests that show one ticket or account code, beyond what their address has left
RING_BYTES: Final = 2 << 20  # of rings a minute, for each member
CALLS: Final = 3000  # a minute, of each key; a companion that only waits makes 3
_MOST: Final = 10_000  # entries of each table

Key = TypeVar("Key")
Value = TypeVar("Value")


class Strangers:
    """The failures of each address, the keys that are known, and the tries of each ticket or code."""

    def __init__(self, *, per_minute: int) -> None:
        """per_minute: failures of one address, an IPv6 /64 counting as one; 0 for no limit."""
        self._rate = Rate(count=per_minute, seconds=60) if per_minute else None
        self._failures: dict[
            str, float
        ] = {}  # when the address has its whole rate again; longest unused first
        self._known: dict[str, None] = {}
        self._tries: dict[bytes, int] = {}

    def is_spent(self, address: str, now: float) -> bool:
        """Whether the address has no failure left."""
        return self._rate is not None and not self._rate.left(self._failures.get(neighbourhood(address)), now)

    def admit(self, address: str, caller: str | None, secret: bytes | None, now: float) -> None:
        """Admit a request to the verification of its proof, or refuse it (`rate-limited`).

        caller: the name of the key that the proof shows, not verified yet. secret: the hash of the open ticket or code that the
        request shows, which is used up by one try.
        """
        if self._rate is None or not self.is_spent(address, now) or caller in self._known:
            return
        if secret is not None and self._tries.get(secret, 0) < TRIES:
            _put(self._tries, secret, self._tries.get(secret, 0) + 1)
            return
        # refuses, and says until when
        self._rate.take(self._failures.get(neighbourhood(address)), now, of="failures-of-address")

    def succeeded(self, caller: str) -> None:
        _put(self._known, caller, None)

    def failed(self, address: str, caller: str | None, now: float) -> None:
        """Count a failure. caller: the name of the key that made the proof; None when that was not verified.

        Whoever shows a key without holding it does not make it unknown: a former member knows the keys of the others.
        """
        if caller is not None:
            self._known.pop(caller, None)
        if self._rate is not None:
            where = neighbourhood(address)
            _put(self._failures, where, self._rate.take_up_to(self._failures.get(where), now))


class Budget:
    """What each key may have in a minute, such as bytes; the answer that exceeds it is given, and paid for afterwards.

    It is counted by verified keys, and asked by the key that a proof shows, before its signature is verified: whoever shows a
    key that is not its own can only be refused itself.
    """

    def __init__(self, *, name: str, per_minute: int, unit: Unit = Unit.REQUESTS) -> None:
        """name: of this limit."""
        self._rate = Rate(count=per_minute, seconds=60)
        self._policy = Policy(name=name, quota=per_minute, seconds=60, unit=unit)
        self._had: dict[str, float] = {}  # when the key has its whole rate again; longest unused first

    def admit(self, key: str, now: float) -> None:
        """Refuse (`rate-limited`) a key that has had its share."""
        over = self._used(key, now) + self._rate.seconds / self._rate.count - self._rate.seconds
        if over > ROUNDING:
            raise Problem(Slug.RATE_LIMITED, policy=self._policy, retry_after=math.ceil(over))

    def count(self, key: str, size: int, now: float) -> None:
        _put(self._had, key, now + self._used(key, now) + size * self._rate.seconds / self._rate.count)

    def _used(self, key: str, now: float) -> float:
        """Seconds until the key has its whole rate again."""
        return max(0.0, self._had.get(key, 0.0) - now)


def _put(table: dict[Key, Value], key: Key, value: Value) -> None:
    """Set an entry as the newest; at the bound the longest unused one goes."""
    table.pop(key, None)
    if len(table) >= _MOST:
        del table[next(iter(table))]
    table[key] = value
