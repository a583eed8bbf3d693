"""Several tunnel services behind one name: which of them a routing ID names, alone and behind the proxies of the docs."""

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Final

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from certificates import Certificate

from companion_push.companion.waking_client import open_waking
from companion_push.tunnel_service.app import make_app
from companion_push.tunnel_service.rendezvous import Limits
from companion_push.waking import SECRET_SIZE, contact_id
from headless_passkey.errors import UsageError
from headless_passkey.hybrid.tunnel_url import (
    ROUTING_ID_HEADER,
    connect_url,
    contact_headers,
    contact_url,
    new_url,
)
from headless_passkey.net.tunnel import open_tunnel
from tests.fronts import WRITTEN, Front, blocks, haproxy, nginx, placed
from tests.ports import reserved_port
from tests.programs import running

NODES: Final = (1, 2)
UPGRADE: Final = {
    "Sec-WebSocket-Protocol": "fido.cable",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


@pytest.mark.parametrize("node", [0, 7, 255])
async def test_a_node_gives_routing_ids_that_begin_with_its_number(node: int) -> None:
    async with TestClient(TestServer(make_app(node=node))) as client:
        given = []
        for number in range(8):
            path = new_url("", bytes([number] * 16))
            async with client.ws_connect(path, protocols=["fido.cable"]) as first:
                given.append(bytes.fromhex(first._response.headers[ROUTING_ID_HEADER]))
    assert {routing_id[0] for routing_id in given} == {node}
    assert {len(routing_id) for routing_id in given} == {3}
    assert len({routing_id[1:] for routing_id in given}) > 1  # the rest is not always the same


async def test_who_comes_to_another_node_is_told_so() -> None:
    async with TestClient(TestServer(make_app(node=7))) as client:
        answer = await client.get(connect_url("", b"\x08\0\0", bytes(16)), headers=UPGRADE)
        assert answer.status == 404
        assert (await answer.json())["detail"] == "a tunnel of another node"


@pytest.mark.parametrize("node", [-1, 256])
def test_a_node_has_a_number_of_one_byte(node: int) -> None:
    with pytest.raises(UsageError, match=r"^node: expected a number from 0 to 255$"):
        make_app(node=node)


FRONTS: Final = [pytest.param(haproxy, "haproxy", id="HAProxy"), pytest.param(nginx, "nginx", id="nginx")]


@pytest.mark.parametrize(("front", "language"), FRONTS)
async def test_both_ends_meet_at_the_node_that_the_phone_came_to(
    front: Front, language: str, loopback_certificate: Certificate, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as programs:
        places = []
        for node in NODES:
            contacts = ("--contacts", str(tmp_path / "contacts")) if node == NODES[0] else ()
            program = await programs.enter_async_context(
                running(
                    "companion_push",
                    *("tunnel-service", "--listen", "127.0.0.1:0", "--node", str(node)),
                    *("--trusted-proxy", "127.0.0.1", *contacts),
                )
            )
            places.append((await program.line()).removeprefix("ws://"))
        port = reserved_port()
        config = placed(blocks(language)[-1], dict(zip(WRITTEN, places, strict=True)))
        await programs.enter_async_context(front(config, tmp_path, loopback_certificate, port=port))
        base, tls = f"wss://127.0.0.1:{port}", loopback_certificate.client_context()
        met = [await meet(base, tls, bytes([number] * 16)) for number in range(6)]
        await wake(base, tls, times=4)
    assert set(met) == set(NODES)


async def wake(base: str, tls: ssl.SSLContext, *, times: int) -> None:
    """A device asks for its linked phone, which comes each time."""
    secret = bytes(SECRET_SIZE)
    async with open_waking(base, tls=tls) as waking:
        await waking.register([secret])
        for _ in range(times):
            url, headers = contact_url(base, contact_id(secret)), contact_headers(b"payload")
            async with open_tunnel(url, headers=headers, tls=tls) as device:
                woken = await waking.wake()
                way = connect_url(base, woken.routing_id, woken.tunnel_id)
                async with open_tunnel(way, tls=tls) as phone:
                    await phone.send(b"here I am")
                    assert await device.receive() == b"here I am"


async def meet(base: str, tls: ssl.SSLContext, tunnel_id: bytes) -> int:
    """Say something through a tunnel in each direction, and return its node."""
    async with open_tunnel(new_url(base, tunnel_id), tls=tls) as first:
        assert first.routing_id is not None
        async with open_tunnel(connect_url(base, first.routing_id, tunnel_id), tls=tls) as second:
            await second.send(b"hello")
            assert await first.receive() == b"hello"
            await first.send(b"and back")
            assert await second.receive() == b"and back"
    return first.routing_id[0]


def joined(first: aiohttp.ClientWebSocketResponse) -> str:
    """The path at which the second end joins the tunnel that `first` has opened."""
    return connect_url("", bytes.fromhex(first._response.headers[ROUTING_ID_HEADER]), bytes(16))


@pytest.mark.threat("T17")
async def test_a_node_is_ready_while_a_new_tunnel_takes_the_place_of_one_that_waits() -> None:
    async with (
        TestClient(TestServer(make_app(Limits(tunnels=1)))) as client,
        client.ws_connect(new_url("", bytes(16)), protocols=["fido.cable"]) as waits,
    ):
        assert (await client.get("/readyz")).status == 204
        async with client.ws_connect(new_url("", bytes([1]) * 16), protocols=["fido.cable"]):
            assert (await waits.receive()).data == 1013


async def test_a_node_without_room_is_not_ready_and_is_again_when_a_tunnel_ends() -> None:
    async with TestClient(TestServer(make_app(Limits(tunnels=1)))) as client:
        assert (await client.get("/readyz")).status == 204
        async with (
            client.ws_connect(new_url("", bytes(16)), protocols=["fido.cable"]) as first,
            client.ws_connect(joined(first), protocols=["fido.cable"]),
        ):
            full = await client.get("/readyz")
            assert (full.status, full.headers["Retry-After"]) == (503, "5")
            assert (await client.get("/livez")).status == 204
            await first.close()
        async with asyncio.timeout(60):
            while (await client.get("/readyz")).status != 204:
                pass
