"""Seals the content of a file with a passphrase: scrypt (RFC 7914) and AES-256-GCM.

scrypt makes 64 bytes of passphrase and salt. The first half is the key. A part of the second half is stored as a check, so that a
wrong passphrase and a changed file are told apart; it helps nobody to guess, whom the sealed content would tell as much.
With N = 2^17, r = 8, p = 1 each guess takes 128 MiB of memory, and opening a third of a second (docs/adr/0042 has
the reasons). The cost is no member of the file, so that no file can demand more; another cost gets another name.

A `SealKey` is made once, which takes that time; then reading and writing are fast. Each sealing has a nonce of its own.
"""

import hmac
import secrets
import unicodedata
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, Self

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

SHORTEST, LONGEST = 8, 200  # characters of a new passphrase, and bytes of any
FORM: Final = "scrypt-17-8-1 aes-256-gcm"

_N: Final = 1 << 17
_SALT_SIZE, _CHECK_SIZE, _NONCE_SIZE = 16, 16, 12


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sealed file."""

    version: int
    warning: str
    seal: Literal["scrypt-17-8-1 aes-256-gcm"]
    salt: Annotated[bytes, msgspec.Meta(min_length=_SALT_SIZE, max_length=_SALT_SIZE)]
    check: Annotated[bytes, msgspec.Meta(min_length=_CHECK_SIZE, max_length=_CHECK_SIZE)]
    nonce: Annotated[bytes, msgspec.Meta(min_length=_NONCE_SIZE, max_length=_NONCE_SIZE)]
    content: bytes  # with the tag

    def __repr__(self) -> str:
        return "Sealed()"  # it holds a secret


@dataclass(frozen=True, slots=True)
class SealKey:
    """The key that a passphrase makes for one salt."""

    salt: bytes  # 16 bytes
    check: bytes  # 16 bytes
    key: bytes = field(repr=False)  # 32 bytes

    @classmethod
    def derive(cls, passphrase: str, salt: bytes | None = None) -> Self:
        """Derive the key, which takes a while and 128 MiB. salt: of the file to open; None: a new one."""
        salt = secrets.token_bytes(_SALT_SIZE) if salt is None else salt
        made = Scrypt(salt=salt, length=64, n=_N, r=8, p=1).derive(passphrase.encode())
        return cls(salt=salt, check=made[32 : 32 + _CHECK_SIZE], key=made[:32])

    def fits(self, sealed: Sealed) -> bool:
        """Whether the file was sealed with this key."""
        return sealed.salt == self.salt and hmac.compare_digest(sealed.check, self.check)

    def seal(self, content: bytes, *, version: int, warning: str) -> Sealed:
        nonce = secrets.token_bytes(_NONCE_SIZE)
        sealed = AESGCM(self.key).encrypt(nonce, content, self._header(version))
        return Sealed(version, warning, FORM, self.salt, self.check, nonce, sealed)

    def open(self, sealed: Sealed) -> bytes | None:
        """The content; None when the file was changed since it was sealed."""
        try:
            return AESGCM(self.key).decrypt(sealed.nonce, sealed.content, self._header(sealed.version))
        except InvalidTag:
            return None

    def _header(self, version: int) -> bytes:
        """What is authenticated beside the content. Salt and check are by the key."""
        return f"software passkeys, version {version}, {FORM}".encode()


def parse_passphrase(text: str) -> str | None:
    """The passphrase in a line, the same for every keyboard and file; None when it is none."""
    passphrase = unicodedata.normalize("NFC", text.strip())
    return passphrase if passphrase and len(passphrase.encode(errors="replace")) <= LONGEST else None
