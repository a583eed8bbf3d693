"""Signals of a program: SIGTERM and SIGHUP end it; Ctrl-C (SIGINT) has handlers."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
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
        self.acts[-1]()


_interrupts: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Interrupts]] = WeakKeyDictionary()
