"""What docs/how-to/incidents.md tells people to do, done with the programs."""

import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from programs import Program
from world import World

from headless_passkey.rp.session_store import SessionStore
from tests.end_to_end.household import Home, Session, copied, ends, put_back

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("tidy")]

PAGE = Path(__file__).parents[2] / "docs/how-to/incidents.md"


async def registers(world: World, home: Home) -> None:
    companion = await world.companion(home.phone, "--once")
    status, _ = await world.ceremony(home.hub, "register", "--user", f"ada {home.account}")
    assert (status, await ends(companion)) == (0, 0)


async def signs_in(world: World, phone: str, hub: str) -> None:
    companion = await world.companion(phone, "--once")
    status, _ = await world.ceremony(hub, "sign-in")
    assert (status, await ends(companion)) == (0, 0)


async def removes(world: World, home: Home, label: str) -> None:
    await world.run_to_end(
        home.phone, "companion-push", "companion", "remove", label, "--introduced", "--confirm", label,
        "--state", world.state(home.phone), *world.trust,
    )  # fmt: skip


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
async def test_a_lost_phone_is_taken_out_by_another_one_and_hears_by_whom(world: World) -> None:
    home = await Home.make(world, companions=2)
    await registers(world, home)
    lost = await world.companion(home.companions[1])
    await removes(world, home, home.companions[1])
    assert await ends(lost) == 9
    assert failure(lost) == (9, "not-a-member")
    assert lost.failure is not None
    assert home.phone in lost.failure["message"]
    await signs_in(world, home.phone, home.hub)


@pytest.mark.threat("T16")
async def test_the_only_phone_is_lost_and_the_account_is_set_up_anew(world: World, home: Home) -> None:
    await registers(world, home)
    code = await world.run_to_end(
        "operator", "companion-push", "account", "reset", home.account,
        "--store", world.relay_store, "--relay", world.relay,
    )  # fmt: skip
    assert await refused(world, home.hub) == (9, "account-closed")
    new = f"new phone of {home.account}"
    await world.join_companion(new, code)
    left = await device_runs(world, home.hub, "leave")
    assert left.process.returncode == 0
    await world.invite(new, "device", home.hub)
    await signs_in(world, new, home.hub)


@pytest.mark.threat("T16")
async def test_a_stolen_device_asks_nobody_and_its_session_goes_on_until_it_is_signed_out(
    world: World, home: Home
) -> None:
    await registers(world, home)
    await removes(world, home, home.hub)
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

    (statements,) = re.findall(r"^sqlite3 relying-party.sqlite '(.+)'$", PAGE.read_text(), flags=re.MULTILINE)
    with closing(sqlite3.connect(world.relying_party_store)) as store:
        store.executescript(statements)
    assert failure(await device_runs(world, home.hub, "session", "refresh")) == (11, "session-over")
    await signs_in(world, home.phone, home.hub)
