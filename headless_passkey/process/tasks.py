"""Structured concurrency: tasks end and are awaited before their owner ends, also when the owner is cancelled, even twice."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

_T = TypeVar("_T")


async def end(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel `tasks` and wait until all have ended. Their errors are not raised here.

    A cancellation that comes meanwhile is raised when they have ended. So a task must end soon after it is cancelled.
    """
    for task in tasks:
        task.cancel()
    await until_done(*tasks)


async def end_quietly(*tasks: "asyncio.Future[Any]") -> None:
    """End `tasks` as `end` does. Their errors are ignored: asyncio does not log them either."""
    try:
        await end(*tasks)
    finally:
        for task in tasks:
            if not task.cancelled():
                task.exception()


async def until_done(*tasks: "asyncio.Future[Any]") -> None:
    """Wait until all `tasks` have ended, which a cancellation of the caller does not reach; it is raised then."""
    cancelled: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def to_its_end(work: Coroutine[Any, Any, _T], *, seconds: float | None = None) -> _T:
    """Await `work`, shielded: a cancellation of the caller, also a second one, is raised after `work` has ended.

    seconds: how long `work` may take after that cancellation until it is cancelled too; None for work that is bounded in time.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await until_done(asyncio.ensure_future(asyncio.wait({task}, timeout=seconds)))
        raise
    finally:
        await end_quietly(task)  # its error is raised above, unless the cancellation is


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """An `asyncio.TaskGroup` that raises the error that ended it as it was raised: not in a group, with its cause."""
    own: Exception | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            try:
                yield tasks
            except Exception as error:
                own = error
                raise
    except BaseExceptionGroup as errors:
        ended = own or _first(errors)
    else:
        return
    raise ended  # outside of the handler, which would make the group its context


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
