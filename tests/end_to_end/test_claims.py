"""A companion is ended while it holds the claim: the device ends, or another companion takes over."""

import signal

import pytest
import pytest_asyncio
from programs import Program
from world import World

from tests.end_to_end.household import Home, ends, refusals
from tests.end_to_end.terminal import Terminal

APPROVE = "Approve? y or n:"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def ada(world: World) -> None:
    """A passkey on every phone."""
    await (await Home.make(world)).registers_ada()


@pytest_asyncio.fixture(loop_scope="module")
async def couple(world: World, tidy: None) -> Home:
    """An account with two companions."""
    return await Home.make(world, companions=2)


async def holding(world: World, home: Home, *options: str) -> tuple[Program, Program]:
    """A device whose request the first companion holds: it shows a QR code that nobody scans."""
    companion = await world.companion(home.phone, "--opener", "qr", *options)
    device = await world.device(home.hub, "sign-in")
    await companion.stage("opened")
    await device.stage("opened")
    return device, companion


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)
@pytest.mark.parametrize("once", [True, False], ids=["once", "until ended"])
async def test_the_only_companion_is_ended_and_the_device_hears_it_at_once(
    world: World, home: Home, number: signal.Signals, *, once: bool
) -> None:
    device, companion = await holding(world, home, *(["--once"] if once else []))
    request = await home.request(home.hub, home.phone)
    companion.process.send_signal(number)
    assert await ends(companion) == (130 if once else 0)
    assert await ends(device) == 7
    assert device.failure is not None
    assert device.failure["reason"] == "cancelled"
    assert f'"{home.phone}" was ended before the phone had answered' in device.failure["message"]
    assert refusals(device) == [(home.phone, "interrupted")]
    assert await home.final_state(home.hub, request) == "failed"


async def asking(world: World, home: Home, terminal: Terminal) -> tuple[Program, Program]:
    """A device, and the second companion that puts its request to a person."""
    device = await world.device(home.hub, "sign-in")
    companion = await world.start_companion(
        home.companions[1], "--consent", "ask", in_front=terminal.in_front
    )
    await terminal.until(APPROVE)
    return device, companion


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_one_of_two_companions_is_ended_and_the_other_is_asked_again(
    world: World, couple: Home, terminal: Terminal, number: signal.Signals
) -> None:
    device, other = await asking(world, couple, terminal)
    holder = await world.companion(couple.phone, "--opener", "qr")
    await holder.stage("opened")
    await other.stage("gone")
    holder.process.send_signal(number)
    assert await ends(holder) == 0
    await terminal.answer(APPROVE, "y")
    assert await ends(device) == 0
    assert refusals(device) == [(couple.phone, "interrupted")]


async def test_a_companion_that_is_killed_and_started_again_leaves_what_it_showed_to_others(
    world: World, couple: Home, terminal: Terminal
) -> None:
    device, _ = await asking(world, couple, terminal)
    holder = await world.companion(couple.phone, "--opener", "qr")
    await device.stage("opened")
    holder.kill()
    await holder.wait()
    back = await world.companion(couple.phone)
    await terminal.answer(APPROVE, "y")
    assert await ends(device) == 0
    assert refusals(device) == [(couple.phone, "interrupted")]
    assert "opened" not in back.stages
