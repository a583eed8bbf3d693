"""The one door for JSON of others: one value in UTF-8 (RFC 8259), or `ValueError`.

Editors and servers put a byte order mark in front of a file or body; WebAuthn reads it over ("UTF-8 decode", Encoding
Standard §6), and so does this project, wherever it reads JSON, TOML or a line that somebody else has written.
"""

import json
from codecs import BOM_UTF8
from typing import Any, NoReturn


def decode_json(data: bytes | str) -> Any:
    """The value that `data` holds, all of it. `ValueError`: not UTF-8, not JSON, or nested too deeply to be read."""
    text = data.removeprefix("\ufeff") if isinstance(data, str) else without_mark(data).decode()
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error


def without_mark(data: bytes) -> bytes:
    """UTF-8 without the byte order mark in front."""
    return data.removeprefix(BOM_UTF8)


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and infinities are not JSON")
