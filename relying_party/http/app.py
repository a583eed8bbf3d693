"""The HTTP face of the relying party (docs/protocol/relying-party.md): ``make_app(config)``.

It moves values between requests, the pure ceremonies and the store, and decides nothing about WebAuthn.
Every answer that is not a success is a problem document (RFC 9457). The log tells what happened to which
kind of client, and never who it was.

It can be mounted in a service (docs/how-to/relying-party.md): ``who(request, app)`` tells the service's own
handlers who is signed in, ``well_known_routes`` are for the root of its address.
"""

import logging
import math
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

from aiohttp import web
from aiohttp.typedefs import Middleware

import http_serving.metrics
from http_serving.addresses import neighbourhood
from http_serving.runner import http_logger
from relying_party.config import Config
from relying_party.core.access_tokens import TokenIssuer, claims_of, key_set, secret_hash
from relying_party.core.callers import Caller, ClientKind
from relying_party.core.ceremonies import (
    ALGORITHMS,
    CHALLENGE_SIZE,
    ML_DSA,
    USER_HANDLE_SIZE,
    Authentication,
    Begun,
    Ceremonies,
    Descriptor,
)
from relying_party.core.ceremonies import RelyingParty as CeremonyParty
from relying_party.core.challenges import NAME_SIZE, Challenges, ChallengeStore
from relying_party.core.credentials import MAX_PASSKEYS, Credential, CredentialStore, Noted, User
from relying_party.core.messages import (
    AuthenticationResponse,
    parse_authentication_options,
    parse_authentication_result,
    parse_introspection,
    parse_refresh,
    parse_registration_options,
    parse_registration_result,
    parse_step_up_options,
)
from relying_party.core.operations import STEP_UP_SECONDS, Operation, OperationKind
from relying_party.core.proofs import ProofsInMemory, UsedProofs
from relying_party.core.sessions import (
    LATE_SECONDS,
    Lifetimes,
    Opened,
    RandomBytes,
    hash_token,
    is_late,
    open_session,
    refreshed,
    rotated,
    stepped_up,
)
from relying_party.errors import (
    Check,
    InvalidRequest,
    NotFound,
    NotSignedIn,
    RateLimited,
    RefreshTokenReused,
    RefreshTokenSpent,
    RequestRefused,
    StoreUnavailable,
    TooManyPasskeys,
    UnknownResource,
    UserExists,
    VerificationFailed,
)
from relying_party.http import account
from relying_party.http.answers import (
    NONCE_HEADER,
    PROBLEM_TYPE,
    http_problem,
    http_slug,
    json_answer,
    problem,
    refused,
    session_json,
    set_cookie,
    signals,
    unknown_credential,
)
from relying_party.http.limits import RateLimit
from relying_party.http.metrics import Metrics
from relying_party.http.page import render, render_problem
from relying_party.http.readiness import Readiness
from relying_party.http.request import (
    NONCE,
    STATE,
    Clock,
    SignedIn,
    State,
    account_holder,
    caller_of,
    described,
    form_body,
    json_body,
    refuse_device,
    session_behind,
    session_of,
    signed_in,
    spend_step_up,
)
from relying_party.http.tracing import METHODS, Tracing, tracing
from relying_party.http.well_known import device_endpoint, passkey_endpoints, related_origins
from relying_party.names import name_of
from relying_party.place import PostgresUri
from relying_party.store.sqlite import SqliteStore, locked

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

logger = logging.getLogger(__name__)

HOUR: Final = 3600.0  # seconds
DAY: Final = 24 * HOUR
MAX_USERS_SHOWN: Final = 200  # users on the page
REFRESH_ATTEMPTS: Final = 3
REFRESHES: Final = 60  # of a session in an hour, at the least
REFRESHES_OF_TOKEN: Final = 4  # at the least, in the time of a token: answers are lost
READS: Final = 4  # requests that only read, for each of `requests_per_minute`: a page brings its parts
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; frame-ancestors "
)
SECURITY_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "publickey-credentials-create=(self), publickey-credentials-get=(self)",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
KEPT: Final = ("Allow", "RateLimit", "RateLimit-Policy", "Retry-After", "Vary")  # of a problem, on its page
STATIC_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

