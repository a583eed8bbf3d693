"""Clocks that differ, and companions that refuse: the device's user hears of it at once, with the reason."""

from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from world import World

from tests.end_to_end.household import Home, ends, refusals
from tests.end_to_end.terminal import Terminal

APPROVE: Final = "Approve? y or n:"
SHIFTED_CLOCK: Final = Path(__file__).parent / "shifted_clock"
CHECKS: Final = "companion_push.companion.inbox"  # where a companion looks at the clock for its checks

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def ada(world: World) -> None:
    """A passkey on every phone."""
    await (await Home.make(world)).registers_ada()


@pytest_asyncio.fixture(loop_scope="module")
async def couple(world: World, tidy: None) -> Home:
    """An account with two companions."""
    return await Home.make(world, companions=2)


def clock(shift: int, *, only_in: str | None = None) -> tuple[str, ...]:
    """In front of a program: its clock is `shift` seconds ahead. only_in: the module that sees it."""
    module = () if only_in is None else (f"SHIFT_IN={only_in}",)
    return "/usr/bin/env", f"PYTHONPATH={SHIFTED_CLOCK}", f"SHIFT={shift}", *module


@pytest.mark.parametrize(("device", "companion"), [(55, -55), (-55, 55), (0, 0)])
async def test_two_clocks_that_the_relay_takes_sign_in(
    world: World, home: Home, device: int, companion: int
) -> None:
    phone = await world.companion(home.phone, "--once", in_front=clock(companion))
    hub = await world.device(home.hub, "sign-in", in_front=clock(device))
    assert (await ends(hub), await ends(phone)) == (0, 0)
    assert refusals(hub) == []


@pytest.mark.parametrize(("shift", "reason"), [(-300, "clock-skew"), (600, "expired")])
async def test_a_clock_that_is_too_far_off_is_told_to_the_device_at_once(
    world: World, home: Home, shift: int, reason: str
) -> None:
    phone = await world.companion(home.phone, "--once", in_front=clock(shift, only_in=CHECKS))
    hub = await world.device(home.hub, "sign-in")
    assert (await ends(hub), await ends(phone)) == (8, 8)
    assert refusals(hub) == [(home.phone, reason)]
    assert hub.failure is not None
    assert (hub.failure["error"], hub.failure["reason"]) == ("TrustError", reason)
    assert f'"{home.phone}" refuses the request' in hub.failure["message"]


async def test_what_one_companion_refuses_another_may_take(
    world: World, couple: Home, terminal: Terminal
) -> None:
    one, two = couple.companions
    hub = await world.device(couple.hub, "sign-in")
    right = await world.start_companion(two, "--once", "--consent", "ask", in_front=terminal.in_front)
    await terminal.until(APPROVE)
    wrong = await world.companion(one, in_front=clock(-300, only_in=CHECKS))
    await hub.stage("refused")
    terminal.type("y\n")
    assert (await ends(hub), await ends(right)) == (0, 0)
    assert refusals(hub) == [(one, "clock-skew")]
    assert wrong.process.returncode is None


async def test_when_every_companion_that_fetched_it_refused_it_ends_although_another_might_come(
    world: World, couple: Home
) -> None:
    wrong = await world.companion(couple.companions[0], in_front=clock(-300, only_in=CHECKS))
    hub = await world.device(couple.hub, "sign-in")
    assert await ends(hub) == 8
    assert hub.failure is not None
    assert hub.failure["reason"] == "clock-skew"
    assert wrong.process.returncode is None


async def test_two_companions_that_refuse_for_different_reasons_are_both_named(
    world: World, couple: Home, terminal: Terminal
) -> None:
    one, two = couple.companions
    hub = await world.device(couple.hub, "sign-in")
    await world.start_companion(
        two,
        "--consent",
        "ask",
        "--opener",
        "command",
        "--opener-command",
        "false",
        in_front=terminal.in_front,
    )
    await terminal.until(APPROVE)
    await world.companion(one, in_front=clock(-300, only_in=CHECKS))
    await hub.stage("refused")
    terminal.type("y\n")
    assert await ends(hub) == 4
    assert refusals(hub) == [(one, "clock-skew"), (two, "unreachable")]
    assert hub.failure is not None
    for name in (one, two):
        assert f'"{name}"' in hub.failure["message"]
