"""A device that is linked with a phone: the relay may be gone, the phone may forget, the companion may be removed. All by programs."""

import json

import pytest
from world import World

from headless_passkey.text.base64url import from_base64url
from tests.end_to_end.household import Home, ends, session_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def linked(world: World, home: Home, companion: str) -> None:
    """The hub registers a passkey on the phone of this companion, and is linked with it."""
    running = await world.companion(companion, "--once", "--links", world.links(companion))
    device = await world.device(home.hub, "register", "--user", f"ada of {home.hub}", "--link")
    assert (await ends(device), await ends(running)) == (0, 0)
    assert "linked" in device.stages


@pytest.mark.threat("T11")
async def test_a_linked_phone_answers_while_the_relay_is_gone_and_no_program_tells_the_secrets(
    world: World, home: Home
) -> None:
    await linked(world, home, home.phone)
    state = ("--state", world.state(home.hub))
    listed = json.loads(await world.run_to_end("list", "headless-passkey", "phones", "list", *state))
    assert (listed["label"], listed["companion_label"]) == ("Software phone", home.phone)
    status = json.loads(await world.run_to_end("status", "headless-passkey", "status", *state))
    assert [phone["link"] for phone in status["phones"]] == [listed["link"]]

    phone = await world.linked_phone(home.phone)
    world.servers["relay"][0].kill()
    await world.servers["relay"][0].wait()
    try:
        device = await world.device(home.hub, "sign-in")
        session = await session_of(device)
        assert await ends(device) == 0
    finally:
        await world.restart("relay")
    assert session["user"]["name"] == f"ada of {home.hub}"
    assert device.stages == [
        *("prepared", "contacting", "advert-heard", "tunnel-joined", "channel-open"),
        *("request-sent", "reply-checked", "completed"),
    ]
    (kept,) = json.loads((world.state(home.hub) / "links.json").read_text())["links"]
    told = json.dumps([listed, status]) + "".join(device.said) + "".join(phone.said)
    for secret in ("link_secret", "contact_id"):
        assert kept[secret] not in told
        assert from_base64url(kept[secret]).hex() not in told.lower()
    assert await phone.stop() == 0


async def test_a_phone_that_has_forgotten_the_device_costs_one_answer_and_the_companion_is_asked(
    world: World, home: Home
) -> None:
    await linked(world, home, home.phone)
    state = world.state(home.hub)
    (kept,) = json.loads((state / "links.json").read_text())["links"]
    await world.run_to_end(
        "phone", "companion-push", "phone", "--forget", from_base64url(kept["link_id"]).hex(), "--links",
        world.links(home.phone), "--credentials", world.passkeys, "--tunnel", world.tunnel, *world.trust,
    )  # fmt: skip
    companion = await world.companion(home.phone, "--once")
    device = await world.device(home.hub, "sign-in")
    assert (await ends(device), await ends(companion)) == (0, 0)
    assert device.stages.index("link-forgotten") < device.stages.index("submitted")
    assert not (state / "links.json").exists()


@pytest.mark.threat("T5")
async def test_a_link_goes_with_the_companion_through_which_it_came_although_its_phone_waits(
    world: World, tidy: None
) -> None:
    home = await Home.make(world, companions=2)
    tablet = home.companions[1]
    await linked(world, home, tablet)
    await home.remove(tablet)
    phone = await world.linked_phone(tablet)
    companion = await world.companion(home.phone, "--once")
    device = await world.device(home.hub, "sign-in")
    assert (await ends(device), await ends(companion)) == (0, 0)
    assert device.stages[0] == "link-forgotten"
    assert "contacting" not in device.stages
    assert "phone-connecting" not in phone.stages
    assert not (world.state(home.hub) / "links.json").exists()
