"""Several relays on one database: what they promise, with a device at one and its companions at another."""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio

from companion_push.errors import StoreBusy, StoreUnusable
from companion_push.relay import account_events, operations, postgres_nodes
from companion_push.relay.account_states import SqlStates, States
from companion_push.relay.app import RELAY
from companion_push.relay.held_requests import HeldRequest
from companion_push.relay.nodes import WakeUp
from companion_push.relay.postgres import PostgresStore, open_postgres
from companion_push.relay.postgres_nodes import MAX_PAYLOAD, PostgresProofs, payloads
from companion_push.relay.problems import Problem, Slug
from companion_push.relay.proofs import STEP, Proof
from companion_push.relay.redis_place import RedisPlace
from companion_push.relay.store_place import PostgresUri
from companion_push.relay.stores import open_store
from companion_push.serving import webhook_client
from headless_passkey.process.tasks import end_quietly
from postgres_store import database
from tests.companion.program import Program, outcome, running
from tests.pgbouncer import pooled
from tests.ports import reserved_port
from tests.push.recording import RecordingChannel
from tests.relay import redis_servers
from tests.relay.household import Caller, Clock, Household, Relay, fresh_id, running_relay
from tests.relay.stores import STATES, of_rows, postgres, query, states_of
from tests.relay.test_notifying import registers
from tests.relay.test_postgres import own_server
from tests.trust.people import Person

NOW: Final = 1_800_000_000
SHIFTED_CLOCK: Final = Path(__file__).parents[1] / "end_to_end/shifted_clock"


@pytest.fixture
def place(tmp_path: Path) -> PostgresUri:
    return postgres().database_for(tmp_path)


@pytest.fixture(params=[None, "redis", "redis-cluster"], ids=["in rows", "in Redis", "in a Cluster"])
def states(request: pytest.FixtureRequest, tmp_path: Path) -> RedisPlace | None:
    """Where account states are; None: in the database."""
    if request.param is None:
        return states_of(tmp_path)
    if STATES is not None:
        pytest.skip("all tests have their states there")
    return redis_servers.place(request.param, prefix=f"test-{token_hex(8)}")


def at_states(states: RedisPlace | None) -> tuple[str, ...]:
    """Words of a program."""
    return () if states is None else ("--states", redis_servers.uri(states))


@dataclass
class Pair:
    """Two relays behind one URL, and an account whose device calls the first and whose companions call the second."""

    first: Relay
    second: Relay
    home: Household

    @property
    def frame(self) -> Caller:
        return self.home.devices[0]

    @property
    def companions(self) -> list[Caller]:
        return [at(self.second, each) for each in self.home.companions]


def at(relay: Relay, caller: Caller) -> Caller:
    """The same person, who calls this relay."""
    return replace(relay.caller(caller.person), clock=caller.clock)


@contextlib.asynccontextmanager
async def pair(place: PostgresUri, folder: Path, **settings: Any) -> AsyncIterator[Pair]:
    """Two relays with the server's clock, as an operator has them."""
    settings = {"clock": None, **settings}
    async with (
        running_relay(folder, place=place, **settings) as first,
        running_relay(folder, place=place, url=first.url, **settings) as second,
    ):
        yield Pair(first, second, await first.household())


@contextlib.asynccontextmanager
async def pushing(
    place: PostgresUri, folder: Path, own: RecordingChannel, others: RecordingChannel
) -> AsyncIterator[tuple[Relay, Relay, Caller, Caller]]:
    """Two relays with a channel each, and a companion of the first that is pushed to, with its device."""
    async with (
        running_relay(folder, place=place, clock=None, channels=[own]) as first,
        running_relay(folder, place=place, clock=None, channels=[others], url=first.url) as second,
    ):
        home = await first.household(companions=1)
        (anna,), (frame,) = home.companions, home.devices
        await registers(anna)
        yield first, second, anna, frame


@pytest_asyncio.fixture
async def two(place: PostgresUri, tmp_path: Path, states: RedisPlace | None) -> AsyncIterator[Pair]:
    async with pair(place, tmp_path, states=states) as opened:
        yield opened


async def held(relay: Relay, caller: Caller, path: str) -> "asyncio.Task[Any]":
    """A call that this relay holds by now."""
    call = asyncio.ensure_future(caller.get(path))
    while not relay.is_held(caller.name):
        assert not call.done(), call.result()
        await asyncio.sleep(0)
    return call


# A sign-in


async def test_a_device_and_a_companion_at_different_relays_wake_each_other(two: Pair) -> None:
    anna, bert = two.companions
    cursor = (await anna.get("/v1/inbox")).body["cursor"]
    waiting = await held(two.second, anna, f"/v1/inbox?cursor={cursor}&wait=25")
    name = fresh_id()
    submitted = await two.frame.submit(anna, bert, name=name)
    (item,) = (await waiting).body["requests"]
    version = submitted.body["version"]
    news = await two.frame.get(f"/v1/requests/{name}?version={version}&wait=25")
    assert news.body["state"] == "delivered"
    watching = await held(two.first, two.frame, f"/v1/requests/{name}?version={news.body['version']}&wait=25")
    assert (await anna.claims(two.frame, item)).status == 200
    assert (await watching).body["claim"]["by"] == anna.name
    assert (await bert.claims(two.frame, item)).problem == "already-claimed"
    done = await two.frame.tell(name, "completed")
    assert (done.status, await anna.inbox()) == (200, [])


