"""The companion's sign-in at an OpenID Connect issuer, by the device authorization grant (RFC 8628).

The person opens the issuer's page on any screen and types a short code; the companion asks meanwhile whether that is done.
So no browser is needed where the companion runs, and no port. The issuer is the one that the relay names: the person sees
its address before the sign-in, and the address of the page is its own.

Whoever has somebody else type the code of their own companion gets that person's token (RFC 8628 §5.4). It founds an
account, or resets one; it lets nobody into one (docs/security.md).
"""

import asyncio
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
from headless_passkey.text.json_text import decode_json
from headless_passkey.text.members import Members, answer_members
from headless_passkey.text.names import printable
from headless_passkey.trust.signing import SigningKey

MAX_TOKEN: Final = 16_384  # characters
_MAX_ANSWER: Final = 256 << 10  # bytes
_MAX_URL: Final = 2048
_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_INTERVAL: Final = 5  # seconds between two questions, where the issuer does not say (RFC 8628 §3.2)
_SLOWER: Final = 5  # seconds more after slow_down (§3.5)
_LONGEST_INTERVAL: Final = 60
_FRESH: Final = 60  # seconds since the last sign-in that a reset asks the issuer for
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
    page: str  # a URL
    code: str = field(repr=False)  # to type there


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

    async def token(self, show: Callable[[Prompt], None], *, fresh: bool) -> str:
        """Get a token for the relay; there is no timeout but the issuer's."""
        where = await self._metadata()
        begin, end = (
            self._endpoint(where, name) for name in ("device_authorization_endpoint", "token_endpoint")
        )
        algorithms = where.optional_items("dpop_signing_alg_values_supported")
        self._proves = "ES256" in algorithms
        asked = {"client_id": self._way.client, "scope": "openid profile"}
        if not self._way.by_id_token:
            asked["resource"] = self._way.audience  # RFC 8707
        if fresh:
            asked["max_age"] = str(_FRESH)
        status, answer = await self._post(begin, asked)
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
        form = {
            "grant_type": _GRANT,
            "device_code": begun.text("device_code", 4096),
            "client_id": self._way.client,
        }
        if not self._way.by_id_token:
            form["resource"] = self._way.audience
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
                return answer.text("id_token" if self._way.by_id_token else "access_token", MAX_TOKEN)
            match answer.optional_text("error"):
                case "authorization_pending":
                    continue
                case "slow_down":
                    pause = min(pause + _SLOWER, _LONGEST_INTERVAL)
                case "access_denied":
                    raise NotApproved(Outcome.DECLINED, "the sign-in was declined at the account service")
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
        return found

    def _endpoint(self, where: Members, name: str) -> str:
        url = where.optional_text(name, _MAX_URL)
        if url is None:
            raise UsageError(
                "the account service offers no sign-in for terminals (RFC 8628): name a token with --token-file"
            )
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
        error = printable(answer.optional_text("error") or "no reason", 64)
        return NotSignedIn(
            f"the account service refuses the sign-in ({error})", reason=SessionReason.SIGN_IN_REFUSED
        )


async def sign_in(
    way: Way,
    *,
    key: SigningKey,
    tls: ssl.SSLContext | None,
    show: Callable[[Prompt], None],
    fresh: bool = False,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> str:
    """Sign in, and return the token for the relay, a secret.

    key: to which the token is bound where the issuer does that. tls: whom to believe for the issuer. show: called with what
    the person needs. fresh: ask the issuer for a new authentication. `NotApproved` when the person declined, or let the
    time pass; `NotSignedIn` (sign-in-refused) when the issuer refuses.
    """
    check_issuer(way.issuer)
    async with open_session(tls) as session:
        return await SignIn(session, way, key, clock=clock, sleep=sleep).token(show, fresh=fresh)


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


def _wrong(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(what, reason=ProtocolReason.MALFORMED_ANSWER)
