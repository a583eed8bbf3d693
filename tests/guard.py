"""Servers of others end with the process of the test that started them, also where that is killed."""

import signal
import subprocess
from pathlib import Path
from typing import Final

from tests.ports import RESERVED

# its stdin ends with whoever holds the other end; another process may have the number by then, in another folder
_GUARD: Final = 'read -r _; case $(readlink "/proc/$2/cwd") in "$3"*) kill -"$1" "$2";; esac; rm -rf "$3"'


class Guard:
    """A process that waits for the end of this one, and then ends a server that works in `folder`, and removes that."""

    def __init__(self, server: int, folder: Path, number: signal.Signals = signal.SIGKILL) -> None:
        """server: its process id. number: what ends it."""
        words = (number.name.removeprefix("SIG"), str(server), str(folder.resolve()))
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", *words],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which ends the server itself
        )
        assert self._process.stdin is not None
        self._name = str(Path("/proc/self/fd", str(self._process.stdin.fileno())).readlink())
        RESERVED.add(self._name)

    def end(self) -> None:
        """Guard no more: the server has ended."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        RESERVED.discard(self._name)
