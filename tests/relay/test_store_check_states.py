"""`companion-push store check --states`: what it says of real servers of Redis and Valkey, good and bad, and how it ends."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from companion_push.relay.redis_place import RedisPlace
from companion_push.relay.store_place import PostgresUri
from headless_passkey.errors import SetupReason
from tests.ports import reserved_port
from tests.programs import run
from tests.relay import redis_servers
from tests.relay.stores import postgres
from tests.relay.test_redis import PASSWORD, of_its_own

OF_DATABASE: Final = 2  # lines about the database, which come first: the tests' server has fsync off


@pytest.fixture
def database(tmp_path: Path) -> PostgresUri:
    return postgres().database_for(tmp_path)


@pytest.fixture
def password(tmp_path: Path) -> Path:
    """A file for --states-password."""
    return private(tmp_path / "password", PASSWORD)


def private(file: Path, content: str, mode: int = 0o600) -> Path:
    file.write_text(content)
    file.chmod(mode)
    return file


async def check(
    database: PostgresUri,
    states: RedisPlace,
    *words: str | Path,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """The exit status, and what is said of the states. What is counted is on stdout, whatever is said."""
    of_all = ("store", "check", "--store", str(database), "--states", str(states), *words)
    status, stdout, stderr = await run("companion_push", *of_all, environment=environment)
    assert stdout.startswith("accounts 0\n")
    assert PASSWORD not in stdout + stderr
    return status, stderr.splitlines()[OF_DATABASE:]


async def checked(database: PostgresUri, states: RedisPlace, *words: str | Path) -> tuple[int, list[Any]]:
    """The same, as programs read it; without the time of each line."""
    status, said = await check(database, states, *words, "--json")
    return status, [{key: value for key, value in json.loads(line).items() if key != "at"} for line in said]


APPENDS_NOTHING: Final = "appendonly is off: what waits is lost when the server stops without notice"
NO_REPLICA: Final = "there is no replica: nobody takes over when the server is gone"


async def test_a_server_that_may_lose_what_waits_is_well_with_a_warning_of_each_setting(
    database: PostgresUri, password: Path
) -> None:
    async with of_its_own("redis", f"requirepass {PASSWORD}", "appendonly no") as server:
        engine = f"Redis {server.do('INFO', 'server', password=PASSWORD)['redis_version']}"
        status, said = await check(database, server.place(), "--states-password", password)
        warnings = [f"warning: {each}" for each in (APPENDS_NOTHING, NO_REPLICA)]
        assert (status, said) == (0, [*warnings, f"{engine}: well"])
        assert await check(database, server.place(), environment={"REDISCLI_AUTH": PASSWORD}) == (0, said)
        assert await checked(database, server.place(), "--states-password", password) == (
            0,
            [
                {"stage": "warning", "message": APPENDS_NOTHING},
                {"stage": "warning", "message": NO_REPLICA},
                {"stage": "checked", "engine": engine},
            ],
        )


@pytest.mark.parametrize("engine", ["redis", "valkey"])
async def test_a_cluster_with_replicas_and_a_log_is_well(database: PostgresUri, engine: str) -> None:
    status, said = await check(database, redis_servers.place(f"{engine}-cluster", prefix="check"))
    (line,) = said
    assert status == 0
    assert line.startswith(f"{engine.capitalize()} ")
    assert line.endswith(", 3 primaries: well")


@pytest.mark.threat("T17")
@pytest.mark.parametrize("engine", ["redis", "valkey"])
async def test_a_server_that_drops_values_is_no_place_for_states(database: PostgresUri, engine: str) -> None:
    async with of_its_own(engine, "maxmemory 64mb", "maxmemory-policy allkeys-lru") as server:
        status, (line,) = await check(database, server.place())
        assert (status, "allkeys-lru" in line, "noeviction is needed" in line) == (10, True, True)
        status, (failure,) = await checked(database, server.place())
    assert (status, failure["status"], failure["reason"]) == (10, 10, SetupReason.STATE_INCOMPATIBLE)
    assert "noeviction is needed" in failure["message"]


@pytest.mark.threat("T11")
@pytest.mark.parametrize("given", ["none", "wrong", "wrong in the environment"])
async def test_a_password_that_is_not_taken_is_said_and_not_repeated(
    database: PostgresUri, password: Path, given: str
) -> None:
    wrong = "another-" + PASSWORD
    words = ("--states-password", private(password, wrong)) if given == "wrong" else ()
    environment = {"REDISCLI_AUTH": wrong if given.endswith("environment") else ""}
    async with of_its_own("redis", f"requirepass {PASSWORD}") as server:
        status, (line,) = await check(database, server.place(), *words, environment=environment)
        assert (status, "does not take this user with this password" in line) == (10, True)
        of_all = ("store", "check", "--store", str(database), "--states", str(server.place()))
        status, _, stderr = await run(
            "companion_push", *of_all, "--states-password", private(password, PASSWORD, 0o644)
        )
        assert (status, PASSWORD in stderr) == (10, False)


async def test_a_server_that_does_not_answer_is_said_with_the_status_of_what_may_pass(
    database: PostgresUri,
) -> None:
    nowhere = RedisPlace(hosts=(("127.0.0.1", reserved_port()),))
    status, (line,) = await check(database, nowhere)
    assert (status, "do not answer" in line) == (4, True)
    status, (failure,) = await checked(database, nowhere)
    assert (status, failure["status"], failure["error"]) == (4, 4, "StoreUnavailable")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--store", "relay.sqlite3", "--states", "redis://127.0.0.1"], "needs a --store in PostgreSQL"),
        (["--store", "postgresql:///relay", "--states", "http://127.0.0.1"], "redis://"),
        (["--store", "postgresql:///relay", "--states", f"redis://:{PASSWORD}@127.0.0.1"], "password"),
        (["--store", "postgresql:///relay", "--states-password", "FILE"], "needs --states"),
    ],
    ids=["beside a file", "another scheme", "a password in the URI", "a password alone"],
)
async def test_what_cannot_be_meant_is_refused_before_anything_is_asked(
    words: list[str], said: str, tmp_path: Path, password: Path
) -> None:
    (tmp_path / "relay.sqlite3").touch()
    words = [
        str(tmp_path / word) if word == "relay.sqlite3" else word.replace("FILE", str(password))
        for word in words
    ]
    status, stdout, stderr = await run("companion_push", "store", "check", *words)
    assert (status, stdout, said in stderr) == (2, "", True), stderr
    assert PASSWORD not in stderr
