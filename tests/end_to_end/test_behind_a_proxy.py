"""A whole sign-in through nginx or Caddy, as docs/how-to/reverse-proxy.md configures it: relay, relying party and tunnel service under one name."""

import contextlib
from pathlib import Path
from typing import Final

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from certificates import Certificate
from world import World

from tests.end_to_end.household import Home
from tests.fronts import Front, blocks, caddy, nginx, placed
from tests.ports import reserved_port
from tests.programs import running
from tests.relay.graphql_calls import submit
from tests.relay.household import Caller, Clock
from tests.relay.test_command import found
from tests.relay.test_graphql_subscriptions import begun
from tests.trust.people import companion, device

pytestmark = pytest.mark.asyncio
FRONTS: Final = [pytest.param(nginx, "nginx", id="nginx"), pytest.param(caddy, "caddy", id="Caddy")]


@pytest.mark.parametrize(("front", "language"), FRONTS)
async def test_a_sign_in_goes_through_the_proxy_and_its_request_comes_by_a_stream(
    front: Front, language: str, tmp_path: Path
) -> None:
    port = reserved_port()
    async with World.start(
        tmp_path,
        relay=("companion-push", "relay", "--log-level", "info"),
        behind=f"localhost:{port}",
    ) as world:
        servers = {8470: "relay", 8471: "tunnel service", 8443: "relying party"}
        config = placed(
            blocks(language)[0],
            {f"127.0.0.1:{written}": f"127.0.0.1:{world.port(name)}" for written, name in servers.items()},
        )
        async with front(config, tmp_path, world.certificates, port=port):
            home = await Home.make(world)
            companion = await world.companion(home.phone)
            for ceremony in (("register", "--user", "ada"), ("sign-in",)):
                status, session = await world.ceremony(home.hub, *ceremony)
                assert status == 0
                assert session is not None
            assert await companion.stop() == 0
            relay, _ = world.servers["relay"]
            await relay.says("GET /v1/inbox/stream: ")


@pytest.mark.parametrize(("front", "language"), FRONTS)
@pytest.mark.parametrize("path", ["/push/v1/ring", "/push/graphql", "/passkeys/sign-in", "/cable/new/00"])
@pytest.mark.parametrize(
    "upgrade", [{}, {"Upgrade": "websocket", "Connection": "Upgrade"}], ids=["plain", "upgrade"]
)
async def test_every_server_is_told_the_host_the_clients_address_and_an_upgrade(
    front: Front,
    language: str,
    path: str,
    upgrade: dict[str, str],
    *,
    loopback_certificate: Certificate,
    tmp_path: Path,
) -> None:
    async def tell(request: web.Request) -> web.Response:
        headers = {name: request.headers.getall(name, []) for name in ("Host", "X-Forwarded-For", "Upgrade")}
        return web.json_response(headers)

    app = web.Application()
    app.router.add_get("/{path:.*}", tell)
    port = reserved_port()
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        ours = {f"127.0.0.1:{written}": f"127.0.0.1:{server.port}" for written in (8470, 8471, 8443)}
        config = placed(blocks(language)[0], ours)
        async with (
            front(config, tmp_path, loopback_certificate, port=port),
            session.get(
                f"https://localhost:{port}{path}",
                ssl=loopback_certificate.client_context(),
                headers=upgrade | {"X-Forwarded-For": "192.0.2.1"},
            ) as answer,
        ):
            told = await answer.json()
    assert told["Host"] in (["localhost"], [f"localhost:{port}"])
    assert told["X-Forwarded-For"] == ["127.0.0.1"]
    assert told["Upgrade"] == list(filter(None, [upgrade.get("Upgrade")]))


@pytest.mark.parametrize(("front", "language"), FRONTS)
async def test_a_subscription_goes_through_the_proxy(
    front: Front, language: str, loopback_certificate: Certificate, tmp_path: Path
) -> None:
    port, store = reserved_port(), tmp_path / "store"
    url = f"https://localhost:{port}/push"
    words = ("--listen", "127.0.0.1:0", "--store", store, "--public-url", url, "--trusted-proxy", "127.0.0.1")
    tls = aiohttp.TCPConnector(ssl=loopback_certificate.client_context())
    async with contextlib.AsyncExitStack() as opened, aiohttp.ClientSession(connector=tls) as session:
        program = await opened.enter_async_context(running("companion_push", "relay", "--graphql", *words))
        place = (await program.line()).removeprefix("http://")
        config = placed(blocks(language)[0], {"127.0.0.1:8470": place})
        await opened.enter_async_context(front(config, tmp_path, loopback_certificate, port=port))
        phone, frame = (Caller(one, session, url, Clock()) for one in (companion(), device()))
        await found(store, phone, frame.person)
        await frame.get("/v1/ring")  # for a nonce
        async with begun(phone) as socket:
            await socket.follow()
            assert (await socket.inbox())["requests"] == []
            name = await submit(frame, phone)
            assert [item["id"] for item in (await socket.inbox())["requests"]] == [name]
        assert await program.end() == 0
