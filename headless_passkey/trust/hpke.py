"""Keys that envelopes are sealed to: HPKE base mode, single shot (RFC 9180), in numbered suites.

Suite 1 is DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. A new suite is a new row of `_SUITES` and a new class
for its private key. No format changes, because every format carries the suite's number (algorithm agility).

Base mode does not authenticate the sender: the signature inside an envelope does.
"""

from typing import Final, Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from headless_passkey.errors import (
    LocalProtocolError,
    ProtocolReason,
    RemoteProtocolError,
    TrustError,
    TrustReason,
)
from headless_passkey.trust.ring import SUITE_P256, HpkeKey
from headless_passkey.trust.signing import CURVE, parse_public_key, private_key, uncompressed

_SUITES: Final = {SUITE_P256: Suite(KEM.P256, KDF.HKDF_SHA256, AEAD.AES_256_GCM)}


class HpkePrivateKey(Protocol):
    """A private key that opens envelopes; it may be in hardware."""

    @property
    def public(self) -> HpkeKey:
        """The public key that others seal to."""

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """Decrypt; `TrustError` (cannot-open) when it was not sealed to this key with this info."""


class SoftwareHpkeKey:
    """An HPKE key of suite 1 in this process's memory."""

    __slots__ = ("_private", "public")

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private
        self.public = HpkeKey(suite=SUITE_P256, public_key=uncompressed(private.public_key()))

    @classmethod
    def generate(cls) -> Self:
        return cls(ec.generate_private_key(CURVE))

    @classmethod
    def from_bytes(cls, kept: bytes) -> Self:
        """Restore a key from its `to_bytes`."""
        if int.from_bytes(kept[:2], "big") != SUITE_P256:
            raise RemoteProtocolError(
                "the HPKE key is of a suite this version does not know", reason=ProtocolReason.MALFORMED_KEY
            )
        return cls(private_key(kept[2:]))

    def to_bytes(self) -> bytes:
        """Export the key: the suite as two bytes, and the 32-byte secret scalar. It is a secret."""
        scalar = self._private.private_numbers().private_value
        return SUITE_P256.to_bytes(2, "big") + scalar.to_bytes(32, "big")

    def open(self, sealed: bytes, info: bytes) -> bytes:
        try:
            return _SUITES[SUITE_P256].decrypt(sealed, self._private, info)
        except InvalidTag as error:
            raise TrustError(
                TrustReason.CANNOT_OPEN, "the envelope was not sealed to this companion for this request"
            ) from error


def can_seal_to(recipient: HpkeKey) -> bool:
    """Whether this version implements the suite of `recipient`."""
    return recipient.suite in _SUITES


def seal_to(recipient: HpkeKey, plaintext: bytes, info: bytes) -> bytes:
    """Seal `plaintext` to `recipient`; opening needs the same `info`."""
    suite = _SUITES.get(recipient.suite)
    if suite is None:
        raise LocalProtocolError(f"HPKE suite {recipient.suite} is not known to this version")
    return suite.encrypt(plaintext, parse_public_key(recipient.public_key), info)
