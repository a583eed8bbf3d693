"""The Bluetooth adapter of this machine, through bleak: BlueZ on Linux, and the services of other systems.

On Linux the scan recovers: when the adapter is turned off or unplugged, or bluetoothd or D-Bus is restarted, it starts
again as soon as they are back, and raises a typed error when they stay away. On other systems bleak reports no
such loss, and the scan receives nothing more.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from bleak import BleakScanner
from bleak.args.bluez import BlueZScannerArgs, OrPattern
from bleak.assigned_numbers import AdvertisementDataType
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData
from bleak.exc import (
    BleakBluetoothNotAvailableError,
    BleakBluetoothNotAvailableReason,
    BleakDBusError,
    BleakError,
)

from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.mends import transport_error
from headless_passkey.process.tasks import end, to_its_end
from headless_passkey.radio.inbox import Inbox
from headless_passkey.radio.l2cap import L2capChannel
from headless_passkey.radio.source import FIDO_UUIDS, AddressType, Advert

START_TIMEOUT: Final = 15.0  # seconds until the adapter scans
STOP_TIMEOUT: Final = 2.0
PATIENCE: Final = 30.0  # seconds a lost adapter has to come back
RETRY_PAUSE: Final = 0.5  # seconds between attempts to find it
SILENCE: Final = 6.0  # seconds without any advert, of phones or others, after which the scan is restarted
BUSY_PATIENCE: Final = 15.0  # seconds; after bluetoothd was killed, the kernel goes on scanning for ten
UNKNOWN_RSSI: Final = -127

logger = logging.getLogger(__name__)

_UUIDS: Final = tuple(f"0000{uuid:04x}-0000-1000-8000-00805f9b34fb" for uuid in FIDO_UUIDS)
_PATTERNS: Final[list[OrPattern | tuple[int, AdvertisementDataType, bytes]]] = [
    OrPattern(0, AdvertisementDataType.SERVICE_DATA_UUID16, uuid.to_bytes(2, "little")) for uuid in FIDO_UUIDS
]


class BleakRadio:
    """Receives adverts through the system's Bluetooth service."""

    def __init__(
        self, *, adapter: str | None = None, passive: bool = False, patience: float = PATIENCE
    ) -> None:
        """adapter: such as ``hci1`` (BlueZ only); None means the first that is on and able.

        passive: send no scan requests, which phones do not need. It saves power, and BlueZ then reports FIDO adverts
        only; it needs BlueZ with advertisement monitors, or Windows. patience: seconds a lost adapter has to come back.
        """
        self._settings = (adapter, passive, patience)

    @property
    def connects(self) -> bool:
        return sys.platform == "linux"

    @asynccontextmanager
    async def connect(self, advert: Advert, psm: int) -> AsyncIterator[L2capChannel]:
        scans = _SCANS.get(asyncio.get_running_loop())
        scan = None if scans is None else scans.get(self._settings)
        if scan is None or scan.address is None or advert.address is None:
            raise TransportError("a channel is opened while the radio scans, to the sender of an advert")
        from headless_passkey.radio.l2cap_socket import open_socket_channel  # noqa: PLC0415  Linux only

        # the kernel interrupts the scan for it; a bleak client would discover the phone's GATT services first
        peer = (advert.address, advert.address_type)
        async with open_socket_channel(scan.address, peer, psm) as channel:
            yield channel

    @asynccontextmanager
    async def adverts(self) -> AsyncIterator[AsyncIterator[Advert]]:
        """Scan, as `AdvertSource` says. Listeners with the same settings share one scan."""
        scans = _SCANS.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
        scan = scans.setdefault(self._settings, _Scan(*self._settings))
        inbox = Inbox()
        await scan.join(inbox)
        try:
            yield inbox
        finally:
            await scan.leave(inbox)


