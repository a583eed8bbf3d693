"""`companion-push companion` from outside: joining, inviting, answering requests, exit statuses."""

import asyncio
import contextlib
import json
import re
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from companion_push.companion.keys import CompanionState
from headless_passkey.account import enrolment
from headless_passkey.trust.envelope import new_request_id
from headless_passkey.trust.invitation import Invitation
from tests.companion.family import Companion, Frame, Hands, enrolled
from tests.companion.program import PROGRAM, ROOT, Program, at_terminal, outcome, running
from tests.programs import nobody_reads
from tests.relay.household import Household, Relay
from tests.screen import TIMEOUT
from tests.trust.people import ACCOUNT, device, reseal

UNASKED = ["--yes", "--without-number"]  # and for devices --any-rp-id


def state_of(folder: Path, name: str) -> Path:
    return folder / "state" / name


async def code_of(relay: Relay, name: str = "family") -> str:
    return await relay.account_line(name)


async def founded(relay: Relay, folder: Path) -> Path:
    """The state directory of a first companion that joined as a program."""
    state = state_of(folder, "first")
    words = ["companion", "join", "--code", "-", "--label", "My phone", "--state", state]
    status, stdout, said = await outcome(*words, stdin=f"{await code_of(relay)}\n")
    assert (status, stdout) == (0, ""), said
    return state


# Joining


async def test_a_code_founds_an_account_and_the_state_is_its_owners_alone(
    relay: Relay, tmp_path: Path
) -> None:
    state = await founded(relay, tmp_path)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in state.iterdir())
    status, stdout, _ = await outcome("companion", "members", "--state", state, "--json")
    members = json.loads(stdout)
    assert status == 0
    assert (members["version"], [member["label"] for member in members["members"]]) == (1, ["My phone"])
    status, stdout, _ = await outcome("companion", "members", "--state", state)
    assert '"My phone"  (this one)' in stdout


async def test_who_has_joined_cannot_join_again(relay: Relay, tmp_path: Path) -> None:
    state = await founded(relay, tmp_path)
    words = ["companion", "join", "--code", "-", "--label", "x", "--state", state]
    status, _, said = await outcome(*words, stdin=await code_of(relay, "other"))
    assert status == 10
    assert "already" in said[-1]


async def test_a_code_founds_once(relay: Relay, tmp_path: Path) -> None:
    code = await code_of(relay)
    for name, expected in (("one", 0), ("two", 8)):
        words = ["companion", "join", "--code", "-", "--label", name, "--state", state_of(tmp_path, name)]
        assert (await outcome(*words, stdin=code))[0] == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [("", 3), ("hpk-account:", 3), ("hpk-invitation:AAAA", 3), ("FIDO:/123", 3), ("\x00", 3)],
)
async def test_a_line_that_is_no_code_is_3(tmp_path: Path, line: str, expected: int) -> None:
    words = ["companion", "join", "--code", "-", "--label", "x", "--state", state_of(tmp_path, "x")]
    status, _, said = await outcome(*words, stdin=f"{line}\n")
    assert status == expected
    assert len(said) == 1


async def test_a_join_that_was_interrupted_goes_on_with_the_same_keys(relay: Relay, tmp_path: Path) -> None:
    first, state = await founded(relay, tmp_path), state_of(tmp_path, "second")
    words = ["companion", "join", "--code", "-", "--label", "Tablet", "--json", "--state", state]
    invite = ["companion", "invite", "--kind", "companion", "--state", first]
    async with at_terminal(*invite, raw=False) as (inviter, screen):
        invitation = await inviter.line()
        async with running(*words, stdin=invitation) as newcomer:
            number = (await newcomer.until_stage("number"))["check_number"]
            newcomer.terminate()
            assert await newcomer.ended() == 130
        async with running(*words, stdin=invitation) as newcomer:
            assert (await newcomer.until_stage("number"))["check_number"] == number
            await screen.until("Type the six digits")
            screen.type(f"{number}\n")
            assert await newcomer.ended() == 0
        assert await inviter.ended() == 0


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("", "has 0 characters; 1 to 64 are expected"),
        (" x", "has a space at an end"),
        ("x" * 65, "has 65 characters; 1 to 64 are expected"),
        ("a\nb", "has U+000A as character 2, which does not show as itself"),
        ("\x1b[31m", "has U+001B as character 1, which does not show as itself"),
        ("x\u200d", "has U+200D as character 2, where it joins nothing"),
    ],
    ids=["nothing", "space", "too long", "line end", "escape", "joiner"],
)
async def test_a_label_that_is_none_is_2_and_says_why(tmp_path: Path, label: str, reason: str) -> None:
    words = ["companion", "join", "--code", "-", "--label", label, "--state", state_of(tmp_path, "x")]
    status, _, said = await outcome(*words)
    assert (status, said) == (
        2,
        [f"companion-push: argument --label: a name {reason} (see --help)"],
    )


