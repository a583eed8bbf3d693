"""A relay whose database's clock jumps: it is the clock that counts, and what it leaves to be done is done all the same."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from companion_push.relay import operations
from companion_push.relay.app import RELAY
from companion_push.relay.limits import CEILING
from tests.push.recording import RecordingChannel
from tests.relay.household import fresh_id
from tests.relay.stores import PostgresServer, postgres, query
from tests.relay.test_nodes import Pair, at, pair, pushing

HOUR: Final = 3600.0


@pytest.fixture(scope="module")
def started() -> Iterator[PostgresServer]:
    postgres()  # which leaves the test out where there is none
    made = PostgresServer(jumps=True)
    yield made
    made.end()


@pytest.fixture
def server(started: PostgresServer) -> PostgresServer:
    """A server whose clock is right."""
    started.jump(0)
    return started


async def jump(two: Pair, server: PostgresServer, ahead: float) -> None:
    """Set the server's clock. Who calls has learnt of it, as clients do that are told `proof-clock`."""
    await asyncio.to_thread(server.jump, ahead)
    for relay in (two.first, two.second):
        relay.clock.ahead = ahead
        await relay.app[RELAY].run("", operations.read_store, called=False)


@pytest.mark.threat("T3")
@pytest.mark.threat("T13")
async def test_a_claim_and_used_proofs_outlive_a_clock_that_goes_back(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        operations, "SWEEP_SECONDS", HOUR
    )  # else what waits is of the clock that has gone back
    async with pair(server.database_for(tmp_path), tmp_path) as two:
        anna, bert = two.companions
        name = fresh_id()
        await two.frame.submit(anna, bert, name=name)
        (item,) = await anna.inbox()
        assert (await anna.claims(two.frame, item)).status == 200
        proof = anna.proof("GET", "/v1/inbox")
        assert (await anna.call("GET", "/v1/inbox", proofs=[proof])).status == 200
        await jump(two, server, -HOUR)
        assert (await bert.claims(two.frame, item)).problem == "already-claimed"
        assert await two.frame.claimer(name) == anna.name
        await jump(two, server, 0)
        assert (await anna.call("GET", "/v1/inbox", proofs=[proof])).problem in (
            "proof-invalid",
            "use-dpop-nonce",
        )
        assert await two.frame.claimer(name) == anna.name
        assert (await two.frame.tell(name, "completed")).status == 200


@pytest.mark.threat("T5")
@pytest.mark.parametrize("was", [HOUR, -HOUR], ids=["ahead", "behind"])
async def test_a_clock_that_is_set_right_refuses_nobody_though_the_relay_has_not_heard_of_it(
    server: PostgresServer, tmp_path: Path, was: float
) -> None:
    async with pair(server.database_for(tmp_path), tmp_path) as two:
        anna, _ = two.companions
        await jump(two, server, was)
        await asyncio.to_thread(server.jump, 0)
        for relay in (two.first, two.second):
            relay.clock.ahead = 0
        assert await anna.inbox() == []
        assert await at(two.second, anna).inbox() == []
        two.first.clock.ahead = was
        assert (await anna.call("GET", "/v1/inbox")).problem == "proof-clock"


@pytest.mark.threat("T5")
async def test_a_clock_that_jumps_ahead_ends_what_waits_and_what_comes_then_has_its_time(
    server: PostgresServer, tmp_path: Path
) -> None:
    async with pair(server.database_for(tmp_path), tmp_path) as two:
        anna, bert = two.companions
        before, after = fresh_id(), fresh_id()
        await two.frame.submit(anna, bert, name=before)
        await jump(two, server, CEILING + 60)
        assert (await two.frame.status(before))["state"] == "expired"
        await two.frame.submit(anna, bert, name=after)
        items = [(await each.inbox())[0] for each in (anna, bert)]
        replies = await asyncio.gather(
            anna.claims(two.frame, items[0]), at(two.first, bert).claims(two.frame, items[1])
        )
        assert sorted(reply.status for reply in replies) == [200, 409]
        assert (await two.frame.tell(after, "completed")).status == 200


@pytest.mark.threat("T5")
async def test_a_request_outlives_a_clock_that_goes_back_by_its_own_life_and_no_longer(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "SWEEP_SECONDS", HOUR)  # the test sweeps
    place = server.database_for(tmp_path)
    async with pair(place, tmp_path) as two:
        name = fresh_id()
        await two.frame.submit(two.companions[0], name=name)
        await jump(two, server, -HOUR)
        query(place, "DELETE FROM turns")
        await two.first.app[RELAY].run("", operations.sweep(None))
        assert (await two.frame.status(name))["state"] == "pending"
        await jump(two, server, -HOUR + CEILING + 60)
        assert (await two.frame.status(name))["state"] == "expired"


async def test_what_a_killed_relay_had_kept_by_a_clock_that_has_gone_back_is_taken_up(
    server: PostgresServer, tmp_path: Path
) -> None:
    place, own, others = server.database_for(tmp_path), RecordingChannel(), RecordingChannel()
    own.gate.clear()
    async with pushing(place, tmp_path, own, others) as (first, second, anna, frame):
        await frame.submit(anna)
        (push,) = await own.came(1)
        await first.app[RELAY].run("", operations.sweep(None))
        await asyncio.to_thread(server.jump, -HOUR)
        await second.app[RELAY].run("", operations.keep_pushes)
        assert await others.came(1) == [push]
        await second.app[RELAY].run("", operations.sweep(None))
        ((left,),) = query(place, "SELECT until - extract(epoch FROM clock_timestamp())::float8 FROM turns")
        assert left <= operations.SWEEP_SECONDS
        own.gate.set()
