"""Requests with the session of a relying party: each has its access token and a proof of its key, and is refreshed as needed.

::

    async with open_session(tls=None) as http:
        session = Session.load(state, "https://login.example", http=http)
        answer = await session.fetch("https://api.example/me")

The token goes to the relying party that issued it, to the services that it names and to those the device's owner named,
each by its origin and over TLS, and nowhere else: no redirect is followed. Several processes and tasks may use a session
at once. The first that finds the token close to its expiry refreshes it under the session's lock, and the others use the
stored result. A session that the relying party has ended is removed::

    NotSignedIn                 there is no session, or it has ended: sign in again
    TrustError session-reused   refresh token reuse: somebody may have a copy of the key
    TrustError not-its-audience the token must not be sent to that address
"""

import logging
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NoReturn, Self
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from headless_passkey.errors import (
    HeadlessPasskeyError,
    NotSignedIn,
    ProtocolReason,
    RemoteProtocolError,
    SessionReason,
    SetupError,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.mends import clock_skew
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.proven_http import ProblemAnswer, ProvenHttp, send_proven
from headless_passkey.rp.conduit import OpenedSession, service_origin
from headless_passkey.rp.key_store import KeyStore, OriginKeys
from headless_passkey.rp.session_store import KeptSession, SessionStore
from headless_passkey.text.members import answer_members
from headless_passkey.trust.signing import SigningKey, thumbprint
from program_parts.json_text import decode_json

AHEAD: Final = (
    60.0  # seconds before its end that a token is refreshed, or a tenth of its life where that is less
)
FRESH: Final = 120.0  # seconds in which a token is new, or half of its life where that is less
PATIENCE: Final = 20.0  # seconds in which transient failures of a refresh are retried
FETCH_TIMEOUT: Final = 30.0  # seconds for one request of the caller's
MAX_BODY: Final = 8 << 20  # bytes, of a request and of an answer
MAX_HEADERS: Final = 64
_METHOD: Final = re.compile(r"[A-Z]{1,32}", re.ASCII)
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", re.ASCII)
_OURS: Final = frozenset(  # headers of framing and proof, which callers cannot set
    [
        "authorization",
        "dpop",
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "expect",
        "accept-encoding",
        "cookie",
        "proxy-authorization",
    ]
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A service's answer, of any status."""

    status: int
    headers: Mapping[str, str] = field(repr=False)  # names in lower case; the last of several
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """Parse the body as JSON; `RemoteProtocolError` when it is malformed."""
        try:
            return decode_json(self.body)
        except ValueError as error:
            raise RemoteProtocolError(
                "the service's answer is not JSON", reason=ProtocolReason.MALFORMED_JSON
            ) from error


class Session:
    """A stored session. Several tasks may use it at once."""

    def __init__(
        self,
        store: SessionStore,
        kept: KeptSession,
        *,
        http: aiohttp.ClientSession,
        clock: Callable[[], float] = time.time,
        keys: OriginKeys | None = None,
    ) -> None:
        """http: as `open_session` makes it. clock: Unix seconds. keys: None for those in the state directory."""
        self._store, self._kept, self._http, self._clock = store, kept, http, clock
        self._keys = keys or KeyStore(store.state)

    @classmethod
    def load(
        cls,
        state: Path,
        relying_party: str | None = None,
        *,
        url: str | None = None,
        http: aiohttp.ClientSession,
        clock: Callable[[], float] = time.time,
        keys: OriginKeys | None = None,
    ) -> Self:
        """Load the stored session of a relying party, or the one whose token may be sent to `url`.

        relying_party: its base URL, or its origin where there is one session of that origin. With neither it is the
        only session there is. `NotSignedIn` when there is none, `TrustError` (not-its-audience) when there is none
        for `url`, `UsageError` when there are several.
        """
        store = SessionStore(state)
        return cls(store, _choose(store, relying_party, url), http=http, clock=clock, keys=keys)

    @property
    def relying_party(self) -> str:
        """The relying party's base URL."""
        return self._kept.relying_party

    @property
    def user_name(self) -> str:
        return self._kept.opened.user_name

    @property
    def user_handle(self) -> str:
        """The user handle, base64url, which is permanent; names may change."""
        return self._kept.opened.user_handle

    @property
    def expires_at(self) -> int:
        """The access token's expiry, in Unix seconds by the relying party's clock. It is refreshed before."""
        return self._kept.opened.expires_at

    @property
    def ends_at(self) -> int:
        """The session's expiry, in Unix seconds by the relying party's clock, after which its user must sign in again."""
        return self._kept.opened.ends_at

    @property
    def audience(self) -> tuple[str, ...]:
        """The origins that the token may be sent to."""
        return self._kept.audience

    @property
    def path(self) -> Path:
        """The session's file."""
        return self._store.path(self._kept.relying_party)

    def to_json(self) -> dict[str, Any]:
        """Encode as JSON without tokens and key."""
        return {**self._kept.public(), "file": str(self.path)}

    async def fetch(
        self,
        url: str,
        *,
        method: str = "GET",
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        audience: Sequence[str] = (),
        timeout: float = FETCH_TIMEOUT,  # noqa: ASYNC109  one bound over all that is sent is the interface
        limit: int = MAX_BODY,
    ) -> Answer:
        """Send a request with the session's token and a proof of its key; returns the answer, of any status.

        audience: more origins that may get the token, for this request. timeout: seconds for the request; a refresh
        before it has its own. limit: bytes of the answer's body. A request whose token is refused is sent once more, with
        the token of another process or of a refresh, unless a service refuses one of the last two minutes that the relying
        party takes; nothing else is repeated, and no redirect is followed.
        """
        target = _target(url)
        allowed = {*self.audience, *map(service_origin, audience)}
        origin = service_origin(str(target.origin()))
        if origin not in allowed:
            raise TrustError(
                TrustReason.NOT_ITS_AUDIENCE,
                f"the session at {self.relying_party} is not for {origin}; it is for {', '.join(sorted(self.audience))}",
            )
        headers = _checked_headers(headers or {})
        if not _METHOD.fullmatch(method) or method in ("CONNECT", "TRACE"):
            raise UsageError("a method is a word in capitals, and neither CONNECT nor TRACE")
        if data is not None and len(data) > MAX_BODY:
            raise UsageError(f"at most {MAX_BODY} bytes are sent")
        await self._refresh_ahead()
        request = _Request(
            method=method, url=target, data=data, headers=headers, timeout=timeout, limit=limit
        )
        kept = self._kept
        answer = await self._send(request, kept)
        is_issuer = origin == BaseUrl.parse(kept.relying_party).origin
        if _refuses_token(answer) and await self._replace(kept.opened.token, unless_fresh=not is_issuer):
            answer = await self._send(request, self._kept)
        self._raise_for_clock(answer, target)
        return answer

    async def refresh(self) -> None:
        """Refresh the tokens, unless another process has just done so."""
        await self._replace(self._kept.opened.token)

    async def sign_out(self, *, anyway: bool = False) -> None:
        """End the session at the relying party, and remove it here. `NotSignedIn` where another user has signed in since.

        anyway: remove it also when the relying party is unreachable, where the session then lasts until its expiry.
        """
        rp = self._kept.relying_party
        async with self._store.locked(rp):
            kept = self._kept = self._read_held()
            try:
                is_due = self._is_due(kept, ahead=0)
                if is_due:
                    await self._refresh_held(kept)
                if not await self._asks("DELETE", self._kept) and not is_due:
                    # the token may have ended, and not the session: by a refresh whose answer was lost, or by a clock that is ahead of ours
                    await self._refresh_held(kept)
                    await self._asks("DELETE", self._kept)
            except NotSignedIn as error:
                if error.reason is not SessionReason.SESSION_OVER and not anyway:
                    raise
                logger.info("there is nothing to end: %s", error.explain())
            except HeadlessPasskeyError as error:
                if self._store.read(rp) is None or not anyway:
                    raise
                logger.warning("the relying party was not told: %s", error.explain())
            self._store.remove(rp)

    async def _asks(self, method: str, kept: KeptSession) -> bool:
        """Ask the relying party for the session of a token; False when that takes it for none of a session.

        method: ``GET``, or ``DELETE``, which ends the session. It is none where the session has ended, or a copy of it was refreshed.
        """
        relying_party = ProvenHttp(self._http, kept.relying_party, await self._key(kept), clock=self._clock)
        try:
            await relying_party.call(
                method, "/session", access_token=kept.opened.token, patience=PATIENCE, any_clock=True
            )
        except ProblemAnswer as problem:
            if problem.slug != "not-signed-in":
                raise
            return False
        return True

    async def _refresh_ahead(self) -> None:
        """Refresh a token close to its expiry. When the refresh or its storage fails, a token that is still valid is used on."""
        if not self._is_due(self._kept):
            return
        try:
            await self.refresh()
        except (TransportError, SetupError) as error:
            if self._is_due(self._kept, ahead=0):
                raise
            logger.info("the token was not refreshed ahead of its end: %s", error.explain())

    def _is_due(self, kept: KeptSession, *, ahead: float = AHEAD) -> bool:
        """Whether a token is to be refreshed for its date.

        One that had ended already when it came shows that this clock is wrong: its date says nothing, and a service will refuse it in time.
        """
        life = kept.opened.expires_at - kept.received_at
        return life > 0 and self._clock() >= kept.opened.expires_at - min(ahead, life / 10)

    def _is_fresh(self, kept: KeptSession) -> bool:
        """Whether a token has just come, so that a service that refuses it would refuse the next one too."""
        life = kept.opened.expires_at - kept.received_at
        return 0 <= self._clock() - kept.received_at < min(FRESH, life / 2)

    async def _replace(self, token: str, *, unless_fresh: bool = False) -> bool:
        """Replace a refused token: by one that is stored meanwhile, or by a refresh; returns whether it was replaced.

        unless_fresh: a token that has just come, and that the relying party takes, is not replaced. A relying party grants a session few refreshes, which one service that
        refuses all tokens would take from the others.
        """
        rp = self._kept.relying_party
        async with self._store.locked(rp):
            kept = self._read_held()
            if kept.opened.token != token:
                self._kept = kept
                return True
            if unless_fresh and self._is_fresh(kept) and await self._asks("GET", kept):
                return False
            await self._refresh_held(kept)
            return True

    def _read_held(self) -> KeptSession:
        """Read the session as it is stored now; `NotSignedIn` where it is gone, or another user's. The caller holds its lock."""
        rp = self._kept.relying_party
        kept = self._store.read(rp)
        if kept is None:
            raise no_session(rp)
        if kept.opened.user_handle != self._kept.opened.user_handle:
            raise NotSignedIn(f"the session at {rp} is another user's now", reason=SessionReason.SESSION_OVER)
        return kept

    async def _refresh_held(self, kept: KeptSession) -> None:
        """Refresh, and write the tokens to disk before their use. The caller holds the session's lock."""
        if kept.opened.refresh_token is None:
            self._over(kept, "its token has ended, and there is none to refresh it with")
        relying_party = ProvenHttp(self._http, kept.relying_party, await self._key(kept), clock=self._clock)
        try:
            body = {"refresh_token": kept.opened.refresh_token}
            answer = await relying_party.post("/session/refresh", body, patience=PATIENCE, any_clock=True)
        except ProblemAnswer as problem:
            self._refused(kept, problem)
        opened = OpenedSession.parse(answer)
        if opened.user_handle != kept.opened.user_handle:
            raise TrustError(
                TrustReason.UNEXPECTED_USER, "the relying party gave the session of another user"
            )
        kept = replace(kept, opened=opened, received_at=int(self._clock()))
        self._store.write(kept)
        self._kept = kept

    def _refused(self, kept: KeptSession, problem: ProblemAnswer) -> NoReturn:
        """Translate the refusal of a refresh, and remove a session that has ended."""
        match problem.slug:
            case "not-signed-in":
                self._over(kept, "it has ended at the relying party")
            case "refresh-token-reused":
                self._store.remove(kept.relying_party)
                raise TrustError(
                    TrustReason.SESSION_REUSED,
                    f"{kept.relying_party} has ended the session, because its refresh token came a second time: unless this"
                    " device was set back to an older state, somebody has a copy of its key",
                    advice="`headless-passkey leave` and a new join, then sign in again",
                ) from problem
            case "refresh-token-spent":
                raise TransportError(
                    "somebody else has refreshed this session a moment ago",
                    reason=TransportReason.SERVER_FAILED,
                    advice="try again in a minute",
                ) from problem
            case _:
                raise RemoteProtocolError(
                    f"the relying party refused to refresh the session: {problem.slug}",
                    reason=ProtocolReason.REFUSED,
                ) from problem

    def _over(self, kept: KeptSession, why: str) -> NoReturn:
        self._store.remove(kept.relying_party)
        raise NotSignedIn(
            f"the session at {kept.relying_party} is over: {why}",
            reason=SessionReason.SESSION_OVER,
            advice=_sign_in_at(kept.relying_party),
        )

    async def _key(self, kept: KeptSession) -> SigningKey:
        """Get the key that the session is bound to: the device's key for the relying party's origin."""
        key = await self._keys.key(BaseUrl.parse(kept.relying_party).origin)
        if thumbprint(key.public_key) != kept.key_name:
            raise NotSignedIn(
                f"the session at {kept.relying_party} is bound to a key that this device no longer has",
                reason=SessionReason.SESSION_KEY_GONE,
                advice=_sign_in_at(kept.relying_party),
            )
        return key

    async def _send(self, request: "_Request", kept: KeptSession) -> Answer:
        headers = dict(request.headers)
        if "accept" not in map(str.lower, headers):
            headers["Accept"] = "*/*"
        response, body = await send_proven(
            self._http,
            request.method,
            request.url,
            key=await self._key(kept),
            clock=self._clock,
            data=request.data,
            headers=headers,
            access_token=kept.opened.token,
            timeout=request.timeout,
            limit=request.limit,
        )
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise RemoteProtocolError(
                "the answer is compressed, which was not asked for", reason=ProtocolReason.MALFORMED_ANSWER
            )
        answered = {name.lower(): value for name, value in response.headers.items()}
        return Answer(status=response.status, headers=answered, body=body)

    def _raise_for_clock(self, answer: Answer, url: URL) -> None:
        """Raise `TrustError` (clock-skew) when the answer refuses the clock, and not the session."""
        if answer.status != 401 or "problem+json" not in answer.headers.get("content-type", ""):
            return
        try:
            members = answer_members(answer.json(), url.authority)
            if members.text("type") != "urn:headless-passkey:problem:proof-clock":
                return
            ahead = int(self._clock()) - members.integer("now")
        except RemoteProtocolError:
            return
        what = f"this clock is {abs(ahead)} s {'ahead of' if ahead > 0 else 'behind'} that of {url.authority}"
        raise clock_skew(what)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """The checked arguments of `fetch`."""

    method: str
    url: URL
    data: bytes | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    timeout: float
    limit: int


def _refuses_token(answer: Answer) -> bool:
    """Whether a 401 refuses the access token, and not the proof or the age of the sign-in."""
    challenge = answer.headers.get("www-authenticate", "")
    error = re.search(r'error="?([a-z_]+)', challenge)
    return answer.status == 401 and (error is None or error[1] == "invalid_token")


def _target(url: str) -> URL:
    """Normalise the URL of a request, as it is sent and proved: the origin as browsers do, the path by RFC 3986."""
    if not url.isprintable():  # urlsplit would remove tabs and line ends
        raise UsageError("a URL has no control characters")
    try:
        parts = urlsplit(url.strip())
        base = BaseUrl.parse(f"{parts.scheme}://{parts.netloc}")
        return URL(base.origin + (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    except ValueError as error:
        raise UsageError("expected https://HOST[:PORT]/PATH[?QUERY]") from error


def _checked_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    if len(headers) > MAX_HEADERS:
        raise UsageError(f"at most {MAX_HEADERS} headers are sent")
    for name, value in headers.items():
        if not _HEADER.fullmatch(name) or not (value.isascii() and value.isprintable()) or len(value) > 4096:
            raise UsageError("a header is a name, and a value of printable ASCII")
        if name.lower() in _OURS:
            raise UsageError(f"the header {name} is not the caller's to set")
    return headers


def _choose(store: SessionStore, relying_party: str | None, url: str | None) -> KeptSession:
    """See `Session.load`."""
    if relying_party is not None:
        base = BaseUrl.parse(relying_party)
        kept = store.read(str(base))
        if kept is not None:
            return kept
        found = [] if base.path else [one for one in store.all() if one.audience[0] == base.origin]
        if not found:
            raise no_session(str(base))
    else:
        damaged: list[HeadlessPasskeyError] = []
        found = store.all(damaged.append)
        if not found:
            raise damaged[0] if damaged else no_session(None)
        if url is not None:
            origin = service_origin(str(_target(url).origin()))
            fitting = [one for one in found if origin in one.audience]
            if not fitting:
                parties = ", ".join(one.relying_party for one in found)
                raise TrustError(
                    TrustReason.NOT_ITS_AUDIENCE,
                    f"no session here is for {origin}; there are sessions at {parties}",
                )
            found = fitting
    if len(found) > 1:
        parties = ", ".join(one.relying_party for one in found)
        raise UsageError(f"there are several sessions, name the relying party of one: {parties}")
    return found[0]


def no_session(relying_party: str | None) -> NotSignedIn:
    """Make the error for a session that is not here, with advice. relying_party: None for any."""
    at = f" at {relying_party}" if relying_party else ""
    return NotSignedIn(
        f"no session{at} is kept here", reason=SessionReason.NO_SESSION, advice=_sign_in_at(relying_party)
    )


def _sign_in_at(relying_party: str | None) -> str:
    return f"`headless-passkey sign-in --rp {shlex.quote(relying_party or 'URL')}`"
