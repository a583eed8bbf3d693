"""Our device and phone with the tunnel server of kanidm's webauthn-rs project (crate ``cable-tunnel-server-backend``, in Rust).

`make interop` has cargo install the program and runs this.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from programs import Program
from world import TUNNEL_DOMAIN, World

from tests.end_to_end.household import Home
from tests.ports import reserved_port

SERVER: Final = os.environ.get("KANIDM_TUNNEL_SERVER", "")
ROUTING_ID: Final = "0a0b0c"
START: Final = 120.0  # seconds, on a busy machine

pytestmark = pytest.mark.skipif(not SERVER, reason="the peer is not built: make interop")


async def listening(port: int) -> None:
    async with asyncio.timeout(START):
        while True:
            with contextlib.suppress(ConnectionError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                await writer.wait_closed()
                return
            await asyncio.sleep(0.1)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """All our programs, but for the tunnel service, which is stopped."""
    async with World.start(tmp_path) as world:
        await world.stop("tunnel service")
        port = reserved_port()
        server = await Program.start(
            "kanidm's tunnel server", SERVER, "--bind-address", f"127.0.0.1:{port}", "--routing-id", ROUTING_ID,
            "--tls-public-key", world.certificates.cert, "--tls-private-key", world.certificates.key,
        )  # fmt: skip
        world.programs.append(server)
        await listening(port)
        world.tunnel = f"{TUNNEL_DOMAIN}=wss://localhost:{port}"
        yield world


async def test_a_registration_and_a_sign_in_go_through_kanidms_tunnel_server(world: World) -> None:
    home = await Home.make(world)
    companion = await world.companion(home.phone)
    status, made = await world.ceremony(home.hub, "register", "--user", "ada")
    assert (status, made is not None) == (0, True)
    status, session = await world.ceremony(home.hub, "sign-in")
    assert status == 0
    assert session is not None
    assert session["user"]["name"] == "ada"
    assert await companion.stop() == 0


async def test_a_phones_no_comes_through_kanidms_tunnel_server(world: World) -> None:
    home = await Home.make(world)
    companion = await world.companion(home.phone, "--uv", "decline")
    status, session = await world.ceremony(home.hub, "register", "--user", "ada")
    assert (status, session) == (5, None)
    assert await companion.stop() == 0
