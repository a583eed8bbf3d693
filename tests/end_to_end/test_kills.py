"""Any program may die at any moment: the others end in bounded time with the status that is true, or carry on."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
import pytest_asyncio
from programs import Program
from world import World

from tests.end_to_end.household import Home, ends
from tests.end_to_end.terminal import Terminal
from tests.ports import reserved_port

KILL, TERM = signal.SIGKILL, signal.SIGTERM
APPROVE, VERIFY = "Approve? y or n:", "y or n:"
SERVERS = ("radio", "tunnel service", "relay", "relying party")
NOWHERE = f"300=wss://localhost:{reserved_port()}"

pytestmark = pytest.mark.asyncio(loop_scope="module")
# where one who is asked to end says goodbye: of a process that says none, the end is the same
either_way = pytest.mark.parametrize("how", [KILL, TERM], ids=lambda number: number.name)


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def ada(world: World) -> None:
    """A passkey on every phone."""
    await (await Home.make(world)).registers_ada()


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def all_servers(world: World, tidy: None) -> AsyncIterator[None]:
    """What a test ended is there again for the next one."""
    yield
    for name in SERVERS:
        if world.servers[name][0].process.returncode is not None:
            await world.restart(name)


async def end(program: Program, how: signal.Signals) -> int:
    program.process.send_signal(how)
    return await ends(program)


async def end_server(world: World, name: str, how: signal.Signals) -> None:
    """A server has no reason to resist, nor to complain."""
    assert await end(world.servers[name][0], how) == (0 if how is TERM else -KILL)


@dataclass
class Scene:
    """A sign-in that has come to a certain point, and waits there for a person."""

    world: World
    home: Home
    terminal: Terminal
    device: Program
    companion: Program

    async def yes_to_all(self) -> None:
        await self.terminal.answer(APPROVE, "y")
        await self.terminal.answer(VERIFY, "y")

    async def statuses(self) -> tuple[int, int]:
        """How device and companion end."""
        return await ends(self.device), await ends(self.companion)

    async def fails(self) -> None:
        """The device fails, and so does its companion: by what broke, or by the relay's word of it, whichever comes first."""
        assert await ends(self.device) == 4
        assert await ends(self.companion) in (4, 7)


async def at_consent(world: World, home: Home, terminal: Terminal, *options: str) -> Scene:
    """The companion shows the request; its user has not answered."""
    companion = await world.start_companion(
        home.phone, "--once", "--consent", "ask", "--uv", "ask", in_front=terminal.in_front
    )
    device = await world.device(home.hub, "sign-in", *options)
    await companion.stage("arrived")
    return Scene(world, home, terminal, device, companion)


async def soon_to_expire(
    scene: Callable[..., Awaitable[Scene]], world: World, home: Home, terminal: Terminal
) -> Scene:
    """`scene`, with a request that lives for seconds; once more with a longer life where the machine was too slow."""
    for seconds in (3, 15, 75):
        reaching = asyncio.ensure_future(scene(world, home, terminal, "--timeout", str(seconds)))
        await asyncio.wait([reaching], timeout=2 * seconds)
        if reaching.done() and reaching.exception() is None:
            return reaching.result()
        reaching.cancel()
        await asyncio.wait([reaching])
        for program in [each for each in world.programs if each.name in (home.phone, home.hub)]:
            program.kill()
            await program.wait()
        terminal.forget()
    pytest.fail("the scene was not reached within 75 seconds")


async def at_verification(world: World, home: Home, terminal: Terminal) -> Scene:
    """The channel is open, the challenge with the phone; its user has not answered."""
    scene = await at_consent(world, home, terminal)
    await terminal.answer(APPROVE, "y")
    await scene.companion.stage("phone-asked")
    return scene


async def at_advert(world: World, home: Home, terminal: Terminal, *options: str) -> Scene:
    """The phone advertises and the device hears it, but its way to the tunnel is blocked."""
    scene = await at_consent(world, home, terminal, "--tunnel", NOWHERE, *options)
    await terminal.answer(APPROVE, "y")
    await scene.companion.stage("phone-advertising")
    await scene.device.stage("attempt-failed")
    return scene


# The device


@either_way
async def test_device_ends_while_its_request_is_pending_and_asks_again(
    world: World, home: Home, how: signal.Signals
) -> None:
    device = await world.device(home.hub, "sign-in")
    await device.stage("submitted")
    assert await end(device, how) == (130 if how is TERM else -KILL)
    companion = await world.start_companion(home.phone, "--uv", "ask")  # no terminal: usage error
    assert await ends(companion) == 2
    again = await world.device(home.hub, "sign-in")
    await again.stage("submitted")
    ((_, _, state),) = await home.inbox(home.phone)
    assert state in ("pending", "delivered")
    companion = await world.companion(home.phone, "--pending")
    assert (await ends(again), await ends(companion)) == (0, 0)