class _Scan:
    """A scan with its listeners: BlueZ allows a program one scan on an adapter at a time."""

    def __init__(self, adapter: str | None, passive: bool, patience: float) -> None:  # noqa: FBT001
        self._adapter, self._passive, self._patience = adapter, passive, patience
        self._inboxes: set[Inbox] = set()
        self.address: tuple[str, AddressType] | None = None  # of the adapter that scans (BlueZ only)
        self._sound_at = 0.0  # time of the last advert, of any device, by the event loop's clock
        self._keeping: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()  # a new listener waits until the last one has stopped the scan

    async def join(self, inbox: Inbox) -> None:
        """Add a listener; `TransportError` when the adapter cannot be used."""
        self._inboxes.add(inbox)
        try:
            async with self._turn:
                if self._started is None or self._keeping is None or self._keeping.done():
                    self._started = started = asyncio.get_running_loop().create_future()
                    started.add_done_callback(lambda _: started.exception())  # even if all have left by then
                    self._keeping = asyncio.create_task(self._keep_scanning(started))
                await asyncio.shield(self._started)
        except BaseException:
            await self.leave(inbox)
            raise

    async def leave(self, inbox: Inbox) -> None:
        """Remove a listener. The last one stops the scan, also when it is cancelled meanwhile (shielded)."""
        self._inboxes.discard(inbox)
        if not self._inboxes:
            await to_its_end(self._end_if_deserted())

    async def _end_if_deserted(self) -> None:
        async with self._turn:
            if self._keeping is not None and not self._inboxes:
                await end(self._keeping)
                self._keeping = None

    async def _keep_scanning(self, started: "asyncio.Future[None]") -> None:
        """Scan, and again after a loss. `started` takes the failure of the first scan, and the listeners take a later one."""
        clock = asyncio.get_running_loop().time
        began, lost_at = clock(), None
        while True:

            def scanning() -> None:
                nonlocal lost_at
                if not started.done():
                    started.set_result(None)
                logger.debug("scanning")
                if lost_at is not None:
                    logger.warning("listening again")  # follows the warning about the loss
                lost_at = None

            try:
                await self._scan(scanning)
            except Exception as error:  # noqa: BLE001  one that is a bug must not pass for silence on the air
                if not started.done():
                    if not _is_busy(error) or clock() - began >= BUSY_PATIENCE:
                        started.set_exception(error)
                        return
                    logger.info("waiting: %s", _said(error))
                else:
                    if lost_at is None:
                        lost_at = clock()
                        logger.warning("stopped listening: %s", _said(error))
                    if not isinstance(error, TransportError) or clock() - lost_at >= self._patience:
                        for inbox in self._inboxes:
                            inbox.fail(error)
                        return
            await asyncio.sleep(RETRY_PAUSE)

    async def _scan(self, scanning: Callable[[], None]) -> None:
        """Scan until the adapter is lost; `TransportError` when it cannot be used."""
        if sys.platform != "linux":
            async with self._scanner(self._adapter):
                scanning()
                await asyncio.get_running_loop().create_future()
            return
        from headless_passkey.radio import bluez  # noqa: PLC0415  dbus-fast is installed on Linux alone

        async with bluez.open_bluez() as service:
            adapter = bluez.choose_listener(await service.adapters(), self._adapter)
            if self._passive and not adapter.monitors:
                unable = TransportReason.ADAPTER_UNABLE
                raise transport_error(f"BlueZ offers no passive scan on {adapter.name}", unable, "passive")
            lost = await service.watch(adapter)
            self.address = (adapter.address, adapter.address_type)
            while not lost.done():
                async with self._scanner(adapter.name):
                    scanning()
                    await self._silence(lost)
            logger.info("the scan on %s has ended: adapter or Bluetooth service went away", adapter.name)

    async def _silence(self, lost: "asyncio.Future[None]") -> None:
        """Wait until `lost`, or until no advert has come for `SILENCE` seconds.

        bluetoothd before 5.88 can believe that a scan runs which the kernel has stopped: it happens when a scan of
        another program is stopped while ours starts, and lasts until the next stop. A passive scan uses other
        functions, and is silent where no phone is near.
        """
        if self._passive:
            await asyncio.wait([lost])
        clock = asyncio.get_running_loop().time
        self._sound_at = clock()
        while not lost.done() and (left := self._sound_at + SILENCE - clock()) > 0:
            await asyncio.wait([lost], timeout=left)

    @asynccontextmanager
    async def _scanner(self, adapter: str | None) -> AsyncIterator[None]:
        now = asyncio.get_running_loop().time

        def heard(device: BLEDevice, advertisement: AdvertisementData) -> None:
            self._sound_at = now()
            for uuid in _UUIDS:
                service_data = advertisement.service_data.get(uuid)
                if service_data is not None:
                    rssi = None if advertisement.rssi == UNKNOWN_RSSI else advertisement.rssi
                    advert = Advert(
                        service_data=service_data,
                        address=device.address,
                        address_type=_address_type(device),
                        rssi=rssi,
                    )
                    for inbox in self._inboxes:
                        inbox.put(advert)

        # No service_uuids: BlueZ compares them with the lists of UUIDs only, and would drop adverts that carry
        # service data without such a list.
        options = BlueZScannerArgs(or_patterns=_PATTERNS) if self._passive else BlueZScannerArgs()
        if adapter is not None:
            options["adapter"] = adapter
        try:
            scanner = BleakScanner(
                heard, scanning_mode="passive" if self._passive else "active", bluez=options
            )
        except Exception as error:  # bleak raises many unrelated classes here
            raise _translated(error) from error
        starting = asyncio.ensure_future(scanner.start())
        try:
            await asyncio.wait([starting], timeout=START_TIMEOUT)
            if not starting.done():
                raise transport_error(
                    "the Bluetooth service did not start scanning in time", TransportReason.BLUETOOTH_FAILED
                )
            try:
                starting.result()
            except Exception as error:  # errors of bleak, D-Bus and the system have no common base
                raise _translated(error) from error
            yield
        finally:
            await to_its_end(_stop(scanner, starting))