@pytest.mark.parametrize(
    "command",
    [["members"], ["run", "--consent", "accept"], ["invite", "--kind", "device", "--any-rp-id", *UNASKED]],
)
async def test_who_has_not_joined_is_9(tmp_path: Path, command: list[str]) -> None:
    status, _, said = await outcome("companion", *command, "--state", tmp_path / "nothing")
    assert status == 9
    assert "join" in said[-1]


async def test_a_state_directory_that_others_may_enter_is_refused(tmp_path: Path, relay: Relay) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    words = ["companion", "join", "--code", "-", "--label", "x", "--state", tmp_path / "open"]
    status, _, said = await outcome(*words, stdin=await code_of(relay))
    assert status == 10
    assert "open to others" in said[-1]


# Inviting


@pytest.mark.threat("T2")
async def test_a_device_is_invited_shown_and_let_in_when_its_number_comes(
    relay: Relay, tmp_path: Path
) -> None:
    state = await founded(relay, tmp_path)
    words = ["companion", "invite", "--kind", "device", "--rp-id", "example.com", "--state", state, "--json"]
    number: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with running(*words, "--yes", "--number", "-") as program:
        invitation = Invitation.parse(await program.line())
        joined = asyncio.create_task(
            enrolment.join(tmp_path / "device", invitation, label="Frame", on_check_number=number.set_result)
        )
        came = await program.until_stage("introduced")
        assert (came["kind"], came["label"]) == ("device", "Frame")
        assert "check_number" not in came, "who types it is not shown it"
        await program.write("not yet\n")
        await program.until_stage("no-number")
        await program.write(f"{await number}\n")
        assert await program.ended() == 0
        assert (await joined).member.rp_ids == ("example.com",)
        assert not any(invitation.encode() in line for line in program.said)
    _, stdout, _ = await outcome("companion", "members", "--state", state)
    assert "only example.com" in stdout


JOIN = ["companion", "join", "--code", "-", "--json"]


@pytest.mark.threat("T2")
@pytest.mark.parametrize(
    ("answer", "status"),
    [("right", 0), ("wrong", 8), ("n\n", 6), ("\x03", 6), ("\x04", 6)],
    ids=["right", "wrong", "n", "Ctrl-C", "Ctrl-D"],
)
async def test_a_companion_is_let_in_by_a_person_who_types_its_number(
    relay: Relay, tmp_path: Path, answer: str, status: int
) -> None:
    state = await founded(relay, tmp_path)
    invite = ["companion", "invite", "--kind", "companion", "--state", state]
    async with at_terminal(*invite, raw=False) as (inviter, screen):
        join = [*JOIN, "--label", "Tablet", "--state", state_of(tmp_path, "2")]
        async with running(*join, stdin=await inviter.line() + "\n") as newcomer:
            number = (await newcomer.until_stage("number"))["check_number"]
            await inviter.until_said('a companion has come that calls itself "Tablet"')
            await screen.until("Type the six digits that it shows, or n to refuse it:")
            screen.type("12345\n")  # a slip
            await screen.until("That is no number of six digits.")
            await screen.until("or n to refuse it:")  # what is typed before the question is discarded
            wrong = f"{(int(number.replace(' ', '')) + 1) % 1_000_000:06d}\n"
            screen.type({"right": f"{number}\n", "wrong": wrong}.get(answer, answer))
            assert await inviter.ended() == status
            assert await newcomer.ended() == (0 if status == 0 else 7)
        assert not any(number in line for line in inviter.said), "the number is never shown where it is typed"


