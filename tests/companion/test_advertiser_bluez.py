"""The BlueZ advertiser against a Bluetooth service that is played on a private D-Bus."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from companion_push.companion.advertiser.bluez import BluezAdvertiser
from companion_push.companion.advertiser.choose import open_advertiser
from headless_passkey.errors import (
    LocalProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TransportReason,
    UsageError,
)
from tests.companion.bluetoothd import Bluetoothd, bluetoothd, connections, private_bus
from tests.companion.program import ROOT

SENT = bytes(range(20))
FFF9 = "0000fff9-0000-1000-8000-00805f9b34fb"

# `python -c` with this advertises until it is ended; it says so once it does
_PROGRAM = """
import asyncio
from companion_push.companion.advertiser.bluez import BluezAdvertiser

async def main():
    async with BluezAdvertiser().advertise(bytes(20)):
        print("advertising", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """A private D-Bus that is taken for the system's."""
    async with private_bus(tmp_path) as address:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        monkeypatch.setattr("companion_push.companion.advertiser.bluez.SETTLING", 0.05)
        yield address


@pytest.fixture
async def service(address: str) -> AsyncIterator[Bluetoothd]:
    """A Bluetooth service without adapters."""
    async with bluetoothd(address) as service:
        yield service


async def failure(advertiser: BluezAdvertiser, service_data: bytes = SENT) -> TransportError:
    with pytest.raises(TransportError) as failed:
        async with advertiser.advertise(service_data):
            pass
    return failed.value


async def test_twenty_bytes_are_sent_with_a_list_of_their_uuid_and_nobody_can_connect(
    service: Bluetoothd,
) -> None:
    service.plug()
    async with BluezAdvertiser().advertise(SENT):
        (advert,) = service.adverts()
    properties = dict(advert.properties)
    data = properties.pop("ServiceData")
    assert {uuid: each.value for uuid, each in data.items()} == {FFF9: SENT}
    assert properties == {"Type": "broadcast", "ServiceUUIDs": [FFF9], "MinInterval": 100, "MaxInterval": 100}


@pytest.mark.parametrize(
    ("size", "listed", "extended"),
    [(20, True, False), (21, False, False), (24, False, False), (25, False, True), (100, False, True)],
)
async def test_what_does_not_fit_goes_without_the_list_and_then_into_an_extended_advert(
    service: Bluetoothd, size: int, *, listed: bool, extended: bool
) -> None:
    service.plug()
    service.longest = 251
    async with BluezAdvertiser().advertise(bytes(size)):
        (advert,) = service.adverts()
    assert bool(advert.properties["ServiceUUIDs"]) == listed
    assert ("SecondaryChannel" in advert.properties) == extended


async def test_more_than_the_service_takes_is_beyond_the_adapter(service: Bluetoothd) -> None:
    service.plug()
    error = await failure(BluezAdvertiser(), bytes(28))
    assert error.reason is TransportReason.ADAPTER_UNABLE
    assert "28 bytes" in str(error)


async def test_too_much_service_data_is_a_bug(service: Bluetoothd) -> None:
    with pytest.raises(LocalProtocolError):
        async with BluezAdvertiser().advertise(bytes(248)):
            pass


async def test_leaving_takes_the_advert_down_before_hanging_up(service: Bluetoothd) -> None:
    service.plug()
    async with BluezAdvertiser().advertise(SENT):
        assert len(service.adverts()) == 1
    assert not service.adverts()
    assert service.hung_up == 0


async def test_an_error_inside_takes_the_advert_down_and_stays_what_it_is(service: Bluetoothd) -> None:
    service.plug()
    with pytest.raises(KeyError):
        async with BluezAdvertiser().advertise(SENT):
            raise KeyError
    assert not service.adverts()


async def test_cancelling_takes_the_advert_down(service: Bluetoothd) -> None:
    service.plug()
    advertising = asyncio.Event()

    async def phone() -> None:
        async with BluezAdvertiser().advertise(SENT):
            advertising.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(phone())
    await advertising.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not service.adverts()
    assert service.hung_up == 0


async def test_cancelling_a_registration_under_way_leaves_no_advert(service: Bluetoothd) -> None:
    service.plug()
    service.silent = True

    async def phone() -> None:
        async with BluezAdvertiser().advertise(SENT):
            pytest.fail("it was never said that this is sent")

    task = asyncio.create_task(phone())
    await service.until_asked()
    assert service.adverts()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await service.until_silent()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
async def test_the_advert_ends_with_the_process(service: Bluetoothd, number: signal.Signals) -> None:
    service.plug()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM), cwd=ROOT, env=os.environ, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"advertising\n"
    assert service.adverts()
    process.send_signal(number)
    await service.until_silent()
    await process.communicate()


