"""Run a command, on a small board's processor and memory when asked, and write what it used.

    python benchmarks/limited.py RESULT [--board] COMMAND...

--board: one processor, and 512 MiB of memory by a control group of its own (`limits`). RESULT becomes one JSON object: seconds of
processor time, and bytes of memory at the peak. The exit status is the command's.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MEMORY: Final = 512 << 20  # bytes
GROUPS: Final = Path("/sys/fs/cgroup")


def limits() -> str:
    """How the memory is limited here, in words."""
    return _group()[1]


def _group() -> tuple[Path | None, str]:
    """The parent of a control group whose memory can be limited, and how, in words."""
    if os.access(GROUPS / "memory", os.W_OK):
        return GROUPS / "memory", "a control group (version 1)"
    controllers = GROUPS / "cgroup.subtree_control"
    if os.access(GROUPS, os.W_OK) and controllers.exists() and "memory" in controllers.read_text().split():
        return GROUPS, "a control group (version 2)"
    return None, "nothing, since no control group can be made here"


@contextlib.contextmanager
def small_board() -> Iterator[None]:
    """Put this process, and those that it starts, on one processor and into 512 MiB."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    parent, _ = _group()
    if parent is None:
        yield
        return
    group = parent / f"headless-passkey-{os.getpid()}"
    group.mkdir()
    try:
        limit = "memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes"
        (group / limit).write_text(str(MEMORY))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (parent / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def main() -> int:
    result, *command = sys.argv[1:]
    board = command[:1] == ["--board"]
    with small_board() if board else contextlib.nullcontext():
        process = os.posix_spawn(command[board], command[board:], os.environ)
        _, status, used = os.wait4(process, 0)
    text = json.dumps({"seconds": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss * 1024})
    Path(result).write_text(text, encoding="utf-8")
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
