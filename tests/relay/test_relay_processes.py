"""Several relays as programs of their own on one database: claims that race over HTTP, and relays that are replaced under load."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from companion_push.relay.redis_place import RedisPlace
from companion_push.relay.store_place import PostgresUri
from tests.companion.program import Program, running
from tests.ports import reserved_port
from tests.relay.household import Caller, Clock, Reply, claimer, fresh_id, running_relay
from tests.relay.stores import postgres
from tests.relay.test_nodes import at_states, states

__all__ = ["states"]  # a fixture

MANY: Final = (
    *("--requests-per-minute", "100000", "--requests-per-day", "100000"),
    *("--account-requests-per-day", "100000", "--pending-per-account", "1000", "--no-pauses"),
)
RACES: Final = 15
EVERY: Final = 0.1  # seconds from one sign-in to the next, however long they take
ANSWERED: Final = 60.0  # seconds, a safety net


@pytest.fixture
def place(tmp_path: Path) -> PostgresUri:
    return postgres().database_for(tmp_path)


@dataclass
class Relays:
    """Relays behind one public URL, each with a port of its own."""

    url: str
    words: tuple[str, ...]
    ports: list[int]
    stack: contextlib.AsyncExitStack
    programs: list[Program] = field(default_factory=list)

    async def start(self, which: int) -> Program:
        listen = ("--listen", f"127.0.0.1:{self.ports[which]}")
        program = await self.stack.enter_async_context(running("relay", *listen, *self.words))
        await program.line()
        return program

    async def replace(self, which: int) -> None:
        """End a relay as its operator does, and start a new one in its place."""
        self.programs[which].terminate()
        assert await self.programs[which].ended() == 0
        self.programs[which] = await self.start(which)

    def at(self, which: int) -> str:
        return f"http://127.0.0.1:{self.ports[which % len(self.ports)]}"


@contextlib.asynccontextmanager
async def relays(count: int, place: PostgresUri, *more: str) -> AsyncIterator[Relays]:
    url = f"http://127.0.0.1:{reserved_port()}"
    ports = [reserved_port() for _ in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        words = ("--public-url", url, "--store", place.uri, *MANY, *more)
        all_of_them = Relays(url, words, ports, stack)
        all_of_them.programs += await asyncio.gather(*map(all_of_them.start, range(count)))
        yield all_of_them


# A race


@pytest.mark.threat("T5")
@pytest.mark.parametrize("states", [None, "redis-cluster"], ids=["in rows", "in a Cluster"], indirect=True)
async def test_of_claims_that_race_to_two_relays_one_stands(
    place: PostgresUri, tmp_path: Path, states: RedisPlace | None
) -> None:
    """Each of two companions claims at both relays at once. A claim that comes again is the same claim."""
    async with (
        relays(2, place, *at_states(states)) as two,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        async with running_relay(tmp_path, place=place, url=two.url, states=states) as beside:
            home = await beside.household()

        def calls(which: int, caller: Caller) -> Caller:
            return Caller(caller.person, session, two.url, Clock(), at=two.at(which))

        everywhere = [[calls(which, each) for each in home.companions] for which in range(2)]
        frames = [calls(which, home.devices[0]) for which in range(2)]
        won: Counter[str] = Counter()
        for number in range(RACES):
            name = fresh_id()
            assert (await frames[number % 2].submit(*everywhere[0], name=name)).status == 201
            words = {each.name: await each.claim(frames[0], name) for each in everywhere[number % 2]}
            racing = [each for at_one in everywhere for each in at_one]
            replies = await asyncio.gather(
                *(each.act(frames[0], name, "claimed", word=words[each.name]) for each in racing)
            )
            taken = {each.name for each, reply in zip(racing, replies, strict=True) if reply.status == 200}
            (winner,) = taken
            assert Counter(reply.status for reply in replies) == {200: 2, 409: 2}
            assert [await frame.claimer(name) for frame in frames] == [winner] * 2
            assert (await frames[number % 2].tell(name, "completed")).status == 200
            won[winner] += 1
    assert won.total() == RACES


# A rolling restart


@dataclass
class Client:
    """A member that calls one relay after the other, until one answers."""

    caller: Caller
    relays: Relays
    turn: int = 0

    @property
    def name(self) -> str:
        return self.caller.name

    async def call(self, ask: Callable[[Caller], Awaitable[Reply]]) -> Reply:
        async with asyncio.timeout(ANSWERED):
            while True:
                self.turn += 1
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    reply = await ask(replace(self.caller, at=self.relays.at(self.turn)))
                    if reply.status != 503:
                        return reply
                await asyncio.sleep(0.01)


async def test_relays_are_replaced_one_by_one_under_load_and_no_sign_in_fails_or_comes_twice(
    place: PostgresUri, tmp_path: Path
) -> None:
    """The load is open: sign-ins have planned times, and devices that are free take the next one. Two companions want each."""
    async with (
        relays(3, place) as three,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        async with running_relay(tmp_path, place=place, url=three.url) as beside:
            home = await beside.household(devices=4)

        def client(caller: Caller) -> Client:
            return Client(Caller(caller.person, session, three.url, Clock()), three)

        planned: asyncio.Queue[str | None] = asyncio.Queue()
        claims: Counter[tuple[str, int]] = Counter()
        ended: Counter[str] = Counter()

        async def wants(companion: Client, device: Client, name: str) -> None:
            word = ""

            async def claim(at: Caller) -> Reply:
                nonlocal word
                word = word or await at.claim(device.caller, name)
                return await at.act(device.caller, name, "claimed", word=word)

            claims[name, (await companion.call(claim)).status] += 1

        async def signs_in(device: Client) -> None:
            companions = [client(each) for each in home.companions]
            to = [each.caller for each in companions]
            while (name := await planned.get()) is not None:
                submitted = await device.call(lambda at, name=name: at.submit(*to, name=name))  # type: ignore[misc]
                assert submitted.status in (200, 201), submitted
                version = submitted.body["version"]
                async with asyncio.TaskGroup() as wanting:
                    for companion in companions:
                        wanting.create_task(wants(companion, device, name))
                    claim = None
                    while claim is None:  # held until somebody claims, or its relay ends
                        path = f"/v1/requests/{name}?version={version}&wait=25"
                        status = (await device.call(lambda at, path=path: at.get(path))).body  # type: ignore[misc]
                        claim, version = claimer(status), status["version"]
                told = await device.call(lambda at, name=name: at.tell(name, "completed"))  # type: ignore[misc]
                assert told.status == 200, told
                ended[name] += 1

        async def load() -> None:
            while True:
                planned.put_nowait(fresh_id())
                await asyncio.sleep(EVERY)

        devices = [client(each) for each in home.devices]
        signing_in = asyncio.gather(*map(signs_in, devices))
        loading = asyncio.create_task(load())
        for which in range(3):
            before = ended.total()
            await three.replace(which)
            async with asyncio.timeout(ANSWERED):
                while ended.total() < before + 2 * len(devices):  # some by the relay that has come
                    assert not signing_in.done(), await signing_in
                    await asyncio.sleep(0.01)
        loading.cancel()
        for _ in devices:
            planned.put_nowait(None)
        await signing_in
        assert set(ended.values()) == {1}
        assert claims == {(name, status): 1 for name in ended for status in (200, 409)}
