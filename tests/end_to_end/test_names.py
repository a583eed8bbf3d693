"""What people call things goes from every door to every screen: nobody refuses what another party let in."""

import json

import pytest
from world import World

from tests.end_to_end.household import Home, ends, page, session_of
from tests.end_to_end.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="module")

ACCOUNT = "\u062e\u0627\u0646\u0647\u0654 \u0639\u0644\u06cc\u200c\u0631\u0636\u0627"  # Persian, with a ZWNJ
PHONE = "\u05d4\u05d8\u05dc\u05e4\u05d5\u05df \u05e9\u05dc \u05e2\u05d3\u05d4"  # Hebrew
HUB = "Ada \U0001f469\u200d\U0001f4bb"  # an emoji of two, with a ZWJ
USER = "Zoe\u0308 \u2764\ufe0f \U0001fae9"  # decomposed; a selector; an emoji of Unicode 16
OTHER = "K\u00fcche \U0001f469\u200d\U0001f373"
NOTE = "K\u00fcche \U0001f1e9\U0001f1ea"


@pytest.mark.threat("T4")
async def test_names_of_any_script_join_register_and_sign_in(
    world: World, terminal: Terminal, tidy: None
) -> None:
    await world.found_account(PHONE, account=ACCOUNT)
    await world.invite(PHONE, "device", HUB)
    companion = await world.companion(PHONE, "--once")
    status, registered = await world.ceremony(HUB, "register", "--user", USER)
    assert (status, await ends(companion)) == (0, 0)
    assert registered is not None
    assert registered["user"]["name"] == "Zo\u00eb \u2764\ufe0f \U0001fae9"

    companion = await world.companion(
        PHONE, "--once", "--consent", "ask", "--uv", "ask", in_front=terminal.in_front
    )
    device = await world.device(HUB, "sign-in", "--user", USER, "--note", NOTE)
    asked = await terminal.answer("Approve? y or n:", "y")
    assert HUB in asked
    assert NOTE in asked
    assert registered["user"]["name"] in await terminal.answer("y or n:", "y")
    session = await session_of(device)
    assert (await ends(device), await ends(companion)) == (0, 0)
    assert session["user"] == registered["user"]
    assert registered["user"]["name"] in await page(world)

    members = ("companion-push", "companion", "members", "--state", world.state(PHONE), *world.trust)
    assert f'  "{HUB}"\n' in await world.run_to_end("members", *members)
    listed = json.loads(await world.run_to_end("members", *members, "--json"))
    assert [each["label"] for each in listed["members"]] == [PHONE, HUB]


async def test_a_terminal_that_cannot_write_a_name_gets_it_spelled_out(
    world: World, tidy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = await Home.make(world, devices=0)
    await world.invite(home.phone, "device", OTHER)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    members = ("companion-push", "companion", "members", "--state", world.state(home.phone), *world.trust)
    output = await world.run_to_end("members", *members)
    assert '  "K\\xfcche \\U0001f469\\u200d\\U0001f373"\n' in output
