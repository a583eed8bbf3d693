"""A device expects its first user at a relying party, by programs: who is refused, added, taken once and forgotten (T3)."""

import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from programs import Program
from world import World

from headless_passkey.rp.session_store import SessionStore
from headless_passkey.rp.users import PinnedUsers
from headless_passkey.trust.ring import Role
from tests.end_to_end.household import Home, ends, handle_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.threat("T3")]


async def ceremony(
    world: World, home: Home, user: str, kind: str, *words: str
) -> tuple[int, dict[str, Any] | None, Program]:
    """A ceremony of the home's hub, answered by a phone on which `user` has the only passkey."""
    passkeys = world.folder / f"{user} of {home.account}.json"
    companion = await world.companion(home.phone, "--credentials", passkeys)
    device = await world.device(home.hub, kind, *words)
    output = await device.output()
    status = await ends(device)
    await companion.stop()
    return status, json.loads(output) if output else None, device


def account(device: Program) -> dict[str, Any]:
    (said,) = [json.loads(line)["account"] for line in device.said if '"account"' in line]
    assert isinstance(said, dict)
    return said


@pytest_asyncio.fixture(loop_scope="module")
async def hub(world: World, home: Home) -> AsyncIterator[Home]:
    """A home whose hub has registered ada, and on one more phone eve's passkey, which another device has made."""
    status, _, device = await ceremony(world, home, "ada", "register", "--user", f"ada {home.account}")
    assert (status, account(device)["user_pinned"]) == (0, True)
    other = await Home.make(world)
    passkeys = world.folder / f"eve of {home.account}.json"
    companion = await world.companion(other.phone, "--once", "--credentials", passkeys)
    status, _ = await world.ceremony(other.hub, "register", "--user", f"eve {home.account}")
    assert (status, await companion.wait()) == (0, 0)
    yield home


def kept(world: World, home: Home) -> str:
    session = SessionStore(world.state(home.hub)).read(world.relying_party)
    assert session is not None
    return session.opened.user_name


def pinned(world: World, home: Home) -> list[str | None]:
    return [user.name for user in PinnedUsers(world.state(home.hub), "localhost").read()]


async def test_another_user_is_refused_and_the_relying_party_hears_nothing(world: World, hub: Home) -> None:
    before = SessionStore(world.state(hub.hub)).read(world.relying_party)
    status, session, device = await ceremony(world, hub, "eve", "sign-in")
    assert (status, session) == (8, None)
    assert device.failure is not None
    assert device.failure["reason"] == "unexpected-user"
    assert "headless-passkey users list" in device.failure["advice"]
    assert SessionStore(world.state(hub.hub)).read(world.relying_party) == before
    status, session, device = await ceremony(world, hub, "ada", "sign-in")
    assert (status, account(device)["user_checked"], account(device)["user_pinned"]) == (0, True, False)
    assert pinned(world, hub) == [f"ada {hub.account}"]


async def test_a_second_registration_is_refused_before_anybody_is_asked(world: World, hub: Home) -> None:
    status, _, device = await ceremony(world, hub, "bob", "register", "--user", f"bob {hub.account}")
    assert status == 8
    assert device.stages == []
    assert not (world.folder / f"bob of {hub.account}.json").exists()
    status, _, device = await ceremony(
        world, hub, "bob", "register", "--user", f"bob {hub.account}", "--add-user"
    )
    assert (status, account(device)["user_pinned"]) == (0, True)
    for user in ("ada", "bob"):
        assert (await ceremony(world, hub, user, "sign-in"))[0] == 0
    assert pinned(world, hub) == [f"ada {hub.account}", f"bob {hub.account}"]


async def test_one_more_is_added_when_its_passkey_answers(world: World, hub: Home) -> None:
    status, session, _ = await ceremony(world, hub, "eve", "sign-in", "--add-user")
    assert status == 0
    assert session is not None
    assert PinnedUsers(world.state(hub.hub), "localhost").read()[1].handle == handle_of(session)
    assert (await ceremony(world, hub, "eve", "sign-in"))[0] == 0


async def test_whoever_answers_is_taken_once_and_a_user_who_is_named_too(world: World, hub: Home) -> None:
    status, _, device = await ceremony(world, hub, "eve", "sign-in", "--any-user")
    assert (status, account(device)["user_checked"]) == (0, False)
    status, _, device = await ceremony(world, hub, "eve", "sign-in", "--user", f"eve {hub.account}")
    assert (status, account(device)["user_checked"]) == (0, True)
    assert kept(world, hub) == f"eve {hub.account}"
    assert pinned(world, hub) == [f"ada {hub.account}"]
    assert (await ceremony(world, hub, "eve", "sign-in"))[0] == 8


async def test_a_pinned_name_that_is_somebody_elses_now_is_refused(world: World, hub: Home) -> None:
    """As at a relying party that gives a name away again: the file says so here."""
    file = PinnedUsers(world.state(hub.hub), "localhost").path
    file.write_text(file.read_text().replace(f"ada {hub.account}", f"eve {hub.account}"))
    status, _, device = await ceremony(world, hub, "eve", "sign-in", "--user", f"eve {hub.account}")
    assert status == 8
    assert device.failure is not None
    assert device.failure["reason"] == "unexpected-user"


async def take_over(world: World, home: Home) -> Home:
    """With a copy of the owner's state let a companion in and remove the owner; returns the home as the thief has it."""
    copy, thiefs = f"copy of {home.phone}", f"thief of {home.account}"
    shutil.copytree(world.state(home.phone), world.state(copy))
    owner = home.identity(home.phone).keys.name
    await replace(home, companions=(copy, home.phone, thiefs)).let_in(Role.COMPANION, thiefs)
    await home.membership(thiefs).remove(owner)
    return replace(home, companions=(thiefs,))


