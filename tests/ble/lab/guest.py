"""What a test can do to the guest it runs in: adapters, bluetoothd, permissions; and whether all is as it was.

Nothing here waits by the clock: what changes in BlueZ is signalled, and only then looked at again.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dbus_fast import BusType, Message, MessageType, PropertyAccess, Variant, unpack_variants
from dbus_fast.aio import MessageBus
from dbus_fast.service import ServiceInterface, dbus_property

from tests.programs import ROOT

STATE: Final = Path(os.environ.get("BLE_LAB", "/run/ble-lab"))
ADAPTERS: Final = ("hci0", "hci1")  # what a test finds
PATIENCE: Final = 60.0  # seconds, for anything; an emulated processor is slow
NOBODY: Final = "nobody"

_BLUETOOTHD: Final = "/usr/libexec/bluetooth/bluetoothd"
_PID: Final = STATE / "bluetoothd.pid"
_POLICY: Final = Path("/etc/dbus-1/system.d/zz-headless-passkey.conf")
_ADAPTER: Final = "org.bluez.Adapter1"
_MANAGER: Final = "org.bluez.LEAdvertisingManager1"
_BUS: Final = "org.freedesktop.DBus"
_DENY: Final = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><policy user="{user}"><deny send_destination="org.bluez"/></policy></busconfig>
"""


class RefusedError(Exception):
    """A D-Bus call was answered with an error, whose name this is."""


