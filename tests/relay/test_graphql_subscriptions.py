"""Subscriptions of `/graphql` by graphql-transport-ws: the inbox, from the moment a request is submitted."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET
from typing import Any, Final

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import WSMsgType, web
from multidict import CIMultiDict

from companion_push.errors import StoreUnavailable
from companion_push.relay import app, following, operations
from companion_push.relay.app import RELAY, close_account
from companion_push.relay.graphql import subscriptions
from companion_push.relay.graphql.subscriptions import Subscriptions
from companion_push.relay.strangers import Budget
from http_serving.connections import ConnectionLimits
from tests.loop_clock import LoopClock
from tests.relay.graphql_calls import INBOX, submit
from tests.relay.household import PROBLEM, SEALED, Caller, Household, Relay, running_relay
from tests.relay.stores import of_one_process
from tests.trust.people import companion

PROTOCOL = "graphql-transport-ws"
PATIENCE: Final = 60.0  # seconds
LONG: Final = 1e6  # seconds
_STILL: Final = 1.0  # seconds after which who has taken nothing takes nothing more
FOLLOW = """subscription Follow($cursor: String) {
  inbox(cursor: $cursor) { cursor requests { device id state sealed } wordWanted ring { version } }
}"""
INIT: dict[str, Any] = {"type": "connection_init"}


@pytest_asyncio.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    async with running_relay(tmp_path / "relay.sqlite3", graphql=True) as running:
        yield running


class Socket:
    """One end of a WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            await self.socket.send_json(message)

    async def next(self) -> dict[str, Any]:
        """The next message that is no ping."""
        while True:
            received = await self.socket.receive()
            assert received.type is WSMsgType.TEXT, (received, self.socket.close_code)
            message = json.loads(received.data)
            if message["type"] != "ping":
                return dict(message)

    async def closed(self) -> tuple[int | None, str]:
        """The code and reason with which the other side closes."""
        while True:
            received = await self.socket.receive()
            if received.type is WSMsgType.CLOSE:
                return received.data, str(received.extra)
            assert received.type is WSMsgType.TEXT, received

    async def follow(self, number: str = "1", **variables: object) -> None:
        payload = {"query": FOLLOW, "variables": variables}
        await self.send({"type": "subscribe", "id": number, "payload": payload})

    async def inbox(self, number: str = "1") -> dict[str, Any]:
        message = await self.next()
        assert (message["type"], message["id"]) == ("next", number), message
        return dict(message["payload"]["data"]["inbox"])


@contextlib.asynccontextmanager
async def opened(caller: Caller, *, proof: bool = True) -> AsyncIterator[Socket]:
    """A connection. proof: whether it comes with the upgrade request."""
    headers = {"DPoP": caller.proof("GET", "/graphql")} if proof else {}
    url = f"{caller.url}/graphql"
    async with caller.session.ws_connect(url, protocols=[PROTOCOL], headers=headers) as socket:
        yield Socket(socket)


@contextlib.asynccontextmanager
async def begun(caller: Caller) -> AsyncIterator[Socket]:
    """A connection whose caller is known."""
    async with opened(caller) as socket:
        await socket.send(INIT)
        assert (await socket.next())["type"] == "connection_ack"
        yield socket


async def test_a_request_arrives_the_moment_it_is_submitted(home: Household) -> None:
    (frame,), (phone, _) = home.devices, home.companions
    async with begun(phone) as socket:
        await socket.follow()
        first = await socket.inbox()
        assert (first["requests"], first["ring"]) == ([], {"version": 2})
        name = await submit(frame, phone)
        (item,) = (await socket.inbox())["requests"]
        assert item == {"device": frame.name, "id": name, "state": "DELIVERED", "sealed": SEALED}
        assert (await frame.tell(name, "cancelled")).status == 200
        assert (await socket.inbox())["requests"] == []


async def test_a_request_that_waits_already_is_sent_at_once_and_a_known_inbox_is_not(home: Household) -> None:
    (frame,), (phone, _) = home.devices, home.companions
    name = await submit(frame, phone)
    async with begun(phone) as socket:
        await socket.follow()
        inbox = await socket.inbox()
        assert [item["id"] for item in inbox["requests"]] == [name]
        await socket.follow("2", cursor=inbox["cursor"])
        assert (await frame.tell(name, "cancelled")).status == 200
        heard = {(await socket.next())["id"], (await socket.next())["id"]}
        assert heard == {"1", "2"}


