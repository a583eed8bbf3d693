"""Writes of account states whose answer was lost: who is told of them, and when."""

import asyncio
import signal
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import redis

from companion_push.errors import StoreUnavailable
from companion_push.relay import postgres_nodes
from companion_push.relay import redis_states as redis_module
from companion_push.relay.app import RELAY
from companion_push.relay.held_requests import HeldRequest
from companion_push.relay.nodes import WakeUp
from companion_push.relay.unsure_writes import PAUSES, UnsureWrites
from headless_passkey.process.tasks import end
from tests.companion.program import running
from tests.loop_clock import LoopClock
from tests.relay.household import Caller, Clock, fresh_id, running_relay
from tests.relay.redis_servers import RedisServer, uri
from tests.relay.stores import postgres
from tests.relay.test_nodes import Pair, at, held, pair, wired
from tests.relay.test_two_stores import Stops, killed

LONG: Final = 1e6  # seconds


def wake(*topics: str) -> WakeUp:
    return WakeUp(topics=frozenset(topics))


class Stores:
    """The versions of accounts, and who was told; None: no store answers."""

    def __init__(self, **versions: int) -> None:
        self.versions: dict[str, int] | None = versions
        self.looks = 0
        self.told: list[WakeUp] = []

    async def look(self, accounts: Collection[str]) -> Mapping[str, int]:
        self.looks += 1
        if self.versions is None:
            raise StoreUnavailable("it is away")
        return {account: self.versions[account] for account in accounts if account in self.versions}

    async def tell(self, woken: WakeUp) -> None:
        if self.versions is None:
            raise StoreUnavailable("it is away")
        self.told.append(woken)


class Looking:
    """`UnsureWrites` over these stores, by a clock that the test moves on."""

    def __init__(self, **versions: int) -> None:
        self.stores = Stores(**versions)
        self.clock = LoopClock(asyncio.get_running_loop())
        self.clock.stop()
        self.writes = UnsureWrites(look=self.stores.look, tell=self.stores.tell)
        self.task = asyncio.create_task(self.writes.run())

    async def passes(self, seconds: float = 0.0) -> None:
        self.clock.passes(seconds)
        for _ in range(20):  # the loop comes to all that is due
            await asyncio.sleep(0)


async def test_a_write_that_is_there_is_told_at_once_and_once() -> None:
    looking = Looking(alice=6)
    looking.writes.note({"alice": 5}, wake("inbox anna"))
    await looking.passes()
    await looking.passes(LONG)
    assert (looking.stores.told, looking.stores.looks) == ([wake("inbox anna")], 1)
    await end(looking.task)


async def test_a_write_that_comes_later_is_told_then() -> None:
    looking = Looking(alice=5)
    looking.writes.note({"alice": 5}, wake("inbox anna"))
    for pause in PAUSES[:4]:
        await looking.passes(pause)
    assert (looking.stores.told, looking.stores.looks) == ([], 4)
    looking.stores.versions = {"alice": 6}
    await looking.passes(PAUSES[4] / 2)
    assert looking.stores.told == []
    await looking.passes(PAUSES[4] / 2)
    assert looking.stores.told == [wake("inbox anna")]
    await end(looking.task)


async def test_a_write_that_is_noted_while_another_one_is_waited_for_is_looked_at_at_once() -> None:
    looking = Looking(alice=5, bert=2)
    looking.writes.note({"alice": 5}, wake("inbox anna"))
    for pause in PAUSES[:-1]:
        await looking.passes(pause)
    looking.writes.note({"bert": 1}, wake("inbox bert"))
    await looking.passes()
    assert looking.stores.told == [wake("inbox bert")]
    await end(looking.task)


async def test_a_write_that_never_comes_is_forgotten_after_a_minute() -> None:
    looking = Looking(alice=5)
    looking.writes.note({"alice": 5}, wake("inbox anna"))
    assert 60 <= sum(PAUSES) < 65
    for pause in PAUSES:
        assert len(looking.writes) == 1
        await looking.passes(pause)
    assert (len(looking.writes), looking.stores.looks, looking.stores.told) == (0, len(PAUSES), [])
    await end(looking.task)


async def test_what_could_not_be_told_is_told_when_the_store_answers() -> None:
    looking = Looking()
    looking.stores.versions = None
    looking.writes.note({"alice": None}, wake("inbox anna"))  # it is known to be there
    await looking.passes()
    looking.writes.note({"alice": 7, "bert": 1}, wake("inbox bert"))
    await looking.passes()
    assert looking.stores.told == []
    looking.stores.versions = {"bert": 1}  # alice's state cannot be had still
    await looking.passes(PAUSES[1])
    assert looking.stores.told == [wake("inbox anna", "inbox bert")]
    assert len(looking.writes) == 1
    await end(looking.task)


# Two relays


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    made = RedisServer(request.param)
    yield made
    made.end()


