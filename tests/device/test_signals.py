"""A signal that comes while the context that handles it is being left: the event loop has read it already, and calls the handler after that."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pytest

from headless_passkey.process.signals import interrupted_by_keyboard, terminal_lent

TURNS = 8  # of the event loop: more than it takes from a signal to the call of its handler
KEYS = (signal.SIGTSTP, signal.SIGQUIT, signal.SIGCONT)


async def meets(
    number: signal.Signals, context: Callable[[], AbstractContextManager[None]], turns: int
) -> list[str]:
    """Leave the context when the loop has turned `turns` times since the signal; returns what the loop had to complain of."""
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(repr(context.get("exception"))))
    with context():
        signal.raise_signal(number)
        for _ in range(turns):
            await asyncio.sleep(0)
    for _ in range(TURNS):
        await asyncio.sleep(0)
    return complaints


async def test_ctrl_c_as_a_question_ends_is_for_whoever_comes_next() -> None:
    before, told = signal.getsignal(signal.SIGINT), list[str]()
    signal.signal(signal.SIGINT, lambda *_: told.append("the program"))
    try:
        context = partial(interrupted_by_keyboard, lambda: told.append("the question"))
        for turns in range(TURNS):
            assert await meets(signal.SIGINT, context, turns) == []
    finally:
        signal.signal(signal.SIGINT, before)
    assert set(told) == {"the program", "the question"}


@pytest.mark.parametrize("turns", range(TURNS))
async def test_a_key_as_a_question_ends_leaves_no_handler_behind(turns: int) -> None:
    """What stays would keep the next question from giving the terminal back."""
    before, told = [signal.getsignal(number) for number in KEYS], list[str]()
    assert before == [signal.SIG_DFL] * len(KEYS)
    context = partial(terminal_lent, give_back=lambda: None, take_again=lambda: told.append("taken again"))
    assert await meets(signal.SIGCONT, context, turns) == []
    assert [signal.getsignal(number) for number in KEYS] == before
    told.clear()
    assert await meets(signal.SIGCONT, context, TURNS) == []
    assert told == ["taken again"]
