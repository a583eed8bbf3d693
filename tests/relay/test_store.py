"""The store: one file, private, ours, of a known version; durable, and forgetful of what is over."""

import asyncio
import errno
import fcntl
import os
import random
import re
import shutil
import sqlite3
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from time import sleep
from typing import Any, Final

import pytest
import pytest_asyncio
from msgspec.structs import replace

from companion_push.errors import StoreBusy, StoreUnavailable, StoreUnusable
from companion_push.relay import account_states
from companion_push.relay import database as database_module
from companion_push.relay.accounts import add_account
from companion_push.relay.database import Database, open_database, sole_user
from companion_push.relay.mailbox import GRACE, KEPT, CompanionEvent, LeasesInMemory, Request
from companion_push.relay.operations import Answer, Call, sweep
from companion_push.relay.problems import Problem, Slug
from headless_passkey.errors import SetupReason
from headless_passkey.request import RequestState
from tests.loop_clock import LoopClock
from tests.relay.states import NOW, REQUEST, OpeningThatWaits, in_rows, stored_requests
from tests.relay.stores import of_files

pytestmark = of_files
BACK_UP: Final = Path(__file__).parents[2] / "docs/how-to/back-up.md"
SEALED = b"sealed for anna alone"
LEASES = LeasesInMemory(1_000_000, began=NOW)  # nobody vanishes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.sqlite3"


@pytest_asyncio.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    async with open_database(path) as opened:
        yield opened


async def a_request(database: Database) -> Request:
    """A pending request, stored."""

    def of_alice(db: sqlite3.Connection) -> Request:
        added = add_account(db, name="alice", now=NOW, expires_at=NOW + 60)
        assert added is not None
        request = replace(REQUEST, account=added[0])
        insert(db, request)
        return request

    return await database.transact(of_alice)


def insert(db: sqlite3.Connection, request: Request) -> None:
    states = in_rows(db, NOW)
    states.save(request)
    states.seal(request, {"anna": SEALED, "bert": b"sealed for bert"})
    states.store()


async def stored(database: Database, request: Request) -> None:
    def save(db: sqlite3.Connection) -> None:
        states = in_rows(db, NOW)
        states.save(request)
        states.store()

    await database.transact(save)


def swept_at(
    db: sqlite3.Connection, now: float, leases: LeasesInMemory = LEASES, after: str | None = None
) -> Answer:
    states = in_rows(db, now)
    answer = sweep(after)(Call(db=db, caller="", now=now, leases=leases, states=states))
    states.store()
    return answer


