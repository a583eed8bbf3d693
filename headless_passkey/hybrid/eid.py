"""The BLE advert of a phone that has read our FIDO URL (CTAP 2.2 §11.5.1).

    plaintext    = 00 || nonce (10) || routing ID (3) || tunnel domain (2, little-endian)
    ct           = AES-256-ECB(EID key[0:32], plaintext)
    service data = ct (16) || HMAC-SHA256(EID key[32:64], ct)[0:4]   [|| suffix, CTAP 2.3]

Adverts of other people's phones are normal, so `open_advert` answers None for them; the tag is compared
first and in constant time, which makes refusing a foreign advert cost one HMAC.
"""

import hmac
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid.keys import KeyPurpose, derive
from headless_passkey.hybrid.tunnel_url import ROUTING_ID_SIZE

EID_KEY_SIZE: Final = 64
NONCE_SIZE: Final = 10
ADVERT_SIZE: Final = 20
_TAG_SIZE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Eid:
    """The plaintext of an advert, 16 bytes; it salts the PSK, so it is secret until the tunnel is up."""

    nonce: bytes = field(repr=False)  # 10 bytes
    routing_id: bytes = field(repr=False)  # 3 bytes, from the tunnel service
    tunnel_domain: int  # 16-bit number, see `tunnel_url`

    def __post_init__(self) -> None:
        if (len(self.nonce), len(self.routing_id)) != (NONCE_SIZE, ROUTING_ID_SIZE):
            raise LocalProtocolError("an EID has a nonce of 10 and a routing ID of 3 bytes")
        if not 0 <= self.tunnel_domain <= 0xFFFF:
            raise LocalProtocolError("a tunnel domain is a 16-bit number")

    def encode(self) -> bytes:
        return b"\0" + self.nonce + self.routing_id + self.tunnel_domain.to_bytes(2, "little")

    @classmethod
    def parse(cls, plaintext: bytes) -> "Eid":
        if len(plaintext) != 16 or plaintext[0] != 0:
            raise RemoteProtocolError("an EID has 16 bytes and no flags")
        return cls(
            nonce=plaintext[1:11],
            routing_id=plaintext[11:14],
            tunnel_domain=int.from_bytes(plaintext[14:16], "little"),
        )


def eid_key(secret: bytes) -> bytes:
    """64 bytes: the AES-256 key, then the HMAC key."""
    return derive(secret, b"", KeyPurpose.EID_KEY, EID_KEY_SIZE)


def seal_advert(key: bytes, eid: Eid) -> bytes:
    """The 20 bytes of service data for `eid`. key: 64 bytes."""
    encryptor = Cipher(AES256(key[:32]), ECB()).encryptor()  # noqa: S305  one block, as the spec has it
    ciphertext = encryptor.update(eid.encode()) + encryptor.finalize()
    return ciphertext + hmac.digest(key[32:], ciphertext, "sha256")[:_TAG_SIZE]


def open_advert(key: bytes, service_data: bytes) -> Eid | None:
    """The EID in an advert, or None when it was sealed for someone else or has unknown flags.

    key: 64 bytes. service_data: 20 bytes, then an optional suffix, which is outside the seal and ignored.
    """
    if len(service_data) < ADVERT_SIZE:
        return None
    ciphertext, tag = service_data[:16], service_data[16:ADVERT_SIZE]
    if not hmac.compare_digest(hmac.digest(key[32:], ciphertext, "sha256")[:_TAG_SIZE], tag):
        return None
    decryptor = Cipher(AES256(key[:32]), ECB()).decryptor()  # noqa: S305  one block, as the spec has it
    plaintext = decryptor.update(ciphertext) + decryptor.finalize()
    try:
        return Eid.parse(plaintext)
    except RemoteProtocolError:
        return None
