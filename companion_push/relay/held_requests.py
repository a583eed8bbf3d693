"""Held requests (long polling): a request that finds no news waits until its topic changes or its time is over.

A held request subscribes to its topic before each read of the store. A change between read and wait therefore wakes it
at once, and no change is lost.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Self

from companion_push.relay.problems import Problem, Slug
from http_serving.addresses import neighbourhood
from http_serving.rate_limit import Policy, Unit

_WOKEN_PER_SECOND = 1000.0  # when all are woken: a transaction of each takes about a millisecond


class HeldRequest:
    """One request that waits for news, while its context is open. There are thousands, so it holds little."""

    __slots__ = ("_among", "_is_woken", "_waiter", "address", "member", "on_release", "released", "topic")

    def __init__(self, among: "HeldRequests", *, topic: str, member: str, address: str) -> None:
        self._among = among
        self.topic, self.member, self.address = topic, member, address
        self._is_woken = False
        self._waiter: asyncio.Future[None] | None = None
        self.released = False  # answer now, with or without news
        self.on_release: Callable[[], None] | None = None  # is called then, while something is sent

    def __enter__(self) -> Self:
        self._among.enter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._among.leave(self)

    def wake(self) -> None:
        self._is_woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def reset(self) -> None:
        """Forget earlier changes; called before each read, so that a change from here on wakes the request."""
        self._is_woken = False

    async def wait(self, seconds: float) -> None:
        """Wait until a change wakes the request, at most `seconds`."""
        if self._is_woken:
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(seconds, _time_is_over, self._waiter)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None


def _time_is_over(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


class HeldRequests:
    """All held requests of one relay."""

    def __init__(self, *, per_member: int, per_address: int) -> None:
        """per_address: 0 for no limit."""
        self._per_member = per_member
        self._per_address = per_address
        self._by_topic: defaultdict[str, set[HeldRequest]] = defaultdict(set)
        self._by_member: defaultdict[str, dict[HeldRequest, None]] = defaultdict(dict)  # oldest first
        self._by_address: defaultdict[str, int] = defaultdict(int)
        self.closing = False

    def __len__(self) -> int:
        return sum(map(len, self._by_member.values()))

    def hold(self, *, topic: str, member: str, address: str) -> HeldRequest:
        """Hold a request while its context is open, which changes of `topic` wake.

        At a member's limit the oldest of its held requests is released. Entering refuses with `rate-limited` when too many
        are held for one address. A released request no longer counts for its member, but counts for its address until it is
        answered.
        """
        return HeldRequest(self, topic=topic, member=member, address=neighbourhood(address))

    def enter(self, held: HeldRequest) -> None:
        """Begin to hold a request."""
        if self._per_address and self._by_address.get(held.address, 0) >= self._per_address:
            policy = Policy(name="held-of-address", quota=self._per_address, unit=Unit.AT_A_TIME)
            raise Problem(Slug.RATE_LIMITED, policy=policy, retry_after=5)
        held.released = self.closing
        mine = self._by_member[held.member]
        if len(mine) >= self._per_member:
            oldest = next(iter(mine))
            del mine[oldest]
            self._release(oldest)
        mine[held] = None
        self._by_topic[held.topic].add(held)
        self._by_address[held.address] += 1

    def awaits(self, topic: str) -> bool:
        """Whether a held request waits for this topic."""
        return topic in self._by_topic

    def wake(self, topics: Iterable[str]) -> None:
        """Wake every held request of these topics."""
        for topic in topics:
            for held in self._by_topic.get(topic, ()):
                held.wake()

    def wake_members(self, members: Iterable[str]) -> None:
        """Wake every held request of these members."""
        for member in members:
            for held in self._by_member.get(member, ()):
                held.wake()

    def wake_all(self) -> None:
        """Wake every held request, since something may have changed for any; not all in one moment, for the store's sake."""
        loop = asyncio.get_running_loop()
        everybody = [held for mine in self._by_member.values() for held in mine]
        for number, held in enumerate(everybody):
            loop.call_later(number / _WOKEN_PER_SECOND, held.wake)

    def close(self) -> None:
        """Release every held request, and each that comes later at once."""
        self.closing = True
        for mine in self._by_member.values():
            for held in mine:
                self._release(held)

    @staticmethod
    def _release(held: HeldRequest) -> None:
        held.released = True
        held.wake()
        if held.on_release is not None:
            held.on_release()

    def leave(self, held: HeldRequest) -> None:
        """End the holding of a request."""
        self._by_topic[held.topic].discard(held)
        self._by_address[held.address] -= 1
        if not self._by_topic[held.topic]:
            del self._by_topic[held.topic]
        mine = self._by_member.get(held.member, {})  # without this request, where it was released
        mine.pop(held, None)
        if not mine:
            self._by_member.pop(held.member, None)
        if not self._by_address[held.address]:
            del self._by_address[held.address]