async def test_a_change_of_the_ring_at_one_relay_reaches_who_waits_at_the_other(two: Pair) -> None:
    anna, bert = two.companions
    cursor = (await bert.get("/v1/inbox")).body["cursor"]
    waiting = await held(two.second, bert, f"/v1/inbox?cursor={cursor}&wait=25")
    await two.home.append(anna.person, two.frame.person)
    assert (await waiting).problem == "not-found"
    assert (await bert.get("/v1/inbox")).problem == "not-found"


async def test_a_closed_account_ends_the_calls_that_another_relay_holds(two: Pair) -> None:
    anna, _ = two.companions
    cursor = (await anna.get("/v1/inbox")).body["cursor"]
    waiting = await held(two.second, anna, f"/v1/inbox?cursor={cursor}&wait=25")
    relay = two.first.app[RELAY]
    await relay.close_account("alice", again=False, valid=60)
    assert (await waiting).problem == "account-closed"


async def test_a_device_learns_whether_a_companion_waits_at_another_relay(two: Pair) -> None:
    anna, bert = two.companions
    name = fresh_id()
    submitted = await two.frame.submit(anna, bert, name=name)
    inbox = {"channel": "inbox", "outcome": "pending"}
    assert sorted(submitted.body["notified"], key=lambda each: each["to"]) == sorted(
        ({"to": each.name} | inbox for each in (anna, bert)), key=lambda each: each["to"]
    )
    await anna.inbox()
    status = await two.frame.status(name)
    while any(each["outcome"] == "pending" for each in status["notified"]):
        reply = await two.frame.get(f"/v1/requests/{name}?version={status['version']}&wait=25")
        status = reply.body
    assert {each["to"]: each["outcome"] for each in status["notified"]} == {
        anna.name: "sent",
        bert.name: "late",
    }


@pytest.mark.threat("T3")
async def test_of_two_claims_at_two_relays_one_stands(two: Pair) -> None:
    """Each companion claims at both relays at once: its own claims are one."""
    anna, bert = two.companions
    for _ in range(20):
        name = fresh_id()
        await two.frame.submit(anna, bert, name=name)
        words = {each.name: await each.claim(two.frame, name) for each in (anna, bert)}
        claims = [
            (each, at(relay, each).act(two.frame, name, "claimed", word=words[each.name]))
            for each in (anna, bert)
            for relay in (two.first, two.second)
        ]
        replies = await asyncio.gather(*(claim for _, claim in claims))
        statuses = [(each.name, reply.status) for (each, _), reply in zip(claims, replies, strict=True)]
        winner = next(
            each
            for each, (_, status) in zip((anna, anna, bert, bert), statuses, strict=True)
            if status == 200
        )
        assert Counter(statuses) == {(each.name, 200 if each is winner else 409): 2 for each in (anna, bert)}
        assert await two.frame.claimer(name) == winner.name
        await two.frame.tell(name, "completed")


# Proofs


@pytest.mark.threat("T13")
async def test_a_proof_that_one_relay_has_taken_is_refused_by_the_other(two: Pair) -> None:
    anna = two.companions[0]
    proof = anna.proof("GET", "/v1/inbox")
    assert (await anna.call("GET", "/v1/inbox", proofs=[proof])).status == 200
    for relay in (two.first, two.second):
        again = await at(relay, anna).call("GET", "/v1/inbox", proofs=[proof])
        assert again.problem == "proof-invalid"


@pytest.mark.threat("T13")
async def test_a_proof_that_two_relays_are_shown_at_once_is_taken_by_one(two: Pair) -> None:
    anna = two.companions[0]
    for _ in range(10):
        proof = anna.proof("GET", "/v1/inbox")
        replies = await asyncio.gather(
            *(
                at(relay, anna).call("GET", "/v1/inbox", proofs=[proof])
                for relay in (two.first, two.second) * 2
            )
        )
        assert sorted(reply.problem or "" for reply in replies) == ["", *["proof-invalid"] * 3]


@pytest_asyncio.fixture
async def stores(place: PostgresUri) -> AsyncIterator[tuple[PostgresStore, PostgresStore]]:
    async with open_postgres(place, serves=True) as one, open_postgres(place, serves=True) as other:
        yield one, other


def proofs_of(store: PostgresStore) -> PostgresProofs:
    assert store.nodes is not None
    return store.nodes.used_proofs


async def refused(used: PostgresProofs, proof: Proof) -> Slug:
    try:
        if (checked := used.check_nonce(proof.nonce, 0)) is not None:
            await checked
        await used.take(proof, 0)
    except Problem as problem:
        return problem.slug
    raise AssertionError("it was taken")


def made(nonce: str | None, jti: str = "A" * 22) -> Proof:
    return Proof(name="anna", jti=jti, nonce=nonce)


def pass_time(place: PostgresUri, seconds: float) -> None:
    """Let each step be older; the server's clock is not ours to set."""
    query(place, f"UPDATE proof_nonces SET began = began - {seconds}")  # noqa: S608  a number


async def step_now(used: PostgresProofs) -> str:
    used._due_at = 0
    await used.look()
    return used.nonce(0)


