"""Through a proxy: which requests, how, and what is said when it fails. The proxy is real, and so is TLS behind it."""

import base64
import json
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from certificates import Certificate, make_certificate

from companion_push.serving.http_server import Runner
from companion_push.tunnel_service.app import make_app
from headless_passkey.doctor.finding import Status
from headless_passkey.doctor.servers import examine_tunnel_services
from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.hybrid.tunnel_url import connect_url, new_url
from headless_passkey.net.proven_http import ProvenHttp, open_session
from headless_passkey.net.proxy import ProxyFailed, Way, proxy_for
from headless_passkey.net.related_origins import fetch_related_origins
from headless_passkey.net.tunnel import open_tunnel
from headless_passkey.trust.signing import SoftwareSigningKey
from program_parts.proxy import Proxy
from tests.device.connect_proxy import ConnectProxy
from tests.ports import reserved_port
from tests.vectors_loader import Vector, name, vectors

# names of this machine that nobody but the proxy knows (RFC 6761 §6.2)
LOGIN, TUNNELS = "login.test", "tunnels.test"
PASSWORD = "p@ss:wörd/%"
IN_URL = "p%40ss%3Aw%C3%B6rd%2F%25"
KEY = SoftwareSigningKey.generate()
TUNNEL_ID = bytes(16)

Server = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("proxied"), names=(LOGIN, TUNNELS, "localhost"))


def set_proxy(monkeypatch: pytest.MonkeyPatch, address: str, *, no_proxy: str | None = None) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address)
    if no_proxy is not None:
        monkeypatch.setenv("NO_PROXY", no_proxy)


# Which proxy


@pytest.mark.parametrize("case", [one for one in vectors("proxies") if "proxy" in one], ids=name)
def test_the_environment_says_which_proxy_a_server_is_reached_through(
    monkeypatch: pytest.MonkeyPatch, case: Vector
) -> None:
    for variable, value in case["environment"].items():
        monkeypatch.setenv(variable, value)
    proxy = proxy_for(case["url"])
    assert (None if proxy is None else proxy.name) == case["proxy"]


@pytest.mark.threat("T11")
@pytest.mark.parametrize("case", [one for one in vectors("proxies") if "refused" in one], ids=name)
def test_what_is_no_proxys_address_is_told_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, case: Vector
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", case["environment"]["HTTPS_PROXY"])
    with pytest.raises(ProxyFailed) as failed:
        Way(case["url"])
    assert failed.value.explain() == (
        "HTTPS_PROXY does not hold the address of a proxy: set it to http://PROXY:PORT, or to"
        " http://NAME:PASSWORD@PROXY:PORT"
    )
    assert (failed.value.proxy, failed.value.transient) == (None, False)
    assert IN_URL not in "".join(traceback.format_exception(failed.value))


@pytest.mark.threat("T11")
def test_a_proxys_repr_keeps_its_password() -> None:
    proxy = Proxy.parse(f"http://ada:{IN_URL}@proxy.test:3128")
    assert proxy.authorization == "Basic " + base64.b64encode(f"ada:{PASSWORD}".encode()).decode()
    for text in (repr(proxy), str(proxy.url), proxy.name):
        assert PASSWORD not in text
        assert IN_URL not in text


# Through it


