"""Every server closes connections that say nothing in time, and lets no address take all connections."""

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from certificates import Certificate

from companion_push.serving import http_server as push_http_server
from http_serving import addresses, connections
from http_serving import runner as http_runner
from http_serving.tls import tls_context
from tests.programs import running
from tests.test_servers import PATIENCE, PROGRAMS
from tests.test_serving import SERVERS, port_of, words

# The books


class Book:
    """Connections by name, and which of them were closed for others."""

    def __init__(self, total: int, per_address: int, proxies: tuple[str, ...] = ()) -> None:
        limits = connections.ConnectionLimits(total=total, per_address=per_address)
        self.why: list[str] = []
        self.ended: list[str] = []
        trusted = [addresses.network(proxy) for proxy in proxies]
        self.all = connections.Connections(limits, trusted_proxies=trusted, closed=self.why.append)

    def admit(self, name: str, address: str) -> connections.Slot | None:
        slot: connections.Slot | None = self.all.admit(address, lambda: self.ended.append(name))
        return slot


@pytest.mark.threat("T17")
def test_at_the_cap_of_an_address_its_longest_idle_connection_goes() -> None:
    book = Book(total=10, per_address=2)
    assert book.admit("other", "192.0.2.2")
    first, _ = book.admit("first", "192.0.2.1"), book.admit("second", "192.0.2.1")
    assert first
    book.all.use(first, in_use=True)
    book.all.use(first, in_use=False)  # so the second one has been idle for longer
    assert book.admit("third", "192.0.2.1")
    assert (book.ended, book.why, len(book.all)) == (["second"], ["evicted"], 3)


@pytest.mark.threat("T17")
def test_at_the_cap_of_all_the_address_that_has_most_gives_one_up() -> None:
    book = Book(total=5, per_address=4)
    for name, address in (
        ("a", "192.0.2.2"),
        ("b", "192.0.2.1"),
        ("c", "192.0.2.1"),
        ("d", "192.0.2.1"),
        ("e", "192.0.2.3"),
    ):
        assert book.admit(name, address)
    assert book.admit("new", "192.0.2.4")
    assert book.ended == ["b"]
    assert len(book.all) == 5


@pytest.mark.threat("T17")
def test_what_is_in_use_is_never_closed_for_another() -> None:
    book = Book(total=3, per_address=2)
    slots = [
        book.admit(name, address)
        for name, address in (("a", "192.0.2.1"), ("b", "192.0.2.1"), ("c", "192.0.2.2"))
    ]
    for slot in slots[:2]:
        assert slot
        book.all.use(slot, in_use=True)
    assert book.admit("another of the first address", "192.0.2.1") is None
    assert book.why == ["refused"]
    assert book.admit("new", "192.0.2.3")  # the only idle one goes, though its address has fewer
    assert book.ended == ["c"]
    assert slots[0]
    book.all.use(slots[0], in_use=False)
    assert book.admit("newer", "192.0.2.1")
    assert book.ended == ["c", "a"]


def test_when_all_are_in_use_a_newcomer_is_refused() -> None:
    book = Book(total=1, per_address=1)
    slot = book.admit("a", "192.0.2.1")
    assert slot
    book.all.use(slot, in_use=True)
    assert book.admit("b", "192.0.2.2") is None
    book.all.release(slot)
    book.all.release(slot)
    assert len(book.all) == 0
    assert book.admit("b", "192.0.2.2")


@pytest.mark.threat("T12")
def test_an_ipv6_network_is_one_address_to_the_caps() -> None:
    book = Book(total=10, per_address=2)
    for number in range(4):
        assert book.admit(str(number), f"2001:db8::{number}")
    assert book.ended == ["0", "1"]
    assert book.admit("other", "2001:db8:0:1::1")
    assert book.ended == ["0", "1"]


