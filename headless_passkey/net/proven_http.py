"""JSON over HTTPS to one server, every request with a proof of one key (docs/protocol/relay.md).

The server is not trusted: TLS is verified, no redirect is followed, no cookie is kept, answers are bounded
and parsed strictly. It may demand a nonce of its own in each proof (RFC 9449 §8): the newest one of each server is
kept with the client session, and a request that lacks it is sent again at once. A transient failure is retried with a fresh proof and the same bytes, after the pause of `Retry-After`
or a random one (exponential back-off with jitter). A permanent failure is raised at once:

    TransportError           transient: it was retried for `patience` seconds
    TrustError               the clocks differ too much, or the invitation was used
    NotApproved              the request has expired, or was withdrawn
    ProblemAnswer            any other refusal: `slug` and `members` say which (a RemoteProtocolError)
    RemoteProtocolError      the answer violates the contract
    SetupError               another kind of server answered
"""

import asyncio
import json
import logging
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

import aiohttp
from yarl import URL

from headless_passkey.errors import (
    EnrolmentReason,
    LocalProtocolError,
    NotApproved,
    NotEnrolled,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    SetupReason,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
)
from headless_passkey.mends import clock_skew, mend, setup_error
from headless_passkey.net.connector import Connector
from headless_passkey.net.proof import NONCE_HEADER, PROOF_HEADER, make_proof
from headless_passkey.net.proxy import ProxyFailed, read_bounded, sending, tracing
from headless_passkey.text.members import Members, answer_members
from headless_passkey.trust.signing import SigningKey, thumbprint
from program_parts.json_text import decode_json
from program_parts.names import printable

MAX_ANSWER: Final = 2 << 20  # bytes
MAX_WAIT: Final = 25  # seconds a server may hold a request
REQUEST_TIMEOUT: Final = 10.0  # seconds for one attempt, beside the time that the server may hold it
PATIENCE: Final = 20.0  # seconds in which transient failures are retried
_FIRST_PAUSE: Final = 0.2  # seconds, doubled with each attempt; the pause is a random part of it (jitter)
_MAX_PAUSE: Final = 5.0
# demands for a nonce that are met at once; after another one a request is tried again later
_NONCE_ANSWERS: Final = 2
_NONCE: Final = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]{1,256}", re.ASCII)  # RFC 9449 §8.1
_SCHEME: Final = re.compile(r"\bDPoP\b", re.ASCII | re.IGNORECASE)
_DEMANDS_NONCE: Final = re.compile(r'\berror="use_dpop_nonce"', re.ASCII | re.IGNORECASE)
_MAX_DETAIL: Final = 400  # characters that are shown
_PROBLEM: Final = "urn:headless-passkey:problem:"
_SLUG: Final = re.compile(r"[a-z0-9-]{1,64}", re.ASCII)
TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP statuses of transient failures

# the newest nonce of each server, by its base URL, for as long as the client session lives
_nonces: Final[WeakKeyDictionary[aiohttp.ClientSession, dict[str, str]]] = WeakKeyDictionary()

logger = logging.getLogger(__name__)


class ProblemAnswer(RemoteProtocolError):  # noqa: N818  as RFC 9457 spells it
    """The server refused the request with a problem document (RFC 9457)."""

    def __init__(
        self, message: str, *, status: int, slug: str, members: Members, advice: str | None = None
    ) -> None:
        super().__init__(message, reason=ProtocolReason.REFUSED, advice=advice)
        self.status = status
        self.slug = slug  # the last word of the problem's type
        self.members = members  # of the problem, such as the state a request is in

    @property
    def reason(self) -> str:
        return self.slug

    @property
    def detail(self) -> str:
        """What the server says of it for people, to be shown to them; `RemoteProtocolError` for what is no text."""
        return printable(
            self.members.optional_text("detail", MAX_ANSWER) or "it does not say why", _MAX_DETAIL
        )


def open_session(tls: ssl.SSLContext | None) -> aiohttp.ClientSession:
    """Open a client session with this module's settings; the caller closes it. tls: None for the system's roots."""
    return aiohttp.ClientSession(
        connector=Connector(ssl=True if tls is None else tls),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        auto_decompress=False,  # no decompression bombs
        trace_configs=[tracing()],
    )


