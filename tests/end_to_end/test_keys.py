"""One key for the relay and one for each relying party, by programs: no two servers see the same key of a device."""

import json

import pytest
from world import World

from companion_push.companion.keys import CompanionState
from headless_passkey.rp.key_store import KeyStore
from headless_passkey.rp.session_store import SessionStore
from headless_passkey.trust.signing import thumbprint
from tests.end_to_end.household import Home, ends

pytestmark = pytest.mark.asyncio(loop_scope="module")


def seen_by(world: World, server: str) -> bytes:
    """All that a server has on disk, its write-ahead log included."""
    return b"".join(file.read_bytes() for file in sorted(world.folder.glob(f"{server}.db*")))


@pytest.mark.threat("T13")
async def test_relay_and_two_relying_parties_see_three_keys_before_and_after_a_restart(
    world: World, home: Home
) -> None:
    other = await world.serve(
        "other party", "relying-party", "serve", "--store", world.folder / "other-party.db",
        "--rp-id", "localhost", "--rp-name", "Other",
    )  # fmt: skip
    companion = await world.companion(home.phone)
    state, name = world.state(home.hub), home.enrolment(home.hub).name
    servers = {world.relying_party: "relying-party", other: "other-party"}

    async def names() -> dict[str, str]:
        """The thumbprint that each session is bound to, as the device says and as each server has it."""
        found = {}
        for party, server in servers.items():
            kept = SessionStore(state).read(party)
            assert kept is not None
            found[party] = kept.key_name
            everybody = [name, *(each for each in found.values())]
            known = [each for each in everybody if each.encode() in seen_by(world, server)]
            assert known == [kept.key_name]
        assert name.encode() in seen_by(world, "relay")
        assert not any(each.encode() in seen_by(world, "relay") for each in found.values())
        assert len({name, *found.values()}) == 3
        return found

    for party in servers:  # the user of the first is registered anew at the second, by its user's own will
        device = await world.device(home.hub, "register", "--rp", party, "--user", home.account, "--add-user")
        assert await ends(device) == 0
    before = await names()
    for server in ("relay", "relying party", "other party"):
        world.servers[server][0].process.terminate()
        await world.servers[server][0].wait()
        await world.restart(server)
    for party in servers:
        used = await world.run(
            "refresh", "headless-passkey", "session", "refresh", "--rp", party, "--state", state, *world.trust
        )  # fmt: skip
        assert await ends(used) == 0
    device = await world.device(
        home.hub, "sign-in", "--user", home.account
    )  # both passkeys are for localhost
    assert await ends(device) == 0
    assert await names() == before
    said = json.loads(await world.run_to_end("status", "headless-passkey", "status", "--state", state))
    assert said["keys"] == before
    assert said["device"] == name
    await companion.stop()


@pytest.mark.threat("T16")
async def test_a_companion_with_an_old_key_replaces_it_and_signs_in_and_erases_the_old_one(
    world: World,
) -> None:
    home = await Home.make(world)
    state, file = CompanionState(world.state(home.phone)), world.state(home.phone) / "companion.json"
    old, version = json.loads(file.read_bytes())["hpke_key"], state.chain().head.version
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"hpke_since": 1}))
    companion = await world.companion(home.phone)
    await companion.stage("key-replaced")
    assert state.chain().head.version == version + 1
    status, _ = await world.ceremony(home.hub, "register", "--user", home.account)
    assert status == 0
    assert "refused" not in companion.stages
    await companion.stop()
    kept = json.loads(file.read_bytes())
    assert kept["previous_hpke_key"]["hpke_key"] == old
    kept["previous_hpke_key"]["until"] = 1
    file.write_text(json.dumps(kept))
    again = await world.companion(home.phone)
    assert await ends(await world.device(home.hub, "sign-in")) == 0
    await again.stop()
    assert old not in file.read_text()
    assert state.chain().head.version == version + 1


async def test_leaving_forgets_the_keys_of_relying_parties_too(world: World, home: Home) -> None:
    companion = await world.companion(home.phone, "--once")
    status, _ = await world.ceremony(home.hub, "register", "--user", home.account)
    assert (status, await companion.wait()) == (0, 0)
    (before,) = KeyStore(world.state(home.hub)).all().values()
    assert (
        await ends(
            await world.run(
                "leave", "headless-passkey", "leave", "--state", world.state(home.hub), *world.trust
            )
        )
        == 0
    )
    assert KeyStore(world.state(home.hub)).all() == {}
    after = await KeyStore(world.state(home.hub)).key(world.relying_party)
    assert thumbprint(after.public_key) != thumbprint(before.public_key)
