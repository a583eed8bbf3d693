"""The store in a file: whole transactions, files of other programs, versions."""

import asyncio
import os
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from relying_party.core.callers import ClientKind
from relying_party.core.credentials import User
from relying_party.errors import SetupError, StoreUnavailable
from relying_party.store import sql, sqlite
from relying_party.store.sqlite import SqliteStore
from tests.failing_disk import FailingDisk
from tests.programs import ROOT
from tests.rp.records import ADA, EVE, credential, session, use

NOW: Final = 1_800_000_000


async def test_a_file_is_nobody_elses_to_read(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "s") as store:
        await store.register(credential(), ADA, session(), ends=None)
        files = _modes(tmp_path)
    assert files == dict.fromkeys(("s", "s-wal", "s-shm"), 384)


def _modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


async def test_nothing_is_acknowledged_before_it_is_on_disk(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "s") as store:
        values = await store._transaction(
            lambda connection: [
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ],
            writes=True,
        )
    assert values == ["wal", 2, 1]


async def test_who_reads_cannot_write(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "s") as store:
        with pytest.raises(StoreUnavailable, match="readonly"):
            await store._transaction(lambda connection: connection.execute("DELETE FROM users"))


async def test_a_sign_in_forgets_a_few_of_the_sessions_that_have_ended(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "s") as store:
        await store.register(credential(), ADA, session(), ends=None)
        with closing(sqlite3.connect(tmp_path / "s")) as other, other:
            other.executemany(
                "INSERT INTO sessions (session_id, token_hash, user_handle, credential_id, client_kind, created_at,"
                " auth_time, expires_at, ends_at) VALUES (?, ?, ?, ?, 'web', 1, 1, 9, 9)",
                [(b"%d" % number, b"%d" % number, ADA.handle, b"credential") for number in range(25)],
            )
        left = []
        for number in range(3):
            token = b"new %d" % number
            await store.sign_in(use(), replace(session(token=token), created_at=10, ends_at=99), ends=None)
            left.append(await store._transaction(_ended))
    # each more than it begins, and none all of them: others wait for it
    assert left == [25 - sql.FORGOTTEN_AT_ONCE, 25 - 2 * sql.FORGOTTEN_AT_ONCE, 0]


async def test_a_sign_in_forgets_no_more_spent_refresh_tokens_than_others_can_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "SPENT_AT_ONCE", 4)
    async with SqliteStore(tmp_path / "s") as store:
        await store.register(credential(), ADA, session(), ends=None)
        with closing(sqlite3.connect(tmp_path / "s")) as other, other:
            other.execute(
                "INSERT INTO sessions (session_id, token_hash, user_handle, credential_id, client_kind, created_at,"
                " auth_time, expires_at, ends_at) VALUES (x'01', x'01', ?, x'01', 'device', 1, 1, 9, 9)",
                (ADA.handle,),
            )
            other.executemany(
                "INSERT INTO spent_refresh_tokens VALUES (?, x'01')", [(b"%d" % one,) for one in range(10)]
            )
        left = []
        for number in range(3):
            begins = replace(session(token=b"new %d" % number), created_at=10, ends_at=99)
            await store.sign_in(use(), begins, ends=None)
            left.append((await store._transaction(_spent), await store._transaction(_ended)))
    assert left == [(6, 1), (2, 1), (0, 0)]  # the session goes when nothing is left that would go with it


class Watched(SqliteStore):
    """Keeps how many spent refresh tokens there are after each transaction that writes."""

    left: list[int] | None = None

    async def _transaction(self, work: Callable[[sqlite3.Connection], Any], *, writes: bool = False) -> Any:
        done = await super()._transaction(work, writes=writes)
        if writes and self.left is not None:
            self.left.append(await super()._transaction(_spent))
        return done


KEPT = replace(session(key="kept"), created_at=NOW, auth_time=NOW, expires_at=2**40, ends_at=2**40)


