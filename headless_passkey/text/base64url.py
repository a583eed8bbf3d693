"""base64url as peers write it: what is none is a violation of the protocol. Ids in it."""

from collections.abc import Callable

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from program_parts import base64url


def new_id(draw: Callable[[], bytes]) -> bytes:
    """Draw a random id. People type its base64url, so that does not begin as an option does, with a hyphen."""
    while base64url.base64url(drawn := draw()).startswith("-"):
        pass
    return drawn


def from_base64url(text: str) -> bytes:
    """Decode `text`; `RemoteProtocolError` for padding, foreign characters and stray bits at the end."""
    data = base64url.from_base64url(text)
    if data is None:
        raise RemoteProtocolError(
            "expected base64url without padding and without stray bits at its end",
            reason=ProtocolReason.MALFORMED_BASE64URL,
        )
    return data
