"""One end's websocket, the server's side (RFC 6455): what a tunnel needs of it, and no more.

The connection is the websocket's as soon as the upgrade is answered, and nothing of aiohttp's stays. There is no task, no queue and no timer for
a message: what has been read is parsed at once, told to the tunnel, and written to the other end within the same call.
"""

import asyncio
import base64
import binascii
import hashlib
import socket
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, Protocol

from aiohttp import WSCloseCode, hdrs, web
from multidict import CIMultiDictProxy

from companion_push.serving.http_server import problem

try:  # it is aiohttp's own business, and in C; Python's ways cost six times as much, or more
    from aiohttp._websocket.helpers import websocket_mask
except ImportError:  # a release that has it elsewhere
    websocket_mask = None  # type: ignore[assignment]

CLOSE_TIMEOUT: Final = (
    1.0  # seconds an end has to answer our close frame, and as many to take the connection's end
)
# bytes in the kernel, for each end and direction, so that what an end has sent and nobody reads stays small; Linux doubles both
SOCKET_BUFFER: Final = 1 << 14
# bytes that may have been read with a message and wait behind it: what a socket's buffer holds, and TLS over it
READ_AHEAD: Final = 8 * SOCKET_BUFFER
# from one end, before others have their turn: asyncio, which learns of a lost connection two turns later, warns of the fifth in vain
FRAMES_IN_A_ROW: Final = 2
_VERSION: Final = "13"  # of the protocol, §4.1
MAX_CONTROL: Final = 125  # bytes of a control frame's payload, §5.5

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # of the handshake, §1.3
_KEY_SIZE: Final = 16  # bytes, §4.1
_CODES: Final = frozenset(
    {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014}
)  # §7.4.1 and IANA's
_OWN_CODES: Final = range(3000, 5000)  # of libraries and applications, §7.4.2


