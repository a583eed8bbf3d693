"""A terminal for a program, and the person in front of it."""

import os
import pty
import sys
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tests.screen import Screen

# Leads a session of its own, whose first opened terminal is the controlling one, and becomes the program.
_TAKE: Final = (
    "import os, sys; os.setsid(); os.open(sys.argv[1], os.O_RDWR); os.execv(sys.argv[2], sys.argv[2:])"
)


class Terminal(Screen):
    """A terminal. `in_front` goes in front of a command that is to have it."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor)
        self.in_front = (sys.executable, "-c", _TAKE, name)

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["Terminal"]:
        outer, inner = pty.openpty()
        tty.setraw(outer)
        terminal = cls(outer, os.ttyname(inner))
        try:
            yield terminal
        finally:
            terminal.close()
            os.close(inner)

    def forget(self) -> None:
        """Nothing that was shown so far is waited for any more."""
        self.seen = ""

    async def answer(self, question: str, keys: str) -> str:
        """Wait for a question and answer it; what was shown before."""
        shown = await self.until(question)
        self.type(f"{keys}\n")
        return shown
