"""Requests over real HTTP with real proofs: submitting, claiming, waiting, and every refusal."""

import asyncio
import gzip
import json
import logging
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from companion_push.relay import accounts, app, database, mailbox, operations
from companion_push.relay.app import RELAY
from companion_push.relay.limits import Quota, Rate
from companion_push.relay.messages import MAX_BODY
from companion_push.relay.proofs import STEP
from companion_push.relay.stores import open_store
from companion_push.relay.transaction import Transaction
from headless_passkey.net.proof import make_proof
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.ring import Ring
from headless_passkey.trust.word import Claim, Word
from program_parts.base64url import base64url
from tests.relay.household import (
    SEALED,
    Caller,
    Household,
    Relay,
    Reply,
    fresh_id,
    rates,
    running_relay,
)
from tests.relay.stores import ON_POSTGRES, of_files, of_one_process, place_of
from tests.trust.people import companion, device, found, grow

SOON = 20.0  # seconds: less than the 25 of a hold


async def eventually_held(relay: Relay, path: str, caller: Caller) -> asyncio.Task[Reply]:
    """A request that the relay is holding."""
    before = await held(relay)
    task = asyncio.ensure_future(caller.get(path))
    async with asyncio.timeout(SOON):
        while await held(relay) == before:
            assert not task.done(), task.result()
    return task


async def held(relay: Relay) -> int:
    """How many requests are held, once what was sent before has reached the relay."""
    assert (await relay.session.get(relay.url + "/livez")).status == 200
    return len(relay.held_requests)


async def answer(task: asyncio.Task[Reply]) -> Reply:
    async with asyncio.timeout(SOON):
        return await task


# seconds more until a claim ends, where its record notes calls
NOTED = mailbox.RENEWED if ON_POSTGRES else 0

# The life of a request


