"""The system's radio: bleak's own BlueZ code against a Bluetooth service that is played on a private D-Bus."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import Message, Variant
from dbus_fast.aio import MessageBus

from headless_passkey.errors import TransportError
from headless_passkey.radio.bleak import BleakRadio
from headless_passkey.radio.inbox import SIZE

FFF9 = "0000fff9-0000-1000-8000-00805f9b34fb"
FDE2 = "0000fde2-0000-1000-8000-00805f9b34fb"
MOCK = "org.freedesktop.DBus.Mock"
ADAPTER = "org.bluez.Adapter1"
PYTHON = "/usr/bin/python3"  # the one that Debian's python3-dbusmock is for


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
        """Plug an adapter in, with the properties that the template leaves out."""
        path = f"/org/bluez/{name}"
        await self.call("/", "org.bluez.Mock", "AddAdapter", "ss", name, "lab")
        roles = Variant("as", ["central", "peripheral"] if central else ["peripheral"])
        await self.call(path, MOCK, "AddProperty", "ssv", ADAPTER, "Roles", roles)
        await self.call(path, MOCK, "UpdateProperties", "sa{sv}", ADAPTER, {"Powered": Variant("b", powered)})
        return path

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


@pytest.fixture
async def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MessageBus]:
    """A private D-Bus that bleak takes for the system's, with nobody on it."""
    if shutil.which("dbus-daemon") is None:
        pytest.fail("dbus-daemon is missing: run scripts/install-test-packages")
    words = ("dbus-daemon", "--session", "--nofork", "--print-address", f"--address=unix:path={tmp_path}/bus")
    async with program(*words) as stdout:
        address = (await stdout.readline()).decode().strip()
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        control = await MessageBus(bus_address=address).connect()
        try:
            yield control
        finally:
            control.disconnect()
            await control.wait_for_disconnect()  # type: ignore[no-untyped-call]


@pytest.fixture
async def bluetooth(bus: MessageBus) -> AsyncIterator[Bluetooth]:
    """A Bluetooth service without adapters."""
    appeared = asyncio.Event()

    def watch(message: Message) -> None:
        if message.member == "NameOwnerChanged" and message.body[0] == "org.bluez":
            appeared.set()

    bus.add_message_handler(watch)
    rule = "type='signal',member='NameOwnerChanged',arg0='org.bluez'"
    dbus = "org.freedesktop.DBus"
    await bus.call(Message(dbus, "/org/freedesktop/DBus", dbus, "AddMatch", signature="s", body=[rule]))
    async with program(PYTHON, "-m", "dbusmock", "--system", "--template", "bluez5"):
        try:
            async with asyncio.timeout(20):
                await appeared.wait()
        except TimeoutError:
            pytest.fail("python3-dbusmock does not start: run scripts/install-test-packages")
        yield Bluetooth(bus)
    bus.remove_message_handler(watch)


@pytest.mark.parametrize("uuid", [FFF9, FDE2])
async def test_an_advert_is_heard_under_either_uuid(bluetooth: Bluetooth, uuid: str) -> None:
    await bluetooth.add_adapter()
    sent = bytes(range(20))
    async with BleakRadio().adverts() as adverts:
        await bluetooth.advert({uuid: sent})
        async with asyncio.timeout(10):
            advert = await anext(adverts)
    assert (advert.service_data, advert.address, advert.rssi) == (sent, "C0:00:00:00:00:00", -60)


async def test_service_data_of_other_services_is_not_an_advert(bluetooth: Bluetooth) -> None:
    await bluetooth.add_adapter()
    other = "0000fef3-0000-1000-8000-00805f9b34fb"
    async with BleakRadio().adverts() as adverts:
        await bluetooth.advert({other: bytes(20)}, number=1)
        await bluetooth.advert({other: bytes(20), FFF9: b"x" * 24}, number=2, rssi=-127)
        async with asyncio.timeout(10):
            advert = await anext(adverts)
    assert (advert.service_data, advert.rssi) == (b"x" * 24, None)


