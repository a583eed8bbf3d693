"""Who sends a request: a browser, or a device that is known by its key."""

from dataclasses import dataclass
from enum import StrEnum


class ClientKind(StrEnum):
    """Who writes the client data: a browser, or a device that is its own WebAuthn client."""

    WEB = "web"
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sends a request."""

    kind: ClientKind
    key_thumbprint: str | None = None  # RFC 7638, of the device's key; None for a browser
