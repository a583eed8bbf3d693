"""Statements whose rows nobody asks for: sent in one round trip, in order, and all of them or none."""

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import psycopg
import pytest
from psycopg import errors

from companion_push.errors import StoreUnavailable
from companion_push.relay.postgres import open_postgres
from companion_push.relay.store_place import PostgresUri
from postgres_store import database
from postgres_store.pipeline import Told, tell
from tests.relay.stores import postgres, query

INSERT = "INSERT INTO kept VALUES (?, ?, ?, ?)"


@pytest.fixture
def place(tmp_path: Path) -> PostgresUri:
    made = postgres().database_for(tmp_path)
    query(made, "CREATE TABLE kept (id BIGINT PRIMARY KEY, name TEXT, data BYTEA, at DOUBLE PRECISION)")
    return made


@pytest.fixture
def connection(place: PostgresUri) -> "Iterator[psycopg.Connection[Any]]":
    with psycopg.connect(place.uri, autocommit=True) as connection:
        connection.execute("BEGIN")
        yield connection


def told(connection: "psycopg.Connection[Any]", *statements: Told) -> None:
    tell(connection.pgconn, statements, encoding=connection.info.encoding)


def test_values_arrive_as_they_are(connection: "psycopg.Connection[Any]") -> None:
    rows: list[tuple[Any, ...]] = [
        (1, 'J\N{LATIN SMALL LETTER U WITH DIAERESIS}rgen\'s \\ "?" %s', bytes(range(256)), -math.inf),
        (-(2**63), "", b"", 1_800_000_000.123456),
        (2**63 - 1, None, None, None),
    ]
    told(connection, *(Told(INSERT, row) for row in rows), Told("COMMIT"))
    found = connection.execute("SELECT * FROM kept").fetchall()
    assert found == rows


@pytest.mark.threat("T13")
def test_a_text_with_a_zero_character_is_refused_and_not_cut_off(
    connection: "psycopg.Connection[Any]",
) -> None:
    with pytest.raises(errors.CharacterNotInRepertoire):
        told(connection, Told(INSERT, (1, "alice\0bob", b"", 0)), Told("COMMIT"))


def test_nothing_is_executed_after_a_statement_that_fails(
    connection: "psycopg.Connection[Any]", place: PostgresUri
) -> None:
    with pytest.raises(errors.UniqueViolation, match="duplicate key") as failed:
        told(
            connection,
            Told(INSERT, (1, "one", b"", 0)),
            Told(INSERT, (1, "again", b"", 0)),
            Told("INSERT INTO missing VALUES (1)"),
            Told("COMMIT"),
        )
    assert "again" not in str(failed.value)
    assert query(place, "SELECT * FROM kept") == []
    connection.execute("ROLLBACK")
    told(connection, Told("BEGIN"), Told(INSERT, (1, "one", b"", 0)), Told("COMMIT"))
    assert query(place, "SELECT name FROM kept") == [("one",)]


@pytest.mark.threat("T11")
def test_a_server_that_logs_what_has_failed_logs_no_value(
    connection: "psycopg.Connection[Any]",
) -> None:
    secret = token_hex(16)
    with pytest.raises(errors.UniqueViolation):
        told(
            connection,
            Told(INSERT, (1, secret, secret.encode(), 0)),
            Told(INSERT, (1, secret, secret.encode(), 0)),
        )
    log = (postgres().folder / "log").read_bytes()
    assert b"INSERT INTO kept" in log
    assert secret.encode() not in log
    assert secret.encode().hex().encode() not in log


def test_more_is_sent_than_fits_on_the_way(connection: "psycopg.Connection[Any]") -> None:
    """The server answers each statement while others are still sent: who only sends waits for ever."""
    count = 20_000
    large = [Told(INSERT, (number, "x" * 300_000, b"", 0)) for number in range(30)]
    small = [
        Told("SELECT repeat('y', 500) FROM kept WHERE id = ?", (number % 30,)) for number in range(count)
    ]
    told(connection, *large, *small, Told("COMMIT"))
    assert connection.execute("SELECT count(*) FROM kept").fetchone() == (30,)


