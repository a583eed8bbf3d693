"""The encrypted channel after the handshake, one end of it (CTAP 2.2 §11.5.1.2).

One message in, one event out; one thing to say in, one message out. `ClientChannel` is the device's end,
`AuthenticatorChannel` the phone's. Anything a peer may not do raises `RemoteProtocolError`, after which the
channel is spoiled and the tunnel is to be closed.
"""

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid.ctap2 import Command, GetAssertionRequest, GetInfoResponse, MakeCredentialRequest
from headless_passkey.hybrid.messages import (
    Ctap,
    Event,
    MessageType,
    PostHandshake,
    Update,
    frame,
    pad,
    parse_frame,
    unpad,
)
from headless_passkey.hybrid.noise import CipherState


class _Channel:
    """Sealing and opening, alike at both ends."""

    __slots__ = ("_receiving", "_sending", "_spoiled")

    def __init__(self, *, sending: CipherState, receiving: CipherState) -> None:
        self._sending, self._receiving, self._spoiled = sending, receiving, False

    def _seal(self, plaintext: bytes) -> bytes:
        if self._spoiled:
            raise LocalProtocolError("the channel is spoiled, close the tunnel")
        return self._sending.encrypt(pad(plaintext))

    def _open(self, message: bytes) -> bytes:
        if self._spoiled:
            raise LocalProtocolError("the channel is spoiled, close the tunnel")
        self._spoiled = True
        plaintext = unpad(self._receiving.decrypt(message))
        self._spoiled = False
        return plaintext

    def _refuse(self, why: str) -> RemoteProtocolError:
        self._spoiled = True
        return RemoteProtocolError(why)


class ClientChannel(_Channel):
    """The client platform's end: learns what the phone is, sends one command at a time."""

    __slots__ = ("_awaiting_reply", "peer")

    def __init__(self, *, sending: CipherState, receiving: CipherState) -> None:
        super().__init__(sending=sending, receiving=receiving)
        self._awaiting_reply = False
        self.peer: PostHandshake | None = None

    def receive_post_handshake(self, message: bytes) -> PostHandshake:
        """The first message after the handshake."""
        if self.peer is not None:
            raise LocalProtocolError("the post-handshake message has already come")
        self.peer = PostHandshake.parse(self._open(message))
        return self.peer

    def send(self, request: GetAssertionRequest | MakeCredentialRequest) -> bytes:
        """The message that carries `request`."""
        if self.peer is None or self._awaiting_reply:
            raise LocalProtocolError("one CTAP request at a time, and none before the post-handshake message")
        is_get = isinstance(request, GetAssertionRequest)
        command = Command.GET_ASSERTION if is_get else Command.MAKE_CREDENTIAL
        payload = bytes([command]) + request.encode()
        self._awaiting_reply = True
        return self._seal(payload if self.peer.revision == 0 else frame(MessageType.CTAP, payload))

    def receive(self, message: bytes) -> Event:
        """The event in the next message: the reply, or an update at any time."""
        if self.peer is None:
            raise LocalProtocolError("the post-handshake message comes first")
        plaintext = self._open(message)
        if self.peer.revision == 0:
            plaintext = frame(MessageType.CTAP, plaintext)
        event = parse_frame(plaintext)
        if isinstance(event, Ctap):
            if not self._awaiting_reply:
                raise self._refuse("a CTAP message nobody asked for")
            self._awaiting_reply = False
        elif self._awaiting_reply and not isinstance(event, Update):
            raise self._refuse(f"a CTAP reply was expected, not {type(event).__name__.lower()}")
        return event

    def shutdown(self) -> bytes | None:
        """The message that says there will be no more requests; None where revision 0 has no word for it."""
        if self.peer is None or self.peer.revision == 0:
            return None
        return self._seal(frame(MessageType.SHUTDOWN))


class AuthenticatorChannel(_Channel):
    """The phone's end: says what it is, then answers."""

    __slots__ = ("_introduced", "_request_pending")

    def __init__(self, *, sending: CipherState, receiving: CipherState) -> None:
        super().__init__(sending=sending, receiving=receiving)
        self._introduced = self._request_pending = False

    def post_handshake(self, get_info: GetInfoResponse) -> bytes:
        """The first message: getInfo, and that we speak CTAP."""
        if self._introduced:
            raise LocalProtocolError("the post-handshake message is sent once")
        self._introduced = True
        return self._seal(PostHandshake(get_info=get_info).encode())

    def receive(self, message: bytes) -> Event:
        """The event in the next message; a second request before the first is answered is refused."""
        event = parse_frame(self._open(message))
        if isinstance(event, Ctap):
            if self._request_pending:
                raise self._refuse("a CTAP request before the last one was answered")
            self._request_pending = True
        return event

    def reply(self, status: int, payload: bytes = b"") -> bytes:
        """The answer to the request that was received: a CTAP2 status, and CBOR on success."""
        if not self._request_pending:
            raise LocalProtocolError("there is no request to answer")
        self._request_pending = False
        return self._seal(frame(MessageType.CTAP, bytes([status]) + payload))