@pytest.fixture
def woken_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A held call ends by nothing but a change of which it is told."""
    wait = HeldRequest.wait
    monkeypatch.setattr(HeldRequest, "wait", lambda held, _seconds: wait(held, LONG))


async def heard(waiting: "asyncio.Task[Any]") -> Any:
    async with asyncio.timeout(60):
        return (await waiting).body


async def waiting_for_a_claim(two: Pair) -> "tuple[str, asyncio.Task[Any]]":
    """A request that is there for Anna, and the device's call that the second relay holds until its state changes."""
    anna, frame = two.home.companions[0], two.frame
    name = fresh_id()
    await frame.submit(anna, name=name)
    for _ in range(
        5
    ):  # the first relay is sure then that nobody else writes the state, and asks for it with the write
        await anna.inbox()
    path = f"/v1/requests/{name}"
    device = at(two.second, frame)
    version = (await device.get(path)).body["version"]
    return name, await held(two.second, device, f"{path}?version={version}&wait=25")


@pytest.mark.usefixtures("woken_only")
async def test_who_waits_at_another_relay_hears_of_a_change_whose_commit_was_not_made(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is written, and the transaction of the database is rolled back."""
    async with pair(postgres().database_for(tmp_path), tmp_path, states=server.place()) as two:
        name, waiting = await waiting_for_a_claim(two)
        Stops(monkeypatch, killed())
        claimed = await two.home.companions[0].act(two.frame, name, "claimed")
        assert claimed.problem == "store-unavailable"
        assert (await heard(waiting))["state"] == "claimed"


@pytest.mark.usefixtures("woken_only")
async def test_who_waits_at_another_relay_hears_of_a_change_whose_answer_was_lost(
    server: RedisServer, tmp_path: Path
) -> None:
    async with pair(postgres().database_for(tmp_path), tmp_path, states=server.place()) as two:
        name, waiting = await waiting_for_a_claim(two)
        client: Any = two.first.app[RELAY]._own_states.client  # type: ignore[union-attr]
        run = client.evalsha
        lost = []

        def run_and_lose(*words: Any) -> None:
            run(*words)
            lost.append(words)
            client.evalsha = run
            raise redis.ConnectionError("the connection is lost")

        client.evalsha = run_and_lose
        claimed = await two.home.companions[0].act(two.frame, name, "claimed")
        assert (claimed.problem, len(lost)) == ("store-unavailable", 1)
        assert (await heard(waiting))["state"] == "claimed"


@pytest.mark.usefixtures("woken_only")
async def test_who_waits_at_another_relay_hears_of_a_change_that_a_server_makes_after_it_stood_still(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the relay has sent it waits in its socket."""
    monkeypatch.setattr(redis_module, "_SECONDS", 1.0)
    async with pair(postgres().database_for(tmp_path), tmp_path, states=server.place()) as two:
        name, waiting = await waiting_for_a_claim(two)
        anna = two.home.companions[0]
        word = await anna.claim(two.frame, name)
        server.send(signal.SIGSTOP)
        claimed = await anna.act(two.frame, name, "claimed", word=word)
        assert claimed.problem == "store-unavailable"
        server.send(signal.SIGCONT)
        assert (await heard(waiting))["state"] == "claimed"


@pytest.mark.usefixtures("woken_only")
async def test_who_waits_at_another_relay_hears_of_a_change_whose_relay_was_killed_between_the_two_commits(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay that is killed is a program. Its last words to the database do not arrive, and its state is in Redis."""
    monkeypatch.setattr(postgres_nodes, "BEAT_SECONDS", 0.5)
    place, states = postgres().database_for(tmp_path), server.place()
    async with (
        wired(place) as (wire, through),
        running_relay(tmp_path, place=place, states=states, clock=None) as stays,
        running(
            *("relay", "--listen", "127.0.0.1:0", "--public-url", stays.url),
            *("--store", through.uri, "--states", uri(states)),
        ) as program,
    ):
        listens_at = await program.line()
        home = await stays.household()
        anna, frame = home.companions[0], home.devices[0]
        name = fresh_id()
        await frame.submit(anna, name=name)
        (item,) = await anna.inbox()
        device = at(stays, frame)
        version = (await device.status(name))["version"]
        waiting = await held(stays, device, f"/v1/requests/{name}?version={version}&wait=25")
        wake_ups: Any = stays.app[RELAY]._nodes.wake_ups  # type: ignore[union-attr]
        async with asyncio.timeout(60):
            while len(wake_ups._relays) < 2:  # noqa: ASYNC110  what it has seen
                await asyncio.sleep(0.01)
        there = Caller(anna.person, stays.session, stays.url, Clock(), at=listens_at)
        await there.get("/v1/ring")  # the nonce
        wire.keeps = b"topic "
        claims = asyncio.ensure_future(there.claims(frame, item))
        async with asyncio.timeout(60):
            await wire.kept.wait()
        assert not waiting.done()
        program.process.kill()
        with pytest.raises(aiohttp.ClientError):
            await claims
        assert (await heard(waiting))["state"] == "claimed"
