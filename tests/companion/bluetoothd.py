"""A Bluetooth service that is played on a private D-Bus, as strict about adverts as BlueZ's."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from dbus_fast import Message, MessageType, PropertyAccess, Variant
from dbus_fast.aio import MessageBus
from dbus_fast.annotations import DBusBool, DBusByte, DBusSignature
from dbus_fast.service import ServiceInterface, dbus_property

MANAGER: Final = "org.bluez.LEAdvertisingManager1"
ADVERTISEMENT: Final = "org.bluez.LEAdvertisement1"
FLAGS: Final = 3  # bytes that an adapter without BR/EDR needs in a legacy advert
LEGACY: Final = 31
SIGNATURES: Final = {
    "Type": "s",
    "ServiceUUIDs": "as",
    "ServiceData": "a{sv}",
    "MinInterval": "u",
    "MaxInterval": "u",
    "SecondaryChannel": "s",
}
_BUS: Final = "org.freedesktop.DBus"


@dataclass(frozen=True, kw_only=True)
class Registered:
    """An advert that is being sent."""

    owner: str
    path: str
    properties: dict[str, Any]


class Adapter(ServiceInterface):
    def __init__(self, *, powered: bool) -> None:
        super().__init__("org.bluez.Adapter1")
        self.on = powered

    @dbus_property(access=PropertyAccess.READ)
    def Powered(self) -> DBusBool:  # noqa: N802  as D-Bus names it, here and below
        return self.on


class Manager(ServiceInterface):
    """Shown to whoever lists objects; its methods are `Bluetoothd`'s, which knows who calls."""

    def __init__(self) -> None:
        super().__init__(MANAGER)
        self.adverts: list[Registered] = []

    @dbus_property(access=PropertyAccess.READ)
    def ActiveInstances(self) -> DBusByte:  # noqa: N802
        return len(self.adverts)

    @dbus_property(access=PropertyAccess.READ)
    def SupportedSecondaryChannels(self) -> Annotated[list[str], DBusSignature("as")]:  # noqa: N802
        return ["1M"]


