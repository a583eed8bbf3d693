"""The software phone, FOR DEMONSTRATIONS AND TESTS ONLY: it serves one hybrid transaction, from FIDO URL to response.

It does the authenticator's part of CTAP 2.2 §11.5.1: it checks the URL, opens a tunnel under its ID, sends the advert
until a client joins the tunnel, and makes the handshake, which proves that the client holds the URL's key. Then it
serves exactly one command of the announced kind, makeCredential or getAssertion: it asks its user, sends the response,
and closes. One command only, so that a peer gains no second signature from one consent. A phone with a file of links offers one where
the URL asks for it and the user has approved, just before the response; `linked` waits for such devices. In place of that command, and
where no envelope announced another, a client may send authenticatorSelection (§6.9): the phone asks whether it is the
one to use, and makes or signs nothing.

The question to the user is cancelled as soon as nobody waits for its answer:

=====================================  =====================  ============================================
the device sends a shutdown            `NotApproved`          cancelled; no response
the request is withdrawn at the relay  `NotApproved`          cancelled; no response
the tunnel ends                        `TransportError`
the time is over                       `NotApproved`          expired; CTAP2_ERR_USER_ACTION_TIMEOUT
a second command comes                 `RemoteProtocolError`
=====================================  =====================  ============================================
"""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Self, TypeVar

