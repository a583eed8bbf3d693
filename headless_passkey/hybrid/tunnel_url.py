"""Tunnel domains and URLs (CTAP 2.2 §11.5.1): which host a number names, and the paths on it.

An authenticator picks its tunnel service and names it by a 16-bit number: 0 and 1 are assigned, 2-255 are
not, and 256 and more are hashed into a domain name, so that anybody can run a tunnel service without asking.
This is the one module of the core that the tunnel service may import: nothing here opens anything.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Final

from headless_passkey.errors import RemoteProtocolError

SUBPROTOCOL: Final = "fido.cable"
ROUTING_ID_HEADER: Final = "X-caBLE-Routing-ID"
TUNNEL_ID_SIZE: Final = 16
ROUTING_ID_SIZE: Final = 3
MAX_MESSAGE_SIZE: Final = 1 << 20  # what Chromium accepts; senders stay below 64 KiB

ASSIGNED_DOMAINS: Final = ("cable.ua5v.com", "cable.auth.com")

_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
_TOP_LEVEL: Final = ("com", "org", "net", "info")
_FIRST_HASHED: Final = 256


def tunnel_domain(number: int) -> str:
    """The host that a 16-bit tunnel domain number names; `RemoteProtocolError` for one that names none."""
    if 0 <= number < len(ASSIGNED_DOMAINS):
        return ASSIGNED_DOMAINS[number]
    if not _FIRST_HASHED <= number <= 0xFFFF:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTunnel:
    """``/cable/new/<tunnel ID>``: an authenticator opens a tunnel."""

    tunnel_id: bytes = field(repr=False)  # 16 bytes; whoever knows it can take the place in the tunnel


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectTunnel:
    """``/cable/connect/<routing ID>/<tunnel ID>``: the other end joins it."""

    routing_id: bytes = field(repr=False)  # 3 bytes
    tunnel_id: bytes = field(repr=False)  # 16 bytes


def parse_path(path: str) -> NewTunnel | ConnectTunnel | None:
    """What a request path asks of a tunnel service, or None; hexadecimal in either case."""
    match path.split("/"):
        case ["", "cable", "new", tunnel]:
            if (tunnel_id := _hex(tunnel, TUNNEL_ID_SIZE)) is not None:
                return NewTunnel(tunnel_id=tunnel_id)
        case ["", "cable", "connect", routing, tunnel]:
            routing_id, tunnel_id = _hex(routing, ROUTING_ID_SIZE), _hex(tunnel, TUNNEL_ID_SIZE)
            if routing_id is not None and tunnel_id is not None:
                return ConnectTunnel(routing_id=routing_id, tunnel_id=tunnel_id)
    return None


def parse_routing_id(header: str) -> bytes:
    """The 3 bytes of an ``X-caBLE-Routing-ID`` header."""
    routing_id = _hex(header, ROUTING_ID_SIZE)
    if routing_id is None:
        raise RemoteProtocolError("the tunnel service's routing ID is not six hexadecimal digits")
    return routing_id


def _hex(text: str, size: int) -> bytes | None:
    if len(text) != 2 * size or not set(text) <= set("0123456789abcdefABCDEF"):
        return None
    return bytes.fromhex(text)
