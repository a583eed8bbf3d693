"""Held requests: who waits for what, how many may, and how they are woken.

A waiting client subscribes first and reads then, so what happens between is not lost: the bell has rung.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

from companion_push.relay.problems import Problem, Slug


class Bell:
    """One held request's bell."""

    __slots__ = ("_rung", "let_go")

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self.let_go = False  # answer now, changed or not

    def ring(self) -> None:
        self._rung.set()

    def silence(self) -> None:
        """Before each reading: what rings from here on is news."""
        self._rung.clear()

    async def wait(self, seconds: float) -> None:
        """Until it rings, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rung.wait()


class WaitingRoom:
    """All held requests of one relay."""

    def __init__(self, *, per_member: int, per_address: int) -> None:
        """per_address: 0 for no limit."""
        self._per_member = per_member
        self._per_address = per_address
        self._by_topic: defaultdict[str, set[Bell]] = defaultdict(set)
        self._by_member: defaultdict[str, dict[Bell, None]] = defaultdict(dict)  # oldest first
        self._by_address: defaultdict[str, int] = defaultdict(int)
        self.closing = False

    def __len__(self) -> int:
        return sum(map(len, self._by_member.values()))

    @contextlib.contextmanager
    def enter(self, *, topic: str, member: str, address: str) -> Iterator[Bell]:
        """A bell that rings for `topic`. A member's oldest held request makes room for its newest.

        Refuses with `rate-limited` when too many are held for one address. A request that is let go makes room
        at once, and counts for its address until it is answered.
        """
        if self._per_address and self._by_address[address] >= self._per_address:
            raise Problem(Slug.RATE_LIMITED, retry_after=5)
        bell = Bell()
        bell.let_go = self.closing
        mine = self._by_member[member]
        if len(mine) >= self._per_member:
            oldest = next(iter(mine))
            del mine[oldest]
            self._release(oldest)
        mine[bell] = None
        self._by_topic[topic].add(bell)
        self._by_address[address] += 1
        try:
            yield bell
        finally:
            self._leave(bell, topic=topic, member=member, address=address)

    def ring(self, topics: Iterable[str]) -> None:
        """Something has changed for those who wait for one of `topics`."""
        for topic in topics:
            for bell in self._by_topic.get(topic, ()):
                bell.ring()

    def close(self) -> None:
        """Let everybody go, now and from now on."""
        self.closing = True
        for bells in self._by_member.values():
            for bell in bells:
                self._release(bell)

    @staticmethod
    def _release(bell: Bell) -> None:
        bell.let_go = True
        bell.ring()

    def _leave(self, bell: Bell, *, topic: str, member: str, address: str) -> None:
        self._by_topic[topic].discard(bell)
        self._by_address[address] -= 1
        if not self._by_topic[topic]:
            del self._by_topic[topic]
        mine = self._by_member.get(member, {})  # without it, when it was let go
        mine.pop(bell, None)
        if not mine:
            self._by_member.pop(member, None)
        if not self._by_address[address]:
            del self._by_address[address]
