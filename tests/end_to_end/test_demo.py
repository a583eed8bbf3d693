"""The demo, run as `make demo` runs it: each story ends with the status that is true, and leaves nothing behind."""

import asyncio
import contextlib
import io
import json
import os
import re
import secrets
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demo
import pytest
from rich.console import Console

from tests.end_to_end.household import processes
from tests.test_early_signals import signalled

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
TIMEOUT = 240


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


async def start(*options: str, mark: tuple[str, str], temporary: Path, **environment: str) -> Process:
    more = [f"{name}={value}" for name, value in environment.items()]
    return await asyncio.create_subprocess_exec(
        "/usr/bin/env", *more, f"{mark[0]}={mark[1]}", f"TMPDIR={temporary}", sys.executable, DEMO, *options,
        stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """Where a story is told in this process, so that its programs come from the fork server."""

    temporary: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def tell(self, *options: str) -> Story:
        """The demo from beginning to end."""
        name, value = marker()
        self.monkeypatch.setenv(name, value)
        self.monkeypatch.setattr(tempfile, "tempdir", str(self.temporary))
        self.monkeypatch.setattr(sys, "argv", [str(DEMO), *options, "--json"])
        status = demo.main()
        output, complaints = self.capsys.readouterr()
        assert complaints == ""
        left_nothing((name, value), self.temporary)
        return Story(status, [json.loads(line) for line in output.splitlines()])


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Stage:
    return Stage(tmp_path, monkeypatch, capsys)


async def tell(*options: str, temporary: Path) -> Story:
    """The demo from beginning to end, in a process of its own, which executes its programs."""
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


def test_a_sign_in_over_graphql_ends_with_a_session(stage: Stage) -> None:
    story = stage.tell("--graphql")
    assert (story.status, story.end["status"], story.end["user"]) == (0, 0, "ada")
    told = [event["what"] for event in story.events if event.get("who") == demo.PHONE]
    assert "subscribes to its inbox" in told


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
    ("option", "status", "user"),
    [
        ("--decline", 5, None),
        ("--expire", 7, None),
        ("--notifications-off", 0, "ada"),
        ("--linked", 0, "ada"),
        ("--offline", 0, "ada"),
    ],
    ids=["decline", "expire", "notifications off", "linked", "offline"],
)
def test_a_variant_ends_well_when_it_ends_as_it_should(
    option: str, status: int, user: str | None, stage: Stage
) -> None:
    story = stage.tell(option)
    assert (story.status, story.end["status"], story.end["right"]) == (0, status, True)
    assert story.end["user"] == user
    assert "as it should be" in story.end["text"].lower()
    if option == "--notifications-off":
        check_order(story)


def check_order(story: Story) -> None:
    """One clock, causes before effects, and one name for each who does something."""
    steps = sorted(
        (event for event in story.events if event["event"] == "step"), key=lambda step: step["elapsed"]
    )
    for before, after in (
        ("prepared", "submitted"),
        ("arrived", "phone-advertising"),
        ("phone-advertising", "advert-heard"),
        ("advert-heard", "request-sent"),
        ("phone-asked", "phone-verified"),
        ("phone-verified", "reply-checked"),
        ("reply-checked", "completed"),
    ):
        order = [step["stage"] for step in steps if step.get("stage") in (before, after)]
        assert order == [before, after] * 2  # a registration and a sign-in
    assert {step["who"] for step in steps} == {"Kitchen hub", PHONE, "relay", "relying party"}


@pytest.mark.threat("T5")
def test_in_the_race_one_companion_opens_each_request(stage: Stage) -> None:
    story = stage.tell("--race")
    assert (story.status, story.end["status"]) == (0, 0)
    assert story.end["text"].startswith("The defence held")
    signing = [event for event in story.events if event.get("stage") == "phone-verified"]
    assert len(signing) == 2  # a registration and a sign-in


@pytest.mark.threat("T3")
@pytest.mark.threat("T16")
def test_a_phone_whose_companion_does_not_claim_gets_no_command(stage: Stage) -> None:
    story = stage.tell("--unclaimed")
    assert (story.status, story.end["status"], story.end["user"]) == (0, 8, None)
    assert story.end["text"].startswith("The defence held")
    assert "phone-asked" not in story.stages(TABLET)
    assert "opened" in story.stages(TABLET)


CHANNEL: list["Told"] = [(demo.DEVICE, "channel-open", None)]
SENT: list["Told"] = [(demo.DEVICE, "request-sent", None)]
NOT_CLAIMED: list["Told"] = [(demo.DEVICE, None, "not-claimed")]


@pytest.mark.parametrize(
    ("steps", "status", "right"),
    [
        ([*CHANNEL, *SENT, *CHANNEL, *NOT_CLAIMED], 8, True),
        ([*CHANNEL, *SENT, *CHANNEL, *SENT, *NOT_CLAIMED], 8, False),
        ([*CHANNEL, *SENT, *NOT_CLAIMED], 8, False),
        ([*CHANNEL, *SENT, *CHANNEL], 8, False),
        ([*CHANNEL, *SENT, *CHANNEL, *NOT_CLAIMED], 7, False),
    ],
    ids=["no command", "a command", "no phone", "another reason", "another status"],
)
def test_an_unclaimed_story_ends_well_when_a_phone_was_there_and_got_no_command(
    steps: list["Told"],
    status: int,
    right: bool,  # noqa: FBT001
) -> None:
    assert demo.ENDINGS["unclaimed"].is_right(told(*steps), status, None) is right


