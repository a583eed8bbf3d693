"""What anybody may read about the relay, without a proof: how to speak to it, and what its problems mean.

The documents are the same for everybody, follow from settings and code alone, and may be cached: with an ETag, so that
asking again costs no body.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Final

import msgspec
from aiohttp import ETag, hdrs, web

from companion_push.relay import openapi, problem_pages
from companion_push.relay.config import RelayConfig
from companion_push.relay.messages import MAX_BODY, MAX_LINKS, MAX_SEALED, MAX_WAIT
from companion_push.relay.problems import PROBLEM_TYPE, Problem, Slug
from companion_push.relay.proofs import SKEW
from headless_passkey.trust.ring import MAX_COMPANIONS

CONFIGURATION: Final = "/.well-known/companion-push-configuration"
PROBLEMS: Final = "/problems"
SECONDS: Final = 300  # for which a copy is good: a relay that was set otherwise is so for all then


class PublicDocuments:
    """The documents of one relay. `features` is the one place where a feature that a relay may lack registers itself."""

    def __init__(self, config: RelayConfig) -> None:
        self._config = config
        self.features: dict[str, Mapping[str, Any]] = {}  # by name: what a client must know to use it

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(CONFIGURATION, self.read_configuration, allow_head=False),
            web.get(openapi.PATH, self.read_openapi, allow_head=False),
            web.get(PROBLEMS, self.list_problems, allow_head=False),
            web.get(PROBLEMS + "/{slug}", self.read_problem, allow_head=False),
        ]

    async def read_configuration(self, request: web.Request) -> web.Response:
        body = msgspec.json.encode(self.configuration(request.app.router.routes()))
        return _cached(request, body, "application/json")

    async def read_openapi(self, request: web.Request) -> web.Response:
        return _cached(request, self._description, "application/json")

    @cached_property
    def _description(self) -> bytes:
        """The OpenAPI description. Making it takes milliseconds, and strangers may ask as often as they like."""
        return msgspec.json.encode(openapi.describe(self._config.public_url))

    async def list_problems(self, request: web.Request) -> web.Response:
        return _page(request, problem_pages.index())

    async def read_problem(self, request: web.Request) -> web.Response:
        try:
            slug = Slug(request.match_info["slug"])
        except ValueError:
            raise Problem(Slug.NOT_FOUND) from None
        return _page(request, problem_pages.page(slug))

    def configuration(self, routes: Iterable[web.AbstractRoute]) -> dict[str, Any]:
        """How to speak to this relay: endpoints, limits, features. Limits of network addresses are told to nobody."""
        config = self._config
        url, quota = config.public_url, config.quota
        return {
            "public_url": url,
            "versions": ["v1"],
            "endpoints": _endpoints(url, routes),
            "proofs": {"type": "dpop+jwt", "algorithms": ["ES256"], "nonce": True, "clock_skew": SKEW},
            "limits": {
                "body_bytes": MAX_BODY,
                "envelopes": MAX_COMPANIONS,
                "envelope_bytes": MAX_SEALED,
                "rings_handed_in": MAX_LINKS,
                "wait_seconds": MAX_WAIT,
                "held_calls": config.held_per_member,
                "request_seconds": config.ceiling,
                "lease_seconds": config.lease,
                "pending_requests": quota.pending,
                "requests_of_device": [_rate(rate) for rate in quota.rates],
                "requests_of_account": [_rate(rate) for rate in quota.account_rates],
                # after so many requests in a row that nobody has approved
                "pauses_of_device": [_rate(rung) for rung in config.ladder.device],
                "pauses_of_account": [_rate(rung) for rung in config.ladder.account],
            },
            "features": dict(sorted(self.features.items())),
            "openapi": url + openapi.PATH,
            "problems": {"type": PROBLEM_TYPE + "{slug}", "page": f"{url}{PROBLEMS}/{{slug}}"},
        }


def _endpoints(url: str, routes: Iterable[web.AbstractRoute]) -> dict[str, list[str]]:
    """The methods of each endpoint, by the template of its URL."""
    found: dict[str, list[str]] = {}
    for route in routes:
        assert route.resource is not None  # noqa: S101  for mypy: only the route of a 404 has none
        _, version, path = route.resource.canonical.rpartition("/v1/")  # below the prefix of a host
        if version:
            found.setdefault(f"{url}{version}{path}", []).append(route.method)
    return {path: sorted(methods) for path, methods in sorted(found.items())}


def _rate(rate: Any) -> dict[str, float]:
    return {"count": rate.count, "seconds": rate.seconds}


def _page(request: web.Request, text: str) -> web.Response:
    response = _cached(request, text.encode(), problem_pages.CONTENT_TYPE)
    response.headers["Content-Security-Policy"] = problem_pages.POLICY
    return response


def _cached(request: web.Request, body: bytes, content_type: str) -> web.Response:
    """An answer that caches may keep; 304 without a body for who has it already (RFC 9110 §13)."""
    etag = hashlib.sha256(body).hexdigest()[:32]
    known = request.if_none_match or ()
    fresh = any(one.value in (etag, "*") for one in known)
    response = (
        web.Response(status=304)
        if fresh
        else web.Response(body=body, content_type=content_type, charset="utf-8")
    )
    response.etag = ETag(value=etag)
    response.headers[hdrs.CACHE_CONTROL] = f"public, max-age={SECONDS}"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