async def test_two_phones_advertise_at_once(service: Bluetoothd) -> None:
    service.plug()
    async with BluezAdvertiser().advertise(SENT), BluezAdvertiser().advertise(bytes(20)):
        assert len(service.adverts()) == 2
    assert not service.adverts()


async def test_the_first_adapter_that_is_on_and_able_is_taken_unless_one_is_named(
    service: Bluetoothd,
) -> None:
    service.plug("hci0", powered=False)
    service.plug("hci1", advertises=False)
    service.plug("hci2")
    service.plug("hci3")
    async with BluezAdvertiser().advertise(SENT):
        assert [name for name in ("hci2", "hci3") if service.adverts(name)] == ["hci2"]
    async with BluezAdvertiser("hci3").advertise(SENT):
        assert [name for name in ("hci2", "hci3") if service.adverts(name)] == ["hci3"]


# When it cannot be


async def test_without_an_adapter_it_says_so(service: Bluetoothd) -> None:
    error = await failure(BluezAdvertiser())
    assert error.reason is TransportReason.NO_ADAPTER
    service.plug()
    error = await failure(BluezAdvertiser("hci7"))
    assert error.reason is TransportReason.NO_ADAPTER
    assert "hci7" in str(error)


async def test_an_adapter_that_is_off_is_named_as_such(service: Bluetoothd) -> None:
    service.plug(powered=False)
    assert (await failure(BluezAdvertiser())).reason is TransportReason.ADAPTER_OFF


