"""A sign-in over two relays behind HAProxy, as docs/how-to/several-relays.md configures it, of which each is killed in its middle."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from world import World

from tests.end_to_end.household import Home, ends
from tests.end_to_end.terminal import Terminal
from tests.end_to_end.test_kills import at_consent
from tests.fronts import RELAYS, WRITTEN, blocks, haproxy, placed
from tests.ports import reserved_port
from tests.relay.stores import postgres

pytestmark = pytest.mark.asyncio(loop_scope="module")

# beside the relays of the page
REST = """
backend party
    server party 127.0.0.1:8443

backend tunnels
    server tunnels 127.0.0.1:8474
"""


@asynccontextmanager
async def two_relays(folder: Path) -> AsyncIterator[World]:
    """The servers, with a second relay, behind HAProxy."""
    port = reserved_port()
    database = postgres().database_for(folder).uri
    async with World.start(folder, behind=f"localhost:{port}", database=database) as world:
        _, words = world.servers["relay"]
        await world.serve("second relay", *words[:-2], tls=False)
        (config,) = blocks("haproxy", RELAYS)
        of_others = "use_backend party if { path_beg /passkeys }\n    use_backend tunnels if { path_beg /cable }\n    "
        config = config.replace("default_backend", of_others + "default_backend") + REST
        servers = {
            **dict(zip(WRITTEN, ("relay", "second relay"), strict=True)),
            "127.0.0.1:8443": "relying party",
            "127.0.0.1:8474": "tunnel service",
        }
        places = {written: f"127.0.0.1:{world.port(name)}" for written, name in servers.items()}
        async with haproxy(placed(config, places), folder, world.certificates, port=port):
            yield world


async def kill(world: World, name: str) -> None:
    program, _ = world.servers[name]
    program.process.kill()
    assert await ends(program) == -signal.SIGKILL


@pytest.mark.threat("T5")
async def test_a_sign_in_ends_in_a_session_though_each_relay_is_killed_while_the_companion_asks(
    tmp_path: Path, terminal: Terminal
) -> None:
    async with two_relays(tmp_path) as world:
        home = await Home.make(world)
        await home.registers_ada()
        scene = await at_consent(world, home, terminal)
        await kill(world, "relay")
        await world.restart("relay")
        await is_ready(world, "relay")
        await kill(world, "second relay")  # so that every call was held by a relay that was killed
        await scene.yes_to_all()
        assert await scene.statuses() == (0, 0)
        assert await scene.device.output()


async def is_ready(world: World, name: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"http://127.0.0.1:{world.port(name)}/readyz") as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.05)
