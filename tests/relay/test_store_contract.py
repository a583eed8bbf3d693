"""What a store does for account states: one suite for every engine."""

import asyncio
import dataclasses
import itertools
import json
import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Final, TypeVar

import pytest
import pytest_asyncio
from memory_states import MemoryStates
from msgspec.structs import replace

from companion_push.errors import StoreBusy
from companion_push.relay import account_states
from companion_push.relay.account_state import EMPTY, decoded, encoded
from companion_push.relay.account_states import (
    ABSENT,
    CONFIRMED,
    EnvelopeKey,
    SqlStates,
    StateCache,
    States,
    StateStore,
    Value,
    Write,
)
from companion_push.relay.accounts import add_account
from companion_push.relay.mailbox import GRACE, KEPT, CompanionEvent, Request
from companion_push.relay.problems import Problem, Slug
from companion_push.relay.redis_states import RedisStates, open_redis
from companion_push.relay.store_place import StorePlace
from companion_push.relay.stores import Store, open_store
from companion_push.relay.transaction import Transaction
from headless_passkey.request import RequestState
from postgres_store.copying import engine_of
from tests.relay import redis_servers
from tests.relay.household import fresh_id, running_relay
from tests.relay.redis_servers import ALL_ARE_NEEDED
from tests.relay.states import NOW, REQUEST, stored_requests
from tests.relay.stores import ON_POSTGRES, postgres

RACES: Final = os.environ.get(
    "RELAY_TEST_RACES"
)  # how many, of two claims each, on every engine (make races)
RECORD: Final = os.environ.get("RELAY_TEST_RACES_FILE")  # gets a line of JSON for each engine
CLAIMERS: Final = 2 if RACES else 8
ROUNDS: Final = int(RACES or 1250)  # with 8 claims each, 10^4
SHORTER: Final = ROUNDS if RACES else ROUNDS // 10

T = TypeVar("T")


@dataclass(frozen=True)
class Node:
    """One process's way to a store."""

    database: Store

    async def do(self, work: Callable[[StateStore], T]) -> T:
        """Do something in one step."""
        return await self.database.transact(lambda db: work(SqlStates(db)))


@dataclass(frozen=True)
class MemoryNode:
    """A way to a store in this process."""

    store: MemoryStates

    async def do(self, work: Callable[[StateStore], T]) -> T:
        """Do something in one step, again where somebody else was faster. What fails is done all the same."""
        while True:
            await asyncio.sleep(0)
            with suppress(StoreBusy):
                return work(self.store)


@dataclass(frozen=True)
class RedisNode:
    """One process's way to Valkey or Redis, in threads as those of a database."""

    states: RedisStates

    async def do(self, work: Callable[[StateStore], T]) -> T:
        """Do something in one step, again where somebody else was faster. What fails is done all the same."""
        while True:
            with suppress(StoreBusy):
                return await asyncio.to_thread(work, self.states)


@dataclass(frozen=True)
class Engine:
    """A store with two nodes, and accounts in it."""

    nodes: tuple[Node, Node] | tuple[MemoryNode, MemoryNode] | tuple[RedisNode, RedisNode]
    accounts: tuple[str, ...]
    rounds: int = ROUNDS

    async def do(self, work: Callable[[StateStore], T]) -> T:
        return await self.nodes[0].do(work)

    async def load(self, account: str | None = None) -> Value:
        return await self.do(lambda store: store.load(account or self.accounts[0]))

    async def cas(self, write: Write) -> Value | None:
        return await self.do(lambda store: store.cas(write))

    async def sealed(self, *keys: EnvelopeKey, account: str | None = None) -> dict[EnvelopeKey, bytes]:
        return await self.do(lambda store: store.envelopes(account or self.accounts[0], keys))


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Engine]:
    async with opened(folder / "store") as engine:
        yield engine


@asynccontextmanager
async def postgresql(folder: Path) -> AsyncIterator[Engine]:
    async with opened(postgres().database_for(folder / "store")) as engine:
        yield (
            engine if ON_POSTGRES else dataclasses.replace(engine, rounds=SHORTER)
        )  # the others with make test-stores


