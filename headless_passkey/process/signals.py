"""Signals of a program: SIGTERM and SIGHUP end it; Ctrl-C (SIGINT) has handlers; what a key stops or kills gives the terminal back first."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary


def until_terminated() -> "asyncio.Future[None]":
    """Return a future that is done at SIGTERM, SIGINT or SIGHUP, for a server's clean stop with status 0.

    It listens from the call on. A server that prints where it is calls this first, so that whoever reads the
    line may end it at once::

        ended = until_terminated()
        out(url)
        await ended
    """
    loop = asyncio.get_running_loop()
    asked = loop.create_future()

    def ask() -> None:
        if not asked.done():
            asked.set_result(None)

    on_termination(ask)
    _on_interrupt(ask)
    return asked


def on_termination(act: Callable[[], object]) -> None:
    """Call `act` at SIGTERM, and at SIGHUP (the terminal closed) unless that is ignored, as under nohup."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, act)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, act)


@contextlib.contextmanager
def interrupted_by_keyboard(act: Callable[[], object]) -> Iterator[None]:
    """Let Ctrl-C (SIGINT) call `act` only, while the context is open; of nested contexts the innermost counts."""
    forget = _on_interrupt(act)
    try:
        yield
    finally:
        forget()


def _on_interrupt(act: Callable[[], object]) -> Callable[[], None]:
    """Let SIGINT call `act`; returns a function that restores the previous behaviour."""
    loop = asyncio.get_running_loop()
    if loop not in _interrupts:
        _interrupts[loop] = _Interrupts(signal.getsignal(signal.SIGINT))
        loop.add_signal_handler(signal.SIGINT, _interrupts[loop].newest)
    interrupts = _interrupts[loop]
    interrupts.acts.append(act)

    def forget() -> None:
        interrupts.acts.remove(act)
        if not interrupts.acts:
            del _interrupts[loop]
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, interrupts.before)

    return forget


class _Interrupts:
    """The handlers of SIGINT in one event loop, innermost last, and the handler before them."""

    def __init__(self, before: Any) -> None:
        self.before = before
        self.acts: list[Callable[[], object]] = []

    def newest(self) -> None:
        if self.acts:
            self.acts[-1]()
        else:  # the last context was left after the loop had read the signal
            signal.raise_signal(signal.SIGINT)


_interrupts: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Interrupts]] = WeakKeyDictionary()


@contextlib.contextmanager
def terminal_lent(*, give_back: Callable[[], object], take_again: Callable[[], object]) -> Iterator[None]:
    """While the context is open, the terminal is changed: give it back before the program stops or is killed by a key.

    Ctrl-Z (SIGTSTP) stops and SIGQUIT, which is a key too, kills a program without a word, and whoever types next would find the echo off.
    So `give_back` is called first, as readpassphrase(3) and sudo do. `take_again` is called when the program goes on (SIGCONT),
    also after a SIGSTOP, which nobody can handle: the shell has set the terminal for itself meanwhile. Both must not raise.
    Of nested contexts the innermost gives back first. What whoever started the program ignores stays ignored.
    """
    loop = asyncio.get_running_loop()
    if loop not in _loans:
        _loans[loop] = _Loans(loop)
    loans, loan = _loans[loop], (give_back, take_again)
    loans.open.append(loan)
    try:
        yield
    finally:
        loans.open.remove(loan)
        if not loans.open:
            del _loans[loop]
            loans.end()


class _Loans:
    """What is changed at the terminal, in one event loop, innermost last, and the signals that are handled for that."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.open: list[tuple[Callable[[], object], Callable[[], object]]] = []
        self._loop = loop
        acts: dict[signal.Signals, Callable[[], object]] = {
            signal.SIGTSTP: partial(self._default, signal.SIGTSTP),
            signal.SIGQUIT: partial(self._default, signal.SIGQUIT),
            signal.SIGCONT: self._take_again,
        }
        self._acts = {
            number: act for number, act in acts.items() if signal.getsignal(number) is signal.SIG_DFL
        }
        self._listen()

    def end(self) -> None:
        """Let the signals do again what they did before."""
        for number in self._acts:
            self._loop.remove_signal_handler(number)

    def _listen(self) -> None:
        for number, act in self._acts.items():
            self._loop.add_signal_handler(number, act)

    def _default(self, number: signal.Signals) -> None:
        """Do what the signal does by itself: stop the program, or kill it."""
        if not self.open:  # the last context was left after the loop had read the signal
            signal.raise_signal(number)
            return
        for give_back, _ in reversed(self.open):
            give_back()
        self.end()  # SIGCONT too: what goes on here goes on below
        signal.raise_signal(number)
        self._listen()
        self._take_again()

    def _take_again(self) -> None:
        if not self.open:
            return
        # In the background the terminal stops whoever changes it, here, until the program is in front. That it goes on then is no
        # other time: to ask once more would discard what is typed after the question.
        self._loop.remove_signal_handler(signal.SIGCONT)
        for _, take_again in self.open:
            take_again()
        self._listen()


_loans: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Loans]] = WeakKeyDictionary()
