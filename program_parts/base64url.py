"""base64url without padding (RFC 4648 §5), as JOSE and WebAuthn JSON write bytes."""

import base64
import re
import string
from typing import Final

_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)
_CHARACTERS: Final = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
# the last characters without stray bits, by the length modulo 4: of two characters the last four bits are none of the data's
_LAST: Final = {0: _CHARACTERS, 2: _CHARACTERS[::16], 3: _CHARACTERS[::4]}


def base64url(data: bytes) -> str:
    """Encode `data`."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_base64url(text: str) -> bytes | None:
    """Decode `text`; None for any form that encoding would not give: padding, foreign characters, stray bits at the end."""
    if not _ALPHABET.fullmatch(text) or len(text) % 4 == 1:
        return None
    if text and text[-1] not in _LAST[len(text) % 4]:
        return None
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
