"""What counts open things counts them, and what cancels everywhere does."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp

from tests.open_things import Interruption, Open, cancel_everywhere, interrupted
from tests.programs import ROOT


async def test_a_task_a_session_and_a_socket_that_stay_are_named_until_they_are_closed() -> None:
    before = Open.now()
    task = asyncio.create_task(asyncio.sleep(1000))
    session = aiohttp.ClientSession()
    here, there = socket.socketpair()
    left = Open.now().beside(before)
    assert [each.partition(" ")[0].partition(":")[0] for each in left] == ["task", "a", "socket", "socket"]
    task.cancel()
    await asyncio.wait({task})
    await session.close()
    here.close()
    there.close()
    assert Open.now().beside(before) == []


async def test_every_point_where_a_task_or_its_child_waits_is_cancelled_once() -> None:
    cancelled_at: list[str] = []

    async def step(name: str) -> None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            cancelled_at.append(name)
            raise

    async def child() -> None:
        await step("child")

    async def work() -> None:
        await step("first")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(child())
        await step("last")

    async def one(interruption: Interruption) -> Interruption:
        await asyncio.wait({asyncio.create_task(interrupted(work(), interruption))})
        return interruption

    assert await cancel_everywhere(one) == 4  # the three steps, and the end of the task group
    assert set(cancelled_at) == {"first", "child", "last"}


def test_each_asynchronous_test_is_counted_unless_it_shares_its_loop(tmp_path: Path) -> None:
    (tmp_path / "test_leaving.py").write_text(
        """
import asyncio

import pytest
from hypothesis import given, strategies

from tests import open_things

open_things.PATIENCE = 0
left = []


def leave_a_task():
    left.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))


async def test_alone():
    leave_a_task()


@given(strategies.none())
async def test_with_examples(_example):
    leave_a_task()


@pytest.mark.asyncio(loop_scope="module")
async def test_in_a_shared_loop():
    leave_a_task()
"""
    )
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "tests.conftest",
            "-c",
            ROOT / "pyproject.toml",
            "-p",
            "no:cacheprovider",
            tmp_path,
        ],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    errors = [line.split(" - ")[0] for line in ran.stdout.splitlines() if line.startswith("ERROR ")]
    assert [error.rpartition("::")[2] for error in errors] == ["test_alone", "test_with_examples"]
    assert ran.stdout.splitlines()[-1].startswith("3 passed, 2 errors")
