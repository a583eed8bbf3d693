"""A relay's store is restored from a copy one ring old: whoever calls next gives the relay the ring, and says so."""

import json
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from programs import Program, event
from world import World

from headless_passkey.trust.ring import Role
from tests.end_to_end.household import Home, copied, ends, put_back

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.threat("T16")]


@pytest_asyncio.fixture(loop_scope="module")
async def home(world: World, tidy: None) -> AsyncIterator[Home]:
    """A home with two companions and a passkey, whose relay has forgotten its newest ring, which all members hold."""
    home = await Home.make(world, companions=2)
    companion = await world.companion(home.phone, "--once")
    status, _ = await world.ceremony(home.hub, "register", "--user", f"ada {home.account}")
    assert (status, await ends(companion)) == (0, 0)
    copy = copied(world.relay_store)
    await home.let_in(Role.COMPANION, f"guest of {home.account}")
    for companion_name in home.companions:
        await home.membership(companion_name).members()
    companion = await world.companion(home.phone, "--once")
    assert (await world.ceremony(home.hub, "sign-in"))[0] == 0
    assert await ends(companion) == 0
    relay = world.servers["relay"][0]
    relay.process.send_signal(signal.SIGTERM)
    assert await ends(relay) == 0
    put_back(world.relay_store, copy)
    await world.restart("relay")
    yield home


def alarms(program: Program) -> list[dict[str, object]]:
    """What it told of rings that the relay had forgotten."""
    said = [each for each in map(event, program.said) if each is not None]
    return [each for each in said if each.get("stage") == "relay-forgot-rings"]


async def lists_members(world: World, who: str) -> tuple[Program, int]:
    program = await world.run(
        who, "companion-push", "companion", "members", "--state", world.state(who), *world.trust
    )
    listed = json.loads(await program.output())
    assert await ends(program) == 0
    return program, listed["version"]


@pytest.mark.parametrize("first", ["device", "first-companion", "other-companion", "listening-companion"])
async def test_the_first_member_that_calls_hands_the_ring_in_and_says_so(
    world: World, home: Home, first: str
) -> None:
    newest = home.enrolment(home.hub).chain.head.version
    match first:
        case "device":
            program = await world.device(home.hub, "sign-in")
            await program.stage("relay-forgot-rings")
            companion = await world.companion(home.phone, "--once")
            assert (await ends(program), await ends(companion)) == (0, 0)
            (told,) = alarms(program)
            assert (told["first"], told["last"], told["given"]) == (newest, newest, True)
        case "listening-companion":
            program = await world.companion(home.phone)
            told = await program.stage("relay-forgot-rings")
            assert told["message"] == f"the relay has forgotten ring {newest} and was given it again"
        case _:
            program, version = await lists_members(world, home.companions[first == "other-companion"])
            assert version == newest
            (told,) = alarms(program)
            assert told["message"] == f"the relay has forgotten ring {newest} and was given it again"
    program, _ = await lists_members(world, home.companions[1])
    assert alarms(program) == [], "the relay has it again"
    await world.invite(home.phone, "device", f"late hub of {home.account}")
    _, version = await lists_members(world, home.companions[1])
    assert version == newest + 1, "admission works again"
