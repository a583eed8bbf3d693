"""The notifier: hands the pushes that operations cause to the dispatcher, and stores what becomes of them.

It follows the relay (`RelayEndpoints.follow`), so a push begins after the commit of what it is about, and its caller does not
wait for it. Outcomes that come while one transaction runs are stored by the next, all at once.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final

from companion_push.errors import StoreUnavailable
from companion_push.push.channel import Channel, Delivery, Kind
from companion_push.push.dispatcher import Dispatcher, Order
from companion_push.relay.operations import Answer, Operation, record_pushes
from companion_push.relay.problems import Problem
from companion_push.serving.tracing import Tracing
from headless_passkey.process.tasks import end_quietly

AFTER_ANSWER: Final = 0.01  # seconds before a push begins, in which the caller gets its answer
TEST_SECONDS: Final = 8.0  # for a push whose caller waits: a call has ten
DRAIN_SECONDS: Final = 2.0  # for what is with the push services when the relay ends
GATHER: Final = 0.02  # seconds in which more outcomes may come, for one transaction
_REFUSED: Final = 3  # outcomes, after which no others are stored one by one
_AGAIN: Final = 2.0  # seconds until a store that did not answer is tried again

logger = logging.getLogger(__name__)


class Notifier:
    """The pushes of one relay."""

    def __init__(
        self,
        channels: Sequence[Channel],
        *,
        run: Callable[[Operation], Awaitable[Answer]],
        clock: Callable[[], float] = time.time,
        traces: Tracing | None = None,
    ) -> None:
        """run: makes an operation of the relay's own. clock: Unix seconds. traces: None for no spans. `UsageError` for two channels of one kind."""
        self._run = run
        self._dispatcher = Dispatcher(channels, told=self._told, clock=clock, traces=traces)
        self._in_flight: set[int] = set()
        self._later: set[asyncio.TimerHandle] = set()
        self._ends: list[tuple[Order, Delivery]] = []
        self._ended = asyncio.Event()
        self._closed = False
        self._recorder: asyncio.Task[None] | None = None

    @property
    def kinds(self) -> frozenset[Kind]:
        return self._dispatcher.kinds

    @property
    def channels(self) -> Mapping[Kind, Channel]:
        return self._dispatcher.channels

    @property
    def failing(self) -> Mapping[Kind, int]:
        """How many services of each kind are left alone for a while, since they fail."""
        return self._dispatcher.failing

    @property
    def in_flight(self) -> Collection[int]:
        """The numbers of the pushes whose outcome is not stored yet."""
        return self._in_flight

    def start(self) -> None:
        self._recorder = asyncio.create_task(self._record())

    def follow(self, answer: Answer) -> None:
        """Take the pushes of an operation."""
        new = [order for order in answer.pushes if order.number not in self._in_flight]
        if not new or self._closed:
            return
        self._in_flight.update(order.number for order in new)
        self._later = {
            handle for handle in self._later if not handle.cancelled() and handle.when() > _ticks()
        }
        self._later.add(asyncio.get_running_loop().call_later(AFTER_ANSWER, self._dispatch, new))

    async def test(self, order: Order) -> Delivery:
        """Send a push that somebody waits for, at once."""
        delivery = await self._dispatcher.send_now(order, TEST_SECONDS)
        logger.info("a test of %s: %s (%s)", order.kind, delivery.outcome, delivery.detail)
        return delivery

    def _dispatch(self, orders: Sequence[Order]) -> None:
        for order in orders:
            if not self._closed:
                self._dispatcher.dispatch(order)

    def _told(self, order: Order, delivery: Delivery) -> None:
        self._ends.append((order, delivery))
        self._ended.set()

    async def _record(self) -> None:
        while True:
            await self._ended.wait()
            await asyncio.sleep(GATHER)
            self._ended.clear()
            if not await self._flush():
                await asyncio.sleep(_AGAIN)
                self._ended.set()

    async def _flush(self) -> bool:
        """Store the outcomes that have come; False where the store does not answer for some."""
        ends, self._ends = self._ends, []
        refused = await self._store(ends) if ends else None
        if refused is None:
            return True
        left = ends if len(ends) == 1 else await self._store_apart(ends)
        if not left:
            return True
        logger.warning("the outcomes of %d pushes could not be stored: %s", len(left), refused)
        self._ends += left  # after those that have come meanwhile
        return False

    async def _store(self, ends: Sequence[tuple[Order, Delivery]]) -> Exception | None:
        """Store outcomes in one transaction; returns the error when the store does not answer."""
        try:
            await self._run(record_pushes(ends))
        except (StoreUnavailable, Problem) as error:
            return error
        except Exception as error:  # noqa: BLE001  a bug must not end the recording of all others
            logger.error("the outcomes of %d pushes were lost: %s", len(ends), type(error).__name__)  # noqa: TRY400
            return None
        self._in_flight.difference_update(order.number for order, _ in ends)
        return None

    async def _store_apart(self, ends: list[tuple[Order, Delivery]]) -> list[tuple[Order, Delivery]]:
        """Store outcomes one by one, since one account may be in the way of the others; returns those that are left, those that
        were refused at the end. After some that were refused the store seems not to answer for anybody.
        """
        refused: list[tuple[Order, Delivery]] = []
        for number, each in enumerate(ends, start=1):
            if await self._store([each]) is not None:
                refused.append(each)
            if len(refused) == _REFUSED:
                return ends[number:] + refused
        return refused

    async def close(self) -> None:
        """Wait a little for what is with the push services. The rest stays in the store, for the next start."""
        self._closed = True
        for handle in self._later:
            handle.cancel()
        try:
            await self._dispatcher.close(DRAIN_SECONDS)
        finally:
            if self._recorder is not None:
                await end_quietly(self._recorder)
        await self._flush()


def _ticks() -> float:
    return asyncio.get_running_loop().time()
