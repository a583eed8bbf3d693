"""The companion's sign-in at an OpenID Connect issuer, by one of two grants.

By the **device authorization grant** (RFC 8628) the person opens the issuer's page on any screen and types a short code; the
companion asks meanwhile whether that is done. So no browser is needed where the companion runs, and no port. But whoever
has somebody else type the code of their own companion gets that person's token (§5.4). It founds an account, or resets one;
it lets nobody into one (docs/security.md).

By the **authorization code grant** with PKCE (RFC 8252, RFC 7636) the person opens the issuer's page in a browser of this
machine, which brings the code back over loopback. There is nothing to type, and so nothing to be talked into.

The issuer is the one that the relay names: the person sees its address before the sign-in, and the address of the page is
its own.
"""

import asyncio
import hashlib
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from headless_passkey.errors import (
    NotApproved,
    NotSignedIn,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    SessionReason,
    TransportError,
    TransportReason,
    UsageError,
)
from headless_passkey.mends import transport_error
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.proven_http import (
    REQUEST_TIMEOUT,
    TRANSIENT,
    is_transient,
    open_session,
    send_proven,
)
from headless_passkey.net.proxy import read_bounded, sending
from headless_passkey.text.base64url import from_base64url
from headless_passkey.text.members import Members, answer_members
from headless_passkey.trust.signing import SigningKey, thumbprint
from program_parts.base64url import base64url
from program_parts.json_text import decode_json
from program_parts.names import printable

MAX_TOKEN: Final = 16_384  # characters
_MAX_ANSWER: Final = 256 << 10  # bytes
_MAX_URL: Final = 2048
_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_INTERVAL: Final = 5  # seconds between two questions, where the issuer does not say (RFC 8628 §3.2)
_SLOWER: Final = 5  # seconds more after slow_down (§3.5)
_LONGEST_INTERVAL: Final = 60
_FRESH: Final = 60  # seconds since the last sign-in that a reset asks the issuer for
_SAYS_ISSUER: Final = "authorization_response_iss_parameter_supported"
_LACKS: Final = {
    "device_authorization_endpoint": (
        "the account service offers no sign-in by a code to type (RFC 8628): "
        "sign in with --browser, or name a token with --token-file"
    ),
    "authorization_endpoint": (
        "the account service offers no sign-in in a browser: sign in with --oidc, or name a token with --token-file"
    ),
}
_NONCES: Final = 2  # demands for a nonce that one question meets


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Where the relay's tokens come from, by the relay's word."""

    issuer: str
    client: str
    audience: str

    @property
    def by_id_token(self) -> bool:
        """Whether the relay takes an ID token, which is for the client itself."""
        return self.audience == self.client


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a person needs to sign in."""

    issuer: str
    page: str = field(repr=False)  # a URL
    code: str | None = field(
        repr=False
    )  # to type there; None for a page that is to be opened on this machine


