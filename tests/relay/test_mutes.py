"""A device of which somebody has said "not me" asks nobody any more, until a companion ends that."""

import asyncio
from pathlib import Path

import pytest

from tests.relay.household import Caller, Household, Relay, fresh_id, running_relay
from tests.relay.test_authority import holding
from tests.trust.people import device


async def muted_by(phone: Caller, frame: Caller, *others: Caller) -> str:
    """A request of `frame` that `phone` declines as not its user's."""
    name = fresh_id()
    assert (await frame.submit(phone, *others, name=name)).status == 201
    assert (await phone.act(frame, name, "declined", "not-me")).status == 200
    return name


async def list_of(phone: Caller) -> list[tuple[str, str]]:
    reply = await phone.get("/v1/mutes")
    assert reply.status == 200
    return [(each["device"], each["by"]) for each in reply.body["mutes"]]


@pytest.mark.threat("T6")
async def test_a_device_is_muted_by_not_me_until_any_companion_ends_that(home: Household) -> None:
    (anna, bert), (frame,) = home.companions, home.devices
    name = await muted_by(anna, frame, bert)
    assert (await frame.status(name))["reason"] == "not-me"
    refused = await frame.submit(anna, bert)
    assert (refused.status, refused.problem) == (403, "device-muted")
    assert set(refused.body) == {"type", "title", "status"}, "nobody's name"
    assert (await frame.post("/v1/words/call", {})).problem == "device-muted"
    assert (await frame.submit(anna, bert, name=name)).status == 200, "the request that there was"
    assert await list_of(bert) == [(frame.name, anna.name)]
    assert (await bert.call("DELETE", f"/v1/mutes/{frame.name}")).status == 200
    assert (await bert.call("DELETE", f"/v1/mutes/{frame.name}")).status == 200, "again"
    assert await list_of(anna) == []
    assert (await frame.submit(anna, bert)).status == 201


@pytest.mark.parametrize("reason", [None, "on-the-phone", "not-mee"])
async def test_a_decline_for_another_reason_mutes_nobody(home: Household, reason: str | None) -> None:
    (anna, _), (frame,) = home.companions, home.devices
    name = fresh_id()
    await frame.submit(anna, name=name)
    assert (await anna.act(frame, name, "declined", reason)).status == 200
    assert await list_of(anna) == []
    assert (await frame.submit(anna)).status == 201


@pytest.mark.parametrize("event", ["failed", "released"])
async def test_not_me_mutes_with_a_decline_only(home: Household, event: str) -> None:
    (anna, bert), (frame,) = home.companions, home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    assert (await anna.act(frame, name, event, "not-me")).status == 200
    assert await list_of(anna) == []


@pytest.mark.threat("T6")
async def test_not_me_counts_also_after_the_no_of_another(home: Household) -> None:
    (anna, bert), (frame,) = home.companions, home.devices
    name, newer = fresh_id(), fresh_id()
    await frame.submit(anna, bert, name=name)
    await anna.act(frame, name, "declined")
    await frame.submit(anna, bert, name=newer)
    assert (await bert.act(frame, name, "declined", "not-me")).status == 200
    assert await list_of(anna) == [(frame.name, bert.name)]
    status = await frame.status(newer)
    assert (status["state"], status["reason"]) == ("cancelled", "muted")
    assert await anna.inbox() == []


@pytest.mark.threat("T16")
async def test_all_companions_are_told_of_a_mute_and_of_its_end_at_once(
    relay: Relay, home: Household
) -> None:
    (anna, bert), (frame,) = home.companions, home.devices
    name = fresh_id()
    await frame.submit(anna, name=name)  # of which bert knows nothing
    for muted in ([frame.name], []):
        cursor = (await bert.get("/v1/inbox")).body["cursor"]
        held = await holding(relay, bert, f"/v1/inbox?cursor={cursor}&wait=25")
        if muted:
            await anna.act(frame, name, "declined", "not-me")
        else:
            await anna.call("DELETE", f"/v1/mutes/{frame.name}")
        async with asyncio.timeout(20):
            assert (await held).body["muted"] == muted
        assert (await anna.get("/v1/inbox")).body["muted"] == muted