def test_a_connection_that_is_lost_is_said(connection: "psycopg.Connection[Any]", place: PostgresUri) -> None:
    query(place, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
    with pytest.raises(psycopg.OperationalError):
        told(connection, Told(INSERT, (1, "one", b"", 0)), Told("COMMIT"))
    assert connection.closed
    assert query(place, "SELECT * FROM kept") == []


# In a transaction of a store


async def test_what_was_told_is_seen_by_the_next_question_and_by_nobody_before_the_commit(
    place: PostgresUri,
) -> None:
    def work(db: Any) -> list[tuple[Any, ...]]:
        db.executemany(INSERT, [(1, "one", b"", 0), (2, "two", b"", 0)])
        db.executemany("UPDATE kept SET name = ? WHERE id = ?", [("second", 2)])
        found = db.execute("SELECT name FROM kept ORDER BY id").fetchall()
        db.executemany(INSERT, ((number, "more", b"", 0) for number in range(3, 1503)))
        assert query(place, "SELECT * FROM kept") == []
        return [tuple(row) for row in found]

    async with open_postgres(place) as store:
        assert await store.transact(work) == [("one",), ("second",)]
        assert query(place, "SELECT count(*) FROM kept") == [(1502,)]


async def test_of_a_transaction_that_raises_nothing_is_told(place: PostgresUri) -> None:
    def work(db: Any) -> None:
        db.executemany(INSERT, [(1, "one", b"", 0)])
        raise KeyError

    async with open_postgres(place) as store:
        with pytest.raises(KeyError):
            await store.transact(work)
        await store.transact(lambda db: db.executemany(INSERT, [(1, "other", b"", 0)]))
    assert query(place, "SELECT name FROM kept") == [("other",)]


async def test_what_is_told_with_the_commit_and_meets_another_transaction_is_run_again(
    place: PostgresUri,
) -> None:
    both, tries = threading.Barrier(2, timeout=30), []

    def work(db: Any) -> None:
        ((count,),) = db.execute("SELECT count(*) FROM kept").fetchall()
        tries.append(count)
        if len(tries) <= 2:
            both.wait()
        db.executemany(INSERT, [(count, f"{count}", b"", 0)])

    async with open_postgres(place) as store:
        await asyncio.gather(store.transact(work), store.transact(work))
    assert query(place, "SELECT id FROM kept ORDER BY id") == [(0,), (1,)]
    assert sorted(tries) == [0, 0, 1]


@pytest.mark.parametrize("statement", ["tell", "commit"])
async def test_a_connection_that_is_cut_before_the_commit_leaves_nothing(
    place: PostgresUri, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """What was told before is run again; after the COMMIT nobody knows, and the caller asks again."""
    cut = cut_once(place)
    real = database.Connection.tell

    def tell_(connection: database.Connection, statements: Any) -> None:
        if (statements[-1].statement == "COMMIT") is (statement == "commit"):
            cut(connection)
        real(connection, statements)

    monkeypatch.setattr(database.Connection, "tell", tell_)

    def work(db: Any) -> None:
        db.executemany(INSERT, [(1, "one", b"", 0)])
        if statement == "tell":
            db.execute("SELECT 1")
        db.executemany(INSERT, [(2, "two", b"", 0)])

    async with open_postgres(place) as store:
        if statement == "tell":
            await store.transact(work)
        else:
            with pytest.raises(StoreUnavailable):
                await store.transact(work)
            assert query(place, "SELECT * FROM kept") == []
            await store.transact(work)
    assert query(place, "SELECT id FROM kept ORDER BY id") == [(1,), (2,)]


def cut_once(place: PostgresUri) -> Callable[[database.Connection], None]:
    left = [True]

    def cut(connection: database.Connection) -> None:
        if left:
            left.clear()
            query(place, f"SELECT pg_terminate_backend({connection.info.backend_pid})")

    return cut
