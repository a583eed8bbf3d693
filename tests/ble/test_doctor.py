"""The doctor on real BlueZ: what it finds is what a sign-in fails with, program against program."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from headless_passkey.doctor.finding import Check, Status
from headless_passkey.errors import ExitStatus, TransportReason
from tests.ble.lab.guest import NOBODY, Guest, Phone, running_as
from tests.ble.test_trouble import TROUBLES, Trouble
from tests.programs import run

BLUETOOTH = (Check.D_BUS, Check.BLUETOOTH_SERVICE, Check.ADAPTER, Check.SCAN)
WHERE = {
    TransportReason.ADAPTER_OFF: Check.ADAPTER,
    TransportReason.ADAPTER_BLOCKED: Check.ADAPTER,
    TransportReason.NO_ADAPTER: Check.ADAPTER,
    TransportReason.NO_BLUETOOTH_SERVICE: Check.BLUETOOTH_SERVICE,
    TransportReason.BLUETOOTH_FORBIDDEN: Check.BLUETOOTH_SERVICE,
}

Findings = dict[str, dict[str, Any]]


def words(radio: str, *more: str) -> tuple[str, ...]:
    return ("doctor", "--json", "--state", "/nonexistent", "--radio", radio, *more)


def parsed(report: str) -> Findings:
    """The findings about Bluetooth, by check."""
    findings = {finding["check"]: finding for finding in json.loads(report)["findings"]}
    return {check: findings[check] for check in BLUETOOTH}


async def examined(radio: str, *more: str) -> Findings:
    status, stdout, stderr = await run("headless_passkey", *words(radio, *more))
    findings = parsed(stdout)
    if any(finding["status"] == Status.PROBLEM for finding in findings.values()):
        assert status == ExitStatus.TRANSPORT, stderr
    return findings


async def signed_in(radio: str, folder: Path, *more: str) -> str:
    """The reason with which a sign-in fails."""
    options = folder / "options.json"
    options.write_text(json.dumps({"challenge": "A" * 22, "rpId": "login.example"}))
    asked = ("--delivery", "stdout", "--options", str(options), "--origin", "https://login.example")
    program = ("sign-in", "--json", "--timeout", "60", "--radio", radio, *more, *asked)
    status, _, stderr = await run("headless_passkey", *program)
    assert status == ExitStatus.TRANSPORT, stderr
    return str(json.loads(stderr.splitlines()[-1])["reason"])


def check_trouble(findings: Findings, reason: str) -> None:
    """One problem, with a mend, where it belongs; what is before it is well, what comes after not looked at."""
    at = BLUETOOTH.index(WHERE[TransportReason(reason)])
    assert [findings[check]["status"] for check in BLUETOOTH] == (
        [Status.OK] * at + [Status.PROBLEM] + [Status.NOT_CHECKED] * (3 - at)
    )
    assert findings[BLUETOOTH[at]]["reason"] == reason
    assert findings[BLUETOOTH[at]]["mend"]


@pytest.mark.parametrize(("trouble", "reason"), TROUBLES)
async def test_what_is_wrong_is_what_a_sign_in_fails_with(
    guest: Guest, trouble: Trouble, reason: TransportReason, tmp_path: Path
) -> None:
    async with trouble(guest):
        findings, failure = await asyncio.gather(examined("bleak:hci1"), signed_in("bleak:hci1", tmp_path))
    assert failure == reason
    check_trouble(findings, reason)
    if reason is TransportReason.ADAPTER_BLOCKED:
        assert "sudo rfkill unblock bluetooth" in findings[Check.ADAPTER]["mend"]


async def test_without_any_adapter(guest: Guest, tmp_path: Path) -> None:
    await guest.unplug("hci1")
    await guest.unplug("hci0")
    findings, failure = await asyncio.gather(examined("bleak"), signed_in("bleak", tmp_path))
    assert {await guest.plug(), await guest.plug()} == {"hci0", "hci1"}
    assert failure == TransportReason.NO_ADAPTER
    check_trouble(findings, failure)


async def test_a_user_who_may_not(guest: Guest) -> None:
    async with (
        guest.denied(NOBODY),
        running_as(NOBODY, "-m", "headless_passkey", *words("bleak:hci1")) as program,
    ):
        report, complaints = await program.communicate()
    assert program.returncode == ExitStatus.TRANSPORT, complaints.decode()
    check_trouble(parsed(report.decode()), TransportReason.BLUETOOTH_FORBIDDEN)


@pytest.mark.short
async def test_a_radio_that_is_well_hears_a_phone_and_is_left_alone(guest: Guest) -> None:
    async with Phone().advertise(bytes(20)):
        findings = await examined("bleak:hci1")
    assert {finding["status"] for finding in findings.values()} == {Status.OK}
    assert "BlueZ 5." in findings[Check.BLUETOOTH_SERVICE]["message"]
    assert "also here: hci0 (on)" in findings[Check.ADAPTER]["message"]
    assert "FIDO advert" in findings[Check.SCAN]["message"]
    assert "no FIDO advert" not in findings[Check.SCAN]["message"]


async def test_passive_scans_are_found_where_bluetoothd_offers_them(guest: Guest, tmp_path: Path) -> None:
    if not guest.experimental:
        findings, failure = await asyncio.gather(
            examined("bleak:hci1", "--scan", "passive"),
            signed_in("bleak:hci1", tmp_path, "--scan", "passive"),
        )
        assert "passive scans: no" in findings[Check.ADAPTER]["message"]
        assert findings[Check.SCAN]["reason"] == failure == TransportReason.ADAPTER_UNABLE
        assert "--experimental" in findings[Check.SCAN]["mend"]
    async with guest.experiments():
        findings = await examined("bleak:hci1", "--scan", "passive")
    assert {finding["status"] for finding in findings.values()} == {Status.OK}
    assert "passive scans: yes" in findings[Check.ADAPTER]["message"]