@pytest.mark.threat("T13")
async def test_a_nonce_is_given_for_one_step_and_taken_for_one_more_by_all(
    stores: tuple[PostgresStore, PostgresStore], place: PostgresUri
) -> None:
    one, other = map(proofs_of, stores)
    first = one.nonce(0)
    assert other.nonce(0) == first
    await one.take(made(first), 0)
    pass_time(place, STEP)
    second = await step_now(one)
    assert second != first
    assert await refused(other, made(first)) is Slug.PROOF_INVALID
    await other.take(made(first, "B" * 22), 0)  # which does not know of the step, and need not
    assert other.check_nonce(second, 0) is None  # it has looked since
    pass_time(place, STEP)
    await step_now(other)
    one._due_at = 0
    assert await refused(one, made(first, "C" * 22)) is Slug.USE_DPOP_NONCE
    await one.take(made(second), 0)


@pytest.mark.threat("T13")
@pytest.mark.parametrize("seconds", [2 * STEP, -2 * STEP, -STEP - 1])
async def test_a_server_clock_that_jumps_begins_a_step_and_brings_none_back(
    stores: tuple[PostgresStore, PostgresStore], place: PostgresUri, seconds: float
) -> None:
    one, other = map(proofs_of, stores)
    nonce = one.nonce(0)
    await one.take(made(nonce), 0)
    pass_time(place, seconds)
    assert await step_now(other) != nonce
    assert await refused(one, made(nonce)) in (Slug.PROOF_INVALID, Slug.USE_DPOP_NONCE)
    pass_time(place, -seconds)
    await step_now(one)
    assert await refused(other, made(nonce)) in (Slug.PROOF_INVALID, Slug.USE_DPOP_NONCE)


@pytest.mark.threat("T17")
async def test_many_proofs_begin_the_next_step_and_few_are_remembered(
    stores: tuple[PostgresStore, PostgresStore], place: PostgresUri
) -> None:
    used, _ = map(proofs_of, stores)
    used._most = 10
    for number in range(100):
        if (checked := used.check_nonce(used.nonce(0), 0)) is not None:
            await checked
        await used.take(made(used.nonce(0), f"{number:022}"), 0)
    assert query(place, "SELECT count(*) <= 30 FROM used_proofs") == [(True,)]
    assert query(place, "SELECT count(*) FROM proof_nonces") == [(3,)]


@pytest.mark.threat("T13")
async def test_where_the_used_proofs_are_lost_their_nonces_are_lost_with_them(
    stores: tuple[PostgresStore, PostgresStore], place: PostgresUri
) -> None:
    """As in a crash of the server: it empties unlogged tables."""
    one, other = map(proofs_of, stores)
    assert query(
        place,
        "SELECT relname, relpersistence FROM pg_class WHERE relname IN ('proof_nonces', 'used_proofs') ORDER BY 1",
    ) == [("proof_nonces", "u"), ("used_proofs", "u")]
    nonce = one.nonce(0)
    await one.take(made(nonce), 0)
    query(place, "TRUNCATE proof_nonces, used_proofs")
    assert await refused(one, made(nonce)) is Slug.USE_DPOP_NONCE
    assert await refused(other, made(nonce, "B" * 22)) is Slug.USE_DPOP_NONCE
    await other.take(made(one.nonce(0)), 0)


async def test_a_statement_that_runs_again_takes_its_own_proof(
    stores: tuple[PostgresStore, PostgresStore],
) -> None:
    """As after a connection that was lost when nobody knew whether it was done."""
    used, _ = map(proofs_of, stores)
    values = (b"0" * 16, b"taker 1.", used.nonce(0))
    again = [await stores[0].one(postgres_nodes._TAKE, values) for _ in range(2)]
    assert again[0] == again[1] != []
    assert await stores[1].one(postgres_nodes._TAKE, (b"0" * 16, b"taker 2.", used.nonce(0))) == []


# Wake-ups


def nothing() -> None: ...


async def test_what_is_told_is_heard_by_the_others_when_it_is_committed(
    stores: tuple[PostgresStore, PostgresStore], place: PostgresUri
) -> None:
    one, other = stores
    assert one.nodes is not None
    assert other.nodes is not None
    heard: asyncio.Queue[tuple[WakeUp, object]] = asyncio.Queue()
    own: list[WakeUp] = []
    one.nodes.wake_ups.follow(own.append, nothing, nothing)
    other.nodes.wake_ups.follow(
        lambda wake: heard.put_nowait((wake, query(place, "SELECT name FROM accounts"))), nothing, nothing
    )
    wake = WakeUp(topics=frozenset({"inbox anna", "request frame x"}), members=frozenset({"bert"}))
    tell = one.nodes.wake_ups.in_transaction

    def refused(db: Any) -> None:
        tell(db, WakeUp(topics=frozenset({"inbox of nobody"})))
        raise KeyError

    def told(db: Any) -> None:
        db.execute("INSERT INTO accounts VALUES ('a', 'alice', 1, NULL)")
        tell(db, wake)

    with pytest.raises(KeyError):
        await one.transact(refused)
    await one.transact(told)
    assert await heard.get() == (wake, [("alice",)])
    assert not any(own)  # it hears that the other one listens, which wakes nobody


def test_a_wake_up_of_many_is_told_in_payloads_that_the_server_takes() -> None:
    wake = WakeUp(topics=frozenset(f"inbox {number:043}" for number in range(1000)))
    told = list(payloads("teller", wake))
    assert max(len(each.encode()) for each in told) <= MAX_PAYLOAD < 8000
    assert sorted(line for each in told for line in each.split("\n")[1:]) == sorted(
        f"topic {topic}" for topic in wake.topics
    )


