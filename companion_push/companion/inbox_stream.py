"""The inbox as a stream (docs/protocol/relay.md, The stream), and when a companion polls instead.

A stream saves proofs and time, and is never needed: whatever is wrong with it, the long poll works, or tells why not. So all
that can be wrong is one of two errors, and `Ways` decides by them what the next connection is.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import aiohttp

from companion_push.companion.event_stream import Event, EventParser
from companion_push.companion.relay_client import EVENT_STREAM, CompanionRelay, Page
from headless_passkey.errors import ProtocolReason, RemoteProtocolError, TransportError, TransportReason
from headless_passkey.text.members import answer_members
from program_parts.json_text import decode_json

FIRST_SIGN: Final = (
    10.0  # seconds after which nothing comes any more: something on the way keeps the answer back
)
SILENCE: Final = 60.0  # seconds without a heartbeat after which the connection is dead
MAX_EVENT: Final = 512 << 10  # bytes; an inbox of 64 requests has 290 KiB
SHORT: Final = 30.0  # seconds: a stream that lived for less has broken at once
TRIES: Final = 3  # streams in a row that break at once, until the long poll is used
POLL_FOR: Final = (
    600.0  # seconds of polling until a stream is tried again: the network may be another one by then
)
POLL_LONGER: Final = 3600.0  # the same, where the relay has none: it may be a newer one by then
_PAUSE: Final = 0.5  # seconds before the next connection, doubled with each stream that breaks at once
_LONGEST_PAUSE: Final = 60  # seconds that a relay may ask for
_QUIET: Final = 0.05  # seconds between two readings: a relay that never stops is read no faster
_RATE: Final = (
    256 << 10
)  # bytes a second, nor faster than this: lines without anything cost the most to parse


class NoStream(TransportError):  # noqa: N818  a state of affairs
    """No stream is to be had here."""

    def __init__(self, message: str, *, given: bool) -> None:
        """given: whether the relay has streams at all; then something on the way spoils them."""
        super().__init__(message, reason=TransportReason.UNREACHABLE)
        self.given = given


class StreamOver(TransportError):  # noqa: N818  a state of affairs
    """A stream has ended, or did not begin."""

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        """retry_after: seconds, where the relay ended it in order; None when it broke."""
        super().__init__(message, reason=TransportReason.UNREACHABLE)
        self.retry_after = retry_after


class InboxStream:
    """A stream whose head has come."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._parser = EventParser(longest=MAX_EVENT)
        self._has_spoken = False
        self._next_at = 0.0  # by a clock that never goes back
        self._heard_at = time.monotonic()

    async def read(self) -> Page | None:
        """The newest inbox, as soon as one comes; None when there is nothing but a sign of life.

        Raises `StreamOver`, and `NoStream` for what is no such stream. One that is cancelled may be called again: nothing is lost, and
        the silence goes on.
        """
        await asyncio.sleep(max(0.0, self._next_at - time.monotonic()))
        chunk = await self._next_chunk()
        self._heard_at = time.monotonic()
        self._next_at = self._heard_at + max(_QUIET, len(chunk) / _RATE)
        self._has_spoken = True
        newest = None
        try:
            for event in self._parser.feed(chunk):
                newest = _parse(event) or newest
        except RemoteProtocolError as error:
            raise NoStream(f"what came is no stream of an inbox: {error}", given=True) from error
        return newest

    async def _next_chunk(self) -> bytes:
        seconds = SILENCE if self._has_spoken else FIRST_SIGN
        try:
            async with asyncio.timeout(max(0.0, self._heard_at + seconds - time.monotonic())):
                chunk = await self._response.content.readany()
        except TimeoutError as error:
            if not self._has_spoken:
                raise _kept_back() from error
            raise StreamOver(f"nothing came for {seconds:.0f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise StreamOver("the connection broke") from error
        if not chunk:
            raise StreamOver("the connection was closed")
        return chunk


@asynccontextmanager
async def streaming(relay: CompanionRelay, cursor: str | None) -> AsyncIterator[InboxStream]:
    """A stream of the inbox, from the answer with `cursor` on. Raises as `InboxStream.read` does."""
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(FIRST_SIGN):
                response = await stack.enter_async_context(relay.stream(cursor))
        except TimeoutError as error:
            raise _kept_back() from error
        except TransportError as error:
            raise StreamOver(str(error)) from error
        _check(response)
        yield InboxStream(response)


class Ways:
    """Whether the next connection is a stream, by how the last ones ended. Times are of a clock that never goes back."""

    def __init__(self, *, chance: Callable[[], float] = random.random) -> None:
        """chance: 0 to 1, so that companions do not return at the same time."""
        self._chance = chance
        self._polls_until = 0.0
        self._short = 0  # streams in a row that broke at once

    def streams(self, now: float) -> bool:
        """Whether a stream is tried, and not the long poll."""
        return now >= self._polls_until

    def ended(self, error: NoStream | StreamOver, *, lived: float, now: float) -> float:
        """Take note of how a stream ended; returns the seconds until the next connection.

        lived: seconds until its last sign of life. What was silent afterwards was dead, or is kept back by a proxy.
        """
        if isinstance(error, NoStream):
            return self._poll(now, POLL_FOR if error.given else POLL_LONGER)
        if error.retry_after is not None:
            return max(_PAUSE, error.retry_after) * self._jitter()
        if lived >= SHORT:
            self._short = 0
            return _PAUSE * self._jitter()
        self._short += 1
        if self._short >= TRIES:
            return self._poll(now, POLL_FOR)
        return _PAUSE * 2.0**self._short * self._jitter()

    def _poll(self, now: float, seconds: float) -> float:
        """Poll from now on for about `seconds`."""
        self._short = 0
        self._polls_until = now + seconds * self._jitter()
        return 0.0

    def _jitter(self) -> float:
        return 0.5 + self._chance()


def _kept_back() -> NoStream:
    return NoStream(f"nothing came within {FIRST_SIGN:.0f} s", given=True)


def _check(response: aiohttp.ClientResponse) -> None:
    """Refuse an answer that is no stream. The long poll says what a refusal means."""
    if response.status in (404, 405):  # of an older relay, or to who is no member
        raise NoStream("the relay has no stream", given=False)
    if response.status != 200:
        raise StreamOver(f"the answer has status {response.status}")
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if response.content_type != EVENT_STREAM or encoding != "identity":
        raise NoStream("the answer is no stream", given=True)


def _parse(event: Event) -> Page | None:
    """Parse an event: None for a kind that is not known. `RemoteProtocolError` for a malformed one."""
    if event.name not in ("inbox", "end", "problem"):
        return None
    if event.name == "problem":  # which the next call is told with its status
        raise StreamOver("the relay refuses to go on")
    try:
        members = answer_members(decode_json(event.data), "an event of the relay")
    except ValueError as error:
        raise RemoteProtocolError("an event is not JSON", reason=ProtocolReason.MALFORMED_JSON) from error
    if event.name == "end":
        reason, seconds = members.word("reason"), members.integer("retry_after", _LONGEST_PAUSE)
        raise StreamOver(f"the relay has ended the stream: {reason}", retry_after=seconds)
    return Page.parse(members)