class SignIn:
    """One sign-in at one issuer. Made by `sign_in`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        way: Way,
        key: SigningKey,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._session, self._way, self._key = session, way, key
        self._clock, self._sleep = clock, sleep
        self._proves = False

    async def by_browser(self, show: Callable[[Prompt], None], *, fresh: bool) -> str:
        """Get a token for the relay by the authorization code grant; there is no timeout."""
        from companion_push.companion.redirect import awaiting  # noqa: PLC0415  a web server, which little else needs

        where = await self._metadata()
        page = self._endpoint(where, "authorization_endpoint")
        end = self._endpoint(where, "token_endpoint")
        if "#" in page:
            raise _wrong("the account service names a page with a fragment")  # RFC 6749 §3.1
        verifier, state, nonce = (base64url(secrets.token_bytes(32)) for _ in range(3))
        async with awaiting(state) as redirect:
            asked = self._request(fresh=fresh) | {
                "response_type": "code",
                "redirect_uri": redirect.uri,
                "state": state,
                "nonce": nonce,
                "code_challenge": base64url(hashlib.sha256(verifier.encode()).digest()),
                "code_challenge_method": "S256",
            }
            if self._proves:
                asked["dpop_jkt"] = thumbprint(self._key.public_key)  # RFC 9449 §10
            link = f"{page}{'&' if '?' in page else '?'}{urlencode(asked)}"
            show(Prompt(issuer=self._way.issuer, page=link, code=None))
            answer = answer_members(await redirect.answer(), "the account service")
        self._check_issuer_of(answer, where)
        match answer.optional_text("error", _MAX_URL):
            case None:
                pass
            case "access_denied":
                raise _declined()
            case _:
                raise self._refused(answer)
        form = self._for_relay() | {
            "grant_type": "authorization_code",
            "code": answer.text("code", 4096),
            "redirect_uri": redirect.uri,
            "client_id": self._way.client,
            "code_verifier": verifier,
        }
        status, answer = await self._post(end, form, proves=self._proves)
        if status != 200:
            raise self._refused(answer)
        token = self._token(answer)
        if self._way.by_id_token and _nonce(token) != nonce:
            raise _wrong("the account service gives a token of another sign-in")
        return token

    def _check_issuer_of(self, answer: Members, where: Members) -> None:
        """Check who gave an authorization response, where it says so (RFC 9207 §2.4)."""
        says = where.has(_SAYS_ISSUER) and where.boolean(_SAYS_ISSUER)
        issuer = answer.optional_text("iss", _MAX_URL)
        if issuer != self._way.issuer and (says or issuer is not None):
            raise _wrong("the answer to the sign-in is of another issuer")

    def _for_relay(self) -> dict[str, str]:
        """The parameter of a request that asks for an access token for the relay (RFC 8707)."""
        return {} if self._way.by_id_token else {"resource": self._way.audience}

    def _request(self, *, fresh: bool) -> dict[str, str]:
        """The parameters that both grants begin with."""
        asked = {"client_id": self._way.client, "scope": "openid profile"} | self._for_relay()
        return asked | {"max_age": str(_FRESH)} if fresh else asked

    def _token(self, answer: Members) -> str:
        return answer.text("id_token" if self._way.by_id_token else "access_token", MAX_TOKEN)

    async def by_code(self, show: Callable[[Prompt], None], *, fresh: bool) -> str:
        """Get a token for the relay by the device authorization grant; there is no timeout but the issuer's."""
        where = await self._metadata()
        begin, end = (
            self._endpoint(where, name) for name in ("device_authorization_endpoint", "token_endpoint")
        )
        status, answer = await self._post(begin, self._request(fresh=fresh))
        if status != 200:
            raise self._refused(answer)
        show(
            Prompt(
                issuer=self._way.issuer,
                page=_page(answer.text("verification_uri", _MAX_URL), self._way),
                code=answer.text("user_code", 64),
            )
        )
        return await self._poll(end, answer)

    async def _poll(self, url: str, begun: Members) -> str:
        """Ask until the person has signed in (RFC 8628 §3.4, §3.5); an issuer that is away meanwhile is asked again, ever later."""
        pause = begun.integer("interval", _LONGEST_INTERVAL) if begun.has("interval") else _INTERVAL
        left = begun.integer("expires_in")  # seconds
        form = self._for_relay() | {
            "grant_type": _GRANT,
            "device_code": begun.text("device_code", 4096),
            "client_id": self._way.client,
        }
        while True:
            pause = max(1, pause)
            await self._sleep(pause)
            left -= pause
            try:
                status, answer = await self._post(url, form, proves=self._proves)
            except TransportError as error:
                if left <= 0 or not is_transient(error):
                    raise
                pause = min(2 * pause, _LONGEST_INTERVAL)
                continue
            if status == 200:
                return self._token(answer)
            match answer.optional_text("error"):
                case "authorization_pending":
                    continue
                case "slow_down":
                    pause = min(pause + _SLOWER, _LONGEST_INTERVAL)
                case "access_denied":
                    raise _declined()
                case "expired_token":
                    raise NotApproved(Outcome.EXPIRED, "nobody signed in at the account service in time")
                case _:
                    raise self._refused(answer)

    async def _metadata(self) -> Members:
        url = URL(self._way.issuer.rstrip("/") + "/.well-known/openid-configuration", encoded=True)
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT)
        async with sending(self._session, "GET", url, timeout=timeout) as response:
            content = await read_bounded(response, _MAX_ANSWER)
        if response.status != 200:
            raise _wrong(f"the account service answers with status {response.status}")
        found = _members(content)
        if found.text("issuer", _MAX_URL) != self._way.issuer:
            raise _wrong("the account service's metadata is of another issuer")
        self._proves = "ES256" in found.optional_items("dpop_signing_alg_values_supported")
        return found

    def _endpoint(self, where: Members, name: str) -> str:
        url = where.optional_text(name, _MAX_URL)
        if url is None:
            raise UsageError(_LACKS.get(name, "the account service gives no tokens"))
        return _page(url, self._way)

    async def _post(self, url: str, form: Mapping[str, str], *, proves: bool = False) -> tuple[int, Members]:
        """Post a form; returns the status and the members of the answer. proves: with a proof of the key (RFC 9449 §5)."""
        data = urlencode(form).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        for _ in range(_NONCES + 1):
            if proves:
                response, content = await send_proven(
                    self._session,
                    "POST",
                    URL(url, encoded=True),
                    key=self._key,
                    clock=self._clock,
                    data=data,
                    headers=headers,
                    limit=_MAX_ANSWER,
                )
            else:
                timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT)
                async with sending(
                    self._session, "POST", URL(url, encoded=True), data=data, headers=headers, timeout=timeout
                ) as response:
                    content = await read_bounded(response, _MAX_ANSWER)
            if response.status in TRANSIENT:
                why = f"the account service answers with status {response.status}"
                raise transport_error(why, TransportReason.SERVER_FAILED)
            answer = _members(content)
            if not proves or answer.optional_text("error") != "use_dpop_nonce":
                break
        return response.status, answer

    def _refused(self, answer: Members) -> NotSignedIn:
        error = printable(answer.optional_text("error", _MAX_URL) or "no reason", 64)
        return NotSignedIn(
            f"the account service refuses the sign-in ({error})", reason=SessionReason.SIGN_IN_REFUSED
        )


