"""A service of its own that takes a device's access tokens: what its guard lets through, and what it does not.

Relying party and resource server are two applications that talk over loopback; clocks stand still and are moved.
"""

import asyncio
import errno
import hmac
import io
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

import pytest
import resource_server
from aiohttp import DummyCookieJar, web
from aiohttp.test_utils import TestClient, TestServer
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc import jwt
from joserfc.jwk import ECKey

from relying_party import serving
from relying_party.core.access_tokens import TokenKey
from relying_party.core.sessions import LATE_SECONDS, Lifetimes
from relying_party.errors import IssuerUnavailable, SetupError, UsageError
from relying_party.http.app import make_app
from relying_party.resource import ACCESS, KEYS_PAUSE, Guard, Introspection, Keys, Verify
from tests.ports import reserved_port
from tests.rp.authenticator_double import DeviceKey, b64
from tests.rp.clients import WEB_ORIGIN, Answer, Browser, Clock, Device, Site, make_config
from tests.test_servers import PATIENCE

RESOURCE = "https://api.example"
SECRET = "correct-horse-battery-staple-0123456789"
ADDRESS = "/notes/%C3%A4/today?all=1"
HTU = f"{RESOURCE}/notes/%C3%A4/today"


@dataclass
class Services:
    """A relying party, and a service that takes its tokens."""

    site: Site
    api: TestClient[web.Request, web.Application]
    guard: Guard
    key: TokenKey

    async def ask(
        self,
        device: Device,
        *,
        token: str | None = None,
        scheme: str = "DPoP",
        method: str = "GET",
        **proof: Any,
    ) -> Answer:
        """One request with the device's token and a new proof."""
        token = device.token if token is None else token
        made: dict[str, Any] = {
            "method": method,
            "url": HTU,
            "now": self.site.clock.now,
            "token": token,
            "nonce": self.nonce,
        }
        made |= proof
        return await self.raw(
            {"Authorization": f"{scheme} {token}", "DPoP": device.key.proof(**made)}, method
        )

    @property
    def nonce(self) -> str:
        """The guard's newest nonce."""
        return str(self.guard._used_proofs.nonce(now=self.site.clock.now))  # type: ignore[attr-defined]

    async def raw(self, headers: Any, method: str = "GET") -> Answer:
        async with self.api.request(method, ADDRESS, headers=headers) as response:
            return Answer(
                status=response.status,
                headers=response.headers,
                body=await response.json(content_type=None),
                cookies={},
            )

    async def signed_in(self) -> tuple[Device, str]:
        device = Device()
        _, answer = await self.site.register(device, "ada")
        return device, answer.body["refresh_token"]

    def forge(self, device: Device, *, key: ECKey | None = None, header: Any = None, **claims: Any) -> str:
        """A token like the relying party's, but for what is given."""
        said = {
            "iss": WEB_ORIGIN, "sub": "AAAA", "aud": [RESOURCE], "client_id": device.key.thumbprint,
            "exp": int(self.site.clock.now) + 60, "iat": int(self.site.clock.now), "jti": "x" * 22,
            "auth_time": int(self.site.clock.now), "cnf": {"jkt": device.key.thumbprint}, **claims,
        }  # fmt: skip
        head = {"typ": "at+jwt", "alg": "ES256", "kid": self.key.name, **(header or {})}
        return jwt.encode(head, {k: v for k, v in said.items() if v is not None}, key or self.key.key)


async def me(request: web.Request) -> web.Response:
    access = request[ACCESS]
    return web.json_response(
        {"subject": access.subject, "key": access.key_thumbprint, "auth_time": access.auth_time}
    )


async def gone(_: web.Request) -> web.Response:
    raise web.HTTPGone


@asynccontextmanager
async def services(folder: Path, *, signed: bool, **changes: Any) -> AsyncIterator[Services]:
    clock, key = Clock(), TokenKey.load(folder / "token-key.pem")
    config = make_config(
        folder / "rp.sqlite",
        resources=(RESOURCE,),
        resource_secrets={RESOURCE: SECRET},
        token_keys=(key,) if signed else (),
        **changes,
    )
    app = make_app(config, clock=clock)
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        verify: Verify = (
            Keys(jwks_uri=str(http.make_url("/jwks.json")))
            if signed
            else Introspection(endpoint=str(http.make_url("/introspect")), secret=SECRET)
        )
        guard = Guard(resource=RESOURCE, issuer=WEB_ORIGIN, verify=verify, clock=clock)
        async with TestClient(TestServer(guarded(guard))) as api:
            yield Services(
                site=Site(http=http, app=app, clock=clock, config=config), api=api, guard=guard, key=key
            )


def guarded(guard: Guard) -> web.Application:
    service = web.Application(middlewares=[guard.middleware])
    service.cleanup_ctx.append(guard.opened)
    service.router.add_route("*", "/notes/{name}/today", me)
    service.router.add_get("/gone", gone)
    return service


@pytest.fixture(params=["introspection", "keys"])
async def both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Services]:
    """Either way of verifying in turn."""
    async with services(tmp_path, signed=request.param == "keys") as running:
        yield running


