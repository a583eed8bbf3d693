"""The files of a device's state directory: `private_file`, whose errors get their advice here.

The words are those of `headless_passkey.mends`, as the doctor has them.
"""

import os
import shlex
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from headless_passkey.errors import SetupError, SetupReason
from headless_passkey.mends import mend, setup_error
from headless_passkey.process import private_file
from headless_passkey.process.private_file import this_user


def private_directory(path: Path) -> None:
    """Make `path` a directory of mode 0700, or refuse one that others may enter."""
    with _mended(path, 0o700, case="directory" if _holds_files(path) else None):
        private_file.private_directory(path)


def read_private(path: Path, *, limit: int, case: str | None = None) -> bytes | None:
    """The content of `path`, at most `limit` bytes; None when there is no such file. case: as `mends` has it."""
    with _mended(path, case=case):
        return private_file.read_private(path, limit=limit)


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, mode 0600, all or nothing."""
    with _mended(path):
        private_file.write_private(path, content)


def remove_private(path: Path) -> None:
    """Remove `path`; fine when it is gone already."""
    with _mended(path):
        private_file.remove_private(path)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, a file beside it, against other processes; it waits for nobody."""
    with ExitStack() as stack:
        with _mended(path):
            stack.enter_context(private_file.lock(path))
        yield


@asynccontextmanager
async def lock_within(path: Path, seconds: float = private_file.MAX_HELD) -> AsyncIterator[None]:
    """As `lock`, held over an await: waits at most `seconds`, and lets other tasks run meanwhile."""
    async with AsyncExitStack() as stack:
        with _mended(path):
            await stack.enter_async_context(private_file.lock_within(path, seconds))
        yield


def damaged(path: Path) -> SetupError:
    """The error for a file that is not what was written."""
    return setup_error(f"{path} is damaged", SetupReason.STATE_DAMAGED, **mend_names(path))


def incompatible(path: Path, case: str | None = None) -> SetupError:
    """The error for a file that another version of the program wrote. case: as `mends` has it."""
    return setup_error(
        f"{path} was written by another version", SetupReason.STATE_INCOMPATIBLE, case, **mend_names(path)
    )


def is_ours(path: Path) -> bool:
    """Whether `path` is a plain file of this user's, whatever is in it and whoever may read it."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def mend_names(path: Path, mode: int = 0o600) -> dict[str, str]:
    """What a mend puts for its names in capitals. mode: what `path` should have."""
    return {"path": shlex.quote(str(path)), "mode": f"{mode:o}", "user": this_user()}


@contextmanager
def _mended(path: Path, mode: int = 0o600, case: str | None = None) -> Iterator[None]:
    """Give errors about `path` their advice. case: as `mends` has it."""
    try:
        yield
    except SetupError as error:
        unwritable = error.reason in (SetupReason.STATE_UNWRITABLE, SetupReason.DISK_FULL)
        where = private_file.nearest(path) if unwritable else path
        error.advice = mend(error.reason, case, **mend_names(where, mode))
        raise


def _holds_files(path: Path) -> bool:
    """Whether it is not ours to close: think of ``--state /etc``, or of a file's name."""
    try:
        return next(path.iterdir(), None) is not None
    except NotADirectoryError:
        return True
    except OSError:
        return False
