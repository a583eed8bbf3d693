"""The controlling terminal: where a person is asked, whatever stdin and stdout are connected to.

What others wrote (labels, names, notes) goes through `names.printable` first, so that it can neither move the
cursor nor reverse the reading order nor fake a second line. What was typed before the question was asked
does not answer it. What is no answer is asked again; Ctrl-D and Ctrl-C at a question mean no.
"""

import asyncio
import contextlib
import locale
import os
import select
import sys
import termios
from collections.abc import Callable, Iterator
from typing import Final, Self, TypeVar

from headless_passkey.errors import TransportError, UsageError
from headless_passkey.signals import interrupted_by_keyboard

_MAX_ANSWER: Final = 256  # bytes
_LAST_WORDS: Final = 1000  # milliseconds that a terminal may take no byte on the way out
_YES_OR_NO: Final = {"y": True, "yes": True, "n": False, "no": False}

T = TypeVar("T")


class Terminal:
    """An open terminal."""

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        """encoding: of what is shown and typed; what it cannot write is spelled out."""
        self._descriptor, self.encoding = descriptor, encoding
        self._turn = asyncio.Lock()

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Self]:
        """The controlling terminal of this process; `UsageError` when there is none."""
        try:
            with cls._at("/dev/tty", _encoding()) as terminal:
                yield terminal
        except OSError as error:
            raise UsageError("there is no terminal to ask at: choose a policy instead of ask") from error

    @classmethod
    @contextlib.contextmanager
    def of_stderr(cls) -> Iterator[Self | None]:
        """The terminal that stderr is; None when it is none."""
        with contextlib.ExitStack() as stack:
            terminal = None
            with contextlib.suppress(OSError, ValueError):
                if sys.stderr.isatty():
                    path = os.ttyname(sys.stderr.fileno())
                    terminal = stack.enter_context(cls._at(path, _encoding()))
            yield terminal

    @classmethod
    @contextlib.contextmanager
    def _at(cls, path: str, encoding: str) -> Iterator[Self]:
        # opened anew: others that use the terminal go on to wait when they write
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            yield cls(descriptor, encoding)
        finally:
            os.close(descriptor)

    def size(self) -> os.terminal_size:
        """As it is now; `TransportError` when the terminal has gone."""
        try:
            columns, lines = os.get_terminal_size(self._descriptor)
        except OSError as error:
            raise TransportError("the terminal has gone") from error
        return os.terminal_size(
            (columns or 80, lines or 24)
        )  # a line that does not say, such as a serial one

    async def draw(self, text: str) -> None:
        """Write all of `text`, at the terminal's own pace; `TransportError` when it has gone."""
        data = self._encoded(text)
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                raise TransportError("the terminal has gone") from error

    def restore(self, text: str) -> None:
        """Write `text` on the way out; a terminal that takes nothing is not waited for."""
        data, poll = self._encoded(text), select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        with contextlib.suppress(OSError):
            while data and poll.poll(_LAST_WORDS):
                data = data[os.write(self._descriptor, data) :]

    def show(self, *lines: str) -> None:
        """Write lines; the caller has made what others wrote `printable`."""
        self._write("".join(f"{line}\n" for line in lines))

    async def ask(
        self, question: str, answer: Callable[[str], T | None], *, slip: str | None = None
    ) -> T | None:
        """What the person answers; None when that is nothing more: Ctrl-D, or Ctrl-C.

        answer: makes of a line what it means, or None when it is no answer, and then the question is asked
        again. slip: what is said before that. `TransportError` when the terminal has gone. Cancelling takes the
        question back: the line is ended, and a late answer goes nowhere.
        """
        async with self._turn:
            asking = asyncio.ensure_future(self._until_answered(question, answer, slip))
            try:
                with interrupted_by_keyboard(asking.cancel):  # from before the question is seen
                    await asyncio.wait({asking})
            finally:
                asking.cancel()
                await asyncio.wait({asking})
                if asking.cancelled() or asking.exception() is not None:
                    self._end_line()
            return None if asking.cancelled() else asking.result()

    async def yes(self, question: str) -> bool:
        """Whether the person agrees: y or n, and nothing else."""
        return await self.ask(question, lambda line: _YES_OR_NO.get(line.lower())) or False

    async def _until_answered(
        self, question: str, answer: Callable[[str], T | None], slip: str | None
    ) -> T | None:
        while True:
            self._forget_keys()  # typed before it was asked
            self._write(f"{question} ")
            line = await self._line()
            if line is None:
                self._write("\n")
                return None
            meaning = answer(line.decode(self.encoding, errors="replace").strip())
            if meaning is not None:
                return meaning
            if slip is not None:
                self.show(slip)

    def _end_line(self) -> None:
        """A question that is not answered any more: what was typed of an answer goes nowhere."""
        self._write("\n")
        with contextlib.suppress(TransportError):
            self._forget_keys()

    def _forget_keys(self) -> None:
        try:
            termios.tcflush(self._descriptor, termios.TCIFLUSH)
        except termios.error as error:
            raise TransportError("the terminal has gone") from error

    async def _line(self) -> bytes | None:
        """None at the end of the input, which is Ctrl-D on an empty line."""
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
                break  # Ctrl-D twice after something: the line, without its end
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
    """Of the terminal: what stderr writes where that is one, else what the locale says."""
    if sys.stderr is not None and sys.stderr.isatty():
        return sys.stderr.encoding
    return locale.getpreferredencoding(do_setlocale=False)