@pytest.fixture
async def keys(tmp_path: Path) -> AsyncIterator[Services]:
    async with services(tmp_path, signed=True) as running:
        yield running


@pytest.fixture
async def introspection(tmp_path: Path) -> AsyncIterator[Services]:
    async with services(tmp_path, signed=False) as running:
        yield running


# Whom it lets through


async def test_a_device_is_known_by_its_token_and_its_key(both: Services) -> None:
    device, _ = await both.signed_in()
    answer = await both.ask(device)
    assert answer.status == 200, answer.body
    session = (await both.site.send(device, "GET", "/session")).body
    assert answer.body == {
        "subject": session["user"]["handle"],
        "key": device.key.thumbprint,
        "auth_time": session["auth_time"],
    }
    assert session["audience"] == [RESOURCE]
    assert (await both.ask(device, method="POST")).status == 200


async def test_the_token_of_a_refresh_is_good_too(both: Services) -> None:
    device, refresh_token = await both.signed_in()
    answer = await both.site.send(device, "POST", "/session/refresh", {"refresh_token": refresh_token})
    assert answer.body["audience"] == [RESOURCE]
    assert (await both.ask(device)).status == 200


async def test_a_proof_may_spell_the_address_in_another_way_that_means_the_same(both: Services) -> None:
    device, _ = await both.signed_in()
    for same in ("HTTPS://API.example:443/notes/%c3%a4/today", "https://api.example/note%73/%C3%A4/today"):
        assert (await both.ask(device, url=same)).status == 200


async def test_a_service_of_several_addresses_takes_a_proof_for_each(tmp_path: Path) -> None:
    async with services(tmp_path, signed=True) as running:
        device, _ = await running.signed_in()
        assert (await running.ask(device, url=HTU.replace("api.", "alias."))).slug == "proof-invalid"
        verify = Keys(jwks_uri=str(running.site.http.make_url("/jwks.json")))
        both = Guard(
            resource=RESOURCE, urls=("https://alias.example",), issuer=WEB_ORIGIN, verify=verify,
            clock=running.site.clock,
        )  # fmt: skip
        async with TestClient(TestServer(guarded(both))) as api:
            running.api, running.guard = api, both
            for url in (HTU, HTU.replace("api.", "alias.")):
                assert (await running.ask(device, url=url)).status == 200
            assert (await running.ask(device, url=HTU.replace("api.", "other."))).slug == "proof-invalid"


# What it refuses


@pytest.mark.threat("T13")
@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "https://api.example/notes/%C3%A4/tomorrow"},
        {"url": "https://api.example/notes/%C3%A4%2Ftoday"},
        {"url": "https://evil.example/notes/%C3%A4/today"},
        {"url": HTU + "?all=1"},
        {"method": "POST"},
        {"token": "another"},
        {"token": None},
    ],
    ids=["path", "slash", "host", "query", "method", "another-token", "no-token"],
)
async def test_a_proof_for_something_else_is_refused(both: Services, wrong: dict[str, Any]) -> None:
    device, _ = await both.signed_in()
    made = {"method": "GET", "url": HTU, "now": both.site.clock.now, "token": device.token, **wrong}
    answer = await both.raw({"Authorization": f"DPoP {device.token}", "DPoP": device.key.proof(**made)})
    assert (answer.status, answer.slug) == (401, "proof-invalid")
    assert answer.headers["WWW-Authenticate"] == 'DPoP algs="ES256", error="invalid_dpop_proof"'


@pytest.mark.threat("T5")
async def test_a_proof_is_taken_once(both: Services) -> None:
    device, _ = await both.signed_in()
    proof = device.key.proof("GET", HTU, both.site.clock.now, device.token, nonce=both.nonce)
    headers = {"Authorization": f"DPoP {device.token}", "DPoP": proof}
    assert (await both.raw(headers)).status == 200
    assert (await both.raw(headers)).slug == "proof-invalid"


@pytest.mark.threat("T13")
async def test_a_proof_without_the_guards_nonce_is_answered_with_it(both: Services) -> None:
    device, _ = await both.signed_in()
    answer = await both.ask(device, nonce=None)
    assert (answer.status, answer.slug) == (401, "use-dpop-nonce")
    assert answer.headers["WWW-Authenticate"] == 'DPoP algs="ES256", error="use_dpop_nonce"'
    nonce = answer.headers["DPoP-Nonce"]
    answer = await both.ask(device, nonce=nonce)
    assert (answer.status, answer.headers["DPoP-Nonce"]) == (200, nonce)


@pytest.mark.threat("T13")
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/notes/%C3%A4/today", 200),
        ("GET", "/gone", 410),
        ("GET", "/nowhere", 404),
        ("PUT", "/gone", 405),
    ],
)
async def test_every_answer_to_an_admitted_request_has_the_newest_nonce(
    introspection: Services, method: str, path: str, status: int
) -> None:
    device, _ = await introspection.signed_in()
    nonce, site = introspection.nonce, introspection.site
    site.clock.now += 300  # the next step
    proof = device.key.proof(method, RESOURCE + path, site.clock.now, device.token, nonce=nonce)
    headers = {"Authorization": f"DPoP {device.token}", "DPoP": proof}
    async with introspection.api.request(method, path, headers=headers) as answer:
        assert (answer.status, answer.headers["DPoP-Nonce"]) == (status, introspection.nonce)
    assert introspection.nonce != nonce