def _address_type(device: BLEDevice) -> AddressType:
    """The type of a device's address, which bleak has from BlueZ."""
    details = device.details
    properties = details.get("props", {}) if isinstance(details, dict) else {}
    return "public" if properties.get("AddressType") == "public" else "random"


async def _stop(scanner: BleakScanner, starting: "asyncio.Future[None]") -> None:
    """End a scan that runs, or may still start."""
    # shielded from cancellation: bluetoothd may have received the call already, and would scan for ever
    await asyncio.wait([starting], timeout=STOP_TIMEOUT)
    if not starting.done():
        starting.cancel()
        await asyncio.wait([starting], timeout=STOP_TIMEOUT)
    elif not starting.cancelled() and starting.exception() is None:
        with contextlib.suppress(Exception):  # the context ends anyway
            async with asyncio.timeout(STOP_TIMEOUT):
                await scanner.stop()


# weak: a scan refers to its event loop
_SCANS: WeakKeyDictionary[
    asyncio.AbstractEventLoop, WeakValueDictionary[tuple[str | None, bool, float], _Scan]
] = WeakKeyDictionary()


def _is_busy(error: Exception) -> bool:
    return isinstance(error, TransportError) and error.reason is TransportReason.ADAPTER_BUSY


def _translated(error: Exception) -> TransportError:
    """Translate an error of bleak, D-Bus or the system."""
    reasons = BleakBluetoothNotAvailableReason
    match error:
        case BleakDBusError() if sys.platform == "linux":
            from headless_passkey.radio import bluez  # noqa: PLC0415

            reason = bluez.reason_of(error.dbus_error)
            if reason is not TransportReason.BLUETOOTH_FAILED:
                return bluez.bluetooth_error(reason)
            why = f"the Bluetooth service refused to scan ({error.dbus_error})"
        case BleakBluetoothNotAvailableError(reason=reasons.NO_BLUETOOTH):
            reason, why = TransportReason.NO_ADAPTER, "this machine has no Bluetooth adapter"
        case BleakBluetoothNotAvailableError(reason=reasons.NO_BLE_CENTRAL_ROLE):
            reason = TransportReason.ADAPTER_UNABLE
            why = "the Bluetooth adapter cannot listen for Low Energy adverts"
        case BleakBluetoothNotAvailableError(reason=reasons.POWERED_OFF):
            reason, why = TransportReason.ADAPTER_OFF, "Bluetooth is off"
        case BleakBluetoothNotAvailableError(
            reason=reasons.DENIED_BY_USER | reasons.DENIED_BY_SYSTEM | reasons.DENIED_BY_UNKNOWN
        ):
            reason = TransportReason.BLUETOOTH_FORBIDDEN
            why = "this program may not use Bluetooth"
        case BleakError() if "not found" in str(error):
            reason, why = TransportReason.NO_ADAPTER, "the Bluetooth adapter has gone"
        case _:
            reason = TransportReason.BLUETOOTH_FAILED
            why = f"Bluetooth cannot be used ({type(error).__name__})"
    return transport_error(why, reason)


def _said(error: Exception) -> str:
    return error.explain() if isinstance(error, TransportError) else str(error)