@pytest.mark.threat("T4")
async def test_a_newcomer_that_is_called_as_a_member_gets_another_name_from_the_person(
    relay: Relay, tmp_path: Path
) -> None:
    state = await founded(relay, tmp_path)
    invite = ["companion", "invite", "--kind", "companion", "--state", state]
    async with at_terminal(*invite, raw=False) as (inviter, screen):
        join = [*JOIN, "--label", "My phone", "--state", state_of(tmp_path, "2")]
        async with running(*join, stdin=await inviter.line() + "\n") as newcomer:
            number = (await newcomer.until_stage("number"))["check_number"]
            await screen.until('A member is called "My phone" already.')
            screen.type("my phone\n")
            await screen.until("That name is taken too, or is no name.")
            await screen.until("Type another name for the newcomer:")
            screen.type("Ada's tablet\n")
            await screen.until("Type the six digits")
            screen.type(f"{number}\n")
            assert (await newcomer.until_stage("joined"))["label"] == "Ada's tablet"
            assert (await newcomer.ended(), await inviter.ended()) == (0, 0)


@pytest.mark.threat("T4")
async def test_a_newcomer_that_is_called_as_a_member_is_refused_where_nobody_is_asked(
    relay: Relay, tmp_path: Path
) -> None:
    state = await founded(relay, tmp_path)
    async with running("companion", "invite", "--kind", "companion", *UNASKED, "--state", state) as inviter:
        join = [*JOIN, "--label", "My phone", "--state", state_of(tmp_path, "2")]
        status, _, _ = await outcome(*join, stdin=await inviter.line() + "\n")
        assert (status, await inviter.ended()) == (7, 8)
        assert 'looks like the label of "My phone"' in inviter.said[-1]


@pytest.mark.threat("T2")
async def test_a_newcomer_is_shown_where_the_invitation_leads_and_asked_whether_to_go_on(
    relay: Relay, tmp_path: Path
) -> None:
    state = await founded(relay, tmp_path)
    account = CompanionState(state).identity().account
    async with running("companion", "invite", "--kind", "companion", *UNASKED, "--state", state) as inviter:
        code = tmp_path / "invitation"
        code.write_text(await inviter.line())
        join = ["companion", "join", "--code", code, "--label", "Tablet", "--state", state_of(tmp_path, "2")]
        async with at_terminal(*join, stderr=True) as (newcomer, screen):
            await screen.until(f'"My phone" invites into account "family" ({account}) at {relay.url}')
            await screen.until("Go on? y or n:")
            screen.type("n\n")
            assert await newcomer.ended() == 6
        assert await inviter.ended() == 7, "the inviter hears it at once"


@pytest.mark.threat("T2")
async def test_an_invitation_into_another_account_than_expected_is_8_and_sends_nothing(
    relay: Relay, tmp_path: Path
) -> None:
    state = await founded(relay, tmp_path)
    account = CompanionState(state).identity().account
    async with running("companion", "invite", "--kind", "companion", *UNASKED, "--state", state) as inviter:
        line = await inviter.line() + "\n"
        join = [*JOIN, "--label", "Tablet", "--state", state_of(tmp_path, "2"), "--expect-account"]
        status, _, said = await outcome(*join, ACCOUNT, stdin=line)
        assert (status, json.loads(said[-1])["reason"]) == (8, "account-mismatch")
        status, _, said = await outcome(*join, "family", stdin=line)
        assert status == 2
        assert (await outcome(*join, account, stdin=line))[0] == 0
        assert await inviter.ended() == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--yes"], "--yes needs --number FILE"),
        (["--number", "-"], "--number goes with --yes"),
        (["--yes", "--number", "-", "--without-number"], "exclude each other"),
        (["--kind", "companion", "--rp-id", "example.com"], "are for devices"),
        (["--kind", "companion", "--any-rp-id"], "are for devices"),
        (["--rp-id", "example.com", "--any-rp-id"], "exclude each other"),
        (["--yes", "--without-number"], "--rp-id which relying parties"),
    ],
    ids=range(7),
)
async def test_options_that_do_not_fit_are_2_and_say_why(
    relay: Relay, tmp_path: Path, options: list[str], why: str
) -> None:
    state = await founded(relay, tmp_path)
    invite = ["companion", "invite", "--kind", "device", "--state", state, *options]
    async with at_terminal(*invite) as (inviter, _):
        assert await inviter.ended() == 2
        assert why in inviter.said[-1]