@pytest.mark.parametrize(
    "what",
    ["session", "sessions", "passkey", "account", "overdue", "the same device's", "the same browser's"],
)
async def test_what_goes_with_sessions_that_end_is_forgotten_in_portions_before(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PORTION", 4)
    made = replace(credential(), created_at=NOW)
    going = replace(
        KEPT, session_id=b"going", token_hash=b"going", credential_id=b"young", key_thumbprint="k"
    )
    new = replace(going, session_id=b"new", token_hash=b"new")
    async with Watched(tmp_path / "s") as store:
        await store.register(made, ADA, KEPT, ends=None)
        await store.add_credential(replace(made, credential_id=b"young"), KEPT, was=KEPT.token_hash)
        await store.sign_in(use(b"young"), going, ends=None)
        with closing(sqlite3.connect(tmp_path / "s")) as other, other:
            tokens = [(b"%d" % number,) for number in range(10)]
            other.executemany("INSERT INTO spent_refresh_tokens VALUES (?, CAST('going' AS BLOB))", tokens)
            if what == "overdue":
                other.execute(
                    "INSERT INTO removals VALUES (x'01', ?, ?, x'01', 0, 1)", (ADA.handle, b"young")
                )
        store.left = []
        match what:
            case "session":
                assert await store.end_session(ADA.handle, b"going")
            case "sessions":
                assert await store.end_sessions(None, by=KEPT, now=NOW) == 1
            case "passkey":
                assert await store.remove_credential(b"young", removal_id=b"r", by=KEPT, now=NOW) is None
            case "account":
                assert await store.remove_user(removal_id=b"r", by=KEPT, now=NOW) is None
            case "overdue":
                assert await store.credential(b"young", now=NOW) is None
            case "the same device's":
                assert await store.sign_in(use(b"young"), new, ends=None)
            case _:
                assert await store.sign_in(
                    use(b"young"), replace(new, key_thumbprint=None), ends=going.session_id
                )
        assert store.left == [6, 2, 0]  # others have their turn between two of them
        assert await store.session(b"going", now=NOW) is None
        assert (await store.session(KEPT.token_hash, now=NOW) is None) == (what == "account")


def _spent(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM spent_refresh_tokens").fetchone()[0])


def _ended(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM sessions WHERE ends_at = 9").fetchone()[0])


# Others who use the file


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another program, such as a backup, holds the write lock."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def test_reads_do_not_wait_for_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 600.0)
    async with SqliteStore(tmp_path / "s") as store:
        await store.register(credential(), ADA, session(), ends=None)
        with held(tmp_path / "s"):
            writes = [
                asyncio.create_task(store.rename_user(f"Ada {n}", by=session(), now=2)) for n in range(5)
            ]
            for _ in range(5):
                assert await store.user_by_name("ada", now=2) == ADA
                assert await store.session(b"token", now=2) == (session(), ADA)
                assert await store.credentials_of(ADA.handle, now=2) == [credential()]
                assert len(await store.everyone(now=2, most=9)) == 1
            assert not any(write.done() for write in writes)
        for write in writes:
            await write
        assert await store.user_by_name("ada", now=2) == replace(ADA, display_name="Ada 4")


async def test_a_write_waits_from_when_it_was_asked_for_and_not_from_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    async with SqliteStore(tmp_path / "s") as store:
        await store.register(credential(), ADA, session(), ends=None)
        await store._transaction(lambda connection: connection.set_trace_callback(said.append), writes=True)
        for waited in (0, 3, 5, 60):  # in a queue, until it is this one's turn
            monkeypatch.setattr(sqlite, "monotonic", iter((100, 100 + waited)).__next__)
            await store.rename_user("Ada", by=session(), now=2)
    timeouts = [line.rpartition("= ")[2] for line in said if "busy_timeout" in line]
    assert timeouts == ["5000", "2000", "0", "0"]


async def test_many_who_wait_for_one_lock_are_all_told_and_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.01)
    async with SqliteStore(tmp_path / "s") as store:
        await store.register(credential(), ADA, session(), ends=None)
        with held(tmp_path / "s"):
            results = await asyncio.gather(
                *(store.rename_user("Eve", by=session(), now=2) for _ in range(20)), return_exceptions=True
            )
        assert {type(result) for result in results} == {StoreUnavailable}
        assert await store.user_by_name("ada", now=2) == ADA
        await store.rename_user("Ada", by=session(), now=2)


async def test_another_program_that_opens_and_closes_the_file_changes_nothing(tmp_path: Path) -> None:
    """A process that closes a file of its own lets go of all its locks on it: SQLite's too, which keep the log there."""
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('UPDATE users SET name = name'); c.commit(); c.close()"
    async with SqliteStore(tmp_path / "s") as one, SqliteStore(tmp_path / "s") as two:
        await one.register(credential(), ADA, session(), ends=None)
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", program, tmp_path / "s")
        assert await other.wait() == 0
        for store in (one, two):
            assert await store.user_by_name("ada", now=2) == ADA
            await store.rename_user(ADA.display_name, by=session(), now=2)


async def test_a_store_opens_although_another_program_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.01)
    async with SqliteStore(tmp_path / "s") as store:
        await store.register(credential(), ADA, session(), ends=None)
        secret = await store.secret("decoy")
    with held(tmp_path / "s"):
        async with SqliteStore(tmp_path / "s") as store:
            assert await store.user_by_name("ada", now=2) == ADA
            assert await store.secret("decoy") == secret
            with pytest.raises(StoreUnavailable):
                await store.secret("a new one")


async def test_an_older_file_that_is_held_is_not_brought_up_to_date_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SqliteStore(tmp_path / "s"):
        pass
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.01)
    monkeypatch.setattr(sqlite, "MIGRATIONS", (*sql.MIGRATIONS, ("CREATE TABLE added (x ANY) STRICT",)))
    with held(tmp_path / "s"), pytest.raises(StoreUnavailable, match="another program keeps") as error:
        async with SqliteStore(tmp_path / "s"):
            pytest.fail("opened")
    assert error.value.exit_status == 4
    async with SqliteStore(tmp_path / "s"):
        pass


