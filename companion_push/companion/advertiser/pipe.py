"""``--radio stdout``: the advert as a line of text, for the program that reads the pipe."""

import asyncio
import os
import select
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from companion_push.companion.advertiser.advertiser import unless_lost
from headless_passkey.errors import TransportError
from headless_passkey.process.tasks import end

INTERVAL: Final = 0.5  # seconds


class PipeAdvertiser:
    """Prints the service data in hexadecimal, at once and again every half second, as long as there is somebody who reads.

    A line for which there is no room is left out: to write it would stop the program, deadlines and signals too, until the reader
    goes on, or the terminal (Ctrl-S).
    """

    def __init__(self, descriptor: int | None = None) -> None:
        """descriptor: of the output; None means stdout."""
        self._descriptor = descriptor

    @asynccontextmanager
    async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
        line = service_data.hex().encode() + b"\n"
        self._write(line)
        repeating = asyncio.create_task(self._repeat(line))

        def unread() -> TransportError:
            repeating.result()  # raises what nobody expected
            return TransportError("nobody reads the adverts any more")

        try:
            async with unless_lost(repeating, unread):
                yield
        finally:
            await end(repeating)

    async def _repeat(self, line: bytes) -> None:
        """Print the line again and again, until the reader has closed the pipe."""
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                self._write(line)
            except TransportError:
                return

    def _write(self, line: bytes) -> None:
        # not sys.stdout, which the interpreter would flush again at its end, into a broken pipe
        try:
            descriptor = sys.stdout.fileno() if self._descriptor is None else self._descriptor
            if not _has_room(descriptor):
                return
            if self._descriptor is None:
                sys.stdout.flush()
            os.write(descriptor, line)
        except OSError as error:
            raise TransportError(f"cannot print the advert: {error.strerror}") from error


def _has_room(descriptor: int) -> bool:
    """Whether a line can be written without waiting; also where that fails at once, since nobody reads any more."""
    asked = select.poll()
    asked.register(descriptor, select.POLLOUT)
    return bool(asked.poll(0))
