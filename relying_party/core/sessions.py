"""Sessions: the client holds random tokens, and the server their hashes and the session.

A browser's session is a cookie. A device's session is bound to its key: it has an access token for some hours, and a
refresh token for the next pair. Both need a proof of possession of the key. The store holds hashes only, so reading it
yields no token.

A refresh token is single use (rotation). The answer to a refresh may be lost, so the previous token may be sent again
until one of its successors was used. Use of any older token is refresh token reuse: it means theft, and the session ends
(RFC 9700 §4.14.2; `refreshed` returns None). One exception is a late copy of a request (`is_late`): the device gave a
request up and sent it again, the second was answered and its answer used, and then the first arrives. It is refused, and
the session goes on.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from program_parts.base64url import base64url
from relying_party.core.bounds import check_whole
from relying_party.core.callers import Caller, ClientKind

RandomBytes = Callable[[int], bytes]
IssueToken = Callable[["Session"], str]  # the token of a session whose expiry is set

SIGNED_TOKEN_SECONDS: Final = (
    600  # a token that others verify outlives a revoked session, so it lasts minutes
)
# of a lifetime: the page shows its end as a date, and the store keeps it in 64 bits
MAX_SECONDS: Final = 100 * 365 * 86400
LATE_SECONDS: Final = 60  # as long as a proof is valid, a late copy of its request may arrive


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """Lifetimes of sessions and tokens, in seconds."""

    cookie: int = 12 * 3600  # a browser's session
    token: int = 12 * 3600  # a device's token, before it must be refreshed
    session: int = 30 * 86400  # a device's session, also when refreshed; a step-up starts it anew

    def __post_init__(self) -> None:
        check_whole(self, "cookie", "token", "session", most=MAX_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session, as the server stores it."""

    session_id: bytes = field(repr=False)  # 16 random bytes, which stay the same when tokens change
    token_hash: bytes = field(repr=False)  # SHA-256, as all hashes here
    user_handle: bytes = field(repr=False)
    credential_id: bytes = field(repr=False)  # of the last used passkey
    client_kind: ClientKind
    key_thumbprint: str | None
    label: str | None = field(default=None, repr=False)
    created_at: int
    auth_time: int  # the last use of a passkey
    expires_at: int  # of the token
    ends_at: int  # of the session
    refresh_hash: bytes | None = field(default=None, repr=False)  # of the current refresh token
    previous_refresh_hash: bytes | None = field(
        default=None, repr=False
    )  # of the previous one, until its answer has arrived
    confirmed_refresh_hash: bytes | None = field(
        default=None, repr=False
    )  # of the last refresh token whose answer has arrived
    confirmed_at: int | None = None  # when its arrival was seen

    @property
    def caller(self) -> Caller:
        """Who uses the session, with the kind of client and the label that it began with."""
        return Caller(kind=self.client_kind, key_thumbprint=self.key_thumbprint, label=self.label)

    def belongs_to(self, caller: Caller) -> bool:
        """Whether `caller` may use the session: a browser's session a browser, a bound one its key."""
        return (self.client_kind.proves_key, self.key_thumbprint) == (
            caller.kind.proves_key,
            caller.key_thumbprint,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A new state of a session, with the tokens for the client."""

    session: Session
    token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)  # None for a browser


def open_session(
    *,
    user_handle: bytes,
    credential_id: bytes,
    caller: Caller,
    now: float,
    lifetimes: Lifetimes,
    random: RandomBytes,
    issue: IssueToken | None = None,
) -> Opened:
    """Open a session. random: a cryptographic source. issue: makes access tokens; None for opaque random text."""
    started = Session(
        session_id=random(16),
        token_hash=b"",
        user_handle=user_handle,
        credential_id=credential_id,
        client_kind=caller.kind,
        key_thumbprint=caller.key_thumbprint,
        label=caller.label,
        created_at=int(now),
        auth_time=int(now),
        expires_at=0,
        ends_at=_end(caller.kind, now, lifetimes),
    )
    return _with_new_tokens(started, now=now, lifetimes=lifetimes, random=random, issue=issue)


def stepped_up(
    session: Session,
    *,
    credential_id: bytes,
    now: float,
    lifetimes: Lifetimes,
    random: RandomBytes,
    issue: IssueToken | None = None,
) -> Opened:
    """Step a session up after another use of a passkey: `auth_time` and end are as after a sign-in, and the tokens new."""
    renewed = replace(
        session,
        credential_id=credential_id,
        auth_time=int(now),
        ends_at=_end(session.client_kind, now, lifetimes),
    )
    return rotated(renewed, now=now, lifetimes=lifetimes, random=random, issue=issue)


def rotated(
    session: Session,
    *,
    now: float,
    lifetimes: Lifetimes,
    random: RandomBytes,
    issue: IssueToken | None = None,
) -> Opened:
    """Give a session new tokens, with a new expiry; its passkey, `auth_time` and end stay. The tokens before are void."""
    return _with_new_tokens(
        replace(session, previous_refresh_hash=None),
        now=now,
        lifetimes=lifetimes,
        random=random,
        issue=issue,
    )


def refreshed(
    session: Session,
    presented: bytes,
    *,
    now: float,
    lifetimes: Lifetimes,
    random: RandomBytes,
    issue: IssueToken | None = None,
) -> Opened | None:
    """Refresh a session with new tokens; None for reuse of a spent refresh token.

    presented: the hash of a refresh token of this session.
    """
    if presented not in (session.refresh_hash, session.previous_refresh_hash):
        return None
    renewed = replace(session, previous_refresh_hash=presented)
    return _with_new_tokens(renewed, now=now, lifetimes=lifetimes, random=random, issue=issue)


def confirmed(session: Session, *, now: float) -> Session | None:
    """The session after the first use of its new token, which proves that the refresh's answer arrived; None if known."""
    if session.previous_refresh_hash is None:
        return None
    return replace(
        session,
        previous_refresh_hash=None,
        confirmed_refresh_hash=session.previous_refresh_hash,
        confirmed_at=int(now),
    )


def is_late(session: Session, presented: bytes, *, now: float) -> bool:
    """Whether a spent refresh token can be in a late copy of a request that was sent before it was spent.

    The proof of such a copy expires after `LATE_SECONDS`. Only the last presented token counts: a token that was never
    presented has no copies.
    """
    return (
        session.confirmed_at is not None
        and presented == session.confirmed_refresh_hash
        and now - session.confirmed_at <= LATE_SECONDS
    )


def hash_token(token: str) -> bytes:
    """Hash a token: SHA-256, 32 bytes."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _end(kind: ClientKind, now: float, lifetimes: Lifetimes) -> int:
    return int(now) + (lifetimes.session if kind.proves_key else lifetimes.cookie)


def _with_new_tokens(
    session: Session, *, now: float, lifetimes: Lifetimes, random: RandomBytes, issue: IssueToken | None
) -> Opened:
    refresh_token, expires_at = None, session.ends_at
    if session.client_kind.proves_key:
        refresh_token = base64url(random(32))
        expires_at = min(expires_at, int(now) + lifetimes.token)
    session = replace(
        session,
        expires_at=expires_at,
        refresh_hash=None if refresh_token is None else hash_token(refresh_token),
    )
    token = issue(session) if issue and session.client_kind.proves_key else base64url(random(32))
    return Opened(
        session=replace(session, token_hash=hash_token(token)), token=token, refresh_token=refresh_token
    )
