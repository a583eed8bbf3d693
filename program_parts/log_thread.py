"""stderr of a program that serves or waits, written by a thread of its own: log, and lines for its operator.

A pipe whose reader stands still, or a terminal that was stopped (Ctrl-S), takes no more lines, and a disk that hangs takes its time:
in the event loop each would keep everybody waiting. Lines that come while `MAX_LINES` wait, or that cannot be written, as on a full
disk, are left out, and counted in the log as soon as it takes lines again.
"""

import contextlib
import logging
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Final

MAX_LINES: Final = 1000
END_SECONDS: Final = 1.0  # for what waits at the program's end
_STDERR: Final = 2

_writers: Final[list["LineWriter"]] = []  # of this process: one, or none


class LineWriter:
    """Writes lines to a descriptor in a thread."""

    def __init__(self, descriptor: int, *, left_out: Callable[[int], str]) -> None:
        """left_out: makes the line that says how many were left out."""
        self._descriptor, self._left_out = descriptor, left_out
        self._lines: SimpleQueue[str | Callable[[], object] | None] = SimpleQueue()
        self._counting = threading.Lock()
        self._missing = 0
        self._is_cut = False  # whether a part of a line is there, without its end
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        """Have a line written soon, with its end; at no time does this wait."""
        if self._lines.qsize() < MAX_LINES:
            self._lines.put(text)
        else:
            self._miss(1)

    def after(self, act: Callable[[], object]) -> None:
        """Have `act` called by the thread when all lines of before are written, or left out."""
        self._lines.put(act)

    def end(self) -> None:
        """Wait until all lines are written, no longer than `END_SECONDS`. What the process prints afterwards is lost, if they are not."""
        self._lines.put(None)
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._descriptor)

    def _run(self) -> None:
        while (text := self._lines.get()) is not None:
            if callable(text):
                text()
            elif not self._put(text):
                self._miss(1)
            elif self._lines.empty():
                self._tell()
        self._tell()

    def _tell(self) -> None:
        with self._counting:
            missing, self._missing = self._missing, 0
        if missing and not self._put(self._left_out(missing)):
            self._miss(missing)

    def _miss(self, count: int) -> None:
        with self._counting:
            self._missing += count

    def _put(self, text: str) -> bool:
        """Write a line, however long that takes; returns whether all of it was written."""
        data = text.encode(errors="backslashreplace")
        rest = memoryview(b"\n" + data if self._is_cut else data)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                    self._is_cut = True
                except BlockingIOError:  # somebody else has made it non-blocking
                    select.select((), (self._descriptor,), ())
        except OSError:
            return False
        self._is_cut = False
        return True


class _ThreadHandler(logging.Handler):
    """Gives what is logged to a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.writer = LineWriter(_STDERR, left_out=self._left_out)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.writer.write(self.format(record) + "\n")
        except Exception:  # noqa: BLE001  as logging's own handlers do
            self.handleError(record)

    def _left_out(self, count: int) -> str:
        message = "%d lines of the log were left out, since nobody took them"
        return (
            self.format(logging.LogRecord(__name__, logging.WARNING, "", 0, message, (count,), None)) + "\n"
        )


@contextlib.contextmanager
def written_by_a_thread() -> Iterator[None]:
    """Let a thread write what is logged, in the format of the log's only handler, and what goes `to_stderr`."""
    if not _is_of_the_system():
        yield
        return
    root = logging.getLogger()
    (before,) = root.handlers
    handler = _ThreadHandler()
    handler.setFormatter(before.formatter)
    root.handlers[:] = [handler]
    _writers.append(handler.writer)
    try:
        yield
    finally:
        _writers.remove(handler.writer)
        root.handlers[:] = [before]
        handler.writer.end()


def to_stderr(text: str) -> None:
    """Write lines to stderr, with their ends, where the log goes too: it is no error when they cannot be."""
    if _writers:
        _writers[-1].write(text)
    elif sys.stderr is not None:  # closed at the start; print would take stdout instead
        with contextlib.suppress(OSError):
            # one write: where nothing is buffered, other programs' lines would come between line and end
            print(text, end="", file=sys.stderr, flush=True)  # noqa: T201


def after_lines(act: Callable[[], object]) -> None:
    """Have `act` called when what went `to_stderr` so far is there: by the thread, or now where there is none."""
    if _writers:
        _writers[-1].after(act)
    else:
        act()


def _is_of_the_system() -> bool:
    """Whether stderr is what this process was started with: a program that embeds this one may have put its own in its place."""
    try:
        return sys.stderr is not None and sys.stderr.fileno() == _STDERR
    except (OSError, ValueError):
        return False
