"""``GET /graphql`` as a WebSocket: subscriptions by graphql-transport-ws, each connection with one proof of its caller's key.

The proof is in the upgrade request's header, or in the payload of ``connection_init`` for callers that cannot set headers.
It is good for one connection, which ends with the caller's membership and with the life of a followed inbox. Until the
first transaction of a subscription has authorised the caller, the connection is that of a stranger: there are only so many,
and at the bound a new one takes the place of the oldest one.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import strawberry
from aiohttp import WSCloseCode, WSMsgType, hdrs, web
from graphql import GraphQLError, OperationType

from companion_push.errors import StoreUnavailable
from companion_push.relay.app import OPERATION, WAITS, RelayEndpoints, place_of
from companion_push.relay.following import INTERVAL, Ending, Following
from companion_push.relay.graphql.documents import Documents, Refused, Submitted
from companion_push.relay.graphql.errors import formatted, problem_of, told
from companion_push.relay.graphql.schema import Caller
from companion_push.relay.inbox_stream import REFUSED, SEND_SECONDS, cut
from companion_push.relay.messages import MAX_BODY
from companion_push.relay.problems import Problem, Slug, invalid
from companion_push.relay.proofs import HEADER, NONCE_HEADER
from http_serving.connections import ConnectionLimits, Connections, Slot
from http_serving.runner import offers, opening_handshake

PROTOCOL: Final = "graphql-transport-ws"
INIT_SECONDS: Final = 10.0  # until connection_init has come
MAX_SUBSCRIPTIONS: Final = 4  # of one connection; a member's held calls are counted besides
MAX_BEFORE_INIT: Final = 16  # messages of a caller that is not known yet
STRANGERS: Final = ConnectionLimits(
    total=1024, per_address=256
)  # connections whose caller is not authorised yet
_CLOSE_SECONDS: Final = 2.0  # for the peer's part of closing
_HEARTBEAT: Final = 25.0  # seconds between pings of the WebSocket, for connections whose peer is gone
_ENDED: Final = frozenset(
    {403, 404, 410}
)  # statuses of a problem that ends the connection: who is no member any more

logger = logging.getLogger(__name__)


class Code:
    """Codes with which a connection is closed (graphql-transport-ws)."""

    BAD_MESSAGE: Final = 4400
    NOT_BEGUN: Final = 4401
    REFUSED: Final = 4403  # the reason is the problem's slug; with use-dpop-nonce, and the nonce
    INIT_TIMEOUT: Final = 4408
    ID_TAKEN: Final = 4409
    BEGUN_TWICE: Final = 4429


class _Init(msgspec.Struct, frozen=True, tag="connection_init", tag_field="type"):
    payload: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return "_Init()"  # it holds a secret


class _Ping(msgspec.Struct, frozen=True, tag="ping", tag_field="type"):
    payload: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return "_Ping()"  # it holds a secret


class _Pong(msgspec.Struct, frozen=True, tag="pong", tag_field="type"):
    payload: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return "_Pong()"  # it holds a secret


class _Subscribe(msgspec.Struct, frozen=True, tag="subscribe", tag_field="type"):
    id: str
    payload: Submitted

    def __repr__(self) -> str:
        return "_Subscribe()"  # it holds a secret


class _Complete(msgspec.Struct, frozen=True, tag="complete", tag_field="type"):
    id: str


_FRAMES: Final = frozenset({WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG})
_Message = _Init | _Ping | _Pong | _Subscribe | _Complete
_decoder: Final[msgspec.json.Decoder[_Message]] = msgspec.json.Decoder(_Message)


class Subscriptions:
    """The endpoint for subscriptions."""

    def __init__(
        self, relay: RelayEndpoints, schema: strawberry.Schema, documents: Documents, *, path: str
    ) -> None:
        """path: below the public URL."""
        self.relay, self.schema, self.documents, self.path = relay, schema, documents, path
        self.strangers = Connections(STRANGERS)
        self._connections: set[_Connection] = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get(hdrs.UPGRADE, "").lower() != "websocket":
            raise web.HTTPMethodNotAllowed("GET", ["POST"])  # no queries in URLs
        if not offers(request.headers, PROTOCOL):
            raise invalid(f"Sec-WebSocket-Protocol: expected {PROTOCOL}")
        if self.relay.held_requests.closing:
            raise Problem(Slug.DRAINING, retry_after=1)
        socket = web.WebSocketResponse(
            protocols=(PROTOCOL,), heartbeat=_HEARTBEAT, timeout=_CLOSE_SECONDS, max_msg_size=MAX_BODY, compress=False,
            autoping=False,  # pings are answered in `_read`, which counts them
        )  # fmt: skip
        handshake = opening_handshake(socket, request, PROTOCOL)
        if handshake is None:
            raise invalid("expected the upgrade to a WebSocket")
        proofs = request.headers.getall(HEADER, [])
        name = await self.relay.authenticate(request, proofs, self.path) if proofs else None
        if name is not None:
            socket.headers[NONCE_HEADER] = self.relay.nonce()
        request[WAITS] = True
        slot = self.strangers.admit(request.remote or "", lambda: cut(request))
        assert slot is not None  # noqa: S101  for mypy: none of them counts as in use, so one always gives way
        connection = _Connection(self, request, socket, name, slot)
        try:
            await socket.prepare(handshake)
            self._connections.add(connection)
            await connection.run()
        finally:
            self._connections.discard(connection)
            self.strangers.release(slot)
        return socket

    async def close(self, _app: web.Application) -> None:
        """End every connection, as the relay shuts down."""
        closing = [one.close(WSCloseCode.GOING_AWAY, Ending.DRAINING) for one in self._connections]
        await asyncio.gather(*closing)


class _Connection:
    """One connection: a task that reads, one that sends pings, and one for each subscription."""

    def __init__(
        self,
        endpoint: Subscriptions,
        request: web.Request,
        socket: web.WebSocketResponse,
        name: str | None,
        slot: Slot,
    ) -> None:
        """name: of the key whose proof was in the upgrade request; None when it is to come with connection_init.

        slot: among strangers, until the caller is authorised.
        """
        self._relay, self._endpoint = endpoint.relay, endpoint
        self._request, self._socket, self._name, self._slot = request, socket, name, slot
        self._until = self._relay.proof_until()  # for all of its subscriptions
        self._begun = False  # connection_init was acknowledged
        self._before_init = 0  # messages
        self._running: dict[str, asyncio.Task[None]] = {}
        self._followed: set[Following] = set()
        self._closed = False

    async def run(self) -> None:
        """Serve the connection until either side closes it."""
        async with asyncio.TaskGroup() as tasks:
            pings = tasks.create_task(self._send_pings())
            try:
                await self._read(tasks)
            except (ConnectionError, TimeoutError) as error:
                self._cut(error)
            except Exception as error:  # noqa: BLE001  a bug: no answer of HTTP may follow the upgrade
                logger.error("%s", place_of(error))  # noqa: TRY400
                await self.close(WSCloseCode.INTERNAL_ERROR, "")
            finally:
                for task in (pings, *self._running.values()):
                    task.cancel()

    async def close(self, code: int, reason: str) -> None:
        """Close the connection: the peer has `_CLOSE_SECONDS` to take the close frame, and as many to answer it."""
        if self._closed:
            return
        self._closed = True
        try:
            async with asyncio.timeout(2 * _CLOSE_SECONDS):
                await self._socket.close(code=code, message=reason.encode())
        except TimeoutError as error:  # aiohttp waits for ever until a peer that does not read has taken it
            self._cut(error)

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        until = asyncio.get_running_loop().time() + INIT_SECONDS
        while True:
            try:
                async with asyncio.timeout_at(None if self._begun else until):
                    received = await self._socket.receive()
            except TimeoutError:
                return await self.close(Code.INIT_TIMEOUT, "connection_init did not come in time")
            if received.type not in _FRAMES:
                return None  # closed
            if not await self._count():
                return None
            if received.type is WSMsgType.PING:
                async with asyncio.timeout(SEND_SECONDS):
                    await self._socket.pong(received.data)
            if received.type in (WSMsgType.PING, WSMsgType.PONG):
                continue
            try:
                message = _decoder.decode(received.data if received.type is WSMsgType.TEXT else b"")
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                return await self.close(Code.BAD_MESSAGE, f"expected a message of {PROTOCOL}")
            await self._take(message, tasks)

    async def _count(self) -> bool:
        """Count a message as a call of its caller; closes the connection of who sends too many, and returns False."""
        if self._name is None:
            self._before_init += 1
            if self._before_init > MAX_BEFORE_INIT:
                await self.close(Code.NOT_BEGUN, "expected connection_init first")
            return not self._closed
        try:
            await self._relay.count_call(self._name)
        except Problem as problem:
            self._request[REFUSED] = problem
            await self.close(Code.REFUSED, problem.slug)
        return not self._closed

    async def _take(self, message: _Message, tasks: asyncio.TaskGroup) -> None:
        match message:
            case _Init():
                await self._begin(message.payload or {})
            case _Ping():
                self._hear()
                await self._send({"type": "pong"})
            case _Pong():
                self._hear()
            case _Complete():
                task = self._running.pop(message.id, None)
                if task is not None:
                    task.cancel()
            case _Subscribe() if not self._begun or self._name is None:
                await self.close(Code.NOT_BEGUN, "expected connection_init first")
            case _Subscribe() if message.id in self._running:
                await self.close(Code.ID_TAKEN, "this id is that of a subscription")
            case _Subscribe() if len(self._running) >= MAX_SUBSCRIPTIONS:
                problem = Problem(Slug.TOO_MANY_PENDING, retry_after=1)
                await self._end(message.id, [told(problem)], problem)
            case _Subscribe():
                self._running[message.id] = tasks.create_task(self._serve(message, self._name))

    def _hear(self) -> None:
        """A sign of life of the caller's program keeps its claims."""
        for following in self._followed:
            following.heard()

    async def _begin(self, payload: Mapping[str, Any]) -> None:
        if self._begun:
            return await self.close(Code.BEGUN_TWICE, "connection_init has come before")
        if self._name is None:
            given = payload.get(HEADER)
            try:
                proofs = [given] if isinstance(given, str) else []
                self._name = await self._relay.authenticate(self._request, proofs, self._endpoint.path)
            except (Problem, StoreUnavailable) as error:
                busy = Problem(Slug.STORE_UNAVAILABLE, retry_after=2)
                self._request[REFUSED] = problem = error if isinstance(error, Problem) else busy
                self._relay.answered(self._request, problem.status, problem.slug)
                nonce = [self._relay.nonce()] if problem.slug is Slug.USE_DPOP_NONCE else []
                return await self.close(Code.REFUSED, " ".join([problem.slug, *nonce]))
        self._begun = True
        return await self._send({"type": "connection_ack", "payload": {NONCE_HEADER: self._relay.nonce()}})

    async def _serve(self, message: _Subscribe, name: str) -> None:
        """Serve one subscription to its end."""
        try:
            await self._follow(message, name)
        except Problem as problem:
            await self._end(message.id, [told(problem)], problem)
        except Refused as refused:
            errors = [formatted(error) for error in refused.errors]
            await self._end(message.id, errors, Problem(Slug.INVALID_REQUEST))
        except (ConnectionError, TimeoutError) as error:
            self._cut(error)
        except Exception as error:  # noqa: BLE001  one that is a bug ends its subscription alone
            await self._end(message.id, [formatted(GraphQLError("", original_error=error))], None)
        finally:
            if self._running.get(message.id) is asyncio.current_task():
                del self._running[message.id]

    async def _follow(self, message: _Subscribe, name: str) -> None:
        documents, followed = self._endpoint.documents, list[Following]()
        more = documents.calls(message.payload) - 1
        if more:
            await self._relay.count_call(name, more)
        admitted = documents.admit(message.payload)
        if admitted.operation is not OperationType.SUBSCRIPTION:
            raise invalid("query: expected a subscription; what else there is has a proof of its own")
        self._request[OPERATION] = admitted.field

        def follows(following: Following) -> None:
            followed.append(following)
            self._followed.add(following)
            self._endpoint.strangers.release(self._slot)
            self._relay.answered(self._request, 200, None)

        caller = Caller(self._relay, self._request, name, admitted.document, follows, self._until)
        results = await self._endpoint.schema.subscribe(
            admitted.text, variable_values=message.payload.variables, context_value=caller
        )
        try:
            async with contextlib.aclosing(results):
                async for result in results:
                    if result.data is None and result.errors:
                        errors = [formatted(error) for error in result.errors]
                        return await self._end(message.id, errors, problem_of(result.errors[0]))
                    await self._send({"id": message.id, "type": "next", "payload": {"data": result.data}})
        finally:
            self._followed.difference_update(followed)
        if followed and followed[0].ended in (Ending.RENEW, Ending.DRAINING):
            return await self.close(WSCloseCode.GOING_AWAY, followed[0].ended)
        return await self._send({"id": message.id, "type": "complete"})

    async def _end(self, identity: str, errors: list[dict[str, Any]], problem: Problem | None) -> None:
        """End a subscription with its errors, and the connection of who is refused from now on."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            await self._send({"id": identity, "type": "error", "payload": errors})
        if problem is not None:
            self._request[REFUSED] = problem
            self._relay.answered(self._request, problem.status, problem.slug)
            if problem.status in _ENDED:
                await self.close(Code.REFUSED, problem.slug)

    async def _send(self, message: Mapping[str, Any]) -> None:
        """Send a message. `TimeoutError` when the peer does not read, `ConnectionError` when it is gone."""
        async with asyncio.timeout(SEND_SECONDS):
            await self._socket.send_str(msgspec.json.encode(message).decode())

    async def _send_pings(self) -> None:
        """Ask the caller's program for signs of life, and end a connection that nobody uses."""
        try:
            while not self._closed:
                await asyncio.sleep(INTERVAL)
                if self._begun and not self._running:
                    return await self.close(WSCloseCode.OK, "idle")
                await self._send({"type": "ping"})
        except (ConnectionError, TimeoutError) as error:
            self._cut(error)

    def _cut(self, error: Exception) -> None:
        """Close the connection of a peer that is gone, or does not read."""
        logger.debug("a connection with subscriptions was cut: %s", type(error).__name__)
        cut(self._request)
