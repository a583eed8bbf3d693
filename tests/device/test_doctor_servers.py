"""The doctor on servers: real ones on loopback, each broken in one way."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from certificates import Certificate, make_certificate
from yarl import URL

from headless_passkey.doctor import servers
from headless_passkey.doctor.finding import Check, Finding, Status
from headless_passkey.doctor.servers import examine_relying_party, examine_tunnel_services
from headless_passkey.errors import ExitStatus, SetupReason, TransportReason
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.tls import tls_context
from relying_party.http.app import make_app as make_relying_party
from relying_party.http.app import well_known_routes
from tests.companion.device import tunnel_service
from tests.ports import reserved_port
from tests.rp.clients import make_config

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(
    handler: Handler, certificate: Certificate | None, host: str = "localhost"
) -> AsyncIterator[str]:
    """A web server that answers everything with `handler`: its host and port."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        tls = None if certificate is None else certificate.server_context()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield f"{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def silent() -> AsyncIterator[str]:
    """Takes connections and says nothing."""
    over = asyncio.Event()

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    try:
        yield f"localhost:{server.sockets[0].getsockname()[1]}"
    finally:
        over.set()
        server.close()
        await server.wait_closed()


def nobody() -> str:
    """Where nothing listens."""
    return f"localhost:{reserved_port()}"


def saying(status: int) -> Handler:
    async def handler(_request: web.Request) -> web.StreamResponse:
        # where a redirect leads does not matter: it is not followed
        return web.Response(status=status, headers={"Location": "/"} if status == 302 else None)

    return handler


async def websocket_of_something_else(request: web.Request) -> web.StreamResponse:
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    await websocket.receive()
    return websocket


@pytest.fixture
def no_public_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test goes to the network."""
    monkeypatch.setattr(servers, "ASSIGNED_DOMAINS", ())


async def own(host: str, ca: Path | None) -> Finding:
    """What is found of a tunnel service of one's own."""
    (finding,) = await examine_tunnel_services({300: f"wss://{host}"}, tls_context(ca))
    assert (finding.check, finding.subject) == (Check.TUNNEL_SERVICE, host)
    return finding


# Tunnel services


@pytest.mark.usefixtures("no_public_services")
async def test_a_tunnel_service_is_one_and_keeps_nothing_of_it(loopback_certificate: Certificate) -> None:
    async with tunnel_service(loopback_certificate) as base:
        finding = await own(base.removeprefix("wss://"), loopback_certificate.ca)
    assert (finding.status, finding.reason, finding.mend) == (Status.OK, None, None)
    assert "opens tunnels" in finding.message


@pytest.mark.usefixtures("no_public_services")
async def test_without_tunnel_services_there_is_nothing_to_find() -> None:
    assert await examine_tunnel_services({}, None) == []


@pytest.mark.usefixtures("no_public_services")
async def test_where_nothing_listens_the_service_is_unreachable(loopback_certificate: Certificate) -> None:
    host = nobody()
    finding = await own(host, loopback_certificate.ca)
    assert (finding.status, finding.reason) == (Status.PROBLEM, TransportReason.UNREACHABLE)
    assert "connection refused" in finding.message
    assert f"`curl --verbose https://{host}`" in str(finding.mend)
    assert finding.exit_status is ExitStatus.TRANSPORT


@pytest.mark.usefixtures("no_public_services")
async def test_a_name_that_does_not_resolve_is_named_as_such() -> None:
    finding = await own("nowhere.invalid", None)
    assert (finding.status, finding.reason) == (Status.PROBLEM, TransportReason.NAME_NOT_RESOLVED)
    assert "`getent hosts nowhere.invalid`" in str(finding.mend)


@pytest.mark.usefixtures("no_public_services")
async def test_a_silent_server_is_given_up(
    loopback_certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "LIMIT", 0.2)
    async with silent() as host:
        finding = await own(host, loopback_certificate.ca)
        (party,) = await examine_relying_party(
            BaseUrl.parse(f"https://{host}"), tls_context(loopback_certificate.ca)
        )
    assert finding.reason is party.reason is TransportReason.UNREACHABLE
    assert "did not answer in time" in finding.message
    assert "did not answer in time" in party.message


@pytest.mark.usefixtures("no_public_services")
async def test_a_certificate_of_an_unknown_authority_or_for_another_name_is_not_believed(
    loopback_certificate: Certificate, tmp_path: Path
) -> None:
    other = make_certificate(tmp_path, names=("other.example",))
    async with (
        answering(saying(404), loopback_certificate) as unknown,
        answering(saying(404), other) as misnamed,
    ):
        findings = [await own(unknown, None), await own(misnamed, other.ca)]
    for finding in findings:
        assert finding.reason is TransportReason.UNTRUSTED_CERTIFICATE
        assert "clock" not in str(finding.mend)
    assert "--ca FILE" in str(findings[0].mend)
    assert "wants a login" in str(findings[1].mend)  # another authority would not help
    assert "mismatch" in findings[1].message


@pytest.mark.parametrize(("days", "words"), [(-30, "expired"), (30, "not yet valid")])
@pytest.mark.usefixtures("no_public_services")
async def test_a_certificate_out_of_its_dates_may_be_the_fault_of_this_clock(
    tmp_path: Path, days: int, words: str
) -> None:
    certificate = make_certificate(tmp_path, now=dt.datetime.now(dt.UTC) + dt.timedelta(days=days))
    async with answering(saying(404), certificate) as host:
        finding = await own(host, certificate.ca)
    assert finding.reason is TransportReason.UNTRUSTED_CERTIFICATE
    assert words in finding.message
    assert "clock" in str(finding.mend)


@pytest.mark.usefixtures("no_public_services")
async def test_a_server_without_tls_is_unreachable(loopback_certificate: Certificate) -> None:
    async with answering(saying(404), None) as host:
        finding = await own(host, loopback_certificate.ca)
    assert finding.reason is TransportReason.UNREACHABLE
    assert "does not speak TLS" in finding.message


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.usefixtures("no_public_services")
async def test_a_service_that_cannot_serve_is_told_from_one_that_is_none(
    loopback_certificate: Certificate, status: int
) -> None:
    async with answering(saying(status), loopback_certificate) as host:
        finding = await own(host, loopback_certificate.ca)
    assert (finding.status, finding.reason) == (Status.PROBLEM, TransportReason.SERVER_FAILED)


@pytest.mark.parametrize(
    "handler",
    [saying(404), saying(200), saying(302), websocket_of_something_else],
    ids=["404", "200", "302", "websocket"],
)
@pytest.mark.usefixtures("no_public_services")
async def test_another_web_server_is_no_tunnel_service(
    loopback_certificate: Certificate, handler: Handler
) -> None:
    async with answering(handler, loopback_certificate) as host:
        finding = await own(host, loopback_certificate.ca)
    assert (finding.status, finding.reason) == (Status.PROBLEM, SetupReason.WRONG_SERVER)
    assert finding.exit_status is ExitStatus.SETUP


async def assigned(
    host: str, monkeypatch: pytest.MonkeyPatch, ca: Path, tunnels: dict[int, str] | None = None
) -> Finding:
    """What is found of an assigned tunnel service at `host`."""
    monkeypatch.setattr(servers, "ASSIGNED_DOMAINS", (host,))
    findings = await examine_tunnel_services(tunnels or {}, tls_context(ca))
    return next(finding for finding in findings if finding.subject == host)


async def test_an_assigned_service_is_asked_for_a_tunnel_that_is_not_there(
    loopback_certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = loopback_certificate.ca
    paths = []

    async def count(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        return web.Response(status=404)

    async with tunnel_service(loopback_certificate) as base:
        finding = await assigned(base.removeprefix("wss://"), monkeypatch, ca)
        assert finding.status is Status.OK
    async with answering(count, loopback_certificate) as host:
        assert (await assigned(host, monkeypatch, ca)).status is Status.OK
    assert [path.rpartition("/cable/")[2].partition("/")[0] for path in paths] == ["connect"]


@pytest.mark.parametrize("number", [1, 300])
async def test_an_assigned_service_that_is_away_is_a_problem_only_without_one_of_ones_own(
    loopback_certificate: Certificate, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    ca = loopback_certificate.ca
    alone = await assigned(nobody(), monkeypatch, ca)
    assert (alone.status, alone.reason) == (Status.PROBLEM, TransportReason.UNREACHABLE)
    async with tunnel_service(loopback_certificate) as base:
        beside = await assigned(nobody(), monkeypatch, ca, {number: base})
    assert (beside.status, beside.reason) == (Status.WARNING, TransportReason.UNREACHABLE)
    assert beside.exit_status is ExitStatus.DONE


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (saying(503), TransportReason.SERVER_FAILED),
        (saying(200), SetupReason.WRONG_SERVER),
        (saying(302), SetupReason.WRONG_SERVER),
        (websocket_of_something_else, SetupReason.WRONG_SERVER),
    ],
)
async def test_what_answers_in_an_assigned_services_place_is_told(
    loopback_certificate: Certificate, monkeypatch: pytest.MonkeyPatch, handler: Handler, reason: str
) -> None:
    async with answering(handler, loopback_certificate) as host:
        assert (await assigned(host, monkeypatch, loopback_certificate.ca)).reason is reason


async def test_an_assigned_number_with_a_service_of_ones_own_is_not_looked_for(
    loopback_certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "ASSIGNED_DOMAINS", ("nowhere.invalid",))
    async with tunnel_service(loopback_certificate) as base:
        (finding,) = await examine_tunnel_services({0: base}, tls_context(loopback_certificate.ca))
    assert finding.status is Status.OK


# The relying party


async def relying_party(folder: Path, path: str, told: str) -> Finding:
    """What the doctor finds at `told`, where a relying party is mounted at `path` of an otherwise empty service."""
    origin = f"http://localhost:{reserved_port()}"
    config = make_config(
        folder / "rp.sqlite",
        rp_id="localhost",
        web_origins=(origin,),
        device_origins=(),
        public_url=origin + path,
    )
    app = make_relying_party(config, with_pages=not path)
    if path:
        mounted, app = app, web.Application()
        app.add_subapp(path, mounted)
        app.add_routes(well_known_routes(config))
    async with TestServer(app, host="localhost", port=URL(origin).port):
        (finding,) = await examine_relying_party(BaseUrl.parse(origin + told), None)
    return finding


@pytest.mark.parametrize(
    ("path", "told", "message"),
    [
        ("", "", "answers"),
        ("", "/", "answers"),
        ("/passkeys", "/passkeys", "answers"),
        ("/passkeys", "/passkeys/", "answers"),
        ("/passkeys", "", "answers, mounted at /passkeys"),
        ("/a/b", "", "answers, mounted at /a/b"),
    ],
    ids=["root", "slash", "prefix", "prefix-slash", "found", "found-deep"],
)
async def test_a_relying_party_answers(tmp_path: Path, path: str, told: str, message: str) -> None:
    finding = await relying_party(tmp_path, path, told)
    assert finding.status is Status.OK, finding
    assert finding.message.endswith(message)


async def test_a_path_at_which_none_is_mounted_is_named(tmp_path: Path) -> None:
    finding = await relying_party(tmp_path, "/passkeys", "/elsewhere")
    assert (finding.status, finding.reason) == (Status.PROBLEM, SetupReason.WRONG_SERVER)
    assert "/elsewhere answers, but not as a relying party (HTTP status 404)" in finding.message
    assert finding.mend is not None
    assert "as in https://localhost:" in finding.mend


@pytest.mark.parametrize("status", [200, 302, 404])
async def test_another_web_server_is_no_relying_party(loopback_certificate: Certificate, status: int) -> None:
    async with answering(saying(status), loopback_certificate) as host:
        (finding,) = await examine_relying_party(
            BaseUrl.parse(f"https://{host}"), tls_context(loopback_certificate.ca)
        )
    assert (finding.status, finding.reason) == (Status.PROBLEM, SetupReason.WRONG_SERVER)


@pytest.mark.parametrize(
    ("handler", "ca", "reason"),
    [
        (saying(503), True, TransportReason.SERVER_FAILED),
        (saying(405), False, TransportReason.UNTRUSTED_CERTIFICATE),
    ],
)
async def test_a_relying_party_that_cannot_serve_or_be_believed_is_a_problem(
    loopback_certificate: Certificate,
    handler: Handler,
    ca: bool,  # noqa: FBT001
    reason: TransportReason,
) -> None:
    async with answering(handler, loopback_certificate) as host:
        tls = tls_context(loopback_certificate.ca if ca else None)
        (finding,) = await examine_relying_party(BaseUrl.parse(f"https://{host}"), tls)
    assert (finding.status, finding.reason) == (Status.PROBLEM, reason)


async def test_a_relying_party_that_is_away_or_has_no_address_is_a_problem() -> None:
    (away,) = await examine_relying_party(BaseUrl.parse(f"https://{nobody()}"), None)
    (nameless,) = await examine_relying_party(BaseUrl.parse("https://nowhere.invalid"), None)
    assert away.reason is TransportReason.UNREACHABLE
    assert nameless.reason is TransportReason.NAME_NOT_RESOLVED
