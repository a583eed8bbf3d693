"""The websocket client of a tunnel service (CTAP 2.2 §11.5.1), for both ends of the hybrid transport.

A tunnel service is not trusted: the holder of the FIDO URL chooses it, so it may be anybody's. TLS is always verified, no
redirect is followed, messages are bounded, and a text message ends the tunnel. A silent service is pinged (RFC 6455
§5.5.2), and the tunnel ends when no pong comes. Errors and logs hold the host, and never the URL, which holds the tunnel ID.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, WSCloseCode, WSMsgType
from multidict import CIMultiDictProxy
from yarl import URL

from headless_passkey.errors import (
    LocalProtocolError,
    ProtocolReason,
    RemoteProtocolError,
    SetupReason,
    TransportError,
    TransportReason,
)
from headless_passkey.hybrid.data_channel import Opens
from headless_passkey.hybrid.tunnel_url import (
    MAX_MESSAGE_SIZE,
    ROUTING_ID_HEADER,
    SIGNAL_CONNECTION_HEADER,
    SILENT,
    SUBPROTOCOL,
    CloseReason,
    check_connect_signal,
    connection_is_signalled,
    parse_routing_id,
)
from headless_passkey.mends import mend, setup_error
from headless_passkey.net.connector import Connector
from headless_passkey.net.proxy import Way, tracing
from headless_passkey.process.tasks import end

CONNECT_TIMEOUT: Final = 10.0  # seconds for name, TCP, TLS and the 101 answer together
CLOSE_TIMEOUT: Final = 1.0  # seconds a tunnel service has to answer our close frame
SILENCE: Final = (
    20.0  # seconds; less than the 60 after which many proxies and firewalls drop an idle connection
)
MAX_UNREAD: Final = 1 << 16  # bytes in the queue, above which nothing more is received (back-pressure)
MESSAGE_COST: Final = 64  # bytes that a message counts for beside its own: there is no end of empty ones
MAX_CONTROLS: Final = 1024  # pings and pongs in a tunnel's life of some minutes

_NOT_OURS: Final = frozenset({401, 403, 407, 511})  # HTTP statuses of what stands in between

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


class TunnelClosed(TransportError):  # noqa: N818  often the normal end
    """The tunnel has ended."""

    def __init__(
        self,
        message: str,
        *,
        clean: bool,
        reason: TransportReason | None = None,
        advice: str | None = None,
    ) -> None:
        """clean: the other end, or this one, closed with 1000, and no error happened."""
        super().__init__(message, reason=reason, advice=advice)
        self.clean = clean


class TunnelRefused(TransportError):  # noqa: N818  an answer like another
    """The server answered with an HTTP status, and opened no tunnel."""

    def __init__(self, host: str, status: int) -> None:
        """status: of HTTP; 404 means that the tunnel service has no such tunnel."""
        reason = TransportReason.SERVER_FAILED
        super().__init__(
            f"the tunnel service {host} answered HTTP status {status}",
            reason=reason,
            # what no tunnel service answers, but the page of a network that wants a login
            advice=mend(SetupReason.WRONG_SERVER if status < 400 or status in _NOT_OURS else reason),
        )
        self.host, self.status = host, status


class Tunnel:
    """One end of an open tunnel. Messages keep their boundaries and their order.

    A task receives all the time, so that pings are answered whatever the owner waits for.
    """

    def __init__(
        self,
        websocket: aiohttp.ClientWebSocketResponse,
        host: str,
        routing_id: bytes | None,
        *,
        signalled: bool = False,
    ) -> None:
        """signalled: the connect signal was asked for, and comes in front of everything else."""
        self._websocket = websocket
        self._host = host
        self._routing_id = routing_id
        self._arrived: asyncio.Queue[bytes | Exception] = asyncio.Queue()  # the last item is the error
        self._signal_due = signalled
        self._over: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._unread = 0  # bytes in it, with what each message costs
        self._read = asyncio.Event()

    @property
    def routing_id(self) -> bytes | None:
        """The routing ID, 3 bytes, for an authenticator's advert; None when the service sent none."""
        return self._routing_id

    async def send(self, message: bytes) -> None:
        """Send one message; `TransportError` when the tunnel has ended, which says why where that is known."""
        try:
            await self._websocket.send_bytes(message)
        except (aiohttp.ClientError, OSError) as error:
            why = self._over.result() if self._over.done() else None
            raise (why if isinstance(why, TunnelClosed) else self._gone("has gone")) from error

    async def receive(self, _opens: Opens | None = None) -> bytes:
        """The next message, up to 1 MiB, for which nobody is asked as in a direct channel.

        `TunnelClosed`, a `TransportError`, when there is none, whose reason is `WENT_SILENT` when an end answers
        no pings; `RemoteProtocolError` for a text message, one that is too long, or endless pings.
        """
        message = await self._arrived.get()
        if isinstance(message, Exception):
            self._arrived.put_nowait(message)
            raise message
        self._unread -= len(message) + MESSAGE_COST
        self._read.set()
        return message

    async def unless_it_ends(self, event: "asyncio.Future[_T]") -> _T:
        """Await `event`; raises as `receive` does when the tunnel ends first."""
        either: set[asyncio.Future[Any]] = {event, self._over}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not event.done():
            raise self._over.result()
        return event.result()

    async def listen(self) -> None:
        """Take in what comes until nothing more will; `open_tunnel` sees to it."""
        controls = 0
        while True:
            try:
                message = await self._websocket.receive()
                if message.type is WSMsgType.PING:
                    await self._websocket.pong(message.data)
                    # a connection found lost is closed in the loop's next rounds; written to until then,
                    # asyncio would log a warning for each ping of a heap that has come already
                    await asyncio.sleep(0)
            except (aiohttp.ClientError, OSError) as error:
                return self._end(self._gone("broke off"), error)
            match message.type:
                case WSMsgType.BINARY if self._signal_due:
                    self._signal_due = False
                    try:
                        check_connect_signal(message.data)
                    except RemoteProtocolError as error:
                        self._end(error)
                        await self._websocket.close(code=WSCloseCode.PROTOCOL_ERROR)
                        return None
                case WSMsgType.BINARY:
                    self._arrived.put_nowait(message.data)
                    self._unread += len(message.data) + MESSAGE_COST
                    while self._unread > MAX_UNREAD:
                        self._read.clear()
                        await self._read.wait()
                case WSMsgType.PING | WSMsgType.PONG if controls < MAX_CONTROLS:
                    controls += 1
                case WSMsgType.PING | WSMsgType.PONG:
                    self._end(
                        RemoteProtocolError(
                            f"the tunnel service {self._host} sends nothing but pings",
                            reason=ProtocolReason.TOO_MANY_MESSAGES,
                        )
                    )
                    await self._websocket.close(code=WSCloseCode.POLICY_VIOLATION)
                    return None
                case WSMsgType.TEXT:
                    self._end(
                        RemoteProtocolError(
                            "a text message came through the tunnel, which carries binary ones",
                            reason=ProtocolReason.WEBSOCKET_VIOLATION,
                        )
                    )
                    await self._websocket.close(code=WSCloseCode.UNSUPPORTED_DATA)
                    return None
                case WSMsgType.ERROR:
                    return self._end(self._broken(message.data), message.data)
                case _:
                    # not websocket.close_code alone: aiohttp replaces it when our own goodbye finds nobody
                    is_told = message.type is WSMsgType.CLOSE
                    code = message.data if is_told else self._websocket.close_code
                    return self._end(self._closed(code, message.extra if is_told else None))

    def listened(self, listening: "asyncio.Task[None]") -> None:
        """Tell whoever receives how `listen` has ended, where it did not say so: cancelled by `open_tunnel`, or by a bug."""
        if listening.cancelled():
            self._end(TunnelClosed("the tunnel was closed at this end", clean=True))
        elif isinstance(error := listening.exception(), Exception):
            self._end(error, error.__cause__)

    def _end(self, error: Exception, cause: BaseException | None = None) -> None:
        error.__cause__ = cause
        self._arrived.put_nowait(error)
        if not self._over.done():
            self._over.set_result(error)

    def _closed(self, code: int | None, why: str | None) -> TunnelClosed:
        """Say who closed the tunnel, and why. code, why: of the close frame (RFC 6455 §7.4); of `why` only words of ours count."""
        service = f"the tunnel service {self._host}"
        match code:
            case WSCloseCode.OK:
                advice = mend(TransportReason.UNREACHABLE, "hung up")
                return TunnelClosed(
                    "the other end closed the tunnel",
                    clean=True,
                    reason=TransportReason.UNREACHABLE,
                    advice=advice,
                )
            case WSCloseCode.GOING_AWAY if why in _AWAY:
                what = _AWAY[CloseReason(why)].format(service=service)
            case WSCloseCode.GOING_AWAY | 0:  # browsers close with the first, and services that stop
                told = f"close code {code:d}" if code else "without a close code"
                what = f"the other end, or {service}, closed the tunnel ({told})"
            case WSCloseCode.TRY_AGAIN_LATER | WSCloseCode.SERVICE_RESTART | WSCloseCode.INTERNAL_ERROR:
                what = f"{service} closed the tunnel: {_SERVICES[WSCloseCode(code)]} (close code {code:d})"
                reason = TransportReason.SERVER_FAILED
                return TunnelClosed(what, clean=False, reason=reason, advice=mend(reason))
            case int() if code in _BREACHES:
                what = (
                    f"{service} closed the tunnel: it does not take what this end sends (close code {code:d})"
                )
            case _ if code == SILENT:
                return _went_silent(f"{service} hears nothing more of the other end")
            case None | WSCloseCode.ABNORMAL_CLOSURE:
                return self._gone("broke off")
            case _:
                return self._gone(f"broke off (close code {code:d})")
        reason = TransportReason.UNREACHABLE
        return TunnelClosed(what, clean=False, reason=reason, advice=mend(reason, "tunnel"))

    def _gone(self, how: str) -> TunnelClosed:
        if isinstance(self._websocket.exception(), aiohttp.ServerTimeoutError):  # of a ping
            return _went_silent(f"the tunnel service {self._host} does not answer any more")
        what = f"the tunnel through {self._host} {how}"
        reason = TransportReason.UNREACHABLE
        return TunnelClosed(what, clean=False, reason=reason, advice=mend(reason))

    def _broken(self, error: BaseException) -> Exception:
        if isinstance(error, aiohttp.WebSocketError):
            if error.code == WSCloseCode.MESSAGE_TOO_BIG:
                return RemoteProtocolError(
                    f"a message over {MAX_MESSAGE_SIZE} bytes came through the tunnel",
                    reason=ProtocolReason.TOO_LONG,
                )
            return RemoteProtocolError(
                f"the tunnel service {self._host} broke the websocket protocol",
                reason=ProtocolReason.WEBSOCKET_VIOLATION,
            )
        return self._gone("broke off")


