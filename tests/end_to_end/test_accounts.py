"""Joining an account with the programs: by account code, by invitation, and every way in that must not work."""

import asyncio
import json
import signal
import time
from dataclasses import replace

import pytest
from programs import PROGRAMS, Program
from world import World

from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import Role
from tests.end_to_end.household import Home, command_lines, ends, make_passkey
from tests.end_to_end.terminal import Terminal

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("tidy")]


async def joining(world: World, who: str, line: str, *options: str) -> Program:
    """A companion that joins with an account code or an invitation."""
    program = await world.run(
        who, "companion-push", "companion", "join", "--code", "-", "--label", who, "--state", world.state(who),
        *world.trust, *options,
    )  # fmt: skip
    await program.write(line)
    return program


async def device_joining(world: World, who: str, line: str, *options: str) -> Program:
    program = await world.run(
        who, "headless-passkey", "join", "--invitation", "-", "--label", who, "--state", world.state(who),
        *world.trust, *options,
    )  # fmt: skip
    await program.write(line)
    return program


async def inviting(
    world: World, who: str, kind: str, *options: str, number: str | None = None
) -> tuple[Program, str]:
    """A companion that lets one newcomer in, and its invitation. number: where its number comes from; None for none."""
    how = ("--without-number",) if number is None else ("--number", number)
    any_rp_id = ("--any-rp-id",) if kind == "device" else ()
    program = await world.run(
        who, "companion-push", "companion", "invite", "--kind", kind, "--yes", *how, *any_rp_id, *options, "--state",
        world.state(who), *world.trust,
    )  # fmt: skip
    return program, await program.line()


async def members(world: World, who: str) -> list[tuple[str, str]]:
    """Role and label of everybody in the account, as a companion lists them."""
    output = await world.run_to_end(
        who, "companion-push", "companion", "members", "--json", "--state", world.state(who), *world.trust
    )
    return [(member["role"], member["label"]) for member in json.loads(output)["members"]]


def reason(program: Program) -> str:
    assert program.failure is not None, program.said
    return str(program.failure["reason"])


async def test_a_household_joins_and_everybody_sees_everybody(world: World) -> None:
    code = await world.account_code("family")
    founding = await joining(world, "anns phone", code)
    assert await ends(founding) == 0

    inviter, invitation = await inviting(world, "anns phone", "companion", number="-")
    newcomer = await joining(world, "bobs phone", invitation)
    number = (await newcomer.stage("number"))["check_number"]
    await inviter.write(number)
    assert (await ends(newcomer), await ends(inviter)) == (0, 0)
    shown = await inviter.stage("introduced")
    assert (shown["kind"], shown["label"]) == ("companion", "bobs phone")
    assert not any(number in line for line in inviter.said)

    inviter, invitation = await inviting(world, "bobs phone", "device", number="-")
    device = await device_joining(world, "family hub", invitation)
    await inviter.write((await device.stage("number"))["check_number"])
    assert (await ends(device), await ends(inviter)) == (0, 0)

    everybody = [("companion", "anns phone"), ("companion", "bobs phone"), ("device", "family hub")]
    assert await members(world, "anns phone") == everybody
    assert await members(world, "bobs phone") == everybody
    status = json.loads(
        await world.run_to_end("hub", "headless-passkey", "status", "--state", world.state("family hub"))
    )
    assert [(member["role"], member["label"]) for member in status["members"]] == everybody


async def test_an_account_code_founds_one_account(world: World) -> None:
    code = await world.account_code("once")
    first = await joining(world, "first founder", code)
    assert await ends(first) == 0
    second = await joining(world, "second founder", code)
    assert await ends(second) == 8
    assert reason(second) == "invitation-used"


@pytest.mark.threat("T13")
@pytest.mark.parametrize("kind", ["companion", "device"])
async def test_of_two_newcomers_with_one_invitation_one_gets_in_and_the_other_is_told(
    world: World, home: Home, kind: str
) -> None:
    inviter, invitation = await inviting(world, home.phone, kind)
    join = joining if kind == "companion" else device_joining
    names = [f"{kind} {number} of {home.account}" for number in (1, 2)]
    newcomers = await asyncio.gather(*(join(world, name, invitation) for name in names))
    statuses = [await ends(newcomer) for newcomer in newcomers]
    assert sorted(statuses) == [0, 8]
    loser = newcomers[statuses.index(8)]
    assert reason(loser) == "invitation-used"
    assert loser.failure is not None
    assert "members" in loser.failure["message"]
    assert await ends(inviter) == 0
    labels = [label for _, label in await members(world, home.phone)]
    assert labels.count(names[statuses.index(0)]) == 1
    assert names[statuses.index(8)] not in labels


