"""The store: one file, private, ours, of a known version; durable, and forgetful of what is over."""

import asyncio
import errno
import fcntl
import os
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from companion_push.errors import StoreBusy, StoreUnavailable, StoreUnusable
from companion_push.relay import database as database_module
from companion_push.relay import store
from companion_push.relay.accounts import add_account
from companion_push.relay.database import Database, open_database, sole_user
from companion_push.relay.mailbox import GRACE, KEPT, LEASE, CompanionEvent, Leases, Request
from companion_push.relay.operations import Call, sweep
from companion_push.relay.problems import Problem, Slug
from headless_passkey.errors import SetupReason
from headless_passkey.request import RequestState

NOW = 1_800_000_000
SEALED = b"sealed for anna alone"
LEASES = Leases(1_000_000, began=NOW)  # nobody vanishes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.sqlite3"


@pytest_asyncio.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    async with open_database(path) as opened:
        yield opened


async def a_request(database: Database) -> Request:
    """A pending request, stored."""

    def insert(db: sqlite3.Connection) -> Request:
        added = add_account(db, name="alice", now=NOW, expires_at=NOW + 60)
        assert added is not None
        request = Request(
            account=added[0],
            device="frame",
            id="r1",
            recipients=("anna", "bert"),
            fingerprint=bytes(32),
            submitted_at=NOW,
            expires_at=NOW + 300,
        )
        store.insert(db, request, {"anna": SEALED, "bert": b"sealed for bert"})
        return request

    return await database.transact(insert)


def modes(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


def contents(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


# The file


async def test_the_file_is_its_owners_alone(path: Path, database: Database) -> None:
    await a_request(database)
    assert modes(path.parent) == {path.name + end: 0o600 for end in ("", "-shm", "-wal")}


async def test_a_store_opens_again_with_what_was_in_it(path: Path) -> None:
    async with open_database(path) as database:
        request = await a_request(database)
    async with open_database(path) as database:
        assert await database.transact(lambda db: store.request(db, "frame", "r1")) == request


async def test_what_is_acknowledged_is_on_the_disk(database: Database) -> None:
    assert await database.transact(lambda db: db.execute("PRAGMA synchronous").fetchone()) == (2,)
    assert await database.transact(lambda db: db.execute("PRAGMA journal_mode").fetchone()) == ("wal",)


async def test_a_transaction_that_fails_leaves_nothing_behind(database: Database) -> None:
    def half(db: sqlite3.Connection) -> None:
        add_account(db, name="alice", now=NOW, expires_at=NOW + 60)
        raise Problem(Slug.EXPIRED)

    with pytest.raises(Problem):
        await database.transact(half)
    assert await database.transact(lambda db: db.execute("SELECT count(*) FROM accounts").fetchone()) == (0,)


async def refused_to_open(path: Path, error: type[Exception]) -> str:
    with pytest.raises(error) as refusal:
        async with open_database(path):
            pass
    return str(refusal.value)


@pytest.fixture
def letter(path: Path) -> bytes:
    path.touch(mode=0o600)
    path.write_bytes(b"a letter to a friend, longer than a header of SQLite would be" * 20)
    return contents(path.parent)


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, letter: bytes) -> None:
    assert "not a store" in await refused_to_open(path, StoreUnusable)
    assert contents(path.parent) == letter


def private_file(path: Path) -> sqlite3.Connection:
    """A database of some program, in a file for its owner alone."""
    path.touch(mode=0o600)
    return sqlite3.connect(path)


async def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    connection = private_file(path)
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    assert "another program" in await refused_to_open(path, StoreUnusable)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("recipes",)]
    connection.close()


async def test_a_store_of_a_newer_version_is_refused(path: Path) -> None:
    async with open_database(path):
        pass
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "newer version" in await refused_to_open(path, StoreUnusable)