@pytest.mark.threat("T16")
async def test_whoever_takes_the_account_over_does_not_get_the_device_into_an_account_of_their_own(
    world: World, hub: Home
) -> None:
    """A thief with a copy of the owner's state lets a companion in and removes the owner; the device asks that companion."""
    taken_over = await take_over(world, hub)
    status, session, device = await ceremony(world, taken_over, "eve", "sign-in")
    assert "claimed" in device.stages
    assert (status, session) == (8, None)
    assert device.failure is not None
    assert device.failure["reason"] == "unexpected-user"
    assert kept(world, hub) == f"ada {hub.account}"


@pytest.mark.threat("T16")
async def test_whoever_was_put_out_has_the_account_reset_and_the_device_joins_the_new_one(
    world: World, hub: Home
) -> None:
    taken_over = await take_over(world, hub)
    _, told = await hub.membership(hub.phone).members()
    assert told is None, "the owner reads the ring that took it out"
    code = await world.run_to_end(
        "reset", "companion-push", "account", "reset", hub.account, "--store", world.relay_store,
        "--relay", world.relay,
    )  # fmt: skip
    device = await world.device(hub.hub, "sign-in")
    assert await ends(device) == 9
    assert device.failure is not None
    assert device.failure["reason"] == "account-closed"
    for companion in (hub.phone, taken_over.phone):
        _, told = await hub.membership(companion).members()
        assert told is not None
        assert told.reason == "account-closed"
    leaving = await world.run(
        "leave", "headless-passkey", "leave", "--anyway", "--state", world.state(hub.hub), *world.trust
    )
    assert await ends(leaving) == 0
    anew = replace(hub, companions=(f"new {hub.phone}",))
    await anew.membership(anew.phone).join(code.strip(), label=anew.phone)
    await anew.let_in(Role.DEVICE, hub.hub)
    assert (await ceremony(world, anew, "ada", "sign-in"))[0] == 0
    assert (await ceremony(world, anew, "eve", "sign-in"))[0] == 8, "the device still expects its user"


@pytest.mark.threat("T16")
@pytest.mark.threat("T2")
async def test_the_owner_takes_out_a_stolen_companion_and_whom_it_let_in_by_one_command(
    world: World, hub: Home
) -> None:
    tablet, copy, thiefs = (f"{what} of {hub.account}" for what in ("tablet", "copy of the tablet", "thief"))
    await hub.let_in(Role.COMPANION, tablet)
    shutil.copytree(world.state(tablet), world.state(copy))
    await replace(hub, companions=(copy, hub.phone, tablet)).let_in(Role.COMPANION, thiefs)
    await world.run_to_end(
        hub.phone, "companion-push", "companion", "remove", tablet, "--introduced", "--confirm", tablet,
        "--state", world.state(hub.phone), *world.trust,
    )  # fmt: skip
    ring, why = await hub.membership(hub.phone).members()
    assert why is None
    assert [member.label for member in ring.members] == [hub.phone, hub.hub]
    for stolen in (copy, thiefs):
        _, told = await hub.membership(stolen).members()
        assert told is None, "it reads the ring that took it out"
        listening = await world.start_companion(stolen)
        assert await ends(listening) == 9
        assert listening.failure is not None
        assert listening.failure["reason"] == "not-a-member"
    assert (await ceremony(world, hub, "ada", "sign-in"))[0] == 0


async def test_users_are_listed_kept_by_a_device_that_leaves_and_forgotten(
    world: World, hub: Home, tmp_path: Path
) -> None:
    state = world.state(hub.hub)
    shown = await world.run_to_end("list", "headless-passkey", "users", "list", "--state", state)
    (user,) = map(json.loads, shown.splitlines())
    assert (user["rp_id"], user["user_name"]) == ("localhost", f"ada {hub.account}")
    status = await world.run_to_end("status", "headless-passkey", "status", "--state", state)
    assert json.loads(status)["users"] == [user]
    leaving = await world.run("leave", "headless-passkey", "leave", "--state", state, *world.trust)
    assert await ends(leaving) == 0
    assert any("still expects its users at localhost" in line for line in leaving.said)
    assert pinned(world, hub) == [f"ada {hub.account}"]
    words = ("users", "forget", "--rp-id", "localhost", "--state", state)
    await world.run_to_end("forget", "headless-passkey", *words)
    assert pinned(world, hub) == []
    assert await ends(await world.run("forget", "headless-passkey", *words)) == 2


async def test_options_of_an_application_are_answered_for_pinned_users_only(
    world: World, hub: Home, tmp_path: Path
) -> None:
    """Whether the application accepts is not known, so nobody is pinned by it."""
    options = tmp_path / "options.json"
    options.write_text(json.dumps({"challenge": "AAAA", "rpId": "localhost"}))
    asked = ("--options", str(options), "--origin", world.relying_party)

    async def sign_in(user: str, *words: str) -> int:
        passkeys = world.folder / f"{user} of {hub.account}.json"
        companion = await world.companion(hub.phone, "--credentials", passkeys)
        device = await world.run(
            hub.hub, "headless-passkey", "sign-in", *asked, "--state", world.state(hub.hub),
            "--radio", world.radio, "--tunnel", world.tunnel, *world.trust, *words,
        )  # fmt: skip
        await device.output()
        status = await ends(device)
        await companion.stop()
        return status

    assert [await sign_in("ada"), await sign_in("eve"), await sign_in("eve", "--any-user")] == [0, 8, 0]
    assert await sign_in("ada", "--add-user") == 2
    assert pinned(world, hub) == [f"ada {hub.account}"]
