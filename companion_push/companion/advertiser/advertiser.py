"""The phone's radio, as small as it can be: something that advertises."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Advertiser(Protocol):
    """A radio that sends one advert until it is told to stop."""

    def advertise(self, service_data: bytes) -> AbstractAsyncContextManager[None]:
        """Advertise `service_data` under the FIDO service UUID (0xFFF9) while the context is open.

        Leaving takes the advert down, also on cancellation and error. `TransportError` when the radio
        cannot be used.
        """
