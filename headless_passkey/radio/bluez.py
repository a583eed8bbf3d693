"""BlueZ over D-Bus, for radio and advertiser: adapters, their state, and a signal when one is lost.

Linux only. Every failure is a `TransportError` whose reason says what is wrong, and whose message says
what to do about it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from dbus_fast import BusType, Message, MessageFlag, MessageType, unpack_variants
from dbus_fast.aio import MessageBus
from dbus_fast.errors import AuthError

from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.mends import mend, transport_error
from headless_passkey.process.private_file import this_user
from headless_passkey.radio.source import AddressType

CALL_TIMEOUT: Final = 15.0  # seconds; the bus may have to start bluetoothd first
RFKILL: Final = Path("/sys/class/rfkill")

_ADAPTER: Final = "org.bluez.Adapter1"
_OBJECTS: Final = "org.freedesktop.DBus.ObjectManager"
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_BUS: Final = "org.freedesktop.DBus"

_WRONG: Final[Mapping[TransportReason, str]] = {  # what to do about it, `headless_passkey.mends` has
    TransportReason.NO_DBUS: "the system's D-Bus cannot be reached, and Bluetooth is behind it",
    TransportReason.NO_BLUETOOTH_SERVICE: "the Bluetooth service does not run",
    TransportReason.NO_ADAPTER: "this machine has no Bluetooth adapter",
    TransportReason.ADAPTER_OFF: "Bluetooth is off",
    TransportReason.ADAPTER_BLOCKED: "Bluetooth is blocked",
    TransportReason.ADAPTER_UNABLE: "the Bluetooth adapter cannot listen for Low Energy adverts",
    TransportReason.ADAPTER_BUSY: "the Bluetooth adapter is in use",
    TransportReason.BLUETOOTH_FORBIDDEN: "this user may not use Bluetooth",
    TransportReason.BLUETOOTH_FAILED: "the Bluetooth service failed",
}

_REASONS: Final[Mapping[str, TransportReason]] = {  # by the D-Bus error's name
    "org.bluez.Error.Blocked": TransportReason.ADAPTER_BLOCKED,
    "org.bluez.Error.InProgress": TransportReason.ADAPTER_BUSY,
    "org.bluez.Error.NotAuthorized": TransportReason.BLUETOOTH_FORBIDDEN,
    "org.bluez.Error.NotReady": TransportReason.ADAPTER_OFF,
    "org.bluez.Error.NotSupported": TransportReason.ADAPTER_UNABLE,
    f"{_BUS}.Error.AccessDenied": TransportReason.BLUETOOTH_FORBIDDEN,
    f"{_BUS}.Error.NameHasNoOwner": TransportReason.NO_BLUETOOTH_SERVICE,
    f"{_BUS}.Error.NoReply": TransportReason.NO_BLUETOOTH_SERVICE,
    f"{_BUS}.Error.ServiceUnknown": TransportReason.NO_BLUETOOTH_SERVICE,
    f"{_BUS}.Error.TimedOut": TransportReason.NO_BLUETOOTH_SERVICE,
    f"{_BUS}.Error.UnknownMethod": TransportReason.NO_ADAPTER,  # the object is missing too
    f"{_BUS}.Error.UnknownObject": TransportReason.NO_ADAPTER,
}
_CANNOT_START: Final = (f"{_BUS}.Error.Spawn.", "org.freedesktop.systemd1.")  # bluetoothd, on demand

logger = logging.getLogger(__name__)


def bluetooth_error(reason: TransportReason) -> TransportError:
    """Make the error for a reason, in general words."""
    return transport_error(_WRONG[reason], reason, user=this_user())


def reason_of(error_name: str) -> TransportReason:
    """Translate the name of a D-Bus error."""
    if error_name.startswith(_CANNOT_START):
        return TransportReason.NO_BLUETOOTH_SERVICE
    return _REASONS.get(error_name, TransportReason.BLUETOOTH_FAILED)


class RefusedError(TransportError):
    """A method call was answered with a D-Bus error."""

    def __init__(self, error_name: str, member: str) -> None:
        """error_name: such as ``org.bluez.Error.Failed``. member: the method that was called."""
        reason = reason_of(error_name)
        what = _WRONG[reason]
        if reason is TransportReason.BLUETOOTH_FAILED:
            what = f"the Bluetooth service refused {member} ({error_name})"
        super().__init__(what, reason=reason, advice=mend(reason, user=this_user()))
        self.error_name, self.member = error_name, member


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A Bluetooth adapter as bluetoothd describes it."""

    name: str  # for instance hci0
    powered: bool
    central: bool  # receives Low Energy adverts
    advertises: bool  # has LEAdvertisingManager1
    monitors: bool  # offers passive scans (AdvertisementMonitorManager1)
    address: str = "00:00:00:00:00:00"
    address_type: AddressType = "public"

    @property
    def path(self) -> str:
        return f"/org/bluez/{self.name}"