def end_listening(place: PostgresUri) -> None:
    """End the sessions in which relays listen, each of which has a lock."""
    query(place, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted")


@pytest.mark.parametrize(("says_goodbye", "is_missed"), [(True, []), (False, ["one"])])
async def test_a_relay_that_ends_without_a_goodbye_is_missed(
    place: PostgresUri,
    says_goodbye: bool,  # noqa: FBT001  pytest
    is_missed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres_nodes, "BEAT_SECONDS", 0.2)
    missed: list[str] = []
    async with open_postgres(place, serves=True) as stays:
        assert stays.nodes is not None
        wake_ups = stays.nodes.wake_ups
        wake_ups.follow(lambda _: None, nothing, lambda: missed.append("one"))
        async with open_postgres(place, serves=True) as ends:
            assert ends.nodes is not None
            async with asyncio.timeout(60):
                while len(wake_ups._relays) < 2:  # noqa: ASYNC110  what it has seen
                    await asyncio.sleep(0.01)
            if says_goodbye:
                await ends.nodes.wake_ups.leave()
        async with asyncio.timeout(60):
            while len(wake_ups._relays) == 2:  # noqa: ASYNC110  as above
                await asyncio.sleep(0.01)
        assert missed == is_missed


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "says", ["", "\n\n", "a\nleaves ", "a\nleaves x", "a\nleaves -1\nleaves 1.5", "a\nleaves " + "9" * 5000]
)
async def test_a_relay_hears_on_whatever_others_of_the_database_say_where_it_listens(
    place: PostgresUri, says: str
) -> None:
    """Whoever may connect to the database may notify."""
    woken: list[WakeUp] = []
    async with open_postgres(place, serves=True) as store:
        assert store.nodes is not None
        store.nodes.wake_ups.follow(woken.append, nothing, nothing)
        await store.one("SELECT pg_notify(?, ?)", (postgres_nodes.CHANNEL, says))
        await store.one("SELECT pg_notify(?, ?)", (postgres_nodes.CHANNEL, "another\ntopic inbox"))
        async with asyncio.timeout(60):
            while not any(wake.topics for wake in woken):  # noqa: ASYNC110  nothing tells
                await asyncio.sleep(0.01)


