"""A server's HTTP layer over aiohttp's: problem documents and log lines for requests that are not HTTP, deadlines, caps, upgrades.

aiohttp itself answers a request that it cannot parse, with plain text that repeats the request, and logs a traceback
that repeats it too, tunnel ID, cookie or proof included. `Runner` answers with a problem document (RFC 9457) instead. `http_logger` logs one
line for each, without a byte of the request, and in a flood a few lines a minute and the number of the rest; a service that mounts an application gives it to its own::

    service = web.Application(handler_args={"logger": http_logger})
"""

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from aiohttp import StreamReader, hdrs, web
from aiohttp.http import HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy
from yarl import URL

from http_serving.accepting import CLOSE_SECONDS, Site
from http_serving.addresses import Network, client_address, is_in, is_loopback
from http_serving.connections import ConnectionLimits, Connections, Slot
from http_serving.first_request import FirstRequest, HandedOver, Take
from http_serving.log_limit import PERIOD, LogLimit
from http_serving.rate_limit import Policy, Unit, limit_headers

DRAIN_SECONDS: Final = 5.0  # for running requests at shutdown
LINGER_TURN: Final = 0.02  # seconds between two looks at the connections that are left
HEALTH: Final = ("/livez", "/readyz")  # paths
# bytes of a head: aiohttp bounds its lines and their number, which is a mebibyte, and takes twice as much
HEAD_SIZE: Final = 1 << 16
QUEUED: Final = 2  # requests that wait for the one before; then nothing is read (aiohttp's own limit is 32)
_IN_NO_HEAD: Final = b"\0\r\n\r\n"  # is refused wherever it stands
# what these bounds go by is not promised by aiohttp: where a release has other names, its own bounds are left
_HAS_NAMES: Final = all(
    hasattr(web.RequestHandler, name)
    for name in (
        *("_max_msg_queue_size", "_msg_queue_resume_size", "_messages", "_request_count", "_upgraded"),
        *("_payload_parser", "_task_handler", "_request_in_progress"),
    )
)
# of an application that takes upgrades before aiohttp's server sees them: neither do its middlewares and signals
TAKE: Final[web.AppKey[Take]] = web.AppKey("take")


def offers(headers: CIMultiDictProxy[str], subprotocol: str) -> bool:
    """Whether an upgrade offers a subprotocol, in one header or in several (RFC 6455 §11.3.4)."""
    return _names(",".join(headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, ())), subprotocol)


def opening_handshake(
    websocket: web.WebSocketResponse, request: web.Request, subprotocol: str
) -> web.Request | None:
    """The request as `websocket` can answer it; None when it is no opening handshake of a WebSocket (RFC 6455 §4.2.1).

    subprotocol: one that it offers. aiohttp looks for it in the first header alone, and logs what that offers instead.
    """
    if request.body_exists:  # what had not come of it by now would be read as frames
        return None
    try:
        if not _names(request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, ""), subprotocol):
            told = {name: request.headers[name] for name in _HANDSHAKE if name in request.headers}
            request = request.clone(headers={**told, hdrs.SEC_WEBSOCKET_PROTOCOL: subprotocol})
        return request if websocket.can_prepare(request) else None
    except ValueError:  # aiohttp 3.14: a header that is not ASCII
        return None


_HANDSHAKE: Final = (hdrs.UPGRADE, hdrs.CONNECTION, hdrs.SEC_WEBSOCKET_VERSION, hdrs.SEC_WEBSOCKET_KEY)


def _names(offered: str, subprotocol: str) -> bool:
    return subprotocol in (each.strip() for each in offered.split(","))


