"""What account states in Redis survive: a primary that is cut off and comes back, one that is not primary any more, and what is lost."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis

from companion_push.errors import StoreUnavailable
from companion_push.relay.account_states import Value
from companion_push.relay.app import RELAY
from companion_push.relay.redis_place import RedisPlace
from companion_push.relay.redis_states import RedisStates, open_redis
from tests.ports import reserved_port
from tests.relay import redis_servers
from tests.relay.household import Reply, fresh_id
from tests.relay.redis_servers import RedisCluster, RedisServer
from tests.relay.stores import postgres
from tests.relay.test_nodes import at, pair
from tests.relay.test_redis import served_by, write

T = TypeVar("T")


@pytest.fixture(params=["redis", "valkey"])
def cluster(request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    made = RedisCluster(request.param)
    yield made
    made.end()


async def answered(ask: Callable[..., T], *values: Any) -> T:
    """The answer of a server that may be away for a while."""
    async with asyncio.timeout(120):
        while True:
            try:
                return await asyncio.to_thread(ask, *values)
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        await asyncio.to_thread(redis_servers.until, is_so)


def of(states: RedisStates, node: RedisServer) -> str:
    """An account that is kept there."""
    return next(name for number in range(1000) if served_by(states, name := f"account {number}") == node.port)


def is_replica(node: RedisServer) -> bool:
    role = node.do("INFO", "replication")
    return bool(role["role"] == "slave" and role["master_link_status"] == "up")


# A Cluster


@pytest.mark.threat("T3")
async def test_a_primary_that_was_cut_off_comes_back_as_a_replica_and_what_it_was_still_told_does_not_count(
    cluster: RedisCluster,
) -> None:
    """A write waits in its socket while it stands still; another one over the same version is taken by its successor."""
    primary, successor = cluster.nodes[0], cluster.nodes[3]
    async with open_redis(cluster.place()) as one, open_redis(cluster.place()) as other:
        account = of(one, primary)
        assert one.cas(write(account, 5)) is None
        assert primary.do("WAIT", 1, 0) >= 1
        primary.send(signal.SIGSTOP)
        with pytest.raises(redis.TimeoutError):  # nobody is told that it was taken
            primary.do("SET", one._keys(account)[0], (6).to_bytes(8, "big"), socket_timeout=0.1)
        assert await answered(other.cas, write(account, 7, over=5)) is None
        assert successor.do("INFO", "replication")["role"] == "master"
        primary.send(signal.SIGCONT)
        await until(lambda: is_replica(primary))
        await until(lambda: successor.do("WAIT", 1, 1000) >= 1)
        for states in (one, other):
            assert (await answered(states.load, account)).version == 7
            assert (await answered(states.cas, write(account, 8, over=5))) == Value(7, b"value")
        assert await answered(one.cas, write(account, 9, over=7)) is None
        assert (await answered(other.load, account)).version == 9
        primary.do("CLUSTER", "FAILOVER")  # and it serves again when it is asked to
        await until(lambda: primary.do("INFO", "replication")["role"] == "master")
        for states in (one, other):
            assert (await answered(states.load, account)).version == 9


@pytest.mark.threat("T3")
async def test_a_sign_in_goes_on_while_a_primary_is_cut_off_and_back_and_its_claim_stands(
    cluster: RedisCluster, tmp_path: Path
) -> None:
    place = postgres().database_for(tmp_path)
    async with pair(place, tmp_path, states=cluster.place()) as two:
        anna, bert = two.companions
        states = two.first.app[RELAY]._own_states
        assert isinstance(states, RedisStates)
        primary = next(node for node in cluster.nodes if node.port == served_by(states, two.home.account))
        name = fresh_id()
        await two.frame.submit(anna, bert, name=name)
        (item,) = await bert.inbox()
        words = [
            await each.claim(two.frame, name) for each in (anna, bert)
        ]  # the ring is not to be had meanwhile
        assert primary.do("WAIT", 1, 0) >= 1
        primary.send(signal.SIGSTOP)
        replies = await asyncio.gather(
            again(lambda: anna.act(two.frame, name, "claimed", word=words[0])),
            again(lambda: at(two.first, bert).act(two.frame, name, "claimed", word=words[1])),
        )
        assert sorted(reply.status for reply in replies) == [200, 409]
        winner, loser = (anna, bert) if replies[0].status == 200 else (bert, anna)
        primary.send(signal.SIGCONT)
        await until(lambda: is_replica(primary))
        for relay in (two.first, two.second):
            late = await again(partial(at(relay, loser).claims, two.frame, item))
            assert late.problem == "already-claimed"
            status = await again(partial(at(relay, two.frame).get, f"/v1/requests/{name}"))
            assert status.body["claim"]["by"] == winner.name
        assert (await again(lambda: two.frame.tell(name, "completed"))).status == 200


async def again(call: Callable[[], Any]) -> Reply:
    """The answer of a relay once its states answer, as clients ask again."""
    async with asyncio.timeout(120):
        while True:
            reply: Reply = await call()
            if reply.problem != "store-unavailable":
                return reply
            await asyncio.sleep(0.05)


# A name that follows the primary


class Name:
    """A name, and where it leads: those who have connected stay where they are."""

    def __init__(self) -> None:
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        away_reader, away = await asyncio.open_connection("127.0.0.1", self.port)

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    sink.write(data)
            for end in (writer, away):
                end.transport.abort()

        await asyncio.gather(carry(reader, away), carry(away_reader, writer))


@contextlib.asynccontextmanager
async def named(port: int) -> AsyncIterator[tuple[Name, RedisPlace]]:
    name = Name()
    name.port = port
    server = await asyncio.start_server(name.serve, "127.0.0.1", 0)
    async with server:
        yield name, RedisPlace(hosts=(("127.0.0.1", server.sockets[0].getsockname()[1]),))


@pytest.mark.parametrize("serves_stale_data", ["yes", "no"])
@pytest.mark.parametrize("engine", ["redis", "valkey"])
async def test_states_are_at_the_new_primary_when_the_name_leads_to_it_though_the_old_one_lives(
    engine: str,
    serves_stale_data: str,
) -> None:
    """Nobody cuts the connections to the old one, which refuses writes (READONLY), or all it is asked (MASTERDOWN)."""
    at_once = "repl-diskless-sync-delay 0"
    old, new = await asyncio.to_thread(lambda: (RedisServer(engine, at_once), RedisServer(engine, at_once)))
    try:
        new.do("REPLICAOF", "127.0.0.1", old.port)
        await until(lambda: is_replica(new))
        async with named(old.port) as (name, place), open_redis(place) as states:
            assert await asyncio.to_thread(states.cas, write("alice", 5)) is None
            assert old.do("WAIT", 1, 0) >= 1
            new.do("REPLICAOF", "NO", "ONE")
            old.do("CONFIG", "SET", "replica-serve-stale-data", serves_stale_data)
            old.do("REPLICAOF", "127.0.0.1", new.port if serves_stale_data == "yes" else reserved_port())
            name.port = new.port
            with pytest.raises(StoreUnavailable):
                await asyncio.to_thread(states.cas, write("alice", 6, over=5))
            assert await answered(states.cas, write("alice", 6, over=5)) is None
            assert new.do("INFO", "replication")["role"] == "master"
            assert (await answered(states.load, "alice")).version == 6
    finally:
        for server in (old, new):
            server.end()
