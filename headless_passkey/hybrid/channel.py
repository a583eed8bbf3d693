"""The encrypted channel after the handshake, one end of it (CTAP 2.2 §11.5.1.2).

One message in, one event out; one thing to say in, one message out. `ClientChannel` is the device's end,
`AuthenticatorChannel` the phone's. Anything a peer may not do raises `RemoteProtocolError`, after which the
channel is spoiled and the tunnel is to be closed.
"""

from collections.abc import Callable
from typing import TypeVar

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid.ctap2 import Command, GetAssertionRequest, GetInfoResponse, MakeCredentialRequest
from headless_passkey.hybrid.messages import (
    Ctap,
    Event,
    MessageType,
    PostHandshake,
    Shutdown,
    Update,
    frame,
    pad,
    parse_frame,
    unpad,
)
from headless_passkey.hybrid.noise import CipherState

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

    __slots__ = ("_awaiting_reply", "_said_goodbye", "peer")

    def __init__(self, *, sending: CipherState, receiving: CipherState) -> None:
        super().__init__(sending=sending, receiving=receiving)
        self._awaiting_reply = self._said_goodbye = False
        self.peer: PostHandshake | None = None

    def receive_post_handshake(self, message: bytes) -> PostHandshake:
        """The first message after the handshake."""
        if self.peer is not None:
            raise LocalProtocolError("the post-handshake message has already come")
        self.peer = self._open(message, PostHandshake.parse)
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
        """The event in the next message: the reply, or an update at any time."""
        if self.peer is None:
            raise LocalProtocolError("the post-handshake message comes first")
        revision = self.peer.revision

        def read(plaintext: bytes) -> Event:
            event = parse_frame(plaintext if revision else frame(MessageType.CTAP, plaintext))
            if isinstance(event, Ctap) and not self._awaiting_reply:
                raise RemoteProtocolError("a CTAP message nobody asked for")
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

    __slots__ = ("_heard_goodbye", "_introduced", "_request_pending")

    def __init__(self, *, sending: CipherState, receiving: CipherState) -> None:
        super().__init__(sending=sending, receiving=receiving)
        self._introduced = self._request_pending = self._heard_goodbye = False

    def post_handshake(self, get_info: GetInfoResponse) -> bytes:
        """The first message: getInfo, and that we speak CTAP."""
        if self._introduced:
            raise LocalProtocolError("the post-handshake message is sent once")
        message = self._seal(PostHandshake(get_info=get_info).encode())
        self._introduced = True
        return message

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
