"""What an advert costs on its way through bleak and this project, against the D-Bus signal that carries it.

    make bench                                          with the other benchmarks
    PYTHONPATH=examples python benchmarks/radio.py      measure and print

It measures two things, each in turns with a baseline:

- How long after a phone begins to advertise does the device have the advert? In the guest of `make ble-test`, over
  real BlueZ. The guest's processor is usually emulated, so the ratio says more than the times.
- What does a foreign advert cost? There are many more of these. On this machine's processor, from a simulated
  bluetoothd on a private bus: processor time of the listener, from the signal until the advert is known as
  not ours.
"""

import argparse
import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from statistics import median
from typing import Final

import core
from dbus_fast import BusType, Message, MessageType, PropertyAccess, Variant
from dbus_fast.aio import MessageBus
from dbus_fast.service import ServiceInterface, dbus_method, dbus_property
from measure import HEADINGS, Row, shown, table

from companion_push.companion.advertiser.bluez import BluezAdvertiser
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.radio.bleak import BleakRadio
from headless_passkey.radio.bluez import open_bluez
from headless_passkey.radio.source import Advert

HEADING: Final = "# What an advert costs on the device"
FFF9: Final = "0000fff9-0000-1000-8000-00805f9b34fb"
OTHER: Final = "0000feaa-0000-1000-8000-00805f9b34fb"  # the UUID of adverts that are common everywhere
NOW: Final = 1_790_000_000
ADAPTER: Final = "/org/bluez/hci0"
SENDER, LISTENER = "hci0", "hci1"  # in the guest
TURNS: Final = 12
ADVERTS: Final = 5  # in one turn, in the guest
SIGNALS: Final = 1500  # in one turn, on the private bus
PAUSE: Final = 0.0005  # seconds between signals: they come one by one, as over the air
PATIENCE: Final = 60.0
STRANGERS: Final = 20
STRANGER_INTERVAL: Final = 20.0  # milliseconds
FLOOD: Final = 10.0  # seconds

