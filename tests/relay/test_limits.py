"""Every limit of the relay, at fifty times its size and all at once."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from companion_push.relay import accounts
from companion_push.relay.app import RELAY
from companion_push.relay.limits import Quota, Rate
from companion_push.relay.proofs import ProofsInMemory
from program_parts.base64url import base64url
from tests.relay.household import Caller, Reply, rates, running_relay
from tests.trust.people import companion

PATIENCE = 120.0  # seconds: a safety net, so that a hang is a failure
TIMES = 50

Outcome = tuple[int, str | None]  # status, and which problem


async def outcomes(*calls: asyncio.Task[Reply]) -> Counter[Outcome]:
    async with asyncio.timeout(PATIENCE):
        return Counter((reply.status, reply.problem) for reply in await asyncio.gather(*calls))


async def all_but(
    count: int, calls: list[asyncio.Task[Reply]]
) -> tuple[list[Reply], set[asyncio.Task[Reply]]]:
    """The answers of all calls but `count` of them, as soon as they are there, and who still waits."""
    waiting = set(calls)
    async with asyncio.timeout(PATIENCE):
        while len(waiting) > count:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    return [call.result() for call in calls if call not in waiting], waiting


def begun(call: Coroutine[Any, Any, Reply]) -> asyncio.Task[Reply]:
    return asyncio.ensure_future(call)


@pytest.mark.threat("T13")
async def test_of_two_hundred_waits_of_one_companion_four_are_held_and_the_others_answered(
    tmp_path: Path,
) -> None:
    async with running_relay(tmp_path / "s", held_per_member=4) as relay:
        home = await relay.household()
        anna, bert = home.companions
        path = f"/v1/inbox?cursor={(await anna.get('/v1/inbox')).body['cursor']}&wait=25"
        beside = begun(bert.get(path))
        answered, waiting = await all_but(4, [begun(anna.get(path)) for _ in range(4 * TIMES)])
        assert Counter((reply.status, len(reply.body["requests"])) for reply in answered) == {(200, 0): 196}
        await anna.get("/v1/ring")
        assert len(relay.held_requests) == 5
        assert not any(call.done() for call in (*waiting, beside))  # all these wait for news
        await home.devices[0].submit(anna, bert)
        assert await outcomes(*waiting, beside) == {(200, None): 5}


@pytest.mark.threat("T13")
async def test_a_wait_that_is_let_go_makes_room_for_one_other_and_not_for_more(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", held_per_member=1) as relay:
        home = await relay.household()
        anna, _ = home.companions
        path = f"/v1/inbox?cursor={(await anna.get('/v1/inbox')).body['cursor']}&wait=25"
        _, waiting = await all_but(1, [begun(anna.get(path)) for _ in range(TIMES)])
        await anna.get("/v1/ring")
        assert len(relay.held_requests) == 1
        await home.devices[0].submit(anna)
        assert await outcomes(*waiting) == {(200, None): 1}
        assert len(relay.held_requests) == 0


@pytest.mark.threat("T13")
async def test_of_two_hundred_waits_from_one_address_four_are_held_and_the_others_refused(
    tmp_path: Path,
) -> None:
    async with running_relay(tmp_path / "s", held_per_member=300, held_per_address=4) as relay:
        home = await relay.household()
        anna, _ = home.companions
        path = f"/v1/inbox?cursor={(await anna.get('/v1/inbox')).body['cursor']}&wait=25"
        answered, waiting = await all_but(4, [begun(anna.get(path)) for _ in range(4 * TIMES)])
        assert Counter((reply.status, reply.problem) for reply in answered) == {(429, "rate-limited"): 196}
        await home.devices[0].submit(anna)
        assert await outcomes(*waiting) == {(200, None): 4}


@pytest.mark.threat("T6")
async def test_of_two_hundred_and_fifty_submissions_at_once_five_are_taken(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", quota=rates(5, 86_400)) as relay:
        home = await relay.household()
        (frame,) = home.devices
        calls = [begun(frame.submit(home.companions[0])) for _ in range(5 * TIMES)]
        assert await outcomes(*calls) == {(201, None): 5, (429, "rate-limited"): 245}


@pytest.mark.threat("T6")
async def test_of_a_hundred_and_fifty_submissions_of_fifteen_devices_at_once_three_wait(
    tmp_path: Path,
) -> None:
    async with running_relay(tmp_path / "s", quota=Quota(pending=3, rates=())) as relay:
        home = await relay.household(companions=1, devices=15)
        calls = [begun(frame.submit(home.companions[0])) for frame in home.devices for _ in range(10)]
        assert set(await outcomes(*calls)) == {(201, None), (429, "too-many-pending")}
        assert len(await home.companions[0].inbox()) == 3


async def test_rates_of_one_account_leave_the_others_theirs(tmp_path: Path) -> None:
    spared = Rate(count=1, seconds=86_400)
    quota = Quota(pending=1000, rates=(), account_rates=(Rate(count=1, seconds=86_400),), spared=spared)
    async with running_relay(tmp_path / "s", quota=quota) as relay:
        busy, quiet = await relay.household("busy"), await relay.household("quiet")
        calls = [begun(busy.devices[0].submit(busy.companions[0])) for _ in range(TIMES)]
        assert await outcomes(*calls) == {(201, None): 1, (429, "rate-limited"): TIMES - 1}
        assert (await quiet.devices[0].submit(quiet.companions[0])).status == 201


@pytest.mark.threat("T13")
async def test_of_eight_hundred_invitations_at_once_sixteen_are_open(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s") as relay:
        home = await relay.household()
        anna, _ = home.companions
        total: Counter[Outcome] = Counter()
        for _ in range(2):  # at once as many as one address may have connections for
            calls = [begun(announce(anna)) for _ in range(accounts.MAX_INVITATIONS * TIMES // 2)]
            total += await outcomes(*calls)
        assert total == {(201, None): 16, (429, "too-many-pending"): 784}


async def announce(inviter: Caller) -> Reply:
    body = {"kind": "device", "expires_at": int(inviter.clock()) + 600}
    return await inviter.put(f"/v1/invitations/{base64url(secrets.token_bytes(32))}", body)


@pytest.mark.threat("T17")
async def test_five_hundred_proofs_of_strangers_refuse_nobody_where_ten_are_remembered(
    tmp_path: Path,
) -> None:
    async with running_relay(tmp_path / "s") as relay:
        (anna, *_) = (await relay.household()).companions
        relay.app[RELAY]._used_proofs = ProofsInMemory(most=10)
        for _ in range(TIMES):
            strangers = [relay.caller(companion("stranger")) for _ in range(10)]
            assert await outcomes(*(begun(one.get("/v1/ring")) for one in strangers)) == {
                (404, "not-found"): 10
            }
            assert (await anna.get("/v1/ring")).status == 200
