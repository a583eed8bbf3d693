"""Copying a relay's store: all of it or nothing, from a file into PostgreSQL and back."""

import asyncio
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from companion_push.errors import StoreBusy, StoreUnusable
from companion_push.relay import store_copy
from companion_push.relay.store_copy import TABLES, checked, copy_store
from companion_push.relay.store_place import PostgresUri, StorePlace
from companion_push.relay.stores import Store, open_store
from companion_push.relay.transaction import Rows, Transaction
from postgres_store.database import Statements
from tests.programs import Program, run, running
from tests.relay.household import Household, Relay, fresh_id, running_relay
from tests.relay.stores import of_files, postgres, query

pytestmark = of_files  # the places are named here


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "relay.sqlite3"


@pytest.fixture
def database(tmp_path: Path) -> PostgresUri:
    return postgres().database_for(tmp_path)


def contents(place: StorePlace) -> dict[str, list[tuple[object, ...]]]:
    return {table: sorted(query(place, f"SELECT * FROM {table}"), key=repr) for table in TABLES}  # noqa: S608


def digests(place: StorePlace) -> dict[str, list[bytes]]:
    """A hash of each row."""
    return {
        table: sorted(sha256(repr(row).encode()).digest() for row in query(place, f"SELECT * FROM {table}"))  # noqa: S608
        for table in TABLES
    }


@asynccontextmanager
async def a_household(file: Path) -> AsyncIterator[tuple[Relay, Household, str]]:
    """A household with a request, a muted device, an invitation's rates and the rest of what a relay keeps."""
    async with running_relay(file) as relay:
        home = await relay.household(devices=2)
        await relay.household("bob")
        (anna, bert), (frame, hub) = home.companions, home.devices
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        assert (await anna.put(f"/v1/mutes/{hub.name}", {})).status == 201
        yield relay, home, name


@asynccontextmanager
async def both(source: StorePlace, target: StorePlace) -> AsyncIterator[tuple[Store, Store]]:
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(open_store(place, alone=True)) for place in (source, target)
        ]
        yield opened[0], opened[1]


async def test_a_store_is_copied_into_postgresql_and_the_relay_goes_on_there(
    file: Path, database: PostgresUri
) -> None:
    async with a_household(file) as (_, home, name):
        pass
    async with both(file, database) as stores:
        counts = await copy_store(*stores)
    assert contents(database) == contents(file)
    assert (counts["accounts"], counts["members"], counts["envelopes"], counts["mutes"]) == (2, 7, 2, 1)
    async with running_relay(file, place=database) as relay:
        anna, frame = relay.caller(home.companions[0].person), relay.caller(home.devices[0].person)
        (item,) = await anna.inbox()
        assert item["id"] == name
        assert (await anna.claims(frame, item)).status == 200
        await frame.submit(anna, name=fresh_id())


async def test_a_store_is_copied_back_into_a_file(file: Path, database: PostgresUri, tmp_path: Path) -> None:
    async with a_household(file):
        pass
    async with both(file, database) as stores:
        await copy_store(*stores)
    async with both(database, tmp_path / "back") as stores:
        await copy_store(*stores)
    assert contents(tmp_path / "back") == contents(file)


async def test_numbers_of_pushes_go_on_after_those_that_were_copied(
    file: Path, database: PostgresUri
) -> None:
    async with open_store(file) as store:
        await store.transact(
            lambda db: db.execute("INSERT INTO accounts (id, name, created_at) VALUES ('a', 'a', 1)")
        )
        pushed = "INSERT INTO pushes VALUES (7, 'a', 'c', 'h', 'fcm', x'00', x'00', 'test', NULL, NULL, 1, 0)"
        await store.transact(lambda db: db.execute(pushed))
    async with both(file, database) as stores:
        await copy_store(*stores)
    again = "INSERT INTO pushes (account, companion, handle, kind, address, tag, purpose, expires_at) VALUES ('a', 'c', 'h', 'fcm', '', '', 'test', 1) RETURNING id"
    assert query(database, again) == [(8,)]


class Stops:
    """A transaction in which a statement fails: the process ends there."""

    def __init__(self, db: Transaction, after: int) -> None:
        self._db, self._left = db, after

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Rows:
        self._count()
        return self._db.execute(statement, values)

    def executemany(self, statement: str, values: Iterable[Sequence[Any]], /) -> object:
        self._count()
        return self._db.executemany(statement, values)

    def take_time(self) -> None:
        assert isinstance(self._db, Statements)
        self._db.take_time()

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt


