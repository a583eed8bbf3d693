"""Asking at a terminal: what is no answer is asked again, and what ends the input, or Ctrl-C, is a no."""

import asyncio
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from headless_passkey.errors import TransportError
from headless_passkey.process.terminal import Terminal
from tests.screen import Screen

END_OF_INPUT = "\x04"  # Ctrl-D, as the line discipline takes it


@dataclass
class Asked:
    """A terminal that has its line discipline, and what a person sees and types there."""

    terminal: Terminal
    screen: Screen
    inner: int

    async def answered(self, question: str, *typed: str) -> bool | None:
        """What a question for yes or no comes to when each of `typed` is typed after it was asked (again)."""
        asking = asyncio.create_task(self.terminal.yes(question))
        for keys in typed:
            await self.screen.until(question)
            self.screen.type(keys)
        return await asking


@pytest_asyncio.fixture
async def asked() -> AsyncIterator[Asked]:
    outer, inner = pty.openpty()
    os.set_blocking(inner, False)
    screen = Screen(outer)
    try:
        yield Asked(Terminal(inner), screen, inner)
    finally:
        screen.close()
        os.close(inner)


@pytest.mark.parametrize(
    ("typed", "agreed"), [("y", True), ("Y", True), ("yes", True), (" y ", True), ("n", False), ("No", False)]
)
async def test_yes_and_no_are_answers(asked: Asked, typed: str, agreed: bool) -> None:  # noqa: FBT001
    assert await asked.answered("Sure?", f"{typed}\n") is agreed


@pytest.mark.threat("T11")
async def test_what_nobody_escaped_moves_no_cursor(asked: Asked) -> None:
    await asked.terminal.show("says \x1b[2J\u202e")
    await asked.screen.until("says <U+001B>[2J<U+202E>")
    asking = asyncio.create_task(asked.terminal.yes("Let \x1b[A\n in?"))
    await asked.screen.until("Let <U+001B>[A<U+000A> in?")
    asked.screen.type("y\n")
    assert await asking


async def test_what_is_no_answer_is_asked_again(asked: Asked) -> None:
    slips = ("\n", "yy\n", "42\n", "yes please\n", "ja\n", "\u044f\n")
    assert await asked.answered("Sure?", *slips, "y\n")


@pytest.mark.parametrize("before", [(), ("perhaps\n",)], ids=["at once", "after a slip"])
async def test_the_end_of_the_input_is_a_no(asked: Asked, before: tuple[str, ...]) -> None:
    assert not await asked.answered("Sure?", *before, END_OF_INPUT)
    assert await asked.answered("Really?", "y\n")


async def test_ctrl_c_at_a_question_is_a_no_and_elsewhere_what_it_was(asked: Asked) -> None:
    before = signal.getsignal(signal.SIGINT)
    asking = asyncio.create_task(asked.terminal.yes("Sure?"))
    await asked.screen.until("Sure?")
    os.kill(os.getpid(), signal.SIGINT)
    assert not await asking
    assert signal.getsignal(signal.SIGINT) is before
    assert await asked.answered("Really?", "y\n")


async def test_a_question_that_is_taken_back_leaves_the_next_one_its_keys(asked: Asked) -> None:
    asking = asyncio.create_task(asked.terminal.yes("Sure?"))
    await asked.screen.until("Sure?")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await asked.answered("Really?", "y\n")


async def test_a_slip_is_named_and_what_it_means_is_the_callers(asked: Asked) -> None:
    asking = asyncio.create_task(
        asked.terminal.ask("How many?", lambda line: int(line) if line.isdigit() else None, slip="No number.")
    )
    await asked.screen.until("How many?")
    asked.screen.type("many\n")
    assert "No number." in await asked.screen.until("How many?")
    asked.screen.type("0\n")
    assert await asking == 0


async def test_a_terminal_that_has_gone_is_no_answer(asked: Asked) -> None:
    asking = asyncio.create_task(asked.terminal.yes("Sure?"))
    await asked.screen.until("Sure?")
    asked.screen.close()
    with pytest.raises(TransportError, match="the terminal has gone"):
        await asking


async def test_at_a_terminal_that_is_stopped_a_question_waits_and_what_is_typed_meanwhile_is_no_answer(
    asked: Asked,
) -> None:
    asked.screen.type("\x13")  # Ctrl-S
    while select.select((), (asked.inner,), (), 0)[1]:  # noqa: ASYNC110  nobody tells
        await asyncio.sleep(0)
    asking = asyncio.create_task(asked.terminal.yes("Sure?"))
    await asyncio.sleep(0)
    asked.screen.type("n\n")
    asked.screen.type("\x11")  # Ctrl-Q
    await asked.screen.until("Sure?")
    asked.screen.type("y\n")
    assert await asking


# A session leader gets the first terminal that it opens; what happens while that is open has nothing to do with it.
_AT_A_TERMINAL = """
import os, sys
from headless_passkey.process.terminal import Terminal
if sys.argv[1]:
    os.open(sys.argv[1], os.O_RDWR)
try:
    with Terminal.open():
        raise BrokenPipeError
except Exception as error:
    print(type(error).__name__)
"""


def test_what_fails_while_a_terminal_is_open_is_no_lack_of_one() -> None:
    outer, inner = pty.openpty()
    try:
        ended = [
            subprocess.run(
                [sys.executable, "-c", _AT_A_TERMINAL, path],
                capture_output=True,
                check=True,
                start_new_session=True,
                text=True,
            ).stdout
            for path in (os.ttyname(inner), "")
        ]
    finally:
        os.close(outer)
        os.close(inner)
    assert ended == ["BrokenPipeError\n", "UsageError\n"]