@asynccontextmanager
async def opened(place: StorePlace) -> AsyncIterator[Engine]:
    async with AsyncExitStack() as stack:
        nodes = [Node(await stack.enter_async_context(open_store(place))) for _ in range(2)]
        added = [
            await nodes[0].database.transact(
                lambda db, name=f"{number}": add_account(db, name=name, now=NOW, expires_at=NOW + 60)  # type: ignore[misc]
            )
            for number in range(5)
        ]
        yield Engine((nodes[0], nodes[1]), tuple(sorted(each[0] for each in added if each is not None)))


@asynccontextmanager
async def memory(_folder: Path) -> AsyncIterator[Engine]:
    """The store of examples/memory_states.py."""
    node = MemoryNode(MemoryStates())
    yield Engine((node, node), tuple(f"account {number}" for number in range(5)))


@asynccontextmanager
async def in_redis(name: str, _folder: Path) -> AsyncIterator[Engine]:
    """Accounts that no other test has, in a server that others use too."""
    mine = redis_servers.place(name, prefix=f"test-{token_hex(8)}")
    async with open_redis(mine) as one, open_redis(mine) as other:
        accounts = tuple(f"account {number}" for number in range(5))
        rounds = ROUNDS if ALL_ARE_NEEDED else SHORTER
        yield Engine((RedisNode(one), RedisNode(other)), accounts, rounds)


ENGINES: Final[dict[str, Callable[[Path], AbstractAsyncContextManager[Engine]]]] = {
    "sqlite": sqlite,
    "postgresql": postgresql,
    "memory": memory,
    **{name: partial(in_redis, name) for name in redis_servers.ENGINES},
}


@pytest_asyncio.fixture(params=ENGINES.values(), ids=ENGINES)
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    async with request.param(tmp_path) as opened:
        yield opened


@pytest.fixture
def account(engine: Engine) -> str:
    return engine.accounts[0]


ANNAS: Final = EnvelopeKey("frame", "r1", "anna")
BERTS: Final = EnvelopeKey("frame", "r1", "bert")
VERSIONS: Final = itertools.count(1000)


def write(account: str, data: bytes, *, over: int = ABSENT) -> Write:
    return Write(
        account=account,
        expected=over,
        version=next(VERSIONS),
        data=data,
        changes_at=NOW,
        lasts=60,
        sealed={},
        erased=(),
    )


def deletion(account: str, *, over: int) -> Write:
    return replace(write(account, b"", over=over), version=ABSENT, data=None, changes_at=-math.inf)


# Values


async def test_an_account_without_a_value_has_none(engine: Engine) -> None:
    assert await engine.load() == Value(ABSENT, None)


async def test_a_value_is_read_as_it_was_written_last(engine: Engine, account: str) -> None:
    first = write(account, b"one")
    assert await engine.cas(first) is None
    assert await engine.load() == Value(first.version, b"one")
    second = write(account, b"two", over=first.version)
    assert await engine.cas(second) is None
    assert await engine.load() == Value(second.version, b"two")


async def test_a_reader_that_knows_the_version_gets_no_bytes(engine: Engine, account: str) -> None:
    first = write(account, b"one")
    await engine.cas(first)
    assert await engine.do(lambda store: store.load(account, first.version)) == Value(first.version, None)
    assert await engine.do(lambda store: store.load(account, 7)) == Value(first.version, b"one")


async def test_a_value_is_on_every_node_as_soon_as_it_is_written(engine: Engine, account: str) -> None:
    first = write(account, b"one")
    await engine.cas(first)
    assert await engine.nodes[1].do(lambda store: store.load(account)) == Value(first.version, b"one")


@pytest.mark.parametrize("expected", [ABSENT, 7], ids=["none", "an older one"])
async def test_a_write_over_another_version_changes_nothing_and_tells_the_newest(
    engine: Engine, account: str, expected: int
) -> None:
    first = replace(write(account, b"one"), sealed={ANNAS: b"for anna"})
    await engine.cas(first)
    late = replace(write(account, b"two", over=expected), sealed={BERTS: b"for bert"}, erased=[ANNAS])
    newest = Value(first.version, b"one")
    assert await engine.cas(late) == newest
    assert await engine.load() == newest
    assert await engine.sealed(ANNAS, BERTS) == {ANNAS: b"for anna"}


async def test_a_write_over_a_value_that_is_gone_changes_nothing(engine: Engine, account: str) -> None:
    assert await engine.cas(replace(write(account, b"two", over=7), sealed={BERTS: b"b"})) == Value(
        ABSENT, None
    )
    assert await engine.sealed(BERTS) == {}