async def test_a_copy_that_is_stopped_anywhere_has_copied_nothing_and_can_be_begun_again(
    file: Path, database: PostgresUri, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_household(file):
        pass
    copied: Callable[[Transaction, Transaction], dict[str, int]] = store_copy._copied
    empty: dict[str, list[tuple[object, ...]]] = {table: [] for table in TABLES}
    stops = 0
    async with both(file, database) as stores:
        while True:
            monkeypatch.setattr(store_copy, "_copied", lambda a, b, after=stops: copied(a, Stops(b, after)))
            try:
                await copy_store(*stores)
                break
            except KeyboardInterrupt:
                assert contents(database) == empty
            stops += 1
    assert stops > len(TABLES)  # in the middle of rows too
    assert contents(database) == contents(file)


LONG: Final = 1 << 18  # bytes of a row


def on_the_way() -> int:
    """How many bytes a connection over TCP may hold that its other end has not read: both ends' largest buffers."""
    return sum(
        int(Path(f"/proc/sys/net/ipv4/tcp_{each}").read_text().split()[2]) for each in ("wmem", "rmem")
    )


HELD: Final = 8_273  # a lock of PostgreSQL that the test holds, and nobody else knows


class Barrier:
    """A place in the database at which whoever comes there waits: at a row of a table, or at the commit."""

    def __init__(self, database: PostgresUri) -> None:
        self._database = database
        query(
            database,
            "CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE before bigint; BEGIN"
            " EXECUTE format('SELECT count(*) FROM %I', TG_TABLE_NAME) INTO before;"
            " IF before >= TG_ARGV[0]::int THEN PERFORM pg_advisory_xact_lock(TG_ARGV[1]::int); END IF; RETURN NEW; END $$",
        )

    @contextmanager
    def at_row(self, table: str, number: int) -> Iterator[None]:
        with self._made(table, f"CREATE TRIGGER barrier BEFORE INSERT ON {table} FOR EACH ROW", number):
            yield

    @contextmanager
    def at_commit(self, table: str) -> Iterator[None]:
        deferred = (
            f"CREATE CONSTRAINT TRIGGER barrier AFTER INSERT ON {table} INITIALLY DEFERRED FOR EACH ROW"
        )
        with self._made(table, deferred, 0):
            yield

    @contextmanager
    def _made(self, table: str, trigger: str, number: int) -> Iterator[None]:
        """While it is there, it lets nobody pass."""
        query(self._database, f"{trigger} EXECUTE FUNCTION waits({number}, {HELD})")
        with psycopg.connect(self._database.uri, autocommit=True) as held:
            held.execute(b"SELECT pg_advisory_lock(%d)" % HELD)
            yield
        while self._count("granted") or self._count("NOT granted"):
            time.sleep(0.01)
        query(self._database, f"DROP TRIGGER barrier ON {table}")

    def waits(self) -> bool:
        return self._count("NOT granted") == 1

    def _count(self, which: str) -> int:
        locks = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {HELD} AND {which}"  # noqa: S608
        ((count,),) = query(self._database, locks)
        return int(count)

    async def kills(self, program: Program) -> None:
        """End who waits here, by SIGKILL."""
        while not self.waits():
            assert program.process.returncode is None, await program.stderr()
            await asyncio.sleep(0.01)
        assert await program.end(signal.SIGKILL) == -signal.SIGKILL


async def test_a_copy_that_is_killed_anywhere_has_copied_nothing_or_all_and_is_begun_again(
    file: Path, database: PostgresUri
) -> None:
    """What it had sent until then the server does, which may be all of the last tables, and the commit."""
    async with a_household(file) as (_, home, _):
        pass
    # from ring 20 on more than waits in sockets on the way, else the commit may have been sent when the program is killed there
    count = 20 + 2 + on_the_way() // LONG
    long = f"WITH RECURSIVE n(v) AS (SELECT 1000 UNION ALL SELECT v + 1 FROM n WHERE v < {999 + count})"  # noqa: S608  numbers
    account = home.account
    query(file, f"{long} INSERT INTO rings SELECT '{account}', v, randomblob(32), zeroblob({LONG}) FROM n")  # noqa: S608
    words = ("companion_push", "store", "copy", "--store", str(file), "--to", str(database))
    rows = digests(file)
    empty: dict[str, list[bytes]] = {table: [] for table in TABLES}
    barrier = Barrier(database)
    filled = [table for table in TABLES if rows[table]]
    last = [(table, len(rows[table]) - 1) for table in filled[-2:]]
    for table, number in [("accounts", 0), ("rings", 20), *last]:
        with barrier.at_row(table, number):
            async with running(*words) as program:
                await barrier.kills(program)
        if (table, number) in last and digests(database) == rows:
            query(database, f"TRUNCATE {', '.join(TABLES)}")
        assert digests(database) == empty
    status, _, said = await run(*words)
    assert (status, digests(database)) == (0, rows), said
    assert digests(file) == rows


async def test_a_copy_that_is_killed_at_its_commit_is_whole_and_no_second_one_doubles_it(
    file: Path, database: PostgresUri
) -> None:
    async with a_household(file):
        pass
    words = ("companion_push", "store", "copy", "--store", str(file), "--to", str(database))
    barrier = Barrier(database)
    with barrier.at_commit("accounts"):
        async with running(*words) as program:
            await barrier.kills(program)
    assert contents(database) == contents(file)
    status, _, said = await run(*words)
    assert (status, "not empty" in said) == (10, True)
    assert contents(database) == contents(file)


async def test_nothing_is_copied_into_a_store_that_has_rows(file: Path, tmp_path: Path) -> None:
    async with a_household(file), a_household(tmp_path / "other"):
        pass
    before = contents(tmp_path / "other")
    async with both(file, tmp_path / "other") as stores:
        with pytest.raises(StoreUnusable, match="not empty"):
            await copy_store(*stores)
    assert contents(tmp_path / "other") == before


async def test_no_relay_may_be_running_on_either(file: Path, tmp_path: Path) -> None:
    async with a_household(file):
        with pytest.raises(StoreBusy, match="another relay"):
            async with both(file, tmp_path / "other"):
                pass


async def test_a_check_counts_and_names_the_engine(file: Path, database: PostgresUri) -> None:
    async with a_household(file):
        found = await checked(file)
    assert found.engine == f"SQLite {sqlite3.sqlite_version}"
    assert (found.counts["accounts"], found.warnings) == (2, ())
    async with open_store(database):
        found = await checked(database)
    assert found.engine.startswith("PostgreSQL ")
    assert found.counts == dict.fromkeys(TABLES, 0)
    assert found.warnings == (
        "fsync is off: the server may lose what it has acknowledged when it stops without notice",
    )


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[3 * 4096 : 4 * 4096] = bytes(4096)
    file.write_bytes(data)


async def test_a_damaged_file_is_said(file: Path) -> None:
    async with a_household(file):
        pass
    damage(file)
    with pytest.raises(StoreUnusable, match="damaged"):
        await checked(file)


# The commands


async def test_the_commands_check_and_copy(file: Path, tmp_path: Path) -> None:
    async with a_household(file):
        pass
    other = tmp_path / "other"
    status, stdout, stderr = await run("companion_push", "store", "copy", "--store", file, "--to", other)
    assert (status, stdout) == (0, "")
    assert "2 accounts with 7 members are copied" in stderr
    status, stdout, stderr = await run("companion_push", "store", "check", "--store", other)
    assert (status, stdout.splitlines()[0]) == (0, "accounts 2")
    assert stderr == f"SQLite {sqlite3.sqlite_version}: well\n"


@pytest.mark.parametrize("command", [["check"], ["copy", "--to", "other"]], ids=["check", "copy"])
async def test_a_file_that_is_not_there_is_not_made(file: Path, command: list[str]) -> None:
    status, _, stderr = await run("companion_push", "store", *command, "--store", file)
    assert (status, f"there is no {file}" in stderr) == (2, True)
    assert await asyncio.to_thread(file.exists) is False


async def test_a_store_is_not_copied_into_itself(file: Path) -> None:
    async with a_household(file):
        pass
    status, _, stderr = await run("companion_push", "store", "copy", "--store", file, "--to", file)
    assert (status, "another place" in stderr) == (2, True)
