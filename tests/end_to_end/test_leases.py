"""A companion that holds the claim is killed, or out of reach for a while: the relay soon misses it."""

import secrets
import signal
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio
from world import World

from tests.end_to_end.household import Home, ends, refusals
from tests.end_to_end.terminal import Terminal

APPROVE: Final = "Approve? y or n:"
LEASE: Final = "5"  # seconds: longer than any pause that a busy machine makes between two calls

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.threat("T5")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """The servers, with a relay of little patience, and a passkey on every phone."""
    relay = ("companion-push", "relay", "--lease", LEASE)
    marker = {"HEADLESS_PASSKEY_TEST_LEASES": secrets.token_hex(8)}
    async with World.start(tmp_path_factory.mktemp("world"), relay=relay, environment=marker) as world:
        await (await Home.make(world)).registers_ada()
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def couple(world: World, tidy: None) -> Home:
    """An account with two companions."""
    return await Home.make(world, companions=2)


async def test_one_of_two_companions_is_killed_and_the_other_asks_its_user_again(
    world: World, couple: Home, terminal: Terminal
) -> None:
    device = await world.device(couple.hub, "sign-in")
    other = await world.start_companion(couple.companions[1], "--consent", "ask", in_front=terminal.in_front)
    await terminal.until(APPROVE)
    holder = await world.companion(couple.phone, "--opener", "qr")
    await holder.stage("opened")
    await other.stage("gone")  # its question is taken back
    await device.stage("opened")
    holder.kill()
    await holder.wait()
    await terminal.answer(APPROVE, "y")
    assert await ends(device) == 0
    assert refusals(device) == [(couple.phone, "vanished")]
    after = device.stages[device.stages.index("refused") :]
    assert after[1] == "delivered"
    assert after[2] in ("claimed", "opened")  # as soon as one of them has come to the device


async def test_a_companion_that_is_stopped_for_a_while_has_its_claim_back(world: World, home: Home) -> None:
    """As a laptop does whose lid is closed, or that was out of reach."""
    companion = await world.companion(home.phone, "--opener", "qr")
    device = await world.device(home.hub, "sign-in")
    await device.stage("opened")
    request = await home.request(home.hub, home.phone)
    companion.process.send_signal(signal.SIGSTOP)
    assert (await device.stage("refused"))["reason"] == "vanished"
    companion.process.send_signal(signal.SIGCONT)
    await device.stage("claimed", "opened")
    status = await home.request_status(home.hub, request)
    assert (status.claim and status.claim.by, status.failures) == (home.identity(home.phone).keys.name, ())
