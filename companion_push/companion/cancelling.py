"""Work that ends in order when its caller is cancelled, such as the last report to the relay."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from headless_passkey.process.tasks import end, until_done

CANCEL_TIMEOUT: Final = 3.0  # seconds that cancelled work may still take

T = TypeVar("T")


async def finish_when_cancelled(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`. A caller that is cancelled, however often, waits until `work` has ended, at most `CANCEL_TIMEOUT` seconds."""
    working = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await until_done(asyncio.ensure_future(asyncio.wait({working}, timeout=CANCEL_TIMEOUT)))
        raise
    finally:
        await end(working)
        if not working.cancelled():
            working.exception()  # raised above, unless the cancellation was
