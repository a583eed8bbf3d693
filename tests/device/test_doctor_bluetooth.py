"""The doctor on Bluetooth: a played bluetoothd on a private D-Bus, broken in one way at a time.

Each reason is compared with the one that a scan fails with: doctor and sign-in speak of the same thing.
"""

import asyncio
import contextlib
import errno
import getpass
import sys
from pathlib import Path

import pytest
from dbus_fast.aio import MessageBus

from headless_passkey.doctor.bluetooth import examine_bluetooth
from headless_passkey.doctor.finding import Check, Finding, Status
from headless_passkey.doctor.scan import examine_by_scanning
from headless_passkey.errors import ExitStatus, SetupReason, TransportError, TransportReason, UsageError
from headless_passkey.radio import bluez
from headless_passkey.radio.bleak import BleakRadio
from headless_passkey.radio.bumble import BumbleRadio
from tests.device.bluetooth import Bluetooth
from tests.device.test_radio_bleak import FDE2, FFF9, condition

ORDER = [Check.D_BUS, Check.BLUETOOTH_SERVICE, Check.ADAPTER, Check.SCAN]


async def examined(radio: str = "bleak", *, passive: bool = False, listen: float = 0.01) -> list[Finding]:
    findings = await examine_bluetooth(radio, passive=passive, listen=listen)
    assert [finding.check for finding in findings] == ORDER
    return findings


async def trouble(radio: str = "bleak", *, passive: bool = False) -> Finding:
    """The one problem there is: what comes before it is well, and what comes after it is not checked.

    A scan fails for the same reason.
    """
    findings = await examined(radio, passive=passive)
    statuses = [finding.status for finding in findings]
    at = statuses.index(Status.PROBLEM)
    assert statuses == [Status.OK] * at + [Status.PROBLEM] + [Status.NOT_CHECKED] * (3 - at)
    assert {finding.message for finding in findings[at + 1 :]} <= {f"because of {ORDER[at]}"}
    with pytest.raises(TransportError) as failed:
        async with BleakRadio(adapter=radio.partition(":")[2] or None, passive=passive).adverts():
            pass
    assert failed.value.reason == findings[at].reason
    assert findings[at].exit_status is ExitStatus.TRANSPORT
    assert findings[at].mend
    assert str(findings[at].mend) not in findings[at].message, "the mend has a line of its own"
    return findings[at]