@pytest.mark.threat("T17")
def test_a_trusted_proxy_may_have_all_connections_and_its_clients_are_counted_by_request() -> None:
    book = Book(total=5, per_address=2, proxies=("10.0.0.0/8",))
    slot, *others = [book.admit(str(number), "10.0.0.1") for number in range(4)]
    assert slot is not None
    assert all(others)
    one, other, network = "192.0.2.1", "192.0.2.2", ("2001:db8::1", "2001:db8::2", "2001:db8::3")
    begun = [book.all.begin_request(slot, client) for client in (one, one, one, other, *network)]
    assert begun == [True, True, False, True, True, True, False]
    book.all.end_request(slot, one)
    assert book.all.begin_request(slot, one)
    assert not book.all.begin_request(slot, one)
    assert book.admit("direct", "192.0.2.9")
    assert book.admit("direct too", "192.0.2.8")
    assert book.ended == ["direct"]  # a proxy's connections are closed last


@pytest.mark.parametrize(
    "setting",
    [
        {"total": 0},
        {"total": 1.5},
        {"per_address": True},
        {"per_address": 10**5000},
        {"head": 0},
        {"idle": float("nan")},
        {"idle": "1"},
        {"head": 1e9},
    ],
    ids=lambda setting: f"{next(iter(setting))}",
)
def test_a_limit_that_cannot_be_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(setting))}: "):
        connections.ConnectionLimits(**setting)


# Connections


