"""Names of servers, looked up in threads that nobody waits for when a deadline or a signal has ended the lookup: `Lookups`, `Resolver`.

The system's resolver cannot be interrupted, and a name server that does not answer holds it for half a minute or more. asyncio
looks names up in its pool of threads, and `asyncio.run` ends when these have ended. So a program whose deadline was over, or that
was told to end, would go on for as long; and a few such names would fill the pool, so that no other name is looked up.

The threads here are daemons, one for each name that is being looked up: who asks for the same name meanwhile gets the same
answer. Their number is bounded, and where others choose the names, each of them has a share of the threads.
"""

import asyncio
import ipaddress
import os
import socket
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, wait
from time import monotonic
from typing import Any, Final, cast

from aiohttp import ThreadedResolver

SECONDS: Final = 20.0  # that somebody waits for an answer; the thread may need longer
# that a thread waits: a system whose first name server is gone asks the next one after 5 s, and so it does anew where an answer is lost
THREAD_SECONDS: Final = 12.0
LOOK_SECONDS: Final = 0.2  # between a thread's looks whether it is to wait no more
THREADS: Final = 32  # at a time, of one `Lookups`

_Found = list[tuple[Any, ...]]  # as `socket.getaddrinfo` returns it


class NoAnswer(socket.gaierror):
    """A name was not looked up in time (EAI_AGAIN). Its text says in a few words why; "its" is the server's."""

    def __init__(self, message: str) -> None:
        super().__init__(socket.EAI_AGAIN, message)

    def __str__(self) -> str:
        return str(self.strerror)


class _Lookup:
    """One name, while it is looked up or waits for a thread."""

    def __init__(self, key: tuple[Any, ...]) -> None:
        self.key = key  # name, port and settings
        self.answer: Future[_Found] = Future()
        self.answer.set_running_or_notify_cancel()  # so that who leaves does not cancel it for the others
        self.askers = 0
        self.shares: set[Hashable] = set()  # in which it waits
        self.began = False


