"""Account states in Redis whose own clock jumps, on one server and on one node of a Cluster."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from companion_push.relay.account_states import ABSENT, Value
from companion_push.relay.app import RELAY
from companion_push.relay.limits import CEILING
from companion_push.relay.mailbox import GRACE, KEPT
from companion_push.relay.operations import sweep
from companion_push.relay.redis_states import RedisStates, open_redis
from tests.relay import redis_servers
from tests.relay.household import fresh_id, running_relay
from tests.relay.redis_servers import RedisCluster, RedisServer
from tests.relay.stores import postgres
from tests.relay.test_nodes import Pair, at, pair
from tests.relay.test_redis import ANNAS, served_by, write
from tests.relay.test_redis_faults import again, answered

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
LONG: Final = 2 * DAY


@asynccontextmanager
async def jumping(engine: str) -> AsyncIterator[RedisServer]:
    """A server whose clock the test sets."""
    server = await asyncio.to_thread(lambda: RedisServer(engine, jumps=True))
    try:
        yield server
    finally:
        server.end()


# One server


@pytest.mark.threat("T5")
@pytest.mark.parametrize("engine", ["redis", "valkey"])
async def test_a_value_and_its_envelopes_outlive_a_jump_of_less_than_a_day_and_go_together_in_a_longer_one(
    engine: str,
) -> None:
    async with jumping(engine) as server, open_redis(server.place()) as states:
        assert states.cas(write("alice", 5)) is None
        for ahead in (DAY - HOUR, HOUR - DAY, 0):
            server.jump(ahead)
            assert states.load("alice") == Value(5, b"value")
            assert states.envelopes("alice", [ANNAS]) == {ANNAS: b"sealed"}
        assert states.cas(write("alice", 6, over=5, lasts=LONG, sealed={})) is None
        server.jump(LONG)
        assert states.envelopes("alice", [ANNAS]) == {ANNAS: b"sealed"}, "of a value that is there"
        server.jump(LONG + DAY + HOUR)
        assert (states.load("alice").version, states.envelopes("alice", [ANNAS])) == (ABSENT, {})
        assert states.cas(write("alice", 7)) is None  # and with that clock it goes on
        assert states.load("alice").version == 7


async def sign_in_over_jumps(two: Pair, server: RedisServer) -> None:
    """Claims before and after jumps, at two relays at once."""
    anna, bert = two.companions
    for ahead in (HOUR, -HOUR, 0):
        name = fresh_id()
        assert (await two.frame.submit(anna, bert, name=name)).status == 201
        proof = anna.proof("GET", "/v1/inbox")
        assert (await anna.call("GET", "/v1/inbox", proofs=[proof])).status == 200
        await asyncio.to_thread(server.jump, ahead)
        assert (await anna.call("GET", "/v1/inbox", proofs=[proof])).problem == "proof-invalid"
        ((item,), (also,)) = await anna.inbox(), await bert.inbox()
        replies = await asyncio.gather(
            anna.claims(two.frame, item), at(two.first, bert).claims(two.frame, also)
        )
        assert sorted(reply.status for reply in replies) == [200, 409]
        winner, loser = (anna, bert) if replies[0].status == 200 else (bert, anna)
        await asyncio.to_thread(server.jump, -ahead)
        assert (await loser.claims(two.frame, item)).problem == "already-claimed"
        assert await two.frame.claimer(name) == winner.name
        assert (await two.frame.tell(name, "completed")).status == 200
        assert await anna.inbox() == []


@pytest.mark.threat("T3")
@pytest.mark.threat("T13")
@pytest.mark.parametrize("engine", ["redis", "valkey"])
async def test_while_the_clock_jumps_by_an_hour_one_claim_stands_and_no_proof_is_taken_again(
    engine: str, tmp_path: Path
) -> None:
    place = postgres().database_for(tmp_path)
    async with jumping(engine) as server, pair(place, tmp_path, states=server.place()) as two:
        await sign_in_over_jumps(two, server)


@pytest.mark.threat("T5")
async def test_no_request_outlives_its_minutes_where_the_clock_has_gone_back(tmp_path: Path) -> None:
    """The store's clock ends it, and what is over is deleted."""
    place = postgres().database_for(tmp_path)
    async with (
        jumping("redis") as server,
        running_relay(tmp_path, place=place, states=server.place()) as relay,
    ):
        home = await relay.household()
        (anna, bert), (frame,) = home.companions, home.devices
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        await asyncio.to_thread(server.jump, -HOUR)
        relay.clock.ahead += CEILING
        assert await anna.inbox() == []
        assert (await frame.status(name))["state"] == "expired"
        keys = redis_servers.client(server.place())
        with keys as client:
            relay.clock.ahead += 1
            await relay.app[RELAY].run("", sweep(None), called=False)
            assert not redis_servers.keys(client, "*:e:*")
            relay.clock.ahead += GRACE + KEPT + DAY  # a row of requests without approval is known for a day
            await relay.app[RELAY].run("", sweep(None), called=False)
            assert not redis_servers.keys(client, "*")


@pytest.mark.threat("T3")
async def test_what_a_jump_of_days_has_taken_is_as_if_it_had_not_been_and_comes_again(tmp_path: Path) -> None:
    place = postgres().database_for(tmp_path)
    async with jumping("redis") as server, pair(place, tmp_path, states=server.place()) as two:
        anna, bert = two.companions
        name = fresh_id()
        await two.frame.submit(anna, bert, name=name)
        assert (await anna.claims(two.frame, (await anna.inbox())[0])).status == 200
        await asyncio.to_thread(server.jump, 3 * DAY)
        assert (await two.frame.get(f"/v1/requests/{name}")).problem == "not-found"
        assert await anna.inbox() == []
        assert (await two.frame.submit(anna, bert, name=name)).status == 201
        items = [(await each.inbox())[0] for each in (anna, bert)]
        replies = await asyncio.gather(
            anna.claims(two.frame, items[0]), at(two.first, bert).claims(two.frame, items[1])
        )
        assert sorted(reply.status for reply in replies) == [200, 409]


# A Cluster


@pytest.mark.threat("T3")
async def test_one_node_of_a_cluster_may_be_an_hour_off_and_its_successor_knows_its_claims(
    tmp_path: Path,
) -> None:
    """The primary that is behind has its replica told of times that are over there."""
    cluster = await asyncio.to_thread(lambda: RedisCluster("redis", jumps=True))
    try:
        place = postgres().database_for(tmp_path)
        async with pair(place, tmp_path, states=cluster.place()) as two:
            states = two.first.app[RELAY]._own_states
            assert isinstance(states, RedisStates)
            primary = next(each for each in cluster.nodes if each.port == served_by(states, two.home.account))
            await sign_in_over_jumps(two, primary)
            anna, bert = two.companions
            await asyncio.to_thread(primary.jump, -HOUR)
            name = fresh_id()
            await two.frame.submit(anna, bert, name=name)
            assert len(await anna.inbox()) == 1
            words = [await each.claim(two.frame, name) for each in (anna, bert)]
            assert primary.do("WAIT", 1, 0) >= 1
            primary.kill()
            replies = await asyncio.gather(
                again(lambda: anna.act(two.frame, name, "claimed", word=words[0])),
                again(lambda: at(two.first, bert).act(two.frame, name, "claimed", word=words[1])),
            )
            assert sorted(reply.status for reply in replies) == [200, 409]
            status = await again(lambda: two.frame.get(f"/v1/requests/{name}"))
            assert status.body["claim"]["by"] == (anna if replies[0].status == 200 else bert).name
            assert (await answered(states.load, two.home.account)).version != ABSENT
    finally:
        cluster.end()