class Served:
    """A server of one application, and its connections."""

    def __init__(
        self,
        port: int,
        why: list[str],
        arrived: "asyncio.Queue[str]",
        go_on: asyncio.Event,
        runner: push_http_server.Runner,
    ) -> None:
        self.port, self.why, self.arrived, self.go_on = port, why, arrived, go_on
        self.connections = runner.connections
        assert runner.server is not None
        self.server = runner.server

    async def connect(
        self, said: bytes = b"", source: str = "127.0.0.1", **more: object
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0), **more)  # type: ignore[arg-type]
        writer.write(said)
        return reader, writer

    async def answered(self, source: str = "127.0.0.1", **more: object) -> bytes:
        reader, writer = await self.connect(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", source, **more
        )
        try:
            async with asyncio.timeout(PATIENCE):
                return await reader.read()
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def served(
    server: ModuleType,
    tls: ssl.SSLContext | None = None,
    proxies: tuple[str, ...] = (),
    shutdown: float = 5.0,
    **limits: Any,
) -> AsyncIterator[Served]:
    """shutdown: seconds that requests have at the server's end."""
    why: list[str] = []
    arrived: asyncio.Queue[str] = asyncio.Queue()
    go_on = asyncio.Event()

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(text="here")

    async def held(request: web.Request) -> web.StreamResponse:
        arrived.put_nowait(str(request.remote))
        await go_on.wait()
        return web.Response(text="held")

    async def broken(request: web.Request) -> web.StreamResponse:
        await held(request)
        raise RuntimeError

    async def socket_(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        arrived.put_nowait(str(request.remote))
        async for message in websocket:
            await websocket.send_str(message.data)
        return websocket

    app = web.Application()
    app.router.add_get("/", answer)
    app.router.add_get("/held", held)
    app.router.add_get("/broken", broken)
    app.router.add_get("/socket", socket_)
    runner = server.Runner(
        app,
        shutdown_timeout=shutdown,
        limits=connections.ConnectionLimits(**limits),
        closed=why.append,
        trusted_proxies=[addresses.network(proxy) for proxy in proxies],
    )
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    await runner.site(listener, tls).start()
    try:
        yield Served(listener.getsockname()[1], why, arrived, go_on, runner)
    finally:
        go_on.set()
        await runner.cleanup()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What came until the server closed the connection."""
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionResetError):
            return await reader.read()
    return b""


@SERVERS
@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "said",
    [b"", b"G", b"GET / HTTP/1.1\r\nHost:", b"\r\n"],
    ids=["nothing", "a letter", "half a head", "an empty line"],
)
async def test_a_head_that_does_not_come_in_time_closes_the_connection(
    server: ModuleType, said: bytes
) -> None:
    async with served(server, head=0.05) as here:
        reader, writer = await here.connect(said)
        assert await ended(reader) == b""
        assert here.why == ["head"]
        writer.transport.abort()


@SERVERS
@pytest.mark.threat("T12")
async def test_a_head_that_comes_letter_by_letter_gets_no_more_time(server: ModuleType) -> None:
    async with served(server, head=0.3) as here:
        reader, writer = await here.connect(b"GET / HTTP/1.1\r\n")

        async def trickle() -> None:
            while not writer.is_closing():
                writer.write(b"X: y\r\n")
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        assert await ended(reader) == b""
        trickling.cancel()
        assert here.why == ["head"]
        writer.transport.abort()


@SERVERS
@pytest.mark.threat("T12")
async def test_a_connection_that_asks_no_more_is_closed_and_so_is_one_that_asks_half(
    server: ModuleType,
) -> None:
    async with served(server, idle=0.05) as here:
        reader, writer = await here.connect(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await ended(reader)).endswith(b"here")
        assert here.why == ["idle"]
        writer.transport.abort()
    async with served(server, idle=2 * PATIENCE, head=0.05) as here:
        reader, writer = await here.connect(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readuntil(b"here")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET / HTTP/1.1\r\nHost:")
        assert await ended(reader) == b""
        assert here.why == ["head"]
        writer.transport.abort()


@SERVERS
@pytest.mark.threat("T12")
async def test_a_peer_that_shakes_no_hands_is_closed_and_counts(
    server: ModuleType, loopback_certificate: Certificate
) -> None:
    tls = loopback_certificate.server_context()
    client = loopback_certificate.client_context()
    async with served(server, tls, head=0.05) as here:
        reader, writer = await here.connect()
        assert await ended(reader) == b""
        assert here.why == ["handshake"]
        writer.transport.abort()
    async with served(server, tls, total=3, per_address=3) as here:
        silent = [await here.connect(source="127.0.0.2") for _ in range(5)]
        for reader, _ in silent[:2]:  # the third to fifth are the three that may be
            assert await ended(reader) == b""
        assert (await here.answered(ssl=client, server_hostname="localhost")).endswith(b"here")
        assert await ended(silent[2][0]) == b""
        assert here.why == ["evicted"] * 3
        for _, writer in silent:
            writer.transport.abort()


@SERVERS
@pytest.mark.threat("T17")
async def test_over_tls_a_peer_that_hangs_up_while_its_requests_wait_is_closed(
    server: ModuleType, loopback_certificate: Certificate
) -> None:
    tls = loopback_certificate.server_context()
    client = loopback_certificate.client_context()
    async with served(server, tls, idle=0.05) as here:
        said = b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n" * 100  # more than aiohttp reads ahead
        _, writer = await here.connect(said, ssl=client, server_hostname="localhost")
        async with asyncio.timeout(PATIENCE):
            await here.arrived.get()
            writer.get_extra_info("socket").shutdown(socket.SHUT_WR)  # no farewell of TLS
            (wire,) = (slot.end.__self__ for slots in here.connections._slots.values() for slot in slots)  # type: ignore[attr-defined]
            while wire._ssl_protocol._state.name != "FLUSHING":  # noqa: ASYNC110  asyncio tells nobody
                await asyncio.sleep(0)
            here.go_on.set()
            while len(here.connections):  # noqa: ASYNC110  as above
                await asyncio.sleep(0.01)
        writer.transport.abort()


@SERVERS
@pytest.mark.threat("T17")
async def test_a_flood_of_one_address_keeps_nobody_out_not_even_its_own(server: ModuleType) -> None:
    async with served(server, total=20, per_address=10) as here:
        flood = [await here.connect() for _ in range(50)]
        for source in ("127.0.0.2", "127.0.0.1"):
            assert (await here.answered(source)).endswith(b"here")
        assert set(here.why) == {"evicted"}
        for _, writer in flood:
            writer.transport.abort()


@SERVERS
@pytest.mark.threat("T17")
async def test_held_calls_and_websockets_are_in_use(server: ModuleType) -> None:
    async with (
        served(server, total=4, per_address=4, idle=0.05, head=PATIENCE) as here,
        aiohttp.ClientSession() as session,
    ):
        reader, writer = await here.connect(b"GET /held HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        websocket = await session.ws_connect(f"http://127.0.0.1:{here.port}/socket")
        for _ in range(2):
            await here.arrived.get()
        flood = [await here.connect(source="127.0.0.2") for _ in range(20)]
        idle, idle_writer = await here.connect(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await ended(idle)).endswith(b"here")  # idle time is over by now
        await websocket.send_str("still")
        assert await websocket.receive_str() == "still"
        here.go_on.set()
        assert (await ended(reader)).endswith(b"held")
        await websocket.close()
        for _, each in (*flood, (reader, writer), (idle, idle_writer)):
            each.transport.abort()


@SERVERS
@pytest.mark.threat("T17")
async def test_behind_a_proxy_a_client_with_too_many_requests_is_refused_and_others_are_not(
    server: ModuleType,
) -> None:
    async with served(server, proxies=("127.0.0.1",), total=20, per_address=2) as here:

        async def ask(client: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            head = f"GET /held HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {client}\r\nConnection: close\r\n\r\n"
            return await here.connect(head.encode())

        held = [await ask("192.0.2.1") for _ in range(2)]
        for _ in held:
            assert await here.arrived.get() == "192.0.2.1"
        refused, refused_writer = await ask("192.0.2.1")
        answer = await ended(refused)
        assert answer.startswith(b"HTTP/1.1 429 ")
        for header in (
            b"Retry-After: 5",
            b'RateLimit-Policy: "requests-of-address";q=2;qu="concurrent-requests"',
            b'RateLimit: "requests-of-address";r=0;t=5',
        ):
            assert b"\r\n" + header + b"\r\n" in answer
        held.append(await ask("192.0.2.2"))
        assert await here.arrived.get() == "192.0.2.2"
        here.go_on.set()
        for reader, _ in held:
            assert (await ended(reader)).endswith(b"held")
        for _, writer in (*held, (refused, refused_writer)):
            writer.transport.abort()


@SERVERS
async def test_a_server_ends_while_a_handshake_waits(
    server: ModuleType, loopback_certificate: Certificate
) -> None:
    tls = loopback_certificate.server_context()
    async with asyncio.timeout(PATIENCE):
        async with served(server, tls, head=PATIENCE * 2) as here:
            reader, writer = await here.connect()
            (await here.answered(ssl=loopback_certificate.client_context(), server_hostname="localhost"))
        assert await ended(reader) == b""
    writer.transport.abort()


LINE = b"A: " + b"a" * 7997 + b"\r\n"


@SERVERS
@pytest.mark.threat("T17")
@pytest.mark.parametrize(
    "first", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["the first", "a later one"]
)
async def test_a_head_has_a_largest_size_as_its_lines_have(server: ModuleType, first: bytes) -> None:
    async with asyncio.timeout(PATIENCE), served(server) as here:
        begun = b"GET / HTTP/1.1\r\nHost: x\r\n"
        for lines, end, status in ((7, b"Connection: close\r\n\r\n", b" 200 "), (9, b"", b" 400 ")):
            reader, writer = await here.connect(first)
            if first:
                assert (await reader.readuntil(b"\r\n\r\nhere")).startswith(b"HTTP/1.1 200 ")
            writer.write(begun + LINE * lines + end)
            assert status in (await ended(reader)).partition(b"\r\n")[0]
            writer.transport.abort()


@SERVERS
@pytest.mark.threat("T12")
async def test_a_body_and_a_websocket_are_no_head(server: ModuleType) -> None:
    async with asyncio.timeout(PATIENCE), served(server) as here, aiohttp.ClientSession() as session:
        base = f"http://127.0.0.1:{here.port}"
        for _ in range(2):
            async with session.post(base, data=bytes(300_000)) as response:
                assert response.status == 405
            async with session.get(base) as response:
                assert response.status == 200
        async with session.ws_connect(f"{base}/socket") as websocket:
            for _ in range(3):
                await websocket.send_str("a" * 100_000)
                assert (await websocket.receive_str()) == "a" * 100_000


@SERVERS
async def test_with_an_aiohttp_that_has_other_names_inside_a_server_serves(
    server: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert http_runner._HAS_NAMES  # of the release that is tested
    monkeypatch.setattr(http_runner, "_HAS_NAMES", False)
    async with asyncio.timeout(PATIENCE), served(server) as here, aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.post(f"http://127.0.0.1:{here.port}", data=bytes(300_000)) as response:
                assert response.status == 405


@SERVERS
@pytest.mark.threat("T17")
async def test_behind_a_held_call_few_requests_are_read(server: ModuleType) -> None:
    async with asyncio.timeout(PATIENCE), served(server) as here:
        reader, writer = await here.connect(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        await here.arrived.get()
        writer.write((b"GET / HTTP/1.1\r\nHost: x\r\n" + LINE * 7 + b"\r\n") * 200)
        (connection,) = here.server.connections
        while not connection._buffer_paused:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0)
        assert len(connection._messages) < 8  # asyncio reads 256 KiB at once
        here.go_on.set()
        for _ in range(201):
            assert (await reader.readuntil(b"\r\n\r\nhe")).startswith(b"HTTP/1.1 200 ")
            await reader.readexactly(2)
        writer.transport.abort()


@SERVERS
@pytest.mark.threat("T17")
def test_no_client_has_tls_negotiated_anew(server: ModuleType, loopback_certificate: Certificate) -> None:
    context = tls_context(loopback_certificate.cert, loopback_certificate.key, server.ERRORS)
    assert context.options & ssl.OP_NO_RENEGOTIATION


@SERVERS
@pytest.mark.threat("T17")
async def test_no_server_waits_at_its_end_for_a_body_whose_request_has_been_answered(
    server: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Patient(http_runner._Connection):
        """Waits longer for the rest of a body than aiohttp's 10 s."""

        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, lingering_time=PATIENCE * 2, **more)

    monkeypatch.setattr(http_runner, "_Connection", Patient)
    async with asyncio.timeout(PATIENCE):
        async with served(server, shutdown=PATIENCE * 2) as here:
            reader, writer = await here.connect(
                b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"
            )
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
        await ended(reader)
    writer.transport.abort()


