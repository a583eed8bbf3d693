"""A clock of a program that a test sets while the program runs; the monotonic clock goes on.

libfaketime cannot do it for Redis, whose allocator asks for the time before that library is ready.
"""

import atexit
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def is_possible() -> bool:
    """Whether there is a compiler for the library that moves clocks."""
    return shutil.which("cc") is not None


class JumpingClock:
    """The clock of the programs that are started with its environment: right until it jumps."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.jump(0)

    @property
    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "LD_PRELOAD": str(_library()), "JUMPING_CLOCK": str(self._file)}

    def jump(self, ahead: float) -> None:
        """Put it ahead of the right time by so many seconds."""
        with self._file.open("r+b" if self._file.exists() else "xb") as file:
            file.write(struct.pack("=d", ahead))
        self._file.chmod(0o644)


@cache
def _library() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="jumping-clock-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)  # PostgreSQL runs as a user of its own
    made = folder / "clock.so"
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", made, SOURCE], check=True)
    return made
