"""Signing keys of members, and what is signed: ES256 with raw r || s (docs/protocol/trust.md).

A member's name is the RFC 7638 thumbprint of its P-256 signing key. A signing key may live in a TPM or a
secure element, so the rest of the package asks only for `SigningKey`; `SoftwareSigningKey` is the one that
keeps it in memory.
"""

import base64
import hashlib
from typing import Final, Protocol, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from headless_passkey.errors import RemoteProtocolError

# The curve is spelled out here, not taken from `hybrid.keys`: the relay checks signatures with this module, and
# must not reach, even through others, what could open what it carries.
_CURVE: Final = ec.SECP256R1()
_POINT_SIZE: Final = 65
SIGNATURE_SIZE: Final = 64
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class SigningKey(Protocol):
    """A P-256 key that signs, wherever it lives."""

    @property
    def public_key(self) -> bytes:
        """65 bytes, uncompressed."""

    def sign(self, data: bytes) -> bytes:
        """ES256 over `data`: 64 bytes, r || s."""


class SoftwareSigningKey:
    """A signing key in this process's memory."""

    __slots__ = ("_private", "public_key")

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private
        self.public_key = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    @classmethod
    def generate(cls) -> Self:
        return cls(ec.generate_private_key(_CURVE))

    @classmethod
    def from_bytes(cls, scalar: bytes) -> Self:
        """From the 32-byte secret scalar, as `to_bytes` gave it."""
        return cls(ec.derive_private_key(int.from_bytes(scalar, "big"), _CURVE))

    def to_bytes(self) -> bytes:
        """The 32-byte secret scalar: keep it as you keep the key."""
        return self._private.private_numbers().private_value.to_bytes(32, "big")

    def sign(self, data: bytes) -> bytes:
        r, s = decode_dss_signature(self._private.sign(data, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` (64 bytes, r || s) over `data` was made with `public_key` (65 bytes)."""
    if len(signature) != SIGNATURE_SIZE:
        return False
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if not (0 < r < _ORDER and 0 < s < _ORDER):
        return False
    key = parse_public_key(public_key)
    try:
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def parse_public_key(point: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a 65-byte uncompressed point; refuses other forms and points off the curve."""
    if len(point) != _POINT_SIZE or point[0] != 0x04:
        raise RemoteProtocolError(f"expected a P-256 point of {_POINT_SIZE} bytes, got {len(point)}")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, point)
    except ValueError as error:
        raise RemoteProtocolError("the point is not on P-256") from error


def thumbprint(public_key: bytes) -> str:
    """The name of a member: base64url RFC 7638 thumbprint of its signing key, 43 characters."""
    x, y = (base64url(public_key[1:33]), base64url(public_key[33:65]))
    return base64url(hashlib.sha256(f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'.encode()).digest())


def base64url(data: bytes) -> str:
    """base64url without padding, as JOSE writes it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
