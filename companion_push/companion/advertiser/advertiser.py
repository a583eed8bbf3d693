"""The interface of a radio that sends adverts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, runtime_checkable

from headless_passkey.errors import TransportError
from headless_passkey.radio.l2cap import L2capChannel


class Advertiser(Protocol):
    """A radio that sends one advert until its context exits."""

    def advertise(self, service_data: bytes) -> AbstractAsyncContextManager[None]:
        """Advertise `service_data` under the FIDO service UUID (0xFFF9) while the context is open.

        The exit stops the advert, also on cancellation and error. `TransportError` when the radio cannot be used. When
        it is lost later, the context's body is cancelled, and the exit raises `TransportError`.
        """


class Listener(Protocol):
    """A phone's end of the direct channel, before a device has come: anybody near can open channels to it."""

    @property
    def psm(self) -> int:
        """Where it listens, for the advert's suffix."""

    async def accept(self) -> L2capChannel:
        """The next channel, which the caller closes; `TransportError` when the radio is lost."""

    def advertise(self, service_data: bytes) -> AbstractAsyncContextManager[None]:
        """Advertise as `Advertiser.advertise` does, connectable, from the address where this listens."""


@runtime_checkable
class ListeningAdvertiser(Advertiser, Protocol):
    """A radio that can also listen for direct channels."""

    def listen(self) -> AbstractAsyncContextManager[Listener]:
        """Listen while the context is open; `TransportError` when the radio cannot."""


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
