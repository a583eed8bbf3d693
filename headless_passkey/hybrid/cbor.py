"""CTAP2 canonical CBOR (CTAP 2.2 §8), encoded and decoded here and nowhere else.

Canonical means: shortest heads, definite lengths, map keys in order without repetition, no tags, no
floating point, no bytes left over. The decoder is total: any bytes give a value or `RemoteProtocolError`, in linear
time and with bounded depth. Why this is not a library: docs/adr/0004.

Values are int, bytes, str, bool, None, list and dict.
"""

from collections.abc import Mapping
from typing import Any, Final

from headless_passkey.errors import LocalProtocolError, ProtocolReason, RemoteProtocolError

MAX_DEPTH: Final = 16  # CTAP2 asks for 4; attestation statements and extension outputs go a little deeper

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _SIMPLE = 0, 1, 2, 3, 4, 5, 7
_FALSE, _TRUE, _NULL = 20, 21, 22
_CONSTANTS: Final[dict[int, bool | None]] = {_FALSE: False, _TRUE: True, _NULL: None}


def encode(value: Any) -> bytes:
    """Encode `value` as canonical CBOR; `LocalProtocolError` for a type or size that CTAP2 CBOR has no form for."""
    return _encode_item(value, 0)


def decode(data: bytes) -> Any:
    """Decode the single value in `data`; bytes behind it are an error."""
    value, end = _decode_item(data, 0, 0)
    if end != len(data):
        raise RemoteProtocolError(
            f"{len(data) - end} bytes after the CBOR value", reason=ProtocolReason.MALFORMED_CBOR
        )
    return value


def decode_first(data: bytes) -> tuple[Any, bytes]:
    """Decode the first value in `data`, and return the bytes behind it too, as authenticator data needs."""
    value, end = _decode_item(data, 0, 0)
    return value, data[end:]


def decode_map(data: bytes) -> dict[Any, Any]:
    """Decode the single value in `data`, which must be a map."""
    value = decode(data)
    if not isinstance(value, dict):
        raise RemoteProtocolError(
            f"expected a CBOR map, got {type(value).__name__}", reason=ProtocolReason.MALFORMED_CBOR
        )
    return value


def _encode_item(value: Any, depth: int) -> bytes:
    if depth > MAX_DEPTH:
        raise LocalProtocolError("the value is nested too deeply for CTAP2 CBOR")
    match value:
        case None:
            return _head(_SIMPLE, _NULL)
        case bool():
            return _head(_SIMPLE, _TRUE if value else _FALSE)
        case int() if value >= 0:
            return _head(_UNSIGNED, value)
        case int():
            return _head(_NEGATIVE, -1 - value)
        case bytes() | bytearray() | memoryview():
            return _head(_BYTES, len(value)) + bytes(value)
        case str():
            try:
                text = value.encode()
            except UnicodeEncodeError as error:
                raise LocalProtocolError("CTAP2 CBOR has no form for half a surrogate pair") from error
            return _head(_TEXT, len(text)) + text
        case list() | tuple():
            return _head(_ARRAY, len(value)) + b"".join(_encode_item(item, depth + 1) for item in value)
        case Mapping():
            if not all(map(_is_key, value)):
                raise LocalProtocolError("a CBOR map key is an integer or a string")
            pairs = sorted(
                (_sort_key(encode(key)), _encode_item(item, depth + 1)) for key, item in value.items()
            )
            return _head(_MAP, len(pairs)) + b"".join(key[2] + item for key, item in pairs)
        case _:
            raise LocalProtocolError(f"CTAP2 CBOR has no form for {type(value).__name__}")


def _head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    for extra, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << (8 * size):
            return bytes([major << 5 | extra]) + argument.to_bytes(size, "big")
    raise LocalProtocolError("CTAP2 CBOR has no form for integers beyond 64 bits")


def _is_key(value: Any) -> bool:
    return isinstance(value, int | bytes | str) and not isinstance(value, bool)


def _sort_key(key: bytes) -> tuple[int, int, bytes]:
    """Order map keys as CTAP2 does: by major type, then length, then bytes."""
    return key[0] >> 5, len(key), key


def _decode_item(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """Decode the value that starts at offset `at`, and return the offset behind it too."""
    if depth > MAX_DEPTH:
        raise RemoteProtocolError("CBOR is nested too deeply", reason=ProtocolReason.MALFORMED_CBOR)
    major, argument, at = _decode_head(data, at)
    match major:
        case 0:
            return argument, at
        case 1:
            return -1 - argument, at
        case 2 | 3:
            end = at + argument
            if end > len(data):
                raise RemoteProtocolError("CBOR ends inside a string", reason=ProtocolReason.MALFORMED_CBOR)
            if major == _BYTES:
                return data[at:end], end
            try:
                return data[at:end].decode(), end
            except UnicodeDecodeError as error:
                raise RemoteProtocolError(
                    "CBOR text is not UTF-8", reason=ProtocolReason.MALFORMED_CBOR
                ) from error
        case 4:
            items = []
            for _ in range(argument):
                item, at = _decode_item(data, at, depth + 1)
                items.append(item)
            return items, at
        case 5:
            return _decode_map_items(data, at, argument, depth)
        case 7 if argument in _CONSTANTS:
            return _CONSTANTS[argument], at
        case _:
            raise RemoteProtocolError(
                "CBOR tags, floating point and other simple values are not CTAP2's",
                reason=ProtocolReason.MALFORMED_CBOR,
            )


def _decode_map_items(data: bytes, at: int, count: int, depth: int) -> tuple[dict[Any, Any], int]:
    values: dict[Any, Any] = {}
    last: tuple[int, int, bytes] | None = None
    for _ in range(count):
        start = at
        key, at = _decode_item(data, at, depth + 1)
        if not _is_key(key):
            raise RemoteProtocolError(
                "a CBOR map key is neither integer nor string", reason=ProtocolReason.MALFORMED_CBOR
            )
        order = _sort_key(data[start:at])
        if last is not None and order <= last:
            raise RemoteProtocolError(
                "CBOR map keys are not in canonical order, or repeat", reason=ProtocolReason.MALFORMED_CBOR
            )
        last = order
        values[key], at = _decode_item(data, at, depth + 1)
    return values, at


def _decode_head(data: bytes, at: int) -> tuple[int, int, int]:
    """Decode the head at offset `at`: major type, argument, and the offset behind it."""
    if at >= len(data):
        raise RemoteProtocolError("CBOR ends too early", reason=ProtocolReason.MALFORMED_CBOR)
    major, argument = data[at] >> 5, data[at] & 0x1F
    at += 1
    if argument < 24:
        return major, argument, at
    if argument > 27 or major == _SIMPLE:
        raise RemoteProtocolError(
            "CBOR has an indefinite length, a float or a reserved head", reason=ProtocolReason.MALFORMED_CBOR
        )
    size = 1 << (argument - 24)
    end = at + size
    if end > len(data):
        raise RemoteProtocolError("CBOR ends inside a head", reason=ProtocolReason.MALFORMED_CBOR)
    value = int.from_bytes(data[at:end], "big")
    if value < (24 if size == 1 else 1 << (4 * size)):
        raise RemoteProtocolError("a CBOR head is longer than needed", reason=ProtocolReason.MALFORMED_CBOR)
    return major, value, end
