"""Signing keys, names and base64url: vectors, properties, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.signing import (
    SoftwareSigningKey,
    parse_public_key,
    sign_document,
    thumbprint,
    uncompressed,
    verify,
)
from tests.trust.people import ORDER, twin

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "signing.json").read_text())
KEY = SoftwareSigningKey.generate()
FIELD = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF


class Stubborn:
    """A key, such as one in hardware, whose signatures have always the higher s, or always the lower one."""

    def __init__(self, key: SoftwareSigningKey, *, high: bool) -> None:
        self.public_key, self._key, self._high = key.public_key, key, high

    def sign(self, data: bytes) -> bytes:
        low = sign_document(self._key, data)
        return twin(low) if self._high else low


def point(case: dict[str, Any]) -> bytes:
    return b"\x04" + from_base64url(case["x"]) + from_base64url(case["y"])


# Vectors


@pytest.mark.parametrize("case", VECTORS["thumbprints"], ids=lambda case: case["name"])
def test_a_known_key_has_the_known_name(case: dict[str, Any]) -> None:
    assert thumbprint(point(case)) == case["thumbprint"]


@pytest.mark.threat("T2")
@pytest.mark.parametrize("case", VECTORS["twins"], ids=lambda case: case["name"])
def test_of_a_known_signature_and_its_twin_only_the_lower_s_verifies(case: dict[str, Any]) -> None:
    verifies, is_refused = from_base64url(case["verifies"]), from_base64url(case["refused"])
    assert twin(verifies) == is_refused
    assert verify(point(case), verifies, case["data"].encode())
    assert not verify(point(case), is_refused, case["data"].encode())


# Properties


@given(st.binary(max_size=300))
def test_what_was_signed_verifies_and_nothing_else(data: bytes) -> None:
    signature = sign_document(KEY, data)
    assert len(signature) == 64
    assert verify(KEY.public_key, signature, data)
    assert not verify(KEY.public_key, twin(signature), data)
    assert not verify(KEY.public_key, signature, data + b"\0")
    assert not verify(SoftwareSigningKey.generate().public_key, signature, data)


@given(st.binary(max_size=300))
def test_what_was_signed_verifies_with_cryptographys_own_algorithm_and_the_reverse(data: bytes) -> None:
    """Ours leaves the constructor of cryptography's out."""
    signature, algorithm = KEY.sign(data), ec.ECDSA(SHA256())
    r, s = (int.from_bytes(half) for half in (signature[:32], signature[32:]))
    parse_public_key(KEY.public_key).verify(encode_dss_signature(r, s), data, algorithm)

    private = ec.generate_private_key(ec.SECP256R1())
    r, s = decode_dss_signature(private.sign(data, algorithm))
    signed = r.to_bytes(32) + min(s, ORDER - s).to_bytes(32)
    assert verify(uncompressed(private.public_key()), signed, data)


@given(st.integers(0, 511))
def test_a_signature_with_a_flipped_bit_does_not_verify(bit: int) -> None:
    signature = bytearray(sign_document(KEY, b"data"))
    signature[bit // 8] ^= 1 << bit % 8
    assert not verify(KEY.public_key, bytes(signature), b"data")


def test_a_key_is_kept_and_read_back() -> None:
    again = SoftwareSigningKey.from_bytes(KEY.to_bytes())
    assert again.public_key == KEY.public_key
    assert verify(KEY.public_key, sign_document(again, b"data"), b"data")


@pytest.mark.parametrize("key", [Stubborn(KEY, high=True), Stubborn(KEY, high=False)], ids=["high", "low"])
def test_a_document_has_the_lower_s_whatever_the_key_signs(key: Stubborn) -> None:
    assert verify(KEY.public_key, sign_document(key, b"data"), b"data")


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
