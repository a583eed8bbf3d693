"""The BLE advert with which a phone proves its proximity (CTAP 2.2 §11.5.1, state-assisted: §11.5.2).

    plaintext    = 00 || nonce (10) || routing ID (3) || tunnel domain (2, little-endian)
                   00 || 15 random bytes, when state-assisted: there the tunnel is known already
    ct           = AES-256-ECB(EID key[0:32], plaintext)
    service data = ct (16) || HMAC-SHA256(EID key[32:64], ct)[0:4]   [|| suffix, CTAP 2.3]

    EID key      = derive(QR secret, salt nothing, EID key, 64)
                   derive(link secret, salt client nonce, EID key, 64), when state-assisted
    PSK          = derive(QR secret or link secret, salt plaintext, PSK, 32)

Adverts of other people's phones are normal, so `open_advert` returns None for them. It compares the tag first, in
constant time: a foreign advert costs one HMAC for each key.
"""

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB

from headless_passkey.errors import LocalProtocolError, ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.data_channel import DataChannel
from headless_passkey.hybrid.keys import KeyPurpose, derive
from headless_passkey.hybrid.tunnel_url import FIRST_HASHED, ROUTING_ID_SIZE

EID_KEY_SIZE: Final = 64
PSK_SIZE: Final = 32
NONCE_SIZE: Final = 10
ADVERT_SIZE: Final = 20
_TAG_SIZE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Eid:
    """The plaintext of an advert, 16 bytes. It salts the PSK, so it is secret until the handshake is done."""

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
            raise RemoteProtocolError(
                "an EID has 16 bytes and no flags", reason=ProtocolReason.MALFORMED_ADVERT
            )
        return cls(
            nonce=plaintext[1:11],
            routing_id=plaintext[11:14],
            tunnel_domain=int.from_bytes(plaintext[14:16], "little"),
        )

    @classmethod
    def state_assisted(cls) -> "Eid":
        """A fresh EID for a state-assisted transaction, where routing ID and tunnel domain have no meaning.

        All bytes are random, except that the tunnel domain is never an unassigned number: Chromium 120 checks it here
        too, and ignores such an advert.
        """
        return cls(
            nonce=secrets.token_bytes(NONCE_SIZE),
            routing_id=secrets.token_bytes(ROUTING_ID_SIZE),
            tunnel_domain=FIRST_HASHED + secrets.randbelow(0x10000 - FIRST_HASHED),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Suffix:
    """The suffix of an advert (CTAP 2.3): data channels beside the tunnel, which the phone has opened.

    It is not authenticated. A forged suffix can only make the handshake fail.
    """

    psm: int | None = None  # the BLE L2CAP channel's 16-bit number

    @classmethod
    def parse(cls, data: bytes) -> "Suffix":
        """Parse a CBOR map from channel to its parameters; unknown channels are ignored."""
        psm = cbor.decode_map(data).get(DataChannel.BLE_L2CAP)
        return cls(psm=psm if type(psm) is int and 0 <= psm <= 0xFFFF else None)

    def encode(self) -> bytes:
        return cbor.encode({} if self.psm is None else {int(DataChannel.BLE_L2CAP): self.psm})


def eid_key(secret: bytes, client_nonce: bytes = b"") -> bytes:
    """Derive the EID key: 64 bytes, the AES-256 key and then the HMAC key.

    secret: the QR secret, or a link secret. client_nonce: with a link secret, fresh for each transaction, so that adverts
    of one phone cannot be linked to each other.
    """
    return derive(secret, client_nonce, KeyPurpose.EID_KEY, EID_KEY_SIZE)


def psk(secret: bytes, eid: Eid) -> bytes:
    """Derive the PSK, 32 bytes: it proves possession of the QR secret or link secret, and reception of the advert."""
    return derive(secret, eid.encode(), KeyPurpose.PSK, PSK_SIZE)


def seal_advert(key: bytes, eid: Eid) -> bytes:
    """Encrypt and authenticate `eid`: 20 bytes of service data. key: the EID key, 64 bytes."""
    encryptor = Cipher(AES256(key[:32]), ECB()).encryptor()  # noqa: S305  one block, as the spec has it
    ciphertext = encryptor.update(eid.encode()) + encryptor.finalize()
    return ciphertext + hmac.digest(key[32:], ciphertext, "sha256")[:_TAG_SIZE]


def open_advert(key: bytes, service_data: bytes) -> Eid | None:
    """Decrypt an advert; None when it is of another transaction or has unknown flags.

    key: 64 bytes. service_data: 20 bytes, then an optional suffix, which is not authenticated: `parse_suffix`.
    """
    opened = open_with_any((key,), service_data)
    return None if opened is None else opened[1]


def open_with_any(keys: Iterable[bytes], service_data: bytes) -> tuple[int, Eid] | None:
    """Decrypt an advert with one of several keys: the index of the key that opened it, and the EID."""
    if len(service_data) < ADVERT_SIZE:
        return None
    ciphertext, tag = service_data[:16], service_data[16:ADVERT_SIZE]
    for number, key in enumerate(keys):
        if hmac.compare_digest(hmac.digest(key[32:], ciphertext, "sha256")[:_TAG_SIZE], tag):
            try:
                return number, Eid.parse(_decrypt(key, ciphertext))
            except RemoteProtocolError:
                continue  # unknown flags, or a foreign advert whose tag fits by chance, once in 2^32
    return None


def _decrypt(key: bytes, ciphertext: bytes) -> bytes:
    decryptor = Cipher(AES256(key[:32]), ECB()).decryptor()  # noqa: S305  one block, as the spec has it
    return decryptor.update(ciphertext) + decryptor.finalize()


def parse_suffix(service_data: bytes) -> Suffix | None:
    """Parse what follows the first 20 bytes of an opened advert; None for anything malformed."""
    try:
        return Suffix.parse(service_data[ADVERT_SIZE:])
    except RemoteProtocolError:
        return None
