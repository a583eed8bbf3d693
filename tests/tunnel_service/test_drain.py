"""The end of a tunnel service: open tunnels are given time, new ones are refused, and what is left is closed with 1001."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import WSCloseCode, WSMsgType, web
from prometheus_client import CollectorRegistry

from companion_push.serving.http_server import Runner
from companion_push.tunnel_service.app import drain, make_app
from headless_passkey.hybrid.tunnel_url import ROUTING_ID_HEADER, SUBPROTOCOL, connect_url, new_url
from tests.programs import Program, running
from tests.tunnel_service.by_program import listen
from tests.tunnel_service.test_nodes import UPGRADE

LONG = 3600.0  # seconds, longer than any test
PATIENCE = 60.0


class Caller:
    """Opens and joins tunnels of one service."""

    def __init__(self, base: str, http: aiohttp.ClientSession) -> None:
        self.base, self.http = base, http

    async def open(self, number: int = 0) -> aiohttp.ClientWebSocketResponse:
        return await self.http.ws_connect(new_url(self.base, bytes([number] * 16)), protocols=(SUBPROTOCOL,))

    async def join(
        self, first: aiohttp.ClientWebSocketResponse, number: int = 0
    ) -> aiohttp.ClientWebSocketResponse:
        routing_id = bytes.fromhex(first._response.headers[ROUTING_ID_HEADER])
        url = connect_url(self.base, routing_id, bytes([number] * 16))
        return await self.http.ws_connect(url, protocols=(SUBPROTOCOL,))

    async def refused(self, number: int) -> tuple[int, str, str]:
        """Status, Retry-After and detail of the answer to a new tunnel."""
        async with self.http.get(new_url(self.base, bytes([number] * 16)), headers=UPGRADE) as answer:
            return answer.status, answer.headers["Retry-After"], (await answer.json())["detail"]

    async def status(self, path: str) -> int:
        async with self.http.get(self.base + path) as answer:
            return answer.status

    async def until_not_ready(self) -> None:
        while await self.status("/readyz") != 503:
            pass


@contextlib.asynccontextmanager
async def serving(registry: CollectorRegistry | None = None) -> AsyncIterator[tuple[web.Application, Caller]]:
    app = make_app(registry=registry)
    runner = Runner(app)
    await runner.setup()
    try:
        port = await listen(runner)
        async with aiohttp.ClientSession() as http:
            yield app, Caller(f"http://127.0.0.1:{port}", http)
    finally:
        await runner.cleanup()


async def code(websocket: aiohttp.ClientWebSocketResponse) -> int | None:
    """The close code that comes next."""
    message = await websocket.receive()
    assert message.type is WSMsgType.CLOSE, message
    return websocket.close_code


async def test_while_it_drains_it_is_alive_not_ready_and_opens_no_tunnel() -> None:
    registry = CollectorRegistry()
    async with asyncio.timeout(PATIENCE), serving(registry) as (app, caller):
        first = await caller.open()
        draining = asyncio.create_task(drain(app, LONG))
        await caller.until_not_ready()
        assert await caller.status("/livez") == 204
        assert await caller.refused(1) == (503, "5", "the service stops")
        assert not draining.done()
        await first.close()
        await draining
        assert await caller.status("/readyz") == 503
        assert await caller.refused(2) == (503, "5", "the service stops")
    refused = "companion_push_tunnels_refused_total"
    assert registry.get_sample_value(refused, {"reason": "the service stops"}) == 2


async def test_a_tunnel_that_waits_is_joined_and_carries_messages_while_the_service_drains() -> None:
    async with asyncio.timeout(PATIENCE), serving() as (app, caller):
        first, other = await caller.open(), await caller.open(1)
        draining = asyncio.create_task(drain(app, LONG))
        await caller.until_not_ready()
        second = await caller.join(first)
        await second.send_bytes(b"hello")
        assert await first.receive_bytes() == b"hello"
        await first.send_bytes(b"and back")
        assert await second.receive_bytes() == b"and back"
        await second.close()
        assert await code(first) == WSCloseCode.OK
        assert not draining.done()  # for the sake of the other one
        await other.close()
        await draining


async def test_without_tunnels_it_need_not_wait() -> None:
    async with asyncio.timeout(PATIENCE), serving() as (app, _caller):
        await drain(app, LONG)


@pytest.mark.parametrize("joined", [False, True], ids=["waiting", "joined"])
async def test_what_is_open_at_the_deadline_is_closed_with_1001(
    *, joined: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncio.timeout(PATIENCE), serving() as (app, caller):
        ends = [await caller.open()]
        if joined:
            ends.append(await caller.join(ends[0]))
        codes = [asyncio.create_task(code(one)) for one in ends]
        await drain(app, 0)
        await app.shutdown()
        assert [await one for one in codes] == [WSCloseCode.GOING_AWAY] * len(ends)
    assert "1 tunnels were still open when the service stopped" in caplog.text


async def test_a_drain_that_is_cut_off_returns_at_once() -> None:
    async with asyncio.timeout(PATIENCE), serving() as (app, caller):
        first = await caller.open()
        cut = asyncio.get_running_loop().create_future()
        draining = asyncio.create_task(drain(app, LONG, cut=cut))
        await caller.until_not_ready()
        cut.set_result(None)
        await draining
        assert not first.closed


@contextlib.asynccontextmanager
async def draining_for_an_hour() -> AsyncIterator[tuple[Program, Caller]]:
    """The program, which gives its tunnels an hour at its end."""
    words = ("tunnel-service", "--listen", "127.0.0.1:0", "--drain", "3600")
    async with (
        asyncio.timeout(PATIENCE),
        running("companion_push", *words) as program,
        aiohttp.ClientSession() as http,
    ):
        yield program, Caller((await program.line()).replace("ws", "http", 1), http)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_the_program_ends_when_its_last_tunnel_has_ended(number: signal.Signals) -> None:
    async with draining_for_an_hour() as (program, caller):
        first = await caller.open()
        second = await caller.join(first)
        program.process.send_signal(number)
        await caller.until_not_ready()
        await first.send_bytes(b"hello")
        assert await second.receive_bytes() == b"hello"
        assert program.process.returncode is None
        await first.close()
        assert await code(second) == WSCloseCode.OK
        assert await program.process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_second_signal_ends_the_program_and_tells_both_ends(number: signal.Signals) -> None:
    async with draining_for_an_hour() as (program, caller):
        first = await caller.open()
        second = await caller.join(first)
        codes = [asyncio.create_task(code(one)) for one in (first, second)]
        program.process.send_signal(number)
        await caller.until_not_ready()
        program.process.send_signal(number)
        assert [await one for one in codes] == [WSCloseCode.GOING_AWAY, WSCloseCode.GOING_AWAY]
        assert await program.process.wait() == 0
