"""The relay as a program: what it prints, what it survives, how it ends."""

import asyncio
import contextlib
import json
import signal
import socket
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from certificates import Certificate

from companion_push.cli import main
from companion_push.relay import database
from companion_push.relay.accounts import add_account
from companion_push.relay.channels import is_poll_only
from companion_push.relay.database import open_database
from headless_passkey.trust.account_code import AccountCode
from program_parts.base64url import base64url
from tests.ports import reserved_port
from tests.programs import run, running
from tests.relay.household import Caller, Clock, all_held, fresh_id
from tests.trust import people
from tests.trust.people import Person, companion, device, grow

HOLD = 25  # seconds that the relay is asked to hold an answer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.sqlite3"


def words(path: Path, *more: str, listen: str = "127.0.0.1:0") -> list[str]:
    return ["relay", "--listen", listen, "--store", str(path), *more]


@contextlib.asynccontextmanager
async def calling(
    url: str, *people: Person, tls: ssl.SSLContext | bool = True
) -> AsyncIterator[list[Caller]]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
        yield [Caller(person, session, url, Clock()) for person in people]


async def found(path: Path, anna: Caller, frame: Person) -> None:
    """An account of Anna's, with a device: its store made as `account add` makes it."""
    status, line, _ = await run(
        "companion_push", "account", "add", "alice", "--store", path, "--relay", anna.url
    )
    assert status == 0
    code = AccountCode.parse(line)
    assert code.relay_url == anna.url
    ring = people.found(anna.person, account=code.account, account_name=code.account_name, now=time.time())
    body = {"code": base64url(code.code), "ring": base64url(ring.document)}
    assert (await anna.post("/v1/accounts", body)).status == 201
    ring = grow(ring, anna.person, anna.person, frame)
    assert (await anna.post("/v1/ring", {"ring": base64url(ring.document)})).status == 201


async def test_it_prints_its_base_url_says_that_there_is_no_tls_and_ends_with_0(path: Path) -> None:
    async with running("companion_push", *words(path)) as program:
        url = await program.line()
        assert url.startswith("http://127.0.0.1:")
        async with aiohttp.ClientSession() as session, session.get(url + "/livez") as response:
            assert response.status == 200
        assert await program.end() == 0
        assert (await program.stderr()).splitlines() == ["no certificate: plain HTTP, on loopback only"]


async def test_it_serves_tls_with_a_certificate(path: Path, loopback_certificate: Certificate) -> None:
    files = ("--cert", str(loopback_certificate.cert), "--key", str(loopback_certificate.key))
    async with running("companion_push", *words(path, *files)) as program:
        url = await program.line()
        assert url.startswith("https://127.0.0.1:")
        tls = loopback_certificate.client_context()
        async with calling(url, companion(), tls=tls) as (anna,):
            await found(path, anna, device())
            assert (await anna.get("/v1/inbox")).status == 200
        assert await program.end() == 0
        assert await program.stderr() == ""


@pytest.mark.threat("T5")
async def test_an_acknowledged_request_is_still_pending_after_kill_9(path: Path) -> None:
    listen = f"127.0.0.1:{reserved_port()}"
    anna_person, frame_person = companion(), device()
    name = fresh_id()
    async with (
        running("companion_push", *words(path, listen=listen)) as program,
        calling(await program.line(), anna_person, frame_person) as (anna, frame),
    ):
        await found(path, anna, frame.person)
        submitted = await frame.submit(anna, name=name)
        assert submitted.status == 201
        used = frame.proof("GET", f"/v1/requests/{name}")
        assert (await frame.call("GET", f"/v1/requests/{name}", proofs=[used])).status == 200
        assert await program.end(signal.SIGKILL) == -signal.SIGKILL
    async with (
        running("companion_push", *words(path, listen=listen)) as program,
        calling(await program.line(), anna_person, frame_person) as (anna, frame),
    ):
        status = await frame.status(name)
        assert status["state"] == "pending"
        assert status["expires_at"] == submitted.body["expires_at"]
        assert (await frame.submit(anna, name=name)).status == 200
        (item,) = await anna.inbox()
        assert item["id"] == name
        assert (await anna.act(frame, name, "claimed")).status == 200
        # nor is a proof that was used before good again
        assert (await frame.call("GET", f"/v1/requests/{name}", proofs=[used])).status == 401


async def test_it_ends_and_answers_at_once_who_is_held(path: Path) -> None:
    async with (
        running("companion_push", *words(path)) as program,
        calling(await program.line(), companion(), device()) as (anna, frame),
    ):
        await found(path, anna, frame.person)
        cursor = (await anna.get("/v1/inbox")).body["cursor"]
        held = await all_held(anna, cursor, wait=HOLD)
        start = time.monotonic()
        assert await program.end() == 0
        assert time.monotonic() - start < HOLD  # else it waited until they were answered anyway
        for reply in await asyncio.gather(*held):
            assert (reply.status, reply.body["requests"]) == (200, [])


async def refused(*args: str | Path) -> tuple[int, str]:
    """Exit status, and the one line on stderr."""
    status, stdout, stderr = await run("companion_push", *args)
    assert stdout == ""
    assert "Traceback" not in stderr
    return status, stderr.splitlines()[-1]