async def test_each_companion_is_sent_its_own(home: Household) -> None:
    (frame,), (phone, other) = home.devices, home.companions
    async with begun(phone) as here, begun(other) as there:
        for socket in (here, there):
            await socket.follow()
            await socket.inbox()
        name = await submit(frame, phone)
        assert [item["id"] for item in (await here.inbox())["requests"]] == [name]
        theirs = await submit(frame, other)  # which supersedes the other one
        assert (await here.inbox())["requests"] == []
        assert [item["id"] for item in (await there.inbox())["requests"]] == [theirs]


async def test_a_proof_may_come_with_the_first_message(relay: Relay, home: Household) -> None:
    """Pages in a browser cannot set headers."""
    (phone, _) = home.companions
    async with opened(phone, proof=False) as socket:
        await socket.send(INIT | {"payload": {"DPoP": phone.proof("GET", "/graphql"), "more": 1}})
        ack = await socket.next()
        assert ack == {"type": "connection_ack", "payload": {"DPoP-Nonce": relay._relay.nonce()}}
        await socket.follow()
        assert (await socket.inbox())["requests"] == []


async def test_a_proof_without_the_nonce_is_answered_with_it(home: Household) -> None:
    known = home.companions[0]
    caller = Caller(known.person, known.session, known.url, known.clock)
    async with opened(caller, proof=False) as socket:
        await socket.send(INIT | {"payload": {"DPoP": caller.proof("GET", "/graphql")}})
        code, reason = await socket.closed()
    assert code == 4403
    slug, nonce = reason.split()
    assert slug == "use-dpop-nonce"
    caller.kept["nonce"] = nonce
    async with opened(caller, proof=False) as socket:
        await socket.send(INIT | {"payload": {"DPoP": caller.proof("GET", "/graphql")}})
        assert (await socket.next())["type"] == "connection_ack"


@pytest.mark.parametrize(
    ("error", "closed", "logged"),
    [
        (StoreUnavailable("the database does not answer"), (4403, "store-unavailable"), []),
        (KeyError("a secret"), (1011, ""), ["unexpected KeyError"]),
    ],
    ids=["the database is away", "a bug"],
)
async def test_a_connection_whose_proof_cannot_be_looked_up_is_closed_in_the_words_of_the_protocol(
    relay: Relay,
    home: Household,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    error: Exception,
    closed: tuple[int, str],
    logged: list[str],
) -> None:
    async def away() -> None:
        raise error

    phone = home.companions[0]
    # as used proofs that are in a database of others
    monkeypatch.setattr(relay._relay._used_proofs, "take", lambda _proof, _now: away())
    async with opened(phone, proof=False) as socket:
        await socket.send(INIT | {"payload": {"DPoP": phone.proof("GET", "/graphql")}})
        assert await socket.closed() == closed
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert [line.partition(" at ")[0] for line in errors] == logged
    assert all("secret" not in line for line in errors)


@pytest.mark.threat("T13")
@pytest.mark.parametrize(
    "payload", [None, {}, {"DPoP": None}, {"DPoP": ["x"]}, {"DPoP": "e30.e30.AA"}, {"dpop": "e30.e30.AA"}],
    ids=["null", "nothing", "no proof", "list", "no JWS", "other name"],
)  # fmt: skip
async def test_a_connection_without_a_proof_is_closed(home: Household, payload: Any) -> None:
    async with opened(home.companions[0], proof=False) as socket:
        await socket.send(INIT | {"payload": payload})
        code, reason = await socket.closed()
    assert (code, reason.split()[0]) == (4403, "proof-invalid")


