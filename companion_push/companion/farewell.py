"""Telling the relay how something ended, when whoever started it waits no longer."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

TIMEOUT: Final = 3.0  # seconds the relay may take

T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """`work`, which is not cancelled half done: whoever cancels this waits a little until it has ended."""
    working = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working}, timeout=TIMEOUT)
        raise
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