def _replace(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


FILES = ["s", "s-wal", "s-shm"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [Path.unlink, _replace], ids=["deleted", "replaced"])
async def test_a_store_that_is_no_longer_the_file_at_its_path_acknowledges_nothing(
    tmp_path: Path, change: Callable[[Path], None], name: str
) -> None:
    async with SqliteStore(tmp_path / "s") as store:
        await store.register(credential(), ADA, session(), ends=None)
        change(tmp_path / name)
        for work in (
            store.register(credential(EVE, b"c2"), EVE, session(EVE, b"t2"), ends=None),
            store.rename_user("Eve", by=session(), now=2),
            store.user_by_name("ada", now=2),
            store.session(b"token", now=2),
        ):
            with pytest.raises(StoreUnavailable, match="no longer the file at"):
                await work


@pytest.mark.parametrize("name", FILES)
async def test_a_store_that_is_put_back_goes_on(tmp_path: Path, name: str) -> None:
    async with SqliteStore(tmp_path / "s") as store:
        await store.register(credential(), ADA, session(), ends=None)
        (tmp_path / name).rename(tmp_path / "away")
        with pytest.raises(StoreUnavailable):
            await store.register(credential(EVE, b"c2"), EVE, session(EVE, b"t2"), ends=None)
        (tmp_path / "away").rename(tmp_path / name)
        assert await store.user_by_name("ada", now=2) == ADA
        assert await store.user_by_name("eve", now=2) is None  # what was refused has not happened
        await store.register(credential(EVE, b"c2"), EVE, session(EVE, b"t2"), ends=None)


async def test_a_store_that_is_deleted_in_the_middle_acknowledges_nothing(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "s") as store:
        with pytest.raises(StoreUnavailable, match="no longer"):
            await store._transaction(lambda _: (tmp_path / "s").unlink(), writes=True)


async def test_a_store_that_can_only_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SqliteStore(tmp_path / "s"):
        pass
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)  # root may always
    with pytest.raises(SetupError, match="it can only be read"):
        async with SqliteStore(tmp_path / "s"):
            pytest.fail("opened")


# A disk that is full, or fails


async def in_a_program(folder: Path, disk: FailingDisk, work: str) -> list[str]:
    """What a program prints that has a store open, with a user, and three changes in its log."""
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _PROGRAM.replace("WORK", work),
        folder / "s",
        cwd=ROOT,
        env=os.environ | disk.environment,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await program.communicate()
    return output.decode().splitlines()


_PROGRAM: Final = """
import asyncio, os, sys
from pathlib import Path
from relying_party.errors import StoreUnavailable
from relying_party.store.sqlite import SqliteStore
from tests.rp.records import ADA, credential, session

def disk(fault):
    with open(os.environ["FAILING_DISK"], "r+b") as file:
        file.write(fault)

async def main():
    async with SqliteStore(Path(sys.argv[1])) as store:
        await store.register(credential(), ADA, session(), ends=None)
    async with SqliteStore(Path(sys.argv[1])) as store:
        async def rename(name):
            try:
                await store.rename_user(name, by=session(), now=2)
                print("renamed", flush=True)
            except StoreUnavailable as error:
                print(error, flush=True)
        for name in ("a", "b", "c"):
            await rename(name)
        WORK
        os._exit(0)

asyncio.run(main())
"""


@pytest.mark.threat("T16")
@pytest.mark.threat("T17")
async def test_a_store_goes_on_in_its_log_on_a_full_disk_and_after_a_change_that_could_not_be_synced(
    tmp_path: Path,
) -> None:
    full, fails_once = r"disk(b'\1\0\0')", r"disk(b'\0\1\0')"
    work = f"{full}; [await rename(str(n)) for n in range(20)]; {fails_once}; await rename('lost'); await rename('kept')"
    said = await in_a_program(tmp_path, FailingDisk(tmp_path), work)
    assert said == ["renamed"] * 23 + ["the store does not answer: disk I/O error", "renamed"]
    async with SqliteStore(tmp_path / "s") as store:
        assert await store.user_by_name("ada", now=2) == replace(ADA, display_name="kept")