async def sign_in(
    way: Way,
    *,
    key: SigningKey,
    tls: ssl.SSLContext | None,
    show: Callable[[Prompt], None],
    browser: bool = False,
    fresh: bool = False,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> str:
    """Sign in, and return the token for the relay, a secret.

    key: to which the token is bound where the issuer does that. tls: whom to believe for the issuer. show: called with what
    the person needs. browser: by the authorization code grant, with a browser of this machine. fresh: ask the issuer for a new authentication. `NotApproved` when the person declined, or let the
    time pass; `NotSignedIn` (sign-in-refused) when the issuer refuses.
    """
    check_issuer(way.issuer)
    async with open_session(tls) as session:
        begun = SignIn(session, way, key, clock=clock, sleep=sleep)
        return await (begun.by_browser if browser else begun.by_code)(show, fresh=fresh)


def check_issuer(url: str) -> None:
    """Refuse an issuer that is not behind https; on loopback http will do."""
    try:
        parsed = BaseUrl.parse(url)
    except UsageError as error:
        raise _wrong("the relay names an issuer that is no URL") from error
    if url != url.strip():  # which the input of a person may have around it
        raise _wrong("the relay names an issuer that is no URL")
    if parsed.scheme != "https" and not parsed.is_loopback:
        raise _wrong("the relay names an issuer that is not behind https")


def _page(url: str, way: Way) -> str:
    """Check a URL of the issuer: https, or where the issuer itself is on loopback, loopback."""
    try:
        host = BaseUrl.parse("https://" + (URL(url).host_port_subcomponent or ""))
        scheme = URL(url).scheme
    except (UsageError, ValueError) as error:
        raise _wrong("the account service names a page that is no URL") from error
    plain = scheme == "http" and way.issuer.startswith("http://") and host.is_loopback
    if (scheme != "https" and not plain) or not url.isprintable() or not url.isascii() or " " in url:
        raise _wrong("the account service names a page that is not behind https")
    return url


def _members(content: bytes) -> Members:
    if len(content) > _MAX_ANSWER:
        raise RemoteProtocolError(
            f"the account service answers with more than {_MAX_ANSWER} bytes", reason=ProtocolReason.TOO_LONG
        )
    try:
        return answer_members(decode_json(content), "the account service")
    except ValueError as error:
        raise _wrong("the account service answers with something else than JSON") from error


def _nonce(token: str) -> str | None:
    """Read the nonce of an ID token, which the relay verifies (OpenID Connect Core §3.1.3.7, number 11)."""
    try:
        claims = decode_json(from_base64url(token.split(".")[1]))
    except (IndexError, ValueError) as error:
        raise _wrong("the account service gives something else than a signed JWT") from error
    return answer_members(claims, "the account service's token").optional_text("nonce")


def _declined() -> NotApproved:
    return NotApproved(Outcome.DECLINED, "the sign-in was declined at the account service")


def _wrong(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(what, reason=ProtocolReason.MALFORMED_ANSWER)
