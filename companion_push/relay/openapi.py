"""The relay's OpenAPI 3.1 description, made from the types that requests are parsed to, and from the list of endpoints.

docs/reference/relay-openapi.json is this description, committed; the relay serves it at ``/openapi.json`` with its own URL.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from companion_push.relay import answers, messages
from companion_push.relay.messages import MAX_WAIT
from companion_push.relay.problems import PROBLEM_TYPE, Slug, type_of
from headless_passkey.request import InvitationState

PATH: Final = "/openapi.json"
EXAMPLE_URL: Final = "https://push.example"
JSON: Final = "application/json"
PROBLEM_JSON: Final = "application/problem+json"
_REF: Final = "#/components/schemas/{name}"

_OF_ALL: Final = (
    Slug.INVALID_REQUEST, Slug.PROOF_INVALID, Slug.PROOF_CLOCK, Slug.USE_DPOP_NONCE, Slug.NOT_FOUND, Slug.ACCOUNT_CLOSED,
    Slug.ACCOUNT_SUSPENDED, Slug.RATE_LIMITED, Slug.DRAINING, Slug.STORE_UNAVAILABLE,
)  # fmt: skip
_OF_SIGN_IN: Final = (Slug.TOKEN_REFUSED, Slug.AUTHORITY_UNAVAILABLE)
_OF_INVITATIONS: Final = (Slug.STATE_CONFLICT, Slug.EXPIRED, Slug.WITHDRAWN)

_WAIT: Final = {"type": "integer", "minimum": 0, "maximum": MAX_WAIT}
_NUMBER: Final = {"type": "integer", "minimum": 0, "maximum": 1 << 32}
_CURSOR: Final = {"type": "string", "minLength": 1, "maxLength": 64}
_STATE: Final = {"enum": [str(state) for state in InvitationState]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint, as the description shows it."""

    method: str
    path: str
    summary: str
    body: type[msgspec.Struct] | None = None
    answers: Mapping[
        int, type[msgspec.Struct] | str
    ]  # by status: the body's type, or the media type of what is no JSON
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # schemas, by name
    problems: tuple[Slug, ...] = ()  # beside those of all
    is_open: bool = False  # to whoever has no proof


def _open(path: str, summary: str, what: type[msgspec.Struct] | str, *problems: Slug) -> Endpoint:
    return Endpoint(
        method="GET", path=path, summary=summary, answers={200: what}, problems=problems, is_open=True
    )