async def test_a_port_that_is_taken_is_a_setup_error(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, line = await refused(*words(path, listen=f"127.0.0.1:{taken.getsockname()[1]}"))
    assert status == 10
    assert "cannot listen on 127.0.0.1:" in line
    assert "[port-taken]" in line


async def test_a_store_that_another_relay_uses_is_a_transport_error(path: Path) -> None:
    async with running("companion_push", *words(path)) as program:
        await program.line()
        status, line = await refused(*words(path))
    assert status == 4
    assert "another relay is using the store" in line


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--listen", "0.0.0.0:0"], "only loopback addresses"),
        (["--listen", "192.0.2.1:0"], "only loopback addresses"),
        (["--listen", "nowhere"], "HOST:PORT"),
        (["--cert", "cert.pem"], "--cert and --key go together"),
        (["--ceiling", "301"], "at most 300 seconds"),
        (["--ceiling", "0"], "1 or more"),
        (["--requests-per-minute", "many"], "whole number"),
        (["--public-url", "http://relay.example"], "https"),
        (["--public-url", "relay.example"], "https"),
        (["--public-url", "https://relay.example/?a=b"], "https"),
        (["--graphql-introspection"], "need --graphql"),
        (["--graphql-documents", "file"], "need --graphql"),
        (["--graphql", "--graphql-documents-only"], "--graphql-documents-only needs --graphql-documents"),
        (["--graphql", "--graphql-documents", "absent"], "cannot read absent: No such file"),
    ],
)
async def test_words_that_make_no_sense_are_usage_errors(path: Path, more: list[str], said: str) -> None:
    status, line = await refused(*words(path), *more)
    assert status == 2
    assert said in line


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["--cert", "absent.pem", "--key", "absent.pem"],
            "--cert: cannot read absent.pem: No such file or directory",
        ),
        (["--store", "/"], "store"),
        (["--store", "/dev/null/store"], "store"),
    ],
)
async def test_files_that_cannot_be_used_are_setup_errors(path: Path, more: list[str], said: str) -> None:
    status, line = await refused(*words(path), *more)
    assert status == 10
    assert said in line


async def test_listening_everywhere_needs_a_public_url(path: Path, loopback_certificate: Certificate) -> None:
    files = ("--cert", str(loopback_certificate.cert), "--key", str(loopback_certificate.key))
    status, line = await refused(*words(path, *files, listen="0.0.0.0:0"))
    assert status == 2
    assert "--public-url" in line


async def test_a_file_that_is_no_store_is_a_setup_error(tmp_path: Path, letter: Path) -> None:
    status, line = await refused(*words(letter))
    assert status == 10
    assert "not a store" in line


@pytest.fixture
def letter(path: Path) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(b"a letter to a friend, longer than a header of SQLite would be" * 20)
    return path


async def test_options_come_from_a_file_and_the_environment(
    path: Path, tmp_path: Path, settings: Path
) -> None:
    environment = {"COMPANION_PUSH_RELAY_STORE": str(path)}
    async with running("companion_push", "relay", "--config", settings, environment=environment) as program:
        url = await program.line()
        async with calling(url, companion(), device()) as (anna, frame):
            await found(path, anna, frame.person)
            body = (await frame.submit(anna)).body
            assert body["expires_at"] - body["now"] in (8, 9)
            assert (await frame.submit(anna)).problem == "rate-limited"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    file = tmp_path / "settings.toml"
    file.write_text('[relay]\nlisten = "127.0.0.1:0"\nceiling = 9\nrequests-per-minute = 1\n')
    return file


@pytest.mark.threat("T11")
async def test_the_log_at_debug_tells_stages_and_nothing_that_was_sent(path: Path) -> None:
    async with running("companion_push", *words(path, "--log-level", "debug")) as program:
        async with calling(await program.line(), companion(), device()) as (anna, frame):
            await found(path, anna, frame.person)
            name = fresh_id()
            await frame.submit(anna, name=name)
            (item,) = await anna.inbox()
            await anna.act(frame, name, "claimed")
            await frame.submit(anna, frame)
        assert await program.end() == 0
        log = await program.stderr()
    assert "PUT /v1/requests/{id}: 201 ok in" in log
    assert "PUT /v1/requests/{id}: 400 unknown-recipient in" in log
    assert "POST /v1/inbox/{device}/{id}/events: 200 ok in" in log
    for told in (name, anna.name, frame.name, item["sealed"], "alice", anna.person.label, frame.person.label):
        assert told not in log


# Accounts


async def test_an_account_code_is_one_line(path: Path) -> None:
    relay = "https://relay.example/push"
    status, stdout, stderr = await run(
        "companion_push",
        "account",
        "add",
        "alice",
        "--store",
        path,
        "--relay",
        "HTTPS://Relay.example:443/push/",
    )
    assert status == 0
    (line,) = stdout.splitlines()
    code = AccountCode.parse(line)
    assert stderr == f"the account's id is {code.account}: newcomers can be told to expect it\n"
    assert (code.relay_url, code.account_name) == (relay, "alice")
    status, again, _ = await run(
        "companion_push", "account", "add", "alice", "--store", path, "--relay", relay
    )
    assert status == 0
    assert AccountCode.parse(again).account == code.account
    assert AccountCode.parse(again).code != code.code


