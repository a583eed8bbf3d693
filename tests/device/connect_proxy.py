"""A proxy that connects, as those of companies do: CONNECT (RFC 9110 §9.3.6), with or without Basic credentials.

It alone knows where names are, so that whoever goes around it finds nothing.
"""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field


@dataclass
class ConnectProxy:
    """A running proxy, and what it saw."""

    places: Mapping[str, int]  # ports of this machine by host:port
    credentials: str | None = None  # name:password that it wants
    statuses: list[int] = field(default_factory=list)  # what it refuses with first, one after the other
    hangs_up: bool = False
    babbles: bool = False
    keeps_silent: bool = False
    port: int = 0
    asked: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    carried: bytearray = field(default_factory=bytearray)  # what clients sent through it
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        """Its address, as host:port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield f"localhost:{self.port}"
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                await self._connect(reader, writer)
            finally:
                writer.transport.abort()
                self._writers.discard(writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, version = head.split("\r\n", 1)[0].split(" ")
        assert (method, version) == ("CONNECT", "HTTP/1.1")
        self.heads.append(head)
        self.asked.append(target)
        if self.keeps_silent:
            await reader.read()  # until the client hangs up
        if self.hangs_up:
            return None
        if self.babbles:
            writer.write(b"\x00\x01 what?\r\n\r\n")
            return await writer.drain()
        status = self._status(head, target)
        if status != 200:
            writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
            return await writer.drain()
        far, to_far = await asyncio.open_connection("127.0.0.1", self.places[target])
        self._writers.add(to_far)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        jobs = [
            asyncio.create_task(self._copy(reader, to_far, self.carried)),
            asyncio.create_task(self._copy(far, writer, bytearray())),
        ]
        try:
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for job in jobs:
                job.cancel()
            to_far.transport.abort()
            self._writers.discard(to_far)

    def _status(self, head: str, target: str) -> int:
        if self.statuses:
            return self.statuses.pop(0)
        if self.credentials is not None:
            wanted = base64.b64encode(self.credentials.encode()).decode()
            if f"\r\nProxy-Authorization: Basic {wanted}\r\n" not in head:
                return 407
        return 200 if target in self.places else 502

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: bytearray
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                seen += data
                writer.write(data)
                await writer.drain()