@pytest.mark.threat("T13")
async def test_a_proof_made_ahead_is_refused_at_its_time_for_want_of_a_nonce(introspection: Services) -> None:
    device, _ = await introspection.signed_in()
    later = introspection.site.clock.now + 1200
    ahead = device.key.proof("GET", HTU, later, device.token, nonce=introspection.nonce)
    introspection.site.clock.now = later
    headers = {"Authorization": f"DPoP {device.token}", "DPoP": ahead}
    assert (await introspection.raw(headers)).slug == "use-dpop-nonce"


@pytest.mark.threat("T13")
async def test_who_has_no_good_token_fills_no_memory(both: Services) -> None:
    await both.ask(Device(DeviceKey(), "x"))
    assert both.guard._used_proofs._step.used == 0  # type: ignore[attr-defined]


@pytest.mark.threat("T5")
@pytest.mark.parametrize("off", [-61, 61])
async def test_a_proof_of_another_time_is_refused_with_our_time(both: Services, off: int) -> None:
    device, _ = await both.signed_in()
    answer = await both.ask(device, now=both.site.clock.now + off)
    assert (answer.status, answer.slug) == (401, "proof-clock")
    assert answer.body["now"] == int(both.site.clock.now)


@pytest.mark.threat("T13")
async def test_a_token_is_worth_nothing_with_another_key(both: Services) -> None:
    device, _ = await both.signed_in()
    answer = await both.ask(Device(DeviceKey(), device.token))
    assert (answer.status, answer.slug) == (401, "token-invalid")
    assert answer.headers["WWW-Authenticate"] == 'DPoP algs="ES256", error="invalid_token"'


@pytest.mark.threat("T13")
@pytest.mark.parametrize("scheme", ["Bearer", "Basic", ""])
async def test_a_token_is_not_taken_as_another_kind(both: Services, scheme: str) -> None:
    device, _ = await both.signed_in()
    assert (await both.ask(device, scheme=scheme)).slug == "token-invalid"


async def test_who_sends_no_token_is_told_how_without_an_error(both: Services) -> None:
    answer = await both.raw({})
    assert (answer.status, answer.slug) == (401, "token-invalid")
    assert answer.headers["WWW-Authenticate"] == 'DPoP algs="ES256"'


@pytest.mark.parametrize("count", [0, 2])
async def test_there_is_one_proof(both: Services, count: int) -> None:
    device, _ = await both.signed_in()
    proofs = [("DPoP", device.key.proof("GET", HTU, both.site.clock.now, device.token)) for _ in range(count)]
    assert (await both.raw([("Authorization", f"DPoP {device.token}"), *proofs])).slug == "proof-invalid"


@pytest.mark.threat("T13")
async def test_what_is_no_token_of_ours_is_refused(both: Services) -> None:
    device, refresh_token = await both.signed_in()
    browser = Browser()
    await both.site.register(browser, "grace")
    assert browser.cookie
    for token in ("x", "a.b.c", "..", "a" * 4097, refresh_token, browser.cookie, b64(bytes(32))):
        answer = await both.ask(device, token=token)
        assert (answer.status, answer.slug) == (401, "token-invalid"), token[:20]


@pytest.mark.threat("T13")
async def test_a_token_ends_in_time(tmp_path: Path) -> None:
    for signed in (True, False):
        folder = tmp_path / str(signed)
        folder.mkdir()
        async with services(folder, signed=signed, lifetimes=Lifetimes(token=100)) as running:
            device, _ = await running.signed_in()
            running.site.clock.now += 99
            assert (await running.ask(device)).status == 200
            running.site.clock.now += 1
            assert (await running.ask(device)).slug == "token-invalid"


async def test_a_session_that_is_over_is_over_at_once_where_the_relying_party_is_asked(
    introspection: Services,
) -> None:
    device, _ = await introspection.signed_in()
    assert (await introspection.ask(device)).status == 200
    assert (await introspection.site.send(device, "DELETE", "/session")).status == 204
    assert (await introspection.ask(device)).slug == "token-invalid"


async def test_a_token_that_others_verify_lasts_to_its_end(keys: Services) -> None:
    device, _ = await keys.signed_in()
    assert (await keys.site.send(device, "DELETE", "/session")).status == 204
    assert (await keys.ask(device)).status == 200


# Tokens that are verified with keys (RFC 9068)


