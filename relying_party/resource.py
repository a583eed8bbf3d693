"""What another service does with our tokens: a guard for an aiohttp application (docs/how-to/resource-server.md).

A token is verified in one of two ways: `Introspection` asks the relying party (RFC 7662), which knows at once when
a session is over; `Keys` verifies a JWT (RFC 9068) with the relying party's public keys and asks nobody. Either way
the token is worth nothing without its key: each request brings a proof of it, for this method, this address and
this token, at this time, and no proof counts twice (RFC 9449 §4.3, §7)::

    guard = Guard(resource="https://api.example", issuer="https://login.example", verify=Keys(jwks_uri=…))
    app = web.Application(middlewares=[guard.middleware])
    app.cleanup_ctx.append(guard.opened)


    async def me(request: web.Request) -> web.Response:
        return web.json_response({"user": request[ACCESS].subject})
"""

import asyncio
import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp import web
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from relying_party.config import is_local
from relying_party.core.access_tokens import ALGORITHM, TYPE
from relying_party.core.proofs import SeenProofs, verify_proof
from relying_party.errors import IssuerUnavailable, ProofInvalid, RequestRefused, TokenInvalid, UsageError
from relying_party.http.answers import problem, refused
from relying_party.http.request import PROOF_HEADER
from relying_party.proxy import proxy_for

MAX_TOKEN: Final = 4096  # characters
MAX_ANSWER: Final = 64 * 1024  # bytes
ANSWER_SECONDS: Final = 5.0  # the relying party has for one answer
CLOCK_TOLERANCE: Final = 60  # seconds by which its clock may be ahead of ours
KEYS_SECONDS: Final = 3600.0  # after which keys are fetched again, so that a retired one goes
KEYS_PAUSE: Final = 60.0  # seconds between two fetches for a key that nobody knows
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # token68, RFC 9110 §11.2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """A token that holds: whose it is, and by which key its holder is known."""

    subject: str  # the user's handle, base64url: what you keep your own data under
    key_thumbprint: str  # RFC 7638, of the device's key
    expires_at: int  # Unix seconds
    auth_time: int  # when its user last used a passkey


ACCESS: Final = web.RequestKey("relying_party_access_token", AccessToken)


class Verify(Protocol):
    """How it is found out what a token stands for."""

    async def __call__(self, token: str, guard: "Guard") -> "Claims":
        """What it says; `TokenInvalid` when that is nothing, `IssuerUnavailable` when it cannot be told now."""


class Confirmation(msgspec.Struct):
    """By which key the holder is known (RFC 7800)."""

    jkt: str


class Claims(msgspec.Struct):
    """What a token says, or the relying party of it. Unknown ones are for others."""

    iss: str
    sub: str
    aud: str | list[str]
    exp: int
    cnf: Confirmation
    auth_time: int = 0
    iat: int = 0
    nbf: int = 0
    token_type: str = "DPoP"  # noqa: S105  as introspection names it


