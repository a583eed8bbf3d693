"""What ends send and nobody reads: the tunnel service holds little of it, and says so to its senders by not reading."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from companion_push.serving.http_server import Runner
from companion_push.tunnel_service import app as tunnel_app
from companion_push.tunnel_service.app import make_app
from companion_push.tunnel_service.rendezvous import Limits
from companion_push.tunnel_service.websocket import READ_AHEAD, Websocket
from tests.tunnel_service.by_program import listen
from tests.tunnel_service.test_limits import PATIENCE

UPGRADE = (
    "Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: fido.cable\r\n\r\n"
)


class Silent:
    """A websocket client that sends and reads nothing."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, routing_id: str) -> None:
        self.reader, self.writer, self.routing_id = reader, writer, routing_id

    @classmethod
    async def call(cls, port: int, path: str) -> "Silent":
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        writer.write(f"GET {path} HTTP/1.1\r\n{UPGRADE}".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 101 "), head
        named = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in head.split("\r\n")}
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        return cls(reader, writer, named.get("x-cable-routing-id", ""))

    def send(self, size: int, opcode: int = 2) -> None:
        length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
        self.writer.write(bytes([0x80 | opcode]) + length + bytes(4) + bytes(size))

    async def code(self) -> int:
        """The close code that comes behind everything else."""
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]
        said = b""
        with contextlib.suppress(ConnectionError):
            while more := await self.reader.read(1 << 16):
                said = (said + more)[-127:]
        _, _, frame = said.rpartition(b"\x88")
        assert frame[:1] == bytes([len(frame) - 1]), said
        return int.from_bytes(frame[1:3], "big")


class Service:
    """A tunnel service, with its connections and the tunnels' books."""

    def __init__(
        self, port: int, connections: list[Websocket], endpoints: tunnel_app.TunnelEndpoints
    ) -> None:
        self.port, self.connections, self.endpoints = port, connections, endpoints

    async def both(self, number: int) -> tuple[Silent, Silent]:
        first = await Silent.call(self.port, f"/cable/new/{number:032X}")
        second = await Silent.call(self.port, f"/cable/connect/{first.routing_id}/{number:032X}")
        return first, second

    def held(self) -> list[int]:
        """What each connection keeps in memory, in bytes: what was read and not received, and what was not sent."""
        return [each.unread + each.unsent for each in self.connections]


@contextlib.asynccontextmanager
async def serving(monkeypatch: pytest.MonkeyPatch, **limits: int) -> AsyncIterator[Service]:
    connections: list[Websocket] = []
    begin = Websocket.begin

    def noted(websocket: Websocket, *given: Any) -> None:
        begin(websocket, *given)
        connections.append(websocket)

    monkeypatch.setattr(Websocket, "begin", noted)
    app = make_app(Limits(**limits))
    runner = Runner(app, shutdown_timeout=1)
    await runner.setup()
    port = await listen(runner)
    try:
        async with asyncio.timeout(PATIENCE):
            yield Service(port, connections, app[tunnel_app._TUNNELS])
    finally:
        await runner.cleanup()


async def stuffed(ends: list[Silent], size: int, opcode: int = 2) -> None:
    """Send until the service reads no more from any of these ends."""

    async def stuff(end: Silent) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(250):
                end.send(size, opcode)
                async with asyncio.timeout(1):
                    await end.writer.drain()

    await asyncio.gather(*(stuff(end) for end in ends))


@pytest.mark.threat("T9")
@pytest.mark.parametrize("size", [60_000, 4000, 200])
async def test_of_tunnels_that_nobody_reads_little_is_held(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(monkeypatch, messages=1 << 20, size=1 << 30, controls=1 << 20) as service:
        ends = [end for number in range(5) for end in await service.both(number)]
        await stuffed(ends, size)
        assert all(tunnel.held <= 1 << 17 for tunnel in service.endpoints._open)
        assert max(service.held()) <= READ_AHEAD + (1 << 16) + 10
        for end in ends:
            end.writer.transport.abort()
    assert service.endpoints.rendezvous.in_flight == 0


@pytest.mark.threat("T9")
async def test_pongs_for_an_end_that_reads_none_are_held_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(monkeypatch, controls=1 << 20) as service:
        first, second = await service.both(1)
        await stuffed([first] * 100, 125, opcode=9)
        assert max(service.held()) <= READ_AHEAD + 130
        for end in (first, second):
            end.writer.transport.abort()


@pytest.mark.threat("T9")
async def test_a_flood_of_empty_frames_is_not_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, messages=1 << 20, controls=1 << 20) as service:
        first, second = await service.both(1)
        await stuffed([first], 60_000)  # so that the service sends on nothing more
        await stuffed([second] * 100, 0, opcode=9)
        assert max(service.held()) <= READ_AHEAD + (1 << 16) + 10
        first.writer.transport.abort()
        second.writer.transport.abort()


@pytest.mark.threat("T17")
async def test_a_tunnel_that_holds_most_makes_room_for_others_and_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(monkeypatch, in_flight_of_all=200_000, messages=1 << 20, size=1 << 30) as service:
        greedy, silent = await service.both(1)
        await stuffed([greedy], 60_000)
        rendezvous = service.endpoints.rendezvous
        # a message that is not taken, and what has been read behind it
        assert 60_000 <= rendezvous.in_flight <= 60_000 + READ_AHEAD
        early = [await Silent.call(service.port, f"/cable/new/{number:032X}") for number in (2, 3, 4)]
        for end in early:
            end.send(50_000)
        assert await greedy.code() == 1013
        assert rendezvous.in_flight == 150_000
        for end in (greedy, silent, *early):
            end.writer.transport.abort()


@pytest.mark.threat("T9")
@pytest.mark.threat("T17")
@pytest.mark.parametrize("first_byte", [0x82, 0x02], ids=["of one frame", "of two frames"])
async def test_what_has_come_of_a_message_is_in_flight_until_its_rest_has_come(
    first_byte: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(monkeypatch, in_flight_of_all=150_000) as service:
        rendezvous = service.endpoints.rendezvous
        ends = [end for number in range(2) for end in await service.both(number)]
        size = 60_000
        begun = bytes([first_byte, 0xFE]) + size.to_bytes(2, "big") + bytes(4) + bytes(size - 1)
        for end in ends[:2]:
            end.writer.transport.resume_reading()  # type: ignore[attr-defined]
            end.writer.write(begun)
        while rendezvous.in_flight < 2 * (size - 1):  # noqa: ASYNC110  the service tells nobody
            await asyncio.sleep(0.001)
        held = rendezvous.in_flight
        ends[0].writer.write(bytes(1))  # a message is whole, or its first part
        if first_byte == 0x02:
            ends[0].send(0, opcode=0)
        while rendezvous.in_flight > held // 2:  # noqa: ASYNC110  as above
            await asyncio.sleep(0.001)
        for end in ends[2:]:
            end.writer.write(begun)
        assert await ends[2].code() == 1013  # the tunnel that holds most
        assert rendezvous.in_flight == held // 2
        for end in ends:
            end.writer.transport.abort()
    assert rendezvous.in_flight == 0