@asynccontextmanager
async def serving(certificate: Certificate, respond: Server) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", respond)
    runner = Runner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.server_context()).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class Seen:
    """Answers everything, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return web.json_response({"origins": ["https://login.other.test"]})


async def ask(host: str, tls: ssl.SSLContext, *, patience: float = 0) -> None:
    async with open_session(tls) as session:
        await ProvenHttp(session, f"https://{host}", KEY, sleep=_at_once).get("/session", patience=patience)


async def _at_once(_seconds: float) -> None:
    pass


@pytest.mark.threat("T9")
@pytest.mark.parametrize("who", ["anybody", "with-password"])
async def test_requests_go_through_the_proxy_which_sees_host_and_port_and_no_more(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    with_password = who == "with-password"
    seen = Seen()
    async with serving(certificate, seen.answer) as port:
        proxy = ConnectProxy({f"{LOGIN}:443": port}, credentials=f"ada:{PASSWORD}" if with_password else None)
        async with proxy.running() as address:
            set_proxy(monkeypatch, f"http://ada:{IN_URL}@{address}" if with_password else f"http://{address}")
            await ask(LOGIN, certificate.client_context())
    assert proxy.asked == [f"{LOGIN}:443"]
    assert proxy.carried[:1] == b"\x16"  # a TLS handshake
    (request,) = seen.requests
    assert "DPoP" not in proxy.heads[0]
    assert request.headers["DPoP"].encode() not in proxy.carried
    assert b"/session" not in proxy.carried
    assert "/session" not in proxy.heads[0]
    assert not {"Proxy-Authorization", "Authorization", "Cookie"} & set(request.headers)


async def test_a_proxy_may_speak_tls_itself(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(certificate, Seen().answer) as port:
        proxy = ConnectProxy({f"{LOGIN}:443": port})
        async with proxy.running(certificate.server_context()) as address:
            set_proxy(monkeypatch, f"https://{address}")
            await ask(LOGIN, certificate.client_context())
    assert proxy.asked == [f"{LOGIN}:443"]


async def test_both_ends_of_a_tunnel_go_through_the_proxy(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(make_app(), shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.server_context()).start()
        proxy = ConnectProxy({f"{TUNNELS}:8443": runner.addresses[0][1]})
        base, tls = f"wss://{TUNNELS}:8443", certificate.client_context()
        async with proxy.running() as address:
            set_proxy(monkeypatch, address)
            async with open_tunnel(new_url(base, TUNNEL_ID), tls=tls) as first:
                assert first.routing_id is not None
                async with open_tunnel(connect_url(base, first.routing_id, TUNNEL_ID), tls=tls) as second:
                    await first.send(b"hello")
                    assert await second.receive() == b"hello"
                    await second.send(b"and back")
                    assert await first.receive() == b"and back"
    finally:
        await runner.cleanup()
    assert proxy.asked == [f"{TUNNELS}:8443"] * 2
    assert TUNNEL_ID.hex().encode() not in proxy.carried
    assert not any(TUNNEL_ID.hex() in head for head in proxy.heads)


async def test_related_origins_are_asked_for_through_the_proxy(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        serving(certificate, Seen().answer) as port,
        open_session(certificate.client_context()) as session,
    ):
        proxy = ConnectProxy({f"{LOGIN}:443": port})
        async with proxy.running() as address:
            set_proxy(monkeypatch, address)
            related = await fetch_related_origins(session, LOGIN)
    assert related.allow("https://login.other.test")
    assert proxy.asked == [f"{LOGIN}:443"]


async def test_what_is_excepted_or_on_this_machine_does_not_go_through_the_proxy(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    proxy = ConnectProxy({})
    async with serving(certificate, seen.answer) as port, proxy.running() as address:
        set_proxy(monkeypatch, address, no_proxy="login.invalid")
        await ask(f"localhost:{port}", certificate.client_context())
        with pytest.raises(TransportError) as refused:
            await ask("login.invalid", certificate.client_context())
    assert refused.value.reason is TransportReason.NAME_NOT_RESOLVED
    assert proxy.asked == []
    assert len(seen.requests) == 1


@pytest.mark.threat("T11")
async def test_no_credentials_come_out_of_a_netrc_file(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(
        f"machine {LOGIN} login ada password secret\nmachine localhost login ada password secret\n"
    )
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    seen = Seen()
    async with serving(certificate, seen.answer) as port:
        proxy = ConnectProxy({f"{LOGIN}:443": port})
        async with proxy.running() as address:
            set_proxy(monkeypatch, address)
            await ask(LOGIN, certificate.client_context())
    assert "Authorization" not in seen.requests[0].headers
    assert "Authorization" not in proxy.heads[0]


async def test_a_proxy_that_is_in_trouble_is_asked_again(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(certificate, Seen().answer) as port:
        proxy = ConnectProxy({f"{LOGIN}:443": port}, statuses=[503, 502])
        async with proxy.running() as address:
            set_proxy(monkeypatch, address)
            await ask(LOGIN, certificate.client_context(), patience=60)
    assert len(proxy.asked) == 3


# When it fails


ALL = ("http", "tunnel", "related-origins")


async def fail(
    client: str, tls: ssl.SSLContext, *, patience: float = 0, connect_timeout: float = 60
) -> TransportError:
    async def reach() -> None:
        match client:
            case "http":
                await ask(LOGIN, tls, patience=patience)
            case "tunnel":
                url = new_url(f"wss://{LOGIN}", TUNNEL_ID)
                async with open_tunnel(url, tls=tls, connect_timeout=connect_timeout):
                    pass
            case "related-origins":
                async with open_session(tls) as session:
                    await fetch_related_origins(session, LOGIN)

    with pytest.raises(TransportError) as failed:
        await reach()
    return failed.value


MEND = "check HTTPS_PROXY; a host that is reached without a proxy is named in NO_PROXY"
TROUBLE = {
    "refuses": (ConnectProxy({}, statuses=[403]), f"does not connect to {LOGIN} (HTTP status 403): {MEND}"),
    "finds-nobody": (ConnectProxy({}), f"does not connect to {LOGIN} (HTTP status 502): {MEND}"),
    "hangs-up": (
        ConnectProxy({}, hangs_up=True),
        f"does not connect to {LOGIN}: it hung up before it answered: {MEND}",
    ),
    "babbles": (
        ConnectProxy({}, babbles=True),
        f"does not connect to {LOGIN}: it does not speak HTTP as it should: {MEND}",
    ),
    "wants-a-password": (
        ConnectProxy({}, credentials="ada:secret"),
        "wants a name and a password, or others: put them into HTTPS_PROXY, as in http://NAME:PASSWORD@PROXY:PORT",
    ),
}


@pytest.mark.threat("T11")
@pytest.mark.parametrize("client", ALL)
@pytest.mark.parametrize("trouble", TROUBLE)
async def test_a_proxy_that_fails_is_named_and_the_server_is_not_blamed(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, trouble: str, client: str
) -> None:
    proxy, saying = TROUBLE[trouble]
    proxy.statuses = [403] if trouble == "refuses" else []
    async with proxy.running() as address:
        set_proxy(monkeypatch, f"http://ada:{IN_URL}@{address}")
        failed = await fail(client, certificate.client_context())
    assert isinstance(failed, ProxyFailed)
    assert failed.reason is TransportReason.PROXY_FAILED
    assert failed.proxy == address
    assert failed.explain() == f"the proxy {address} {saying}"
    told = "".join(traceback.format_exception(failed))
    for secret in (PASSWORD, IN_URL, TUNNEL_ID.hex()):
        assert secret not in told


@pytest.mark.parametrize("client", ALL)
async def test_a_proxy_that_cannot_be_reached_is_named(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    for address, why in (
        (f"localhost:{reserved_port()}", "connection refused"),
        ("proxy.invalid:3128", "its name cannot be resolved"),
    ):
        set_proxy(monkeypatch, f"http://ada:{IN_URL}@{address}")
        failed = await fail(client, certificate.client_context())
        assert failed.explain() == f"the proxy {address} cannot be reached: {why}: {MEND}"


async def test_a_proxy_that_says_nothing_is_named(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = ConnectProxy({}, keeps_silent=True)
    async with proxy.running() as address:
        set_proxy(monkeypatch, address)
        failed = await fail("tunnel", certificate.client_context(), connect_timeout=0.5)
    assert isinstance(failed, ProxyFailed)
    assert (
        failed.explain()
        == f"the proxy {address} does not connect to {LOGIN}: it did not answer in time: {MEND}"
    )


async def test_a_proxy_whose_own_certificate_is_not_to_be_trusted_is_named(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = make_certificate(tmp_path)
    proxy = ConnectProxy({})
    async with proxy.running(other.server_context()) as address:
        set_proxy(monkeypatch, f"https://{address}")
        failed = await fail("http", certificate.client_context())
    assert isinstance(failed, ProxyFailed)
    assert str(failed).startswith(f"the proxy {address} cannot be reached: its certificate is not trusted")
    assert proxy.asked == []


@pytest.mark.parametrize("status", [403, 407])
async def test_a_proxy_that_refuses_is_not_asked_again(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    proxy = ConnectProxy({}, statuses=[status] * 2)
    async with proxy.running() as address:
        set_proxy(monkeypatch, address)
        await fail("http", certificate.client_context(), patience=60)
    assert len(proxy.asked) == 1


@pytest.mark.threat("T9")
@pytest.mark.parametrize("client", ["http", "tunnel"])
async def test_a_proxy_that_opens_tls_is_not_believed(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, client: str
) -> None:
    """Its certificate, for the server's name, is of an authority that is not ours."""
    seen = Seen()
    async with serving(make_certificate(tmp_path, names=(LOGIN,)), seen.answer) as port:
        proxy = ConnectProxy({f"{LOGIN}:443": port})
        async with proxy.running() as address:
            set_proxy(monkeypatch, address)
            failed = await fail(client, certificate.client_context())
    assert failed.reason is TransportReason.UNTRUSTED_CERTIFICATE
    assert f"{LOGIN} (through the proxy {address}) cannot be reached: its certificate is not trusted" in str(
        failed
    )
    assert seen.requests == []


