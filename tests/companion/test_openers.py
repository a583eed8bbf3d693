"""Openers: the URL reaches the phone's side and nobody else."""

import asyncio
import contextlib
import io
import os
import pty
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import segno
from certificates import Certificate

from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.openers import (
    BuiltInPhone,
    Command,
    Opener,
    Opening,
    QrPicture,
    SystemLauncher,
    qr_lines,
)
from companion_push.companion.phone import Announced, SoftwarePhone, TunnelService, accept, decline
from headless_passkey.command_line import UsageError
from headless_passkey.errors import NotApproved, TransportError
from headless_passkey.hybrid.fido_url import Hint
from tests.companion.device import Air, Device, creation, ok, transaction, tunnel_service

URL = transaction(time=1_800_000_000).url.encode()


def opening(url: str = URL, seconds: float = 20.0) -> Opening:
    announced = Announced(kind=Hint.MAKE_CREDENTIAL, rp_id="example.com")
    return Opening(url=url, announced=announced, seconds=seconds, over=asyncio.Event())


def program(folder: Path, text: str) -> Path:
    """A Python program that finds its folder in `here`."""
    file = folder / "program"
    file.write_text(
        f"#!{sys.executable}\nimport pathlib, sys, os\nhere = pathlib.Path(__file__).parent\n{text}\n"
    )
    file.chmod(0o700)
    return file


async def through(opener: Opener, what: Opening) -> None:
    """Hand the URL over; fails when the body of the context did not run."""
    handed_over = []
    async with opener.open(what):
        handed_over.append(what)
    assert handed_over


@pytest.mark.threat("T11")
async def test_a_command_gets_the_url_as_one_line_on_stdin_and_nowhere_else(tmp_path: Path) -> None:
    note = 'here.joinpath("said").write_text(repr((sys.stdin.read(), sys.argv, dict(os.environ))))'
    opener = Command.parse(f"'{program(tmp_path, note)}' --option 'two words'")
    await through(opener, opening())
    stdin, argv, environment = eval((tmp_path / "said").read_text())  # noqa: S307  we wrote it
    assert stdin == f"{URL}\n"
    assert argv[1:] == ["--option", "two words"]
    assert URL not in repr(argv) + repr(environment)


async def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    note = 'here.joinpath("said").write_text(repr(sys.argv[1:]))'
    opener = Command.parse(f"{program(tmp_path, note)} $HOME '; touch {tmp_path}/pwned' '$(id)'")
    await through(opener, opening())
    assert eval((tmp_path / "said").read_text()) == ["$HOME", f"; touch {tmp_path}/pwned", "$(id)"]  # noqa: S307


async def test_a_command_that_fails_is_a_transport_error_without_the_url(tmp_path: Path) -> None:
    opener = Command.parse(str(program(tmp_path, "sys.exit(7)")))
    with pytest.raises(TransportError, match="status 7") as caught:
        await through(opener, opening())
    assert URL not in str(caught.value)


async def test_a_command_that_does_not_read_is_judged_by_its_status(tmp_path: Path) -> None:
    opener = Command.parse(str(program(tmp_path, "os.close(0)")))
    await through(opener, opening())


async def test_a_command_is_ended_when_time_is_up(tmp_path: Path) -> None:
    note = 'here.joinpath("pid").write_text(str(os.getpid())); import time; time.sleep(60)'
    opener = Command.parse(str(program(tmp_path, note)))
    with pytest.raises(TransportError, match="did not end"):
        await through(opener, opening(seconds=1.0))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_command_is_ended_when_the_companion_stops(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pid")
    note = 'here.joinpath("pid").write_text(str(os.getpid())); import time; time.sleep(60)'
    opener = Command.parse(str(program(tmp_path, note)))
    running = asyncio.create_task(through(opener, opening()))
    pid = int(await asyncio.to_thread((tmp_path / "pid").read_text))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("line", ["", "   ", "'", "no-such-program-anywhere --flag"])
def test_what_cannot_be_started_is_no_command(line: str) -> None:
    with pytest.raises(UsageError):
        Command.parse(line)


@pytest.mark.threat("T8")
async def test_the_systems_launcher_gets_the_url_as_its_one_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, 'here.joinpath("said").write_text(repr(sys.argv[1:]))').rename(tmp_path / "xdg-open")
    monkeypatch.setenv("PATH", str(tmp_path))
    await through(SystemLauncher.find("linux"), opening())
    assert eval((tmp_path / "said").read_text()) == [URL]  # noqa: S307


async def test_a_launcher_that_fails_hands_nothing_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "sys.exit(3)").rename(tmp_path / "open")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TransportError, match="status 3"):
        await through(SystemLauncher.find("darwin"), opening())


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_a_system_without_launcher_is_told_so(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="choose another opener"):
        SystemLauncher.find(platform)


# The QR picture


