"""The demo, run as `make demo` runs it: each story ends with the status that is true, and leaves nothing behind."""

import asyncio
import json
import os
import secrets
import signal
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.household import processes

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
TIMEOUT = 60


@dataclass
class Story:
    """How the demo went."""

    status: int
    events: list[dict[str, Any]]

    @property
    def end(self) -> dict[str, Any]:
        assert self.events[-1]["event"] == "end"
        return self.events[-1]

    def stages(self, who: str) -> list[str]:
        return [event["stage"] for event in self.events if event.get("who") == who and "stage" in event]


def marker() -> tuple[str, str]:
    return "HEADLESS_PASSKEY_TEST_DEMO", secrets.token_hex(8)


async def start(*options: str, mark: tuple[str, str], temporary: Path) -> Process:
    return await asyncio.create_subprocess_exec(
        "/usr/bin/env", f"{mark[0]}={mark[1]}", f"TMPDIR={temporary}", sys.executable, DEMO, *options,
        stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True,
    )  # fmt: skip


async def tell(*options: str, temporary: Path) -> Story:
    """The demo from beginning to end."""
    mark = marker()
    process = await start(*options, "--json", mark=mark, temporary=temporary)
    async with asyncio.timeout(TIMEOUT):
        output, complaints = await process.communicate()
    assert process.returncode is not None
    assert complaints == b""
    left_nothing(mark, temporary)
    return Story(process.returncode, [json.loads(line) for line in output.splitlines()])


def left_nothing(mark: tuple[str, str], temporary: Path) -> None:
    assert processes("=".join(mark)) == []
    assert list(temporary.iterdir()) == []


async def test_the_plain_story_ends_with_a_session(tmp_path: Path) -> None:
    story = await tell(temporary=tmp_path)
    assert story.status == story.end["status"] == 0
    assert story.end["user"] == "ada"
    assert 0 < story.end["seconds"] < TIMEOUT
    chapters = [event["title"] for event in story.events if event["event"] == "chapter"]
    assert len(chapters) == 3
    assert all({"elapsed", "who", "what", "holds"} <= set(e) for e in story.events if e["event"] == "step")
    assert story.stages("relying party") == ["completed", "completed"]


@pytest.mark.parametrize(
    ("option", "status"), [("--decline", 5), ("--expire", 7), ("--notifications-off", 0)]
)
async def test_a_variant_ends_with_its_true_status(option: str, status: int, tmp_path: Path) -> None:
    story = await tell(option, temporary=tmp_path)
    assert story.status == story.end["status"] == status
    assert story.end["user"] == ("ada" if status == 0 else None)


@pytest.mark.threat("T5")
async def test_in_the_race_one_companion_opens_each_request(tmp_path: Path) -> None:
    story = await tell("--race", temporary=tmp_path)
    assert story.status == story.end["status"] == 0
    answered = [event for event in story.events if event.get("stage") == "phone-answered"]
    assert len(answered) == 2  # a registration and a sign-in


@pytest.mark.threat("T2")
async def test_the_rogue_relay_is_refused_before_everybodys_eyes(tmp_path: Path) -> None:
    story = await tell("--rogue-relay", temporary=tmp_path)
    assert story.status == story.end["status"] == 8
    refused = [event for event in story.events if event.get("stage") == "refused"]
    assert refused
    assert not any(event.get("stage") in ("claimed", "opened") for event in story.events)


async def test_for_people_it_prints_the_timeline_and_the_session(tmp_path: Path) -> None:
    mark = marker()
    process = await start(mark=mark, temporary=tmp_path)
    async with asyncio.timeout(TIMEOUT):
        output, complaints = await process.communicate()
    assert process.returncode == 0
    assert complaints == b""
    text = output.decode()
    assert "is signed in on the device until" in text
    assert "from sign_in() to the session" in text
    assert "Traceback" not in text
    left_nothing(mark, tmp_path)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("chapter", signal.SIGINT),
        ("made a FIDO URL", signal.SIGINT),
        ("made a FIDO URL", signal.SIGTERM),
    ],
    ids=["SIGINT at first", "SIGINT in a ceremony", "SIGTERM in a ceremony"],
)
async def test_interrupting_ends_every_program(moment: str, number: signal.Signals, tmp_path: Path) -> None:
    mark = marker()
    process = await start("--json", mark=mark, temporary=tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.timeout(TIMEOUT):
        while moment.encode() not in await process.stdout.readline():
            assert not process.stdout.at_eof()
        process.send_signal(number)
        await process.stdout.read()
        complaints = await process.stderr.read()
        assert await process.wait() == 130
    assert complaints.decode().splitlines() == ["demo: interrupted"]
    left_nothing(mark, tmp_path)


async def test_a_terminal_that_interrupts_all_programs_at_once_gets_one_line(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole foreground group."""
    mark = marker()
    process = await start("--json", mark=mark, temporary=tmp_path)
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT):
        while b"made a FIDO URL" not in await process.stdout.readline():
            assert not process.stdout.at_eof()
        for each in processes("=".join(mark)):
            os.kill(each, signal.SIGINT)
        _, complaints = await process.communicate()
    assert process.returncode in (130, 70)
    assert b"Traceback" not in complaints
    assert len(complaints.splitlines()) == 1
    left_nothing(mark, tmp_path)
