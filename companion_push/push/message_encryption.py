"""Message encryption for Web Push (RFC 8291): the content coding aes128gcm of RFC 8188, with one record. Pure."""

import secrets
import struct
from functools import partial
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

POINT: Final = 65  # bytes of an uncompressed point of P-256
AUTH: Final = 16  # bytes of an authentication secret
RECORD: Final = 4096  # bytes of a record at most, which the header announces; the last one may be shorter
_OVERHEAD: Final = 17  # bytes of a record: the delimiter, and the tag of AES-GCM
_LAST: Final = b"\x02"  # the delimiter of the last record


def encrypt(
    plaintext: bytes,
    *,
    p256dh: ec.EllipticCurvePublicKey,
    auth: bytes,
    size: int = 0,
    key: ec.EllipticCurvePrivateKey | None = None,
    salt: bytes | None = None,
) -> bytes:
    """Encrypt `plaintext`, padded with zeros to `size` bytes, for the user agent with this key and secret.

    auth: 16 bytes. key, salt: of this message alone, by default new random ones. `ValueError` when it does not fit a record.
    """
    if max(len(plaintext), size) + _OVERHEAD > RECORD:
        raise ValueError("longer than a record")
    key = key or ec.generate_private_key(ec.SECP256R1())
    salt = salt or secrets.token_bytes(16)
    sender = point(key.public_key())
    derive = partial(HKDF, hashes.SHA256())
    secret = derive(32, auth, b"WebPush: info\0" + point(p256dh) + sender).derive(
        key.exchange(ec.ECDH(), p256dh)
    )
    content_key = derive(16, salt, b"Content-Encoding: aes128gcm\0").derive(secret)
    nonce = derive(12, salt, b"Content-Encoding: nonce\0").derive(secret)
    record = (plaintext + _LAST).ljust(size + 1, b"\0")
    header = salt + struct.pack(">IB", RECORD, POINT) + sender
    return header + AESGCM(content_key).encrypt(nonce, record, None)


def point(key: ec.EllipticCurvePublicKey) -> bytes:
    """Encode a public key as an uncompressed point."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def key_of(encoded: bytes) -> ec.EllipticCurvePublicKey | None:
    """Decode an uncompressed point of P-256; None for what is none."""
    if len(encoded) != POINT or encoded[0] != 4:
        return None
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), encoded)
    except ValueError:
        return None
