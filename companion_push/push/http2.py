"""One HTTP/2 connection of a client (RFC 9113), for many requests at a time, on the state machine of `h2`.

What a push needs, and a general client leaves open: after GOAWAY the requests that the server has processed still get
their answers, and those that it has not are told apart from those that may have been; a request that is cancelled is
reset and disturbs no other; answers are bounded (docs/adr/APNS).
"""

import asyncio
import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self, cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from companion_push.push.connect import connect_through, connect_to
from program_parts.proxy import Proxy

MAX_FRAME: Final = 16_384  # bytes: what SETTINGS_MAX_FRAME_SIZE is unless we say otherwise
MAX_UNREAD: Final = 1 << 20  # bytes that wait for a server which does not read
CLOSE_SECONDS: Final = 1.0  # for the last bytes of a connection
_HEAD: Final = 9  # bytes in front of each frame
_GOAWAY: Final = 7

Headers = Sequence[tuple[str, str]]

# at DEBUG it writes down every header: device tokens, provider tokens
logging.getLogger("hpack").setLevel(logging.WARNING)


class Broken(Exception):  # noqa: N818  a state of affairs, which does not leave the room
    """There is no answer, and the server may have processed the request."""


class Unprocessed(Exception):  # noqa: N818
    """The server has not processed the request: it may be sent again (RFC 9113 §8.7)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]  # of several with one name, the last
    body: bytes


@dataclass(slots=True, kw_only=True)
class _Stream:
    answer: "asyncio.Future[Answer]"
    limit: int
    unsent: bytes
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)


class Http2Connection(asyncio.Protocol):
    """A connection. `open` makes one; requests wait while the server allows no further stream."""

    def __init__(self) -> None:
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self._h2 = h2.connection.H2Connection(config)
        # nothing of these is ours to take; set before the preface, which sends them
        self._h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: MAX_FRAME,
            },
        )
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._settled = False  # the server's settings have come
        self._retired = False
        self._streams: dict[int, _Stream] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._pings: list[asyncio.Future[None]] = []
        self._received = bytearray()  # the beginning of a frame
        self.used_at = self._loop.time()  # when the server was last heard

    @classmethod
    async def open(cls, host: str, port: int, tls: ssl.SSLContext, proxy: Proxy | None = None) -> Self:
        """Connect. tls: with ALPN for ``h2``. `Broken` for a server without HTTP/2; `OSError` as the system raises it.

        proxy: to connect through; `ProxyFailed`.
        """
        loop = asyncio.get_running_loop()
        if proxy is None:
            transport, connection = await loop.create_connection(
                cls, sock=await connect_to(host, port), ssl=tls, server_hostname=host
            )
        else:
            through = await connect_through(proxy, host, port)
            connection = cls()
            try:
                secured = await loop.start_tls(through, connection, tls, server_hostname=host)
            except BaseException:
                through.abort()
                raise
            if secured is None:  # it was lost at once
                raise Broken("it hung up before it answered")
            transport = secured
            connection.connection_made(transport)
        tls_object = transport.get_extra_info("ssl_object")
        if tls_object is None or tls_object.selected_alpn_protocol() != "h2":
            await connection.close()
            raise Broken("it does not speak HTTP/2")
        return connection

    @property
    def usable(self) -> bool:
        """Whether new requests can be made."""
        return not self._retired and not self._lost.done()

    @property
    def closed(self) -> bool:
        return self._lost.done()

    @property
    def idle_for(self) -> float:
        """Seconds since the server was last heard."""
        return self._loop.time() - self.used_at

    async def request(self, headers: Headers, body: bytes, *, limit: int) -> Answer:
        """Send a request and wait for its answer. headers: with the pseudo-headers in front. limit: bytes of the answer's body.

        `Unprocessed`, or `Broken`. One that is cancelled is reset.
        """
        while not (self.usable and self._places > 0):
            if not self.usable:
                raise Unprocessed("the connection is closing")
            try:
                await self._woken(self._waiting)
            except asyncio.CancelledError:
                self._let_in()  # somebody else
                raise
        stream = _Stream(answer=self._loop.create_future(), limit=limit, unsent=body)
        try:
            number = self._h2.get_next_available_stream_id()
            self._h2.send_headers(number, headers)
        except h2.exceptions.ProtocolError as error:  # such as no more numbers
            self.retire()
            raise Unprocessed("the connection takes no more requests") from error
        self._streams[number] = stream
        try:
            self._pump(number)
            self._flush()
            return await stream.answer
        finally:
            if self._streams.pop(number, None) is not None:  # the caller was cancelled
                self._reset(number)
            elif not stream.answer.cancelled():
                stream.answer.exception()  # somebody has seen it, also when the caller was cancelled just then
            self._let_in()
            self._ended()

    async def ping(self) -> None:
        """Wait until the server answers a PING. `Broken` when the connection is lost."""
        if self._lost.done():
            raise Broken("it hung up")
        self._h2.ping(b"are you?")
        self._flush()
        await self._woken(self._pings)
        if self._lost.done():
            raise Broken("it hung up")

    def retire(self) -> None:
        """Begin no more requests; the connection closes after the last answer."""
        self._retired = True
        self._wake(self._waiting)
        self._ended()

    async def close(self) -> None:
        """Close at once; requests that are under way are `Broken`."""
        self._retired = True
        self._hang_up("the connection was closed here")
        if not self._lost.done():
            try:
                await asyncio.wait({self._lost}, timeout=CLOSE_SECONDS)
            finally:
                if self._transport is not None:
                    self._transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # of a class of its own where the loop is uvloop's
        self._transport = cast("asyncio.Transport", transport)
        self._h2.initiate_connection()
        self._flush()
        if self._received:
            self.data_received(b"")

    def data_received(self, data: bytes) -> None:
        self.used_at = self._loop.time()
        self._received += data
        if self._transport is None:  # behind a proxy the first frames may come before `connection_made`
            return
        try:
            for frame in self._frames():
                if frame[3] == _GOAWAY:
                    self._going_away(frame[_HEAD:])
                else:
                    for event in self._h2.receive_data(frame):
                        self._happened(event)
        except (h2.exceptions.ProtocolError, ValueError):
            self._hang_up("it does not speak HTTP/2 as it should")
            return
        self._flush()
        self._let_in()
        self._ended()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's interface
        self._retired = True
        if not self._lost.done():
            self._lost.set_result(None)
        self._fail("it hung up before it answered")

    # HTTP/2's side

    def _frames(self) -> "list[bytes]":
        """Take the whole frames off what was received. GOAWAY is not for `h2`, which takes no answer after it."""
        whole = []
        while len(self._received) >= _HEAD:
            size = int.from_bytes(self._received[:3], "big")
            if size > MAX_FRAME:
                raise ValueError("a frame that is larger than we allow")
            if len(self._received) < _HEAD + size:
                break
            whole.append(bytes(self._received[: _HEAD + size]))
            del self._received[: _HEAD + size]
        return whole

    def _going_away(self, payload: bytes) -> None:
        """The server begins no request with a higher number any more (RFC 9113 §6.8)."""
        if len(payload) < 8:
            raise ValueError("a GOAWAY that is too short")
        last = int.from_bytes(payload[:4], "big") & 0x7FFF_FFFF
        self._retired = True
        for number, stream in list(self._streams.items()):
            if number > last:
                self._refuse(number, stream, Unprocessed("the server is going away"))
        self._wake(self._waiting)

    def _happened(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived(stream_id=int(number), headers=headers):
                stream = self._streams.get(number)
                if stream is not None:
                    for name, value in headers or ():
                        stream.headers[_text(name)] = _text(value)
                    stream.status = _status(stream.headers.pop(":status", ""))
            case h2.events.DataReceived(stream_id=int(number), data=data, flow_controlled_length=length):
                self._h2.acknowledge_received_data(length or 0, number)
                stream = self._streams.get(number)
                if stream is not None:
                    stream.body += data or b""
                    if len(stream.body) > stream.limit:
                        self._reset(number)
                        self._refuse(number, stream, Broken(f"an answer of more than {stream.limit} bytes"))
            case h2.events.StreamEnded(stream_id=int(number)):
                stream = self._streams.pop(number, None)
                if stream is not None and not stream.answer.done():
                    stream.answer.set_result(
                        Answer(status=stream.status, headers=stream.headers, body=bytes(stream.body))
                    )
                    if stream.unsent:  # it was answered before it was all read
                        self._reset(number)
            case h2.events.StreamReset(stream_id=int(number), error_code=code):
                stream = self._streams.get(number)
                if stream is not None:
                    refused = code == h2.errors.ErrorCodes.REFUSED_STREAM
                    what = Unprocessed("the stream was refused") if refused else Broken("it reset the stream")
                    self._refuse(number, stream, what)
            case h2.events.RemoteSettingsChanged():
                self._settled = True
                self._pump_all()
            case h2.events.WindowUpdated():
                self._pump_all()
            case h2.events.PingAckReceived():
                self._wake(self._pings)
            case _:
                pass

    def _pump_all(self) -> None:
        for number in list(self._streams):
            self._pump(number)

    def _pump(self, number: int) -> None:
        """Send as much of the request's body as the server's windows take."""
        stream = self._streams[number]
        while stream.unsent and not stream.answer.done():
            room = min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size)
            if room <= 0:
                return
            part, stream.unsent = stream.unsent[:room], stream.unsent[room:]
            self._h2.send_data(number, part, end_stream=not stream.unsent)

    def _reset(self, number: int) -> None:
        try:
            self._h2.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
        except h2.exceptions.ProtocolError:  # it is over on both sides
            return
        self._flush()

    def _refuse(self, number: int, stream: _Stream, error: Exception) -> None:
        self._streams.pop(number, None)
        if not stream.answer.done():
            stream.answer.set_exception(error)

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > MAX_UNREAD:
            self._transport.abort()

    def _ended(self) -> None:
        """Close a retired connection that has nothing more to wait for."""
        if self._retired and not self._streams and self._transport is not None:
            self._hang_up("the connection is closing")

    def _hang_up(self, why: str) -> None:
        self._retired = True
        self._fail(why)
        if self._transport is not None and not self._transport.is_closing():
            if self._h2.state_machine.state is not h2.connection.ConnectionState.CLOSED:
                self._h2.close_connection()
            self._flush()
            self._transport.close()

    def _fail(self, why: str) -> None:
        for number, stream in list(self._streams.items()):
            self._refuse(number, stream, Broken(why))
        self._wake(self._waiting)
        self._wake(self._pings)

    @property
    def _places(self) -> int:
        """How many more requests the server takes now."""
        if not self._settled:
            return 0
        return self._h2.remote_settings.max_concurrent_streams - len(self._streams)

    def _let_in(self) -> None:
        """Wake as many of those that wait as there are places."""
        places = self._places
        for future in self._waiting[: max(0, places)]:
            if not future.done():
                future.set_result(None)

    async def _woken(self, waiting: "list[asyncio.Future[None]]") -> None:
        future = self._loop.create_future()
        waiting.append(future)
        try:
            await future
        finally:
            if future in waiting:
                waiting.remove(future)

    def _wake(self, waiting: "list[asyncio.Future[None]]") -> None:
        for future in waiting:
            if not future.done():
                future.set_result(None)
        waiting.clear()


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _status(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) == 3 else 0
