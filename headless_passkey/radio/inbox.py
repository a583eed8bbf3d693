"""Adverts on their way from a radio's callback to whoever listens: the newest few, never an error's worth of memory.

Anyone nearby can send adverts, at any rate. What waits here is bounded: an advert that waits already is not
queued again, and when there is no room the oldest goes, because a phone repeats itself many times a second.
"""

import asyncio
import logging
from collections import deque
from typing import Final, Self

from headless_passkey.radio.source import Advert

SIZE: Final = 64

logger = logging.getLogger(__name__)


class Inbox:
    """An asynchronous iterator of adverts, filled from the event loop it is read in."""

    def __init__(self, size: int = SIZE) -> None:
        self._waiting: deque[Advert] = deque()
        self._size = size
        self._changed = asyncio.Event()
        self._failure: Exception | None = None

    def put(self, advert: Advert) -> None:
        """An advert was heard."""
        if any(advert.service_data == other.service_data for other in self._waiting):
            return
        if len(self._waiting) == self._size:
            self._waiting.popleft()
            logger.debug("too many adverts at once: dropped the oldest")
        self._waiting.append(advert)
        self._changed.set()

    def fail(self, failure: Exception) -> None:
        """The radio has failed: the listener gets what was heard before, then `failure`."""
        self._failure = failure
        self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Advert:
        while not self._waiting:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()