OpenStore = Callable[[], AbstractAsyncContextManager[CredentialStore]]

_LIVEZ: Final = "livez"
_READYZ: Final = "readyz"
_READINESS: Final = web.AppKey("readiness", Readiness)
_OUTCOME: Final = web.RequestKey("relying_party_outcome", str)  # the problem's slug
METRICS: Final = web.AppKey("relying_party_metrics", Metrics)


def make_app(
    config: Config,
    *,
    open_store: OpenStore | None = None,
    challenges: ChallengeStore | None = None,
    used_proofs: UsedProofs | None = None,
    with_pages: bool = True,
    clock: Clock | None = None,
    random: RandomBytes = secrets.token_bytes,
    tracer_provider: "TracerProvider | None" = None,
) -> web.Application:
    """The application; its store opens when it starts and closes when it ends.

    open_store: another place for users, passkeys and sessions than the store of `config`. challenges: another
    place for ceremonies under way than this process, or the database of `config`. used_proofs: another place for used proofs
    than this process, or the store where it is shared. clock: returns Unix seconds; by default the system's, or that of the
    database of `config`. with_pages: False leaves the pages to a service that mounts this, and the well-known documents
    (`well_known_routes`). tracer_provider: OpenTelemetry's, for spans of the requests; by default that of the process, where
    the API is installed.
    """
    traces = tracing(tracer_provider)
    app = web.Application(
        middlewares=[
            *([] if traces is None else [_traced(traces)]),
            _finish,
            *([_show_problems] if with_pages else []),
            _explain,
        ],
        handler_args={"logger": http_logger},
    )
    app[METRICS] = Metrics()

    async def opened_store(app: web.Application) -> AsyncIterator[None]:
        mounted_at = app.router[_LIVEZ].url_for().raw_path.removesuffix("/livez")
        if not config.path.endswith(mounted_at):
            logger.warning(
                "mounted at %s, and the public URL %s ends otherwise: a proxy has to make one into the other",
                mounted_at,
                config.public_url,
            )
        async with _places(config, open_store) as places:
            store, now = places.store, clock or places.clock
            app[STATE] = State(
                config=config,
                ceremonies=Ceremonies(_party(config)),
                store=store,
                challenges=places.challenges if challenges is None else challenges,
                clock=now,
                look_at_clock=None if clock else places.look_at_clock,
                random=random,
                metrics=app[METRICS],
                prf_salt=await store.secret("prf") if config.prf else None,
                used_proofs=places.used_proofs if used_proofs is None else used_proofs,
                rate_limit=RateLimit(name="changes-of-address", most=config.requests_per_minute),
                read_limit=RateLimit(name="reads-of-address", most=config.requests_per_minute * READS),
                registrations=RateLimit(
                    name="registrations-of-address", most=config.registrations_per_day, seconds=DAY
                ),
                refreshes=RateLimit(
                    name="refreshes-of-session", most=_refreshes(config.lifetimes), seconds=HOUR
                ),
                issuer=TokenIssuer(
                    key=config.token_keys[0] if config.token_keys else None,
                    issuer=config.public_url,
                    audience=config.resources,
                    random=random,
                ),
                mounted_at=mounted_at,
            )
            if isinstance(store, SqliteStore):
                app[METRICS].shows_log(lambda: store.log_bytes)
            app[_READINESS] = Readiness(lambda: store.credential(b"", now=now()))
            try:
                yield
            finally:
                await app[_READINESS].close()

    app.cleanup_ctx.append(opened_store)
    app.router.add_post("/webauthn/registration/options", registration_options)
    app.router.add_post("/webauthn/registration/result", registration_result)
    app.router.add_post("/webauthn/authentication/options", authentication_options)
    app.router.add_post("/webauthn/authentication/result", authentication_result)
    app.router.add_post("/webauthn/step-up/options", step_up_options)
    app.router.add_post("/webauthn/step-up/result", step_up_result)
    app.router.add_get("/session", get_session)
    app.router.add_delete("/session", delete_session)
    app.router.add_post("/session/refresh", refresh_session)
    app.router.add_post("/introspect", introspect)
    app.router.add_get("/jwks.json", get_key_set)
    app.router.add_routes(account.ROUTES)
    app.router.add_get("/livez", get_livez, name=_LIVEZ)
    app.router.add_get("/readyz", get_readyz, name=_READYZ)
    if with_pages:
        app.router.add_get("/", get_page)
        app.router.add_get("/static/{name}", get_static)
        app.router.add_routes(well_known_routes(config))
    return app


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Where everything is that is stored, and whose time it is."""

    store: CredentialStore
    challenges: ChallengeStore
    used_proofs: UsedProofs
    clock: Clock
    look_at_clock: Callable[[], Awaitable[None]] | None = None  # where it is the store's


@asynccontextmanager
async def _places(config: Config, open_store: OpenStore | None) -> AsyncIterator[_Places]:
    """Open the store of `config`, or another one."""
    if open_store is None and isinstance(config.store, PostgresUri):
        from relying_party.store.postgres import PostgresStore  # noqa: PLC0415  it needs an extra

        async with PostgresStore(config.store) as database:
            yield _Places(
                store=database,
                challenges=database.challenges,
                used_proofs=database,
                clock=database.clock,
                look_at_clock=database.look_at_clock,
            )
        return
    async with (open_store or (lambda: _locked_store(config)))() as store:
        yield _Places(
            store=store,
            challenges=Challenges(),
            used_proofs=store if config.shared_store else ProofsInMemory(),
            clock=time.time,
        )


@asynccontextmanager
async def _locked_store(config: Config) -> AsyncIterator[CredentialStore]:
    """Open the file of `config`, locked against processes that would not share its used proofs."""
    path = Path(str(config.store))
    with locked(path, shared=config.shared_store):
        async with SqliteStore(path) as store:
            yield store


def well_known_routes(config: Config) -> list[web.RouteDef]:
    """Routes for the root of an origin: the well-known documents."""

    async def get_related_origins(_: web.Request) -> web.Response:
        return json_answer(related_origins(config))

    async def get_passkey_endpoints(_: web.Request) -> web.Response:
        return json_answer(passkey_endpoints(config))

    async def get_device_endpoint(_: web.Request) -> web.Response:
        return json_answer(device_endpoint(config))

    return [
        web.get("/.well-known/headless-passkey", get_device_endpoint),
        web.get("/.well-known/webauthn", get_related_origins),
        web.get("/.well-known/passkey-endpoints", get_passkey_endpoints),
    ]


def make_metrics_app(app: web.Application) -> web.Application:
    """Make the application that shows the metrics of `app`, for an address that only the operator reaches."""
    metrics = http_serving.metrics.make_metrics_app(app[METRICS].registry)
    metrics.cleanup_ctx.append(app[METRICS].loop_lag.watched)
    return metrics


async def who(request: web.Request, app: web.Application) -> SignedIn | None:
    """Authenticate a request to a service in which `app` is mounted; None without a session.

    Against CSRF, a request that changes something needs the origin of one of our pages, or a proof of possession. Without,
    or with a bad proof, it raises `RequestRefused`, which `problem_of` answers.
    """
    state = app[STATE]
    caller, token = await caller_of(request, state, reads=request.method in ("GET", "HEAD"))
    return await session_of(state, caller, token)


def problem_of(refusal: RequestRefused) -> web.Response:
    """Make the problem document for a refusal, for a service that calls `who`."""
    return refused(refusal)


async def require_step_up(found: SignedIn, app: web.Application, words: str) -> None:
    """Use up a step-up that the user made for one operation of a service; `StepUpRequired` without one.

    words: what the step-up was for, exactly as its options named it (``{"operation": "service", "name": words}``): with
    everything that matters in it, such as "pay 5 EUR to Bert", in 1 to 64 code points. `InvalidRequest` for words that no
    step-up can be for. `BrowsersOnly` for a session that began on a device.
    """
    operation = Operation(kind=OperationKind.SERVICE, name=name_of(words))
    refuse_device(found.session)
    await spend_step_up(app[STATE], found.session, operation)


async def registration_options(request: web.Request) -> web.Response:
    state = request.app[STATE]
    caller, token = await caller_of(request, state)
    wanted = parse_registration_options(await json_body(request))
    caller = described(caller, wanted.client)
    user = await state.store.user_by_name(wanted.user_name, now=state.clock())
    existing: tuple[Descriptor, ...] = ()
    if user is None:
        state.registrations.check(request.remote or "", now=state.clock())
        handle = state.random(USER_HANDLE_SIZE)
        user = User(handle=handle, name=wanted.user_name, display_name=wanted.display_name)
        session_id = None
    else:
        found = await session_of(state, caller, token)
        if found is None or found.user.handle != user.handle:
            state.registrations.take(request.remote or "", now=state.clock())
            raise UserExists("sign in as that user to add a passkey")
        refuse_device(found.session)
        caller = found.session.caller
        credentials = await state.store.credentials_of(user.handle, now=state.clock())
        if len(credentials) >= MAX_PASSKEYS:  # before a passkey is made that the store would refuse
            raise TooManyPasskeys("remove another one before")
        await spend_step_up(state, found.session, Operation(kind=OperationKind.ADD_PASSKEY))
        existing = _descriptors(credentials)
        session_id = found.session.session_id
    begun = state.ceremonies.begin_registration(
        caller,
        user,
        existing=existing,
        session_id=session_id,
        now=state.clock(),
        challenge=state.random(CHALLENGE_SIZE),
    )
    return await _begun(request, begun, session_id)


async def registration_result(request: web.Request) -> web.Response:
    state = request.app[STATE]
    caller, token = await caller_of(request, state)
    ceremony, response = parse_registration_result(await json_body(request))
    found = await session_of(state, caller, token)
    now = state.clock()
    record = await state.challenges.take(ceremony, now=now)
    done = state.ceremonies.complete_registration(record, caller, response, now=now)
    if done.session_id is None:
        state.registrations.take(request.remote or "", now=now)
        opened = _open_session(state, done.caller, done.credential, now)
        user = await state.store.register(done.credential, done.user, opened.session, ends=_id_of(found))
    elif found is None or found.session.session_id != done.session_id:
        raise VerificationFailed(Check.SESSION)
    else:
        lifetimes, random, issue = state.config.lifetimes, state.random, state.issue(now)
        opened = rotated(found.session, now=now, lifetimes=lifetimes, random=random, issue=issue)
        was = found.session.token_hash
        user = await state.store.add_credential(done.credential, opened.session, was=was)
    _count_done(state, record.purpose, done.caller)
    logger.info("registered a passkey (%s)", done.caller.kind)
    return await _session_answer(state, opened, user, status=201)


async def authentication_options(request: web.Request) -> web.Response:
    state = request.app[STATE]
    caller, token = await caller_of(request, state)
    wanted = parse_authentication_options(await json_body(request))
    caller = described(caller, wanted.client)
    if wanted.conditional and caller.kind is not ClientKind.WEB:
        raise InvalidRequest("conditional mediation is for browsers")
    handle: bytes | None = None
    allowed: tuple[Descriptor, ...] = ()
    if wanted.user_name is not None:
        user = await state.store.user_by_name(wanted.user_name, now=state.clock())
        handle = state.random(USER_HANDLE_SIZE) if user is None else user.handle
        if await _is_known_to(state, caller, token, handle):
            allowed = _descriptors(await state.store.credentials_of(handle, now=state.clock()))
    begun = state.ceremonies.begin_authentication(
        caller,
        expected=handle,
        allowed=allowed,
        now=state.clock(),
        challenge=state.random(CHALLENGE_SIZE),
        conditional=wanted.conditional,
        prf_salt=state.prf_salt,
    )
    return await _begun(request, begun, mediation="conditional" if wanted.conditional else None)


async def authentication_result(request: web.Request) -> web.Response:
    state = request.app[STATE]
    caller, token = await caller_of(request, state)
    ceremony, response = parse_authentication_result(await json_body(request))
    found = await session_of(state, caller, token)
    now = state.clock()
    credential, done = await _authenticated(state, caller, ceremony, response, now=now)
    opened = _open_session(state, done.caller, credential, now)
    noted = await state.store.sign_in(done.use, opened.session, ends=_id_of(found))
    _tell_counter(state, noted)
    logger.info("signed in (%s)", done.caller.kind)
    return await _session_answer(state, opened, noted.user, status=200)


async def step_up_options(request: web.Request) -> web.Response:
    """Begin a step-up for one operation: the user of the session must use one of their passkeys for it."""
    state = request.app[STATE]
    found = await account_holder(request, state)
    operation = parse_step_up_options(await json_body(request))
    await account.require_target(state, found.user, operation)
    begun = state.ceremonies.begin_authentication(
        found.session.caller,
        expected=found.user.handle,
        allowed=_descriptors(await state.store.credentials_of(found.user.handle, now=state.clock())),
        now=state.clock(),
        challenge=state.random(CHALLENGE_SIZE),
        session_id=found.session.session_id,
        operation=operation,
        prf_salt=state.prf_salt,
    )
    return await _begun(request, begun, found.session.session_id)


async def step_up_result(request: web.Request) -> web.Response:
    state = request.app[STATE]
    found = await account_holder(request, state)
    ceremony, response = parse_authentication_result(await json_body(request))
    now, session = state.clock(), found.session
    credential, done = await _authenticated(
        state, session.caller, ceremony, response, now=now, session_id=session.session_id
    )
    if done.operation is None:
        raise VerificationFailed(Check.PURPOSE)
    opened = stepped_up(
        session,
        credential_id=credential.credential_id,
        now=now,
        lifetimes=state.config.lifetimes,
        random=state.random,
        issue=state.issue(now),
    )
    noted = await state.store.step_up(
        done.use,
        opened.session,
        was=session.token_hash,
        operation=done.operation.digest(),
        until=int(now) + STEP_UP_SECONDS,
    )
    _tell_counter(state, noted)
    logger.info("stepped up to %s (%s)", done.operation.kind, session.client_kind)
    return await _session_answer(state, opened, noted.user, status=200)


async def get_session(request: web.Request) -> web.Response:
    found = await signed_in(request, request.app[STATE], reads=True)
    audience = request.app[STATE].config.resources
    return json_answer(session_json(found.session, found.user, audience=audience))


async def delete_session(request: web.Request) -> web.Response:
    state = request.app[STATE]
    found = await signed_in(request, state)
    return await account.end_own_session(state, found)


async def refresh_session(request: web.Request) -> web.Response:
    """Refresh a session: each refresh token works once (`sessions.refreshed`)."""
    state = request.app[STATE]
    caller, _ = await caller_of(request, state)
    presented = hash_token(parse_refresh(await json_body(request)))
    for _ in range(REFRESH_ATTEMPTS):
        now = state.clock()
        found = await state.store.session_of_refresh(presented, now=now)
        if found is None or not found[0].belongs_to(caller):
            break
        session, user = found
        if is_late(session, presented, now=now):
            state.metrics.count("refresh_late_total")
            raise RefreshTokenSpent(retry_after=LATE_SECONDS)
        opened = refreshed(
            session,
            presented,
            now=now,
            lifetimes=state.config.lifetimes,
            random=state.random,
            issue=state.issue(now),
        )
        if opened is None:
            await state.store.end_session(user.handle, session.session_id)
            state.metrics.count("refresh_reuse_total")
            logger.warning("a spent refresh token came back: its session is over (%s)", session.client_kind)
            raise RefreshTokenReused
        state.refreshes.take(f"session {session.session_id.hex()}", now=now)
        if await state.store.replace_session(opened.session, was=session.token_hash):
            return await _session_answer(state, opened, user, status=200)
    raise NotSignedIn("the refresh token is not good, or its session has ended")


async def introspect(request: web.Request) -> web.Response:
    """Introspect an access token (RFC 7662) for a service with a resource secret."""
    state = request.app[STATE]
    resource = _resource_of(request, state)
    token = parse_introspection(await form_body(request))
    found = await session_behind(state, token)
    state.metrics.count("introspections_total", active="no" if found is None else "yes")
    if found is None:
        return json_answer({"active": False})
    claims = claims_of(found.session, issuer=state.config.public_url, audience=(resource,))
    return json_answer({"active": True, "token_type": "DPoP", **claims})


def _resource_of(request: web.Request, state: State) -> str:
    """Authenticate a resource server by its secret, which it sends as a bearer token (RFC 7662 §2.1)."""
    values = request.headers.getall("Authorization", [])
    scheme, _, secret = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    resource = state.config.resource_secrets.get(secret_hash(secret)) if scheme.lower() == "bearer" else None
    if resource is None:
        state.rate_limit.take(request.remote or "", now=state.clock())
        raise UnknownResource("expected Authorization: Bearer and the secret of a resource server")
    return resource


async def get_key_set(request: web.Request) -> web.Response:
    return json_answer(key_set(request.app[STATE].config.token_keys))


async def get_page(request: web.Request) -> web.Response:
    state = request.app[STATE]
    now = state.clock()
    _, token = await caller_of(request, state, reads=True)
    found = await session_of(state, Caller(kind=ClientKind.WEB), token)
    own = None if found is None else await state.store.registered(found.user.handle, now=now)
    shows_all = state.config.page_shows == "everyone"
    everyone = await state.store.everyone(now=now, most=MAX_USERS_SHOWN) if shows_all else ()
    text = render(state.config, own, current=found.session if found else None, everyone=everyone)
    return web.Response(text=text, content_type="text/html", charset="utf-8")


async def get_static(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    content_type = STATIC_TYPES.get(Path(name).suffix)
    known = {file.name: file for file in resources.files("relying_party.http").joinpath("pages").iterdir()}
    if content_type is None or name not in known:
        raise NotFound("no such file")
    return web.Response(
        body=known[name].read_bytes(),
        content_type=content_type,
        charset="utf-8",
        headers={"Cache-Control": "no-cache"},
    )


async def get_livez(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


def _store_unavailable() -> web.Response:
    return problem(
        "store-unavailable",
        503,
        "The store cannot be used at the moment",
        members={"retry_after": 5},
        headers={"Retry-After": "5"},
    )


async def get_readyz(request: web.Request) -> web.Response:
    if await request.app[_READINESS].is_ready():
        return web.json_response({"status": "ready"})
    request[_OUTCOME] = "store-unavailable"
    return _store_unavailable()


def _refreshes(lifetimes: Lifetimes) -> int:
    """How often a session may be refreshed in an hour."""
    return max(REFRESHES, math.ceil(REFRESHES_OF_TOKEN * HOUR / lifetimes.token))


def _party(config: Config) -> CeremonyParty:
    return CeremonyParty(
        rp_id=config.rp_id,
        name=config.rp_name,
        origins={
            ClientKind.WEB: config.web_origins,
            ClientKind.DEVICE: config.device_origins,
            ClientKind.ANDROID: config.android_origins,
        },
        top_origins=config.top_origins,
        algorithms=(*ALGORITHMS, *(ML_DSA if config.ml_dsa else ())),
        prf=config.prf,
        backup_eligibility=config.backup_eligibility,
    )


def _descriptors(credentials: Sequence[Credential]) -> tuple[Descriptor, ...]:
    return tuple(
        Descriptor(credential_id=credential.credential_id, transports=credential.transports)
        for credential in credentials
    )


async def _is_known_to(state: State, caller: Caller, token: str | None, user_handle: bytes) -> bool:
    """Whether the user has a session with this caller, by its token or its key: only then are their passkeys named.

    Strangers learn neither whether a user exists (account enumeration) nor the ids of passkeys. The work is the same for a
    user who does not exist.
    """
    found = await session_of(state, caller, token)
    if found is not None:
        return found.user.handle == user_handle
    key = caller.key_thumbprint
    return key is not None and await state.store.is_signed_in(user_handle, key, now=state.clock())


async def _begun(
    request: web.Request, begun: Begun, session_id: bytes | None = None, *, mediation: str | None = None
) -> web.Response:
    """Answer with the options. session_id: of a signed-in caller, whose ceremonies strangers displace none of."""
    state = request.app[STATE]
    share = neighbourhood(request.remote or "") if session_id is None else f"session {session_id.hex()}"
    name = await state.challenges.add(
        begun.record, name=state.random(NAME_SIZE), share=share, now=state.clock()
    )
    record = begun.record
    state.metrics.count("ceremonies_total", purpose=record.purpose, kind=record.caller.kind, outcome="begun")
    told = {} if mediation is None else {"mediation": mediation}
    return json_answer({"ceremony": name, **told, "publicKey": begun.public_key})


def _count_done(state: State, purpose: str, caller: Caller) -> None:
    state.metrics.count("ceremonies_total", purpose=purpose, kind=caller.kind, outcome="done")


async def _authenticated(
    state: State,
    caller: Caller,
    ceremony: str,
    response: AuthenticationResponse,
    *,
    now: float,
    session_id: bytes | None = None,
) -> tuple[Credential, Authentication]:
    """Verify an authentication; returns its credential and the changes. The ceremony is used up also by a failure."""
    record = await state.challenges.take(ceremony, now=now)
    credential = await state.store.credential(response.credential_id, now=now)
    try:
        done = state.ceremonies.complete_authentication(
            record, caller, response, credential, now=now, session_id=session_id
        )
    except VerificationFailed as refusal:
        if refusal.check is Check.LIBRARY and credential is None:
            signal = unknown_credential(state.config, response.credential_id)
            raise VerificationFailed(Check.UNKNOWN_CREDENTIAL, signals=signal) from refusal
        if refusal.check is Check.BACKUP_ELIGIBILITY and credential is not None:
            _tell_eligibility(state, credential, outcome="refused")
        raise
    if credential is None:  # an unknown credential was refused before
        raise VerificationFailed(Check.UNKNOWN_CREDENTIAL)
    if done.use.backup_eligible is not None:
        _tell_eligibility(state, credential, outcome="accepted")
    _count_done(state, record.purpose, done.caller)
    return credential, done


def _tell_counter(state: State, noted: Noted) -> None:
    """Log and count a signature counter that did not grow."""
    if noted.counter_anomaly:
        state.metrics.count("counter_anomalies_total")
        logger.warning("a passkey's signature counter did not grow: it may have been copied")


def _tell_eligibility(state: State, credential: Credential, *, outcome: str) -> None:
    """Log and count a change of backup eligibility with its provider, so that an operator sees why users are locked out."""
    change = "lost" if credential.backup_eligible else "gained"
    state.metrics.count("backup_eligibility_changes_total", change=change, outcome=outcome)
    logger.warning(
        "a passkey of provider %s %s its backup eligibility: %s (the policy is %s)",
        UUID(bytes=credential.aaguid),
        change,
        outcome,
        state.config.backup_eligibility,
    )


def _open_session(state: State, caller: Caller, credential: Credential, now: float) -> Opened:
    return open_session(
        user_handle=credential.user_handle,
        credential_id=credential.credential_id,
        caller=caller,
        now=now,
        lifetimes=state.config.lifetimes,
        random=state.random,
        issue=state.issue(now),
    )


def _id_of(found: SignedIn | None) -> bytes | None:
    return None if found is None else found.session.session_id


async def _session_answer(state: State, opened: Opened, user: User, *, status: int) -> web.Response:
    """Make the answer with a new session: tokens in the body for a device, a cookie for a browser; and the accepted credentials."""
    session, config = opened.session, state.config
    theirs = signals(config, user, await state.store.credentials_of(user.handle, now=state.clock()))
    if session.client_kind.proves_key:
        body = session_json(
            session,
            user,
            audience=config.resources,
            token=opened.token,
            refresh_token=opened.refresh_token,
        )
        return json_answer({**body, "signals": theirs}, status=status)
    response = json_answer({**session_json(session, user), "signals": theirs}, status=status)
    set_cookie(config, response, opened.token, lifetime=config.lifetimes.cookie)
    return response


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _traced(traces: Tracing) -> Middleware:
    @web.middleware
    async def trace(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Make a span of each request."""
        resource = request.match_info.route.resource
        with traces.request(request.method, None if resource is None else resource.canonical) as span:
            response = await handler(request)
            traces.answered(span, response.status, request.get(_OUTCOME))
            return response

    return trace


