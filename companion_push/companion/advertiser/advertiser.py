"""The phone's radio, as small as it can be: something that advertises."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from headless_passkey.errors import TransportError


class Advertiser(Protocol):
    """A radio that sends one advert until it is told to stop."""

    def advertise(self, service_data: bytes) -> AbstractAsyncContextManager[None]:
        """Advertise `service_data` under the FIDO service UUID (0xFFF9) while the context is open.

        Leaving takes the advert down, also on cancellation and error. `TransportError` when the radio
        cannot be used; when it is lost later, what runs inside the context is cancelled and leaving raises
        `TransportError`.
        """


@asynccontextmanager
async def unless_lost(
    lost: asyncio.Future[Any], failure: Callable[[], TransportError]
) -> AsyncIterator[None]:
    """Run what is inside until it ends or `lost` is done; then the `TransportError` that `failure` makes."""
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
