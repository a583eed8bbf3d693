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
import contextlib
import functools
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aiohttp import hdrs, web
from aiohttp.http import RawRequestMessage

from companion_push import waking
from companion_push.serving.http_server import problem
from companion_push.serving.tracing import Span, Tracing, tracing
from companion_push.serving.webhook import Webhook
from companion_push.tunnel_service.contacts import KnownContacts
from companion_push.tunnel_service.hook import WakeHook
from companion_push.tunnel_service.open_tunnel import OpenTunnel, away, evicted, log_end, vanished
from companion_push.tunnel_service.phones import Phones
from companion_push.tunnel_service.rendezvous import End, Limits, Rendezvous, Tunnel, TunnelRefusal
from companion_push.tunnel_service.websocket import Websocket, accept_key, no_upgrade
from headless_passkey.errors import RemoteProtocolError, UsageError
from headless_passkey.hybrid.tunnel_url import (
    CLIENT_PAYLOAD_HEADER,
    ROUTING_ID_HEADER,
    ROUTING_ID_SIZE,
    SIGNAL_CONNECTION_HEADER,
    SUBPROTOCOL,
    TUNNEL_ID_SIZE,
    CloseReason,
    ConnectTunnel,
    ContactTunnel,
    NewTunnel,
    connection_is_signalled,
    parse_client_payload_header,
    parse_path,
)
from headless_passkey.process.tasks import end, end_quietly
from http_serving.first_request import HandedOver, Taken
from http_serving.rate_limit import Policy, limit_headers
from http_serving.runner import TAKE, Upgrade, http_logger, offers

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

    from companion_push.tunnel_service.metrics import TunnelMetrics

# for the ends at shutdown: each has `websocket.CLOSE_TIMEOUT` to answer the close frame and as long again to end its connection
CLOSING_SECONDS: Final = 5.0
FULL_SECONDS: Final = 5  # until who found no room, or a service that stops, asks again

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
    app[TAKE] = app[_TUNNELS].take
    app.router.add_get("/livez", _livez, name=_LIVEZ)
    app.router.add_get("/readyz", _readyz)
    if contacts is not None:
        app.router.add_get(waking.PATH, _phone, allow_head=False)
    app.router.add_route("*", "/cable/{path:.*}", _cable)
    app.on_shutdown.append(_close_tunnels)
    app.on_cleanup.append(_close_hook)
    if registry is not None:
        app.cleanup_ctx.append(app[_TUNNELS].measure(registry).loop_lag.watched)
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


class Upgraded(Upgrade):
    """The answer to an end's upgrade: the tunnel has its connection."""

    def __init__(self, opened: OpenTunnel, end: End, headers: Mapping[str, str]) -> None:
        super().__init__(headers)
        self.opened, self.end = opened, end