class Lookups:
    """Looks names up in a bounded number of threads. Several threads may use it, each with its event loop."""

    def __init__(
        self, *, most: int = THREADS, most_of_share: int | None = None, seconds: float = SECONDS
    ) -> None:
        """most: threads at a time. most_of_share: how many of them one share may have, where names are chosen by others than the
        program and its operator; None for all. seconds: after which an asker gets `NoAnswer`.
        """
        self._most, self._seconds = most, seconds
        self._most_of_share = most if most_of_share is None else most_of_share
        self._forget()
        _all.add(self)

    def _forget(self) -> None:
        """Know of no lookup: at first, and in a child process, which has none of its parent's threads."""
        self._lock = threading.Lock()
        self._asked: dict[tuple[Any, ...], _Lookup] = {}
        self._running: Counter[Hashable] = Counter()  # threads, by share
        # by share, in turn; a lookup waits in the share of each that has asked for it
        self._waiting: dict[Hashable, dict[_Lookup, None]] = {}

    async def getaddrinfo(self, host: str, port: int, *, share: Hashable = None, **how: int) -> _Found:
        """Look a name up as `socket.getaddrinfo` does. share: for whom, where `most_of_share` bounds the threads of each.

        `NoAnswer` when the name was not looked up in time.
        """
        if _is_address(host):
            return socket.getaddrinfo(host, port, **how)  # nobody is asked
        lookup = self._ask((host, port, *sorted(how.items())), share)
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.wrap_future(lookup.answer)
        except TimeoutError as error:
            raise self._no_answer(lookup) from error
        finally:
            self._leave(lookup)

    def addresses(
        self,
        hosts: Iterable[str],
        is_over: Callable[[], bool] = lambda: False,
        *,
        seconds: float | None = None,
    ) -> dict[str, list[str] | Exception]:
        """The addresses of each host, or why it has none (`OSError`, `UnicodeError`), for a thread that may wait.

        It waits `seconds` at the most for all of them together, by default `THREAD_SECONDS`, and `LOOK_SECONDS` when `is_over`, as
        when its program ends.
        """
        until = monotonic() + (THREAD_SECONDS if seconds is None else seconds)
        found: dict[str, list[str] | Exception] = {host: [host] for host in hosts}
        asked = {
            host: self._ask((host, None, ("type", socket.SOCK_STREAM)), None)
            for host in found
            if not _is_address(host)
        }
        try:
            waiting = {lookup.answer for lookup in asked.values()}
            while waiting and (left := until - monotonic()) > 0:
                waiting = wait(waiting, timeout=min(left, LOOK_SECONDS)).not_done
                if is_over():
                    break
            for host, lookup in asked.items():
                found[host] = self._said(lookup)
        finally:
            for lookup in asked.values():
                self._leave(lookup)
        return found

    def _said(self, lookup: _Lookup) -> list[str] | Exception:
        try:
            places = lookup.answer.result(0)
        except TimeoutError:
            return self._no_answer(lookup)
        except (OSError, UnicodeError) as error:
            return error
        return list(dict.fromkeys(str(place[0]) for *_, place in places))

    def _no_answer(self, lookup: _Lookup) -> NoAnswer:
        return NoAnswer("its name server does not answer" if lookup.began else _TOO_MANY)

    def _ask(self, key: tuple[Any, ...], share: Hashable) -> _Lookup:
        with self._lock:
            lookup = self._asked.get(key)
            if lookup is None:
                lookup = self._asked[key] = _Lookup(key)
            lookup.askers += 1
            if not lookup.began:
                lookup.shares.add(share)
                self._waiting.setdefault(share, {})[lookup] = None
                self._begin()
            return lookup

    def _leave(self, lookup: _Lookup) -> None:
        with self._lock:
            lookup.askers -= 1
            if self._asked.get(lookup.key) is lookup and not lookup.askers and not lookup.began:
                self._wait_no_more(lookup)
                del self._asked[lookup.key]

    def _begin(self) -> None:
        """Look up what waits, as far as there are threads for it: of each share in turn."""
        while self._running.total() < self._most:
            shares = (one for one in self._waiting if self._running[one] < self._most_of_share)
            share = next(shares, _NONE)
            if share is _NONE:
                return
            lookup = next(iter(self._waiting[share]))
            self._wait_no_more(lookup)
            if share in self._waiting:  # behind the others
                self._waiting[share] = self._waiting.pop(share)
            lookup.began = True
            self._running[share] += 1
            try:
                threading.Thread(
                    target=self._look_up, args=(lookup, share), name="lookup", daemon=True
                ).start()
            except RuntimeError as error:
                self._ended(lookup, share)
                failed = NoAnswer("no thread can be started to look its name up")
                failed.__cause__ = error
                lookup.answer.set_exception(failed)

    def _wait_no_more(self, lookup: _Lookup) -> None:
        for share in lookup.shares:
            waiting = self._waiting[share]
            del waiting[lookup]
            if not waiting:
                del self._waiting[share]
        lookup.shares.clear()

    def _look_up(self, lookup: _Lookup, share: Hashable) -> None:
        """Ask the system's resolver; in a thread of its own."""
        host, port, *how = lookup.key
        found: _Found = []
        failed: Exception | None = None
        try:
            found = socket.getaddrinfo(host, port, **dict(how))
        except Exception as error:  # noqa: BLE001  whoever asks gets it
            failed = error
        with self._lock:
            self._ended(lookup, share)
            self._begin()
        if failed is None:
            lookup.answer.set_result(found)
        else:
            lookup.answer.set_exception(failed)

    def _ended(self, lookup: _Lookup, share: Hashable) -> None:
        del self._asked[lookup.key]
        self._running[share] -= 1
        if not self._running[share]:
            del self._running[share]


_NONE: Final = object()
_TOO_MANY: Final = "too many other names wait for their name servers"
_all: Final["weakref.WeakSet[Lookups]"] = weakref.WeakSet()
OURS: Final = Lookups()  # of the names that this program and its operator choose


def _forget_all() -> None:
    for lookups in _all:
        lookups._forget()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class Resolver(ThreadedResolver):
    """aiohttp's resolver, with lookups that can be left."""

    def __init__(self, who: Callable[[str], tuple[Lookups, Hashable]] = lambda _host: (OURS, None)) -> None:
        """who: by whom a name is looked up, and for which share."""
        loop = asyncio.get_running_loop()
        super().__init__(cast("asyncio.AbstractEventLoop", _Loop(loop, who)))


class _Loop:
    """The two methods of the event loop that aiohttp's resolver calls."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, who: Callable[[str], tuple[Lookups, Hashable]]
    ) -> None:
        self._who = who
        self.getnameinfo = loop.getnameinfo  # of an address that stays a number: nobody is asked

    async def getaddrinfo(self, host: str, port: int, **how: int) -> _Found:
        lookups, share = self._who(host)
        return await lookups.getaddrinfo(host, port, share=share, **how)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
