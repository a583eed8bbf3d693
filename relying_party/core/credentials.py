"""Users, passkeys and sessions as stored, and the interface of their store.

Each method of `CredentialStore` is one transaction: atomic, and durable when the method returns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from relying_party.core.removals import Aged, Change, Removal, may_call_off
from relying_party.core.sessions import Session

if TYPE_CHECKING:  # a proof is verified with libraries that reading the command line does without
    from relying_party.core.proofs import Proof

MAX_PASSKEYS: Final = 32  # of one user
MAX_SESSIONS: Final = 100  # of one user: the oldest one ends for a new one
NEVER_USED_SECONDS: Final = (
    90 * 86400
)  # after which an account goes that was registered and never signed in to


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
    attested_data: bytes = field(repr=False)  # AAGUID, credential id and COSE public key, canonical
    aaguid: bytes  # 16 bytes
    algorithm: int  # COSE
    sign_count: int
    backup_eligible: bool  # changes only as `BackupEligibility` allows
    backed_up: bool
    transports: tuple[str, ...]
    attestation_object: bytes = field(repr=False)  # canonical, without the statement: format "none"
    client_data_hash: bytes = field(repr=False)  # SHA-256 of the registration's client data
    created_at: int  # Unix seconds, as all times here
    last_used_at: int | None = None
    counter_anomalies: int = 0  # sign-ins whose counter did not increase: a risk signal
    label: str | None = field(default=None, repr=False)  # the user's name for it
    discoverable: bool | None = None  # credProps.rk, if the client sent it
    prf: bool | None = None  # whether it supports prf, if that was requested

    def aged(self) -> Aged:
        return Aged(credential_id=self.credential_id, created_at=self.created_at)


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
class Noted:
    """What a store has noted of a sign-in."""

    user: User
    counter_anomaly: bool  # the counter did not grow, compared with what was stored in that very moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A user with passkeys and live sessions, and what has happened to the account where that was asked for."""

    user: User
    credentials: tuple[Credential, ...]
    sessions: tuple[Session, ...]
    removals: tuple[Removal, ...] = ()  # the one that takes effect first in front
    changes: tuple[Change, ...] = ()  # newest first

    def may_call_off(self, removal: Removal, session: Session) -> bool:
        """Whether a session may call one of the removals off (`relying_party.core.removals`)."""
        return may_call_off(removal, [one.aged() for one in self.credentials], session.credential_id)


def counter_stands_still(stored: int, seen: int) -> bool:
    """Whether a signature counter in use did not increase (WebAuthn Level 3 §6.1.1).

    Synced passkeys keep it at zero. It is a risk signal, and no reason to refuse a sign-in.
    """
    return (stored, seen) != (0, 0) and seen <= stored


class CredentialStore(Protocol):
    """The interface of a store for users, credentials and sessions.

    `now` is Unix seconds. A method that reads users, passkeys or sessions, or that removes or calls off, finds every
    removal that is due by then done. `by` is the session in which a
    change is made; its user is who is changed, and the change is noted for their other sessions.
    """

    async def user_by_name(self, name: str, *, now: float) -> User | None: ...

    async def credentials_of(self, user_handle: bytes, *, now: float) -> Sequence[Credential]: ...

    async def credential(self, credential_id: bytes, *, now: float) -> Credential | None: ...

    async def register(
        self, credential: Credential, user: User, session: Session, *, ends: bytes | None
    ) -> User:
        """Add a user with their first credential, and open a session.

        ends: the id of a session this one takes the place of. Returns the user as stored. `UserExists` when the name
        is taken; `VerificationFailed` when the credential id is. A few users are removed whose passkey has not been used
        for `NEVER_USED_SECONDS`, never since it was registered, and who have no session.
        """

    async def add_credential(self, credential: Credential, session: Session, *, was: bytes) -> User:
        """Add a credential to the user of a session, and `replace_session`.

        `VerificationFailed` when the credential id is taken, or the session has gone; `TooManyPasskeys` beyond
        `MAX_PASSKEYS`.
        """

    async def sign_in(self, use: CredentialUse, session: Session, *, ends: bytes | None) -> Noted:
        """Note the use of a credential and open a session; `VerificationFailed` when it has gone. ends: as for `register`."""

    async def step_up(
        self, use: CredentialUse, session: Session, *, was: bytes, operation: bytes, until: int
    ) -> Noted:
        """Note the use of a credential, `replace_session`, and keep the step-up; `VerificationFailed` when either has gone.

        operation: the digest of the one operation that it is for. until: its expiry. A session has one step-up at most.
        """

    async def spend_step_up(self, session_id: bytes, operation: bytes, *, now: float) -> bool:
        """Use up a session's step-up for this operation; returns whether there was one. Of two calls at once one gets it."""

    async def session(self, token_hash: bytes, *, now: float) -> tuple[Session, User] | None:
        """Look up the live session of an unexpired token, and its user."""

    async def session_of_refresh(self, refresh_hash: bytes, *, now: float) -> tuple[Session, User] | None:
        """Look up the live session of a refresh token, also of a spent one."""

    async def is_signed_in(self, user_handle: bytes, key_thumbprint: str, *, now: float) -> bool:
        """Whether the user has a live session that is bound to a key."""

    async def replace_session(self, session: Session, *, was: bytes) -> bool:
        """Store a session's new state if its token's hash is still `was` (compare and set).

        A refresh token that the new state no longer holds is stored as spent, to detect its reuse.
        """

    async def end_session(self, user_handle: bytes, session_id: bytes) -> bool:
        """End a session of that user; returns whether it existed."""

    async def end_sessions(self, session_id: bytes | None, *, by: Session, now: float) -> int:
        """End another session of the user, or with None all but `by`; returns how many it ended."""

    async def rename_user(self, display_name: str, *, by: Session, now: float) -> None: ...

    async def rename_credential(
        self, credential_id: bytes, label: str | None, *, by: Session, now: float
    ) -> None:
        """Rename a credential; `NotFound` when it is not the user's."""

    async def remove_credential(
        self, credential_id: bytes, *, removal_id: bytes, by: Session, now: float
    ) -> Removal | None:
        """Remove a credential with the sessions that it opened, except `by`; None when that is done.

        Where it is delayed (`relying_party.core.removals`), it returns the removal, of that id or the one asked for before.
        `NotFound` when it is not the user's, `LastCredential` when no other one would stay.
        """

    async def remove_user(self, *, removal_id: bytes, by: Session, now: float) -> Removal | None:
        """Remove the user with everything; None when that is done, else the removal, as for `remove_credential`."""

    async def call_off(self, removal_id: bytes, *, by: Session, now: float) -> None:
        """Call a removal off; `NotFound` when the user has none of that id, `YoungerPasskey` when `by` may not."""

    async def everyone(self, *, now: float, most: int) -> Sequence[Registered]:
        """List users, newest first, with their passkeys and live sessions, and nothing else of their accounts."""

    async def registered(self, user_handle: bytes, *, now: float) -> Registered | None: ...

    async def take_proof(self, proof: "Proof", *, now: float) -> str:
        """As in `UsedProofs`, for all processes on this store; called only where they share it (``shared_store``)."""

    async def secret(self, name: str) -> bytes:
        """A secret of 32 random bytes, made once in the life of the store."""