async def test_the_server_looks_whether_the_machine_of_a_relay_has_vanished(
    place: PostgresUri, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server tells what its socket says."""
    monkeypatch.setattr(postgres_nodes, "BEAT_SECONDS", 0.2)
    names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
    async with open_postgres(place, serves=True) as store:
        assert store.nodes is not None
        connection = store.nodes.wake_ups._connection
        assert connection is not None
        told = [await (await connection.execute(f"SHOW {name}".encode())).fetchone() for name in names]
    assert told == [("5",), ("2",), ("3",), ("10000",)]


async def test_a_relay_that_ends_in_order_lets_nobody_read_again(
    place: PostgresUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_nodes, "BEAT_SECONDS", 0.2)
    async with running_relay(tmp_path, place=place, clock=None) as stays:
        wake_ups: Any = stays.app[RELAY]._nodes.wake_ups  # type: ignore[union-attr]
        gone: list[str] = []
        monkeypatch.setattr(wake_ups, "_gone", lambda: gone.append("one"))
        for unsure in (0, 1):
            async with running_relay(tmp_path, place=place, clock=None, url=stays.url) as ends:
                async with asyncio.timeout(60):
                    while len(wake_ups._relays) < 2:  # noqa: ASYNC110  what it has seen
                        await asyncio.sleep(0.01)
                if unsure:  # a change of which it does not know whether it is there
                    ends.app[RELAY]._unsure.note({"alice": 1}, WakeUp(topics=frozenset({"inbox anna"})))
            async with asyncio.timeout(60):
                while len(wake_ups._relays) == 2:  # noqa: ASYNC110  as above
                    await asyncio.sleep(0.01)
            assert len(gone) == unsure


async def test_who_waits_reads_again_when_a_relay_has_heard_nothing_for_a_while(
    two: Pair, place: PostgresUri, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happened while the second relay did not listen is found when it does again."""
    anna, _ = two.companions
    cursor = (await anna.get("/v1/inbox")).body["cursor"]
    waiting = await held(two.second, anna, f"/v1/inbox?cursor={cursor}&wait=25")
    wake_ups = two.second.app[RELAY]._nodes.wake_ups  # type: ignore[union-attr]
    monkeypatch.setattr(wake_ups, "_hear", lambda _: None)  # all is lost
    name = fresh_id()
    await two.frame.submit(anna, name=name)
    end_listening(place)
    (item,) = (await waiting).body["requests"]
    assert item["id"] == name


# Claims


@of_rows
async def test_a_claim_lives_while_its_holder_calls_at_any_relay_and_is_seldom_written(
    place: PostgresUri, tmp_path: Path
) -> None:
    clock = Clock()

    def pass_by(seconds: float) -> None:
        for each in (clock, opened.first.clock):  # of both relays, and of who calls them
            each.ahead += seconds

    async with pair(place, tmp_path, clock=clock) as opened:
        anna, bert = opened.companions
        name = fresh_id()
        await opened.frame.submit(anna, bert, name=name)
        await anna.claims(opened.frame, (await anna.inbox())[0])
        versions = set()
        for turn in range(40):
            pass_by(5)
            await at((opened.first, opened.second)[turn % 2], anna).get("/v1/ring")
            versions |= set(query(place, "SELECT version FROM account_states"))
        assert 13 <= len(versions) <= 16  # 200 s, each 15
        assert await opened.frame.claimer(name) == anna.name
        pass_by(59)
        assert await opened.frame.claimer(name) == anna.name
        pass_by(16)
        assert await opened.frame.claimer(name) is None
        assert [item["id"] for item in await bert.inbox()] == [name]


async def test_a_held_call_keeps_a_claim_and_notes_that_in_its_record(
    place: PostgresUri, tmp_path: Path
) -> None:
    """A lease of one second is noted each quarter of it."""
    async with pair(place, tmp_path, lease=1) as two:
        anna, bert = two.companions
        name = fresh_id()
        await two.frame.submit(anna, bert, name=name)
        await anna.claims(two.frame, (await anna.inbox())[0])
        cursor = (await anna.get("/v1/inbox")).body["cursor"]
        waiting = await held(two.second, anna, f"/v1/inbox?cursor={cursor}&wait=25")
        status = await two.frame.status(name)
        until = status["now"] + 3  # three times the lease
        while status["now"] < until:
            reply = await two.frame.get(f"/v1/requests/{name}?version={status['version']}&wait=1")
            status = reply.body
            assert status["claim"]["by"] == anna.name
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        while status["claim"] is not None:
            reply = await two.frame.get(f"/v1/requests/{name}?version={status['version']}&wait=25")
            status = reply.body


@pytest.mark.threat("T3")
async def test_a_relay_whose_clock_is_wrong_decides_as_the_others(
    two: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, bert = two.companions
    name = fresh_id()
    await two.frame.submit(anna, bert, name=name)
    (item,) = await bert.inbox()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400)
    for relay in (two.first, two.second):
        relay.clock.ahead = -86_400  # of those who call
    await two.second.app[RELAY].run("", operations.sweep(None))
    assert (await anna.claims(two.frame, item)).status == 200
    await two.second.app[RELAY].run("", operations.sweep(None))
    assert await two.frame.claimer(name) == anna.name


# Work that is done once


async def test_one_relay_sweeps_at_a_time(two: Pair, place: PostgresUri) -> None:
    query(place, "DELETE FROM turns")
    for relay in (two.first, two.second):
        await relay.app[RELAY].run("", operations.sweep(None))
    ((until, now),) = query(place, "SELECT until, extract(epoch FROM now())::float8 FROM turns")
    assert now < until <= now + operations.SWEEP_SECONDS
    query(place, "UPDATE turns SET until = 0")  # as long after that, whoever did it
    await two.second.app[RELAY].run("", operations.sweep(None))
    assert query(place, "SELECT until > 0 FROM turns") == [(True,)]


async def test_a_push_is_of_one_relay_and_of_another_when_it_is_not_kept(
    place: PostgresUri, tmp_path: Path
) -> None:
    own, others = RecordingChannel(), RecordingChannel()
    own.gate.clear()
    async with pushing(place, tmp_path, own, others) as (first, second, anna, frame):
        name = fresh_id()
        await frame.submit(anna, name=name)
        (push,) = await own.came(1)
        taken_until = "SELECT taken_until - extract(epoch FROM clock_timestamp())::float8 FROM pushes"
        for _ in range(2):
            await second.app[RELAY].run("", operations.keep_pushes)
            assert others.pushes == []
            ((left,),) = query(place, taken_until)
            assert operations.PUSH_LEASE - 15 < left <= operations.PUSH_LEASE
            await first.app[RELAY].run("", operations.keep_pushes)
        query(place, "UPDATE pushes SET taken_until = taken_until - 20")  # as 20 s after the first was killed
        await second.app[RELAY].run("", operations.keep_pushes)
        assert await others.came(1) == [push]
        status = await frame.status(name)
        while status["notified"][0]["outcome"] == "pending":
            reply = await frame.get(f"/v1/requests/{name}?version={status['version']}&wait=25")
            status = reply.body
        assert status["notified"] == [{"to": anna.name, "channel": "fcm", "outcome": "sent"}]
        own.gate.set()  # the first was only slow: what it tells is not heard any more


async def test_a_relay_that_ends_leaves_its_pushes_to_the_others(place: PostgresUri, tmp_path: Path) -> None:
    own, others = RecordingChannel(), RecordingChannel()
    own.gate.clear()
    async with running_relay(tmp_path, place=place, clock=None, channels=[own]) as first:
        home = await first.household(companions=1)
        (anna,), (frame,) = home.companions, home.devices
        await registers(anna)
        await frame.submit(anna)
        kept = await own.came(1)
    assert query(place, "SELECT taken_until FROM pushes") == [(0.0,)]
    async with running_relay(tmp_path, place=place, clock=None, channels=[others]):
        assert await others.came(1) == kept


async def test_a_push_that_an_ending_relay_leaves_is_taken_up_at_once(
    place: PostgresUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "PUSH_LOOKS", 3600.0)
    own, others = RecordingChannel(), RecordingChannel()
    own.gate.clear()
    async with running_relay(tmp_path, place=place, clock=None, channels=[others]) as staying:
        async with running_relay(
            tmp_path, place=place, clock=None, channels=[own], url=staying.url
        ) as ending:
            home = await ending.household(companions=1)
            (anna,), (frame,) = home.companions, home.devices
            await registers(anna)
            await frame.submit(anna)
            kept = await own.came(1)
        async with asyncio.timeout(60):
            assert await others.came(1) == kept


async def test_an_event_is_told_by_one_relay_at_a_time(
    stores: tuple[PostgresStore, PostgresStore], place: PostgresUri
) -> None:
    def made(db: Any) -> None:
        db.execute("INSERT INTO accounts VALUES ('a', 'alice', 1, NULL)")
        account_events.add(db, "a", "frame", account_events.EventType.MUTED, now=NOW)

    def take(db: Any, now: float) -> account_events.Event | None:
        states = States(SqlStates(db), now)
        event = account_events.take(db, states, now, lease=operations.EVENT_LEASE)
        states.store()
        return event

    await stores[0].transact(made)
    taken = await asyncio.gather(
        *(store.transact(lambda db: take(db, NOW)) for store in stores * 3), return_exceptions=True
    )
    assert len([each for each in taken if each is not None]) == 1
    assert await stores[1].transact(lambda db: take(db, NOW + operations.EVENT_LEASE - 1)) is None
    assert await stores[1].transact(lambda db: take(db, NOW + operations.EVENT_LEASE)) is not None
    assert operations.EVENT_LEASE > webhook_client.SECONDS + webhook_client.BODY_SECONDS


# Trouble


class Wire:
    """The network between one relay and the database."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: set[asyncio.StreamWriter] = set()
        self.is_cut = False
        self.keeps: bytes | None = (
            None  # what the relay says that does not come to the database, nor what follows it
        )
        self.kept = asyncio.Event()
        self._silent: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        away_reader, away = await asyncio.open_connection("127.0.0.1", self._port)
        ends = (writer, away)
        self._open.update(ends)

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    if sink is away and self.keeps is not None and self.keeps in data:
                        self.kept.set()
                        await source.read(-1)
                        break
                    if sink not in self._silent:
                        sink.write(data)
            for end in ends:
                end.transport.abort()

        await asyncio.gather(carry(reader, away), carry(away_reader, writer))
        self._open.difference_update(ends)

    def swallow(self) -> None:
        """Carry nothing more over the connections that there are, which stay open; new ones are carried."""
        self._silent |= self._open

    def cut(self) -> None:
        self.is_cut = True
        for end in self._open:
            end.transport.abort()


@contextlib.asynccontextmanager
async def wired(place: PostgresUri) -> AsyncIterator[tuple[Wire, PostgresUri]]:
    wire = Wire(urlsplit(place.uri).port or 0)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield wire, PostgresUri(place.uri.replace(f":{wire._port}/", f":{port}/"))
    finally:
        wire.cut()
        server.close()
        await server.wait_closed()


async def test_a_relay_that_cannot_reach_the_database_says_so_and_goes_on_when_it_can(
    place: PostgresUri, tmp_path: Path
) -> None:
    async with (
        wired(place) as (wire, through),
        running_relay(tmp_path, place=place, clock=None) as first,
        running_relay(tmp_path, place=through, clock=None, url=first.url) as second,
    ):
        two = Pair(first, second, await first.household())
        anna, bert = two.companions
        cursor = (await bert.get("/v1/inbox")).body["cursor"]
        wire.cut()
        assert (await anna.get("/v1/ring")).problem == "store-unavailable"
        assert (await anna.get("/readyz")).status == 503
        name = fresh_id()
        await two.frame.submit(anna, bert, name=name)
        assert [item["id"] for item in await at(first, anna).inbox()] == [name]
        wire.is_cut = False
        while (await anna.get("/readyz")).status != 200:  # noqa: ASYNC110  a program's state
            await asyncio.sleep(0.05)
        reply = await bert.get(f"/v1/inbox?cursor={cursor}&wait=25")
        assert [item["id"] for item in reply.body["requests"]] == [name]
        waiting = await held(second, bert, f"/v1/inbox?cursor={reply.body['cursor']}&wait=25")
        assert (await at(first, anna).claims(two.frame, reply.body["requests"][0])).status == 200
        (item,) = (await waiting).body["requests"]
        assert item["claimed_by"] == anna.name


async def test_who_waits_hears_of_a_change_though_all_connections_to_the_database_have_died_silently(
    place: PostgresUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a firewall that has forgotten them. The held call ends by nothing but a change of which it is told."""
    monkeypatch.setattr(postgres_nodes, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(database, "SILENT_SECONDS", 1.0)
    wait = HeldRequest.wait
    monkeypatch.setattr(HeldRequest, "wait", lambda call, _seconds: wait(call, 1e6))
    async with (
        wired(place) as (wire, through),
        running_relay(tmp_path, place=place, clock=None) as first,
        running_relay(tmp_path, place=through, clock=None, url=first.url) as second,
    ):
        home = await first.household()
        anna, frame = home.companions[0], home.devices[0]
        there = at(second, anna)
        cursor = (await there.get("/v1/inbox")).body["cursor"]
        waiting = await held(second, there, f"/v1/inbox?cursor={cursor}&wait=25")
        wire.swallow()
        name = fresh_id()
        await frame.submit(anna, name=name)
        async with asyncio.timeout(60):
            (item,) = (await waiting).body["requests"]
        assert item["id"] == name


async def test_who_waits_at_any_relay_is_woken_after_the_database_was_restarted(tmp_path: Path) -> None:
    """A crash of the server takes the used proofs with it, and their nonces."""
    server = own_server()
    try:
        async with pair(server.database_for(tmp_path), tmp_path) as two:
            anna, bert = two.companions
            nonce = two.first.app[RELAY].nonce()
            for how in ("fast", "immediate", "killed"):
                cursor = (await bert.get("/v1/inbox")).body["cursor"]
                waiting = await held(two.second, bert, f"/v1/inbox?cursor={cursor}&wait=25")
                if how == "killed":
                    server.kill()
                else:
                    server.stop(how)
                server.start()
                name = fresh_id()
                while (reply := await two.frame.submit(anna, bert, name=name)).status != 201:
                    assert reply.problem in ("store-unavailable", "use-dpop-nonce")
                    await asyncio.sleep(0.05)
                (item,) = (await waiting).body["requests"]
                assert item["id"] == name
            stale = replace(anna, newest=lambda: nonce)
            proof = stale.proof("GET", "/v1/ring")
            assert (await stale.call("GET", "/v1/ring", proofs=[proof])).problem == "use-dpop-nonce"
    finally:
        server.end()


async def test_a_relay_that_begins_when_nobody_has_served_blames_no_holder(
    place: PostgresUri, tmp_path: Path
) -> None:
    name = fresh_id()
    async with running_relay(tmp_path, place=place, clock=None) as relay:
        home = await relay.household()
        (anna, _), (frame,) = home.companions, home.devices
        await frame.submit(anna, name=name)
        await anna.claims(frame, (await anna.inbox())[0])
    async with running_relay(tmp_path, place=place, ahead=100) as relay:
        assert await relay.caller(frame.person).claimer(name) == anna.name


@of_rows
async def test_after_the_database_was_away_for_long_no_holder_is_blamed(
    place: PostgresUri, tmp_path: Path
) -> None:
    clock = Clock()
    async with pair(place, tmp_path, clock=clock) as two:
        anna, _ = two.companions
        name = fresh_id()
        await two.frame.submit(anna, name=name)
        await anna.claims(two.frame, (await anna.inbox())[0])
        for each in (clock, two.first.clock):  # of both relays, and of who calls them
            each.ahead += 100
        stored = query(place, "SELECT version FROM account_states")
        end_listening(place)
        while query(place, "SELECT version FROM account_states") == stored:  # noqa: ASYNC110  a relay does it
            await asyncio.sleep(0.05)
        assert await two.frame.claimer(name) == anna.name


async def test_a_relay_is_killed_and_who_it_held_goes_on_at_another(
    place: PostgresUri, tmp_path: Path, states: RedisPlace | None
) -> None:
    """The clock of the other one is a day ahead: only the server's counts."""
    url = f"http://127.0.0.1:{reserved_port()}"
    words = (
        "relay",
        "--listen",
        "127.0.0.1:0",
        "--public-url",
        url,
        "--store",
        place.uri,
        *at_states(states),
    )
    a_day_ahead = {"PYTHONPATH": str(SHIFTED_CLOCK), "SHIFT": "86400"}
    async with (
        running(*words) as one,
        running(*words, environment=a_day_ahead) as other,
        aiohttp.ClientSession() as session,
    ):
        places = [await each.line() for each in (one, other)]

        def calls(person: Person, where: str) -> Caller:
            return Caller(person, session, url, Clock(), at=where)

        async with running_relay(tmp_path, place=place, url=url, states=states) as third:
            home = await third.household()
        anna, frame = home.companions[0].person, home.devices[0].person
        name = fresh_id()
        submitted = await calls(frame, places[0]).submit(calls(anna, places[0]), name=name)
        assert submitted.status == 201
        (item,) = await calls(anna, places[1]).inbox()
        device = calls(frame, places[0])
        await device.get("/v1/ring")  # the nonce
        version = (await device.status(name))["version"]
        waiting = asyncio.ensure_future(device.get(f"/v1/requests/{name}?version={version}&wait=25"))
        await asyncio.wait([waiting], timeout=0.2)  # it is held, or on its way: both end alike
        one.process.kill()
        with pytest.raises(aiohttp.ClientError):
            await waiting
        again = calls(frame, places[1])
        await again.get("/v1/ring")
        waiting = asyncio.ensure_future(again.get(f"/v1/requests/{name}?version={version}&wait=25"))
        companion = calls(anna, places[1])
        await companion.get("/v1/ring")
        assert (await companion.claims(again, item)).status == 200
        assert (await waiting).body["claim"]["by"] == companion.name
        other.terminate()
        assert await other.ended() == 0


# Behind PgBouncer


async def test_transactions_go_through_a_pooler_and_notifications_past_it(
    place: PostgresUri, tmp_path: Path
) -> None:
    async with (
        pooled(place.uri, tmp_path) as pooler,
        pair(PostgresUri(pooler, direct=place.uri), tmp_path) as two,
    ):
        anna, bert = two.companions
        cursor = (await anna.get("/v1/inbox")).body["cursor"]
        waiting = await held(two.second, anna, f"/v1/inbox?cursor={cursor}&wait=25")
        name = fresh_id()
        await two.frame.submit(anna, bert, name=name)
        (item,) = (await waiting).body["requests"]
        replies = await asyncio.gather(*(at(two.first, anna).get("/v1/ring") for _ in range(20)))
        assert {reply.status for reply in replies} == {200}
        assert (await anna.claims(two.frame, item)).status == 200
        assert await two.frame.claimer(name) == anna.name


async def test_a_relay_that_would_hear_nothing_behind_a_pooler_says_so_and_ends(
    place: PostgresUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_nodes, "BEAT_SECONDS", 0.5)
    async with pooled(place.uri, tmp_path) as pooler:
        with pytest.raises(StoreUnusable, match="do not arrive") as refused:
            async with open_store(PostgresUri(pooler), serves=True):
                pass
    assert "--store-direct" in str(refused.value.advice)


async def test_a_command_that_was_alone_behind_a_pooler_leaves_the_database_to_relays(
    place: PostgresUri, tmp_path: Path
) -> None:
    async with pooled(place.uri, tmp_path) as pooler:
        behind = PostgresUri(pooler, direct=place.uri)
        async with open_store(behind, alone=True):
            with pytest.raises(StoreBusy):
                async with open_store(behind, serves=True):
                    pass
        async with open_store(behind, serves=True):
            pass


# Workers


@dataclass
class Workers:
    """A relay of two processes on one socket."""

    program: Program
    url: str

    async def pid(self, place: int) -> int:
        """The process that comes next to a place."""
        return int((await self.program.until_said(f"worker {place} is process")).rpartition(" ")[2])


@contextlib.asynccontextmanager
async def working(place: PostgresUri, *more: str) -> AsyncIterator[Workers]:
    words = ("relay", "--listen", "127.0.0.1:0", "--store", place.uri, "--workers", "2", *more)
    async with asyncio.timeout(120), running(*words) as program:
        yield Workers(program, await program.line())


@pytest.mark.parametrize("states", [None, "redis-cluster"], ids=["in rows", "in a Cluster"], indirect=True)
async def test_workers_serve_as_one_relay_and_are_replaced_while_a_companion_waits(
    place: PostgresUri, tmp_path: Path, states: RedisPlace | None
) -> None:
    many = ("--requests-per-minute", "1000", "--requests-per-day", "1000")
    async with (
        working(place, *many, *at_states(states)) as workers,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True)  # so that each call may come to another one
        ) as session,
    ):
        async with running_relay(tmp_path, place=place, url=workers.url, states=states) as beside:
            home = await beside.household()
        anna, bert, frame = (
            Caller(each.person, session, workers.url, Clock()) for each in (*home.companions, *home.devices)
        )
        first, second = await workers.pid(1), await workers.pid(2)
        for _ in range(10):
            name = fresh_id()
            assert (await frame.submit(anna, bert, name=name)).status == 201
            assert (await anna.claims(frame, (await anna.inbox())[0])).status == 200
            assert await frame.claimer(name) == anna.name
            assert (await frame.tell(name, "completed")).status == 200
        os.kill(first, signal.SIGKILL)
        assert await workers.pid(1) not in (first, second)
        cursor = (await bert.get("/v1/inbox")).body["cursor"]
        waiting = asyncio.ensure_future(bert.get(f"/v1/inbox?cursor={cursor}&wait=25"))
        workers.program.process.send_signal(signal.SIGUSR1)
        await workers.program.until_said("all workers are replaced")
        # it is answered by the one that retires; or it came to none, whose connection is closed
        with contextlib.suppress(aiohttp.ClientError):
            assert (await waiting).status == 200
        name = fresh_id()
        assert (await frame.submit(bert, name=name)).status == 201
        assert [item["id"] for item in await bert.inbox()] == [name]
        workers.program.terminate()
        assert await workers.program.ended() == 0


