"""Sessions: an opaque random token for the client, its hash and what it stands for for us.

A device's session is bound to its key: the token opens nothing without a proof of that key. A browser's
is a cookie. Reading the database yields no token.
"""

import hashlib
from dataclasses import dataclass, field

from relying_party.callers import Caller, ClientKind
from relying_party.encoding import base64url


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a token stands for."""

    token_hash: bytes = field(repr=False)  # SHA-256
    user_handle: bytes = field(repr=False)
    credential_id: bytes = field(repr=False)
    client_kind: ClientKind
    key_thumbprint: str | None
    created_at: int
    expires_at: int

    def belongs_to(self, caller: Caller) -> bool:
        """Whether `caller` may use it: the same kind of client, and the same key where there is one."""
        return (self.client_kind, self.key_thumbprint) == (caller.kind, caller.key_thumbprint)


def open_session(
    *, user_handle: bytes, credential_id: bytes, caller: Caller, now: float, lifetime: int, random: bytes
) -> tuple[str, Session]:
    """A token and the session it opens. lifetime: seconds. random: 32 bytes that nobody else has."""
    token = base64url(random)
    return token, Session(
        token_hash=hash_token(token),
        user_handle=user_handle,
        credential_id=credential_id,
        client_kind=caller.kind,
        key_thumbprint=caller.key_thumbprint,
        created_at=int(now),
        expires_at=int(now) + lifetime,
    )


def hash_token(token: str) -> bytes:
    """The 32 bytes under which a token's session is kept."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
