"""Access tokens that other services verify by themselves: JWTs bound to the device's key (RFC 9068, RFC 9449 §6.1).

By default a token is opaque random text, which only the relying party can resolve. With a token key it is a signed
statement of the same session, which a resource server verifies with our public keys, without introspection. Revocation
is the price: after a session has ended, its token stays valid elsewhere until it expires, so such tokens last minutes.

Token keys are in files of the operator and never in the store, so that a reader of the store cannot make tokens.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from program_parts.base64url import base64url
from relying_party.core.sessions import RandomBytes, Session
from relying_party.errors import SetupError

TYPE: Final = "at+jwt"
ALGORITHM: Final = "ES256"
MAX_KEY_FILE: Final = 16 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A P-256 key that signs access tokens; its name is its thumbprint (RFC 7638)."""

    key: ECKey = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> "TokenKey":
        """Load a PEM file of mode 0600; a missing file is created with a new key.

        It is there with its whole content or not at all, also for another process that starts at the same time, and after a kill.
        """
        made = ECKey.generate_key("P-256", private=True)
        new = path.with_name(f".{path.name}.{token_hex(8)}")
        try:
            if path.exists():
                return cls._read(path)
            try:
                descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(made.as_pem(private=True))
                    file.flush()
                    os.fsync(descriptor)
                os.link(new, path)
            finally:
                with suppress(OSError):
                    new.unlink()
        except FileExistsError:
            return cls._read(path)
        except OSError as error:
            raise SetupError(f"cannot make the token key {path}: {error.strerror}") from error
        return cls(made)

    @classmethod
    def _read(cls, path: Path) -> "TokenKey":
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    raise SetupError(f"the token key {path} is open to others: chmod 0600 {path}")
                pem = file.read(MAX_KEY_FILE)
            key = ECKey.import_key(pem)
        except OSError as error:
            raise SetupError(f"cannot read the token key {path}: {error.strerror}") from error
        except (JoseError, ValueError, TypeError) as error:
            raise SetupError(f"{path} does not hold a private key in PEM form") from error
        if key.curve_name != "P-256" or not key.is_private:
            raise SetupError(f"{path} does not hold a private P-256 key")
        return cls(key)

    @property
    def name(self) -> str:
        return str(self.key.thumbprint())

    def public(self) -> dict[str, Any]:
        """Encode the public key as a JWK."""
        return {**self.key.as_dict(private=False), "kid": self.name, "use": "sig", "alg": ALGORITHM}


def key_set(keys: Iterable[TokenKey]) -> dict[str, Any]:
    """Make the JWK set of our public keys (RFC 7517 §5); a retired key stays in it until its last token has expired."""
    return {"keys": [key.public() for key in keys]}


def claims_of(session: Session, *, issuer: str, audience: Sequence[str]) -> dict[str, Any]:
    """Make the claims of an access token, and of its introspection (RFC 9068 §2.2, RFC 7662 §2.2).

    The subject is the user handle, which is random, permanent, and no personal data.
    """
    return {
        "iss": issuer,
        "sub": base64url(session.user_handle),
        "aud": list(audience),
        "client_id": session.key_thumbprint,
        "exp": session.expires_at,
        "auth_time": session.auth_time,
        "cnf": {"jkt": session.key_thumbprint},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIssuer:
    """Issues the access token of a session whose expiry is set."""

    key: TokenKey | None  # None: opaque random text
    issuer: str
    audience: tuple[str, ...]
    random: RandomBytes = field(repr=False)

    def token(self, session: Session, *, now: float) -> str:
        if self.key is None or not session.client_kind.proves_key:
            return base64url(self.random(32))
        claims = {
            **claims_of(session, issuer=self.issuer, audience=self.audience or (self.issuer,)),
            "iat": int(now),
            "jti": base64url(self.random(16)),
        }
        header = {"typ": TYPE, "alg": ALGORITHM, "kid": self.key.name}
        return jwt.encode(header, claims, self.key.key, algorithms=[ALGORITHM])


def secret_hash(secret: str) -> bytes:
    """Hash a resource server's secret: SHA-256, 32 bytes."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