@pytest.mark.threat("T13")
async def test_a_proof_is_good_for_one_connection_and_for_this_address(home: Household) -> None:
    (phone, _) = home.companions
    once = phone.proof("GET", "/graphql")
    async with opened(phone, proof=False) as socket:
        await socket.send(INIT | {"payload": {"DPoP": once}})
        assert (await socket.next())["type"] == "connection_ack"
    for proof in (once, phone.proof("POST", "/graphql"), phone.proof("GET", "/v1/inbox")):
        async with opened(phone, proof=False) as socket:
            await socket.send(INIT | {"payload": {"DPoP": proof}})
            assert await socket.closed() == (4403, "proof-invalid")
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await phone.session.ws_connect(
                f"{phone.url}/graphql", protocols=[PROTOCOL], headers={"DPoP": proof}
            )
        assert refused.value.status == 401
        assert "DPoP-Nonce" in (refused.value.headers or {})


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        (["x"], 4400),
        ([b"{}"], 4400),
        (["[]"], 4400),
        (['{"type": "start"}'], 4400),
        (['{"type": "subscribe", "id": 1, "payload": {}}'], 4400),
        (['{"type": "subscribe", "id": "1", "payload": []}'], 4400),
        (['{"type": "subscribe", "id": "1", "payload": {"query": 7}}'], 4400),
        (['{"type": "subscribe", "id": "1", "payload": {"query": "{ __typename }", "more": 1}}'], 4400),
        (['{"type": "connection_init", "payload": 7}'], 4400),
        (["[" * 50_000], 4400),
        (["x" * 100_000], 1009),
        (['{"type": "subscribe", "id": "1", "payload": {"query": "subscription { inbox { cursor } }"}}'], 4401),
        (['{"type": "connection_init"}', '{"type": "connection_init"}'], 4429),
    ],
    ids=["text", "bytes", "list", "type", "id", "payload", "query", "member", "init", "deep", "long", "too soon", "twice"],
)  # fmt: skip
@pytest.mark.threat("T12")
async def test_a_message_that_is_none_closes_the_connection(
    home: Household, messages: list[str | bytes], code: int
) -> None:
    async with opened(home.companions[0]) as socket:
        for message in messages:
            if isinstance(message, str):
                await socket.socket.send_str(message)
            else:
                await socket.socket.send_bytes(message)
        assert (await socket.closed())[0] == code


async def test_an_id_names_one_subscription_at_a_time(home: Household) -> None:
    async with begun(home.companions[0]) as socket:
        await socket.follow()
        await socket.inbox()
        await socket.follow()
        assert (await socket.closed())[0] == 4409


async def test_a_subscription_that_is_completed_sends_no_more_and_frees_its_id(
    relay: Relay, home: Household
) -> None:
    (frame,), (phone, _) = home.devices, home.companions
    async with begun(phone) as socket:
        await socket.follow()
        cursor = (await socket.inbox())["cursor"]
        await socket.send({"type": "complete", "id": "1"}, {"type": "complete", "id": "none"})
        await until_free(relay)
        await submit(frame, phone)
        await socket.follow(cursor=cursor)
        assert len((await socket.inbox())["requests"]) == 1
    await until_free(relay)


async def until_free(relay: Relay) -> None:
    while len(relay.held_requests):  # noqa: ASYNC110  nothing tells of it
        await asyncio.sleep(0.01)


async def test_a_ping_is_answered(home: Household) -> None:
    async with opened(home.companions[0]) as socket:
        await socket.send({"type": "ping", "payload": {"a": 1}}, {"type": "pong"})
        assert await socket.next() == {"type": "pong"}


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("subscription { inbox { nothing } }", "Cannot query field"),
        ("subscription { inbox { cursor } ", "Expected Name"),
        ("subscription { a: inbox { cursor } b: inbox { cursor } }", "one root field"),
        ("subscription($x: Int) { inbox(cursor: $x) { cursor } }", "position expecting"),
        ('subscription { inbox(cursor: "") { cursor } }', "cursor"),
        (INBOX, "expected a subscription"),
        ("mutation { callForWords }", "expected a subscription"),
    ],
    ids=["field", "syntax", "two", "type", "cursor", "query", "mutation"],
)
async def test_a_document_that_is_refused_ends_its_subscription_alone(
    home: Household, document: str, why: str
) -> None:
    async with begun(home.companions[0]) as socket:
        await socket.send({"type": "subscribe", "id": "1", "payload": {"query": document}})
        message = await socket.next()
        assert (message["type"], message["id"]) == ("error", "1")
        assert message["payload"][0]["extensions"]["type"] == f"{PROBLEM}invalid-request"
        assert why in message["payload"][0]["message"]
        await socket.follow()
        await socket.inbox()


