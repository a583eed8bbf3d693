"""The three server programs are served in one way: options, words, signals, drain, sockets, trusted proxies."""

import argparse
import asyncio
import contextlib
import json
import re
import resource
import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import aiohttp
import pytest
from aiohttp import web
from certificates import Certificate
from yarl import URL

from companion_push.cli import main as push_main
from companion_push.cli import make_parser as make_push_parser
from companion_push.relay import app as relay_app
from companion_push.relay.config import RelayConfig
from companion_push.serving import http_server as push_http_server
from http_serving import addresses
from relying_party.cli import main as party_main
from relying_party.cli import make_parser as make_party_parser
from relying_party.http import http_server as party_http_server
from relying_party.http import request as party_request
from relying_party.http.app import make_app as make_party
from tests.ports import reserved_port
from tests.programs import running
from tests.relay.household import Caller, Clock
from tests.rp.authenticator_double import DeviceKey
from tests.rp.clients import make_config
from tests.test_documentation import leaves
from tests.test_servers import PATIENCE, PROGRAMS
from tests.trust.people import companion

NOTE = "no certificate: plain HTTP, on loopback only"
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def words(name: str, folder: Path, *more: str, listen: str = "127.0.0.1:0") -> list[str]:
    store = () if name == "tunnel-service" else ("--store", str(folder / "store"))
    return [*PROGRAMS[name], "--listen", listen, *store, *more]


