"""Several processes of one server on one machine (``--workers``; docs/adr/0036).

The first process listens, and serves nobody: it starts the workers, which accept from its sockets, starts another one for each
that ends, and replaces all one by one at SIGUSR1. A worker is the same program with the same words. It is told of the sockets in
an environment variable, says that it is ready by its first line, and retires when its stdin ends: so it does when the first
process was killed.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Final, Self

PATH: Final = "_WORKER_PATH"  # JSON of the first process' sys.path
# a worker imports from where the first process does: `-m` alone would look in the working directory too
START: Final = (
    f"import json, os, sys; sys.path[:] = json.loads(os.environ.pop({PATH!r})); "
    "sys.argv[0] = {name!r}; from {program}.__main__ import main; sys.exit(main())"
)
LINGER_SECONDS: Final = 5.0  # for the connections of a worker that retires
END_SECONDS: Final = 20.0  # after which a worker that should have ended is killed
PAUSES: Final = (0.0, 1.0, 2.0, 5.0, 15.0, 30.0)  # seconds before each try to fill a place again


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """What a worker is told by the process that starts it. A program adds what its workers have to know."""

    program: ClassVar[str]  # its package

    workers: int  # among which all limits are shared out
    sockets: tuple[int, ...]  # descriptors of the listening sockets
    metrics: tuple[int, ...]  # and of this worker's own, for its metrics

    @classmethod
    def _variable(cls) -> str:
        return f"_{cls.program.upper()}_HANDED_OVER"

    @classmethod
    def received(cls) -> Self | None:
        """What this process was handed over; None in a process that an operator has started."""
        text = os.environ.pop(cls._variable(), None)
        if text is None:
            return None
        told = json.loads(text)
        return cls(**{**told, "sockets": tuple(told["sockets"]), "metrics": tuple(told["metrics"])})

    def environment(self) -> Mapping[str, str]:
        """The environment of a worker."""
        return {**os.environ, self._variable(): json.dumps(asdict(self)), PATH: json.dumps(sys.path)}

    def part(self, most: int) -> int:
        """This worker's part of a limit: all parts together are the limit, rounded up to a whole number for each."""
        return -(-most // self.workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retirement:
    """Done when the stdin of this worker has ended."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)

    def watch(self, then: Callable[[], None]) -> None:
        """Watch stdin, which brings nothing and ends once."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            if not os.read(0, 1024):
                loop.remove_reader(0)
                self.asked.set()
                then()

        os.set_blocking(0, False)
        loop.add_reader(0, read)

    def linger(self) -> float:
        """Seconds for the open connections: none when the whole program ends."""
        return LINGER_SECONDS if self.asked.is_set() else 0.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Worker:
    process: Process
    leaves: bool = False  # asked to end, or replaced

    def retire(self) -> None:
        self.leaves = True
        if self.process.stdin is not None:
            self.process.stdin.close()

    def terminate(self) -> None:
        self.leaves = True
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()

    async def ended(self) -> None:
        """Wait for its end, and kill it when that does not come."""
        try:
            async with asyncio.timeout(END_SECONDS):
                await self.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


class NotReadyError(Exception):
    """A worker ended before it was ready; it has said why on stderr."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Workers:
    """The places of the workers, numbered from 1, and who has each."""

    def __init__(
        self, words: Sequence[str], places: Sequence[HandOver], *, say: Callable[[str], None]
    ) -> None:
        """words: of the command line. say: prints a line for the operator."""
        self._words, self._say = words, say
        self._places = dict(enumerate(places, 1))
        self._current: dict[int, _Worker] = {}
        self._all: set[_Worker] = set()  # those that are beginning or retiring too
        self._changing = asyncio.Lock()  # one worker begins at a time
        self._ending = asyncio.Event()
        self._watchers: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Fill each place in turn; returns the first line of the last one. `NotReadyError` when one cannot be filled."""
        line = ""
        for number in self._places:
            line = await self._fill(number)
        return line

    async def replace(self) -> None:
        """Replace the workers one by one; each retires when another one is ready in its place."""
        try:
            for number in self._places:
                await self._fill(number)
        except NotReadyError as error:
            self._say(f"the workers are not all replaced: a new one has ended with status {error.status}")
        else:
            self._say("all workers are replaced")

    async def end(self) -> None:
        """End all workers, and wait for them."""
        self._ending.set()
        for worker in self._all:
            worker.terminate()
        while self._all or self._watchers:
            await asyncio.gather(*(worker.ended() for worker in self._all), *self._watchers)

    async def _fill(self, number: int, *, only_empty: bool = False) -> str:
        """Start a worker in a place, wait until it is ready, and retire the one before; returns its first line."""
        async with self._changing:
            before = self._current.get(number)
            if self._ending.is_set() or (only_empty and before is not None):
                return ""
            worker, line = await self._started(self._places[number])
            self._current[number] = worker
            self._say(f"worker {number} is process {worker.process.pid}")
            self._keep(self._watch(number, worker))
            if before is not None:
                before.retire()
                self._keep(before.ended())
            return line

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        """Keep a task for `end`."""
        task = asyncio.create_task(work)
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def _started(self, place: HandOver) -> tuple[_Worker, str]:
        """Start a worker, and wait for its first line."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-c",
            START.format(program=place.program, name=place.program.replace("_", "-")),
            *self._words,
            stdin=PIPE,
            stdout=PIPE,
            env=place.environment(),
            pass_fds=(*place.sockets, *place.metrics),
            start_new_session=True,  # a terminal's signals are for the first process
        )
        worker = _Worker(process=process)
        self._all.add(worker)
        if self._ending.is_set():
            worker.terminate()
        line = b"" if process.stdout is None else await process.stdout.readline()
        if not line:
            await worker.ended()
            self._all.discard(worker)
            raise NotReadyError(process.returncode or 0)
        return worker, line.decode()

    async def _watch(self, number: int, worker: _Worker) -> None:
        """Wait for a worker's end. Its place is filled again, unless it had to leave it."""
        status = await worker.process.wait()
        self._all.discard(worker)
        if worker.leaves or self._ending.is_set():
            return
        self._say(f"worker {number} has ended, status {status}")
        if self._current.get(number) is worker:
            del self._current[number]
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._ending.wait()
            try:
                await self._fill(number, only_empty=True)
            except NotReadyError as error:
                self._say(f"worker {number} does not begin, status {error.status}")
            else:
                return

    async def keep(
        self,
        *,
        ended: "asyncio.Future[None]",
        ready: Callable[[str], None],
        closing: Callable[[], None],
    ) -> None:
        """Keep the workers until `ended` is done, then end them; SIGUSR1 replaces them one by one.

        ready: is told the first line of the last one that begins. closing: is called before they end, to listen no more.
        `NotReadyError` when one cannot begin.
        """
        again = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, again.set)
        started = asyncio.ensure_future(self.start())
        try:
            await asyncio.wait((started, ended), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                ready(await started)
            while not ended.done():
                asked = asyncio.ensure_future(again.wait())
                await asyncio.wait((asked, ended), return_when=asyncio.FIRST_COMPLETED)
                asked.cancel()
                if again.is_set():
                    again.clear()
                    replaced = asyncio.ensure_future(self.replace())
                    await asyncio.wait((replaced, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            closing()
            await self.end()
            await asyncio.gather(started, return_exceptions=True)