class Place(NamedTuple):
    """The place that an end has in a tunnel."""

    opened: OpenTunnel
    end: End
    headers: Mapping[str, str]  # of the answer, for this end


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
        self._calls: dict[OpenTunnel, tuple[bytes, asyncio.Task[None]]] = {}  # of the hook, for a contact ID
        self._spans: dict[OpenTunnel, list[tuple[End, Span]]] = {}
        self.metrics: TunnelMetrics | None = None
        self.traces: Tracing | None = None
        self.mounted_at: str | None = None  # the prefix, as soon as it is asked for
        self.stopping = False  # no tunnel is opened any more
        self.drained = asyncio.Event()  # and none is open

    def __len__(self) -> int:
        return len(self._open)

    def measure(self, registry: "CollectorRegistry") -> "TunnelMetrics":
        """Add the service's metrics to `registry`."""
        from companion_push.tunnel_service.metrics import TunnelMetrics  # noqa: PLC0415  of an extra

        self.metrics = metrics = TunnelMetrics(registry, self.rendezvous, self.phones)
        return metrics

    def refuse(self, refusal: TunnelRefusal) -> web.Response:
        if self.metrics is not None:
            self.metrics.refused(refusal)
        if self.traces is not None:
            self.traces.current().note(_OUTCOME, refusal.value)
        return _refuse(refusal, self.limits)

    def take(self, message: RawRequestMessage, address: str) -> Taken | None:
        """Open or join a tunnel for an upgrade that is the first request of its connection (`first_request.Take`).

        None leaves it to `_cable`, which refuses it or has more to do.
        """
        path, headers = parse_path(message.path), message.headers
        if (
            not isinstance(path, NewTunnel | ConnectTunnel)
            or message.method != hdrs.METH_GET
            or not offers(headers, SUBPROTOCOL)
            or (self.traces is not None and self.traces.wanted)
        ):
            return None
        accept = accept_key(headers)
        if accept is None or self.rendezvous.arrive(address, now=_now()) is not None:
            return None
        place = self._enter(path, address)
        if isinstance(place, TunnelRefusal):
            self.rendezvous.turn_back(address)
            return None
        websocket = self._websocket(place)
        return Taken(
            headers=_answer(accept, place),
            protocol=websocket,
            begin=functools.partial(self._begin, place, websocket),
        )

    async def serve(
        self, request: web.Request, path: NewTunnel | ConnectTunnel, accept: str
    ) -> web.StreamResponse:
        """Serve an end that opens or joins a tunnel."""
        place = self._enter(path, request.remote or "")
        if isinstance(place, TunnelRefusal):
            return self.refuse(place)
        return await self._serve(request, accept, place)

    def _enter(self, path: NewTunnel | ConnectTunnel, address: str) -> Place | TunnelRefusal:
        """Open a tunnel for its first end, an authenticator, or let the second end join it."""
        if isinstance(path, NewTunnel):
            tunnel = self._opened(address, path.tunnel_id)
            if isinstance(tunnel, TunnelRefusal):
                return tunnel
            return Place(self._made(tunnel), End.FIRST, {ROUTING_ID_HEADER: tunnel.routing_id.hex().upper()})
        if not path.routing_id.startswith(self._prefix):
            return TunnelRefusal.ELSEWHERE
        tunnel = self.rendezvous.join(path.routing_id, path.tunnel_id, now=_now())
        if isinstance(tunnel, TunnelRefusal):
            return tunnel
        return Place(self._open[tunnel], End.SECOND, {})

    async def contact(self, request: web.Request, path: ContactTunnel, accept: str) -> web.StreamResponse:
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
        tunnel = self._opened(request.remote or "", secrets.token_bytes(TUNNEL_ID_SIZE))
        if isinstance(tunnel, TunnelRefusal):
            return self.refuse(tunnel)
        signal = connection_is_signalled(request.headers.get(SIGNAL_CONNECTION_HEADER))
        headers = {SIGNAL_CONNECTION_HEADER: "true"} if signal else {}
        phone.expect(path.contact_id, tunnel)  # at once: others ask meanwhile
        if not self.phones.is_called(phone):
            phone.wake(tunnel, payload)
            place = Place(self._made(tunnel, signal=signal), End.FIRST, headers)
            return await self._serve(request, accept, place)
        opened = self._made(tunnel, signal=signal)
        calling = asyncio.create_task(self._call(path.contact_id, opened, payload))
        self._calls[opened] = path.contact_id, calling
        return await self._serve(request, accept, Place(opened, End.FIRST, headers))

    def _opened(self, address: str, tunnel_id: bytes) -> Tunnel | TunnelRefusal:
        if self.stopping:
            return TunnelRefusal.STOPPING
        tunnel = self.rendezvous.open(
            tunnel_id,
            routing_id=self._prefix + secrets.token_bytes(ROUTING_ID_SIZE - len(self._prefix)),
            address=address,
            now=_now(),
        )
        self._end_evicted()
        return tunnel

    def _made(self, tunnel: Tunnel, *, signal: bool = False) -> OpenTunnel:
        """signal: tell the first end when the second one has come."""
        opened = OpenTunnel(
            tunnel,
            self.hold,
            self.rendezvous.let_go,
            self.rendezvous.end,
            self._over,
            wait=self.wait,
            signal=signal,
        )
        self._open[tunnel] = opened
        return opened

    async def _serve(self, request: web.Request, accept: str, place: Place) -> web.StreamResponse:
        """Answer the upgrade of an end with its Sec-WebSocket-Accept, and give its connection to the tunnel."""
        opened = place.opened
        answer = Upgraded(opened, place.end, _answer(accept, place))
        websocket = self._websocket(place)
        opened.coming += 1
        try:
            self._begin(place, websocket, await answer.hand_over(request, websocket))
        except BaseException:
            opened.end(vanished())
            websocket.abort()  # which is not the tunnel's
            raise
        finally:
            opened.coming -= 1
            opened.over_when_lost()
        return answer

    def _websocket(self, place: Place) -> Websocket:
        limits = self.limits
        return Websocket(place.opened, message_size=limits.message_size, silence=limits.silence)

    def _begin(self, place: Place, websocket: Websocket, connection: HandedOver) -> None:
        """Give an end's connection, which is its websocket's already, to its tunnel."""
        websocket.begin(connection.transport, connection.early, connection.gone)
        place.opened.take(place.end, websocket)

    def hold(self, tunnel: Tunnel, size: int) -> None:
        """Count the bytes of a message in flight, and end the tunnel that is evicted for them."""
        self.rendezvous.hold(tunnel, size)
        self._end_evicted()

    def wait(self, tunnel: Tunnel, more: int) -> None:
        """Count the bytes of an end that wait to be read, and end the tunnel that is evicted for them."""
        self.rendezvous.wait(tunnel, more)
        self._end_evicted()

    def trace(self, answer: Upgraded, span: Span) -> None:
        """Let the span of an end last as long as its tunnel."""
        if span.records and answer.opened.tunnel in self._open:
            self._spans.setdefault(answer.opened, []).append((answer.end, span.keep()))

    def _over(self, opened: OpenTunnel) -> None:
        """Forget a tunnel that has ended and whose connections are lost, and tell of it."""
        tunnel, ending = opened.tunnel, opened.ending
        assert ending is not None  # noqa: S101  for mypy: it is over
        del self._open[tunnel]
        if self.metrics is not None:
            self.metrics.ended(tunnel, ending.why)
        for of_end, span in self._spans.pop(opened, ()):
            if of_end is End.FIRST:
                span.note(_OUTCOME, ending.why)
            span.end()
        if opened in self._calls:
            contact_id, calling = self._calls.pop(opened)
            calling.cancel()
            assert self.phones is not None  # noqa: S101  for mypy
            self.phones.called_no_more(contact_id)
        log_end(tunnel, ending.why, seconds=_now() - tunnel.opened)
        if self.stopping and not self._open:
            self.drained.set()

    async def _call(self, contact_id: bytes, opened: OpenTunnel, client_payload: bytes) -> None:
        """Have the hook wake the second end; the tunnel ends when nobody takes the call."""
        assert self.phones is not None  # noqa: S101  for mypy
        if not await self.phones.call(contact_id, opened.tunnel, client_payload):
            opened.end(away("its phone could not be woken", CloseReason.NOT_WOKEN))

    def _end_evicted(self) -> None:
        while self.rendezvous.evicted:
            self._open[self.rendezvous.evicted.pop()].end(evicted())

    async def close(self) -> None:
        """End every tunnel, and return when their connections are lost."""
        self.stopping = True
        if self.phones is not None:
            self.phones.close()
        calls = [calling for _, calling in self._calls.values()]
        for opened in list(self._open.values()):
            opened.end(away("the service stops", CloseReason.DRAINING))
        if self._open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSING_SECONDS):
                    await self.drained.wait()
        for opened in list(self._open.values()):
            opened.abort()
        await end_quietly(*calls)


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
    if not traces.wanted:
        return await handler(request)
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
        if isinstance(response, Upgraded):
            request.app[_TUNNELS].trace(response, span)
        return response


