"""The companion follows a stream where it can and polls where it cannot, behind proxies as they are."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from companion_push.companion import inbox, inbox_stream
from companion_push.companion.inbox import NoticeKind
from companion_push.companion.inbox_stream import InboxStream, NoStream, StreamOver, Ways
from companion_push.relay import following
from companion_push.relay.app import RelayEndpoints, close_account
from headless_passkey.errors import (
    EnrolmentReason,
    NotApproved,
    NotEnrolled,
    Outcome,
    TransportError,
    TrustError,
    TrustReason,
)
from tests.companion.family import Companion, Frame, Hands, awake
from tests.companion.test_inbox import Waiting, rogue_relay
from tests.relay.front import Does, Front
from tests.relay.household import Household, Relay, running_relay

PATIENCE = 60.0  # seconds: a safety net, so that a hang is a failure


class World:
    """A companion, a device, and a relay behind a proxy."""

    def __init__(self, front: Front, relay: Relay, home: Household, companion: Companion) -> None:
        self.front, self.relay, self.home, self.companion = front, relay, home, companion
        self.frame = Frame(caller=home.devices[0], home=home)

    async def ask(self) -> str:
        """Submit one request, and return when it is pending at the companion."""
        name = await self.frame.ask(self.companion.caller)
        await self.until_pending()
        return name

    async def until_pending(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while not self.companion.inbox.pending:
                await self.companion.inbox.changed()


@contextlib.asynccontextmanager
async def world(folder: Path, **options: Any) -> AsyncIterator[World]:
    async with Front().running() as front, running_relay(folder / "s", front=front, **options) as relay:
        home = await relay.household()
        async with awake(folder, home.companions[0], home) as companion:
            yield World(front, relay, home, companion)


@contextlib.asynccontextmanager
async def listening(companion: Companion) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(companion.inbox.listen())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def outcome(listens: asyncio.Task[None]) -> BaseException | None:
    """What ended the listening."""
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait([listens])
    return listens.exception()


async def test_all_requests_come_by_one_stream(tmp_path: Path) -> None:
    async with world(tmp_path) as here, listening(here.companion):
        await here.front.until(streams=1)
        polls = here.front.polls
        for _ in range(3):
            name = await here.ask()
            await here.frame.caller.tell(name, "cancelled")
            async with asyncio.timeout(PATIENCE):
                while here.companion.inbox.pending:
                    await here.companion.inbox.changed()
        assert (here.front.streams, here.front.polls) == (1, polls)
        assert here.companion.kinds.count(NoticeKind.ARRIVED) == 3


async def test_an_older_relay_is_polled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(_self: RelayEndpoints, _request: web.Request) -> web.StreamResponse:
        raise web.HTTPNotFound

    monkeypatch.setattr(RelayEndpoints, "stream_inbox", unknown)
    async with world(tmp_path) as here, listening(here.companion):
        await here.front.until(streams=1, polls=2)
        await here.ask()
        assert here.front.streams == 1


async def test_where_a_proxy_keeps_streams_back_the_companion_polls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_stream, "FIRST_SIGN", 0.2)
    async with world(tmp_path) as here:
        here.front.does = Does.KEEPS_BACK
        async with listening(here.companion):
            await here.front.until(streams=1, polls=2)
            await here.ask()
            assert here.front.streams == 1


async def test_where_streams_break_at_once_again_and_again_the_companion_polls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_stream, "_PAUSE", 0.01)
    async with world(tmp_path) as here:
        here.front.does = Does.BREAKS
        async with listening(here.companion):
            await here.front.until(streams=3, polls=4)
            await here.ask()
            assert here.front.streams == 3
        assert NoticeKind.UNREACHABLE not in here.companion.kinds


async def test_a_stream_that_breaks_loses_nothing_and_another_one_follows(tmp_path: Path) -> None:
    async with world(tmp_path) as here, listening(here.companion):
        await here.front.until(streams=1)
        here.front.hang_up()
        name = await here.ask()  # by a poll, a stream, or the one after the other
        await here.front.until(streams=2)
        await here.frame.caller.tell(name, "cancelled")
        async with asyncio.timeout(PATIENCE):
            while here.companion.inbox.pending:
                await here.companion.inbox.changed()
        assert NoticeKind.UNREACHABLE not in here.companion.kinds


async def test_a_silent_stream_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_stream, "SILENCE", 0.2)
    async with world(tmp_path) as here, listening(here.companion):
        await here.front.until(streams=2)


async def test_where_a_proxy_passes_the_beginning_of_streams_and_keeps_the_rest_the_companion_polls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, begun = [0.0], []

    @contextlib.asynccontextmanager
    async def streaming(_relay: object, cursor: str | None) -> AsyncIterator[SimpleNamespace]:
        begun.append(cursor)
        signs = [None]

        async def read() -> None:
            if not signs:
                clock[0] += 60
                raise StreamOver("nothing came for 60 s")
            signs.pop()

        yield SimpleNamespace(read=read)

    monkeypatch.setattr(inbox, "streaming", streaming)
    monkeypatch.setattr(inbox, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(inbox_stream, "_PAUSE", 0.01)
    async with world(tmp_path) as here, listening(here.companion):
        await here.front.until(polls=4)
        await here.ask()
        await here.front.until(polls=5)
        assert len(begun) == 3


async def test_a_stream_whose_time_is_over_is_followed_by_another_one(tmp_path: Path) -> None:
    async with world(tmp_path, stream_life=1) as here, listening(here.companion):
        await here.front.until(streams=3)  # more than may break at once: these ended in order
        await here.ask()
        assert NoticeKind.UNREACHABLE not in here.companion.kinds


@pytest.mark.threat("T16")
async def test_who_is_removed_while_it_follows_is_told_so(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        follower = here.home.companions[1]
        async with awake(tmp_path, follower, here.home) as bert, listening(bert) as listens:
            await here.front.until(streams=1)
            await here.home.append(here.home.companions[0].person, here.home.devices[0].person)
            error = await outcome(listens)
    assert isinstance(error, TrustError)
    assert error.reason is TrustReason.NOT_A_MEMBER


@pytest.mark.threat("T16")
async def test_whose_account_is_closed_while_it_follows_is_told_so(tmp_path: Path) -> None:
    async with world(tmp_path) as here, listening(here.companion) as listens:
        await here.front.until(streams=1)
        await close_account(here.relay.app, "alice")
        error = await outcome(listens)
    assert isinstance(error, NotEnrolled)
    assert error.reason is EnrolmentReason.ACCOUNT_CLOSED


async def test_a_companion_that_holds_a_claim_keeps_it_by_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "INTERVAL", 0.02)
    monkeypatch.setattr(inbox, "_MIN_PAUSE", 0.01)
    done = asyncio.Event()

    class Screen(Hands):
        @contextlib.asynccontextmanager
        async def open(self, opening: Any) -> AsyncIterator[None]:
            yield
            await done.wait()

    async with world(tmp_path) as here, listening(here.companion):
        name = await here.ask()
        (request,) = here.companion.inbox.pending
        approving = asyncio.create_task(here.companion.inbox.approve(request, Screen(stays=True)))
        async with asyncio.timeout(PATIENCE):
            while await here.frame.state_of(name) != "opened":
                pass
        for _ in range(3):  # a lease is 60 s
            here.relay.clock.ahead += 40
            await here.front.until(polls=here.front.polls + 2)
            assert await here.frame.state_of(name) == "opened"
        assert here.front.streams == 1
        done.set()
        assert await approving


async def test_a_claim_is_kept_by_calls_also_when_the_stream_has_fallen_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "_LATE", 0.05)
    monkeypatch.setattr(inbox, "_MIN_PAUSE", 0.01)

    @contextlib.asynccontextmanager
    async def silent(_relay: object, _cursor: str | None) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(read=asyncio.Event().wait)

    monkeypatch.setattr(inbox, "streaming", silent)
    async with world(tmp_path) as here:
        name = await here.frame.ask(here.companion.caller)
        async with listening(here.companion):
            await here.until_pending()
            hands = Waiting()
            (request,) = here.companion.inbox.pending
            approving = asyncio.create_task(here.companion.inbox.approve(request, hands))
            await hands.waits.wait()
            for _ in range(3):  # a lease is 60 s
                here.relay.clock.ahead += 40
                await here.front.until(polls=here.front.polls + 2)
                assert await here.frame.state_of(name) == "opened"
            hands.opened[0].over.set()
            assert await approving


async def test_a_silent_stream_is_dead_however_often_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "_LATE", 0.01)
    monkeypatch.setattr(inbox_stream, "SILENCE", 0.2)
    async with world(tmp_path) as here, listening(here.companion):
        await here.front.until(streams=2)


async def test_what_is_due_is_done_although_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "INTERVAL", 0.02)
    async with world(tmp_path) as here, listening(here.companion):
        await here.front.until(streams=1)
        first = (await here.frame.caller.get("/v1/ring")).body["words"]
        here.relay.clock.ahead += 86_400  # a word is given once a day
        async with asyncio.timeout(PATIENCE):
            while (await here.frame.caller.get("/v1/ring")).body["words"] == first:
                pass
        assert len(first) == here.front.streams == 1


@pytest.mark.parametrize("answer", ["approve", "decline"])
async def test_a_request_whose_answer_the_relay_did_not_take_is_put_to_the_person_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(following, "INTERVAL", 0.02)

    async def away(*_: object) -> None:
        raise TransportError("the relay says: not now (store-unavailable)")

    async with world(tmp_path) as here, listening(here.companion):
        await here.front.until(streams=1)
        await here.ask()
        inbox = here.companion.inbox
        (request,) = inbox.pending
        answering = inbox.approve(request, Hands()) if answer == "approve" else inbox.decline(request)
        with monkeypatch.context() as unanswered:
            unanswered.setattr(inbox._relay, "claim", away)
            unanswered.setattr(inbox._relay, "report", away)
            with pytest.raises(TransportError):
                await answering
        await here.until_pending()
        assert [each.key for each in inbox.pending] == [request.key]
        assert await inbox.approve(inbox.pending[0], Hands())
        assert here.front.streams == 1


async def test_a_request_that_had_ended_when_it_was_answered_is_put_to_nobody_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ended(*_: object) -> None:
        raise NotApproved(Outcome.EXPIRED, "the relay has no such request any more")

    async with world(tmp_path) as here, listening(here.companion):
        await here.front.until(streams=1)
        await here.ask()
        inbox = here.companion.inbox
        monkeypatch.setattr(inbox._relay, "claim", ended)
        with pytest.raises(NotApproved):
            await inbox.approve(inbox.pending[0], Hands())
        await inbox._keep_up(arrivals=True)  # what was listed last has it still
        assert inbox.pending == ()


# A relay that lies

LISTED = {"cursor": "c", "requests": [], "word_wanted": False, "ring": {"version": 1, "hash": "A" * 43}}


def event(name: str, body: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(body)}\n\n".encode()


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("content", "head"),
    [
        (b"data: " + b"x" * (600 << 10), {}),
        (b"event: inbox\ndata: \xff\n\n", {}),
        (b"event: inbox\ndata: {\n\n", {}),
        (b"event: inbox\ndata: " + b"[" * 10_000 + b"\n\n", {}),
        (event("inbox", []), {}),
        (event("inbox", LISTED | {"cursor": 7}), {}),
        (event("inbox", LISTED | {"requests": [{}]}), {}),
        (event("inbox", LISTED | {"requests": [{}] * 65}), {}),
        (event("end", {"reason": "renew", "retry_after": 61}), {}),
        (event("end", {"reason": "\x1b[31m", "retry_after": 0}), {}),
        (event("inbox", LISTED), {"Content-Type": "text/html"}),
        (event("inbox", LISTED), {"Content-Encoding": "gzip"}),
    ],
    ids=[
        "a long line",
        "no UTF-8",
        "no JSON",
        "deep JSON",
        "no object",
        "a wrong member",
        "no item",
        "too many items",
        "a long pause",
        "a reason that is none",
        "a page",
        "packed",
    ],
)
async def test_a_stream_that_is_none_is_left_for_the_long_poll(
    anna: Companion, home: Household, monkeypatch: pytest.MonkeyPatch, content: bytes, head: dict[str, str]
) -> None:
    monkeypatch.setattr(inbox, "_MIN_PAUSE", 0.01)
    asked = []

    async with rogue_relay(anna, home) as rogue, rogue.companion() as companion:

        async def stream(request: web.Request) -> web.StreamResponse:
            asked.append(request.query_string)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"} | head)
            await response.prepare(request)
            await response.write(content)
            return response

        rogue.stream = stream
        async with listening(companion) as listens, asyncio.timeout(PATIENCE):
            while rogue.asked < 4:  # noqa: ASYNC110  what a relay that lies hears
                await asyncio.sleep(0)
            assert not listens.done()
        assert asked == ["cursor=c"]


@pytest.mark.threat("T12")
async def test_a_stream_that_begins_and_says_nothing_is_left_for_the_long_poll(
    anna: Companion, home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_stream, "FIRST_SIGN", 0.1)
    over, asked = asyncio.Event(), []

    async with rogue_relay(anna, home) as rogue, rogue.companion() as companion:

        async def stream(request: web.Request) -> web.StreamResponse:
            asked.append(request.query_string)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await over.wait()
            return response

        rogue.stream = stream
        async with listening(companion), asyncio.timeout(PATIENCE):
            while rogue.asked < 3:  # noqa: ASYNC110  what a relay that lies hears
                await asyncio.sleep(0)
        over.set()
        assert len(asked) == 1


@pytest.mark.parametrize("status", [401, 403, 429, 500, 502, 503])
async def test_a_stream_that_is_refused_again_and_again_is_left_for_the_long_poll(
    anna: Companion, home: Household, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(inbox, "_MIN_PAUSE", 0.01)
    monkeypatch.setattr(inbox_stream, "_PAUSE", 0.01)
    asked = []

    async with rogue_relay(anna, home) as rogue, rogue.companion() as companion:

        async def stream(request: web.Request) -> web.StreamResponse:
            asked.append(request.query_string)
            return web.Response(status=status)

        rogue.stream = stream
        async with listening(companion), asyncio.timeout(PATIENCE):
            while rogue.asked < 6:  # noqa: ASYNC110  what a relay that lies hears
                await asyncio.sleep(0)
        assert len(asked) == 3


@pytest.mark.threat("T12")
async def test_kinds_of_events_and_members_of_later_are_passed_over(anna: Companion, home: Household) -> None:
    async with rogue_relay(anna, home) as rogue, rogue.companion() as companion:
        rogue.inbox["ring"] = later = {"version": 2, "hash": "A" * 43}
        seen = asyncio.Event()

        async def stream(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream;charset=utf-8"})
            await response.prepare(request)
            await response.write(
                event("later", {}) + event("inbox", LISTED | {"cursor": "d", "later": 1, "ring": later})
            )
            await seen.wait()
            return response

        rogue.stream = stream
        async with listening(companion), asyncio.timeout(PATIENCE):
            while companion.inbox._cursor != "d":  # noqa: ASYNC110  what a relay that lies hears
                await asyncio.sleep(0)
            seen.set()


@pytest.mark.threat("T12")
async def test_a_relay_that_never_stops_is_read_by_its_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = [100.0], []
    chunks = [b"\n" * (128 << 10), b":\n" * (64 << 10), b"\n" * (256 << 10), b":\n\n", b":\n\n"]

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    async def readany() -> bytes:
        return chunks.pop(0)

    monkeypatch.setattr(inbox_stream, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    response: Any = SimpleNamespace(content=SimpleNamespace(readany=readany))
    stream = InboxStream(response)
    while chunks:
        assert await stream.read() is None
    assert pauses == pytest.approx([0, 0.5, 0.5, 1, 0.05])


# When to try again


def ended(*, in_order: int | None = None) -> StreamOver:
    return StreamOver("over", retry_after=in_order)


def half() -> float:
    return 0.5


def test_the_network_may_be_another_one_after_ten_minutes() -> None:
    ways = Ways(chance=half)
    assert ways.streams(0)
    assert ways.ended(NoStream("kept back", given=True), lived=0, now=100) == 0
    assert [ways.streams(now) for now in (100, 699, 700)] == [False, False, True]


def test_an_older_relay_may_be_a_newer_one_after_an_hour() -> None:
    ways = Ways(chance=half)
    ways.ended(NoStream("404", given=False), lived=0, now=100)
    assert [ways.streams(now) for now in (3699, 3700)] == [False, True]


def test_the_third_stream_in_a_row_that_breaks_at_once_is_the_last_for_now() -> None:
    ways = Ways(chance=half)
    pauses = [ways.ended(ended(), lived=1, now=10) for _ in range(2)]
    assert ways.streams(10)
    assert pauses == [1, 2]  # seconds
    ways.ended(ended(), lived=29, now=10)
    assert [ways.streams(now) for now in (10, 609, 610)] == [False, False, True]
    assert ways.ended(ended(), lived=1, now=700) == 1


def test_a_stream_that_lived_makes_up_for_those_that_did_not() -> None:
    ways = Ways(chance=half)
    for _ in range(3):
        for lived in (1, 1, 30):
            ways.ended(ended(), lived=lived, now=10)
    assert ways.streams(10)


@pytest.mark.parametrize(("asked_for", "pause"), [(0, 0.5), (5, 5.0)])
def test_what_ends_in_order_is_no_fault_and_says_when_to_come_back(asked_for: int, pause: float) -> None:
    ways = Ways(chance=half)
    assert {ways.ended(ended(in_order=asked_for), lived=0, now=10) for _ in range(9)} == {pause}
    assert ways.streams(10)


def test_not_all_come_back_at_the_same_time() -> None:
    assert Ways(chance=lambda: 0.0).ended(ended(in_order=4), lived=0, now=10) == 2
    assert Ways(chance=lambda: 1.0).ended(ended(in_order=4), lived=0, now=10) == 6
