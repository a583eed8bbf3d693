"""Files that only their owner may read: keys, rings, credentials.

A write replaces the whole file at once and is on disk when it returns, so a crash leaves the old content or
the new one. A read refuses what others may read, for then its secrets must be taken as known to them.
"""

import asyncio
import contextlib
import errno
import fcntl
import getpass
import os
import secrets
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from headless_passkey.errors import SetupError, SetupReason, TransportError, TransportReason
from headless_passkey.mends import setup_error, transport_error

MAX_HELD: Final = (
    10.0  # seconds others may hold a lock for: far more than to read a file and write it anew takes
)
_FIRST_PAUSE: Final = 0.01  # seconds until a lock is tried again; doubled each time
_MAX_PAUSE: Final = 0.25
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
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
    """The content of `path`, at most `limit` bytes; None when there is no such file."""
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
    """Replace `path` by `content`, mode 0600, all or nothing."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(fresh, flags, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise _failed("write", path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only file system refuses even where there is no file
            fresh.unlink()


def remove_private(path: Path) -> None:
    """Remove `path`; fine when it is gone already."""
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
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, a file beside it, against other processes; `TransportError` when another one has it.

    It waits for nobody: where that is wanted, `lock_within` does, and lets other tasks run.
    """
    descriptor = _open_lock(path)
    try:
        if not _try_lock(descriptor, path):
            raise _in_use(path)
        yield
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def lock_within(path: Path, seconds: float = MAX_HELD) -> AsyncIterator[None]:
    """As `lock`, held over an await: waits at most `seconds`, and lets other tasks of this process run meanwhile.

    It is a lock between tasks of one process too. A process that ends, however, gives it back.
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
    """The file beside `path` that is locked in its place; it stays, since others may hold it open."""
    beside = path.with_name(f".{path.name}.lock")
    try:
        return os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _failed("lock", path, error) from error


def _try_lock(descriptor: int, path: Path) -> bool:
    """Whether the lock is ours now; False when another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # such as ENOLCK of a network file system without locks
        raise _failed("lock", path, error) from error
    return True


def _in_use(path: Path) -> TransportError:
    return transport_error(f"{path} is in use by another process", TransportReason.IN_USE, path=str(path))


def refuse_others(status: os.stat_result, path: Path, mode: int) -> None:
    """Refuse what others may use or own; status: of `path`, which should have had `mode`."""
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
    """`path`, or of what leads to it the nearest that is there, as far as this user can see."""
    return next((each for each in (path, *path.parents) if os.access(each, os.F_OK)), path)


def why_not_writable(directory: Path) -> SetupError | None:
    """Why nothing could be written into `directory`, or made where it is to be; None as far as that can be told.

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
    reason = SetupReason.STATE_UNREADABLE if what == "read" else SetupReason.STATE_UNWRITABLE
    if error.errno in _FULL:
        reason = SetupReason.DISK_FULL
    return SetupError(f"cannot {what} {path}: {error.strerror}", reason=reason)


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
