"""No endpoint has a weaker way in than a passkey whose user was verified (T15).

The endpoints come from the application's router, so that a new one is looked at too.
"""

import json
import secrets
from collections.abc import Mapping
from typing import Any, Final

import pytest

from tests.rp.authenticator_double import BE, BS, UP, UV, ES256Key, Faults, Passkey, b64, create, get
from tests.rp.clients import WEB_ORIGIN, Answer, Browser, Device, Site, Who

pytestmark = pytest.mark.threat("T15")

# what else than a passkey has ever let somebody in: (headers, body)
WEAKER: Final[Mapping[str, tuple[dict[str, str], dict[str, Any]]]] = {
    "nothing": ({}, {}),
    "a user name": ({}, {"user_name": "ada", "username": "ada", "user": "ada"}),
    "a password": ({}, {"user_name": "ada", "username": "ada", "password": "ada"}),
    "basic": ({"Authorization": "Basic YWRhOmFkYQ=="}, {}),
    "a bearer token": ({"Authorization": f"Bearer {'A' * 43}"}, {}),
    "a code": ({}, {"user_name": "ada", "code": "123456", "otp": "123456", "recovery_code": "123456"}),
    "a mail address": ({}, {"email": "ada@rp.example", "reset": True}),
    "a made-up cookie": ({"Cookie": f"__Host-session={'A' * 43}; session={'A' * 43}"}, {}),
    "a proxy's word": ({"X-Remote-User": "ada", "X-Forwarded-User": "ada", "Remote-User": "ada"}, {}),
    "a certificate's word": ({"X-SSL-Client-Verify": "SUCCESS", "X-SSL-Client-S-DN": "CN=ada"}, {}),
    "another method": ({"X-HTTP-Method-Override": "GET"}, {"_method": "GET"}),
}
OPEN_SESSIONS: Final = {
    ("POST", "/webauthn/registration/result"),
    ("POST", "/webauthn/authentication/result"),
    ("POST", "/webauthn/step-up/result"),
    ("POST", "/session/refresh"),
}


def endpoints(site: Site) -> list[tuple[str, str]]:
    """Every method and path of the router; a variable part is filled in."""
    found = set()
    for route in site.app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        for name in ("{id}", "{name}"):
            path = path.replace(name, "AAAA")
        assert "{" not in path, f"{path}: fill in its variable part here"
        methods = ("GET", "POST", "PUT", "PATCH", "DELETE") if route.method == "*" else (route.method,)
        found |= {(method, path) for method in methods}
    return sorted(found)


def lets_in(answer: Answer) -> bool:
    """Whether an answer holds what opens a session."""
    held = json.dumps(answer.body) if not isinstance(answer.body, dict) else answer.body
    tokens = isinstance(held, dict) and any(
        held.get(name) for name in ("token", "refresh_token", "access_token")
    )
    return tokens or any(value for value in answer.cookies.values())


@pytest.mark.parametrize(("headers", "body"), WEAKER.values(), ids=WEAKER)
async def test_no_endpoint_lets_anybody_in_without_a_passkey(
    site: Site, headers: dict[str, str], body: dict[str, Any]
) -> None:
    await site.register(Browser(), "ada")
    looked_at = endpoints(site)
    assert set(looked_at) >= OPEN_SESSIONS
    for method, path in looked_at:
        for who in (Browser(), Device()):
            own = who.headers(method, path, site.clock.now) | headers
            data = None if method in ("GET", "HEAD") else json.dumps(body).encode()
            for query in ("", "?user=ada&user_name=ada&token=AAAA&password=ada"):
                answer = await site.raw(method, path + query, own, data)
                assert not lets_in(answer), f"{method} {path}{query} as {who}"
                assert answer.status < 500
                if (method, path) in OPEN_SESSIONS:
                    assert answer.status >= 400
                own = who.headers(method, path, site.clock.now) | headers


async def test_whoever_is_not_signed_in_is_nobody_at_every_endpoint(site: Site) -> None:
    """What an endpoint shows to a stranger holds no user's handle, session or passkey."""
    passkey, _ = await site.register(Browser(), "ada")
    for method, path in endpoints(site):
        for who in (Browser(), Device()):
            body = None if method in ("GET", "HEAD") else b"{}"
            answer = await site.raw(method, path, who.headers(method, path, site.clock.now), body)
            shown = json.dumps(answer.body)
            assert b64(passkey.user_handle) not in shown
            assert b64(passkey.credential_id) not in shown


@pytest.mark.parametrize("kind", [Browser, Device], ids=["browser", "device"])
@pytest.mark.parametrize(
    "flags", [UP, UP | BE | BS, UV, UV | BE | BS, 0], ids=["UP", "UP BE BS", "UV", "UV BE BS", "none"]
)
async def test_a_passkey_whose_user_was_not_verified_is_none(site: Site, kind: type[Who], flags: int) -> None:
    who = kind()
    weak = Faults(flags=flags)
    _, refused = await site.register(kind(), "eve", weak)
    assert (refused.status, lets_in(refused)) == (403, False)
    passkey, _ = await site.register(who, "ada")
    refused = await site.sign_in(kind(), passkey, weak)
    assert (refused.status, lets_in(refused)) == (403, False)


@pytest.mark.parametrize("kind", [Browser, Device], ids=["browser", "device"])
async def test_options_ask_nothing_weaker_of_the_authenticator_whoever_asks_for_it(
    site: Site, kind: type[Who]
) -> None:
    for wish in ({"user_verification": "discouraged"}, {"userVerification": "discouraged"}, {"uv": False}):
        for ceremony, body in (("authentication", {}), ("registration", {"user_name": "ada"})):
            answer = await site.send(kind(), "POST", f"/webauthn/{ceremony}/options", {**body, **wish})
            assert answer.status == 400
    _, options = await site.begin(kind(), "authentication")
    assert options["userVerification"] == "required"
    _, options = await site.begin(kind(), "registration", user_name="ada")
    assert options["authenticatorSelection"]["userVerification"] == "required"


async def test_a_ceremony_is_no_other_and_a_response_no_other_kind(site: Site) -> None:
    who = Browser()
    passkey, _ = await site.register(who, "ada")
    made, creation = await site.begin(Browser(), "registration", user_name="eve")
    asked, request = await site.begin(Browser(), "authentication")
    _, attestation = create(creation, WEB_ORIGIN)
    assertion = get(passkey, request, WEB_ORIGIN)
    for ceremony, name, response in (
        ("authentication", made, attestation),
        ("authentication", asked, attestation),
        ("authentication", made, assertion),
        ("registration", asked, assertion),
        ("registration", made, assertion),
        ("step-up", asked, assertion),
    ):
        answer = await site.finish(Browser(), ceremony, name, response)
        assert answer.status in (400, 401, 403, 409, 422), (ceremony, answer.body)
        assert not lets_in(answer)


async def test_a_passkey_of_nobody_here_lets_nobody_in(site: Site) -> None:
    await site.register(Browser(), "ada")
    unknown = Passkey(rp_id="rp.example", user_handle=secrets.token_bytes(16), key=ES256Key())
    answer = await site.sign_in(Browser(), unknown)
    assert answer.status >= 400
    assert not lets_in(answer)