def choose(
    adapters: Sequence[Adapter], name: str | None, *, able: Callable[[Adapter], bool], what_for: str
) -> Adapter:
    """Choose the adapter called `name`, or the first that is `able` and on; `TransportError` when it cannot be used.

    what_for: ends the message "the adapter … cannot".
    """
    if name is not None:
        adapters = [adapter for adapter in adapters if adapter.name == name]
        if not adapters:
            raise transport_error(
                f"there is no Bluetooth adapter {name}", TransportReason.NO_ADAPTER, "named"
            )
    if not adapters:
        # a block by the firmware removes the adapter from the list
        blocked = blocked_by() is not None
        raise bluetooth_error(TransportReason.ADAPTER_BLOCKED if blocked else TransportReason.NO_ADAPTER)
    on = [adapter for adapter in adapters if adapter.powered]
    fit = [adapter for adapter in adapters if able(adapter)]
    for adapter in on:
        if adapter in fit:
            return adapter
    # an adapter that is off does not list its features
    if on and len(on) == len(adapters):
        names = ", ".join(adapter.name for adapter in adapters)
        raise transport_error(
            f"the Bluetooth adapter {names} cannot {what_for}", TransportReason.ADAPTER_UNABLE
        )
    if all(blocked_by(adapter.name) for adapter in adapters if not adapter.powered):
        raise bluetooth_error(TransportReason.ADAPTER_BLOCKED)
    if name is not None:
        what = f"the Bluetooth adapter {name} is off"
        raise transport_error(what, TransportReason.ADAPTER_OFF, "named", name=name)
    raise bluetooth_error(TransportReason.ADAPTER_OFF)


def choose_listener(adapters: Sequence[Adapter], name: str | None) -> Adapter:
    """Choose the adapter for a scan."""
    return choose(adapters, name, able=lambda one: one.central, what_for="listen for Low Energy adverts")


def blocked_by(name: str | None = None) -> Literal["soft", "hard"] | None:
    """How rfkill blocks an adapter: by software (soft), or by a switch or the firmware (hard), which takes precedence.

    name: for instance ``hci0``; None for any Bluetooth device.
    """
    found = []
    for device in RFKILL.glob("rfkill*"):
        with suppress(OSError):  # it may disappear meanwhile
            which, wanted = ("type", "bluetooth") if name is None else ("name", name)
            if (device / which).read_text().strip() == wanted:
                found += [kind for kind in ("soft", "hard") if (device / kind).read_text().strip() == "1"]
    return "hard" if "hard" in found else "soft" if found else None