class Runner(web.AppRunner):
    """Serves one application, and answers requests that aiohttp refuses before the application.

    Bodies come as they were sent: an application refuses a Content-Encoding, and nothing is unpacked for one
    that does not look. A program has a class of its own, with its own problem documents.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        shutdown_timeout: float = DRAIN_SECONDS,
        limits: ConnectionLimits | None = None,
        trusted_proxies: Sequence[Network] = (),
        prefix: str = "",
        handler_cancellation: bool = False,
        closed: Callable[[str], None] = lambda _: None,
        linger: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """shutdown_timeout: seconds. limits: of connections. trusted_proxies: whose ``X-Forwarded-For`` is believed.

        prefix: of paths that a proxy may have left on or taken off; no slash at its end. handler_cancellation: whether
        who hangs up ends its handler. closed: is told why a connection was closed or refused. linger: says at shutdown how many
        seconds open connections have for one more request each, where another process accepts the new ones.
        """
        super().__init__(app, shutdown_timeout=shutdown_timeout, handler_cancellation=handler_cancellation)
        app.on_response_prepare.append(_without_server)
        self._trusted_proxies, self._prefix, self._linger = trusted_proxies, prefix, linger
        self.connections = Connections(
            limits if limits is not None else ConnectionLimits(),
            trusted_proxies=trusted_proxies,
            closed=closed,
        )

    @staticmethod
    def problem(status: int) -> web.Response:
        """Make the problem document (RFC 9457) for what is refused before the application, by its status."""
        raise NotImplementedError

    def site(self, listener: socket.socket, tls: ssl.SSLContext | None) -> Site:
        """A site that accepts connections within the limits."""
        server = self.server
        if not isinstance(server, _Server):
            raise TypeError("expected setup() before site()")
        return Site(self, listener, connections=self.connections, protocol=server.first, tls=tls)

    async def cleanup(self) -> None:
        await self._let_go()
        await super().cleanup()
        _limit.end()

    async def _let_go(self) -> None:
        """Accept no more, and end each connection with its next answer: whoever is about to send a request is not cut off."""
        seconds, server = self._linger(), self.server
        if seconds <= 0 or not isinstance(server, _Server):
            return
        for site in self.sites:
            if isinstance(site, Site):
                site.accept_no_more()
        server.last_answers = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while len(self.connections):  # noqa: ASYNC110  they tell nobody of their end
                    await asyncio.sleep(LINGER_TURN)

    async def _make_server(self) -> web.Server:
        return _Server(
            await super()._make_server(),
            self.connections,
            self._trusted_proxies,
            self._prefix,
            problem=self.problem,
            take=None if self._trusted_proxies or self._prefix else self.app.get(TAKE),
        )


async def _without_server(_request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Do not tell which software answers, and in which versions."""
    response.headers.pop(hdrs.SERVER, None)


class _Problem(web.Response):
    """A problem document that no application has seen: its signals do not finish it."""

    def __init__(self, found: web.Response) -> None:
        super().__init__(body=found.body, status=found.status, headers=found.headers)

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.pop(hdrs.SERVER, None)


class _Server(web.Server):
    def __init__(
        self,
        of_app: web.Server,
        connections: Connections,
        trusted_proxies: Sequence[Network],
        prefix: str,
        *,
        problem: Callable[[int], web.Response],
        take: Take | None,
    ) -> None:
        super().__init__(
            self._explained,
            request_factory=of_app.request_factory,
            handler_cancellation=of_app.handler_cancellation,
        )
        self._handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]] = of_app.request_handler
        self._slots, self._trusted_proxies, self._prefix = connections, trusted_proxies, prefix
        self._of_status, self._take = problem, take
        self.last_answers = False  # whether each connection ends with its next answer
        self._waiting: set[FirstRequest] = set()

    def first(self, slot: Slot) -> asyncio.Protocol:
        """Make the protocol that a connection has at first."""
        if self._take is None:
            return self(slot)
        return FirstRequest(self._slots, slot, others=self._waiting, take=self._take, serve=self)

    def pre_shutdown(self) -> None:
        """Close the connections that are idle. `shutdown` closes the rest."""
        super().pre_shutdown()
        for each in self._waiting:
            each.close()

    def __call__(self, slot: Slot | None = None, head: float | None = None) -> web.RequestHandler:
        """Make the protocol of a connection. slot: None when another site than ours has accepted it. head: seconds for the first head;
        None: as many as for each.
        """
        return _Connection(
            self,
            self._slots,
            slot,
            self._slots.limits.head if head is None else head,
            loop=asyncio.get_running_loop(),
            logger=http_logger,
            access_log=None,  # none: paths hold tunnel IDs, and ids of passkeys
            auto_decompress=False,
        )

    async def _explained(self, request: web.BaseRequest) -> web.StreamResponse:
        """Let the application answer; a refusal by aiohttp, such as of Expect, becomes a problem document."""
        connection = request.protocol
        if not isinstance(connection, _Connection):
            raise TypeError("expected a connection of this server")
        seen = self._before_proxies(request)
        try:
            with connection.in_use(client=seen.remote or "") as allowed:
                if not self._may_be_plain(request.remote or "", seen):
                    return self.problem(421)
                if not _can_be_met(request):
                    return self.problem(417)
                if allowed:
                    answer = await self._handle(seen)
                    if self.last_answers:
                        answer.force_close()
                    return answer
                refused = self.problem(429)
                most = self._slots.limits.per_address
                policy = Policy(name="requests-of-address", quota=most, unit=Unit.AT_A_TIME)
                refused.headers.update(limit_headers(policy, 5))
                return refused
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return self.problem(error.status)

    def problem(self, status: int) -> web.Response:
        """Make the problem document for a request that is refused before the application."""
        return _Problem(self._of_status(status))

    def _may_be_plain(self, peer: str, request: web.BaseRequest) -> bool:
        """Whether a request may come without TLS: from a proxy that is trusted, or from this machine.

        A server without a certificate listens beyond loopback for its proxies alone (RFC 9110 §7.4). Who asks for its health,
        such as an orchestrator, has no proxy in front and is told no more than that.
        """
        if request.secure or not self._trusted_proxies:
            return True
        return is_in(peer, self._trusted_proxies) or is_loopback(peer) or request.path in HEALTH

    def _before_proxies(self, request: web.BaseRequest) -> web.BaseRequest:
        """Undo what proxies changed: set the client's address, and remove the prefix of the path."""
        changes: dict[str, Any] = {}
        if self._trusted_proxies:
            told = request.headers.getall(hdrs.X_FORWARDED_FOR, [])
            changes["remote"] = client_address(request.remote or "", told, self._trusted_proxies)
        path = request.rel_url.raw_path
        own = path.removeprefix(self._prefix)
        if own != path and own.startswith("/") and not own.startswith("//"):
            query = request.rel_url.raw_query_string
            changes["rel_url"] = URL.build(path=own, query_string=query, encoded=True)
        return request.clone(**changes) if changes else request