ENDPOINTS: Final = (
    _open("/livez", "Whether the process runs", answers.Healthy),
    _open(
        "/readyz",
        "Whether the relay can do its work",
        answers.Healthy,
        Slug.DRAINING,
        Slug.STORE_UNAVAILABLE,
    ),
    _open("/.well-known/companion-push-configuration", "How to speak to this relay", JSON),
    _open(PATH, "This description", JSON),
    _open("/problems", "All types of problems", "text/html"),
    _open("/problems/{slug}", "What a type of problem means, and what to do", "text/html", Slug.NOT_FOUND),
    Endpoint(
        method="POST",
        path="/v1/accounts",
        summary="Found an account with its one-time code",
        body=messages.Founding,
        answers={201: answers.Founded, 200: answers.Founded},
        problems=(
            Slug.BAD_RING,
            Slug.INVITATION_USED,
            Slug.EXPIRED,
            Slug.REQUEST_CONFLICT,
            Slug.ACCOUNT_EXISTS,
            *_OF_SIGN_IN,
            Slug.NOT_ALLOWED,
            Slug.SIGN_IN_TOO_OLD,
        ),
    ),
    Endpoint(
        method="GET",
        path="/v1/accounts/sign-in",
        summary="Read where a companion signs in",
        answers={200: answers.SignInWay},
    ),
    Endpoint(
        method="POST",
        path="/v1/accounts/mine",
        summary="Read which account belongs to who signed in",
        body=messages.TokenBody,
        answers={200: answers.AccountOf},
        problems=_OF_SIGN_IN,
    ),
    Endpoint(
        method="GET",
        path="/v1/ring",
        summary="Read the account's rings",
        answers={200: answers.Rings},
        query={"after": _NUMBER},
    ),
    Endpoint(
        method="POST",
        path="/v1/ring",
        summary="Append a ring",
        body=messages.RingBody,
        answers={201: answers.Head},
        problems=(Slug.BAD_RING, Slug.RING_CONFLICT, Slug.NOT_ALLOWED, Slug.AUTHORITY_UNAVAILABLE),
    ),
    Endpoint(
        method="POST",
        path="/v1/ring/links",
        summary="Hand in rings that the relay has lost",
        body=messages.LinksBody,
        answers={201: answers.Head},
        problems=(Slug.BAD_RING, Slug.RING_CONFLICT, Slug.NOT_ALLOWED, Slug.AUTHORITY_UNAVAILABLE),
    ),
    Endpoint(
        method="PUT",
        path="/v1/word",
        summary="Say as a companion which ring it holds",
        body=messages.WordBody,
        answers={200: answers.Nothing},
        problems=(Slug.UNKNOWN_RING,),
    ),
    Endpoint(
        method="POST",
        path="/v1/words/call",
        summary="Ask all companions for a word, as a device",
        answers={202: answers.Nothing},
        problems=(Slug.DEVICE_MUTED,),
    ),
    Endpoint(
        method="PUT",
        path="/v1/invitations/{id}",
        summary="Announce an invitation",
        body=messages.Announcement,
        answers={201: answers.Nothing, 200: answers.Nothing},
        problems=(Slug.REQUEST_CONFLICT, Slug.TOO_MANY_PENDING, Slug.EXPIRED, Slug.WITHDRAWN),
    ),
    Endpoint(
        method="GET",
        path="/v1/invitations/{id}",
        summary="Read an invitation as its inviter; held while it is in this state",
        answers={200: answers.InvitationStage},
        query={"state": _STATE, "wait": _WAIT},
        problems=_OF_INVITATIONS,
    ),
    Endpoint(
        method="DELETE",
        path="/v1/invitations/{id}",
        summary="Withdraw an invitation",
        answers={200: answers.Nothing},
        problems=_OF_INVITATIONS,
    ),
    Endpoint(
        method="POST",
        path="/v1/invitations/{id}/nonce",
        summary="Send the inviter's nonce",
        body=messages.NonceBody,
        answers={200: answers.Nothing},
        problems=_OF_INVITATIONS,
    ),
    Endpoint(
        method="POST",
        path="/v1/invitations/{id}/answer",
        summary="Answer an introduction",
        body=messages.AnswerBody,
        answers={200: answers.Nothing},
        problems=(*_OF_INVITATIONS, Slug.RING_CONFLICT),
    ),
    Endpoint(
        method="POST",
        path="/v1/introductions",
        summary="Use a ticket, as a newcomer",
        body=messages.IntroductionBody,
        answers={201: answers.Introduced, 200: answers.Introduced},
        problems=(*_OF_INVITATIONS, Slug.INVITATION_USED),
    ),
    Endpoint(
        method="GET",
        path="/v1/introductions/{id}",
        summary="Read an invitation as its newcomer; held while it is in this state",
        answers={200: answers.IntroductionStage},
        query={"state": _STATE, "wait": _WAIT},
        problems=_OF_INVITATIONS,
    ),
    Endpoint(
        method="POST",
        path="/v1/introductions/{id}/nonce",
        summary="Reveal the newcomer's nonce",
        body=messages.NonceBody,
        answers={200: answers.Nothing},
        problems=_OF_INVITATIONS,
    ),
    Endpoint(
        method="PUT",
        path="/v1/requests/{id}",
        summary="Submit a request, as a device",
        body=messages.Submission,
        answers={201: answers.RequestStatus, 200: answers.RequestStatus},
        problems=(
            Slug.UNKNOWN_RECIPIENT,
            Slug.DEVICE_MUTED,
            Slug.REQUEST_CONFLICT,
            Slug.TOO_MANY_PENDING,
        ),
    ),
    Endpoint(
        method="GET",
        path="/v1/requests/{id}",
        summary="Read a request as its device; held while it has this version",
        answers={200: answers.RequestStatus},
        query={"version": _NUMBER, "wait": _WAIT},
    ),
    Endpoint(
        method="POST",
        path="/v1/requests/{id}/events",
        summary="Report an event of a request, as its device",
        body=messages.DeviceReport,
        answers={200: answers.RequestStatus},
        problems=(Slug.STATE_CONFLICT, Slug.EXPIRED),
    ),
    Endpoint(
        method="GET",
        path="/v1/inbox",
        summary="Read a companion's inbox; held while nothing has changed since the cursor",
        answers={200: answers.Inbox},
        query={"cursor": _CURSOR, "wait": _WAIT},
    ),
    Endpoint(
        method="GET",
        path="/v1/inbox/stream",
        summary="Follow a companion's inbox, as Server-Sent Events",
        answers={200: "text/event-stream"},
        query={"cursor": _CURSOR},
    ),
    Endpoint(
        method="POST",
        path="/v1/inbox/{device}/{id}/events",
        summary="Report an event of a request, as a companion",
        body=messages.CompanionReport,
        answers={200: answers.EventTaken},
        problems=(Slug.ALREADY_CLAIMED, Slug.STATE_CONFLICT, Slug.EXPIRED, Slug.UNKNOWN_RING),
    ),
    Endpoint(
        method="GET",
        path="/v1/mutes",
        summary="Read which devices are muted, as a companion",
        answers={200: answers.Mutes},
    ),
    Endpoint(
        method="PUT",
        path="/v1/mutes/{device}",
        summary="Mute a device, as a companion",
        answers={201: answers.Nothing, 200: answers.Nothing},
    ),
    Endpoint(
        method="DELETE",
        path="/v1/mutes/{device}",
        summary="End the mute of a device, as a companion",
        answers={200: answers.Nothing},
    ),
    Endpoint(
        method="GET",
        path="/v1/channels",
        summary="Read the channels by which a companion is woken, and what this relay offers",
        answers={200: answers.Channels},
    ),
    Endpoint(
        method="PUT",
        path="/v1/channels/{id}",
        summary="Register or confirm a channel",
        body=messages.ChannelBody,
        answers={201: answers.Nothing, 200: answers.Nothing},
        problems=(Slug.UNSUPPORTED_CHANNEL, Slug.TOO_MANY_CHANNELS),
    ),
    Endpoint(
        method="DELETE",
        path="/v1/channels/{id}",
        summary="Remove a channel",
        answers={200: answers.Nothing},
    ),
    Endpoint(
        method="POST",
        path="/v1/channels/{id}/test",
        summary="Push a test to one of one's own channels",
        answers={200: answers.Tested},
    ),
)


