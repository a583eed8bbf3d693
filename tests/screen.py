"""The other end of a program's terminal."""

import asyncio
import os
import termios
from typing import Final

TIMEOUT: Final = 120.0  # a safety net: says nothing about how fast anything is
_LOCAL_MODES: Final = 3  # index in what tcgetattr returns


class Screen:
    """What a person sees at a terminal, and the keys."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._changed = asyncio.Event()
        self._closed = False
        self.seen = ""
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self._descriptor)[_LOCAL_MODES] & termios.ECHO)

    def show_typed(self) -> None:
        """Let the terminal show what is typed, whatever its program wants."""
        modes = termios.tcgetattr(self._descriptor)
        modes[_LOCAL_MODES] |= termios.ECHO
        termios.tcsetattr(self._descriptor, termios.TCSANOW, modes)

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    async def until(self, text: str) -> str:
        """Everything shown since the last call, up to and with `text`."""
        async with asyncio.timeout(TIMEOUT):
            while text not in self.seen:
                self._changed.clear()
                await self._changed.wait()
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def close(self) -> None:
        """The window is closed; once is enough."""
        if not self._closed:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
        self._closed = True

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # the program has gone
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self.seen += data.decode(errors="replace")
        self._changed.set()
