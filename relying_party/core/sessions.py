"""Sessions: opaque random tokens for the client, their hashes and what they stand for for us.

A browser's session is a cookie. A device's is bound to its key: a token that works for hours and a refresh token
that gets the next pair, neither of which opens anything without a proof of that key. Reading the database
yields no token.

A refresh token is for one use. Its answer may get lost on the way, so the one before may be sent again for as
long as nothing that came after it was used; any older one tells that two hold what only one should (refresh token
reuse, RFC 9700 §4.14.2), and the session ends (`refreshed` returns None). One exception is made for requests that
arrive late (`is_late`): the device gave one up and sent it again, the second was answered and its answer used,
and then the first arrives. It gets nothing, and ends nothing either.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from relying_party.core.callers import Caller, ClientKind
from relying_party.core.encoding import base64url
from relying_party.errors import UsageError

RandomBytes = Callable[[int], bytes]
IssueToken = Callable[["Session"], str]  # the token of a session whose end is set

SIGNED_TOKEN_SECONDS: Final = 600  # a token that others verify outlives its session, so it lasts for minutes
LATE_SECONDS: Final = 60  # a request's proof is good for as long, and so may a copy of the request come


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """How long what we hand out is good for, in seconds."""

    cookie: int = 12 * 3600  # a browser's session
    token: int = 12 * 3600  # a device's token, before it must be refreshed
    session: int = 30 * 86400  # a device's session, however often it is refreshed; a step-up begins anew
    fresh: int = 15 * 60  # how long after a passkey was used its user may change what matters

    def __post_init__(self) -> None:
        for name in ("cookie", "token", "session", "fresh"):
            seconds = getattr(self, name)
            if not isinstance(seconds, int) or isinstance(seconds, bool) or seconds < 1:
                raise UsageError(f"{name}: expected a whole number of 1 or more, got {seconds!r:.40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a token stands for."""

    session_id: bytes = field(repr=False)  # 16 random bytes, the same however often the tokens change
    token_hash: bytes = field(repr=False)  # SHA-256, as all hashes here
    user_handle: bytes = field(repr=False)
    credential_id: bytes = field(repr=False)  # the passkey that was used last
    client_kind: ClientKind
    key_thumbprint: str | None
    label: str | None = field(default=None, repr=False)
    created_at: int
    auth_time: int  # when a passkey was used last
    expires_at: int  # the token's end
    ends_at: int  # the session's
    refresh_hash: bytes | None = field(default=None, repr=False)  # the next token to refresh with
    previous_refresh_hash: bytes | None = field(default=None, repr=False)  # until its answer has arrived
    confirmed_refresh_hash: bytes | None = field(
        default=None, repr=False
    )  # the last whose answer has arrived
    confirmed_at: int | None = None  # when that was seen

    def belongs_to(self, caller: Caller) -> bool:
        """Whether `caller` may use it: a browser a browser's, and a key its own."""
        return (self.client_kind.proves_key, self.key_thumbprint) == (
            caller.kind.proves_key,
            caller.key_thumbprint,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A session with the tokens that stand for it, which nobody can read from it."""

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
    """A new session. random: gives bytes that nobody else has. issue: None makes tokens of random text."""
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
    """The same session after its user has used a passkey once more: new tokens, as after any sign-in."""
    renewed = replace(
        session,
        credential_id=credential_id,
        auth_time=int(now),
        ends_at=_end(session.client_kind, now, lifetimes),
        previous_refresh_hash=None,
    )
    return _with_new_tokens(renewed, now=now, lifetimes=lifetimes, random=random, issue=issue)


def refreshed(
    session: Session,
    presented: bytes,
    *,
    now: float,
    lifetimes: Lifetimes,
    random: RandomBytes,
    issue: IssueToken | None = None,
) -> Opened | None:
    """The same session with new tokens; None when the one presented was spent.

    presented: the hash of a refresh token of this session.
    """
    if presented not in (session.refresh_hash, session.previous_refresh_hash):
        return None
    renewed = replace(session, previous_refresh_hash=presented)
    return _with_new_tokens(renewed, now=now, lifetimes=lifetimes, random=random, issue=issue)


def confirmed(session: Session, *, now: float) -> Session | None:
    """The session once its token was used: the answer of its last refresh has arrived. None when that was known."""
    if session.previous_refresh_hash is None:
        return None
    return replace(
        session,
        previous_refresh_hash=None,
        confirmed_refresh_hash=session.previous_refresh_hash,
        confirmed_at=int(now),
    )


def is_late(session: Session, presented: bytes, *, now: float) -> bool:
    """Whether a spent refresh token may be in a copy of a request that was made before it was spent.

    Such a copy has no proof that is good after `LATE_SECONDS`. Only the token that was presented last is meant:
    one that was handed out and never presented has no copies on the way.
    """
    return (
        session.confirmed_at is not None
        and presented == session.confirmed_refresh_hash
        and now - session.confirmed_at <= LATE_SECONDS
    )


def hash_token(token: str) -> bytes:
    """The 32 bytes under which a token's session is kept."""
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
