"""A bounded queue of adverts between a radio's callback and a listener; when it is full, it drops the oldest.

Anyone nearby can send adverts at any rate, so memory is bounded. An advert that is in the queue already is not queued
again. A dropped advert is no loss: a phone repeats its advert many times a second.
"""

import asyncio
import logging
from collections import deque
from typing import Final, Self

from headless_passkey.radio.source import Advert

SIZE: Final = 64

logger = logging.getLogger(__name__)


class Inbox:
    """An asynchronous iterator of adverts. Producer and consumer run in the same event loop."""

    def __init__(self, size: int = SIZE) -> None:
        self._waiting: deque[Advert] = deque()
        self._size = size
        self._changed = asyncio.Event()
        self._failure: Exception | None = None

    def put(self, advert: Advert) -> None:
        """Queue an advert."""
        if any(advert.service_data == other.service_data for other in self._waiting):
            return
        if len(self._waiting) == self._size:
            self._waiting.popleft()
            logger.debug("too many adverts at once: dropped the oldest")
        self._waiting.append(advert)
        self._changed.set()

    def fail(self, failure: Exception) -> None:
        """End the queue with an error: the listener gets the queued adverts, then `failure`."""
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
