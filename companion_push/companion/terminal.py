"""The controlling terminal: where a person is asked, whatever stdin and stdout are connected to.

What others wrote (labels, names, notes) goes through `names.printable` first, so that it can neither move the
cursor nor reverse the reading order nor fake a second line. What was typed before the question was asked
does not answer it.
"""

import asyncio
import contextlib
import locale
import os
import termios
from collections.abc import Iterator
from typing import Final, Self

from headless_passkey.command_line import UsageError
from headless_passkey.errors import TransportError

_MAX_ANSWER: Final = 256  # bytes


class Terminal:
    """An open terminal."""

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        """encoding: of what is shown and typed; what it cannot write is spelled out."""
        self._descriptor, self._encoding = descriptor, encoding
        self._turn = asyncio.Lock()

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Self]:
        """The controlling terminal of this process; `UsageError` when there is none."""
        try:
            descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            raise UsageError("there is no terminal to ask at: choose a policy instead of ask") from error
        try:
            yield cls(descriptor, locale.getpreferredencoding(do_setlocale=False))
        finally:
            os.close(descriptor)

    def show(self, *lines: str) -> None:
        """Write lines; the caller has made what others wrote `printable`."""
        self._write("".join(f"{line}\n" for line in lines))

    async def ask(self, question: str) -> str:
        """One line of answer, without the spaces around it; `TransportError` when the terminal has gone.

        Cancelling takes the question back: the line is ended, and a late answer goes nowhere.
        """
        async with self._turn:
            termios.tcflush(self._descriptor, termios.TCIFLUSH)  # typed before it was asked
            self._write(f"{question} ")
            try:
                return (await self._line()).decode(self._encoding, errors="replace").strip()
            except asyncio.CancelledError:
                self._write("\n")
                termios.tcflush(self._descriptor, termios.TCIFLUSH)
                raise

    async def _line(self) -> bytes:
        typed = bytearray()
        while b"\n" not in typed and len(typed) < _MAX_ANSWER:
            await self._readable()
            try:
                piece = os.read(self._descriptor, _MAX_ANSWER)
            except BlockingIOError:
                continue
            except OSError:
                piece = b""
            if not piece:
                raise TransportError("the terminal has gone")
            typed += piece
        return bytes(typed).split(b"\n", 1)[0]

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._descriptor)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode(self._encoding, errors="backslashreplace"))
