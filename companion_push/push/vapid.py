"""Voluntary application server identification (VAPID, RFC 8292): who pushes, signed, so that nobody else can.

A subscription is bound to the public key for which it was made: with another key, all of them are void.
"""

import re
import shlex
from collections import OrderedDict
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from joserfc import jwt
from joserfc.jwk import ECKey

from companion_push.push.message_encryption import point
from headless_passkey.errors import SetupError, SetupReason, UsageError
from headless_passkey.process.private_file import create_private, read_private
from program_parts.base64url import base64url

LIFETIME: Final = 12 * 3600  # seconds that a token is good for; RFC 8292 §2 allows 24 h, and clocks differ
REFRESH: Final = 3600  # seconds before its end from which on a token is used no more
MAX_ORIGINS: Final = 64  # whose tokens are kept; the one that was not used for longest goes
_MAX_FILE: Final = 4096  # bytes
_MAX_CONTACT: Final = 256  # characters
_CONTACT: Final = re.compile(
    r"mailto:[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+"
    r"|https://[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?"
)


class VapidKey:
    """A key pair of an application server: ES256."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private
        self.public: Final = base64url(point(private.public_key()))  # what browsers call applicationServerKey

    @classmethod
    def generate(cls) -> Self:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the private key, PEM, from a file that nobody else may read. `SetupError` when it cannot be used."""
        content = read_private(path, limit=_MAX_FILE)
        if content is None:
            advice = f"`companion-push push keys {shlex.quote(str(path))}` makes one"
            raise SetupError(f"there is no file {path}", reason=SetupReason.STATE_UNREADABLE, advice=advice)
        try:
            private = load_pem_private_key(content, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # whose messages may hold anything
            private = None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name != "secp256r1":
            raise SetupError(
                f"{path} holds no private key of P-256 in PEM form",
                reason=SetupReason.STATE_DAMAGED,
                advice="put the right file back: with a new key, every companion has to subscribe again",
            )
        return cls(private)

    def write(self, path: Path) -> None:
        """Write the private key into a new file, mode 0600. `SetupError` when there is such a file, which is left alone."""
        create_private(path, self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def sign(self, claims: dict[str, object]) -> str:
        """Sign a JWT."""
        return jwt.encode({"typ": "JWT", "alg": "ES256"}, claims, ECKey.import_key(self._private))


class VapidTokens:
    """The tokens for the origins of push services, each of which is used until shortly before its end."""

    def __init__(self, key: VapidKey, contact: str) -> None:
        """contact: for the push services' operators, who write there before they block somebody."""
        self._key, self._contact = key, check_contact(contact)
        self._tokens: OrderedDict[str, tuple[int, str]] = (
            OrderedDict()
        )  # by origin: when it ends, and the header

    def header(self, origin: str, now: float) -> str:
        """Give the header ``Authorization`` for a push to `origin`."""
        expires_at, header = self._tokens.get(origin, (0, ""))
        # the second, when the clock was set back
        if not REFRESH < expires_at - now <= LIFETIME:
            expires_at = int(now) + LIFETIME
            token = self._key.sign({"aud": origin, "exp": expires_at, "sub": self._contact})
            header = f"vapid t={token}, k={self._key.public}"
            self._tokens[origin] = expires_at, header
        self._tokens.move_to_end(origin)
        if len(self._tokens) > MAX_ORIGINS:
            self._tokens.popitem(last=False)
        return header

    def forget(self, origin: str) -> None:
        """Make a new token next time: the service has refused this one."""
        self._tokens.pop(origin, None)


def check_contact(contact: str) -> str:
    """Check what RFC 8292 §2.1 calls the contact information, and return it; `UsageError` for anything else."""
    if len(contact) > _MAX_CONTACT or not _CONTACT.fullmatch(contact):
        raise UsageError("vapid_contact: expected mailto:NAME@HOST or https://HOST/…")
    return contact
