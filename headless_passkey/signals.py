"""Signals of a program: which end it (SIGTERM, SIGHUP), and what Ctrl-C (SIGINT) does meanwhile."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary


def until_terminated() -> "asyncio.Future[None]":
    """Done when the process is asked to end (SIGTERM, SIGINT, SIGHUP): a server's clean stop, status 0.

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
    """SIGTERM calls `act`, and so does the end of the terminal (SIGHUP), unless whoever started us, such as nohup, ignores that."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, act)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, act)


@contextlib.contextmanager
def interrupted_by_keyboard(act: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C (SIGINT) calls `act` while this is open, and does nothing else; the newest that is open counts."""
    forget = _on_interrupt(act)
    try:
        yield
    finally:
        forget()


def _on_interrupt(act: Callable[[], object]) -> Callable[[], None]:
    """SIGINT calls `act`, until what this returns is called: then it does again what it did before."""
    loop = asyncio.get_running_loop()
    if loop not in _interrupts:
        _interrupts[loop] = _Interrupts(before=signal.getsignal(signal.SIGINT))
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


@dataclass(slots=True, kw_only=True)
class _Interrupts:
    """What SIGINT does in one event loop, the newest last, and what it did before."""

    before: Any
    acts: list[Callable[[], object]] = field(default_factory=list)

    def newest(self) -> None:
        self.acts[-1]()


_interrupts: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Interrupts]] = WeakKeyDictionary()
