"""A terminal emulator with one program in it."""

import asyncio
import os
import pty
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.camera import Screen

TIMEOUT: Final = 60.0
# Leads a session of its own whose controlling terminal is its stdin, and becomes the program.
_LEAD: Final = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Window:
    """A terminal emulator with one program in it, which has nothing else for stdin, stdout and stderr."""

    def __init__(self, descriptor: int, screen: Screen) -> None:
        self._descriptor, self.screen, self.written = descriptor, screen, ""
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, columns: int, rows: int, *command: str | Path, **environment: str
    ) -> AsyncIterator[tuple["Window", asyncio.subprocess.Process]]:
        outer, inner = pty.openpty()
        termios.tcsetwinsize(inner, (rows, columns))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _LEAD, *command, stdin=inner, stdout=inner, stderr=inner,
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )  # fmt: skip
        os.close(inner)
        window = cls(outer, Screen(columns, rows))
        try:
            yield window, process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            asyncio.get_running_loop().remove_reader(outer)
            os.close(outer)

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    async def until(self, what: Callable[[], bool]) -> None:
        """What the window shows has become so."""
        try:
            async with asyncio.timeout(TIMEOUT):
                while not what():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(self.screen.lines) from None

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # the program has gone
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self.written += data.decode(errors="replace")
        self.screen.feed(data)
        self._changed.set()
