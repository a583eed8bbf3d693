"""Tunnel domains and URLs (CTAP 2.2 §11.5.1, §11.5.2): which host a number names, and the paths on it.

An authenticator picks its tunnel service and names it by a 16-bit number: 0 and 1 are assigned, 2-255 are
not, and 256 and more are hashed into a domain name, so that anybody can run a tunnel service without asking.
This is the one module of the core that the tunnel service may import: nothing here opens anything.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Final

from headless_passkey.errors import RemoteProtocolError

SUBPROTOCOL: Final = "fido.cable"
ROUTING_ID_HEADER: Final = "X-caBLE-Routing-ID"
CLIENT_PAYLOAD_HEADER: Final = "X-caBLE-Client-Payload"
SIGNAL_CONNECTION_HEADER: Final = "X-caBLE-Signal-Connection"
CONNECT_SIGNAL: Final = b"\0"
TUNNEL_ID_SIZE: Final = 16
ROUTING_ID_SIZE: Final = 3
MAX_CONTACT_ID_SIZE: Final = 4096  # a push token, or the like; it must fit into a request line
MAX_CLIENT_PAYLOAD_SIZE: Final = 1024  # today's has 33
SILENT: Final = 4001  # websocket close code of this project's own service: the other end answers no pings
MAX_MESSAGE_SIZE: Final = 1 << 20  # what Chromium accepts; senders stay below 64 KiB

ASSIGNED_DOMAINS: Final = ("cable.ua5v.com", "cable.auth.com")
FIRST_HASHED: Final = 256

_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
_TOP_LEVEL: Final = ("com", "org", "net", "info")


def tunnel_domain(number: int) -> str:
    """The host that a 16-bit tunnel domain number names; `RemoteProtocolError` for one that names none."""
    if 0 <= number < len(ASSIGNED_DOMAINS):
        return ASSIGNED_DOMAINS[number]
    if not FIRST_HASHED <= number <= 0xFFFF:
        raise RemoteProtocolError(f"tunnel domain {number} is not assigned")
    digest = hashlib.sha256(b"caBLEv2 tunnel server domain" + number.to_bytes(2, "little") + b"\0").digest()
    value = int.from_bytes(digest[:8], "little")
    value, top_level = value >> 2, _TOP_LEVEL[value & 3]
    letters = ""
    while value:
        value, letters = value >> 5, letters + _LETTERS[value & 31]
    return f"cable.{letters}.{top_level}"


def new_url(base: str, tunnel_id: bytes) -> str:
    """Where the authenticator opens a tunnel. base: ``wss://host`` with an optional port."""
    return f"{base}/cable/new/{tunnel_id.hex().upper()}"


def connect_url(base: str, routing_id: bytes, tunnel_id: bytes) -> str:
    """Where the client platform joins it."""
    return f"{base}/cable/connect/{routing_id.hex().upper()}/{tunnel_id.hex().upper()}"


def contact_url(base: str, contact_id: bytes) -> str:
    """Where a linked client platform asks for its authenticator to be woken."""
    return f"{base}/cable/contact/{base64.urlsafe_b64encode(contact_id).decode().rstrip('=')}"


def contact_headers(client_payload: bytes) -> dict[str, str]:
    """What goes with that request; it asks to be told when the authenticator has joined."""
    return {CLIENT_PAYLOAD_HEADER: client_payload.hex().upper(), SIGNAL_CONNECTION_HEADER: "true"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTunnel:
    """``/cable/new/<tunnel ID>``: an authenticator opens a tunnel."""

    tunnel_id: bytes = field(repr=False)  # 16 bytes; whoever knows it can take the place in the tunnel


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectTunnel:
    """``/cable/connect/<routing ID>/<tunnel ID>``: the other end joins it."""

    routing_id: bytes = field(repr=False)  # 3 bytes
    tunnel_id: bytes = field(repr=False)  # 16 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactTunnel:
    """``/cable/contact/<contact ID>``: a linked client platform wants its authenticator woken."""

    contact_id: bytes = field(repr=False)  # 1-4096 bytes, the vendor's business


def parse_path(path: str) -> NewTunnel | ConnectTunnel | ContactTunnel | None:
    """What a request path asks of a tunnel service, or None; hexadecimal in either case."""
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
    """The 3 bytes of an ``X-caBLE-Routing-ID`` header."""
    routing_id = _hex(header, ROUTING_ID_SIZE)
    if routing_id is None:
        raise RemoteProtocolError("the tunnel service's routing ID is not six hexadecimal digits")
    return routing_id


def parse_client_payload_header(header: str) -> bytes:
    """The bytes of an ``X-caBLE-Client-Payload`` header, hexadecimal in either case; `linking` reads them."""
    size = len(header) // 2
    payload = _hex(header, size) if 0 < size <= MAX_CLIENT_PAYLOAD_SIZE else None
    if payload is None:
        raise RemoteProtocolError("the client payload is not hexadecimal, or of no size it can have")
    return payload


def connection_is_signalled(header: str | None) -> bool:
    """Whether the connect signal will come. header: the tunnel service's ``X-caBLE-Signal-Connection``."""
    return header is not None and header.lower() == "true"


def check_connect_signal(message: bytes) -> None:
    """Take the connect signal: where one was announced, the message before all of the authenticator's."""
    if message != CONNECT_SIGNAL:
        raise RemoteProtocolError("the tunnel service announced a connect signal and sent something else")


def _base64url(text: str, max_size: int) -> bytes | None:
    """Without padding, and in the one form that encoding it gives."""
    if len(text) > -(-max_size * 4 // 3) or not text.isascii():
        return None
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        return None
    return data if base64.urlsafe_b64encode(data).decode().rstrip("=") == text else None


def _hex(text: str, size: int) -> bytes | None:
    if len(text) != 2 * size or not set(text) <= set("0123456789abcdefABCDEF"):
        return None
    return bytes.fromhex(text)
