"""The program itself, as a process: its first line, its end, its failures, and what survives kill -9."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time

import pytest
from aiohttp import ClientSession, TCPConnector
from certificates import Certificate

from tests.rp.authenticator_double import JSON, SYNCED, UP, UV, DeviceKey, Faults, create, get

COMMAND = [sys.executable, "-m", "relying_party"]


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program to its end, which must come soon."""
    return subprocess.run(
        [*COMMAND, *words],
        cwd=cwd,
        env=_environment(environment),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@contextmanager
def started(*words: str, cwd: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program serving, and its first line."""
    process = subprocess.Popen(
        [*COMMAND, "serve", *words],
        cwd=cwd,
        env=_environment(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().rstrip("\n")
    finally:
        process.kill()
        process.communicate()


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **more}


class Visitor:
    """A device that talks to a running program."""

    def __init__(self, url: str, http: ClientSession, origin: str | None = None) -> None:
        self.url, self.origin, self._http, self._key = url, origin or url, http, DeviceKey()
        self._nonce: str | None = None

    async def post(self, path: str, body: JSON) -> tuple[int, JSON]:
        while True:
            proof = self._key.proof("POST", self.url + path, time(), nonce=self._nonce)
            async with self._http.post(self.url + path, json=body, headers={"DPoP": proof}) as response:
                said, known = await response.json(content_type=None), self._nonce
                self._nonce = response.headers.get("DPoP-Nonce", known)
                if not str(said.get("type")).endswith(":use-dpop-nonce") or self._nonce == known:
                    return response.status, said

    async def begin(self, ceremony: str, **body: str) -> tuple[str, JSON]:
        status, answer = await self.post(f"/webauthn/{ceremony}/options", body)
        assert status == 200, answer
        return answer["ceremony"], answer["publicKey"]


async def test_it_serves_over_tls_and_ends_when_asked_to(
    tmp_path: Path, loopback_certificate: Certificate
) -> None:
    cert = ("--cert", str(loopback_certificate.cert), "--key", str(loopback_certificate.key))
    trust = ssl.create_default_context(cafile=loopback_certificate.ca)
    with started("--listen", "127.0.0.1:0", *cert, cwd=tmp_path) as (process, url):
        assert url.startswith("https://localhost:")
        assert not url.endswith(":0")
        async with ClientSession(connector=TCPConnector(ssl=trust)) as http:
            visitor = Visitor(url, http)
            ceremony, options = await visitor.begin("registration", user_name="ada")
            assert options["rp"]["id"] == "localhost"
            _, response = create(options, url)
            status, session = await visitor.post(
                "/webauthn/registration/result", {"ceremony": ceremony, "response": response}
            )
            assert status == 201, session
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
    assert (tmp_path / "relying-party.sqlite").exists()


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    with started("--listen", "127.0.0.1:0", cwd=tmp_path) as (process, url):
        async with ClientSession() as http:
            visitor = Visitor(url, http)
            ceremony, options = await visitor.begin("registration", user_name="ada")
            passkey, response = create(options, url)
            body = {"ceremony": ceremony, "response": response}
            status, _ = await visitor.post("/webauthn/registration/result", body)
            assert status == 201
            process.kill()
            process.wait(10)
    with started("--listen", "127.0.0.1:0", cwd=tmp_path) as (_, url):
        async with ClientSession() as http:
            visitor = Visitor(url, http)
            ceremony, options = await visitor.begin("authentication")
            body = {"ceremony": ceremony, "response": get(passkey, options, url)}
            status, session = await visitor.post("/webauthn/authentication/result", body)
            assert (status, session["user"]["name"]) == (200, "ada")
            assert (await visitor.post("/webauthn/authentication/result", body))[0] == 410


async def test_a_ceremony_does_not_survive_a_restart(tmp_path: Path) -> None:
    with started("--listen", "127.0.0.1:0", cwd=tmp_path) as (_, url):
        async with ClientSession() as http:
            visitor = Visitor(url, http)
            ceremony, options = await visitor.begin("registration", user_name="ada")
    with started("--listen", "127.0.0.1:0", cwd=tmp_path) as (_, url):
        async with ClientSession() as http:
            _, response = create(options, url)
            body = {"ceremony": ceremony, "response": response}
            status, problem = await Visitor(url, http).post("/webauthn/registration/result", body)
    assert (status, problem["type"].rpartition(":")[2]) == (410, "ceremony-gone")


def test_without_a_certificate_it_says_so(tmp_path: Path) -> None:
    with started("--listen", "127.0.0.1:0", cwd=tmp_path) as (process, url):
        assert url.startswith("http://localhost:")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == "no certificate: plain HTTP, on loopback only\n"


async def test_port_0_in_an_origin_is_the_port_we_listen_on(tmp_path: Path) -> None:
    origins = ("--origin", "http://rp.localhost:0", "--device-origin", "http://device.rp.localhost:0")
    words = ("--listen", "127.0.0.1:0", "--rp-id", "rp.localhost", *origins)
    with started(*words, cwd=tmp_path) as (_, url):
        assert url.startswith("http://rp.localhost:")
        port = url.rpartition(":")[2]
        async with ClientSession() as http:
            visitor = Visitor(f"http://127.0.0.1:{port}", http)
            ceremony, options = await visitor.begin("registration", user_name="ada")
            _, response = create(options, f"http://device.rp.localhost:{port}")
            body = {"ceremony": ceremony, "response": response}
            assert (await visitor.post("/webauthn/registration/result", body))[0] == 201


def test_settings_come_from_words_then_environment_then_file(tmp_path: Path) -> None:
    (tmp_path / "rp.toml").write_text(
        '[serve]\nlisten = "127.0.0.1:0"\nrp-id = "file.localhost"\nrequests-per-minute = 60\n'
        'origin = ["http://file.localhost:0", "http://b.file.localhost:0"]\n'
    )
    config = ("--config", "rp.toml")
    with started(*config, cwd=tmp_path) as (_, url):
        assert url.startswith("http://file.localhost:")
    environment = {"RELYING_PARTY_RP_ID": "env.localhost", "RELYING_PARTY_ORIGIN": "http://env.localhost:0"}
    with started(*config, cwd=tmp_path, **environment) as (_, url):
        assert url.startswith("http://env.localhost:")
    words = ("--rp-id", "words.localhost", "--origin=http://words.localhost:0")
    with started(*config, *words, cwd=tmp_path, **environment) as (_, url):
        assert url.startswith("http://words.localhost:")


async def test_metrics_have_an_address_of_their_own(tmp_path: Path) -> None:
    words = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--json")
    with started(*words, cwd=tmp_path) as (process, url):
        assert process.stderr is not None
        said = [json.loads(process.stderr.readline())["message"] for _ in range(2)]
        (inside,) = [text.removeprefix("metrics at ") for text in said if text.startswith("metrics at ")]
        async with ClientSession() as http:
            await Visitor(url, http).begin("authentication")
            async with http.get(inside) as response:
                text = await response.text()
            async with http.get(f"{url}/metrics") as response:
                assert response.status == 404
        assert 'relying_party_ceremonies_total{kind="device",outcome="begun",purpose="sign-in"} 1.0' in text
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


async def test_what_an_operator_chooses_is_what_clients_are_told(tmp_path: Path) -> None:
    (tmp_path / "rp.toml").write_text(
        '[serve]\nml-dsa = true\nprf = true\nbackup-eligibility = "may-begin"\n'
        'related-origin = ["https://rp.test"]\ntoken-seconds = 60\n'
        f'android-app = ["{":".join(["00"] * 32)}"]\n',
        encoding="utf-8-sig",  # as an editor on Windows may save it
    )
    words = ("--listen", "127.0.0.1:0", "--config", "rp.toml")
    with started(*words, cwd=tmp_path) as (_, url):
        async with ClientSession() as http:
            visitor = Visitor(url, http)
            ceremony, options = await visitor.begin("registration", user_name="ada")
            assert [item["alg"] for item in options["pubKeyCredParams"]] == [-7, -8, -257, -48, -49, -50]
            assert options["extensions"] == {"credProps": True, "prf": {}}
            passkey, response = create(options, url, Faults(flags=UP | UV))
            body = {"ceremony": ceremony, "response": response}
            _, session = await visitor.post("/webauthn/registration/result", body)
            assert session["expires_at"] - session["auth_time"] == 60
            ceremony, options = await visitor.begin("authentication")
            response = get(passkey, options, url, Faults(flags=SYNCED))
            body = {"ceremony": ceremony, "response": response}
            assert (await visitor.post("/webauthn/authentication/result", body))[0] == 200
            async with http.get(f"{url}/.well-known/webauthn") as answer:
                assert "https://rp.test" in (await answer.json())["origins"]


USAGE_ERRORS: list[list[str]] = [
    [],
    ["serve", "--nonsense"],
    ["serve", "--lis", "127.0.0.1:0"],
    ["serve", "--listen", "nowhere"],
    ["serve", "--listen", "127.0.0.1:99999"],
    ["serve", "--listen", "0.0.0.0:0"],
    ["serve", "--listen", "127.0.0.1:0", "--rp-id", "not a domain"],
    ["serve", "--listen", "127.0.0.1:0", "--rp-id", "a]b"],
    ["serve", "--listen", "127.0.0.1:0", "--rp-id", "[::1"],
    ["serve", "--listen", "127.0.0.1:0", "--origin", "https://other.example"],
    ["serve", "--listen", "127.0.0.1:0", "--cert", "cert.pem"],
    ["serve", "--listen", "127.0.0.1:0", "--requests-per-minute", "0"],
    ["serve", "--listen", "127.0.0.1:0", "--page", "nobody"],
    ["serve", "--listen", "127.0.0.1:0", "--token-seconds", "0"],
    ["serve", "--listen", "127.0.0.1:0", "--related-origin", "http://rp.test"],
    ["serve", "--listen", "127.0.0.1:0", "--android-app", "com.example.app"],
    ["serve", "--listen", "127.0.0.1:0", "--metrics", "nowhere"],
    ["serve", "--backup-eligibility", "sometimes"],
    ["serve", "--config"],
    ["serve", "--config", "no.toml"],
    ["serve", "--config", "broken.toml"],
    ["serve", "--config", "unknown.toml"],
    ["serve", "--config", "nested.toml"],
    ["serve", "--config", "deep.toml"],
]


@pytest.mark.parametrize("words", USAGE_ERRORS, ids=" ".join)
def test_a_wrong_call_ends_with_2_and_says_why(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "broken.toml").write_text("[serve\n")
    (tmp_path / "unknown.toml").write_text("[serve]\nnonsense = 1\n")
    (tmp_path / "nested.toml").write_text("[serve]\nrp-id = {a = 1}\n")
    (tmp_path / "deep.toml").write_text(f"[serve]\nrp-id = {'[' * 10_000}\n")
    ended = run(*words, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "words",
    [["--cert", "no.pem", "--key", "no.pem"], ["--store", "no/such/folder/file"]],
    ids=["certificate", "store"],
)
def test_files_that_cannot_be_used_end_with_10(tmp_path: Path, words: list[str]) -> None:
    ended = run("serve", "--listen", "127.0.0.1:0", *words, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (10, "")
    assert words[1] in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_failure_is_one_line_or_one_object(tmp_path: Path) -> None:
    words = ("serve", "--listen", "127.0.0.1:0", "--rp-id", "not a domain")
    ended = run(*words, cwd=tmp_path)
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("no certificate")]
    assert len(lines) == 1
    assert lines[0].startswith("relying-party: ")
    ended = run(*words, "--json", cwd=tmp_path)
    problem = [json.loads(line) for line in ended.stderr.splitlines()][-1]
    assert (problem["error"], problem["status"]) == ("UsageError", 2)
    assert set(problem) == {"error", "reason", "status", "message", "advice"}


@pytest.mark.threat("T11")
@pytest.mark.parametrize("way", ["option", "environment", "file"])
async def test_with_log_format_json_every_line_is_a_record_as_the_other_servers_write_them(
    tmp_path: Path, way: str
) -> None:
    (tmp_path / "rp.toml").write_text('[serve]\nlog-format = "json"\n')
    said: dict[str, list[str]] = {"option": ["--log-format", "json"], "file": ["--config", "rp.toml"]}
    words = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *said.get(way, []))
    environment = {"RELYING_PARTY_LOG_FORMAT": "json"} if way == "environment" else {}
    with started(*words, "--log-level", "debug", cwd=tmp_path, **environment) as (process, url):
        assert process.stderr is not None
        async with ClientSession() as http:
            device = Visitor(url, http)
            ceremony, _ = await device.begin("authentication", user_name="their-name")
            for path in ("/session", "/their-path"):
                async with http.get(url + path, headers={"DPoP": "x"}) as response:
                    assert response.status in (401, 404)
            async with http.request("BREW", url + "/session") as response:
                assert response.status == 400
        process.send_signal(signal.SIGTERM)
        text = process.stderr.read()
    records = [json.loads(line) for line in text.splitlines()]
    for record in records:
        members = {"time", "level", "logger", "message"}
        assert members <= set(record) <= {*members, "fields"}
    messages = [record["message"] for record in records]
    assert "no certificate: plain HTTP, on loopback only" in messages
    assert any(message.startswith("metrics at http://127.0.0.1:") for message in messages)
    fields = [record["fields"] for record in records if "fields" in record]
    assert [{name: one[name] for name in ("endpoint", "status", "outcome")} for one in fields[-3:]] == [
        {"endpoint": "POST /webauthn/authentication/options", "status": 200, "outcome": "ok"},
        {"endpoint": "GET /session", "status": 401, "outcome": "proof-invalid"},
        {"endpoint": "- -", "status": 404, "outcome": "not-found"},
    ]
    assert all(isinstance(one["milliseconds"], int) for one in fields)
    for secret in (ceremony, "their-name", "their-path", "BREW"):
        assert secret not in text


def test_a_failure_is_a_record_too(tmp_path: Path) -> None:
    ended = run(
        "serve", "--log-format", "json", "--listen", "127.0.0.1:0", "--rp-id", "not a domain", cwd=tmp_path
    )
    problem = [json.loads(line) for line in ended.stderr.splitlines()][-1]
    assert (ended.returncode, problem["error"], problem["status"]) == (2, "UsageError", 2)


def test_an_address_in_use_ends_with_10(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run("serve", "--listen", f"127.0.0.1:{taken.getsockname()[1]}", cwd=tmp_path)
    assert ended.returncode == 10
    assert "cannot listen on 127.0.0.1" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_reader_that_went_away_ends_with_4_and_no_traceback(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [*COMMAND, "serve", "--listen", "127.0.0.1:0"],
        cwd=tmp_path,
        env=_environment({}),
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    os.close(write)
    assert ended.returncode == 4
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"]])
def test_help_helps(tmp_path: Path, words: list[str]) -> None:
    ended = run(*words, cwd=tmp_path)
    assert ended.returncode == 0
    assert "relying-party" in ended.stdout
    assert "Traceback" not in ended.stderr


@pytest.mark.threat("T11")
async def test_the_log_at_debug_names_nobody(tmp_path: Path) -> None:
    with started("--listen", "127.0.0.1:0", "--log-level", "debug", cwd=tmp_path) as (process, url):
        async with ClientSession() as http:
            visitor = Visitor(url, http)
            ceremony, options = await visitor.begin("registration", user_name="ada.lovelace")
            passkey, response = create(options, url)
            body = {"ceremony": ceremony, "response": response}
            _, session = await visitor.post("/webauthn/registration/result", body)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr is not None
        text = process.stderr.read()
    assert "registered a passkey (device)" in text
    for secret in (
        "ada.lovelace",
        ceremony,
        options["challenge"],
        session["token"],
        session["credential_id"],
    ):
        assert secret not in text
    assert passkey.credential_id.hex() not in text


# Services that take our access tokens


async def test_services_may_ask_about_tokens_or_verify_them(tmp_path: Path) -> None:
    secret = "0123456789abcdefghijklmnopqrstuv"
    (tmp_path / "secrets.toml").write_text(f'"https://api.example" = "{secret}"\n')
    (tmp_path / "secrets.toml").chmod(0o600)
    words = (
        "--listen",
        "127.0.0.1:0",
        "--resource",
        "https://other.example",
        "--resource-secrets",
        "secrets.toml",
    )
    with started(*words, "--token-key", "token-key.pem", cwd=tmp_path) as (_, url):
        async with ClientSession() as http:
            head = {"Authorization": f"Bearer {secret}"}
            async with http.post(f"{url}/introspect", data={"token": "x"}, headers=head) as response:
                assert (response.status, await response.json()) == (200, {"active": False})
            async with http.get(f"{url}/jwks.json") as response:
                assert len((await response.json())["keys"]) == 1
            visitor = Visitor(url, http)
            ceremony, options = await visitor.begin("registration", user_name="ada")
            _, made = create(options, url)
            _, session = await visitor.post(
                "/webauthn/registration/result", {"ceremony": ceremony, "response": made}
            )
    assert session["audience"] == ["https://other.example", "https://api.example"]
    assert session["token"].count(".") == 2
    assert session["expires_at"] - session["auth_time"] == 600
    assert (tmp_path / "token-key.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    ("content", "mode", "ends"),
    [
        (None, 0o600, 10),
        ('"https://api.example" = "0123456789abcdefghijklmnopqrstuv"', 0o644, 10),
        ('"https://api.example" = "short"', 0o600, 2),
        ('"https://api.example" = 5', 0o600, 10),
        ("no toml", 0o600, 10),
        (f"a = {'[' * 10_000}", 0o600, 10),
    ],
    ids=["absent", "open", "short", "number", "text", "deep"],
)
def test_secrets_that_are_none_end_with_the_file_or_the_setting(
    tmp_path: Path, content: str | None, mode: int, ends: int
) -> None:
    if content is not None:
        (tmp_path / "secrets.toml").write_text(content)
        (tmp_path / "secrets.toml").chmod(mode)
    done = run("serve", "--listen", "127.0.0.1:0", "--resource-secrets", "secrets.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (ends, "")
    assert "0123456789" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [("serve", "--listen", "127.0.0.1:0"), ("completion", "bash")], ids=" ".join
)
def test_a_full_disk_under_stdout_is_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "relying_party", *words],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if not line.startswith("no certificate")]
    assert said == ["relying-party: cannot write to stdout: No space left on device"]
    assert done.returncode == 10
