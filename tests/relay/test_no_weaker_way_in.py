"""No endpoint of the relay takes anything else than a proof of a member's key (T15).

The endpoints come from the application's router, so that a new one is looked at too.
"""

import secrets
from collections.abc import Mapping
from typing import Final

import pytest

from tests.relay.household import Household, Relay
from tests.trust.people import device

pytestmark = pytest.mark.threat("T15")

OPEN: Final = {  # the same for everybody
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/.well-known/companion-push-configuration"),
    ("GET", "/openapi.json"),
    ("GET", "/problems"),
    ("GET", "/problems/{slug}"),
}
WITHOUT_AN_ACCOUNT: Final = {  # a code, a ticket or an ID admits there; the proof is asked for all the same
    ("POST", "/v1/accounts"),
    ("POST", "/v1/introductions"),
    ("GET", "/v1/introductions/{id}"),
}
WEAKER: Final[Mapping[str, dict[str, str]]] = {
    "nothing": {},
    "basic": {"Authorization": "Basic YWxpY2U6YWxpY2U="},
    "a bearer token": {"Authorization": f"Bearer {'A' * 43}"},
    "a cookie": {"Cookie": f"session={'A' * 43}"},
    "a proxy's word": {"X-Remote-User": "alice", "X-Forwarded-User": "alice"},
    "a proof that is none": {"DPoP": "e30.e30.AA"},
}


def endpoints(relay: Relay) -> list[tuple[str, str]]:
    found = set()
    for route in relay.app.router.routes():
        assert route.resource is not None
        found.add((route.method, route.resource.canonical))
    return sorted(found - OPEN)


def filled(path: str, home: Household) -> str:
    return path.replace("{id}", "A" * 22).replace("{device}", home.devices[0].name)


@pytest.mark.parametrize("headers", WEAKER.values(), ids=WEAKER)
async def test_every_endpoint_asks_for_a_proof_of_a_key(
    relay: Relay, home: Household, headers: dict[str, str]
) -> None:
    for method, path in endpoints(relay):
        url = relay.url + filled(path, home)
        body = None if method in ("GET", "DELETE") else {"name": home.companions[0].name}
        async with relay.session.request(method, url, headers=headers, json=body) as response:
            assert response.status == 401, f"{method} {path}"
            assert not response.cookies


async def test_a_key_of_no_member_is_nobody_at_every_endpoint(relay: Relay, home: Household) -> None:
    stranger = relay.caller(device(f"stranger {secrets.token_hex(2)}"))
    for method, path in endpoints(relay):
        reply = await stranger.call(method, filled(path, home), None if method in ("GET", "DELETE") else {})
        assert reply.status in (400, 403, 404), f"{method} {path}: {reply}"
        if reply.status == 400:  # the body is looked at first, and nothing is said of the account
            assert reply.problem == "invalid-request"
        assert (method, path) not in WITHOUT_AN_ACCOUNT or reply.problem in ("invalid-request", "not-found")
