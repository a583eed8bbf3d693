"""Standard streams for libraries: a line on stderr, and reads that can be cancelled."""

import asyncio
import os
from typing import Final

from headless_passkey.process.log_thread import to_stderr
from headless_passkey.text.names import shown_line

STDIN: Final = 0


def talk(*lines: str) -> None:
    """Print lines for people on stderr, since stdout is data. What is not printable in them is spelled out."""
    to_stderr("".join(f"{shown_line(line)}\n" for line in lines))


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
