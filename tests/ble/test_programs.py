"""Sign-ins by the programs themselves, as a user starts them; the device listens through BlueZ."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from programs import Program
from world import World

from tests.ble.lab.guest import Guest
from tests.end_to_end.household import Home, handle_of, session_of

PATIENCE = 300.0  # seconds; a program takes ten to start on an emulated processor


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    for waiting in (Program.line, Program.stage, Program.says):
        monkeypatch.setattr(waiting, "__kwdefaults__", {"timeout": PATIENCE})
    async with World.start(tmp_path) as world:
        yield world


async def test_a_user_registers_and_signs_in(guest: Guest, world: World) -> None:
    home = await Home.make(world)
    sessions = []
    for ceremony in ("register", "sign-in"):
        companion = await world.companion(home.phone, "--once", "--radio", "bluez:hci0")
        more = ("--user", "ada") if ceremony == "register" else ()
        device = await world.device(home.hub, ceremony, "--radio", "bleak:hci1", *more)
        sessions.append(await session_of(device))
        assert await device.wait(timeout=PATIENCE) == await companion.wait(timeout=PATIENCE) == 0
    registered, signed_in = sessions
    assert handle_of(signed_in) == handle_of(registered)