from companion_push.companion.advertiser.advertiser import Advertiser, ListeningAdvertiser
from companion_push.companion.arrivals import open_arrivals
from companion_push.companion.authenticator import Authenticator
from companion_push.companion.link_file import Link, LinkFile
from companion_push.companion.software_extensions import refuse
from companion_push.companion.waking_client import open_waking
from companion_push.waking import Wake
from headless_passkey.errors import (
    CtapError,
    HeadlessPasskeyError,
    NotApproved,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    SetupError,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.hybrid.authenticator import (
    Advertised,
    LinkedAdvertised,
    LinkedPhoneTransaction,
    PhoneTransaction,
)
from headless_passkey.hybrid.channel import AuthenticatorChannel
from headless_passkey.hybrid.ctap2 import Command, Status, User
from headless_passkey.hybrid.data_channel import DataChannel
from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.hybrid.linking import ClientPayload, OfferedLink
from headless_passkey.hybrid.messages import Ctap, Json, Shutdown
from headless_passkey.hybrid.tunnel_url import ROUTING_ID_SIZE, connect_url, new_url
from headless_passkey.mends import clock_skew
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.tunnel import Tunnel, TunnelClosed, open_tunnel
from headless_passkey.process.tasks import end_quietly, to_its_end
from headless_passkey.process.terminal import Terminal
from headless_passkey.radio.direct import DirectChannel
from program_parts.domains import MAX_DOMAIN
from program_parts.names import printable

MAX_AGE: Final = 300  # seconds after which a FIDO URL expires
MAX_AHEAD: Final = 120  # seconds the device's clock may be ahead of ours: each may be 60 s off the relay's
WARNING: Final = "this is a software phone for demonstrations and tests: it protects no passkey from anybody"

TUNNEL_PATIENCE: Final = 3.0  # seconds for the tunnel, where the device can come directly too

_LINGER: Final = 3.0  # seconds for the device's shutdown message after the response
_FIRST_MESSAGE: Final = 20.0  # seconds that a linked device, which waits in the tunnel, has for message 1
_GRACE: Final = 1.0  # seconds reserved for the response "the user did not answer"
_LINKING: Final = 5.0  # seconds for making a link, while the device waits for its response
_MAX_MESSAGES: Final = 16  # besides the one command: updates, getInfo

_KINDS: Final[dict[int, RequestKind]] = {  # the commands that are served
    Command.GET_ASSERTION: RequestKind.GET_ASSERTION,
    Command.MAKE_CREDENTIAL: RequestKind.MAKE_CREDENTIAL,
}
_BREACHES: Final = frozenset(  # statuses for a violation of the protocol by the device
    {Status.INVALID_COMMAND, Status.INVALID_CBOR, Status.MISSING_PARAMETER, Status.CBOR_UNEXPECTED_TYPE}
)

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question to the phone's user."""

    kind: RequestKind | None  # GET_ASSERTION or MAKE_CREDENTIAL; None: authenticatorSelection (§6.9)
    rp_id: str | None  # None without a kind
    accounts: tuple[
        User, ...
    ]  # the accounts to choose from; for a registration the new one; empty without a kind
    device: str | None = None  # the linked device that asks; None for one that gave a FIDO URL
    links: bool = False  # whether a yes links the device too


# Returns the index of the chosen account, or None when the user declines. Cancelled when nobody waits for the answer.
UserVerification = Callable[[Question], Awaitable[int | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What a signed envelope announced; the command must match it."""

    kind: RequestKind
    rp_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelService:
    """A tunnel service, and the tunnel domain number that stands for it in this phone's adverts."""

    number: int
    base: str  # wss://host[:port][/path]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``N=wss://HOST:PORT``; `ValueError` for anything else."""
        number, _, base = text.partition("=")
        if not (number.isascii() and number.isdigit() and len(number) <= 5 and int(number) <= 0xFFFF):
            raise ValueError("expected N=wss://HOST:PORT with N from 0 to 65535")
        try:
            return cls(number=int(number), base=str(BaseUrl.parse(base, schemes=("wss",))))
        except UsageError as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftwarePhone:
    """A phone in software: passkeys, radio, tunnel service and user."""

    credentials: Authenticator
    advertiser: Advertiser
    tunnel_service: TunnelService
    tls: ssl.SSLContext | None  # trusted roots; None: the system's
    verify_user: UserVerification
    links: LinkFile | None = None  # None: this phone links no device
    on_stage: Callable[[str], None] = lambda stage: logger.info("%s", stage)
    clock: Callable[[], float] = time.time

    async def answer(
        self,
        fido_url: str,
        *,
        timeout: float,  # noqa: ASYNC109
        announced: Announced | None = None,
        withdrawn: asyncio.Event | None = None,
        device: str = "a device",
    ) -> None:
        """Serve one transaction; returns when its command was answered with success.

        timeout: seconds for everything. device: what to call it when it is linked, which happens where the URL asks for it, this phone
        has a file of links, and its user approves. withdrawn: set when the request that brought the URL has ended, which cancels
        the transaction. Raises `RemoteProtocolError` for a malformed URL or a peer that
        breaks the protocol, `TrustError` when a check refuses, `NotApproved` when the user declines, nobody
        waits for the answer any more or time runs out, `CtapError` when the answer is another no,
        `TransportError`.
        """
        url = check_url(fido_url, now=self.clock(), direct=isinstance(self.advertiser, ListeningAdvertiser))
        transaction, withdrawn = PhoneTransaction(url), withdrawn or asyncio.Event()
        tunnel_url = new_url(self.tunnel_service.base, transaction.tunnel_id)

        def advertise(tunnel: Tunnel | None, psm: int | None = None) -> Advertised:
            routing_id = bytes(ROUTING_ID_SIZE) if tunnel is None else tunnel.routing_id
            if routing_id is None:
                raise RemoteProtocolError(
                    "the tunnel service named no routing ID", reason=ProtocolReason.MALFORMED_TUNNEL_HEADER
                )
            return transaction.advertise(
                routing_id=routing_id, tunnel_domain=self.tunnel_service.number, psm=psm
            )

        connected = (
            self._connected_directly(
                tunnel_url if url.offers(DataChannel.WEBSOCKET) else None,
                advertise,
                self.advertiser,
                withdrawn,
            )
            if url.offers(DataChannel.BLE_L2CAP) and isinstance(self.advertiser, ListeningAdvertiser)
            else self._connected(tunnel_url, advertise, withdrawn, first=None)
        )
        await self._answer(
            connected, _Binding.of(url, announced, device), timeout=timeout, withdrawn=withdrawn
        )

    async def answer_linked(self, wake: Wake, link: Link, payload: ClientPayload, *, timeout: float) -> None:  # noqa: ASYNC109
        """Serve one transaction for the device that this phone is linked with by `link` (§11.5.2). Otherwise as `answer`.

        wake: from the tunnel service. payload: what is in it, which names the link.
        """
        transaction = LinkedPhoneTransaction(link.offered, payload)
        url = connect_url(self.tunnel_service.base, wake.routing_id, wake.tunnel_id)
        withdrawn = asyncio.Event()
        await self._answer(
            self._connected(url, lambda _tunnel: transaction.advertise(), withdrawn, first=_FIRST_MESSAGE),
            _Binding(kind=payload.hint, rp_id=None, strict=False, device=link.device, linked=True),
            timeout=timeout,
            withdrawn=withdrawn,
        )

    async def _answer(
        self,
        connected: AbstractAsyncContextManager["_Conversation"],
        binding: "_Binding",
        *,
        timeout: float,  # noqa: ASYNC109
        withdrawn: asyncio.Event,
    ) -> None:
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            async with asyncio.timeout_at(deadline) as limit:
                async with connected as conversation:
                    command = await _unless(withdrawn, conversation.command())
                    self.on_stage("asked")
                    grace = min(_GRACE, timeout / 10)
                    await self._serve(command, binding, conversation, limit, deadline - grace)
        except TimeoutError as error:
            raise NotApproved(Outcome.EXPIRED, f"there was no answer within {timeout:g} s") from error

    @contextlib.asynccontextmanager
    async def _connected(
        self,
        url: str,
        advertise: Callable[[Tunnel], Advertised | LinkedAdvertised],
        withdrawn: asyncio.Event,
        *,
        first: float | None,
    ) -> AsyncIterator["_Conversation"]:
        """Open the encrypted channel to the peer that holds the URL's key, or the link, and received the advert.

        url: of the tunnel. first: seconds for message 1, None for no other limit than that of the whole transaction.
        """
        info = await self.credentials.info()
        self.on_stage("connecting")
        async with open_tunnel(url, tls=self.tls) as tunnel:
            advertised = advertise(tunnel)
            self.on_stage("advertising")
            async with self.advertiser.advertise(advertised.service_data):
                try:
                    async with asyncio.timeout(first):
                        message1 = await _unless(withdrawn, tunnel.receive())
                except TimeoutError as error:
                    raise TransportError("the device that woke this phone said nothing") from error
            message2, channel = advertised.respond(message1)
            await tunnel.send(message2)
            await tunnel.send(channel.post_handshake(info))
            self.on_stage("connected")
            yield _Conversation(tunnel, channel, info.encode(), withdrawn)

    @contextlib.asynccontextmanager
    async def _connected_directly(
        self,
        url: str | None,
        advertise: Callable[[Tunnel | None, int | None], Advertised],
        radio: ListeningAdvertiser,
        withdrawn: asyncio.Event,
    ) -> AsyncIterator["_Conversation"]:
        """Open the encrypted channel as `_connected` does, through the tunnel or directly, as the device comes (CTAP 2.3).

        url: of the tunnel; None where the device does not use one. Without tunnel service, or without a radio that can listen, it is
        the other one alone.
        """
        info = await self.credentials.info()
        self.on_stage("connecting")
        async with contextlib.AsyncExitStack() as through, contextlib.AsyncExitStack() as stack:
            tunnel, listener = None, None
            try:
                listener = await stack.enter_async_context(radio.listen())
            except (TransportError, SetupError) as error:
                if url is None:
                    raise
                logger.warning("no direct channel: %s", error)
            try:
                # with a direct channel, a tunnel service that does not answer is not waited for
                async with asyncio.timeout(None if listener is None else TUNNEL_PATIENCE):
                    if url is not None:
                        tunnel = await through.enter_async_context(open_tunnel(url, tls=self.tls))
            except (TransportError, SetupError, RemoteProtocolError, TimeoutError) as error:
                if listener is None:
                    raise
                logger.warning("no tunnel, the direct channel alone: %s", error or "it took too long")
            advertised = advertise(tunnel, None if listener is None else listener.psm)
            arrivals = await stack.enter_async_context(open_arrivals(advertised, info))
            arrivals.listen_at(tunnel, listener)
            sender = radio if listener is None else listener
            self.on_stage("advertising")
            async with sender.advertise(advertised.service_data):
                arrival = await _unless(withdrawn, arrivals.first())
            if arrival.carrier is not tunnel:
                await through.aclose()
            self.on_stage("connected")
            yield _Conversation(
                arrival.carrier, arrival.channel, info.encode(), withdrawn, first=arrival.first
            )

    async def _serve(
        self,
        command: Ctap,
        binding: "_Binding",
        conversation: "_Conversation",
        limit: asyncio.Timeout,
        question_deadline: float,
    ) -> None:
        """Serve the one command; raises when the response is not success."""
        try:
            try:
                async with asyncio.timeout_at(question_deadline):
                    payload = await self._decide(command, binding, conversation)
            except TimeoutError as error:
                raise NotApproved(Outcome.EXPIRED, "the user did not answer in time") from error
        except HeadlessPasskeyError as error:
            limit.reschedule(None)  # the rest has limits of its own
            status = _status(error)
            if status is not None:
                await conversation.finish(status)
            elif isinstance(error, NotApproved):
                await (
                    conversation.goodbye()
                )  # the relay tells the device the reason, and a closed tunnel would not
            if status in _BREACHES:
                message = f"the device's command 0x{command.code:02X} was refused: {error}"
                raise RemoteProtocolError(message, reason=ProtocolReason.UNEXPECTED_MESSAGE) from error
            raise
        limit.reschedule(None)
        if self.links is not None and not binding.linked:
            link = await self._link(command, binding, conversation)
            try:
                await conversation.update(None if link is None else link.offered)
            except BaseException:
                if link is not None:  # which the device has not got
                    await to_its_end(self.links.remove(link.name))
                raise
        await conversation.reply(Status.SUCCESS, payload)
        self.on_stage("answered")
        await conversation.goodbye()

    async def _decide(self, command: Ctap, binding: "_Binding", conversation: "_Conversation") -> bytes:
        """Make the response's CBOR; raises when there is none."""
        if command.code == Command.SELECTION and not command.payload:
            binding.check_kind(None)
            await self._ask(Question(kind=None, rp_id=None, accounts=(), device=binding.asker), conversation)
            return b""
        kind = _KINDS.get(command.code)
        if kind is None:
            refuse(Status.INVALID_COMMAND)
        binding.check_kind(kind)
        asked = await self.credentials.ask(command.code, command.payload)
        binding.check_rp_id(asked.rp_id)
        question = Question(
            kind=kind,
            rp_id=asked.rp_id,
            accounts=asked.accounts,
            device=binding.asker,
            links=self.links is not None and conversation.may_link,
        )
        account = await self._ask(question, conversation)
        # a security key asks its user once more, and is not to be touched for nobody
        return await conversation.unless_it_ends(asked.answer(account=account, now=int(self.clock())))

    async def _link(self, command: Ctap, binding: "_Binding", conversation: "_Conversation") -> Link | None:
        """Make a link that the tunnel service knows; None where none is wanted, or none can be made. The sign-in goes on."""
        if self.links is None or not conversation.may_link or command.code not in _KINDS:
            return None
        link = None
        try:
            async with asyncio.timeout(_LINKING):
                link = await self.links.add(
                    device=binding.device, tunnel_domain=self.tunnel_service.number, now=int(self.clock())
                )
                if link is None:
                    self.on_stage("too-many-links")
                    return None
                async with open_waking(self.tunnel_service.base, tls=self.tls) as waking:
                    await waking.register([link.registration_secret])
        except (HeadlessPasskeyError, TimeoutError) as error:
            logger.warning("the device was not linked: %s", error or "it took too long")
            self.on_stage("not-linked")
            if link is not None:
                await self.links.remove(link.name)
            return None
        except asyncio.CancelledError:
            if link is not None:
                await to_its_end(self.links.remove(link.name))
            raise
        self.on_stage("linked")
        return link

    async def _ask(self, question: Question, conversation: "_Conversation") -> int:
        """Ask the user; returns the index of the account. `NotApproved` when the user declines."""
        account = await conversation.unless_it_ends(self.verify_user(question))
        if account is None:
            raise NotApproved(Outcome.DECLINED, "the user declined")
        self.on_stage("verified")
        return account


def check_url(text: str, *, now: float, direct: bool = False) -> FidoUrl:
    """Parse the URL, and check its age and its channels. now: Unix seconds. direct: whether this phone can listen for the direct channel."""
    url = FidoUrl.parse(text)
    if not url.offers(DataChannel.WEBSOCKET) and not (direct and url.offers(DataChannel.BLE_L2CAP)):
        raise RemoteProtocolError(
            "the device offers no data channel that this phone has",
            reason=ProtocolReason.MALFORMED_FIDO_URL,
        )
    if url.time is None:
        logger.warning("the FIDO URL does not say when it was made")
    elif now - url.time > MAX_AGE:
        raise TrustError(
            TrustReason.EXPIRED, f"the FIDO URL is {int(now - url.time)} s old, {MAX_AGE} s are allowed"
        )
    elif url.time - now > MAX_AHEAD:
        what = f"the FIDO URL is from {int(url.time - now)} s ahead of our clock, {MAX_AHEAD} s are allowed"
        raise clock_skew(what, "members")
    return url


class _Conversation:
    """The messages after the handshake: one command, and updates, getInfo and shutdown around it."""

    def __init__(
        self,
        carrier: Tunnel | DirectChannel,
        channel: AuthenticatorChannel,
        info: bytes,
        withdrawn: asyncio.Event,
        *,
        first: bytes | None = None,
    ) -> None:
        """first: a message that has come already."""
        self._carrier, self._channel, self._info, self._withdrawn = carrier, channel, info, withdrawn
        self._came = first
        self._messages, self._heard_goodbye = 0, False

    async def command(self) -> Ctap:
        """Receive the next request other than getInfo, which is answered here; a shutdown is `NotApproved`."""
        while True:
            match await self._event():
                case Ctap(code=Command.GET_INFO):
                    await self.reply(Status.SUCCESS, self._info)
                case Ctap() as command:
                    return command
                case Shutdown():
                    raise NotApproved(Outcome.CANCELLED, "the device said goodbye without a request")

    async def unless_it_ends(self, answer: Awaitable[_T]) -> _T:
        """Await the user's answer; the question is cancelled when the device stops waiting for it."""
        return await _unless(self._withdrawn, _first(self._listen(), answer))

    @property
    def may_link(self) -> bool:
        """Whether the device keeps links, as its URL says."""
        return self._channel.may_link

    async def update(self, link: OfferedLink | None) -> None:
        """Send an update, with a link or without: both are as long."""
        await self._carrier.send(self._channel.update(link))

    async def reply(self, status: Status, payload: bytes = b"") -> None:
        await self._carrier.send(self._channel.reply(status, payload))

    async def finish(self, status: Status) -> None:
        """Send a response that is an error, and wait for the device's shutdown; a device that is gone is ignored."""
        with contextlib.suppress(TransportError):
            await self.reply(status)
            await self.goodbye()

    async def goodbye(self) -> None:
        """Wait for the device's shutdown message, a few seconds at most; another request is refused."""
        if self._heard_goodbye:
            return
        with contextlib.suppress(TimeoutError, TransportError, RemoteProtocolError, NotApproved):
            async with asyncio.timeout(_LINGER):
                command = await self.command()
                logger.warning("a second command, 0x%02X, was refused", command.code)
                await self.reply(Status.NOT_ALLOWED)

    async def _listen(self) -> NoReturn:
        """Receive messages while the user is asked; ends only by raising."""
        while True:
            match await self._event():
                case Ctap():
                    raise RemoteProtocolError(
                        "the device sent a second request before the first was answered",
                        reason=ProtocolReason.UNEXPECTED_MESSAGE,
                    )
                case Shutdown():
                    raise NotApproved(Outcome.CANCELLED, "the device said goodbye before it was answered")

    async def _event(self) -> Ctap | Shutdown | None:
        """Receive the next event; None for one without meaning for a phone."""
        self._messages += 1
        if self._messages > _MAX_MESSAGES:
            raise RemoteProtocolError(
                f"more than {_MAX_MESSAGES} messages for one command", reason=ProtocolReason.TOO_MANY_MESSAGES
            )
        message, self._came = self._came, None
        try:
            if message is None:
                message = await self._carrier.receive(self._channel.opens)
        except TransportError as error:
            is_of_the_tunnel = isinstance(error, TunnelClosed) and not error.clean
            if is_of_the_tunnel or error.reason is not TransportReason.UNREACHABLE:
                raise
            raise TransportError("the device hung up before it was answered") from error
        match self._channel.receive(message):
            case Ctap() as event:
                return event
            case Shutdown() as event:
                self._heard_goodbye = True
                return event
            case Json():
                raise RemoteProtocolError(
                    "the device sent a JSON message, which this phone did not offer",
                    reason=ProtocolReason.UNEXPECTED_MESSAGE,
                )
            case _:
                return None


async def _unless(withdrawn: asyncio.Event, work: Awaitable[_T]) -> _T:
    """Await `work`; `NotApproved` (cancelled) once the request is withdrawn, also when `work` is done."""

    async def end() -> NoReturn:
        await withdrawn.wait()
        raise NotApproved(Outcome.CANCELLED, "the request ended before it was answered")

    return await _first(end(), work)


async def _first(end: Coroutine[Any, Any, NoReturn], work: Awaitable[_T]) -> _T:
    """Await `work`, unless `end` raises first; the other one is cancelled."""
    ending, working = asyncio.ensure_future(end), asyncio.ensure_future(work)
    try:
        await asyncio.wait({ending, working}, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            ending.result()  # raises
        return working.result()
    finally:
        await end_quietly(ending, working)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Binding:
    """What was announced and binds the command; None where nothing was."""

    kind: RequestKind | None
    rp_id: str | None
    strict: bool  # announced by an envelope, which excludes authenticatorSelection
    device: str  # as people know it
    linked: bool = False  # whether it asks through a link

    @property
    def asker(self) -> str | None:
        """The linked device that asks; None for another, of which this phone knows nothing by itself."""
        return self.device if self.linked else None

    @classmethod
    def of(cls, url: FidoUrl, announced: Announced | None, device: str) -> Self:
        """Take the announcement of an envelope, or else of key 5 of the URL where it says ``ga`` or ``mc``."""
        if announced is not None:
            return cls(kind=announced.kind, rp_id=announced.rp_id, strict=True, device=device)
        kind = next((hint for hint in _KINDS.values() if hint == url.hint_raw), None)
        return cls(kind=kind, rp_id=None, strict=False, device=device)

    def check_kind(self, kind: RequestKind | None) -> None:
        """Check the command's kind. None: authenticatorSelection, which Chromium sends after any announcement."""
        refused = self.strict if kind is None else self.kind not in (None, kind)
        if refused:
            asks = "which phone to use" if kind is None else kind
            raise TrustError(
                TrustReason.KIND_MISMATCH, f"{self.kind} was announced, and the device asks for {asks}"
            )

    def check_rp_id(self, rp_id: str) -> None:
        if self.rp_id not in (None, rp_id):
            raise TrustError(
                TrustReason.OPTIONS_DIFFER, "the device asks for another relying party than it announced"
            )


def _status(error: HeadlessPasskeyError) -> Status | None:
    """The status that the device gets; None where no response is possible."""
    match error:
        case CtapError(status=status):
            return Status(status)
        case NotApproved(reason=Outcome.DECLINED):
            return Status.OPERATION_DENIED
        case NotApproved(reason=Outcome.EXPIRED):
            return Status.USER_ACTION_TIMEOUT
        case TrustError():
            return Status.NOT_ALLOWED
        case _:
            return None


async def accept(question: Question) -> int:
    """Accept every question with the newest account. For tests."""
    del question
    return 0


async def decline(question: Question) -> None:
    """Decline every question. For tests."""
    del question


def ask(terminal: Terminal) -> UserVerification:
    """Ask a user at the terminal. It proves user presence, and no identity."""

    async def verify(question: Question) -> int | None:
        await terminal.show("", _title(question))
        for number, user in enumerate(question.accounts, 1):
            await terminal.show(f"  {number}  {account_name(user)}")
        if len(question.accounts) < 2:
            return 0 if await terminal.yes("y or n:") else None
        return await choose_number(terminal, len(question.accounts))

    return verify


async def choose_number(terminal: Terminal, count: int) -> int | None:
    """Ask for one of `count` numbers from 1; returns it as an index, or None when the user declines."""
    meanings = {str(number): number for number in range(1, count + 1)} | {"n": 0, "no": 0}
    which = await terminal.ask("Number, or n to decline:", lambda line: meanings.get(line.lower()))
    return which - 1 if which else None


def _title(question: Question) -> str:
    if question.rp_id is None:
        return "Use this phone? A client asks; no site is named, and nothing is created or signed."
    what = "Create a passkey" if question.kind is RequestKind.MAKE_CREDENTIAL else "Sign in"
    asker = "" if question.device is None else f" Asked by {printable(question.device)}, which is linked."
    links = " Yes links the device too: it can ask this phone again by itself." if question.links else ""
    return f"{what} at {printable(question.rp_id, MAX_DOMAIN)}?{asker}{links}"


def account_name(user: User) -> str:
    """An account as its user knows it, for the terminal."""
    names = dict.fromkeys(printable(name) for name in (user.display_name, user.name) if name)
    return " · ".join(names) or f"account {user.id.hex()}"
