"""Names of servers, looked up in threads that nobody waits for when a deadline or a signal has ended the lookup: `Resolver`.

The system's resolver cannot be interrupted, and a name server that does not answer holds it for half a minute or more. asyncio
looks names up in its pool of threads, and `asyncio.run` ends when these have ended. So a program whose deadline was over, or that
was told to end, would go on for as long. The threads here are daemons, one for each name that is being looked up: who asks for
the same name meanwhile gets the same answer.
"""

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, cast

from aiohttp import ThreadedResolver

_Found = list[tuple[Any, ...]]  # as `socket.getaddrinfo` returns it

# what is being asked now, by name, port and settings; `dict.setdefault` decides who asks
_asked: Final[dict[tuple[Any, ...], "Future[_Found]"]] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_asked.clear)  # whose threads the child has not


class Resolver(ThreadedResolver):
    """aiohttp's resolver, with lookups that can be left."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(cast("asyncio.AbstractEventLoop", _Lookups(loop)))


class _Lookups:
    """The two methods of the event loop that aiohttp's resolver calls."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.getnameinfo = loop.getnameinfo  # of an address that stays a number: nobody is asked

    async def getaddrinfo(self, host: str, port: int, **how: int) -> _Found:
        mine: Future[_Found] = Future()
        mine.set_running_or_notify_cancel()  # so that a caller that is cancelled does not cancel it for the others
        key = (host, port, *sorted(how.items()))
        answer = _asked.setdefault(key, mine)
        if answer is mine:
            _ask(key, partial(socket.getaddrinfo, host, port, **how), answer)
        return await asyncio.wrap_future(answer, loop=self._loop)


def _ask(key: tuple[Any, ...], question: Callable[[], _Found], answer: "Future[_Found]") -> None:
    """Answer `question` in a thread."""

    def ask() -> None:
        try:
            found = question()
        except Exception as error:  # noqa: BLE001  whoever asks gets it
            _asked.pop(key)
            answer.set_exception(error)
        else:
            _asked.pop(key)
            answer.set_result(found)

    try:
        threading.Thread(target=ask, name="lookup", daemon=True).start()
    except RuntimeError as error:
        _asked.pop(key)
        failed = OSError(errno.EAGAIN, "no thread can be started to look a name up")
        failed.__cause__ = error
        answer.set_exception(failed)
