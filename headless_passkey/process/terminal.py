"""The controlling terminal: it asks the user, whatever stdin and stdout are connected to.

Text of others (labels, names, notes) is escaped by `names.printable`, so that it can neither move the
cursor nor reverse the reading order nor fake a second line. Input that was typed before a question is discarded. An
invalid answer repeats the question; Ctrl-D at a question means no, and so does Ctrl-C unless it is to
end the program, as it does between questions. A program that is stopped
(Ctrl-Z) or killed (SIGQUIT) by a key leaves the terminal as it was, and asks again when it goes on.
"""

import asyncio
import contextlib
import locale
import os
import select
import sys
import termios
from collections.abc import Callable, Iterator
from typing import Any, Final, Self, TypeVar

from headless_passkey.errors import TransportError, UsageError
from headless_passkey.process.signals import interrupted_by_keyboard, terminal_lent
from headless_passkey.process.streams import written
from headless_passkey.process.tasks import end
from program_parts.names import shown_line

_MAX_ANSWER: Final = 256  # bytes
_LOCAL_MODES: Final = 3  # index in what tcgetattr returns
_LAST_WORDS: Final = 1000  # milliseconds to wait on exit for a terminal that accepts no byte
_YES_OR_NO: Final = {"y": True, "yes": True, "n": False, "no": False}

T = TypeVar("T")


