"""A request's caller, session and body."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from http_serving.proofs import KnownKeys
from relying_party.config import Config
from relying_party.core.access_tokens import TokenIssuer
from relying_party.core.callers import Caller, ClientKind
from relying_party.core.ceremonies import Ceremonies
from relying_party.core.challenges import ChallengeStore
from relying_party.core.credentials import CredentialStore, User
from relying_party.core.messages import Client
from relying_party.core.operations import Operation
from relying_party.core.proofs import Proof, UsedProofs, verify_proof
from relying_party.core.sessions import IssueToken, RandomBytes, Session, confirmed, hash_token
from relying_party.errors import (
    BrowsersOnly,
    InvalidRequest,
    NotSignedIn,
    PayloadTooLarge,
    ProofClock,
    ProofInvalid,
    StepUpRequired,
)
from relying_party.http.answers import cookie_name
from relying_party.http.limits import RateLimit
from relying_party.http.metrics import Metrics

MAX_BODY: Final = 64 * 1024
BODY_SECONDS: Final = 10.0  # after which an incomplete body is refused
PROOF_HEADER: Final = "DPoP"

Clock = Callable[[], float]


@dataclass(slots=True, kw_only=True)
class State:
    """The state that the handlers of one application share."""

    config: Config
    ceremonies: Ceremonies
    store: CredentialStore
    challenges: ChallengeStore
    clock: Clock
    # reads a clock of others, which may have been set
    look_at_clock: Callable[[], Awaitable[None]] | None = None
    random: RandomBytes
    metrics: Metrics
    prf_salt: bytes | None = field(repr=False)  # None: prf is not requested
    used_proofs: UsedProofs
    known_keys: KnownKeys = field(default_factory=KnownKeys)
    rate_limit: RateLimit
    read_limit: RateLimit  # of requests that only read
    registrations: RateLimit  # new users, from one neighbourhood
    refreshes: RateLimit  # of one session: each keeps the token that it has spent until the session ends
    issuer: TokenIssuer
    mounted_at: str = ""  # the prefix under which a service has mounted the application

    def addresses(self, path: str) -> list[str]:
        """List the addresses that a client may have called for `path` of the service, one at each origin.

        A path below our prefix is below the public URL: a proxy may have changed one into the other. Every other path
        of the service is below the public URL without our prefix.
        """
        root = self.config.path.removesuffix(self.mounted_at)
        if path.startswith(f"{self.mounted_at}/"):
            public = self.config.path + path.removeprefix(self.mounted_at)
        elif root + self.mounted_at == self.config.path:  # a handler of the service that calls `who`
            public = root + path
        else:
            public = path
        return [origin + public for origin in self.config.urls]

    def issue(self, now: float) -> IssueToken:
        """Make the token issuer for a session that is opened or refreshed `now`."""
        return lambda session: self.issuer.token(session, now=now)


_OF_TOKENS: Final = frozenset({"dpop", "bearer"})  # schemes


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn:
    """The user of a request, with the session."""

    session: Session
    user: User


STATE: Final = web.AppKey("relying_party_state", State)
NONCE: Final = web.RequestKey("relying_party_nonce", str)  # for the answer to a request with a proof


async def caller_of(request: web.Request, state: State, *, reads: bool = False) -> tuple[Caller, str | None]:
    """Authenticate a request's caller; returns it with the session token, if any.

    A device proves its key. A browser always sends its origin with a request that changes something, which must be one of
    ours (CSRF); `reads` waives this where nothing changes.
    """
    if not reads or PROOF_HEADER in request.headers:  # verification costs time, whatever the request is for
        state.rate_limit.take(request.remote or "", now=state.clock())
    if _is_of_a_device(request):
        if "Origin" in request.headers:
            raise InvalidRequest("a request has either a proof or an Origin")
        return await _device(request, state)
    if not reads and request.headers.getall("Origin", []) not in [
        [origin] for origin in state.config.web_origins
    ]:
        raise InvalidRequest("expected a proof of key, or an Origin that is one of ours")
    return Caller(kind=ClientKind.WEB), request.cookies.get(cookie_name(state.config))


def described(caller: Caller, client: Client | None) -> Caller:
    """Add what a caller with a key says about itself."""
    if client is None:
        return caller
    if not caller.kind.proves_key:
        raise InvalidRequest("a browser does not say what it is")
    return replace(caller, kind=client.kind, label=client.label)


async def session_of(state: State, caller: Caller, token: str | None) -> SignedIn | None:
    """Look up the caller's own live session by token; None for others, as after an old cookie."""
    found = None if token is None else await state.store.session(hash_token(token), now=state.clock())
    if found is None or not found[0].belongs_to(caller):
        return None
    return await _seen(state, *found)