async def test_workers_are_replaced_under_load_without_a_failed_request(place: PostgresUri) -> None:
    """Also on connections that are kept, where a server that closes one crosses the next request: aiohttp repeats no POST."""
    failures, answers = [], [0] * 40

    async def call(number: int, session: aiohttp.ClientSession, url: str) -> None:
        while True:
            try:
                async with session.post(f"{url}/v1/nothing") as answer:
                    await answer.read()
            except aiohttp.ClientError as error:
                failures.append(repr(error))
            answers[number] += 1
            await asyncio.sleep(0.002 * (number % 5))

    async def more() -> None:
        wanted = [each + 3 for each in answers]
        while any(now < most for now, most in zip(answers, wanted, strict=True)):  # noqa: ASYNC110  they tell nobody
            await asyncio.sleep(0.01)

    async with working(place) as workers, contextlib.AsyncExitStack() as stack:
        calling = []
        for number in range(len(answers)):
            session = await stack.enter_async_context(aiohttp.ClientSession())
            calling.append(asyncio.create_task(call(number, session, workers.url)))
        for _ in range(3):
            await more()
            workers.program.process.send_signal(signal.SIGUSR1)
            await workers.program.until_said("all workers are replaced")
        await more()
        await end_quietly(*calling)
        assert failures == []
        workers.program.terminate()
        assert await workers.program.ended() == 0


async def test_workers_need_a_database_and_what_is_wrong_with_it_is_said(tmp_path: Path) -> None:
    status, _, said = await outcome("relay", "--workers", "2", "--store", tmp_path / "file")
    assert (status, "needs a store in PostgreSQL" in said[-1]) == (2, True)
    nowhere = f"postgresql://relay@127.0.0.1:{reserved_port()}/relay"
    status, _, said = await outcome("relay", "--listen", "127.0.0.1:0", "--workers", "2", "--store", nowhere)
    assert (status, "cannot be connected to" in said[-1]) == (4, True)
