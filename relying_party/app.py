"""The HTTP face of the relying party (docs/protocol/relying-party.md): ``make_app(config)``.

It moves values between requests, the pure ceremonies and the store, and decides nothing about WebAuthn.
Every answer that is not a success is a problem document (RFC 9457). The log tells what happened to which
kind of client, and never who it was.
"""

import asyncio
import logging
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from relying_party.callers import Caller, ClientKind
from relying_party.ceremonies import CHALLENGE_SIZE, USER_HANDLE_SIZE, Begun, Ceremonies, Descriptor, decoy
from relying_party.ceremonies import RelyingParty as CeremonyParty
from relying_party.challenges import NAME_SIZE, Challenges
from relying_party.config import Config
from relying_party.credentials import Credential, CredentialStore, User
from relying_party.encoding import base64url
from relying_party.errors import (
    Check,
    InvalidRequest,
    NotFound,
    NotSignedIn,
    PayloadTooLarge,
    ProofInvalid,
    RateLimited,
    Refusal,
    StoreUnavailable,
    UserExists,
    VerificationFailed,
)
from relying_party.limits import RateLimit
from relying_party.messages import (
    parse_authentication_options,
    parse_authentication_result,
    parse_registration_options,
    parse_registration_result,
)
from relying_party.page import render
from relying_party.proofs import SeenProofs, verify_proof
from relying_party.sessions import Session, hash_token, open_session
from relying_party.sqlite import SqliteStore

logger = logging.getLogger(__name__)
http_logger = logging.getLogger(f"{__name__}.http")  # what aiohttp says about requests it cannot read

MOST_BODY: Final = 64 * 1024
BODY_SECONDS: Final = 20  # how long a client may take to send one
MOST_SHOWN: Final = 200  # users on the page
PROBLEM: Final = "urn:headless-passkey:problem:"
PROOF_HEADER: Final = "DPoP"
CHALLENGE_HEADER: Final = 'DPoP algs="ES256"'
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
SECURITY_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "publickey-credentials-create=(self), publickey-credentials-get=(self)",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
STATIC_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

Clock = Callable[[], float]
RandomBytes = Callable[[int], bytes]


@dataclass(slots=True, kw_only=True)
class State:
    """What the handlers of one application share."""

    config: Config
    ceremonies: Ceremonies
    store: CredentialStore
    clock: Clock
    random: RandomBytes
    challenges: Challenges = field(default_factory=Challenges)
    seen_proofs: SeenProofs = field(default_factory=SeenProofs)
    rate_limit: RateLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn:
    session: Session
    user: User


STATE: Final = web.AppKey("relying_party_state", State)


def make_app(
    config: Config, *, clock: Clock = time.time, random: RandomBytes = secrets.token_bytes
) -> web.Application:
    """The application; its store opens when it starts and closes when it ends."""
    logging.getLogger("fido2").setLevel(logging.WARNING)  # it names credentials at INFO
    http_logger.addFilter(_without_bytes)
    app = web.Application(
        client_max_size=MOST_BODY, middlewares=[_finish, _explain], handler_args={"logger": http_logger}
    )

    async def open_store(app: web.Application) -> AsyncIterator[None]:
        async with SqliteStore(config.store) as store:
            app[STATE] = State(
                config=config,
                ceremonies=Ceremonies(
                    CeremonyParty(
                        rp_id=config.rp_id,
                        name=config.rp_name,
                        origins={
                            ClientKind.WEB: config.web_origins,
                            ClientKind.DEVICE: config.device_origins,
                        },
                    )
                ),
                store=store,
                clock=clock,
                random=random,
                rate_limit=RateLimit(per_minute=config.requests_per_minute),
            )
            yield

    app.cleanup_ctx.append(open_store)
    app.router.add_post("/webauthn/registration/options", registration_options)
    app.router.add_post("/webauthn/registration/result", registration_result)
    app.router.add_post("/webauthn/authentication/options", authentication_options)
    app.router.add_post("/webauthn/authentication/result", authentication_result)
    app.router.add_get("/session", get_session)
    app.router.add_delete("/session", delete_session)
    app.router.add_get("/", get_page)
    app.router.add_get("/static/{name}", get_static)
    app.router.add_get("/livez", get_livez)
    return app


