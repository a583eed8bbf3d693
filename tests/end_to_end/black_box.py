"""The programs from outside: started as a user starts them, fed through pipes, judged by what they print.

Nothing here knows how a program works; it knows the contract of its pipes and of its exit status.
"""

import asyncio
import json
import os
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from certificates import Certificate
from programs import PROGRAMS

PATIENCE: Final = 30.0  # seconds: far more than anything here takes, so that a hang is a failure


@dataclass
class Running:
    """A program that is running, or has run."""

    process: asyncio.subprocess.Process
    said: list[str] = field(default_factory=list)  # lines of stderr
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _deaf: bool = False  # stderr has ended
    _listening: asyncio.Task[None] | None = None

    async def line(self) -> str:
        """The next line of stdout, without its end."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = (await self.process.stdout.readline()).decode()
        assert line.endswith("\n"), f"{line!r} is no whole line; stderr: {self.said}"
        return line[:-1]

    async def rest(self) -> str:
        """What is left of stdout, up to its end."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            return (await self.process.stdout.read()).decode()

    async def give(self, text: str | bytes) -> None:
        """Write to stdin; that nobody reads it any more is no failure."""
        assert self.process.stdin is not None
        with suppress(ConnectionError):
            self.process.stdin.write(text.encode() if isinstance(text, str) else text)
            await self.process.stdin.drain()

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def until(self, found: Callable[[list[str]], bool]) -> bool:
        """Wait until stderr holds what is looked for; False when the program ended without."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: found(self.said) or self._deaf)
        return found(self.said)

    async def until_said(self, text: str) -> str:
        """The first line of stderr that holds `text`, waiting for it."""
        assert await self.until(lambda lines: any(text in line for line in lines)), (
            f"{text!r} was not said, but {self.said}"
        )
        return next(line for line in self.said if text in line)

    async def status(self, *, within: float = PATIENCE) -> int:
        """The exit status, once the program has ended; never after a traceback."""
        assert self._listening is not None
        async with asyncio.timeout(within):
            status = await self.process.wait()
            await self._listening
        assert not any("Traceback" in line for line in self.said), "\n".join(self.said)
        return status

    def failure(self) -> str:
        """The one line that tells the failure: the last one."""
        assert self.said, "nothing was said"
        return self.said[-1]

    def error(self) -> dict[str, Any]:
        """The failure's JSON object, of which there is exactly one: everything said is JSON."""
        objects: list[dict[str, Any]] = [json.loads(line) for line in self.said]
        (error,) = (value for value in objects if "error" in value)
        assert error == objects[-1]
        assert error.keys() == {"error", "reason", "status", "message", "advice"}
        return error

    async def _listen(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.said.append(line.decode(errors="replace").rstrip("\n"))
            async with self._changed:
                self._changed.notify_all()
        self._deaf = True
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def running(
    *command: object,
    stdout: int = subprocess.PIPE,
    environment: Mapping[str, str] | None = None,
    in_front: Sequence[str] = (),
) -> AsyncIterator[Running]:
    """``command`` of this environment as a process. in_front: what gives it a terminal, which it lacks without."""
    name, *words = map(str, command)
    program = [name if "/" in name else str(PROGRAMS / name), *words]
    process = await asyncio.create_subprocess_exec(
        *in_front,
        *program,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        start_new_session=not in_front,
        limit=1 << 20,
    )
    one = Running(process)
    one._listening = asyncio.create_task(one._listen())
    try:
        yield one
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await one._listening
        if process.stdin is not None:
            process.stdin.close()
        # closes the pipes in this loop, not later in the garbage collector
        process._transport.close()  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program ended."""

    status: int
    stdout: str
    said: list[str]

    @property
    def failure(self) -> str:
        """The one line that tells the failure."""
        assert self.said, "nothing was said"
        return self.said[-1]

    @property
    def error(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.failure)
        return value


async def outcome(
    *command: object, stdin: str | bytes = b"", environment: Mapping[str, str] | None = None
) -> Outcome:
    """``command`` to its end, with `stdin` and then the end of input."""
    async with running(*command, environment=environment) as one:
        await one.give(stdin)
        one.close_stdin()
        stdout = await one.rest()
        return Outcome(status=await one.status(), stdout=stdout, said=one.said)


_Result = TypeVar("_Result")


async def side_by_side(*work: Coroutine[Any, Any, _Result], at_once: int = 3) -> list[_Result]:
    """The results of `work`, a few at a time: programs spend most of their start waiting for the disk."""
    turns = asyncio.Semaphore(at_once)

    async def in_turn(one: Coroutine[Any, Any, _Result]) -> _Result:
        async with turns:
            return await one

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(in_turn(one)) for one in work]
    return [task.result() for task in tasks]


@contextmanager
def tunnel_service(certificate: Certificate) -> Iterator[str]:
    """The real tunnel service as a process, for as many tests as like; its base URL."""
    process = subprocess.Popen(
        [
            PROGRAMS / "companion-push",
            *("tunnel-service", "--listen", "localhost:0"),
            *("--cert", certificate.cert, "--key", certificate.key, "--rate", "100000"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def write_json(folder: Path, value: object) -> Path:
    """A new JSON file in `folder`."""
    path = folder / f"{secrets.token_hex(8)}.json"
    path.write_text(json.dumps(value))
    return path