@pytest.mark.threat("T16")
async def test_a_log_that_is_removed_while_it_is_in_use_costs_nothing(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "s") as store:
        await store.register(credential(), ADA, session(), ends=None)
    async with SqliteStore(tmp_path / "s") as store:
        await store.rename_user("Ada 1", by=session(), now=2)
        (tmp_path / "s-wal").unlink()
        with pytest.raises(SetupError, match="-wal was removed while another program has the store open"):
            async with SqliteStore(tmp_path / "s"):
                pytest.fail("opened")
    async with SqliteStore(tmp_path / "s") as store:
        assert await store.user_by_name("ada", now=2) == replace(ADA, display_name="Ada 1")


@pytest.mark.threat("T16")
async def test_a_log_that_others_began_in_the_place_of_ours_is_not_mixed_with_it(tmp_path: Path) -> None:
    """All who have a store open share the log's index, which says then what is in the other one."""
    path = tmp_path / "s"
    async with SqliteStore(path) as store:
        await store.register(credential(), ADA, session(), ends=None)
    async with SqliteStore(path) as store:
        for number in range(20):
            await store.rename_user(f"Ada {number}", by=session(), now=2)
        with closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        await store.rename_user("lost", by=session(), now=2)
        (tmp_path / "s-wal").unlink()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("INSERT INTO secrets VALUES ('theirs', x'00')")
    with closing(sqlite3.connect(path)) as after:
        assert after.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert after.execute("SELECT display_name FROM users").fetchall() == [("Ada 19",)]
        assert after.execute("SELECT * FROM secrets").fetchall() == []  # it is lost with what was removed