async def test_a_deleted_value_that_is_made_anew_is_not_the_one_of_before(
    engine: Engine, account: str
) -> None:
    first = write(account, b"one")
    await engine.cas(first)
    assert await engine.cas(deletion(account, over=first.version)) is None
    assert await engine.load() == Value(ABSENT, None)
    again = write(account, b"one")
    await engine.cas(again)
    assert await engine.cas(write(account, b"two", over=first.version)) == Value(again.version, b"one")
    assert await engine.cas(deletion(account, over=first.version)) == Value(again.version, b"one")


async def test_accounts_have_nothing_in_common(engine: Engine) -> None:
    mine, other, *_ = engine.accounts
    await engine.cas(replace(write(mine, b"mine"), sealed={ANNAS: b"for anna"}))
    others = replace(write(other, b"other"), sealed={ANNAS: b"for the other anna"}, erased=[BERTS])
    assert await engine.cas(others) is None
    assert (await engine.load(mine)).data == b"mine"
    assert await engine.sealed(ANNAS) == {ANNAS: b"for anna"}
    assert await engine.cas(replace(deletion(other, over=others.version), erased=[ANNAS])) is None
    assert await engine.sealed(ANNAS) == {ANNAS: b"for anna"}
    assert await engine.sealed(ANNAS, account=other) == {}


async def test_envelopes_come_and_go_with_a_value(engine: Engine, account: str) -> None:
    first = replace(write(account, b"one"), sealed={ANNAS: b"for anna", BERTS: bytes(70_000)})
    await engine.cas(first)
    absent = EnvelopeKey("frame", "r2", "anna")
    assert await engine.sealed(ANNAS, BERTS, absent) == {ANNAS: b"for anna", BERTS: bytes(70_000)}
    new = {absent: b"newer"}
    await engine.cas(replace(write(account, b"two", over=first.version), sealed=new, erased=[ANNAS, BERTS]))
    assert await engine.sealed(ANNAS, BERTS, absent) == new


async def test_values_that_time_changes_are_listed_in_portions(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account_states, "PORTION", 2)
    for each, at in zip(engine.accounts, (NOW, NOW + 1, -math.inf, NOW, NOW - 1), strict=True):
        await engine.cas(replace(write(each, b"value"), changes_at=at))
    one, _, *rest = engine.accounts
    first = await engine.do(lambda store: store.due(NOW, None))
    second = await engine.do(lambda store: store.due(NOW, first[-1]))
    assert (len(first), len(second)) == (2, 2)
    assert sorted(first + second) == [one, *rest]
    assert await engine.do(lambda store: store.due(NOW, second[-1])) == []
    assert await engine.do(lambda store: store.due(NOW - 2, None)) == [rest[0]]


async def test_a_value_that_time_changes_as_before_is_listed_as_before(engine: Engine, account: str) -> None:
    first = write(account, b"one")
    await engine.cas(first)
    second = replace(write(account, b"two", over=first.version), changes_as_before=True)
    assert await engine.cas(second) is None
    assert await engine.load() == Value(second.version, b"two")
    assert await engine.do(lambda store: store.due(NOW, None)) == [account]
    assert await engine.do(lambda store: store.due(NOW - 1, None)) == []
    third = replace(write(account, b"three", over=first.version), changes_as_before=True)
    assert await engine.cas(third) == Value(second.version, b"two")


async def test_of_many_writers_over_one_version_one_wins(engine: Engine, account: str) -> None:
    """Each reads in one step and writes in another, as nodes do that share a store."""
    won: Counter[int] = Counter()

    async def claim(which: int, round_: int) -> None:
        node = engine.nodes[which % 2]
        value = await node.do(lambda store: store.load(account))
        if value.data == f"{round_}".encode():
            return  # somebody has claimed this round
        mine = write(account, f"{round_}".encode(), over=value.version)
        if await node.do(lambda store: store.cas(mine)) is None:
            won[round_] += 1

    for round_ in range(engine.rounds):
        await asyncio.gather(*(claim(which, round_) for which in range(CLAIMERS)))
    assert won == Counter(range(engine.rounds))


# The states of a transaction, on any of the engines


def request_of(account: str) -> Request:
    return replace(REQUEST, account=account)


def at(store: StateStore, now: float = NOW, cache: StateCache | None = None) -> States:
    return States(store, now, cache)


