"""A relay that cheats: whatever it makes of a request, the companion opens nothing that the device did not send."""

import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from programs import Program
from world import World

from tests.end_to_end.household import Home, ends, processes

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAM = Path(__file__).parents[2] / "examples" / "rogue_relay.py"
OPENED = {"claimed", "opened", "phone-connecting", "phone-advertising", "phone-asked"}


class Mode:
    """How the relay cheats, from now on."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def be(self, mode: str) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(mode)
        fresh.replace(self._file)

    def be_honest(self) -> None:
        self._file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def mode_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rogue") / "mode"


@pytest.fixture
def relay(mode_file: Path) -> Mode:
    """The relay's manners: honest until it is told otherwise."""
    mode = Mode(mode_file)
    mode.be_honest()
    return mode


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    tmp_path_factory: pytest.TempPathFactory, marker: str, mode_file: Path
) -> AsyncIterator[World]:
    """The servers, with a rogue relay among them, and a passkey of ada's on every phone."""
    name, _, value = marker.partition("=")
    async with World.start(
        tmp_path_factory.mktemp("world"),
        relay=(sys.executable, PROGRAM, "--mode-file", mode_file),
        environment={name: value},
    ) as world:
        home = await Home.make(world)
        companion = await world.companion(home.phone, "--once")
        status, _ = await world.ceremony(home.hub, "register", "--user", f"ada {secrets.token_hex(4)}")
        assert (status, await companion.wait()) == (0, 0)
        yield world
    assert processes(marker) == []


async def refuses(companion: Program, reason: str) -> None:
    """It says so, and has opened nothing."""
    refused = await companion.stage("refused")
    assert refused["reason"] == reason
    assert OPENED.isdisjoint(companion.stages)


async def honest_request_works(world: World, home: Home, relay: Mode) -> None:
    """The same companion process serves the next request, when the relay delivers that as it came."""
    relay.be_honest()
    assert (await world.ceremony(home.hub, "sign-in"))[0] == 0


@pytest.mark.threat("T1")
@pytest.mark.threat("T2")
async def test_a_url_of_the_relays_own_in_the_devices_name_is_refused(
    world: World, home: Home, relay: Mode
) -> None:
    companion = await world.companion(home.phone)
    relay.be("swap")
    device = await world.device(home.hub, "sign-in")
    await refuses(companion, "bad-signature")
    assert await ends(device) == 8
    assert device.failure is not None
    assert device.failure["reason"] == "bad-signature"
    await honest_request_works(world, home, relay)


@pytest.mark.threat("T1")
async def test_a_url_signed_by_a_device_of_no_account_is_refused(
    world: World, home: Home, relay: Mode
) -> None:
    companion = await world.companion(home.phone)
    relay.be("unknown-device")
    device = await world.device(home.hub, "sign-in", "--timeout", "3")
    await refuses(companion, "unknown-device")
    assert await ends(device) == 7  # what was refused had another name, so this request is still waiting
    await honest_request_works(world, home, relay)


@pytest.mark.threat("T1")
@pytest.mark.threat("T13")
async def test_a_url_signed_by_a_device_of_another_account_is_refused(
    world: World, home: Home, relay: Mode
) -> None:
    neighbour = await Home.make(world)
    companion = await world.companion(home.phone)
    relay.be(f"other-account {world.state(neighbour.hub)}")
    device = await world.device(home.hub, "sign-in", "--timeout", "3")
    await refuses(companion, "unknown-device")
    assert await ends(device) == 7
    await honest_request_works(world, home, relay)


@pytest.mark.threat("T3")
async def test_a_claim_that_the_relay_invents_ends_the_ceremony(
    world: World, home: Home, relay: Mode
) -> None:
    relay.be("invent-claim")
    device = await world.device(home.hub, "sign-in")
    assert await ends(device) == 8
    assert device.failure is not None
    assert device.failure["reason"] == "bad-claim"
    await world.companion(home.phone)
    await honest_request_works(world, home, relay)


@pytest.mark.threat("T3")
async def test_a_claim_that_the_relay_hides_gets_no_command_to_the_phone(
    world: World, home: Home, relay: Mode
) -> None:
    companion = await world.companion(home.phone)
    relay.be("hide-claim")
    device = await world.device(home.hub, "sign-in", "--timeout", "15")
    await companion.stage("phone-advertising")
    assert await ends(device) == 8
    assert device.failure is not None
    assert device.failure["reason"] == "not-claimed"
    assert "request-sent" not in device.stages
    assert "phone-asked" not in companion.stages
    await honest_request_works(world, home, relay)


@pytest.mark.threat("T2")
@pytest.mark.threat("T16")
async def test_a_removal_that_the_relay_withholds_is_noticed_at_the_next_honest_claim(
    world: World, tidy: None, relay: Mode
) -> None:
    home = await Home.make(world, companions=2)
    await home.remove(home.companions[1])
    relay.be("withhold")
    companion = await world.companion(home.phone)
    device = await world.device(home.hub, "sign-in")
    await companion.stage("claimed")
    assert await ends(device) == 8
    assert device.failure is not None
    assert device.failure["reason"] == "withheld-ring"
    assert "request-sent" not in device.stages
    await honest_request_works(world, home, relay)


