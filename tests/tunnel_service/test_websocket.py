"""What an end may send as a websocket (RFC 6455), and what it is told when it sends something else."""

import asyncio
import contextlib
import runpy
import sys
from collections.abc import AsyncIterator
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from companion_push.serving.http_server import Runner
from companion_push.tunnel_service import websocket
from companion_push.tunnel_service.app import make_app
from companion_push.tunnel_service.rendezvous import Limits
from companion_push.tunnel_service.websocket import (
    FRAMES_IN_A_ROW,
    READ_AHEAD,
    Websocket,
    _unmasked,
    accept_key,
)
from tests.loop_clock import LoopClock
from tests.tunnel_service.both_ways import Wire
from tests.tunnel_service.by_program import listen
from tests.tunnel_service.test_memory import UPGRADE

PATIENCE = 20.0  # seconds; a safety net
MASK = bytes((1, 2, 3, 4))


def masked(data: bytes) -> bytes:
    return bytes(byte ^ MASK[place % 4] for place, byte in enumerate(data))


def frame(opcode: int, data: bytes = b"", *, last: bool = True, size: bytes | None = None) -> bytes:
    """A client's frame. size: what stands for the length, behind the bit of the mask."""
    if size is None:
        length = len(data)
        size = bytes([length]) if length < 126 else b"\x7f" + length.to_bytes(8, "big")
        if 126 <= length < 1 << 16:
            size = b"\x7e" + length.to_bytes(2, "big")
    return bytes([0x80 * last | opcode, 0x80 | size[0]]) + size[1:] + MASK + masked(data)


class Raw:
    """An end that sends bytes, and reads the service's frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, routing_id: str) -> None:
        self.reader, self.writer, self.routing_id = reader, writer, routing_id

    @classmethod
    async def call(cls, port: int, path: str, behind: bytes = b"") -> "Raw":
        """behind: is sent with the request, before it is answered."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\n{UPGRADE}".encode() + behind)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 101 "), head
        _, _, routing_id = head.partition("X-caBLE-Routing-ID: ")
        return cls(reader, writer, routing_id[:6])

    async def frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame; (-1, b"") at the connection's end."""
        try:
            first, size = await self.reader.readexactly(2)
            length = size
            if size == 126:
                length = int.from_bytes(await self.reader.readexactly(2), "big")
            elif size == 127:
                length = int.from_bytes(await self.reader.readexactly(8), "big")
            return first & 0x0F, await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return -1, b""

    async def code(self) -> int:
        """The close code, behind which the connection ends."""
        opcode, payload = await self.frame()
        assert opcode == 8
        with contextlib.suppress(ConnectionError):
            self.writer.write(frame(8, payload))
        assert await self.frame() == (-1, b"")
        return int.from_bytes(payload[:2], "big")


@contextlib.asynccontextmanager
async def both(behind: bytes = b"", **limits: int) -> AsyncIterator[tuple[Raw, Raw]]:
    """Both ends of a tunnel. behind: what the first one sends with its request."""
    runner = Runner(make_app(Limits(silence=3600, **limits)), shutdown_timeout=1)
    await runner.setup()
    port, number = await listen(runner), "00112233445566778899AABBCCDDEEFF"
    ends: list[Raw] = []
    try:
        async with asyncio.timeout(PATIENCE):
            ends.append(await Raw.call(port, f"/cable/new/{number}", behind))
            ends.append(await Raw.call(port, f"/cable/connect/{ends[0].routing_id}/{number}"))
            yield ends[0], ends[1]
    finally:
        for end in ends:
            end.writer.close()
            with contextlib.suppress(ConnectionError):
                await end.writer.wait_closed()
        await runner.cleanup()


class Unheard:
    """A tunnel whose other end takes nothing any more when a message has come."""

    def __init__(self) -> None:
        self.broken: list[int] = []
        self.silences = 0

    def message(self, websocket: Websocket, _data: bytes) -> None:
        websocket.read(go_on=False)

    def broke(self, websocket: Websocket, code: int, _rule: str) -> None:
        self.broken.append(code)
        websocket.close(code)

    def control(self, websocket: Websocket) -> None:
        """Pings count for nothing here."""

    def ended(self, websocket: Websocket, code: int | None) -> None:
        """It is over."""

    def silent(self, websocket: Websocket) -> None:
        self.silences += 1
        websocket.close(1001)

    def waits(self, websocket: Websocket, size: int) -> None:
        """What waits counts for nothing either."""

    flow = control