async def test_a_server_that_fails_behind_a_proxy_that_works_is_blamed_itself(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def vanish(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with serving(certificate, vanish) as port:
        proxy = ConnectProxy({f"{LOGIN}:443": port})
        async with proxy.running() as address:
            set_proxy(monkeypatch, address)
            failed = await fail("http", certificate.client_context())
    assert failed.reason is TransportReason.UNREACHABLE
    assert (
        str(failed)
        == f"{LOGIN} (through the proxy {address}) cannot be reached: it hung up before it answered"
    )


# What the doctor says


@pytest.mark.threat("T11")
async def test_the_doctor_says_which_proxy_is_used_and_not_its_password(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(make_app(), shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.server_context()).start()
        proxy = ConnectProxy({f"{TUNNELS}:443": runner.addresses[0][1]}, credentials=f"ada:{PASSWORD}")
        async with proxy.running() as address:
            set_proxy(monkeypatch, f"http://ada:{IN_URL}@{address}")
            tunnels = {0: f"wss://{TUNNELS}", 1: "wss://nobody.test"}
            good, bad = await examine_tunnel_services(tunnels, certificate.client_context())
            set_proxy(monkeypatch, f"http://{address}")
            refused, _ = await examine_tunnel_services(tunnels, certificate.client_context())
    finally:
        await runner.cleanup()
    assert (good.status, good.message) == (Status.OK, f"{TUNNELS} opens tunnels through the proxy {address}")
    assert bad.reason is TransportReason.PROXY_FAILED
    assert bad.message == f"the proxy {address} does not connect to nobody.test (HTTP status 502)"
    assert bad.mend == MEND
    assert refused.message == f"the proxy {address} wants a name and a password, or others"
    assert str(refused.mend).startswith("put them into HTTPS_PROXY")
    assert PASSWORD not in json.dumps([good.message, bad.message])
    assert base64.b64encode(PASSWORD.encode()).decode() not in json.dumps([good.message, bad.message])
