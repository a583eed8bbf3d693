"""Signing keys, names and base64url: vectors, properties, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.signing import SoftwareSigningKey, parse_public_key, thumbprint, verify

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "signing.json").read_text())
KEY = SoftwareSigningKey.generate()
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
FIELD = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF


def point(case: dict[str, Any]) -> bytes:
    return b"\x04" + from_base64url(case["x"]) + from_base64url(case["y"])


# Vectors


@pytest.mark.parametrize("case", VECTORS["thumbprints"], ids=lambda case: case["name"])
def test_a_known_key_has_the_known_name(case: dict[str, Any]) -> None:
    assert thumbprint(point(case)) == case["thumbprint"]


@pytest.mark.parametrize("case", VECTORS["signatures"], ids=lambda case: case["name"])
def test_a_known_signature_verifies(case: dict[str, Any]) -> None:
    assert verify(point(case), from_base64url(case["signature"]), case["data"].encode())


# Properties


@given(st.binary(max_size=300))
def test_what_was_signed_verifies_and_nothing_else(data: bytes) -> None:
    signature = KEY.sign(data)
    assert len(signature) == 64
    assert verify(KEY.public_key, signature, data)
    assert not verify(KEY.public_key, signature, data + b"\0")
    assert not verify(SoftwareSigningKey.generate().public_key, signature, data)


@given(st.integers(0, 511))
def test_a_signature_with_a_flipped_bit_does_not_verify(bit: int) -> None:
    signature = bytearray(KEY.sign(b"data"))
    signature[bit // 8] ^= 1 << bit % 8
    assert not verify(KEY.public_key, bytes(signature), b"data")


def test_a_key_is_kept_and_read_back() -> None:
    again = SoftwareSigningKey.from_bytes(KEY.to_bytes())
    assert again.public_key == KEY.public_key
    assert verify(KEY.public_key, again.sign(b"data"), b"data")


# Refusals


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\x04",
        b"\x04" + bytes(64),
        b"\x00" + bytes(64),
        KEY.public_key[:64],
        KEY.public_key + b"\0",
        b"\x02" + KEY.public_key[1:33],
        b"\x05" + KEY.public_key[1:],
        KEY.public_key[:64] + bytes([KEY.public_key[64] ^ 1]),
        b"\x04" + FIELD.to_bytes(32, "big") + KEY.public_key[33:],
        b"\x04" + KEY.public_key[1:33] + (b"\xff" * 32),
    ],
    ids=range(11),
)
def test_what_is_no_point_on_the_curve_is_refused(bad: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_public_key(bad)


@pytest.mark.threat("T12")
@pytest.mark.parametrize("r", [0, 1, ORDER, ORDER + 1])
@pytest.mark.parametrize("s", [0, 1, ORDER, (1 << 256) - 1])
def test_signature_halves_out_of_range_do_not_verify(r: int, s: int) -> None:
    assert not verify(KEY.public_key, r.to_bytes(32, "big") + s.to_bytes(32, "big"), b"data")


@pytest.mark.parametrize("size", [0, 63, 65, 72])
def test_a_signature_of_another_size_does_not_verify(size: int) -> None:
    assert not verify(KEY.public_key, bytes(size), b"data")


@pytest.mark.parametrize("scalar", [b"", bytes(31), bytes(32), ORDER.to_bytes(32, "big"), b"\xff" * 33])
def test_what_is_no_key_is_refused(scalar: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        SoftwareSigningKey.from_bytes(scalar)


@pytest.mark.threat("T11")
def test_a_key_does_not_show_itself() -> None:
    assert KEY.to_bytes().hex() not in repr(KEY)
