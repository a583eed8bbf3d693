"""The webhook of the program: its options, and a kill between a mute and its call: the call still comes."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from certificates import Certificate

from headless_passkey.errors import ExitStatus
from tests.companion.program import Program, outcome, running
from tests.relay.account_service import PATIENCE, AccountService, account_service, new_secret, silent
from tests.relay.stores import place_of
from tests.relay.test_killed_before_the_push import ProgramRelay

URL = "https://accounts.example/hunter2"


def secret_file(path: Path, *secrets: str) -> Path:
    path.write_text("\n".join(secrets) + "\n")
    path.chmod(0o600)
    return path


@asynccontextmanager
async def started(
    tmp_path: Path, service: AccountService, *words: object
) -> AsyncIterator[tuple[Program, ProgramRelay]]:
    secret = secret_file(tmp_path / "secret", new_secret(), service.secret)
    store = tmp_path / "relay.sqlite3"
    options = ("--webhook", service.url, "--webhook-secret", secret, *words)
    command = ("relay", "--listen", "127.0.0.1:0", "--store", str(place_of(store)), *options)
    async with running(*command) as program, aiohttp.ClientSession() as session:
        yield program, ProgramRelay(await program.line(), session, store)


@pytest.mark.threat("T6")
async def test_a_mute_is_told_though_the_relay_was_killed_before_it(
    tmp_path: Path, loopback_certificate: Certificate
) -> None:
    async with account_service(loopback_certificate) as service:
        service.answers = [silent(service)]  # so that the second event waits for as long as the test wants
        ca = ("--webhook-ca", loopback_certificate.ca)
        async with started(tmp_path, service, *ca) as (program, relay):
            homes = [await relay.household(name) for name in ("alice", "bob")]
            for home in homes:
                path = f"/v1/mutes/{home.devices[0].name}"
                assert (await home.companions[0].put(path, {})).status == 201
            first = await service.next()
            program.process.kill()
            await program.process.wait()
        assert service.calls.empty()
        assert service.told == []
        async with started(tmp_path, service, *ca) as (program, _):
            told = {each.content["data"]["name"]: each for each in [await service.next() for _ in homes]}
            assert set(told) == {"alice", "bob"}, "the one that was under way too"
            assert (told["alice"].id, told["alice"].body) == (first.id, first.body)
            program.terminate()
            assert await program.ended() == 0
        assert [each.id for each in service.told] == [told[name].id for name in ("bob", "alice")]


@pytest.mark.threat("T11")
async def test_the_secret_is_neither_in_the_log_nor_among_the_arguments(tmp_path: Path) -> None:
    async with account_service() as service:
        async with started(tmp_path, service, "--log-level", "debug") as (program, relay):
            arguments = Path(f"/proc/{program.process.pid}/cmdline")
            if sys.platform == "linux":
                assert service.secret not in await asyncio.to_thread(arguments.read_text)
            home = await relay.household()
            frame = home.devices[0].name
            assert (await home.companions[0].put(f"/v1/mutes/{frame}", {})).status == 201
            await service.next()
            program.terminate()
            assert await program.ended() == 0
        said = "\n".join(program.said)
        for secret in (service.secret, service.secret.removeprefix("whsec_"), "hooks", frame, home.account):
            assert secret not in said


@pytest.mark.threat("T11")
@pytest.mark.parametrize("option", ["--webhook-secret", "--admin-secret"])
async def test_a_secret_in_place_of_its_file_is_refused_and_not_repeated(option: str, tmp_path: Path) -> None:
    secret = new_secret()
    words = ("relay", "--store", tmp_path / "s", "--webhook", URL, option, secret)
    status, _, said = await outcome(*words)
    assert status == ExitStatus.USAGE
    assert "give its file" in " ".join(said)
    assert secret[6:] not in " ".join(said)


@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    ("content", "mode", "status"),
    [
        (None, 0o600, 2),
        ("", 0o600, 2),
        ("hunter2\n", 0o600, 2),
        ("whsec_aHVudGVyMg==\n", 0o600, 2),
        (f"{new_secret()}\nhunter2\n", 0o600, 2),
        (new_secret(), 0o644, 10),
    ],
    ids=["no file", "empty", "a word", "too short", "a word on the second line", "open to others"],
)
async def test_a_file_without_secrets_or_open_to_others_is_refused(
    content: str | None, mode: int, status: int, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    words = ("relay", "--listen", "127.0.0.1:0", "--store", tmp_path / "s")
    found, _, said = await outcome(*words, "--webhook", URL, "--webhook-secret", file)
    assert found == status
    assert "hunter2" not in " ".join(said)
    assert (content or "whsec_").partition("\n")[0] not in " ".join(said) or not content


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--webhook", URL), "--webhook needs --webhook-secret"),
        (("--webhook-secret", "FILE"), "the other options of the webhook need --webhook"),
        (("--webhook-ca", "FILE"), "the other options of the webhook need --webhook"),
        (("--webhook", "http://accounts.example/hunter2", "--webhook-secret", "FILE"), "webhook: expected https"),
        (("--webhook", "https://ada:hunter2@accounts.example", "--webhook-secret", "FILE"), "webhook: expected https"),
    ],
    ids=["no secret", "a secret alone", "roots alone", "http", "a password"],
)  # fmt: skip
async def test_options_that_mean_nothing_are_refused(
    words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    file = secret_file(tmp_path / "secret", new_secret())
    given = [file if word == "FILE" else word for word in words]
    status, _, lines = await outcome("relay", "--listen", "127.0.0.1:0", "--store", tmp_path / "s", *given)
    assert status == ExitStatus.USAGE
    assert said in " ".join(lines)
    assert "hunter2" not in " ".join(lines)


async def test_an_account_service_that_is_not_there_is_said_and_the_relay_ends_in_order(
    tmp_path: Path,
) -> None:
    async with account_service() as service:
        pass
    async with started(tmp_path, service) as (program, relay):
        home = await relay.household()
        assert (await home.companions[0].put(f"/v1/mutes/{home.devices[0].name}", {})).status == 201
        line = await program.until_said("the account service does not take an event")
        assert "connection refused" in line
        program.terminate()
        async with asyncio.timeout(PATIENCE):
            assert await program.ended() == 0
