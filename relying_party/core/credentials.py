"""Users, their passkeys and their sessions: what is kept, and what a place to keep it must do.

Each method of `CredentialStore` is one transaction: all of it happens and is on disk when the method
returns, or none of it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from relying_party.core.sessions import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody who may have several passkeys."""

    handle: bytes = field(repr=False)  # 32 random bytes: says nothing about the person
    name: str = field(repr=False)
    display_name: str = field(repr=False)


class BackupEligibility(StrEnum):
    """Whether a passkey may say something else about its backup eligibility (BE) than at registration."""

    FIXED = "fixed"  # the specification's rule (WebAuthn Level 3 §6.1.3, §7.2)
    MAY_BEGIN = "may-begin"  # a provider that did not say at first that it syncs may say so later
    MAY_CHANGE = "may-change"  # either way

    def allows(self, *, was: bool, now: bool) -> bool:
        return was == now or self is self.MAY_CHANGE or (self is self.MAY_BEGIN and now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A passkey as the relying party knows it (WebAuthn Level 3 §4, credential record)."""

    credential_id: bytes = field(repr=False)
    user_handle: bytes = field(repr=False)
    attested_data: bytes = field(repr=False)  # AAGUID, credential id and COSE public key, as attested
    aaguid: bytes  # 16 bytes
    algorithm: int  # COSE
    sign_count: int
    backup_eligible: bool  # changes only where `BackupEligibility` lets it
    backed_up: bool
    transports: tuple[str, ...]
    attestation_object: bytes = field(repr=False)  # kept so that an audit can verify it later
    client_data_hash: bytes = field(repr=False)  # what the attestation signs, beside the above
    created_at: int  # Unix seconds, as all times here
    last_used_at: int | None = None
    counter_anomalies: int = 0  # sign-ins whose counter did not grow: a risk signal
    label: str | None = field(default=None, repr=False)  # what its user calls it
    discoverable: bool | None = None  # credProps.rk, where the client said so
    prf: bool | None = None  # whether it has the prf extension, where that was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialUse:
    """What a successful sign-in changes in a credential."""

    credential_id: bytes = field(repr=False)
    sign_count: int
    backed_up: bool
    counter_anomaly: bool
    used_at: int
    backup_eligible: bool | None = None  # what it became; None: what it was


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A user with passkeys and sessions, for the page."""

    user: User
    credentials: tuple[Credential, ...]
    sessions: tuple[Session, ...]


class CredentialStore(Protocol):
    """Where users, credentials and sessions are kept."""

    async def user_by_name(self, name: str) -> User | None: ...

    async def credentials_of(self, user_handle: bytes) -> Sequence[Credential]: ...

    async def credential(self, credential_id: bytes) -> Credential | None: ...

    async def register(
        self, credential: Credential, user: User, session: Session, *, ends: bytes | None
    ) -> User:
        """Add a credential and open a session; a user who is not there yet is added too.

        ends: the id of a session this one takes the place of. Returns the user as stored.
        `UserExists` when the name belongs to another handle; `VerificationFailed` when the credential id
        is taken.
        """

    async def sign_in(self, use: CredentialUse, session: Session, *, ends: bytes | None) -> User:
        """Note the use of a credential and open a session; `VerificationFailed` when it has gone. ends: as for `register`."""

    async def step_up(self, use: CredentialUse, session: Session, *, was: bytes) -> User:
        """Note the use of a credential and `replace_session`; `VerificationFailed` when either has gone."""

    async def session(self, token_hash: bytes, *, now: float) -> tuple[Session, User] | None:
        """The live session of a token that is still good, and whose it is."""

    async def session_of_refresh(self, refresh_hash: bytes, *, now: float) -> tuple[Session, User] | None:
        """The live session that a refresh token is of, or once was."""

    async def replace_session(self, session: Session, *, was: bytes) -> bool:
        """Store what became of a session, if its token is still the one whose hash is `was`.

        A refresh token that the new state no longer names is remembered as spent.
        """

    async def end_session(self, user_handle: bytes, session_id: bytes) -> bool:
        """Whether that user had that session, which is over now."""

    async def end_other_sessions(self, user_handle: bytes, *, but: bytes) -> int:
        """End all sessions of a user but the one of that id; how many there were."""

    async def rename_user(self, user_handle: bytes, display_name: str) -> User | None: ...

    async def rename_credential(self, user_handle: bytes, credential_id: bytes, label: str | None) -> bool:
        """Whether that user had that credential, which is called so now."""

    async def remove_credential(self, user_handle: bytes, credential_id: bytes, *, but: bytes) -> bool:
        """Whether that user had that credential, which is gone now, with the sessions it was used for.

        but: the id of a session that goes on. `LastCredential` when the user has no other one.
        """

    async def everyone(self, *, now: float, most: int) -> Sequence[Registered]:
        """The users, newest first, with their live sessions."""

    async def registered(self, user_handle: bytes, *, now: float) -> Registered | None: ...

    async def secret(self, name: str) -> bytes:
        """32 random bytes that stay the same for as long as the store lives."""
