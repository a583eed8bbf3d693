"""base64url without padding (RFC 4648 §5), as JOSE and WebAuthn JSON write bytes. The relying party has the same rule."""

import base64
import re
import string
from collections.abc import Callable
from typing import Final

from headless_passkey.errors import ProtocolReason, RemoteProtocolError

_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)
_CHARACTERS: Final = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
# the last characters without stray bits, by the length modulo 4: of two characters the last four bits are none of the data's
_LAST: Final = {0: _CHARACTERS, 2: _CHARACTERS[::16], 3: _CHARACTERS[::4]}


def base64url(data: bytes) -> str:
    """Encode `data`."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def new_id(draw: Callable[[], bytes]) -> bytes:
    """Draw a random id. People type its base64url, so that does not begin as an option does, with a hyphen."""
    while base64url(drawn := draw()).startswith("-"):
        pass
    return drawn


def from_base64url(text: str) -> bytes:
    """Decode `text`; `RemoteProtocolError` for padding, foreign characters and stray bits at the end."""
    if not _ALPHABET.fullmatch(text) or len(text) % 4 == 1:
        raise RemoteProtocolError(
            "expected base64url without padding", reason=ProtocolReason.MALFORMED_BASE64URL
        )
    if text and text[-1] not in _LAST[len(text) % 4]:
        raise RemoteProtocolError(
            "base64url with stray bits at its end", reason=ProtocolReason.MALFORMED_BASE64URL
        )
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
