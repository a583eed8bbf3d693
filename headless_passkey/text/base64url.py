"""base64url as peers write it: what is none is a violation of the protocol. Ids in it."""

from collections.abc import Callable

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from program_parts.base64url import base64url
from program_parts.base64url import from_base64url as decoded

# `base64url` is for those who write a companion (docs/how-to/companion-app.md)
__all__ = ["base64url", "from_base64url", "new_id"]


def new_id(draw: Callable[[], bytes]) -> bytes:
    """Draw a random id. People type its base64url, so that does not begin as an option does, with a hyphen."""
    while base64url(drawn := draw()).startswith("-"):
        pass
    return drawn


def from_base64url(text: str) -> bytes:
    """Decode `text`; `RemoteProtocolError` for padding, foreign characters and stray bits at the end."""
    data = decoded(text)
    if data is None:
        raise RemoteProtocolError(
            "expected base64url without padding and without stray bits at its end",
            reason=ProtocolReason.MALFORMED_BASE64URL,
        )
    return data