class Guest:
    """The guest, by way of a D-Bus connection of its own."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._signalled = asyncio.Event()
        self._crashed = False
        bus.add_message_handler(self._note)

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["Guest"]:
        bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
        try:
            guest = cls(bus)
            for rule in ("type='signal',sender='org.bluez'", f"type='signal',sender='{_BUS}'"):
                await guest.call(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", "s", rule)
            yield guest
        finally:
            bus.disconnect()
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]

    @property
    def air(self) -> str:
        """The name of bumble's transport to a controller within earshot of the adapters."""
        return (STATE / "air").read_text().strip()

    # D-Bus

    async def call(
        self, name: str, path: str, interface: str, member: str, signature: str = "", *body: Any
    ) -> Any:
        """What a method returns first, without variants; `RefusedError` when it fails."""
        reply = await self._bus.call(
            Message(name, path, interface, member, signature=signature, body=list(body))
        )
        if reply.message_type is MessageType.ERROR:
            raise RefusedError(reply.error_name, *reply.body)
        return unpack_variants(reply.body[0]) if reply.body else None

    async def until(self, true: Callable[[], Awaitable[bool]]) -> None:
        """Wait for something in BlueZ to become true; `TimeoutError` when it does not."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self._signalled.clear()
                if await true():
                    return
                await self._signalled.wait()

    def _note(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL:
            self._signalled.set()

    async def match_rules(self) -> int:
        """How many rules all connections together have at the bus."""
        rules = await self.call(_BUS, "/org/freedesktop/DBus", f"{_BUS}.Debug.Stats", "GetAllMatchRules")
        return sum(len(each) for each in rules.values())

    async def connections(self) -> set[str]:
        """Everybody on the bus, by unique name."""
        names = await self.call(_BUS, "/org/freedesktop/DBus", _BUS, "ListNames")
        return {name for name in names if name.startswith(":")}

    # adapters

    async def objects(self) -> Mapping[str, Mapping[str, Any]]:
        """All that bluetoothd has, by path and interface."""
        found: Mapping[str, Mapping[str, Any]] = await self.call(
            "org.bluez", "/", f"{_BUS}.ObjectManager", "GetManagedObjects"
        )
        return found

    async def adapters(self) -> Mapping[str, Mapping[str, Any]]:
        """The properties of every adapter, by its name."""
        objects = await self.objects()
        return {path.rpartition("/")[2]: has[_ADAPTER] for path, has in objects.items() if _ADAPTER in has}

    async def advertising(self, adapter: str) -> int:
        """How many adverts bluetoothd sends over an adapter."""
        number: int = (await self.objects())[f"/org/bluez/{adapter}"][_MANAGER]["ActiveInstances"]
        return number

    async def power(self, adapter: str, on: bool) -> None:  # noqa: FBT001  it is one or the other
        await self.call(
            "org.bluez",
            f"/org/bluez/{adapter}",
            f"{_BUS}.Properties",
            "Set",
            "ssv",
            _ADAPTER,
            "Powered",
            Variant("b", on),
        )

    async def powered(self, adapter: str) -> bool:
        return bool((await self.adapters()).get(adapter, {}).get("Powered"))

    async def discovering(self, adapter: str) -> bool:
        return bool((await self.adapters()).get(adapter, {}).get("Discovering"))

    async def unplug(self, adapter: str) -> None:
        await order(f"unplug {adapter}")

        async def gone() -> bool:
            return adapter not in await self.adapters()

        await self.until(gone)

    async def plug(self) -> str:
        """Plug an adapter in, the one that is missing first; its name, when it is on."""
        adapter = await order("plug")

        async def there() -> bool:
            return adapter in await self.adapters()

        await self.until(there)
        await self.turn_on(adapter)
        return adapter

    async def turn_on(self, adapter: str) -> None:
        """bluetoothd turns adapters on by itself, and refuses meanwhile."""
        if not await self.powered(adapter):
            with contextlib.suppress(RefusedError):
                await self.power(adapter, on=True)

        async def on() -> bool:
            return await self.powered(adapter)

        await self.until(on)

    async def heard_at(self, adapter: str, rssi: int) -> None:
        """From now on what the adapter sends is heard at so many dBm."""
        await order(f"rssi {adapter} {rssi}")

    def block(self, adapter: str, *, blocked: bool = True) -> None:
        """As `rfkill block` does it."""
        (switch,) = [
            device
            for device in Path("/sys/class/rfkill").glob("rfkill*")
            if (device / "name").read_text().strip() == adapter
        ]
        (switch / "soft").write_text("1" if blocked else "0")

    async def forget(self) -> None:
        """Let bluetoothd forget every device it has heard."""
        for path, has in (await self.objects()).items():
            if "org.bluez.Device1" in has:
                with contextlib.suppress(RefusedError):  # forgotten meanwhile
                    await self.call("org.bluez", path.rpartition("/")[0], _ADAPTER, "RemoveDevice", "o", path)

    # bluetoothd

    @property
    def bluetoothd(self) -> int:
        """The process."""
        return int(_PID.read_text())

    @property
    def experimental(self) -> bool:
        return "--experimental" in Path(f"/proc/{self.bluetoothd}/cmdline").read_text()

    async def serving(self) -> bool:
        """Whether bluetoothd is on the bus."""
        return bool(await self.call(_BUS, "/org/freedesktop/DBus", _BUS, "NameHasOwner", "s", "org.bluez"))

    async def crash_service(self) -> None:
        """Kill bluetoothd. The kernel does not notice, and keeps scanning for some ten seconds if it was."""
        self._crashed = True
        await self.stop_service(signal.SIGKILL)

    async def stop_service(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End bluetoothd; returns when it is off the bus."""
        os.kill(self.bluetoothd, number)

        async def gone() -> bool:
            return not await self.serving()

        await self.until(gone)

    async def start_service(self, *, experimental: bool = False) -> None:
        """Start bluetoothd; returns when all adapters are there and on."""
        words = [_BLUETOOTHD, "--nodetach", *(["--experimental"] if experimental else [])]
        # through a shell that ends, so that it is nobody's child here
        log = STATE / "job" / "bluetoothd.log"
        command = f"{' '.join(words)} >>{log} 2>&1 </dev/null & echo $! >{_PID}"
        shell = await asyncio.create_subprocess_exec("/bin/sh", "-c", command)
        await shell.wait()
        await self.until(self.serving)
        plugged = (await order("list")).split()

        async def all_there() -> bool:
            return set(plugged) <= set(await self.adapters())

        await self.until(all_there)
        for adapter in plugged:
            await self.turn_on(adapter)

    @asynccontextmanager
    async def experiments(self) -> AsyncIterator[None]:
        """With bluetoothd's experimental interfaces, which takes two restarts unless it has them already."""
        if self.experimental:
            yield
            return
        await self.stop_service()
        await self.start_service(experimental=True)
        try:
            yield
        finally:
            await self.stop_service()
            await self.start_service()

    # permissions

    @asynccontextmanager
    async def denied(self, user: str = NOBODY) -> AsyncIterator[None]:
        """The bus lets `user` say nothing to bluetoothd."""
        _POLICY.write_text(_DENY.format(user=user))
        await self._reload()
        try:
            yield
        finally:
            _POLICY.unlink()
            await self._reload()

    async def _reload(self) -> None:
        await self.call(_BUS, "/org/freedesktop/DBus", _BUS, "ReloadConfig")

    # order in the house

    async def settle(self) -> None:
        """What goes by itself in a while goes now."""
        await self.forget()
        if self._crashed and await self.serving():
            for adapter in await self.adapters():
                await self.power(adapter, on=False)
                await self.turn_on(adapter)
            self._crashed = False

    async def amiss(self) -> Sequence[str]:
        """What is not as every test finds it."""
        if not await self.serving():
            return ["bluetoothd does not run"]
        wrong = []
        adapters = await self.adapters()
        if tuple(sorted(adapters)) != ADAPTERS:
            wrong.append(f"the adapters are {', '.join(sorted(adapters)) or 'none'}")
        for name, properties in adapters.items():
            if not properties["Powered"]:
                wrong.append(f"{name} is off")
            if properties["Discovering"]:
                wrong.append(f"{name} is scanning")
            if await self.advertising(name):
                wrong.append(f"{name} is advertising")
        return wrong

    async def restore(self) -> None:
        """Make it so."""
        if await self.serving():
            await self.stop_service()
        unblock()
        plugged = (await order("list")).split()
        for adapter in plugged:
            if adapter not in ADAPTERS:
                await order(f"unplug {adapter}")
        while len((await order("list")).split()) < len(ADAPTERS):
            await order("plug")
        await self.start_service()