class ProvenHttp:
    """A client of one server, with the proofs of one key. Several tasks may use it at once."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: str,
        key: SigningKey,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """base_url: without a slash at its end. clock: Unix seconds. chance: 0 to 1, to spread retries."""
        self._session, self._base_url, self._key = session, base_url, key
        self._clock, self._sleep, self._chance = clock, sleep, chance
        try:
            self._host = URL(base_url).host_port_subcomponent or ""
        except ValueError as error:
            raise LocalProtocolError("a server's base URL is https://HOST[:PORT][/PATH]") from error

    @property
    def name(self) -> str:
        """The name of the key that makes the proofs, its thumbprint."""
        return thumbprint(self._key.public_key)

    def now(self) -> float:
        """Unix seconds by the clock that dates the proofs."""
        return self._clock()

    async def get(
        self,
        path: str,
        *,
        wait: int = 0,
        patience: float = PATIENCE,
        any_clock: bool = False,
        **query: str | int,
    ) -> Members:
        """GET. wait: seconds the server may hold the request (long polling). any_clock: as of `call`."""
        return await self.call("GET", path, query=query, wait=wait, patience=patience, any_clock=any_clock)

    async def put(self, path: str, body: Mapping[str, Any], *, patience: float = PATIENCE) -> Members:
        return await self.call("PUT", path, body=body, patience=patience)

    async def post(
        self, path: str, body: Mapping[str, Any], *, patience: float = PATIENCE, any_clock: bool = False
    ) -> Members:
        return await self.call("POST", path, body=body, patience=patience, any_clock=any_clock)

    async def delete(self, path: str, *, patience: float = PATIENCE, any_clock: bool = False) -> Members:
        return await self.call("DELETE", path, patience=patience, any_clock=any_clock)

    @asynccontextmanager
    async def stream(
        self, path: str, *, accept: str, query: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """GET, sent once, for an answer that goes on: of any status, its body still to be read. The caller keeps the time."""
        url = URL(self._base_url + path, encoded=True).with_query(query)
        async with _sent(
            self._session,
            "GET",
            url,
            key=self._key,
            clock=self._clock,
            server=self._base_url,
            headers={"Accept": accept},
            timeout=None,
        ) as response:
            _keep_nonce(self._session, self._base_url, response)
            yield response

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str | int] | None = None,
        wait: int = 0,
        patience: float = PATIENCE,
        access_token: str | None = None,
        meets_nonce: bool = True,
        any_clock: bool = False,
    ) -> Members:
        """Make one exchange; transient failures are retried for `patience` seconds.

        path: below the base URL, with a slash in front. access_token: goes along as ``Authorization: DPoP``.
        meets_nonce: whether a demand for a nonce is met with another request, or is the answer (``use-dpop-nonce``).
        any_clock: whether a proof that is refused for its date is made again, once, with the server's: of a call that
        goes on with what was begun, or ends it, which a clock that was turned meanwhile must not keep anybody from.
        Every request of the contracts is idempotent, so it can be repeated with the same bytes.
        """
        url = URL(self._base_url + path, encoded=True)
        if query or wait:
            url = url.with_query({**(query or {}), **({"wait": wait} if wait else {})})
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        attempt = 0
        ahead: int | None = None  # seconds by which this clock is ahead of the server's, where that matters
        while True:
            begun = time.monotonic()
            try:
                return await self._attempt(
                    method, url, data, wait, access_token, meets_nonce=meets_nonce, ahead=ahead or 0
                )
            except _Misdated as misdated:
                if not any_clock or ahead is not None:
                    raise misdated.failure from misdated.problem
                ahead = misdated.ahead
                logger.info("%s %s: %s; it goes on by that clock", method, path, misdated.failure)
                continue
            except _Transient as transient:
                pause = self._pause(attempt, transient.retry_after)
                # no longer than an attempt may take: a process that was stopped meanwhile has not tried for so long
                took = min(time.monotonic() - begun, REQUEST_TIMEOUT + wait)
                patience -= took + pause
                if patience < 0:
                    raise transient.failure from transient
                logger.debug("%s %s: %s; again in %.1f s", method, path, transient.failure, pause)
            attempt += 1
            await self._sleep(pause)

    def _pause(self, attempt: int, retry_after: float | None) -> float:
        """The pause in seconds: exponential back-off with jitter, so that clients do not return at the same time."""
        if retry_after is not None:
            return retry_after + self._chance()
        return min(_MAX_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt, 10)) * (0.5 + self._chance() / 2)

    async def _attempt(
        self,
        method: str,
        url: URL,
        data: bytes | None,
        wait: int,
        access_token: str | None,
        *,
        meets_nonce: bool,
        ahead: int,
    ) -> Members:
        headers = {} if data is None else {"Content-Type": "application/json"}
        try:
            response, content = await send_proven(
                self._session,
                method,
                url,
                key=self._key,
                clock=lambda: self._clock() - ahead,
                data=data,
                headers=headers,
                access_token=access_token,
                timeout=REQUEST_TIMEOUT + wait,
                cut_off=TRANSIENT,  # whatever more they say
                server=self._base_url,
                meets_nonce=meets_nonce,
            )
        except TransportError as failure:
            if not is_transient(failure):
                raise
            raise _Transient(failure) from failure
        if meets_nonce and _demands_nonce(response) and _keep_nonce(self._session, self._base_url, response):
            # of several processes some may not know yet that a nonce is new, as when their database's clock was set
            what = f"{self._host} takes none of the nonces that it gives"
            raise _Transient(TransportError(what, reason=TransportReason.SERVER_FAILED))
        return self._answer(response, content)

    def _answer(self, response: aiohttp.ClientResponse, content: bytes) -> Members:
        if response.status == 204:
            return answer_members({}, self._host)
        if 200 <= response.status < 300:
            if response.content_type != "application/json":
                raise setup_error(f"{self._host} answered something else than JSON", SetupReason.WRONG_SERVER)
            return answer_members(_parse_json(content, self._host), self._host)
        problem = _parse_problem(response, content, self._host)
        if response.status in TRANSIENT:
            after = _retry_after(response, problem.members)
            again = "" if after is None else f", but in {after:.0f} s"
            failure = TransportError(
                f"{self._host} says: not now ({problem.slug}){again}", reason=TransportReason.SERVER_FAILED
            )
            raise _Transient(failure, after)
        if problem.slug == "proof-clock":
            raise _Misdated(self._typed(problem), problem, self._ahead(problem))
        raise self._typed(problem)

    def _ahead(self, problem: ProblemAnswer) -> int:
        """The seconds by which this clock is ahead of the server's, which refuses a proof for that."""
        return int(self._clock()) - problem.members.integer("now")

    def _typed(self, problem: ProblemAnswer) -> Exception:
        """Translate a refusal to a branch of the error tree."""
        match problem.slug:
            case "expired":
                return NotApproved(Outcome.EXPIRED, f"{self._host} says that it has expired")
            case "account-closed" | "account-suspended" | "device-muted":
                reason = EnrolmentReason(problem.slug)
                return NotEnrolled(f"{self._host} {_NOT_NOW[reason]}", reason=reason, advice=mend(reason))
            case "withdrawn":
                return NotApproved(
                    Outcome.WITHDRAWN,
                    "the other side has withdrawn this invitation",
                    advice="begin again with a new one",
                )
            case "invitation-used":
                return TrustError(
                    TrustReason.INVITATION_USED,
                    "somebody else used this invitation: look at the account's members and remove whom you do not know",
                )
            case "proof-clock":
                ahead = self._ahead(problem)
                what = f"this clock is {abs(ahead)} s {'ahead of' if ahead > 0 else 'behind'} that of {self._host}"
                return clock_skew(what)
            case _:
                return problem