def submitted(store: StateStore, request: Request, cache: StateCache | None = None) -> None:
    states = at(store, cache=cache)
    states.save(request)
    states.seal(request, {"anna": b"for anna", "bert": b"for bert"})
    states.store()


def saved(store: StateStore, request: Request, cache: StateCache | None = None) -> None:
    states = at(store, cache=cache)
    states.save(request)
    states.store()


async def requests_in(engine: Engine, account: str, now: float = NOW) -> list[Request]:
    return list(await engine.do(lambda store: at(store, now).of(account).requests))


async def test_a_request_comes_back_as_it_was_saved(engine: Engine, account: str) -> None:
    request = request_of(account)
    await engine.do(lambda store: submitted(store, request))
    assert await requests_in(engine, account) == [request]
    changed = request.fetched("anna").companion_says("bert", CompanionEvent.FAILED, "stale-ring", now=NOW)
    changed = changed.companion_says("anna", CompanionEvent.CLAIMED, None, now=NOW, word=b"word")
    await engine.do(lambda store: saved(store, changed))
    assert await requests_in(engine, account) == [changed]


async def test_reading_writes_nothing(engine: Engine, account: str) -> None:
    await engine.do(lambda store: submitted(store, request_of(account)))
    before = await engine.load()

    def read(store: StateStore) -> None:
        states = at(store, NOW + 1000)
        assert states.of(account) is EMPTY or states.of(account).requests == ()
        states.store()

    await engine.do(read)
    assert await engine.load() == before


@pytest.mark.threat("T11")
async def test_envelopes_go_with_the_end_of_their_request(engine: Engine, account: str) -> None:
    request = request_of(account)
    await engine.do(lambda store: submitted(store, request))
    held = await engine.do(lambda store: at(store).sealed_to("anna", [request]))
    assert held == {("frame", "r1"): b"for anna"}
    await engine.do(lambda store: saved(store, request.superseded()))
    assert await engine.sealed(ANNAS, BERTS) == {}
    assert await requests_in(engine, account) == [request.superseded()]


@pytest.mark.threat("T11")
async def test_envelopes_go_with_a_request_that_is_forgotten_while_nobody_looked(
    engine: Engine, account: str
) -> None:
    await engine.do(lambda store: submitted(store, request_of(account)))

    def later(store: StateStore) -> None:
        states = at(store, NOW + 300 + GRACE + KEPT)
        states.put(account, states.of(account))
        states.store()

    await engine.do(later)
    assert await engine.sealed(ANNAS, BERTS) == {}
    assert await engine.load() == Value(ABSENT, None)


async def test_envelopes_to_who_was_removed_are_erased_and_no_others(engine: Engine, account: str) -> None:
    request = request_of(account)
    await engine.do(lambda store: submitted(store, request))

    def removed(store: StateStore) -> None:
        states = at(store)
        states.erase_envelopes(account, {"anna", "carl"})
        states.store()

    await engine.do(removed)
    assert await engine.sealed(ANNAS, BERTS) == {BERTS: b"for bert"}


async def test_what_is_tried_aside_is_not_stored(engine: Engine, account: str) -> None:
    request = request_of(account)
    await engine.do(lambda store: submitted(store, request))

    def tried(store: StateStore) -> None:
        states = at(store)
        states.aside().save(request.superseded())
        states.store()

    await engine.do(tried)
    assert await requests_in(engine, account) == [request]


async def test_a_state_that_somebody_else_has_changed_since_is_not_written(
    engine: Engine, account: str
) -> None:
    request = request_of(account)
    await engine.do(lambda store: submitted(store, request))

    def stale(store: StateStore) -> None:
        states = at(store)
        claimed = states.of(account).requests[0].companion_says("anna", CompanionEvent.CLAIMED, None, now=NOW)
        saved(store, request.superseded())  # by another node
        states.save(claimed)
        with pytest.raises(StoreBusy):
            states.store()

    await engine.do(stale)
    assert await requests_in(engine, account) == [request.superseded()]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_transaction_over_an_old_state_is_done_again_over_the_newest_and_committed_once(
    tmp_path: Path, kind: str
) -> None:
    async with ENGINES[kind](tmp_path) as engine:
        account, *_ = engine.accounts
        request = request_of(account)
        await engine.do(lambda store: submitted(store, request))
        seen: list[RequestState] = []
        committed: list[int] = []

        def fetched(db: Transaction) -> int:
            store = SqlStates(db)
            states = at(store)
            (found,) = states.of(account).requests
            seen.append(found.state)
            if len(seen) == 1:
                saved(store, found.superseded())  # as if by another node; rolled back with this try
            states.save(found.fetched("anna"))
            states.store()
            return len(seen)

        node, _ = engine.nodes
        assert isinstance(node, Node)
        assert await node.database.transact(fetched, committed=committed.append) == 2
        assert seen == [RequestState.PENDING] * 2
        assert committed == [2]
        assert [each.state for each in await requests_in(engine, account)] == [RequestState.DELIVERED]


