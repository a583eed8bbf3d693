"""A database of a chaotic run can be killed and started at any moment, and put back to a copy."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.databases import Postgres, missing
from tests.chaos.plan import Deployment
from tests.chaos.town import postgres_folder
from tests.relay.stores import query


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    lacking = missing(Deployment.POSTGRES)
    if lacking is not None:
        pytest.skip(lacking)
    with postgres_folder() as (folder, _):
        server = Postgres(folder)
        yield server
        server.end()


def test_it_is_killed_and_back_with_what_was_committed_and_put_back_to_a_copy(
    postgres: Postgres, tmp_path: Path
) -> None:
    query(postgres.place, "CREATE TABLE spoken (word TEXT); INSERT INTO spoken VALUES ('one')")
    postgres.copy_to(tmp_path / "copy")
    query(postgres.place, "INSERT INTO spoken VALUES ('two')")
    first = postgres.pid
    assert first is not None
    postgres.kill()
    assert postgres.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    postgres.start()  # at once
    assert query(postgres.place, "SELECT word FROM spoken") == [("one",), ("two",)]
    postgres.put_back(tmp_path / "copy")
    assert query(postgres.place, "SELECT word FROM spoken") == [("one",)]
    assert postgres.unfinished() == 0


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.chaos.databases.is_installed", lambda: False)
    monkeypatch.setattr("tests.chaos.databases.redis_program", lambda _: None)
    assert missing(Deployment.FILE) is None
    assert missing(Deployment.REDIS) == "postgresql and redis not installed: make test-stores"
