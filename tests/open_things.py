"""What is open in this process: tasks, client sessions, sockets and pipes; and cancelling at every point where something waits."""

import asyncio
import contextvars
import gc
import time
import types
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
from aiohttp import web

from tests.ports import RESERVED

PATIENCE = 20.0  # seconds; a safety net: what closes, closes in a few rounds of the loop

_sessions: weakref.WeakSet[aiohttp.ClientSession] = weakref.WeakSet()


def note_sessions() -> None:
    """From now on client sessions are known here."""
    init = aiohttp.ClientSession.__init__

    def noted(self: aiohttp.ClientSession, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        _sessions.add(self)

    aiohttp.ClientSession.__init__ = noted  # type: ignore[method-assign]


@dataclass(frozen=True, kw_only=True)
class Open:
    """What was open at a moment."""

    tasks: frozenset["asyncio.Task[Any]"]
    sessions: frozenset[int]
    descriptors: frozenset[str]

    @classmethod
    def now(cls) -> Self:
        return cls(
            tasks=frozenset(task for task in asyncio.all_tasks() if task is not asyncio.current_task()),
            sessions=frozenset(id(session) for session in _sessions if not session.closed),
            descriptors=frozenset(_descriptors()),
        )

    def beside(self, before: "Open") -> list[str]:
        """What is open now and was not `before`, for people.

        A kept connection may be replaced by another one, so descriptors are counted.
        """
        more = len(self.descriptors) - len(before.descriptors)
        return [
            *(
                f"task {task.get_coro()}"
                for task in self.tasks - before.tasks
                if not _serves_a_connection(task)
            ),
            *("a client session" for _ in self.sessions - before.sessions),
            *(sorted(self.descriptors - before.descriptors) if more > 0 else ()),
        ]


def _serves_a_connection(task: "asyncio.Task[Any]") -> bool:
    """Whether it is aiohttp's task of a connection to one of our servers, which lives as long as the descriptor that is counted."""
    return getattr(task.get_coro(), "__qualname__", "") == "RequestHandler.start"


def _descriptors() -> Iterator[str]:
    for entry in Path("/proc/self/fd").iterdir():
        try:
            what = str(entry.readlink())
        except OSError:
            continue
        if what.startswith(("socket:", "pipe:")) and what not in RESERVED:
            yield what


async def until_nothing_is_left(before: Open) -> None:
    """Wait until all that was opened since is closed, and fail when that does not come."""
    deadline = time.monotonic() + PATIENCE  # not the loop's clock, which tests may turn
    while left := Open.now().beside(before):
        if time.monotonic() > deadline:
            pytest.fail("left open: " + "; ".join(left))
        await asyncio.sleep(0.001)


@dataclass
class Interruption:
    """Cancels a task the `at`-th time that it, or a task it has begun, waits; and `again` such times later once more."""

    at: int
    again: int | None = None
    task: "asyncio.Task[Any] | None" = None
    waits: int = field(default=0, init=False)

    def waited(self) -> None:
        self.waits += 1
        due = self.waits == self.at or (self.again is not None and self.waits == self.at + self.again)
        if due and self.task is not None:
            self.task.cancel()


_under_test: contextvars.ContextVar[Interruption | None] = contextvars.ContextVar("under_test", default=None)


@types.coroutine
def _counted(work: Coroutine[Any, Any, Any], interruption: Interruption) -> Generator[Any, Any, Any]:
    value, error = None, None
    while True:
        try:
            waits_for = work.send(value) if error is None else work.throw(error)
        except StopIteration as done:
            return done.value
        interruption.waited()
        value, error = None, None
        try:
            value = yield waits_for
        except GeneratorExit:
            work.close()
            raise
        except BaseException as thrown:  # noqa: BLE001  it is for the work
            error = thrown


async def interrupted(work: Coroutine[Any, Any, Any], interruption: Interruption) -> Any:
    """`work`, in this task, with `interruption`."""
    token = _under_test.set(interruption)
    interruption.task = asyncio.current_task()
    try:
        return await _counted(work, interruption)
    finally:
        _under_test.reset(token)


@contextmanager
def counting_tasks() -> Iterator[None]:
    """Tasks that an interrupted task begins are counted with it."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()

    async def with_its_parent(work: Coroutine[Any, Any, Any], interruption: Interruption) -> Any:
        return await _counted(work, interruption)

    def make(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> "asyncio.Task[Any]":
        interruption = _under_test.get()
        if interruption is None:
            return asyncio.Task(work, loop=loop, **options)
        task = asyncio.Task(with_its_parent(work, interruption), loop=loop, **options)
        task.add_done_callback(lambda _task: work.close())  # one that was cancelled before it began
        return task

    loop.set_task_factory(make)
    try:
        yield
    finally:
        loop.set_task_factory(before)


async def _coroutine(work: Awaitable[web.StreamResponse]) -> web.StreamResponse:
    return await work


async def waiting(_request: web.Request, _response: web.StreamResponse) -> None:
    """Wait before an answer is sent, as a host's signal of `on_response_prepare` may."""
    await asyncio.sleep(0)


class Handlers:
    """Interrupts a request's handler of a server, when there is one to interrupt."""

    def __init__(self) -> None:
        self._next: dict[str, Interruption] = {}

    def interrupt(self, path: str, interruption: Interruption) -> None:
        """Interrupt the next request whose path and query hold `path`."""
        self._next[path] = interruption

    def added_to(self, app: web.Application) -> web.Application:
        """The application with this as its innermost middleware."""

        @web.middleware
        async def middleware(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            for path in list(self._next):
                if path in request.path_qs:
                    response: web.StreamResponse = await interrupted(
                        _coroutine(handler(request)), self._next.pop(path)
                    )
                    return response
            return await handler(request)

        app.middlewares.append(middleware)
        return app


async def cancel_everywhere(
    scenario: Callable[[Interruption], Awaitable[Interruption]], *, again: tuple[int | None, ...] = (None,)
) -> int:
    """`scenario` once for every point where it waits, cancelled there, and once more `again` points later: how many points.

    After each nothing may be left open. scenario: to do the work with `interrupted`, and to give the interruption back.
    """
    with counting_tasks():
        before = Open.now()
        points = 0
        for later in again:
            at = 1
            while True:
                interruption = await scenario(Interruption(at=at, again=later))
                await until_nothing_is_left(before)
                gc.collect()  # what was forgotten complains
                if interruption.waits < at:
                    break
                at += 1
            points = max(points, at - 1)
    return points
