"""A Bluetooth service that is played on a private D-Bus, for bleak's own BlueZ code and for ours."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dbus_fast import Message, Variant
from dbus_fast.aio import MessageBus

MOCK = "org.freedesktop.DBus.Mock"
ADAPTER = "org.bluez.Adapter1"
PYTHON = "/usr/bin/python3"  # the one that Debian's python3-dbusmock is for
OFFERED = '{"enable_monitor_api": false}'  # newer templates have passive scans, too


class Bluetooth:
    """What the Bluetooth service says and is told."""

    def __init__(self, control: MessageBus) -> None:
        self._control = control

    async def call(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> Any:
        message = Message("org.bluez", path, interface, member, signature=signature, body=list(body))
        reply = await self._control.call(message)
        assert reply is not None
        assert not reply.error_name, f"{member}: {reply.error_name} {reply.body}"
        return reply.body[0] if reply.body else None

    async def add_adapter(self, name: str = "hci0", *, powered: bool = True, central: bool = True) -> str:
        """Plug an adapter in, with a property that older templates leave out, and newer ones have for both roles."""
        path = f"/org/bluez/{name}"
        await self.call("/", "org.bluez.Mock", "AddAdapter", "ss", name, "lab")
        roles = Variant("as", ["central", "peripheral"] if central else ["peripheral"])
        has = await self.call(path, "org.freedesktop.DBus.Properties", "GetAll", "s", ADAPTER)
        if "Roles" not in has:
            await self.call(path, MOCK, "AddProperty", "ssv", ADAPTER, "Roles", roles)
        changed = {"Powered": Variant("b", powered), "Roles": roles}
        await self.call(path, MOCK, "UpdateProperties", "sa{sv}", ADAPTER, changed)
        return path

    async def power(self, path: str, *, on: bool) -> None:
        """Turn an adapter on or off."""
        await self.call(path, MOCK, "UpdateProperties", "sa{sv}", ADAPTER, {"Powered": Variant("b", on)})

    async def unplug(self, path: str) -> None:
        """Pull an adapter out."""
        await self.call("/", MOCK, "RemoveObject", "s", path)
        removed = [Variant("o", path), Variant("as", [ADAPTER])]
        manager = "org.freedesktop.DBus.ObjectManager"
        await self.call("/", MOCK, "EmitSignal", "sssav", manager, "InterfacesRemoved", "oas", removed)

    async def refuse(self, path: str, member: str, error: str) -> None:
        """Let a method fail from now on."""
        code = f"raise dbus.exceptions.DBusException('no', name='{error}')"
        await self.call(path, MOCK, "AddMethod", "sssss", ADAPTER, member, "", "", code)

    async def advert(
        self, service_data: dict[str, bytes], *, number: int = 0, rssi: int = -60, adapter: str = "hci0"
    ) -> None:
        """What BlueZ signals when it hears a device for the first time."""
        address = f"C0:00:00:00:{number >> 8:02X}:{number & 0xFF:02X}"
        device = {
            "Adapter": Variant("o", f"/org/bluez/{adapter}"),
            "Address": Variant("s", address),
            "Alias": Variant("s", "phone"),
            "RSSI": Variant("n", rssi),
            "ServiceData": Variant(
                "a{sv}", {uuid: Variant("ay", data) for uuid, data in service_data.items()}
            ),
        }
        path = f"/org/bluez/{adapter}/dev_{address.replace(':', '_')}"
        await self.call(
            "/",
            MOCK,
            "EmitSignal",
            "sssav",
            "org.freedesktop.DBus.ObjectManager",
            "InterfacesAdded",
            "oa{sa{sv}}",
            [Variant("o", path), Variant("a{sa{sv}}", {"org.bluez.Device1": device})],
        )

    async def discovering(self, path: str) -> bool:
        value = await self.call(path, "org.freedesktop.DBus.Properties", "Get", "ss", ADAPTER, "Discovering")
        assert isinstance(value, Variant)
        return bool(value.value)


@contextlib.asynccontextmanager
async def program(
    *words: str, environment: dict[str, str] | None = None
) -> AsyncIterator[asyncio.StreamReader]:
    process = await asyncio.create_subprocess_exec(
        *words,
        env=os.environ | (environment or {}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def bluetooth_service(bus: MessageBus) -> AsyncIterator[Bluetooth]:
    """A Bluetooth service without adapters, on `bus` until the context is left."""
    appeared = asyncio.Event()

    def watch(message: Message) -> None:
        if message.member == "NameOwnerChanged" and message.body[0] == "org.bluez" and message.body[2]:
            appeared.set()

    bus.add_message_handler(watch)
    rule = "type='signal',member='NameOwnerChanged',arg0='org.bluez'"
    dbus = "org.freedesktop.DBus"
    await bus.call(Message(dbus, "/org/freedesktop/DBus", dbus, "AddMatch", signature="s", body=[rule]))
    async with program(PYTHON, "-m", "dbusmock", "--system", "--template", "bluez5", "--parameters", OFFERED):
        try:
            async with asyncio.timeout(60):
                await appeared.wait()
        except TimeoutError:
            pytest.fail("python3-dbusmock does not start: run scripts/install-test-packages")
        yield Bluetooth(bus)
    bus.remove_message_handler(watch)
