"""A guard for resource servers: aiohttp middleware that verifies access tokens (docs/how-to/resource-server.md).

There are two ways to verify a token. `Introspection` asks the relying party (RFC 7662), and so notices the end of a
session at once. `Keys` verifies a JWT (RFC 9068) with the relying party's public keys, without a request. In both ways the
token is bound to a key: each request has a proof of possession for its method, URL, token and time, with a nonce of
this service, and a proof cannot be replayed (RFC 9449 §4.3, §7, §9)::

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
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp import web
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from http_serving.proofs import KnownKeys
from name_lookups.resolver import Resolver
from program_parts.domains import is_this_machine
from program_parts.proxy import NoProxy, proxy_for
from relying_party.core.access_tokens import ALGORITHM, TYPE
from relying_party.core.proofs import ProofsInMemory, UsedProofs, verify_proof
from relying_party.errors import IssuerUnavailable, ProofInvalid, RequestRefused, TokenInvalid, UsageError
from relying_party.http.answers import NONCE_HEADER, problem, refused
from relying_party.http.request import NONCE, PROOF_HEADER

MAX_TOKEN: Final = 4096  # characters
MAX_ANSWER: Final = 64 * 1024  # bytes
ANSWER_SECONDS: Final = 5.0  # the relying party has for one answer
CLOCK_TOLERANCE: Final = 60  # seconds by which the relying party's clock may be ahead of ours
KEYS_SECONDS: Final = 3600.0  # after which keys are fetched again, which removes retired ones
KEYS_PAUSE: Final = 60.0  # seconds between two fetches for an unknown key, and after a fetch that failed
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # token68, RFC 9110 §11.2

logger = logging.getLogger(__name__)

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """A verified access token."""

    subject: str  # the user handle, base64url, to store your own data under
    key_thumbprint: str  # RFC 7638, of the device's key
    expires_at: int  # Unix seconds
    auth_time: int  # of the last use of a passkey


ACCESS: Final = web.RequestKey("relying_party_access_token", AccessToken)


class Verify(Protocol):
    """A way to verify tokens."""

    async def __call__(self, token: str, guard: "Guard") -> "Claims":
        """Verify a token; `TokenInvalid`, or `IssuerUnavailable` when it cannot be verified now."""


class Confirmation(msgspec.Struct):
    """The confirmation claim: the key that the token is bound to (RFC 7800)."""

    jkt: str


class Claims(msgspec.Struct):
    """The claims of a token or of its introspection; unknown ones are ignored."""

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
    """Admits requests with a valid token and proof."""

    def __init__(
        self,
        *,
        resource: str,
        issuer: str,
        verify: Verify,
        urls: tuple[str, ...] = (),
        tls: ssl.SSLContext | None = None,
        used_proofs: UsedProofs | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """resource: our origin, which tokens name as their audience. issuer: the relying party's base URL.

        urls: more origins of this service; a proof names one of them. tls: trusted roots for the relying party's
        addresses, None for the system's. used_proofs: shared by the processes of this service; None for one process.
        """
        self.resource, self.issuer, self.clock = resource, issuer, clock
        self._verify, self._urls, self._tls = verify, (resource, *urls), tls
        self._used_proofs: UsedProofs = ProofsInMemory() if used_proofs is None else used_proofs
        self._known_keys = KnownKeys()
        self._http: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def opened(self, _app: web.Application) -> AsyncIterator[None]:
        """Open the connection to the relying party; for ``app.cleanup_ctx``."""
        connector = aiohttp.TCPConnector(ssl=True if self._tls is None else self._tls, resolver=Resolver())
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
        ) as self._http:
            try:
                yield
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def begin(self, work: Coroutine[Any, Any, _Value]) -> "asyncio.Task[_Value]":
        """Begin what no caller's end is to cancel; it ends with the connection to the relying party."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Check every request of an application; ``request[ACCESS]`` is the verified token."""
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
        try:
            response = await handler(request)
        except web.HTTPException as error:  # an answer too, as aiohttp's own handlers give it
            error.headers[NONCE_HEADER] = request[NONCE]
            raise
        if not response.prepared:  # an answer that the handler has begun to send is without
            response.headers[NONCE_HEADER] = request[NONCE]
        return response

    async def check(self, request: web.Request) -> AccessToken:
        """Verify token and proof of a request; `RequestRefused`, or `IssuerUnavailable`.

        ``request[NONCE]`` is then the newest nonce, for the header ``DPoP-Nonce`` of the answer.
        """
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
            known=self._known_keys,
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
        request[NONCE] = await self._used_proofs.take_proof(proof, now=now)
        return AccessToken(
            subject=claims.sub,
            key_thumbprint=claims.cnf.jkt,
            expires_at=claims.exp,
            auth_time=claims.auth_time,
        )

    async def ask(self, method: str, url: str, **what: Any) -> bytes:
        """Ask the relying party; `IssuerUnavailable` when the answer is not 200, too long or too late.

        The request goes through the proxy of HTTPS_PROXY, if any (docs/how-to/proxy.md).
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
        except NoProxy as error:
            raise IssuerUnavailable(str(error)) from error
        except aiohttp.ClientHttpProxyError as error:
            raise IssuerUnavailable(
                f"the proxy {proxy.name if proxy else ''} does not connect to the relying party (HTTP status {error.status})"
            ) from None  # its message holds the URL
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
    """Verifies each token by introspection (RFC 7662)."""

    endpoint: str  # the relying party's /introspect
    secret: str = field(repr=False)  # our resource secret

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

    jwks_uri: str  # the relying party's /jwks.json
    _keys: Mapping[str, ECKey] = field(default_factory=dict, repr=False)
    _fetched: float | None = None
    _tried: float | None = None  # also when that failed
    _fetching: "asyncio.Task[IssuerUnavailable | None] | None" = field(default=None, repr=False)

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
        """Find a key by name, and fetch the key set again for an unknown one.

        A known key waits for no fetch but its own: a relying party that does not answer delays one caller in `KEYS_PAUSE`.
        Callers with an unknown key, as before the first key set has come, wait for one fetch at the most, together. It is nobody's own:
        whoever leaves, it goes on, so that callers who come and go ask the relying party no more often than others.
        """
        failed: IssuerUnavailable | None = None
        if self._fetching is not None and not self._fetching.done():
            if name not in self._keys:
                failed = await self._outcome(self._fetching)
        elif self._is_due(name, guard.clock()):
            self._fetching = guard.begin(self._fetch(guard))
            failed = await self._outcome(self._fetching)
        if name in self._keys:
            return self._keys[name]
        if failed is not None:
            raise IssuerUnavailable(str(failed)) from failed
        if self._tried != self._fetched:
            raise IssuerUnavailable("the relying party's keys could not be fetched a moment ago")
        raise TokenInvalid("the token is signed with a key that the relying party does not have")

    def _is_due(self, name: str, now: float) -> bool:
        """Whether keys are to be fetched now; a clock that was set back makes them so, as time does."""
        if self._fetched is None or self._tried is None:
            return True
        wanted = name not in self._keys or abs(now - self._fetched) > KEYS_SECONDS
        return wanted and abs(now - self._tried) > KEYS_PAUSE

    async def _fetch(self, guard: Guard) -> IssuerUnavailable | None:
        """Fetch the key set; returns why there is none."""
        self._tried = guard.clock()
        try:
            self._keys = _key_set(await guard.ask("GET", self.jwks_uri))
        except IssuerUnavailable as error:
            if self._keys:
                logger.warning("keys could not be fetched again, those known are used: %s", error)
            return error
        self._fetched = self._tried
        return None

    async def _outcome(self, fetching: "asyncio.Task[IssuerUnavailable | None]") -> IssuerUnavailable | None:
        """Wait for a fetch, which whoever is cancelled leaves."""
        await asyncio.wait((fetching,))
        return IssuerUnavailable("the guard is closed") if fetching.cancelled() else fetching.result()


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
    """Parse a JWK set: its P-256 keys by name. Other keys are ignored."""
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
    """Take the token of a request; a bound token that is sent as a bearer token is refused (RFC 9449 §7.2)."""
    values = request.headers.getall("Authorization", [])
    if not values:
        raise TokenInvalid("no token goes with this request", given=False)
    scheme, _, token = values[0].partition(" ")
    if len(values) != 1 or scheme.lower() != "dpop" or len(token) > MAX_TOKEN or not _TOKEN.fullmatch(token):
        raise TokenInvalid("expected Authorization: DPoP and a token")
    return token


def _check_secure(url: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if (
        not host
        or not url.isprintable()  # urlsplit takes tabs and line ends out
        or not (parts.scheme == "https" or (parts.scheme == "http" and is_this_machine(host)))
    ):
        raise UsageError(f"{url} is no address of a relying party over https")