def _can_be_met(request: web.BaseRequest) -> bool:
    """Whether a request expects no more than 100 (Continue). aiohttp repeats what is expected in its refusal, and fails where that is not UTF-8."""
    expected = request.headers.get(hdrs.EXPECT)
    return not expected or request.version != HttpVersion11 or expected.lower() == "100-continue"


class Upgrade(web.StreamResponse):
    """The answer 101, behind which another protocol has the connection.

    aiohttp lets go of connection, parser and request as soon as the handler, and each middleware around it, has returned this answer. In
    the books of `Runner` the connection stays in use, by the same client.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__(status=101, headers=headers)
        self.force_close()
        self._held = _Held()

    async def hand_over(self, request: web.Request, protocol: asyncio.Protocol) -> HandedOver:
        """Send the answer, and give the connection to `protocol`. `ConnectionError` when it is lost."""
        await self.prepare(request)
        http, transport = request.protocol, request.transport
        if transport is None:
            raise ConnectionResetError("the connection was lost before its upgrade was answered")
        early = _Early()
        http.set_parser(cast("Any", early))
        transport.set_protocol(protocol)
        http.transport = None  # else aiohttp would close it
        self._held.http = http
        books = http.hand_over() if isinstance(http, _Connection) else None
        return HandedOver(
            transport=transport, early=early.data, gone=functools.partial(_gone, self._held, books)
        )

    async def write_eof(self, data: bytes = b"") -> None:
        """End the answer, which aiohttp asks for when the handler has returned it."""
        self._held.let_go()
        await super().write_eof(data)


class _Held:
    """aiohttp's protocol of a connection that was handed over, until it has let go of that."""

    __slots__ = ("http",)

    def __init__(self) -> None:
        self.http: web.RequestHandler | None = None

    def let_go(self) -> None:
        """Tell aiohttp that the connection is lost, which may cancel the handler."""
        http, self.http = self.http, None
        if http is not None:
            http.connection_lost(None)


class _Early:
    """Keeps what came behind a request that is upgraded. aiohttp gives it what it gives its own parser of websockets."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Do nothing: aiohttp is told that the connection is lost, which is not so."""


def _gone(held: _Held, books: Callable[[], None] | None) -> None:
    held.let_go()  # where a middleware has kept the answer
    if books is not None:
        books()


def _end(connections: Connections, slot: Slot, client: str) -> None:
    connections.end_request(slot, client)
    connections.release(slot)