_NOT_NOW: Final = {
    EnrolmentReason.ACCOUNT_CLOSED: "says that this account is closed: it was set up anew, or deleted",
    EnrolmentReason.ACCOUNT_SUSPENDED: "says that this account is suspended",
    EnrolmentReason.DEVICE_MUTED: 'takes no requests of this device: somebody who was asked said "not me"',
}


class _Transient(Exception):  # noqa: N818  it never leaves this module
    """A failure that is transient: the exchange is tried again."""

    def __init__(self, failure: TransportError, retry_after: float | None = None) -> None:
        """failure: what to raise when it goes on for too long. retry_after: seconds the server asks for."""
        super().__init__(str(failure))
        self.failure = failure
        self.retry_after = retry_after


class _Misdated(Exception):  # noqa: N818  it never leaves this module
    """A refusal of the proof for its date alone."""

    def __init__(self, failure: Exception, problem: ProblemAnswer, ahead: int) -> None:
        """failure: what to raise. ahead: seconds by which this clock is ahead of the server's."""
        super().__init__(str(failure))
        self.failure, self.problem, self.ahead = failure, problem, ahead


def is_transient(failure: TransportError) -> bool:
    """Whether a failure on the way is transient: another attempt may help."""
    if isinstance(failure, ProxyFailed):
        return failure.transient
    return failure.reason is not TransportReason.UNTRUSTED_CERTIFICATE