async def test_an_adapter_that_is_blocked_is_named_as_such(
    service: Bluetoothd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = tmp_path / "rfkill" / "rfkill0"
    switch.mkdir(parents=True)
    for name, text in (("name", "hci0"), ("soft", "1"), ("hard", "0")):
        (switch / name).write_text(f"{text}\n")
    monkeypatch.setattr("headless_passkey.radio.bluez.RFKILL", tmp_path / "rfkill")
    service.plug(powered=False)
    assert (await failure(BluezAdvertiser())).reason is TransportReason.ADAPTER_BLOCKED


async def test_an_adapter_that_cannot_advertise_is_named_as_such(service: Bluetoothd) -> None:
    service.plug(advertises=False)
    error = await failure(BluezAdvertiser())
    assert error.reason is TransportReason.ADAPTER_UNABLE
    assert "cannot send Low Energy adverts" in str(error)


async def test_an_adapter_with_too_many_adverts_is_busy(service: Bluetoothd) -> None:
    service.plug()
    service.limit = 1
    async with BluezAdvertiser().advertise(SENT):
        assert (await failure(BluezAdvertiser())).reason is TransportReason.ADAPTER_BUSY


async def test_a_refusal_without_a_cause_is_a_failure_of_the_service(service: Bluetoothd) -> None:
    service.plug()
    service.refusal = "org.bluez.Error.Failed"
    assert (await failure(BluezAdvertiser())).reason is TransportReason.BLUETOOTH_FAILED


async def test_an_adapter_that_is_turned_off_meanwhile_is_named_as_such(service: Bluetoothd) -> None:
    service.plug("hci0")
    service.plug("hci1")
    service.turns_off = True
    assert (await failure(BluezAdvertiser("hci0"))).reason is TransportReason.ADAPTER_OFF


async def test_who_may_not_is_told_so_and_is_not_asked_again(service: Bluetoothd) -> None:
    service.plug()
    service.refusal = "org.freedesktop.DBus.Error.AccessDenied"
    assert (await failure(BluezAdvertiser())).reason is TransportReason.BLUETOOTH_FORBIDDEN
    assert service.registrations == 1


async def test_a_service_that_does_not_run_is_named_as_such(address: str) -> None:
    assert (await failure(BluezAdvertiser())).reason is TransportReason.NO_BLUETOOTH_SERVICE


async def test_without_a_bus_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    assert (await failure(BluezAdvertiser())).reason is TransportReason.NO_DBUS


# When it is lost


async def turn_off(service: Bluetoothd) -> None:
    service.power(on=False)


async def pull_out(service: Bluetoothd) -> None:
    service.power(on=False)
    await service.breathe()
    service.unplug()


async def stop(service: Bluetoothd) -> None:
    await service.stop()


async def release(service: Bluetoothd) -> None:
    service.release()


@pytest.mark.parametrize(
    ("lose", "reason"),
    [
        (turn_off, TransportReason.ADAPTER_OFF),
        (pull_out, TransportReason.NO_ADAPTER),
        (stop, TransportReason.NO_BLUETOOTH_SERVICE),
        (release, TransportReason.BLUETOOTH_FAILED),
    ],
)
async def test_when_the_advert_is_lost_what_runs_inside_ends_with_the_reason(
    service: Bluetoothd,
    monkeypatch: pytest.MonkeyPatch,
    lose: Callable[[Bluetoothd], Awaitable[None]],
    reason: TransportReason,
) -> None:
    monkeypatch.setattr("companion_push.companion.advertiser.bluez.SETTLING", 0.5)
    service.plug("hci0")
    service.plug("hci1")

    async def phone() -> None:
        async with BluezAdvertiser().advertise(SENT):
            await lose(service)
            await asyncio.Event().wait()

    async with asyncio.timeout(60):
        with pytest.raises(TransportError) as failed:
            await phone()
    assert failed.value.reason is reason
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_when_the_bus_goes_it_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("companion_push.companion.advertiser.bluez.SETTLING", 0.05)
    advertising, over = asyncio.Event(), asyncio.Event()

    async def phone() -> None:
        async with BluezAdvertiser().advertise(SENT):
            advertising.set()
            await over.wait()

    async with private_bus(tmp_path) as address, bluetoothd(address) as service:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        service.plug()
        task = asyncio.create_task(phone())
        await advertising.wait()
    async with asyncio.timeout(60):
        with pytest.raises(TransportError) as failed:
            await task
    assert failed.value.reason is TransportReason.NO_DBUS


async def test_a_cancellation_of_our_own_is_not_taken_for_a_loss(service: Bluetoothd) -> None:
    service.plug()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), BluezAdvertiser().advertise(SENT):
            await asyncio.Event().wait()
    assert not service.adverts()


async def left_behind(address: str) -> tuple[int, int, int]:
    """Open files, tasks and D-Bus connections."""
    return open_files(), len(asyncio.all_tasks()), await connections(address)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_two_hundred_adverts_leave_nothing_behind(service: Bluetoothd, address: str) -> None:
    service.plug()

    async def advertise() -> None:
        async with BluezAdvertiser().advertise(SENT):
            pass

    await advertise()
    before = await left_behind(address)
    for _ in range(200):
        await advertise()
    assert await left_behind(address) == before
    assert not service.adverts()


# By name


def test_bluez_is_what_is_taken_where_nothing_is_said() -> None:
    assert isinstance(open_advertiser(), BluezAdvertiser)
    assert isinstance(open_advertiser("bluez:hci1"), BluezAdvertiser)


@pytest.mark.parametrize("spec", ["bluez:", "bluezhci0", ":hci0"])
def test_a_name_that_names_no_radio_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError):
        open_advertiser(spec)


def test_bluez_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UsageError, match="Linux"):
        open_advertiser("bluez")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("companion_push.companion.advertiser.bluez", "headless_passkey.radio.bluez"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "dbus_fast", None)
    with pytest.raises(SetupError, match="is not installed") as missing:
        open_advertiser("bluez")
    assert missing.value.reason is SetupReason.MISSING_PACKAGE
    assert missing.value.advice == "`pip install '.[push]'` in the clone of headless-passkey"
