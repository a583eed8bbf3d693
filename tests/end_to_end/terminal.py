"""A terminal for a program, and the person in front of it."""

import asyncio
import os
import pty
import sys
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

TIMEOUT: Final = 120.0  # a safety net: says nothing about how fast anything is

# Leads a session of its own, whose first opened terminal is the controlling one, and becomes the program.
_TAKE: Final = (
    "import os, sys; os.setsid(); os.open(sys.argv[1], os.O_RDWR); os.execv(sys.argv[2], sys.argv[2:])"
)


class Terminal:
    """What a person sees, and the keys. `in_front` goes in front of a command that is to have it."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self.in_front = descriptor, (sys.executable, "-c", _TAKE, name)
        self._changed = asyncio.Event()
        self._seen = ""
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["Terminal"]:
        outer, inner = pty.openpty()
        tty.setraw(outer)
        terminal = cls(outer, os.ttyname(inner))
        try:
            yield terminal
        finally:
            asyncio.get_running_loop().remove_reader(outer)
            os.close(outer)
            os.close(inner)

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def forget(self) -> None:
        """Nothing that was shown so far is waited for any more."""
        self._seen = ""

    async def until(self, text: str) -> str:
        """Everything shown since the last call, up to and with `text`."""
        async with asyncio.timeout(TIMEOUT):
            while text not in self._seen:
                self._changed.clear()
                await self._changed.wait()
        before, _, self._seen = self._seen.partition(text)
        return before + text

    async def answer(self, question: str, keys: str) -> str:
        """Wait for a question and answer it; what was shown before."""
        shown = await self.until(question)
        self.type(f"{keys}\n")
        return shown

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # the program has gone
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self._seen += data.decode(errors="replace")
        self._changed.set()