@pytest.mark.threat("T4")
@pytest.mark.parametrize(
    ("typed", "rp_ids"),
    [
        ("login.example\n", ["login.example"]),
        ("a.example, b.example\n", ["a.example", "b.example"]),
        ("any\n", None),
    ],
    ids=["one", "two", "any"],
)
async def test_the_person_is_asked_which_relying_parties_a_device_may_ask_for(
    relay: Relay, tmp_path: Path, typed: str, rp_ids: list[str] | None
) -> None:
    state = await founded(relay, tmp_path)
    invite = ["companion", "invite", "--kind", "device", "--without-number", "--state", state]
    async with at_terminal(*invite, raw=False) as (inviter, screen):
        await screen.until("Which relying parties may the device ask for?")
        screen.type("https://login.example\n")
        await screen.until("That is not 1 to 8 domains, and not any.")
        screen.type(typed)
        invitation = Invitation.parse(await inviter.line())
        assert "whoever has seen" in await inviter.until_said("without a number")
        joined = asyncio.create_task(enrolment.join(tmp_path / "device", invitation, label="Frame"))
        await screen.until('Let "Frame" in without a number? y or n:')
        screen.type("y\n")
        assert await inviter.ended() == 0
        assert (await joined).member.rp_ids == (None if rp_ids is None else tuple(rp_ids))


async def test_an_invitation_nobody_uses_is_7_at_its_deadline(relay: Relay, tmp_path: Path) -> None:
    state = await founded(relay, tmp_path)
    words = [
        "companion",
        "invite",
        "--kind",
        "device",
        "--any-rp-id",
        *UNASKED,
        "--timeout",
        "0.5",
        "--state",
        state,
    ]
    assert (await outcome(*words))[0] == 7


async def test_an_invitation_for_a_device_lets_no_companion_in(relay: Relay, tmp_path: Path) -> None:
    state = await founded(relay, tmp_path)
    async with running(
        "companion", "invite", "--kind", "device", "--any-rp-id", *UNASKED, "--state", state
    ) as inviter:
        words = ["companion", "join", "--code", "-", "--label", "x", "--state", state_of(tmp_path, "2")]
        assert (await outcome(*words, stdin=await inviter.line()))[0] == 8


@pytest.mark.parametrize(
    "words",
    [
        ["--kind", "companion", "--rp-id", "example.com"],
        ["--kind", "toaster"],
        ["--kind", "device", "--rp-id", "A B"],
    ],
)
async def test_invite_words_that_do_not_do_are_2(relay: Relay, tmp_path: Path, words: list[str]) -> None:
    state = await founded(relay, tmp_path)
    assert (await outcome("companion", "invite", "--yes", *words, "--state", state))[0] == 2


async def test_inviting_without_a_terminal_is_2_unless_told_yes(relay: Relay, tmp_path: Path) -> None:
    state = await founded(relay, tmp_path)
    status, stdout, _ = await outcome("companion", "invite", "--kind", "device", "--state", state)
    assert (status, stdout) == (2, "")


# Answering requests


class Someone:
    """A companion that runs as a program."""

    def __init__(self, folder: Path, home: Household, number: int = 0) -> None:
        self.caller = home.companions[number]
        self.folder = folder
        enrolled(folder, self.caller, home)
        self.state = folder / self.caller.name
        self.opened = folder / f"opened by {number}"

    def words(self, *more: object, consent: str = "accept") -> list[object]:
        taking = f"{sys.executable} -c 'import sys; open(sys.argv[1], \"a\").write(sys.stdin.read())' '{self.opened}'"
        return [
            *("companion", "run", "--state", self.state, "--json", "--consent", consent),
            *("--opener", "command", "--opener-command", taking, *more),
        ]

    @contextlib.asynccontextmanager
    async def running(self, *more: object, consent: str = "accept") -> AsyncIterator[Program]:
        async with running(*self.words(*more, consent=consent)) as program:
            yield program


@pytest.fixture
def anna_outside(home: Household, tmp_path: Path) -> Someone:
    return Someone(tmp_path, home)


async def test_an_approved_request_goes_to_the_opener(anna_outside: Someone, frame: Frame) -> None:
    async with anna_outside.running("--once") as program:
        await program.until_stage("listening")
        name = await frame.ask(anna_outside.caller)
        arrived = await program.until_stage("arrived")
        assert (arrived["device"], arrived["kind"], arrived["rp_id"]) == ("frame 0", "ga", "example.com")
        await program.until_stage("opened")
        assert await program.ended() == 0
        url = anna_outside.opened.read_text()
        assert url.startswith("FIDO:/")
        assert url.strip() not in "\n".join(program.said)
    assert await frame.state_of(name) == "opened"