async def test_a_signed_token_says_what_the_rfc_asks_for(keys: Services) -> None:
    device, _ = await keys.signed_in()
    assert device.token is not None
    token = jwt.decode(device.token, keys.key.key, algorithms=["ES256"])
    assert token.header == {"typ": "at+jwt", "alg": "ES256", "kid": keys.key.name}
    now = int(keys.site.clock.now)
    assert len(token.claims.pop("jti")) == 22
    assert len(token.claims.pop("sub")) == 43
    assert token.claims == {
        "iss": WEB_ORIGIN,
        "aud": [RESOURCE],
        "client_id": device.key.thumbprint,
        "exp": now + 12 * 3600,
        "iat": now,
        "auth_time": now,
        "cnf": {"jkt": device.key.thumbprint},
    }


def _with_header(token: str, header: dict[str, Any]) -> str:
    return ".".join((b64(json.dumps(header).encode()), *token.split(".")[1:]))


def _hmac(all_: Services, device: Device) -> str:
    """The public key as an HMAC secret: what a verifier falls for that takes any algorithm."""
    header, claims, _ = _with_header(
        all_.forge(device), {"typ": "at+jwt", "alg": "HS256", "kid": all_.key.name}
    ).split(".")
    mac = hmac.digest(all_.key.key.as_pem(private=False), f"{header}.{claims}".encode(), "sha256")
    return f"{header}.{claims}.{b64(mac)}"


def _critical(all_: Services, device: Device) -> str:
    """Well signed, with an extension that whoever verifies must understand."""
    header: dict[str, Any] = {
        "typ": "at+jwt",
        "alg": "ES256",
        "kid": all_.key.name,
        "crit": ["exp"],
        "exp": 1,
    }
    signed = _with_header(all_.forge(device), header).rpartition(".")[0]
    private = all_.key.key.get_op_key("sign")
    r, s = decode_dss_signature(private.sign(signed.encode(), ec.ECDSA(SHA256())))
    return f"{signed}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


Fault = Callable[[Services, Device], str]
FAULTS: dict[str, Fault] = {
    "another-issuer": lambda all_, device: all_.forge(device, iss="https://evil.example"),
    "issuer-with-a-path": lambda all_, device: all_.forge(device, iss=WEB_ORIGIN + "/x"),
    "another-audience": lambda all_, device: all_.forge(device, aud=["https://other.example"]),
    "audience-with-a-path": lambda all_, device: all_.forge(device, aud=RESOURCE + "/x"),
    "no-audience": lambda all_, device: all_.forge(device, aud=None),
    "ended": lambda all_, device: all_.forge(device, exp=int(all_.site.clock.now)),
    "no-end": lambda all_, device: all_.forge(device, exp=None),
    "end-is-text": lambda all_, device: all_.forge(device, exp="9999999999"),
    "not-yet": lambda all_, device: all_.forge(device, nbf=int(all_.site.clock.now) + 61),
    "made-in-the-future": lambda all_, device: all_.forge(device, iat=int(all_.site.clock.now) + 61),
    "bound-to-no-key": lambda all_, device: all_.forge(device, cnf=None),
    "bound-to-something-else": lambda all_, device: all_.forge(device, cnf={"x5t#S256": "AAAA"}),
    "bound-to-another-key": lambda all_, device: all_.forge(device, cnf={"jkt": DeviceKey().thumbprint}),
    "no-subject": lambda all_, device: all_.forge(device, sub=None),
    "id-token": lambda all_, device: all_.forge(device, header={"typ": "JWT"}),
    "no-type": lambda all_, device: all_.forge(device, header={"typ": ""}),
    "unknown-key": lambda all_, device: all_.forge(device, header={"kid": "who"}),
    "anothers-key": lambda all_, device: all_.forge(device, key=ECKey.generate_key("P-256")),
    "critical": _critical,
    "no-signature": lambda all_, device: all_.forge(device).rpartition(".")[0] + ".",
    "unsigned": lambda all_, device: _with_header(
        all_.forge(device), {"typ": "at+jwt", "alg": "none", "kid": all_.key.name}
    ),
    "keyed-with-the-public-key": _hmac,
}


@pytest.mark.threat("T13")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_signed_token_that_is_not_meant_for_us_is_refused(keys: Services, fault: Fault) -> None:
    device = Device()
    answer = await keys.ask(device, token=fault(keys, device))
    assert (answer.status, answer.slug) == (401, "token-invalid")
    assert (await keys.ask(device, token=keys.forge(device))).status == 200
    assert (await keys.ask(device, token=keys.forge(device, aud=RESOURCE))).status == 200


async def test_a_new_key_is_fetched_and_a_retired_one_is_good_while_it_is_listed(tmp_path: Path) -> None:
    async with services(tmp_path, signed=True) as running:
        device, _ = await running.signed_in()
        assert (await running.ask(device)).status == 200
        newer = TokenKey.load(tmp_path / "newer.pem")
        object.__setattr__(running.site.config, "token_keys", (newer, running.key))
        made = running.forge(device, key=newer.key, header={"kid": newer.name})
        assert (await running.ask(device, token=made)).slug == "token-invalid"  # fetched a moment ago
        running.site.clock.now += 61
        assert (
            await running.ask(device, token=running.forge(device, key=newer.key, header={"kid": newer.name}))
        ).status == 200
        assert (await running.ask(device)).status == 200
        object.__setattr__(running.site.config, "token_keys", (newer,))
        running.site.clock.now += 3601
        assert (await running.ask(device)).slug == "token-invalid"