_AWAY: Final = {
    CloseReason.DRAINING: "{service} is being shut down, and closed the tunnel",
    CloseReason.TIME_UP: "{service} closed the tunnel: its time was up",
    CloseReason.STOOD_STILL: "{service} closed the tunnel: this end took nothing, or did not answer, for too long",
    CloseReason.OTHER_VANISHED: "{service} has lost the other end",
    CloseReason.OTHER_BROKE_A_RULE: "{service} closed the tunnel: the other end sent what it does not take",
    CloseReason.NOT_WOKEN: "{service} could not have the phone woken",
}
_SERVICES: Final = {
    WSCloseCode.INTERNAL_ERROR: "something failed there",
    WSCloseCode.SERVICE_RESTART: "it is being restarted",
    WSCloseCode.TRY_AGAIN_LATER: "others needed its place",
}
_BREACHES: Final = frozenset(
    {
        WSCloseCode.PROTOCOL_ERROR,
        WSCloseCode.UNSUPPORTED_DATA,
        WSCloseCode.INVALID_TEXT,
        WSCloseCode.POLICY_VIOLATION,
        WSCloseCode.MESSAGE_TOO_BIG,
        WSCloseCode.MANDATORY_EXTENSION,
    }
)


def _went_silent(what: str) -> TunnelClosed:
    reason = TransportReason.WENT_SILENT
    return TunnelClosed(what, clean=False, reason=reason, advice=mend(reason))