@pytest.mark.threat("T17")
async def test_a_connection_has_so_many_subscriptions_and_a_member_so_many_held_calls(
    relay: Relay, home: Household
) -> None:
    (phone, _) = home.companions
    async with begun(phone) as socket:
        for number in "1234":
            await socket.follow(number)
            await socket.inbox(number)
        await socket.follow("5")
        refused = await socket.next()
        assert refused["payload"][0]["extensions"]["type"] == f"{PROBLEM}too-many-pending"
        async with begun(phone) as another:
            await another.follow()
            await another.inbox()
            assert await socket.next() == {"type": "complete", "id": "1"}
        assert len(relay.held_requests) <= 4


# What strangers, and the worst member, can do with a connection


def endpoint(relay: Relay) -> Subscriptions:
    """The relay's endpoint for subscriptions."""
    for route in relay.app.router.routes():
        found = getattr(route.handler, "__self__", None)
        if isinstance(found, Subscriptions):
            return found
    raise AssertionError("the relay has none")


@pytest.mark.threat("T17")
async def test_a_connection_of_nobody_ends_in_time_whatever_it_says(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "INIT_SECONDS", 0.3)
    monkeypatch.setattr(subscriptions, "MAX_BEFORE_INIT", 1 << 30)
    async with opened(home.companions[0], proof=False) as socket:
        while True:
            await socket.send({"type": "ping"})
            received = await socket.socket.receive()
            if received.type is WSMsgType.CLOSE:
                assert received.data == 4408
                break
            await asyncio.sleep(0.01)


@pytest.mark.threat("T17")
@pytest.mark.parametrize("frame", [False, True], ids=["message", "frame"])
async def test_a_caller_that_is_not_known_yet_is_heard_a_few_times(home: Household, *, frame: bool) -> None:
    async with opened(home.companions[0], proof=False) as socket:
        for _ in range(17):
            await (socket.socket.ping() if frame else socket.send({"type": "pong"}))
        assert await socket.closed() == (4401, "expected connection_init first")


@pytest.mark.threat("T17")
@pytest.mark.parametrize("frame", [False, True], ids=["message", "frame"])
async def test_each_message_is_a_call_of_its_caller(
    relay: Relay, home: Household, monkeypatch: pytest.MonkeyPatch, *, frame: bool
) -> None:
    monkeypatch.setattr(app, "REFUSAL_SECONDS", 0.0)
    async with begun(home.companions[0]) as socket:
        monkeypatch.setattr(relay.app[RELAY], "_calls", Budget(name="calls", per_minute=1))
        for _ in range(5):
            await (socket.socket.ping() if frame else socket.send({"type": "pong"}))
        assert await socket.closed() == (4403, "rate-limited")


@pytest.mark.threat("T13")
@pytest.mark.parametrize("proof", [True, False], ids=["header", "payload"])
async def test_a_stranger_with_a_key_is_not_known_by_its_connection_and_fails_by_its_subscription(
    tmp_path: Path, *, proof: bool
) -> None:
    async with running_relay(tmp_path / "r", graphql=True, failures_per_address=2) as relay:
        home = await relay.household()
        strangers = [relay.caller(companion(f"stranger {number}")) for number in range(3)]

        async def begin(caller: Caller, socket: Socket) -> None:
            payload = {} if proof else {"payload": {"DPoP": caller.proof("GET", "/graphql")}}
            await socket.send(INIT | payload)
            assert (await socket.next())["type"] == "connection_ack"

        for caller, document in ((strangers[0], FOLLOW), (strangers[1], "subscription { nothing }")):
            async with opened(caller, proof=proof) as socket:
                await begin(caller, socket)
                payload = {"query": document}
                await socket.send({"type": "subscribe", "id": "1", "payload": payload})
                assert (await socket.next())["type"] == "error"
        reply = await strangers[2].get("/v1/inbox")
        assert (reply.status, reply.problem) == (429, "rate-limited")
        reply = await strangers[0].get("/v1/inbox")
        assert (reply.status, reply.problem) == (429, "rate-limited")
        phone = home.companions[0]
        async with opened(phone, proof=proof) as socket:
            await begin(phone, socket)
            await socket.follow()
            await socket.inbox()