async def test_device_is_killed_while_the_companion_asks_and_the_question_goes_when_it_expires(
    world: World, home: Home, terminal: Terminal
) -> None:
    scene = await soon_to_expire(at_consent, world, home, terminal)
    await end(scene.device, KILL)
    assert await ends(scene.companion) == 7


async def test_device_is_terminated_while_the_phone_advertises_and_the_advert_is_taken_down(
    world: World, home: Home, terminal: Terminal
) -> None:
    scene = await at_advert(world, home, terminal)
    assert await end(scene.device, TERM) == 130
    assert await ends(scene.companion) == 7


async def test_device_is_killed_while_the_phone_advertises_and_the_next_request_takes_over(
    world: World, home: Home, terminal: Terminal
) -> None:
    scene = await at_advert(world, home, terminal)
    await end(scene.device, KILL)
    again = await world.device(home.hub, "sign-in")
    await again.stage("submitted")
    assert await ends(scene.companion) == 7
    companion = await world.companion(home.phone, "--pending")
    assert (await ends(again), await ends(companion)) == (0, 0)


@either_way
async def test_device_ends_while_the_phone_verifies_its_user(
    world: World, home: Home, terminal: Terminal, how: signal.Signals
) -> None:
    scene = await at_verification(world, home, terminal)
    assert await end(scene.device, how) == (130 if how is TERM else -KILL)
    assert await ends(scene.companion) == (7 if how is TERM else 4)  # who is asked to end says goodbye


# The companion


async def test_nobody_is_there_and_the_device_waits_until_its_deadline(world: World, home: Home) -> None:
    companion = await world.companion(home.phone)
    await end(companion, KILL)
    device = await world.device(home.hub, "sign-in", "--timeout", "2")
    assert await ends(device) == 7


async def test_companion_ends_while_it_asks_and_asks_again_when_it_is_back(
    world: World, home: Home, terminal: Terminal
) -> None:
    scene = await at_consent(world, home, terminal)
    assert await end(scene.companion, KILL) == -KILL
    back = await world.companion(home.phone, "--once")
    assert (await ends(scene.device), await ends(back)) == (0, 0)


@either_way
async def test_companion_ends_while_its_phone_advertises_and_opens_nothing_twice(
    world: World, home: Home, terminal: Terminal, how: signal.Signals
) -> None:
    scene = await at_advert(world, home, terminal)
    assert await end(scene.companion, how) == (130 if how is TERM else -KILL)
    back = await world.companion(home.phone)
    assert await ends(scene.device) == 7
    assert scene.device.failure is not None
    assert scene.device.failure["reason"] == "cancelled"  # told by the first run, or by the second
    assert "opened" not in back.stages


@either_way
async def test_companion_ends_while_its_phone_verifies_and_the_device_knows_at_once(
    world: World, home: Home, terminal: Terminal, how: signal.Signals
) -> None:
    scene = await at_verification(world, home, terminal)
    assert await end(scene.companion, how) == (130 if how is TERM else -KILL)
    assert await ends(scene.device) == 4


# The relay


async def test_relay_is_away_when_the_device_wants_it_and_comes_back(world: World, home: Home) -> None:
    await end_server(world, "relay", KILL)
    device = await world.device(home.hub, "sign-in", "--log-level", "debug")
    companion = await world.start_companion(home.phone, "--once")
    await device.says("cannot be reached")
    await world.restart("relay")
    assert (await ends(device), await ends(companion)) == (0, 0)


async def test_relay_is_away_and_the_deadline_ends_it(world: World, home: Home) -> None:
    await end_server(world, "relay", KILL)
    device = await world.device(home.hub, "sign-in", "--timeout", "1")
    assert await ends(device) == 7


@pytest.mark.threat("T5")
async def test_relay_is_killed_and_an_accepted_request_is_still_pending(world: World, home: Home) -> None:
    device = await world.device(home.hub, "sign-in")
    await device.stage("submitted")
    waiting = await home.inbox(home.phone)
    await end_server(world, "relay", KILL)
    await world.restart("relay")
    assert [each[:2] for each in await home.inbox(home.phone)] == [each[:2] for each in waiting]
    companion = await world.companion(home.phone, "--pending")
    assert (await ends(device), await ends(companion)) == (0, 0)