async def _livez(_request: web.Request) -> web.Response:
    return web.Response(status=204)


async def _readyz(request: web.Request) -> web.Response:
    """Answer whether a proxy should send phones here: not while all tunnels have both ends, nor when the service stops.

    Tunnels that wait give way to new ones. If they counted, strangers who open nothing but those would have every node taken out.
    """
    endpoints = request.app[_TUNNELS]
    if endpoints.stopping:
        return _refuse(TunnelRefusal.STOPPING, endpoints.limits)
    if not endpoints.rendezvous.has_room():
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
    if not offers(request.headers, SUBPROTOCOL):
        return problem(400, f"expected the websocket subprotocol {SUBPROTOCOL}")
    accept = accept_key(request.headers)
    if accept is None:
        return no_upgrade()
    if request.body_exists:  # what had not come of it by now would be read as frames
        return problem(400, "expected a websocket upgrade without a body")
    match path:
        case NewTunnel() | ConnectTunnel():
            return await endpoints.serve(request, path, accept)
        case ContactTunnel():
            return await endpoints.contact(request, path, accept)


def _answer(accept: str, place: Place) -> dict[str, str]:
    """The headers of the answer 101 to an end. accept: its Sec-WebSocket-Accept."""
    return {
        hdrs.UPGRADE: "websocket",
        hdrs.CONNECTION: "Upgrade",
        hdrs.SEC_WEBSOCKET_ACCEPT: accept,
        hdrs.SEC_WEBSOCKET_PROTOCOL: SUBPROTOCOL,
        **place.headers,
    }


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
    """The prefix under which a host has mounted the application; empty when it stands by itself. It is fixed when the first
    request comes.
    """
    endpoints = app[_TUNNELS]
    if endpoints.mounted_at is None:
        endpoints.mounted_at = app.router[_LIVEZ].url_for().raw_path.removesuffix("/livez")
    return endpoints.mounted_at


async def _close_tunnels(app: web.Application) -> None:
    await app[_TUNNELS].close()


async def _close_hook(app: web.Application) -> None:
    phones = app[_TUNNELS].phones
    if phones is not None and phones.hook is not None:
        await phones.hook.close()


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


def _now() -> float:
    return asyncio.get_running_loop().time()
