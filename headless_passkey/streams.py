"""Standard streams as libraries may use them: a line for a person on stderr, and reads that can be cancelled."""

import asyncio
import contextlib
import os
import sys
from typing import Final, TextIO

STDIN: Final = 0


def talk(message: str) -> None:
    """One line for the person at the terminal: stderr, so that stdout stays data."""
    stderr: TextIO | None = sys.stderr
    if stderr is not None:  # closed by whoever started us; print would take stdout instead
        with contextlib.suppress(OSError):
            # one write: where nothing is buffered, other programs' lines would come between line and end
            print(f"{message}\n", end="", file=stderr, flush=True)


async def read_some(descriptor: int) -> bytes:
    """What there is to read, waiting if need be; nothing at the end.

    Neither a thread, which could not be cancelled, nor a read that keeps signals and deadlines waiting, nor
    non-blocking mode, which the terminal's other users would get too.
    """
    loop = asyncio.get_running_loop()
    while True:
        readable = loop.create_future()
        try:
            loop.add_reader(descriptor, _set, readable)
        except PermissionError:  # a file or /dev/null: there is never a wait
            await asyncio.sleep(0)
        else:
            try:
                await readable
            finally:
                loop.remove_reader(descriptor)
        try:
            return os.read(descriptor, 4096)
        except BlockingIOError:  # somebody else was quicker
            continue


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