@pytest.mark.threat("T16")
async def test_after_a_clock_was_set_back_keys_are_fetched_as_before(tmp_path: Path) -> None:
    async with services(tmp_path, signed=True) as running:
        device, _ = await running.signed_in()
        assert (await running.ask(device)).status == 200
        newer = TokenKey.load(tmp_path / "newer.pem")
        object.__setattr__(running.site.config, "token_keys", (newer,))
        running.site.clock.now -= 86_400
        retired = running.forge(device)
        made = running.forge(device, key=newer.key, header={"kid": newer.name})
        assert (await running.ask(device, token=made)).status == 200
        assert (await running.ask(device, token=retired)).slug == "token-invalid"


# The relying party's answers to resource servers


async def _introspect(site: Site, body: str, secret: str | None = SECRET, **headers: str) -> Answer:
    head = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    if secret is not None:
        head["Authorization"] = f"Bearer {secret}"
    return await site.raw("POST", "/introspect", head, body.encode())


async def test_introspection_says_what_a_token_stands_for_and_nobodys_name(introspection: Services) -> None:
    device, _ = await introspection.signed_in()
    answer = await _introspect(introspection.site, f"token={device.token}&token_type_hint=access_token")
    now = int(introspection.site.clock.now)
    assert len(answer.body.pop("sub")) == 43
    assert answer.body == {
        "active": True,
        "token_type": "DPoP",
        "iss": WEB_ORIGIN,
        "aud": [RESOURCE],
        "client_id": device.key.thumbprint,
        "exp": now + 12 * 3600,
        "auth_time": now,
        "cnf": {"jkt": device.key.thumbprint},
    }


async def test_of_anything_else_it_says_that_it_is_not_active(introspection: Services) -> None:
    _, refresh_token = await introspection.signed_in()
    browser = Browser()
    await introspection.site.register(browser, "grace")
    for token in ("x", refresh_token, browser.cookie, "%FF"):
        answer = await _introspect(introspection.site, f"token={token}")
        assert (answer.status, answer.body) == (200, {"active": False})


@pytest.mark.threat("T13")
@pytest.mark.parametrize("secret", [None, "", "wrong", SECRET + "x", SECRET[:-1], SECRET.upper()])
async def test_who_has_no_secret_learns_nothing(introspection: Services, secret: str | None) -> None:
    device, _ = await introspection.signed_in()
    answer = await _introspect(introspection.site, f"token={device.token}", secret)
    assert (answer.status, answer.slug) == (401, "unknown-resource")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "body", ["", "token=", "token=a&token=b", "tok=a", "token", "token=" + "x" * 4097, "&" * 20]
)
async def test_a_malformed_question_is_refused(introspection: Services, body: str) -> None:
    assert (await _introspect(introspection.site, body)).slug == "invalid-request"


async def test_a_token_that_a_resource_server_asks_about_has_arrived(introspection: Services) -> None:
    """The refresh token before it is spent then, as if the relying party had been shown the token itself."""
    device, first = await introspection.signed_in()
    await introspection.site.send(device, "POST", "/session/refresh", {"refresh_token": first})
    assert (await introspection.ask(device)).status == 200
    introspection.site.clock.now += LATE_SECONDS + 1
    stale = await introspection.site.send(
        Device(device.key), "POST", "/session/refresh", {"refresh_token": first}
    )
    assert stale.slug == "refresh-token-reused"


async def test_keys_are_public_and_nothing_else_is(keys: Services) -> None:
    answer = await keys.site.raw("GET", "/jwks.json", {})
    (key,) = answer.body["keys"]
    assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert (key["kid"], key["alg"], key["use"]) == (keys.key.name, "ES256", "sig")


async def test_without_a_token_key_there_are_none(introspection: Services) -> None:
    assert (await introspection.site.raw("GET", "/jwks.json", {})).body == {"keys": []}


# A relying party that is away, or lies


@pytest.mark.parametrize("way", ["keys", "introspection"])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"{}"),
        (302, b"{}"),
        (401, b"{}"),
        (200, b"nothing"),
        (200, b"[]"),
        (200, b'{"active": 1, "keys": 1}'),
        (200, b'{"active": true}'),
        (200, b" " * 70_000),
        (200, b"\xff"),
    ],
    ids=["500", "302", "401", "no-json", "list", "types", "members", "long", "bytes"],
)
async def test_what_cannot_be_told_is_503_and_nobody_gets_in(
    tmp_path: Path, way: str, status: int, body: bytes
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers={"Location": "/elsewhere"})

    liar = web.Application()
    liar.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(liar) as server:
        url = str(server.make_url("/"))
        verify: Verify = Keys(jwks_uri=url) if way == "keys" else Introspection(endpoint=url, secret=SECRET)
        await _nobody_gets_in(verify, tmp_path)