class Bluez:
    """A connection to bluetoothd over the system bus."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._ended = asyncio.ensure_future(_end_of(bus))

    async def call(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> Any:
        """Call a method of bluetoothd; returns its first value without variants. `RefusedError` for a D-Bus error."""
        return await self._call("org.bluez", path, interface, member, signature, *body)

    async def adapters(self, *, start: bool = True) -> Sequence[Adapter]:
        """List the adapters, hci0 first. start: let D-Bus start bluetoothd if it is not running."""
        flags = MessageFlag.NONE if start else MessageFlag.NO_AUTOSTART
        objects = await self._call("org.bluez", "/", _OBJECTS, "GetManagedObjects", "", flags=flags)
        found = [_adapter(path, interfaces) for path, interfaces in objects.items() if _ADAPTER in interfaces]
        return sorted(found, key=lambda adapter: (len(adapter.name), adapter.name))

    async def watch(self, adapter: Adapter) -> "asyncio.Future[None]":
        """Return a future that is done once `adapter` is off or gone, or bluetoothd or the bus has ended.

        It stays done when the adapter comes back, because scans and adverts over it have ended.
        """
        lost = asyncio.get_running_loop().create_future()

        def lose(_: object = None) -> None:
            if not lost.done():
                lost.set_result(None)

        def look(message: Message) -> None:
            if (
                message.message_type is MessageType.SIGNAL
                and not message.destination  # broadcasts only: any program on the bus can send us a signal directly, under any name
                and _is_loss(message, adapter.path)
            ):
                lose()

        self._bus.add_message_handler(look)
        self._ended.add_done_callback(lose)
        for rule in (
            f"type='signal',sender='{_BUS}',member='NameOwnerChanged',arg0='org.bluez'",
            f"type='signal',sender='org.bluez',interface='{_PROPERTIES}',path='{adapter.path}',arg0='{_ADAPTER}'",
            # this path only: below it, each removed device would be a signal
            f"type='signal',sender='org.bluez',interface='{_OBJECTS}',member='InterfacesRemoved',arg0path='{adapter.path}'",
        ):
            await self._call(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", "s", rule)
        return lost

    def export(self, path: str, interface: Any) -> None:
        """Export an object (a `dbus_fast.service.ServiceInterface`) to bluetoothd."""
        self._bus.export(path, interface)

    async def close(self) -> None:
        """Disconnect, which ends everything that belongs to this connection, from match rules to adverts."""
        self._bus.disconnect()
        await self._ended

    async def _call(
        self,
        name: str,
        path: str,
        interface: str,
        member: str,
        signature: str,
        *body: Any,
        flags: MessageFlag = MessageFlag.NONE,
    ) -> Any:
        message = Message(name, path, interface, member, flags=flags, signature=signature, body=list(body))
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                reply = await self._bus.call(message)
        except TimeoutError as error:
            failed = TransportReason.BLUETOOTH_FAILED
            why = f"the Bluetooth service does not answer ({member})"
            raise transport_error(why, failed) from error
        except (EOFError, OSError) as error:
            raise bluetooth_error(TransportReason.NO_DBUS) from error
        if reply.message_type is MessageType.ERROR:
            logger.debug("%s: %s", member, reply.error_name)
            raise RefusedError(reply.error_name or "", member)
        return unpack_variants(reply.body[0]) if reply.body else None


@asynccontextmanager
async def open_bluez() -> AsyncIterator[Bluez]:
    """Open a connection of its own, so that the daemons release everything when it closes.

    `TransportError` when there is no system bus. The first call shows whether bluetoothd runs.
    """
    try:
        bus = MessageBus(bus_type=BusType.SYSTEM)
    except Exception as error:  # a malformed address, a missing socket
        raise bluetooth_error(TransportReason.NO_DBUS) from error
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            await bus.connect()
    except AuthError as error:
        bus.disconnect()
        raise bluetooth_error(TransportReason.BLUETOOTH_FORBIDDEN) from error
    except Exception as error:  # errors of dbus-fast, the system and asyncio have no common base
        bus.disconnect()
        raise bluetooth_error(TransportReason.NO_DBUS) from error
    except BaseException:  # cancelled
        bus.disconnect()
        raise
    bluez = Bluez(bus)
    try:
        yield bluez
    finally:
        await bluez.close()


async def _end_of(bus: MessageBus) -> None:
    with suppress(Exception):  # it has ended in any case
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]


def _adapter(path: str, interfaces: Mapping[str, Any]) -> Adapter:
    properties = interfaces[_ADAPTER]
    monitor = interfaces.get("org.bluez.AdvertisementMonitorManager1", {})
    return Adapter(
        name=path.rpartition("/")[2],
        powered=bool(properties.get("Powered")),
        central="central"
        in properties.get("Roles", ["central"]),  # before BlueZ 5.57 the property is missing
        advertises="org.bluez.LEAdvertisingManager1" in interfaces,
        monitors="or_patterns" in monitor.get("SupportedMonitorTypes", ()),
        address=properties.get("Address", "00:00:00:00:00:00"),
        address_type="random" if properties.get("AddressType") == "random" else "public",
    )


def _is_loss(message: Message, path: str) -> bool:
    match message.member, message.body:
        case "NameOwnerChanged", ["org.bluez", *_]:
            return True
        case "PropertiesChanged", [str(interface), dict(changed), *_] if message.path == path:
            powered = changed.get("Powered")
            return interface == _ADAPTER and powered is not None and not powered.value
        case "InterfacesRemoved", [str(removed), list(interfaces)]:
            return removed == path and _ADAPTER in interfaces
    return False