@SERVERS
@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /no HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nExpect: nothing\r\nConnection: close\r\n\r\n",
    ],
    ids=["an answer", "no such path", "no HTTP", "an expectation"],
)
async def test_no_answer_says_which_software_it_comes_from(server: ModuleType, said: bytes) -> None:
    async with served(server) as here:
        reader, writer = await here.connect(said)
        answer = await ended(reader)
        assert answer.startswith(b"HTTP/1.")
        assert b"\r\nserver:" not in answer.lower()
        assert b"aiohttp" not in answer.lower()
        writer.transport.abort()


@SERVERS
@pytest.mark.threat("T12")
@pytest.mark.parametrize("expected", [b"nothing", b"\xff", b"100-continue\xa0"], ids=repr)
async def test_an_expectation_that_nobody_meets_is_refused_and_is_no_news(
    server: ModuleType, expected: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(server) as here:
        reader, writer = await here.connect(
            b"GET / HTTP/1.1\r\nHost: x\r\nExpect: " + expected + b"\r\nConnection: close\r\n\r\n"
        )
        assert (await ended(reader)).startswith(b"HTTP/1.1 417 ")
        assert caplog.messages == []
        writer.transport.abort()


# Programs


@pytest.mark.threat("T17")
@pytest.mark.parametrize("name", PROGRAMS)
async def test_the_caps_of_a_program_fit_under_its_limit_of_open_files(name: str, tmp_path: Path) -> None:
    async with running(*words(name, tmp_path, "--connections=200"), limits="-n 100") as program:
        port = port_of(await program.line())
        flood = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
        async with (
            asyncio.timeout(PATIENCE),
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/livez") as response,
        ):
            assert response.status in (200, 204)
        for _, writer in flood:
            writer.transport.abort()
        assert await program.end() == 0
        said = await program.stderr()
    assert "at most 36 connections, not 200: the system gives this process 100 files" in said
    assert "Too many open files" not in said


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_program_raises_its_limit_of_open_files_as_far_as_it_needs(name: str, tmp_path: Path) -> None:
    async with running(*words(name, tmp_path, "--connections=200"), limits="-Sn 100") as program:
        await program.line()
        soft, hard = resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE)
        assert soft == 264
        assert hard >= 264
        assert await program.end() == 0
        assert "the system gives" not in await program.stderr()