async def test_what_is_pending_is_dealt_with_and_the_program_ends(
    anna_outside: Someone, frame: Frame
) -> None:
    async with anna_outside.running("--pending") as program:
        await program.until_stage("nothing-pending")
        assert await program.ended() == 0
    await frame.ask(anna_outside.caller)
    async with anna_outside.running("--pending") as program:
        await program.until_stage("opened")
        assert await program.ended() == 0


async def test_a_companion_in_the_background_answers_and_ends_where_nobody_reads_what_it_says(
    anna_outside: Someone, frame: Frame
) -> None:
    with nobody_reads() as stderr:
        process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            *map(str, anna_outside.words()),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            async with asyncio.timeout(TIMEOUT):
                name = await frame.ask(anna_outside.caller)
                while await frame.state_of(name) != "opened":  # noqa: ASYNC110  nobody tells  # noqa: ASYNC110  a program's state
                    await asyncio.sleep(0.05)
                process.terminate()
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_a_declined_request_is_6(anna_outside: Someone, frame: Frame) -> None:
    name = await frame.ask(anna_outside.caller)
    async with anna_outside.running("--once", consent="decline") as program:
        assert await program.ended() == 6
    assert await frame.state_of(name) == "declined"
    assert not anna_outside.opened.exists()


@pytest.mark.threat("T2")
async def test_a_forged_request_is_8_and_opens_nothing(anna_outside: Someone, frame: Frame) -> None:
    request_id = new_request_id()
    person = anna_outside.caller.person
    forged = reseal(frame.say(person, request_id), by=device("stranger"), to=person)
    await frame.submit(request_id, {anna_outside.caller.name: forged})
    async with anna_outside.running("--once") as program:
        assert (await program.until_stage("refused"))["reason"] == "bad-signature"
        assert await program.ended() == 8
    assert not anna_outside.opened.exists()


async def test_a_forged_request_does_not_keep_an_honest_one_from_being_answered(
    anna_outside: Someone, frame: Frame, home: Household, relay: Relay
) -> None:
    request_id = new_request_id()
    person = anna_outside.caller.person
    newcomer = relay.caller(device("second frame"))
    await home.append(*(each.person for each in (*home.companions, *home.devices, newcomer)))
    forged = reseal(frame.say(person, request_id), by=device("stranger"), to=person)
    await frame.submit(request_id, {anna_outside.caller.name: forged})
    await Frame(caller=newcomer, home=home).ask(anna_outside.caller)
    async with anna_outside.running("--pending") as program:
        assert await program.ended() == 0
    assert anna_outside.opened.exists()


async def test_an_opener_that_fails_is_4_and_told_to_the_device(anna_outside: Someone, frame: Frame) -> None:
    name = await frame.ask(anna_outside.caller)
    words = ["companion", "run", "--state", anna_outside.state, "--consent", "accept", "--pending"]
    status, _, said = await outcome(*words, "--opener", "command", "--opener-command", "false")
    assert status == 4
    assert "status 1" in said[-1]
    assert await frame.state_of(name) == "failed"


async def test_of_two_programs_one_wins_and_the_other_says_who(
    home: Household, tmp_path: Path, frame: Frame
) -> None:
    anna, bert = Someone(tmp_path, home, 0), Someone(tmp_path, home, 1)
    async with anna.running("--once") as first, bert.running("--once") as second:
        for program in (first, second):
            await program.until_stage("listening")
        await frame.ask(anna.caller, bert.caller)
        assert [await first.ended(), await second.ended()] == [0, 0]
        stages = [
            [said["stage"] for line in program.said if "stage" in (said := json.loads(line))]
            for program in (first, second)
        ]
    assert sorted("opened" in each for each in stages) == [False, True]
    loser = next(each for each in stages if "opened" not in each)
    assert loser[-1] in ("claim-lost", "gone")
    assert anna.opened.exists() != bert.opened.exists()


async def test_it_runs_until_sigterm_and_ends_with_0(anna_outside: Someone, frame: Frame) -> None:
    async with anna_outside.running() as program:
        await program.until_stage("listening")
        for _ in range(2):
            await frame.ask(anna_outside.caller)
            await program.until_stage("finished")
        program.terminate()
        assert await program.ended() == 0


