"""What the server programs have in common: certificates, requests that are not HTTP, and a disk that is full."""

import asyncio
import contextlib
import json
import logging
import re
import resource
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import companion_backend
import pytest
import resource_server as resource_server_example
import rp_backend
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from certificates import Certificate, make_certificate
from cryptography.hazmat.primitives import serialization

from companion_push.cli import main as push_main
from companion_push.relay.config import RelayConfig
from companion_push.tunnel_service.app import make_app as make_tunnel_service
from headless_passkey.errors import UsageError as PushUsageError
from program_parts.base64url import base64url
from relying_party.cli import main as party_main
from relying_party.config import Config
from relying_party.errors import UsageError
from tests.programs import Program, running
from tests.relay.household import Caller, Clock
from tests.relay.test_command import found
from tests.rp.authenticator_double import create
from tests.rp.test_program import Visitor
from tests.trust.people import companion, device

PATIENCE = 30.0  # seconds: far more than anything here takes, so that a hang is a failure
SECRET = b"00112233445566778899AABBCCDDEEFF"  # stands for a tunnel ID, a proof, a cookie

PROGRAMS: dict[str, list[str]] = {
    "relay": ["companion_push", "relay"],
    "tunnel-service": ["companion_push", "tunnel-service"],
    "relying-party": ["relying_party", "serve"],
}
METRICS = {"metrics of relay": "relay", "metrics of relying-party": "relying-party"}


# Certificates


