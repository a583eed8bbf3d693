"""Following an inbox: one connection that stays open gets each answer of the inbox as it changes.

The caller is authenticated once, when the connection begins, and is authorised again in each transaction: who is removed, or
whose account is closed, is told so at once, also when another process did it, within one interval of the reader. There is no
queue: an answer is the inbox as it is when the connection can take it.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum
from typing import Final

from companion_push.relay.held_requests import HeldRequest, HeldRequests
from companion_push.relay.operations import Answer

# seconds for the peer to take what it is sent when the connection ends: a relay that shuts down does not wait for who does not read
LAST_SECONDS: Final = 1.0
INTERVAL: Final = 20.0  # seconds between two signs of life and two transactions, at most


class Ending(StrEnum):
    """Why the relay ends a connection in order. The caller comes back with a new proof."""

    RENEW = "renew"  # one proof is good for so long
    REPLACED = "replaced"  # the member holds as many calls as it may, and a newer one needs the place
    DRAINING = "draining"  # the relay shuts down


class Ended(Exception):  # noqa: N818  a state of affairs
    """The connection has ended in order."""

    def __init__(self, reason: Ending) -> None:
        super().__init__(reason)
        self.reason = reason


class Following:
    """The inbox of one companion, as one connection follows it. One task reads it.

    `news` is for connections that say something when nothing happens; iterating is for the others::

        with relay.followed(caller, address=request.remote or "") as inbox:
            async for answer in inbox:
                ...
        # inbox.ended says why
    """

    def __init__(
        self,
        read: Callable[[str | None], Awaitable[Answer]],
        held: HeldRequest,
        *,
        among: HeldRequests,
        cursor: str | None,
        until: float,
        lease: float,
        clock: Callable[[], float],
        heard: Callable[[], None],
    ) -> None:
        """read: one transaction, which authorises the caller; `Answer.news` says whether the inbox differs from a cursor.

        until: when a new proof is due, by the event loop's clock. lease: of claims, in seconds. clock: Unix seconds. heard:
        see `heard`.
        """
        self.interval = min(INTERVAL, lease / 3)  # a companion that holds a claim calls as often
        self._read, self._held, self._among = read, held, among
        self._cursor, self._until, self._clock = cursor, until, clock
        self._changes_at = 0.0  # Unix seconds: the first reading is due at once
        self.has_read = False  # whether the first transaction has been
        self.heard = heard  # a sign of life: it counts as a call of the caller, and keeps its claims
        self.ended: Ending | None = None

    async def news(self, seconds: float) -> Answer | None:
        """The inbox, as soon as it differs from the last answer, or from the cursor; None when it has not for `seconds`.

        The first call waits for nothing: None says that the cursor is the newest. Raises `Ended`, and the `Problem` with
        which the caller is refused from now on.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            if self.has_read:
                self._check_ended(loop.time())
                left = min(end, self._until) - loop.time()
                await self._held.wait(max(0.0, min(left, self._seconds_to_change())))
                self._check_ended(loop.time())
            self._held.reset()  # a change from here on wakes the next wait
            answer = await self._read(self._cursor)
            first, self.has_read = not self.has_read, True
            self._changes_at = answer.changes_at
            if answer.news:
                self._cursor = answer.body["cursor"]
                return answer
            if first or loop.time() >= end:
                return None

    async def sent(self, sending: Awaitable[None], seconds: float) -> None:
        """Wait until the peer has taken what it is sent: so many seconds, and `LAST_SECONDS` from the connection's end on.

        `TimeoutError` when it has not.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(
            min(seconds, LAST_SECONDS) if self._held.released else seconds
        ) as deadline:

            def hurry() -> None:
                due = deadline.when()
                deadline.reschedule(min(loop.time() + LAST_SECONDS, math.inf if due is None else due))

            self._held.on_release = hurry
            try:
                await sending
            finally:
                self._held.on_release = None

    def __aiter__(self) -> AsyncIterator[Answer]:
        return self

    async def __anext__(self) -> Answer:
        """As `news`, however long it takes; the iteration is over when the connection has ended in order."""
        try:
            while (answer := await self.news(self.interval)) is None:
                pass
        except Ended:
            raise StopAsyncIteration from None
        return answer

    def _seconds_to_change(self) -> float:
        """Seconds until time alone changes the inbox."""
        return max(0.01, self._changes_at - self._clock())

    def _check_ended(self, now: float) -> None:
        if self._held.released:
            self.ended = Ending.DRAINING if self._among.closing else Ending.REPLACED
        elif now >= self._until:
            self.ended = Ending.RENEW
        if self.ended is not None:
            raise Ended(self.ended)