class Guard:
    """Lets those requests through whose token and proof hold."""

    def __init__(
        self,
        *,
        resource: str,
        issuer: str,
        verify: Verify,
        urls: tuple[str, ...] = (),
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """resource: our origin, which tokens name as their audience. issuer: the relying party's base URL.

        urls: further origins under which we are reached; proofs name one. tls: whom to believe of the relying
        party's addresses, None for the system's roots.
        """
        self.resource, self.issuer, self.clock = resource, issuer, clock
        self._verify, self._urls, self._tls = verify, (resource, *urls), tls
        self._seen = SeenProofs()
        self._http: aiohttp.ClientSession | None = None

    async def opened(self, _app: web.Application) -> AsyncIterator[None]:
        """For ``app.cleanup_ctx``: the connection to the relying party."""
        connector = aiohttp.TCPConnector(ssl=True if self._tls is None else self._tls)
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
        ) as self._http:
            yield

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Guards every address of an application; ``request[ACCESS]`` says who calls."""
        try:
            request[ACCESS] = await self.check(request)
        except RequestRefused as refusal:
            return refused(refusal)
        except IssuerUnavailable as error:
            logger.warning("%s", error)
            return problem(
                "issuer-unavailable",
                503,
                "whether the token is good cannot be told now",
                members={"retry_after": 5},
                headers={"Retry-After": "5"},
            )
        return await handler(request)

    async def check(self, request: web.Request) -> AccessToken:
        """Who sends this request; a `RequestRefused` that says what is wrong with token or proof, or `IssuerUnavailable`."""
        token = _token(request)
        proofs = request.headers.getall(PROOF_HEADER, [])
        if len(proofs) != 1:
            raise ProofInvalid("expected one proof of key")
        now = self.clock()
        proof = verify_proof(
            proofs[0],
            method=request.method,
            urls=[url + request.rel_url.raw_path for url in self._urls],
            now=now,
            access_token=token,
        )
        claims = await self._verify(token, self)
        if claims.iss != self.issuer or claims.token_type.lower() != "dpop":
            raise TokenInvalid("the token is another issuer's, or of another type")
        if self.resource not in ([claims.aud] if isinstance(claims.aud, str) else claims.aud):
            raise TokenInvalid("the token is for another service")
        if claims.exp <= now or max(claims.iat, claims.nbf) > now + CLOCK_TOLERANCE:
            raise TokenInvalid("the token has ended, or is not good yet")
        if claims.cnf.jkt != proof.key_thumbprint:
            raise TokenInvalid("the token is bound to another key")
        self._seen.take(proof, now=now)
        return AccessToken(
            subject=claims.sub,
            key_thumbprint=claims.cnf.jkt,
            expires_at=claims.exp,
            auth_time=claims.auth_time,
        )

    async def ask(self, method: str, url: str, **what: Any) -> bytes:
        """What the relying party answers; `IssuerUnavailable` when that is not 200, too long or too late.

        It is asked through the proxy that HTTPS_PROXY names, if any (docs/how-to/proxy.md).
        """
        if self._http is None:
            raise IssuerUnavailable("the guard is not open: add guard.opened to app.cleanup_ctx")
        through = ""
        try:
            if proxy := proxy_for(url):
                what |= {"proxy": proxy.url, "proxy_headers": proxy.headers}
                through = f" through the proxy {proxy.name}"
            async with self._http.request(method, url, allow_redirects=False, **what) as response:
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > MAX_ANSWER:
                        raise IssuerUnavailable(
                            f"the relying party answers with more than {MAX_ANSWER} bytes"
                        )
                if response.status != 200:
                    raise IssuerUnavailable(f"the relying party answers with status {response.status}")
        except UsageError as error:
            raise IssuerUnavailable(str(error)) from error
        except aiohttp.ClientHttpProxyError as error:
            raise IssuerUnavailable(
                f"the proxy {proxy.name if proxy else ''} does not connect to the relying party (HTTP status {error.status})"
            ) from None  # its text holds the URL
        except (
            aiohttp.ClientError,
            OSError,
            TimeoutError,
            UnicodeError,
        ) as error:  # the last of a name's labels
            raise IssuerUnavailable(
                f"the relying party does not answer{through}: {type(error).__name__}"
            ) from error
        return bytes(body)


@dataclass(slots=True, kw_only=True)
class Introspection:
    """Asks the relying party of each token (RFC 7662)."""

    endpoint: str  # its /introspect
    secret: str = field(repr=False)  # by which it knows us

    def __post_init__(self) -> None:
        _check_secure(self.endpoint)

    async def __call__(self, token: str, guard: Guard) -> Claims:
        answer = await guard.ask(
            "POST",
            self.endpoint,
            data={"token": token, "token_type_hint": "access_token"},
            headers={"Authorization": f"Bearer {self.secret}", "Accept": "application/json"},
        )
        try:
            active = msgspec.json.decode(answer, type=_Active).active
            if not active:
                raise TokenInvalid("the token stands for no session, or one that has ended")
            return msgspec.json.decode(answer, type=Claims)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise IssuerUnavailable(
                "the relying party answers something else than an introspection"
            ) from error


@dataclass(slots=True, kw_only=True)
class Keys:
    """Verifies JWTs with the relying party's public keys, which are fetched as needed."""

    jwks_uri: str  # its /jwks.json
    _keys: Mapping[str, ECKey] = field(default_factory=dict, repr=False)
    _fetched: float | None = None
    _fetching: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    def __post_init__(self) -> None:
        _check_secure(self.jwks_uri)

    async def __call__(self, token: str, guard: Guard) -> Claims:
        try:
            signed = jws.extract_compact(token.encode("ascii"))
            header = msgspec.convert(signed.headers(), _Header)
            if header.crit is not msgspec.UNSET:
                raise TokenInvalid("the token has critical extensions")
            key = await self._key(header.kid, guard)
            jws.deserialize_compact(token, key, algorithms=[ALGORITHM])
            return msgspec.json.decode(signed.payload, type=Claims)
        except (JoseError, ValueError, TypeError, RecursionError) as error:  # msgspec's are ValueErrors
            raise TokenInvalid("the token is no JWT of the relying party's") from error

    async def _key(self, name: str, guard: Guard) -> ECKey:
        """The key of that name, which may be newer than what was fetched."""
        async with self._fetching:
            age = None if self._fetched is None else guard.clock() - self._fetched
            if age is None or age > KEYS_SECONDS or (name not in self._keys and age > KEYS_PAUSE):
                try:
                    self._keys = _key_set(await guard.ask("GET", self.jwks_uri))
                    self._fetched = guard.clock()
                except IssuerUnavailable as error:
                    if name not in self._keys:
                        raise
                    logger.warning("keys could not be fetched again, those known are used: %s", error)
        if name not in self._keys:
            raise TokenInvalid("the token is signed with a key that the relying party does not have")
        return self._keys[name]


