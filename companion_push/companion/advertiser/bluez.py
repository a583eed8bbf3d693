"""Advertising and listening over BlueZ: bluetoothd sends the advert, which this process registers over D-Bus.

The advert is a D-Bus object of this process, which bluetoothd reads at registration. It ends with our connection to
the bus, and so with this process, also when that is killed.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Final

from dbus_fast import PropertyAccess, Variant
from dbus_fast.annotations import DBusSignature, DBusStr, DBusUInt32
from dbus_fast.service import ServiceInterface, dbus_method, dbus_property

from companion_push.companion.advertiser.advertiser import unless_lost
from headless_passkey.errors import LocalProtocolError, TransportError, TransportReason
from headless_passkey.process.tasks import end
from headless_passkey.radio.bluez import (
    Adapter,
    Bluez,
    RefusedError,
    choose,
    open_bluez,
)
from headless_passkey.radio.l2cap import L2capChannel
from headless_passkey.radio.l2cap_socket import SocketListener, open_socket_listener

INTERVAL: Final = 100  # milliseconds; bluetoothd uses it with --experimental only, and else 1280
STOP_TIMEOUT: Final = 2.0  # seconds bluetoothd has to stop the advert
SETTLING: Final = 0.5  # seconds to wait after a loss, until its cause can be told
LEGACY_SIZE: Final = 31  # bytes of advertising data
EXTENDED_SIZE: Final = 251  # in one HCI command

_MANAGER: Final = "org.bluez.LEAdvertisingManager1"
_UUID: Final = "0000fff9-0000-1000-8000-00805f9b34fb"
_Strings = Annotated[list[str], DBusSignature("as")]
_Data = Annotated[dict[str, Variant], DBusSignature("a{sv}")]

logger = logging.getLogger(__name__)


class BluezAdvertiser:
    """Sends an advert through the system's Bluetooth service (Linux), connectable where it listens too.

    It is a legacy advert where the data fits, else an extended one. Other uses of the adapter go on meanwhile.
    """

    def __init__(self, adapter: str | None = None) -> None:
        """adapter: such as ``hci1``; None means the first that is on and able."""
        self._adapter = adapter

    @asynccontextmanager
    async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
        async with self._on_the_air(service_data, connectable=False):
            yield

    @asynccontextmanager
    async def listen(self) -> AsyncIterator["BluezListener"]:
        async with open_bluez() as service:
            adapter = _usable(await service.adapters(), self._adapter)
        async with open_socket_listener((adapter.address, adapter.address_type)) as socket:
            yield BluezListener(socket, BluezAdvertiser(adapter.name))

    @asynccontextmanager
    async def _on_the_air(self, service_data: bytes, *, connectable: bool) -> AsyncIterator[None]:
        forms = list(_forms(service_data))
        async with open_bluez() as service:
            adapter = _usable(await service.adapters(), self._adapter)
            gone = await service.watch(adapter)
            released = asyncio.get_running_loop().create_future()
            path = await _register(service, adapter, forms, service_data, released, connectable=connectable)
            lost = asyncio.create_task(_loss(service, adapter, gone, released))
            try:
                async with unless_lost(lost, lost.result):
                    yield
            finally:
                try:
                    await end(lost)
                finally:
                    if not gone.done() and not released.done():
                        await _unregister(service, adapter, path)


class BluezListener:
    """A listening socket of an adapter, with the adapter's connectable advert.

    A link to the adapter ends the advert; the kernel starts it again when the link has ended.
    """

    def __init__(self, socket: SocketListener, advertiser: BluezAdvertiser) -> None:
        self._socket, self._advertiser = socket, advertiser

    @property
    def psm(self) -> int:
        return self._socket.psm

    async def accept(self) -> L2capChannel:
        return await self._socket.accept()

    @asynccontextmanager
    async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
        async with self._advertiser._on_the_air(service_data, connectable=True):  # noqa: SLF001  of this module
            yield


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """One form in which an advert can be sent."""

    name: str
    uuids: Sequence[str] = ()  # listed before the service data
    extended: bool = False


def _forms(service_data: bytes) -> Iterator[_Form]:
    """The forms to try, best first (CTAP 2.2 §11.5.1): an adapter may need 3 of the 31 bytes for flags."""
    size = len(service_data) + 4
    if size > EXTENDED_SIZE:
        raise LocalProtocolError(f"{len(service_data)} bytes of service data do not fit into an advert")
    if size + 4 <= LEGACY_SIZE:
        yield _Form(name="listed", uuids=(_UUID,))
    if size <= LEGACY_SIZE:
        yield _Form(name="plain")
    yield _Form(name="extended", extended=True)


def _usable(adapters: Sequence[Adapter], name: str | None) -> Adapter:
    return choose(adapters, name, able=lambda one: one.advertises, what_for="send Low Energy adverts")


async def _register(
    service: Bluez,
    adapter: Adapter,
    forms: Sequence[_Form],
    service_data: bytes,
    released: "asyncio.Future[None]",
    *,
    connectable: bool,
) -> str:
    """Register the advert in the first form that bluetoothd accepts; returns the path of its object."""
    refused = None
    for form in forms:
        path = f"/headless_passkey/{form.name}"
        kind = _ExtendedAdvertisement if form.extended else _Advertisement
        service.export(path, kind(form.uuids, service_data, released, connectable=connectable))
        try:
            await service.call(adapter.path, _MANAGER, "RegisterAdvertisement", "oa{sv}", path, {})
        except RefusedError as error:
            if error.error_name == "org.bluez.Error.NotPermitted":
                raise TransportError(
                    f"the Bluetooth adapter {adapter.name} sends as many adverts as it can:"
                    " end another program that advertises, or use another adapter",
                    reason=TransportReason.ADAPTER_BUSY,
                ) from error
            if error.reason is not TransportReason.BLUETOOTH_FAILED:
                raise
            refused = error  # too long, or another cause: bluetoothd answers Failed to both
        else:
            logger.debug("advertising %d bytes over %s, %s", len(service_data), adapter.name, form.name)
            return path
    _usable(await service.adapters(start=False), adapter.name)  # raises when it was turned off meanwhile
    raise TransportError(
        f"the Bluetooth service does not send an advert with {len(service_data)} bytes of service data"
        f" over {adapter.name}",
        reason=TransportReason.ADAPTER_UNABLE if len(forms) == 1 else TransportReason.BLUETOOTH_FAILED,
        advice="try again, use another adapter, or update BlueZ",
    ) from refused


async def _unregister(service: Bluez, adapter: Adapter, path: str) -> None:
    """Unregister the advert; where that fails, the end of our connection does it."""
    with contextlib.suppress(TransportError, TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT):
            await service.call(adapter.path, _MANAGER, "UnregisterAdvertisement", "o", path)


async def _loss(
    service: Bluez, adapter: Adapter, gone: "asyncio.Future[None]", released: "asyncio.Future[None]"
) -> TransportError:
    """Make the error for an advert that bluetoothd no longer sends."""
    await asyncio.wait((gone, released), return_when=asyncio.FIRST_COMPLETED)
    # an unplugged adapter is reported as off first, and a stopping bluetoothd removes its adapters first
    await asyncio.sleep(SETTLING)
    try:
        _usable(await service.adapters(start=False), adapter.name)
    except TransportError as error:
        return error
    return TransportError(
        f"the Bluetooth service has stopped sending the advert over {adapter.name}",
        reason=TransportReason.BLUETOOTH_FAILED,
        advice="try again",
    )


class _Advertisement(ServiceInterface):
    """The advert as a D-Bus object (org.bluez.LEAdvertisement1), which bluetoothd reads and releases."""

    def __init__(
        self,
        uuids: Sequence[str],
        service_data: bytes,
        released: "asyncio.Future[None]",
        *,
        connectable: bool,
    ) -> None:
        super().__init__("org.bluez.LEAdvertisement1")
        self._uuids, self._service_data, self._released = uuids, service_data, released
        self._type = (
            "peripheral" if connectable else "broadcast"
        )  # which is neither connectable nor scannable

    @dbus_method()
    def Release(self) -> None:  # noqa: N802  as D-Bus names it, here and below
        if not self._released.done():
            self._released.set_result(None)

    @dbus_property(access=PropertyAccess.READ)
    def Type(self) -> DBusStr:  # noqa: N802
        return self._type

    @dbus_property(access=PropertyAccess.READ)
    def ServiceUUIDs(self) -> _Strings:  # noqa: N802
        return list(self._uuids)

    @dbus_property(access=PropertyAccess.READ)
    def ServiceData(self) -> _Data:  # noqa: N802
        return {_UUID: Variant("ay", self._service_data)}

    @dbus_property(access=PropertyAccess.READ)
    def MinInterval(self) -> DBusUInt32:  # noqa: N802
        return INTERVAL

    @dbus_property(access=PropertyAccess.READ)
    def MaxInterval(self) -> DBusUInt32:  # noqa: N802
        return INTERVAL


class _ExtendedAdvertisement(_Advertisement):
    """An extended advert, which sender and receivers must support."""

    @dbus_property(access=PropertyAccess.READ)
    def SecondaryChannel(self) -> DBusStr:  # noqa: N802
        return "1M"
