"""The relay as a program on a disk that is full, or that fails: who is answered what, and what is there afterwards."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.companion.program import Program, running
from tests.failing_disk import FailingDisk
from tests.relay.household import fresh_id
from tests.relay.states import stored_requests
from tests.relay.stores import of_files
from tests.relay.test_killed_before_the_push import ProgramRelay

pytestmark = of_files


@asynccontextmanager
async def started(tmp_path: Path, disk: FailingDisk) -> AsyncIterator[tuple[Program, ProgramRelay]]:
    store = tmp_path / "relay.sqlite3"
    words = (
        "relay",
        "--listen",
        "127.0.0.1:0",
        "--store",
        store,
        "--no-pauses",
        "--requests-per-minute",
        "1000",
    )
    async with (
        running(*words, "--requests-per-day", "1000", environment=disk.environment) as program,
        aiohttp.ClientSession() as session,
    ):
        yield program, ProgramRelay(await program.line(), session, store)


@pytest.mark.threat("T17")
async def test_a_relay_goes_on_with_the_room_that_its_log_has_though_the_disk_is_full(tmp_path: Path) -> None:
    """The log is copied into the file, and what comes next is written over it."""
    disk = FailingDisk(tmp_path)
    async with started(tmp_path, disk) as (program, relay):
        home = await relay.household()
        (anna, bert), (frame,) = home.companions, home.devices
        assert (await frame.submit(anna, bert)).status == 201
        program.terminate()
        assert await program.ended() == 0
    async with started(tmp_path, disk) as (program, relay):
        home = relay.again(home)
        (anna, bert), (frame,) = home.companions, home.devices
        for _ in range(2):
            assert (await frame.submit(anna, bert)).status == 201
        with disk.full():
            refused = await frame.submit(anna, bert)
            assert (refused.status, refused.problem) == (503, "store-unavailable")
            assert int(refused.headers["Retry-After"]) > 0
            name = fresh_id()
            async with asyncio.timeout(60):
                while (await frame.submit(anna, bert, name=name)).status == 503:
                    pass
            assert (await frame.status(name))["state"] == "pending"
        program.process.kill()
        await program.process.wait()
    assert stored(tmp_path)[name] == "pending"


@pytest.mark.threat("T16")
async def test_a_relay_whose_disk_has_failed_to_write_answers_nothing_until_it_is_started_again(
    tmp_path: Path,
) -> None:
    disk = FailingDisk(tmp_path)
    async with started(tmp_path, disk) as (program, relay):
        home = await relay.household()
        (anna, bert), (frame,) = home.companions, home.devices
        kept, lost = fresh_id(), fresh_id()
        assert (await frame.submit(anna, bert, name=kept)).status == 201
        disk.fails_to_sync_logs(1)
        assert (await frame.submit(anna, bert, name=lost)).status == 503
        for path in (f"/v1/requests/{kept}", f"/v1/requests/{lost}"):
            assert (await frame.get(path)).problem == "store-unavailable"
        assert (await anna.get("/v1/inbox")).status == 503
        assert (await frame.get("/readyz")).status == 503
        assert (await frame.get("/livez")).status == 200
        program.terminate()
        assert await program.ended() == 0
        assert any(
            "could not be written to the disk" in line and "start again" in line for line in program.said
        )
    assert stored(tmp_path)[kept] in ("pending", "superseded")


def stored(folder: Path) -> dict[str, str]:
    """The states of the requests that the next relay finds."""
    return {request.id: request.state for request in stored_requests(folder / "relay.sqlite3")}
