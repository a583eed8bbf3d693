"""The tunnel service over HTTP: two websockets per tunnel, and binary messages carried between them.

===============================================  ==========================================================
``GET /cable/new/<tunnel ID>``                   the authenticator opens a tunnel and learns its routing ID
``GET /cable/connect/<routing ID>/<tunnel ID>``  the client platform joins it, or the authenticator that was woken
``GET /cable/contact/<contact ID>``              a linked client platform opens a tunnel, and its phone is woken
``GET /cable/phone``                             a phone registers to be woken (`phones.py`)
``GET /livez``                                   204 while the process can answer
``GET /readyz``                                  204 while another tunnel may be opened, else 503
===============================================  ==========================================================

The service forwards each binary message unchanged and in order. It holds no key that opens one. It pings an end that
sends nothing (RFC 6455 §5.5.2), so that proxies and NATs do not drop the connection as idle, and closes a tunnel whose end
does not answer. Logs hold counts, sizes and durations, and never an ID.
"""

import asyncio
import logging
import math
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiohttp import WSCloseCode, WSMessage, WSMsgType, hdrs, web

from companion_push import waking
from companion_push.serving.http_server import http_logger, problem, upgrades
from companion_push.serving.rate_limit import Policy, limit_headers
from companion_push.serving.tracing import Tracing, tracing
from companion_push.serving.webhook import Webhook
from companion_push.tunnel_service.contacts import KnownContacts
from companion_push.tunnel_service.hook import WakeHook
from companion_push.tunnel_service.phones import Phones
from companion_push.tunnel_service.rendezvous import Breach, End, Limits, Rendezvous, Tunnel, TunnelRefusal
from headless_passkey.errors import RemoteProtocolError, UsageError
from headless_passkey.hybrid.tunnel_url import (
    CLIENT_PAYLOAD_HEADER,
    CONNECT_SIGNAL,
    ROUTING_ID_HEADER,
    ROUTING_ID_SIZE,
    SIGNAL_CONNECTION_HEADER,
    SILENT,
    SUBPROTOCOL,
    TUNNEL_ID_SIZE,
    ConnectTunnel,
    ContactTunnel,
    NewTunnel,
    connection_is_signalled,
    parse_client_payload_header,
    parse_path,
)
from headless_passkey.process.tasks import end, end_quietly

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

    from companion_push.tunnel_service.metrics import TunnelMetrics

FULL_SECONDS: Final = 5  # until who found no room, or a service that stops, asks again
CLOSE_TIMEOUT: Final = 1.0  # seconds an end has to answer our close frame
# seconds an end may leave a message unread, and never more than `Limits.silence`: during back-pressure the service reads
# nothing from the sender, its pongs included
SEND_TIMEOUT: Final = 20.0
CUT_OFF: Final = 1 << 12  # bytes over the limit from which a message is not read to its end
# bytes in the kernel, for each end and direction, so that what an end has sent and nobody reads stays small; Linux doubles both
SOCKET_BUFFER: Final = 1 << 14
# bytes that may have been read with a message and wait behind it: what a socket's buffer holds, and aiohttp's 128 for each frame
READ_AHEAD: Final = 8 * SOCKET_BUFFER

NODES: Final = range(256)
_OUTCOME: Final = "companion_push.outcome"  # of a span

logger = logging.getLogger(__name__)


def make_app(
    limits: Limits | None = None,
    *,
    node: int | None = None,
    contacts: KnownContacts | None = None,
    hook: Webhook | None = None,
    registry: "CollectorRegistry | None" = None,
    tracer_provider: "TracerProvider | None" = None,
) -> web.Application:
    """An aiohttp application that is a tunnel service. Run it without an access log: paths hold tunnel IDs.

    Phones look for it at the root of a tunnel domain. Mounted under a prefix, it is found by clients that were
    told ``wss://host/prefix``. node: 0 to 255, the first byte of its routing IDs, by which a proxy finds it among several
    behind one name; None for one that is alone. contacts: which linked phones it knows; None: it wakes none. hook: is called for phones that hold no
    connection; None: these are not reached. registry: prometheus-client's, to which it adds its metrics. tracer_provider: OpenTelemetry's,
    for its spans; by default that of the process, where the API is installed.
    """
    traces = tracing("companion_push.tunnel_service", tracer_provider)
    app = web.Application(
        middlewares=[] if traces is None else [_trace], handler_args={"logger": http_logger}
    )
    if hook is not None and contacts is None:
        raise UsageError("hook: only a service with contacts wakes phones")
    waker = None if hook is None else WakeHook(hook)
    app[_TUNNELS] = TunnelEndpoints(limits if limits is not None else Limits(), node, contacts, waker)
    app[_TUNNELS].traces = traces
    app.router.add_get("/livez", _livez, name=_LIVEZ)
    app.router.add_get("/readyz", _readyz)
    if contacts is not None:
        app.router.add_get(waking.PATH, _phone, allow_head=False)
    app.router.add_route("*", "/cable/{path:.*}", _cable)
    app.on_shutdown.append(_close_tunnels)
    app.on_cleanup.append(_close_hook)
    if registry is not None:
        app[_TUNNELS].measure(registry)
        app.cleanup_ctx.append(_watched_loop)
    return app