@web.middleware
async def _finish(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Add security headers to every answer, and log and count it."""
    started = time.perf_counter()
    response = await handler(request)
    state = request.app[STATE]
    config = state.config
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    if NONCE in request:
        response.headers[NONCE_HEADER] = request[NONCE]
    embedders = " ".join(sorted(config.top_origins)) or "'none'"
    response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY + embedders)
    if config.uses_tls and not config.is_local:
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "-"
    seconds = time.perf_counter() - started
    state.metrics.request(route=route, status=response.status, seconds=seconds)
    method = request.method if resource and request.method in METHODS else "-"
    fields = {
        "endpoint": f"{method} {route}",
        "status": response.status,
        "outcome": request.get(_OUTCOME, "ok"),
        "milliseconds": math.ceil(seconds * 1000),
    }
    logger.info(
        "%s %s: %d in %.1f ms", method, route, response.status, seconds * 1000, extra={"fields": fields}
    )
    return response


@web.middleware
async def _show_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Show a problem as a page to a browser that navigates."""
    response = await handler(request)
    if request.method not in ("GET", "HEAD") or response.content_type != PROBLEM_TYPE:
        return response
    response.headers["Vary"] = "Accept"
    if not request.headers.get("Accept", "").startswith("text/html"):  # as browsers navigate
        return response
    kept = {name: response.headers[name] for name in KEPT if name in response.headers}
    retry_after = int(kept["Retry-After"]) if "Retry-After" in kept else None
    text = render_problem(request.app[STATE].config, response.status, retry_after=retry_after)
    return web.Response(
        text=text, status=response.status, content_type="text/html", charset="utf-8", headers=kept
    )


@web.middleware
async def _explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every failure into a problem document, and keep its slug for the log."""
    state = request.app[STATE]
    metrics = state.metrics
    try:
        if request.method in ("GET", "HEAD", "OPTIONS") and request.match_info.route.name not in (
            _LIVEZ,
            _READYZ,
        ):
            state.read_limit.take(request.remote or "", now=state.clock())
        return await handler(request)
    except RequestRefused as refusal:
        if isinstance(refusal, VerificationFailed):
            metrics.count("refusals_total", check=refusal.check)
            logger.warning("a ceremony did not verify: %s", refusal.check)
        if isinstance(refusal, RateLimited):
            metrics.count("rate_limited_total")
        request[_OUTCOME] = refusal.slug
        return refused(refusal)
    except StoreUnavailable as error:
        logger.error("%s", error)  # noqa: TRY400  the message says it all
        request[_OUTCOME] = "store-unavailable"
        return _store_unavailable()
    except web.HTTPNotFound:
        request[_OUTCOME] = NotFound.slug
        return refused(NotFound("there is nothing at this address"))
    except web.HTTPException as error:
        request[_OUTCOME] = http_slug(error.status)
        response = http_problem(error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception as error:  # noqa: BLE001  the edge of the program
        # type and place only: its message may hold anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        logger.error("unexpected %s at %s:%s", type(error).__name__, Path(place.filename).name, place.lineno)  # noqa: TRY400
        request[_OUTCOME] = "internal-error"
        return problem("internal-error", 500, "Something failed on our side")