async def test_a_second_companion_on_the_same_state_is_4(anna_outside: Someone) -> None:
    async with anna_outside.running() as program:
        await program.until_stage("listening")
        status, _, said = await outcome(*anna_outside.words("--pending"))
        assert status == 4
        assert "in use" in said[-1]


@pytest.mark.parametrize(
    "words",
    [
        ["--opener", "command"],
        ["--opener", "qr", "--opener-command", "cat"],
        ["--opener", "command", "--opener-command", "no-such-program-anywhere"],
        ["--opener", "command", "--opener-command", "'"],
        ["--opener", "phone"],
        [
            *("--opener", "phone", "--credentials", "/nowhere/x", "--radio", "stdout"),
            *("--tunnel", "1=wss://localhost", "--uv", "accept"),
        ],
        ["--opener", "phone", "--credentials", "x", "--radio", "stdout"],
        ["--opener", "carrier-pigeon"],
        ["--opener", "qr", "--consent", "ask"],
        ["--opener", "qr", "--digits"],
    ],
)
async def test_run_words_that_do_not_do_are_2(anna_outside: Someone, words: list[str]) -> None:
    given = words if "--consent" in words else [*words, "--consent", "accept"]
    status, _, said = await outcome("companion", "run", "--state", anna_outside.state, *given)
    assert status == 2
    assert not any("Traceback" in line for line in said)


@pytest.mark.threat("T4")
async def test_consent_without_asking_is_loud_at_each_use(anna_outside: Someone, frame: Frame) -> None:
    await frame.ask(anna_outside.caller)
    words = ["companion", "run", "--state", anna_outside.state, "--consent", "accept", "--pending"]
    status, _, said = await outcome(*words, "--opener", "command", "--opener-command", "cat")
    assert status == 0
    assert (
        "WARNING: --consent accept approves every request without asking anybody, and compares no digits"
        in said
    )
    assert 'WARNING: approved without asking anybody: "frame 0" asks to sign in at example.com' in said
    assert 'handed to the opener command. Your phone must now say "example.com".' in "\n".join(said)


