"""Held requests (long polling): a request that finds no news waits until its topic changes or its time is over.

A held request subscribes to its topic before each read of the store. A change between read and wait therefore wakes it
at once, and no change is lost.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

from companion_push.relay.problems import Problem, Slug
from companion_push.serving.addresses import neighbourhood
from companion_push.serving.rate_limit import Policy, Unit


class HeldRequest:
    """One request that waits for news."""

    __slots__ = ("_woken", "released")

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self.released = False  # answer now, with or without news

    def wake(self) -> None:
        self._woken.set()

    def reset(self) -> None:
        """Forget earlier changes; called before each read, so that a change from here on wakes the request."""
        self._woken.clear()

    async def wait(self, seconds: float) -> None:
        """Wait until a change wakes the request, at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()


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

    @contextlib.contextmanager
    def hold(self, *, topic: str, member: str, address: str) -> Iterator[HeldRequest]:
        """Hold a request, which changes of `topic` wake. At a member's limit the oldest of its held requests is released.

        Refuses with `rate-limited` when too many are held for one address. A released request no longer counts for its
        member, but counts for its address until it is answered.
        """
        address = neighbourhood(address)
        if self._per_address and self._by_address[address] >= self._per_address:
            policy = Policy(name="held-of-address", quota=self._per_address, unit=Unit.AT_A_TIME)
            raise Problem(Slug.RATE_LIMITED, policy=policy, retry_after=5)
        held = HeldRequest()
        held.released = self.closing
        mine = self._by_member[member]
        if len(mine) >= self._per_member:
            oldest = next(iter(mine))
            del mine[oldest]
            self._release(oldest)
        mine[held] = None
        self._by_topic[topic].add(held)
        self._by_address[address] += 1
        try:
            yield held
        finally:
            self._leave(held, topic=topic, member=member, address=address)

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

    def _leave(self, held: HeldRequest, *, topic: str, member: str, address: str) -> None:
        self._by_topic[topic].discard(held)
        self._by_address[address] -= 1
        if not self._by_topic[topic]:
            del self._by_topic[topic]
        mine = self._by_member.get(member, {})  # without this request, where it was released
        mine.pop(held, None)
        if not mine:
            self._by_member.pop(member, None)
        if not self._by_address[address]:
            del self._by_address[address]
