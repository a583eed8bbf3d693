"""A whole sign-in in which device and companion speak GraphQL with their relay, and nothing else."""

import re
import sys
from pathlib import Path

from world import World

CLIENT = (sys.executable, Path(__file__).parents[2] / "examples" / "graphql_client.py")
HUB, PHONE = "Kitchen hub", "Ada's phone"


async def test_device_and_companion_sign_in_over_graphql_alone(tmp_path: Path) -> None:
    said: list[str] = []

    def listen(name: str, line: str) -> None:
        if name == "relay":
            said.append(line)

    relay = ("companion-push", "relay", "--graphql", "--log-level", "info")
    async with World.start(tmp_path, on_line=listen, relay=relay) as world:
        await world.found_account(PHONE)
        await world.invite(PHONE, "device", HUB)
        joined = len(said)
        await world.companion(PHONE, in_front=CLIENT)
        status, account = await world.ceremony(HUB, "register", "--user", "ada", in_front=CLIENT)
        assert status == 0
        assert account is not None
        status, session = await world.ceremony(HUB, "sign-in", in_front=CLIENT)
        assert status == 0
        assert session is not None
        assert session["user"]["name"] == "ada"
        queue, _ = world.servers["relay"]
        assert await queue.stop() == 0
    called = [
        found[0] for line in said[joined:] if (found := re.search(r"(GET|POST|PUT|DELETE) /\S+( \w+)?", line))
    ]
    assert called
    assert all(" /graphql" in each for each in called), called
    assert "GET /graphql inbox" in called  # the subscription, at its end, whoever ended it
    for field in ("rings", "submitRequest", "request", "reportRequest", "claimRequest", "openRequest"):
        assert f"POST /graphql {field}" in called