@pytest.mark.threat("T5")
async def test_of_many_claims_in_a_race_over_nodes_one_stands(
    engine: Engine, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claims by the rules, of companions that reach the store through nodes with a cache each, by which they go."""
    monkeypatch.setattr(account_states, "CONFIRMED", 0)
    caches = (StateCache(), StateCache())
    names = [f"companion {which}" for which in range(CLAIMERS)]
    won: Counter[str] = Counter()
    lost: Counter[Slug] = Counter()

    async def claim(which: int, name: str) -> None:
        def by(store: StateStore) -> None:
            states = States(store, NOW, caches[which % 2])
            request = states.of(account, writes=True).request(("frame", name))
            if request is None:  # as far as is known here
                states.check()
            assert request is not None
            word = f"word {which}".encode()
            try:
                claimed = request.companion_says(
                    names[which], CompanionEvent.CLAIMED, None, now=NOW, word=word
                )
            except Problem:
                states.check()
                raise
            states.save(claimed)
            states.store()

        try:
            await engine.nodes[which % 2].do(by)
            won[name] += 1
        except Problem as problem:
            lost[problem.slug] += 1

    one = replace(request_of(account), recipients=tuple(names))
    began = time.monotonic()
    for number in range(engine.rounds):
        request = replace(one, id=f"r{number}")
        await engine.do(lambda store, request=request: submitted(store, request, caches[0]))  # type: ignore[misc]
        await asyncio.gather(*(claim(which, request.id) for which in range(CLAIMERS)))
        ended = request.superseded()
        await engine.do(lambda store, ended=ended: saved(store, ended))  # type: ignore[misc]
    assert won == Counter(f"r{number}" for number in range(engine.rounds))
    assert lost == {Slug.ALREADY_CLAIMED: engine.rounds * (CLAIMERS - 1)}
    if RECORD is not None:
        await record(engine, time.monotonic() - began)


async def record(engine: Engine, seconds: float) -> None:
    """Note what was run, for benchmarks/races.py."""
    assert RECORD is not None
    run = {"engine": await name_of(engine), "requests": engine.rounds, "claims": CLAIMERS, "seconds": seconds}
    with open(RECORD, "a", encoding="utf-8") as file:  # noqa: ASYNC230, PTH123  one line at once, of any worker
        file.write(json.dumps(run) + "\n")


async def name_of(engine: Engine) -> str:
    """The engine with its version."""
    match engine.nodes[0]:
        case Node(database):
            return (await database.transact(engine_of))[0].partition(" (")[0]
        case RedisNode(states):
            return await asyncio.to_thread(lambda: states.look().engine)
        case MemoryNode():
            return "memory of one process"


async def test_who_alone_writes_a_state_does_not_read_it_before() -> None:
    store, cache = CountedLoads(), StateCache()
    request = request_of("alice")
    submitted(store, request, cache)
    for _ in range(CONFIRMED):
        at(store, cache=cache).of("alice")
    loads = store.loads
    for number in range(3):
        states = at(store, cache=cache)
        assert states.of("alice", writes=True).requests == (request,)
        request = request.heard(NOW + 100 * (number + 1), 1)
        states.save(request)
        states.store()
    assert store.loads == loads
    states = at(store, cache=cache)  # who writes nothing in the end has read all the same
    states.of("alice", writes=True)
    states.store()
    assert store.loads == loads + 1
    at(store, cache=cache).of("alice")
    at(store, cache=cache).aside().of("alice", writes=True)  # nobody checks what it says
    assert store.loads == loads + 3


@pytest.mark.threat("T5")
@pytest.mark.parametrize("ends_by", ["store", "check"])
async def test_what_a_process_has_in_mind_counts_for_nothing_once_another_one_has_written(
    ends_by: str,
) -> None:
    """Neither for a change, nor for a refusal or an answer: it is read again, and then before each time for a while."""
    store, cache = CountedLoads(), StateCache()
    request = request_of("alice")
    submitted(store, request, cache)
    for _ in range(CONFIRMED):
        at(store, cache=cache).of("alice")
    saved(store, request.superseded())  # by another process
    stale = at(store, cache=cache)
    assert stale.of("alice", writes=True).requests == (request,)
    if ends_by == "store":
        stale.save(request.fetched("anna"))
    with pytest.raises(StoreBusy):
        getattr(stale, ends_by)()
    loads = store.loads
    again = at(store, cache=cache)
    assert again.of("alice", writes=True).requests == (request.superseded(),)
    again.store()
    assert store.loads == loads + 1


class CountedLoads(MemoryStates):
    """It counts how often it is asked for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = 0

    def load(self, account: str, known: int = ABSENT) -> Value:
        self.loads += 1
        return super().load(account, known)

    def cas(self, write: Write) -> Value | None:
        loads = self.loads
        done = super().cas(write)
        self.loads = loads  # what it looks at itself is no question
        return done


async def test_a_transaction_that_was_rolled_back_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    async with sqlite(tmp_path) as engine:
        account, *_ = engine.accounts
        cache = StateCache()
        request = request_of(account)
        await engine.do(lambda store: submitted(store, request, cache))

        def fails(store: StateStore) -> None:
            saved(store, request.superseded(), cache)
            raise Problem(Slug.EXPIRED)

        with pytest.raises(Problem):
            await engine.do(fails)
        kept = await engine.do(lambda store: at(store, cache=cache).of(account).requests)
        assert [each.state for each in kept] == [RequestState.PENDING]


async def test_a_value_that_cannot_be_read_costs_what_waited_and_not_the_account(
    engine: Engine, account: str, caplog: pytest.LogCaptureFixture
) -> None:
    await engine.cas(write(account, b"\xc1 rubbish"))
    assert await requests_in(engine, account) == []
    assert "lost what waited" in caplog.text
    await engine.do(lambda store: submitted(store, request_of(account)))
    assert await requests_in(engine, account) == [request_of(account)]
    assert await engine.do(lambda store: store.due(NOW - 1, None)) == [account]  # as any with a live request


async def test_the_cache_is_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account_states, "_CACHED", 2)
    cache = StateCache()
    for each in engine.accounts:
        await engine.do(lambda store, each=each: submitted(store, request_of(each), cache))  # type: ignore[misc]
    assert len(cache) == 2
    for each in engine.accounts:
        requests = await engine.do(lambda store, each=each: at(store, cache=cache).of(each).requests)  # type: ignore[misc]
        assert requests == (request_of(each),)