def unblock() -> None:
    """As `rfkill unblock all` does it."""
    for switch in Path("/sys/class/rfkill").glob("rfkill*/soft"):
        switch.write_text("0")


async def order(words: str) -> str:
    """Have the program behind the adapters do something (see `tests.ble.lab.controllers`)."""
    reader, writer = await asyncio.open_unix_connection(STATE / "controllers")
    try:
        writer.write(f"{words}\n".encode())
        answer = (await reader.readline()).decode().strip()
    finally:
        writer.close()
        await writer.wait_closed()
    if answer.startswith("!"):
        raise ValueError(f"{words}: {answer}")
    return answer


class _Advertisement(ServiceInterface):
    """An advert that bluetoothd is asked to send, not connectable."""

    def __init__(self, uuid: str, service_data: bytes, *, with_list: bool) -> None:
        super().__init__("org.bluez.LEAdvertisement1")
        self._uuid, self._service_data, self._with_list = uuid, service_data, with_list

    @dbus_property(access=PropertyAccess.READ)
    def Type(self) -> "s":  # type: ignore[name-defined]  # noqa: F821, N802  D-Bus's signature and name
        return "broadcast"

    @dbus_property(access=PropertyAccess.READ)
    def ServiceUUIDs(self) -> "as":  # type: ignore[valid-type]  # noqa: F722, N802
        return [self._uuid] if self._with_list else []

    @dbus_property(access=PropertyAccess.READ)
    def ServiceData(self) -> "a{sv}":  # type: ignore[valid-type]  # noqa: F722, N802
        return {self._uuid: Variant("ay", self._service_data)}


@dataclass(frozen=True, kw_only=True)
class Phone:
    """Advertises over one of the adapters, under any UUID; an `Advertiser`."""

    adapter: str = ADAPTERS[0]
    uuid: int = 0xFFF9
    with_list: bool = True  # the UUID in a list of its own, before the service data

    @asynccontextmanager
    async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
        """`RefusedError` when bluetoothd does not want to."""
        uuid = f"0000{self.uuid:04x}-0000-1000-8000-00805f9b34fb"
        bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
        try:
            bus.export("/advert", _Advertisement(uuid, service_data, with_list=self.with_list))
            reply = await bus.call(
                Message(
                    "org.bluez",
                    f"/org/bluez/{self.adapter}",
                    _MANAGER,
                    "RegisterAdvertisement",
                    signature="oa{sv}",
                    body=["/advert", {}],
                )
            )
            if reply.message_type is MessageType.ERROR:
                raise RefusedError(reply.error_name, *reply.body)
            yield
        finally:
            bus.disconnect()
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]


def let_in() -> None:
    """Let everybody pass through the folders above Python and the checkout: on the guest's scratch layer alone."""
    for file in (Path(sys.executable), Path(sys.executable).resolve(), ROOT):
        for folder in file.parents:
            folder.chmod(folder.stat().st_mode | 0o011)


@asynccontextmanager
async def running_as(user: str, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Python with these arguments, by another user; killed when the context is left."""
    let_in()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        user=user,
        cwd=ROOT,
        env=os.environ | {"HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
