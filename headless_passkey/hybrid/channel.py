"""One end of the encrypted channel after the handshake (CTAP 2.2 §11.5.1.2).

A received message gives one event; a request or response gives one message to send. `ClientChannel` is the device's
end, `AuthenticatorChannel` the phone's. A message that violates the protocol raises `RemoteProtocolError` and spoils the
channel: every later call fails, and the caller closes the tunnel.
"""

from collections.abc import Callable
from typing import TypeVar

from headless_passkey.errors import LocalProtocolError, ProtocolReason, RemoteProtocolError
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
    """Encrypts and decrypts messages, in the same way at both ends."""

    __slots__ = ("_receiving", "_sending", "_spoiled")

    def __init__(self, *, sending: CipherState, receiving: CipherState) -> None:
        self._sending, self._receiving, self._spoiled = sending, receiving, False

    def _seal(self, plaintext: bytes) -> bytes:
        if self._spoiled:
            raise LocalProtocolError("the channel is spoiled, close the tunnel")
        return self._sending.encrypt(pad(plaintext))

    def opens(self, message: bytes) -> bool:
        """Whether these bytes are the next message, as a direct channel has to ask. It changes nothing."""
        return self._receiving.opens(message)

    def _open(self, message: bytes, read: Callable[[bytes], _Read]) -> _Read:
        """Decrypt and parse a message with `read`. Any failure spoils the channel, for messages that would follow too."""
        if self._spoiled:
            raise LocalProtocolError("the channel is spoiled, close the tunnel")
        self._spoiled = True
        found = read(unpad(self._receiving.decrypt(message)))
        self._spoiled = False
        return found


class ClientChannel(_Channel):
    """The client platform's end: takes the post-handshake message, then sends one CTAP2 command at a time."""

    __slots__ = ("_awaiting_reply", "_read_link", "_said_goodbye", "peer")

    def __init__(
        self, *, sending: CipherState, receiving: CipherState, read_link: ReadLink = discard_link
    ) -> None:
        """read_link: verifies linking information, in a session that may bring it."""
        super().__init__(sending=sending, receiving=receiving)
        self._read_link = read_link
        self._awaiting_reply = self._said_goodbye = False
        self.peer: PostHandshake | None = None

    def receive_post_handshake(self, message: bytes) -> PostHandshake:
        """Decrypt and parse the first message after the handshake."""
        if self.peer is not None:
            raise LocalProtocolError("the post-handshake message has already come")
        self.peer = self._open(message, lambda plaintext: PostHandshake.parse(plaintext, self._read_link))
        return self.peer

    def send(self, request: GetAssertionRequest | MakeCredentialRequest) -> bytes:
        """Encrypt a request; at most one is outstanding."""
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
        """Decrypt the next message: the reply to the request, or an update, which may come at any time; its link is verified."""
        if self.peer is None:
            raise LocalProtocolError("the post-handshake message comes first")
        revision = self.peer.revision

        def read(plaintext: bytes) -> Event:
            event = parse_frame(
                plaintext if revision else frame(MessageType.CTAP, plaintext), self._read_link
            )
            if isinstance(event, Ctap | Json) and not self._awaiting_reply:
                raise RemoteProtocolError(
                    f"a {type(event).__name__.upper()} message nobody asked for",
                    reason=ProtocolReason.UNEXPECTED_MESSAGE,
                )
            if self._awaiting_reply and not isinstance(event, Ctap | Update):
                raise RemoteProtocolError(
                    f"a CTAP reply was expected, not {type(event).__name__.lower()}",
                    reason=ProtocolReason.UNEXPECTED_MESSAGE,
                )
            return event

        event = self._open(message, read)
        self._awaiting_reply = self._awaiting_reply and not isinstance(event, Ctap)
        return event

    def shutdown(self) -> bytes | None:
        """Encrypt the shutdown message: there will be no more requests. None in revision 0, which has no such message."""
        if self.peer is None or self.peer.revision == 0:
            return None
        message = self._seal(frame(MessageType.SHUTDOWN))
        self._said_goodbye = True
        return message


class AuthenticatorChannel(_Channel):
    """The phone's end: sends the post-handshake message, then one reply to each request."""

    __slots__ = ("_heard_goodbye", "_introduced", "_request_pending", "_sign_link")

    def __init__(
        self, *, sending: CipherState, receiving: CipherState, sign_link: SignLink | None = None
    ) -> None:
        """sign_link: makes linking information, in a session whose client platform keeps links."""
        super().__init__(sending=sending, receiving=receiving)
        self._sign_link = sign_link
        self._introduced = self._request_pending = self._heard_goodbye = False

    @property
    def may_link(self) -> bool:
        """Whether a link can be offered: the session is QR-initiated, and key 4 of its FIDO URL is true."""
        return self._sign_link is not None

    def post_handshake(self, get_info: GetInfoResponse, link: OfferedLink | None = None) -> bytes:
        """Encrypt the first message: getInfo and the feature ``ctap``. A link goes better into an update."""
        if self._introduced:
            raise LocalProtocolError("the post-handshake message is sent once")
        message = self._seal(PostHandshake(get_info=get_info).encode(self._signed(link)))
        self._introduced = True
        return message

    def update(self, link: OfferedLink | None = None) -> bytes:
        """Encrypt an update, with a link or without. A phone that ever links sends one in each session, so that traffic shows no link."""
        if not self._introduced:
            raise LocalProtocolError("the post-handshake message comes first")
        return self._seal(frame(MessageType.UPDATE, update_payload(self._signed(link))))

    def _signed(self, link: OfferedLink | None) -> LinkingInformation | None:
        if link is None:
            return None
        if self._sign_link is None:
            raise LocalProtocolError("this session takes no link")
        return self._sign_link(link)

    def receive(self, message: bytes) -> Event:
        """Decrypt the next message. A request before the last one was answered, or after a shutdown, is refused."""

        def read(plaintext: bytes) -> Event:
            event = parse_frame(plaintext)
            if isinstance(event, Ctap) and self._request_pending:
                raise RemoteProtocolError(
                    "a CTAP request before the last one was answered",
                    reason=ProtocolReason.UNEXPECTED_MESSAGE,
                )
            if isinstance(event, Ctap) and self._heard_goodbye:
                raise RemoteProtocolError(
                    "a CTAP request after the shutdown", reason=ProtocolReason.UNEXPECTED_MESSAGE
                )
            return event

        event = self._open(message, read)
        self._request_pending = self._request_pending or isinstance(event, Ctap)
        self._heard_goodbye = self._heard_goodbye or isinstance(event, Shutdown)
        return event

    def reply(self, status: int, payload: bytes = b"") -> bytes:
        """Encrypt the response to the outstanding request: a CTAP2 status byte, and CBOR on success."""
        if not self._introduced or not self._request_pending:
            raise LocalProtocolError("there is no request to answer, or no post-handshake message was sent")
        message = self._seal(frame(MessageType.CTAP, bytes([status]) + payload))
        self._request_pending = False
        return message
