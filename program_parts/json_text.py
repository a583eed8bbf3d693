"""The parser of others' JSON: one value in UTF-8 (RFC 8259), or `ValueError`.

Some editors and servers put a byte order mark in front of a file or body. WebAuthn ignores it ("UTF-8 decode", Encoding
Standard §6), and so does this project in JSON, TOML and lines of text.
"""

import json
from codecs import BOM_UTF8
from typing import Any, NoReturn


def decode_json(data: bytes | str) -> Any:
    """Parse one JSON value. `ValueError`: not UTF-8, not JSON, or nested too deeply."""
    text = data.removeprefix("\ufeff") if isinstance(data, str) else without_mark(data).decode()
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error


def without_mark(data: bytes) -> bytes:
    """Remove a leading byte order mark."""
    return data.removeprefix(BOM_UTF8)


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and infinities are not JSON")