_KINDS: Final = {
    "new": "of another service, a device heard for the first time",
    "again": "of another service, a device whose signal strength has changed",
    "fido": "of another device's phone, heard for the first time",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what an advert costs.")
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/RESULTS.md")
    parser.add_argument("--part", choices=("guest", "bluetoothd"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "guest":
        print(json.dumps(asyncio.run(latencies()) | {"flood": asyncio.run(flood())}))
        return
    if args.part == "bluetoothd":
        asyncio.run(play_bluetoothd())
        return
    page = "\n".join(_page(asyncio.run(costs()), *in_guest())) + "\n"
    print(page)
    if args.write:
        core.put_section(HEADING, page)


def _page(rows: list[Row], latency: Row | None, said: str) -> list[str]:
    return [
        HEADING,
        "",
        core.made(),
        "",
        table(HEADINGS[:-1], [row.cells[:-1] for row in ([latency] if latency else []) + rows]),
        "",
        said,
        "",
        "The first row is time from asking bluetoothd for an advert on one adapter until the advert is there, in the guest of `make ble-test`: with",
        "`BleakRadio`, and as a signal on a bare D-Bus connection that scans itself. The others are processor time of the listener for an advert",
        "that is not ours, from a bluetoothd that is played on a private bus: `BleakRadio` and one key, and dbus-fast alone with the same match rules.",
    ]


def _environment() -> dict[str, str]:
    """The environment for a second process of this program, so that it finds the same modules."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(core.ROOT), *sys.path])}


# Latency, in the guest


def in_guest() -> tuple[Row | None, str]:
    """The row of the guest and the effect of a stranger's adverts there; or no row, and the reason."""
    command = [str(core.ROOT / "scripts" / "ble-test"), "--", sys.executable, __file__, "--part", "guest"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=_environment())
    if done.returncode == 77:
        return None, f"From advert to device: {done.stdout.strip().splitlines()[-1]}."
    if done.returncode:
        sys.exit(f"the guest ended with {done.returncode}: {done.stderr}")
    times = json.loads(done.stdout.splitlines()[-1])
    turns = list(zip(times["radio"], times["signal"], strict=True))
    row = Row(
        what="advert to `BleakRadio`, in the guest",
        seconds=median(one for turn in times["radio"] for one in turn),
        against="advert to D-Bus signal",
        baseline=median(one for turn in times["signal"] for one in turn),
        ratio=median(median(ours) / median(theirs) for ours, theirs in turns),
    )
    flooded, offered = times["flood"], STRANGERS * 1000 / STRANGER_INTERVAL
    return row, (
        f"A stranger in the guest is set to advertise from {STRANGERS} addresses every {STRANGER_INTERVAL:g} ms, {offered:.0f} times a second, which emulated"
        f" controllers may not reach;\n{flooded['accepted']:.0f} a second get to the radio. A phone that begins meanwhile is heard after"
        f" {shown(median(flooded['during']))}, one that begins when the stranger has gone after {shown(median(flooded['after']))}."
    )


async def latencies() -> dict[str, list[list[float]]]:
    """Seconds from asking for an advert until it was received; a list for every turn."""
    times: dict[str, list[list[float]]] = {"radio": [], "signal": []}
    listeners = {"radio": through_radio, "signal": as_signal}
    for turn in range(TURNS):
        for name in sorted(listeners, reverse=bool(turn % 2)):
            async with listeners[name]() as hears:
                times[name].append([await _latency(hears) for _ in range(ADVERTS)])
            await _idle()
    return times


async def flood() -> dict[str, float | list[float]]:
    """A stranger advertises without end: how many of its adverts the radio gets a second, and when a phone is heard."""
    from tests.ble.lab.guest import STATE  # noqa: PLC0415  exists in the guest only
    from tests.ble.lab.rubbish import broadcasting, service_data  # noqa: PLC0415

    air = (STATE / "air").read_text().strip()
    strangers = [service_data(secrets.token_bytes(20)) for _ in range(STRANGERS)]
    accepted = 0
    during: list[float] = []
    wanted: dict[bytes, asyncio.Future[None]] = {}

    async def listen(adverts: AsyncIterator[Advert]) -> None:
        nonlocal accepted
        async for advert in adverts:
            accepted += 1
            if advert.service_data in wanted:
                wanted.pop(advert.service_data).set_result(None)

    async def hears(service_data: bytes) -> None:
        await wanted.setdefault(service_data, asyncio.get_running_loop().create_future())

    async with BleakRadio(adapter=LISTENER).adverts() as adverts:
        listening = asyncio.create_task(listen(adverts))
        async with broadcasting(air, strangers, interval=STRANGER_INTERVAL):
            began, accepted = time.monotonic(), 0
            while time.monotonic() - began < FLOOD:
                during.append(await _latency(hears))
            rate = accepted / (time.monotonic() - began)
        after = [await _latency(hears) for _ in range(ADVERTS)]
        listening.cancel()
    return {"accepted": rate, "during": during, "after": after}


async def _idle() -> None:
    """Wait until nobody scans: a scan that begins while another is being stopped may receive nothing."""
    async with asyncio.timeout(PATIENCE), open_bluez() as service:
        path, get = f"/org/bluez/{LISTENER}", ("org.freedesktop.DBus.Properties", "Get")
        while await service.call(path, *get, "ss", "org.bluez.Adapter1", "Discovering"):  # noqa: ASYNC110  another process knows
            await asyncio.sleep(0.05)


Hears = Callable[[bytes], Awaitable[None]]


async def _latency(hears: Hears) -> float:
    service_data = secrets.token_bytes(20)
    began = time.monotonic()
    heard = asyncio.ensure_future(hears(service_data))
    async with asyncio.timeout(PATIENCE), BluezAdvertiser(SENDER).advertise(service_data):
        await heard
        return time.monotonic() - began


@asynccontextmanager
async def through_radio() -> AsyncIterator[Hears]:
    async with BleakRadio(adapter=LISTENER).adverts() as adverts:

        async def hears(service_data: bytes) -> None:
            while (await anext(adverts)).service_data != service_data:
                pass

        yield hears


@asynccontextmanager
async def as_signal() -> AsyncIterator[Hears]:
    wanted: dict[bytes, asyncio.Future[None]] = {}

    def look(message: Message) -> None:
        match message.member, message.body:
            case "InterfacesAdded", [_, {"org.bluez.Device1": properties}]:
                pass
            case "PropertiesChanged", ["org.bluez.Device1", properties, *_]:
                pass
            case _:
                return
        found = properties["ServiceData"].value.get(FFF9) if "ServiceData" in properties else None
        future = None if found is None else wanted.get(bytes(found.value))
        if future is not None and not future.done():
            future.set_result(None)

    async def hears(service_data: bytes) -> None:
        await wanted.setdefault(service_data, asyncio.get_running_loop().create_future())

    async with listening(look) as bus:
        adapter = ("org.bluez", f"/org/bluez/{LISTENER}", "org.bluez.Adapter1")
        filters = {"Transport": Variant("s", "le"), "DuplicateData": Variant("b", False)}
        await called(bus, Message(*adapter, "SetDiscoveryFilter", signature="a{sv}", body=[filters]))
        await called(bus, Message(*adapter, "StartDiscovery"))
        yield hears


# Processor time, on a private bus


async def costs() -> list[Row]:
    """A row for every kind of foreign advert."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "dbus-daemon",
            "--session",
            "--nofork",
            "--print-address",
            f"--address=unix:path={folder}/bus",
        ]
        daemon = await asyncio.create_subprocess_exec(
            *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        assert daemon.stdout is not None
        os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = (await daemon.stdout.readline()).decode().strip()
        try:
            bluetoothd = await asyncio.create_subprocess_exec(
                *(sys.executable, __file__, "--part", "bluetoothd"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=_environment(),
            )
            assert bluetoothd.stdout is not None
            assert await bluetoothd.stdout.readline() == b"ready\n"
            try:
                return [await _cost(bluetoothd, kind) for kind in _KINDS]
            finally:
                bluetoothd.terminate()
                await bluetoothd.wait()
        finally:
            del os.environ["DBUS_SYSTEM_BUS_ADDRESS"]
            daemon.terminate()
            await daemon.wait()


async def _cost(bluetoothd: asyncio.subprocess.Process, kind: str) -> Row:
    pairs = []
    for turn in range(TURNS):
        first = await (ours if turn % 2 else bare)(bluetoothd, kind)
        second = await (bare if turn % 2 else ours)(bluetoothd, kind)
        pairs.append((first, second) if turn % 2 else (second, first))
    return Row.of_pairs(f"advert {_KINDS[kind]}", "dbus-fast alone", pairs)


async def ours(bluetoothd: asyncio.subprocess.Process, kind: str) -> float:
    """Processor seconds of this process for one signal, with the radio and a key that opens no advert."""
    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=NOW)
    async with BleakRadio().adverts() as adverts:
        last = send(bluetoothd, kind)
        began = time.process_time()
        async for advert in adverts:
            if advert.service_data == last:
                break
            assert transaction.open_advert(advert.service_data) is None
        return (time.process_time() - began) / SIGNALS


async def bare(bluetoothd: asyncio.subprocess.Process, kind: str) -> float:
    """Processor seconds of this process for one signal, with only a D-Bus connection."""
    done = asyncio.Event()

    def look(message: Message) -> None:
        if message.member == "InterfacesAdded" and message.path == "/last":
            done.set()

    async with listening(look):
        send(bluetoothd, kind)
        began = time.process_time()
        await done.wait()
        return (time.process_time() - began) / SIGNALS


def send(bluetoothd: asyncio.subprocess.Process, kind: str) -> bytes:
    """Have the signals sent; return the service data of the last one, which is of another kind."""
    last = secrets.token_bytes(20)
    assert bluetoothd.stdin is not None
    bluetoothd.stdin.write(f"{kind} {SIGNALS} {last.hex()}\n".encode())
    return last


async def play_bluetoothd() -> None:
    """A simulated bluetoothd with one adapter. Stdin says what to signal: kind, number and last advert."""
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    bus.export(ADAPTER, _Adapter())
    await bus.request_name("org.bluez")
    print("ready", flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    turn = 0
    while line := await reader.readline():
        kind, number, last = line.decode().split()
        turn += 1
        known = f"{ADAPTER}/dev_known_{turn}"
        if kind == "again":
            await bus.send(_heard(known, OTHER, bytes(20)))
        for count in range(int(number)):
            if kind == "again":
                await bus.send(_changed(known, -60 - count % 2 * 10))
            else:
                uuid = FFF9 if kind == "fido" else OTHER
                await bus.send(_heard(f"{ADAPTER}/dev_{turn}_{count}", uuid, secrets.token_bytes(20)))
            await asyncio.sleep(PAUSE)
        await bus.send(_heard(f"{ADAPTER}/dev_last_{turn}", FFF9, bytes.fromhex(last)))
        await bus.send(_heard(f"{ADAPTER}/dev_end_{turn}", OTHER, b"", sent_from="/last"))


def _heard(path: str, uuid: str, service_data: bytes, *, sent_from: str = "/") -> Message:
    """The signal that BlueZ sends when it hears a device for the first time."""
    properties = {
        "Address": Variant("s", "C0:00:00:00:00:01"),
        "AddressType": Variant("s", "random"),
        "Alias": Variant("s", "C0-00-00-00-00-01"),
        "Paired": Variant("b", False),
        "Bonded": Variant("b", False),
        "Trusted": Variant("b", False),
        "Blocked": Variant("b", False),
        "LegacyPairing": Variant("b", False),
        "RSSI": Variant("n", -60),
        "Connected": Variant("b", False),
        "UUIDs": Variant("as", [uuid]),
        "Adapter": Variant("o", ADAPTER),
        "ServiceData": Variant("a{sv}", {uuid: Variant("ay", service_data)}),
        "ServicesResolved": Variant("b", False),
    }
    body = [path, {"org.bluez.Device1": properties}]
    interface = "org.freedesktop.DBus.ObjectManager"
    return Message.new_signal(sent_from, interface, "InterfacesAdded", "oa{sa{sv}}", body)


def _changed(path: str, rssi: int) -> Message:
    """The signal that BlueZ sends when it hears a device at another strength."""
    body = ["org.bluez.Device1", {"RSSI": Variant("n", rssi)}, []]
    interface = "org.freedesktop.DBus.Properties"
    return Message.new_signal(path, interface, "PropertiesChanged", "sa{sv}as", body)


class _Adapter(ServiceInterface):
    def __init__(self) -> None:
        super().__init__("org.bluez.Adapter1")

    @dbus_property(access=PropertyAccess.READ)
    def Powered(self) -> "b":  # type: ignore[name-defined]  # noqa: F821, N802  D-Bus's signature and name
        return True

    @dbus_property(access=PropertyAccess.READ)
    def Roles(self) -> "as":  # type: ignore[valid-type]  # noqa: F722, N802
        return ["central", "peripheral"]

    @dbus_method()
    def SetDiscoveryFilter(self, filters: "a{sv}") -> None:  # type: ignore[valid-type]  # noqa: F722, N802
        pass

    @dbus_method()
    def StartDiscovery(self) -> None:  # noqa: N802
        pass

    @dbus_method()
    def StopDiscovery(self) -> None:  # noqa: N802
        pass


# D-Bus


@asynccontextmanager
async def listening(look: Callable[[Message], None]) -> AsyncIterator[MessageBus]:
    """A connection that gets the same signals as bleak."""
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    try:
        bus.add_message_handler(look)
        for rule in (
            "type='signal',interface='org.freedesktop.DBus.ObjectManager',member='InterfacesAdded',arg0path='/org/bluez/'",
            "type='signal',interface='org.freedesktop.DBus.ObjectManager',member='InterfacesRemoved',arg0path='/org/bluez/'",
            "type='signal',interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',path_namespace='/org/bluez'",
        ):
            name = "org.freedesktop.DBus"
            call = Message(name, "/org/freedesktop/DBus", name, "AddMatch", signature="s", body=[rule])
            await called(bus, call)
        yield bus
    finally:
        bus.disconnect()
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]


async def called(bus: MessageBus, call: Message) -> None:
    reply = await bus.call(call)
    assert reply.message_type is MessageType.METHOD_RETURN, (call.member, reply.error_name)


if __name__ == "__main__":
    main()
