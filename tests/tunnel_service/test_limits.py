"""Every limit of the tunnel service, at fifty times its size and all at once; and in hosts with limits of their own."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from companion_push.serving.http_server import Runner
from companion_push.tunnel_service.app import make_app
from companion_push.tunnel_service.rendezvous import Limits
from headless_passkey.hybrid.tunnel_url import ROUTING_ID_HEADER, connect_url, new_url
from http_serving.addresses import Network, network
from tests.tunnel_service.by_program import listen

PATIENCE = 120.0  # seconds: a safety net, so that a hang is a failure
TIMES = 50
PROTOCOLS = ("fido.cable",)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Socket = aiohttp.ClientWebSocketResponse


class Service:
    """A tunnel service on loopback, and the ends that call it."""

    def __init__(self, base: str, session: aiohttp.ClientSession, stack: contextlib.AsyncExitStack) -> None:
        self.base = base
        self._session = session
        self._stack = stack

    async def call(self, path: str) -> tuple[int, Socket | None]:
        """The status of the answer, and the websocket, where there is one."""
        try:
            websocket = await self._session.ws_connect(self.base + path, protocols=PROTOCOLS)
        except aiohttp.WSServerHandshakeError as error:
            return error.status, None
        self._stack.push_async_callback(websocket.close)
        return 101, websocket

    async def new(self, number: int) -> tuple[int, Socket | None]:
        return await self.call(f"/cable/new/{number:032X}")

    async def both(self, number: int = 1) -> tuple[Socket, Socket]:
        _, first = await self.new(number)
        assert first is not None
        _, second = await self.join(first, number)
        assert second is not None
        return first, second

    async def join(self, first: Socket, number: int = 1) -> tuple[int, Socket | None]:
        routing_id = first._response.headers[ROUTING_ID_HEADER]
        return await self.call(f"/cable/connect/{routing_id}/{number:032X}")


@contextlib.asynccontextmanager
async def serving(
    limits: Limits, *, host: web.Application | None = None, prefix: str = ""
) -> AsyncIterator[Service]:
    app = make_app(limits)
    if host is not None:
        host.add_subapp(prefix, app)
    async with (
        TestServer(host or app) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        contextlib.AsyncExitStack() as stack,
        asyncio.timeout(PATIENCE),
    ):
        yield Service(str(server.make_url(prefix)).rstrip("/"), session, stack)


async def until_closed(websocket: Socket) -> tuple[int, int | None]:
    """How many messages come until the end, and its code."""
    count = 0
    while (await websocket.receive()).type is aiohttp.WSMsgType.BINARY:
        count += 1
    return count, websocket.close_code


LIMITED = pytest.mark.parametrize(
    "limits", [Limits(tunnels=4), Limits(tunnels_per_address=4)], ids=["all", "address"]
)


@pytest.mark.threat("T9")
@LIMITED
async def test_of_two_hundred_tunnels_at_once_four_are_joined_and_as_many_again_when_they_have_ended(
    limits: Limits,
) -> None:
    async with serving(limits) as service:
        for _ in range(2):
            pairs = [await service.both(number) for number in range(4)]
            answers = await asyncio.gather(*(service.new(number) for number in range(4, 4 * TIMES)))
            assert Counter(status for status, _ in answers) == {503: 196}
            for first, second in pairs:
                await first.send_bytes(b"still here")
                assert (await second.receive()).data == b"still here"
                await first.close()
                await second.receive()


@pytest.mark.threat("T17")
@LIMITED
async def test_of_two_hundred_tunnels_that_wait_the_last_four_stay(limits: Limits) -> None:
    async with serving(limits) as service:
        sockets, ends = [], []
        for number in range(4 * TIMES):
            _, websocket = await service.new(number)
            assert websocket is not None
            sockets.append(websocket)
            if number < 4 * TIMES - 4:
                ends.append(asyncio.create_task(until_closed(websocket)))
        assert await asyncio.gather(*ends) == [(0, 1013)] * (4 * TIMES - 4)
        for number, waiting in enumerate(sockets[-4:], start=4 * TIMES - 4):
            status, second = await service.join(waiting, number)
            assert (status, second is not None) == (101, True)


@pytest.mark.threat("T9")
async def test_of_five_hundred_arrivals_from_one_address_at_once_ten_are_let_in() -> None:
    async with serving(Limits(rate=10)) as service:
        answers = await asyncio.gather(*(service.call(f"/cable/{number}") for number in range(10 * TIMES)))
        assert {status for status, _ in answers} == {404, 429}
        # a bucket of ten fills by one in six seconds: a slow machine may see some more
        assert 10 <= sum(status == 404 for status, _ in answers) < 50


@pytest.mark.threat("T9")
async def test_of_fifty_who_open_one_tunnel_at_once_one_does_and_of_fifty_who_join_it_one_does() -> None:
    async with serving(Limits()) as service:
        answers = await asyncio.gather(*(service.new(1) for _ in range(TIMES)))
        assert Counter(status for status, _ in answers) == {101: 1, 409: 49}
        (first,) = (websocket for _, websocket in answers if websocket is not None)
        answers = await asyncio.gather(*(service.join(first) for _ in range(TIMES)))
        assert Counter(status for status, _ in answers) == {101: 1, 404: 49}


@pytest.mark.threat("T9")
@pytest.mark.parametrize(
    ("limits", "carried", "code"),
    [(Limits(messages=4), 4, 1008), (Limits(size=40), 4, 1008), (Limits(message_size=9), 0, 1009)],
    ids=["messages", "bytes", "message"],
)
async def test_an_end_that_says_fifty_times_too_much_from_both_sides_is_carried_to_the_limit(
    limits: Limits, carried: int, code: int
) -> None:
    async with serving(limits) as service:
        first, second = await service.both()

        async def flood(websocket: Socket) -> None:
            with contextlib.suppress(ConnectionError):
                for _ in range(4 * TIMES):
                    await websocket.send_bytes(bytes(10))

        await flood(second)
        count, told = await until_closed(first)
        assert (told, count <= carried) == (1001, True)  # the end comes at once, before what still waits
        assert await until_closed(second) == (0, code)


@pytest.mark.threat("T9")
@pytest.mark.parametrize(
    "limits", [Limits(early_messages=4), Limits(early_size=40)], ids=["messages", "bytes"]
)
async def test_of_two_hundred_early_messages_four_wait_at_the_most(limits: Limits) -> None:
    async with serving(limits) as service:
        _, first = await service.new(1)
        assert first is not None
        with contextlib.suppress(ConnectionError):
            for _ in range(4 * TIMES):
                await first.send_bytes(bytes(10))
        assert await until_closed(first) == (0, 1008)
        assert (await service.join(first))[0] == 404


@pytest.mark.threat("T9")
async def test_an_end_that_pings_fifty_times_too_often_is_closed() -> None:
    async with serving(Limits(controls=4, life=600, silence=600)) as service:
        first, second = await service.both()
        with contextlib.suppress(ConnectionError):
            for _ in range(4 * TIMES):
                await second.ping()
        assert await until_closed(second) == (0, 1008)
        assert await until_closed(first) == (0, 1001)


# Mounted


@web.middleware
async def hides_failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException:
        return web.Response(status=418)


HOSTS: dict[str, Callable[[], web.Application]] = {
    "a host with a strict limit": lambda: web.Application(client_max_size=1),
    "a host that answers what is raised": lambda: web.Application(middlewares=[hides_failures]),
}


@pytest.mark.parametrize("prefix", ["/tunnels", "/a/b", "/cable"])
@pytest.mark.parametrize("host", HOSTS)
async def test_a_mounted_tunnel_service_carries_what_it_carries_by_itself(host: str, prefix: str) -> None:
    async with serving(Limits(), host=HOSTS[host](), prefix=prefix) as service:
        first, second = await service.both()
        await first.send_bytes(bytes(1 << 16))
        assert (await second.receive()).data == bytes(1 << 16)
        assert (await service.call("/cable/contact/AAAA"))[0] == 404


async def test_a_tunnel_service_can_be_mounted_for_a_domain() -> None:
    host = web.Application()
    host.add_domain("cable.example", make_app(Limits()))
    async with TestServer(host) as server, aiohttp.ClientSession() as session:
        url = server.make_url("/cable/new/" + "A" * 32)
        for name, status in (("cable.example", 400), ("www.example", 404)):  # 400: it is no upgrade
            async with session.get(url, headers={"Host": name}) as response:
                assert response.status == status


@pytest.mark.threat("T17")
@pytest.mark.parametrize("trusted", [True, False], ids=["of a trusted proxy", "of anybody"])
async def test_a_forwarded_address_has_tunnels_of_its_own_when_a_trusted_proxy_names_it(
    *,
    trusted: bool,
) -> None:
    proxies = [network("127.0.0.1")] if trusted else []
    async with by_program(Limits(tunnels_per_address=1), proxies) as base, aiohttp.ClientSession() as http:
        calls = []
        for number, client in enumerate(["2001:db8::1", "2001:db8:0:1::1", "2001:db8::ffff"]):  # a /64 twice
            calls.append(
                await http.ws_connect(
                    new_url(base, bytes([number] * 16)),
                    protocols=PROTOCOLS,
                    headers={"X-Forwarded-For": f"192.0.2.1, {client}"},
                )
            )
        assert await until_closed(calls[0]) == (0, 1013)  # by the third, or already by the second
        found = []
        for number, first in enumerate(calls):
            routing_id = bytes.fromhex(first._response.headers[ROUTING_ID_HEADER])
            url = connect_url(base, routing_id, bytes([number] * 16))
            try:
                await http.ws_connect(url, protocols=PROTOCOLS)
                found.append(101)
            except aiohttp.WSServerHandshakeError as error:
                found.append(error.status)
    assert found == ([404, 101, 101] if trusted else [404, 404, 101])


@pytest.mark.threat("T17")
@pytest.mark.parametrize(
    "first",
    [b"PROXY TCP4 192.0.2.1 127.0.0.1 40000 80\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12)],
    ids=["version 1", "version 2"],
)
async def test_the_proxy_protocol_is_not_spoken(first: bytes) -> None:
    async with by_program(Limits(), [network("127.0.0.1")]) as base:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(base.rpartition(":")[2]))
        writer.write(first + b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"400"
        writer.close()
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def by_program(limits: Limits, proxies: list[Network]) -> AsyncIterator[str]:
    """The URL of a service that is served as the program serves it."""
    runner = Runner(make_app(limits), trusted_proxies=proxies)
    await runner.setup()
    try:
        port = await listen(runner)
        async with asyncio.timeout(PATIENCE):
            yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()