@pytest.mark.parametrize("way", ["keys", "introspection"])
async def test_a_relying_party_that_is_away_lets_nobody_in(tmp_path: Path, way: str) -> None:
    url = f"http://127.0.0.1:{reserved_port()}/"
    await _nobody_gets_in(
        Keys(jwks_uri=url) if way == "keys" else Introspection(endpoint=url, secret=SECRET), tmp_path
    )


async def _nobody_gets_in(verify: Verify, folder: Path) -> None:
    clock, device, key = Clock(), Device(), TokenKey.load(folder / "key.pem")
    guard = Guard(resource=RESOURCE, issuer=WEB_ORIGIN, verify=verify, clock=clock)
    async with TestClient(TestServer(guarded(guard))) as api:
        config = make_config(folder / "rp.sqlite")
        site = Site(http=api, app=api.app, clock=clock, config=config)
        asking = Services(site=site, api=api, guard=guard, key=key)
        answer = await asking.ask(device, token=asking.forge(device))
        assert answer.status in (401, 503)
        if answer.status == 503:
            assert answer.slug == "issuer-unavailable"
            assert answer.headers["Retry-After"] == "5"


async def test_known_keys_are_used_on_while_the_relying_party_is_away(tmp_path: Path) -> None:
    async with services(tmp_path, signed=True) as running:
        device, _ = await running.signed_in()
        assert (await running.ask(device)).status == 200
        await running.site.http.close()
        running.site.clock.now += 3601
        assert (await running.ask(device, token=running.forge(device))).status == 200


async def test_a_relying_party_that_is_silent_delays_no_other_caller_with_a_known_key(tmp_path: Path) -> None:
    asked, silent, fetches = asyncio.Event(), asyncio.Event(), []
    key, clock = TokenKey.load(tmp_path / "key.pem"), Clock()

    async def answer(_: web.Request) -> web.Response:
        fetches.append(clock.now)
        if len(fetches) > 1:
            asked.set()
            await silent.wait()
            return web.Response(status=500)
        return web.json_response({"keys": [key.public()]})

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestServer(app) as server, asyncio.timeout(PATIENCE):
        guard = Guard(
            resource=RESOURCE,
            issuer=WEB_ORIGIN,
            verify=Keys(jwks_uri=str(server.make_url("/"))),
            clock=clock,
        )
        async with TestClient(TestServer(guarded(guard))) as api:
            site = Site(http=api, app=api.app, clock=clock, config=make_config(tmp_path / "rp.sqlite"))
            asking, device = Services(site=site, api=api, guard=guard, key=key), Device()
            assert (await asking.ask(device, token=asking.forge(device))).status == 200
            clock.now += 3601
            first = asyncio.ensure_future(asking.ask(device, token=asking.forge(device)))
            await asked.wait()
            assert (await asking.ask(device, token=asking.forge(device))).status == 200
            assert not first.done()
            silent.set()
            assert (await first).status == 200
            unknown = asking.forge(device, header={"kid": "unknown"})
            assert (await asking.ask(device, token=unknown)).slug == "issuer-unavailable"
            assert len(fetches) == 2  # not again within a minute
            clock.now += 61
            assert (await asking.ask(device, token=asking.forge(device))).status == 200
            assert len(fetches) == 3


async def test_before_there_is_a_key_callers_wait_for_one_fetch_together(tmp_path: Path) -> None:
    key, clock, fetches = TokenKey.load(tmp_path / "key.pem"), Clock(), 0
    keys: list[dict[str, Any]] = []
    asked, answers = asyncio.Event(), asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        nonlocal fetches
        fetches += 1
        asked.set()
        await answers.wait()
        return web.json_response({"keys": keys}, status=200 if keys else 500)

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestServer(app) as server, asyncio.timeout(PATIENCE):
        verify = Keys(jwks_uri=str(server.make_url("/")))
        guard = Guard(resource=RESOURCE, issuer=WEB_ORIGIN, verify=verify, clock=clock)
        async with TestClient(TestServer(guarded(guard))) as api:
            site = Site(http=api, app=api.app, clock=clock, config=make_config(tmp_path / "rp.sqlite"))
            asking, device = Services(site=site, api=api, guard=guard, key=key), Device()
            token = asking.forge(device)
            callers = [asyncio.ensure_future(verify(token, guard)) for _ in range(5)]
            await asked.wait()
            answers.set()
            outcomes = await asyncio.gather(*callers, return_exceptions=True)
            assert [type(one) for one in outcomes] == [IssuerUnavailable] * 5
            assert fetches == 1
            keys.append(key.public())
            assert (
                await asking.ask(device, token=token)
            ).status == 200  # the next caller asks again, at once
            assert fetches == 2


