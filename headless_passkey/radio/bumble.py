"""A radio over bumble: a Bluetooth host in this process, with a controller behind one of bumble's transports.

``tcp-client:127.0.0.1:PORT`` is an emulated controller, ``usb:0`` a dongle that the system does not use.
"""

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeVar

from bumble.core import AdvertisingData
from bumble.device import Advertisement, Device
from bumble.hci import Address, HCI_Reset_Command
from bumble.host import Host
from bumble.transport import open_transport
from bumble.transport.common import TransportSpecError

from headless_passkey.errors import (
    HeadlessPasskeyError,
    SetupError,
    SetupReason,
    TransportError,
    TransportReason,
    UsageError,
)
from headless_passkey.mends import mend, setup_error, transport_error
from headless_passkey.process.tasks import to_its_end
from headless_passkey.radio.bumble_channel import open_channel
from headless_passkey.radio.inbox import Inbox
from headless_passkey.radio.l2cap import L2capChannel
from headless_passkey.radio.source import FIDO_UUIDS, AddressType, Advert

START_TIMEOUT: Final = 10.0  # seconds to open and set up the controller
STOP_TIMEOUT: Final = 1.0  # seconds a controller has to answer the last command
REMEMBERED_ADVERTISERS: Final = 4096

_USB_ACCESS: Final = -3  # LIBUSB_ERROR_ACCESS
_USB_BUSY: Final = -6
_PERMISSIONS: Final = {
    "hci-socket": "that takes the capability CAP_NET_ADMIN, which root has",
    "serial": "let this user open the port, on Debian by adding it to the group dialout",
    "usb": "let this user open the device, with a udev rule",
}

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


class BumbleRadio:
    """Receives adverts, duplicates included."""

    def __init__(self, transport: str, *, passive: bool = False) -> None:
        """transport: in bumble's notation. passive: send no scan requests."""
        self._transport, self._passive = transport, passive
        self._hosts: list[_Host] = []  # of the scans that are open

    @property
    def connects(self) -> bool:
        return True

    @asynccontextmanager
    async def connect(self, advert: Advert, psm: int) -> AsyncIterator[L2capChannel]:
        if not self._hosts or advert.address is None:
            raise TransportError("a channel is opened while the radio scans, to the sender of an advert")
        async with self._hosts[-1].used() as host:
            address = _address(advert.address, advert.address_type)
            channel = await open_channel(host.device, address, psm, alone=host.connecting, lost=host.lost)
            try:
                yield channel
            finally:
                await channel.close()

    @asynccontextmanager
    async def adverts(self) -> AsyncIterator[AsyncIterator[Advert]]:
        inbox = Inbox()
        async with AsyncExitStack() as stack:
            device, lost = await stack.enter_async_context(open_device(self._transport))
            host = _Host(device, lost, stack.pop_all())
            await stack.enter_async_context(host.used())

            def heard(advertisement: Advertisement) -> None:
                if len(device.advertisement_accumulators) > REMEMBERED_ADVERTISERS:
                    device.advertisement_accumulators.clear()
                rssi = advertisement.rssi
                for service_data in _fido_service_data(advertisement.data):
                    inbox.put(
                        Advert(
                            service_data=service_data,
                            address=advertisement.address.to_string(with_type_qualifier=False),
                            address_type="public" if advertisement.address.is_public else "random",
                            rssi=None if rssi == Advertisement.RSSI_NOT_AVAILABLE else rssi,
                        )
                    )

            device.on(Device.EVENT_ADVERTISEMENT, heard)
            lost.add_done_callback(lambda _: inbox.fail(controller_lost()))
            try:
                async with controller_errors():
                    await undisturbed(
                        device.start_scanning(active=not self._passive, filter_duplicates=False)
                    )
                logger.debug("scanning")
                self._hosts.append(host)
                yield inbox
            finally:
                if host in self._hosts:
                    self._hosts.remove(host)
                await last_words(device, lost, device.stop_scanning)


class OpenDevice(Device):
    """A host that remembers whether its controller still answers."""

    answers = True


class _Host:
    """A host that a scan and its connections share; the last one closes it."""

    def __init__(self, device: OpenDevice, lost: "asyncio.Future[None]", opened: AsyncExitStack) -> None:
        self.device, self.lost, self._opened, self._users = device, lost, opened, 0
        self.connecting = asyncio.Lock()  # a controller makes one connection at a time

    @asynccontextmanager
    async def used(self) -> AsyncIterator["_Host"]:
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            if not self._users:
                await to_its_end(self._opened.aclose())


def _address(address: str, kind: AddressType) -> Address:
    return Address(
        address, Address.PUBLIC_DEVICE_ADDRESS if kind == "public" else Address.RANDOM_DEVICE_ADDRESS
    )


