"""The relay's handlers, cancelled at every point where they wait, once and twice, as when a client hangs up: nothing stays open or held."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from companion_push.relay.app import RELAY, RelayEndpoints, make_app
from companion_push.relay.postgres import PostgresStore
from postgres_store.database import CONNECTIONS
from tests.open_things import Handlers, Interruption, cancel_everywhere
from tests.relay import household
from tests.relay.graphql_calls import INBOX, send
from tests.relay.household import Household, Reply, fresh_id
from tests.relay.test_graphql_subscriptions import endpoint

Call = Callable[[Household], Awaitable[Reply]]


async def submit(home: Household) -> Reply:
    return await home.devices[0].submit(*home.companions)


async def look(home: Household) -> Reply:
    return await home.companions[0].get("/v1/inbox")


async def hold(home: Household) -> Reply:
    """A request that the relay holds until its time is over."""
    phone = home.companions[0]
    cursor = (await phone.get("/v1/inbox")).body["cursor"]
    return await phone.get(f"/v1/inbox?cursor={cursor}&wait=1")


async def claim(home: Household) -> Reply:
    phone, frame = home.companions[0], home.devices[0]
    name = fresh_id()
    await frame.submit(phone, name=name)
    return await phone.act(frame, name, "claimed")


async def stream(home: Household) -> Reply:
    """The first event of a stream."""
    phone, path = home.companions[0], "/v1/inbox/stream"
    async with phone.session.get(phone.url + path, headers={"DPoP": phone.proof("GET", path)}) as response:
        async for line in response.content:
            if line.startswith(b"event: inbox"):
                break
        return Reply(response.status, None, response.headers)


async def query(home: Household) -> Reply:
    return await send(home.companions[0], INBOX)


async def subscribe(home: Household) -> Reply:
    """What a subscription sends first."""
    phone = home.companions[0]
    headers = {"DPoP": phone.proof("GET", "/graphql")}
    status = 0
    async with phone.session.ws_connect(
        f"{phone.url}/graphql", protocols=["graphql-transport-ws"], headers=headers
    ) as socket:
        await socket.send_json({"type": "connection_init"})
        payload = {"query": "subscription { inbox { cursor } }"}
        await socket.send_json({"type": "subscribe", "id": "1", "payload": payload})
        async for received in socket:
            if received.json()["type"] == "next":
                status = 200
                break
    return Reply(status, None, {})


async def open_connections(endpoints: RelayEndpoints) -> None:
    """Open all connections that the relay keeps to its database, where it has one: else some call would be the first to need one."""
    store = endpoints._open_store
    if isinstance(store, PostgresStore):
        together = threading.Barrier(CONNECTIONS)
        await asyncio.gather(*(store.run(lambda _: together.wait()) for _ in range(CONNECTIONS)))


@pytest.mark.parametrize("again", [None, 1, 2], ids=["once", "and at once", "and two later"])
@pytest.mark.parametrize(
    ("call", "path"),
    [
        (submit, "/v1/requests/"),
        (look, "/v1/inbox"),
        (hold, "wait=1"),
        (claim, "/events"),
        (stream, "/stream"),
        (query, "/graphql"),
        (subscribe, "/graphql"),
    ],
    ids=["submit", "inbox", "held inbox", "claim", "stream", "query", "subscription"],
)
async def test_a_handler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, path: str, again: int | None
) -> None:
    handlers = Handlers()
    monkeypatch.setattr(
        household, "make_app", lambda config, **more: handlers.added_to(make_app(config, **more))
    )
    async with household.running_relay(tmp_path / "relay.sqlite3", graphql=True) as relay:
        endpoints = relay.app[RELAY]
        home = await relay.household()

        async def one(interruption: Interruption) -> Interruption:
            handlers.interrupt(path, interruption)
            with contextlib.suppress(aiohttp.ClientError):
                await call(home)
            handlers.interrupt(path, Interruption(at=0))
            return interruption

        await one(Interruption(at=0))
        await open_connections(endpoints)
        cancelled = await cancel_everywhere(one, again=(again,))
        assert cancelled >= 1 or call in (look, query)  # what waits for nothing cannot be cancelled
        assert len(endpoints.held_requests) == 0
        assert not endpoints._transactions
        subscriptions = endpoint(relay)
        assert not subscriptions._connections
        assert len(subscriptions.strangers) == 0
        assert (await call(home)).status in (200, 201)
