"""The interface of a radio: a source of BLE adverts."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Literal, Protocol

FIDO_UUIDS: Final = (0xFFF9, 0xFDE2)  # FIDO; Google's, used by older phones (CTAP 2.2 §11.5.1)

AddressType = Literal["public", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advert:
    """The service data of one advert under a FIDO service UUID, unverified."""

    service_data: bytes  # 20 bytes or more when it is a hybrid advert
    address: str | None = None
    address_type: AddressType = "random"  # of `address`
    rssi: int | None = None  # dBm


class AdvertSource(Protocol):
    """A radio that receives adverts."""

    def adverts(self) -> AbstractAsyncContextManager[AsyncIterator[Advert]]:
        """Scan while the context is open.

        The iterator ends when the source has ended (a closed pipe). Entering or iterating raises
        `TransportError` when the radio cannot be used.
        """