@pytest.mark.threat("T4")
@pytest.mark.parametrize("place", ["environment", "file"])
async def test_consent_without_asking_is_said_on_the_command_line_or_not_at_all(
    anna_outside: Someone, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: list[object] = ["companion", "run", "--state", anna_outside.state, "--pending"]
    if place == "environment":
        monkeypatch.setenv("COMPANION_PUSH_COMPANION_RUN_CONSENT", "accept")
    else:
        (tmp_path / "run.toml").write_text('[companion.run]\nconsent = "accept"\n')
        words += ["--config", tmp_path / "run.toml"]
    status, _, said = await outcome(*words)
    assert status == 2
    assert "command line" in said[-1]
    monkeypatch.setenv("COMPANION_PUSH_COMPANION_RUN_CONSENT", "decline")
    words = words[:5]
    status, _, said = await outcome(*words)
    assert (status, said[-1]) == (0, "nothing is pending")


# At the terminal


@pytest.mark.parametrize(("answer", "status", "state"), [("y", 0, "opened"), ("n", 6, "declined")])
async def test_a_person_is_shown_the_request_and_asked(
    anna_outside: Someone, frame: Frame, answer: str, status: int, state: str
) -> None:
    name = await frame.ask(anna_outside.caller, note="by the window", rp_name="Example Inc")
    async with at_terminal(*anna_outside.words("--once", consent="ask")) as (program, screen):
        seen = await screen.until("Approve? y or n:")
        for text in ('"frame 0" asks to sign in', "example.com", "Example Inc", "by the window", "s left"):
            assert text in seen
        screen.type("what?\n")
        await screen.until("Approve? y or n:")
        screen.type(f"{answer}\n")
        assert await program.ended() == status
    assert await frame.state_of(name) == state


@pytest.mark.threat("T6")
@pytest.mark.parametrize("digits", [None, "42"], ids=["yes or no", "digits"])
@pytest.mark.parametrize("typed", ["not me", "Not  Me", "not-me"])
async def test_a_person_who_did_not_ask_says_not_me_and_another_time_ends_the_mute(
    anna_outside: Someone, frame: Frame, digits: str | None, typed: str
) -> None:
    name = await frame.ask(anna_outside.caller, digits=digits)
    question = "Approve? y or n:" if digits is None else "Type the digits"
    async with at_terminal(*anna_outside.words("--once", consent="ask")) as (program, screen):
        assert 'type "not me"' in await screen.until(question)
        screen.type("me\n")
        await screen.until(question)
        screen.type(f"{typed}\n")
        assert await program.ended() == 6
    assert (await frame.caller.status(name))["reason"] == "not-me"
    anna = ("--state", anna_outside.state)
    assert await outcome("companion", "mute", "list", *anna) == (0, '"frame 0"  muted by "phone 0"\n', [])
    status, stdout, _ = await outcome("companion", "mute", "list", "--json", *anna)
    (mute,) = json.loads(stdout)["mutes"]
    assert (status, mute["device"]) == (0, frame.caller.name)
    assert (await outcome("companion", "mute", "remove", "frame 0", *anna))[2] == [
        '"frame 0" is not muted any more'
    ]
    assert await outcome("companion", "mute", "list", *anna) == (0, "", ["no device is muted"])
    assert (await outcome("companion", "mute", "add", "frame 0", *anna))[::2] == (0, ['"frame 0" is muted'])
    assert await outcome("companion", "mute", "list", *anna) == (0, '"frame 0"  muted by "phone 0"\n', [])
    for action in ("add", "remove"):
        for who in ("lamp", "phone 0"):  # nobody, and a companion
            assert (await outcome("companion", "mute", action, who, *anna))[0] == 2


@pytest.mark.threat("T4")
@pytest.mark.parametrize(
    ("digits", "typed", "status"),
    [
        ("42", "42", 0),
        ("42", "4 2", 0),
        ("42", "43", 8),
        ("42", "24", 8),
        ("07", "07", 0),
        ("31415926", "3141 5926", 0),
        ("31415926", "31415927", 8),
        ("42", "n", 6),
        ("42", "No", 6),
    ],
)
async def test_digits_are_typed_once_and_a_slip_is_asked_again(
    anna_outside: Someone, frame: Frame, digits: str, typed: str, status: int
) -> None:
    await frame.ask(anna_outside.caller, digits=digits)
    async with at_terminal(*anna_outside.words("--once", consent="ask")) as (program, screen):
        asked = await screen.until("Type the digits")
        assert digits not in re.sub(r"\d\d:\d\d:\d\d \(\d+ s left\)", "", asked)  # the clock may show them
        for slip in ("", "y", "yes", digits[1:], f"{digits}0", "4x", "\u0664\u0662", "-4"):
            screen.type(f"{slip}\n")
            assert f"no number of {len(digits)} digits" in await screen.until("Type the digits")
        screen.type(f"{typed}\n")
        assert await program.ended() == status


@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["Ctrl-C", "Ctrl-D"])
@pytest.mark.parametrize("digits", [None, "42"], ids=["yes or no", "digits"])
async def test_ctrl_c_and_ctrl_d_at_the_question_decline(
    anna_outside: Someone, frame: Frame, key: str, digits: str | None
) -> None:
    name = await frame.ask(anna_outside.caller, digits=digits)
    question = "Approve? y or n:" if digits is None else "Type the digits"
    async with at_terminal(*anna_outside.words("--once", consent="ask"), raw=False) as (program, screen):
        await screen.until(question)
        screen.type("perhaps\n")
        await screen.until(question)
        screen.type(key)
        assert await program.ended() == 6
    assert await frame.state_of(name) == "declined"


async def test_ctrl_c_at_the_question_declines_and_the_next_one_ends_a_companion_that_waits(
    anna_outside: Someone, frame: Frame
) -> None:
    name = await frame.ask(anna_outside.caller)
    async with at_terminal(*anna_outside.words(consent="ask"), raw=False) as (program, screen):
        await screen.until("Approve? y or n:")
        screen.type("\x03")
        await program.until_stage("declined")
        screen.type("\x03")
        assert await program.ended() == 0
    assert await frame.state_of(name) == "declined"


