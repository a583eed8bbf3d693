"""Ctrl-C at each question that a program asks at the terminal: one sentence, the documented status, nothing half made, and the terminal as it was.

The questions about a request, a newcomer's number, the phone's user and an old passphrase are in the tests of their commands.
"""

from pathlib import Path

import pytest

from tests.companion.program import at_terminal, outcome, running
from tests.companion.test_command_changes import home, labels, state
from tests.companion.test_command_companion import UNASKED, founded, state_of
from tests.relay.household import Relay

__all__ = ["home", "state"]
KEYS = pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["Ctrl-C", "Ctrl-D"])


async def interrupted(
    key: str, *words: object, answers: tuple[tuple[str, str], ...] = (), at: str, status: int = 6
) -> str:
    """Answer the first questions, and type a key at the next; the sentence that is said then."""
    async with at_terminal(*words, raw=False) as (program, screen):
        for question, keys in answers:
            await screen.until(question)
            screen.type(keys)
        await screen.until(at)
        screen.type(key)
        assert await program.ended() == status
        assert screen.echoes
        return program.said[-1]


@KEYS
@pytest.mark.threat("T16")
@pytest.mark.parametrize(
    ("command", "answers", "at"),
    [
        (("remove", "Tablet"), (), "Take them out too? y or n:"),
        (("remove", "Tablet"), (("Take them out too? y or n:", "y\n"),), "type its label (or "),
        (("rename", "Kitchen hub", "Cellar hub"), (), "type its label (or "),
    ],
    ids=["remove others too", "remove", "rename"],
)
async def test_a_member_stays_as_it_is(
    state: Path, key: str, command: tuple[str, ...], answers: tuple[tuple[str, str], ...], at: str
) -> None:
    verb, *rest = command
    words = ("companion", verb, "--state", state, *rest)
    said = await interrupted(key, *words, answers=answers, at=at)
    assert said.endswith("nothing has changed [declined]")
    assert await labels(state) == ["phone 0", "Tablet", "Kitchen hub", "Frame"]


@KEYS
async def test_nobody_is_invited_for_no_relying_party(relay: Relay, tmp_path: Path, key: str) -> None:
    invite = ("companion", "invite", "--kind", "device", "--state", await founded(relay, tmp_path))
    assert (await interrupted(key, *invite, at="may the device ask for?")).endswith(
        "nobody was invited [declined]"
    )


@KEYS
@pytest.mark.threat("T4")
async def test_a_newcomer_without_a_name_of_its_own_is_refused(
    relay: Relay, tmp_path: Path, key: str
) -> None:
    invite = ("companion", "invite", "--kind", "companion", "--state", await founded(relay, tmp_path))
    async with at_terminal(*invite, raw=False) as (inviter, screen):
        join = ("companion", "join", "--code", "-", "--label", "My phone", "--state", state_of(tmp_path, "2"))
        async with running(*join, stdin=await inviter.line() + "\n") as newcomer:
            await screen.until("Type another name for the newcomer:")
            screen.type(key)
            assert (await inviter.ended(), await newcomer.ended()) == (6, 7)
    assert not (tmp_path / "2" / "identity.json").exists()


@KEYS
@pytest.mark.threat("T2")
async def test_a_newcomer_does_not_go_on(relay: Relay, tmp_path: Path, key: str) -> None:
    state = await founded(relay, tmp_path)
    async with running("companion", "invite", "--kind", "companion", *UNASKED, "--state", state) as inviter:
        code = tmp_path / "invitation"
        code.write_text(await inviter.line())
        second = state_of(tmp_path, "2")
        join = ("companion", "join", "--code", code, "--label", "Tablet", "--state", second)
        async with at_terminal(*join, raw=False, stderr=True) as (newcomer, screen):
            await screen.until("Go on? y or n:")
            screen.type(key)
            assert await newcomer.ended() == 6
        assert await inviter.ended() == 7
    status, _, said = await outcome("companion", "members", "--state", second)
    assert status == 9, said


@pytest.mark.parametrize(
    ("key", "status"), [("\x03", 130), ("\x04", 6)], ids=["Ctrl-C", "Ctrl-D"]
)  # of a phone alone
@pytest.mark.threat("T11")
@pytest.mark.parametrize("again", [False, True], ids=["New passphrase", "Again"])
async def test_no_file_is_sealed(tmp_path: Path, key: str, status: int, *, again: bool) -> None:
    file = tmp_path / "passkeys.json"
    first = (("New passphrase: ", "correct horse battery\n"),) if again else ()
    seal = ("phone", "--seal", "--credentials", file)
    question = "Again: " if again else "New passphrase: "
    said = await interrupted(key, *seal, answers=first, at=question, status=status)
    assert "horse" not in said
    assert not file.exists()
