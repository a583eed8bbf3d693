"""The sender of a request: a browser, or a client that proves a key."""

from dataclasses import dataclass, field
from enum import StrEnum


class ClientKind(StrEnum):
    """The kind of client, which decides the list of origins that its client data must name."""

    WEB = "web"  # a browser
    DEVICE = "device"  # a device that is its own WebAuthn client
    ANDROID = "android"  # an app; the platform writes its certificate's hash as origin

    @property
    def proves_key(self) -> bool:
        """Whether the client proves possession of a key; a browser has origin and cookie instead."""
        return self is not ClientKind.WEB


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The sender of a request."""

    kind: ClientKind
    key_thumbprint: str | None = None  # RFC 7638, of the proved key; None for a browser
    label: str | None = field(default=None, repr=False)  # its own name for itself; unverified