async def drain(app: web.Application, seconds: float, *, cut: "asyncio.Future[None] | None" = None) -> None:
    """Refuse new tunnels, and return when the open ones have ended, or after `seconds`, or when `cut` is done.

    app: of `make_app`. Who joins a tunnel that is open already may do so. What is still open ends with 1001 (going away) when the
    application shuts down, for which the caller asks next.
    """
    endpoints = app[_TUNNELS]
    endpoints.stopping = True
    if not len(endpoints):
        return
    logger.info("draining: %d open tunnels have %.0f s to end", len(endpoints), seconds)
    drained = asyncio.ensure_future(endpoints.drained.wait())
    try:
        waited_for: list[asyncio.Future[Any]] = [drained] if cut is None else [drained, cut]
        await asyncio.wait(waited_for, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(drained)
    if len(endpoints):
        logger.warning("%d tunnels were still open when the service stopped", len(endpoints))


class TunnelEndpoints:
    """Serves the endpoints of tunnels, and keeps the tunnels that are open."""

    def __init__(
        self,
        limits: Limits,
        node: int | None,
        contacts: KnownContacts | None = None,
        hook: WakeHook | None = None,
    ) -> None:
        if node is not None and node not in NODES:
            raise UsageError(f"node: expected a number from 0 to {NODES.stop - 1}")
        self.limits = limits
        self.rendezvous = Rendezvous(limits)
        self.phones = None if contacts is None else Phones(contacts, silence=limits.silence, hook=hook)
        self._prefix = b"" if node is None else bytes([node])
        self._open: dict[Tunnel, OpenTunnel] = {}
        self.metrics: TunnelMetrics | None = None
        self.traces: Tracing | None = None
        self.stopping = False  # no tunnel is opened any more
        self.drained = asyncio.Event()  # and none is open

    def __len__(self) -> int:
        return len(self._open)

    def measure(self, registry: "CollectorRegistry") -> None:
        """Add the service's metrics to `registry`."""
        from companion_push.tunnel_service.metrics import TunnelMetrics  # noqa: PLC0415  of an extra

        self.metrics = TunnelMetrics(registry, self.rendezvous)

    def refuse(self, refusal: TunnelRefusal) -> web.Response:
        if self.metrics is not None:
            self.metrics.refused(refusal)
        if self.traces is not None:
            self.traces.current().note(_OUTCOME, refusal.value)
        return _refuse(refusal, self.limits)

    async def open(self, request: web.Request, path: NewTunnel) -> web.StreamResponse:
        """Serve the first end, an authenticator: its handler owns the tunnel."""
        tunnel = self._opened(request, path.tunnel_id)
        if isinstance(tunnel, TunnelRefusal):
            return self.refuse(tunnel)
        return await self._own(tunnel, request, {ROUTING_ID_HEADER: tunnel.routing_id.hex().upper()})

    async def contact(self, request: web.Request, path: ContactTunnel) -> web.StreamResponse:
        """Serve the first end, a linked client platform: wake its phone, which is the second."""
        if self.phones is None:
            return problem(404, "no such path")
        try:
            payload = parse_client_payload_header(request.headers.get(CLIENT_PAYLOAD_HEADER, ""))
        except RemoteProtocolError as error:
            return problem(400, str(error))
        phone = self.phones.reach(path.contact_id, now=_now())
        if isinstance(phone, TunnelRefusal):
            return self.refuse(phone)
        tunnel = self._opened(request, secrets.token_bytes(TUNNEL_ID_SIZE))
        if isinstance(tunnel, TunnelRefusal):
            return self.refuse(tunnel)
        signal = connection_is_signalled(request.headers.get(SIGNAL_CONNECTION_HEADER))
        headers = {SIGNAL_CONNECTION_HEADER: "true"} if signal else {}
        if not self.phones.is_called(phone):
            phone.wake(path.contact_id, tunnel, payload)
            return await self._own(tunnel, request, headers, signal=signal)
        try:
            called = self.phones.call(path.contact_id, tunnel, payload)
            return await self._own(tunnel, request, headers, signal=signal, called=called)
        finally:
            self.phones.called_no_more(path.contact_id)

    def _opened(self, request: web.Request, tunnel_id: bytes) -> Tunnel | TunnelRefusal:
        if self.stopping:
            return TunnelRefusal.STOPPING
        tunnel = self.rendezvous.open(
            tunnel_id,
            routing_id=self._prefix + secrets.token_bytes(ROUTING_ID_SIZE - len(self._prefix)),
            address=request.remote or "",
            now=_now(),
        )
        self._end_evicted()
        return tunnel

    async def _own(
        self,
        tunnel: Tunnel,
        request: web.Request,
        headers: Mapping[str, str],
        *,
        signal: bool = False,
        called: Coroutine[Any, Any, bool] | None = None,
    ) -> web.StreamResponse:
        """Serve the first end until the tunnel has ended. signal: tell it when the second end has come. called: the call of the
        hook that wakes the second end; the tunnel ends when nobody takes it.
        """
        opened = self._open[tunnel] = OpenTunnel(
            tunnel, self.hold, self.rendezvous.let_go, self._ended, signal=signal
        )
        calling = None if called is None else asyncio.create_task(_call(called, opened))
        try:
            connection = Connection(_websocket(self.limits), request)
            connection.websocket.headers.update(headers)
            await connection.prepare()
            await opened.hold(connection)
        finally:
            self.rendezvous.end(tunnel)
            del self._open[tunnel]
            opened.over.set()
            if self.stopping and not self._open:
                self.drained.set()
            if calling is not None:
                await end_quietly(calling)
        return connection.websocket

    async def join(self, request: web.Request, path: ConnectTunnel) -> web.StreamResponse:
        """Serve the second end: hand its websocket over and wait until the tunnel has ended."""
        if not path.routing_id.startswith(self._prefix):
            return self.refuse(TunnelRefusal.ELSEWHERE)
        tunnel = self.rendezvous.join(path.routing_id, path.tunnel_id, now=_now())
        if isinstance(tunnel, TunnelRefusal):
            return self.refuse(tunnel)
        opened = self._open[tunnel]
        connection = Connection(_websocket(self.limits), request)
        try:
            await connection.prepare()
            opened.arrive(connection)
            await opened.over.wait()
            await connection.close(WSCloseCode.GOING_AWAY)  # when it came just too late
        finally:
            opened.end(_vanished())  # when it never got as far as arriving
        return connection.websocket

    def hold(self, tunnel: Tunnel, size: int) -> None:
        """Count the bytes of a message in flight, and end the tunnel that is evicted for them."""
        self.rendezvous.hold(tunnel, size)
        self._end_evicted()

    def _ended(self, tunnel: Tunnel, why: str) -> None:
        if self.metrics is not None:
            self.metrics.ended(tunnel, why)
        if self.traces is not None:  # the span of the first end, whose handler owns the tunnel
            self.traces.current().note(_OUTCOME, why)

    def _end_evicted(self) -> None:
        while self.rendezvous.evicted:
            self._open[self.rendezvous.evicted.pop()].end(_evicted())

    def close(self) -> None:
        """End every tunnel; the handlers return soon after."""
        self.stopping = True
        if self.phones is not None:
            self.phones.close()
        for opened in self._open.values():
            opened.end(Ending(why="the service stops"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Why a tunnel ended, and what each end is told."""

    why: str
    codes: tuple[int, int] = (WSCloseCode.GOING_AWAY, WSCloseCode.GOING_AWAY)  # first end, second end


@dataclass(frozen=True, slots=True)
class Connection:
    """The connection to one end."""

    websocket: web.WebSocketResponse
    request: web.Request

    @property
    def silent(self) -> bool:
        """Whether the end has not answered a ping. aiohttp has closed the websocket then."""
        return isinstance(self.websocket.exception(), TimeoutError)

    @property
    def unread(self) -> int:
        """The bytes of frames that have been read from the socket and wait to be received, by aiohttp's count."""
        # aiohttp has no public word for it; tests/tunnel_service/test_memory.py fails where this one goes
        return int(self.websocket._reader._size)  # type: ignore[union-attr]  # noqa: SLF001

    async def prepare(self) -> None:
        """Answer the upgrade, and make the buffers of the connection small: what waits in them is in flight."""
        await self.websocket.prepare(self.request)
        transport = self.request.transport
        if transport is None:
            return
        transport.set_write_buffer_limits(
            high=1
        )  # a frame is sent when the kernel has taken it; 0 would stop TLS
        if hasattr(transport, "set_read_buffer_limits"):  # of TLS
            transport.set_read_buffer_limits(high=SOCKET_BUFFER)
        wire = transport.get_extra_info("socket")
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            wire.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)

    async def receive(self) -> WSMessage:
        """Receive one message, and read from the socket only until it is there."""
        if not self.unread:
            self.request.protocol.resume_reading()
        try:
            return await self.websocket.receive()
        finally:
            self.request.protocol.pause_reading()

    async def close(self, code: int) -> None:
        """Close the websocket: send a close frame and wait for the answer; abort the connection of an end that does not read."""
        self.request.protocol.resume_reading()  # for the answer
        try:
            if not self.silent:
                async with asyncio.timeout(2 * CLOSE_TIMEOUT):  # aiohttp's own limit is for the answer alone
                    await self.websocket.close(code=code)
                return
        except TimeoutError:
            pass
        if self.request.transport is not None:
            self.request.transport.abort()


class OpenTunnel:
    """One tunnel with its connections, from the first end's arrival until both are closed."""

    def __init__(
        self,
        tunnel: Tunnel,
        hold: Callable[[Tunnel, int], None],
        let_go: Callable[[Tunnel, int], None],
        ended: Callable[[Tunnel, str], None],
        *,
        signal: bool = False,
    ) -> None:
        """hold, let_go: count the bytes in flight of all tunnels. ended: is told why it ended. signal: send the connect signal."""
        self._signal = signal
        loop = asyncio.get_running_loop()
        self._hold, self._let_go, self._ended = hold, let_go, ended
        self.over = asyncio.Event()
        self._tunnel = tunnel
        self._second: asyncio.Future[Connection] = loop.create_future()
        self._ending: asyncio.Future[Ending] = loop.create_future()
        self._waiting: list[bytes] = []  # what the first end said before the second one was there
        self._begun = asyncio.Event()  # and that the second one has taken it
        # when each frame was begun that is being sent, the oldest first, by the end that is to take it; of a kind one at a time
        self._sending: dict[tuple[End, WSMsgType], float] = {}
        self._look: asyncio.TimerHandle | None = None  # at them, when the oldest may have waited too long

    def arrive(self, second: Connection) -> None:
        """Take the connection of the second end."""
        self._second.set_result(second)

    def end(self, ending: Ending) -> None:
        """End the tunnel, unless it has ended already."""
        if not self._ending.done():
            self._ending.set_result(ending)

    async def hold(self, first: Connection) -> None:
        """Carry messages until an end leaves, breaks a rule, or time is up; then close both."""
        try:
            async with asyncio.TaskGroup() as group:
                exchange = group.create_task(self._exchange(first))
                ending = await self._until_the_end()
                exchange.cancel()
        finally:
            if self._look is not None:
                self._look.cancel()
        ends = [first]
        if self._second.done() and not self._second.cancelled():
            ends.append(self._second.result())
        async with asyncio.TaskGroup() as group:
            for connection, code in zip(ends, ending.codes, strict=False):
                group.create_task(connection.close(code))
        self._ended(self._tunnel, ending.why)
        logger.info(
            "tunnel ended after %.1f s, because %s; %d messages of %d bytes one way, %d of %d the other",
            _now() - self._tunnel.opened,
            ending.why,
            *(count[end] for end in End for count in (self._tunnel.messages, self._tunnel.sizes)),
            extra={
                "fields": {
                    "seconds": round(_now() - self._tunnel.opened, 3),
                    "reason": ending.why,
                    "messages": sum(self._tunnel.messages),
                    "bytes": sum(self._tunnel.sizes),
                }
            },
        )

    async def _until_the_end(self) -> Ending:
        while True:
            try:
                async with asyncio.timeout_at(self._tunnel.deadline):
                    return await asyncio.shield(self._ending)
            except TimeoutError:
                if _now() >= self._tunnel.deadline:  # joining has not moved it
                    return Ending(why="its time was up")

    async def _exchange(self, first: Connection) -> None:
        # Back-pressure: from when both ends are there, an end is read from only when all that it sent has been taken. Until
        # then the first end is read from, so that its leaving is noticed, and what it says waits for the second end.
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(End.FIRST, first))
            second = await asyncio.shield(self._second)
            group.create_task(self._listen(End.SECOND, second, first))
            while self._waiting:
                if not await self._pass_on(End.SECOND, second, self._waiting[0]):
                    return
                del self._waiting[0]
            self._begun.set()

    async def _listen(self, end: End, connection: Connection, other: Connection | None = None) -> None:
        """Carry one end's messages to the other end, within the tunnel's budget. other: None: the second end, once it is there."""
        to = End.SECOND if end is End.FIRST else End.FIRST
        if other is not None and self._signal:  # in front of everything that the second end says
            self._hold(self._tunnel, len(CONNECT_SIGNAL))
            if not await self._pass_on(to, other, CONNECT_SIGNAL):
                return None
        while True:
            if other is None and self._second.done():
                await self._begun.wait()
                other = self._second.result()
            if connection.unread:
                # the event loop closes a lost connection in its next rounds; without this pause, asyncio would log a warning
                # for each message that is written until then, and an end that sends many at once would keep others waiting
                await asyncio.sleep(0)
            message = await connection.receive()
            if connection.unread > READ_AHEAD:
                return self.end(_broke(end, WSCloseCode.POLICY_VIOLATION, Breach.TOO_MUCH_AT_ONCE.value))
            match message.type:
                case WSMsgType.BINARY:
                    breach = self._tunnel.carry(end, len(message.data))
                    if breach is not None:
                        code = WSCloseCode.POLICY_VIOLATION
                        if breach is Breach.TOO_LONG:
                            code = WSCloseCode.MESSAGE_TOO_BIG
                        return self.end(_broke(end, code, breach.value))
                    self._hold(self._tunnel, len(message.data))
                    if not self._second.done():
                        self._waiting.append(message.data)
                        continue
                    if other is None:
                        await self._begun.wait()
                        other = self._second.result()
                    if not await self._pass_on(to, other, message.data):
                        return None
                case WSMsgType.PING | WSMsgType.PONG:
                    breach = self._tunnel.control(end)
                    if breach is not None:
                        return self.end(_broke(end, WSCloseCode.POLICY_VIOLATION, breach.value))
                    if message.type is WSMsgType.PING:
                        taken = await self._send(end, connection, WSMsgType.PONG, message.data)
                        if not taken:
                            return None
                case WSMsgType.TEXT:
                    return self.end(_broke(end, WSCloseCode.UNSUPPORTED_DATA, "text message"))
                case WSMsgType.ERROR:
                    # aiohttp has closed it: no pong came, a message was far too long, or a frame was malformed
                    return self.end(_gone(end, connection))
                case _:
                    # not websocket.close_code: aiohttp replaces it when our own close frame cannot be sent
                    clean = message.type is WSMsgType.CLOSE and message.data in _GOODBYE
                    if self._second.done() and other is None:
                        await self._begun.wait()  # what it sent before it left has been taken
                    return self.end(_left() if clean else _gone(end, connection))

    async def _pass_on(self, to: End, connection: Connection, message: bytes) -> bool:
        """Send an end what the other one said, and return whether it took it."""
        if not await self._send(to, connection, WSMsgType.BINARY, message):
            return False
        self._let_go(self._tunnel, len(message))
        return True

    async def _send(self, end: End, connection: Connection, kind: WSMsgType, data: bytes) -> bool:
        """Send one frame, and return whether the end took it. An end that does not take it ends the tunnel."""
        self._sending[end, kind] = _now()
        if self._look is None:  # a timer of each message's own would cost as much as sending it
            self._look = asyncio.get_running_loop().call_later(self._patience, self._look_at_sending)
        try:
            await connection.websocket.send_frame(data, kind)
        except ConnectionError:
            self.end(_gone(end, connection))
            return False
        finally:
            del self._sending[end, kind]
        return True

    def _look_at_sending(self) -> None:
        """End the tunnel when an end has not taken a frame for too long."""
        self._look = None
        for (to, _), since in self._sending.items():
            left = since + self._patience - _now()
            if left <= 0:
                return self.end(_silent(to, "an end did not read"))
            self._look = asyncio.get_running_loop().call_later(left, self._look_at_sending)
            return None
        return None

    @property
    def _patience(self) -> float:
        """Seconds that an end has to take a frame."""
        return min(SEND_TIMEOUT, self._tunnel.limits.silence)


async def _call(called: Coroutine[Any, Any, bool], opened: OpenTunnel) -> None:
    if not await called:
        opened.end(Ending(why="its phone could not be woken"))


_GOODBYE: Final = (WSCloseCode.OK, WSCloseCode.GOING_AWAY)  # browsers close with the second
_TUNNELS: Final = web.AppKey("tunnels", TunnelEndpoints)
_LIVEZ: Final = "livez"


_ROUTES: Final = {
    NewTunnel: "/cable/new/{id}",
    ConnectTunnel: "/cable/connect/{routing}/{id}",
    ContactTunnel: "/cable/contact/{id}",
}


@web.middleware
async def _trace(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Make a span of each request. That of an end lasts as long as its tunnel."""
    traces, resource = request.app[_TUNNELS].traces, request.match_info.route.resource
    assert traces is not None  # noqa: S101  for mypy
    route = None if resource is None else resource.canonical
    if "path" in request.match_info:
        mounted_at = _mounted_at(request.app)
        kind = type(parse_path(request.rel_url.raw_path.removeprefix(mounted_at)))
        if kind is ContactTunnel and request.app[_TUNNELS].phones is None:
            kind = type(None)
        route = mounted_at + _ROUTES[kind] if kind in _ROUTES else None
    with traces.request(request.method, route) as span:
        response = await handler(request)
        span.answered(response.status)
        return response


async def _livez(_request: web.Request) -> web.Response:
    return web.Response(status=204)


async def _readyz(request: web.Request) -> web.Response:
    """Answer whether a proxy should send phones here: not while all tunnels are taken, nor when the service stops."""
    endpoints = request.app[_TUNNELS]
    if endpoints.stopping:
        return _refuse(TunnelRefusal.STOPPING, endpoints.limits)
    if len(endpoints.rendezvous) >= endpoints.limits.tunnels:
        return _refuse(TunnelRefusal.FULL, endpoints.limits)
    return web.Response(status=204)


async def _cable(request: web.Request) -> web.StreamResponse:
    endpoints = request.app[_TUNNELS]
    refusal = endpoints.rendezvous.arrive(request.remote or "", now=_now())
    if refusal is not None:
        return endpoints.refuse(refusal)
    path = parse_path(request.rel_url.raw_path.removeprefix(_mounted_at(request.app)))
    if path is None or (isinstance(path, ContactTunnel) and endpoints.phones is None):
        return problem(404, "no such path")
    if request.method != hdrs.METH_GET:
        refused = problem(405, "GET only")
        refused.headers[hdrs.ALLOW] = hdrs.METH_GET
        return refused
    offered = request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(",")
    if SUBPROTOCOL not in (protocol.strip() for protocol in offered):
        return problem(400, f"expected the websocket subprotocol {SUBPROTOCOL}")
    if not upgrades(_websocket(endpoints.limits), request):
        return problem(400, "expected a websocket upgrade")
    match path:
        case NewTunnel():
            return await endpoints.open(request, path)
        case ConnectTunnel():
            return await endpoints.join(request, path)
        case ContactTunnel():
            return await endpoints.contact(request, path)


async def _phone(request: web.Request) -> web.StreamResponse:
    endpoints = request.app[_TUNNELS]
    assert endpoints.phones is not None  # noqa: S101  for mypy: without them there is no such route
    refusal = endpoints.rendezvous.arrive(request.remote or "", now=_now())
    if refusal is None and endpoints.stopping:
        refusal = TunnelRefusal.STOPPING
    if refusal is not None:
        return endpoints.refuse(refusal)
    served = await endpoints.phones.serve(request)
    return endpoints.refuse(served) if isinstance(served, TunnelRefusal) else served


def _mounted_at(app: web.Application) -> str:
    """The prefix under which a host has mounted the application; empty when it stands by itself."""
    return app.router[_LIVEZ].url_for().raw_path.removesuffix("/livez")


async def _watched_loop(app: web.Application) -> AsyncIterator[None]:
    metrics = app[_TUNNELS].metrics
    assert metrics is not None  # noqa: S101  for mypy
    watching = asyncio.create_task(metrics.loop_lag.watch())
    yield
    await end(watching)


async def _close_tunnels(app: web.Application) -> None:
    app[_TUNNELS].close()


async def _close_hook(app: web.Application) -> None:
    phones = app[_TUNNELS].phones
    if phones is not None and phones.hook is not None:
        await phones.hook.close()


class _Websocket(web.WebSocketResponse):
    """A websocket whose timers end with it.

    aiohttp's own (3.14) begins its heartbeat anew when the answer to its close frame comes, and is kept with its TLS buffers until that is due.
    """

    def _reset_heartbeat(self) -> None:
        if not self.closed:
            super()._reset_heartbeat()


def _websocket(limits: Limits) -> web.WebSocketResponse:
    return _Websocket(
        protocols=(SUBPROTOCOL,),
        compress=False,  # what is carried is ciphertext
        # our own check closes with 1009 (message too big); aiohttp's drops the connection without a close frame
        max_msg_size=limits.message_size + CUT_OFF,
        writer_limit=0,  # each frame waits until the kernel has taken it
        timeout=CLOSE_TIMEOUT,
        heartbeat=limits.silence,
        autoping=False,  # pings are answered in `_listen`, which counts them
    )


def _refuse(refusal: TunnelRefusal, limits: Limits) -> web.Response:
    status = {
        TunnelRefusal.TOO_OFTEN: 429,
        TunnelRefusal.FULL: 503,
        TunnelRefusal.STOPPING: 503,
        TunnelRefusal.TAKEN: 409,
        TunnelRefusal.UNKNOWN: 404,
        TunnelRefusal.ELSEWHERE: 404,
        TunnelRefusal.GONE: 410,
        TunnelRefusal.UNREACHABLE: 503,
        TunnelRefusal.CONTACTED_TOO_OFTEN: 429,
        TunnelRefusal.TOO_MANY_PHONES: 503,
    }[refusal]
    logger.info("refused with %d: %s", status, refusal.value)
    response = problem(status, refusal.value)
    if refusal is TunnelRefusal.TOO_OFTEN:
        policy = Policy(name="arrivals-of-address", quota=limits.rate, seconds=60)
        response.headers.update(limit_headers(policy, math.ceil(60 / limits.rate)))
    if status == 503 or refusal is TunnelRefusal.CONTACTED_TOO_OFTEN:
        response.headers.update(limit_headers(None, FULL_SECONDS))
    return response


def _left() -> Ending:
    return Ending(why="an end left", codes=(WSCloseCode.OK, WSCloseCode.OK))


def _evicted() -> Ending:
    return Ending(
        why="others needed its place", codes=(WSCloseCode.TRY_AGAIN_LATER, WSCloseCode.TRY_AGAIN_LATER)
    )


def _vanished() -> Ending:
    return Ending(why="an end vanished")


def _silent(end: End, why: str) -> Ending:
    """Close the silent end with 1001 (going away), and tell the other one with `SILENT`."""
    away = WSCloseCode.GOING_AWAY
    return Ending(why=why, codes=(away, SILENT) if end is End.FIRST else (SILENT, away))


def _gone(end: End, connection: Connection) -> Ending:
    """Why a connection is lost: its end was silent, or vanished."""
    return _silent(end, "an end went silent") if connection.silent else _vanished()


def _broke(end: End, code: int, rule: str) -> Ending:
    away = WSCloseCode.GOING_AWAY
    return Ending(
        why=f"an end broke a rule ({rule})", codes=(code, away) if end is End.FIRST else (away, code)
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