async def test_an_invitation_lets_nobody_in_a_second_time(world: World, home: Home) -> None:
    inviter, invitation = await inviting(world, home.phone, "device")
    first = await device_joining(world, f"first of {home.account}", invitation)
    assert (await ends(first), await ends(inviter)) == (0, 0)
    second = await device_joining(world, f"second of {home.account}", invitation)
    assert await ends(second) == 8
    assert reason(second) == "invitation-used"


async def test_an_invitation_that_has_expired_lets_nobody_in(world: World, home: Home) -> None:
    _, line = await inviting(world, home.phone, "device")
    late = replace(Invitation.parse(line), expires_at=int(time.time()) - 121).encode()
    device = await device_joining(world, f"late of {home.account}", late)
    assert await ends(device) == 8
    assert reason(device) == "invitation-expired"


async def test_an_inviter_that_waits_no_longer_lets_nobody_in(world: World, home: Home) -> None:
    inviter, line = await inviting(world, home.phone, "device", "--timeout", "0.5")
    assert await ends(inviter) == 7
    device = await device_joining(world, f"late of {home.account}", line)
    assert await ends(device) == 7
    assert (reason(device), "number" in device.stages) == ("withdrawn", False)
    assert len(await members(world, home.phone)) == 2


both_kinds = pytest.mark.parametrize("kind", ["companion", "device"])


async def asking(world: World, who: str, kind: str, terminal: Terminal) -> tuple[Program, str]:
    """A companion that lets one newcomer in when its person types the number at the terminal, and its invitation."""
    any_rp_id = ("--any-rp-id",) if kind == "device" else ()
    inviter = await world.run(
        who, *terminal.in_front, PROGRAMS / "companion-push", "companion", "invite", "--kind", kind,
        *any_rp_id, "--state", world.state(who), *world.trust,
    )  # fmt: skip
    return inviter, await inviter.line()


async def joining_as(world: World, kind: str, who: str, invitation: str, *options: str) -> Program:
    join = joining if kind == "companion" else device_joining
    return await join(world, who, invitation, *options)


@both_kinds
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_an_inviter_that_is_interrupted_takes_its_invitation_back(
    world: World, home: Home, terminal: Terminal, kind: str, number: signal.Signals
) -> None:
    inviter, line = await asking(world, home.phone, kind, terminal)
    inviter.process.send_signal(number)
    assert await ends(inviter) == 130
    newcomer = await joining_as(world, kind, f"late {kind} of {home.account}", line)
    assert await ends(newcomer) == 7
    assert (reason(newcomer), "number" in newcomer.stages) == ("withdrawn", False)


@both_kinds
async def test_a_newcomer_that_waits_hears_at_once_that_nobody_will_answer(
    world: World, home: Home, terminal: Terminal, kind: str
) -> None:
    inviter, line = await asking(world, home.phone, kind, terminal)
    newcomer = await joining_as(world, kind, f"waiting {kind} of {home.account}", line)
    assert 0 < (await newcomer.stage("waiting"))["seconds"] <= 600
    await terminal.until("Type the six digits")
    inviter.process.send_signal(signal.SIGTERM)
    assert (await ends(inviter), await ends(newcomer)) == (130, 7)
    assert reason(newcomer) == "withdrawn"
    assert len(await members(world, home.phone)) == 2


@pytest.mark.threat("T4")
@both_kinds
async def test_a_join_ends_by_its_own_time_and_goes_on_in_the_same_words_only(
    world: World, home: Home, terminal: Terminal, kind: str
) -> None:
    inviter, line = await asking(world, home.phone, kind, terminal)
    who = f"patient {kind} of {home.account}"
    first = await joining_as(world, kind, who, line, "--timeout", "1")
    assert await ends(first) == 7
    assert reason(first) == "expired"
    others = [["--label", "another"]]
    if kind == "device":
        others += [["--rp-id", "example.com"], ["--origin", "https://example.com"]]
    for other in others:
        assert await ends(await joining_as(world, kind, who, line, *other)) == 2
    again = await joining_as(world, kind, who, line)
    number = (await again.stage("number"))["check_number"]
    await terminal.answer("or n to refuse it:", number)
    assert (await ends(again), await ends(inviter)) == (0, 0)
    assert (kind, who) in await members(world, home.phone)


