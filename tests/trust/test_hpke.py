"""Sealing, against a second implementation written from the RFC alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError, TrustReason
from headless_passkey.trust.hpke import SoftwareHpkeKey, can_seal_to, seal_to
from headless_passkey.trust.ring import HpkeKey
from tests.trust import reference_hpke
from tests.trust.refusal import refused

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "hpke.json").read_text())
PRIVATE = ec.generate_private_key(ec.SECP256R1())
KEY = SoftwareHpkeKey(PRIVATE)
FUTURE = HpkeKey(suite=2, public_key=bytes(1216))


@pytest.mark.parametrize("case", VECTORS["base_mode"], ids=lambda case: case["name"])
def test_the_second_implementation_opens_the_known_message(case: dict[str, Any]) -> None:
    opened = reference_hpke.unseal(
        ec.derive_private_key(int(case["skRm"], 16), ec.SECP256R1()),
        bytes.fromhex(case["enc"] + case["ct"]),
        bytes.fromhex(case["info"]),
        aad=bytes.fromhex(case["aad"]),
        aead=reference_hpke.AES_128_GCM,
    )
    assert opened == bytes.fromhex(case["pt"])


@given(st.binary(max_size=200), st.binary(max_size=100))
def test_what_either_seals_the_other_opens(plaintext: bytes, info: bytes) -> None:
    assert reference_hpke.unseal(PRIVATE, seal_to(KEY.public, plaintext, info), info) == plaintext
    assert KEY.open(reference_hpke.seal(KEY.public.public_key, plaintext, info), info) == plaintext


def test_a_key_is_kept_and_read_back() -> None:
    again = SoftwareHpkeKey.from_bytes(KEY.to_bytes())
    assert again.public == KEY.public
    assert again.open(seal_to(KEY.public, b"hello", b"info"), b"info") == b"hello"


def test_a_key_name_depends_on_suite_and_key() -> None:
    one, two = HpkeKey(suite=2, public_key=bytes(65)), HpkeKey(suite=3, public_key=bytes(65))
    assert len({KEY.public.name, one.name, two.name}) == 3


@given(st.binary(max_size=200))
@pytest.mark.threat("T12")
def test_any_bytes_do_not_open(sealed: bytes) -> None:
    with refused(TrustReason.CANNOT_OPEN):
        KEY.open(sealed, b"info")


@given(st.data())
@pytest.mark.threat("T2")
def test_a_flipped_bit_does_not_open(data: st.DataObject) -> None:
    sealed = bytearray(seal_to(KEY.public, b"hello", b"info"))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with refused(TrustReason.CANNOT_OPEN):
        KEY.open(bytes(sealed), b"info")


@pytest.mark.threat("T2")
def test_other_info_or_another_key_does_not_open() -> None:
    sealed = seal_to(KEY.public, b"hello", b"info")
    with refused(TrustReason.CANNOT_OPEN):
        KEY.open(sealed, b"other")
    with refused(TrustReason.CANNOT_OPEN):
        SoftwareHpkeKey.generate().open(sealed, b"info")


def test_a_suite_of_the_future_is_not_sealed_to_and_not_read() -> None:
    assert can_seal_to(KEY.public)
    assert not can_seal_to(FUTURE)
    with pytest.raises(LocalProtocolError):
        seal_to(FUTURE, b"hello", b"info")
    with pytest.raises(RemoteProtocolError):
        SoftwareHpkeKey.from_bytes(b"\x00\x02" + bytes(2400))
    with pytest.raises(RemoteProtocolError):
        SoftwareHpkeKey.from_bytes(b"")


@pytest.mark.threat("T11")
def test_a_key_does_not_show_itself() -> None:
    assert KEY.to_bytes()[2:].hex() not in repr(KEY)
