"""An end's connection after its upgrade: it holds its place in the server's books, and nothing is left of it when it has gone."""

import asyncio
import contextlib
import gc
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.http import HttpRequestParser
from certificates import Certificate

from companion_push.serving.http_server import Runner
from companion_push.tunnel_service.app import _TUNNELS, TunnelEndpoints, make_app
from companion_push.tunnel_service.open_tunnel import OpenTunnel
from companion_push.tunnel_service.rendezvous import Limits, Tunnel
from companion_push.tunnel_service.websocket import Websocket
from http_serving.addresses import network
from http_serving.connections import ConnectionLimits, Slot
from http_serving.first_request import FirstRequest
from tests.tunnel_service.by_program import listen
from tests.tunnel_service.test_memory import UPGRADE
from tests.tunnel_service.test_websocket import Raw, frame

PATIENCE = 60.0  # seconds; a safety net
KINDS = (
    *(Websocket, OpenTunnel, Tunnel, Slot, FirstRequest, HttpRequestParser),
    *(web.RequestHandler, web.BaseRequest, asyncio.Task),
)


class Service:
    def __init__(self, runner: Runner, endpoints: TunnelEndpoints, port: int) -> None:
        self.runner, self.endpoints, self.port = runner, endpoints, port

    async def answer(self, path: str, client: str) -> tuple[bytes, asyncio.StreamWriter]:
        """The status of a request that a proxy passes on for `client`; empty when it is cut off."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {path} HTTP/1.1\r\nX-Forwarded-For: {client}\r\n{UPGRADE}".encode())
        with contextlib.suppress(ConnectionError):
            return (await reader.readline())[9:12], writer
        return b"", writer

    async def until_connections(self, number: int) -> None:
        while len(self.runner.connections) != number:  # noqa: ASYNC110  they tell nobody of their end
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(per_address: int = 512, proxy: str | None = None) -> AsyncIterator[Service]:
    app = make_app(Limits(silence=3600, rate=1e6))
    runner = Runner(
        app,
        shutdown_timeout=1,
        limits=ConnectionLimits(per_address=per_address),
        trusted_proxies=() if proxy is None else (network(proxy),),
    )
    await runner.setup()
    try:
        port = await listen(runner)
        async with asyncio.timeout(PATIENCE):
            yield Service(runner, app[_TUNNELS], port)
    finally:
        await runner.cleanup()


@pytest.mark.threat("T17")
async def test_an_end_keeps_its_place_among_the_connections_of_its_address() -> None:
    async with serving(per_address=2) as service:
        answers = [await service.answer(f"/cable/new/{number:032X}", "") for number in range(3)]
        assert [status for status, _ in answers] == [b"101", b"101", b""]  # none was closed for the third
        answers[0][1].transport.abort()
        await service.until_connections(1)
        answers.append(await service.answer(f"/cable/new/{3:032X}", ""))
        assert answers[-1][0] == b"101"
        for _, writer in answers:
            writer.transport.abort()
        await service.until_connections(0)


@pytest.mark.threat("T17")
async def test_behind_a_proxy_an_end_counts_for_its_client_until_it_has_gone() -> None:
    async with serving(per_address=2, proxy="127.0.0.1") as service:
        client, other = "192.0.2.1", "192.0.2.2"
        answers = [await service.answer(f"/cable/new/{number:032X}", client) for number in range(3)]
        assert [status for status, _ in answers] == [b"101", b"101", b"429"]
        answers.append(await service.answer(f"/cable/new/{4:032X}", other))
        assert answers[-1][0] == b"101"
        answers[0][1].transport.abort()
        while len(service.endpoints) == 3:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0)
        answers += [await service.answer(f"/cable/new/{number:032X}", client) for number in (5, 6)]
        assert [status for status, _ in answers[-2:]] == [b"101", b"429"]
        for _, writer in answers:
            writer.transport.abort()
        await service.until_connections(0)
        assert not service.runner.connections._requests


async def test_a_host_that_cancels_the_handlers_of_lost_connections_cancels_no_tunnel() -> None:
    seen: list[int] = []

    @web.middleware
    async def in_a_task_of_its_own(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        answer: web.StreamResponse = await asyncio.create_task(_coroutine(handler(request)))
        seen.append(answer.status)
        return answer

    host = web.Application(middlewares=[in_a_task_of_its_own])
    host.add_subapp("/tunnels", make_app(Limits(silence=3600)))
    runner = web.AppRunner(host, access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port, path = runner.addresses[0][1], f"{1:032X}"
        async with asyncio.timeout(PATIENCE):
            first = await Raw.call(port, f"/tunnels/cable/new/{path}")
            second = await Raw.call(port, f"/tunnels/cable/connect/{first.routing_id}/{path}")
            for sender, receiver in ((first, second), (second, first)):
                sender.writer.write(frame(2, b"hello"))
                assert await receiver.frame() == (2, b"hello")
            assert seen == [101, 101]  # at once, while the tunnel is open
            await runner.cleanup()
            assert [await end.code() for end in (first, second)] == [1001, 1001]
        for end in (first, second):
            end.writer.close()
    finally:
        await runner.cleanup()


async def _coroutine(work: Awaitable[web.StreamResponse]) -> web.StreamResponse:
    return await work


@contextlib.asynccontextmanager
async def only_what_is_new() -> AsyncIterator[None]:
    """Let the collector look at what is made from now on: to look at all that other tests have left in a process takes seconds each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def alive() -> Counter[str]:
    """How many objects there are of what an end needs."""
    gc.collect()
    kinds = (next((kind for kind in KINDS if isinstance(each, kind)), None) for each in gc.get_objects())
    return Counter(kind.__name__ for kind in kinds if kind is not None)


