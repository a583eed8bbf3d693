"""What docs/how-to/incidents.md tells people to do, done with the programs."""

import json
import re
import shlex
import signal
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
from programs import Program
from world import World

from headless_passkey.rp.session_store import SessionStore
from tests.companion.program import outcome
from tests.companion.test_sign_in import relay_for
from tests.end_to_end.household import Home, Session, copied, ends, put_back
from tests.identity.issuer import Issuer
from tests.test_code_blocks import blocks_of, command_lines

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("tidy")]

PAGE = Path(__file__).parents[2] / "docs/how-to/incidents.md"
COMMANDS = [words for block in blocks_of(PAGE) for words in command_lines(block.code)]


def told(begins: str, filled: Mapping[str, str | Path] | None = None) -> list[str]:
    """The words of the page's command that begins so. filled: what stands here in place of the page's names and addresses."""
    (words,) = [words for words in COMMANDS if shlex.join(words).startswith(begins)]
    filled = filled or {}
    assert filled.keys() <= set(words)
    return [str(filled.get(word, word)) for word in words]


HERE = re.findall(r'\btold\(\s*"([^"]+)"', Path(__file__).read_text(encoding="utf-8"))


async def test_each_command_of_the_page_is_run_here() -> None:
    assert [each for each in map(shlex.join, COMMANDS) if not each.startswith(tuple(HERE))] == []


async def runs(world: World, who: str, words: list[str], *more: str, stdin: str = "") -> str:
    """A command of the page, which ends with 0: what it prints."""
    return await world.run_to_end(who, *words, *more, "--state", world.state(who), *world.trust, stdin=stdin)


async def registers(world: World, home: Home) -> None:
    companion = await world.companion(home.phone, "--once")
    status, _ = await world.ceremony(home.hub, "register", "--user", f"ada {home.account}")
    assert (status, await ends(companion)) == (0, 0)


async def signs_in(world: World, phone: str, hub: str) -> None:
    companion = await world.companion(phone, "--once")
    status, _ = await world.ceremony(hub, "sign-in")
    assert (status, await ends(companion)) == (0, 0)


async def lets_in(world: World, inviter: str, invite: list[str], who: str, join: list[str]) -> None:
    """Two people let `who` in by commands of the page; the number is typed at the inviter."""
    inviting = await world.run(
        inviter, *invite, "--yes", "--number", "-", "--state", world.state(inviter), *world.trust
    )
    invitation = world.state(who).with_suffix(".txt")
    invitation.write_text(f"{await inviting.line()}\n")
    joining = await world.run(
        who, *(str(invitation) if word == "invitation.txt" else word for word in join),
        "--state", world.state(who), *world.trust,
    )  # fmt: skip
    await joining.write("")
    await inviting.write(f"{(await joining.stage('number'))['check_number']}\n")
    assert (await ends(joining), await ends(inviting)) == (0, 0)


async def device_runs(world: World, who: str, *command: str) -> Program:
    program = await world.run(who, "headless-passkey", *command, "--state", world.state(who), *world.trust)
    await ends(program)
    return program


def failure(program: Program) -> tuple[int, str]:
    assert program.failure is not None, program.said
    return int(program.failure["status"]), str(program.failure["reason"])


async def refused(world: World, hub: str) -> tuple[int, str]:
    """Exit status and reason of a sign-in for which no phone is there."""
    program = await world.device(hub, "sign-in")
    await ends(program)
    return failure(program)


async def restored(world: World, server: str, store: Path, copy: Path | None) -> None:
    """Put a copy in a store's place, or nothing, as the page says."""
    program = world.servers[server][0]
    program.process.send_signal(signal.SIGTERM)
    assert await ends(program) == 0
    put_back(store, copy)
    await world.restart(server)


@pytest.mark.threat("T16")
async def test_of_two_companions_one_is_lost_and_a_new_one_is_let_in(world: World) -> None:
    home = await Home.make(world, companions=2)
    await registers(world, home)
    lost = await world.companion(home.companions[1])
    old = {"Old phone": home.companions[1]}
    remove = told("companion-push companion remove 'Old phone'", old)
    await runs(world, home.phone, remove, "--introduced", "--confirm", home.companions[1])
    assert await ends(lost) == 9
    assert failure(lost) == (9, "not-a-member")
    assert lost.failure is not None
    assert home.phone in lost.failure["message"]
    await signs_in(world, home.phone, home.hub)

    new = f"new phone of {home.account}"
    join = ["companion-push", "companion", "join", "--code", "invitation.txt", "--label", new]
    await lets_in(world, home.phone, told("companion-push companion invite --kind companion"), new, join)
    await signs_in(world, new, home.hub)


@pytest.mark.threat("T16")
async def test_of_three_companions_the_one_is_lost_that_had_let_all_in_and_they_stay(world: World) -> None:
    home = await Home.make(world, companions=3)
    await registers(world, home)
    lost, second, third = home.companions
    waiting = await world.companion(lost)
    remove = told("companion-push companion remove 'Old phone'", {"Old phone": lost})
    await runs(world, second, remove, "--only", "--confirm", lost)
    assert await ends(waiting) == 9
    assert failure(waiting) == (9, "not-a-member")
    for phone in (second, third):
        await signs_in(world, phone, home.hub)


