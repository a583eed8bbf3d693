"""The system's radio: bleak's own BlueZ code against a Bluetooth service that is played on a private D-Bus."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from dbus_fast import Message, Variant
from dbus_fast.aio import MessageBus

from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.mends import MENDS, mend
from headless_passkey.process.private_file import this_user
from headless_passkey.radio import bluez
from headless_passkey.radio.bleak import BleakRadio
from headless_passkey.radio.inbox import SIZE
from tests.device.bluetooth import ADAPTER, MOCK, Bluetooth, bluetooth_service

FFF9 = "0000fff9-0000-1000-8000-00805f9b34fb"
FDE2 = "0000fde2-0000-1000-8000-00805f9b34fb"


@pytest.mark.parametrize("uuid", [FFF9, FDE2])
async def test_an_advert_is_heard_under_either_uuid(bluetooth: Bluetooth, uuid: str) -> None:
    await bluetooth.add_adapter()
    sent = bytes(range(20))
    async with BleakRadio().adverts() as adverts:
        await bluetooth.advert({uuid: sent})
        async with asyncio.timeout(60):
            advert = await anext(adverts)
    assert (advert.service_data, advert.address, advert.rssi) == (sent, "C0:00:00:00:00:00", -60)


async def test_service_data_of_other_services_is_not_an_advert(bluetooth: Bluetooth) -> None:
    await bluetooth.add_adapter()
    other = "0000fef3-0000-1000-8000-00805f9b34fb"
    async with BleakRadio().adverts() as adverts:
        await bluetooth.advert({other: bytes(20)}, number=1)
        await bluetooth.advert({other: bytes(20), FFF9: b"x" * 24}, number=2, rssi=-127)
        async with asyncio.timeout(60):
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
        async with asyncio.timeout(60):
            assert (await anext(adverts)).service_data == b"b" * 20


@pytest.mark.threat("T12")
async def test_a_flood_leaves_the_newest_adverts(bluetooth: Bluetooth) -> None:
    await bluetooth.add_adapter()
    count = SIZE + 20
    async with BleakRadio().adverts() as adverts:
        for number in range(count):
            await bluetooth.advert({FFF9: number.to_bytes(20, "big")}, number=number)
        async with asyncio.timeout(60):
            numbers = [int.from_bytes((await anext(adverts)).service_data, "big") for _ in range(SIZE)]
    assert numbers == list(range(count - SIZE, count))


async def condition(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(60):
        while not await holds():  # noqa: ASYNC110  it is another process that it holds in
            await asyncio.sleep(0.01)


async def test_the_scan_goes_on_when_the_adapter_is_turned_on_again(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter()
    async with BleakRadio().adverts() as adverts:
        await bluetooth.power(path, on=False)

        async def stopped() -> bool:
            return not await bluetooth.discovering(path)

        await condition(stopped)
        await bluetooth.power(path, on=True)
        await condition(lambda: bluetooth.discovering(path))
        await bluetooth.advert({FFF9: b"a" * 20})
        async with asyncio.timeout(60):
            assert (await anext(adverts)).service_data == b"a" * 20


async def test_who_is_told_of_a_loss_is_told_of_its_end(
    bluetooth: Bluetooth, caplog: pytest.LogCaptureFixture
) -> None:
    path = await bluetooth.add_adapter()

    def told() -> list[str]:
        return [one.message for one in caplog.records if one.levelno >= logging.WARNING]

    async def lost() -> bool:
        return bool(told())

    async def back() -> bool:
        return len(told()) > 1

    async with BleakRadio().adverts():
        await bluetooth.power(path, on=False)
        await condition(lost)
        await bluetooth.power(path, on=True)
        await condition(back)
    why = f"Bluetooth is off: {mend(TransportReason.ADAPTER_OFF)}"
    assert told() == [f"stopped listening: {why}", "listening again"]


async def test_other_programs_cannot_pretend_that_the_radio_is_lost(
    bluetooth: Bluetooth, bus: MessageBus, caplog: pytest.LogCaptureFixture
) -> None:
    """The bus lets everybody send a signal to one connection, whoever it claims to be about."""
    path = await bluetooth.add_adapter()
    dbus, properties = "org.freedesktop.DBus", "org.freedesktop.DBus.Properties"
    pretences = [
        Message.new_signal(path, properties, "PropertiesChanged", signature, [ADAPTER, {"Powered": off}, []])
        for signature, off in (("sa{sv}as", Variant("b", False)), ("sa{ss}as", "no"))
    ]
    ended = ["org.bluez", ":1.1", ""]
    pretences.append(Message.new_signal("/org/freedesktop/DBus", dbus, "NameOwnerChanged", "sss", ended))
    async with bluez.open_bluez() as service:
        (adapter,) = await service.adapters()
        lost = await service.watch(adapter)
        for pretence in pretences:
            pretence.destination = service._bus.unique_name
            await bus.send(pretence)
        await bus.call(Message(dbus, "/org/freedesktop/DBus", dbus, "GetId"))  # they have been passed on
        await service.adapters()  # and have arrived
        assert not lost.done()
        assert not caplog.records
        await bluetooth.power(path, on=False)
        await lost


async def test_an_adapter_that_stays_off_ends_the_scan(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter()
    async with BleakRadio(patience=0).adverts() as adverts:
        await bluetooth.advert({FFF9: b"a" * 20})
        await bluetooth.power(path, on=False)
        async with asyncio.timeout(60):
            assert (await anext(adverts)).service_data == b"a" * 20, "what was heard before is not lost"
            with pytest.raises(TransportError, match="Bluetooth is off") as lost:
                await anext(adverts)
    assert lost.value.reason is TransportReason.ADAPTER_OFF


async def test_an_adapter_that_is_pulled_out_ends_the_scan(bluetooth: Bluetooth) -> None:
    await bluetooth.add_adapter("hci0")
    path = await bluetooth.add_adapter("hci1")
    async with BleakRadio(adapter="hci1", patience=0).adverts() as adverts:
        await bluetooth.unplug(path)
        async with asyncio.timeout(60):
            with pytest.raises(TransportError, match="no Bluetooth adapter hci1") as lost:
                await anext(adverts)
    assert lost.value.reason is TransportReason.NO_ADAPTER


async def test_the_scan_goes_on_over_another_adapter_when_none_was_named(bluetooth: Bluetooth) -> None:
    first, second = await bluetooth.add_adapter("hci0"), await bluetooth.add_adapter("hci1")
    async with BleakRadio().adverts():
        assert await bluetooth.discovering(first)
        await bluetooth.unplug(first)
        await condition(lambda: bluetooth.discovering(second))


async def test_a_bluetooth_service_that_dies_and_stays_away_ends_the_scan(bus: MessageBus) -> None:
    async with AsyncExitStack() as stack:
        async with bluetooth_service(bus) as bluetooth:
            await bluetooth.add_adapter()
            adverts = await stack.enter_async_context(BleakRadio(patience=0).adverts())
        async with asyncio.timeout(60):
            with pytest.raises(TransportError, match="service does not run") as lost:
                await anext(adverts)
    assert lost.value.reason is TransportReason.NO_BLUETOOTH_SERVICE


async def test_the_scan_goes_on_when_the_bluetooth_service_is_restarted(bus: MessageBus) -> None:
    async with AsyncExitStack() as stack:
        async with bluetooth_service(bus) as bluetooth:
            await bluetooth.add_adapter()
            adverts = await stack.enter_async_context(BleakRadio().adverts())
        async with bluetooth_service(bus) as bluetooth:
            path = await bluetooth.add_adapter()
            await condition(lambda: bluetooth.discovering(path))
            await bluetooth.advert({FFF9: b"a" * 20})
            async with asyncio.timeout(60):
                assert (await anext(adverts)).service_data == b"a" * 20


async def test_a_scan_that_hears_nobody_at_all_is_begun_anew(
    bluetooth: Bluetooth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headless_passkey.radio.bleak.SILENCE", 0.05)
    path = await bluetooth.add_adapter()

    async def begun_again() -> bool:
        return len(await bluetooth.call(path, MOCK, "GetMethodCalls", "s", "StartDiscovery")) > 3

    async with BleakRadio().adverts() as adverts:
        await condition(begun_again)
        monkeypatch.setattr("headless_passkey.radio.bleak.SILENCE", 60)
        await condition(lambda: bluetooth.discovering(path))
        await bluetooth.advert({FFF9: b"a" * 20})
        async with asyncio.timeout(60):
            assert (await anext(adverts)).service_data == b"a" * 20
    assert not await bluetooth.discovering(path)


async def test_several_may_listen_at_a_time_and_the_last_one_ends_the_scan(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter()
    async with BleakRadio().adverts() as first:
        async with BleakRadio().adverts() as second:
            await bluetooth.advert({FFF9: b"a" * 20})
            async with asyncio.timeout(60):
                heard = [(await anext(adverts)).service_data for adverts in (first, second)]
        assert heard == [b"a" * 20] * 2
        assert await bluetooth.discovering(path)
    assert not await bluetooth.discovering(path)
    calls = await bluetooth.call(path, MOCK, "GetMethodCalls", "s", "StartDiscovery")
    assert len(calls) == 1


async def test_a_failure_is_told_to_all_who_listen(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter()
    async with BleakRadio(patience=0).adverts() as first, BleakRadio(patience=0).adverts() as second:
        await bluetooth.power(path, on=False)
        for adverts in (first, second):
            async with asyncio.timeout(60):
                with pytest.raises(TransportError):
                    await anext(adverts)


async def test_cancelling_and_starting_again_at_once_is_safe(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter()

    async def listen() -> None:
        async with BleakRadio().adverts() as adverts:
            await anext(adverts)

    listeners: list[asyncio.Task[None]] = []
    for turns in range(30):  # of the event loop, so that they are caught in different places
        listeners.append(asyncio.create_task(listen()))
        for _ in range(turns):
            await asyncio.sleep(0)
        listeners[-1].cancel()
    async with BleakRadio().adverts() as adverts:
        assert await bluetooth.discovering(path)
        await bluetooth.advert({FFF9: b"a" * 20})
        async with asyncio.timeout(60):
            assert (await anext(adverts)).service_data == b"a" * 20
    await asyncio.wait(listeners)
    assert all(listener.cancelled() for listener in listeners)
    assert not await bluetooth.discovering(path)


async def test_who_leaves_does_not_wait_until_others_have_begun_to_listen(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter()
    await bluetooth.refuse(path, "StartDiscovery", "org.bluez.Error.InProgress")

    async def asked() -> bool:
        return bool(await bluetooth.call(path, MOCK, "GetMethodCalls", "s", "StartDiscovery"))

    async def listen() -> None:
        async with BleakRadio().adverts() as adverts:
            await anext(adverts)

    leaving, staying = asyncio.create_task(listen()), asyncio.create_task(listen())
    await condition(asked)
    leaving.cancel()
    ended, _ = await asyncio.wait([leaving, staying], return_when=asyncio.FIRST_COMPLETED)
    staying.cancel()
    await asyncio.wait([staying])
    assert ended == {leaving}


async def test_an_event_loop_that_has_ended_is_not_kept_for_its_scans(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter()
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def listen() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        async with BleakRadio().adverts():
            pass

    for _ in range(2):
        await asyncio.to_thread(lambda: asyncio.run(listen()))
    async with (
        BleakRadio().adverts()
    ):  # bleak lets go of loops that have ended when it is used in another one
        pass
    gc.collect()
    assert [loop() for loop in loops] == [None, None]
    assert not await bluetooth.discovering(path)


async def test_a_passive_scan_that_the_service_does_not_offer_is_refused(bluetooth: Bluetooth) -> None:
    await bluetooth.add_adapter()
    assert await failure(BleakRadio(passive=True)) == TransportReason.ADAPTER_UNABLE


async def failure(radio: BleakRadio) -> str | None:
    with pytest.raises(TransportError) as failed:
        async with radio.adverts():
            pass
    reason = failed.value.reason
    mends = [
        words.replace("NAME", "hci0").replace("USER", this_user())
        for (one, _), words in MENDS.items()
        if one is reason
    ]
    assert failed.value.advice in mends
    return reason


async def test_without_an_adapter_it_says_so(bluetooth: Bluetooth) -> None:
    assert await failure(BleakRadio()) is TransportReason.NO_ADAPTER
    assert await failure(BleakRadio(adapter="hci7")) is TransportReason.NO_ADAPTER


async def test_an_adapter_that_is_off_is_named_as_such(bluetooth: Bluetooth) -> None:
    await bluetooth.add_adapter(powered=False)
    assert await failure(BleakRadio()) is TransportReason.ADAPTER_OFF
    assert await failure(BleakRadio(adapter="hci0")) is TransportReason.ADAPTER_OFF


@pytest.mark.parametrize("by", ["soft", "hard"])
async def test_an_adapter_that_is_blocked_is_named_as_such(
    bluetooth: Bluetooth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(bluez, "RFKILL", tmp_path)
    for number, (name, blocked) in enumerate((("phy0", False), ("hci0", True))):
        device = tmp_path / f"rfkill{number}"
        device.mkdir()
        for file, content in {"name": name, "soft": "0", "hard": "0"}.items():
            (device / file).write_text(f"{content}\n")
        if blocked:
            (device / by).write_text("1\n")
    path = await bluetooth.add_adapter(powered=False)
    assert await failure(BleakRadio()) is TransportReason.ADAPTER_BLOCKED
    await bluetooth.power(path, on=True)
    async with BleakRadio().adverts():
        assert await bluetooth.discovering(path)


async def test_an_adapter_without_the_central_role_is_named_as_such(bluetooth: Bluetooth) -> None:
    await bluetooth.add_adapter(central=False)
    assert await failure(BleakRadio()) is TransportReason.ADAPTER_UNABLE


async def test_an_able_adapter_is_preferred_to_the_first(bluetooth: Bluetooth) -> None:
    await bluetooth.add_adapter("hci0", central=False)
    await bluetooth.add_adapter("hci1", powered=False)
    third = await bluetooth.add_adapter("hci2")
    async with BleakRadio().adverts():
        assert await bluetooth.discovering(third)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("org.freedesktop.DBus.Error.AccessDenied", TransportReason.BLUETOOTH_FORBIDDEN),
        ("org.bluez.Error.NotAuthorized", TransportReason.BLUETOOTH_FORBIDDEN),
        ("org.bluez.Error.NotReady", TransportReason.ADAPTER_OFF),
        ("org.bluez.Error.InProgress", TransportReason.ADAPTER_BUSY),
        ("org.bluez.Error.Failed", TransportReason.BLUETOOTH_FAILED),
    ],
)
async def test_what_the_service_refuses_is_told(
    bluetooth: Bluetooth, monkeypatch: pytest.MonkeyPatch, error: str, reason: TransportReason
) -> None:
    monkeypatch.setattr("headless_passkey.radio.bleak.BUSY_PATIENCE", 0)
    path = await bluetooth.add_adapter()
    await bluetooth.refuse(path, "StartDiscovery", error)
    assert await failure(BleakRadio()) is reason


async def test_a_service_that_is_too_slow_is_told_to_stop_when_it_has_begun(
    bluetooth: Bluetooth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headless_passkey.radio.bleak.START_TIMEOUT", 0.1)
    path = await bluetooth.add_adapter()
    slow = "import time; time.sleep(0.5)"
    await bluetooth.call(path, MOCK, "AddMethod", "sssss", ADAPTER, "StartDiscovery", "", "", slow)
    assert await failure(BleakRadio()) is TransportReason.BLUETOOTH_FAILED
    assert len(await bluetooth.call(path, MOCK, "GetMethodCalls", "s", "StopDiscovery")) == 1


async def test_an_adapter_that_is_busy_at_first_is_waited_for(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter()
    await bluetooth.refuse(path, "StartDiscovery", "org.bluez.Error.InProgress")

    async def asked() -> bool:
        return bool(await bluetooth.call(path, MOCK, "GetMethodCalls", "s", "StartDiscovery"))

    async def free_it() -> None:
        await condition(asked)
        await bluetooth.call(
            path, MOCK, "AddMethod", "sssss", "org.bluez.Adapter1", "StartDiscovery", "", "", ""
        )

    freeing = asyncio.create_task(free_it())
    async with BleakRadio().adverts() as adverts:
        await freeing
        await bluetooth.advert({FFF9: b"a" * 20})
        async with asyncio.timeout(60):
            assert (await anext(adverts)).service_data == b"a" * 20


async def test_without_a_bluetooth_service_it_says_so(bus: MessageBus) -> None:
    assert await failure(BleakRadio()) is TransportReason.NO_BLUETOOTH_SERVICE


@pytest.mark.parametrize("address", ["unix:path=/nonexistent/bus", "nonsense"])
async def test_without_a_d_bus_it_says_so(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    assert await failure(BleakRadio()) is TransportReason.NO_DBUS