async def test_a_value_holds_what_its_state_does(engine: Engine, account: str) -> None:
    await engine.do(lambda store: submitted(store, request_of(account)))
    data = (await engine.load()).data
    assert data is not None
    state = decoded(data)
    assert state.requests == (request_of(account),)
    assert decoded(encoded(state)) == state


# A relay with a store of its own for what lives minutes


class Counted(MemoryStates):
    """A store that has a length, so that an empty one is false."""

    def __len__(self) -> int:
        return len(self.values)


async def test_a_relay_keeps_what_lives_minutes_in_the_store_that_it_was_given(tmp_path: Path) -> None:
    states, path = Counted(), tmp_path / "relay.sqlite3"
    async with running_relay(path, states=states) as relay:
        home = await relay.household("alice")
        (anna, _), (frame,) = home.companions, home.devices
        name = fresh_id()
        await frame.submit(anna, name=name)
        assert (await anna.claims(frame, (await anna.inbox())[0])).status == 200
        assert (await frame.status(name))["state"] == "claimed"
    assert stored_requests(path) == []
    ((value, _),) = states.values.values()
    assert value.data is not None
    assert [request.state for request in decoded(value.data).requests] == [RequestState.CLAIMED]
    assert len(states.sealed[home.account]) == 1
    async with running_relay(path, states=states) as relay:  # and finds it there again
        again = relay.caller(frame.person)
        assert (await again.status(name))["state"] == "claimed"
        await again.tell(name, "completed")
    assert states.sealed == {}