def blocked(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """An rfkill switch as /sys shows it."""
    monkeypatch.setattr(bluez, "RFKILL", folder)
    device = folder / "rfkill3"
    device.mkdir()
    for file, content in {"name": "hci0", "type": "bluetooth", "soft": "0", "hard": "0", **files}.items():
        (device / file).write_text(f"{content}\n")


async def test_a_radio_that_is_well_is_scanned_with_and_left_alone(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter()
    await bluetooth.add_adapter("hci1", powered=False)
    findings = await examined()
    assert {finding.status for finding in findings} == {Status.OK}
    assert "hci0 is on" in findings[2].message
    assert "hci1 (off)" in findings[2].message
    assert "no FIDO advert" in findings[3].message
    assert not await bluetooth.discovering(path)


async def test_the_adverts_that_are_heard_are_counted(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter()
    examining = asyncio.create_task(examined(listen=3600))
    await condition(lambda: bluetooth.discovering(path))
    examining.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await examining
    assert not await bluetooth.discovering(path), "cancelling ends the scan"

    async def advertise() -> None:
        await condition(lambda: bluetooth.discovering(path))
        for number, uuid in enumerate((FFF9, FDE2)):
            await bluetooth.advert({uuid: bytes([number]) * 20}, number=number)

    findings, _ = await asyncio.gather(examined(listen=3), advertise())
    assert "heard 2 FIDO adverts" in findings[3].message


@pytest.mark.parametrize("address", ["unix:path=/nonexistent/bus", "nonsense"])
async def test_without_a_d_bus(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    found = await trouble()
    assert (found.check, found.reason) == (Check.D_BUS, TransportReason.NO_DBUS)


async def test_without_a_bluetooth_service(bus: MessageBus) -> None:
    found = await trouble()
    assert (found.check, found.reason) == (Check.BLUETOOTH_SERVICE, TransportReason.NO_BLUETOOTH_SERVICE)
    assert "systemctl enable --now bluetooth" in str(found.mend)


async def test_a_bus_that_says_no(bluetooth: Bluetooth) -> None:
    code = "raise dbus.exceptions.DBusException('no', name='org.freedesktop.DBus.Error.AccessDenied')"
    manager = "org.freedesktop.DBus.ObjectManager"
    add = ("org.freedesktop.DBus.Mock", "AddMethod", "sssss")
    await bluetooth.call("/", *add, manager, "GetManagedObjects", "", "a{oa{sa{sv}}}", code)
    found = await trouble()
    assert (found.check, found.reason) == (Check.BLUETOOTH_SERVICE, TransportReason.BLUETOOTH_FORBIDDEN)
    assert f"usermod --append --groups bluetooth {getpass.getuser()}`" in str(found.mend)


async def test_without_an_adapter_and_without_the_one_that_was_named(bluetooth: Bluetooth) -> None:
    found = await trouble()
    assert (found.check, found.reason) == (Check.ADAPTER, TransportReason.NO_ADAPTER)
    assert "plug one in" in str(found.mend)
    await bluetooth.add_adapter()
    found = await trouble("bleak:hci7")
    assert (found.check, found.reason) == (Check.ADAPTER, TransportReason.NO_ADAPTER)
    assert "hci7" in found.message
    assert found.mend == "`bluetoothctl list` shows which there are"


async def test_an_adapter_that_is_off(bluetooth: Bluetooth) -> None:
    await bluetooth.add_adapter(powered=False)
    found = await trouble()
    assert (found.check, found.reason) == (Check.ADAPTER, TransportReason.ADAPTER_OFF)
    named = await trouble("bleak:hci0")
    assert (named.reason, named.message) == (TransportReason.ADAPTER_OFF, "the Bluetooth adapter hci0 is off")
    assert "/org/bluez/hci0 " in str(named.mend)


@pytest.mark.parametrize(("how", "mend"), [("soft", "rfkill unblock"), ("hard", "switch")])
async def test_an_adapter_that_rfkill_blocks(
    bluetooth: Bluetooth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, mend: str
) -> None:
    blocked(tmp_path, monkeypatch, **{how: "1"})
    await bluetooth.add_adapter(powered=False)
    found = await trouble()
    assert (found.check, found.reason) == (Check.ADAPTER, TransportReason.ADAPTER_BLOCKED)
    assert mend in str(found.mend)
    assert ("rfkill unblock" in str(found.mend)) is (how == "soft")


async def test_both_blocks_at_once_are_the_one_that_no_command_ends(
    bluetooth: Bluetooth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked(tmp_path, monkeypatch, soft="1", hard="1")
    await bluetooth.add_adapter(powered=False)
    assert "no command" in str((await trouble()).mend)


@pytest.mark.usefixtures("bluetooth")
async def test_a_block_that_takes_the_adapter_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked(tmp_path, monkeypatch, name="tpacpi_bluetooth_sw", soft="1")
    found = await trouble()
    assert (found.check, found.reason) == (Check.ADAPTER, TransportReason.ADAPTER_BLOCKED)


@pytest.mark.usefixtures("bluetooth")
async def test_a_block_of_another_radio_blocks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked(tmp_path, monkeypatch, name="phy0", type="wlan", soft="1", hard="1")
    assert (await trouble()).reason is TransportReason.NO_ADAPTER


async def test_an_adapter_that_is_too_old(bluetooth: Bluetooth) -> None:
    await bluetooth.add_adapter(central=False)
    found = await trouble()
    assert (found.check, found.reason) == (Check.ADAPTER, TransportReason.ADAPTER_UNABLE)
    assert "4.0" in str(found.mend)


async def test_a_passive_scan_that_the_service_does_not_offer(bluetooth: Bluetooth) -> None:
    await bluetooth.add_adapter()
    found = await trouble(passive=True)
    assert (found.check, found.reason) == (Check.SCAN, TransportReason.ADAPTER_UNABLE)
    assert "scan actively" in str(found.mend)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("org.freedesktop.DBus.Error.AccessDenied", TransportReason.BLUETOOTH_FORBIDDEN),
        ("org.bluez.Error.Failed", TransportReason.BLUETOOTH_FAILED),
    ],
)
async def test_a_scan_that_is_refused(bluetooth: Bluetooth, error: str, reason: TransportReason) -> None:
    path = await bluetooth.add_adapter()
    await bluetooth.refuse(path, "StartDiscovery", error)
    found = await trouble()
    assert (found.check, found.reason) == (Check.SCAN, reason)


async def test_an_adapter_that_goes_in_the_middle_of_the_scan(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter()

    async def turn_off() -> None:
        await condition(lambda: bluetooth.discovering(path))
        await bluetooth.power(path, on=False)

    async with asyncio.timeout(60):
        findings, _ = await asyncio.gather(examined(listen=3600), turn_off())
    assert (findings[3].status, findings[3].reason) == (Status.PROBLEM, TransportReason.ADAPTER_OFF)


async def test_a_service_that_does_not_answer_is_given_up(bluetooth: Bluetooth) -> None:
    await bluetooth.add_adapter()
    findings = await examine_bluetooth("bleak", listen=3600, limit=0)
    assert [finding.check for finding in findings] == ORDER
    assert findings[0].reason is TransportReason.BLUETOOTH_FAILED
    assert "no answer" in findings[0].message


# Other radios, and other systems


async def test_adverts_on_stdin_leave_nothing_to_look_at() -> None:
    findings = await examine_bluetooth("stdin")
    assert {finding.status for finding in findings} == {Status.NOT_CHECKED}


async def test_a_controller_that_may_not_be_opened_is_not_a_matter_for_bluetoothd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def closed(_transport: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("headless_passkey.radio.bumble.open_transport", closed)
    adapter, _ = await examine_bluetooth("bumble:serial:/dev/ttyACM0")
    assert adapter.reason is TransportReason.BLUETOOTH_FORBIDDEN
    assert "dialout" in str(adapter.mend)


async def test_a_controller_that_is_not_there() -> None:
    adapter, scan = await examine_bluetooth("bumble:tcp-client:127.0.0.1:9")
    assert (adapter.check, adapter.reason) == (Check.ADAPTER, TransportReason.NO_ADAPTER)
    assert (scan.check, scan.status) == (Check.SCAN, Status.NOT_CHECKED)
    with pytest.raises(TransportError) as failed:
        async with BumbleRadio("tcp-client:127.0.0.1:9").adverts():
            pass
    assert failed.value.reason is adapter.reason


@pytest.mark.parametrize("radio", ["", "wifi", "bleak:", "bumble:nonsense:1"])
async def test_a_radio_that_does_not_exist_is_a_usage_error(radio: str) -> None:
    with pytest.raises(UsageError):
        await examine_bluetooth(radio)


@pytest.mark.parametrize(("radio", "extra"), [("bleak", "device"), ("bumble:usb:0", "emulation")])
async def test_a_radio_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, radio: str, extra: str) -> None:
    kind = radio.partition(":")[0]
    monkeypatch.delitem(sys.modules, f"headless_passkey.radio.{kind}", raising=False)
    monkeypatch.delattr(f"headless_passkey.radio.{kind}", raising=False)
    monkeypatch.setitem(sys.modules, f"headless_passkey.radio.{kind}", None)
    findings = await examine_bluetooth(radio)
    assert (findings[0].reason, findings[0].exit_status) == (SetupReason.MISSING_PACKAGE, ExitStatus.SETUP)
    assert findings[0].mend == f"`pip install '.[{extra}]'` in the clone of headless-passkey"
    assert {finding.status for finding in findings[1:]} == {Status.NOT_CHECKED}


@pytest.mark.parametrize("powered", [True, False])
async def test_where_there_is_nobody_to_ask_the_scan_tells(bluetooth: Bluetooth, *, powered: bool) -> None:
    """As on macOS and Windows; here bleak's answers come from BlueZ."""
    path = await bluetooth.add_adapter(powered=powered)
    adapter, scan = await examine_by_scanning(BleakRadio(patience=0), listen=0.01, limit=20)
    if not powered:
        assert (adapter.status, adapter.reason) == (Status.PROBLEM, TransportReason.ADAPTER_OFF)
        assert scan.status is Status.NOT_CHECKED
        return
    assert (adapter.status, scan.status) == (Status.OK, Status.OK)
    await bluetooth.refuse(path, "StartDiscovery", "org.bluez.Error.Failed")
    adapter, scan = await examine_by_scanning(BleakRadio(patience=0), listen=0.01, limit=20)
    assert (adapter.status, scan.reason) == (Status.OK, TransportReason.BLUETOOTH_FAILED)
    adapter, scan = await examine_by_scanning(BleakRadio(patience=0), listen=3600, limit=0)
    assert (adapter.status, scan.reason) == (Status.OK, TransportReason.BLUETOOTH_FAILED)