def locked(key: Path, folder: Path) -> Path:
    """The same key, behind a passphrase."""
    private_key = serialization.load_pem_private_key(key.read_bytes(), None)
    path = folder / "locked.pem"
    path.write_bytes(
        private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    return path


def written(path: Path, text: bytes) -> Path:
    path.write_bytes(text)
    return path


# what is given as certificate and as key, and the one sentence about it
Files = Callable[[Certificate, Path], tuple[Path, Path, str]]
TROUBLE: dict[str, Files] = {
    "no-certificate-file": lambda good, folder: (
        folder / "absent.pem", good.key, f"--cert: cannot read {folder}/absent.pem: No such file or directory"
    ),
    "no-key-file": lambda good, folder: (
        good.cert, folder / "absent.pem", f"--key: cannot read {folder}/absent.pem: No such file or directory"
    ),
    "a-folder-for-a-certificate": lambda good, folder: (
        folder, good.key, f"--cert: cannot read {folder}: Is a directory"
    ),
    "a-key-for-a-certificate": lambda good, _folder: (
        good.key, good.key, f"--cert: {good.key} holds no certificate in PEM form"
    ),
    "a-certificate-for-a-key": lambda good, _folder: (
        good.cert, good.cert, f"--key: {good.cert} holds no private key in PEM form"
    ),
    "an-empty-certificate-file": lambda good, folder: (
        written(folder / "empty.pem", b""), good.key, f"--cert: {folder}/empty.pem holds no certificate in PEM form"
    ),
    "an-empty-key-file": lambda good, folder: (
        good.cert, written(folder / "empty.pem", b""), f"--key: {folder}/empty.pem holds no private key in PEM form"
    ),
    "a-broken-certificate": lambda good, folder: (
        written(folder / "broken.pem", good.cert.read_bytes()[:300]),
        good.key,
        f"--cert: {folder}/broken.pem holds no certificate in PEM form",
    ),
    "a-key-with-a-passphrase": lambda good, folder: (
        good.cert,
        locked(good.key, folder),
        f"--key: the private key in {folder}/locked.pem has a passphrase; expected one without",
    ),
    "the-key-of-another-certificate": lambda good, folder: (
        good.cert,
        make_certificate(folder).key,
        f"--key: the private key in {folder}/key.pem is not that of the first certificate in {good.cert}",
    ),
    "a-chain-in-the-wrong-order": lambda good, folder: (
        written(folder / "chain.pem", good.ca.read_bytes() + good.cert.read_bytes()),
        good.key,
        f"--key: the private key in {good.key} is not that of the first certificate in {folder}/chain.pem",
    ),
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("trouble", TROUBLE)
def test_each_thing_that_is_wrong_with_a_certificate_or_key_has_a_true_sentence(
    program: str,
    trouble: str,
    loopback_certificate: Certificate,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cert, key, sentence = TROUBLE[trouble](loopback_certificate, tmp_path)
    package, command = PROGRAMS[program]
    main = {"companion_push": push_main, "relying_party": party_main}[package]
    assert main([command, "--listen", "127.0.0.1:0", "--cert", str(cert), "--key", str(key)]) == 10
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    (line,) = stderr.splitlines()
    message = line.partition(": ")[2]
    if package == "companion_push":  # which says what to do as well
        assert message.startswith(f"{sentence}: name a file in PEM form")
        assert message.endswith(" [bad-certificate]")
    else:
        assert message == sentence


@pytest.mark.parametrize("program", PROGRAMS)
async def test_one_file_may_hold_certificate_and_key(
    program: str, loopback_certificate: Certificate, tmp_path: Path
) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(loopback_certificate.key.read_bytes() + loopback_certificate.cert.read_bytes())
    words = ("--listen", "127.0.0.1:0", "--cert", both, "--key", both)
    store = () if program == "tunnel-service" else ("--store", tmp_path / "store")
    async with running(*PROGRAMS[program], *words, *store) as serving:
        assert "s://" in await serving.line()


# The public URL


def relays(url: str) -> str:
    return RelayConfig(public_url=url, store=Path("unused")).public_url


def relying_partys(url: str) -> str:
    config = Config.make(
        rp_id="rp.example",
        rp_name=None,
        public_url=url,
        web_origins=("https://rp.example",),
        device_origins=(),
        store=Path("unused"),
    )
    return config.public_url


PUBLIC_URLS = {
    "https://rp.example": "https://rp.example",
    "https://rp.example/": "https://rp.example",
    " https://rp.example ": "https://rp.example",
    "HTTPS://RP.Example:443/Push/": "https://rp.example/Push",
    "https://rp.example:8443/a/b.c": "https://rp.example:8443/a/b.c",
    "https://bücher.example": "https://xn--bcher-kva.example",
    "https://[::1]:8443": "https://[::1]:8443",
    "https://192.0.2.1/push": "https://192.0.2.1/push",
    "http://localhost:8470/push": "http://localhost:8470/push",
    "http://127.0.0.1:80": "http://127.0.0.1",
    "http://[::1]:8470": "http://[::1]:8470",
}
NO_PUBLIC_URLS = [
    "", "rp.example", "/push", "https://", "https:///push", "ftp://rp.example", "wss://rp.example", "http://rp.example",
    "http://192.0.2.1", "https://ada@rp.example", "https://rp.example?", "https://rp.example/?a=b",
    "https://rp.example/#a", "https://rp.example:0", "https://rp.example:65536", "https://rp.example:x",
    "https://rp.example//a", "https://rp.example/a/../b", "https://rp.example/a b", "https://rp.example\\a",
    "https://[::1", "https://rp example", "https://-rp.example", "https://rp.example/a\nb",
]  # fmt: skip
OF = pytest.mark.parametrize("of", [relays, relying_partys], ids=["relay", "relying-party"])


@OF
@pytest.mark.parametrize("url", PUBLIC_URLS)
def test_a_public_url_has_one_form_in_both_servers(of: Callable[[str], str], url: str) -> None:
    assert of(url) == PUBLIC_URLS[url]
    assert of(of(url)) == of(url)


@OF
@pytest.mark.parametrize("url", NO_PUBLIC_URLS)
def test_a_public_url_that_clients_could_not_call_safely_is_refused_with_the_settings_name(
    of: Callable[[str], str], url: str
) -> None:
    with pytest.raises((PushUsageError, UsageError), match=r"\Apublic_url: "):
        of(url)


@OF
@pytest.mark.parametrize("url", ["http://rp.example", "http://192.0.2.1:8443/push"])
def test_plain_http_of_another_machine_is_refused_in_the_same_words(
    of: Callable[[str], str], url: str
) -> None:
    expected = r"\Apublic_url: expected https, where it is not this machine alone\Z"
    with pytest.raises((PushUsageError, UsageError), match=expected):
        of(url)


# Requests that are not HTTP


HEAD = b" HTTP/1.1\r\nHost: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"

# each leaves one line in the log
MALFORMED: dict[str, bytes] = {
    "a word too many in the request line": b"GET /cable/new/" + SECRET + b" HTTP/1.1 x\r\nHost: localhost\r\n\r\n",
    "an unknown version": b"GET /" + SECRET + b" HTTP/9\r\nHost: localhost\r\n\r\n",
    "no method": b"G\x01T /" + SECRET + HEAD + b"\r\n",
    "no host": b"GET /" + SECRET + b" HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /" + HEAD + b"Host: " + SECRET + b"\r\n\r\n",
    "a path that is not UTF-8": b"GET /\xff\xfe" + SECRET + HEAD + b"\r\n",
    "an address that is none": b"GET http://[::" + SECRET + b"/" + HEAD + b"\r\n",
    "a path too long": b"GET /" + SECRET * 400 + HEAD + b"\r\n",
    "a header without a colon": b"GET /" + HEAD + b"DPoP " + SECRET + b"\r\n\r\n",
    "a header with a zero byte": b"GET /" + HEAD + b"DPoP: " + SECRET + b"\x00\r\n\r\n",
    "a header too long": b"GET /" + HEAD + b"Cookie: a=" + SECRET * 400 + b"\r\n\r\n",
    "headers too many": b"GET /" + HEAD + b"".join(b"X%d: 1\r\n" % n for n in range(300)) + b"\r\n",
    "a length that is no number": b"POST /" + HEAD + JSON + b"Content-Length: 4x" + SECRET + b"\r\n\r\n",
    "a length below zero": b"POST /" + HEAD + JSON + b"Content-Length: -4\r\n\r\n" + SECRET,
    "two lengths": b"POST /" + HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + SECRET,
    "a chunk without a size": b"POST /" + HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ" + SECRET + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS client": bytes.fromhex("16030100a5010000a10303") + SECRET * 4,
    "garbage after a request": b"GET /nowhere" + HEAD + b"\r\nG\x01T /" + SECRET + b"\r\n\r\n",
}  # fmt: skip

# these are refused, or nothing but an end, and leave none
REFUSED: dict[str, bytes] = {
    "an unknown encoding": b"POST /" + HEAD + JSON + b"Content-Encoding: " + SECRET + b"\r\nContent-Length: 2\r\n\r\n{}",
    "an encoding nobody unpacks": b"POST /" + HEAD + JSON + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
    "gzip that is none": b"POST /" + HEAD + JSON + b"Content-Encoding: gzip\r\nContent-Length: 32\r\n\r\n" + SECRET,
    "an unknown expectation": b"POST /" + HEAD + b"Expect: " + SECRET + b"\r\nContent-Length: 2\r\n\r\n{}",
    "a websocket key that is not ASCII": (
        b"GET /cable/new/" + SECRET + HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
        b"\r\nSec-WebSocket-Key: \xff" + SECRET + b"\r\nSec-WebSocket-Protocol: fido.cable\r\n\r\n"
    ),
}  # fmt: skip
CUT_OFF: dict[str, bytes] = {
    "half a head": b"GET /" + SECRET,
    "half a body": b"POST /" + HEAD + JSON + b"Content-Length: 200\r\n\r\n" + SECRET,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A program that listens, with its log at the default level."""

    program: Program
    port: int
    tls: ssl.SSLContext | None

    async def ask(self, request: bytes, *, until_it_closes: bool) -> bytes:
        """The last answer to these bytes."""
        reader, writer = await self.connect(self.tls)
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(request)
                answer = await whole_answer(reader)
                while until_it_closes and (more := await reader.read(1)):
                    answer = more + await whole_answer(reader)
                return answer
        finally:
            writer.transport.abort()

    async def cut_off(self, request: bytes) -> None:
        """Send these bytes, and no more."""
        _, writer = await self.connect(self.tls)
        writer.write(request)
        await writer.drain()
        writer.transport.abort()

    async def connect(self, tls: ssl.SSLContext | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        name = None if tls is None else "localhost"
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=tls, server_hostname=name)


async def whole_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"^Content-Length: (\d+)\r$", head, re.MULTILINE)
    return head + await reader.readexactly(int(length[1]) if length else 0)


@contextlib.asynccontextmanager
async def serving(name: str, certificate: Certificate, folder: Path) -> AsyncIterator[Server]:
    """One of the programs, or the address of one program's metrics."""
    words = PROGRAMS.get(name) or [*PROGRAMS[METRICS[name]], "--metrics", "127.0.0.1:0"]
    tls = None
    if name == "tunnel-service":
        words = [*words, "--cert", str(certificate.cert), "--key", str(certificate.key)]
        tls = certificate.client_context()
    else:
        words = [*words, "--store", str(folder / "store")]
    async with running(*words, "--listen", "127.0.0.1:0") as program:
        base = await program.line()
        if name in METRICS:
            base = (await program.heard(r"metrics at (http://\S+)/metrics"))[1]
        yield Server(program=program, port=int(base.rpartition(":")[2]), tls=tls)


def check_problem(answer: bytes, what: str) -> None:
    """That it is a problem document, and tells nothing back."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: application/problem+json" in head, (what, answer)
    assert SECRET not in answer, what
    document = json.loads(body)
    assert {"type", "title", "status"} <= set(document), what
    assert document["status"] == int(head.split()[1]) >= 400, what


async def lines_left(server: Server) -> list[str]:
    """What the program wrote to its log, once it has been asked to end."""
    assert await server.program.end() == 0
    return [line for line in (await server.program.stderr()).splitlines() if not NOTE.search(line)]


NOTE = re.compile("there is no TLS|no certificate|metrics at")  # what a program says when it starts


@pytest.mark.threat("T11")
@pytest.mark.threat("T12")
@pytest.mark.parametrize("name", [*PROGRAMS, *METRICS])
async def test_a_request_that_is_not_http_is_answered_with_a_problem_and_leaves_one_line_without_its_bytes(
    name: str, loopback_certificate: Certificate, tmp_path: Path
) -> None:
    async with serving(name, loopback_certificate, tmp_path) as server:
        for what, request in MALFORMED.items():
            answer = await server.ask(request, until_it_closes=True)
            assert answer.split()[1] == b"400", what
            check_problem(answer, what)
        lines = await lines_left(server)
    assert len(lines) == len(MALFORMED), lines
    for line in lines:
        assert re.fullmatch(r"\S+ \S+ WARNING \S+ a request could not be read: [A-Za-z]+", line)


@pytest.mark.threat("T13")
@pytest.mark.parametrize("name", [*PROGRAMS, *METRICS])
async def test_a_flood_of_requests_that_are_not_http_is_a_few_lines_and_their_number(
    name: str, loopback_certificate: Certificate, tmp_path: Path
) -> None:
    flood = list(MALFORMED.values()) * 6
    async with serving(name, loopback_certificate, tmp_path) as server:
        for request in flood:
            await server.ask(request, until_it_closes=True)
        lines = await lines_left(server)
    assert len(lines) == 31, lines
    assert all("a request could not be read: " in line for line in lines[:-1])
    counted = re.fullmatch(
        r"\S+ \S+ WARNING \S+ (\d+) more requests could not be read within 60 s", lines[-1]
    )
    assert counted is not None, lines[-1]
    assert int(counted[1]) == len(flood) - 30


@pytest.mark.threat("T11")
@pytest.mark.threat("T12")
@pytest.mark.parametrize("name", [*PROGRAMS, *METRICS])
async def test_a_request_that_is_refused_or_cut_off_leaves_nothing_in_the_log(
    name: str, loopback_certificate: Certificate, tmp_path: Path
) -> None:
    async with serving(name, loopback_certificate, tmp_path) as server:
        for what, request in REFUSED.items():
            check_problem(await server.ask(request, until_it_closes=False), what)
        for request in CUT_OFF.values():
            await server.cut_off(request)
        # it goes on, and has dealt with the others when it answers this
        check_problem(await server.ask(b"GET /nowhere" + HEAD + b"\r\n", until_it_closes=False), "after all")
        assert await lines_left(server) == []


async def test_plain_http_on_a_tls_port_leaves_nothing_in_the_log(
    loopback_certificate: Certificate, tmp_path: Path
) -> None:
    async with serving("tunnel-service", loopback_certificate, tmp_path) as server:
        reader, writer = await server.connect(None)
        writer.write(b"GET /" + SECRET + HEAD + b"\r\n")
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                assert SECRET not in await reader.read()
        writer.transport.abort()
        assert await lines_left(server) == []


def mounted_relay(folder: Path) -> web.Application:
    return companion_backend.make_service("http://127.0.0.1", folder / "store")


def mounted_relying_party(folder: Path) -> web.Application:
    return rp_backend.make_service("http://localhost", folder / "store")


def tunnel_service(_folder: Path) -> web.Application:
    return make_tunnel_service()


def resource_server(_folder: Path) -> web.Application:
    return resource_server_example.make_service("http://localhost", "https://login.example")


@pytest.mark.threat("T11")
@pytest.mark.parametrize("mounted", [mounted_relay, mounted_relying_party, resource_server])
async def test_a_service_that_mounts_one_can_keep_such_bytes_out_of_its_log_too(
    mounted: Callable[[Path], web.Application], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with TestServer(mounted(tmp_path)) as server:
        assert server.port is not None
        for request in MALFORMED.values():
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request)
            async with asyncio.timeout(PATIENCE):
                await reader.read()
            writer.transport.abort()
    messages = [record.getMessage() for record in caplog.records]
    assert all(message.startswith("a request could not be read: ") for message in messages), messages
    assert not any(record.exc_info for record in caplog.records)
    assert SECRET.decode() not in caplog.text


def loggers() -> dict[str, tuple[object, ...]]:
    """How each logger of this process is set."""
    known = {"": logging.root} | logging.Logger.manager.loggerDict
    return {
        name: (one.level, one.propagate, one.disabled, tuple(one.handlers), tuple(one.filters))
        for name, one in known.items()
        if isinstance(one, logging.Logger)
    }


@pytest.mark.parametrize("mounted", [mounted_relay, mounted_relying_party, resource_server, tunnel_service])
async def test_an_application_changes_no_logger_of_its_host(
    mounted: Callable[[Path], web.Application], tmp_path: Path
) -> None:
    logging.getLogger("fido2.server")
    before = loggers()
    async with TestServer(mounted(tmp_path)):
        after = loggers()
    assert {name: after[name] for name in before} == before


# A disk that is full


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Where a store is, and how to let no byte be added to it."""

    folder: Path
    fill: Callable[[Program], None]
    free: Callable[[Program], None]


@pytest.fixture(params=["quota", "tmpfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "quota":
        # no file of the process may grow: EFBIG where a full disk says ENOSPC
        limits: list[tuple[int, int]] = []

        def limit(program: Program) -> None:
            limits.append(resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE))
            resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (1, limits[0][1]))

        def lift(program: Program) -> None:
            resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, limits[0])

        yield Disk(folder=tmp_path, fill=limit, free=lift)
        return
    folder, filler = tmp_path / "small", tmp_path / "small" / "filler"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")

    def fill(_program: Program) -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    try:
        yield Disk(folder=folder, fill=fill, free=lambda _program: filler.unlink())
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


ONE_LINE = re.compile(
    r"\S+ \S+ ERROR \S+ the store does not answer: (database or disk is full|disk I/O error)"
)


async def test_a_full_disk_is_one_line_a_request_at_the_relay_and_it_goes_on_when_there_is_room(
    disk: Disk,
) -> None:
    async with (
        running(
            "companion_push", "relay", "--listen", "127.0.0.1:0", "--store", disk.folder / "store"
        ) as relay,
        ClientSession() as session,
    ):
        anna = Caller(companion(), session, await relay.line(), Clock())
        await found(disk.folder / "store", anna, device())
        announcement = {"kind": "device", "expires_at": int(anna.clock()) + 500}

        async def announce(number: int) -> tuple[int, str | None]:
            reply = await anna.put(f"/v1/invitations/{base64url(bytes([number]) * 32)}", announcement)
            return reply.status, reply.problem

        disk.fill(relay)
        replies = []
        for number in range(15):  # more than what is written over
            replies.append(await announce(number))
            assert (await anna.get("/v1/ring")).status == 200  # reading needs no room
        refused = replies.count((503, "store-unavailable"))
        assert 1 <= refused == len(replies) - replies.count((201, None))
        disk.free(relay)
        assert await announce(15) == (201, None)
        assert await relay.end() == 0
        lines = [line for line in (await relay.stderr()).splitlines() if not NOTE.search(line)]
    assert len([line for line in lines if ONE_LINE.fullmatch(line)]) == refused, lines
    assert len([line for line in lines if "its write-ahead log" in line]) == len(lines) - refused <= 2, lines


async def test_a_full_disk_is_one_line_a_request_at_the_relying_party_and_it_goes_on_when_there_is_room(
    disk: Disk,
) -> None:
    words = ("serve", "--listen", "127.0.0.1:0", "--store", disk.folder / "store")
    async with running("relying_party", *words) as party, ClientSession() as http:
        url = await party.line()
        visitor = Visitor(url, http)

        async def register(name: str) -> tuple[int, str]:
            ceremony, options = await visitor.begin("registration", user_name=name)
            body = {"ceremony": ceremony, "response": create(options, url)[1]}
            status, answer = await visitor.post("/webauthn/registration/result", body)
            return status, str(answer.get("type")).rpartition(":")[2]

        disk.fill(party)
        replies = [await register(f"ada{number}") for number in range(8)]
        refused = replies.count((503, "store-unavailable"))
        assert 1 <= refused == len(replies) - [status for status, _ in replies].count(201)
        disk.free(party)
        assert (await register("ada"))[0] == 201
        assert await party.end() == 0
        lines = [line for line in (await party.stderr()).splitlines() if not NOTE.search(line)]
    assert len(lines) == refused, lines
    assert all(ONE_LINE.fullmatch(line) for line in lines), lines
