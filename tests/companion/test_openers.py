"""Openers: the URL reaches the phone's side and nobody else."""

import asyncio
import contextlib
import os
import pty
import stat
import sys
import termios
import time
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import Certificate

from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.openers import (
    BuiltInPhone,
    Command,
    Opener,
    Opening,
    QrPicture,
    SystemLauncher,
)
from companion_push.companion.phone import Announced, SoftwarePhone, TunnelService, accept, decline
from headless_passkey.errors import NotApproved, SetupError, SetupReason, TransportError, UsageError
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.process.terminal import Terminal
from tests.camera import Screen, read_file
from tests.companion.device import Air, Device, creation, ok, transaction, tunnel_service

URL = transaction(time=1_800_000_000).url.encode()


def opening(url: str = URL, seconds: float = 20.0) -> Opening:
    announced = Announced(kind=RequestKind.MAKE_CREDENTIAL, rp_id="example.com")
    return Opening(url=url, device="Kitchen hub", announced=announced, seconds=seconds, over=asyncio.Event())


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


async def running_command(folder: Path, then: str, what: Opening) -> tuple["asyncio.Task[None]", int]:
    """A command that has the URL, its process, and what it does `then`, after a line on its fifo `go`."""
    for name in ("pid", "go"):
        os.mkfifo(folder / name)
    note = 'here.joinpath("pid").write_text(str(os.getpid())); here.joinpath("go").read_text();'
    opener = Command.parse(str(program(folder, f"{note} {then}")))
    running = asyncio.create_task(through(opener, what))
    return running, int(await asyncio.to_thread((folder / "pid").read_text))


async def test_a_command_whose_request_has_ended_is_ended_and_makes_room_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("companion_push.companion.openers._OVER_TIMEOUT", 0)
    what = opening(seconds=420.0)
    running, pid = await running_command(tmp_path, "pass", what)
    what.over.set()
    await running
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("status", [0, 7])
async def test_a_command_may_end_by_itself_after_its_request_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("companion_push.companion.openers._OVER_TIMEOUT", 60)
    what = opening(seconds=420.0)
    running, _ = await running_command(tmp_path, f"sys.exit({status})", what)
    what.over.set()
    await asyncio.to_thread((tmp_path / "go").write_text, "go")
    with contextlib.nullcontext() if status == 0 else pytest.raises(TransportError, match="status 7"):
        await running


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


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


class Shown:
    """A real terminal that a picture is drawn on, what it shows, and where a picture is put that does not fit."""

    def __init__(self, folder: Path, columns: int, rows: int, encoding: str = "utf-8") -> None:
        self._outer, self._inner = pty.openpty()
        tty.setraw(self._inner)
        os.set_blocking(self._inner, False)  # as the companion opens it
        self.resize(columns, rows)
        self.screen, self.written, self._changed = (
            Screen(columns, rows, encoding=encoding),
            b"",
            asyncio.Event(),
        )
        self.file, self.told = folder / "fido-url.png", list[Path]()
        self.picture = QrPicture(
            screen=Terminal(self._inner, encoding),
            file=self.file,
            on_file=lambda file, _: self.told.append(file),
            tick=0.01,
        )
        asyncio.get_running_loop().add_reader(self._outer, self._read)

    def resize(self, columns: int, rows: int) -> None:
        termios.tcsetwinsize(self._inner, (rows, columns))
        if hasattr(self, "screen"):
            self.screen.resize(columns, rows)

    async def until(self, what: Callable[[], bool]) -> None:
        """What the terminal shows has become so."""
        async with asyncio.timeout(60):
            while not what():
                self._changed.clear()
                await self._changed.wait()

    async def until_read(self, url: str) -> None:
        await self.until(lambda: self.screen.read() == url)

    async def until_left(self) -> None:
        """The terminal is as it was before."""
        await self.until(lambda: self.written.endswith(b"\x1b[?1049l"))

    def hang_up(self) -> None:
        asyncio.get_running_loop().remove_reader(self._outer)
        os.close(self._outer)
        self._outer = -1

    def close(self) -> None:
        if self._outer >= 0:
            self.hang_up()
        os.close(self._inner)

    def _read(self) -> None:
        data = os.read(self._outer, 65536)
        self.written += data
        self.screen.feed(data)
        self._changed.set()


@contextlib.contextmanager
def terminal(folder: Path, columns: int = 80, rows: int = 24, encoding: str = "utf-8") -> Iterator[Shown]:
    shown = Shown(folder, columns, rows, encoding)
    try:
        yield shown
    finally:
        shown.close()


@pytest.mark.threat("T11")
async def test_on_a_terminal_the_picture_is_cleared_when_the_request_is_over(tmp_path: Path) -> None:
    with terminal(tmp_path) as shown:
        what = opening()
        showing = asyncio.create_task(through(shown.picture, what))
        await shown.until_read(URL)
        assert shown.written.startswith(
            b"\x1b[?1049h"
        )  # another screen, which leaves nothing to scroll back to
        assert "Kitchen hub asks to create a passkey at example.com" in shown.screen.text
        assert shown.picture.showing
        what.over.set()
        await showing
        await shown.until_left()
        assert not shown.picture.showing
        assert b"\x1b[?7h\x1b[?25h" in shown.written[-40:]  # lines are broken again, and there is a cursor
    assert files(tmp_path) == []


async def test_on_a_terminal_the_picture_is_cleared_when_time_is_up_or_the_companion_stops(
    tmp_path: Path,
) -> None:
    with terminal(tmp_path) as shown:
        await through(shown.picture, opening(seconds=0.05))
        await shown.until_left()
    with terminal(tmp_path) as shown:
        showing = asyncio.create_task(through(shown.picture, opening()))
        await shown.until_read(URL)
        showing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await showing
        await shown.until_left()