async def test_a_name_in_two_spellings_is_one_account(path: Path) -> None:
    accounts = set()
    for name in ("Zo\u00eb \U0001f469\u200d\U0001f4bb", "Zoe\u0308 \U0001f469\u200d\U0001f4bb"):
        status, stdout, _ = await run(
            "companion_push", "account", "add", name, "--store", path, "--relay", "https://relay.example"
        )
        assert status == 0
        accounts.add(AccountCode.parse(stdout.strip()).account)
    assert len(accounts) == 1


async def test_a_name_whose_account_is_founded_is_taken(path: Path) -> None:
    async with (
        running("companion_push", *words(path)) as program,
        calling(await program.line(), companion()) as (anna,),
    ):
        await found(path, anna, device())
        status, line = await refused("account", "add", "alice", "--store", path, "--relay", anna.url)
    assert status == 2
    assert "taken" in line


@pytest.mark.parametrize(
    "words",
    [
        ["", "--relay", "https://relay.example"],
        ["x" * 65, "--relay", "https://relay.example"],
        ["two\nlines", "--relay", "https://relay.example"],
        ["alice", "--relay", "http://relay.example"],
        ["alice", "--relay", "https://relay.example", "--valid-hours", "0"],
        ["alice"],
    ],
)
async def test_an_account_that_makes_no_sense_is_a_usage_error(path: Path, words: list[str]) -> None:
    status, _ = await refused("account", "add", *words, "--store", path)
    assert status == 2


def test_a_store_that_stays_locked_is_a_transport_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["account", "add", "alice", "--store", str(path), "--relay", "https://relay.example"]
    assert main(words) == 0
    capsys.readouterr()
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.05)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        assert main(words) == 4
    finally:
        connection.close()
    assert "locked" in capsys.readouterr().err


@pytest.mark.threat("T16")
async def test_accounts_are_listed_reset_and_deleted(path: Path) -> None:
    relay = ("--relay", "https://relay.example")
    status, line, _ = await run("companion_push", "account", "add", "alice", "--store", path, *relay)
    assert status == 0
    first = AccountCode.parse(line)
    status, shown, _ = await run("companion_push", "account", "list", "--store", path)
    assert (status, shown.split()) == (0, [first.account, "alice", "not", "founded", "yet"])
    status, line, _ = await run("companion_push", "account", "reset", "alice", "--store", path, *relay)
    second = AccountCode.parse(line)
    assert (status, second.account_name) == (0, "alice")
    assert second.account != first.account
    status, _, _ = await run("companion_push", "account", "delete", "alice", "--store", path)
    assert status == 0
    status, shown, _ = await run("companion_push", "account", "list", "--store", path)
    assert (status, shown) == (0, "")
    for words in (("reset", "alice", *relay), ("delete", "alice")):
        status, _, _ = await run("companion_push", "account", *words, "--store", path)
        assert status == 2


async def test_an_account_is_made_one_that_no_push_goes_to_and_back(path: Path) -> None:
    async with open_database(path) as store:
        added = await store.transact(lambda db: add_account(db, name="alice", now=0, expires_at=1 << 40))
    assert added is not None
    words = ("companion_push", "account", "poll-only", "alice", "--store", path)
    for end, said in (((), "woken by no push"), (("--end",), "may have channels again")):
        status, shown, told = await run(*words, *end)
        assert (status, shown) == (0, "")
        assert said in told
        async with open_database(path) as store:
            assert await store.transact(lambda db: is_poll_only(db, added[0])) is not bool(end)
    assert (await run("companion_push", "account", "poll-only", "bob", "--store", path))[0] == 2


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["for-people", "for-programs"])
async def test_reset_and_delete_say_what_has_become_of_the_account(path: Path, words: list[str]) -> None:
    relay = ("--relay", "https://relay.example")
    await run("companion_push", "account", "add", "alice", "--store", path, *relay)
    _, line, said = await run("companion_push", "account", "reset", "alice", "--store", path, *relay, *words)
    account = AccountCode.parse(line).account
    _, _, deleted = await run("companion_push", "account", "delete", "alice", "--store", path, *words)
    if words:
        told = [
            {key: value for key, value in json.loads(each).items() if key != "at"} for each in (said, deleted)
        ]
        assert told == [{"stage": "reset", "account": account}, {"stage": "deleted", "told": 0}]
    else:
        assert account in said
        assert "0 members and newcomers" in deleted


@pytest.mark.threat("T11")
@pytest.mark.parametrize("words", [["relay"], ["account", "list"]], ids=["relay", "account"])
async def test_a_password_in_the_stores_uri_is_refused_and_not_repeated(words: list[str]) -> None:
    status, line = await refused(*words, "--store", "postgresql://relay:s3cret@db.example/relay")
    assert status == 2
    assert "PGPASSFILE" in line
    assert "s3cret" not in line