async def test_a_request_goes_from_the_device_to_the_claimer_and_to_its_end(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    submitted = await frame.submit(anna, bert, name=name)
    assert submitted.status == 201
    assert submitted.body == {
        "id": name,
        "state": "pending",
        "version": 1,
        "expires_at": submitted.body["expires_at"],
        "now": submitted.body["now"],
        "claim": None,
        "ring": {"version": home.ring.version, "hash": base64url(home.ring.hash)},
        "reason": None,
        "failures": [],
        "notified": submitted.body["notified"],
    }
    assert submitted.body["expires_at"] - submitted.body["now"] in (299, 300)

    (item,) = await anna.inbox()
    assert item == {
        "device": frame.name,
        "id": name,
        "state": "delivered",
        "version": 2,
        "sealed": SEALED,
        "submitted_at": item["submitted_at"],
        "expires_at": submitted.body["expires_at"],
        "claimed_by": None,
        "stays": False,
    }
    claimed = await anna.act(frame, name, "claimed")
    assert (claimed.status, claimed.body["state"], claimed.body["version"]) == (200, "claimed", 3)
    lost = await bert.act(frame, name, "claimed")
    assert (lost.status, lost.problem) == (409, "already-claimed")
    assert (lost.body["state"], lost.body["version"]) == ("claimed", 3)
    assert await frame.claimer(name) == anna.name
    assert (await bert.inbox())[0]["claimed_by"] == anna.name
    assert (await anna.act(frame, name, "opened")).body["state"] == "opened"
    completed = await frame.tell(name, "completed")
    assert (completed.status, completed.body["state"], completed.body["version"]) == (200, "completed", 5)
    assert await anna.inbox() == []
    assert await bert.inbox() == []


async def test_the_same_submission_again_is_the_same_request(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    assert (await frame.submit(anna, name=name)).status == 201
    await anna.inbox()
    again = await frame.submit(anna, name=name)
    assert (again.status, again.body["state"]) == (200, "delivered")
    other = await frame.submit(bert, name=name)
    assert (other.status, other.problem) == (409, "request-conflict")


async def test_an_id_belongs_to_its_device(relay: Relay) -> None:
    home = await relay.household(devices=2)
    one, two = home.devices
    name = fresh_id()
    assert (await one.submit(home.companions[0], name=name)).status == 201
    assert (await two.submit(home.companions[1], name=name)).status == 201
    await home.companions[0].act(one, name, "claimed")
    assert (await two.status(name))["state"] == "pending"


async def test_a_newer_request_of_the_same_device_supersedes_the_older(home: Household) -> None:
    anna, _ = home.companions
    (frame,) = home.devices
    old, new = fresh_id(), fresh_id()
    await frame.submit(anna, name=old)
    await frame.submit(anna, name=new)
    assert (await frame.status(old))["state"] == "superseded"
    assert [item["id"] for item in await anna.inbox()] == [new]
    refused = await anna.act(frame, old, "claimed")
    assert (refused.status, refused.problem, refused.body["state"]) == (409, "state-conflict", "superseded")


async def test_a_decline_ends_it_for_everybody_with_its_reason(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    assert (await anna.act(frame, name, "declined", "not-me")).status == 200
    status = await frame.status(name)
    assert (status["state"], status["reason"]) == ("declined", "not-me")
    assert await bert.inbox() == []


async def test_a_failure_is_one_companions_until_all_have_failed(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    await anna.act(frame, name, "failed", "stale-ring")
    status = await frame.status(name)
    assert status["state"] == "pending"
    assert status["failures"] == [{"by": anna.name, "reason": "stale-ring"}]
    assert await anna.inbox() == []
    assert len(await bert.inbox()) == 1
    await bert.act(frame, name, "failed")
    status = await frame.status(name)
    assert (status["state"], status["reason"]) == ("failed", None)
    assert status["failures"][1] == {"by": bert.name, "reason": "unspecified"}


@pytest.mark.parametrize("event", ["cancelled", "failed"])
async def test_the_device_ends_its_request(home: Household, event: str) -> None:
    anna, _ = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, name=name)
    assert (await frame.tell(name, event, "gave-up")).body["state"] == event
    assert (await anna.act(frame, name, "claimed")).problem == "state-conflict"
    assert (await frame.tell(name, "completed")).problem == "state-conflict"


@pytest.mark.threat("T5")
async def test_a_clock_that_is_set_back_lets_no_request_wait_for_as_long(
    relay: Relay, home: Household
) -> None:
    name = fresh_id()
    frame, anna = home.devices[0], home.companions[0]
    await frame.submit(anna, name=name)
    relay.clock.ahead -= 3600
    await relay.app[RELAY].run("", operations.sweep(None))
    assert (await frame.status(name))["state"] == "pending"
    relay.clock.ahead += 301
    assert (await frame.status(name))["state"] == "expired"


@pytest.mark.threat("T5")
async def test_expiry_ends_claims_by_the_relays_clock(relay: Relay, home: Household) -> None:
    anna, _ = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, name=name, expires_in=40)
    relay.clock.ahead += 41
    assert await anna.inbox() == []
    refused = await anna.act(frame, name, "claimed")
    assert (refused.status, refused.problem) == (410, "expired")
    assert (await frame.status(name))["state"] == "expired"


@pytest.mark.threat("T5")
async def test_a_claimed_request_may_finish_within_its_grace_and_not_after(
    relay: Relay, home: Household
) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    await anna.act(frame, name, "claimed")
    for _ in range(6):
        relay.clock.ahead += 50
        await anna.inbox()
    relay.clock.ahead += 1
    assert (await bert.act(frame, name, "claimed")).problem == "already-claimed"
    assert (await anna.act(frame, name, "opened")).status == 200
    relay.clock.ahead += 120
    assert (await frame.tell(name, "completed")).problem == "expired"


# What every companion that fetched it has refused


async def test_what_all_who_fetched_it_refused_is_over_soon_unless_another_fetches_it(
    relay: Relay, home: Household
) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    await anna.inbox()
    await anna.act(frame, name, "failed", "clock-skew")
    relay.clock.ahead += 4
    assert (await frame.status(name))["state"] == "delivered"
    relay.clock.ahead += 5
    status = await frame.status(name)
    assert (status["state"], status["reason"]) == ("failed", "clock-skew")
    assert await bert.inbox() == []

    await frame.submit(anna, bert, name=(name := fresh_id()))
    await anna.inbox()
    await anna.act(frame, name, "failed", "clock-skew")
    assert len(await bert.inbox()) == 1
    relay.clock.ahead += 200
    assert (await frame.status(name))["state"] == "delivered"
    assert (await bert.act(frame, name, "claimed")).status == 200


async def test_a_waiting_device_is_woken_when_its_request_is_given_up(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "LAST_CHANCE", 0.5)
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    await anna.inbox()
    version = (await anna.act(frame, name, "failed", "cannot-open")).body["version"]
    reply = await asyncio.wait_for(frame.get(f"/v1/requests/{name}?version={version}&wait=25"), 20)
    assert (reply.body["state"], reply.body["reason"]) == ("failed", "cannot-open")


# Claims that are given back, or whose holder has vanished


async def test_a_claim_that_is_given_back_goes_to_whoever_wants_it(relay: Relay, home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    await anna.act(frame, name, "claimed")
    version = (await frame.status(name))["version"]
    waiting = await eventually_held(relay, f"/v1/requests/{name}?version={version}&wait=25", frame)
    assert (await bert.act(frame, name, "released")).problem == "already-claimed"
    released = await anna.act(frame, name, "released")
    assert (released.status, released.body["state"]) == (200, "delivered")
    status = (await answer(waiting)).body
    assert (status["state"], status["claim"], status["failures"]) == ("delivered", None, [])
    assert [item["claimed_by"] for item in await bert.inbox()] == [None]
    assert (await bert.act(frame, name, "claimed")).status == 200
    assert (await anna.act(frame, name, "claimed")).problem == "already-claimed"


async def test_a_holder_that_makes_no_call_loses_its_claim_to_whoever_comes(
    relay: Relay, home: Household
) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    await anna.act(frame, name, "claimed")
    relay.clock.ahead += 50
    await anna.get("/v1/ring")  # any call counts
    relay.clock.ahead += 50
    assert await frame.claimer(name) == anna.name
    relay.clock.ahead += 11 + NOTED
    status = await frame.status(name)
    assert (status["state"], status["claim"]) == ("delivered", None)
    assert status["failures"] == [{"by": anna.name, "reason": "vanished"}]
    assert (await bert.act(frame, name, "claimed")).status == 200
    assert await frame.claimer(name) == bert.name


async def test_a_holder_that_vanished_may_claim_again(relay: Relay, home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    await anna.act(frame, name, "claimed")
    relay.clock.ahead += 61 + NOTED
    assert [item["state"] for item in await anna.inbox()] == ["delivered"]
    assert (await anna.act(frame, name, "opened")).problem == "state-conflict"
    assert (await anna.act(frame, name, "claimed")).status == 200
    status = await frame.status(name)
    assert (status["claim"]["by"], status["failures"]) == (anna.name, [])


@pytest.mark.parametrize("stays", [True, False])
async def test_after_it_was_opened_only_who_said_that_it_stays_may_vanish(
    relay: Relay, home: Household, *, stays: bool
) -> None:
    anna, _ = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, name=name)
    await anna.act(frame, name, "claimed")
    assert (await anna.act(frame, name, "opened", stays=stays)).body["state"] == "opened"
    assert [item["stays"] for item in await anna.inbox()] == [stays]
    relay.clock.ahead += 61 + NOTED
    assert (await frame.status(name))["state"] == ("delivered" if stays else "opened")


async def test_who_waits_is_woken_when_the_holder_has_vanished(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", lease=1) as relay:
        home = await relay.household()
        anna, bert = home.companions
        (frame,) = home.devices
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        await anna.act(frame, name, "claimed")
        seen = await bert.get("/v1/inbox")
        (item,) = seen.body["requests"]
        inbox = asyncio.ensure_future(bert.get(f"/v1/inbox?cursor={seen.body['cursor']}&wait=25"))
        path = f"/v1/requests/{name}?version={item['version']}&wait=25"
        status = (await asyncio.wait_for(frame.get(path), 20)).body
        assert (status["state"], status["failures"][0]["reason"]) == ("delivered", "vanished")
        (item,) = (await asyncio.wait_for(inbox, 20)).body["requests"]
        assert (item["state"], item["claimed_by"]) == ("delivered", None)


@of_one_process
async def test_a_call_that_is_held_keeps_the_claim_as_long_as_it_is_open(
    relay: Relay, home: Household
) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    await anna.act(frame, name, "claimed")
    cursor = (await anna.get("/v1/inbox")).body["cursor"]
    waiting = await eventually_held(relay, f"/v1/inbox?cursor={cursor}&wait=25", anna)
    while not relay.is_held(anna.name):
        await held(relay)
    relay.clock.ahead += 100
    assert (await frame.status(name))["state"] == "claimed"
    waiting.cancel()
    while relay.is_held(anna.name):
        await held(relay)
    relay.clock.ahead += 59
    assert (await frame.status(name))["state"] == "claimed"
    relay.clock.ahead += 2
    assert (await frame.status(name))["state"] == "delivered"


async def test_a_relay_that_was_away_blames_nobody(tmp_path: Path) -> None:
    name = fresh_id()
    async with running_relay(tmp_path / "s") as relay:
        home = await relay.household()
        anna, frame = home.companions[0].person, home.devices[0].person
        await home.devices[0].submit(home.companions[0], name=name)
        await home.companions[0].act(home.devices[0], name, "claimed")
    async with running_relay(tmp_path / "s", ahead=100) as relay:
        assert await relay.caller(frame).claimer(name) == anna.name
        relay.clock.ahead += 61 + NOTED
        assert (await relay.caller(frame).status(name))["state"] == "delivered"


@pytest.mark.threat("T5")
async def test_a_companion_that_was_removed_does_not_keep_its_claim_by_calling(
    relay: Relay, home: Household
) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    await bert.act(frame, name, "claimed")
    await home.append(anna.person, frame.person)
    relay.clock.ahead += 40
    assert (await bert.get("/v1/inbox")).problem == "not-found"
    relay.clock.ahead += 21
    assert (await frame.status(name))["state"] == "delivered"


@pytest.mark.parametrize("event", ["claimed", "released", "declined", "failed"])
async def test_only_who_opens_says_whether_it_stays(home: Household, event: str) -> None:
    anna, _ = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, name=name)
    for stays in (True, False):
        assert (await anna.act(frame, name, event, stays=stays)).problem == "invalid-request"


async def test_the_ceiling_of_the_relay_shortens_what_a_device_asks_for(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", ceiling=7) as relay:
        home = await relay.household()
        body = (await home.devices[0].submit(home.companions[0], expires_in=300)).body
        assert body["expires_at"] - body["now"] in (6, 7)


async def test_an_outcome_stays_readable_for_five_minutes(relay: Relay, home: Household) -> None:
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(home.companions[0], name=name)
    await frame.tell(name, "cancelled")
    relay.clock.ahead += 599
    assert (await frame.status(name))["state"] == "cancelled"


# Who may


@pytest.mark.threat("T13")
async def test_strangers_and_neighbours_see_the_same_as_for_what_does_not_exist(
    relay: Relay, home: Household
) -> None:
    neighbours = await relay.household("bob")
    anna, _ = home.companions
    (frame,) = home.devices
    name, absent = fresh_id(), fresh_id()
    await frame.submit(anna, name=name)
    nobody = relay.caller(device("nobody"))
    outsiders = [nobody, *neighbours.companions, *neighbours.devices]
    for caller in outsiders:
        for existing, missing in [
            (await caller.get(f"/v1/requests/{name}"), await caller.get(f"/v1/requests/{absent}")),
            (await caller.tell(name, "cancelled"), await caller.tell(absent, "cancelled")),
            (await caller.act(frame, name, "claimed"), await caller.act(frame, absent, "claimed")),
            (await caller.act(frame, name, "declined"), await caller.act(nobody, absent, "declined")),
        ]:
            assert (existing.status, existing.problem) == (404, "not-found")
            assert existing.body == missing.body
    assert (await nobody.get("/v1/inbox")).body == (await nobody.get("/v1/ring")).body
    assert (await nobody.get("/v1/inbox")).status == 404
    assert (await frame.status(name))["state"] == "pending"


@pytest.mark.threat("T13")
async def test_each_role_has_its_own_endpoints(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, name=name)
    for reply in [
        await frame.get("/v1/inbox"),
        await frame.act(frame, name, "claimed"),
        await frame.put(f"/v1/invitations/{base64url(bytes(32))}", {"kind": "device", "expires_at": 0}),
        await anna.submit(bert),
        await anna.get(f"/v1/requests/{name}"),
        await anna.tell(name, "cancelled"),
        await bert.act(frame, name, "claimed"),  # a companion, but not a recipient
    ]:
        assert (reply.status, reply.problem) == (404, "not-found")


@pytest.mark.threat("T2")
async def test_an_envelope_for_anybody_but_a_companion_of_the_account_is_refused(
    relay: Relay, home: Household
) -> None:
    neighbours = await relay.household("bob")
    (frame,) = home.devices
    for recipients in [
        [frame],
        [neighbours.companions[0]],
        [relay.caller(companion("nobody"))],
        [home.companions[0], neighbours.companions[0]],
    ]:
        reply = await frame.submit(*recipients)
        assert (reply.status, reply.problem) == (400, "unknown-recipient")
    assert await home.companions[0].inbox() == []


async def test_a_removed_device_can_do_nothing_and_its_request_is_gone(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, name=name)
    await home.append(anna.person, bert.person)
    assert (await frame.get(f"/v1/requests/{name}")).problem == "not-found"
    assert (await frame.submit(anna)).problem == "not-found"
    assert await anna.inbox() == []
    assert (await anna.act(frame, name, "claimed")).body["state"] == "cancelled"


async def test_a_removed_companion_is_no_longer_held(relay: Relay, home: Household) -> None:
    anna, bert = home.companions
    cursor = (await bert.get("/v1/inbox")).body["cursor"]
    waiting = await eventually_held(relay, f"/v1/inbox?cursor={cursor}&wait=25", bert)
    await home.append(anna.person, home.devices[0].person)
    assert (await answer(waiting)).problem == "not-found"


@pytest.mark.threat("T13")
async def test_a_proof_is_taken_once(home: Household) -> None:
    anna, bert = home.companions
    proof = anna.proof("GET", "/v1/inbox")
    assert (await anna.call("GET", "/v1/inbox", proofs=[proof])).status == 200
    replayed = await anna.call("GET", "/v1/inbox", proofs=[proof])
    assert (replayed.status, replayed.problem) == (401, "proof-invalid")
    assert replayed.headers["WWW-Authenticate"].startswith("DPoP")
    assert (await bert.call("GET", "/v1/inbox", proofs=[proof])).status == 401


@pytest.mark.threat("T13")
async def test_a_proof_counts_as_used_even_when_what_it_asked_for_was_refused(home: Household) -> None:
    (frame,) = home.devices
    path = f"/v1/requests/{fresh_id()}"
    proof = frame.proof("GET", path)
    assert (await frame.call("GET", path, proofs=[proof])).status == 404
    assert (await frame.call("GET", path, proofs=[proof])).status == 401


@pytest.mark.threat("T13")
async def test_a_proof_without_the_relays_nonce_is_answered_with_it(relay: Relay, home: Household) -> None:
    anna, _ = home.companions
    bare = make_proof(anna.person.key, method="GET", url=f"{relay.url}/v1/ring", now=relay.clock())
    reply = await anna.call("GET", "/v1/ring", proofs=[bare])
    assert (reply.status, reply.problem) == (401, "use-dpop-nonce")
    assert reply.headers["WWW-Authenticate"] == 'DPoP algs="ES256", error="use_dpop_nonce"'
    assert reply.headers["DPoP-Nonce"] == relay.app[RELAY].nonce()
    assert reply.headers["Cache-Control"] == "no-store"
    assert (await anna.call("GET", "/v1/ring", proofs=[bare])).problem == "use-dpop-nonce"


@of_one_process
@pytest.mark.threat("T13")
async def test_every_answer_to_a_proof_has_the_newest_nonce(relay: Relay, home: Household) -> None:
    anna, _ = home.companions
    for path, status in (("/v1/ring", 200), ("/v1/nowhere", 404), (f"/v1/requests/{fresh_id()}", 404)):
        reply = await anna.get(path)
        assert (reply.status, reply.headers["DPoP-Nonce"]) == (status, relay.app[RELAY].nonce())
    first = relay.app[RELAY].nonce()
    relay.clock.ahead += STEP
    assert (await anna.get("/v1/ring")).headers["DPoP-Nonce"] != first


@of_one_process
@pytest.mark.threat("T13")
async def test_a_proof_made_ahead_is_refused_at_its_time_for_want_of_a_nonce(
    relay: Relay, home: Household
) -> None:
    """Who held the key for a moment made proofs for later; its nonce is old by then."""
    anna, _ = home.companions
    later = relay.clock() + 3600
    ahead = make_proof(
        anna.person.key, method="GET", url=f"{relay.url}/v1/ring", now=later, nonce=relay.app[RELAY].nonce()
    )
    relay.clock.ahead += 3600
    assert (await anna.call("GET", "/v1/ring", proofs=[ahead])).problem == "use-dpop-nonce"


@of_one_process
@pytest.mark.threat("T13")
@pytest.mark.parametrize("ahead", [0, 59], ids=["clock right", "clock ahead"])
async def test_no_proof_is_good_again_after_a_restart(tmp_path: Path, ahead: int) -> None:
    async with running_relay(tmp_path / "s") as relay:
        anna = (await relay.household()).companions[0]
        url = f"{relay.url}/v1/ring"
        used, kept = (
            make_proof(
                anna.person.key,
                method="GET",
                url=url,
                now=relay.clock() + ahead,
                nonce=relay.app[RELAY].nonce(),
            )
            for _ in range(2)
        )
        assert (await anna.call("GET", "/v1/ring", proofs=[used])).status == 200
        port = URL(relay.url).port or 0
    async with running_relay(tmp_path / "s", port=port) as relay:
        anna = relay.caller(anna.person)
        for proof in (used, kept):
            assert (await anna.call("GET", "/v1/ring", proofs=[proof])).problem == "use-dpop-nonce"
        assert (await anna.get("/v1/ring")).status == 200


async def test_a_proof_for_another_endpoint_or_none_is_refused(home: Household) -> None:
    anna, _ = home.companions
    for proofs in [[], [anna.proof("GET", "/v1/ring")], [anna.proof("POST", "/v1/inbox")]]:
        reply = await anna.call("GET", "/v1/inbox", proofs=proofs)
        assert (reply.status, reply.problem) == (401, "proof-invalid")


async def test_a_wrong_clock_is_told_the_relays_time(relay: Relay, home: Household) -> None:
    anna, _ = home.companions
    proof = anna.proof("GET", "/v1/inbox")
    relay.clock.ahead += 90
    reply = await anna.call("GET", "/v1/inbox", proofs=[proof])
    assert (reply.status, reply.problem) == (401, "proof-clock")
    assert reply.body["now"] == pytest.approx(relay.clock(), abs=5)


# Waiting


async def test_a_waiting_companion_is_woken_by_a_request(relay: Relay, home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    cursor = (await anna.get("/v1/inbox")).body["cursor"]
    waiting = await eventually_held(relay, f"/v1/inbox?cursor={cursor}&wait=25", anna)
    assert (await frame.submit(anna, bert)).status == 201
    woken = await answer(waiting)
    assert [item["state"] for item in woken.body["requests"]] == ["delivered"]
    assert woken.body["cursor"] != cursor


async def test_a_waiting_device_is_woken_by_each_change(relay: Relay, home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    version = (await frame.submit(anna, bert, name=name)).body["version"]
    changes: list[tuple[Caller, str]] = [
        (bert, "failed"),
        (anna, "claimed"),
        (anna, "opened"),
        (anna, "declined"),
    ]
    for caller, event in changes:
        waiting = await eventually_held(relay, f"/v1/requests/{name}?version={version}&wait=25", frame)
        await caller.act(frame, name, event)
        status = (await answer(waiting)).body
        assert status["version"] == version + 1
        version = status["version"]
    # a terminal state never changes: nobody is held for it
    assert (
        await answer(asyncio.ensure_future(frame.get(f"/v1/requests/{name}?version={version}&wait=25")))
    ).body["state"] == "declined"


async def test_a_waiting_device_and_companion_are_woken_by_expiry(relay: Relay, home: Household) -> None:
    anna, _ = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, name=name, expires_in=3)
    cursor = (await anna.get("/v1/inbox")).body["cursor"]
    waiting = [
        await eventually_held(relay, f"/v1/requests/{name}?version=2&wait=25", frame),
        await eventually_held(relay, f"/v1/inbox?cursor={cursor}&wait=25", anna),
    ]
    status, inbox = [await answer(task) for task in waiting]
    assert status.body["state"] == "expired"
    assert inbox.body["requests"] == []


async def test_nothing_changed_is_answered_after_the_time_the_caller_would_wait(home: Household) -> None:
    anna, _ = home.companions
    cursor = (await anna.get("/v1/inbox")).body["cursor"]
    start = time.monotonic()
    reply = await anna.get(f"/v1/inbox?cursor={cursor}&wait=1")
    assert (reply.body["cursor"], reply.body["requests"]) == (cursor, [])
    assert 1 <= time.monotonic() - start < SOON


async def test_no_wake_up_is_lost_however_submitting_and_waiting_interleave(home: Household) -> None:
    anna, _ = home.companions
    (frame,) = home.devices
    cursor = (await anna.get("/v1/inbox")).body["cursor"]
    for _ in range(40):
        async with asyncio.timeout(SOON):
            woken, submitted = await asyncio.gather(
                anna.get(f"/v1/inbox?cursor={cursor}&wait=25"), frame.submit(anna)
            )
        assert submitted.status == 201
        assert woken.body["cursor"] != cursor
        cursor = (await anna.get("/v1/inbox")).body["cursor"]


@pytest.mark.threat("T13")
async def test_a_members_oldest_wait_makes_room_for_its_newest(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", held_per_member=2) as relay:
        home = await relay.household()
        anna, bert = home.companions
        path = f"/v1/inbox?cursor={(await anna.get('/v1/inbox')).body['cursor']}&wait=25"
        oldest = await eventually_held(relay, path, anna)
        others = [await eventually_held(relay, path, anna), await eventually_held(relay, path, bert)]
        newest = asyncio.ensure_future(anna.get(path))
        assert (await answer(oldest)).status == 200
        assert not any(task.done() for task in [*others, newest])
        await home.devices[0].submit(anna, bert)
        for task in [*others, newest]:
            assert len((await answer(task)).body["requests"]) == 1


@pytest.mark.threat("T13")
async def test_too_many_waits_from_one_address_are_told_to_come_back(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", held_per_address=1) as relay:
        home = await relay.household()
        anna, bert = home.companions
        path = f"/v1/inbox?cursor={(await anna.get('/v1/inbox')).body['cursor']}&wait=25"
        waiting = await eventually_held(relay, path, anna)
        refused = await bert.get(path)
        assert (refused.status, refused.problem) == (429, "rate-limited")
        assert int(refused.headers["Retry-After"]) == refused.body["retry_after"]
        await home.devices[0].submit(anna)
        assert (await answer(waiting)).status == 200
        assert (await bert.get("/v1/inbox?wait=1")).status == 200


async def test_who_goes_away_while_waiting_leaves_no_trace(relay: Relay, home: Household) -> None:
    anna, _ = home.companions
    cursor = (await anna.get("/v1/inbox")).body["cursor"]
    waiting = await eventually_held(relay, f"/v1/inbox?cursor={cursor}&wait=25", anna)
    waiting.cancel()
    async with asyncio.timeout(SOON):
        while await held(relay):
            pass


# Claims


@pytest.mark.threat("T3")
async def test_the_device_is_shown_the_word_of_the_companion_that_claims(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    word = await anna.claim(frame, name)
    await anna.act(frame, name, "claimed", word=word)
    assert (await frame.status(name))["claim"] == {"by": anna.name, "word": word}
    await anna.act(frame, name, "claimed")  # the same again changes nothing
    assert (await frame.status(name))["claim"] == {"by": anna.name, "word": word}
    await anna.act(frame, name, "released")
    assert (await frame.status(name))["claim"] is None
    await bert.act(frame, name, "claimed")
    assert await frame.claimer(name) == bert.name


@pytest.mark.threat("T3")
async def test_a_claim_is_granted_only_with_a_word_over_this_request_and_its_sealed_bytes(
    home: Household,
) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, bert, name=name)
    words = {
        "another companion's": await bert.claim(frame, name),
        "other bytes": await anna.claim(frame, name, sealed=b"other"),
        "another device": await anna.claim(frame, name, device=bert.name),
        "another request": await anna.claim(frame, name, request_id=bytes(16)),
        "no claim": base64url(Word.give(anna.person.key, ring=home.ring, now=time.time()).document),
        "no word": base64url(b"word"),
        "too long": base64url(bytes(513)),
        "no base64url": "+/",
        "nothing": "",
    }
    for what, word in words.items():
        refused = await anna.act(frame, name, "claimed", word=word)
        assert (refused.status, refused.problem) == (400, "invalid-request"), what
    missing = await anna.post(f"/v1/inbox/{frame.name}/{name}/events", {"event": "claimed"})
    assert (missing.status, missing.problem) == (400, "invalid-request")
    assert (await frame.status(name))["state"] == "pending"


@pytest.mark.threat("T3")
async def test_a_claim_names_a_ring_that_the_relay_holds(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, name=name)
    never_appended = grow(home.ring, anna.person, anna.person, bert.person)
    claim = Claim.of(device=frame.name, request_id=from_base64url(name), sealed=from_base64url(SEALED))
    ahead = Word.give(anna.person.key, ring=never_appended, now=time.time(), claim=claim)
    refused = await anna.act(frame, name, "claimed", word=base64url(ahead.document))
    assert (refused.status, refused.problem) == (400, "unknown-ring")
    founding = found(anna.person, account=home.account)  # another ring of version 1 than the relay's
    other = Word.give(anna.person.key, ring=founding, now=time.time(), claim=claim)
    refused = await anna.act(frame, name, "claimed", word=base64url(other.document))
    assert (refused.status, refused.problem) == (400, "unknown-ring")


@pytest.mark.threat("T12")
@pytest.mark.parametrize("event", ["opened", "released", "declined", "failed"])
async def test_only_a_claim_has_a_word(home: Household, event: str) -> None:
    anna, _ = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, name=name)
    word = await anna.claim(frame, name)
    assert (await anna.act(frame, name, event, word=word)).problem == "invalid-request"


@pytest.mark.threat("T2")
async def test_the_device_is_shown_the_newest_ring_with_each_status(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(anna, name=name)
    ring = await home.append(anna.person, bert.person, frame.person, device("new"))
    assert (await frame.status(name))["ring"] == {"version": ring.version, "hash": base64url(ring.hash)}


# Words about the newest ring


async def gives(caller: Caller, ring: Ring, *, at: float | None = None, **more: Any) -> Reply:
    word = Word.give(caller.person.key, ring=ring, now=caller.clock() if at is None else at, **more)
    return await caller.put("/v1/word", {"word": base64url(word.document)})


async def words(caller: Caller) -> dict[str, Word]:
    """What the relay hands out, by signer."""
    body = (await caller.get("/v1/ring")).body
    members = {member.name: member for member in Ring.parse_kept(from_base64url(body["rings"][-1])).members}
    return {
        each["by"]: Word.parse(from_base64url(each["word"]), by=members[each["by"]]) for each in body["words"]
    }


@pytest.mark.threat("T2")
async def test_every_member_gets_the_newest_word_of_each_companion(relay: Relay, home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    assert await words(frame) == {}
    now = relay.clock()
    assert (await gives(anna, home.ring, at=now)).status == 200
    assert (await gives(bert, home.ring, at=now + 5)).status == 200
    assert (await gives(bert, home.ring, at=now - 5)).status == 200  # an older one changes nothing
    for caller in (frame, anna, bert):
        assert {by: word.at for by, word in (await words(caller)).items()} == {
            anna.name: int(now),
            bert.name: int(now + 5),
        }


@pytest.mark.threat("T2")
async def test_a_word_is_taken_of_a_companion_about_a_ring_that_the_relay_holds(
    relay: Relay, home: Household
) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    neighbour = await relay.household("bob")
    unknown = grow(home.ring, anna.person, anna.person, now=relay.clock())
    claim = Claim.of(device=frame.name, request_id=bytes(16), sealed=b"")
    assert (await gives(anna, unknown)).problem == "unknown-ring"
    assert (await gives(frame, home.ring)).problem == "not-found"
    for refused in (
        await gives(anna, neighbour.ring),
        await gives(anna, home.ring, claim=claim),
        await gives(anna, home.ring, at=relay.clock() + 90),
        await gives(anna, home.ring, at=relay.clock() - 90),
        await anna.put("/v1/word", {"word": base64url(b"word")}),
        await anna.put("/v1/word", {}),
        await anna.put(
            "/v1/word",
            {"word": base64url(Word.give(bert.person.key, ring=home.ring, now=relay.clock()).document)},
        ),
    ):
        assert (refused.status, refused.problem) == (400, "invalid-request")
    assert await words(frame) == {}


@pytest.mark.threat("T2")
async def test_the_word_of_a_companion_that_was_removed_is_handed_out_no_more(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    await gives(anna, home.ring)
    await gives(bert, home.ring)
    await home.append(anna.person, frame.person)
    assert list(await words(frame)) == [anna.name]


async def test_companions_are_asked_for_a_word_until_they_have_given_it(
    relay: Relay, home: Household
) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    seen = (await anna.get("/v1/inbox")).body
    assert not seen["word_wanted"]
    waiting = await eventually_held(relay, f"/v1/inbox?cursor={seen['cursor']}&wait=25", anna)
    called = await frame.post("/v1/words/call", {})
    assert (called.status, called.body) == (202, {})
    assert (await answer(waiting)).body["word_wanted"]
    await gives(anna, home.ring)
    assert not (await anna.get("/v1/inbox")).body["word_wanted"]
    assert (await bert.get("/v1/inbox")).body["word_wanted"]
    assert (await anna.post("/v1/words/call", {})).problem == "not-found"


@pytest.mark.threat("T17")
async def test_words_and_calls_for_them_are_limited(relay: Relay, home: Household) -> None:
    anna, _ = home.companions
    (frame,) = home.devices
    assert [(await frame.post("/v1/words/call", {})).status for _ in range(4)] == [202, 202, 202, 429]
    assert [(await gives(anna, home.ring)).status for _ in range(11)] == [200] * 10 + [429]
    name = fresh_id()
    await frame.submit(anna, name=name)
    assert (await anna.act(frame, name, "claimed")).status == 200  # a claim is free
    relay.clock.ahead += 60
    assert (await gives(anna, home.ring)).status == 200
    assert (await frame.post("/v1/words/call", {})).status == 202


# Races and limits


@pytest.mark.threat("T5")
async def test_of_two_companions_exactly_one_wins_each_of_two_hundred_races(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    winners = set()
    for number in range(200):
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        racers = [anna, bert] if number % 2 else [bert, anna]
        replies = await asyncio.gather(*(racer.act(frame, name, "claimed") for racer in racers))
        assert sorted(reply.status for reply in replies) == [200, 409]
        winner = racers[[reply.status for reply in replies].index(200)]
        assert {reply.problem for reply in replies} == {None, "already-claimed"}
        assert await frame.claimer(name) == winner.name
        assert (await winner.act(frame, name, "claimed")).status == 200
        winners.add(winner.name)
    assert winners == {anna.name, bert.name}


@pytest.mark.threat("T6")
async def test_more_requests_than_the_rate_allows_are_told_when_to_come_back(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", quota=rates(2, 60)) as relay:
        home = await relay.household()
        anna, _ = home.companions
        (frame,) = home.devices
        name = fresh_id()
        assert (await frame.submit(anna)).status == 201
        assert (await frame.submit(anna, name=name)).status == 201
        refused = await frame.submit(anna)
        assert (refused.status, refused.problem) == (429, "rate-limited")
        assert int(refused.headers["Retry-After"]) == refused.body["retry_after"] in (29, 30)
        assert (await frame.status(name))["state"] == "pending"  # nothing was superseded by what was refused
        assert (await frame.submit(anna, name=name)).status == 200  # the same again costs nothing
        assert (await anna.act(frame, name, "declined")).status == 200  # nor does declining
        relay.clock.ahead += 30
        assert (await frame.submit(anna)).status == 201


@pytest.mark.threat("T17")
async def test_one_device_that_submits_all_day_leaves_the_others_theirs(tmp_path: Path) -> None:
    quota = Quota(pending=1000, rates=(), account_rates=(Rate(count=10, seconds=86_400),))
    async with running_relay(tmp_path / "s", quota=quota) as relay:
        home = await relay.household(devices=2)
        anna, _ = home.companions
        rogue, frame = home.devices
        replies = [await rogue.submit(anna) for _ in range(20)]
        assert [reply.status for reply in replies] == [201] * 10 + [429] * 10
        replies = [await frame.submit(anna) for _ in range(6)]
        assert [reply.status for reply in replies] == [201] * 5 + [429]


@pytest.mark.threat("T6")
async def test_only_so_many_devices_have_a_request_waiting_at_a_time(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", quota=Quota(pending=2, rates=())) as relay:
        home = await relay.household(devices=3)
        anna, _ = home.companions
        one, two, three = home.devices
        name = fresh_id()
        assert (await one.submit(anna, name=name)).status == 201
        assert (await two.submit(anna)).status == 201
        assert (await two.submit(anna)).status == 201
        refused = await three.submit(anna)
        assert (refused.status, refused.problem) == (429, "too-many-pending")
        assert 290 < refused.body["retry_after"] <= 300
        await anna.act(one, name, "claimed")
        assert (await three.submit(anna)).status == 201


@pytest.mark.threat("T6")
async def test_one_accounts_requests_do_not_count_for_another(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", quota=rates(1, 60)) as relay:
        for name in ("alice", "bob"):
            home = await relay.household(name)
            assert (await home.devices[0].submit(home.companions[0])).status == 201


# Malformed requests


def submission(**changes: Any) -> dict[str, Any]:
    return {"expires_in": 60, "envelopes": [{"to": base64url(bytes(32)), "sealed": SEALED}]} | changes


def envelopes(*items: dict[str, Any]) -> dict[str, Any]:
    return submission(envelopes=list(items))


ONE = {"to": base64url(bytes(32)), "sealed": SEALED}

MALFORMED: dict[str, object] = {
    "nothing": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"expires_in": "\xff"}',
    "deeper than deep": b"[" * 60_000,
    "a list": [],
    "an unknown member": submission(priority=1),
    "an unknown member of an envelope": envelopes(ONE | {"suite": 1}),
    "a missing member": {"expires_in": 60},
    "a number as text": submission(expires_in="60"),
    "a fraction": submission(expires_in=1.5),
    "no time": submission(expires_in=0),
    "too much time": submission(expires_in=301),
    "no envelope": envelopes(),
    "seventeen envelopes": envelopes(*[ONE | {"to": base64url(bytes([n]) * 32)} for n in range(17)]),
    "two envelopes for one": envelopes(ONE, ONE),
    "nothing sealed": envelopes(ONE | {"sealed": ""}),
    "too much sealed": envelopes(ONE | {"sealed": base64url(bytes(4097))}),
    "padding": envelopes(ONE | {"sealed": "QQ=="}),
    "stray bits": envelopes(ONE | {"sealed": "QR"}),
    "standard base64": envelopes(ONE | {"sealed": "+/+/"}),
    "a short name": envelopes(ONE | {"to": "abc"}),
    "a name that is no base64url": envelopes(ONE | {"to": "é" * 43}),
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_submission_is_refused(home: Household, body: object) -> None:
    reply = await home.devices[0].put(f"/v1/requests/{fresh_id()}", body)
    assert (reply.status, reply.problem) == (400, "invalid-request")
    assert reply.body["detail"]


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "name", ["abc", "A" * 23, "A" * 21 + "B", "A" * 21 + "=", "%00" * 16, "..%2F..%2Fetc"]
)
async def test_a_malformed_id_is_refused(home: Household, name: str) -> None:
    (frame,) = home.devices
    anna, _ = home.companions
    for reply in [
        await frame.put(f"/v1/requests/{name}", submission()),
        await frame.get(f"/v1/requests/{name}"),
        await anna.post(f"/v1/inbox/{frame.name}/{name}/events", {"event": "claimed"}),
        await anna.post(f"/v1/inbox/{name}/{fresh_id()}/events", {"event": "claimed"}),
    ]:
        assert reply.problem in ("invalid-request", "proof-invalid", "not-found")
        assert 400 <= reply.status < 500


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "query",
    [
        "wait=26",
        "wait=-1",
        "wait=x",
        "wait=",
        "wait=1&wait=1",
        "wait=٣",
        "cursor=",
        f"cursor={'x' * 65}",
        "more=1",
    ],
)
async def test_a_malformed_query_is_refused(home: Household, query: str) -> None:
    reply = await home.companions[0].get(f"/v1/inbox?{query}")
    assert (reply.status, reply.problem) == (400, "invalid-request")


@pytest.mark.parametrize("reason", ["", "No", "two words", "x" * 65, "x\n", 7, "é"])
async def test_a_reason_is_a_word(home: Household, reason: Any) -> None:
    (frame,) = home.devices
    name = fresh_id()
    await frame.submit(home.companions[0], name=name)
    assert (await frame.tell(name, "failed", reason)).problem == "invalid-request"
    assert (await frame.tell(name, "failed", "x" * 64)).status == 200


@pytest.mark.parametrize("event", ["claimed", "pending", "expired", "superseded", "", None])
async def test_a_device_tells_only_device_events(home: Household, event: Any) -> None:
    (frame,) = home.devices
    assert (await frame.tell(fresh_id(), event)).problem == "invalid-request"


async def test_a_body_may_begin_with_a_byte_order_mark(home: Household) -> None:
    (frame,) = home.devices
    (anna, _), name = home.companions, fresh_id()
    submission = {"expires_in": 60, "envelopes": [{"to": anna.name, "sealed": SEALED}]}
    body = json.dumps(submission).encode()
    assert (await frame.put(f"/v1/requests/{name}", b"\xef\xbb\xbf" + body)).status == 201
    assert (await frame.put(f"/v1/requests/{name}", body)).status == 200  # the same again


@pytest.mark.threat("T13")
async def test_a_body_beyond_the_limit_is_refused(home: Household) -> None:
    body = json.dumps(submission()).encode()
    body += b" " * (MAX_BODY + 1 - len(body))
    reply = await home.devices[0].put(f"/v1/requests/{fresh_id()}", body)
    assert (reply.status, reply.problem, reply.body["limit"]) == (413, "payload-too-large", MAX_BODY)


@pytest.mark.threat("T12")
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x-unknown", "identity, gzip", ""])
async def test_a_compressed_body_is_refused_and_not_unpacked(
    relay: Relay, home: Household, encoding: str
) -> None:
    (frame,) = home.devices
    path = f"/v1/requests/{fresh_id()}"
    for data in (b"not gzip at all", gzip.compress(bytes(10_000_000))):
        headers = {"DPoP": frame.proof("PUT", path), "Content-Encoding": encoding}
        async with relay.session.put(relay.url + path, data=data, headers=headers) as response:
            assert await response.json(content_type="application/problem+json") == {
                "type": "about:blank",
                "title": "Unsupported Media Type",
                "status": 415,
            }


async def test_an_encoding_that_changes_nothing_is_taken(relay: Relay, home: Household) -> None:
    (frame,) = home.devices
    path = f"/v1/requests/{fresh_id()}"
    body = {"expires_in": 300, "envelopes": [{"to": home.companions[0].name, "sealed": "AAAA"}]}
    headers = {"DPoP": frame.proof("PUT", path), "Content-Encoding": "Identity"}
    async with relay.session.put(relay.url + path, json=body, headers=headers) as response:
        assert response.status == 201


@pytest.mark.parametrize("runs", ["as-program", "mounted"])
async def test_a_client_that_hangs_up_before_its_body_has_come_is_no_fault_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, runs: str
) -> None:
    reading, ended = asyncio.Event(), asyncio.Event()
    read = app._body

    async def watched(*args: Any) -> Any:
        reading.set()
        try:
            return await read(*args)
        finally:
            ended.set()

    monkeypatch.setattr(app, "_body", watched)
    caplog.set_level(logging.INFO)
    async with running_relay(tmp_path / "s", cancels=runs == "as-program") as relay:
        path = f"/v1/requests/{fresh_id()}"
        _, writer = await asyncio.open_connection("127.0.0.1", int(relay.url.rpartition(":")[2]))
        proof = relay.caller(device()).proof("PUT", path)
        writer.write(
            f"PUT {path} HTTP/1.1\r\nHost: x\r\nDPoP: {proof}\r\nContent-Length: 9\r\n\r\n{{".encode()
        )
        await asyncio.wait_for(reading.wait(), SOON)
        writer.transport.abort()
        await asyncio.wait_for(ended.wait(), SOON)
        assert (await relay.session.get(relay.url + "/livez")).status == 200
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.threat("T13")
async def test_a_body_that_never_comes_is_not_waited_for(
    relay: Relay, home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.05)
    (frame,) = home.devices
    path = f"/v1/requests/{fresh_id()}"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(relay.url.rpartition(":")[2]))
    head = (
        f"PUT {path} HTTP/1.1\r\nHost: x\r\nDPoP: {frame.proof('PUT', path)}\r\nContent-Length: 100\r\n\r\n{{"
    )
    writer.write(head.encode())
    async with asyncio.timeout(SOON):
        assert (await reader.readline()).startswith(b"HTTP/1.1 400")
    writer.close()
    await writer.wait_closed()


@pytest.mark.threat("T13")
async def test_a_connection_that_asks_nothing_is_closed(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", idle=0.05) as relay:
        for said in (b"", b"GET /v1/inbox HTTP/1.1\r\nHost: x\r\nDPoP: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(relay.url.rpartition(":")[2]))
            writer.write(said)
            async with asyncio.timeout(SOON):
                assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()


async def test_other_paths_and_methods_are_problems_too(relay: Relay, home: Household) -> None:
    anna, _ = home.companions
    assert (await anna.get("/v1/nothing")).problem == "not-found"
    reply = await anna.call("DELETE", "/v1/ring")
    assert reply.status == 405
    assert reply.body == {"type": "about:blank", "title": "Method Not Allowed", "status": 405}
    assert set(reply.headers["Allow"].split(",")) == {"GET", "POST"}
    async with relay.session.get(relay.url + "/livez") as response:
        assert await response.json() == {"status": "ok"}


async def test_no_answer_may_be_cached(home: Household) -> None:
    for path in ("/v1/inbox", "/v1/nothing"):
        assert (await home.companions[0].get(path)).headers["Cache-Control"] == "no-store"


# When the relay itself is in trouble


@of_files
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("secret"), "the store could not be swept: unexpected ValueError at "),
        (KeyError("secret"), "the store could not be swept: unexpected KeyError at "),
        (RecursionError("secret"), "the store could not be swept: unexpected RecursionError at "),
        (TimeoutError("secret"), "the store could not be swept: unexpected TimeoutError at "),
        (MemoryError("secret"), "the store could not be swept: unexpected MemoryError at "),
        (
            sqlite3.DatabaseError("malformed"),
            "the store could not be swept: the store does not answer: malformed",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_the_sweeper_goes_on_after_any_error(
    error: Exception,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    times, goes_on = 0, asyncio.Event()

    def sweep(after: str | None) -> operations.Operation:
        def operation(call: operations.Call) -> operations.Answer:
            nonlocal times
            times += 1
            if times <= 3:
                raise error
            goes_on.set()
            return sweep_in_earnest(after)(call)

        return operation

    sweep_in_earnest = operations.sweep
    monkeypatch.setattr(operations, "SWEEP_SECONDS", 0.001)
    monkeypatch.setattr(operations, "sweep", sweep)
    async with running_relay(tmp_path / "s"), asyncio.timeout(60):
        await goes_on.wait()
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 3
    assert all(one.startswith(line) for one in told), told
    assert "secret" not in caplog.text


@pytest.mark.threat("T17")
async def test_whatever_has_expired_at_once_is_deleted_in_portions_and_in_one_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted: dict[int, int] = {}  # of so many; a transaction may run again
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def sweep_accounts(db: Transaction, now: float) -> bool:
        before = left(db)
        more = sweep_in_earnest(db, now)
        deleted[before] = before - left(db)
        if not more:
            loop.call_soon_threadsafe(over.set)
        return more

    def left(db: Transaction) -> int:
        return int(db.execute("SELECT count(*) FROM accounts").fetchone()[0])

    sweep_in_earnest = accounts.sweep_accounts
    monkeypatch.setattr(accounts, "EXPIRED_AT_ONCE", 2)
    monkeypatch.setattr(operations, "SWEEP_SECONDS", 86_400)
    async with open_store(place_of(tmp_path / "s")) as store:
        for number in range(5):
            await store.transact(
                lambda db, name=f"{number}": accounts.add_account(db, name=name, now=1, expires_at=2)  # type: ignore[misc]
            )
    monkeypatch.setattr(accounts, "sweep_accounts", sweep_accounts)
    async with running_relay(tmp_path / "s"), asyncio.timeout(60):
        await over.wait()
    assert deleted == {5: 2, 3: 2, 1: 1}


@of_files
async def test_what_fails_when_its_caller_has_gone_is_told_in_the_log_and_not_by_the_loop(
    relay: Relay, home: Household, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_ring(_after: int) -> operations.Operation:
        def operation(_call: operations.Call) -> operations.Answer:
            raise ValueError("secret")

        return operation

    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    monkeypatch.setattr(operations, "read_ring", read_ring)
    intruder = sqlite3.connect(relay.store, isolation_level=None)
    intruder.execute("BEGIN EXCLUSIVE")
    asking = asyncio.ensure_future(home.companions[0].get("/v1/ring"))
    async with asyncio.timeout(60):
        while not relay.app[RELAY]._transactions:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.001)
    asking.cancel()
    await asyncio.wait({asking})
    async with relay.session.get(relay.url + "/livez"):  # by now it knows that its client has gone
        pass
    intruder.execute("ROLLBACK")
    intruder.close()
    await home.companions[0].get("/v1/inbox")  # behind it
    assert "unexpected ValueError at test_app.py:" in caplog.text
    assert "secret" not in caplog.text
    assert complaints == []


async def test_a_relay_that_closes_answers_who_waits_and_takes_nothing_new(
    relay: Relay, home: Household
) -> None:
    anna, _ = home.companions
    cursor = (await anna.get("/v1/inbox")).body["cursor"]
    waiting = await eventually_held(relay, f"/v1/inbox?cursor={cursor}&wait=25", anna)
    relay.held_requests.close()
    assert (await answer(waiting)).body["cursor"] == cursor
    refused = await home.devices[0].submit(anna)
    assert (refused.status, refused.problem) == (503, "draining")
    assert refused.headers["Retry-After"] == "1"


@of_files
async def test_a_store_that_cannot_be_used_is_told_as_such_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.05)
    async with running_relay(tmp_path / "s") as relay:
        home = await relay.household()
        anna, _ = home.companions
        (frame,) = home.devices
        name = fresh_id()
        intruder = sqlite3.connect(relay.store, isolation_level=None)
        intruder.execute("BEGIN EXCLUSIVE")
        refused = await frame.submit(anna, name=name)
        assert (refused.status, refused.problem) == (503, "store-unavailable")
        assert int(refused.headers["Retry-After"]) == refused.body["retry_after"]
        intruder.execute("ROLLBACK")
        intruder.close()
        assert (await frame.submit(anna, name=name)).status == 201


@of_files
async def test_a_store_whose_file_was_deleted_acknowledges_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_relay(tmp_path / "s") as relay:
        home = await relay.household()
        (frame,) = home.devices
        relay.store.unlink()
        refused = await frame.submit(home.companions[0])
        assert (refused.status, refused.problem) == (503, "store-unavailable")
        assert f"the store is no longer the file at {relay.store}" in caplog.text


@pytest.mark.threat("T11")
async def test_a_fault_of_ours_is_a_500_that_tells_nothing(
    home: Household, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_after: int) -> operations.Operation:
        raise ZeroDivisionError("what must not be told")

    monkeypatch.setattr(operations, "read_ring", broken)
    reply = await home.companions[0].get("/v1/ring")
    assert reply.body == {"type": "about:blank", "title": "Internal Server Error", "status": 500}
    assert "unexpected ZeroDivisionError at test_app.py" in caplog.text
    assert "what must not be told" not in caplog.text