@either_way
async def test_relay_restarts_while_the_companion_asks_and_all_goes_on(
    world: World, home: Home, terminal: Terminal, how: signal.Signals
) -> None:
    scene = await at_consent(world, home, terminal)
    await end_server(world, "relay", how)
    await world.restart("relay")
    await scene.yes_to_all()
    assert await scene.statuses() == (0, 0)


async def test_relay_ends_after_the_claim_and_is_not_needed_any_more(
    world: World, home: Home, terminal: Terminal
) -> None:
    scene = await at_verification(world, home, terminal)
    await end_server(world, "relay", KILL)
    await terminal.answer(VERIFY, "y")
    assert await scene.statuses() == (0, 0)


# The tunnel service


async def test_tunnel_service_is_away_when_the_phone_wants_it(
    world: World, home: Home, terminal: Terminal
) -> None:
    scene = await at_consent(world, home, terminal)
    await end_server(world, "tunnel service", KILL)
    await terminal.answer(APPROVE, "y")
    assert await scene.statuses() == (4, 4)


@either_way
async def test_tunnel_service_ends_while_the_phone_advertises(
    world: World, home: Home, terminal: Terminal, how: signal.Signals
) -> None:
    scene = await at_advert(world, home, terminal)
    await end_server(world, "tunnel service", how)
    await scene.fails()


@either_way
async def test_tunnel_service_ends_while_the_phone_verifies_its_user(
    world: World, home: Home, terminal: Terminal, how: signal.Signals
) -> None:
    scene = await at_verification(world, home, terminal)
    await end_server(world, "tunnel service", how)
    await scene.fails()


# The radio


async def test_radio_is_away_and_nothing_is_sent(world: World, home: Home) -> None:
    await end_server(world, "radio", KILL)
    device = await world.device(home.hub, "sign-in")
    assert await ends(device) == 4
    assert "submitted" not in device.stages


async def test_radio_ends_while_the_companion_asks_and_the_question_is_taken_back(
    world: World, home: Home, terminal: Terminal
) -> None:
    scene = await at_consent(world, home, terminal)
    await end_server(world, "radio", KILL)
    assert await scene.statuses() == (4, 7)


async def test_radio_ends_while_the_phone_advertises(world: World, home: Home, terminal: Terminal) -> None:
    scene = await at_advert(world, home, terminal)
    await end_server(world, "radio", KILL)
    await scene.fails()


async def test_radio_is_not_needed_once_the_channel_is_open(
    world: World, home: Home, terminal: Terminal
) -> None:
    scene = await at_verification(world, home, terminal)
    await end_server(world, "radio", KILL)
    await terminal.answer(VERIFY, "y")
    assert await scene.statuses() == (0, 0)


# The relying party


async def test_relying_party_is_away_before_anybody_is_asked_and_nobody_is(world: World, home: Home) -> None:
    await end_server(world, "relying party", KILL)
    device = await world.device(home.hub, "sign-in")
    assert await ends(device) == 4
    assert device.stages == []
    assert await home.inbox(home.phone) == []


async def test_relying_party_is_away_when_the_challenge_is_wanted(
    world: World, home: Home, terminal: Terminal
) -> None:
    scene = await at_consent(world, home, terminal)
    await end_server(world, "relying party", KILL)
    await terminal.answer(APPROVE, "y")
    await scene.fails()


async def test_relying_party_restarts_before_the_challenge_is_wanted(
    world: World, home: Home, terminal: Terminal
) -> None:
    scene = await at_consent(world, home, terminal)
    await end_server(world, "relying party", KILL)
    await world.restart("relying party")
    await scene.yes_to_all()
    assert await scene.statuses() == (0, 0)


async def test_relying_party_restarts_while_the_phone_verifies_and_its_challenge_is_no_more(
    world: World, home: Home, terminal: Terminal
) -> None:
    scene = await at_verification(world, home, terminal)
    await end_server(world, "relying party", TERM)
    await world.restart("relying party")
    await terminal.answer(VERIFY, "y")
    assert await scene.statuses() == (4, 0)
    assert scene.device.failure is not None
    assert "try again" in scene.device.failure["advice"]


async def test_relying_party_is_away_when_the_response_comes_and_the_request_has_failed(
    world: World, home: Home, terminal: Terminal
) -> None:
    scene = await at_verification(world, home, terminal)
    request = await home.request(home.hub, home.phone)
    await end_server(world, "relying party", KILL)
    await terminal.answer(VERIFY, "y")
    assert await scene.statuses() == (4, 0)
    assert (await home.request_status(home.hub, request)).state == "failed"