async def test_a_companion_whose_terminal_is_stopped_goes_on_and_shows_all_when_it_may(
    anna_outside: Someone, frame: Frame
) -> None:
    async with at_terminal(*anna_outside.words(), raw=False, stderr=True) as (program, screen):
        await screen.until('"listening"')
        screen.type("\x13")  # Ctrl-S
        name = await frame.ask(anna_outside.caller)
        async with asyncio.timeout(TIMEOUT):
            while await frame.state_of(name) != "opened":  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.05)
        screen.type("\x11")  # Ctrl-Q
        for stage in ("arrived", "opened"):
            await screen.until(f'"{stage}"')
        screen.type("\x13")
        program.terminate()
        assert await program.ended() == 0


async def test_a_question_waits_for_nobody_who_is_to_read_the_log(
    anna_outside: Someone, frame: Frame
) -> None:
    name = await frame.ask(anna_outside.caller)
    with nobody_reads() as log:
        async with at_terminal(*anna_outside.words(consent="ask"), stderr=log) as (_, screen):
            await screen.until("Approve? y or n:")
    assert await frame.state_of(name) == "delivered"


@pytest.mark.threat("T4")
async def test_several_requests_are_listed_and_answered_one_by_one(
    anna_outside: Someone, frame: Frame, home: Household, relay: Relay
) -> None:
    newcomer = relay.caller(device("second frame"))
    await home.append(*(each.person for each in (*home.companions, *home.devices, newcomer)))
    first = await frame.ask(anna_outside.caller)
    second = await Frame(caller=newcomer, home=home).ask(anna_outside.caller)
    async with at_terminal(*anna_outside.words("--pending", consent="ask")) as (program, screen):
        seen = await screen.until("Which one? Number")
        assert "2 requests are waiting" in seen
        for slip in ("", "0", "3", "y", "first"):
            screen.type(f"{slip}\n")
            await screen.until("Which one? Number")
        number = next(line.split()[0] for line in seen.splitlines() if "second frame" in line)
        screen.type(f"{number}\n")
        await screen.until("Approve? y or n:")
        screen.type("y\n")
        await program.until_stage("opened")
        seen = await screen.until("Approve? y or n:")
        assert "frame 0" in seen
        screen.type("n\n")
        assert await program.ended() == 6
    assert await frame.state_of(first) == "declined"
    assert (await newcomer.status(second))["state"] == "opened"


@pytest.mark.parametrize("keys", ["n\n", "\x03", "\x04"], ids=["n", "Ctrl-C", "Ctrl-D"])
async def test_none_of_several_declines_them_all(
    anna_outside: Someone, frame: Frame, home: Household, relay: Relay, keys: str
) -> None:
    newcomer = relay.caller(device("second frame"))
    await home.append(*(each.person for each in (*home.companions, *home.devices, newcomer)))
    first = await frame.ask(anna_outside.caller)
    second = await Frame(caller=newcomer, home=home).ask(anna_outside.caller)
    async with at_terminal(*anna_outside.words("--pending", consent="ask"), raw=False) as (program, screen):
        await screen.until("Which one? Number, or n to decline them all:")
        screen.type(keys)
        assert await program.ended() == 6
    assert await frame.state_of(first) == "declined"
    assert (await newcomer.status(second))["state"] == "declined"


async def test_a_request_that_is_withdrawn_takes_its_question_away(
    anna_outside: Someone, frame: Frame
) -> None:
    name = await frame.ask(anna_outside.caller)
    async with at_terminal(*anna_outside.words("--once", consent="ask")) as (program, screen):
        await screen.until("Approve? y or n:")
        await frame.caller.tell(name, "cancelled")
        await program.until_stage("gone")
        screen.type("y\n")
        assert await program.ended() == 7
    assert not anna_outside.opened.exists()


async def test_a_request_that_another_companion_takes_is_dismissed_with_0(
    anna_outside: Someone, bert: Companion, frame: Frame
) -> None:
    await frame.ask(anna_outside.caller, bert.caller)
    async with at_terminal(*anna_outside.words("--once", consent="ask")) as (program, screen):
        await screen.until("Approve? y or n:")
        await bert.inbox.poll()
        await bert.inbox.approve(bert.inbox.pending[0], Hands())
        assert (await program.until_stage("gone"))["reason"] == "already-claimed"
        assert await program.ended() == 0


def test_the_state_directory_is_read_by_the_library(anna_outside: Someone) -> None:
    state = CompanionState(anna_outside.state)
    assert state.identity().keys.name == anna_outside.caller.name
    details: dict[str, Any] = {"version": state.chain().head.version}
    assert details == {"version": 2}
