"""The C library's allocator, as a server needs it that runs for months."""

import contextlib
import ctypes
import os
from typing import Final

_M_MMAP_THRESHOLD: Final = -3  # of mallopt(3)
_LARGE: Final = 128 * 1024  # bytes: glibc's own, until the first large block is freed


def give_back_large_blocks() -> None:
    """Have each block of memory from 128 KiB on mapped by itself, and so given back to the system when it is freed.

    A TLS connection has a buffer of 256 KiB, of which it touches little. When the first is freed, glibc begins to take such
    blocks from its heap, where all that is small comes to lie in them, one page after the other, and stays.
    What the operator has set in the environment stands. Without glibc nothing is done.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "glibc.malloc.mmap_threshold" in os.environ.get(
        "GLIBC_TUNABLES", ""
    ):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
