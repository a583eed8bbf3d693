"""The interface of an account authority: whoever knows the people to whom a relay's accounts belong.

A relay without one has built-in accounts only, which begin with one-time codes (`BuiltInAccounts`). A service with a users
table of its own implements `AccountAuthority`, and `companion_push.identity.openid` is one for any OpenID Connect issuer::

    class Users(AccountAuthority):
        async def sign_in(self, token: str, *, key: str) -> SignIn:
            user = await self.users.by_token(token)
            if user is None:
                raise TokenRefused("the session is over")
            return SignIn(subject=Subject(issuer="users", id=user.id), account_name=user.name, issued_at=…)

    make_app(config, authority=Users())

The authority says who founds an account, may refuse a change that lets somebody in or renames somebody, and may close and
suspend an account (`companion_push.relay.app.close_account`, `suspend_account`). It can neither add nor remove a member:
a ring is signed by a companion, and a ring that only takes members out is never shown to it (docs/adr/0023).
"""

from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final, Protocol

MAX_TOKEN: Final = 16_384  # characters


class TokenRefused(Exception):  # noqa: N818  a refusal
    """The token does not hold: it has expired, is for somebody else, or was not made by the issuer."""

    def __init__(self, detail: str) -> None:
        """detail: for people, what was expected; it goes into the answer, and never holds what came."""
        super().__init__(detail)
        self.detail = detail


class AuthorityUnavailable(Exception):  # noqa: N818  a state, not a fault
    """The authority cannot be asked at the moment; trying again may help."""

    def __init__(self, detail: str, *, retry_after: int = 5) -> None:
        """detail: for the log. retry_after: seconds."""
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whom an issuer knows by an identifier that it never gives to anybody else (OpenID Connect Core §8)."""

    issuer: str
    id: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignIn:
    """What a token says that holds."""

    subject: Subject
    account_name: str  # the name of an account that it founds, which members are shown
    issued_at: int  # Unix seconds: when the token was made
    signed_in_at: int | None = None  # Unix seconds: when its subject was last authenticated, if known
    may_found: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInWay:
    """Where a companion signs in to get a token: an OpenID Connect issuer, and the client that the companion is there."""

    issuer: str
    client: str
    audience: str  # of the token; the client itself for an ID token


@dataclass(frozen=True, slots=True, kw_only=True)
class RingChange:
    """A change of an account's members that one of its companions has signed."""

    account: str
    subject: Subject | None  # to whom the account belongs; None for a built-in account
    version: int  # of the new ring
    signer: str  # the name of the companion that signed it
    added: tuple[tuple[str, str], ...]  # role and label of each new member
    removed: tuple[tuple[str, str], ...]


class AccountAuthority(Protocol):
    """Who knows the people to whom accounts belong. Subclass it: only `sign_in` has no default."""

    vetoes: bool = False  # whether `veto` is asked, which costs each change of a ring one more transaction

    async def sign_in(self, token: str, *, key: str) -> SignIn:
        """Say who signed in, by a token that a companion shows to found or reset an account.

        token: at most `MAX_TOKEN` characters, and otherwise anything. key: the name of the caller's key, its RFC 7638
        thumbprint, to which a token may be bound (``cnf.jkt``, RFC 9449 §6). `TokenRefused` for what does not hold,
        `AuthorityUnavailable` when this cannot be said now.
        """
        ...

    async def veto(self, change: RingChange) -> str | None:  # noqa: ARG002  the default
        """Say why a change of an account is not allowed, in a line for people; None to let it be.

        `AuthorityUnavailable` when this cannot be said now, as for `sign_in`; who takes longer than 15 s counts as unavailable.
        A ring that only takes members out is not asked about.
        """
        return None

    def way(self) -> SignInWay | None:
        """Where a companion gets a token by itself; None where it is given one."""
        return None

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Open what the authority needs, for as long as the relay runs."""
        return nullcontext()


class BuiltInAccounts(AccountAuthority):
    """The default: accounts are made by the operator, with one-time codes, and no token founds one."""

    async def sign_in(self, token: str, *, key: str) -> SignIn:  # noqa: ARG002  whatever they are
        raise TokenRefused("this relay founds accounts with one-time codes")