@asynccontextmanager
async def open_tunnel(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    connect_timeout: float = CONNECT_TIMEOUT,
    silence: float = SILENCE,
) -> AsyncIterator[Tunnel]:
    """An open tunnel at `url` (see `headless_passkey.hybrid.tunnel_url`), closed when the context is left.

    headers: of the request. tls: whom to believe; None means the system's roots, as aiohttp read them when it was imported. silence: seconds until the service is pinged when nothing
    comes from it; it has half as many to answer. `TransportError` when the service cannot be reached
    or refuses, `SetupError` (wrong-server) when it is something else than a tunnel service.
    """
    async with open_websocket(
        url,
        subprotocol=SUBPROTOCOL,
        headers=headers,
        tls=tls,
        max_message_size=MAX_MESSAGE_SIZE,
        connect_timeout=connect_timeout,
        silence=silence,
        autoping=False,  # pings are answered in `Tunnel.listen`, which counts them
    ) as opened:
        tunnel = Tunnel(
            opened.websocket,
            opened.host,
            _routing_id(opened.answer),
            signalled=SIGNAL_CONNECTION_HEADER in (headers or {})
            and connection_is_signalled(opened.answer.get(SIGNAL_CONNECTION_HEADER)),
        )
        logger.debug("tunnel open through %s", opened.host)
        listening = asyncio.create_task(tunnel.listen())
        listening.add_done_callback(tunnel.listened)
        try:
            yield tunnel
        finally:
            # before the websocket closes, which leaves its connection open when it is cancelled while somebody receives
            await end(listening)
    logger.debug("tunnel through %s closed", opened.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedWebsocket:
    """A websocket, and what the server said when it opened it."""

    websocket: aiohttp.ClientWebSocketResponse
    host: str
    answer: CIMultiDictProxy[str] = field(repr=False)  # the headers of the 101 answer


@asynccontextmanager
async def open_websocket(
    url: str,
    *,
    subprotocol: str,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    max_message_size: int,
    connect_timeout: float = CONNECT_TIMEOUT,
    silence: float = SILENCE,
    autoping: bool = True,
) -> AsyncIterator[OpenedWebsocket]:
    """A websocket at a tunnel service, closed when the context is left: `open_tunnel` has the arguments that both share.

    autoping: whether aiohttp answers pings, whatever their number. Errors are those of `open_tunnel`.
    """
    try:
        target = URL(url)
        host = target.raw_host
        sound = target.scheme == "wss" and bool(host) and target.port != 0
    except ValueError:  # its words may hold the tunnel ID
        host, sound = None, False
    if not sound or host is None:
        raise LocalProtocolError("a tunnel's URL begins with wss:// and a host")
    way = Way(target)
    answer: list[CIMultiDictProxy[str]] = []

    async def first_answer_counts(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        # here, not after ws_connect(), because that would follow redirects first
        response = await handler(request)
        if response.status != 101:  # Switching Protocols
            response.close()
            raise TunnelRefused(host, response.status)
        answer.append(response.headers)
        return response

    async with aiohttp.ClientSession(
        connector=Connector(),
        cookie_jar=aiohttp.DummyCookieJar(),
        middlewares=(first_answer_counts,),
        skip_auto_headers=("User-Agent",),
        trace_configs=[tracing(way)],
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        try:
            async with asyncio.timeout(connect_timeout):
                websocket = await session.ws_connect(
                    target,
                    protocols=(subprotocol,),
                    origin=str(target.origin()),
                    headers=headers,
                    ssl=True if tls is None else tls,
                    max_msg_size=max_message_size + 1,  # aiohttp refuses the size it is given
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT),
                    heartbeat=silence,
                    **way.options,
                    autoping=autoping,
                )
        except aiohttp.WSServerHandshakeError:
            # not "from error": its text holds the whole URL
            raise setup_error(
                f"{host} did not answer as a websocket server does", SetupReason.WRONG_SERVER
            ) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise way.failure(error, f"the tunnel service {host}") from way.cause(error)
        try:
            if websocket.protocol != subprotocol:
                raise setup_error(
                    f"{host} is not a tunnel service: it does not speak {subprotocol}",
                    SetupReason.WRONG_SERVER,
                )
            yield OpenedWebsocket(websocket=websocket, host=host, answer=answer[0])
        finally:
            with suppress(TimeoutError):  # aiohttp's own limit is for the answer alone
                async with asyncio.timeout(2 * CLOSE_TIMEOUT):
                    await websocket.close()


def _routing_id(headers: CIMultiDictProxy[str]) -> bytes | None:
    match headers.getall(ROUTING_ID_HEADER, []):
        case []:
            return None
        case [value]:
            return parse_routing_id(value)
    raise RemoteProtocolError(
        "the tunnel service named several routing IDs", reason=ProtocolReason.MALFORMED_TUNNEL_HEADER
    )
