"""Advertising over bumble, with an emulated controller or a dongle that the system does not use."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from bumble.device import AdvertisingEventProperties, AdvertisingParameters, AdvertisingType, Device
from bumble.hci import OwnAddressType

from companion_push.companion.advertiser.advertiser import unless_lost
from headless_passkey.errors import LocalProtocolError, TransportError
from headless_passkey.radio.bumble import (
    controller_errors,
    controller_lost,
    last_words,
    open_device,
    undisturbed,
)

INTERVAL: Final = 100.0  # milliseconds
LEGACY_SIZE: Final = 31  # bytes of advertising data
EXTENDED_SIZE: Final = 251  # in one HCI command

logger = logging.getLogger(__name__)


class BumbleAdvertiser:
    """Sends a non-connectable advert: a legacy one where the data fits, else an extended one."""

    def __init__(self, transport: str) -> None:
        """transport: in bumble's notation."""
        self._transport = transport

    @asynccontextmanager
    async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
        data = advertising_data(service_data)
        async with open_device(self._transport) as (device, lost):
            async with controller_errors():
                stop = await undisturbed(_start(device, data))
            logger.debug("advertising %d bytes", len(data))
            try:
                async with unless_lost(lost, controller_lost):
                    yield
            finally:
                await last_words(lost, stop)


def advertising_data(service_data: bytes) -> bytes:
    """Make AD structures (CTAP 2.2 §11.5.1): the service data, behind a list of its UUID where there is room."""
    uuid = (0xFFF9).to_bytes(2, "little")
    structure = b"\x16" + uuid + service_data
    if len(structure) >= EXTENDED_SIZE:
        raise LocalProtocolError(f"{len(service_data)} bytes of service data do not fit into an advert")
    with_list = b"\x03\x03" + uuid + bytes([len(structure)]) + structure
    return with_list if len(with_list) <= LEGACY_SIZE else with_list[4:]


async def _start(device: Device, data: bytes) -> Callable[[], Awaitable[None]]:
    """Start advertising; returns a function that stops it."""
    if len(data) <= LEGACY_SIZE:
        await device.start_advertising(
            advertising_type=AdvertisingType.UNDIRECTED,  # neither connectable nor scannable
            own_address_type=OwnAddressType.RANDOM,
            advertising_data=data,
            advertising_interval_min=INTERVAL,
            advertising_interval_max=INTERVAL,
        )
        return device.stop_advertising
    if not device.supports_le_extended_advertising:
        raise TransportError(f"an advert of {len(data)} bytes needs a controller with extended advertising")
    advertising_set = await device.create_advertising_set(
        AdvertisingParameters(
            advertising_event_properties=AdvertisingEventProperties(is_connectable=False),
            primary_advertising_interval_min=INTERVAL,
            primary_advertising_interval_max=INTERVAL,
            own_address_type=OwnAddressType.RANDOM,
        ),
        advertising_data=data,
    )
    return advertising_set.stop