@pytest.mark.threat("T17")
async def test_nobody_but_a_companion_of_the_ring_mutes_or_ends_a_mute(relay: Relay, home: Household) -> None:
    (anna, bert), (frame,) = home.companions, home.devices
    other = await relay.household("bob")
    name = fresh_id()
    await frame.submit(anna, name=name)
    for stranger in (other.companions[0], frame, bert):  # bert has no envelope of it
        assert (await stranger.act(frame, name, "declined", "not-me")).problem == "not-found"
    assert await list_of(anna) == []
    await anna.act(frame, name, "declined", "not-me")
    assert (await frame.call("DELETE", f"/v1/mutes/{frame.name}")).problem == "not-found"
    assert (await frame.get("/v1/mutes")).problem == "not-found"
    assert (await other.companions[0].call("DELETE", f"/v1/mutes/{frame.name}")).status == 200
    assert await list_of(other.companions[0]) == []
    assert (await frame.submit(anna)).problem == "device-muted", "another account ends none"


@pytest.mark.threat("T6")
async def test_a_companion_mutes_a_device_without_a_request_to_decline(home: Household) -> None:
    (anna, bert), (frame,) = home.companions, home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    assert (await bert.put(f"/v1/mutes/{frame.name}", {})).status == 201
    assert (await anna.put(f"/v1/mutes/{frame.name}", {})).status == 200, "again"
    assert await list_of(anna) == [(frame.name, bert.name)]
    status = await frame.status(name)
    assert (status["state"], status["reason"]) == ("cancelled", "muted")
    assert (await frame.submit(anna)).problem == "device-muted"


@pytest.mark.threat("T16")
async def test_all_companions_are_told_at_once_of_a_device_that_one_has_muted(
    relay: Relay, home: Household
) -> None:
    (anna, bert), (frame,) = home.companions, home.devices
    cursor = (await bert.get("/v1/inbox")).body["cursor"]
    held = await holding(relay, bert, f"/v1/inbox?cursor={cursor}&wait=25")
    assert (await anna.put(f"/v1/mutes/{frame.name}", {})).status == 201
    async with asyncio.timeout(20):
        assert (await held).body["muted"] == [frame.name]


@pytest.mark.threat("T17")
async def test_a_companion_mutes_only_devices_of_its_account(relay: Relay, home: Household) -> None:
    (anna, bert), (frame,) = home.companions, home.devices
    other = await relay.household("bob")
    (lamp,) = other.devices
    for whom in (bert, anna, lamp):
        assert (await anna.put(f"/v1/mutes/{whom.name}", {})).problem == "not-found"
    for stranger in (other.companions[0], frame):
        assert (await stranger.put(f"/v1/mutes/{frame.name}", {})).problem == "not-found"
    assert (await anna.put("/v1/mutes/x", {})).problem == "invalid-request"
    assert await list_of(anna) == await list_of(other.companions[0]) == []


async def test_one_muted_device_mutes_no_other(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r") as relay:
        home = await relay.household(devices=2)
        anna, (one, other) = home.companions[0], home.devices
        await muted_by(anna, one)
        assert (await other.submit(anna)).status == 201


async def test_a_mute_ends_with_the_membership_of_the_device(relay: Relay, home: Household) -> None:
    (anna, bert), (frame,) = home.companions, home.devices
    await muted_by(anna, frame)
    again = relay.caller(device("frame again"))
    await home.append(anna.person, bert.person, frame.person, again.person)
    assert (await frame.submit(anna)).problem == "device-muted", "any other change of the ring"
    assert (await again.submit(anna)).status == 201, "another member"
    await home.append(anna.person, bert.person, again.person)
    assert await list_of(anna) == []


async def test_a_mute_stays_when_its_companion_is_gone_and_over_a_restart(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r") as relay:
        home = await relay.household()
        (anna, bert), (frame,) = home.companions, home.devices
        await muted_by(bert, frame)
        await home.append(anna.person, frame.person)
    async with running_relay(tmp_path / "r") as relay:
        anna, frame = relay.caller(anna.person), relay.caller(frame.person)
        assert await list_of(anna) == [(frame.name, bert.name)]
        assert (await frame.submit(anna)).problem == "device-muted"