def modes(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


def open_files(folder: Path) -> list[Path]:
    """The files of a folder that this process has open."""
    resolved = (each.resolve() for each in Path("/proc/self/fd").iterdir())
    return [each for each in resolved if each.parent == folder.resolve()]


def contents(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


# The file


async def test_the_file_is_its_owners_alone(path: Path, database: Database) -> None:
    await a_request(database)
    assert modes(path.parent) == {path.name + end: 0o600 for end in ("", "-shm", "-wal")}


async def test_a_store_opens_again_with_what_was_in_it(path: Path) -> None:
    async with open_database(path) as database:
        request = await a_request(database)
    async with open_database(path):
        assert stored_requests(path) == [request]


async def test_an_opening_that_is_cancelled_leaves_nothing_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = OpeningThatWaits(database_module, "_migrate", monkeypatch)
    await opening.cancelled(open_database(path))
    assert open_files(path.parent) == []


class Disk:
    """A disk on which each sync waits for the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = self.over = 0  # so many syncs
        self._may = threading.Semaphore(0)
        self._error: OSError | None = None
        monkeypatch.setattr(os, "fdatasync", self._sync)

    def _sync(self, _descriptor: int) -> None:
        self.begun += 1
        self._may.acquire()
        self.over += 1
        if self._error is not None:
            raise self._error

    async def has_begun(self, number: int) -> None:
        while self.begun < number:  # noqa: ASYNC110  it is a thread that says so
            await asyncio.sleep(0.001)

    def let_through(self, error: OSError | None = None) -> None:
        self._error = error
        self._may.release()


@pytest.fixture
def disk(database: Database, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def add(db: sqlite3.Connection, name: str) -> None:
    assert add_account(db, name=name, now=NOW, expires_at=NOW + 60) is not None


def names(db: sqlite3.Connection) -> list[str]:
    return [name for (name,) in db.execute("SELECT name FROM accounts ORDER BY name")]


async def test_a_change_is_seen_with_its_commit_and_acknowledged_when_it_is_on_the_disk(
    database: Database, disk: Disk
) -> None:
    seen: list[str] = []
    adding = asyncio.ensure_future(
        database.transact(lambda db: add(db, "alice"), committed=lambda _: seen.append("alice"))
    )
    await disk.has_begun(1)
    assert seen == ["alice"]
    assert await database.transact(names, durable=lambda _: False) == ["alice"]  # a reader waits for nothing
    assert not adding.done()
    disk.let_through()
    await adding


async def test_whoever_reads_what_must_be_on_the_disk_waits_for_the_changes_of_others(
    database: Database, disk: Disk
) -> None:
    adding = asyncio.ensure_future(database.transact(lambda db: add(db, "alice")))
    reading = asyncio.ensure_future(database.transact(names))
    await disk.has_begun(1)
    assert not reading.done()
    disk.let_through()
    assert await reading == ["alice"]
    await adding
    assert await database.transact(names) == ["alice"]  # all is on the disk: no sync more
    assert disk.begun == 1


async def test_a_sync_that_began_before_a_commit_does_not_acknowledge_it(
    database: Database, disk: Disk
) -> None:
    first = asyncio.ensure_future(database.transact(lambda db: add(db, "alice")))
    await disk.has_begun(1)
    second = asyncio.ensure_future(database.transact(lambda db: add(db, "bert")))
    disk.let_through()
    await first
    await disk.has_begun(2)
    assert not second.done()
    disk.let_through()
    await second


async def test_many_changes_share_one_sync(database: Database, disk: Disk) -> None:
    first = asyncio.ensure_future(database.transact(lambda db: add(db, "first")))
    await disk.has_begun(1)
    others = [
        asyncio.ensure_future(database.transact(lambda db, name=f"{each}": add(db, name)))  # type: ignore[misc]
        for each in range(50)
    ]
    disk.let_through()
    disk.let_through()
    await asyncio.gather(first, *others)
    assert disk.over == 2


async def test_a_sync_that_fails_acknowledges_nothing_then_and_later(
    path: Path, database: Database, disk: Disk
) -> None:
    """What the system could not write it may have dropped, and the next sync would say nothing."""
    changes = [
        asyncio.ensure_future(database.transact(lambda db: add(db, "alice"))),
        asyncio.ensure_future(database.transact(lambda db: add(db, "bert"))),
    ]
    await disk.has_begun(1)
    third = asyncio.ensure_future(database.transact(lambda db: add(db, "cleo")))
    disk.let_through(OSError(errno.EIO, "Input/output error"))
    for change in (*changes, third):
        with pytest.raises(StoreUnavailable, match="could not be written to the disk"):
            await change
    with pytest.raises(StoreUnavailable, match="start again"):
        await database.transact(names, durable=lambda _: False)
    assert disk.begun == 1
    async with open_database(path) as again:
        assert await again.transact(names, durable=lambda _: False) == ["alice", "bert", "cleo"]


@pytest.mark.threat("T16")
async def test_a_store_that_ends_after_a_sync_that_failed_keeps_what_was_acknowledged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system has dropped of the log reads as it was before, and must not be copied into the file."""
    async with open_database(path) as database:
        await database.transact(lambda db: add(db, "alice"))
        on_the_disk = contents_of_log(path)
        disk = Disk(monkeypatch)
        disk.let_through(OSError(errno.EIO, "Input/output error"))
        with pytest.raises(StoreUnavailable, match="could not be written to the disk"):
            await database.transact(lambda db: add(db, "bert"))
        write_log(path, on_the_disk + bytes(size_of(path, "-wal") - len(on_the_disk)))
    assert names_after(path) == ["alice"]


@pytest.mark.threat("T16")
async def test_a_copy_that_cannot_be_synced_is_the_last(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "COMMITS", 1)
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC

    def fail(_how: str) -> bool:
        raise error

    monkeypatch.setattr(database, "_checkpoint", fail)
    await database.transact(lambda db: add(db, "alice"))
    await database._settled()
    with pytest.raises(StoreUnavailable, match="could not be written to the disk"):
        await database.transact(names, durable=lambda _: False)
    assert in_the_file(path, "alice") == []


@pytest.mark.threat("T16")
async def test_what_an_opening_reads_is_in_the_file_before_anybody_is_told_of_it(
    path: Path, tmp_path: Path, database: Database
) -> None:
    """In the log it may be what the system could not write, and keeps all the same."""
    await database.transact(lambda db: add(db, "alice"))
    killed = tmp_path / "killed"
    killed.mkdir(mode=0o700)
    for end in ("", "-wal"):
        shutil.copy(f"{path}{end}", killed)
    assert in_the_file(killed / path.name, "alice") == []
    async with open_database(killed / path.name):
        assert in_the_file(killed / path.name, "alice") == ["alice"]


async def test_nobody_is_told_what_is_not_on_the_disk(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks, and whenever: also while a sync is under way that began before the change, or with it."""
    on_disk: set[str] = set()

    def sync(_descriptor: int) -> None:
        written = set(names_after(path))
        sleep(chance.random() / 1000)
        on_disk.update(written)

    async def writer(number: int) -> None:
        for each in range(20):
            name = f"{number} {each}"
            await database.transact(lambda db, name=name: add(db, name))  # type: ignore[misc]
            assert name in on_disk

    async def reader() -> None:
        while len(on_disk) < 100:
            assert set(await database.transact(names)) <= on_disk
            await asyncio.sleep(chance.random() / 1000)

    chance = random.Random(13)  # noqa: S311  no secret
    monkeypatch.setattr(os, "fdatasync", sync)
    await asyncio.gather(*map(writer, range(5)), reader(), reader())


async def test_a_power_cut_leaves_what_was_acknowledged(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the log was copied into the file, and is written over."""
    monkeypatch.setattr(database_module, "COMMITS", 3)
    after, files = tmp_path / "after", ("", "-wal")
    after.mkdir(mode=0o700)
    real = os.fdatasync

    def sync(descriptor: int) -> None:
        real(descriptor)
        for end in files:  # what is written later is lost
            shutil.copy(f"{path}{end}", after / f"{path.name}{end}")

    async with open_database(path) as database:
        monkeypatch.setattr(os, "fdatasync", sync)
        for number in range(10):
            await database.transact(lambda db, number=number: add(db, f"{number}"))  # type: ignore[misc]
            found = names_after(after / path.name)
            assert found == [f"{each}" for each in range(number + 1)]
            await database._settled()


def contents_of_log(path: Path) -> bytes:
    return Path(f"{path}-wal").read_bytes()


def write_log(path: Path, content: bytes) -> None:
    with Path(f"{path}-wal").open("r+b") as log:
        log.write(content)


def names_after(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return names(database)


async def test_a_kill_loses_nothing_that_was_acknowledged(path: Path) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITES, path, stdout=asyncio.subprocess.PIPE
    )
    assert program.stdout is not None
    acknowledged = [(await program.stdout.readline()).decode().strip() for _ in range(30)]
    program.kill()
    acknowledged += (await program.stdout.read()).decode().split()
    await program.wait()
    async with open_database(path) as database:
        found = await database.transact(names)
    assert set(acknowledged) <= set(found)
    assert len(found) <= len(acknowledged) + 1


_WRITES: Final = """
import asyncio, sys
from pathlib import Path
from companion_push.relay import database
from companion_push.relay.accounts import add_account

async def main():
    async with database.open_database(Path(sys.argv[1])) as store:
        for number in range(10**6):
            await store.transact(lambda db: add_account(db, name=f"{number}", now=0, expires_at=60))
            print(number, flush=True)

database.COMMITS = 4  # commits after which the log is begun again
asyncio.run(main())
"""


async def test_the_log_is_copied_into_the_file_and_begins_again(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its bytes, which are written over: a file of the same length is on the disk sooner than a longer one."""
    monkeypatch.setattr(database_module, "COMMITS", 5)
    sizes = []
    for number in range(40):  # each takes several pages of 4 KiB
        await database.transact(lambda db, name=f"{number}": add(db, name))  # type: ignore[misc]
        await database._settled()
        sizes.append(size_of(path, "-wal"))
    assert sizes[10] == sizes[-1]
    assert len(await database.transact(names)) == 40


async def test_a_log_that_has_become_too_long_is_emptied(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "CHECKPOINT", 1 << 15)
    monkeypatch.setattr(database_module, "_TOO_LONG", 1 << 17)
    sizes = []
    for number in range(4):
        await database.transact(lambda db, number=number: adds(db, number))  # type: ignore[misc]
        await database._settled()
        sizes.append(size_of(path, "-wal"))
        await database.transact(lambda db, number=number: add(db, f"after {number}"))  # type: ignore[misc]
        await database._settled()
    assert sizes == [0] * 4
    assert len(await database.transact(names)) == 4 * 201


async def test_a_log_that_another_program_reads_is_copied_later(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "COMMITS", 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM accounts").fetchall()
    await database.transact(lambda db: add(db, "alice"))
    await database._settled()
    assert in_the_file(path, "alice", "bert") == []
    other.execute("ROLLBACK")
    other.close()
    await database.transact(lambda db: add(db, "bert"))
    await database._settled()
    assert in_the_file(path, "alice", "bert") == ["alice", "bert"]


async def test_a_log_that_grows_since_another_program_reads_is_told_once(
    path: Path,
    database: Database,
    loop_clock: LoopClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(database_module, "CHECKPOINT", 1 << 15)
    monkeypatch.setattr(database_module, "_TOO_LONG", 1 << 17)
    loop_clock.stop()
    copies: list[str] = []
    checkpoint = database._checkpoint

    def counted(how: str) -> bool:
        copies.append(how)
        return checkpoint(how)

    monkeypatch.setattr(database, "_checkpoint", counted)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM accounts").fetchall()

    async def change(number: int) -> None:
        await database.transact(lambda db: adds(db, number))
        await database._settled()

    await change(0)
    assert copies == ["PASSIVE", "TRUNCATE"]
    await change(1)  # within a second
    loop_clock.passes(database_module._COPY_PAUSE)
    await change(2)
    assert len(copies) == 4
    assert [record.getMessage().rpartition(" (")[0] for record in caplog.records] == [
        f"the store {path}: its write-ahead log grows while another program reads the store, or keeps it locked"
    ]
    other.execute("ROLLBACK")
    other.close()
    assert database.log_bytes == size_of(path, "-wal") > 3 * (1 << 17)
    loop_clock.passes(database_module._COPY_PAUSE)
    await change(3)
    assert database.log_bytes == 0
    assert caplog.records[-1].getMessage().endswith("its write-ahead log is copied and begun again")
    assert len(caplog.records) == 2


async def test_the_documented_copy_is_made_whatever_is_written_meanwhile(
    path: Path, database: Database
) -> None:
    """A copy by ``.backup`` begins again after each change of another program."""
    found = re.search(r'^sqlite3 companion-push\.sqlite3 "(.+)"$', BACK_UP.read_text(), re.MULTILINE)
    assert found is not None
    copy = path.with_name("copy.sqlite3")
    statement = found[1].replace("copy.sqlite3", str(copy))

    def make() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute(statement)

    await database.transact(lambda db: adds(db, 0))
    copying = asyncio.ensure_future(asyncio.to_thread(make))
    added = 200
    while not copying.done():
        await database.transact(lambda db, name=f"{added}": add(db, name))  # type: ignore[misc]
        added += 1
    await copying
    os.chmod(copy, 0o600)  # noqa: PTH101
    async with open_database(copy) as copied:
        in_it = await copied.transact(names)
    assert 200 <= len(in_it) <= added
    assert set(in_it) <= set(await database.transact(names))


async def test_a_store_outlives_an_event_loop_that_was_closed_before_it(path: Path, tmp_path: Path) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _FORGETS, path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    stdout, stderr = await program.communicate()
    assert (stdout, stderr, program.returncode) == (b"closed\n", b"", 0)
    assert names_after(path) == ["alice", "bert"]


_FORGETS: Final = """
import asyncio, os, sys, threading
from pathlib import Path
from companion_push.relay import database
from companion_push.relay.accounts import add_account

async def main():
    global opening
    opening = database.open_database(Path(sys.argv[1]))
    store = await opening.__aenter__()
    await store.transact(lambda db: add_account(db, name="alice", now=0, expires_at=60))
    os.fdatasync = lambda _: closed.wait()
    store.now(lambda db: add_account(db, name="bert", now=0, expires_at=60))
    store.on_disk(None)

closed = threading.Event()
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
closed.set()
for thread in threading.enumerate():
    if thread.name == "store-sync":
        thread.join()
print("closed")
"""


def in_the_file(path: Path, *names: str) -> list[str]:
    """The names that are in the file, whatever its log has."""
    content = path.read_bytes()
    return [name for name in names if name.encode() in content]


def adds(db: sqlite3.Connection, number: int) -> None:
    """So many accounts that the log takes more than is kept of it."""
    for each in range(200):
        add(db, f"{number} {each} {'x' * 1000}")


def size_of(path: Path, end: str) -> int:
    return Path(f"{path}{end}").stat().st_size


async def test_the_log_is_written_ahead_of_the_file(database: Database) -> None:
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


@pytest.mark.parametrize("what", ["cut", "rubbish"])
async def test_a_store_that_is_damaged_is_told_from_what_is_none(path: Path, what: str) -> None:
    async with open_database(path):
        pass
    with path.open("r+b") as file:
        if what == "cut":
            file.truncate(size_of(path, "") // 2)
        else:
            file.seek(4096)
            file.write(b"rubbish" * 20_000)
    assert "is damaged" in await refused_to_open(path, StoreUnusable)


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


async def test_a_store_that_can_only_be_read_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_database(path):
        pass
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def only_reads(path: Path, **options: Any) -> sqlite3.Connection:
        """As SQLite opens a file that it may not write to; who runs tests may be root."""
        return connect(f"file:{path}?mode=ro", uri=True, **options)

    monkeypatch.setattr(sqlite3, "connect", only_reads)
    assert "readonly" in await refused_to_open(path, StoreUnusable)


async def test_a_folder_or_a_missing_folder_is_refused(tmp_path: Path) -> None:
    await refused_to_open(tmp_path, StoreUnusable)
    await refused_to_open(tmp_path / "absent" / "store", StoreUnusable)


async def test_a_store_of_an_older_version_is_brought_up_step_by_step(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_database(path) as database:
        await a_request(database)
    steps = database_module.MIGRATIONS
    more = (*steps, "CREATE TABLE more (a INTEGER) STRICT;\nINSERT INTO more VALUES (7)")
    monkeypatch.setattr(database_module, "MIGRATIONS", more)
    for _ in range(2):
        async with open_database(path) as database:
            assert await database.transact(lambda db: db.execute("SELECT a FROM more").fetchall()) == [(7,)]
            assert len(stored_requests(path)) == 1


async def test_a_step_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_database(path):
        pass
    steps = database_module.MIGRATIONS
    monkeypatch.setattr(
        database_module, "MIGRATIONS", (*steps, "CREATE TABLE more (a);\nCREATE TABLE more (a)")
    )
    await refused_to_open(path, StoreUnusable)
    monkeypatch.setattr(database_module, "MIGRATIONS", steps)
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


@pytest.mark.parametrize(
    ("times", "tries"),
    [((100, 100, 104.9, 105), 3), ((100, 160), 1)],
    ids=["alone", "after others"],
)
async def test_a_transaction_waits_from_when_it_was_asked_for_and_not_from_its_turn(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch, times: tuple[float, ...], tries: int
) -> None:
    said: list[str] = []
    await database.transact(lambda db: db.set_trace_callback(said.append))
    said.clear()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(database_module, "monotonic", iter(times).__next__)
    with pytest.raises(StoreBusy):
        await database.transact(the_file)
    other.execute("ROLLBACK")
    other.close()
    assert said == ["BEGIN IMMEDIATE"] * tries


async def test_the_event_loop_goes_on_while_another_program_keeps_the_store_locked(
    path: Path, database: Database
) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    done: list[str] = []

    async def change(name: str) -> None:
        await database.transact(lambda db: add(db, name))
        done.append(name)

    changes = [asyncio.ensure_future(change(name)) for name in ("alice", "bert", "cleo")]
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert done == []
    other.execute("ROLLBACK")
    other.close()
    await asyncio.gather(*changes)
    assert done == ["alice", "bert", "cleo"]  # in the order in which they asked


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
        await stored(database, request.superseded())
    (away.parent / away.name).rename(path)
    assert stored_requests(path) == [request]


async def test_a_store_that_is_deleted_in_the_middle_acknowledges_nothing(
    path: Path, database: Database
) -> None:
    def change(db: sqlite3.Connection) -> None:
        add(db, "alice")
        path.unlink()

    with pytest.raises(StoreUnavailable, match="no longer"):
        await database.transact(change)


@pytest.mark.threat("T16")
async def test_a_log_that_is_removed_while_it_is_in_use_costs_nothing(path: Path) -> None:
    async with open_database(path) as database:
        await database.transact(lambda db: add(db, "alice"))
    async with open_database(path) as database:
        await database.transact(lambda db: add(db, "bert"))
        remove_log(path)
        said = await refused_to_open(path, StoreUnusable)
        assert (
            said == f"{path}-wal was removed while another program has the store open: end that program first"
        )
    assert names_after(path) == ["alice", "bert"]


@pytest.mark.threat("T16")
async def test_a_log_that_others_began_in_the_place_of_ours_is_not_mixed_with_it(path: Path) -> None:
    """All who have a store open share the log's index, which says then what is in the other one."""
    async with open_database(path) as database:
        await database.transact(lambda db: add(db, "alice"))
    async with open_database(path) as database:
        for number in range(20):
            await database.transact(lambda db, name=f"bert {number}": add(db, name))  # type: ignore[misc]
        await database._copy(0)
        await database.transact(lambda db: add(db, "cleo"))
        remove_log(path)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("INSERT INTO poll_only VALUES ('nobody')")
    with closing(sqlite3.connect(path)) as after:
        assert (
            after.execute("SELECT * FROM poll_only").fetchall() == []
        )  # what was in the removed log is lost
        assert len(names(after)) == 21


def remove_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


async def test_another_program_that_opens_and_closes_the_file_changes_nothing(
    path: Path, database: Database
) -> None:
    """A process that closes a file of its own lets go of all its locks on it: SQLite's too, which keep the log there."""
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('DELETE FROM words'); c.commit(); c.close()"
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


async def test_the_sweep_writes_expiry_down_and_forgets_in_the_end(path: Path, database: Database) -> None:
    await a_request(database)

    async def swept(now: float) -> list[RequestState]:
        await database.transact(lambda db: swept_at(db, now))
        return [request.state for request in stored_requests(path)]

    assert await swept(NOW + 299) == [RequestState.PENDING]
    assert await swept(NOW + 300) == [RequestState.EXPIRED]
    assert await swept(NOW + 300 + GRACE + KEPT - 1) == [RequestState.EXPIRED]
    assert await swept(NOW + 300 + GRACE + KEPT) == []
    for table in ("account_states", "envelopes"):
        count = f"SELECT count(*) FROM {table}"  # noqa: S608
        assert await database.transact(lambda db, count=count: db.execute(count).fetchone()) == (0,)  # type: ignore[misc]


async def test_the_sweep_leaves_a_claimed_request_its_grace(database: Database) -> None:
    request = await a_request(database)
    await stored(database, request.companion_says("anna", CompanionEvent.CLAIMED, None, now=NOW))
    answer = await database.transact(lambda db: swept_at(db, NOW + 300 + GRACE - 1))
    assert answer.topics == frozenset()
    answer = await database.transact(lambda db: swept_at(db, NOW + 300 + GRACE))
    assert answer.topics == {"request frame r1", "inbox anna", "inbox bert"}


async def test_the_sweep_takes_a_claim_from_who_has_vanished(path: Path, database: Database) -> None:
    await stored(
        database, (await a_request(database)).companion_says("anna", CompanionEvent.CLAIMED, None, now=NOW)
    )
    leases = LeasesInMemory(60, began=NOW)
    for now, state in ((NOW + 59, RequestState.CLAIMED), (NOW + 60, RequestState.DELIVERED)):
        await database.transact(lambda db, now=now: swept_at(db, now, leases))  # type: ignore[misc]
        assert [request.state for request in stored_requests(path)] == [state]


async def test_an_account_nobody_founded_is_forgotten_with_its_code(database: Database) -> None:
    def names(db: sqlite3.Connection) -> list[tuple[str]]:
        return db.execute("SELECT name FROM accounts").fetchall()

    await database.transact(lambda db: add_account(db, name="alice", now=NOW, expires_at=NOW + 60))
    await database.transact(lambda db: swept_at(db, NOW + 86_000))
    assert await database.transact(names) == [("alice",)]
    await database.transact(lambda db: swept_at(db, NOW + 86_460))
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


async def test_a_sweep_of_many_accounts_is_done_in_portions(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account_states, "PORTION", 3)
    ids: list[str] = []

    def more(db: sqlite3.Connection) -> None:
        for number in range(9):
            added = add_account(db, name=f"{number}", now=NOW, expires_at=NOW + 60)
            assert added is not None
            ids.append(added[0])
            insert(db, replace(REQUEST, account=added[0], expires_at=NOW + 300 + 100 * (number == 8)))

    await database.transact(more)
    after: str | None = None
    swept: list[list[str]] = []
    while not swept or after is not None:
        answer = await database.transact(
            lambda db, after=after: swept_at(db, NOW + 300, after=after)  # type: ignore[misc]
        )
        after = answer.body["next"]
        swept.append([change.request.account for change in answer.changed])
    assert [account for portion in swept for account in portion] == sorted(ids[:8])
    assert len(swept) == 4  # the last is asked for in vain: also the account whose request lives is looked at