@pytest.mark.threat("T17")
async def test_callers_who_come_and_go_while_keys_are_fetched_ask_for_them_once(tmp_path: Path) -> None:
    key, clock, fetches = TokenKey.load(tmp_path / "key.pem"), Clock(), 0
    asked, answers = asyncio.Event(), asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        nonlocal fetches
        fetches += 1
        asked.set()
        await answers.wait()
        return web.json_response({"keys": [key.public()]})

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestServer(app) as server, asyncio.timeout(PATIENCE):
        verify = Keys(jwks_uri=str(server.make_url("/")))
        guard = Guard(resource=RESOURCE, issuer=WEB_ORIGIN, verify=verify, clock=clock)
        async with TestClient(TestServer(guarded(guard))) as api:
            site = Site(http=api, app=api.app, clock=clock, config=make_config(tmp_path / "rp.sqlite"))
            services = Services(site=site, api=api, guard=guard, key=key)
            token, unknown = services.forge(Device()), services.forge(Device(), header={"kid": "unknown"})
            for _ in range(5):
                goes = asyncio.ensure_future(verify(unknown, guard))
                await asked.wait()
                await asyncio.sleep(0)
                goes.cancel()
                await asyncio.wait((goes,))
            stays = asyncio.ensure_future(verify(token, guard))
            answers.set()
            assert (await stays).iss == WEB_ORIGIN
            assert fetches == 1


async def test_a_guard_that_is_closed_leaves_no_fetch_behind(tmp_path: Path) -> None:
    key, clock, asked = TokenKey.load(tmp_path / "key.pem"), Clock(), asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestServer(app, shutdown_timeout=0) as server, asyncio.timeout(PATIENCE):
        verify = Keys(jwks_uri=str(server.make_url("/")))
        guard = Guard(resource=RESOURCE, issuer=WEB_ORIGIN, verify=verify, clock=clock)
        async with TestClient(TestServer(guarded(guard))) as api:
            site = Site(http=api, app=api.app, clock=clock, config=make_config(tmp_path / "rp.sqlite"))
            token = Services(site=site, api=api, guard=guard, key=key).forge(Device())
            caller = asyncio.ensure_future(verify(token, guard))
            await asked.wait()
            before = asyncio.all_tasks()
        with pytest.raises(IssuerUnavailable, match="the guard is closed"):
            await caller
        (fetch,) = [task for task in before if "Keys._fetch" in repr(task.get_coro())]
        assert fetch.done()


@pytest.mark.parametrize("goes", [False, True], ids=["stays", "goes"])
async def test_callers_with_a_new_key_wait_for_the_fetch_that_the_first_of_them_began(
    tmp_path: Path,
    goes: bool,  # noqa: FBT001
) -> None:
    old, new, clock = TokenKey.load(tmp_path / "old.pem"), TokenKey.load(tmp_path / "new.pem"), Clock()
    served, fetches = [old.public()], 0
    asked, answers = asyncio.Event(), asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        nonlocal fetches
        fetches += 1
        if fetches == 2:
            asked.set()
            await answers.wait()
        return web.json_response({"keys": served})

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestServer(app) as server, asyncio.timeout(PATIENCE):
        verify = Keys(jwks_uri=str(server.make_url("/")))
        guard = Guard(resource=RESOURCE, issuer=WEB_ORIGIN, verify=verify, clock=clock)
        async with TestClient(TestServer(guarded(guard))) as api:
            site = Site(http=api, app=api.app, clock=clock, config=make_config(tmp_path / "rp.sqlite"))
            before = Services(site=site, api=api, guard=guard, key=old).forge(Device())
            after = Services(site=site, api=api, guard=guard, key=new).forge(Device())
            assert (await verify(before, guard)).iss == WEB_ORIGIN
            clock.now += KEYS_PAUSE + 1
            served.append(new.public())
            first = asyncio.ensure_future(verify(after, guard))
            await asked.wait()
            others = [asyncio.ensure_future(verify(after, guard)) for _ in range(3)]
            await asyncio.sleep(0)  # as far as they wait, or are refused
            if goes:
                first.cancel()
            answers.set()
            outcomes = await asyncio.gather(*others, return_exceptions=True)
            assert [getattr(one, "iss", one) for one in outcomes] == [WEB_ORIGIN] * 3
            assert fetches == 2
            assert first.cancelled() if goes else (await first).iss == WEB_ORIGIN


# What an operator may choose


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example/jwks.json",
        "login.example",
        "ftp://login.example",
        "https:///x",
        "https://[login",
        "http://localhost\n:80",
    ],
    ids=ascii,
)
def test_the_relying_party_is_asked_over_https(url: str) -> None:
    with pytest.raises(UsageError):
        Keys(jwks_uri=url)
    with pytest.raises(UsageError):
        Introspection(endpoint=url, secret=SECRET)


