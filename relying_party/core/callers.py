"""Who sends a request: a browser, or somebody who is known by a key."""

from dataclasses import dataclass, field
from enum import StrEnum


class ClientKind(StrEnum):
    """Who writes the client data, and so which list of origins it must be in."""

    WEB = "web"  # a browser
    DEVICE = "device"  # a device that is its own WebAuthn client
    ANDROID = "android"  # an app, for which the platform writes the hash of its certificate

    @property
    def proves_key(self) -> bool:
        """Whether it sends proofs of a key; a browser is known by its origin and its cookie."""
        return self is not ClientKind.WEB


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sends a request."""

    kind: ClientKind
    key_thumbprint: str | None = None  # RFC 7638, of the key that was proved; None for a browser
    label: str | None = field(default=None, repr=False)  # what it calls itself; nobody vouches for that
