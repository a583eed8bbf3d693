"""A phone asks its user, and its companion or its account goes meanwhile: another companion's phone signs in, or all are told."""

import signal
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio
from programs import Program
from world import World

from headless_passkey.net.proven_http import open_session
from headless_passkey.process.private_file import write_private
from tests.end_to_end.household import Home, ends, refusals, trusted
from tests.end_to_end.terminal import Terminal

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.threat("T5")]


SECRET: Final = "of-the-account-service-in-these-tests"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """The servers, with a relay that an account service administers, and a passkey on every phone."""
    folder = tmp_path_factory.mktemp("world")
    secret = folder / "secret"
    write_private(secret, SECRET.encode())
    async with World.start(folder, relay=("companion-push", "relay", "--admin-secret", secret)) as world:
        await (await Home.make(world)).registers_ada()
        yield world


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


@pytest.mark.threat("T16")
@pytest.mark.parametrize(("verb", "reason"), [("close", "account-closed"), ("suspend", "account-suspended")])
async def test_an_account_ends_while_a_phone_asks_and_all_are_told(
    world: World, home: Home, terminal: Terminal, verb: str, reason: str
) -> None:
    """The phone hangs up with its companion, before or after the device hears of it."""
    device, companion = await asked(world, home, terminal, home.phone)
    bearer = {"Authorization": f"Bearer {SECRET}"}
    address = f"{world.relay}/admin/v1/accounts/{verb}"
    async with (
        open_session(trusted(world)) as http,
        http.post(address, json={"name": home.account}, headers=bearer) as answer,
    ):
        assert answer.status == 200
    for program in (device, companion):
        assert await ends(program) == 9
        assert program.failure is not None
        assert program.failure["reason"] == reason
        assert program.failure["advice"]
    assert "given-back" not in companion.stages
