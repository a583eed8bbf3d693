"""A clock that jumps, and tasks that can be counted: for programs that have this folder on PYTHONPATH.

Python imports a module of this name by itself before a program begins. JUMPING_CLOCK: a file whose first eight bytes are the
seconds by which the program's clock is ahead now, as a double; another process writes them at any time. The ninth byte is 1 once
the program has read a clock that was wrong.

At SIGUSR2 the program writes one line of JSON to stderr: its process id, and what its asyncio tasks run.
"""

import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

with Path(os.environ["JUMPING_CLOCK"]).open("r+b") as _file:
    _ahead = mmap.mmap(_file.fileno(), 9)
_right = time.time


def _jumping() -> float:
    (ahead,) = struct.unpack("=d", _ahead[:8])
    if ahead:
        _ahead[8] = 1
    return _right() + float(ahead)


def _asked(_number: int, _frame: object) -> None:
    asyncio: Any = sys.modules.get("asyncio")  # which a program loads itself, if it needs it
    try:
        asyncio.get_running_loop().call_soon_threadsafe(lambda: _tell(asyncio.all_tasks()))
    except (AttributeError, RuntimeError):  # no event loop runs in this process
        _tell(())


def _tell(tasks: Iterable[Any]) -> None:
    names = sorted(getattr(task.get_coro(), "__qualname__", "?") for task in tasks)
    os.write(2, (json.dumps({"process": os.getpid(), "tasks": names}) + "\n").encode())


time.time = _jumping
signal.signal(signal.SIGUSR2, _asked)
