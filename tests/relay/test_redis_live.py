"""What an operator does to a live server of account states: moves slots, changes who may do what, empties it, writes into it."""

import asyncio
import gc
import logging
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from redis.exceptions import RedisError

from companion_push.errors import StoreUnavailable
from companion_push.relay import operations, readiness
from companion_push.relay import redis_states as redis_module
from companion_push.relay.account_state import OUTCOMES
from companion_push.relay.account_states import ABSENT, Value
from companion_push.relay.app import RELAY
from companion_push.relay.messages import MAX_SEALED
from companion_push.relay.redis_place import RedisPlace
from companion_push.relay.redis_states import RedisStates, _bucket, open_redis
from headless_passkey.trust.ring import MAX_COMPANIONS
from http_serving.log_limit import MAX_LINES
from program_parts.base64url import base64url
from tests.ports import reserved_port
from tests.relay import redis_servers
from tests.relay.household import Caller, Household, fresh_id
from tests.relay.redis_servers import RedisServer, known
from tests.relay.test_notifying import registers, token
from tests.relay.test_redis import ANNAS, PASSWORD, served_by, write
from tests.relay.test_redis_faults import answered
from tests.relay.test_two_stores import House, a_house

NOTHING: Final = Value(ABSENT, None)


@pytest.fixture(params=["redis", "valkey"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(engine: str) -> Iterator[RedisServer]:
    made = RedisServer(engine)
    yield made
    made.end()


@pytest.fixture
def asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who did not answer is asked again at once."""
    monkeypatch.setattr(redis_module, "_AWAY_SECONDS", 0.0)


def beside(account: str) -> Iterator[str]:
    """Other accounts of its slot."""
    names = (f"account {number}" for number in range(100_000))
    return (name for name in names if _bucket(name) == _bucket(account))


# Slots and nodes of a Cluster


@asynccontextmanager
async def a_node_and_a_new_one(
    engine: str, *, halves: bool = False
) -> AsyncIterator[tuple[RedisServer, RedisServer]]:
    """A Cluster of one primary that has all slots, and of one that has none yet. halves: that has the first half of them."""
    buses = [reserved_port(), reserved_port()]
    made: list[RedisServer] = []
    try:
        for bus in buses:
            settings = ("cluster-enabled yes", f"cluster-port {bus}", "cluster-node-timeout 60000")
            made.append(await asyncio.to_thread(RedisServer, engine, *settings))
        old, new = made
        old.do("CLUSTER", "ADDSLOTSRANGE", 8192 if halves else 0, 16383)
        if halves:
            new.do("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
        for epoch, each in enumerate(made, 1):
            each.do("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        new.do("CLUSTER", "MEET", "127.0.0.1", old.port, buses[0])
        await asyncio.to_thread(
            redis_servers.until,
            lambda: all(
                known(each) == 2 and b"cluster_state:ok" in each.do("CLUSTER", "INFO") for each in made
            ),
        )
        yield old, new
    finally:
        for each in made:
            each.end()
        gc.collect()  # redis-py leaves connections of a node that is gone to it


def give(slots: range, *, to: RedisServer, at: list[RedisServer]) -> None:
    """Give empty slots to a node, as these know it."""
    name = to.do("CLUSTER", "MYID")
    for node in at:
        with redis.Redis(port=node.port) as client:
            asking: Any = client
            pipeline = asking.pipeline(transaction=False)
            for number in slots:
                pipeline.execute_command("CLUSTER", "SETSLOT", number, "NODE", name)
            pipeline.execute()


@pytest.mark.threat("T17")
async def test_while_a_node_is_away_its_accounts_are_refused_at_once_and_the_others_served(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_module, "monotonic", lambda: 100.0)
    async with (
        a_node_and_a_new_one(engine, halves=True) as (old, new),
        open_redis(RedisPlace(hosts=(("127.0.0.1", old.port),))) as states,
    ):
        names = [f"account {number}" for number in range(100)]
        lost = [name for name in names if served_by(states, name) == new.port]
        kept = [name for name in names if served_by(states, name) == old.port]
        for name in names:
            assert states.cas(write(name, 5)) is None
        new.kill()
        with pytest.raises(StoreUnavailable, match="do not answer"):
            states.load(lost[0])
        for name in lost:
            with pytest.raises(StoreUnavailable, match="a moment ago"):
                states.load(name)
        for name in kept:
            assert states.load(name) == Value(5, b"value")


@pytest.mark.threat("T17")
async def test_a_relay_is_ready_while_some_node_is_there_and_not_while_the_cluster_is_down(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "SHARED_SECONDS", 0.0)
    monkeypatch.setattr(redis_module, "_AWAY_SECONDS", 0.0)
    async with a_node_and_a_new_one(engine, halves=True) as nodes:
        old, new = nodes
        place = RedisPlace(hosts=(("127.0.0.1", old.port),))
        async with open_redis(place) as states, a_house(tmp_path, place) as house:
            assert await is_ready(house) == 200
            answered = house.relay.app[RELAY]._own_states
            assert isinstance(answered, RedisStates)
            lost = next(each for each in nodes if answered._answered.endswith(f":{each.port}"))
            left = old if lost is new else new
            lost.kill()
            assert await is_ready(house) == 200
            states.ask_any()  # of a relay that comes later
            a_slot = 0 if left is new else 8192
            left.do(
                "CLUSTER", "DELSLOTS", a_slot
            )  # with cluster-require-full-coverage, nothing is served then
            assert await is_ready(house) == 503
            left.do("CLUSTER", "ADDSLOTS", a_slot)
            assert await is_ready(house) == 200
            left.kill()
            assert await is_ready(house) == 503


@pytest.mark.usefixtures("asked_at_once")
@pytest.mark.threat("T17")
async def test_while_a_node_is_away_a_relay_starts_and_the_accounts_of_the_others_are_swept(
    engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_node_and_a_new_one(engine, halves=True) as (old, new):
        place = RedisPlace(hosts=(("127.0.0.1", old.port),))
        async with open_redis(place) as states, a_house(tmp_path, place) as house:
            names = [f"account {number}" for number in range(100)]
            kept = {name for name in names if served_by(states, name) == old.port}
            assert 0 < len(kept) < len(names)
            for name in names:
                assert states.cas(write(name, 5)) is None
            assert set(states.due(1.0, None)) == set(names)
            home = house.home
            while served_by(states, home.account) != old.port:
                home = await house.relay.household(fresh_id())
            await home.devices[0].submit(home.companions[0])
            new.kill()
            async with open_redis(place) as later:
                assert "1 of 2 primaries do not answer" in later.look().warnings[0]
                for each in (states, later):
                    assert set(each.due(1.0, None)) & set(names) == kept
            caplog.clear()
            endpoints = house.relay.app[RELAY]
            for _ in range(2):
                house.relay.clock.ahead += 300
                await endpoints._in_portions(operations.sweep, operations.sweep_of)
            (line,) = said(caplog)
            assert line.startswith(
                "the accounts of a node of the Cluster cannot be swept: the account states"
            )
            assert home.account not in states.due(house.relay.clock(), None)
            old.kill()
            with pytest.raises(StoreUnavailable):
                states.due(1.0, None)


async def is_ready(house: House) -> int:
    async with house.relay.session.get(house.relay.url + "/readyz") as response:
        return response.status


@pytest.mark.usefixtures("asked_at_once")
@pytest.mark.threat("T3")
async def test_a_slot_moves_to_a_new_node_and_the_old_one_is_removed(engine: str) -> None:
    async with (
        a_node_and_a_new_one(engine) as (old, new),
        open_redis(RedisPlace(hosts=(("127.0.0.1", old.port),))) as states,
    ):
        others = beside("alice")
        bob, carol = next(others), next(others)
        for account in ("alice", bob):
            assert states.cas(write(account, 5)) is None
        value, envelopes, listed = states._keys("alice")
        slot = old.do("CLUSTER", "KEYSLOT", value)
        new.do("CLUSTER", "SETSLOT", slot, "IMPORTING", old.do("CLUSTER", "MYID"))
        name = new.do("CLUSTER", "MYID")
        old.do("CLUSTER", "SETSLOT", slot, "MIGRATING", name)

        def move(*keys: str | bytes) -> None:
            old.do("MIGRATE", "127.0.0.1", new.port, "", 0, 10_000, "KEYS", *keys)

        # nothing has moved yet: the new node is asked for what the old one has not (ASK)
        assert states.load(carol) == NOTHING
        assert states.cas(write("alice", 6, over=5)) is None
        # of what has moved in part nothing is written (TRYAGAIN)
        for moved in (envelopes, value):
            move(moved)
            assert states.load("alice") == Value(6, b"value")
            assert states.envelopes("alice", [ANNAS]) == {ANNAS: b"sealed"}
            with pytest.raises(StoreUnavailable, match="a slot is being moved"):
                states.cas(write("alice", 7, over=6))
            assert states.load("alice") == Value(6, b"value")
            assert states.due(1.0, None) == sorted(["alice", bob])
        with pytest.raises(StoreUnavailable):
            states.cas(write(carol, 7))
        move(listed)
        assert states.cas(write("alice", 7, over=6)) is None
        assert states.cas(write("alice", 8, over=6)) == Value(7, b"value")
        move(*old.do("CLUSTER", "GETKEYSINSLOT", slot, 100))
        for each in (new, old):
            each.do("CLUSTER", "SETSLOT", slot, "NODE", name)
        assert states.cas(write(carol, 5)) is None
        assert states.cas(write(bob, 6, over=5)) is None
        assert states.due(1.0, None) == sorted(["alice", bob, carol])
        # the other slots are moved, and the old node is forgotten and ends
        give(range(16384), to=new, at=[new])
        new.do("CLUSTER", "FORGET", old.do("CLUSTER", "MYID"))
        old.kill()
        assert await answered(states.cas, write("alice", 8, over=7)) is None
        assert await answered(states.cas, write("dora", 5)) is None
        assert set(await answered(states.due, 1.0, None)) == {"alice", bob, carol, "dora"}


# What the server forgets


async def test_scripts_and_connections_that_a_server_drops_are_made_again(server: RedisServer) -> None:
    async with open_redis(server.place()) as states:
        assert states.cas(write("alice", 5)) is None
        server.do("SCRIPT", "FLUSH")
        assert states.cas(write("alice", 6, over=5)) is None
        server.do("CLIENT", "KILL", "TYPE", "normal")
        assert states.cas(write("alice", 7, over=6)) is None
        server.do("CLIENT", "KILL", "TYPE", "normal")
        assert states.load("alice") == Value(7, b"value")


@pytest.mark.threat("T3")
async def test_of_a_server_that_is_emptied_no_state_of_before_is_written_over(server: RedisServer) -> None:
    async with open_redis(server.place()) as states:
        assert states.cas(write("alice", 5)) is None
        server.do("FLUSHALL")
        assert states.cas(write("alice", 6, over=5)) == NOTHING
        assert states.cas(write("alice", 7, sealed={})) is None
        assert states.envelopes("alice", [ANNAS]) == {}


@pytest.mark.usefixtures("asked_at_once")
async def test_while_a_script_of_somebody_else_runs_nobody_is_served_and_then_all_are(
    server: RedisServer,
) -> None:
    async with open_redis(server.place()) as states:
        assert states.cas(write("alice", 5)) is None
        server.do("CONFIG", "SET", "busy-reply-threshold", 1)

        def runs() -> None:
            with suppress(RedisError):  # it is killed
                server.do("EVAL", "while true do end", 0)

        def is_busy() -> bool:
            try:
                return not server.do("PING")
            except RedisError:
                return True

        running = threading.Thread(target=runs)
        running.start()
        try:
            await asyncio.to_thread(redis_servers.until, is_busy)
            with pytest.raises(StoreUnavailable, match="BUSY"):
                states.load("alice")
            with pytest.raises(StoreUnavailable, match="BUSY"):
                states.cas(write("alice", 6, over=5))
        finally:
            server.do("SCRIPT", "KILL")
            running.join()
        assert states.cas(write("alice", 7, over=5)) is None


@pytest.mark.threat("T17")
async def test_while_one_call_tries_a_server_that_hangs_no_other_waits_for_it(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = [100.0]
    monkeypatch.setattr(redis_module, "monotonic", lambda: sum(ticks))
    async with open_redis(server.place()) as states:
        assert states.cas(write("alice", 5)) is None
        server.kill()
        with pytest.raises(StoreUnavailable, match="do not answer"):
            states.load("alice")
        server.start()
        server.send(signal.SIGSTOP)
        ticks.append(redis_module._AWAY_SECONDS)
        trying = asyncio.create_task(asyncio.to_thread(states.load, "alice"))
        await asyncio.to_thread(redis_servers.until, lambda: states._away[redis_module._ALL][0] > sum(ticks))
        with pytest.raises(StoreUnavailable, match="a moment ago"):
            states.load("alice")
        server.send(signal.SIGCONT)
        await asyncio.wait([trying])
        if trying.exception() is not None:  # the machine was too slow for it
            ticks.append(redis_module._TRY_SECONDS)
        assert states.load("alice") == Value(5, b"value")
        assert states._away == {}


# Who may do what


@pytest.mark.usefixtures("asked_at_once")
@pytest.mark.threat("T11")
async def test_a_password_is_changed_while_both_are_taken(server: RedisServer) -> None:
    server.do("ACL", "SETUSER", "relay", "on", f">{PASSWORD}", "~*", "+@all")
    async with open_redis(server.place(user="relay", password=PASSWORD)) as states:
        assert states.cas(write("alice", 5)) is None
        server.do("ACL", "SETUSER", "relay", ">another")
        async with open_redis(server.place(user="relay", password="another")) as next_one:
            assert next_one.load("alice") == Value(5, b"value")
            server.do("ACL", "SETUSER", "relay", f"<{PASSWORD}")
            assert states.load("alice") == Value(5, b"value")  # over the connection that it has
            server.do("CLIENT", "KILL", "TYPE", "normal")
            with pytest.raises(StoreUnavailable, match="does not take this user") as refused:
                states.load("alice")
            assert PASSWORD not in str(refused.value)
            assert next_one.load("alice") == Value(5, b"value")
        server.do("ACL", "SETUSER", "relay", f">{PASSWORD}")
        assert states.load("alice") == Value(5, b"value")


@pytest.mark.usefixtures("asked_at_once")
async def test_a_password_that_is_asked_for_all_at_once_and_a_user_that_is_gone_are_said(
    server: RedisServer,
) -> None:
    server.do("ACL", "SETUSER", "relay", "on", f">{PASSWORD}", "~*", "+@all")
    async with (
        open_redis(server.place()) as states,
        open_redis(server.place(user="relay", password=PASSWORD)) as named,
    ):
        server.do("CONFIG", "SET", "requirepass", PASSWORD)
        server.do("ACL", "DELUSER", "relay", password=PASSWORD)  # whose connections the server cuts
        server.do("CLIENT", "KILL", "TYPE", "normal", password=PASSWORD)
        for each in (states, named):
            with pytest.raises(StoreUnavailable, match="does not take this user"):
                each.load("alice")
        server.do("CONFIG", "SET", "requirepass", "", password=PASSWORD)
        assert states.load("alice") == NOTHING


@pytest.mark.threat("T12")
@pytest.mark.parametrize("missing", ["get", "set", "exists", "zrangebyscore", "hmget"])
async def test_what_the_user_may_not_do_is_refused_without_the_name_of_an_account(
    server: RedisServer, missing: str
) -> None:
    async with open_redis(server.place()) as states:
        assert states.cas(write("alice", 5)) is None
        server.do("ACL", "SETUSER", "default", f"-{missing}")

        def all_of_it() -> None:
            states.load("alice")
            states.envelopes("alice", [ANNAS])
            states.due(1.0, None)
            states.cas(write("alice", 6, over=5))

        with pytest.raises(StoreUnavailable) as refused:
            all_of_it()
        assert "alice" not in str(refused.value)
        server.do("ACL", "SETUSER", "default", "+@all")
        assert states.load("alice") == Value(5, b"value")


# What others write there


@pytest.mark.threat("T17")
@pytest.mark.parametrize(
    "rubbish",
    [
        ("SET", b""), ("SET", b"short"), ("SET", b"\0\0\0\0\0\0\0\5"), ("SET", bytes(8) + b"value"), ("RPUSH", b"x"),
    ],
    ids=repr,
)  # fmt: skip
async def test_of_a_value_that_is_none_its_account_alone_goes_on_without_it(
    server: RedisServer, rubbish: tuple[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    bob = next(beside("alice"))
    async with open_redis(server.place()) as states:
        for each in ("alice", bob):
            assert states.cas(write(each, 5)) is None
        value = states._keys("alice")[0]
        server.do("DEL", value)
        server.do(rubbish[0], value, rubbish[1])
        assert states.cas(write("alice", 6, over=5)) == NOTHING
        assert [states.load("alice") for _ in range(3)] == [NOTHING] * 3
        assert states.envelopes("alice", [ANNAS]) == {}
        assert states.due(1.0, None) == [bob]
        assert states.load(bob) == Value(5, b"value")
        assert states.cas(write("alice", 7)) is None
        assert states.due(1.0, None) == sorted(["alice", bob])
    (line,) = said(caplog)
    assert "something else was in its place" in line
    assert "alice" not in line


@pytest.mark.threat("T17")
async def test_of_envelopes_of_another_type_the_account_alone_goes_on_without_its_requests(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    bob = next(beside("alice"))
    async with open_redis(server.place()) as states:
        for each in ("alice", bob):
            assert states.cas(write(each, 5)) is None
        envelopes = states._keys("alice")[1]
        server.do("SET", envelopes, "x")
        assert [states.envelopes("alice", [ANNAS]) for _ in range(3)] == [{}] * 3
        assert states.load("alice") == NOTHING
        assert states.envelopes(bob, [ANNAS]) == {ANNAS: b"sealed"}
        assert states.cas(write("alice", 6)) is None
        server.do("SET", envelopes, "x")
        assert states.cas(write("alice", 7, over=6)) is None, "a write makes them anew"
        assert states.envelopes("alice", [ANNAS]) == {ANNAS: b"sealed"}
    assert len(said(caplog)) == 1


@pytest.mark.threat("T17")
async def test_a_list_of_what_is_to_be_swept_is_made_anew_by_who_writes_next(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    other_bucket = next(name for name in map(str, range(1000)) if _bucket(name) != _bucket("alice"))
    async with open_redis(server.place()) as states:
        for each in ("alice", other_bucket):
            assert states.cas(write(each, 5)) is None
        listed = states._keys("alice")[2]
        for name in (b"\xff", b"a\0b", b"", other_bucket.encode()):
            server.do("ZADD", listed, 0, name)
        assert set(states.due(1.0, None)) == {"alice", other_bucket}
        assert server.do("ZRANGE", listed, 0, -1) == [b"alice"]
        server.do("SET", listed, "x")
        assert states.due(1.0, None) == [other_bucket]
        server.do("SET", listed, "x")
        assert states.cas(write("alice", 6, over=5)) is None
        assert set(states.due(1.0, None)) == {"alice", other_bucket}
        server.do("SET", listed, "x")
        assert states.cas(write("alice", ABSENT, over=6, data=None)) is None
        assert states.due(1.0, None) == [other_bucket]
    assert len(said(caplog)) == 2


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.threat("T17")
async def test_a_device_and_its_companions_go_on_after_something_else_was_in_place_of_their_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        with redis_servers.client(house.states) as client:
            asking: Any = client
            (key,) = redis_servers.keys(asking, f"{house.states.prefix}:*:e:*")
            asking.set(key, b"x")
        assert await anna.inbox() == []
        assert (await frame.get(f"/v1/requests/{name}")).problem == "not-found"
        await frame.submit(anna, bert, name=name)
        (item,) = await bert.inbox()
        assert (await bert.claims(frame, item)).status == 200
        assert (await frame.tell(name, "completed")).status == 200
    assert len(said(caplog)) == 1


@pytest.mark.threat("T17")
async def test_members_who_poll_a_relay_whose_states_are_away_do_not_fill_its_log(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = MAX_LINES + 10
    async with a_house(tmp_path, server.place()) as house:
        server.kill()
        for _ in range(calls):
            assert (await house.people[0].get("/v1/inbox")).problem == "store-unavailable"
    lines = [line for line in said(caplog) if line.startswith("the account states d")]
    left_out = f"{calls - len(lines)} more calls were refused since the store does not answer within 60 s"
    assert (len(lines), left_out in said(caplog)) == (MAX_LINES, True)


# What is done to all accounts


def allow_all_but(server: RedisServer, account: str) -> None:
    """Take nothing more of the accounts of one slot, as while that is moved."""
    buckets = [number for number in range(redis_module.BUCKETS) if number != _bucket(account)]
    server.do("ACL", "SETUSER", "default", "resetkeys", "%R~*", *(f"~*:{{{each:02x}}}:*" for each in buckets))


@pytest.mark.threat("T17")
async def test_accounts_whose_slot_cannot_be_written_keep_none_of_the_others_from_being_swept(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_house(tmp_path, server.place()) as house:
        endpoints = house.relay.app[RELAY]
        homes = [house.home, await house.relay.household("bob"), await house.relay.household("carol")]
        for home in homes:
            await home.devices[0].submit(home.companions[0])
        stuck = homes[0]
        allow_all_but(server, stuck.account)
        house.relay.clock.ahead += 300
        assert await endpoints._in_portions(operations.sweep, operations.sweep_of) == (2, False)
        assert house.envelopes() == [stuck.companions[0].name]
        (line,) = said(caplog)
        assert line.startswith("1 accounts could not be looked at: ")
        assert stuck.account not in line
        server.do("ACL", "SETUSER", "default", "allkeys")
        house.relay.clock.ahead += 60  # until the next sweep is due
        assert await endpoints._in_portions(operations.sweep, operations.sweep_of) == (1, False)
        assert house.envelopes() == []


async def test_a_relay_starts_and_renews_leases_also_while_a_slot_cannot_be_written(
    server: RedisServer, tmp_path: Path
) -> None:
    async with a_house(tmp_path, server.place()) as house:
        homes = [house.home, await house.relay.household("bob")]
        for home in homes:
            await home.devices[0].submit(home.companions[0])
            (item,) = await home.companions[0].inbox()
            assert (await home.companions[0].claims(home.devices[0], item)).status == 200
        allow_all_but(server, homes[0].account)
        house.relay.clock.ahead += 100

        def heard_at(home: Household) -> list[float]:
            state = house.state(home.account)
            assert state is not None
            return [request.heard_at for request in state.requests]

        before = [heard_at(home) for home in homes]
        await house.relay.app[RELAY]._renew_leases()
        after = [heard_at(home) for home in homes]
        assert after[0] == before[0]
        assert after[1] > before[1]


@pytest.mark.threat("T17")
async def test_accounts_whose_slot_cannot_be_written_keep_no_outcome_of_the_others_pushes_from_being_stored(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("companion_push.relay.notifier._AGAIN", 0.01)
    async with a_house(tmp_path, server.place()) as house:
        homes = [house.home, await house.relay.household("bob")]
        names = [fresh_id(), fresh_id()]
        house.fcm.gate.clear()
        for home, name in zip(homes, names, strict=True):
            await registers(home.companions[0])
            await home.devices[0].submit(home.companions[0], name=name)
        await house.fcm.came(2)
        allow_all_but(server, homes[0].account)
        house.fcm.gate.set()
        assert await outcome(homes[1].devices[0], names[1]) == "sent"
        server.do("ACL", "SETUSER", "default", "allkeys")
        assert await outcome(homes[0].devices[0], names[0]) == "sent"


@pytest.mark.threat("T17")
async def test_accounts_whose_slot_cannot_be_written_keep_no_push_of_the_others_with_a_relay_that_was_killed(
    server: RedisServer, tmp_path: Path
) -> None:
    async with a_house(tmp_path, server.place()) as house:
        endpoints = house.relay.app[RELAY]
        homes = [house.home, await house.relay.household("bob")]
        house.fcm.gate.clear()
        for home in homes:
            await registers(home.companions[0])
            await home.devices[0].submit(home.companions[0])
        await house.fcm.came(2)
        await homes[0].companions[0].inbox()  # so that its push is to be noted as late
        endpoints._notifier._in_flight.clear()  # they are of a relay that was killed
        house.relay.clock.ahead += 100
        allow_all_but(server, homes[0].account)
        await endpoints._keep_pushes_once()
        house.fcm.gate.set()
        await house.fcm.came(3)
        assert house.fcm.shown()[2] == ("request", token(homes[1].companions[0]))


async def outcome(device: Caller, name: str) -> str:
    """What has become of the one push for a request, once that is stored."""
    status = await device.status(name)
    while status["notified"][0]["outcome"] == "pending":
        status = (await device.get(f"/v1/requests/{name}?version={status['version']}&wait=25")).body
    return str(status["notified"][0]["outcome"])


@pytest.mark.threat("T17")
async def test_what_a_device_takes_of_the_servers_memory_does_not_grow_with_its_requests(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest envelopes that there are, for as many companions as an account has; only the newest request has any."""
    monkeypatch.setattr("tests.relay.household.SEALED", base64url(bytes(MAX_SEALED)))
    async with a_house(tmp_path, server.place()) as house:
        home = await house.relay.household("bob", companions=MAX_COMPANIONS)
        used = []
        for _ in range(OUTCOMES + 2):
            submitted = await home.devices[0].submit(*home.companions)
            assert submitted.status == 201
            used.append(
                sum(server.do("MEMORY", "USAGE", key, "SAMPLES", 0) for key in server.do("KEYS", "*"))
            )
    assert used[0] > MAX_SEALED * MAX_COMPANIONS
    assert max(used) < 80 * 1024


async def test_a_policy_that_drops_values_is_said_once_in_life_and_once_when_it_is_over(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_house(tmp_path, server.place()) as house:
        endpoints = house.relay.app[RELAY]
        server.do("CONFIG", "SET", "maxmemory", "1gb", "maxmemory-policy", "allkeys-lru")
        for _ in range(2):
            await endpoints.look_at_states()
        (line,) = said(caplog)
        assert "maxmemory-policy is allkeys-lru" in line
        server.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
        for _ in range(2):
            await endpoints.look_at_states()
        assert len(said(caplog)) == 2
