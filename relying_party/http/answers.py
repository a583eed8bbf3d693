"""What we answer, as JSON (docs/protocol/relying-party.md): sessions, passkeys, signals, problems. Pure."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

import msgspec
from aiohttp import web

from http_serving.rate_limit import limit_headers
from program_parts.base64url import base64url
from relying_party.config import Config
from relying_party.core.credentials import Credential, Registered, User
from relying_party.core.removals import Removal
from relying_party.core.sessions import Session
from relying_party.errors import (
    ProofClock,
    ProofInvalid,
    RateLimited,
    RefreshTokenSpent,
    RequestRefused,
    StepUpRequired,
    TokenInvalid,
    UnknownResource,
    UseDpopNonce,
)

PROBLEM_TYPE: Final = "application/problem+json"
PROBLEM: Final = "urn:headless-passkey:problem:"
CHALLENGE_HEADER: Final = 'DPoP algs="ES256"'
NONCE_HEADER: Final = "DPoP-Nonce"


def session_json(
    session: Session,
    user: User,
    *,
    audience: Sequence[str] = (),
    token: str | None = None,
    refresh_token: str | None = None,
) -> dict[str, Any]:
    """audience: origins of the services that take the token, beside ourselves."""
    return {
        "token": token,
        "token_type": "DPoP" if session.client_kind.proves_key else "cookie",
        "expires_at": session.expires_at,
        "refresh_token": refresh_token,
        "ends_at": session.ends_at,
        "auth_time": session.auth_time,
        "user": user_json(user),
        "credential_id": base64url(session.credential_id),
        "client_kind": session.client_kind,
        "audience": list(audience),
    }


def user_json(user: User) -> dict[str, Any]:
    return {"name": user.name, "display_name": user.display_name, "handle": base64url(user.handle)}


def account_json(config: Config, registered: Registered, current: Session) -> dict[str, Any]:
    """Everything a user may know about their account."""
    return {
        "user": user_json(registered.user),
        "credentials": [credential_json(one) for one in registered.credentials],
        "sessions": [_listed_session(one, current) for one in registered.sessions],
        "removals": [_removal(one, registered, current) for one in registered.removals],
        "changes": [
            {
                "kind": one.kind,
                "at": one.at,
                "name": one.name,
                "client_kind": one.client_kind,
                "here": one.session_id == current.session_id,
            }
            for one in registered.changes
        ],
        "signals": signals(config, registered.user, registered.credentials),
    }


def credential_json(credential: Credential) -> dict[str, Any]:
    return {
        "id": base64url(credential.credential_id),
        "label": credential.label,
        "aaguid": str(UUID(bytes=credential.aaguid)),
        "algorithm": credential.algorithm,
        "created_at": credential.created_at,
        "last_used_at": credential.last_used_at,
        "backup_eligible": credential.backup_eligible,
        "backed_up": credential.backed_up,
        "transports": list(credential.transports),
        "sign_count": credential.sign_count,
        "counter_anomalies": credential.counter_anomalies,
        "discoverable": credential.discoverable,
        "prf": credential.prf,
    }


def _removal(removal: Removal, registered: Registered, current: Session) -> dict[str, Any]:
    return {
        "id": base64url(removal.removal_id),
        "credential_id": None if removal.credential_id is None else base64url(removal.credential_id),
        "asked_by": base64url(removal.asked_by),
        "asked_at": removal.asked_at,
        "due_at": removal.due_at,
        "may_call_off": registered.may_call_off(removal, current),
    }


def _listed_session(session: Session, current: Session) -> dict[str, Any]:
    return {
        "id": base64url(session.session_id),
        "client_kind": session.client_kind,
        "label": session.label,
        "created_at": session.created_at,
        "auth_time": session.auth_time,
        "ends_at": session.ends_at,
        "credential_id": base64url(session.credential_id),
        "here": session.session_id == current.session_id,
    }


def signals(config: Config, user: User, credentials: Sequence[Credential]) -> dict[str, Any]:
    """Arguments for ``PublicKeyCredential.signal…()`` (WebAuthn Level 3 §5.1.10), for who is signed in only."""
    return {
        "allAcceptedCredentials": {
            "rpId": config.rp_id,
            "userId": base64url(user.handle),
            "allAcceptedCredentialIds": [base64url(one.credential_id) for one in credentials],
        },
        "currentUserDetails": {
            "rpId": config.rp_id,
            "userId": base64url(user.handle),
            "name": user.name,
            "displayName": user.display_name,
        },
    }


def unknown_credential(config: Config, credential_id: bytes) -> dict[str, Any]:
    """The signal that is for anybody: it tells the caller's own credential id back, and nothing else."""
    return {"unknownCredential": {"rpId": config.rp_id, "credentialId": base64url(credential_id)}}


def json_answer(body: dict[str, Any], *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def problem(
    slug: str, status: int, title: str, *, members: dict[str, Any] | None = None, headers: Any = None
) -> web.Response:
    """A problem document (RFC 9457)."""
    document = {"type": PROBLEM + slug, "title": title, "status": status, **(members or {})}
    return web.Response(
        body=msgspec.json.encode(document),
        status=status,
        content_type=PROBLEM_TYPE,
        headers=headers,
    )


def http_problem(status: int) -> web.Response:
    """The problem document for what HTTP itself refuses: slug and title are the status's own words."""
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return problem(http_slug(status), status, HTTPStatus(status).phrase, headers=headers)


def http_slug(status: int) -> str:
    """The slug of what HTTP itself refuses."""
    title = HTTPStatus(status).phrase
    return "invalid-request" if status == HTTPStatus.BAD_REQUEST else title.lower().replace(" ", "-")


def refused(refusal: RequestRefused) -> web.Response:
    headers: dict[str, str] = {}
    if isinstance(refusal, RefreshTokenSpent):
        headers["Retry-After"] = str(refusal.retry_after)
    if isinstance(refusal, RateLimited):
        headers |= limit_headers(refusal.policy, refusal.retry_after)
    if isinstance(refusal, UnknownResource):
        headers["WWW-Authenticate"] = "Bearer"
    elif refusal.status == 401:
        headers["WWW-Authenticate"] = CHALLENGE_HEADER + _oauth_error(refusal)
    if isinstance(refusal, UseDpopNonce):
        headers[NONCE_HEADER] = refusal.nonce
    detail = {} if refusal.detail is None else {"detail": refusal.detail}
    return problem(
        refusal.slug, refusal.status, refusal.title, members={**detail, **refusal.members}, headers=headers
    )


def _oauth_error(refusal: RequestRefused) -> str:
    """What OAuth calls it (RFC 6750 §3.1, RFC 9449 §7.1 and §9, RFC 9470 §3)."""
    match refusal:
        case StepUpRequired():
            return ', error="insufficient_user_authentication"'
        case TokenInvalid(given=True):
            return ', error="invalid_token"'
        case UseDpopNonce():
            return ', error="use_dpop_nonce"'
        case ProofInvalid() | ProofClock():
            return ', error="invalid_dpop_proof"'
        case _:
            return ""


def cookie_name(config: Config) -> str:
    """Browsers take the ``__Host-`` prefix over TLS only, which nobody has on http://localhost."""
    return "__Host-session" if config.uses_tls else "session"


def set_cookie(config: Config, response: web.Response, value: str, *, lifetime: int) -> None:
    response.set_cookie(
        cookie_name(config),
        value,
        max_age=lifetime,
        path="/",
        secure=config.uses_tls,
        httponly=True,
        samesite="Lax",
    )
