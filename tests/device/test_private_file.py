"""Files for their owner alone: what a file system that refuses means, and locks that others hold.

The read-only file system is real; an error of flock is not to be had without a network file system.
"""

import asyncio
import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from headless_passkey.errors import HeadlessPasskeyError, SetupReason
from headless_passkey.process.private_file import (
    create_private,
    lock,
    lock_within,
    private_directory,
    read_private,
    remove_private,
    write_private,
)

HOLD = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def another_process(
    program: str, path: Path, *, says: bytes
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that runs `program` on a file, and has said so; killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == says + b"\n"
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def held_by_another_process(path: Path) -> AsyncIterator[None]:
    async with another_process(HOLD, path.with_name(f".{path.name}.lock"), says=b"held"):
        yield


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that has become read-only, with the file "there"."""
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    try:
        write_private(folder / "there", b"kept")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def held(path: Path) -> None:
    with lock(path):
        pass


WRITES: dict[str, Callable[[Path], None]] = {
    "write": lambda folder: write_private(folder / "new", b"x"),
    "replace": lambda folder: write_private(folder / "there", b"x"),
    "remove": lambda folder: remove_private(folder / "there"),
    "lock": lambda folder: held(folder / "there"),
    "use": lambda folder: private_directory(folder / "below"),
    "create": lambda folder: create_private(folder / "new", b"new"),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_read_only_file_system_is_a_state_that_cannot_be_written(read_only: Path, what: str) -> None:
    with pytest.raises(HeadlessPasskeyError, match=r": Read-only file system$") as failed:
        WRITES[what](read_only)
    assert failed.value.reason is SetupReason.STATE_UNWRITABLE
    assert read_private(read_only / "there", limit=10) == b"kept"
    assert [file.name for file in read_only.iterdir()] == ["there"]


def test_what_is_gone_need_not_be_removed_from_a_read_only_file_system(read_only: Path) -> None:
    remove_private(read_only / "absent")


def test_what_is_gone_need_not_be_removed(tmp_path: Path) -> None:
    remove_private(tmp_path / "absent")
    remove_private(tmp_path / "no folder" / "absent")


def test_a_removal_that_is_not_on_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write_private(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(HeadlessPasskeyError, match="Input/output error"):
        remove_private(tmp_path / "file")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_on_the_way_leaves_nothing_beside_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_private(tmp_path / "file", b"old")
    where: object = os if failing == "fsync" else Path
    monkeypatch.setattr(where, failing, no_space)
    with pytest.raises(HeadlessPasskeyError, match="No space left on device"):
        write_private(tmp_path / "file", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert read_private(tmp_path / "file", limit=10) == b"old"


KILLED_WHILE_IT_WRITES = """
import os, sys
from pathlib import Path
from headless_passkey.process import private_file
os.fsync = lambda _: print("written", flush=True) or sys.stdin.read()
private_file.write_private(Path(sys.argv[1]), b"a secret")
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def writing(path: Path) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """A process that has written, and has not given the file its name."""
    return another_process(KILLED_WHILE_IT_WRITES, path, says=b"written")


@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    "change", [lambda path: write_private(path, b"new"), remove_private], ids=["write", "remove"]
)
async def test_what_a_killed_writer_has_left_is_removed(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "state"
    write_private(path, b"old")
    async with writing(path) as process:
        process.kill()
        await process.wait()
        assert b"a secret" in contents(tmp_path).values()
        other = tmp_path / ".state.beside"
        other.write_bytes(b"of somebody else")
        change(path)
    assert contents(tmp_path) == {other.name: b"of somebody else"} | (
        {path.name: b"new"} if path.exists() else {}
    )


async def test_a_file_that_somebody_writes_now_stays(tmp_path: Path) -> None:
    path = tmp_path / "state"
    async with writing(path) as process:
        write_private(path, b"new")
        assert path.read_bytes() == b"new"
        await process.communicate(b"")
        assert process.returncode == 0
    assert contents(tmp_path) == {path.name: b"a secret"}


def test_many_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "state"

    def write(number: int) -> None:
        for _ in range(50):
            write_private(path, bytes([number]) * 1000)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert len(path.read_bytes()) == 1000
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_is_its_owners_alone_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    create_private(path, b"first")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(HeadlessPasskeyError, match="is there already, and is left as it is") as refused:
        create_private(path, b"second")
    assert refused.value.reason is SetupReason.STATE_UNWRITABLE
    assert read_private(path, limit=10) == b"first"
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(HeadlessPasskeyError, match="is there already"):
        create_private(tmp_path / "link", b"second")
    assert not (tmp_path / "target").exists()


def test_a_new_file_that_cannot_be_written_whole_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(HeadlessPasskeyError, match="No space left on device") as failed:
        create_private(tmp_path / "file", b"new")
    assert failed.value.reason is SetupReason.DISK_FULL
    assert list(tmp_path.iterdir()) == []


# Locks


async def test_a_lock_that_another_process_holds_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with held_by_another_process(path):
        with pytest.raises(HeadlessPasskeyError, match="is in use by another process"), lock(path):
            pass
    with lock(path):
        pass


async def test_who_waits_for_a_lock_lets_other_tasks_run(tmp_path: Path) -> None:
    path, taken = tmp_path / "file", asyncio.Event()

    async def take() -> None:
        async with lock_within(path):
            taken.set()

    async with held_by_another_process(path):
        waiting = asyncio.create_task(take())
        for _ in range(5):
            await asyncio.sleep(0)  # would never return behind a lock that blocks
        assert not taken.is_set()
    await waiting
    assert taken.is_set()


async def test_a_lock_is_waited_for_no_longer_than_said(tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with held_by_another_process(path):
        with pytest.raises(HeadlessPasskeyError, match="is in use by another process"):
            async with lock_within(path, 0.05):
                pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO, errno.ENOSYS, errno.EACCES])
async def test_a_file_system_without_locks_is_not_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    path = tmp_path / "file"
    said = f"cannot lock {path}: {os.strerror(number)}"
    with pytest.raises(HeadlessPasskeyError) as failed, lock(path):
        pass
    assert str(failed.value) == said
    with pytest.raises(HeadlessPasskeyError) as failed:
        async with lock_within(path):
            pass
    assert str(failed.value) == said
