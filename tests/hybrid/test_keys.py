"""Key derivation and P-256 points: vectors, properties, refusals."""

import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.hybrid.keys import (
    KeyPurpose,
    compressed,
    derive,
    ecdh,
    generate,
    parse_compressed,
    parse_uncompressed,
    uncompressed,
)
from tests.strategies import exactly, private_keys
from tests.vectors_loader import Vector, name, vectors

P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B


@pytest.mark.parametrize(
    "case", [case for case in vectors("derived_keys") if case["op"] == "derive"], ids=name
)
def test_a_known_key_is_derived(case: Vector) -> None:
    key = derive(
        bytes.fromhex(case["secret"]),
        bytes.fromhex(case["salt"]),
        KeyPurpose(case["purpose"]),
        case["length"],
    )
    assert key.hex() == case["expected"]


@pytest.mark.parametrize("case", vectors("derived_keys", op="derive-prefix"), ids=name)
def test_a_known_key_begins_as_published(case: Vector) -> None:
    key = derive(bytes.fromhex(case["secret"]), b"", KeyPurpose(case["purpose"]), case["length"])
    assert key.hex().startswith(case["expected"])


@pytest.mark.parametrize("case", vectors("chromium_sessions"), ids=name)
def test_a_compressed_key_of_a_real_browser_is_read_and_written_back(case: Vector) -> None:
    point = bytes.fromhex(case["fido_url"]["cbor"])[4:37]
    assert compressed(parse_compressed(point)) == point


@pytest.mark.parametrize("case", vectors("p256_points", op="ecdh"), ids=name)
def test_a_known_secret_is_shared(case: Vector) -> None:
    point = bytes.fromhex(case["public"])
    public = parse_uncompressed(point) if len(point) == 65 else parse_compressed(point)
    private = ec.derive_private_key(int(case["private"], 16), ec.SECP256R1())
    assert ecdh(private, public).hex() == case["shared"]


@pytest.mark.threat("T12")
@pytest.mark.parametrize("case", vectors("p256_points", op="refused"), ids=name)
def test_a_point_that_is_none_is_refused(case: Vector) -> None:
    """Invalid curve attacks, encodings out of range, points of low order on the twist."""
    for parse in (parse_uncompressed, parse_compressed):
        with pytest.raises(RemoteProtocolError):
            parse(bytes.fromhex(case["public"]))


@given(exactly(16), st.binary(max_size=32), st.sampled_from(KeyPurpose), st.integers(1, 96))
def test_derive_is_hkdf_written_out(secret: bytes, salt: bytes, purpose: KeyPurpose, length: int) -> None:
    """RFC 5869 by hand, with a four-byte little-endian info."""
    info = bytes([purpose, 0, 0, 0])
    extracted = hmac.digest(salt or bytes(32), secret, "sha256")
    block, expanded = b"", b""
    for count in range(1, 4):
        block = hmac.digest(extracted, block + info + bytes([count]), "sha256")
        expanded += block
    assert derive(secret, salt, purpose, length) == expanded[:length]


@given(private_keys())
def test_both_forms_of_a_point_are_read_back(private: ec.EllipticCurvePrivateKey) -> None:
    public = private.public_key()
    assert uncompressed(parse_compressed(compressed(public))) == uncompressed(public)
    assert compressed(parse_uncompressed(uncompressed(public))) == compressed(public)


@given(private_keys(), private_keys())
def test_both_sides_share_32_bytes(
    one: ec.EllipticCurvePrivateKey, other: ec.EllipticCurvePrivateKey
) -> None:
    shared = ecdh(one, other.public_key())
    assert shared == ecdh(other, one.public_key())
    assert len(shared) == 32


def test_a_fresh_key_is_fresh() -> None:
    assert uncompressed(generate().public_key()) != uncompressed(generate().public_key())


@pytest.mark.threat("T12")
@given(private_keys(), st.integers(0, 511))
def test_a_point_moved_off_the_curve_is_refused(private: ec.EllipticCurvePrivateKey, bit: int) -> None:
    point = bytearray(uncompressed(private.public_key()))
    point[1 + bit // 8] ^= 1 << bit % 8
    with pytest.raises(RemoteProtocolError, match="not on P-256"):
        parse_uncompressed(bytes(point))


@pytest.mark.threat("T12")
@given(st.integers(0, (1 << 256) - 1), st.sampled_from([2, 3]))
def test_a_compressed_point_exists_exactly_when_the_curve_has_one(x: int, sign: int) -> None:
    y_squared = (x**3 - 3 * x + B) % P
    exists = x < P and pow(y_squared, (P - 1) // 2, P) in (0, 1)
    try:
        key = parse_compressed(bytes([sign]) + x.to_bytes(32, "big"))
    except RemoteProtocolError:
        assert not exists
    else:
        assert exists
        assert key.public_numbers().x == x


GOOD = uncompressed(ec.derive_private_key(7, ec.SECP256R1()).public_key())
X, Y = GOOD[1:33], GOOD[33:]


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "point",
    [
        b"",
        b"\x00",
        b"\x04",
        bytes(65),
        b"\x04" + bytes(64),
        b"\x04" + X + X,
        b"\x04" + P.to_bytes(32, "big") + Y,
        b"\x04" + X + ((int.from_bytes(Y, "big") + P) % (1 << 256)).to_bytes(32, "big"),
        b"\x05" + X + Y,
        b"\x06" + X + Y,
        b"\x07" + X + Y,
        b"\x02" + X,
        b"\x02" + X + Y,
        GOOD[:-1],
        GOOD + b"\0",
        b"\x04" + b"\xff" * 64,
    ],
    ids=lambda point: f"{len(point)} bytes, {point[:1].hex()}",
)
def test_no_other_form_passes_for_an_uncompressed_point(point: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_uncompressed(point)


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "point",
    [
        b"",
        b"\x00",
        bytes(33),
        b"\x04" + X,
        b"\x02" + X[:-1],
        b"\x02" + X + b"\0",
        GOOD,
        b"\x02" + b"\xff" * 32,
    ],
    ids=lambda point: f"{len(point)} bytes, {point[:1].hex()}",
)
def test_no_other_form_passes_for_a_compressed_point(point: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_compressed(point)


@pytest.mark.threat("T12")
@given(st.binary(max_size=80))
def test_any_bytes_are_a_point_or_refused(data: bytes) -> None:
    for parse, write in ((parse_uncompressed, uncompressed), (parse_compressed, compressed)):
        try:
            key = parse(data)
        except RemoteProtocolError:
            continue
        assert write(key) == data


def test_a_point_of_another_curve_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP256K1()).public_key()
    with pytest.raises(RemoteProtocolError):
        parse_uncompressed(uncompressed(other))