@pytest.mark.parametrize("answers", [True, False])
async def test_who_answers_a_ping_in_the_millisecond_in_which_it_was_sent_is_not_silent(
    *, answers: bool
) -> None:
    """uvloop's clock has milliseconds."""
    loop = asyncio.get_running_loop()
    clock, tunnel, wire, gone = LoopClock(loop), Unheard(), Wire(), asyncio.Event()
    clock.stop()
    end = Websocket(tunnel, message_size=1 << 16, silence=100)
    wire.set_protocol(end)
    end.begin(wire, bytearray(), gone.set)
    for passes in (101, 51):  # until it is pinged, and until it is missed
        clock.passes(passes)
        for _ in range(5):
            await asyncio.sleep(0)
        if answers:
            end.data_received(frame(10))
    assert tunnel.silences == (not answers)
    wire.abort()
    await gone.wait()


async def test_who_takes_what_was_sent_is_pinged_before_it_is_missed() -> None:
    loop = asyncio.get_running_loop()
    clock, tunnel, wire, gone = LoopClock(loop), Unheard(), Wire(), asyncio.Event()
    clock.stop()
    end = Websocket(tunnel, message_size=1 << 16, silence=100)
    wire.set_protocol(end)
    end.begin(wire, bytearray(), gone.set)

    async def passes(seconds: float) -> None:
        clock.passes(seconds)
        for _ in range(5):
            await asyncio.sleep(0)

    end.pause_writing()  # a long message is on its way to it just when it would be pinged
    await passes(101)
    end.resume_writing()
    assert wire.said == b""
    await passes(51)
    assert (tunnel.silences, bytes(wire.said)) == (0, b"\x89\0")
    await passes(51)
    assert tunnel.silences == 1
    wire.abort()
    await gone.wait()


@pytest.mark.threat("T17")
@pytest.mark.parametrize("more", [0, 1])
async def test_of_what_comes_with_the_request_no_more_waits_than_of_what_comes_later(more: int) -> None:
    tunnel, wire, gone = Unheard(), Wire(), asyncio.Event()
    end = Websocket(tunnel, message_size=1 << 16, silence=3600)
    wire.set_protocol(end)
    waits = frame(2, bytes(60_000)) * 2
    waits += bytes(READ_AHEAD + more - len(waits))  # half a frame
    end.begin(wire, bytearray(frame(2, b"first") + waits), gone.set)
    for _ in range(5):
        await asyncio.sleep(0)
    assert tunnel.broken == [1008] * more
    wire.abort()
    await gone.wait()


@pytest.mark.parametrize("pause", [True, False], ids=["byte by byte", "at once"])
async def test_messages_of_each_size_are_carried_however_they_arrive(*, pause: bool) -> None:
    messages = [bytes(range(256)) * 256, b"", b"x", bytes(125), bytes(126), bytes(127), bytes(300)]
    async with both() as (first, second):
        for message in messages:
            sent = frame(2, message)
            for part in (sent[:1], sent[1:2], sent[2:5], sent[5:9], sent[9:]) if pause else (sent,):
                first.writer.write(part)
                await first.writer.drain()
                await asyncio.sleep(0)
        assert [await second.frame() for _ in messages] == [(2, message) for message in messages]


async def test_a_message_in_parts_is_carried_whole_with_pings_between_them() -> None:
    async with both() as (first, second):
        first.writer.write(
            frame(2, b"one ", last=False)
            + frame(9, b"ping")
            + frame(0, b"", last=False)
            + frame(0, b"message")
            + frame(10)
            + frame(2, b"another")
        )
        assert [await second.frame(), await second.frame()] == [(2, b"one message"), (2, b"another")]
        assert await first.frame() == (10, b"ping")


async def test_many_messages_in_one_packet_are_carried_in_their_order() -> None:
    number = 20 * FRAMES_IN_A_ROW
    async with both() as (first, second):
        first.writer.write(b"".join(frame(2, bytes([place])) for place in range(number)))
        assert [await second.frame() for _ in range(number)] == [
            (2, bytes([place])) for place in range(number)
        ]
        second.writer.write(frame(2, b"back"))
        assert await first.frame() == (2, b"back")


async def test_what_comes_with_the_request_is_the_first_message() -> None:
    async with both(frame(2, b"early") + frame(2, b"and so")[:-3]) as (first, second):
        assert await second.frame() == (2, b"early")
        first.writer.write(frame(2, b"and so")[-3:])
        assert await second.frame() == (2, b"and so")


