"""A phone asks its user, and its companion goes meanwhile: the phone of another companion signs in."""

import signal

import pytest
import pytest_asyncio
from programs import Program
from world import World

from tests.end_to_end.household import Home, ends, refusals
from tests.end_to_end.terminal import Terminal

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.threat("T5")]


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def ada(world: World) -> None:
    """A passkey on every phone."""
    home = await Home.make(world)
    companion = await world.companion(home.phone, "--once")
    assert (await world.ceremony(home.hub, "register", "--user", "ada"))[0] == 0
    assert await companion.wait() == 0


@pytest_asyncio.fixture(loop_scope="module")
async def couple(world: World, tidy: None) -> Home:
    """An account with two companions."""
    return await Home.make(world, companions=2)


async def asked(world: World, home: Home, terminal: Terminal, who: str) -> tuple[Program, Program]:
    """A device, and a companion whose phone has the challenge and asks its user."""
    companion = await world.start_companion(who, "--uv", "ask", in_front=terminal.in_front)
    device = await world.device(home.hub, "sign-in")
    await companion.stage("phone-asked")
    await device.stage("request-sent")
    return device, companion


async def test_a_companion_is_ended_while_its_phone_asks_and_another_one_signs_in(
    world: World, couple: Home, terminal: Terminal
) -> None:
    device, holder = await asked(world, couple, terminal, couple.phone)
    other = await world.companion(couple.companions[1])
    holder.process.send_signal(signal.SIGTERM)
    assert await ends(holder) == 0
    assert await ends(device) == 0
    assert refusals(device) == [(couple.phone, "interrupted")]
    assert "attempt-failed" in device.stages
    await other.stage("finished")


@pytest.mark.threat("T16")
async def test_a_companion_is_removed_while_its_phone_asks_and_another_one_signs_in(
    world: World, couple: Home, terminal: Terminal
) -> None:
    device, holder = await asked(world, couple, terminal, couple.companions[1])
    await couple.remove(couple.companions[1])
    assert await ends(holder) == 9
    await world.companion(couple.phone)
    assert await ends(device) == 0
    assert refusals(device) == [(couple.companions[1], "removed")]