async def test_a_log_that_has_become_long_is_told_once_and_cut_when_nobody_reads_it_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begins = f"the store {tmp_path / 's'}: its write-ahead log "
    monkeypatch.setattr(sqlite, "_LOG_KEPT", 1 << 15)
    async with SqliteStore(tmp_path / "s") as store:
        await store.register(credential(), ADA, session(), ends=None)
        await store._transaction(
            lambda connection: connection.execute("PRAGMA wal_autocheckpoint = 1").fetchall(), writes=True
        )
        with closing(sqlite3.connect(tmp_path / "s", isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM users").fetchall()
            while _length(tmp_path / "s-wal") <= 1 << 16:
                await store.rename_user("Ada", by=session(), now=2)
            assert store.log_bytes == _length(tmp_path / "s-wal")
            assert [record.getMessage() for record in caplog.records] == [
                f"{begins}grows while another program reads the store (0 MiB now)"
            ]
        for name in ("Ada", "Eve", "Ada"):
            await store.rename_user(name, by=session(), now=2)
        assert _length(tmp_path / "s-wal") <= 1 << 15
        assert store.log_bytes == _length(tmp_path / "s-wal")
    assert [record.getMessage() for record in caplog.records[1:]] == [f"{begins}is copied and begun again"]


def _length(path: Path) -> int:
    return path.stat().st_size


async def test_a_store_is_found_from_every_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with SqliteStore(Path("s")) as store:
        monkeypatch.chdir("/")
        await store.register(credential(), ADA, session(), ends=None)
        assert await store.user_by_name("ada", now=2) == ADA


def _other_program(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()


def _newer_version(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA application_id = {sqlite.APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(sql.MIGRATIONS) + 1}")
    connection.close()


def _not_a_database(path: Path) -> None:
    path.write_bytes(b"something else entirely, and long enough" * 100)


@pytest.mark.parametrize("make", [_other_program, _newer_version, _not_a_database, Path.mkdir])
async def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "s")
    before = None if (tmp_path / "s").is_dir() else (tmp_path / "s").stat().st_size
    with pytest.raises(SetupError):
        async with SqliteStore(tmp_path / "s"):
            pytest.fail("opened")
    assert before is None or (tmp_path / "s").stat().st_size == before


async def test_an_older_file_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SqliteStore(tmp_path / "s") as store:
        await store.register(credential(), ADA, session(), ends=None)
    newer = (*sql.MIGRATIONS, ("CREATE TABLE added (x ANY) STRICT",))
    monkeypatch.setattr(sqlite, "MIGRATIONS", newer)
    async with SqliteStore(tmp_path / "s") as store:
        assert await store.user_by_name("ada", now=2) == ADA
    connection = sqlite3.connect(tmp_path / "s")
    assert connection.execute("PRAGMA user_version").fetchone() == (len(newer),)
    assert connection.execute("SELECT * FROM added").fetchall() == []
    connection.close()


async def test_a_step_that_fails_undoes_the_steps_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (*sql.MIGRATIONS, ("CREATE TABLE added (x ANY) STRICT", "NONSENSE"))
    monkeypatch.setattr(sqlite, "MIGRATIONS", broken)
    with pytest.raises(SetupError):
        async with SqliteStore(tmp_path / "s"):
            pytest.fail("opened")
    connection = sqlite3.connect(tmp_path / "s")
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()


# What the first version wrote, as it wrote it: a user, a passkey, a browser's session and a device's.
VERSION_1 = """
CREATE TABLE users (
    handle BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, display_name TEXT NOT NULL,
    created_at INTEGER NOT NULL) STRICT;
CREATE TABLE credentials (
    credential_id BLOB PRIMARY KEY, user_handle BLOB NOT NULL REFERENCES users (handle),
    attested_data BLOB NOT NULL, aaguid BLOB NOT NULL, algorithm INTEGER NOT NULL,
    sign_count INTEGER NOT NULL, backup_eligible INTEGER NOT NULL, backed_up INTEGER NOT NULL,
    transports TEXT NOT NULL, attestation_object BLOB NOT NULL, client_data_hash BLOB NOT NULL,
    created_at INTEGER NOT NULL, last_used_at INTEGER,
    counter_anomalies INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX credentials_of_user ON credentials (user_handle);
CREATE TABLE sessions (
    token_hash BLOB PRIMARY KEY, user_handle BLOB NOT NULL REFERENCES users (handle),
    credential_id BLOB NOT NULL, client_kind TEXT NOT NULL, key_thumbprint TEXT,
    created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL) STRICT;
CREATE INDEX sessions_of_user ON sessions (user_handle);
CREATE INDEX sessions_of_key ON sessions (key_thumbprint);
CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
INSERT INTO users VALUES (x'aa', 'ada', 'Ada L.', 1);
INSERT INTO credentials VALUES (x'cc', x'aa', x'01', zeroblob(16), -7, 5, 1, 0, '["hybrid"]', x'02', zeroblob(32), 2, 3, 4);
INSERT INTO sessions VALUES (x'01', x'aa', x'cc', 'web', NULL, 5, 100);
INSERT INTO sessions VALUES (x'02', x'aa', x'cc', 'device', 'key', 6, 200);
INSERT INTO secrets VALUES ('decoy', x'dd');
PRAGMA application_id = 1752191568;
PRAGMA user_version = 1;
"""


async def test_a_file_of_the_first_version_keeps_everything(tmp_path: Path) -> None:
    (tmp_path / "s").touch(mode=0o600)
    connection = sqlite3.connect(tmp_path / "s")
    connection.executescript(VERSION_1)
    connection.close()
    ada = User(handle=b"\xaa", name="ada", display_name="Ada L.")
    async with SqliteStore(tmp_path / "s") as store:
        assert await store.user_by_name("ada", now=2) == ada
        kept = await store.credential(b"\xcc", now=2)
        assert kept is not None
        assert (kept.attested_data, kept.sign_count, kept.counter_anomalies) == (b"\x01", 5, 4)
        assert (kept.transports, kept.last_used_at) == (("hybrid",), 3)
        assert (kept.label, kept.discoverable, kept.prf) == (None, None, None)
        for token, kind, key, created, ends in (
            (b"\x01", ClientKind.WEB, None, 5, 100),
            (b"\x02", ClientKind.DEVICE, "key", 6, 200),
        ):
            assert await store.session(token, now=ends) is None
            found = await store.session(token, now=ends - 1)
            assert found is not None
            one, user = found
            assert (user, one.client_kind, one.key_thumbprint) == (ada, kind, key)
            assert (one.created_at, one.auth_time, one.ends_at) == (created, created, ends)
            assert len(one.session_id) == 16
        assert await store.secret("decoy") == b"\xdd"
        await store.rename_credential(b"\xcc", "phone", by=session(ada), now=2)
        assert await store.end_sessions(None, by=session(ada), now=2) == 2
    fresh = tmp_path / "fresh"
    async with SqliteStore(fresh):
        pass
    assert _schema(tmp_path / "s") == _schema(fresh)


def _schema(path: Path) -> set[tuple[str, ...]]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    connection.close()
    return {tuple(" ".join((column or "").split()) for column in row) for row in rows}
