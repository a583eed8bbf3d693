"""Users, passkeys and sessions as stored, and the interface of their store.

Each method of `CredentialStore` is one transaction: atomic, and durable when the method returns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from relying_party.core.sessions import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user, who may have several passkeys."""

    handle: bytes = field(repr=False)  # 32 random bytes, no personal data
    name: str = field(repr=False)
    display_name: str = field(repr=False)


class BackupEligibility(StrEnum):
    """Whether a passkey's backup eligibility (BE) may differ from its registration's."""

    FIXED = "fixed"  # the specification's rule (WebAuthn Level 3 §6.1.3, §7.2)
    MAY_BEGIN = "may-begin"  # BE may become set, for providers that set it late
    MAY_CHANGE = "may-change"  # BE may change in both directions

    def allows(self, *, was: bool, now: bool) -> bool:
        return was == now or self is self.MAY_CHANGE or (self is self.MAY_BEGIN and now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A credential record (WebAuthn Level 3 §4)."""

    credential_id: bytes = field(repr=False)
    user_handle: bytes = field(repr=False)
    attested_data: bytes = field(repr=False)  # AAGUID, credential id and COSE public key, as attested
    aaguid: bytes  # 16 bytes
    algorithm: int  # COSE
    sign_count: int
    backup_eligible: bool  # changes only as `BackupEligibility` allows
    backed_up: bool
    transports: tuple[str, ...]
    attestation_object: bytes = field(repr=False)  # for a later audit
    client_data_hash: bytes = field(repr=False)  # of the attestation signature
    created_at: int  # Unix seconds, as all times here
    last_used_at: int | None = None
    counter_anomalies: int = 0  # sign-ins whose counter did not increase: a risk signal
    label: str | None = field(default=None, repr=False)  # the user's name for it
    discoverable: bool | None = None  # credProps.rk, if the client sent it
    prf: bool | None = None  # whether it supports prf, if that was requested


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialUse:
    """The changes of a credential by a successful sign-in."""

    credential_id: bytes = field(repr=False)
    sign_count: int
    backed_up: bool
    counter_anomaly: bool
    used_at: int
    backup_eligible: bool | None = None  # the new value; None: unchanged


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A user with passkeys and sessions, for the page."""

    user: User
    credentials: tuple[Credential, ...]
    sessions: tuple[Session, ...]


class CredentialStore(Protocol):
    """The interface of a store for users, credentials and sessions."""

    async def user_by_name(self, name: str) -> User | None: ...

    async def credentials_of(self, user_handle: bytes) -> Sequence[Credential]: ...

    async def credential(self, credential_id: bytes) -> Credential | None: ...

    async def register(
        self, credential: Credential, user: User, session: Session, *, ends: bytes | None
    ) -> User:
        """Add a user with their first credential, and open a session.

        ends: the id of a session this one takes the place of. Returns the user as stored. `UserExists` when the name
        is taken; `VerificationFailed` when the credential id is.
        """

    async def add_credential(self, credential: Credential, session: Session, *, was: bytes) -> User:
        """Add a credential to the user of a session, and `replace_session`.

        `VerificationFailed` when the credential id is taken, or the session has gone.
        """

    async def sign_in(self, use: CredentialUse, session: Session, *, ends: bytes | None) -> User:
        """Note the use of a credential and open a session; `VerificationFailed` when it has gone. ends: as for `register`."""

    async def step_up(
        self, use: CredentialUse, session: Session, *, was: bytes, operation: bytes, until: int
    ) -> User:
        """Note the use of a credential, `replace_session`, and keep the step-up; `VerificationFailed` when either has gone.

        operation: the digest of the one operation that it is for. until: its expiry. A session has one step-up at most.
        """

    async def spend_step_up(self, session_id: bytes, operation: bytes, *, now: float) -> bool:
        """Use up a session's step-up for this operation; returns whether there was one. Of two calls at once one gets it."""

    async def session(self, token_hash: bytes, *, now: float) -> tuple[Session, User] | None:
        """Look up the live session of an unexpired token, and its user."""

    async def session_of_refresh(self, refresh_hash: bytes, *, now: float) -> tuple[Session, User] | None:
        """Look up the live session of a refresh token, also of a spent one."""

    async def replace_session(self, session: Session, *, was: bytes) -> bool:
        """Store a session's new state if its token's hash is still `was` (compare and set).

        A refresh token that the new state no longer holds is stored as spent, to detect its reuse.
        """

    async def end_session(self, user_handle: bytes, session_id: bytes) -> bool:
        """End a session of that user; returns whether it existed."""

    async def end_other_sessions(self, user_handle: bytes, *, but: bytes) -> int:
        """End all sessions of a user except one; returns how many it ended. but: its id."""

    async def rename_user(self, user_handle: bytes, display_name: str) -> User | None: ...

    async def rename_credential(self, user_handle: bytes, credential_id: bytes, label: str | None) -> bool:
        """Rename a credential of that user; returns whether it exists."""

    async def remove_credential(self, user_handle: bytes, credential_id: bytes, *, but: bytes) -> bool:
        """Remove a credential of that user, with the sessions that it opened; returns whether it existed.

        but: the id of a session that goes on. `LastCredential` when the user has no other one.
        """

    async def everyone(self, *, now: float, most: int) -> Sequence[Registered]:
        """List users, newest first, with their live sessions."""

    async def registered(self, user_handle: bytes, *, now: float) -> Registered | None: ...

    async def secret(self, name: str) -> bytes:
        """A secret of 32 random bytes, made once in the life of the store."""