def modules(lines: list[str]) -> list[list[bool]]:
    """Which modules of a picture are dark, as a camera sees white characters on black."""
    light = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}
    rows: list[list[bool]] = []
    for line in lines:
        text = line.removeprefix("\x1b[97;40m").removesuffix("\x1b[0m")
        rows += ([not light[character][half] for character in text] for half in (0, 1))
    return rows


def test_the_picture_is_the_urls_qr_code_with_a_quiet_zone() -> None:
    code = segno.make(URL, micro=False, error="m", boost_error=False)
    wanted = [[bool(dark) for dark in row] for row in code.matrix_iter(border=4)]
    shown = modules(qr_lines(URL))
    assert shown[: len(wanted)] == wanted
    assert code.mode == "alphanumeric"  # upper case: a small picture


async def test_without_a_terminal_the_picture_is_printed_and_not_waited_for() -> None:
    screen = io.StringIO()
    await through(QrPicture(screen=screen), opening())
    assert "camera" in screen.getvalue()
    assert URL not in screen.getvalue()


@contextlib.asynccontextmanager
async def terminal() -> AsyncIterator[tuple[io.TextIOWrapper, int]]:
    outer, inner = pty.openpty()
    os.set_blocking(outer, False)
    with open(inner, "w", encoding="utf-8", closefd=True) as screen:  # noqa: ASYNC230, PTH123
        yield screen, outer
    os.close(outer)


def seen(outer: int) -> str:
    """What has come to the terminal."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            data += os.read(outer, 65536)
    return data.decode()


@pytest.mark.threat("T11")
async def test_on_a_terminal_the_picture_is_cleared_when_the_request_is_over() -> None:
    async with terminal() as (screen, outer):
        what = opening()
        showing = asyncio.create_task(through(QrPicture(screen=screen), what))
        await asyncio.sleep(0)
        shown = seen(outer)
        assert shown.startswith("\x1b[?1049h")  # another screen, which leaves nothing to scroll back to
        assert not showing.done()
        what.over.set()
        await showing
        assert seen(outer).endswith("\x1b[2J\x1b[?1049l")


async def test_on_a_terminal_the_picture_is_cleared_when_time_is_up_or_the_companion_stops() -> None:
    async with terminal() as (screen, outer):
        await through(QrPicture(screen=screen), opening(seconds=0.05))
        assert seen(outer).endswith("\x1b[?1049l")
        showing = asyncio.create_task(through(QrPicture(screen=screen), opening()))
        await asyncio.sleep(0)
        showing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await showing
        assert seen(outer).endswith("\x1b[?1049l")


# The software phone


@pytest.fixture
async def phone(loopback_certificate: Certificate, tmp_path: Path) -> AsyncIterator[SoftwarePhone]:
    async with tunnel_service(loopback_certificate) as base:
        yield SoftwarePhone(
            credentials=CredentialFile(path=tmp_path / "passkeys.json"),
            advertiser=Air(),
            tunnel_service=TunnelService(number=300, base=base),
            tls=loopback_certificate.client_context(),
            verify_user=accept,
        )


async def test_the_built_in_phone_answers_what_was_announced(phone: SoftwarePhone) -> None:
    assert isinstance(phone.advertiser, Air)
    assert phone.tls is not None
    device = Device(
        phone.advertiser,
        phone.tunnel_service.base,
        phone.tls,
        transaction(Hint.MAKE_CREDENTIAL, time=int(time.time())),
    )
    reply, _ = await asyncio.gather(
        device.ask(creation()), through(BuiltInPhone(make_phone=lambda: phone), opening(device.url))
    )
    ok(reply)


async def test_what_the_built_in_phone_refuses_is_raised(phone: SoftwarePhone) -> None:
    refusing = replace(phone, verify_user=decline)
    assert isinstance(refusing.advertiser, Air)
    assert refusing.tls is not None
    device = Device(
        refusing.advertiser,
        refusing.tunnel_service.base,
        refusing.tls,
        transaction(Hint.MAKE_CREDENTIAL, time=int(time.time())),
    )
    asking = asyncio.create_task(device.ask(creation()))
    with pytest.raises(NotApproved):
        await through(BuiltInPhone(make_phone=lambda: refusing), opening(device.url))
    assert (await asking).code == 0x27


async def test_the_built_in_phone_stops_with_the_companion(phone: SoftwarePhone) -> None:
    assert isinstance(phone.advertiser, Air)
    url = transaction(Hint.MAKE_CREDENTIAL, time=int(time.time())).url.encode()
    running = asyncio.create_task(through(BuiltInPhone(make_phone=lambda: phone), opening(url)))
    await phone.advertiser.adverts.get()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert phone.advertiser.sending == 0


def test_the_url_stays_out_of_the_repr() -> None:
    assert "FIDO" not in repr(opening())
