"""What may stand between an end and a tunnel service: it forgets idle connections, or swallows everything at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final, Self

TICK: Final = 0.1  # seconds


class Between:
    """A TCP proxy that drops a connection on which nothing has moved for `idle` seconds, as proxies and firewalls do.

    Time is counted in ticks of its event loop, so that a machine that stands still for a while is not taken for
    an end that says nothing.
    """

    def __init__(self, port: int, idle: float) -> None:
        self.port = 0
        self.swallows = False  # nothing gets through any more, and nobody is told
        self.dropped = asyncio.Event()
        self._target, self._idle = port, round(idle / TICK)
        self._ticks, self._ticked = 0, asyncio.Event()
        self._over = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, port: int, *, idle: float = 3600.0) -> AsyncIterator[Self]:
        """In front of a port of this machine; listens on its own `port`."""
        between = cls(port, idle)
        server = await asyncio.start_server(between._carry, "localhost", 0)
        between.port = server.sockets[0].getsockname()[1]
        ticking = asyncio.create_task(between._tick())
        try:
            yield between
        finally:
            ticking.cancel()
            between._over.set()
            server.close()
            for writer in between._writers:
                writer.transport.abort()

    async def lasts(self, seconds: float) -> None:
        """Until so much time has gone by."""
        end = self._ticks + round(seconds / TICK)
        while self._ticks < end:
            self._ticked.clear()
            await self._ticked.wait()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self._ticks += 1
            self._ticked.set()

    async def _carry(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        far, to_far = await asyncio.open_connection("localhost", self._target)
        moved = [self._ticks]

        async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 16):
                    moved[0] = self._ticks
                    if not self.swallows:
                        writer.write(data)
                        await writer.drain()

        async def watch() -> None:
            while self._ticks < moved[0] + self._idle:
                await self.lasts(TICK)
            self.dropped.set()

        pair = {to_near, to_far}
        self._writers |= pair
        jobs = [asyncio.create_task(job) for job in (copy(near, to_far), copy(far, to_near), watch())]
        try:
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            if self.swallows:  # not even the end of a connection gets through
                await self._over.wait()
        finally:
            for job in jobs:
                job.cancel()
            for writer in pair:
                writer.transport.abort()
            self._writers -= pair