async def registration_options(request: web.Request) -> web.Response:
    state = request.app[STATE]
    caller, token = _caller(request)
    wanted = parse_registration_options(await _json_body(request))
    user = await state.store.user_by_name(wanted.user_name)
    existing: tuple[Descriptor, ...] = ()
    if user is None:
        handle = state.random(USER_HANDLE_SIZE)
        user = User(handle=handle, name=wanted.user_name, display_name=wanted.display_name)
        adds_to_user = False
    else:
        signed_in = await _signed_in(state, caller, token)
        if signed_in is None or signed_in.user.handle != user.handle:
            raise UserExists("that name is registered: sign in as that user to add a passkey")
        existing = _descriptors(await state.store.credentials_of(user.handle))
        adds_to_user = True
    begun = state.ceremonies.begin_registration(
        caller,
        user,
        existing=existing,
        adds_to_user=adds_to_user,
        now=state.clock(),
        challenge=state.random(CHALLENGE_SIZE),
    )
    return _begun(state, begun)


async def registration_result(request: web.Request) -> web.Response:
    state = request.app[STATE]
    caller, token = _caller(request)
    ceremony, response = parse_registration_result(await _json_body(request))
    signed_in = await _signed_in(state, caller, token)
    now = state.clock()
    record = state.challenges.take(ceremony, now=now)
    done = state.ceremonies.complete_registration(record, caller, response, now=now)
    if done.adds_to_user and (signed_in is None or signed_in.user.handle != done.user.handle):
        raise VerificationFailed(Check.SESSION)
    token, session = _open_session(state, caller, done.credential, now)
    user = await state.store.register(done.credential, done.user, session, ends=_hash_of(signed_in))
    logger.info("registered a passkey (%s)", caller.kind)
    return _session_answer(state, session, user, token=token, status=201)


async def authentication_options(request: web.Request) -> web.Response:
    state = request.app[STATE]
    caller, _ = _caller(request)
    wanted = parse_authentication_options(await _json_body(request))
    handle: bytes | None = None
    allowed: tuple[Descriptor, ...] = ()
    if wanted.user_name is not None:
        user = await state.store.user_by_name(wanted.user_name)
        handle = state.random(USER_HANDLE_SIZE) if user is None else user.handle
        allowed = _descriptors(await state.store.credentials_of(handle))
        allowed = allowed or (decoy(await state.store.secret("decoy"), wanted.user_name),)
    begun = state.ceremonies.begin_authentication(
        caller,
        expected=handle,
        allowed=allowed,
        now=state.clock(),
        challenge=state.random(CHALLENGE_SIZE),
    )
    return _begun(state, begun)


async def authentication_result(request: web.Request) -> web.Response:
    state = request.app[STATE]
    caller, token = _caller(request)
    ceremony, response = parse_authentication_result(await _json_body(request))
    signed_in = await _signed_in(state, caller, token)
    now = state.clock()
    record = state.challenges.take(ceremony, now=now)
    credential = await state.store.credential(response.credential_id)
    use = state.ceremonies.complete_authentication(record, caller, response, credential, now=now)
    if credential is None:  # the ceremony has refused that already
        raise VerificationFailed(Check.UNKNOWN_CREDENTIAL)
    token, session = _open_session(state, caller, credential, now)
    user = await state.store.sign_in(use, session, ends=_hash_of(signed_in))
    if use.counter_anomaly:
        logger.warning("a passkey's signature counter did not grow: it may have been copied")
    logger.info("signed in (%s)", caller.kind)
    return _session_answer(state, session, user, token=token, status=200)


async def get_session(request: web.Request) -> web.Response:
    state = request.app[STATE]
    caller, token = _caller(request, reads=True)
    signed_in = await _signed_in(state, caller, token)
    if signed_in is None:
        raise NotSignedIn("no session goes with this request, or it has ended")
    return web.json_response(_session_json(signed_in.session, signed_in.user, token=None))


async def delete_session(request: web.Request) -> web.Response:
    state = request.app[STATE]
    caller, token = _caller(request)
    signed_in = await _signed_in(state, caller, token)
    if signed_in is None:
        raise NotSignedIn("no session goes with this request, or it has ended")
    await state.store.end_session(signed_in.session.token_hash)
    response = web.Response(status=204)
    if caller.kind is ClientKind.WEB:
        _set_cookie(state.config, response, "", lifetime=0)
    return response


