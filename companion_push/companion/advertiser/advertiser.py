"""The interface of a radio that sends adverts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from headless_passkey.errors import TransportError


class Advertiser(Protocol):
    """A radio that sends one advert until its context exits."""

    def advertise(self, service_data: bytes) -> AbstractAsyncContextManager[None]:
        """Advertise `service_data` under the FIDO service UUID (0xFFF9) while the context is open.

        The exit stops the advert, also on cancellation and error. `TransportError` when the radio cannot be used. When
        it is lost later, the context's body is cancelled, and the exit raises `TransportError`.
        """


@asynccontextmanager
async def unless_lost(
    lost: asyncio.Future[Any], failure: Callable[[], TransportError]
) -> AsyncIterator[None]:
    """Run the body until it ends; cancel it when `lost` is done, and raise what `failure` makes."""
    task = asyncio.current_task()
    if task is None or lost.done():
        raise failure()
    inside, cancelling = True, task.cancelling()

    def interrupt(_: object) -> None:
        if inside:
            task.cancel()

    lost.add_done_callback(interrupt)
    try:
        yield
    except asyncio.CancelledError:
        if lost.done() and task.uncancel() <= cancelling:
            raise failure() from None
        raise
    finally:
        inside = False
        lost.remove_done_callback(interrupt)
