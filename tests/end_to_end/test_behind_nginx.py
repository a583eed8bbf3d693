"""A whole sign-in through nginx, as docs/how-to/reverse-proxy.md configures it: relay, relying party and tunnel service under one name."""

from pathlib import Path

import pytest
from world import World

from tests.end_to_end.household import Home
from tests.fronts import blocks, nginx, placed
from tests.ports import reserved_port

pytestmark = pytest.mark.asyncio


async def test_a_sign_in_goes_through_nginx_and_its_request_comes_by_a_stream(
    tmp_path: Path,
) -> None:
    port = reserved_port()
    async with World.start(
        tmp_path,
        relay=("companion-push", "relay", "--log-level", "info"),
        behind=f"localhost:{port}",
    ) as world:
        servers = {8470: "relay", 8471: "tunnel service", 8443: "relying party"}
        config = placed(
            blocks("nginx")[0],
            {f"127.0.0.1:{written}": f"127.0.0.1:{world.port(name)}" for written, name in servers.items()},
        )
        async with nginx(config, tmp_path, world.certificates, port=port):
            home = await Home.make(world)
            companion = await world.companion(home.phone)
            for ceremony in (("register", "--user", "ada"), ("sign-in",)):
                status, session = await world.ceremony(home.hub, *ceremony)
                assert status == 0
                assert session is not None
            assert await companion.stop() == 0
            relay, _ = world.servers["relay"]
            await relay.says("GET /v1/inbox/stream: ")