class _Active(msgspec.Struct):
    active: bool


class _Header(msgspec.Struct):
    typ: str
    alg: str
    kid: str
    crit: Any = msgspec.UNSET

    def __post_init__(self) -> None:
        if self.typ.lower().removeprefix("application/") != TYPE or self.alg != ALGORITHM:
            raise ValueError("not an access token")


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]


def _key_set(document: bytes) -> dict[str, ECKey]:
    """The P-256 keys of a JWK set by name; others are for other algorithms."""
    try:
        listed = msgspec.json.decode(document, type=_KeySet).keys
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IssuerUnavailable("the relying party answers something else than a key set") from error
    keys = {}
    for one in listed[:64]:
        if one.get("kty") == "EC" and one.get("crv") == "P-256" and isinstance(one.get("kid"), str):
            try:
                keys[one["kid"]] = ECKey.import_key({name: one[name] for name in ("kty", "crv", "x", "y")})
            except (JoseError, ValueError, TypeError, KeyError):
                logger.warning("a key of the relying party's is malformed and passed over")
    return keys


def _token(request: web.Request) -> str:
    """The token that goes with a request; one that is sent as a bearer token is refused (RFC 9449 §7.2)."""
    values = request.headers.getall("Authorization", [])
    if not values:
        raise TokenInvalid("no token goes with this request", given=False)
    scheme, _, token = values[0].partition(" ")
    if len(values) != 1 or scheme.lower() != "dpop" or len(token) > MAX_TOKEN or not _TOKEN.fullmatch(token):
        raise TokenInvalid("expected Authorization: DPoP and a token")
    return token


def _check_secure(url: str) -> None:
    parts = urlsplit(url)
    loopback = is_local(url) or parts.hostname in ("127.0.0.1", "::1")
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and loopback)):
        raise UsageError(f"{url} is no address of a relying party over https")
