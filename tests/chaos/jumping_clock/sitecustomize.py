"""A clock that jumps: for programs that have this folder on PYTHONPATH.

Python imports a module of this name by itself before a program begins. JUMPING_CLOCK: a file whose first eight bytes are the
seconds by which the program's clock is ahead now, as a double; another process writes them at any time.
"""

import mmap
import os
import struct
import time
from pathlib import Path

with Path(os.environ["JUMPING_CLOCK"]).open("rb") as _file:
    _ahead = mmap.mmap(_file.fileno(), 8, access=mmap.ACCESS_READ)
_right = time.time


def _jumping() -> float:
    return _right() + float(struct.unpack("=d", _ahead[:8])[0])


time.time = _jumping
