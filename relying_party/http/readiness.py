"""Readiness: whether the relying party can do its work now, for a load balancer or an orchestrator.

Anybody may ask, so asking costs little: calls at one time share one read of the store, and its result for a second.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from relying_party.errors import StoreUnavailable

READ_SECONDS: Final = 2.0  # for one read of the store, behind the transactions that wait before it
SHARED_SECONDS: Final = 1.0  # for which the result of a read is given out

logger = logging.getLogger(__name__)


class Readiness:
    """The state of the store, as its last read has found it."""

    def __init__(self, read: Callable[[], Awaitable[object]]) -> None:
        """read: reads from the store; `StoreUnavailable` means that it does not answer."""
        self._read = read
        self._reading: asyncio.Future[bool] | None = None
        self._until = 0.0  # by the loop's clock: when a result that is there gets too old
        self._answers = True  # as was logged last

    async def is_ready(self) -> bool:
        """Whether the store answers a read in time."""
        now = asyncio.get_running_loop().time()
        reading = self._reading
        if reading is None or (reading.done() and now >= self._until):
            reading = self._reading = asyncio.ensure_future(self._look())
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await asyncio.shield(reading)
        except TimeoutError:
            self._note("it takes longer than a read should")
            return False

    async def close(self) -> None:
        """End a read that is under way."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _look(self) -> bool:
        try:
            await self._read()
        except StoreUnavailable as error:
            self._note(str(error))
        else:
            self._note(None)
        self._until = asyncio.get_running_loop().time() + SHARED_SECONDS
        return self._answers

    def _note(self, trouble: str | None) -> None:
        """Log the changes between ready and not ready, and no more: anybody may ask."""
        if self._answers and trouble is not None:
            logger.warning("not ready, the store does not answer: %s", trouble)
        if not self._answers and trouble is None:
            logger.warning("ready again: the store answers")
        self._answers = trouble is None
