"""``--radio stdin``: adverts as lines of text, from the program that writes the pipe.

A line is the service data in hexadecimal, optionally after ``fff9:`` or ``fde2:``. A malformed line is reported and
skipped.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Final

from headless_passkey.errors import ProtocolReason, RemoteProtocolError, TransportError
from headless_passkey.process.streams import STDIN, read_some
from headless_passkey.radio.source import Advert

MAX_LINE: Final = 1024  # characters, without the end of line
MIN_SIZE: Final = 20  # bytes of service data (CTAP 2.2 §11.5.1)

logger = logging.getLogger(__name__)


class PipeRadio:
    """Reads adverts from a pipe, a terminal or a file; the iteration ends at its end."""

    def __init__(self, descriptor: int = STDIN, *, report: Callable[[str], object] = logger.warning) -> None:
        """report: called with a message for each skipped line, which does not repeat the line."""
        self._descriptor = descriptor
        self._report = report

    @asynccontextmanager
    async def adverts(self) -> AsyncIterator[AsyncIterator[Advert]]:
        async with aclosing(self._adverts()) as adverts:
            yield adverts

    async def _adverts(self) -> AsyncGenerator[Advert, None]:
        number = 0
        async with aclosing(_lines(self._descriptor)) as lines:
            async for line in lines:
                number += 1
                try:
                    advert = parse_advert_line(line)
                except RemoteProtocolError as error:
                    self._report(f"advert line {number} skipped: {error}")
                else:
                    yield advert


def parse_advert_line(line: bytes) -> Advert:
    """Parse a line, with or without its end of line; `RemoteProtocolError` when it is malformed."""
    text = line.removesuffix(b"\n").removesuffix(b"\r")
    if len(text) > MAX_LINE:
        raise RemoteProtocolError(f"longer than {MAX_LINE} characters", reason=ProtocolReason.TOO_LONG)
    if text[:5].lower() in (b"fff9:", b"fde2:"):
        text = text[5:]
    if not set(text) <= set(b"0123456789abcdefABCDEF") or len(text) % 2:
        raise RemoteProtocolError(
            "expected hexadecimal digits, two for each byte", reason=ProtocolReason.MALFORMED_ADVERT
        )
    service_data = bytes.fromhex(text.decode("ascii"))
    if len(service_data) < MIN_SIZE:
        raise RemoteProtocolError(
            f"expected {MIN_SIZE} bytes of service data or more, got {len(service_data)}",
            reason=ProtocolReason.MALFORMED_ADVERT,
        )
    return Advert(service_data=service_data)


async def _lines(descriptor: int) -> AsyncGenerator[bytes, None]:
    """Read lines as they come. Memory is bounded: a line that is too long is cut."""
    pending = b""
    while chunk := await _chunk(descriptor):
        *complete, pending = (pending + chunk).split(b"\n")
        for line in complete:
            yield line
        pending = pending[: MAX_LINE + 2]
    if pending:
        yield pending


async def _chunk(descriptor: int) -> bytes:
    try:
        return await read_some(descriptor)
    except OSError as error:
        raise TransportError(f"cannot read adverts: {error.strerror}") from error