async def test_the_time_that_is_left_is_counted_down(tmp_path: Path) -> None:
    with terminal(tmp_path) as shown:
        showing = asyncio.create_task(through(shown.picture, opening(seconds=300.5)))
        await shown.until(lambda: b"5:00 left" in shown.written and b"4:59 left" in shown.written)
        assert shown.screen.read() == URL
        showing.cancel()
        await asyncio.wait([showing])


async def test_a_terminal_that_is_not_utf_8_gets_ascii(tmp_path: Path) -> None:
    with terminal(tmp_path, 100, 50, "ascii") as shown:
        showing = asyncio.create_task(through(shown.picture, opening()))
        await shown.until_read(URL)
        assert shown.written.isascii()
        assert b"\\u" not in shown.written
        showing.cancel()
        await asyncio.wait([showing])


@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    ("columns", "rows", "encoding"),
    [(80, 24, "ascii"), (30, 40, "utf-8"), (80, 10, "utf-8")],
    ids=["ASCII at 80x24", "narrow", "low"],
)
async def test_where_it_does_not_fit_there_is_a_file_until_the_terminal_is_larger(
    tmp_path: Path, columns: int, rows: int, encoding: str
) -> None:
    with terminal(tmp_path, columns, rows, encoding) as shown:
        what = opening()
        showing = asyncio.create_task(through(shown.picture, what))
        # at once: each second it is drawn anew, and half of that may have been read from the terminal
        await shown.until(lambda: " left" in shown.screen.text and "This terminal has" in shown.screen.text)
        assert read_file(shown.file.read_bytes()) == URL
        assert stat.S_IMODE(shown.file.stat().st_mode) == 0o600
        assert shown.screen.read() is None
        shown.resize(120, 50)
        await shown.until_read(URL)
        assert "This terminal has" not in shown.screen.text
        what.over.set()
        await showing
    assert files(tmp_path) == []


async def test_what_others_write_on_the_terminal_is_drawn_over(tmp_path: Path) -> None:
    with terminal(tmp_path) as shown:
        showing = asyncio.create_task(through(shown.picture, opening()))
        await shown.until_read(URL)
        shown.screen.feed(b"a warning of some library\r\n" * 5)
        assert shown.screen.read() is None or "a warning" in shown.screen.text
        await shown.until(lambda: "a warning" not in shown.screen.text)
        assert shown.screen.read() == URL
        showing.cancel()
        await asyncio.wait([showing])


async def test_a_terminal_that_has_gone_is_a_transport_error(tmp_path: Path) -> None:
    with terminal(tmp_path) as shown:
        shown.hang_up()
        with pytest.raises(TransportError, match="the terminal has gone"):
            await through(shown.picture, opening())
    with terminal(tmp_path) as shown:
        showing = asyncio.create_task(through(shown.picture, opening()))
        await shown.until_read(URL)
        shown.hang_up()
        with pytest.raises(TransportError, match="the terminal has gone"):
            await showing
    assert files(tmp_path) == []


@pytest.mark.threat("T11")
async def test_without_a_terminal_the_picture_is_in_a_file_of_ones_own_until_the_request_is_over(
    tmp_path: Path,
) -> None:
    told: list[Path] = []
    picture = QrPicture(
        screen=None, file=tmp_path / "fido-url.png", on_file=lambda file, _: told.append(file)
    )
    what = opening()
    async with picture.open(what):
        assert told == [tmp_path / "fido-url.png"]
        assert read_file(told[0].read_bytes()) == URL
        assert stat.S_IMODE(told[0].stat().st_mode) == 0o600
        what.over.set()
    assert files(tmp_path) == []


async def test_a_file_that_was_left_behind_is_forgotten(tmp_path: Path) -> None:
    picture = QrPicture(screen=None, file=tmp_path / "fido-url.png", on_file=lambda *_: None)
    picture.forget()
    picture.file.write_bytes(b"")
    picture.forget()
    assert files(tmp_path) == []


async def test_a_file_that_cannot_be_written_is_a_setup_error(tmp_path: Path) -> None:
    picture = QrPicture(screen=None, file=tmp_path / "nowhere" / "fido-url.png", on_file=lambda *_: None)
    with pytest.raises(SetupError, match="cannot write") as failed:
        await through(picture, opening())
    assert failed.value.reason is SetupReason.OUTPUT_UNWRITABLE


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
        transaction(RequestKind.MAKE_CREDENTIAL, time=int(time.time())),
    )
    reply, _ = await asyncio.gather(
        device.ask(creation()), through(BuiltInPhone(phone=phone), opening(device.url))
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
        transaction(RequestKind.MAKE_CREDENTIAL, time=int(time.time())),
    )
    asking = asyncio.create_task(device.ask(creation()))
    with pytest.raises(NotApproved):
        await through(BuiltInPhone(phone=refusing), opening(device.url))
    assert (await asking).code == 0x27


async def test_the_built_in_phone_stops_with_the_companion(phone: SoftwarePhone) -> None:
    assert isinstance(phone.advertiser, Air)
    url = transaction(RequestKind.MAKE_CREDENTIAL, time=int(time.time())).url.encode()
    running = asyncio.create_task(through(BuiltInPhone(phone=phone), opening(url)))
    await phone.advertiser.adverts.get()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert phone.advertiser.sending == 0


def test_the_url_stays_out_of_the_repr() -> None:
    assert "FIDO" not in repr(opening())
