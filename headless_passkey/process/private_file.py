"""Private files, readable by their owner only: keys, rings, credentials.

A write is atomic and durable: after a crash the file has its old content or the new one. What a writer that was killed
has left beside the file may hold its secrets: the next write removes it, and so does a removal. A read refuses a file that other users can
read, because its secrets may be known to them.
"""

import asyncio
import contextlib
import errno
import fcntl
import getpass
import os
import re
import secrets
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from headless_passkey.errors import SetupError, SetupReason, TransportError, TransportReason
from headless_passkey.mends import setup_error, transport_error

MAX_HELD: Final = 10.0  # seconds to wait for a lock: much longer than others need to read and write a file
_FIRST_PAUSE: Final = 0.01  # seconds before the next attempt; doubled each time
_MAX_PAUSE: Final = 0.25
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_WRITERS: Final = stat.S_IWGRP | stat.S_IWOTH
_UNFINISHED: Final = 16  # random digits in the name of a file that is being written
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def private_directory(path: Path) -> None:
    """Make `path` a directory of mode 0700, or refuse one that others may enter."""
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700, parents=True)
        status = path.stat()
    except OSError as error:
        raise _failed("use", path, error) from error
    if not stat.S_ISDIR(status.st_mode):
        raise SetupError(f"{path} is not a directory", reason=SetupReason.STATE_DAMAGED)
    refuse_others(status, path, 0o700)


