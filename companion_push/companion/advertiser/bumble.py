"""Advertising and listening over bumble, with an emulated controller or a dongle that the system does not use."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from bumble.device import AdvertisingEventProperties, AdvertisingParameters, AdvertisingType, Device
from bumble.hci import OwnAddressType
from bumble.l2cap import LeCreditBasedChannel

from companion_push.companion.advertiser.advertiser import unless_lost
from headless_passkey.errors import LocalProtocolError, TransportError
from headless_passkey.process.tasks import end_quietly, until_done
from headless_passkey.radio.bumble import (
    OpenDevice,
    controller_errors,
    controller_lost,
    last_words,
    open_device,
    undisturbed,
)
from headless_passkey.radio.bumble_channel import BumbleChannel, channel_spec
from headless_passkey.radio.l2cap import L2capChannel

INTERVAL: Final = 100.0  # milliseconds
LEGACY_SIZE: Final = 31  # bytes of advertising data
EXTENDED_SIZE: Final = 251  # in one HCI command
BACKLOG: Final = 16  # channels that wait to be accepted

logger = logging.getLogger(__name__)


class BumbleAdvertiser:
    """Sends an advert, connectable where it listens too: a legacy one where the data fits, else an extended one."""

    def __init__(self, transport: str) -> None:
        """transport: in bumble's notation."""
        self._transport = transport

    @asynccontextmanager
    async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
        data = advertising_data(service_data)
        async with open_device(self._transport) as (device, lost), _on_the_air(device, lost, data):
            yield

    @asynccontextmanager
    async def listen(self) -> AsyncIterator["BumbleListener"]:
        async with open_device(self._transport) as (device, lost):
            listener = BumbleListener(device, lost)
            try:
                yield listener
            finally:
                await listener.close()


class BumbleListener:
    """A server for channels, with a connectable advert."""

    def __init__(self, device: OpenDevice, lost: "asyncio.Future[None]") -> None:
        self._device, self._lost = device, lost
        self._waiting: deque[BumbleChannel] = deque()
        self._came = asyncio.Event()
        self._linked = asyncio.Event()
        self._server = device.create_l2cap_server(channel_spec(), self._take)
        device.on(Device.EVENT_CONNECTION, lambda _: self._linked.set())
        lost.add_done_callback(lambda _: self._came.set())

    @property
    def psm(self) -> int:
        return self._server.psm

    async def accept(self) -> L2capChannel:
        while not self._waiting:
            if self._lost.done():
                raise controller_lost()
            self._came.clear()
            await self._came.wait()
        return self._waiting.popleft()

    @asynccontextmanager
    async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
        data = advertising_data(service_data)
        async with _on_the_air(self._device, self._lost, data, connectable=True):
            again = asyncio.create_task(self._advertise_on(data))
            try:
                yield
            finally:
                await end_quietly(again)

    async def close(self) -> None:
        """Listen no more, and close what nobody has accepted."""
        self._server.close()
        # at once: each may take seconds, where its peer does not answer
        await until_done(*(asyncio.ensure_future(channel.close()) for channel in self._waiting))

    async def _advertise_on(self, data: bytes) -> None:
        """Start the advert again when a link was made, which ends it: a stranger's must not silence the phone."""
        while True:
            self._linked.clear()
            await self._linked.wait()
            try:
                async with controller_errors():
                    await undisturbed(_start(self._device, data, connectable=True))
            except TransportError as error:  # with as many links as the controller can have
                logger.info("the advert stays off until the next link: %s", error)

    def _take(self, channel: LeCreditBasedChannel) -> None:
        if len(self._waiting) == BACKLOG:
            return  # nobody accepts any more: what it sends is dropped
        self._waiting.append(BumbleChannel(channel, lost=self._lost))
        self._came.set()


@asynccontextmanager
async def _on_the_air(
    device: OpenDevice, lost: "asyncio.Future[None]", data: bytes, *, connectable: bool = False
) -> AsyncIterator[None]:
    async with controller_errors():
        await undisturbed(_start(device, data, connectable=connectable))
    logger.debug("advertising %d bytes", len(data))
    try:
        async with unless_lost(lost, controller_lost):
            yield
    finally:
        await last_words(device, lost, lambda: _stop(device))


def advertising_data(service_data: bytes) -> bytes:
    """Make AD structures (CTAP 2.2 §11.5.1): the service data, behind a list of its UUID where there is room."""
    uuid = (0xFFF9).to_bytes(2, "little")
    structure = b"\x16" + uuid + service_data
    if len(structure) >= EXTENDED_SIZE:
        raise LocalProtocolError(f"{len(service_data)} bytes of service data do not fit into an advert")
    with_list = b"\x03\x03" + uuid + bytes([len(structure)]) + structure
    return with_list if len(with_list) <= LEGACY_SIZE else with_list[4:]


async def _start(device: Device, data: bytes, *, connectable: bool = False) -> None:
    """Start advertising, also again."""
    if len(data) <= LEGACY_SIZE:
        await device.start_advertising(
            advertising_type=AdvertisingType.UNDIRECTED_CONNECTABLE_SCANNABLE
            if connectable
            else AdvertisingType.UNDIRECTED,  # neither connectable nor scannable
            own_address_type=OwnAddressType.RANDOM,
            advertising_data=data,
            advertising_interval_min=INTERVAL,
            advertising_interval_max=INTERVAL,
        )
        return
    if not device.supports_le_extended_advertising:
        raise TransportError(f"an advert of {len(data)} bytes needs a controller with extended advertising")
    await _stop(device)
    await device.create_advertising_set(
        AdvertisingParameters(
            advertising_event_properties=AdvertisingEventProperties(is_connectable=connectable),
            primary_advertising_interval_min=INTERVAL,
            primary_advertising_interval_max=INTERVAL,
            own_address_type=OwnAddressType.RANDOM,
        ),
        advertising_data=data,
    )


async def _stop(device: Device) -> None:
    await device.stop_advertising()
    for advertising_set in list(device.extended_advertising_sets.values()):
        if advertising_set.enabled:
            await advertising_set.stop()
        await advertising_set.remove()