@pytest.mark.threat("T16")
async def test_the_only_phone_is_lost_and_the_account_is_set_up_anew(world: World, home: Home) -> None:
    await registers(world, home)
    reset = told("companion-push account reset", {"alice": home.account, "https://push.example": world.relay})
    code = await world.run_to_end("operator", *reset, "--store", world.relay_store)
    assert await refused(world, home.hub) == (9, "account-closed")
    new = f"new phone of {home.account}"
    await runs(world, new, told("companion-push companion join --code -", {"New phone": new}), stdin=code)
    await runs(world, home.hub, told("headless-passkey leave"))
    invite = ["companion-push", "companion", "invite", "--kind", "device", "--any-rp-id"]
    join = told("headless-passkey join", {"Kitchen hub": home.hub})
    await lets_in(world, new, invite, home.hub, join)
    companion = await world.companion(new, "--once")
    sign_in = told("headless-passkey sign-in", {"https://login.example": world.relying_party})
    radio = ("--radio", world.radio, "--tunnel", world.tunnel)
    assert json.loads(await runs(world, home.hub, sign_in, *radio))
    assert await ends(companion) == 0


@pytest.mark.threat("T16")
async def test_where_accounts_belong_to_sign_ins_the_user_sets_the_account_up_anew(tmp_path: Path) -> None:
    """Against an issuer on loopback."""
    async with Issuer(now=int(time.time())).running() as issuer, relay_for(issuer, tmp_path) as relay:
        old, new = (("--state", tmp_path / "state" / each) for each in ("old", "new"))
        join = ["companion", "join", "--relay", relay.url, "--oidc", "--label", "Old phone"]
        assert (await outcome(*join, *old))[0] == 0
        _, *reset = told("companion-push companion reset", {"https://push.example": relay.url})
        status, _, said = await outcome(*reset, "--confirm", "anna", *new)
        assert status == 0, said
        status, stdout, _ = await outcome("companion", "members", "--json", *new)
        assert [member["label"] for member in json.loads(stdout)["members"]] == ["New phone"]
        status, _, _ = await outcome("companion", "run", "--pending", "--consent", "decline", *old)
        assert status == 9


async def test_companion_and_device_show_the_same_members(world: World, home: Home) -> None:
    members = json.loads(await runs(world, home.phone, told("companion-push companion members"), "--json"))
    status = json.loads(
        await world.run_to_end(
            home.hub, "headless-passkey", "status", "--json", "--state", world.state(home.hub)
        )
    )
    assert {each["label"] for each in members["members"]} == {home.phone, home.hub}
    assert members["number"] == status["ring"]["number"]


async def test_a_device_that_asks_for_what_nobody_made_is_muted_until_that_is_ended(
    world: World, home: Home
) -> None:
    await registers(world, home)
    hub = {"Kitchen hub": home.hub}
    await runs(world, home.phone, told("companion-push companion mute add", hub))
    assert await refused(world, home.hub) == (9, "device-muted")
    assert home.hub in await runs(world, home.phone, told("companion-push companion mute list"))
    await runs(world, home.phone, told("companion-push companion mute remove", hub))
    await signs_in(world, home.phone, home.hub)


@pytest.mark.threat("T16")
async def test_a_stolen_device_asks_nobody_and_its_session_goes_on_until_it_is_signed_out(
    world: World, home: Home
) -> None:
    await registers(world, home)
    remove = told("companion-push companion remove 'Kitchen hub'", {"Kitchen hub": home.hub})
    await runs(world, home.phone, remove, "--only", "--confirm", home.hub)
    assert await refused(world, home.hub) == (9, "not-a-member")
    assert (await Session.of(home, home.hub).get())["user"]["name"] == f"ada {home.account}"


async def test_a_relay_without_any_copy_is_begun_anew_and_the_passkeys_are_not_touched(
    world: World, home: Home
) -> None:
    await registers(world, home)
    await restored(world, "relay", world.relay_store, None)
    assert await refused(world, home.hub) == (4, "unknown-to-relay")
    new = f"begun anew of {home.account}"
    await world.found_account(new, account=home.account)
    assert failure(await device_runs(world, home.hub, "leave")) == (4, "unknown-to-relay")
    left = await device_runs(world, home.hub, "leave", "--anyway")
    assert left.process.returncode == 0
    await world.invite(new, "device", home.hub)
    await signs_in(world, new, home.hub)


async def test_after_a_restore_the_relying_party_knows_sessions_that_were_over_until_all_are_ended(
    world: World, home: Home
) -> None:
    await registers(world, home)
    copy = copied(world.relying_party_store)
    refreshed = await device_runs(world, home.hub, "session", "refresh")
    assert refreshed.process.returncode == 0
    await restored(world, "relying party", world.relying_party_store, copy)
    again = await device_runs(world, home.hub, "session", "refresh")
    assert failure(again) == (11, "session-over"), "its token is newer than the copy"

    await signs_in(world, home.phone, home.hub)
    copy = copied(world.relying_party_store)
    file = SessionStore(world.state(home.hub)).path(world.relying_party)
    stolen = file.read_bytes()
    assert (await device_runs(world, home.hub, "session", "sign-out")).process.returncode == 0
    await restored(world, "relying party", world.relying_party_store, copy)
    file.write_bytes(stolen)
    file.chmod(0o600)
    assert await Session.of(home, home.hub).get(), "it was over, and is there again"

    *_, statements = told("sqlite3 relying-party.sqlite")
    with closing(sqlite3.connect(world.relying_party_store)) as store:
        store.executescript(statements)
    assert failure(await device_runs(world, home.hub, "session", "refresh")) == (11, "session-over")
    await signs_in(world, home.phone, home.hub)
