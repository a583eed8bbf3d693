"""The radio of this machine, through bleak: BlueZ on Linux, and what other systems have."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from bleak import BleakScanner
from bleak.args.bluez import BlueZScannerArgs
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData
from bleak.exc import (
    BleakBluetoothNotAvailableError,
    BleakBluetoothNotAvailableReason,
    BleakDBusError,
    BleakError,
)

from headless_passkey.errors import TransportError
from headless_passkey.radio.inbox import Inbox
from headless_passkey.radio.source import FIDO_UUIDS, Advert

START_TIMEOUT: Final = 15.0  # seconds until the adapter scans
STOP_TIMEOUT: Final = 2.0
UNKNOWN_RSSI: Final = -127

logger = logging.getLogger(__name__)

_UUIDS: Final = tuple(f"0000{uuid:04x}-0000-1000-8000-00805f9b34fb" for uuid in FIDO_UUIDS)


class BleakRadio:
    """Hears adverts through the system's Bluetooth service."""

    def __init__(self, *, adapter: str | None = None) -> None:
        """adapter: such as ``hci1`` (BlueZ only); None means the first that is able."""
        self._adapter = adapter

    @asynccontextmanager
    async def adverts(self) -> AsyncIterator[AsyncIterator[Advert]]:
        inbox = Inbox()

        def heard(device: BLEDevice, advertisement: AdvertisementData) -> None:
            for uuid in _UUIDS:
                service_data = advertisement.service_data.get(uuid)
                if service_data is not None:
                    rssi = None if advertisement.rssi == UNKNOWN_RSSI else advertisement.rssi
                    inbox.put(Advert(service_data=service_data, address=device.address, rssi=rssi))

        # No service_uuids: BlueZ would look for them in the lists of UUIDs alone, and drop adverts that
        # carry service data only.
        options = BlueZScannerArgs(adapter=self._adapter) if self._adapter else BlueZScannerArgs()
        try:
            scanner = BleakScanner(heard, bluez=options)
            async with asyncio.timeout(START_TIMEOUT):
                await scanner.start()
        except TimeoutError as error:
            raise TransportError("the Bluetooth service did not start scanning in time") from error
        except Exception as error:  # bleak's, D-Bus's and the system's share no base
            raise TransportError(_why(error, self._adapter)) from error
        logger.debug("scanning")
        try:
            yield inbox
        finally:
            with contextlib.suppress(Exception):  # nothing can be done about it on the way out
                async with asyncio.timeout(STOP_TIMEOUT):
                    await scanner.stop()


def _why(error: Exception, adapter: str | None) -> str:
    """What is wrong with Bluetooth here, and what to do about it."""
    reasons = BleakBluetoothNotAvailableReason
    match error:
        case BleakBluetoothNotAvailableError(reason=reasons.NO_BLUETOOTH):
            return "this machine has no Bluetooth adapter: plug one in, or use another radio"
        case BleakBluetoothNotAvailableError(reason=reasons.NO_BLE_CENTRAL_ROLE):
            return "the Bluetooth adapter cannot listen for Low Energy adverts: use another one"
        case (
            BleakBluetoothNotAvailableError(reason=reasons.POWERED_OFF)
            | BleakDBusError(dbus_error="org.bluez.Error.NotReady")
        ):
            return "Bluetooth is off: turn it on, for example with `bluetoothctl power on`"
        case (
            BleakBluetoothNotAvailableError(
                reason=reasons.DENIED_BY_USER | reasons.DENIED_BY_SYSTEM | reasons.DENIED_BY_UNKNOWN
            )
            | BleakDBusError(
                dbus_error="org.freedesktop.DBus.Error.AccessDenied"
                | "org.bluez.Error.NotAuthorized"
                | "org.bluez.Error.NotPermitted"
            )
        ):
            return "this user may not use Bluetooth: allow it, on Debian by adding it to the group bluetooth"
        case BleakDBusError(
            dbus_error="org.freedesktop.DBus.Error.ServiceUnknown"
            | "org.freedesktop.DBus.Error.NameHasNoOwner"
        ):
            return (
                "the Bluetooth service does not run: start it, for example with `systemctl start bluetooth`"
            )
        case BleakDBusError():
            return f"the Bluetooth service refused to scan ({error.dbus_error}): try again, or restart it"
        case BleakError() if adapter is not None and "not found" in str(error):
            return f"there is no Bluetooth adapter {adapter}: `bluetoothctl list` shows which there are"
        case OSError():
            return "the system's D-Bus cannot be reached, and Bluetooth is behind it: is dbus-daemon running?"
    return f"Bluetooth cannot be used ({type(error).__name__}): is a Bluetooth service installed and running?"
