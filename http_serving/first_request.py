"""A connection until its first request: an upgrade that the application takes is answered without aiohttp's server.

What that makes of a connection and a request (protocol, task, timers, request, route, answer) is gone as soon as an upgrade is answered, and costs
more processor time than a tunnel spends on its end. So a connection belongs to `FirstRequest` until its first bytes are there. aiohttp's parser
reads them, and the application may take what it finds (`Take`). Everything else is given to aiohttp's server, which reads the same bytes anew and
answers: no refusal is made here.
"""

import asyncio
import functools
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, cast

from aiohttp import EMPTY_PAYLOAD, hdrs
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser, HttpVersion11, RawRequestMessage

from http_serving.accepting import CLOSE_SECONDS
from http_serving.connections import Connections, Slot

BODY_LIMIT: Final = 1 << 16  # bytes, which the parser asks for; it is given no body


class HandedOver(NamedTuple):
    """A connection that has been given to another protocol, behind the answer 101."""

    transport: asyncio.Transport
    early: bytearray  # what came behind the request
    gone: Callable[[], None]  # to be called when the connection is lost


class Taken(NamedTuple):
    """An upgrade that the application has taken."""

    headers: Mapping[str, str]  # of the answer 101
    protocol: asyncio.Protocol  # which has the connection then
    begin: Callable[[HandedOver], None]


# called with the head of an upgrade and the neighbourhood of its client; None, and nothing has been changed, when aiohttp is to serve it
Take = Callable[[RawRequestMessage, str], Taken | None]


class FirstRequest(asyncio.Protocol):
    """One connection, until its first bytes have come. They have the deadline of a head."""

    __slots__ = ("_connections", "_deadline", "_loop", "_others", "_serve", "_slot", "_take", "_wire")

    def __init__(
        self,
        connections: Connections,
        slot: Slot,
        *,
        others: "set[FirstRequest]",
        take: Take,
        serve: Callable[[Slot, float], asyncio.Protocol],
    ) -> None:
        """others: has this one while it waits. serve: makes the protocol that serves everything else; is given the seconds that are left
        for a head.
        """
        self._connections, self._slot = connections, slot
        self._others, self._take, self._serve = others, take, serve
        self._loop = asyncio.get_running_loop()
        self._wire: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = wire = cast("asyncio.Transport", transport)
        self._slot.end = wire.abort
        self._deadline = self._loop.call_later(self._connections.limits.head, self._too_late)
        self._others.add(self)

    def data_received(self, data: bytes) -> None:
        wire, deadline = self._wire, self._deadline
        if wire is None or deadline is None or wire.is_closing():
            return
        self._leave()
        head, end, early = data.partition(b"\r\n\r\n")
        message = _upgrade(head + end, self._loop) if end else None
        address = self._slot.address
        taken = None if message is None or address is None else self._take(message, address)
        if taken is None:
            served = self._serve(self._slot, max(0.0, deadline.when() - self._loop.time()))
            wire.set_protocol(served)
            served.connection_made(wire)
            served.data_received(data)
            return
        wire.write(_answer(taken.headers))
        wire.set_protocol(taken.protocol)
        self._connections.use(self._slot, in_use=True)
        gone = functools.partial(self._connections.release, self._slot)
        taken.begin(HandedOver(transport=wire, early=bytearray(early), gone=gone))

    def connection_lost(self, _exc: Exception | None) -> None:
        self._leave()
        self._connections.release(self._slot)

    def close(self) -> None:
        """Close the connection, and cut it off when its peer does not take the farewell."""
        wire = self._wire
        if wire is not None:
            if not wire.is_closing():  # closed twice, asyncio's TLS transport takes no `abort`
                wire.close()
            self._within(CLOSE_SECONDS, wire.abort)

    def _too_late(self) -> None:
        self._connections.closed("head")
        self.close()

    def _leave(self) -> None:
        self._wire = None
        self._within(None)
        self._others.discard(self)

    def _within(self, seconds: float | None, then: Callable[[], None] = lambda: None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self._loop.call_later(seconds, then)


def _upgrade(head: bytes, loop: asyncio.AbstractEventLoop) -> RawRequestMessage | None:
    """Parse a head that ends with its empty line; None unless it is that of an upgrade without a body, in HTTP/1.1."""
    parser = HttpRequestParser(BaseProtocol(loop), loop, BODY_LIMIT, auto_decompress=False)
    try:
        messages, upgraded, rest = parser.feed_data(head)
    except HttpProcessingError:
        return None
    if not upgraded or rest or len(messages) != 1:
        return None
    message, body = messages[0]
    if body is not EMPTY_PAYLOAD or message.version != HttpVersion11 or hdrs.EXPECT in message.headers:
        return None
    return message


def _answer(headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n".encode()