async def send_proven(
    session: aiohttp.ClientSession,
    method: str,
    url: URL,
    *,
    key: SigningKey,
    clock: Callable[[], float],
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    access_token: str | None = None,
    timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109  aiohttp keeps it
    limit: int = MAX_ANSWER,
    cut_off: Collection[int] = (),
    server: str | None = None,
    meets_nonce: bool = True,
) -> tuple[aiohttp.ClientResponse, bytes]:
    """Send one request with a proof of `key`; returns the whole answer, of any status. No redirect is followed.

    It is sent once, and again at once where the server demands another nonce (`meets_nonce`). timeout: seconds for
    everything. limit: bytes of the answer's body; `RemoteProtocolError` for more, except with a status of `cut_off`.
    server: the base URL of the server that gives the nonces; the URL's origin by default. What fails on the way is a
    `TransportError`.
    """
    server = str(url.origin()) if server is None else server
    end = time.monotonic() + timeout
    for demands in range(_NONCE_ANSWERS + 1):
        async with _sent(
            session,
            method,
            url,
            key=key,
            clock=clock,
            server=server,
            headers=headers or {},
            data=data,
            access_token=access_token,
            timeout=max(0.001, end - time.monotonic()),
        ) as response:
            content = await read_bounded(response, limit)
        given = _keep_nonce(session, server, response)
        if not (meets_nonce and given and demands < _NONCE_ANSWERS and _demands_nonce(response)):
            break
    if len(content) > limit and response.status not in cut_off:
        raise RemoteProtocolError(f"an answer of more than {limit} bytes", reason=ProtocolReason.TOO_LONG)
    return response, content


@asynccontextmanager
async def _sent(
    session: aiohttp.ClientSession,
    method: str,
    url: URL,
    *,
    key: SigningKey,
    clock: Callable[[], float],
    server: str,
    headers: Mapping[str, str],
    data: bytes | None = None,
    access_token: str | None = None,
    timeout: float | None,  # noqa: ASYNC109  aiohttp keeps it
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a request once; the answer's body is still to be read. timeout: None when the caller keeps the time."""

    async def prove(
        request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        # aiohttp itself repeats a request whose kept connection was closed: each attempt needs a new proof
        request.headers[PROOF_HEADER] = make_proof(
            key,
            method=method,
            url=str(url),
            now=clock(),
            access_token=access_token,
            nonce=_nonces.get(session, {}).get(server),
        )
        return await send(request)

    authorization = {} if access_token is None else {"Authorization": f"DPoP {access_token}"}
    async with sending(
        session,
        method,
        url,
        data=data,
        headers={**headers, **authorization},
        middlewares=(prove,),
        timeout=aiohttp.ClientTimeout(total=timeout),
    ) as response:
        yield response


def _keep_nonce(session: aiohttp.ClientSession, server: str, response: aiohttp.ClientResponse) -> bool:
    """Keep the nonce that an answer gives, for the next proofs; returns whether it gives one."""
    given = response.headers.getall(NONCE_HEADER, [])
    if len(given) != 1 or not _NONCE.fullmatch(given[0]):
        return False
    _nonces.setdefault(session, {})[server] = given[0]
    return True


def _demands_nonce(response: aiohttp.ClientResponse) -> bool:
    """Whether the answer refuses the proof only because it lacks the nonce given with it (RFC 9449 §8, §9)."""
    return response.status == 401 and any(
        (scheme := _SCHEME.search(challenge)) and _DEMANDS_NONCE.search(challenge, scheme.end())
        for challenge in response.headers.getall("WWW-Authenticate", [])
    )


def _parse_json(content: bytes, host: str) -> Any:
    try:
        return decode_json(content)
    except ValueError as error:
        raise RemoteProtocolError(
            f"the answer of {host} is not JSON", reason=ProtocolReason.MALFORMED_JSON
        ) from error


def _parse_problem(response: aiohttp.ClientResponse, content: bytes, host: str) -> ProblemAnswer:
    """Parse a problem document. An answer in another form, as of a proxy, gives a problem without a slug.

    A malformed problem document of a transient failure is ignored, so that it is still retried.
    """
    members, slug = answer_members({}, host), f"http-{response.status}"
    if response.content_type == "application/problem+json":
        try:
            members = answer_members(_parse_json(content, host), host)
            word = (members.optional_text("type") or "").removeprefix(_PROBLEM)
        except RemoteProtocolError:
            if response.status not in TRANSIENT:
                raise
            word = ""
        slug = word if _SLUG.fullmatch(word) else slug
        what, advice = f"{host} refused the request ({slug})", None
    else:
        what = f"{host} answered HTTP status {response.status}, and not as a server of its kind does"
        advice = mend(SetupReason.WRONG_SERVER)
    return ProblemAnswer(what, status=response.status, slug=slug, members=members, advice=advice)


def _retry_after(response: aiohttp.ClientResponse, members: Members) -> float | None:
    """The seconds of ``Retry-After``, from the header or the problem."""
    header = response.headers.get("Retry-After", "")
    if header.isascii() and header.isdigit() and len(header) < 6:
        return float(header)
    try:
        return float(members.integer("retry_after", 100_000))
    except RemoteProtocolError:
        return None
