"""The phones that can be woken: their websockets at ``/cable/phone``, and which contact IDs each has registered.

What phone and service say to each other is in `companion_push.waking`. A contact ID belongs to the connection that
registered it last, and when that one ends to the one before. Where there are as many as may be, the address that has most gives one up
for an address that has few (docs/adr/0063). Logs hold counts, and never an ID.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from aiohttp import WSCloseCode, WSMsgType, web

from companion_push.serving.http_server import problem
from companion_push.tunnel_service.buckets import Buckets
from companion_push.tunnel_service.contacts import ContactLimits, KnownContacts
from companion_push.tunnel_service.hook import WakeHook
from companion_push.tunnel_service.rendezvous import Tunnel, TunnelRefusal
from companion_push.tunnel_service.websocket import no_upgrade
from companion_push.waking import (
    MAX_CONTACTS,
    MAX_WAKING_SIZE,
    SUBPROTOCOL,
    Forget,
    Forgotten,
    FromService,
    Register,
    Registered,
    Wake,
    contact_id,
    encode_waking,
    parse_from_phone,
)
from headless_passkey.errors import RemoteProtocolError, SetupError
from headless_passkey.hybrid.tunnel_url import CloseReason
from headless_passkey.process.tasks import end_quietly
from http_serving.addresses import neighbourhood
from http_serving.log_limit import PERIOD, LogLimit
from http_serving.runner import offers, opening_handshake

CLOSE_TIMEOUT: Final = 1.0  # seconds a phone has to answer our close frame
SEND_TIMEOUT: Final = 20.0  # seconds a phone may leave a message unread
UNSENT: Final = 32  # messages that wait to be sent to one phone
FRAMES: Final = 60  # of one phone a minute, pongs too
NOTED: Final = 3600.0  # seconds after which it is noted anew that a phone is there

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class Phone:
    """One connection of a phone."""

    neighbourhood: str
    contact_ids: set[bytes] = field(default_factory=set, repr=False)
    unsent: asyncio.Queue[FromService] = field(default_factory=lambda: asyncio.Queue(UNSENT), repr=False)
    ending: "asyncio.Future[tuple[int, str]]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    woken: dict[bytes, list[Tunnel]] = field(default_factory=dict, repr=False)  # by contact ID

    def say(self, message: FromService) -> None:
        """Queue a message. A phone that leaves too many unread loses its connection."""
        try:
            self.unsent.put_nowait(message)
        except asyncio.QueueFull:
            self.end(WSCloseCode.POLICY_VIOLATION)

    def end(self, code: int, reason: str = "") -> None:
        """Close the connection soon with this code and a `CloseReason`, unless it closes already."""
        if not self.ending.done():
            self.ending.set_result((code, reason))

    def waiting(self, contact_id: bytes) -> int:
        """How many contact requests wait for the phone, which has not joined their tunnels yet."""
        left = [tunnel for tunnel in self.woken.get(contact_id, ()) if not (tunnel.joined or tunnel.ended)]
        self.woken[contact_id] = left
        if not left:
            del self.woken[contact_id]
        return len(left)

    def expect(self, contact_id: bytes, tunnel: Tunnel) -> None:
        """Count a contact request that waits for the phone from now on."""
        self.woken.setdefault(contact_id, []).append(tunnel)

    def wake(self, tunnel: Tunnel, client_payload: bytes) -> None:
        wake = Wake(routing_id=tunnel.routing_id, tunnel_id=tunnel.tunnel_id, client_payload=client_payload)
        self.say(wake)


class Phones:
    """The connections of all phones."""

    def __init__(self, known: KnownContacts, *, silence: float, hook: WakeHook | None = None) -> None:
        """silence: seconds without a message after which a phone is pinged; it has half as many to answer. hook: wakes phones
        without a connection.
        """
        self.hook = hook
        self._called: Phone | None = None  # stands for all that the hook has woken
        self._known, self._silence = known, silence
        self._limits: ContactLimits = known.limits
        self._phones: dict[Phone, None] = {}  # in the order in which they came
        self._by_contact: dict[bytes, list[Phone]] = {}  # the last is woken
        self._requests = Buckets(self._limits.requests_per_contact, 60)
        self._failures = LogLimit(tell=_failed_again)
        self.gave_way: Callable[[], object] = lambda: None  # is told of each that gives its place to another

    def __len__(self) -> int:
        return len(self._phones)

    def reach(self, contact_id: bytes, *, now: float) -> Phone | TunnelRefusal:
        """Find the phone that a contact request is for.

        The rate counts for every contact ID, known or not, so that its refusal tells nothing.
        """
        if not self._requests.take(contact_id, now=now):
            return TunnelRefusal.CONTACTED_TOO_OFTEN
        connected = self._by_contact.get(contact_id)
        try:
            if not self._known.knows(contact_id, registered=bool(connected)):
                return TunnelRefusal.GONE
        except SetupError as error:
            self._failed(error)
            return TunnelRefusal.UNREACHABLE
        if not connected and self.hook is None:
            return TunnelRefusal.UNREACHABLE
        if self._called is None:  # not earlier: it belongs to the event loop
            self._called = Phone(neighbourhood="")
        phone = connected[-1] if connected else self._called
        if phone.waiting(contact_id) >= self._limits.waiting_per_contact:
            return TunnelRefusal.UNREACHABLE
        return phone

    async def call(self, contact_id: bytes, tunnel: Tunnel, client_payload: bytes) -> bool:
        """Have the hook wake a phone; returns whether the call was taken."""
        assert self.hook is not None  # noqa: S101  for mypy
        why_not = await self.hook.wake(
            contact_id=contact_id,
            routing_id=tunnel.routing_id,
            tunnel_id=tunnel.tunnel_id,
            client_payload=client_payload,
        )
        if why_not is not None:
            logger.warning("the hook did not wake a phone: %s", why_not)
        return why_not is None

    def is_called(self, phone: Phone) -> bool:
        """Whether the phone has no connection, so that the hook is to wake it."""
        return phone is self._called

    def called_no_more(self, contact_id: bytes) -> None:
        """Forget a contact request that has ended."""
        if self._called is not None:
            self._called.waiting(contact_id)

    def close(self) -> None:
        """Close all connections; the handlers return soon after."""
        self._failures.end()
        for phone in self._phones:
            phone.end(WSCloseCode.GOING_AWAY, CloseReason.DRAINING)

    async def serve(self, request: web.Request) -> web.StreamResponse | TunnelRefusal:
        """Serve one phone until it leaves."""
        websocket = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,),
            compress=False,
            max_msg_size=2 * MAX_WAKING_SIZE,  # there aiohttp drops the connection without a close frame
            timeout=CLOSE_TIMEOUT,
            heartbeat=self._silence,
            autoping=False,  # pings are counted
        )
        if not offers(request.headers, SUBPROTOCOL):
            return problem(400, f"expected the websocket subprotocol {SUBPROTOCOL}")
        handshake = opening_handshake(websocket, request, SUBPROTOCOL)
        if handshake is None:
            return no_upgrade()
        phone = Phone(neighbourhood=neighbourhood(request.remote or ""))
        if not self._make_room(phone.neighbourhood):
            return TunnelRefusal.TOO_MANY_PHONES
        self._phones[phone] = None
        try:
            await websocket.prepare(handshake)
            await self._converse(phone, websocket, request)
        finally:
            self._remove(phone)
        return websocket

    def _make_room(self, place: str) -> bool:
        """Make room for one more phone of an address; False where there is none.

        At the cap of all, the address that has most gives one up, unless it had fewer than `place` then. There the oldest goes that
        would be woken for nothing, else the one that came last.
        """
        there = Counter(each.neighbourhood for each in self._phones)
        if there[place] >= self._limits.phones_per_address:
            return False
        if len(self._phones) < self._limits.phones:
            return True
        ((busiest, most),) = there.most_common(1)
        if most - 1 < there[place] + 1:
            return False
        phones = [phone for phone in self._phones if phone.neighbourhood == busiest]
        evicted = next((phone for phone in phones if not self._is_woken(phone)), phones[-1])
        self._remove(evicted)
        evicted.end(WSCloseCode.TRY_AGAIN_LATER)
        self.gave_way()
        return True

    def _is_woken(self, phone: Phone) -> bool:
        """Whether a contact request may be for this connection: it has a contact ID that no later one has registered."""
        return any(self._by_contact[each][-1] is phone for each in phone.contact_ids)

    def _remove(self, phone: Phone) -> None:
        """Take a connection out of the books: it is not woken any more. A second time does nothing."""
        self._phones.pop(phone, None)
        for each in phone.contact_ids:
            self._by_contact[each].remove(phone)
            if not self._by_contact[each]:
                del self._by_contact[each]
        phone.contact_ids.clear()

    async def _converse(self, phone: Phone, websocket: web.WebSocketResponse, request: web.Request) -> None:
        listening = asyncio.create_task(self._listen(phone, websocket, request.remote or ""))
        speaking = asyncio.create_task(_speak(phone, websocket))
        try:
            code, reason = await asyncio.shield(phone.ending)
        finally:
            self._remove(phone)  # at once: a device that asks for it now is not to wait for it
            await end_quietly(listening, speaking)
        try:
            async with asyncio.timeout(2 * CLOSE_TIMEOUT):  # aiohttp's own limit is for the answer alone
                await websocket.close(code=code, message=reason.encode())
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        logger.info("a phone left that could be woken; %d are there", len(self._phones))

    async def _listen(self, phone: Phone, websocket: web.WebSocketResponse, address: str) -> None:
        """Do what the phone asks for, until it leaves or breaks a rule."""
        code: int = WSCloseCode.INTERNAL_ERROR
        now: Callable[[], float] = asyncio.get_running_loop().time
        frames, noted = Buckets(FRAMES, 60), now()
        try:
            while True:
                message = await websocket.receive()
                if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
                    code = WSCloseCode.OK
                    return
                if not frames.take(b"", now=now()):
                    code = WSCloseCode.POLICY_VIOLATION
                    return
                if now() - noted >= NOTED:  # a phone that answers pings is there
                    noted = now()
                    await self._note(phone)
                match message.type:
                    case WSMsgType.TEXT if len(message.data) > MAX_WAKING_SIZE:
                        code = WSCloseCode.MESSAGE_TOO_BIG
                        return
                    case WSMsgType.TEXT:
                        refused = await self._obey(phone, parse_from_phone(message.data), address, now())
                        if refused is not None:
                            code = refused
                            return
                    case WSMsgType.PING:
                        async with asyncio.timeout(SEND_TIMEOUT):
                            await websocket.pong(message.data)
                    case WSMsgType.BINARY:
                        code = WSCloseCode.UNSUPPORTED_DATA
                        return
        except RemoteProtocolError:
            code = WSCloseCode.POLICY_VIOLATION
        except (ConnectionError, TimeoutError):
            phone.end(WSCloseCode.GOING_AWAY, CloseReason.STOOD_STILL)
        except SetupError as error:
            self._failed(error)
        finally:
            phone.end(code)

    def _failed(self, error: SetupError) -> None:
        """Log that the folder of contacts has failed. Strangers can cause it, as often as they ask."""
        if self._failures.allows("folder"):
            logger.error("%s", error)  # its traceback holds the contact

    async def _note(self, phone: Phone) -> None:
        """Note that the phone is there, so that its contact IDs are known for long after it has left."""
        try:
            await self._known.note(tuple(phone.contact_ids))
        except SetupError as error:  # it is tried again in an hour
            self._failed(error)

    async def _obey(
        self, phone: Phone, message: Register | Forget, address: str, now: float
    ) -> WSCloseCode | None:
        """Register or forget; returns the close code of a refusal."""
        contact_ids = tuple(map(contact_id, message.secrets))
        if isinstance(message, Forget):
            await self._known.forget(contact_ids)
            for each in contact_ids:
                for holder in self._by_contact.pop(each, ()):
                    holder.contact_ids.discard(each)
            phone.say(Forgotten())
            return None
        if len(phone.contact_ids | set(contact_ids)) > MAX_CONTACTS:
            return WSCloseCode.POLICY_VIOLATION
        if not await self._known.add(contact_ids, address=address, now=now):
            return WSCloseCode.TRY_AGAIN_LATER
        if phone.ending.done():  # meanwhile
            return None
        for each in dict.fromkeys(contact_ids):
            holders = self._by_contact.setdefault(each, [])
            if each in phone.contact_ids:
                holders.remove(phone)
            holders.append(phone)
            phone.contact_ids.add(each)
        phone.say(Registered())
        return None


def _failed_again(_kind: str, count: int) -> None:
    logger.error("%d more times within %d s the folder of contacts did not answer", count, PERIOD)


async def _speak(phone: Phone, websocket: web.WebSocketResponse) -> None:
    """Send what waits, until the phone does not take it."""
    try:
        while True:
            message = await phone.unsent.get()
            async with asyncio.timeout(SEND_TIMEOUT):
                await websocket.send_str(encode_waking(message))
    except (ConnectionError, TimeoutError):
        phone.end(WSCloseCode.GOING_AWAY, CloseReason.STOOD_STILL)