def describe(url: str = EXAMPLE_URL) -> dict[str, Any]:
    """Make the description of the relay at `url`."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Companion push relay",
            "version": "1",
            "description": "Carries sealed requests from devices to companions, and opens none. Byte strings are base64url"
            " without padding; times are Unix seconds; clients ignore members that they do not know.",
        },
        "servers": [{"url": url}],
        "paths": paths,
        "components": {
            "schemas": {**_schemas(), "Problem": _PROBLEM},
            "securitySchemes": {
                "proof": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "DPoP",
                    "description": "A proof of possession of the caller's key for this very request (RFC 9449), with the newest"
                    " nonce of the header DPoP-Nonce.",
                }
            },
        },
    }


_PROBLEM: Final = {
    "title": "Problem",
    "description": "A problem document (RFC 9457). Its other members are for programs.",
    "type": "object",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"enum": ["about:blank", *(f"{PROBLEM_TYPE}{slug}" for slug in sorted(Slug))]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "retry_after": {"type": "integer", "minimum": 0},
    },
}


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    name = "".join(
        word.strip("{}").replace(".well-known", "").title().replace("-", "")
        for word in endpoint.path.removeprefix("/v1").split("/")
    )
    operation: dict[str, Any] = {
        "operationId": endpoint.method.lower() + name.replace(".", ""),
        "summary": endpoint.summary,
        "security": [] if endpoint.is_open else [{"proof": []}],
    }
    parameters = [
        {"name": word[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
        for word in endpoint.path.split("/")
        if word.startswith("{")
    ]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in endpoint.query.items()]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        content = {JSON: {"schema": {"$ref": _REF.format(name=endpoint.body.__name__)}}}
        operation["requestBody"] = {"required": True, "content": content}
    operation["responses"] = _responses(endpoint)
    return operation


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status, body in endpoint.answers.items():
        media, schema = (
            (body, {}) if isinstance(body, str) else (JSON, {"$ref": _REF.format(name=body.__name__)})
        )
        found[str(status)] = {"description": "Done", "content": {media: {"schema": schema}}}
    slugs = {*endpoint.problems, *(() if endpoint.is_open else _OF_ALL)}
    if endpoint.body is not None:
        slugs.add(Slug.PAYLOAD_TOO_LARGE)
        found["415"] = _problem("The body is compressed")
    for status in sorted({type_of(slug).status for slug in slugs}):
        named = sorted(slug for slug in slugs if type_of(slug).status == status)
        found[str(status)] = _problem(", ".join(named))
    return dict(sorted(found.items()))


def _problem(description: str) -> dict[str, Any]:
    content = {PROBLEM_JSON: {"schema": {"$ref": _REF.format(name="Problem")}}}
    return {"description": description, "content": content}


def _schemas() -> dict[str, Any]:
    types: dict[type[msgspec.Struct], None] = {}
    for endpoint in ENDPOINTS:
        for one in (endpoint.body, *endpoint.answers.values()):
            if one is not None and not isinstance(one, str):
                types[one] = None
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    return dict(sorted(components.items()))
