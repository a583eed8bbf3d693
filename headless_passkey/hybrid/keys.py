"""Key derivation of the hybrid transport, and P-256 on the wire (CTAP 2.2 §11.5.1).

    derive(secret, salt, purpose, n) = HKDF-SHA256(IKM=secret, salt, info=uint32_le(purpose), L=n)

Points are X9.62: 33 bytes compressed in the FIDO URL, 65 bytes uncompressed everywhere else. An ECDH
result is the 32-byte big-endian X coordinate.
"""

from enum import IntEnum

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from headless_passkey.errors import ProtocolReason, RemoteProtocolError

CURVE = ec.SECP256R1()


class KeyPurpose(IntEnum):
    """The purpose of a derived key, which HKDF takes as info. Chromium's phone uses 4 to 6 for itself."""

    EID_KEY = 1
    TUNNEL_ID = 2
    PSK = 3


def derive(secret: bytes, salt: bytes, purpose: KeyPurpose, length: int) -> bytes:
    """Derive `length` bytes for `purpose`. An empty salt is RFC 5869's default of zeros."""
    info = purpose.to_bytes(4, "little")
    return HKDF(algorithm=SHA256(), length=length, salt=salt or None, info=info).derive(secret)


def generate() -> ec.EllipticCurvePrivateKey:
    """Generate a P-256 key."""
    return ec.generate_private_key(CURVE)


def uncompressed(key: ec.EllipticCurvePublicKey) -> bytes:
    """Encode a public key in 65 bytes: 0x04, X, Y."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def compressed(key: ec.EllipticCurvePublicKey) -> bytes:
    """Encode a public key in 33 bytes: 0x02 or 0x03, X."""
    return key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def parse_uncompressed(point: bytes) -> ec.EllipticCurvePublicKey:
    """Parse a point of 65 bytes; refuses other forms and points off the curve."""
    return _parse(point, size=65, first=b"\x04")


def parse_compressed(point: bytes) -> ec.EllipticCurvePublicKey:
    """Parse a point of 33 bytes; refuses other forms, and an X without a point."""
    return _parse(point, size=33, first=b"\x02\x03")


def ecdh(private: ec.EllipticCurvePrivateKey, public: ec.EllipticCurvePublicKey) -> bytes:
    """Compute the ECDH shared secret: the X coordinate, 32 bytes."""
    return private.exchange(ec.ECDH(), public)


def _parse(point: bytes, *, size: int, first: bytes) -> ec.EllipticCurvePublicKey:
    if len(point) != size or point[0] not in first:
        raise RemoteProtocolError(
            f"expected a P-256 point of {size} bytes in the form for that size",
            reason=ProtocolReason.MALFORMED_KEY,
        )
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(CURVE, point)
    except ValueError as error:
        raise RemoteProtocolError("the point is not on P-256", reason=ProtocolReason.MALFORMED_KEY) from error