async def test_scanning_starts_without_a_filter_for_uuids_and_stops_on_leaving(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter()
    async with BleakRadio().adverts():
        assert await bluetooth.discovering(path)
        calls = await bluetooth.call(path, MOCK, "GetMethodCalls", "s", "SetDiscoveryFilter")
        assert [sorted(filters.value) for _, (filters,) in calls] == [["DuplicateData", "Transport"]]
    assert not await bluetooth.discovering(path)


async def test_scanning_stops_when_the_listener_is_cancelled(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter()
    scanning = asyncio.Event()

    async def listen() -> None:
        async with BleakRadio().adverts() as adverts:
            scanning.set()
            await anext(adverts)

    task = asyncio.create_task(listen())
    await scanning.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not await bluetooth.discovering(path)


async def test_an_adapter_can_be_named(bluetooth: Bluetooth) -> None:
    first, second = await bluetooth.add_adapter("hci0"), await bluetooth.add_adapter("hci1")
    async with BleakRadio(adapter="hci1").adverts() as adverts:
        assert not await bluetooth.discovering(first)
        assert await bluetooth.discovering(second)
        await bluetooth.advert({FFF9: b"a" * 20}, number=1, adapter="hci0")
        await bluetooth.advert({FFF9: b"b" * 20}, number=2, adapter="hci1")
        async with asyncio.timeout(10):
            assert (await anext(adverts)).service_data == b"b" * 20


@pytest.mark.threat("T12")
async def test_a_flood_leaves_the_newest_adverts(bluetooth: Bluetooth) -> None:
    await bluetooth.add_adapter()
    count = SIZE + 20
    async with BleakRadio().adverts() as adverts:
        for number in range(count):
            await bluetooth.advert({FFF9: number.to_bytes(20, "big")}, number=number)
        async with asyncio.timeout(10):
            numbers = [int.from_bytes((await anext(adverts)).service_data, "big") for _ in range(SIZE)]
    assert numbers == list(range(count - SIZE, count))


async def failure(radio: BleakRadio) -> str:
    with pytest.raises(TransportError) as failed:
        async with radio.adverts():
            pass
    return str(failed.value)


async def test_without_an_adapter_it_says_so(bluetooth: Bluetooth) -> None:
    assert "no Bluetooth adapter" in await failure(BleakRadio())
    assert "no Bluetooth adapter hci7" in await failure(BleakRadio(adapter="hci7"))


async def test_an_adapter_that_is_off_is_named_as_such(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter(powered=False)
    assert "Bluetooth is off" in await failure(BleakRadio())
    await bluetooth.refuse(path, "StartDiscovery", "org.bluez.Error.NotReady")
    assert "Bluetooth is off" in await failure(BleakRadio(adapter="hci0"))


async def test_an_adapter_without_the_central_role_is_named_as_such(bluetooth: Bluetooth) -> None:
    await bluetooth.add_adapter(central=False)
    assert "cannot listen" in await failure(BleakRadio())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("org.freedesktop.DBus.Error.AccessDenied", "may not use Bluetooth"),
        ("org.bluez.Error.NotAuthorized", "may not use Bluetooth"),
        ("org.bluez.Error.InProgress", "refused to scan (org.bluez.Error.InProgress)"),
        ("org.bluez.Error.Failed", "refused to scan (org.bluez.Error.Failed)"),
    ],
)
async def test_what_the_service_refuses_is_told(bluetooth: Bluetooth, error: str, words: str) -> None:
    path = await bluetooth.add_adapter()
    await bluetooth.refuse(path, "StartDiscovery", error)
    assert words in await failure(BleakRadio())


async def test_without_a_bluetooth_service_it_says_so(bus: MessageBus) -> None:
    assert "service does not run" in await failure(BleakRadio())


@pytest.mark.parametrize("address", ["unix:path=/nonexistent/bus", "nonsense"])
async def test_without_a_d_bus_it_says_so(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    assert "Bluetooth" in await failure(BleakRadio())