async def test_an_invitation_is_for_one_kind_of_member(world: World, home: Home) -> None:
    _, for_device = await inviting(world, home.phone, "device")
    _, for_companion = await inviting(world, home.phone, "companion")
    companion = await joining(world, f"wrong phone of {home.account}", for_device)
    device = await device_joining(world, f"wrong hub of {home.account}", for_companion)
    assert (await ends(companion), await ends(device)) == (8, 8)
    assert (reason(companion), reason(device)) == ("kind-mismatch", "kind-mismatch")


async def test_a_device_takes_another_invitation_only_after_it_left(world: World, home: Home) -> None:
    inviter, invitation = await inviting(world, home.phone, "device")
    device = await device_joining(world, home.hub, invitation)
    assert await ends(device) == 10
    assert reason(device) == "already-enrolled"
    leaving = await world.run(
        home.hub, "headless-passkey", "leave", "--state", world.state(home.hub), *world.trust
    )
    assert await ends(leaving) == 0
    device = await device_joining(world, home.hub, invitation, "--label", "hub again")
    assert (await ends(device), await ends(inviter)) == (0, 0)


async def test_who_has_not_joined_is_told_so(world: World) -> None:
    device = await world.device("nobodys hub", "sign-in")
    companion = await world.start_companion("nobodys phone")
    listing = await world.run(
        "nobodys phone", "companion-push", "companion", "members", "--state", world.state("nobodys phone"),
        *world.trust,
    )  # fmt: skip
    inviter = await world.run(
        "nobodys phone", "companion-push", "companion", "invite", "--kind", "device", "--yes", "--without-number",
        "--any-rp-id", "--state", world.state("nobodys phone"), *world.trust,
    )  # fmt: skip
    for program in (device, companion, listing, inviter):
        assert await ends(program) == 9, program.last_words


@pytest.mark.threat("T4")
async def test_a_device_asks_only_for_the_relying_parties_it_was_let_in_for(world: World, home: Home) -> None:
    await make_passkey(world.passkeys, "localhost")
    bound = f"bound hub of {home.account}"
    await home.let_in(Role.DEVICE, bound, rp_ids=("login.example",))
    companion = await world.companion(home.phone, "--once")
    device = await world.device(bound, "sign-in")
    assert await ends(device) == 8
    assert reason(device) == "rp-not-allowed"
    assert "submitted" not in device.stages
    assert companion.stages == ["listening"]


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "line",
    ["\n", "hpk-invitation:AAAA", "hpk-account:!!", "\x00\xff"],
    ids=repr,
)
async def test_what_is_no_invitation_is_malformed(world: World, line: str) -> None:
    companion = await joining(world, "confused phone", line)
    device = await device_joining(world, "confused hub", line)
    assert (await ends(companion), await ends(device)) == (3, 3)
    assert not world.state("confused hub").exists()


async def test_input_that_ends_before_an_invitation_came_is_a_transport_error(world: World) -> None:
    companion = await joining(world, "confused phone", "")
    device = await device_joining(world, "confused hub", "")
    assert (await ends(companion), await ends(device)) == (4, 4)


async def test_an_invitation_of_an_account_the_relay_does_not_have_lets_nobody_in(
    world: World, home: Home
) -> None:
    inviter, line = await inviting(world, home.phone, "device")
    forged = replace(Invitation.parse(line), account="A" * 22).encode()
    device = await device_joining(world, f"lost hub of {home.account}", forged)
    assert await ends(device) == 8
    inviter.kill()


@pytest.mark.threat("T11")
async def test_no_secret_stands_in_any_programs_arguments(world: World, home: Home, marker: str) -> None:
    inviter, line = await inviting(world, home.phone, "device")
    code = await world.account_code(f"of {home.account}")
    founder = await joining(world, f"founder of {home.account}", "")
    companion = await world.companion(home.phone)
    device = await world.device(home.hub, "sign-in", "--timeout", "20")
    await device.stage("submitted")
    everything = "\n".join(command_lines(marker))
    assert "invite" in everything
    assert "sign-in" in everything
    for secret in (line, code.strip(), line.partition(":")[2], "FIDO:/", "hpk-invitation", "hpk-account"):
        assert secret not in everything
    assert await ends(founder) == 4  # it was told nothing
    for program in (device, companion, inviter):
        program.kill()
