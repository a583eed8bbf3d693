"""The encrypted channel after the handshake, one end of it (CTAP 2.2 §11.5.1.2).

One message in, one event out; one thing to say in, one message out. `ClientChannel` is the device's end,
`AuthenticatorChannel` the phone's. Anything a peer may not do raises `RemoteProtocolError`, after which the
channel is spoiled and the tunnel is to be closed.
"""

from collections.abc import Callable
from typing import TypeVar

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid.ctap2 import Command, GetAssertionRequest, GetInfoResponse, MakeCredentialRequest
from headless_passkey.hybrid.linking import LinkingInformation, OfferedLink, ReadLink, discard_link
from headless_passkey.hybrid.messages import (
    Ctap,
    Event,
    Json,
    MessageType,
    PostHandshake,
    Shutdown,
    Update,
    frame,
    pad,
    parse_frame,
    unpad,
    update_payload,
)
from headless_passkey.hybrid.noise import CipherState

SignLink = Callable[[OfferedLink], LinkingInformation]

_Read = TypeVar("_Read")


class _Channel:
    """Sealing and opening, alike at both ends."""

    __slots__ = ("_receiving", "_sending", "_spoiled")

    def __init__(self, *, sending: CipherState, receiving: CipherState) -> None:
        self._sending, self._receiving, self._spoiled = sending, receiving, False

    def _seal(self, plaintext: bytes) -> bytes:
        if self._spoiled:
            raise LocalProtocolError("the channel is spoiled, close the tunnel")
        return self._sending.encrypt(pad(plaintext))

    def _open(self, message: bytes, read: Callable[[bytes], _Read]) -> _Read:
        """What `read` finds in the message; whatever it or the message breaks spoils the channel for good."""
        if self._spoiled:
            raise LocalProtocolError("the channel is spoiled, close the tunnel")
        self._spoiled = True
        found = read(unpad(self._receiving.decrypt(message)))
        self._spoiled = False
        return found


class ClientChannel(_Channel):
    """The client platform's end: learns what the phone is, sends one command at a time."""

    __slots__ = ("_awaiting_reply", "_read_link", "_said_goodbye", "peer")

    def __init__(
        self, *, sending: CipherState, receiving: CipherState, read_link: ReadLink = discard_link
    ) -> None:
        """read_link: how linking information is checked, in a session that may bring some."""
        super().__init__(sending=sending, receiving=receiving)
        self._read_link = read_link
        self._awaiting_reply = self._said_goodbye = False
        self.peer: PostHandshake | None = None

    def receive_post_handshake(self, message: bytes) -> PostHandshake:
        """The first message after the handshake."""
        if self.peer is not None:
            raise LocalProtocolError("the post-handshake message has already come")
        self.peer = self._open(message, lambda plaintext: PostHandshake.parse(plaintext, self._read_link))
        return self.peer

    def send(self, request: GetAssertionRequest | MakeCredentialRequest) -> bytes:
        """The message that carries `request`."""
        if self.peer is None or self._awaiting_reply or self._said_goodbye:
            raise LocalProtocolError(
                "one CTAP request at a time, after the post-handshake message and before the shutdown"
            )
        is_get = isinstance(request, GetAssertionRequest)
        command = Command.GET_ASSERTION if is_get else Command.MAKE_CREDENTIAL
        payload = bytes([command]) + request.encode()
        message = self._seal(payload if self.peer.revision == 0 else frame(MessageType.CTAP, payload))
        self._awaiting_reply = True
        return message

    def receive(self, message: bytes) -> Event:
        """The event in the next message: the reply, or an update at any time, its link checked."""
        if self.peer is None:
            raise LocalProtocolError("the post-handshake message comes first")
        revision = self.peer.revision

        def read(plaintext: bytes) -> Event:
            event = parse_frame(
                plaintext if revision else frame(MessageType.CTAP, plaintext), self._read_link
            )
            if isinstance(event, Ctap | Json) and not self._awaiting_reply:
                raise RemoteProtocolError(f"a {type(event).__name__.upper()} message nobody asked for")
            if self._awaiting_reply and not isinstance(event, Ctap | Update):
                raise RemoteProtocolError(f"a CTAP reply was expected, not {type(event).__name__.lower()}")
            return event

        event = self._open(message, read)
        self._awaiting_reply = self._awaiting_reply and not isinstance(event, Ctap)
        return event

    def shutdown(self) -> bytes | None:
        """The message that says there will be no more requests; None where revision 0 has no word for it."""
        if self.peer is None or self.peer.revision == 0:
            return None
        message = self._seal(frame(MessageType.SHUTDOWN))
        self._said_goodbye = True
        return message


class AuthenticatorChannel(_Channel):
    """The phone's end: says what it is, then answers."""

    __slots__ = ("_heard_goodbye", "_introduced", "_request_pending", "_sign_link")

    def __init__(
        self, *, sending: CipherState, receiving: CipherState, sign_link: SignLink | None = None
    ) -> None:
        """sign_link: makes linking information, in a session where the device would keep some."""
        super().__init__(sending=sending, receiving=receiving)
        self._sign_link = sign_link
        self._introduced = self._request_pending = self._heard_goodbye = False

    @property
    def may_link(self) -> bool:
        """Whether a link can be offered: the session has a FIDO URL, which says that one is wanted."""
        return self._sign_link is not None

    def post_handshake(self, get_info: GetInfoResponse, link: OfferedLink | None = None) -> bytes:
        """The first message: getInfo, and that we speak CTAP. A link goes better into an update."""
        if self._introduced:
            raise LocalProtocolError("the post-handshake message is sent once")
        message = self._seal(PostHandshake(get_info=get_info).encode(self._signed(link)))
        self._introduced = True
        return message

    def update(self, link: OfferedLink | None = None) -> bytes:
        """An update with a link or without; who ever links sends one always, so that nobody can tell."""
        if not self._introduced:
            raise LocalProtocolError("the post-handshake message comes first")
        return self._seal(frame(MessageType.UPDATE, update_payload(self._signed(link))))

    def _signed(self, link: OfferedLink | None) -> LinkingInformation | None:
        if link is None:
            return None
        if self._sign_link is None:
            raise LocalProtocolError("this session is no place to offer a link")
        return self._sign_link(link)

    def receive(self, message: bytes) -> Event:
        """The event in the next message; refuses a request before the last is answered or after a shutdown."""

        def read(plaintext: bytes) -> Event:
            event = parse_frame(plaintext)
            if isinstance(event, Ctap) and self._request_pending:
                raise RemoteProtocolError("a CTAP request before the last one was answered")
            if isinstance(event, Ctap) and self._heard_goodbye:
                raise RemoteProtocolError("a CTAP request after the shutdown")
            return event

        event = self._open(message, read)
        self._request_pending = self._request_pending or isinstance(event, Ctap)
        self._heard_goodbye = self._heard_goodbye or isinstance(event, Shutdown)
        return event

    def reply(self, status: int, payload: bytes = b"") -> bytes:
        """The answer to the request that was received: a CTAP2 status, and CBOR on success."""
        if not self._introduced or not self._request_pending:
            raise LocalProtocolError("there is no request to answer, or no post-handshake message was sent")
        message = self._seal(frame(MessageType.CTAP, bytes([status]) + payload))
        self._request_pending = False
        return message
