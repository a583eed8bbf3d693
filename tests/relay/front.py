"""A proxy in front of a relay, on real sockets, which does to streams what proxies do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from enum import Enum, auto


class Does(Enum):
    """What a proxy does with a stream."""

    PASSES = auto()
    KEEPS_BACK = auto()  # it sends an answer when it has all of it
    BREAKS = auto()  # it hangs up when the answer begins


class Front:
    """Carries bytes, and knows a stream by the request's first line."""

    def __init__(self) -> None:
        self.does = Does.PASSES
        self.streams = 0  # requests for a stream
        self.polls = 0  # requests for the inbox
        self._server: asyncio.Server
        self._target = 0
        self._open: dict[asyncio.Task[None], bool] = {}  # whether it carries a stream
        self._moved = asyncio.Event()

    def begins_at(self, port: int) -> str:
        """Carry to `port` from now on; returns the URL to call."""
        self._target = port
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def hang_up(self) -> None:
        """Drop the streams that are open."""
        for task, is_stream in self._open.items():
            if is_stream:
                task.cancel()

    async def until(self, *, streams: int = 0, polls: int = 0) -> None:
        """Wait for so many requests, counted from the beginning."""
        async with asyncio.timeout(60):
            while self.streams < streams or self.polls < polls:
                self._moved.clear()
                await self._moved.wait()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Front"]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield self
        finally:
            self._server.close()
            tasks = list(self._open)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = False
        try:
            away_reader, away = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                await self._carry(task, reader, writer, away_reader, away)
            finally:
                away.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # whoever waits for the server to end need not know
        finally:
            writer.transport.abort()
            del self._open[task]

    async def _carry(
        self,
        task: asyncio.Task[None],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        away_reader: asyncio.StreamReader,
        away: asyncio.StreamWriter,
    ) -> None:
        async def there() -> None:
            while data := await reader.read(65_536):
                self._count(task, data)
                away.write(data)
                await away.drain()

        async def back() -> None:
            kept = b""
            while data := await away_reader.read(65_536):
                if self._open[task] and self.does is Does.KEEPS_BACK:
                    kept += data
                    continue
                writer.write(data)
                await writer.drain()
                if self._open[task] and self.does is Does.BREAKS:
                    return
            writer.write(kept)
            await writer.drain()

        ways = [asyncio.create_task(there()), asyncio.create_task(back())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    def _count(self, task: asyncio.Task[None], data: bytes) -> None:
        if data.startswith(b"GET /v1/inbox/stream"):
            self._open[task] = True
            self.streams += 1
        elif data.startswith(b"GET /v1/inbox"):
            self.polls += 1
        self._moved.set()