def refusal(name: str, args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status, and the one line of stderr without the program's name."""
    main: Callable[[list[str]], int] = push_main if args[0] == "companion_push" else party_main
    status = main(args[1:])
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    (line,) = (line for line in stderr.splitlines() if line != NOTE)
    message = line.partition(": ")[2]
    for advice in (": end what listens there", ": listen on an address"):  # which the push programs add
        message = message.partition(advice)[0]
    return status, message


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.fixture(params=PROGRAMS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def parser_of(name: str) -> argparse.ArgumentParser:
    parser = make_party_parser() if name == "relying-party" else make_push_parser(name)
    return next(leaf for leaf in leaves(parser) if leaf.prog.split()[-1] in (name, "serve"))


# Words


@pytest.mark.parametrize("option", ["--cert", "--key", "--trusted-proxy", "--metrics", "--listen"])
def test_an_option_of_all_servers_is_the_same_in_each(option: str) -> None:
    said = set()
    for name in PROGRAMS:
        (action,) = (one for one in parser_of(name)._actions if option in one.option_strings)
        help_text, default = str(action.help), action.default
        if option == "--listen":
            help_text, default = help_text.replace(str(default[1]), "PORT"), default[0]
        said.add((help_text, action.metavar, str(default), type(action).__name__))
    assert len(said) == 1, said


def test_the_public_url_is_one_option_of_both_servers_that_have_one() -> None:
    texts = []
    for name in ("relay", "relying-party"):
        (action,) = (one for one in parser_of(name)._actions if "--public-url" in one.option_strings)
        texts.append((action.metavar, str(action.help).partition(";")[0]))
    assert texts == [("URL", "what clients call it by")] * 2


def test_a_certificate_without_its_key_is_refused(
    name: str, tmp_path: Path, loopback_certificate: Certificate, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, file in (("--cert", loopback_certificate.cert), ("--key", loopback_certificate.key)):
        args = words(name, tmp_path, option, str(file))
        assert refusal(name, args, capsys) == (2, "--cert and --key go together")


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
def test_plain_http_is_for_this_machine_alone(
    name: str, listen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = words(name, tmp_path, listen=listen)
    assert refusal(name, args, capsys) == (
        2,
        "without --cert and --key only loopback addresses are listened on, unless --trusted-proxy names who may come",
    )


def test_an_address_that_is_taken_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        args = words(name, tmp_path, listen=listen)
        assert refusal(name, args, capsys) == (10, f"cannot listen on {listen}: Address already in use")


def test_an_address_of_another_machine_is_named(
    name: str, tmp_path: Path, loopback_certificate: Certificate, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--cert", str(loopback_certificate.cert), "--key", str(loopback_certificate.key))
    args = words(name, tmp_path, *files, listen="192.0.2.1:8470")
    assert refusal(name, args, capsys) == (
        10,
        "cannot listen on 192.0.2.1:8470: not an address of this machine",
    )


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example", ".example"])
def test_a_name_that_is_none_is_named(
    name: str, host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = words(name, tmp_path, listen=f"{host}:8470")
    assert refusal(name, args, capsys) == (10, f"cannot listen on {host}:8470: not a host's name")


@pytest.mark.parametrize("proxy", ["proxy.example", "10.0.0.0/33", "", "10.0.0.0/8/8"])
def test_a_trusted_proxy_is_an_address_or_a_network(
    name: str, proxy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        refusal(name, words(name, tmp_path, f"--trusted-proxy={proxy}"), capsys)
    assert ended.value.code == 2
    assert "expected an address or a network, such as 10.0.0.0/8" in capsys.readouterr().err


# Sockets, signals, drain


def families_of_localhost() -> set[str]:
    found = set()
    for _, _, _, _, address in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM):
        with (
            contextlib.suppress(OSError),
            socket.create_server(
                (address[0], 0), family=socket.AF_INET6 if ":" in str(address[0]) else socket.AF_INET
            ),
        ):
            found.add(str(address[0]))
    return found


async def test_a_name_is_listened_to_at_each_of_its_addresses(name: str, tmp_path: Path) -> None:
    async with running(*words(name, tmp_path, listen="localhost:0")) as program:
        port = port_of(await program.line())
        for host in families_of_localhost():
            _, writer = await asyncio.open_connection(host, port)
            writer.transport.abort()
        assert await program.end() == 0


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
async def test_each_signal_that_asks_it_to_end_ends_it_cleanly(
    name: str, number: signal.Signals, tmp_path: Path
) -> None:
    async with running(*words(name, tmp_path)) as program:
        await program.line()
        assert await program.end(number) == 0
        assert (await program.stderr()).splitlines() == [NOTE]


async def refused(port: int) -> None:
    """Wait until nobody listens at `port` any more."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            except ConnectionResetError:  # it was still waiting to be accepted
                continue
            writer.transport.abort()


async def half_a_request(name: str, url: str) -> tuple[bytes, bytes]:
    """A request that the server has begun to read, and its rest."""
    body = b"{}"
    if name == "relay":
        async with aiohttp.ClientSession() as session:
            caller = Caller(companion(), session, url, Clock())
            await caller.get("/v1/ring")  # which gives it a nonce
        path, more = "/v1/accounts", f"DPoP: {caller.proof('POST', '/v1/accounts')}"
    else:
        path, more = "/webauthn/authentication/options", f"Origin: {url}"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n{more}\r\n\r\n"
    return head.encode() + body[:1], body[1:]


async def under_way(url: str, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which the server has begun to read `request`: it answers another one after it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url))
    writer.write(request)
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            async with session.get(url.replace("localhost", "127.0.0.1") + "/livez") as response:
                assert response.status in (200, 204)
    return reader, writer


SERVERS = pytest.mark.parametrize(
    "server", [push_http_server, party_http_server], ids=["companion_push", "relying_party"]
)


@SERVERS
async def test_what_is_under_way_is_answered_and_nothing_new_is_taken(server: ModuleType) -> None:
    begun, done = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.StreamResponse:
        begun.set()
        await done.wait()
        return web.Response(text="done")

    app = web.Application()
    app.router.add_get("/", slow)
    runner = server.Runner(app, shutdown_timeout=PATIENCE)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as session, asyncio.timeout(PATIENCE):
        asking = asyncio.ensure_future(session.get(f"http://127.0.0.1:{port}/"))
        await begun.wait()
        ending = asyncio.ensure_future(runner.cleanup())
        await refused(port)
        assert not ending.done()
        done.set()
        async with await asking as response:
            assert await response.text() == "done"
        await ending


@pytest.mark.threat("T12")
@pytest.mark.parametrize("name", ["relay", "relying-party"])
async def test_a_body_that_does_not_come_is_refused_in_the_same_words(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://localhost:{reserved_port()}"
    if name == "relay":
        monkeypatch.setattr(relay_app, "BODY_SECONDS", 0.01)
        app = relay_app.make_app(RelayConfig(public_url=url, store=tmp_path / "store"))
    else:
        monkeypatch.setattr(party_request, "BODY_SECONDS", 0.01)
        app = make_party(
            make_config(
                tmp_path / "store", rp_id="localhost", public_url=url, web_origins=(url,), device_origins=()
            )
        )
    runner = push_http_server.Runner(app) if name == "relay" else party_http_server.Runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port_of(url)).start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url))
        writer.write((await half_a_request(name, url))[0])
        async with asyncio.timeout(PATIENCE):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length is not None
            problem = json.loads(await reader.readexactly(int(length[1])))
        assert head.split()[1] == b"400"
        assert problem["detail"] == "the body did not come in time"
        writer.transport.abort()
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("name", ["relay", "relying-party"])
async def test_a_client_that_never_ends_its_request_keeps_no_server_from_ending(
    name: str, tmp_path: Path
) -> None:
    async with running(*words(name, tmp_path)) as program:
        url = await program.line()
        first, _ = await half_a_request(name, url)
        _, writer = await under_way(url, first)
        async with asyncio.timeout(PATIENCE):
            assert await program.end() == 0
        writer.transport.abort()


async def test_a_silent_connection_keeps_no_server_from_ending(name: str, tmp_path: Path) -> None:
    async with running(*words(name, tmp_path)) as program:
        url = await program.line()
        _, writer = await under_way(url.replace("ws://", "http://"), b"")
        async with asyncio.timeout(PATIENCE):
            assert await program.end() == 0
        writer.transport.abort()


async def test_with_a_certificate_it_speaks_tls(
    name: str, tmp_path: Path, loopback_certificate: Certificate
) -> None:
    files = ("--cert", str(loopback_certificate.cert), "--key", str(loopback_certificate.key))
    async with running(*words(name, tmp_path, *files)) as program:
        url = await program.line()
        assert url.partition("://")[0] == ("wss" if name == "tunnel-service" else "https")
        tls: ssl.SSLContext = loopback_certificate.client_context()
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"https://localhost:{port_of(url)}/livez", ssl=tls) as response,
        ):
            assert response.status in (200, 204)
        assert await program.end() == 0
        assert await program.stderr() == ""


@pytest.mark.threat("T12")
async def test_a_server_that_can_open_no_more_connections_says_so_once_and_goes_on_when_it_can(
    name: str, tmp_path: Path
) -> None:
    async with running(*words(name, tmp_path)) as program:
        port = port_of(await program.line())
        resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, (40, 40))
        flood = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        async with asyncio.timeout(PATIENCE):
            await program.heard("no more connections are accepted for now: Too many open files")
        for _, writer in flood:
            writer.transport.abort()
        async with (
            asyncio.timeout(PATIENCE),
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/livez") as response,
        ):
            assert response.status in (200, 204)
        assert await program.end() == 0
        lines = (await program.stderr()).splitlines()
        assert len(lines) <= 10, lines
        assert all(
            re.search(
                "no more connections|could not be accepted|no certificate|idle connections are closed", line
            )
            for line in lines
        ), lines


async def test_a_server_that_can_open_no_more_connections_can_be_ended(name: str, tmp_path: Path) -> None:
    async with running(*words(name, tmp_path)) as program:
        port = port_of(await program.line())
        resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, (40, 40))
        flood = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        async with asyncio.timeout(PATIENCE):
            await program.heard("no more connections are accepted for now: Too many open files")
            assert await program.end() == 0
        for _, writer in flood:
            writer.transport.abort()
        lines = (await program.stderr()).splitlines()
        assert len(lines) <= 10, lines
        assert not any("Traceback" in line for line in lines), lines


# Trusted proxies

PROXIES = ["10.0.0.0/8", "::1", "192.0.2.7"]


@pytest.mark.parametrize(
    ("peer", "told", "client"),
    [
        ("203.0.113.5", [], "203.0.113.5"),
        ("203.0.113.5", ["198.51.100.1"], "203.0.113.5"),  # anybody can write that
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1, 10.2.3.4"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1,192.0.2.7 , 10.2.3.4"], "198.51.100.1"),
        ("10.0.0.1", ["10.1.1.1, 10.2.3.4"], "10.1.1.1"),
        ("::1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, _hidden, 10.2.3.4"], "10.2.3.4"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1,"], "10.0.0.1"),
        ("", ["198.51.100.1"], ""),
        ("fe80::1%eth0", ["198.51.100.1"], "fe80::1%eth0"),
    ],
)
def test_a_client_is_whom_the_last_trusted_proxy_names(peer: str, told: list[str], client: str) -> None:
    trusted = [addresses.network(text) for text in PROXIES]
    assert addresses.client_address(peer, told, trusted) == client
    assert addresses.client_address(peer, told, []) == peer


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:0:ffff:ffff:ffff:ffff", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("a socket", "a socket"),
    ],
)
def test_an_ipv6_network_counts_as_one_address(address: str, place: str) -> None:
    assert addresses.neighbourhood(address) == place


@pytest.mark.threat("T13")
@SERVERS
@pytest.mark.parametrize(
    ("trusted", "seen"),
    [(["127.0.0.1"], "198.51.100.1"), (["10.0.0.0/8"], "127.0.0.1"), ([], "127.0.0.1")],
    ids=["trusted", "another", "nobody"],
)
async def test_an_application_sees_the_clients_address_behind_a_trusted_proxy(
    server: ModuleType, trusted: list[str], seen: str
) -> None:
    async def tell(request: web.Request) -> web.StreamResponse:
        if request.path == "/socket":
            websocket = web.WebSocketResponse()
            await websocket.prepare(request)
            await websocket.send_str(str(request.remote))
            await websocket.close()
            return websocket
        return web.Response(text=f"{request.remote} {await request.text()}")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", tell)
    runner = server.Runner(app, trusted_proxies=[addresses.network(text) for text in trusted])
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    base, headers = f"http://127.0.0.1:{runner.addresses[0][1]}", {"X-Forwarded-For": "1.1.1.1, 198.51.100.1"}
    try:
        async with aiohttp.ClientSession() as session:
            async with session.post(base + "/x", data=b"body", headers=headers) as response:
                assert await response.text() == f"{seen} body"
            async with session.ws_connect(base + "/socket", headers=headers) as websocket:
                assert await websocket.receive_str() == seen
    finally:
        await runner.cleanup()


PUBLIC = {
    "relay": ("--public-url", "https://example.com/base"),
    "tunnel-service": (),
    "relying-party": ("--public-url", "https://example.com/base", "--rp-id", "example.com"),
}


def own_address() -> str:
    """An address of this machine that is not loopback, from which a stranger's request can come."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(one.getsockname()[0])


@pytest.mark.threat("T13")
@pytest.mark.parametrize("proxy", ["192.0.2.7", "itself"])
async def test_plain_http_of_strangers_is_answered_with_421(name: str, tmp_path: Path, proxy: str) -> None:
    address = own_address()
    trusted = ("--trusted-proxy", address if proxy == "itself" else proxy)
    url = PUBLIC[name]
    async with running(*words(name, tmp_path, *trusted, *url, listen="0.0.0.0:0")) as program:
        port = port_of(await program.line())
        async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
            for path in ("nowhere", "base/nowhere", "cable/new/00"):
                async with session.get(f"http://{address}:{port}/{path}") as response:
                    assert (response.status == 421) == (proxy != "itself")
                async with session.get(f"http://127.0.0.1:{port}/{path}") as response:
                    assert response.status != 421
            async with session.get(f"http://{address}:{port}/livez") as response:
                assert response.status in (200, 204)  # who restarts it asks without a proxy
        assert await program.end() == 0
        assert await program.stderr() == "no certificate: plain HTTP, for trusted proxies and loopback only\n"


@pytest.mark.threat("T13")
async def test_a_trusted_proxy_changes_nothing_for_those_who_come_over_tls(
    name: str, tmp_path: Path, loopback_certificate: Certificate
) -> None:
    files = ("--cert", str(loopback_certificate.cert), "--key", str(loopback_certificate.key))
    url = PUBLIC[name]
    more = (*files, *url, "--trusted-proxy", "192.0.2.7")
    async with running(*words(name, tmp_path, *more, listen="0.0.0.0:0")) as program:
        port = port_of(await program.line())
        async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
            tls = loopback_certificate.client_context()
            tls.check_hostname = False
            async with session.get(f"https://{own_address()}:{port}/nowhere", ssl=tls) as response:
                assert response.status == 404
        assert await program.end() == 0


@SERVERS
@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        ("/push/v1/x?a=%2Fb", "/v1/x?a=%2Fb"),  # the proxy has left it on
        ("/v1/x?a=b", "/v1/x?a=b"),  # or taken it off
        ("/push/", "/"),
        ("/push/a%2Fb", "/a%2Fb"),
        ("/push", "/push"),
        ("/pushed/x", "/pushed/x"),
        ("/push//other.example/x", "/push//other.example/x"),
        ("/push/push/x", "/push/x"),
    ],
)
async def test_a_proxy_may_leave_the_path_of_the_public_url_on_or_take_it_off(
    server: ModuleType, asked: str, seen: str
) -> None:
    async def tell(request: web.Request) -> web.StreamResponse:
        return web.Response(text=f"{request.rel_url.raw_path_qs} {await request.text()}")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", tell)
    runner = server.Runner(app, prefix="/push")
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = URL(f"http://127.0.0.1:{runner.addresses[0][1]}{asked}", encoded=True)
    try:
        async with aiohttp.ClientSession() as session, session.post(url, data=b"body") as response:
            assert await response.text() == f"{seen} body"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("left_on", [True, False], ids=["left on", "taken off"])
async def test_programs_are_called_below_the_path_of_their_public_url(
    left_on: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    base = "https://host.example/push"
    (tmp_path / "relay").mkdir()
    async with running(*words("relay", tmp_path / "relay", "--public-url", base)) as program:
        arrives = f"http://127.0.0.1:{port_of(await program.line())}{'/push' if left_on else ''}"
        anna = Caller(companion(), None, base, Clock())  # type: ignore[arg-type]
        async with aiohttp.ClientSession() as session:
            for answer in (":use-dpop-nonce", ":not-found"):
                headers = {"DPoP": anna.proof("GET", "/v1/ring")}
                async with session.get(arrives + "/v1/ring", headers=headers) as response:
                    assert (await response.json(content_type=None))["type"].endswith(answer)
                    anna.kept["nonce"] = response.headers["DPoP-Nonce"]
    options = ("--public-url", "https://host.example/passkeys", "--rp-id", "host.example")
    async with running(*words("relying-party", tmp_path, *options)) as program:
        prefix = "/passkeys" if left_on else ""
        arrives = f"http://127.0.0.1:{port_of(await program.line())}{prefix}"
        async with aiohttp.ClientSession() as session:
            path = "/webauthn/authentication/options"
            key, url, nonce = DeviceKey(), "https://host.example/passkeys" + path, None
            for status in (401, 200):
                proof = key.proof("POST", url, time.time(), nonce=nonce)
                async with session.post(arrives + path, json={}, headers={"DPoP": proof}) as response:
                    assert response.status == status, await response.text()
                    nonce = response.headers["DPoP-Nonce"]
            async with session.get(arrives + "/") as response:
                assert '"/passkeys/static/passkeys.js"' in await response.text()
            async with session.get(arrives + "/.well-known/passkey-endpoints") as response:
                assert await response.json() == dict.fromkeys(
                    ("enroll", "manage"), "https://host.example/passkeys/"
                )


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("name", "limit", "path"),
    [
        ("tunnel-service", "--rate=1", "/cable/nothing"),
        ("relying-party", "--requests-per-minute=1", "/webauthn/authentication/options"),
    ],
)
async def test_limits_for_an_address_count_the_clients_of_a_trusted_proxy_apart(
    name: str, limit: str, path: str, tmp_path: Path
) -> None:
    async with running(*words(name, tmp_path, limit, "--trusted-proxy", "127.0.0.0/8")) as program:
        url = (await program.line()).replace("ws://", "http://")
        base = f"http://127.0.0.1:{port_of(url)}"
        seen = []
        async with aiohttp.ClientSession() as session:
            for client in ("198.51.100.1", "198.51.100.1", "198.51.100.2", "2001:db8::1", "2001:db8::2"):
                headers = {"X-Forwarded-For": client, "Origin": url}
                async with session.post(base + path, json={}, headers=headers) as response:
                    seen.append(response.status == 429)
        assert seen == [False, True, False, False, True]
        assert await program.end() == 0