@pytest.mark.threat("T17")
async def test_of_ends_that_have_come_and_gone_nothing_is_left() -> None:
    async with only_what_is_new(), serving() as service:
        before = alive()
        for number in range(60):
            path = f"{number:032X}"
            first = await Raw.call(service.port, f"/cable/new/{path}", frame(2, b"early"))
            ends = [first]
            if number % 3:
                ends.append(await Raw.call(service.port, f"/cable/connect/{first.routing_id}/{path}"))
                assert await ends[1].frame() == (2, b"early")
            refused = await service.answer(f"/cable/connect/000000/{path}", "")
            assert refused[0] == b"404"
            refused[1].transport.abort()
            leaving = ends[number % len(ends)]
            match number % 4:
                case 0:
                    leaving.writer.write(frame(8, b"\x03\xe8"))
                case 1:
                    leaving.writer.write(b"no frame")
                case 2:
                    leaving.writer.write(frame(2, b"half a message")[:-3])
                    leaving.writer.transport.abort()
            for end in ends:
                end.writer.close()
        while service.endpoints._open or len(service.runner.connections):  # noqa: ASYNC110  as above
            await asyncio.sleep(0)
        while alive() - before:  # noqa: ASYNC110  aiohttp's tasks of the refused ones
            await asyncio.sleep(0)
        assert not service.endpoints.rendezvous._tunnels


@pytest.mark.threat("T17")
async def test_an_end_that_closes_twice_and_hangs_up_without_a_word_of_tls_is_gone(
    loopback_certificate: Certificate,
) -> None:
    tls = loopback_certificate.server_context()
    app = make_app(Limits(silence=3600))
    runner = Runner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        listener = socket.create_server(("127.0.0.1", 0))
        await runner.site(listener, tls).start()
        _, writer = await asyncio.open_connection(
            *listener.getsockname(), ssl=loopback_certificate.client_context(), server_hostname="localhost"
        )
        request = f"GET /cable/new/{1:032X} HTTP/1.1\r\n{UPGRADE}".encode()
        writer.write(request + frame(10, b"") * 4 + frame(8, b"\x03\xe8") * 4)
        # the server reads no more when this comes: frames wait
        writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
        async with asyncio.timeout(PATIENCE):
            while not app[_TUNNELS].rendezvous._arrivals:  # noqa: ASYNC110  it tells nobody
                await asyncio.sleep(0)
            while app[_TUNNELS]._open or len(runner.connections):  # noqa: ASYNC110  as above
                await asyncio.sleep(0)
        writer.transport.abort()
    finally:
        await runner.cleanup()
