"""Standard streams for libraries: lines on stderr, and reads that can be cancelled."""

import asyncio
import contextlib
import os
import sys
from typing import Final

from program_parts.log_thread import after_lines, to_stderr
from program_parts.names import shown_line

STDIN: Final = 0


def talk(*lines: str) -> None:
    """Print lines for people on stderr, since stdout is data. What is not printable in them is spelled out."""
    to_stderr("".join(f"{shown_line(line)}\n" for line in lines))


async def written() -> None:
    """Wait until what was said so far is on stderr where that is a terminal, for who writes to the terminal by another way.

    What goes elsewhere is not waited for: there may be nobody who reads it.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(_set, done)

    after_lines(tell)
    await done


async def read_some(descriptor: int) -> bytes:
    """Wait for input and read what is there; empty at its end.

    It uses the event loop's readiness: a thread could not be cancelled, a blocking read would delay signals and
    deadlines, and non-blocking mode would affect the terminal's other users.
    """
    loop = asyncio.get_running_loop()
    while True:
        readable = loop.create_future()
        try:
            loop.add_reader(descriptor, _set, readable)
        except PermissionError:  # a regular file or /dev/null is always ready
            await asyncio.sleep(0)
        else:
            try:
                await readable
            finally:
                loop.remove_reader(descriptor)
        try:
            return os.read(descriptor, 4096)
        except BlockingIOError:  # another reader was first
            continue


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