def read_private(path: Path, *, limit: int) -> bytes | None:
    """Read `path`, at most `limit` bytes; None without such a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _failed("read", path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SetupError(f"{path} is not a plain file", reason=SetupReason.STATE_DAMAGED)
        refuse_others(status, path, 0o600)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise _failed("read", path, error) from error
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise SetupError(f"{path} is longer than {limit} bytes", reason=SetupReason.STATE_DAMAGED)
    return content


def write_private(path: Path, content: bytes) -> None:
    """Write `path` atomically, with mode 0600."""
    remove_unfinished(path)
    fresh = path
    try:
        fresh, descriptor = _begin(path)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            fresh.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise _failed("write", path, error) from error
    finally:
        if fresh != path:
            with contextlib.suppress(OSError):  # mostly since it has its name
                fresh.unlink()


def _begin(path: Path) -> tuple[Path, int]:
    """Open a new file beside `path`, with a lock that says that its writer lives."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(_UNFINISHED // 2)}")
        descriptor = os.open(fresh, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return fresh, descriptor
        except BlockingIOError:
            pass  # another process has taken it for unfinished before it was locked, and removes it
        except OSError:  # a network file system without locks, where nobody removes anything
            return fresh, descriptor
        os.close(descriptor)


def remove_unfinished(path: Path) -> None:
    """Remove what writers of `path` that were killed have left. Whoever writes now holds a lock on its file, which stays."""
    pattern = re.compile(re.escape(f".{path.name}.") + f"[0-9a-f]{{{_UNFINISHED}}}")
    with contextlib.suppress(OSError):
        for entry in list(path.parent.iterdir()):
            if pattern.fullmatch(entry.name):
                _remove_unlocked(entry)


def _remove_unlocked(path: Path) -> None:
    with contextlib.suppress(OSError):  # somebody writes it, or has removed it
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(descriptor)


def create_private(path: Path, content: bytes) -> None:
    """Write a new file with mode 0600; `SetupError` when there is something at `path` already, which is left as it is."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError as error:
        raise SetupError(
            f"{path} is there already, and is left as it is", reason=SetupReason.STATE_UNWRITABLE
        ) from error
    except OSError as error:
        raise _failed("write", path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _sync_directory(path.parent)
    except BaseException as error:  # one that holds a part is of no use
        with contextlib.suppress(OSError):
            path.unlink()
        if isinstance(error, OSError):
            raise _failed("write", path, error) from error
        raise


def remove_private(path: Path) -> None:
    """Remove `path`, if it exists."""
    remove_unfinished(path)
    try:
        path.unlink()
        _sync_directory(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.EROFS and not os.path.lexists(path):
            return  # a read-only file system refuses before it looks
        raise _failed("remove", path, error) from error


@contextlib.contextmanager
def lock(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Lock `path`, by a file beside it, against other processes; `TransportError` when another one holds the lock.

    It does not wait; `lock_within` does, and lets other tasks run. shared: against those only that do not share it.
    """
    descriptor = _open_lock(path)
    try:
        if not _try_lock(descriptor, path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            raise _in_use(path)
        yield
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def lock_within(path: Path, seconds: float = MAX_HELD) -> AsyncIterator[None]:
    """Lock `path` against other processes and tasks; waits at most `seconds`, and lets other tasks run meanwhile.

    The system releases the lock when the process ends, also when it is killed.
    """
    descriptor, pause = _open_lock(path), _FIRST_PAUSE
    try:
        try:
            async with asyncio.timeout(seconds):
                while not _try_lock(descriptor, path):
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _MAX_PAUSE)
        except TimeoutError as error:
            raise _in_use(path) from error
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """Open the lock file of `path`. It is never removed, since other processes may hold it open."""
    beside = path.with_name(f".{path.name}.lock")
    try:
        return os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _failed("lock", path, error) from error


def _try_lock(descriptor: int, path: Path, how: int = fcntl.LOCK_EX) -> bool:
    """Try to lock; False when another process holds the lock."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # such as ENOLCK of a network file system without locks
        raise _failed("lock", path, error) from error
    return True


def _in_use(path: Path) -> TransportError:
    return transport_error(f"{path} is in use by another process", TransportReason.IN_USE, path=str(path))


def refuse_others(status: os.stat_result, path: Path, mode: int) -> None:
    """Refuse a file of another user, or one that others can access. status: of `path`; mode: the required one."""
    if status.st_uid != os.geteuid():
        raise SetupError(
            f"{path} belongs to another user; it must be yours alone, mode {mode:04o}",
            reason=SetupReason.STATE_FOREIGN,
        )
    if status.st_mode & _OTHERS:
        raise SetupError(
            f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}); it must be yours alone, mode {mode:04o}",
            reason=SetupReason.STATE_EXPOSED,
        )


def refuse_writers(directory: Path) -> None:
    """Refuse a directory in which others can put another file in the place of ours. `OSError` without such a directory.

    They may read it. In one with the sticky bit, as /tmp has it, they can only add files of their own.
    """
    status = directory.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise SetupError(
            f"{directory} belongs to another user, who can replace what is in it",
            reason=SetupReason.STATE_FOREIGN,
            advice="use a folder of your own",
        )
    if status.st_mode & _WRITERS and not status.st_mode & stat.S_ISVTX:
        raise SetupError(
            f"{directory} is writable by others (mode {stat.S_IMODE(status.st_mode):04o}), who can replace what is in it",
            reason=SetupReason.STATE_EXPOSED,
            advice=f"`chmod go-w {directory}`",
        )


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync directories
            raise
    finally:
        os.close(descriptor)


def nearest(path: Path) -> Path:
    """The path itself, or its nearest existing parent, as far as this user can see."""
    return next((each for each in (path, *path.parents) if os.access(each, os.F_OK)), path)


def why_not_writable(directory: Path) -> SetupError | None:
    """Say why nothing could be written into `directory`, or why it could not be made; None without a known reason.

    Nothing is written to find out.
    """
    there = nearest(directory)
    number = None
    if not there.is_dir():
        number = errno.ENOTDIR
    elif not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        number = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
    return None if number is None else _failed("write", directory, OSError(number, os.strerror(number)))


def _failed(what: str, path: Path, error: OSError) -> SetupError:
    reason = SetupReason.STATE_UNREADABLE if what == "read" else reason_of(error)
    return SetupError(f"cannot {what} {path}: {error.strerror}", reason=reason)


def reason_of(error: OSError) -> SetupReason:
    """Why a file of ours cannot be written."""
    return SetupReason.DISK_FULL if error.errno in _FULL else SetupReason.STATE_UNWRITABLE


def cannot_write(what: str, error: OSError) -> SetupError:
    """The error for stdout, or a file that was asked for, that `error` kept from being written."""
    reason = SetupReason.DISK_FULL if error.errno in _FULL else SetupReason.OUTPUT_UNWRITABLE
    return setup_error(f"cannot write to {what}: {error.strerror}", reason)


def this_user() -> str:
    """Who runs this, to be put into an advice."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # without a name, as in containers
        return str(os.geteuid())
