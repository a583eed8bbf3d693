"""BlueZ over D-Bus, as far as radio and advertiser share it: adapters, their state, and word when one is lost.

Linux only. Whatever goes wrong here is a `TransportError` whose reason says what, and whose message says
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
from headless_passkey.mends import transport_error, with_mend

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
    f"{_BUS}.Error.UnknownMethod": TransportReason.NO_ADAPTER,  # nor is its object there
    f"{_BUS}.Error.UnknownObject": TransportReason.NO_ADAPTER,
}
_CANNOT_START: Final = (f"{_BUS}.Error.Spawn.", "org.freedesktop.systemd1.")  # bluetoothd, on demand

logger = logging.getLogger(__name__)


def bluetooth_error(reason: TransportReason) -> TransportError:
    """The error for a reason, in general words."""
    return transport_error(_WRONG[reason], reason)


def reason_of(error_name: str) -> TransportReason:
    """What a D-Bus error means here."""
    if error_name.startswith(_CANNOT_START):
        return TransportReason.NO_BLUETOOTH_SERVICE
    return _REASONS.get(error_name, TransportReason.BLUETOOTH_FAILED)


class RefusedError(TransportError):
    """A D-Bus error came back."""

    def __init__(self, error_name: str, member: str) -> None:
        """error_name: such as ``org.bluez.Error.Failed``. member: the method that was called."""
        reason = reason_of(error_name)
        what = _WRONG[reason]
        if reason is TransportReason.BLUETOOTH_FAILED:
            what = f"the Bluetooth service refused {member} ({error_name})"
        super().__init__(with_mend(what, reason), reason=reason)
        self.error_name, self.member = error_name, member


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A Bluetooth adapter as bluetoothd describes it."""

    name: str  # such as hci0
    powered: bool
    central: bool  # can listen to Low Energy adverts
    advertises: bool  # has LEAdvertisingManager1
    monitors: bool  # can be asked for a passive scan (AdvertisementMonitorManager1)

    @property
    def path(self) -> str:
        return f"/org/bluez/{self.name}"


def choose(
    adapters: Sequence[Adapter], name: str | None, *, able: Callable[[Adapter], bool], what_for: str
) -> Adapter:
    """The adapter called `name`, or the first that is `able` and on; `TransportError` when it cannot be used.

    what_for: ends the sentence "the adapter … cannot".
    """
    if name is not None:
        adapters = [adapter for adapter in adapters if adapter.name == name]
        if not adapters:
            raise transport_error(
                f"there is no Bluetooth adapter {name}", TransportReason.NO_ADAPTER, "named"
            )
    if not adapters:
        # a block that the firmware keeps takes the adapter away altogether
        blocked = blocked_by() is not None
        raise bluetooth_error(TransportReason.ADAPTER_BLOCKED if blocked else TransportReason.NO_ADAPTER)
    on = [adapter for adapter in adapters if adapter.powered]
    fit = [adapter for adapter in adapters if able(adapter)]
    for adapter in on:
        if adapter in fit:
            return adapter
    # one that is off says little of what it could do
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
    """As `choose`, for a scan."""
    return choose(adapters, name, able=lambda one: one.central, what_for="listen for Low Energy adverts")


def blocked_by(name: str | None = None) -> Literal["soft", "hard"] | None:
    """How rfkill keeps an adapter off: by software, or by a switch or the firmware, which go before.

    name: such as ``hci0``; None for anything of Bluetooth's.
    """
    found = []
    for device in RFKILL.glob("rfkill*"):
        with suppress(OSError):  # it may go while we look
            which, wanted = ("type", "bluetooth") if name is None else ("name", name)
            if (device / which).read_text().strip() == wanted:
                found += [kind for kind in ("soft", "hard") if (device / kind).read_text().strip() == "1"]
    return "hard" if "hard" in found else "soft" if found else None


class Bluez:
    """A connection to the system bus, and behind it bluetoothd."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._ended = asyncio.ensure_future(_end_of(bus))

    async def call(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> Any:
        """What a method of bluetoothd returns first, without variants; `RefusedError` when it refuses."""
        return await self._call("org.bluez", path, interface, member, signature, *body)

    async def adapters(self, *, start: bool = True) -> Sequence[Adapter]:
        """All there are, hci0 first. start: have the bus start bluetoothd where it can."""
        flags = MessageFlag.NONE if start else MessageFlag.NO_AUTOSTART
        objects = await self._call("org.bluez", "/", _OBJECTS, "GetManagedObjects", "", flags=flags)
        found = [_adapter(path, interfaces) for path, interfaces in objects.items() if _ADAPTER in interfaces]
        return sorted(found, key=lambda adapter: (len(adapter.name), adapter.name))

    async def watch(self, adapter: Adapter) -> "asyncio.Future[None]":
        """Done once `adapter` is off or gone, or bluetoothd or the bus has ended.

        Its coming back makes no difference: whatever was going on over that adapter has ended all the same.
        """
        lost = asyncio.get_running_loop().create_future()

        def lose(_: object = None) -> None:
            if not lost.done():
                lost.set_result(None)

        def look(message: Message) -> None:
            if (
                message.message_type is MessageType.SIGNAL
                and not message.destination  # anyone on the bus may send a signal to us alone, under any name
                and _is_loss(message, adapter.path)
            ):
                lose()

        self._bus.add_message_handler(look)
        self._ended.add_done_callback(lose)
        for rule in (
            f"type='signal',sender='{_BUS}',member='NameOwnerChanged',arg0='org.bluez'",
            f"type='signal',sender='org.bluez',interface='{_PROPERTIES}',path='{adapter.path}',arg0='{_ADAPTER}'",
            # this path alone: with all below it, every device that is forgotten would wake us
            f"type='signal',sender='org.bluez',interface='{_OBJECTS}',member='InterfacesRemoved',arg0path='{adapter.path}'",
        ):
            await self._call(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", "s", rule)
        return lost

    def export(self, path: str, interface: Any) -> None:
        """Offer an object of ours (a `dbus_fast.service.ServiceInterface`) to bluetoothd."""
        self._bus.export(path, interface)

    async def close(self) -> None:
        """Hang up: what this connection asked for, from match rules to adverts, ends with it."""
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
    """A connection of its own, so that all it leaves behind at the daemons ends with it.

    `TransportError` when there is no system bus. Whether bluetoothd runs, the first call tells.
    """
    try:
        bus = MessageBus(bus_type=BusType.SYSTEM)
    except Exception as error:  # a malformed address, a socket that is not there
        raise bluetooth_error(TransportReason.NO_DBUS) from error
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            await bus.connect()
    except AuthError as error:
        bus.disconnect()
        raise bluetooth_error(TransportReason.BLUETOOTH_FORBIDDEN) from error
    except Exception as error:  # dbus-fast, the system and asyncio have one each
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
    with suppress(Exception):  # how it ended is all the same
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]


def _adapter(path: str, interfaces: Mapping[str, Any]) -> Adapter:
    properties = interfaces[_ADAPTER]
    monitor = interfaces.get("org.bluez.AdvertisementMonitorManager1", {})
    return Adapter(
        name=path.rpartition("/")[2],
        powered=bool(properties.get("Powered")),
        central="central" in properties.get("Roles", ["central"]),  # before BlueZ 5.57 it did not say
        advertises="org.bluez.LEAdvertisingManager1" in interfaces,
        monitors="or_patterns" in monitor.get("SupportedMonitorTypes", ()),
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
