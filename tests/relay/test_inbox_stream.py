"""The inbox as a stream of Server-Sent Events, over real HTTP."""

import asyncio
import contextlib
import json
import logging
import socket
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from companion_push.relay import database, following, inbox_stream, operations
from companion_push.relay.operations import Answer, Call
from headless_passkey.net.proof import PROOF_HEADER
from tests.relay.household import Caller, Household, Relay, fresh_id, running_relay
from tests.relay.stores import of_files
from tests.relay.test_app import held

PATIENCE = 60.0  # seconds: a safety net, so that a hang is a failure
LONG = 1e6  # seconds
PATH = "/v1/inbox/stream"


@dataclass
class Event:
    name: str
    body: Any
    id: str | None


class Stream:
    """A stream, as its reader sees it."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def event(self) -> Event | None:
        """The next event; None for a comment, or what else is none."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE):
            while line := (await self.response.content.readline()).decode().removesuffix("\n"):
                name, _, value = line.partition(": ")
                fields[name] = value
        if "data" not in fields:
            if not fields:
                raise EOFError
            return None
        return Event(fields["event"], json.loads(fields["data"]), fields.get("id"))

    async def news(self) -> Event:
        """The next event that is one."""
        while (event := await self.event()) is None:
            pass
        return event

    async def ids(self) -> list[str]:
        """The requests of the next event."""
        return [item["id"] for item in (await self.news()).body["requests"]]


@contextlib.asynccontextmanager
async def streaming(
    caller: Caller, cursor: str | None = None, *, status: int = 200, **headers: str
) -> AsyncIterator[Stream]:
    """A stream of `caller`. headers: with underscores."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    proof = {PROOF_HEADER: caller.proof("GET", PATH)}
    query = {} if cursor is None else {"cursor": cursor}
    async with caller.session.get(caller.url + PATH, params=query, headers=proof | more) as response:
        assert response.status == status
        yield Stream(response)


async def test_a_stream_tells_the_inbox_and_each_change_of_it(home: Household) -> None:
    anna, bert = home.companions
    (frame,) = home.devices
    name = fresh_id()
    async with streaming(anna) as stream:
        first = await stream.news()
        assert (first.name, first.body) == ("inbox", (await anna.get("/v1/inbox")).body)
        assert first.id == first.body["cursor"]
        await frame.submit(anna, bert, name=name)
        assert await stream.ids() == [name]
        await bert.act(frame, name, "claimed")
        (item,) = (await stream.news()).body["requests"]
        assert (item["state"], item["claimed_by"]) == ("claimed", bert.name)
        await frame.tell(name, "completed")
        assert await stream.ids() == []


async def test_nothing_on_the_way_may_keep_or_change_a_stream(home: Household) -> None:
    async with streaming(home.companions[0], Accept_Encoding="gzip, br") as stream:
        headers = stream.response.headers
        assert headers["Content-Type"] == "text/event-stream"
        assert headers["Cache-Control"] == "no-store, no-transform"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Content-Encoding" not in headers
        assert headers["DPoP-Nonce"]


@pytest.mark.parametrize("place", ["query", "header", "header after query"])
async def test_a_stream_goes_on_where_its_reader_was(home: Household, place: str) -> None:
    anna, _ = home.companions
    cursor = (await anna.get("/v1/inbox")).body["cursor"]
    query = {"query": cursor, "header": None, "header after query": "an older one"}[place]
    headers = {} if place == "query" else {"Last_Event_ID": cursor}
    async with streaming(anna, query, **headers) as stream:
        assert await stream.event() is None  # the time after which to reconnect
        assert await stream.event() is None  # nothing is new
        await home.devices[0].submit(anna)
        assert len(await stream.ids()) == 1


async def test_what_is_no_cursor_is_refused(home: Household) -> None:
    anna, _ = home.companions
    async with streaming(anna, status=400, Last_Event_ID="A" * 65):
        pass
    async with streaming(anna, "", status=400):
        pass
    assert (await anna.get(f"{PATH}?wait=3")).problem == "invalid-request"


async def test_a_stream_says_that_it_lives_when_there_is_nothing_to_say(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "INTERVAL", 0.01)
    async with streaming(home.companions[0]) as stream:
        assert [event is None for event in [await stream.event() for _ in range(5)]] == [
            True,
            False,
            True,
            True,
            True,
        ]


async def test_a_sign_of_life_comes_three_times_in_a_lease(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", lease=30) as relay:
        home = await relay.household()
        with relay.followed(home.companions[0]) as inbox:
            assert inbox.interval == 10


@pytest.mark.threat("T16")
async def test_who_is_removed_is_told_the_problem_and_has_no_success_more(
    relay: Relay, home: Household, caplog: pytest.LogCaptureFixture
) -> None:
    anna, bert = home.companions
    caplog.set_level(logging.INFO, logger="companion_push.relay.app")
    async with streaming(bert) as stream:
        await stream.news()
        await home.append(anna.person, home.devices[0].person)
        last = await stream.news()
        assert (last.name, last.body["type"], last.body["status"]) == (
            "problem",
            "urn:headless-passkey:problem:not-found",
            404,
        )
        with pytest.raises(EOFError):
            await stream.event()
    assert (await bert.get(PATH)).problem == "not-found"
    assert any("GET /v1/inbox/stream: 200 not-found" in line for line in caplog.messages)


async def test_a_relay_that_closes_ends_streams_in_order_and_not_all_are_back_at_once(
    relay: Relay, home: Household
) -> None:
    async with streaming(home.companions[0]) as stream:
        await stream.news()
        relay.held_requests.close()
        last = await stream.news()
        assert (last.name, last.body["reason"]) == ("end", "draining")
        assert last.body["retry_after"] in range(1, 6)
        with pytest.raises(EOFError):
            await stream.event()
    async with streaming(home.companions[0], status=503):
        pass


@pytest.mark.threat("T13")
async def test_streams_and_polls_share_a_members_places(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", held_per_member=1) as relay:
        anna, _ = (await relay.household()).companions
        async with streaming(anna) as stream:
            cursor = (await stream.news()).id
            poll = asyncio.create_task(anna.get(f"/v1/inbox?cursor={cursor}&wait=25"))
            last = await stream.news()
            assert (last.name, last.body["reason"]) == ("end", "replaced")
            assert last.body["retry_after"] in range(5, 16)
            async with streaming(anna, cursor):
                assert (await asyncio.wait_for(poll, PATIENCE)).body["cursor"] == cursor


async def test_one_proof_is_good_for_so_long(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "s", stream_life=1) as relay:
        anna, _ = (await relay.household()).companions
        async with streaming(anna) as stream:
            await stream.news()
            last = await stream.news()
        assert (last.name, last.body) == ("end", {"reason": "renew", "retry_after": 0})


@contextlib.asynccontextmanager
async def deaf(relay: Relay, member: Caller) -> AsyncIterator[None]:
    """A member's stream that nobody reads, while the context is open."""
    host, port = relay.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sleeper:
        sleeper.sendall(
            f"GET {PATH} HTTP/1.1\r\nHost: {host}:{port}\r\nDPoP: {member.proof('GET', PATH)}\r\n\r\n".encode()
        )
        async with asyncio.timeout(PATIENCE):
            while not await held(relay):
                pass
        yield