async def test_a_store_of_rings_that_nobody_reads_any_more_is_refused(path: Path) -> None:
    connection = private_file(path)
    connection.execute("CREATE TABLE accounts (id TEXT)")
    connection.execute(f"PRAGMA application_id = {0x68704B31}")
    connection.close()
    with pytest.raises(StoreUnusable, match="everybody joins again") as refusal:
        async with open_database(path):
            pass
    assert refusal.value.reason is SetupReason.STATE_INCOMPATIBLE


async def test_a_folder_or_a_missing_folder_is_refused(tmp_path: Path) -> None:
    await refused_to_open(tmp_path, StoreUnusable)
    await refused_to_open(tmp_path / "absent" / "store", StoreUnusable)


async def test_a_store_of_an_older_version_is_brought_up_step_by_step(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_database(path) as database:
        await a_request(database)
    steps = database_module._MIGRATIONS
    more = (*steps, "CREATE TABLE more (a INTEGER) STRICT;\nINSERT INTO more VALUES (7)")
    monkeypatch.setattr(database_module, "_MIGRATIONS", more)
    for _ in range(2):
        async with open_database(path) as database:
            assert await database.transact(lambda db: db.execute("SELECT a FROM more").fetchall()) == [(7,)]
            assert await database.transact(lambda db: store.request(db, "frame", "r1")) is not None


async def test_a_step_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_database(path):
        pass
    steps = database_module._MIGRATIONS
    monkeypatch.setattr(
        database_module, "_MIGRATIONS", (*steps, "CREATE TABLE more (a);\nCREATE TABLE more (a)")
    )
    await refused_to_open(path, StoreUnusable)
    monkeypatch.setattr(database_module, "_MIGRATIONS", steps)
    async with open_database(path) as database:
        tables = await database.transact(lambda db: db.execute("SELECT name FROM sqlite_schema").fetchall())
    assert ("more",) not in tables


async def test_a_store_that_is_locked_by_another_program_is_busy(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_database(path):
        pass
    monkeypatch.setattr(database_module, "_BUSY_SECONDS", 0.05)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    assert "locked" in await refused_to_open(path, StoreBusy)
    connection.execute("ROLLBACK")
    connection.close()


def the_file(db: sqlite3.Connection) -> str:
    return str(db.execute("PRAGMA database_list").fetchone()[2])


async def test_a_transaction_waits_from_when_it_was_asked_for_and_not_from_its_turn(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    await database.transact(lambda db: db.set_trace_callback(said.append))
    for waited in (0, 3, 5, 60):  # in a queue, until it is this one's turn
        monkeypatch.setattr(database_module, "monotonic", iter((100, 100 + waited)).__next__)
        await database.transact(the_file)
    timeouts = [line.rpartition("=")[2] for line in said if "busy_timeout" in line]
    assert timeouts == ["5000", "2000", "0", "0"]


async def test_all_who_wait_for_one_lock_are_told_that_the_store_is_busy(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_BUSY_SECONDS", 0.01)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    calls = [database.transact(the_file) for _ in range(10)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    other.execute("ROLLBACK")
    other.close()
    assert {type(result) for result in results} == {StoreBusy}
    assert await database.transact(the_file) == str(path)


def _replace(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


@pytest.mark.parametrize("end", ["", "-wal", "-shm"])
@pytest.mark.parametrize("change", [Path.unlink, _replace], ids=["deleted", "replaced"])
async def test_a_store_that_is_no_longer_the_file_at_its_path_acknowledges_nothing(
    path: Path, database: Database, change: Callable[[Path], None], end: str
) -> None:
    await a_request(database)
    change(Path(f"{path}{end}"))
    with pytest.raises(StoreUnavailable, match="no longer the file at"):
        await database.transact(the_file)


async def test_a_store_that_is_put_back_goes_on(path: Path, database: Database) -> None:
    request = await a_request(database)
    away = path.with_name("away")
    (away.parent / path.name).rename(away)
    with pytest.raises(StoreUnavailable):
        await database.transact(lambda db: store.save(db, request.superseded()))
    (away.parent / away.name).rename(path)
    assert await database.transact(lambda db: store.request(db, "frame", "r1")) == request


async def test_a_store_that_is_deleted_in_the_middle_acknowledges_nothing(
    path: Path, database: Database
) -> None:
    with pytest.raises(StoreUnavailable, match="no longer"):
        await database.transact(lambda _: path.unlink())


async def test_another_program_that_opens_and_closes_the_file_changes_nothing(
    path: Path, database: Database
) -> None:
    """A process that closes a file of its own lets go of all its locks on it: SQLite's too, which keep the log there."""
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('DELETE FROM spent'); c.commit(); c.close()"
    async with open_database(path) as second:
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", program, path)
        assert await other.wait() == 0
        for each in (database, second):
            assert await each.transact(the_file) == str(path)


async def test_a_fault_of_ours_is_no_state_of_the_file(database: Database) -> None:
    with pytest.raises(StoreUnavailable, match="no such table: nowhere"):
        await database.transact(lambda db: db.execute("SELECT * FROM nowhere"))


def test_a_store_has_one_relay_at_a_time(path: Path) -> None:
    with sole_user(path), pytest.raises(StoreBusy, match="another relay"), sole_user(path):
        pass
    with sole_user(path):
        pass


def test_a_file_system_without_locks_is_not_another_relay(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        pytest.raises(StoreUnusable, match=f"^cannot lock the store {path}: No locks available$"),
        sole_user(path),
    ):
        pass


async def test_an_account_can_be_added_while_another_connection_writes(
    path: Path, database: Database
) -> None:
    async def add(opened: Database, prefix: str) -> None:
        for number in range(20):
            name = f"{prefix} {number}"
            await opened.transact(lambda db, name=name: add_account(db, name=name, now=NOW, expires_at=NOW))  # type: ignore[misc]

    async with open_database(path) as other:
        await asyncio.gather(add(database, "a"), add(other, "b"))
    assert await database.transact(lambda db: db.execute("SELECT count(*) FROM accounts").fetchone()) == (40,)


# Requests


async def test_a_request_comes_back_as_it_was_saved(database: Database) -> None:
    request = await a_request(database)
    changed = request.fetched("anna").companion_says("bert", CompanionEvent.FAILED, "stale-ring", now=NOW)
    changed = changed.companion_says("anna", CompanionEvent.CLAIMED, None, now=NOW)
    await database.transact(lambda db: store.save(db, changed))
    assert await database.transact(lambda db: store.request(db, "frame", "r1")) == changed
    assert await database.transact(lambda db: store.requests_of(db, request.account)) == [changed]


async def test_who_vanished_and_comes_back_is_stored_as_well(database: Database) -> None:
    opened = (await a_request(database)).companion_says("anna", CompanionEvent.CLAIMED, None, now=NOW)
    opened = opened.companion_says("anna", CompanionEvent.OPENED, None, stays=True, now=NOW)
    vanished = opened.at(NOW + LEASE, NOW + LEASE)
    back = vanished.companion_says("anna", CompanionEvent.CLAIMED, None, now=NOW)
    assert (vanished.failures != (), back.failures) == (True, ())
    for each in (opened, vanished, back):
        await database.transact(lambda db, each=each: store.save(db, each))  # type: ignore[misc]
        assert await database.transact(lambda db: store.request(db, "frame", "r1")) == each


async def test_failures_keep_their_order(database: Database) -> None:
    request = await a_request(database)
    for by in ("bert", "anna"):
        request = request.companion_says(by, CompanionEvent.FAILED, None, now=NOW)
        await database.transact(lambda db, after=request: store.save(db, after))  # type: ignore[misc]
    kept = await database.transact(lambda db: store.request(db, "frame", "r1"))
    assert kept == request
    assert [failure.by for failure in request.failures] == ["bert", "anna"]


@pytest.mark.threat("T11")
async def test_envelopes_are_forgotten_when_their_request_is_over(path: Path, database: Database) -> None:
    request = await a_request(database)
    assert await database.transact(lambda db: store.sealed_for(db, "anna")) == [(request, SEALED)]
    await database.transact(lambda db: store.save(db, request.superseded()))
    assert await database.transact(lambda db: store.sealed_for(db, "anna")) == []
    kept = await database.transact(lambda db: store.request(db, "frame", "r1"))
    assert kept == request.superseded()

    # and nothing of them is left in the file itself
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert SEALED not in contents(path.parent)


async def test_the_sweep_writes_expiry_down_and_forgets_in_the_end(database: Database) -> None:
    await a_request(database)

    async def swept(now: float) -> Request | None:
        await database.transact(lambda db: sweep(Call(db=db, caller="", now=now, leases=LEASES)))
        return await database.transact(lambda db: store.request(db, "frame", "r1"))

    pending = await swept(NOW + 299)
    assert pending is not None
    assert pending.state is RequestState.PENDING
    expired = await swept(NOW + 300)
    assert expired is not None
    assert expired.state is RequestState.EXPIRED
    assert await swept(NOW + 300 + GRACE + KEPT - 1) == expired
    assert await swept(NOW + 300 + GRACE + KEPT) is None
    assert await database.transact(lambda db: db.execute("SELECT count(*) FROM envelopes").fetchone()) == (0,)


async def test_the_sweep_leaves_a_claimed_request_its_grace(database: Database) -> None:
    request = await a_request(database)
    claimed = request.companion_says("anna", CompanionEvent.CLAIMED, None, now=NOW)
    await database.transact(lambda db: store.save(db, claimed))
    answer = await database.transact(
        lambda db: sweep(Call(db=db, caller="", now=NOW + 300 + GRACE - 1, leases=LEASES))
    )
    assert answer.topics == frozenset()
    answer = await database.transact(
        lambda db: sweep(Call(db=db, caller="", now=NOW + 300 + GRACE, leases=LEASES))
    )
    assert answer.topics == {"request frame r1", "inbox anna", "inbox bert"}


async def test_the_sweep_takes_a_claim_from_who_has_vanished(database: Database) -> None:
    claimed = (await a_request(database)).companion_says("anna", CompanionEvent.CLAIMED, None, now=NOW)
    await database.transact(lambda db: store.save(db, claimed))
    leases = Leases(60, began=NOW)
    for now, state in ((NOW + 59, RequestState.CLAIMED), (NOW + 60, RequestState.DELIVERED)):
        await database.transact(lambda db, now=now: sweep(Call(db=db, caller="", now=now, leases=leases)))  # type: ignore[misc]
        kept = await database.transact(lambda db: store.request(db, "frame", "r1"))
        assert kept is not None
        assert kept.state is state


async def test_an_account_nobody_founded_is_forgotten_with_its_code(database: Database) -> None:
    def names(db: sqlite3.Connection) -> list[tuple[str]]:
        return db.execute("SELECT name FROM accounts").fetchall()

    await database.transact(lambda db: add_account(db, name="alice", now=NOW, expires_at=NOW + 60))
    await database.transact(lambda db: sweep(Call(db=db, caller="", now=NOW + 86_000, leases=LEASES)))
    assert await database.transact(names) == [("alice",)]
    await database.transact(lambda db: sweep(Call(db=db, caller="", now=NOW + 86_460, leases=LEASES)))
    assert await database.transact(names) == []


@pytest.mark.threat("T11")
async def test_a_code_is_stored_as_its_hash_only(path: Path, database: Database) -> None:
    added = await database.transact(lambda db: add_account(db, name="alice", now=NOW, expires_at=NOW + 60))
    assert added is not None
    assert b"alice" in contents(path.parent)
    assert added[1] not in contents(path.parent)


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "disk-full"), (errno.EDQUOT, "disk-full"), (errno.EROFS, "state-unwritable")],
    ids=["no space", "over quota", "read-only"],
)
async def test_a_store_that_cannot_be_made_says_whether_the_disk_is_full(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(StoreUnusable) as refused:
        async with open_database(path):
            pass
    assert (refused.value.reason, refused.value.exit_status) == (reason, 10)
