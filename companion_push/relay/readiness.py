"""Readiness: whether the relay can do its work now, for a load balancer or an orchestrator.

Anybody may ask, so asking must cost little: calls at one time share one read of the store, and its result for a second.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from companion_push.errors import StoreUnavailable
from companion_push.relay.problems import Problem, Slug

READ_SECONDS: Final = 2.0  # for one read of the store, behind the transactions that wait before it
SHARED_SECONDS: Final = 1.0  # for which the result of a read is given out

logger = logging.getLogger(__name__)


class Readiness:
    """The state of the store, as its last read has found it."""

    def __init__(self, read: Callable[[], "asyncio.Future[Any]"]) -> None:
        """read: begins one read of the store. `StoreUnavailable` and `Problem` mean that it does not answer."""
        self._read = read
        self._reading: asyncio.Future[Any] | None = None
        self._until = 0.0  # by the loop's clock: when a result that is there gets too old
        self._answers = True  # as was logged last

    async def check(self) -> None:
        """Refuse with `store-unavailable` when the store does not answer a read in time."""
        loop = asyncio.get_running_loop()
        reading = self._reading
        if reading is None or (reading.done() and loop.time() >= self._until):
            reading = self._reading = self._read()
            if reading.done():
                self._done(reading)
            else:
                reading.add_done_callback(self._done)
        try:
            async with asyncio.timeout(READ_SECONDS):
                await asyncio.shield(reading)
        except TimeoutError as error:
            self._note("it takes longer than a read should")
            raise Problem(Slug.STORE_UNAVAILABLE, retry_after=2) from error
        except StoreUnavailable as error:
            raise Problem(Slug.STORE_UNAVAILABLE, retry_after=2) from error

    def _done(self, reading: "asyncio.Future[Any]") -> None:
        self._until = reading.get_loop().time() + SHARED_SECONDS
        if not reading.cancelled():
            error = reading.exception()
            self._note(
                None if error is None else str(error) if isinstance(error, StoreUnavailable) else "a bug"
            )

    def _note(self, trouble: str | None) -> None:
        """Log the changes between ready and not ready, and no more: anybody may ask."""
        if self._answers and trouble is not None:
            logger.warning("not ready, the store does not answer: %s", trouble)
        if not self._answers and trouble is None:
            logger.warning("ready again: the store answers")
        self._answers = trouble is None
