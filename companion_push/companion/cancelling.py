"""Work that ends in order when its caller is cancelled, such as the last report to the relay."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

CANCEL_TIMEOUT: Final = 3.0  # seconds that cancelled work may still take

T = TypeVar("T")


async def finish_when_cancelled(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, shielded from cancellation: a cancelled caller waits until it has ended, at most `CANCEL_TIMEOUT`."""
    working = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working}, timeout=CANCEL_TIMEOUT)
        raise
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
