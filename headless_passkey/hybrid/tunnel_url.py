"""Tunnel domains and URLs (CTAP 2.2 §11.5.1, §11.5.2): which host a number names, and the paths on it.

An authenticator chooses its tunnel service and names it by a 16-bit number: 0 and 1 are assigned, 2-255 are
reserved, and 256 and more are hashed into a domain name, so that everybody can run a tunnel service without a registry.
The tunnel service may import this module and no other of the core: it holds nothing that decrypts.
"""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from program_parts.base64url import base64url, from_base64url

SUBPROTOCOL: Final = "fido.cable"
ROUTING_ID_HEADER: Final = "X-caBLE-Routing-ID"
CLIENT_PAYLOAD_HEADER: Final = "X-caBLE-Client-Payload"
SIGNAL_CONNECTION_HEADER: Final = "X-caBLE-Signal-Connection"
CONNECT_SIGNAL: Final = b"\0"
TUNNEL_ID_SIZE: Final = 16
ROUTING_ID_SIZE: Final = 3
MAX_CONTACT_ID_SIZE: Final = 4096  # for instance a push token; it must fit into a request line
MAX_CLIENT_PAYLOAD_SIZE: Final = 1024  # of protocol revision 1: 33
SILENT: Final = 4001  # websocket close code of this project's own service: the other end answers no pings
MAX_MESSAGE_SIZE: Final = 1 << 20  # what Chromium accepts; senders stay below 64 KiB

ASSIGNED_DOMAINS: Final = ("cable.ua5v.com", "cable.auth.com")
FIRST_HASHED: Final = 256

_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
_TOP_LEVEL: Final = ("com", "org", "net", "info")


class CloseReason(StrEnum):
    """Why this project's tunnel service closes a websocket with 1001 (going away): the reason in the close frame (RFC 6455 §7.1.6)."""

    DRAINING = "draining"
    TIME_UP = "time-up"
    STOOD_STILL = "stood-still"  # the end that is told took nothing, or answered no ping
    OTHER_VANISHED = "other-vanished"  # without a close frame
    OTHER_BROKE_A_RULE = "other-broke-a-rule"
    NOT_WOKEN = "not-woken"  # the phone that the hook was to wake


def tunnel_domain(number: int) -> str:
    """The host of a 16-bit tunnel domain number; `RemoteProtocolError` for a reserved number."""
    if 0 <= number < len(ASSIGNED_DOMAINS):
        return ASSIGNED_DOMAINS[number]
    if not FIRST_HASHED <= number <= 0xFFFF:
        raise RemoteProtocolError(
            f"tunnel domain {number} is not assigned", reason=ProtocolReason.UNASSIGNED_TUNNEL_DOMAIN
        )
    digest = hashlib.sha256(b"caBLEv2 tunnel server domain" + number.to_bytes(2, "little") + b"\0").digest()
    value = int.from_bytes(digest[:8], "little")
    value, top_level = value >> 2, _TOP_LEVEL[value & 3]
    letters = ""
    while value:
        value, letters = value >> 5, letters + _LETTERS[value & 31]
    return f"cable.{letters}.{top_level}"


def new_url(base: str, tunnel_id: bytes) -> str:
    """The URL at which an authenticator opens a tunnel. base: ``wss://host`` with an optional port."""
    return f"{base}/cable/new/{tunnel_id.hex().upper()}"


def connect_url(base: str, routing_id: bytes, tunnel_id: bytes) -> str:
    """The URL at which the client platform joins a tunnel."""
    return f"{base}/cable/connect/{routing_id.hex().upper()}/{tunnel_id.hex().upper()}"


def contact_url(base: str, contact_id: bytes) -> str:
    """The URL of a contact request: a linked client platform asks the service to wake its authenticator."""
    return f"{base}/cable/contact/{base64url(contact_id)}"


def contact_headers(client_payload: bytes) -> dict[str, str]:
    """The headers of a contact request, which ask for the connect signal too."""
    return {CLIENT_PAYLOAD_HEADER: client_payload.hex().upper(), SIGNAL_CONNECTION_HEADER: "true"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTunnel:
    """``/cable/new/<tunnel ID>``: an authenticator opens a tunnel."""

    tunnel_id: bytes = field(
        repr=False
    )  # 16 bytes; a secret: whoever knows it can take this end of the tunnel


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectTunnel:
    """``/cable/connect/<routing ID>/<tunnel ID>``: the other end joins it."""

    routing_id: bytes = field(repr=False)  # 3 bytes
    tunnel_id: bytes = field(repr=False)  # 16 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactTunnel:
    """``/cable/contact/<contact ID>``: a linked client platform asks to wake its authenticator."""

    contact_id: bytes = field(repr=False)  # 1-4096 bytes, opaque: the authenticator's vendor made it


def parse_path(path: str) -> NewTunnel | ConnectTunnel | ContactTunnel | None:
    """Parse the path of a request to a tunnel service; None for another path. Hexadecimal is taken in either case."""
    match path.split("/"):
        case ["", "cable", "new", tunnel]:
            if (tunnel_id := _hex(tunnel, TUNNEL_ID_SIZE)) is not None:
                return NewTunnel(tunnel_id=tunnel_id)
        case ["", "cable", "connect", routing, tunnel]:
            routing_id, tunnel_id = _hex(routing, ROUTING_ID_SIZE), _hex(tunnel, TUNNEL_ID_SIZE)
            if routing_id is not None and tunnel_id is not None:
                return ConnectTunnel(routing_id=routing_id, tunnel_id=tunnel_id)
        case ["", "cable", "contact", contact]:
            if contact_id := _base64url(contact, MAX_CONTACT_ID_SIZE):
                return ContactTunnel(contact_id=contact_id)
    return None


def parse_routing_id(header: str) -> bytes:
    """Parse an ``X-caBLE-Routing-ID`` header: 3 bytes."""
    routing_id = _hex(header, ROUTING_ID_SIZE)
    if routing_id is None:
        raise RemoteProtocolError(
            "the tunnel service's routing ID is not six hexadecimal digits",
            reason=ProtocolReason.MALFORMED_TUNNEL_HEADER,
        )
    return routing_id


def parse_client_payload_header(header: str) -> bytes:
    """Decode an ``X-caBLE-Client-Payload`` header, hexadecimal in either case; `linking` parses the bytes."""
    size = len(header) // 2
    payload = _hex(header, size) if 0 < size <= MAX_CLIENT_PAYLOAD_SIZE else None
    if payload is None:
        raise RemoteProtocolError(
            "the client payload is not hexadecimal, or of an impossible size",
            reason=ProtocolReason.MALFORMED_TUNNEL_HEADER,
        )
    return payload


def connection_is_signalled(header: str | None) -> bool:
    """Whether the tunnel service will send the connect signal. header: its ``X-caBLE-Signal-Connection``."""
    return header is not None and header.lower() == "true"


def check_connect_signal(message: bytes) -> None:
    """Check the connect signal, the tunnel service's own message in front of all of the authenticator's."""
    if message != CONNECT_SIGNAL:
        raise RemoteProtocolError(
            "the tunnel service announced a connect signal and sent something else",
            reason=ProtocolReason.UNEXPECTED_MESSAGE,
        )


def _base64url(text: str, max_size: int) -> bytes | None:
    """Decode base64url without padding; None for any form that encoding would not give."""
    return None if len(text) > -(-max_size * 4 // 3) else from_base64url(text)


def _hex(text: str, size: int) -> bytes | None:
    if len(text) != 2 * size:
        return None
    try:
        data = bytes.fromhex(text)
    except ValueError:
        return None
    return data if len(data) == size else None  # it passes over spaces
