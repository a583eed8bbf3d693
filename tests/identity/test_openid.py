"""Tokens of an OpenID Connect issuer: which hold, which do not, and how often the issuer is asked for its keys."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from certificates import Certificate, make_certificate

from companion_push.identity.authority import AuthorityUnavailable, SignIn, SignInWay, Subject, TokenRefused
from companion_push.identity.openid import OpenIdConnect
from companion_push.identity.settings import OpenIdSettings
from headless_passkey.errors import UsageError
from tests.device.connect_proxy import ConnectProxy
from tests.identity.issuer import KEY, NOW, OTHER_KEY, Issuer, ec_key, edwards_key, rsa_key


class Ticks:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest_asyncio.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().running() as running:
        yield running


@asynccontextmanager
async def opened(
    issuer: Issuer, ticks: Ticks | None = None, *, now: float = NOW, **changes: Any
) -> AsyncIterator[OpenIdConnect]:
    settings: dict[str, Any] = {"issuer": issuer.url, "audience": "companion", "clients": ("companion",)}
    authority = OpenIdConnect(
        OpenIdSettings(**(settings | changes)), clock=lambda: now, ticks=ticks or Ticks()
    )
    async with authority.opened():
        yield authority


async def test_a_token_says_who_signed_in(issuer: Issuer) -> None:
    async with opened(issuer) as authority:
        assert await authority.sign_in(issuer.token(), key=KEY) == SignIn(
            subject=Subject(issuer=issuer.url, id="17"),
            account_name="anna",
            issued_at=NOW - 5,
            signed_in_at=NOW - 20,
        )
        assert authority.way() == SignInWay(issuer=issuer.url, client="companion", audience="companion")


@pytest.mark.threat("T11")
async def test_a_subject_is_not_shown(issuer: Issuer) -> None:
    async with opened(issuer) as authority:
        assert "17'" not in repr(await authority.sign_in(issuer.token(), key=KEY))


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        (lambda: ec_key("k"), "ES256"),
        (lambda: ec_key("k", "P-384"), "ES384"),
        (lambda: rsa_key("k"), "RS256"),
        (lambda: rsa_key("k"), "PS256"),
        (lambda: edwards_key("k"), "Ed25519"),
        (lambda: edwards_key("k"), "EdDSA"),
        (lambda: edwards_key("k", alg="EdDSA"), "EdDSA"),
        (lambda: edwards_key("k", alg="EdDSA"), "Ed25519"),
        (lambda: edwards_key("k", alg="Ed25519"), "EdDSA"),
    ],
    ids=[
        *("ES256", "ES384", "RS256", "PS256", "Ed25519", "EdDSA"),
        *("EdDSA-of-a-key-for-it", "Ed25519-of-a-key-for-EdDSA", "EdDSA-of-a-key-for-Ed25519"),
    ],
)
async def test_the_usual_algorithms_are_taken(issuer: Issuer, key: Any, alg: str) -> None:
    issuer.keys = [key()]
    async with opened(issuer) as authority:
        assert (await authority.sign_in(issuer.token(alg=alg), key=KEY)).subject.id == "17"


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"preferred_username": None, "name": "Anna B."}, "Anna B."),
        ({"preferred_username": None}, "account"),
        ({"preferred_username": "a\u202eb\n", "name": "x"}, "a b"),
        ({"preferred_username": 7, "name": "x"}, "x"),
        ({"preferred_username": None, "email": "anna@mail.example"}, "account"),
    ],
    ids=["name", "none", "hidden-characters", "no-text", "never-the-address"],
)
async def test_the_account_is_called_as_the_token_says(
    issuer: Issuer, claims: dict[str, Any], name: str
) -> None:
    async with opened(issuer) as authority:
        assert (await authority.sign_in(issuer.token(**claims), key=KEY)).account_name == name


ACCESS = {"audience": "relay", "clients": ("companion", "app")}  # a relay that takes access tokens


@pytest.mark.parametrize(
    ("settings", "claims", "header"),
    [
        ({}, {"aud": ["companion"]}, {}),
        ({}, {"aud": ["companion", "other"], "azp": "companion"}, {}),
        ({}, {"azp": "companion"}, {"typ": None}),
        (ACCESS, {"aud": "relay", "client_id": "app"}, {"typ": "at+jwt"}),
        (ACCESS, {"aud": "relay", "client_id": "companion", "azp": "companion"}, {"typ": "application/at+jwt"}),
        ({}, {"exp": NOW - 59}, {}),
        ({}, {"nbf": NOW + 59, "iat": NOW + 59}, {}),
        ({"require_bound": True}, {"cnf": {"jkt": KEY}}, {}),
        ({}, {"cnf": {"jkt": KEY}}, {}),
        ({}, {}, {"kid": None}),
    ],
    ids=[
        "audiences", "authorized-party", "no-type", "access-token", "media-type", "just-expired", "clocks-differ", "bound",
        "bound-unasked", "no-kid",
    ],
)  # fmt: skip
async def test_what_holds_is_taken(
    issuer: Issuer, settings: dict[str, Any], claims: dict[str, Any], header: dict[str, Any]
) -> None:
    async with opened(issuer, **settings) as authority:
        assert (await authority.sign_in(issuer.token(header=header, **claims), key=KEY)).subject.id == "17"


@pytest.mark.threat("T14")
@pytest.mark.parametrize(
    ("settings", "claims", "why"),
    [
        ({}, {"iss": "https://evil.example"}, "another issuer"),
        ({}, {"aud": "another relay"}, "another audience"),
        ({}, {"aud": []}, "another audience"),
        ({}, {"azp": "other"}, "another client"),
        ({}, {"azp": "companion", "client_id": "other"}, "another client"),
        ({}, {"aud": ["companion", "other"]}, "another client"),
        (ACCESS, {"aud": "relay"}, "another client"),
        (ACCESS, {"aud": "relay", "client_id": "other"}, "another client"),
        ({}, {"exp": NOW - 60}, "expired"),
        ({}, {"nbf": NOW + 61}, "later time"),
        ({}, {"iat": NOW + 61}, "later time"),
        ({}, {"iat": NOW - 86_461, "exp": NOW + 10**6}, "older than"),
        ({}, {"sub": None}, "expected a signed JWT"),
        ({}, {"sub": ""}, "expected a signed JWT"),
        ({}, {"sub": 17}, "expected a signed JWT"),
        ({}, {"sub": "x" * 256}, "expected a signed JWT"),
        ({}, {"exp": None}, "expected a signed JWT"),
        ({}, {"iat": None}, "expected a signed JWT"),
        ({}, {"exp": "9999999999"}, "expected a signed JWT"),
        ({}, {"aud": None}, "expected a signed JWT"),
        ({}, {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}, "event"),
        ({"require_bound": True}, {}, "must be bound"),
        ({}, {"cnf": {"jkt": OTHER_KEY}}, "another key"),
        ({}, {"cnf": {"x5t#S256": KEY}}, "another key"),
    ],
    ids=[
        "issuer", "audience", "no-audience", "azp", "client-id", "audiences-without-azp", "access-token-of-nobody",
        "access-token-of-another", "expired", "nbf", "iat", "old", "no-sub", "empty-sub", "number-sub", "long-sub", "no-exp",
        "no-iat", "text-exp", "aud-missing", "logout-token", "unbound", "bound-to-another", "bound-to-a-certificate",
    ],
)  # fmt: skip
async def test_what_does_not_hold_is_refused(
    issuer: Issuer, settings: dict[str, Any], claims: dict[str, Any], why: str
) -> None:
    async with opened(issuer, **settings) as authority:
        with pytest.raises(TokenRefused, match=why):
            await authority.sign_in(issuer.token(**claims), key=KEY)


@pytest.mark.threat("T14")
async def test_what_the_issuer_did_not_sign_is_refused(issuer: Issuer) -> None:
    stranger = ec_key("first")  # of the same name
    good = issuer.token()
    header, claims, signature = good.split(".")
    jwk = stranger.as_dict(private=False)
    hostile = {
        "none": issuer.unsigned(),
        "HS256 with the public key": issuer.confused(),
        "another key of the same name": issuer.token(key=stranger),
        "a key in the header": issuer.token(key=stranger, header={"jwk": jwk}),
        "a key set in the header": issuer.token(key=stranger, header={"jku": "http://127.0.0.1:1/keys"}),
        "a changed claim": f"{header}.{issuer.token(sub='18').split('.')[1]}.{signature}",
        "no signature": f"{header}.{claims}.",
        "a critical parameter": issuer.token(header={"crit": ["b64"], "b64": True}),
        "a logout token": issuer.token(header={"typ": "logout+jwt"}),
        "a proof": issuer.token(header={"typ": "dpop+jwt"}),
        "two parts": f"{header}.{claims}",
        "four parts": f"{good}.x",
        "no JWT": "opaque",
        "an empty one": "..",
        "deep": f"{header}.{'W' * 8000}.{signature}",
    }
    async with opened(issuer) as authority:
        refused = []
        for what, token in hostile.items():
            try:
                await authority.sign_in(token, key=KEY)
            except TokenRefused:
                refused.append(what)
        assert refused == list(hostile)
        assert (await authority.sign_in(good, key=KEY)).subject.id == "17"


@pytest.mark.threat("T14")
async def test_an_algorithm_that_is_not_listed_is_refused(issuer: Issuer) -> None:
    async with opened(issuer, algorithms=("RS256",)) as authority:
        with pytest.raises(TokenRefused, match="expected an algorithm of RS256"):
            await authority.sign_in(issuer.token(), key=KEY)
    assert issuer.asked == 0


# The issuer's keys


async def test_a_rotation_is_noticed_with_the_first_token_of_the_new_key(issuer: Issuer) -> None:
    ticks = Ticks()
    async with opened(issuer, ticks) as authority:
        old = issuer.token()
        await authority.sign_in(old, key=KEY)
        issuer.keys = [ec_key("second")]
        ticks.now = 11
        assert (await authority.sign_in(issuer.token(), key=KEY)).subject.id == "17"
        ticks.now = 21
        with pytest.raises(TokenRefused, match="no such key"):
            await authority.sign_in(old, key=KEY)


@pytest.mark.threat("T13")
async def test_nobody_makes_the_relay_flood_the_issuer(issuer: Issuer) -> None:
    ticks = Ticks()
    async with opened(issuer, ticks) as authority:
        unknown = [issuer.token(header={"kid": f"unknown {number}"}) for number in range(50)]
        for now, asked in ((0, 1), (10, 2), (20, 3)):
            ticks.now = now
            with pytest.raises(TokenRefused, match="no such key"):
                await authority.sign_in(unknown[0], key=KEY)
            for token in unknown[1:]:
                with pytest.raises(AuthorityUnavailable) as caught:
                    await authority.sign_in(token, key=KEY)
                assert caught.value.retry_after == 10
            assert issuer.asked == asked
            assert (await authority.sign_in(issuer.token(), key=KEY)).subject.id == "17"


async def test_while_the_issuer_is_away_its_keys_are_used_for_a_day(issuer: Issuer) -> None:
    ticks = Ticks()
    async with opened(issuer, ticks) as authority:
        await authority.sign_in(issuer.token(), key=KEY)
        issuer.answer = web.Response(status=503)
        for now in (601, 10_000, 86_399):
            ticks.now = now
            assert (await authority.sign_in(issuer.token(), key=KEY)).subject.id == "17"
            await asyncio.wait([authority._keys._begin()])  # what it asks for meanwhile
        ticks.now = 86_450
        with pytest.raises(AuthorityUnavailable):
            await authority.sign_in(issuer.token(), key=KEY)
        with pytest.raises(AuthorityUnavailable, match="a moment ago") as caught:
            await authority.sign_in(issuer.token(), key=KEY)
        assert caught.value.retry_after == 10
        issuer.answer = None
        ticks.now = 86_460
        assert (await authority.sign_in(issuer.token(), key=KEY)).subject.id == "17"


@pytest.mark.threat("T13")
@pytest.mark.parametrize(
    ("metadata", "answer"),
    [
        ({"issuer": "https://evil.example"}, None),
        ({"issuer": None}, None),
        ({"jwks_uri": "http://keys.example/"}, None),
        ({"jwks_uri": "file:///etc/passwd"}, None),
        ({"jwks_uri": "http://127.0.0.1.evil.example/keys"}, None),
        ({}, web.Response(status=302, headers={"Location": "/elsewhere"})),
        ({}, web.Response(body=b"[]")),
        ({}, web.Response(body=b"[" * 100_000)),
        ({}, web.Response(body=b'{"keys": [' + b"{}, " * 100 + b"{}]}")),
        ({}, web.Response(body=b" " * (256 * 1024 + 1))),
    ],
    ids=[
        "another-issuer",
        "no-issuer",
        "not-https",
        "a-file",
        "not-loopback",
        "redirect",
        "no-object",
        "deep",
        "many-keys",
        "long",
    ],
)
async def test_an_issuer_that_answers_something_else_is_not_believed(
    issuer: Issuer, metadata: dict[str, Any], answer: web.Response | None
) -> None:
    issuer.metadata, issuer.answer = metadata, answer
    async with opened(issuer) as authority:
        with pytest.raises(AuthorityUnavailable):
            await authority.sign_in(issuer.token(), key=KEY)


async def test_an_issuer_that_is_not_there_is_unavailable() -> None:
    async with Issuer().running() as issuer:
        token = issuer.token()
    async with opened(issuer) as authority:
        with pytest.raises(AuthorityUnavailable):
            await authority.sign_in(token, key=KEY)


HOST = "login.test"  # which nobody but the proxy knows


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("login.test"), names=(HOST,))


async def test_the_environments_proxy_carries_what_the_issuer_is_asked_and_sees_host_and_port(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Issuer().running(tls=certificate.server_context(), host=HOST) as issuer:
        proxy = ConnectProxy({f"{HOST}:443": issuer.port}, credentials="ada:secret")
        async with proxy.running() as address:
            monkeypatch.setenv("HTTPS_PROXY", f"http://ada:secret@{address}")
            async with opened(issuer, ca=certificate.ca) as authority:
                assert (await authority.sign_in(issuer.token(), key=KEY)).subject.id == "17"
    assert set(proxy.asked) == {f"{HOST}:443"}
    assert b"/keys" not in proxy.carried


@pytest.mark.threat("T11")
async def test_a_proxy_that_fails_is_named_without_its_password(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        Issuer().running(tls=certificate.server_context(), host=HOST) as issuer,
        ConnectProxy({}, statuses=[403]).running() as address,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://ada:secret@{address}")
        async with opened(issuer, ca=certificate.ca) as authority:
            with pytest.raises(AuthorityUnavailable) as caught:
                await authority.sign_in(issuer.token(), key=KEY)
    why = f"the proxy {address} does not connect to {HOST} (HTTP status 403)"
    assert caught.value.detail == f"the issuer cannot be asked: {why}"
    assert why in caplog.text
    assert "ada" not in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.threat("T14")
@pytest.mark.parametrize(
    "change",
    [{"use": "enc"}, {"key_ops": ["encrypt"]}, {"alg": "ES512"}, {"crv": "P-384"}, {"x": "AA"}, {"kty": "oct", "k": "AA"}],
    ids=["encryption", "no-verification", "another-algorithm", "another-curve", "no-point", "symmetric"],
)  # fmt: skip
async def test_a_key_that_is_for_something_else_verifies_nothing(
    issuer: Issuer, change: dict[str, Any]
) -> None:
    key = ec_key("other")
    issuer.more = [key.as_dict(private=False) | change, {"kty": "unknown"}, {}]
    async with opened(issuer) as authority:
        with pytest.raises(TokenRefused, match="no such key"):
            await authority.sign_in(issuer.token(key=key), key=KEY)
        assert (await authority.sign_in(issuer.token(), key=KEY)).subject.id == "17"


async def test_a_token_without_kid_needs_an_issuer_with_one_key_of_its_kind(issuer: Issuer) -> None:
    issuer.keys = [ec_key("first"), rsa_key("rsa"), ec_key("second")]
    async with opened(issuer) as authority:
        with pytest.raises(TokenRefused, match="does not name one key"):
            await authority.sign_in(issuer.token(header={"kid": None}), key=KEY)
        rsa = issuer.token(key=issuer.keys[1], alg="RS256", header={"kid": None})
        assert (await authority.sign_in(rsa, key=KEY)).subject.id == "17"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"issuer": "http://issuer.example"}, "issuer"),
        ({"issuer": "issuer.example"}, "issuer"),
        ({"issuer": None}, "issuer"),
        ({"audience": ""}, "audience"),
        ({"clients": ()}, "clients"),
        ({"clients": ("a\n",)}, "clients"),
        ({"algorithms": ("HS256",)}, "algorithms"),
        ({"algorithms": ("none",)}, "algorithms"),
        ({"algorithms": ()}, "algorithms"),
    ],
    ids=["http", "no-url", "no-text", "audience", "no-client", "client", "symmetric", "none", "no-algorithm"],
)
def test_a_setting_that_cannot_be_is_refused_by_its_name(changes: dict[str, Any], what: str) -> None:
    settings: dict[str, Any] = {"issuer": "https://issuer.example", "audience": "a", "clients": ("c",)}
    OpenIdSettings(**settings)
    with pytest.raises(UsageError, match=f"^{what}: "):
        OpenIdSettings(**(settings | changes))