class Opcode(IntEnum):
    """RFC 6455 §5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class Listener(Protocol):
    """Whom a websocket tells what its peer does. It may close the websocket in each of these calls."""

    def message(self, websocket: "Websocket", data: bytes) -> None:
        """A whole binary message has come."""

    def control(self, websocket: "Websocket") -> None:
        """A ping, a pong, or a part of a message that is not the first has come."""

    def broke(self, websocket: "Websocket", code: int, rule: str) -> None:
        """The peer has broken a rule, for which it is to be closed with `code`."""

    def ended(self, websocket: "Websocket", code: int | None) -> None:
        """The peer closes with `code`; None: without one, or the connection is lost. It may be told twice."""

    def silent(self, websocket: "Websocket") -> None:
        """The peer answers no ping."""

    def waits(self, websocket: "Websocket", size: int) -> None:
        """So many bytes have been read and not been told, such as a message whose rest has not come. It is told when that changes."""

    def flow(self, websocket: "Websocket") -> None:
        """The peer takes what was sent, or takes no more for now (`full`)."""


def accept_key(headers: CIMultiDictProxy[str]) -> str | None:
    """The Sec-WebSocket-Accept of an upgrade's answer, §4.2.2; None when the request is no websocket's opening handshake."""
    if not (
        _holds(headers, hdrs.UPGRADE, "websocket")
        and _holds(headers, hdrs.CONNECTION, "upgrade")
        and headers.getall(hdrs.SEC_WEBSOCKET_VERSION, []) == [_VERSION]
    ):
        return None
    match headers.getall(hdrs.SEC_WEBSOCKET_KEY, []):
        case [key] if key.isascii():
            try:
                sound = len(base64.b64decode(key, validate=True)) == _KEY_SIZE
            except binascii.Error:
                return None
            digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
            return base64.b64encode(digest).decode() if sound else None
    return None


def no_upgrade() -> web.Response:
    """The refusal of a request that is no opening handshake. It says which version is spoken, §4.4."""
    refused = problem(400, "expected a websocket upgrade")
    refused.headers[hdrs.SEC_WEBSOCKET_VERSION] = _VERSION
    return refused


def _holds(headers: CIMultiDictProxy[str], name: str, token: str) -> bool:
    return any(
        token == each.strip().lower() for value in headers.getall(name, []) for each in value.split(",")
    )


class _Malformed(Exception):  # noqa: N818  never leaves this module
    """What comes is no frame of a client, and nothing that follows can be read."""


class Websocket(asyncio.Protocol):
    """The connection to one end, from the answer to its upgrade until it is lost."""

    __slots__ = (
        "__weakref__",
        "_closing",
        "_deaf",
        "_gone",
        "_heard",
        "_is_pinged",
        "_listener",
        "_looking",
        "_loop",
        "_message_size",
        "_rest",
        "_said_goodbye",
        "_silence",
        "_skip",
        "_stopped",
        "_timer",
        "_told",
        "_transport",
        "_whole",
        "_wide",
        "full",
        "full_since",
        "lost",
        "owes_pong",
    )

    def __init__(self, listener: Listener, *, message_size: int, silence: float) -> None:
        """message_size: bytes of the longest message. silence: seconds without a byte, after which the peer is pinged; it has half as
        many to answer.
        """
        self._loop = asyncio.get_running_loop()
        self._listener: Listener | None = listener
        self._message_size, self._silence = message_size, silence
        self._transport: asyncio.Transport | None = None
        self._gone: Callable[[], None] | None = None
        self.lost = False  # the connection is
        self.full = False  # the peer has not taken all that was sent to it
        self.full_since = 0.0
        self.owes_pong = False  # which waits because the peer takes none
        self._rest = bytearray()  # that was read, and is not parsed yet
        self._whole: list[bytes] | None = None  # the parts of a message that is not complete
        self._wide = 0  # their bytes
        self._told = 0  # how much was unread when the listener was told last
        self._skip = 0  # bytes that come next and belong to a message that is not taken
        self._deaf = False  # nothing that comes can be read any more
        self._stopped = False  # nothing is read
        self._looking: asyncio.Handle | None = None  # at the rest, after others had their turn
        self._closing = False  # our close frame was sent
        self._said_goodbye = False  # the peer has sent its close frame
        self._heard = self._loop.time()
        self._is_pinged = False  # and has said nothing since
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, transport: asyncio.Transport, early: bytearray, gone: Callable[[], None]) -> None:
        """Take the connection, and make its buffers small: what waits in them is in flight.

        early: what has been read from it. gone: is called when it is lost.
        """
        self._transport, self._rest, self._gone = transport, early, gone
        transport.set_write_buffer_limits(high=1)  # full until the kernel has taken it; 0 would stop TLS
        if hasattr(transport, "set_read_buffer_limits"):  # of TLS
            transport.set_read_buffer_limits(high=SOCKET_BUFFER)
        wire = transport.get_extra_info("socket")
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            wire.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
        self._timer = self._loop.call_later(self._silence, self._look)
        self._go_on_soon()

    @property
    def unread(self) -> int:
        """The bytes that have been read from the socket and not been told."""
        return len(self._rest) + self._wide

    @property
    def unsent(self) -> int:
        """The bytes that the kernel has not taken."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def read(self, *, go_on: bool) -> None:
        """Read from the peer, or stop that, so that it can send no more than its kernel and ours hold."""
        if self._stopped is not go_on or self._closing or self._transport is None:
            return
        self._stopped = not go_on
        if go_on:
            self._heard, self._is_pinged = self._loop.time(), False  # its pong was not read
            self._go_on_soon()
        elif not self._transport.is_closing():
            self._transport.pause_reading()

    def send(self, opcode: Opcode, payload: bytes) -> None:
        """Send one frame; nothing when the connection is ending."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        size = len(payload)
        if size < 126:
            head = bytes((0x80 | opcode, size))
        elif size < 1 << 16:
            head = bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big")
        transport.write(head + payload)

    def close(self, code: int, reason: str = "") -> None:
        """Close with a code of §7.4, and a reason of at most 123 bytes: send the close frame, and wait for the peer's, no longer than `CLOSE_TIMEOUT`."""
        if self._closing or self._transport is None:
            return
        self._closing, self._stopped = True, False
        self.send(Opcode.CLOSE, code.to_bytes(2, "big") + reason.encode())
        if self._said_goodbye:
            self._hang_up()
            return
        self._within(CLOSE_TIMEOUT, self._hang_up)
        self._go_on_soon()  # for the answer

    def abort(self) -> None:
        """End the connection at once."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        gone, listener = self._gone, self._listener
        self._closing, self._transport, self._gone, self._listener = True, None, None, None
        self._within(None)
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self._rest, self._whole, self._wide = bytearray(), None, 0
        self.full = self.owes_pong = False
        self.lost = True
        if gone is not None:
            gone()
        if listener is not None:
            listener.ended(self, None)

    def pause_writing(self) -> None:
        self.full, self.full_since = True, self._loop.time()
        if self._listener is not None:
            self._listener.flow(self)

    def resume_writing(self) -> None:
        self.full = self.owes_pong = False
        if self._listener is not None:
            self._listener.flow(self)

    def data_received(self, data: bytes) -> None:
        self._heard, self._is_pinged = self._loop.time(), False
        if self._rest or self._stopped:
            self._rest += data
            if not self._stopped and self._looking is None:  # else it was on its way
                used = self._take(self._rest)
                del self._rest[:used]
            self._bound_the_rest()
        else:
            used = self._take(data)
            if used < len(data):
                self._rest += memoryview(data)[used:]
        self._tell_unread(self.unread)

    def _go_on_soon(self) -> None:
        if self._looking is None:
            self._looking = self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Take what is left, and read on unless that has stopped it again."""
        self._looking = None
        used = self._take(self._rest)
        del self._rest[:used]
        self._bound_the_rest()  # of what came with the request, too
        self._tell_unread(self.unread)
        transport = self._transport
        if self._stopped or self._looking is not None or transport is None or transport.is_closing():
            return
        transport.resume_reading()

    def _bound_the_rest(self) -> None:
        if self._stopped and len(self._rest) > READ_AHEAD:
            self._broke(WSCloseCode.POLICY_VIOLATION, "too much at once")

    def _tell_unread(self, size: int) -> None:
        if size != self._told and self._listener is not None:
            self._told = size
            self._listener.waits(self, size)

    def _take(self, data: bytes | bytearray) -> int:
        """Take the frames in `data`, and return how many of its bytes have been used."""
        position = 0
        for _ in range(FRAMES_IN_A_ROW):
            if self._stopped:
                return position
            if self._deaf:
                return len(data)
            if self._skip:
                skipped = min(self._skip, len(data) - position)
                self._skip -= skipped
                position += skipped
            try:
                after = self._frame(data, position)
            except _Malformed:
                self._deaf = True
                self._broke(WSCloseCode.PROTOCOL_ERROR, "malformed frame")
                return len(data)
            if after is None:
                return position
            position = after
            if position == len(data):
                return position
        if self._transport is not None:  # others have their turn
            if not self._transport.is_closing():
                self._transport.pause_reading()
            self._go_on_soon()
        return position

    def _frame(self, data: bytes | bytearray, at: int) -> int | None:
        """Take the frame at `at`, and return where it ends; None while it is not whole."""
        there = len(data) - at
        if there < 2:
            return None
        first, second = data[at], data[at + 1]
        opcode, size, start = first & 0x0F, second & 0x7F, at + 6
        if first & 0x70 or not second & 0x80:
            raise _Malformed
        if opcode > Opcode.BINARY:
            if opcode not in _CONTROLS or not first & 0x80 or size > MAX_CONTROL:
                raise _Malformed
        else:
            if size > MAX_CONTROL:
                wide = 2 if size == 126 else 8
                if there < 2 + wide:
                    return None
                size = int.from_bytes(data[at + 2 : at + 2 + wide], "big")
                start += wide
                if size < (126 if wide == 2 else 1 << 16):  # §5.2: the shortest form
                    raise _Malformed
            if (opcode == Opcode.CONTINUATION) is (self._whole is None):
                raise _Malformed
            if opcode == Opcode.TEXT or self._wide + size > self._message_size:
                self._skip, self._whole, self._wide = start + size - at, None, 0
                if opcode == Opcode.TEXT:
                    self._broke(WSCloseCode.UNSUPPORTED_DATA, "text message")
                else:
                    self._broke(WSCloseCode.MESSAGE_TOO_BIG, "message too long")
                return at
        end = start + size
        if len(data) < end:
            return None
        payload = _unmasked(bytes(data[start:end]), bytes(data[start - 4 : start]))
        if opcode > Opcode.BINARY:
            self._control(Opcode(opcode), payload)
        elif first & 0x80 and self._whole is None:
            self._message(payload)
        else:
            self._part(payload, last=bool(first & 0x80))
        return end

    def _part(self, payload: bytes, *, last: bool) -> None:
        """Take a part of a message."""
        if self._whole is None:
            self._whole = []
        elif self._listener is not None and not self._closing:
            self._listener.control(self)
        self._whole.append(payload)
        self._wide += len(payload)
        if last:
            message = b"".join(self._whole)
            self._whole, self._wide = None, 0
            self._message(message)

    def _message(self, data: bytes) -> None:
        if self._told:
            self._tell_unread(0)  # what waited is told now, or is told of anew
        if self._listener is not None and not self._closing:
            self._listener.message(self, data)

    def _control(self, opcode: Opcode, payload: bytes) -> None:
        if opcode is Opcode.CLOSE:
            code = _close_code(payload)
            self._said_goodbye = True
            if self._closing:
                self._hang_up()
            elif self._listener is not None:
                self._listener.ended(self, code)
        elif self._listener is not None and not self._closing:
            self._listener.control(self)
            if opcode is Opcode.PING and not self._closing:
                self.send(Opcode.PONG, payload)
                if self.full:  # nothing more is read before it has been taken
                    self.owes_pong = True
                    self._listener.flow(self)

    def _broke(self, code: int, rule: str) -> None:
        if self._listener is not None and not self._closing:
            self._listener.broke(self, code, rule)

    def _look(self) -> None:
        """Ping a peer that says nothing, and miss one that does not answer."""
        now = self._loop.time()
        if self._closing or self._listener is None:
            return
        # no comparison of times: uvloop's has milliseconds, and a pong may come in the one of its ping
        if self._is_pinged and not self._stopped:
            self._listener.silent(self)
            return
        self._is_pinged = False
        left = self._silence if self._stopped else self._heard + self._silence - now
        if left <= 0:
            left = self._silence / 2
            if not self.full:  # else it is missed by what it has not taken
                self._is_pinged = True
                self.send(Opcode.PING, b"")
        self._timer = self._loop.call_later(left, self._look)

    def _hang_up(self) -> None:
        """End the connection, after what waits in it has been sent."""
        if self._transport is not None:
            if not self._transport.is_closing():  # closed twice, asyncio's over TLS takes no `abort`
                self._transport.close()
            self._within(CLOSE_TIMEOUT, self._transport.abort)

    def _within(self, seconds: float | None, then: Any = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, then)


_CONTROLS: Final = frozenset({Opcode.CLOSE, Opcode.PING, Opcode.PONG})


def _close_code(payload: bytes) -> int | None:
    """The code in a close frame's payload, §5.5.1."""
    if not payload:
        return None
    code = int.from_bytes(payload[:2], "big")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        code = 0
    if len(payload) < 2 or not (code in _CODES or code in _OWN_CODES):
        raise _Malformed
    return code


def _unmasked(payload: bytes, key: bytes) -> bytes:
    """`payload` without its mask, §5.3."""
    if websocket_mask is None:  # all of it as one number
        size = len(payload)
        mask = (key * (size // 4 + 1))[:size]
        return (int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")).to_bytes(size, "little")
    unmasked = bytearray(payload)
    websocket_mask(key, unmasked)
    return bytes(unmasked)
