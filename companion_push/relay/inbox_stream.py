"""The inbox as a stream of Server-Sent Events (WHATWG HTML §9.2; docs/protocol/relay.md, The stream).

A stream that nobody reads is cut: what is sent must be taken within `SEND_SECONDS`. So a slow reader costs what the
transport buffers before it pauses (64 KiB), and one event. When the relay shuts down it is cut a second later.
"""

import contextlib
import logging
import random
import socket
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from companion_push.errors import StoreUnavailable
from companion_push.relay.following import Ended, Ending, Following
from companion_push.relay.operations import Answer
from companion_push.relay.problems import Problem, Slug

SEND_SECONDS: Final = 20.0  # for the peer to take what it is sent
_RETRY_MS: Final = 2000  # after which a client of the standard reconnects when the connection breaks
# after how many seconds readers come back: those of a relay that shuts down not all at once, and of one member's that replace
# each other not without a pause
_RETRY_AFTER: Final = {Ending.RENEW: (0, 0), Ending.REPLACED: (5, 15), Ending.DRAINING: (1, 5)}
_HEARTBEAT: Final = b":\n\n"  # a comment
_TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux

REFUSED: Final = web.RequestKey(
    "relay_refused", Problem
)  # why a stream ended, when its head was sent long before

logger = logging.getLogger(__name__)


async def stream(
    request: web.Request, inbox: Following, answer: Answer | None, *, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Send the inbox as it changes, until it ends or the peer goes.

    answer: of the first reading. headers: more headers of the answer. A later `Problem` is an event of the stream, and
    stands in the request as `REFUSED`.
    """
    response = web.StreamResponse(
        headers={
            hdrs.CONTENT_TYPE: "text/event-stream",
            hdrs.CACHE_CONTROL: "no-store, no-transform",  # nor compressed on the way
            "X-Accel-Buffering": "no",  # nginx, and what imitates it
            "X-Content-Type-Options": "nosniff",
            **headers,
        }
    )
    response.force_close()
    _cut_the_dead(request)
    try:
        writer = await response.prepare(request)
        assert writer is not None  # noqa: S101  for mypy: the answer has not ended before it began
        await _send(inbox, writer, b"retry: %d\n\n" % _RETRY_MS)
        while True:
            await _send(inbox, writer, _HEARTBEAT if answer is None else _inbox(answer.body))
            try:
                answer = await inbox.news(inbox.interval)
            except Ended as ended:
                await _send(inbox, writer, _end(ended.reason))
                break
            except (Problem, StoreUnavailable) as error:
                busy = Problem(Slug.STORE_UNAVAILABLE, retry_after=2)
                request[REFUSED] = problem = error if isinstance(error, Problem) else busy
                await _send(inbox, writer, _event("problem", problem.body()))
                break
    except (ConnectionError, TimeoutError) as error:  # the peer is gone, or does not read
        logger.debug("a stream was cut: %s", type(error).__name__)
        cut(request)
    except Exception:
        cut(request)  # the answer has begun: there is no other one
        raise
    return response


def cut(request: web.Request) -> None:
    """Close the connection at once."""
    if request.transport is not None:
        request.transport.abort()


async def _send(inbox: Following, writer: AbstractStreamWriter, data: bytes) -> None:
    """Send `data`. `TimeoutError` when the peer does not read, `ConnectionError` when it is gone."""

    async def sending() -> None:
        await writer.write(data)
        await writer.drain()

    await inbox.sent(sending(), SEND_SECONDS)


def _cut_the_dead(request: web.Request) -> None:
    """Have the system close the connection when its peer acknowledges nothing: a heartbeat alone fits in any buffer for hours."""
    found = request.get_extra_info("socket")
    if found is not None and _TCP_USER_TIMEOUT is not None:
        with contextlib.suppress(OSError):  # of a Unix socket
            found.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(SEND_SECONDS * 1000))


def _inbox(body: Mapping[str, Any]) -> bytes:
    return b"id: %s\n%s" % (body["cursor"].encode(), _event("inbox", body))


def _end(reason: Ending) -> bytes:
    after = random.randint(*_RETRY_AFTER[reason])  # noqa: S311  spreads load, keeps no secret
    return _event("end", {"reason": reason, "retry_after": after})


def _event(name: str, body: Mapping[str, Any]) -> bytes:
    """An event; JSON has no line breaks."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(body))
