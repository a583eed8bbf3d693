"""The C library's allocator, as a server needs it that runs for months."""

import asyncio
import ctypes
from typing import Final

_SECONDS: Final = 60.0


def give_back_memory(loop: asyncio.AbstractEventLoop) -> None:
    """Give the memory that is free back to the system each minute, as long as `loop` runs. Without glibc nothing is done.

    glibc gives back by itself only what is at the end of its heap. A TLS connection has a buffer of 256 KiB, of which it
    touches little; when it is freed, other blocks come to lie in it here and there, and page after page stays.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    trim.argtypes = [ctypes.c_size_t]

    def give_back() -> None:
        trim(0)  # milliseconds
        loop.call_later(_SECONDS, give_back)

    loop.call_later(_SECONDS, give_back)