async def get_page(request: web.Request) -> web.Response:
    state = request.app[STATE]
    now = state.clock()
    signed_in = await _signed_in(state, Caller(kind=ClientKind.WEB), _cookie(request))
    if state.config.page_shows == "everyone":
        registered = await state.store.everyone(now=now, most=MOST_SHOWN)
    else:
        own = signed_in and await state.store.registered(signed_in.user.handle, now=now)
        registered = [own] if own else []
    text = render(
        state.config,
        registered,
        me=signed_in.user if signed_in else None,
        current=signed_in.session if signed_in else None,
    )
    return web.Response(text=text, content_type="text/html", charset="utf-8")


async def get_static(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    content_type = STATIC_TYPES.get(Path(name).suffix)
    known = {file.name: file for file in resources.files("relying_party").joinpath("pages").iterdir()}
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


def _caller(request: web.Request, *, reads: bool = False) -> tuple[Caller, str | None]:
    """Who sends this request, and the session token that goes with it, if any.

    A device proves its key. A browser cannot keep from sending its origin when it changes something, so
    that is how it is known; `reads` waives it where nothing changes.
    """
    state = request.app[STATE]
    if request.path.startswith("/webauthn/"):
        state.rate_limit.take(request.remote or "", now=state.clock())
    if PROOF_HEADER in request.headers or "Authorization" in request.headers:
        if "Origin" in request.headers:
            raise InvalidRequest("a request has either a proof or an Origin")
        return _device(request, state)
    if not reads and request.headers.getall("Origin", []) not in [
        [origin] for origin in state.config.web_origins
    ]:
        raise InvalidRequest("expected a proof of key, or an Origin that is one of ours")
    return Caller(kind=ClientKind.WEB), _cookie(request)


def _device(request: web.Request, state: State) -> tuple[Caller, str | None]:
    proofs = request.headers.getall(PROOF_HEADER, [])
    if len(proofs) != 1:
        raise ProofInvalid("expected one proof of key")
    token: str | None = None
    if "Authorization" in request.headers:
        scheme, _, token = request.headers["Authorization"].partition(" ")
        if scheme.lower() != "dpop" or not token:
            raise NotSignedIn("expected Authorization: DPoP and a token")
    now = state.clock()
    proof = verify_proof(
        proofs[0],
        method=request.method,
        urls=[url + request.path for url in state.config.urls],
        now=now,
        access_token=token,
    )
    state.seen_proofs.take(proof, now=now)
    return Caller(kind=ClientKind.DEVICE, key_thumbprint=proof.key_thumbprint), token


async def _signed_in(state: State, caller: Caller, token: str | None) -> SignedIn | None:
    """The live session of a token, when it is the caller's own; who signs in again may still send an old one."""
    found = None if token is None else await state.store.session(hash_token(token), now=state.clock())
    if found is None or not found[0].belongs_to(caller):
        return None
    return SignedIn(session=found[0], user=found[1])


async def _json_body(request: web.Request) -> bytes:
    if request.content_type != "application/json":
        raise InvalidRequest("expected application/json")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError as error:
        raise InvalidRequest("the body took too long") from error
    except web.RequestPayloadError as error:
        raise InvalidRequest("the body cannot be read") from error


def _descriptors(credentials: Sequence[Credential]) -> tuple[Descriptor, ...]:
    return tuple(
        Descriptor(credential_id=credential.credential_id, transports=credential.transports)
        for credential in credentials
    )


def _begun(state: State, begun: Begun) -> web.Response:
    name = state.challenges.add(begun.record, name=state.random(NAME_SIZE), now=state.clock())
    return _json({"ceremony": name, "publicKey": begun.public_key})


def _open_session(state: State, caller: Caller, credential: Credential, now: float) -> tuple[str, Session]:
    return open_session(
        user_handle=credential.user_handle,
        credential_id=credential.credential_id,
        caller=caller,
        now=now,
        lifetime=state.config.session_lifetime,
        random=state.random(32),
    )


def _hash_of(signed_in: SignedIn | None) -> bytes | None:
    return None if signed_in is None else signed_in.session.token_hash


def _session_answer(state: State, session: Session, user: User, *, token: str, status: int) -> web.Response:
    """The new session: in the body for a device, in a cookie for a browser."""
    if session.client_kind is ClientKind.DEVICE:
        return _json(_session_json(session, user, token=token), status=status)
    response = _json(_session_json(session, user, token=None), status=status)
    _set_cookie(state.config, response, token, lifetime=state.config.session_lifetime)
    return response


def _session_json(session: Session, user: User, *, token: str | None) -> dict[str, Any]:
    return {
        "token": token,
        "token_type": "DPoP" if session.client_kind is ClientKind.DEVICE else "cookie",
        "expires_at": session.expires_at,
        "user": {
            "name": user.name,
            "display_name": user.display_name,
            "handle": base64url(user.handle),
        },
        "credential_id": base64url(session.credential_id),
        "client_kind": session.client_kind,
    }


def _cookie_name(config: Config) -> str:
    """Browsers take the ``__Host-`` prefix over TLS only, which nobody has on http://localhost."""
    return "__Host-session" if config.uses_tls else "session"


def _cookie(request: web.Request) -> str | None:
    return request.cookies.get(_cookie_name(request.app[STATE].config))


def _set_cookie(config: Config, response: web.Response, value: str, *, lifetime: int) -> None:
    response.set_cookie(
        _cookie_name(config),
        value,
        max_age=lifetime,
        path="/",
        secure=config.uses_tls,
        httponly=True,
        samesite="Lax",
    )


def _json(body: dict[str, Any], *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def _without_bytes(record: logging.LogRecord) -> bool:
    """Let aiohttp name what went wrong with a request, but not show the request."""
    if record.exc_info:
        kind = record.exc_info[0]
        record.msg, record.args = "a request could not be read: %s", (kind.__name__ if kind else "unknown",)
        record.exc_info = record.exc_text = None
    return True


def _problem(
    slug: str, status: int, title: str, *, members: dict[str, Any] | None = None, headers: Any = None
) -> web.Response:
    document = {"type": PROBLEM + slug, "title": title, "status": status, **(members or {})}
    return web.Response(
        body=msgspec.json.encode(document),
        status=status,
        content_type="application/problem+json",
        headers=headers,
    )


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _finish(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Security headers on every answer, and one line of log."""
    started = time.perf_counter()
    response = await handler(request)
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    config = request.app[STATE].config
    if config.uses_tls and not config.is_local:
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    resource = request.match_info.route.resource
    logger.info(
        "%s %s: %d in %.1f ms",
        request.method if resource else "-",
        resource.canonical if resource else "-",
        response.status,
        (time.perf_counter() - started) * 1000,
    )
    return response


@web.middleware
async def _explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong becomes a problem document."""
    try:
        return await handler(request)
    except VerificationFailed as refusal:
        logger.warning("a ceremony did not verify: %s", refusal.check)
        return _refused(refusal)
    except Refusal as refusal:
        return _refused(refusal)
    except StoreUnavailable as error:
        logger.error("%s", error)  # noqa: TRY400  the message says it all
        headers = {"Retry-After": "5"}
        return _problem(
            "store-unavailable", 503, "the store does not answer", members={"retry_after": 5}, headers=headers
        )
    except web.HTTPRequestEntityTooLarge:
        return _refused(PayloadTooLarge("the body is too large", limit=MOST_BODY))
    except web.HTTPNotFound:
        return _refused(NotFound("no such thing"))
    except web.HTTPException as error:
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return _problem(
            (error.reason or "error").lower().replace(" ", "-"), error.status, error.reason, headers=allow
        )
    except Exception as error:  # noqa: BLE001  the edge of the program
        # its message may hold anything, so only type and place are told
        place = traceback.extract_tb(error.__traceback__)[-1]
        logger.error("unexpected %s at %s:%s", type(error).__name__, Path(place.filename).name, place.lineno)  # noqa: TRY400
        return _problem("internal-error", 500, "this is our fault")


def _refused(refusal: Refusal) -> web.Response:
    headers: dict[str, str] = {}
    if isinstance(refusal, RateLimited):
        headers["Retry-After"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = CHALLENGE_HEADER
    return _problem(refusal.slug, refusal.status, str(refusal), members=refusal.members, headers=headers)