@pytest.mark.threat("T9")
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x82\x05hello", 1002),  # not masked
        (bytes([0xC2]) + frame(2, b"x")[1:], 1002),  # a reserved bit
        (frame(3, b"x"), 1002),
        (frame(11), 1002),
        (frame(0, b"x"), 1002),  # a part of nothing
        (frame(2, b"x", last=False) + frame(2, b"x"), 1002),  # a message within another one
        (frame(9, last=False), 1002),
        (frame(9, bytes(126)), 1002),
        (frame(2, b"x", size=b"\x7e\0\x01"), 1002),  # not the shortest form
        (frame(2, bytes(126), size=b"\x7f" + (126).to_bytes(8, "big")), 1002),
        (frame(2, b"x", size=b"\x7f\xff\xff\xff\xff\xff\xff\xff\xff"), 1009),
        (frame(2, bytes(1001)), 1009),
        (frame(2, bytes(600), last=False) + frame(0, bytes(600)), 1009),
        (frame(1, b"text"), 1003),
        (frame(1, b"text", last=False), 1003),
        (frame(8, b"x"), 1002),
        (frame(8, (999).to_bytes(2, "big")), 1002),
        (frame(8, (1005).to_bytes(2, "big")), 1002),
        (frame(8, (1000).to_bytes(2, "big") + b"\xff"), 1002),
        (b"GET / HTTP/1.1\r\n\r\n", 1002),
    ],
)
async def test_what_breaks_the_protocol_ends_the_tunnel_with_its_code(sent: bytes, code: int) -> None:
    async with both(message_size=1000) as (first, second):
        first.writer.write(sent)
        assert await first.code() == code
        assert await second.code() == 1001


@pytest.mark.threat("T9")
async def test_parts_without_end_are_no_way_around_the_budget() -> None:
    async with both(controls=10) as (first, second):
        first.writer.write(frame(2, b"", last=False) + frame(0, b"", last=False) * 2000)
        assert await first.code() == 1008
        assert await second.code() == 1001


@pytest.mark.threat("T9")
async def test_what_follows_a_refused_message_is_not_taken_for_frames() -> None:
    hidden = frame(2, b"hidden") * 100
    async with both(message_size=100) as (first, second):
        first.writer.write(frame(2, hidden) + frame(8, b"\x03\xe8"))
        assert await first.frame() == (8, (1009).to_bytes(2, "big"))
        assert await first.frame() == (-1, b"")  # the close frame behind it was read
        assert await second.code() == 1001


@pytest.mark.parametrize("code", [b"", b"\x03\xe8", b"\x03\xe9bye", b"\x0f\xa0"])
async def test_a_close_frame_is_answered_and_ends_both(code: bytes) -> None:
    async with both() as (first, second):
        first.writer.write(frame(2, b"the last") + frame(8, code))
        assert (await first.frame())[0] == 8
        assert await first.frame() == (-1, b"")
        assert await second.frame() == (2, b"the last")
        assert await second.code() in {1000, 1001}


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_a_mask_is_taken_off(data: bytes, key: bytes) -> None:
    assert _unmasked(bytes(byte ^ key[place % 4] for place, byte in enumerate(data)), key) == data


def test_a_mask_is_taken_off_where_aiohttp_has_no_help_for_it() -> None:
    with patch.dict(sys.modules, {"aiohttp._websocket.helpers": None}):
        elsewhere = runpy.run_path(websocket.__file__)
    assert elsewhere["websocket_mask"] is None
    for size in (0, 1, 3, 4, 5, 125, 70_000):
        data = bytes(place % 251 for place in range(size))
        assert elsewhere["_unmasked"](masked(data), MASK) == data


SOUND = {
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def test_the_handshake_is_answered_as_in_the_rfc() -> None:
    assert accept_key(CIMultiDictProxy(CIMultiDict(SOUND))) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # section 1.3


@pytest.mark.threat("T9")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Upgrade", "h2c"),
        ("Connection", "keep-alive"),
        ("Sec-WebSocket-Version", "8"),
        ("Sec-WebSocket-Key", ""),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZ"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZTE="),
        ("Sec-WebSocket-Key", "dGhl\nIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZé=="),
    ],
)
def test_another_request_is_no_handshake(name: str, value: str) -> None:
    assert accept_key(CIMultiDictProxy(CIMultiDict({**SOUND, name: value}))) is None
    two = CIMultiDict(SOUND)
    two.add("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
    assert accept_key(CIMultiDictProxy(two)) is None
