"""A second, independent HPKE: RFC 9180 base mode for DHKEM(P-256, HKDF-SHA256), written from the RFC alone.

It speaks for the library we seal with: it opens the RFC's own vector, and what either seals the other opens.
"""

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

KEM = b"KEM\x00\x10"
AES_128_GCM, AES_256_GCM = (b"HPKE\x00\x10\x00\x01\x00\x01", 16), (b"HPKE\x00\x10\x00\x01\x00\x02", 32)


def extract(salt: bytes, suite: bytes, label: bytes, material: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + material, "sha256")


def expand(key: bytes, suite: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    assert length <= hashlib.sha256().digest_size
    return hmac.digest(key, labelled + b"\x01", "sha256")[:length]


def key_and_nonce(
    dh: bytes, enc: bytes, recipient: bytes, info: bytes, aead: tuple[bytes, int]
) -> tuple[AESGCM, bytes]:
    suite, key_size = aead
    shared = expand(extract(b"", KEM, b"eae_prk", dh), KEM, b"shared_secret", enc + recipient, 32)
    psk_id_hash = extract(b"", suite, b"psk_id_hash", b"")
    info_hash = extract(b"", suite, b"info_hash", info)
    secret = extract(shared, suite, b"secret", b"")
    context = b"\x00" + psk_id_hash + info_hash
    key = expand(secret, suite, b"key", context, key_size)
    return AESGCM(key), expand(secret, suite, b"base_nonce", context, 12)


def seal(recipient: bytes, plaintext: bytes, info: bytes, *, aead: tuple[bytes, int] = AES_256_GCM) -> bytes:
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), recipient)
    enc = _point(ephemeral)
    cipher, nonce = key_and_nonce(ephemeral.exchange(ec.ECDH(), public), enc, recipient, info, aead)
    return enc + cipher.encrypt(nonce, plaintext, b"")


def unseal(
    private: ec.EllipticCurvePrivateKey,
    sealed: bytes,
    info: bytes,
    *,
    aad: bytes = b"",
    aead: tuple[bytes, int] = AES_256_GCM,
) -> bytes:
    enc = sealed[:65]
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), enc)
    cipher, nonce = key_and_nonce(private.exchange(ec.ECDH(), public), enc, _point(private), info, aead)
    return cipher.decrypt(nonce, sealed[65:], aad)


def _point(private: ec.EllipticCurvePrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