class _Connection(web.RequestHandler):
    """One connection, with the deadline of its phase: head, then none while it is in use, then idle.

    aiohttp's own timer looks at nothing but idling; it is left at its default of an hour.
    """

    __slots__ = (
        "_body",
        "_client",
        "_connections",
        "_deadline",
        "_first_head",
        "_idle",
        "_problem",
        "_slot",
        "_unread",
        "_wire",
    )

    def __init__(
        self, server: _Server, connections: Connections, slot: Slot | None, first_head: float, **more: Any
    ) -> None:
        """first_head: seconds for the head of the first request."""
        super().__init__(server, **more)
        self._problem = server.problem
        self._connections, self._slot, self._first_head = connections, slot, first_head
        self._wire: asyncio.Transport | None = None  # aiohttp forgets its own before the last bytes are sent
        self._deadline: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None  # of the last request whose head is whole
        self._unread = 0  # bytes of a head that is not
        if _HAS_NAMES:
            self._max_msg_queue_size, self._msg_queue_resume_size = QUEUED, 0
        self._idle = False
        self._client = ""  # of the request that is being answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = wire = cast("asyncio.Transport", transport)
        if self._slot is None:
            peer = wire.get_extra_info("peername")
            self._slot = self._connections.admit(str(peer[0]) if peer else "")
        if self._slot is None:
            wire.abort()
            return
        self._slot.end = wire.abort
        self._within(self._first_head, "head")
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._idle:  # a head begins
            self._idle = False
            self._within(self._connections.limits.head, "head")
        if not _HAS_NAMES:
            super().data_received(data)
            return
        of_body = self._body is not None and not self._body.is_eof()
        read = self._request_count
        super().data_received(data)
        if self._request_count != read:
            self._unread, self._body = 0, self._messages[-1][1]
        elif not (of_body or self._upgraded or self._payload_parser is not None):
            self._unread += len(data)
            if self._unread > HEAD_SIZE:
                super().data_received(_IN_NO_HEAD)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._slot is not None:
            self._connections.release(self._slot)
        self._wire = None
        self._within(None)
        super().connection_lost(exc)

    @contextlib.contextmanager
    def in_use(self, *, client: str) -> Iterator[bool]:
        """Note that a request of `client` is being answered; False when a proxy passes on too many for it."""
        slot = self._slot
        if slot is None:  # refused, and lost
            raise ConnectionError("the connection has no slot")
        self._idle = False
        self._within(None)
        self._connections.use(slot, in_use=True)
        allowed = self._connections.begin_request(slot, client)
        self._client = client
        try:
            yield allowed
        finally:
            if self._slot is not None:  # else it was handed over, and stays in use
                if allowed:
                    self._connections.end_request(slot, client)
                self._connections.use(slot, in_use=False)
                if self._wire is not None:
                    self._idle = True
                    self._within(self._connections.limits.idle, "idle")

    def hand_over(self) -> Callable[[], None]:
        """Leave the connection's slot, and the request that is counted, to whoever has the connection now; returns what ends both."""
        slot, self._slot, self._wire = self._slot, None, None
        assert slot is not None  # noqa: S101  for mypy: `in_use` has looked
        return functools.partial(_end, self._connections, slot, self._client)

    def _within(self, seconds: float | None, phase: str = "") -> None:
        """Set the deadline of a phase, in place of the one before; None for none."""
        if self._deadline is not None:
            self._deadline.cancel()
        loop = asyncio.get_running_loop()
        self._deadline = None if seconds is None else loop.call_later(seconds, self._too_late, phase)

    def _too_late(self, phase: str) -> None:
        """Close the connection, and cut it off when its peer does not take the farewell."""
        self._connections.closed(phase)
        wire = self._wire
        self.force_close()
        if wire is not None:
            self._deadline = asyncio.get_running_loop().call_later(CLOSE_SECONDS, wire.abort)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109  it is aiohttp's
        """End the connection: a request that is being answered has `timeout` seconds, the rest of the body of one that has been has none."""
        if _HAS_NAMES and self._task_handler is not None and not self._request_in_progress:
            self._task_handler.cancel()
        await super().shutdown(timeout)

    def force_close(self) -> None:
        """Close the connection, unless that has begun: asyncio's TLS transport, closed twice, does nothing for `abort` any more."""
        if self.transport is not None and self.transport.is_closing():
            self.transport = None
        super().force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  it repeats the request
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError):
            raise exc  # who has hung up is told nothing, and is no news
        self.log_exception("", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun: there is no other one")
        response = self._problem(status)
        response.force_close()
        return response


def _without_bytes(record: logging.LogRecord) -> bool:
    """Reduce aiohttp's log record to one line without the request."""
    kind, error, trace = record.exc_info or (None, None, None)
    record.exc_info = record.exc_text = None
    if kind is None or error is None:
        return True
    arguments: tuple[Any, ...]
    if issubclass(kind, HttpProcessingError | web.RequestPayloadError):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, arguments = "a request could not be read: %s", (kind.__name__,)
        allowed = _limit.allows("requests could not be read")
    else:  # type and place only: its message may hold anything
        place = traceback.extract_tb(trace)[-1:]
        where = f"{Path(place[0].filename).name}:{place[0].lineno}" if place else "an unknown place"
        record.msg, arguments = "unexpected %s at %s", (kind.__name__, where)
        allowed = _limit.allows("requests met something unexpected")
    record.args = arguments
    return allowed


def _left_out(kind: str, count: int) -> None:
    http_logger.warning("%d more %s within %d s", count, kind, PERIOD)


_limit: Final = LogLimit(tell=_left_out)


http_logger: Final = logging.getLogger(f"{__name__}.http")
http_logger.addFilter(_without_bytes)