async def session_behind(state: State, token: str) -> SignedIn | None:
    """The live session that an access token of ours stands for, whoever shows it: a resource server that was sent it.

    Sessions of browsers are not for others, and so they are not found.
    """
    found = await state.store.session(hash_token(token), now=state.clock())
    if found is None or not found[0].client_kind.proves_key:
        return None
    return await _seen(state, *found)


async def _seen(state: State, session: Session, user: User) -> SignedIn | None:
    """Note the use of a session's token, which proves that the answer to its refresh arrived."""
    known = confirmed(session, now=state.clock())
    if known is not None and not await state.store.replace_session(known, was=session.token_hash):
        return None
    return SignedIn(session=known or session, user=user)


async def signed_in(request: web.Request, state: State, *, reads: bool = False) -> SignedIn:
    """Authenticate caller and session; `NotSignedIn` without a session."""
    caller, token = await caller_of(request, state, reads=reads)
    found = await session_of(state, caller, token)
    if found is None:
        raise NotSignedIn("there is none, or it has ended")
    return found


async def account_holder(request: web.Request, state: State, *, reads: bool = False) -> SignedIn:
    """Authenticate a user who may manage their account: in a browser or an app, not in a session that began on a device."""
    found = await signed_in(request, state, reads=reads)
    refuse_device(found.session)
    return found


def refuse_device(session: Session) -> None:
    """Refuse a session that began on a device (`BrowsersOnly`)."""
    if session.client_kind is ClientKind.DEVICE:
        raise BrowsersOnly("this is a device's session")


async def spend_step_up(state: State, session: Session, operation: Operation) -> None:
    """Use up the session's step-up for `operation`; `StepUpRequired` without one. A sign-in is none."""
    if not await state.store.spend_step_up(session.session_id, operation.digest(), now=state.clock()):
        raise StepUpRequired(operation.kind)


async def json_body(request: web.Request) -> bytes:
    """Read the body of a request with JSON as Content-Type."""
    return await _body(request, "application/json")


async def form_body(request: web.Request) -> bytes:
    """Read the body of an OAuth request: a form."""
    return await _body(request, "application/x-www-form-urlencoded")


async def _body(request: web.Request, media_type: str) -> bytes:
    """Read the body within our own limit, also where mounted. A compressed body is refused."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise web.HTTPUnsupportedMediaType
    if request.content_type != media_type:
        raise InvalidRequest(f"expected {media_type}")
    if (request.content_length or 0) > MAX_BODY:
        raise PayloadTooLarge(limit=MAX_BODY)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(request)
    except TimeoutError as error:
        raise InvalidRequest("the body did not come in time") from error
    except (web.RequestPayloadError, HttpProcessingError, ConnectionError) as error:
        raise InvalidRequest("the body does not come as its headers say") from error


async def _read(request: web.Request) -> bytes:
    if not request.can_read_body:  # no body, or a middleware of the service has read it
        body = await request.read()
    else:
        read = bytearray()
        while len(read) <= MAX_BODY and (chunk := await request.content.readany()):
            read += chunk
        body = bytes(read)
    if len(body) > MAX_BODY:
        raise PayloadTooLarge(limit=MAX_BODY)
    return body


def _is_of_a_device(request: web.Request) -> bool:
    """Whether a request comes with a proof, or a token.

    A browser sends credentials of other schemes where a proxy in front of us asks for them: Basic, Digest, Negotiate.
    """
    schemes = (value.partition(" ")[0].lower() for value in request.headers.getall("Authorization", []))
    return PROOF_HEADER in request.headers or any(scheme in _OF_TOKENS for scheme in schemes)


async def _device(request: web.Request, state: State) -> tuple[Caller, str | None]:
    proofs = request.headers.getall(PROOF_HEADER, [])
    if len(proofs) != 1:
        raise ProofInvalid("expected one proof of key")
    token: str | None = None
    if "Authorization" in request.headers:
        scheme, _, token = request.headers["Authorization"].partition(" ")
        if scheme.lower() != "dpop" or not token:
            raise NotSignedIn("expected Authorization: DPoP and a token")

    def verified() -> Proof:
        return verify_proof(
            proofs[0],
            method=request.method,
            urls=state.addresses(request.rel_url.raw_path),
            now=state.clock(),
            access_token=token,
            known=state.known_keys,
        )

    try:
        proof = verified()
    except ProofClock:
        if state.look_at_clock is None:
            raise
        await state.look_at_clock()
        proof = verified()
    request[NONCE] = await state.used_proofs.take_proof(proof, now=state.clock())
    return Caller(kind=ClientKind.DEVICE, key_thumbprint=proof.key_thumbprint), token