@pytest.mark.threat("T2")
def test_the_rogue_relay_is_refused_before_everybodys_eyes(stage: Stage) -> None:
    story = stage.tell("--rogue-relay")
    assert (story.status, story.end["status"]) == (0, 8)
    assert story.end["text"].startswith("The defence held")
    refused = [event for event in story.events if event.get("stage") == "refused"]
    assert [event["reason"] for event in refused] == ["bad-signature"]
    assert not any(event.get("stage") in ("claimed", "opened") for event in story.events)


@pytest.mark.threat("T2")
async def test_a_defence_that_nothing_was_up_against_did_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The story of the rogue relay, with an honest one."""
    monkeypatch.setattr(demo, "_relay", lambda _args: ("companion-push", "relay"))
    timeline = demo.Timeline(as_json=False, console=Console(file=io.StringIO(), width=80))
    async with asyncio.timeout(TIMEOUT):
        status = await demo.demo(demo.make_parser().parse_args(["--rogue-relay"]), timeline, tmp_path)
    assert status == 1
    assert isinstance(timeline.console.file, io.StringIO)
    assert "The defence did NOT hold" in timeline.console.file.getvalue()


PHONE, TABLET = "Ada's phone", "Ada's tablet"
Told = tuple[str, str | None, str | None]  # who tells of which stage, and the reason


def told(*steps: Told) -> demo.Timeline:
    """The story in which the programs told of these."""
    timeline = demo.Timeline(as_json=True, console=Console(file=io.StringIO()))
    timeline.steps = [demo.Step(0.0, who, "", "", stage, reason) for who, stage, reason in steps]
    return timeline


REFUSED: Told = (PHONE, "refused", "bad-signature")
SESSION = {"user": {"name": "ada"}}


@pytest.mark.parametrize(
    ("steps", "status", "session"),
    [
        ([], 8, None),
        ([(PHONE, "refused", "unknown-device")], 8, None),
        ([REFUSED, (PHONE, "claimed", None)], 8, None),
        ([REFUSED, (PHONE, "phone-advertising", None)], 8, None),
        ([REFUSED], 7, None),
        ([REFUSED], 0, SESSION),
    ],
    ids=["not refused", "another reason", "claimed", "a phone was asked", "another status", "a session"],
)
def test_what_else_may_come_of_a_rogue_relay_is_no_defence(
    steps: list[Told], status: int, session: dict[str, Any] | None
) -> None:
    ending = demo.ENDINGS["rogue_relay"]
    assert ending.is_right(told(REFUSED), 8, None)
    assert not ending.is_right(told(*steps), status, session)


REGISTERED: list[Told] = [(TABLET, "claimed", None), (TABLET, "phone-verified", None)]


@pytest.mark.parametrize(
    ("steps", "right"),
    [
        ([*REGISTERED, (PHONE, "claimed", None), (PHONE, "phone-verified", None)], True),
        ([*REGISTERED, *REGISTERED], True),
        ([*REGISTERED, *REGISTERED, (PHONE, "claimed", None)], False),
        ([*REGISTERED, (PHONE, "claimed", None), (TABLET, "phone-verified", None)], False),
        (REGISTERED, False),
    ],
    ids=["each once", "one both times", "two claims", "another phone", "one ceremony"],
)
def test_a_race_has_one_claim_and_one_phone_each_time(
    steps: list[Told],
    right: bool,  # noqa: FBT001
) -> None:
    assert demo.ENDINGS["race"].is_right(told(*steps), 0, SESSION) is right


async def test_for_people_it_prints_the_timeline_and_the_session_in_eighty_columns(tmp_path: Path) -> None:
    mark = marker()
    process = await start(mark=mark, temporary=tmp_path, COLUMNS="80")
    async with asyncio.timeout(TIMEOUT):
        output, complaints = await process.communicate()
    assert process.returncode == 0
    assert complaints == b""
    text = output.decode()
    assert "ada is signed in on Kitchen hub until" in text
    assert "from sign_in() to the session" in text
    assert "Traceback" not in text
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines)
    steps = [line for line in lines if re.match(r" *\d+\.\d{3} ", line)]
    assert len(steps) > 20
    assert (
        len(lines) == len(steps) + 3 * 2 + 5
    )  # titles and headings, and the end in its frame: a step has one line
    left_nothing(mark, tmp_path)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("chapter", signal.SIGINT),
        ("made FIDO URLs", signal.SIGINT),
        ("made FIDO URLs", signal.SIGTERM),
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("module", ["argparse", "asyncio", "rich.live", "world"])
async def test_interrupting_it_while_it_loads_ends_it_with_one_line(
    module: str, number: signal.Signals, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    mark = marker()
    process = await start(mark=mark, temporary=temporary, **signalled(tmp_path, module, number))
    _, complaints = await process.communicate()
    assert (process.returncode, complaints) == (130, b"demo: interrupted\n")
    left_nothing(mark, temporary)


async def test_a_terminal_that_interrupts_all_programs_at_once_gets_one_line(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole foreground group."""
    mark = marker()
    process = await start("--json", mark=mark, temporary=tmp_path)
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT):
        while b"made FIDO URLs" not in await process.stdout.readline():
            assert not process.stdout.at_eof()
        for each in processes("=".join(mark)):
            with contextlib.suppress(ProcessLookupError):  # one that has done its part meanwhile
                os.kill(each, signal.SIGINT)
        _, complaints = await process.communicate()
    assert process.returncode in (130, 70)
    assert b"Traceback" not in complaints
    assert len(complaints.splitlines()) == 1
    left_nothing(mark, tmp_path)
