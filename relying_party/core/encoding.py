"""Text as bytes: base64url without padding, as JOSE and WebAuthn JSON write it, read strictly; byte order marks."""

import base64
import binascii
import re
from codecs import BOM_UTF8
from typing import Final

_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]*")


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_base64url(text: str) -> bytes | None:
    """What `text` encodes, or None when no encoder would have written it so."""
    if _ALPHABET.fullmatch(text) is None:
        return None
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return None
    return data if base64url(data) == text else None  # stray bits behind the last byte


def without_mark(data: bytes) -> bytes:
    """UTF-8 without the byte order mark in front, as "UTF-8 decode" reads it (WebAuthn Level 3 §7.1, Encoding Standard §6)."""
    return data.removeprefix(BOM_UTF8)
