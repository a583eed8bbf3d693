"""Work that ends in order when its caller is cancelled, such as the last report to the relay."""

from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from headless_passkey.process.tasks import to_its_end

CANCEL_TIMEOUT: Final = 3.0  # seconds that cancelled work may still take

T = TypeVar("T")


async def finish_when_cancelled(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`. A caller that is cancelled, however often, waits until `work` has ended; after `CANCEL_TIMEOUT` seconds `work` is cancelled too."""
    return await to_its_end(work, seconds=CANCEL_TIMEOUT)
