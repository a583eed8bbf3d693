"""Statements that are sent in one round trip: in order, and all of them or none; and prepared ones."""

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import psycopg
import pytest
from psycopg import errors

from companion_push.errors import StoreUnavailable
from companion_push.relay.postgres import open_postgres
from companion_push.relay.store_place import PostgresUri
from postgres_store import database, pipeline
from postgres_store.pipeline import Prepared, Told, tell
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


def told(
    connection: "psycopg.Connection[Any]", *statements: Told, prepared: Prepared | None = None
) -> list[bytes | None]:
    """The first value that each statement has found."""
    results = tell(connection.pgconn, statements, encoding=connection.info.encoding, prepared=prepared)
    return [each.get_value(0, 0) if each.ntuples else None for each in results]


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


# Prepared statements


def test_a_statement_is_prepared_once_and_finds_the_same(connection: "psycopg.Connection[Any]") -> None:
    prepared, by_name = Prepared(), Told("SELECT id::text FROM kept WHERE name = ?", ("two",))
    told(connection, *(Told(INSERT, (number, name, b"", 0.5)) for number, name in ((1, "one"), (2, "two"))))
    for _ in range(2):
        assert told(connection, by_name, Told(INSERT, (7, None, None, None)), by_name, prepared=prepared) == [
            b"2",
            None,
            b"2",
        ]
        told(connection, Told("DELETE FROM kept WHERE id = ?", (7,)), prepared=prepared)
    assert count_of_prepared(connection) == 3


def test_what_comes_after_a_statement_that_fails_is_prepared_by_the_next_one(
    connection: "psycopg.Connection[Any]",
) -> None:
    prepared = Prepared()
    insert, count = Told(INSERT, (1, "one", b"", 0)), Told("SELECT count(*)::text FROM kept")
    told(connection, Told("SAVEPOINT here"), insert, prepared=prepared)
    with pytest.raises(errors.UniqueViolation):
        told(connection, insert, count, prepared=prepared)
    told(connection, Told("ROLLBACK TO here"))
    assert told(connection, insert, count, prepared=prepared) == [None, b"1"]


def test_no_more_is_prepared_than_the_server_should_keep(
    connection: "psycopg.Connection[Any]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "MOST_PREPARED", 2)
    prepared = Prepared()
    for _ in range(2):
        for number in range(5):
            assert told(connection, Told(f"SELECT '{number}'"), prepared=prepared) == [b"%d" % number]
    assert count_of_prepared(connection) == 2


def test_a_value_of_another_type_is_another_statement(connection: "psycopg.Connection[Any]") -> None:
    """A whole number and one with a fraction are compared as what they are."""
    prepared = Prepared()
    told(connection, Told(INSERT, (2, "two", b"", 0.0)))
    for value, found in ((2, b"two"), (1.5, b"two"), (2.5, None), (3, None)):
        below = Told("SELECT name FROM kept WHERE id >= ?", (value,))
        assert told(connection, below, prepared=prepared) == [found]


async def test_a_relay_prepares_its_statements_and_a_command_does_not(place: PostgresUri) -> None:
    def prepared(db: Any) -> int:
        return int(db.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()[0])

    async with open_postgres(place) as command:
        assert [await command.transact(prepared) for _ in range(2)] == [0, 0]
    async with open_postgres(place, serves=True) as relay:
        assert [await relay.transact(prepared) for _ in range(2)][1] > 0
    async with open_postgres(replace(place, direct=place.uri), serves=True) as behind_a_pooler:
        assert [await behind_a_pooler.transact(prepared) for _ in range(2)] == [0, 0]


def count_of_prepared(connection: "psycopg.Connection[Any]") -> int:
    ((count,),) = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchall()
    return int(count)


# In a transaction of a store


async def test_what_is_asked_is_sent_when_somebody_looks(
    place: PostgresUri, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, trips = database.Connection.tell, []

    def tell_(connection: database.Connection, statements: Any) -> Any:
        trips.append([each.statement.partition(" ")[0] for each in statements])
        return real(connection, statements)

    def work(db: Any) -> list[Any]:
        inserted = db.execute(INSERT, (1, "one", b"", 0))
        first, second = (db.execute("SELECT name FROM kept WHERE id = ?", (number,)) for number in (1, 2))
        found = [second.fetchone(), first.fetchall(), inserted.rowcount]
        db.execute("UPDATE kept SET name = ? WHERE id = ?", ("two", 1))
        return found

    async with open_postgres(place) as store:
        monkeypatch.setattr(database.Connection, "tell", tell_)
        assert await store.transact(work) == [None, [("one",)], 1]
        await store.transact(lambda _db: None)
    assert trips == [["BEGIN", "SELECT", "INSERT", "SELECT", "SELECT"], ["UPDATE", "COMMIT"]]
    assert query(place, "SELECT name FROM kept") == [("two",)]


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

    def tell_(connection: database.Connection, statements: Any) -> Any:
        if (statements[-1].statement == "COMMIT") is (statement == "commit"):
            cut(connection)
        return real(connection, statements)

    def work(db: Any) -> None:
        db.executemany(INSERT, [(1, "one", b"", 0)])
        if statement == "tell":
            db.execute("SELECT 1").fetchone()
        db.executemany(INSERT, [(2, "two", b"", 0)])

    async with open_postgres(place) as store:
        monkeypatch.setattr(database.Connection, "tell", tell_)
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
