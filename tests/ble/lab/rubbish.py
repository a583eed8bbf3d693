"""A second advertiser, which sends whatever it likes: a Bluetooth host of its own on the same air."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from bumble.device import AdvertisingEventProperties, AdvertisingParameters, Device
from bumble.hci import Address, OwnAddressType

from headless_passkey.radio.bumble import open_device

INTERVAL: Final = 20.0  # milliseconds
LEGACY: Final = 31  # bytes

_numbers: Final = itertools.count(1)


def service_data(data: bytes, *, uuid: int = 0xFFF9) -> bytes:
    """An AD structure."""
    return bytes([3 + len(data), 0x16]) + uuid.to_bytes(2, "little") + data


@asynccontextmanager
async def broadcasting(
    air: str, adverts: Sequence[bytes], *, interval: float = INTERVAL
) -> AsyncIterator[Device]:
    """Send all of these at once, each from an address of its own: as legacy adverts, or extended if they are longer."""
    async with open_device(air) as (device, _):
        for data in adverts:
            legacy = len(data) <= LEGACY
            await device.create_advertising_set(
                AdvertisingParameters(
                    advertising_event_properties=AdvertisingEventProperties(
                        is_connectable=False, is_legacy=legacy
                    ),
                    primary_advertising_interval_min=interval,
                    primary_advertising_interval_max=interval,
                    own_address_type=OwnAddressType.RANDOM,
                ),
                random_address=_address(),
                advertising_data=data,
            )
        yield device


def _address() -> Address:
    """A static random address that nobody has had."""
    number = next(_numbers)
    return Address(f"C0:00:00:{number >> 16 & 0xFF:02X}:{number >> 8 & 0xFF:02X}:{number & 0xFF:02X}")
