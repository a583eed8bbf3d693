"""The keys of an OpenID Connect issuer: discovery and JWK set, fetched seldom, and kept while the issuer is away.

Keys are used for `FRESH` seconds; then they are fetched again, and used meanwhile, for a day at most
(stale-while-revalidate, RFC 5861). A token that names an unknown key leads to one fetch, at most one in `PAUSE` seconds:
so a rotation is noticed at once, and nobody can use the relay to flood the issuer.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Final, TypeVar

import aiohttp
import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from companion_push.identity.authority import AuthorityUnavailable, TokenRefused
from companion_push.identity.settings import ALGORITHMS, EDDSA, OpenIdSettings
from headless_passkey.errors import TransportError
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.connector import Connector
from headless_passkey.net.proxy import read_bounded, sending, tracing
from headless_passkey.net.tls import tls_context
from headless_passkey.process.tasks import end_quietly

FRESH: Final = 600.0  # seconds in which keys are used without asking again
STALE: Final = 86_400.0  # seconds after which keys are not used any more
PAUSE: Final = 10.0  # seconds between two fetches at least
SECONDS: Final = 5.0  # for one answer of the issuer
MAX_ANSWER: Final = 256 << 10  # bytes
MAX_KEYS: Final = 64
_SMALLEST_RSA: Final = 2048  # bits
_WELL_KNOWN: Final = "/.well-known/openid-configuration"

Key = RSAKey | ECKey | OKPKey
_KINDS: Final[dict[str, type[Key]]] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}

_Struct = TypeVar("_Struct", bound=msgspec.Struct)

logger = logging.getLogger(__name__)


class _Metadata(msgspec.Struct, frozen=True):
    """OpenID Connect Discovery §3, as far as it is used here."""

    issuer: str
    jwks_uri: str


class _Jwk(msgspec.Struct, frozen=True):
    """What says whether a key is for verifying tokens (RFC 7517 §4)."""

    kty: str
    kid: str | None = None
    crv: str | None = None
    alg: str | None = None
    use: str | None = None
    key_ops: list[str] | None = None


class _JwkSet(msgspec.Struct, frozen=True):
    keys: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_KEYS)]


class IssuerKeys:
    """The keys of one issuer. `opened` opens its HTTP session."""

    def __init__(self, settings: OpenIdSettings, *, ticks: Callable[[], float] | None = None) -> None:
        """ticks: seconds of a clock that nobody sets; by default the event loop's."""
        self._settings = settings
        self._ticks = ticks or (lambda: asyncio.get_running_loop().time())
        self._keys: tuple[tuple[_Jwk, Key], ...] = ()
        self._fetched_at = self._tried_at = float("-inf")
        self._refresh: asyncio.Task[None] | None = None  # at most one at a time
        self._session: aiohttp.ClientSession | None = None

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        tls = tls_context(self._settings.ca)
        async with aiohttp.ClientSession(
            connector=Connector(ssl=tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            auto_decompress=False,  # no decompression bombs
            trace_configs=[tracing()],
        ) as session:
            self._session = session
            try:
                yield
            finally:
                if self._refresh is not None:
                    await end_quietly(self._refresh)
                self._session = self._refresh = None

    async def find(self, kid: str | None, algorithm: str) -> Key:
        """Find the key that has signed a token. kid: None for a token that names none, of an issuer with one such key.

        `TokenRefused` when the issuer has no such key, `AuthorityUnavailable` when it cannot be asked.
        """
        age = self._ticks() - self._fetched_at
        is_new = age >= STALE
        if is_new:
            await self._refreshed()
        elif age >= FRESH and self._may_ask():
            self._begin()  # the keys of before are used meanwhile
        found = self._matching(kid, algorithm)
        if not found and not is_new:
            await self._refreshed()  # or the key may be there, and cannot be asked for yet
            found = self._matching(kid, algorithm)
        if not found:
            raise TokenRefused("the issuer has no such key")
        if len(found) > 1:
            raise TokenRefused("the token does not name one key of the issuer")
        return found[0]

    def _matching(self, kid: str | None, algorithm: str) -> list[Key]:
        kty, curve = ALGORITHMS[algorithm]
        names = (
            {"Ed25519", EDDSA} if curve == "Ed25519" else {algorithm}
        )  # a token's may be older than its key's
        return [
            key
            for jwk, key in self._keys
            if jwk.kty == kty
            and (curve is None or jwk.crv == curve)
            and (kid is None or jwk.kid == kid)
            and (jwk.alg is None or jwk.alg in names)
        ]

    def _may_ask(self) -> bool:
        return self._ticks() - self._tried_at >= PAUSE

    def _begin(self) -> asyncio.Task[None]:
        if self._refresh is None or self._refresh.done():
            self._tried_at = self._ticks()
            self._refresh = asyncio.create_task(self._fetch())
            self._refresh.add_done_callback(_log_failure)
        return self._refresh

    async def _refreshed(self) -> None:
        """Wait for the fetch that is under way, or for a new one."""
        under_way = self._refresh is not None and not self._refresh.done()
        if not under_way and not self._may_ask():
            left = PAUSE - (self._ticks() - self._tried_at)
            raise AuthorityUnavailable("the issuer was asked a moment ago", retry_after=max(1, round(left)))
        await asyncio.shield(self._begin())

    async def _fetch(self) -> None:
        """Fetch the metadata and the keys; on a failure the keys of before stay."""
        issuer = self._settings.issuer
        metadata = _decode(await self._get(issuer.rstrip("/") + _WELL_KNOWN), _Metadata, "the metadata")
        if metadata.issuer != issuer:
            raise AuthorityUnavailable("the metadata is of another issuer")
        keys = _decode(await self._get(metadata.jwks_uri), _JwkSet, "the JWK set")
        self._keys = tuple(filter(None, map(_usable, keys.keys)))
        self._fetched_at = self._ticks()
        logger.info("fetched the issuer's keys: %d of %d are usable", len(self._keys), len(keys.keys))

    async def _get(self, url: str) -> bytes:
        """Fetch a document of the issuer. No redirect is followed, and plain http is of an issuer on loopback only."""
        if self._session is None:
            raise AuthorityUnavailable("the relay has not been started, or has ended")
        if not url.startswith("https://"):
            plain = url.startswith("http://") and self._settings.issuer.startswith("http://")
            if not plain or not BaseUrl.parse("http://" + url[7:].partition("/")[0]).is_loopback:
                raise AuthorityUnavailable("the issuer names a document that is not behind https")
        try:
            async with asyncio.timeout(SECONDS), sending(self._session, "GET", url) as response:
                if response.status != 200:
                    raise AuthorityUnavailable(f"the issuer answers with status {response.status}")
                content = await read_bounded(response, MAX_ANSWER)
        except TransportError as error:  # it names the host or the proxy, and no path
            raise AuthorityUnavailable(f"the issuer cannot be asked: {error}") from error
        except (TimeoutError, ValueError) as error:
            raise AuthorityUnavailable(f"the issuer cannot be asked ({type(error).__name__})") from error
        if len(content) > MAX_ANSWER:
            raise AuthorityUnavailable(f"an answer of the issuer has more than {MAX_ANSWER} bytes")
        return content


def _usable(raw: msgspec.Raw) -> tuple[_Jwk, Key] | None:
    """Import a key that verifies tokens; None for any other, such as one for encryption or of a kind that is unknown here."""
    try:
        jwk = msgspec.json.decode(raw, type=_Jwk)
        members: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
        if jwk.kty not in _KINDS or jwk.use not in (None, "sig") or "d" in members:
            return None
        if jwk.key_ops is not None and "verify" not in jwk.key_ops:
            return None
        members.pop("alg", None)  # `_matching` looks at it: joserfc takes Ed25519 and EdDSA for two
        key = _KINDS[jwk.kty].import_key(members)
    except (JoseError, ValueError, TypeError, KeyError, RecursionError):  # msgspec's errors are ValueErrors
        return None
    if isinstance(key, RSAKey) and key.public_key.key_size < _SMALLEST_RSA:
        return None
    return jwk, key


def _decode(content: bytes, kind: type[_Struct], what: str) -> _Struct:
    try:
        return msgspec.json.decode(content, type=kind)
    except (ValueError, RecursionError) as error:
        raise AuthorityUnavailable(f"{what} of the issuer cannot be read") from error


def _log_failure(task: "asyncio.Task[None]") -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        detail = error.detail if isinstance(error, AuthorityUnavailable) else type(error).__name__
        logger.warning("the issuer's keys could not be fetched: %s", detail)
