"""The signals that end a program, from its first line until its event loop listens to them.

Python itself ends at SIGTERM and SIGHUP without a word, and at SIGINT with a traceback from whatever it was loading; as the
first process of a container it does not end at SIGTERM at all. So `note` comes before everything else that a program loads,
and the program ends before it does anything when a signal was noted.

It loads nothing but `signal`, not even `typing`, since in the time before it signals are not noted.
"""

import signal

_noted: list[int] = []
_waiting: list[object] = []  # what a signal breaks off


def note() -> None:
    """Note SIGTERM, SIGINT and SIGHUP from now on, and do nothing else at them; not those that whoever started the program ignores."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _note)


def noted() -> bool:
    """Whether a signal that ends the program has come before its event loop listened."""
    return bool(_noted)


def leave_interrupt_to_runner() -> None:
    """Give SIGINT back to Python: `asyncio.Runner` handles it only then. The others are noted until the loop has handlers."""
    if signal.getsignal(signal.SIGINT) is _note:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class broken_off:  # noqa: N801  as contextlib names them, which this module does not load
    """While the context is open, a signal also raises `KeyboardInterrupt`: for reads that may wait, as those of a pipe do."""

    def __enter__(self) -> None:
        _waiting.append(self)
        if _noted:
            self.__exit__()
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        _waiting.remove(self)


def _note(number: int, _frame: object) -> None:
    _noted.append(number)
    if _waiting:
        raise KeyboardInterrupt
