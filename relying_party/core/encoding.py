"""base64url without padding (JOSE, WebAuthn JSON), decoded strictly; byte order marks."""

import base64
import binascii
import re
from codecs import BOM_UTF8
from typing import Final

_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]*")


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_base64url(text: str) -> bytes | None:
    """Decode base64url; None for any form that encoding would not give."""
    if _ALPHABET.fullmatch(text) is None:
        return None
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return None
    return data if base64url(data) == text else None  # refuses stray bits behind the last byte


def without_mark(data: bytes) -> bytes:
    """UTF-8 without the byte order mark in front, as "UTF-8 decode" reads it (WebAuthn Level 3 §7.1, Encoding Standard §6)."""
    return data.removeprefix(BOM_UTF8)