class Bluetoothd:
    """The service, and what it sends."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._managers: dict[str, Manager] = {}
        self._adapters: dict[str, Adapter] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.refusal: str | None = None  # what every registration is answered with
        self.limit = 4  # adverts
        self.longest = 31  # bytes of advertising data; newer versions take more in extended ones
        self.turns_off = False  # the adapter, when it is asked to send
        self.silent = False  # read an advert, and then say nothing
        self.registrations = 0  # also those that were refused
        self.hung_up = 0  # adverts whose owners left without a word
        bus.add_message_handler(self._handle)

    def plug(self, name: str = "hci0", *, powered: bool = True, advertises: bool = True) -> None:
        self._adapters[name] = Adapter(powered=powered)
        self._managers[name] = Manager()
        self._bus.export(f"/org/bluez/{name}", self._adapters[name])
        if advertises:
            self._bus.export(f"/org/bluez/{name}", self._managers[name])

    def unplug(self, name: str = "hci0") -> None:
        """As BlueZ does it: off, then gone."""
        self.power(name, on=False)
        self.release(name)
        for interface in (self._managers.pop(name), self._adapters.pop(name)):
            self._bus.unexport(f"/org/bluez/{name}", interface)

    async def breathe(self) -> None:
        """Let everybody on the bus hear what was said, and ask."""
        for _ in range(5):
            await self._bus.call(Message("org.bluez", "/", f"{_BUS}.Peer", "Ping"))

    def power(self, name: str = "hci0", *, on: bool) -> None:
        """Adverts stay registered, and nobody is told but by the adapter's property."""
        self._adapters[name].on = on
        self._adapters[name].emit_properties_changed({"Powered": on})

    def release(self, name: str = "hci0") -> None:
        """Tell the owners that their adverts are not sent any more."""
        adverts = self._managers[name].adverts
        for advert in adverts:
            # no answer is waited for
            message = Message(advert.owner, advert.path, ADVERTISEMENT, "Release")
            self._do(self._ignore(message))
        adverts.clear()

    def adverts(self, name: str = "hci0") -> Sequence[Registered]:
        """What is being sent over an adapter."""
        return self._managers[name].adverts

    async def until_silent(self, name: str = "hci0") -> None:
        """Wait until the last advert has been taken down."""
        async with asyncio.timeout(60):
            while self._managers[name].adverts:
                self._changed.clear()
                await self._changed.wait()

    async def until_asked(self, times: int = 1) -> None:
        """Wait until so many adverts have been read for registration."""
        async with asyncio.timeout(60):
            while self.registrations < times:
                self._changed.clear()
                await self._changed.wait()

    async def stop(self) -> None:
        """End, without a word."""
        for task in list(self._tasks):
            task.cancel()
        self._bus.disconnect()
        await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]

    def _handle(self, message: Message) -> bool:
        if message.message_type is MessageType.SIGNAL and message.member == "NameOwnerChanged":
            name, _, new = message.body
            if not new:
                self._drop(name)
        if message.message_type is not MessageType.METHOD_CALL or message.interface != MANAGER:
            return False
        if message.member == "RegisterAdvertisement" and message.signature == "oa{sv}":
            self._do(self._register(message))
            return True
        if message.member == "UnregisterAdvertisement" and message.signature == "o":
            self._unregister(message)
            return True
        return False

    async def _register(self, message: Message) -> None:
        error = await self._refusal(message)
        self.registrations += 1
        self._changed.set()
        if self.silent:
            return
        self._answer(message, error)

    async def _refusal(self, message: Message) -> str | None:
        """Register the advert, or say with what D-Bus error it is refused."""
        name, path, owner = (message.path or "").rpartition("/")[2], message.body[0], message.sender
        assert owner is not None
        adverts = self._managers[name].adverts
        if self.turns_off:
            self.power(name, on=False)
        if self.refusal is not None:
            return self.refusal
        if any((advert.owner, advert.path) == (owner, path) for advert in adverts):
            return "org.bluez.Error.AlreadyExists"
        if len(adverts) >= self.limit:
            return "org.bluez.Error.NotPermitted"
        call = Message(owner, path, f"{_BUS}.Properties", "GetAll", signature="s", body=[ADVERTISEMENT])
        reply = await self._bus.call(call)
        if reply.message_type is MessageType.ERROR:
            return "org.bluez.Error.Failed"
        properties: dict[str, Variant] = reply.body[0]
        if any(SIGNATURES.get(key) != value.signature for key, value in properties.items()):
            return "org.bluez.Error.Failed"
        values = {key: value.value for key, value in properties.items()}
        extended = "SecondaryChannel" in values
        room = self.longest if extended else LEGACY - FLAGS
        if values.get("Type") not in ("broadcast", "peripheral") or _size(values) > room:
            return "org.bluez.Error.Failed"
        if not self._adapters[name].on:
            return "org.bluez.Error.Failed"
        adverts.append(Registered(owner=owner, path=path, properties=values))
        return None

    def _unregister(self, message: Message) -> None:
        name = (message.path or "").rpartition("/")[2]
        adverts = self._managers[name].adverts
        ours = [one for one in adverts if (one.owner, one.path) == (message.sender, message.body[0])]
        for advert in ours:
            adverts.remove(advert)
        self._changed.set()
        self._answer(message, None if ours else "org.bluez.Error.DoesNotExist")

    def _answer(self, message: Message, error: str | None) -> None:
        answer = (
            Message.new_method_return(message) if error is None else Message.new_error(message, error, "")
        )
        self._bus.send(answer)

    def _drop(self, owner: str) -> None:
        for manager in self._managers.values():
            left = [advert for advert in manager.adverts if advert.owner != owner]
            self.hung_up += len(manager.adverts) - len(left)
            manager.adverts[:] = left
        self._changed.set()

    def _do(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ignore(self, message: Message) -> None:
        with contextlib.suppress(EOFError):
            await self._bus.call(message)


@asynccontextmanager
async def private_bus(folder: Path) -> AsyncIterator[str]:
    """The address of a D-Bus with nobody on it."""
    assert shutil.which("dbus-daemon") is not None, (
        "dbus-daemon is missing: run scripts/install-test-packages"
    )
    process = await asyncio.create_subprocess_exec(
        *("dbus-daemon", "--session", "--nofork", "--print-address", f"--address=unix:path={folder}/bus"),
        env=os.environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@asynccontextmanager
async def bluetoothd(address: str) -> AsyncIterator[Bluetoothd]:
    """The service, with no adapter yet."""
    bus = await MessageBus(bus_address=address).connect()
    service = Bluetoothd(bus)
    try:
        rule = f"type='signal',sender='{_BUS}',member='NameOwnerChanged'"
        await bus.call(Message(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", signature="s", body=[rule]))
        await bus.request_name("org.bluez")
        yield service
    finally:
        await service.stop()


async def connections(address: str) -> int:
    """How many connections the bus has, apart from the one that asks."""
    bus = await MessageBus(bus_address=address).connect()
    try:
        reply = await bus.call(Message(_BUS, "/org/freedesktop/DBus", _BUS, "ListNames"))
        names: list[str] = reply.body[0]
        return sum(name.startswith(":") for name in names) - 1
    finally:
        bus.disconnect()
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]


def _size(values: dict[str, Any]) -> int:
    """Bytes of advertising data, all UUIDs having 16 bits."""
    listed = 2 + 2 * len(values["ServiceUUIDs"]) if values.get("ServiceUUIDs") else 0
    return listed + sum(4 + len(data.value) for data in values.get("ServiceData", {}).values())