@asynccontextmanager
async def open_device(transport: str) -> AsyncIterator[tuple[OpenDevice, asyncio.Future[None]]]:
    """Open a controller and power its host on, under a random static address; returns the host, and a future for its loss.

    The future is done when the controller is lost. `UsageError` for an unknown transport, `TransportError` when it
    reaches no controller.
    """
    try:
        async with asyncio.timeout(START_TIMEOUT):
            opened = await open_transport(transport)
    except TimeoutError as error:
        raise _without_controller(f"the Bluetooth transport {transport} did not open in time") from error
    except Exception as error:  # each transport raises classes of its own
        raise _cannot_open(transport, error) from error
    lost = opened.source.terminated
    _miss_hci_socket(opened.source)
    lost.add_done_callback(
        lambda _: lost.cancelled() or lost.exception()
    )  # retrieved, so that asyncio logs no warning
    async with opened:
        address = Address.generate_static_address()
        device = OpenDevice("headless-passkey", address, host=Host(opened.source, opened.sink))
        try:
            async with controller_errors():
                await undisturbed(device.power_on())
            yield device, lost
        finally:
            # a controller does not notice that its host is gone, and would go on scanning or advertising
            await last_words(device, lost, lambda: device.host.send_sync_command(HCI_Reset_Command()))
            if not device.answers:  # it may come to itself, and nobody waits for that
                with contextlib.suppress(Exception):
                    device.host.send_hci_packet(HCI_Reset_Command())
            with contextlib.suppress(Exception):
                async with asyncio.timeout(STOP_TIMEOUT):
                    await device.power_off()  # which says nothing to the controller


def _cannot_open(transport: str, error: Exception) -> HeadlessPasskeyError:
    """Translate the error of a transport that does not open, by errno or libusb's codes."""
    usb = type(error).__module__.partition(".")[0] in ("usb", "usb1")
    if isinstance(error, ImportError):
        what = f"the Bluetooth transport {transport!r} needs the Python package {error.name}"
        return setup_error(what, SetupReason.MISSING_PACKAGE, extra="emulation")
    if isinstance(error, (TransportSpecError, ValueError, AssertionError)) and not usb:
        return UsageError(f"{transport!r} is not a Bluetooth transport that bumble knows")
    if isinstance(error.__cause__, AttributeError):
        return SetupError(
            f"{transport!r} needs a Python that was built with Bluetooth's sockets",
            reason=SetupReason.MISSING_PACKAGE,
            advice="use such a Python, for instance Debian's",
        )
    number = getattr(error, "value" if usb else "errno", None)
    reason, advice = TransportReason.NO_ADAPTER, None
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if number in ((_USB_ACCESS,) if usb else (errno.EACCES, errno.EPERM)):
        reason = TransportReason.BLUETOOTH_FORBIDDEN
        why = "this user may not use it"
        advice = _PERMISSIONS.get(transport.partition(":")[0], mend(reason, "controller"))
    elif number in ((_USB_BUSY,) if usb else (errno.EBUSY,)):
        reason = TransportReason.ADAPTER_BUSY
        why = "another process has it"
        advice = "end what has it first, such as the system's own service with `systemctl stop bluetooth`"
    elif number == errno.ERFKILL:
        reason = TransportReason.ADAPTER_BLOCKED
        why = "it is blocked"
        advice = "unblock it with `rfkill unblock bluetooth`"
    what = f"cannot open the Bluetooth transport {transport}: {why}"
    return TransportError(what, reason=reason, advice=advice or mend(reason))


def _miss_hci_socket(source: Any) -> None:
    """Make `source` notice the loss of its adapter, which bumble's HCI socket does not (0.0.236, November 2026)."""
    read = getattr(source, "recv_until_would_block", None)
    if read is None:
        return
    loop, descriptor = asyncio.get_running_loop(), source.socket.fileno()

    def read_or_lose() -> None:
        try:
            read()
        except OSError as error:
            logger.debug("HCI socket: %s", error.strerror)
            loop.remove_reader(descriptor)
            source.on_transport_lost()

    loop.add_reader(descriptor, read_or_lose)  # instead of bumble's


def controller_lost() -> TransportError:
    """Make the error for a controller that was lost while in use."""
    return _without_controller("the Bluetooth controller has gone")


def _without_controller(why: str) -> TransportError:
    return transport_error(why, TransportReason.NO_ADAPTER)


@asynccontextmanager
async def controller_errors() -> AsyncIterator[None]:
    """Translate errors of commands to a controller: `TransportError` when one fails or is not answered."""
    try:
        async with asyncio.timeout(START_TIMEOUT):
            yield
    except TimeoutError as error:
        raise _controller_failed("the Bluetooth controller does not answer") from error
    except Exception as error:  # bumble's own errors share no useful base
        raise _controller_failed(f"the Bluetooth controller failed ({error})") from error


def _controller_failed(why: str) -> TransportError:
    return transport_error(why, TransportReason.BLUETOOTH_FAILED, "controller")


async def undisturbed(work: Coroutine[Any, Any, _T]) -> _T:
    """Await commands to a controller, shielded from cancellation: bumble would take a late answer for the answer to the
    next command.
    """
    return await to_its_end(work, seconds=STOP_TIMEOUT)


async def last_words(
    device: OpenDevice, lost: asyncio.Future[None], say: Callable[[], Awaitable[object]]
) -> None:
    """Send a last command while closing; its failure is ignored. It is the last one indeed to a controller that does not answer in
    time: bumble would take the late answer for the answer to the next command.
    """
    if lost.done() or not device.answers:
        return
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await say()
    except TimeoutError:
        device.answers = False
    except Exception as error:  # noqa: BLE001  bumble's own errors share no useful base
        logger.debug("a last command failed: %s", error)


def _fido_service_data(data: AdvertisingData) -> list[bytes]:
    prefixes = [uuid.to_bytes(2, "little") for uuid in FIDO_UUIDS]
    structures = data.get_all(AdvertisingData.Type.SERVICE_DATA_16_BIT_UUID, raw=True)
    return [structure[2:] for structure in structures if structure[:2] in prefixes]
