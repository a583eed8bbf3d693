"""A resource server's way to the relying party through a proxy. The proxy is real, and so is TLS behind it."""

import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from certificates import Certificate, make_certificate

from program_parts.proxy import NoProxy, proxy_for
from relying_party.errors import IssuerUnavailable, TokenInvalid
from relying_party.http.http_server import Runner
from relying_party.resource import Guard, Introspection, Keys
from tests.device.connect_proxy import ConnectProxy
from tests.vectors_loader import Vector, name, vectors

LOGIN = "login.test"  # a name that nobody but the proxy knows (RFC 6761 §6.2)
SECRET = "correct-horse-battery-staple-0123456789"
TOKEN = "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFUzI1NiIsImtpZCI6ImsifQ.e30.AAAA"  # a JWT by the key "k"
PASSWORD = "p@ss:wörd/%"
IN_URL = "p%40ss%3Aw%C3%B6rd%2F%25"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("proxied"), names=(LOGIN, "localhost"))


# Which proxy: the rule is that of the device (tests/device/test_proxy.py)


@pytest.mark.threat("T11")
@pytest.mark.parametrize("case", [one for one in vectors("proxies") if "refused" in one], ids=name)
def test_what_is_no_proxys_address_is_told_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, case: Vector
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", case["environment"]["HTTPS_PROXY"])
    with pytest.raises(NoProxy) as failed:
        proxy_for(case["url"])
    assert str(failed.value) == "HTTPS_PROXY does not hold the address of a proxy"
    assert IN_URL not in "".join(traceback.format_exception(failed.value))


# Through it


@asynccontextmanager
async def relying_party(certificate: Certificate) -> AsyncIterator[tuple[int, list[web.Request]]]:
    """Its port, and the requests that it gets: it has no keys, and knows no token."""
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        return web.json_response({"keys": [], "active": False})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = Runner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.server_context()).start()
        yield runner.addresses[0][1], seen
    finally:
        await runner.cleanup()


@asynccontextmanager
async def opened(certificate: Certificate, place: str = LOGIN) -> AsyncIterator[Guard]:
    verify = Introspection(endpoint=f"https://{place}/introspect", secret=SECRET)
    guard = Guard(
        resource="https://api.example",
        issuer=f"https://{place}",
        verify=verify,
        tls=certificate.client_context(),
    )
    async with asynccontextmanager(guard.opened)(web.Application()):
        yield guard


@pytest.mark.threat("T9")
@pytest.mark.parametrize("credentials", [None, f"ada:{PASSWORD}"], ids=["anybody", "with-password"])
async def test_the_relying_party_is_asked_through_the_proxy_which_sees_host_and_port_and_no_more(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, credentials: str | None
) -> None:
    async with relying_party(certificate) as (port, seen), opened(certificate) as guard:
        proxy = ConnectProxy({f"{LOGIN}:443": port}, credentials=credentials)
        async with proxy.running() as address:
            monkeypatch.setenv("HTTPS_PROXY", f"ada:{IN_URL}@{address}" if credentials else address)
            with pytest.raises(TokenInvalid, match="no session"):
                await Introspection(endpoint=f"https://{LOGIN}/introspect", secret=SECRET)("token", guard)
            with pytest.raises(TokenInvalid, match="a key that the relying party does not have"):
                await Keys(jwks_uri=f"https://{LOGIN}/jwks.json")(TOKEN, guard)
    assert set(proxy.asked) == {f"{LOGIN}:443"}
    assert [request.path for request in seen] == ["/introspect", "/jwks.json"]
    assert seen[0].headers["Authorization"] == f"Bearer {SECRET}"
    assert not any("Proxy-Authorization" in request.headers for request in seen)
    assert not any(SECRET in head or "introspect" in head for head in proxy.heads)
    assert SECRET.encode() not in proxy.carried


async def test_what_is_on_this_machine_or_excepted_is_asked_directly(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = ConnectProxy({})
    async with (
        relying_party(certificate) as (port, seen),
        opened(certificate) as guard,
        proxy.running() as address,
    ):
        monkeypatch.setenv("HTTPS_PROXY", address)
        monkeypatch.setenv("NO_PROXY", "login.invalid")
        await guard.ask("GET", f"https://localhost:{port}/jwks.json")
        with pytest.raises(IssuerUnavailable, match="does not answer: ClientConnectorDNSError"):
            await guard.ask("GET", "https://login.invalid/jwks.json")
    assert (len(seen), proxy.asked) == (1, [])


@pytest.mark.threat("T11")
async def test_no_credentials_come_out_of_a_netrc_file(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {LOGIN} login ada password secret\nmachine localhost login ada password x\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with relying_party(certificate) as (port, seen), opened(certificate) as guard:
        proxy = ConnectProxy({f"{LOGIN}:443": port})
        async with proxy.running() as address:
            monkeypatch.setenv("HTTPS_PROXY", address)
            await guard.ask("GET", f"https://{LOGIN}/jwks.json")
    assert "Authorization" not in seen[0].headers
    assert "Authorization" not in proxy.heads[0]


# When it fails


@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (
            {"credentials": "ada:other"},
            "the proxy {} does not connect to the relying party (HTTP status 407)",
        ),
        ({"statuses": [403]}, "the proxy {} does not connect to the relying party (HTTP status 403)"),
        ({}, "the proxy {} does not connect to the relying party (HTTP status 502)"),
        (
            {"hangs_up": True},
            "the relying party does not answer through the proxy {}: ServerDisconnectedError",
        ),
        ({"babbles": True}, None),
    ],
    ids=["credentials", "403", "does-not-know", "hangs-up", "babbles"],
)
async def test_a_failing_proxy_is_named_without_its_password(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, trouble: dict[str, object], said: str | None
) -> None:
    proxy = ConnectProxy({}, **trouble)  # type: ignore[arg-type]  # one of its fields
    async with opened(certificate) as guard, proxy.running() as address:
        monkeypatch.setenv("HTTPS_PROXY", f"http://ada:{IN_URL}@{address}")
        with pytest.raises(IssuerUnavailable) as failed:
            await guard.ask("GET", f"https://{LOGIN}/jwks.json")
    assert str(failed.value) == said.format(address) if said else address in str(failed.value)
    told = "".join(traceback.format_exception(failed.value))
    assert PASSWORD not in told
    assert IN_URL not in told


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "login..test"], ids=["long-label", "empty-label"])
async def test_a_relying_party_whose_name_nobody_can_look_up_lets_nobody_in(
    certificate: Certificate, host: str
) -> None:
    async with opened(certificate) as guard:
        with pytest.raises(IssuerUnavailable, match=r"^the relying party does not answer: "):
            await guard.ask("GET", f"https://{host}/jwks.json")


async def test_a_setting_that_names_no_proxy_lets_nobody_in(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"socks5://ada:{IN_URL}@proxy.test:1080")
    async with opened(certificate) as guard:
        with pytest.raises(IssuerUnavailable, match=r"^HTTPS_PROXY does not hold the address of a proxy$"):
            await guard.ask("GET", f"https://{LOGIN}/jwks.json")
