"""`companion run --opener qr` at a real terminal: a camera reads the code off it, and a phone answers."""

import asyncio
import signal
import stat
from pathlib import Path

import pytest
from programs import PROGRAMS, Program
from world import World

from tests.camera import read_file
from tests.end_to_end.household import Home, ends
from tests.end_to_end.window import TIMEOUT, Window

pytestmark = pytest.mark.asyncio(loop_scope="module")


def companion(world: World, home: Home, *options: str) -> tuple[str | Path, ...]:
    return (
        PROGRAMS / "companion-push", "companion", "run", "--state", world.state(home.phone), *world.trust,
        "--opener", "qr", "--once", *options,
    )  # fmt: skip


async def phone(world: World, home: Home, url: str) -> Program:
    """A phone whose camera has read `url`."""
    phone = await world.run(
        "phone", "companion-push", "phone", "--url", "-", "--uv", "accept", "--credentials", world.passkeys,
        "--radio", world.radio, "--tunnel", world.tunnel, *world.trust,
    )  # fmt: skip
    await phone.write(f"{url}\n")
    return phone


def pictures(world: World, home: Home) -> list[Path]:
    return sorted(world.state(home.phone).glob("*.png"))


@pytest.mark.parametrize(
    ("columns", "rows", "environment"),
    [
        (80, 24, {}),
        (50, 24, {}),
        (100, 45, {"PYTHONIOENCODING": "ascii"}),
        (100, 45, {"LC_ALL": "C", "PYTHONUTF8": "0"}),
    ],
    ids=["80x24", "50x24", "stderr in ASCII", "C locale"],
)
async def test_a_phone_reads_the_code_off_the_terminal_and_signs_in(
    world: World, home: Home, columns: int, rows: int, environment: dict[str, str]
) -> None:
    user = f"ada {columns} {len(environment)}"
    async with Window.open(columns, rows, *companion(world, home), **environment) as (window, process):
        device = await world.device(home.hub, "register", "--user", user)
        await window.until(lambda: "Approve? y or n:" in window.screen.text)
        window.type("y\n")
        # all at once: each second it is drawn anew, and half of that may have been read from the terminal
        words = f'"{home.hub}" asks to create a passkey', "at localhost", " left"
        await window.until(
            lambda: all(each in window.screen.text for each in words) and window.screen.read() is not None
        )
        url = window.screen.read()
        assert url is not None
        answering = await phone(world, home, url)
        assert (await ends(answering), await ends(device)) == (0, 0)
        async with asyncio.timeout(TIMEOUT):
            assert await process.wait() == 0
        await window.until(lambda: window.written.rstrip().endswith("done"))
    assert "\x1b[?1049l" in window.written
    assert "handed to the phone" not in window.written
    _, _, after = window.written.rpartition("\x1b[?1049l")
    assert "the QR code is there to be scanned" in after  # said when there is a place for it again
    assert url not in window.written
    assert pictures(world, home) == []


@pytest.mark.threat("T11")
async def test_where_the_code_does_not_fit_the_picture_is_a_file_that_goes(world: World, home: Home) -> None:
    async with Window.open(80, 24, *companion(world, home), PYTHONIOENCODING="ascii") as (window, process):
        device = await world.device(home.hub, "register", "--user", "grace")
        await window.until(lambda: "Approve? y or n:" in window.screen.text)
        window.type("y\n")
        await window.until(lambda: "The QR code needs 74 and 40" in window.screen.text)
        (file,) = pictures(world, home)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        url = read_file(file.read_bytes())
        assert url is not None
        answering = await phone(world, home, url)
        assert (await ends(answering), await ends(device)) == (0, 0)
        async with asyncio.timeout(TIMEOUT):
            assert await process.wait() == 0
    assert pictures(world, home) == []


@pytest.mark.threat("T11")
async def test_keys_that_stop_or_kill_the_companion_take_the_code_off_the_terminal(
    world: World, home: Home
) -> None:
    left = "\x1b[?7h\x1b[?25h\x1b[?1049l"  # lines are broken, there is a cursor, and the screen of before
    async with Window.open(80, 24, *companion(world, home)) as (window, process):
        device = await world.device(home.hub, "register", "--user", "mallory")
        await window.until(lambda: "Approve? y or n:" in window.screen.text)
        window.type("y\n")
        await window.until(lambda: window.screen.read() is not None)
        before = len(window.written)
        window.type("\x1a")  # Ctrl-Z: without a shell it does not stop, and goes on at once
        await window.until(lambda: left in window.written[before:])
        await window.until(lambda: "\x1b[?1049h" in window.written[before:].rpartition(left)[2])
        await window.until(lambda: window.screen.read() is not None)
        window.type("\x1c")  # Ctrl-\
        async with asyncio.timeout(TIMEOUT):
            assert await process.wait() == -signal.SIGQUIT
        await window.until(lambda: window.written.endswith(left))
    device.kill()
    await device.wait()


@pytest.mark.threat("T11")
@pytest.mark.parametrize("end", ["interrupted", "killed, and started again"])
async def test_no_picture_is_left_behind(world: World, home: Home, end: str) -> None:
    """Without a terminal there is a file, and nothing of the code on stderr."""
    program = await world.run(home.phone, *companion(world, home, "--consent", "accept"))
    await program.stage("listening")
    device = await world.device(home.hub, "register", "--user", "eve")
    await program.stage("opened")
    (file,) = pictures(world, home)
    url = read_file(file.read_bytes())
    assert url is not None
    assert url not in "".join(program.said)
    assert str(file) in "".join(program.said)
    assert not any(block in "".join(program.said) for block in "█▀▄#")
    if end == "interrupted":
        program.process.terminate()
        assert await ends(program) in (0, 130)
    else:
        program.kill()
        await program.wait()
        assert pictures(world, home) == [file]
        again = await world.run(home.phone, *companion(world, home, "--consent", "accept", "--pending"))
        assert await ends(again) == 0
    assert pictures(world, home) == []
    device.kill()
    await device.wait()
