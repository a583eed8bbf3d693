"""Files that only their owner may read: keys, credentials, state.

A write replaces the whole file at once and reaches the disk before it returns, so a crash leaves the old
content or the new one. A read refuses a file that others may read, because what it holds must then be taken
for known to them. Two processes that change the same file take its lock first.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from headless_passkey.errors import RemoteProtocolError, TransportError

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def read_private(path: Path, *, limit: int) -> bytes | None:
    """The content of `path`, at most `limit` bytes, or None when there is no such file.

    `RemoteProtocolError` when others may read it, when it is not a plain file or is longer.
    """
    try:
        descriptor = os.open(path.resolve(), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed("read", path, error) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise RemoteProtocolError(f"{path} is not a plain file")
        if status.st_mode & _OTHERS or status.st_uid != os.geteuid():
            raise RemoteProtocolError(
                f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}); it must be yours alone, mode 0600"
            )
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise _failed("read", path, error) from error
    if len(content) > limit:
        raise RemoteProtocolError(f"{path} is longer than {limit} bytes")
    return content


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, mode 0600, all or nothing, on disk when this returns."""
    path = path.resolve()
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(
            fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise _failed("write", path, error) from error


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of `path` against other processes (a file beside it); waits for it."""
    path = path.resolve()
    try:
        descriptor = os.open(
            path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
    except OSError as error:
        raise _failed("lock", path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def private_directory(path: Path) -> None:
    """Make `path` a directory of mode 0700, or refuse one that others may enter."""
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700, parents=True)
        status = path.stat()
    except OSError as error:
        raise _failed("use", path, error) from error
    if not stat.S_ISDIR(status.st_mode):
        raise RemoteProtocolError(f"{path} is not a directory")
    if status.st_mode & _OTHERS or status.st_uid != os.geteuid():
        raise RemoteProtocolError(
            f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}); it must be yours alone, mode 0700"
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


def _failed(what: str, path: Path, error: OSError) -> TransportError:
    return TransportError(f"cannot {what} {path}: {error.strerror}")