class Terminal:
    """An open terminal."""

    def __init__(self, descriptor: int, encoding: str = "utf-8", *, interrupts: bool = False) -> None:
        """encoding: of output and input; characters that it lacks are escaped. interrupts: whether Ctrl-C at a question does what it
        does at any other moment, and is no answer.
        """
        self._descriptor, self.encoding, self._interrupts = descriptor, encoding, interrupts
        self._turn = asyncio.Lock()

    @classmethod
    @contextlib.contextmanager
    def open(cls, *, interrupts: bool = False) -> Iterator[Self]:
        """Open the controlling terminal of this process; `UsageError` when there is none. interrupts: as for a `Terminal`."""
        with contextlib.ExitStack() as stack:
            try:
                terminal = stack.enter_context(cls._at("/dev/tty", _encoding(), interrupts=interrupts))
            except OSError as error:
                raise UsageError(
                    "there is no terminal to ask at: give the answer by an option (see --help)"
                ) from error
            yield terminal

    @classmethod
    @contextlib.contextmanager
    def of_stderr(cls) -> Iterator[Self | None]:
        """Open the terminal of stderr; None when stderr is no terminal."""
        with contextlib.ExitStack() as stack:
            terminal = None
            with contextlib.suppress(OSError, ValueError):
                if sys.stderr.isatty():
                    path = os.ttyname(sys.stderr.fileno())
                    terminal = stack.enter_context(cls._at(path, _encoding()))
            yield terminal

    @classmethod
    @contextlib.contextmanager
    def _at(cls, path: str, encoding: str, *, interrupts: bool = False) -> Iterator[Self]:
        # opened anew: non-blocking mode would affect other users of the same open file
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            yield cls(descriptor, encoding, interrupts=interrupts)
        finally:
            os.close(descriptor)

    def size(self) -> os.terminal_size:
        """The current size; `TransportError` when the terminal is gone."""
        try:
            columns, lines = os.get_terminal_size(self._descriptor)
        except OSError as error:
            raise TransportError("the terminal has gone") from error
        return os.terminal_size(
            (columns or 80, lines or 24)
        )  # a terminal without a size, such as a serial line

    async def draw(self, text: str) -> None:
        """Write all of `text` after what went to stderr, with back-pressure; `TransportError` when the terminal is gone."""
        await written()
        data = self._encoded(text)
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                raise TransportError("the terminal has gone") from error

    def restore(self, text: str) -> None:
        """Write `text` on exit, and give up on a terminal that accepts nothing."""
        data, poll = self._encoded(text), select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        with contextlib.suppress(OSError):
            while data and poll.poll(_LAST_WORDS):
                data = data[os.write(self._descriptor, data) :]

    async def show(self, *lines: str) -> None:
        """Write lines, as `draw` does. What is not printable in them is spelled out."""
        await self.draw("".join(f"{shown_line(line)}\n" for line in lines))

    async def ask(
        self,
        question: str,
        answer: Callable[[str], T | None],
        *,
        slip: str | None = None,
        hidden: bool = False,
    ) -> T | None:
        """Ask a question; returns the answer, or None for Ctrl-D, and for Ctrl-C where that is an answer.

        answer: parses a line; None means invalid, and repeats the question. slip: the message before the repetition.
        hidden: whether what is typed is a secret, and is not shown.
        `TransportError` when the terminal is gone. Cancelling withdraws the question: it ends the line, and a late answer
        is discarded.
        """
        async with self._turn:
            asking = asyncio.ensure_future(self._until_answered(question, answer, slip))
            try:
                with (
                    self._changed(question, hidden=hidden),
                    # before the question is visible
                    contextlib.nullcontext() if self._interrupts else interrupted_by_keyboard(asking.cancel),
                ):
                    await asyncio.wait({asking})
            finally:
                try:
                    await end(asking)
                finally:
                    if asking.cancelled() or asking.exception() is not None:
                        self._end_line()
            return None if asking.cancelled() else asking.result()

    async def yes(self, question: str) -> bool | None:
        """Ask for y or n; returns whether it was y, or None as `ask` does, which means no."""
        return await self.ask(question, lambda line: _YES_OR_NO.get(line.lower()))

    async def _until_answered(
        self, question: str, answer: Callable[[str], T | None], slip: str | None
    ) -> T | None:
        again = ""
        while True:
            await written()
            await self._writable()  # which it is not while it is stopped (Ctrl-S)
            self._forget_keys()  # typed before the question
            await self.draw(f"{again}{shown_line(question)} ")
            line = await self._line()
            if line is None:
                self._write("\n")
                return None
            meaning = answer(line.decode(self.encoding, errors="replace").strip())
            if meaning is not None:
                return meaning
            # in one piece with the question: what is typed after it counts
            again = "" if slip is None else f"{shown_line(slip)}\n"

    @contextlib.contextmanager
    def _changed(self, question: str, *, hidden: bool) -> Iterator[None]:
        """Change the terminal for a question, and change it back: at the end, and while the program is stopped.

        hidden: show nothing of what is typed, but the end of the line.
        """
        before: list[Any] | None = None

        def hide() -> None:
            nonlocal before
            try:
                before = termios.tcgetattr(self._descriptor)
                hiding = [*before]
                hiding[_LOCAL_MODES] = (before[_LOCAL_MODES] & ~termios.ECHO) | termios.ECHONL
                termios.tcsetattr(self._descriptor, termios.TCSANOW, hiding)
            except termios.error as error:
                raise TransportError("the terminal has gone") from error

        def show() -> None:
            nonlocal before
            if before is not None:
                with contextlib.suppress(termios.error):  # it has gone
                    termios.tcsetattr(self._descriptor, termios.TCSANOW, before)
                before = None

        def give_back() -> None:
            show()
            self._write("\n")

        def ask_again() -> None:
            with contextlib.suppress(TransportError):  # whoever reads is told that it has gone
                if hidden:
                    show()  # where it was not given back: after SIGSTOP
                    hide()
                self._forget_keys()
                self._write(f"{shown_line(question)} ")

        with terminal_lent(give_back=give_back, take_again=ask_again):
            try:
                if hidden:
                    hide()
                yield
            finally:
                show()

    def _end_line(self) -> None:
        """End a withdrawn question, and discard what was typed."""
        self._write("\n")
        with contextlib.suppress(TransportError):
            self._forget_keys()

    def _forget_keys(self) -> None:
        try:
            termios.tcflush(self._descriptor, termios.TCIFLUSH)
        except termios.error as error:
            raise TransportError("the terminal has gone") from error

    async def _line(self) -> bytes | None:
        """Read a line; None at the end of input, which is Ctrl-D on an empty line."""
        typed = bytearray()
        while b"\n" not in typed and len(typed) < _MAX_ANSWER:
            await self._readable()
            try:
                piece = os.read(self._descriptor, _MAX_ANSWER)
            except BlockingIOError:
                continue
            except OSError as error:
                raise TransportError("the terminal has gone") from error
            if not piece:
                if self._has_hung_up():
                    raise TransportError("the terminal has gone")
                if not typed:
                    return None
                break  # Ctrl-D twice within a line ends it
            typed += piece
        return bytes(typed).split(b"\n", 1)[0]

    def _has_hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._descriptor)

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_writer(self._descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self._descriptor)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._descriptor, self._encoded(text))

    def _encoded(self, text: str) -> bytes:
        return text.encode(self.encoding, errors="backslashreplace")


def _encoding() -> str:
    """The terminal's encoding: that of stderr where it is a terminal, else the locale's."""
    if sys.stderr is not None and sys.stderr.isatty():
        return sys.stderr.encoding
    return locale.getpreferredencoding(do_setlocale=False)
