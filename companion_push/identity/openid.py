"""Accounts of the users of any OpenID Connect issuer: its signed tokens say who signed in.

A token is an ID token for the companion's client (OpenID Connect Core §2), or a JWT access token for this relay (RFC 9068).
It is verified with the issuer's keys, by an allow list of asymmetric algorithms; a key that the token itself names or
carries is never used. It must be of this issuer, for this audience, and given to a known client. A token that is bound to a
key (RFC 9449 §6) must be bound to the caller's.
"""

import hmac
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Final

import msgspec
from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning

from companion_push.identity.authority import AccountAuthority, SignIn, SignInWay, Subject, TokenRefused
from companion_push.identity.issuer import IssuerKeys
from companion_push.identity.settings import OpenIdSettings
from headless_passkey.errors import RemoteProtocolError
from headless_passkey.text.base64url import from_base64url
from program_parts.names import plain

SKEW: Final = 60  # seconds by which the issuer's clock may be ahead or behind
LONGEST_LIFE: Final = 86_400  # seconds since a token was made
_TYPES: Final = (None, "jwt", "at+jwt")  # not those of logout tokens, proofs, …
_UNNAMED: Final = "account"

_Time = Annotated[float, msgspec.Meta(ge=0, le=1 << 48)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    typ: str | None = None
    crit: Any = msgspec.UNSET


class _Confirmation(msgspec.Struct, frozen=True):
    jkt: str | None = None


class _Claims(msgspec.Struct, frozen=True):
    iss: str
    sub: _Text
    aud: str | Annotated[list[str], msgspec.Meta(max_length=16)]
    exp: _Time
    iat: _Time
    nbf: _Time | None = None
    azp: str | None = None
    client_id: str | None = None
    auth_time: _Time | None = None
    cnf: _Confirmation | None = None
    events: Any = msgspec.UNSET  # of security events, such as logout tokens
    preferred_username: Any = None
    name: Any = None


class OpenIdConnect(AccountAuthority):
    """The users of one OpenID Connect issuer, as an account authority."""

    def __init__(
        self,
        settings: OpenIdSettings,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] | None = None,
    ) -> None:
        """clock: Unix seconds. ticks: seconds of a clock that nobody sets; by default the event loop's."""
        self._settings, self._clock = settings, clock
        self._keys = IssuerKeys(settings, ticks=ticks)

    def opened(self) -> AbstractAsyncContextManager[None]:
        return self._keys.opened()

    def way(self) -> SignInWay | None:
        return self._settings.way

    async def sign_in(self, token: str, *, key: str) -> SignIn:
        header, claims = _parse(token)
        if header.alg not in self._settings.algorithms:
            raise TokenRefused(f"expected an algorithm of {', '.join(self._settings.algorithms)}")
        self._check(claims, key)  # first what costs nothing
        await self._verify(token, header)
        return SignIn(
            subject=Subject(issuer=claims.iss, id=claims.sub),
            account_name=_name(claims),
            issued_at=int(claims.iat),
            signed_in_at=None if claims.auth_time is None else int(claims.auth_time),
        )

    async def _verify(self, token: str, header: _Header) -> None:
        key = await self._keys.find(header.kid, header.alg)
        registry = jws.JWSRegistry(algorithms=[header.alg], strict_check_header=False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SecurityWarning)  # EdDSA: of its name
                jws.deserialize_compact(token, key, registry=registry)
        except (JoseError, ValueError) as error:
            raise TokenRefused("the signature does not verify") from error

    def _check(self, claims: _Claims, key: str) -> None:
        """Check what the token says: OpenID Connect Core §3.1.3.7, RFC 9068 §4."""
        now, settings = self._clock(), self._settings
        audiences = [claims.aud] if isinstance(claims.aud, str) else claims.aud
        if claims.iss != settings.issuer:
            raise TokenRefused("the token is of another issuer")
        if settings.audience not in audiences:
            raise TokenRefused("the token is for another audience")
        parties = {claims.azp, claims.client_id} - {None}
        if not parties and len(audiences) == 1:
            parties = {settings.audience}  # an ID token for its only audience, its client
        if not parties or not parties <= set(settings.clients):
            raise TokenRefused("the token was given to another client")
        if claims.exp <= now - SKEW:
            raise TokenRefused("the token has expired")
        if (claims.nbf or 0) > now + SKEW or claims.iat > now + SKEW:
            raise TokenRefused("the token is of a later time")
        if claims.iat < now - LONGEST_LIFE - SKEW:
            raise TokenRefused(f"the token is older than {LONGEST_LIFE} s")
        if claims.events is not msgspec.UNSET:
            raise TokenRefused("the token tells of an event, and of no sign-in")
        if claims.cnf is None:
            if settings.require_bound:
                raise TokenRefused("the token must be bound to the key of the caller")
        elif not hmac.compare_digest((claims.cnf.jkt or "").encode(), key.encode()):
            raise TokenRefused("the token is bound to another key")


def _parse(token: str) -> tuple[_Header, _Claims]:
    """Parse a compact JWS, unverified."""
    try:
        raw_header, raw_claims, _ = map(from_base64url, token.split("."))
        header = msgspec.json.decode(raw_header, type=_Header)
        claims = msgspec.json.decode(raw_claims, type=_Claims)
    except (RemoteProtocolError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise TokenRefused("expected a signed JWT that says who signed in") from error
    kind = None if header.typ is None else header.typ.lower().removeprefix("application/")
    if kind not in _TYPES or header.crit is not msgspec.UNSET:
        raise TokenRefused("expected an ID token or a JWT access token")
    return header, claims


def _name(claims: _Claims) -> str:
    """A name for the account, which identifies nobody: people see it in their membership."""
    for name in (claims.preferred_username, claims.name):
        if isinstance(name, str) and (shown := plain(name)):
            return shown
    return _UNNAMED