@pytest.mark.threat("T17")
async def test_connections_of_strangers_make_room_for_each_other_and_take_none_of_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "STRANGERS", ConnectionLimits(total=4, per_address=2))
    async with running_relay(tmp_path / "r", graphql=True) as relay, contextlib.AsyncExitStack() as open_ones:
        home = await relay.household()
        (frame,), (phone, other) = home.devices, home.companions
        cursor = (await other.get("/v1/inbox")).body["cursor"]
        members = []
        for member, known in ((phone, None), (other, cursor)):
            socket = await open_ones.enter_async_context(begun(member))
            await socket.follow(cursor=known)
            members.append(socket)
        await members[0].inbox()
        while len(endpoint(relay).strangers):  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.01)
        stranger = relay.caller(companion("stranger"))
        strangers = [
            await open_ones.enter_async_context(opened(stranger, proof=number % 2 == 0))
            for number in range(5)
        ]
        for gone in strangers[:3]:
            while (await gone.socket.receive()).type is WSMsgType.TEXT:
                pass
            assert gone.socket.close_code == 1006
        assert len(endpoint(relay).strangers) == 2
        await submit(frame, phone, other)
        for socket in members:
            assert len((await socket.inbox())["requests"]) == 1


async def test_who_hangs_up_before_a_pong_is_no_failure_of_the_relay(
    home: Household, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def lost(*_: object) -> None:
        raise ConnectionResetError

    caplog.set_level(logging.INFO)
    async with begun(home.companions[0]) as socket:
        monkeypatch.setattr(web.WebSocketResponse, "send_str", lost)
        await socket.send({"type": "ping"})
        while (await socket.socket.receive()).type is WSMsgType.TEXT:
            pass
    assert [one.getMessage() for one in caplog.records if one.levelno > logging.INFO] == []


@of_one_process
async def test_an_id_that_is_used_again_keeps_its_claim(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r", graphql=True) as relay:
        home = await relay.household()
        (frame,), (phone, _) = home.devices, home.companions
        name = await submit(frame, phone)
        async with begun(phone) as socket:
            await socket.follow()
            await socket.inbox()
            await socket.send({"type": "complete", "id": "1"})
            await socket.follow()
            await socket.inbox()
            assert (await phone.act(frame, name, "claimed")).status == 200
            for _ in range(3):
                relay.clock.ahead += 40
                await socket.send({"type": "ping"})
                while (await socket.next())["type"] != "pong":
                    pass
                assert (await frame.status(name))["state"] == "claimed"


@pytest.mark.threat("T16")
async def test_who_is_removed_is_told_so_and_follows_no_more(home: Household) -> None:
    (frame,), (phone, other) = home.devices, home.companions
    async with begun(other) as socket:
        await socket.follow()
        await socket.inbox()
        await home.append(phone.person, frame.person)
        message = await socket.next()
        assert message["type"] == "error"
        assert message["payload"][0]["extensions"]["type"] == f"{PROBLEM}not-found"
        assert await socket.closed() == (4403, "not-found")


async def test_the_companions_of_a_closed_account_are_told_so(relay: Relay, home: Household) -> None:
    async with begun(home.companions[0]) as socket:
        await socket.follow()
        await socket.inbox()
        await close_account(relay.app, "alice")
        message = await socket.next()
        assert message["payload"][0]["extensions"]["type"] == f"{PROBLEM}account-closed"
        assert await socket.closed() == (4403, "account-closed")


async def test_who_is_no_companion_follows_no_inbox(relay: Relay, home: Household) -> None:
    for caller in (home.devices[0], relay.caller(companion("stranger"))):
        async with begun(caller) as socket:
            await socket.follow()
            message = await socket.next()
            assert message["payload"][0]["extensions"]["type"] == f"{PROBLEM}not-found"
            assert await socket.closed() == (4403, "not-found")


async def test_a_relay_that_ends_closes_every_connection(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as after, running_relay(tmp_path / "r", graphql=True) as relay:
        home = await relay.household()
        session = await after.enter_async_context(aiohttp.ClientSession())
        sockets = []
        for phone in home.companions:
            mine = Caller(phone.person, session, phone.url, phone.clock, phone.newest)
            sockets.append(await after.enter_async_context(begun(mine)))
        await sockets[0].follow()
        await sockets[0].inbox()
        ending = asyncio.ensure_future(relay.app.shutdown())
        for socket in sockets:
            assert await socket.closed() == (1001, "draining")
        await ending


@contextlib.asynccontextmanager
async def deaf(relay: Relay, caller: Caller, *, follows: bool) -> AsyncIterator[web.Request]:
    """A connection of a caller that does not read, with all buffers full. follows: whether it has a subscription."""
    async with aiohttp.ClientSession() as session:
        mine = Caller(caller.person, session, caller.url, caller.clock, caller.newest)
        async with begun(mine) as socket:
            if follows:
                await socket.follow()
                await socket.inbox()
            (here,) = endpoint(relay)._connections
            request, reader = here._request, socket.socket._response.connection
            assert request.transport is not None
            assert reader is not None
            assert reader.transport is not None
            reader.transport.pause_reading()
            request.transport.set_write_buffer_limits(high=1)
            for wire, size in ((request.transport, SO_SNDBUF), (reader.transport, SO_RCVBUF)):
                # the smallest that the system has
                wire.get_extra_info("socket").setsockopt(SOL_SOCKET, size, 1)
            with contextlib.suppress(TimeoutError):
                while True:  # until the relay answers no more, and therefore reads no more
                    async with asyncio.timeout(_STILL):
                        await socket.socket.ping(b"-" * 125)
            try:
                yield request
            finally:
                if reader.transport is not None:
                    reader.transport.abort()


@pytest.mark.threat("T17")
@pytest.mark.parametrize("follows", [True, False])
async def test_a_peer_that_does_not_read_keeps_no_relay_from_its_end(
    tmp_path: Path,
    follows: bool,  # noqa: FBT001  pytest
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The close frame does not leave either."""
    monkeypatch.setattr(subscriptions, "_CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(subscriptions, "SEND_SECONDS", LONG)
    async with running_relay(tmp_path / "r", graphql=True) as relay:
        phone = (await relay.household()).companions[0]
        async with deaf(relay, phone, follows=follows) as request, asyncio.timeout(PATIENCE):
            await relay.app.shutdown()
            while endpoint(relay)._connections:  # noqa: ASYNC110  nothing tells of it
                await asyncio.sleep(0.01)
            assert request.transport is None


@pytest.mark.threat("T17")
async def test_a_peer_that_neither_reads_nor_follows_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "_CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(subscriptions, "SEND_SECONDS", LONG)
    async with running_relay(tmp_path / "r", graphql=True) as relay:
        phone = (await relay.household()).companions[0]
        async with deaf(relay, phone, follows=False) as request, asyncio.timeout(PATIENCE):
            (here,) = endpoint(relay)._connections
            await here.close(1000, "idle")
            while endpoint(relay)._connections:  # noqa: ASYNC110  nothing tells of it
                await asyncio.sleep(0.01)
            assert request.transport is None


async def test_a_connection_ends_when_a_new_proof_is_due(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r", graphql=True, stream_life=1) as relay:
        home = await relay.household()
        async with begun(home.companions[0]) as socket:
            await socket.follow()
            await socket.inbox()
            assert await socket.closed() == (1001, "renew")


@pytest.mark.threat("T13")
async def test_a_connection_goes_by_its_proof_no_longer_for_a_new_subscription(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r", graphql=True, stream_life=1) as relay:
        home = await relay.household()
        relay._relay._calls = Budget(name="calls", per_minute=1 << 30)
        async with begun(home.companions[0]) as socket:
            number = 0
            while True:
                number += 1
                await socket.follow(str(number))
                received = await socket.socket.receive()
                if received.type is WSMsgType.CLOSE:
                    assert (received.data, received.extra) == (1001, "renew")
                    break
                await socket.send({"type": "complete", "id": str(number)})


async def test_a_connection_that_says_nothing_is_closed(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "INIT_SECONDS", 0.05)
    async with opened(home.companions[0], proof=False) as socket:
        assert (await socket.closed())[0] == 4408


async def test_a_connection_is_asked_for_signs_of_life_and_ends_when_nobody_uses_it(home: Household) -> None:
    clock = LoopClock(asyncio.get_running_loop())
    async with begun(home.companions[0]) as socket:
        await socket.follow()
        await socket.inbox()
        clock.passes(following.INTERVAL)
        while json.loads((await socket.socket.receive()).data)["type"] != "ping":
            pass
        await socket.send({"type": "pong"}, {"type": "complete", "id": "1"}, {"type": "ping"})
        while (await socket.next())["type"] != "pong":
            pass
        clock.passes(following.INTERVAL)
        assert await socket.closed() == (1000, "idle")


@of_one_process  # several note it with the next reading (test_following)
async def test_a_sign_of_life_of_the_program_keeps_its_claim(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r", graphql=True) as relay:
        home = await relay.household()
        (frame,), (phone, _) = home.devices, home.companions
        async with begun(phone) as socket:
            await socket.follow()
            name = await submit(frame, phone)
            assert (await phone.act(frame, name, "claimed")).status == 200
            for _ in range(3):
                relay.clock.ahead += 40
                await socket.send({"type": "ping"})
                while (await socket.next())["type"] != "pong":
                    pass
                assert (await frame.status(name))["state"] == "claimed"
            relay.clock.ahead += 61
            assert (await frame.status(name))["state"] == "delivered"


async def test_a_bug_ends_its_subscription_and_tells_nothing(
    home: Household, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(cursor: str | None) -> operations.Operation:
        raise RuntimeError(f"secret {cursor}")

    async with begun(home.companions[0]) as socket:
        monkeypatch.setattr(operations, "read_inbox", broken)
        await socket.follow()
        (error,) = (await socket.next())["payload"]
        assert error["message"] == "Internal Server Error"
        assert "secret" not in caplog.text


@pytest.mark.parametrize("protocols", [[], ["graphql-ws"]], ids=["none", "the old one"])
async def test_another_protocol_is_refused(home: Household, protocols: list[str]) -> None:
    (phone, _) = home.companions
    headers = {"DPoP": phone.proof("GET", "/graphql")}
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await phone.session.ws_connect(f"{phone.url}/graphql", protocols=protocols, headers=headers)
    assert refused.value.status == 400


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "change",
    [
        {"Sec-WebSocket-Key": "short"},
        {"Sec-WebSocket-Key": "\xe9" * 24},
        {"Sec-WebSocket-Version": "12"},
        {"Connection": "close"},
        {"Upgrade": "websocket2"},
        {"Content-Length": "5"},
        {"Transfer-Encoding": "chunked"},
    ],
    ids=["key", "not ASCII", "version", "connection", "upgrade", "body", "chunks"],
)
async def test_what_is_no_handshake_is_refused(
    relay: Relay, home: Household, change: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Protocol": PROTOCOL,
        "DPoP": home.companions[0].proof("GET", "/graphql"),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in (headers | change).items())
    reader, writer = await asyncio.open_connection("127.0.0.1", int(relay.url.rpartition(":")[2]))
    writer.write(f"GET /graphql HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode("latin-1"))
    status = (await reader.readline()).split()[1]
    writer.close()
    assert status == (b"405" if "Upgrade" in change else b"400")
    assert "unexpected" not in caplog.text


@pytest.mark.threat("T11")
async def test_a_subprotocol_in_a_header_of_its_own_is_taken_and_the_others_are_not_logged(
    relay: Relay, home: Household, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 6455 §11.3.4: the same as one header with all."""
    headers = CIMultiDict(
        {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            "DPoP": home.companions[0].proof("GET", "/graphql"),
        }
    )
    for name in ("of-a-stranger", PROTOCOL):
        headers.add("Sec-WebSocket-Protocol", name)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{relay.url}/graphql", headers=headers) as answer,
    ):
        assert (answer.status, answer.headers["Sec-WebSocket-Protocol"]) == (101, PROTOCOL)
        answer.close()
    assert "of-a-stranger" not in caplog.text


async def test_the_log_holds_nothing_of_a_connection(
    home: Household, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (frame,), (phone, _) = home.devices, home.companions
    async with begun(phone) as socket:
        await socket.follow()
        await socket.inbox()
        name = await submit(frame, phone)
        await socket.inbox()
    await asyncio.sleep(0)
    for secret in (name, phone.name, frame.name, SEALED, "Follow"):
        assert secret not in caplog.text
