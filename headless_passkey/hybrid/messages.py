"""The plaintext of encrypted messages: padding, the post-handshake message, and framing (CTAP 2.2 §11.5.1.2).

every message    = plaintext || z zero bytes || z         so that the length is a multiple of 32
post-handshake   = CBOR map, no type byte                 authenticator → client platform, once, first
others           = type (1 byte) || payload

The payload of an update has a padding of its own, so that its size does not show whether there is linking information.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import GetInfoResponse
from headless_passkey.hybrid.linking import (
    LinkedPhone,
    LinkingInformation,
    NoLink,
    ReadLink,
    discard_link,
)

_GRANULARITY: Final = 32
_UPDATE_GRANULARITY: Final = 512
_PADDING, _GET_INFO, _LINKING, _FEATURES = range(4)


class MessageType(IntEnum):
    """The type byte."""

    SHUTDOWN = 0
    CTAP = 1
    UPDATE = 2
    JSON = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """The peer will send no more requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ctap:
    """A CTAP2 request (command byte first) or response (status byte first)."""

    code: int  # the command or status byte
    payload: bytes = field(repr=False)  # CBOR, or empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """An update message: a verified link, or the reason for none."""

    link: LinkedPhone | NoLink = NoLink.NOT_OFFERED


@dataclass(frozen=True, slots=True, kw_only=True)
class Json:
    """A JSON message (digital credentials)."""

    text: bytes = field(repr=False)


Event = Shutdown | Ctap | Update | Json


@dataclass(frozen=True, slots=True, kw_only=True)
class PostHandshake:
    """The authenticator's first message after the handshake: its getInfo and its features."""

    get_info: GetInfoResponse | None  # None when it does not speak CTAP
    features: tuple[str, ...] = ("ctap",)
    link: LinkedPhone | NoLink = NoLink.NOT_OFFERED  # older phones put a link here and not into an update
    revision: int = 1

    @classmethod
    def parse(cls, plaintext: bytes, read_link: ReadLink = discard_link) -> "PostHandshake":
        """Parse the unpadded plaintext, also of revision 0, which pads inside the plaintext."""
        revision, values = _parse_revisions(plaintext)
        features = values.get(_FEATURES, ["ctap"])
        if not isinstance(features, list):
            raise RemoteProtocolError(
                "the authenticator's features are not a list", reason=ProtocolReason.MALFORMED_MESSAGE
            )
        known = tuple(feature for feature in features if isinstance(feature, str))
        get_info = values.get(_GET_INFO)
        if get_info is not None and not isinstance(get_info, bytes):
            raise RemoteProtocolError(
                "the authenticator's getInfo is not a byte string", reason=ProtocolReason.MALFORMED_MESSAGE
            )
        if ("ctap" in known) != (get_info is not None):
            raise RemoteProtocolError(
                "getInfo comes with the feature ctap, and only with it",
                reason=ProtocolReason.MALFORMED_MESSAGE,
            )
        return cls(
            get_info=None if get_info is None else GetInfoResponse.parse(get_info),
            features=known,
            link=read_link(values[_LINKING]) if _LINKING in values else NoLink.NOT_OFFERED,
            revision=revision,
        )

    def encode(self, linking: LinkingInformation | None = None) -> bytes:
        """Encode the plaintext in revision 1. linking: for older clients; today linking information goes into an update."""
        values: dict[int, Any] = {_FEATURES: list(self.features)}
        if self.get_info is not None:
            values[_GET_INFO] = self.get_info.encode()
        if linking is not None:
            values[_LINKING] = linking.as_map()
        return cbor.encode(values)


def frame(kind: MessageType, payload: bytes = b"") -> bytes:
    """Put the type byte in front of a payload."""
    return bytes([kind]) + payload


def update_payload(linking: LinkingInformation | None) -> bytes:
    """Make the payload of an update: with type and padding 512 bytes, with linking information or without.

    Linking information with a very long contact ID makes it a multiple of 512.
    """
    values = {} if linking is None else {_UPDATE_LINKING: linking.as_map()}
    size = len(cbor.encode(values)) if values else 0
    zeros = -(_UPDATE_OVERHEAD + size) % _UPDATE_GRANULARITY
    return cbor.encode({_PADDING: bytes(zeros)} | values)


_UPDATE_LINKING: Final = 1
_UPDATE_OVERHEAD: Final = 20  # type, CBOR heads, and 16 bytes for the outer padding, as Chromium counts


def parse_frame(plaintext: bytes, read_link: ReadLink = discard_link) -> Event:
    """Parse an unpadded plaintext to its event; an unknown type or an empty message is a protocol error."""
    if not plaintext:
        raise RemoteProtocolError("an empty message has no type", reason=ProtocolReason.MALFORMED_MESSAGE)
    kind, payload = plaintext[0], plaintext[1:]
    match kind:
        case MessageType.SHUTDOWN:
            return Shutdown()
        case MessageType.CTAP if payload:
            return Ctap(code=payload[0], payload=payload[1:])
        case MessageType.UPDATE:
            values = cbor.decode_map(payload)
            return Update(
                link=read_link(values[_UPDATE_LINKING]) if _UPDATE_LINKING in values else NoLink.NOT_OFFERED
            )
        case MessageType.JSON:
            return Json(text=payload)
        case _:
            raise RemoteProtocolError(
                f"unexpected message of type {kind}", reason=ProtocolReason.UNEXPECTED_MESSAGE
            )


def pad(plaintext: bytes) -> bytes:
    """Pad to a multiple of 32 bytes; the last byte counts the zeros before it."""
    zeros = _GRANULARITY - 1 - len(plaintext) % _GRANULARITY
    return plaintext + bytes(zeros) + bytes([zeros])


def unpad(padded: bytes) -> bytes:
    """Remove the padding. Peers pad to different multiples, so every count that fits is accepted."""
    if not padded or padded[-1] + 1 > len(padded):
        raise RemoteProtocolError(
            "a message has no room for its padding", reason=ProtocolReason.MALFORMED_MESSAGE
        )
    return padded[: -1 - padded[-1]]


def _parse_revisions(plaintext: bytes) -> tuple[int, dict[Any, Any]]:
    """Tell revision 1, exactly one CBOR map, from revision 0, a map with zeros and their count behind it."""
    try:
        return 1, cbor.decode_map(plaintext)
    except RemoteProtocolError as error:
        for width in (2, 1):
            count = int.from_bytes(plaintext[-width:], "little")
            if len(plaintext) >= width and count + width <= len(plaintext):
                try:
                    return 0, cbor.decode_map(plaintext[: -width - count])
                except RemoteProtocolError:
                    continue
        raise RemoteProtocolError(
            "the post-handshake message is not a CBOR map", reason=ProtocolReason.MALFORMED_MESSAGE
        ) from error