@pytest.mark.threat("T17")
async def test_who_does_not_read_is_cut(
    relay: Relay, home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "INTERVAL", 0.001)
    monkeypatch.setattr(inbox_stream, "SEND_SECONDS", 0.2)
    monkeypatch.setattr(inbox_stream, "_HEARTBEAT", b":" + b" " * 1_000_000 + b"\n\n")
    anna, _ = home.companions
    async with deaf(relay, anna), asyncio.timeout(PATIENCE):
        while await held(relay):
            pass


@pytest.mark.threat("T17")
@pytest.mark.parametrize("follows", ["while it is sent something", "before it is sent its end"])
async def test_who_does_not_read_is_cut_when_the_relay_ends(
    relay: Relay, home: Household, monkeypatch: pytest.MonkeyPatch, follows: str
) -> None:
    """What is sent would be waited for, for longer than the test."""
    monkeypatch.setattr(following, "INTERVAL", 0.001 if follows.startswith("while") else LONG)
    monkeypatch.setattr(inbox_stream, "SEND_SECONDS", LONG)
    monkeypatch.setattr(inbox_stream, "_HEARTBEAT", b":" + b" " * 8_000_000 + b"\n\n")
    monkeypatch.setattr(inbox_stream, "_end", lambda _: b":" + b" " * 8_000_000 + b"\n\n")
    anna, _ = home.companions
    async with deaf(relay, anna), asyncio.timeout(PATIENCE):
        (mine,) = relay.held_requests._by_member[anna.name]
        sends = follows.startswith("while")
        while mine.on_release is None if sends else mine._waiter is None:  # noqa: ASYNC110  nothing tells
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # for the system to take what it can
        await relay.app.shutdown()
        while await held(relay):
            pass


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no such option")
async def test_the_system_closes_a_connection_that_acknowledges_nothing(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent fits in the buffers of the system for hours: nothing else would notice."""
    seen = []
    cut_the_dead = inbox_stream._cut_the_dead

    def look(request: web.Request) -> None:
        cut_the_dead(request)
        found = request.get_extra_info("socket")
        seen.append(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

    monkeypatch.setattr(inbox_stream, "_cut_the_dead", look)
    async with streaming(home.companions[0]) as stream:
        await stream.news()
    assert seen == [20_000]


@pytest.mark.parametrize("cancels", [True, False], ids=["its handler ends", "its handler goes on"])
async def test_who_hangs_up_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, cancels: bool
) -> None:
    monkeypatch.setattr(following, "INTERVAL", 0.01)
    async with running_relay(tmp_path / "s", cancels=cancels) as relay:
        anna, _ = (await relay.household()).companions
        async with streaming(anna) as stream:
            await stream.news()
            assert await held(relay) == 1
            stream.response.close()
        async with asyncio.timeout(PATIENCE):
            while await held(relay):
                pass
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@of_files
async def test_a_store_that_cannot_be_used_ends_a_stream_with_its_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.05)
    monkeypatch.setattr(following, "INTERVAL", 0.01)
    async with running_relay(tmp_path / "s") as relay:
        anna, _ = (await relay.household()).companions
        async with streaming(anna) as stream:
            await stream.news()
            intruder = sqlite3.connect(relay.store, isolation_level=None)
            with contextlib.closing(intruder):
                intruder.execute("BEGIN EXCLUSIVE")
                last = await stream.news()
                intruder.execute("ROLLBACK")
    assert (last.name, last.body["type"]) == ("problem", "urn:headless-passkey:problem:store-unavailable")


async def test_a_fault_of_ours_cuts_the_stream_and_is_one_line_of_log(
    home: Household, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(following, "INTERVAL", 0.01)

    def broken(_call: Call) -> Answer:
        raise LookupError("secret")

    async with streaming(home.companions[0]) as stream:
        await stream.news()
        monkeypatch.setattr(operations, "read_inbox", lambda _: broken)
        with pytest.raises(aiohttp.ClientError):
            await stream.news()
    (error,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert error.getMessage().startswith("unexpected LookupError at test_inbox_stream.py:")