@pytest.mark.threat("T5")
async def test_an_envelope_under_another_request_id_is_refused(world: World, home: Home, relay: Mode) -> None:
    companion = await world.companion(home.phone)
    relay.be("other-request")
    device = await world.device(home.hub, "sign-in", "--timeout", "3")
    await refuses(companion, "cannot-open")
    assert await ends(device) == 7
    relay.be_honest()
    assert (await world.ceremony(home.hub, "sign-in"))[0] == 0


@pytest.mark.threat("T2")
async def test_an_envelope_for_another_companion_is_refused(world: World, tidy: None, relay: Mode) -> None:
    home = await Home.make(world, companions=2)
    companions = [await world.companion(name) for name in home.companions]
    relay.be("other-recipient")
    device = await world.device(home.hub, "sign-in")
    for companion in companions:
        await refuses(companion, "cannot-open")
    assert await ends(device) == 8
    assert device.failure is not None
    assert device.failure["reason"] == "cannot-open"
    await honest_request_works(world, home, relay)


@pytest.mark.threat("T5")
async def test_an_envelope_that_was_opened_before_is_refused_also_after_a_restart(
    world: World, home: Home, relay: Mode
) -> None:
    relay.be("replay")
    companion = await world.companion(home.phone)
    assert (await world.ceremony(home.hub, "sign-in"))[0] == 0
    assert companion.stages.count("arrived") == 1
    companion.kill()
    await companion.wait()

    companion = await world.companion(home.phone)
    await refuses(companion, "replayed")
    await honest_request_works(world, home, relay)


@pytest.mark.threat("T2")
async def test_a_forked_ring_is_refused_by_the_companion(world: World, home: Home, relay: Mode) -> None:
    device = await world.device(home.hub, "sign-in")
    await device.stage("submitted")
    relay.be("fork")
    companion = await world.companion(home.phone)
    await refuses(companion, "bad-signature")
    assert await ends(device) == 8
    assert device.failure is not None
    assert device.failure["reason"] == "bad-signature"
    await honest_request_works(world, home, relay)


@pytest.mark.threat("T2")
async def test_a_forked_ring_is_refused_by_the_device_before_anything_is_sealed(
    world: World, home: Home, relay: Mode
) -> None:
    companion = await world.companion(home.phone)
    relay.be("fork")
    device = await world.device(home.hub, "sign-in")
    assert await ends(device) == 8
    assert "submitted" not in device.stages
    assert set(companion.stages) <= {"listening", "ring-unconfirmed"}  # it notices the fork too
    await honest_request_works(world, home, relay)


async def invite_at_a_relay_that_conflicts(
    world: World, home: Home, relay: Mode, seconds: int
) -> tuple[Program, Program, int]:
    """The inviter that had the newcomer's number, when it has ended, the newcomer, and how many rings were handed in."""
    who, rings = f"newcomer {seconds} of {home.account}", world.folder / f"rings {seconds} of {home.account}"
    inviter = await world.run(
        home.phone, "companion-push", "companion", "invite", "--kind", "device", "--yes", "--number", "-",
        "--any-rp-id", "--timeout", str(seconds), "--state", world.state(home.phone), *world.trust,
    )  # fmt: skip
    newcomer = await world.run(
        who, "headless-passkey", "join", "--invitation", "-", "--label", who, "--state", world.state(who),
        *world.trust,
    )  # fmt: skip
    await newcomer.write(await inviter.line())
    shown = await newcomer.stage("number")
    relay.be(f"conflict {rings}")
    await inviter.write(f"{shown['check_number']}\n")
    await ends(inviter)
    relay.be_honest()
    return inviter, newcomer, len(rings.read_text().splitlines()) if rings.exists() else 0


@pytest.mark.threat("T16")
async def test_a_relay_that_says_conflict_for_ever_is_left_after_six_rings(
    world: World, home: Home, relay: Mode
) -> None:
    before = home.enrolment(home.hub).chain.head.version
    for seconds in (5, 25, 125):  # a longer time where the machine was too slow for the shorter one
        inviter, newcomer, rings = await invite_at_a_relay_that_conflicts(world, home, relay, seconds)
        assert rings <= 6
        if await ends(inviter) == 4:
            break
        assert (await ends(inviter), await ends(newcomer)) == (7, 7)
    assert rings >= 1
    assert inviter.failure is not None
    assert inviter.failure["reason"] == "relay-inconsistent"
    await world.invite(home.phone, "device", f"late hub of {home.account}")
    assert await ends(newcomer) == 0, "its number was typed: it gets in when the relay takes rings again"
    newest, why = await home.membership(home.phone).members()
    assert (newest.version, why) == (before + 2, None)
