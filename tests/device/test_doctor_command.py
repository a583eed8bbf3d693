"""``headless-passkey doctor`` as its users run it: one report on stdout, one line on stderr, a status."""

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from certificates import Certificate

from headless_passkey.account import enrolment
from headless_passkey.command import doctor as command
from headless_passkey.command.cli import main
from headless_passkey.doctor import examine, servers
from headless_passkey.doctor.examine import examine as examine_all
from headless_passkey.doctor.finding import Check, Finding, Status
from headless_passkey.doctor.versions import PACKAGES, bluez_version
from headless_passkey.errors import (
    EnrolmentReason,
    ExitStatus,
    HeadlessPasskeyError,
    NotEnrolled,
    ProtocolReason,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.mends import mend
from headless_passkey.net.base_url import BaseUrl
from tests.companion.device import tunnel_service
from tests.device.inviter import Inviter
from tests.device.test_doctor_servers import nobody
from tests.device.test_enrolment import joined
from tests.programs import run
from tests.relay import household

NO_BUS = {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent/bus"}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "device"


async def doctor(*words: str | Path, **environment: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr of the program, on a machine without Bluetooth."""
    return await run("headless_passkey", "doctor", *words, environment=NO_BUS | environment)


async def test_nothing_is_well_and_everything_is_told(state: Path) -> None:
    status, stdout, stderr = await doctor("--state", state, "--rp", f"https://{nobody()}")
    assert status == ExitStatus.TRANSPORT  # of the first problem, not of the device that has not joined
    lines = stdout.splitlines()
    for check in Check:
        assert any(re.match(rf"(ok|WARNING|PROBLEM|not checked) +{check} ", line) for line in lines), check
    for number, line in enumerate(lines):
        assert not line.startswith("PROBLEM") or lines[number + 1].lstrip().startswith("-> ")
    assert lines[-1].startswith("versions ")
    (said,) = stderr.splitlines()
    assert said.endswith("problems; the first: d-bus [no-d-bus]")


async def test_a_controller_that_talks_nonsense_and_hangs_up_is_one_line(state: Path) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(talk, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        radio = f"bumble:tcp-client:127.0.0.1:{port}"
        status, stdout, stderr = await doctor("--radio", radio, "--state", state)
    assert status == ExitStatus.TRANSPORT
    assert "[bluetooth-failed]" in stdout
    assert len(stderr.splitlines()) == 1, stderr


async def test_a_home_that_nobody_knows_is_refused() -> None:
    status, stdout, stderr = await doctor("--radio", "stdin", "--state", "~nobody-of-this-name/device")
    assert (status, stdout) == (ExitStatus.USAGE, "")
    (said,) = stderr.splitlines()
    assert "no home directory is known" in said


async def test_the_report_is_one_object_in_json(state: Path) -> None:
    status, stdout, stderr = await doctor("--json", "--radio", "stdin", "--state", state)
    report = json.loads(stdout)
    assert set(report) == {"status", "findings", "versions"}
    assert report["status"] == status
    for finding in report["findings"]:
        assert set(finding) == {"check", "subject", "status", "reason", "message", "mend"}
        assert finding["status"] in ("ok", "warning", "problem", "not-checked")
        assert (finding["reason"] is None) is (finding["status"] in ("ok", "not-checked"))
    assert {finding["check"] for finding in report["findings"]} == set(Check) - {
        Check.D_BUS,
        Check.BLUETOOTH_SERVICE,
    }
    assert set(report["versions"]) == {*PACKAGES, "python", "bluez", "kernel", "os"}
    said = json.loads(stderr)
    assert (said["status"], said["error"]) == (status, "NotWell")


async def test_a_device_that_has_not_joined_ends_with_9_where_nothing_else_is_wrong(
    state: Path, loopback_certificate: Certificate
) -> None:
    async with tunnel_service(loopback_certificate) as base:
        words = ("--radio", "stdin", "--state", state, "--ca", loopback_certificate.ca)
        status, stdout, stderr = await doctor(*words, "--tunnel", f"300={base}")
    assert status == ExitStatus.NOT_ENROLLED, stdout
    assert "1 problem: enrolment [not-enrolled]" in stderr


@pytest.mark.threat("T11")
async def test_a_device_that_is_well_ends_with_0_and_its_report_shows_no_secret(
    relay: household.Relay, state: Path, loopback_certificate: Certificate
) -> None:
    inviter = await Inviter.invite(relay, await relay.household(devices=0))
    enrolled = await joined(state, inviter, "kitchen frame")
    async with tunnel_service(loopback_certificate) as base:
        words = [
            *("--radio", "stdin", "--state", str(state), "--ca", str(loopback_certificate.ca)),
            *("--tunnel", f"0={base}", "--tunnel", f"1={base}", "--tunnel", f"300={base}"),
            *("--log-level", "debug"),
        ]
        status, stdout, stderr = await doctor(*words)
        _, as_json, _ = await doctor(*words, "--json")
    assert status == ExitStatus.DONE, stdout
    assert stderr.splitlines()[-1] == "no problem found"
    assert "kitchen frame" in stdout
    kept = json.loads((state / enrolment.FILE_NAME).read_bytes())
    for secret in (kept["key"], enrolled.key.to_bytes().hex(), *kept["rings"]):
        assert secret not in stdout + stderr + as_json


async def test_options_come_from_the_environment_too_and_what_means_nothing_is_a_usage_error(
    state: Path,
) -> None:
    status, stdout, _ = await doctor(
        HEADLESS_PASSKEY_DOCTOR_STATE=str(state), HEADLESS_PASSKEY_DOCTOR_RADIO="stdin"
    )
    assert str(state) in stdout
    for words, ends in (
        (("--radio", "wifi"), ExitStatus.USAGE),
        (("--rp", "login.example"), ExitStatus.USAGE),
        (("--ca", "/nonexistent"), ExitStatus.SETUP),
    ):
        status, stdout, stderr = await doctor("--state", state, *words)
        assert (status, stdout) == (ends, ""), words
        assert stderr.count("\n") == 1


# In this process, where parts can be exchanged


@pytest.fixture
def well(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the examination finds, for a test to say."""
    findings: list[Finding] = [Finding.ok(Check.ADAPTER, "hci0 is on")]

    async def found(**_settings: Any) -> list[Finding]:
        return findings

    monkeypatch.setattr(command, "examine", found)
    return findings


def test_warnings_are_no_problem(well: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    for count, words in ((1, "1 warning"), (2, "2 warnings")):
        well.append(
            Finding.of(Check.CLOCK, TrustError(TrustReason.CLOCK_SKEW, "30 s ahead"), status=Status.WARNING)
        )
        assert len(well) == count + 1
        assert main(["doctor"]) == ExitStatus.DONE
        assert capsys.readouterr().err == f"no problem found, {words}\n"


def test_what_could_move_the_cursor_is_not_printed(
    well: list[Finding], capsys: pytest.CaptureFixture[str]
) -> None:
    well.append(Finding.ok(Check.ENROLMENT, "as '\x1b[2Jkitchen\n'"))
    assert main(["doctor"]) == ExitStatus.DONE
    out = capsys.readouterr().out
    assert "as '<U+001B>[2Jkitchen<U+000A>'" in out
    assert "\x1b" not in out


def test_on_a_terminal_lines_are_broken_where_words_end() -> None:
    many = TransportError("so many words " * 8, reason=TransportReason.UNREACHABLE)
    finding = Finding.of(Check.SCAN, many)
    lines = command._report([finding], {"python": "3.99"}, 80)
    assert len(lines) > 4
    assert all(len(line) <= 80 for line in lines)
    assert all(line.startswith(" " * 32) for line in lines[1:-1])
    assert command._report([finding], {}, None)[0].count("so many words") == 8


def test_an_errors_own_advice_counts_before_the_general_one() -> None:
    reason = TransportReason.NO_ADAPTER
    bare = Finding.of(Check.SCAN, TransportError("there is none", reason=reason), case="named")
    assert (bare.message, bare.mend) == ("there is none", mend(reason, "named"))
    told = Finding.of(
        Check.SCAN, TransportError("there is none", reason=reason, advice="buy one"), case="named"
    )
    assert (told.message, told.mend) == ("there is none", "buy one")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TransportError("x"), 4),
        (TrustError(TrustReason.CLOCK_SKEW, "x"), 8),
        (NotEnrolled("x", reason=EnrolmentReason.NOT_ENROLLED), 9),
        (SetupError("x", reason=SetupReason.MISSING_PACKAGE), 10),
        (RemoteProtocolError("x", reason=ProtocolReason.MALFORMED_ANSWER), 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_problem_ends_the_program_as_its_error_would(error: HeadlessPasskeyError, status: int) -> None:
    assert Finding.of(Check.RELAY, error).exit_status == status
    assert Finding.of(Check.RELAY, error, status=Status.WARNING).exit_status == 0


async def test_a_bug_in_one_part_hides_none_of_the_others(
    state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any, **__: Any) -> list[Finding]:
        raise RuntimeError("pa55word")

    monkeypatch.setattr(examine, "examine_account", broken)
    monkeypatch.setattr(servers, "ASSIGNED_DOMAINS", ())
    with caplog.at_level(logging.DEBUG):
        findings = await examine_all(state=state, radio="stdin", rp=BaseUrl.parse(f"https://{nobody()}"))
    by_check = {finding.check: finding for finding in findings}
    assert by_check[Check.RELYING_PARTY].reason is TransportReason.UNREACHABLE
    bug = by_check[Check.RELAY]
    assert (bug.status, bug.exit_status) == (Status.PROBLEM, ExitStatus.OUR_FAULT)
    assert "unexpected RuntimeError at test_doctor_command.py" in bug.message
    assert "pa55word" not in bug.message + caplog.text


async def test_a_part_that_takes_too_long_is_given_up(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "LIMIT", 0)
    findings = await examine_all(state=state, radio="stdin")
    (finding,) = [finding for finding in findings if finding.status is Status.PROBLEM][-1:]
    assert (finding.check, finding.reason) == (Check.TUNNEL_SERVICE, TransportReason.UNREACHABLE)
    assert "no answer within" in finding.message


async def test_settings_that_mean_nothing_are_a_usage_error(state: Path) -> None:
    with pytest.raises(UsageError, match="no such radio"):
        await examine_all(state=state, radio="wifi")


# Versions


def executable(path: Path, script: str, interpreter: str = "/bin/sh") -> str:
    path.write_text(f"#!{interpreter}\n{script}\n")
    path.chmod(0o700)
    return str(path)


async def test_the_version_of_bluez_is_what_the_daemon_says_or_else_bluetoothctl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = "headless_passkey.doctor.versions"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(f"{versions}._DAEMONS", ())
    assert await bluez_version() is None
    executable(tmp_path / "bluetoothctl", "echo bluetoothctl: 5.66")
    assert await bluez_version() == "5.66"
    mute = executable(tmp_path / "mute", "true")
    daemon = executable(tmp_path / "bluetoothd", "echo 5.79")
    monkeypatch.setattr(f"{versions}._DAEMONS", (mute, daemon))
    assert await bluez_version() == "5.79"


async def test_a_program_that_does_not_say_its_version_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = "headless_passkey.doctor.versions"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(f"{versions}.LIMIT", 2)
    hanging = executable(tmp_path / "hanging", f"echo $$ > {tmp_path}/pid; exec /bin/sleep 3600")
    broken = executable(tmp_path / "broken", "", interpreter="/nonexistent")
    monkeypatch.setattr(f"{versions}._DAEMONS", (hanging, broken))
    assert await bluez_version() is None
    pid = (tmp_path / "pid").read_text().strip()
    assert not (Path("/proc") / pid).exists()
