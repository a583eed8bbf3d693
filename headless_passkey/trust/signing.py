"""Signing keys of members: ES256 with raw r || s, and s at most half the order (docs/protocol/trust.md).

A member's name is the RFC 7638 thumbprint of its P-256 signing key. A signing key may live in a TPM or a
secure element, so the rest of the package uses the interface `SigningKey`; `SoftwareSigningKey` keeps a key in memory.

An ECDSA signature (r, s) has a twin, (r, n - s), that verifies too. Documents have one signature each: `sign_document`
makes the lower s, whatever key signed, and `verify` refuses the higher one. Request proofs keep the rules of RFC 9449, and are not verified here.

This module shares nothing with the transport's key derivation: the relay imports it to verify signatures, and must not
import what opens a FIDO URL.
"""

import hashlib
from functools import lru_cache
from typing import Final, Protocol, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from program_parts.base64url import base64url

CURVE: Final = ec.SECP256R1()
POINT_SIZE: Final = 65  # uncompressed: 0x04, X, Y
SIGNATURE_SIZE: Final = 64
NAME_SIZE: Final = 43  # characters: base64url of 32 bytes
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class _Es256(ec.ECDSA):
    """ECDSA with SHA-256. cryptography's constructor loads all its ciphers, to see whether a nonce can be derived (RFC 6979)."""

    algorithm = SHA256()
    deterministic_signing = False

    def __init__(self) -> None:
        """Do not call the constructor of the class above: there is nothing to ask."""


_ES256: Final = _Es256()


class SigningKey(Protocol):
    """A P-256 key that signs; it may be in hardware."""

    @property
    def public_key(self) -> bytes:
        """The public key, 65 bytes, uncompressed."""

    def sign(self, data: bytes) -> bytes:
        """Sign `data` with ES256: 64 bytes, r || s."""


class SoftwareSigningKey:
    """A signing key in this process's memory."""

    __slots__ = ("_private", "public_key")

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private
        self.public_key = uncompressed(private.public_key())

    @classmethod
    def generate(cls) -> Self:
        return cls(ec.generate_private_key(CURVE))

    @classmethod
    def from_bytes(cls, scalar: bytes) -> Self:
        """Restore a key from its `to_bytes`, the 32-byte secret scalar."""
        return cls(private_key(scalar))

    def to_bytes(self) -> bytes:
        """Export the key: the 32-byte secret scalar. It is a secret."""
        return self._private.private_numbers().private_value.to_bytes(32, "big")

    def sign(self, data: bytes) -> bytes:
        r, s = decode_dss_signature(self._private.sign(data, _ES256))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def sign_document(key: SigningKey, body: bytes) -> bytes:
    """Sign the body of a document: 64 bytes, r || s, with the lower of the two valid s."""
    signature = key.sign(body)
    s = int.from_bytes(signature[32:], "big")
    return signature[:32] + min(s, _ORDER - s).to_bytes(32, "big")


def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Verify a document's ES256 signature (64 bytes, r || s, s at most half the order) with `public_key` (65 bytes)."""
    if len(signature) != SIGNATURE_SIZE:
        return False
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if not (0 < r < _ORDER and 0 < s <= _ORDER // 2):
        return False
    try:
        _known_key(public_key).verify(encode_dss_signature(r, s), data, _ES256)
    except InvalidSignature:
        return False
    return True


@lru_cache(maxsize=512)  # 2 KiB each; whose word is verified is often verified again
def _known_key(public_key: bytes) -> ec.EllipticCurvePublicKey:
    return parse_public_key(public_key)


def thumbprint(public_key: bytes) -> str:
    """Compute a member's name: the RFC 7638 thumbprint of its signing key, base64url, 43 characters."""
    x, y = (base64url(public_key[1:33]), base64url(public_key[33:65]))
    return base64url(hashlib.sha256(f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'.encode()).digest())


def parse_public_key(point: bytes) -> ec.EllipticCurvePublicKey:
    """Parse a point of 65 bytes; refuses other forms and points off the curve."""
    if len(point) != POINT_SIZE or point[0] != 4:
        raise RemoteProtocolError(
            f"expected an uncompressed P-256 point of 65 bytes, got {len(point)}",
            reason=ProtocolReason.MALFORMED_KEY,
        )
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(CURVE, point)
    except ValueError as error:
        raise RemoteProtocolError("the point is not on P-256", reason=ProtocolReason.MALFORMED_KEY) from error


def uncompressed(key: ec.EllipticCurvePublicKey) -> bytes:
    """65 bytes: 0x04, X, Y."""
    point = (
        key.public_numbers()
    )  # cryptography's serialization, which does the same, loads the formats of OpenSSH too
    return b"\x04" + point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big")


def private_key(scalar: bytes) -> ec.EllipticCurvePrivateKey:
    """The P-256 key of a 32-byte secret scalar."""
    if len(scalar) != 32:
        raise RemoteProtocolError(
            f"expected a P-256 scalar of 32 bytes, got {len(scalar)}", reason=ProtocolReason.MALFORMED_KEY
        )
    try:
        return ec.derive_private_key(int.from_bytes(scalar, "big"), CURVE)
    except ValueError as error:
        raise RemoteProtocolError(
            "the scalar is not a P-256 key", reason=ProtocolReason.MALFORMED_KEY
        ) from error