def test_a_token_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    made = TokenKey.load(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert TokenKey.load(path).name == made.name
    assert "PRIVATE" not in repr(made)


def test_two_who_make_a_token_key_at_once_have_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[str] = []
    fdopen = os.fdopen

    def meanwhile(descriptor: int, mode: str) -> Any:
        monkeypatch.undo()
        others.append(TokenKey.load(tmp_path / "key.pem").name)  # another process, while we write
        return fdopen(descriptor, mode)

    monkeypatch.setattr(os, "fdopen", meanwhile)
    assert [TokenKey.load(tmp_path / "key.pem").name] == others
    assert [one.name for one in tmp_path.iterdir()] == ["key.pem"]


def test_a_disk_that_is_full_leaves_no_token_key_without_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, _data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(descriptor: int, _mode: str) -> Full:
        os.close(descriptor)
        return Full()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", full)
        with pytest.raises(SetupError, match="No space left on device"):
            TokenKey.load(tmp_path / "key.pem")
    assert list(tmp_path.iterdir()) == []
    TokenKey.load(tmp_path / "key.pem")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nothing",
        ECKey.generate_key("P-384").as_pem(private=True),
        ECKey.generate_key("P-256").as_pem(private=False),
    ],
    ids=["empty", "text", "another-curve", "public"],
)
def test_what_is_no_token_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(SetupError, match=r"key\.pem"):
        TokenKey.load(path)


@pytest.mark.threat("T11")
def test_a_token_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    TokenKey.load(tmp_path / "key.pem")
    os.chmod(tmp_path / "key.pem", 0o640)  # noqa: PTH101
    with pytest.raises(SetupError, match="open to others"):
        TokenKey.load(tmp_path / "key.pem")
    with pytest.raises(SetupError, match="cannot make"):
        TokenKey.load(tmp_path / "nowhere" / "key.pem")


@pytest.mark.parametrize(
    "changes",
    [
        {"resources": ("api.example",)},
        {"resources": ("http://api.example",)},
        {"resources": ("https://api.example/",)},
        {"resource_secrets": {"https://api.example": "short"}},
        {"resource_secrets": {"https://api.example": "x" * 31 + " "}},
        {"resource_secrets": {"https://api.example": "ä" * 32}},
        {"resources": tuple(f"https://a{number}.example" for number in range(17))},
    ],
    ids=["no-origin", "http", "slash", "short", "space", "unicode", "many"],
)
def test_resource_servers_are_origins_with_long_secrets(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make_config(tmp_path / "rp.sqlite", **changes)


# The example of docs/how-to/resource-server.md


PAGE = Path(__file__).parents[2] / "docs/how-to/resource-server.md"


def page_blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_pages_file_of_secrets_is_taken(tmp_path: Path) -> None:
    (lines,) = page_blocks("toml")
    file = tmp_path / "secrets.toml"
    file.touch(mode=0o600)
    file.write_text(lines.replace("…", "x" * 32))
    assert list(serving._secrets(file)) == ["https://api.example"]
    make_config(tmp_path / "rp.sqlite", resource_secrets=serving._secrets(file))


def the_pages_service(origin: str, issuer: str) -> web.Application:
    """The service of the page, at these addresses."""
    (code,) = page_blocks("python")
    names: dict[str, Any] = {}
    code = code.replace("https://api.example", origin).replace("https://login.example", issuer)
    exec(compile(code, PAGE.name, "exec"), names)  # noqa: S102  a page of ours
    service: web.Application = names["service"]
    return service


@pytest.mark.parametrize("signed", [True, False, None], ids=["keys", "introspection", "the page's"])
async def test_the_example_knows_who_calls(tmp_path: Path, signed: bool | None) -> None:  # noqa: FBT001
    """With clocks that run; tests/end_to_end/test_session.py runs it as a program."""
    origin = f"http://localhost:{reserved_port()}"
    issuer = f"http://localhost:{reserved_port()}"
    config = make_config(
        tmp_path / "rp.sqlite", rp_id="localhost", web_origins=(issuer,), device_origins=(), public_url=issuer,
        resources=(origin,), resource_secrets={origin: SECRET},
        token_keys=(TokenKey.load(tmp_path / "key.pem"),) if signed is not False else (),
    )  # fmt: skip
    app = make_app(config)
    server = TestServer(app, host="localhost", port=int(issuer.rpartition(":")[2]))
    async with TestClient(server, cookie_jar=DummyCookieJar()) as http:
        site = Site(http=http, app=app, clock=Clock(time()), config=config)
        device = AtAddress(issuer)
        _, answer = await site.register(device, "ada")
        if signed is None:
            service = the_pages_service(origin, issuer)
        else:
            service = resource_server.make_service(origin, issuer, secret=None if signed else SECRET)
        async with TestClient(
            TestServer(service, host="localhost", port=int(origin.rpartition(":")[2]))
        ) as api:
            nonce = None
            for _ in range(2):
                proof = device.key.proof("GET", f"{origin}/me", time(), device.token, nonce=nonce)
                head = {"Authorization": f"DPoP {device.token}", "DPoP": proof}
                async with api.get("/me", headers=head) as response:
                    nonce, said = response.headers["DPoP-Nonce"], await response.json(content_type=None)
    example = {"device": device.key.thumbprint} if signed is not None else {}
    assert said == {"user": answer.body["user"]["handle"]} | example


class AtAddress(Device):
    """A device at a relying party of another address than the usual one."""

    def __init__(self, origin: str) -> None:
        super().__init__(client_origin=origin)

    def headers(self, method: str, path: str, now: float) -> dict[str, str]:
        return {"DPoP": self.key.proof(method, self.client_origin + path, now, self.token, nonce=self.nonce)}
