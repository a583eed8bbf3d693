"""What a durable submit takes where each relay, the database and Redis have processors of their own: a simulation.

The machine that measures has too few processors to show it: callers, relays and servers share them. So the processor time of a
submit in each of them is measured, and what is left of a submit that is alone, which is the disk and the network of one
machine. The simulation lets devices submit, each one after the other, with these times, and its clock does not wait. A relay and Redis do one thing
at a time; what they do takes an exponentially distributed time, of which the measured one is the mean.
"""

import asyncio
import random
import selectors
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

SUBMITS: Final = 200  # of each device
SEED: Final = 1


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of one submit: seconds of processor time, and `waiting`, in which nobody has a processor."""

    caller: float
    relay: float
    database: float
    redis: float
    waiting: float


class _Clock(selectors.DefaultSelector):
    """An event loop's clock: where the loop would wait for a time, it is that time at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


def seconds_each(parts: Parts, *, relays: int, devices: int, processors: int | None = None) -> float:
    """Simulate submits; returns seconds for one of them, with all devices at once.

    processors: which callers, relays and servers share; None: each relay, Redis and each caller has its own, and the database as many as it asks for.
    """
    clock = _Clock()
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_submits(parts, relays, devices, processors))
    return clock.now / (devices * SUBMITS)


async def _submits(parts: Parts, relays: int, devices: int, processors: int | None) -> None:
    chance = random.Random(SEED)  # noqa: S311  of a simulation
    shared = asyncio.Semaphore(processors or 10**6)
    busy = [asyncio.Lock() for _ in range(relays)]
    redis = asyncio.Lock()

    @asynccontextmanager
    async def held(*needed: asyncio.Lock | asyncio.Semaphore) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for each in needed:
                await stack.enter_async_context(each)
            yield

    async def takes(mean: float, *needed: asyncio.Lock | asyncio.Semaphore) -> None:
        async with held(*needed):
            await asyncio.sleep(chance.expovariate(1 / mean) if mean else 0)

    async def device(relay: asyncio.Lock) -> None:
        for _ in range(SUBMITS):
            await takes(parts.caller / 2, shared)
            await takes(parts.relay / 2, relay, shared)
            await takes(parts.redis, redis, shared)
            await takes(parts.database, shared)
            await asyncio.sleep(parts.waiting)
            await takes(parts.relay / 2, relay, shared)
            await takes(parts.caller / 2, shared)

    await asyncio.gather(*(device(busy[number % relays]) for number in range(devices)))
