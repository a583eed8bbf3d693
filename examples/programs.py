"""Starting the programs of this project as processes, for the demo and the end-to-end tests.

This module imports none of the packages: it runs the programs as a user does, and sees only their output.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

PROGRAMS: Final = Path(sys.executable).parent  # where the environment keeps its commands
START_TIMEOUT: Final = 120.0  # seconds until a server has said where it listens, even on a busy machine
STOP_TIMEOUT: Final = 60.0  # seconds until a program has ended after SIGTERM, even on a busy machine


class ProgramFailed(Exception):  # noqa: N818  it says which and why
    """A program ended when it should not have, or did not do what it was started for."""


@dataclass
class Program:
    """A running program. Each line of its stderr is passed on and kept."""

    name: str
    process: Process
    said: list[str] = field(default_factory=list)
    _listening: asyncio.Task[None] | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _passed: int = 0  # number of lines that `stage` and `says` have read

    @classmethod
    async def start(
        cls,
        name: str,
        *command: str | Path,
        on_line: Callable[[str, str], None] = lambda _name, _line: None,
        environment: Mapping[str, str] | None = None,
    ) -> "Program":
        """Start ``command`` of our environment. on_line: called with the name and each line of stderr."""
        executable, *arguments = map(str, command)
        path = executable if os.sep in executable else str(PROGRAMS / executable)
        process = await asyncio.create_subprocess_exec(
            path,
            *arguments,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            limit=1 << 20,
        )
        program = cls(name, process)
        program._listening = asyncio.create_task(program._listen(on_line))
        return program

    async def line(self, *, timeout: float = START_TIMEOUT) -> str:  # noqa: ASYNC109
        """The next line of stdout; `ProgramFailed` when there is none in time."""
        assert self.process.stdout is not None  # noqa: S101  it was opened as a pipe
        try:
            async with asyncio.timeout(timeout):
                line = await self.process.stdout.readline()
        except TimeoutError:
            raise ProgramFailed(f"{self.name} printed nothing in {timeout:g} s; {self.last_words}") from None
        if not line:
            status = await self.wait()
            raise ProgramFailed(f"{self.name} ended with status {status}: {self.last_words}")
        return line.decode().rstrip("\n")

    async def stage(self, *names: str, timeout: float = START_TIMEOUT) -> dict[str, Any]:  # noqa: ASYNC109
        """The next event of one of these stages; `ProgramFailed` if the program or the time ends first."""

        def is_it(line: str) -> bool:
            said = event(line)
            return said is not None and said.get("stage") in names

        said = event(await self._line(is_it, f"to come to {' or '.join(names)}", timeout))
        return said or {}

    async def says(self, words: str, *, timeout: float = START_TIMEOUT) -> str:  # noqa: ASYNC109
        """The next line of its stderr that holds `words`."""
        return await self._line(lambda line: words in line, f"to say {words!r}", timeout)

    async def _line(self, is_it: Callable[[str], bool], what: str, seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                while True:
                    self._news.clear()
                    while self._passed < len(self.said):
                        self._passed += 1
                        if is_it(self.said[self._passed - 1]):
                            return self.said[self._passed - 1]
                    if self._listening is None or self._listening.done():
                        raise ProgramFailed(f"{self.name} was {what}, but ended: {self.last_words}")
                    await self._news.wait()
        except TimeoutError:
            raise ProgramFailed(f"{self.name} was {what} within {seconds:g} s: {self.last_words}") from None

    @property
    def stages(self) -> list[str]:
        """Every stage that the program has reported so far."""
        said = (event(line) for line in self.said)
        return [each["stage"] for each in said if each is not None and "stage" in each]

    @property
    def failure(self) -> dict[str, Any] | None:
        """The line in which the program reported its failure: kind, reason, status and message."""
        said = (event(line) for line in self.said)
        return next((each for each in said if each is not None and "error" in each), None)

    async def write(self, text: str) -> None:
        """Write `text` to the program's stdin and close stdin."""
        stdin = self.process.stdin
        assert stdin is not None  # noqa: S101  it was opened as a pipe
        with suppress(ConnectionError):
            stdin.write(text.encode())
            await stdin.drain()
        stdin.close()

    async def output(self) -> str:
        """Close the program's stdin; return everything else that it prints on stdout."""
        assert self.process.stdin is not None  # noqa: S101  it was opened as a pipe
        assert self.process.stdout is not None  # noqa: S101  it was opened as a pipe
        self.process.stdin.close()
        return (await self.process.stdout.read()).decode()

    async def wait(self, *, timeout: float = 120.0) -> int:  # noqa: ASYNC109
        """The exit status, once the program has ended and all its output was read."""
        try:
            async with asyncio.timeout(timeout):
                status = await self.process.wait()
                if self._listening is not None:
                    await self._listening
        except TimeoutError:
            raise ProgramFailed(f"{self.name} did not end in {timeout:g} s; {self.last_words}") from None
        return status

    async def stop(self) -> int:
        """End the program with SIGTERM, as an operator does; return its exit status."""
        self._signal(signal.SIGTERM)
        try:
            return await self.wait(timeout=STOP_TIMEOUT)
        except ProgramFailed:
            self.process.kill()
            await self.wait()
            raise

    def kill(self) -> None:
        """End the program as a power cut does."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal, but not by asyncio: its check whether the program has ended warns (CPython 3.11)."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    @property
    def last_words(self) -> str:
        return "; ".join(self.said[-3:]) or "it said nothing"

    async def _listen(self, on_line: Callable[[str, str], None]) -> None:
        assert self.process.stderr is not None  # noqa: S101  it was opened as a pipe
        try:
            while line := await self.process.stderr.readline():
                text = line.decode(errors="replace").rstrip("\n")
                self.said.append(text)
                self._news.set()
                on_line(self.name, text)
        finally:
            asyncio.get_running_loop().call_soon(self._news.set)  # called when this task is done


@asynccontextmanager
async def running(programs: list[Program]) -> AsyncIterator[None]:
    """On leaving the context, end every program in `programs`, the last one first."""
    try:
        yield
    finally:
        for program in reversed(programs):
            if program.process.returncode is None:
                with suppress(ProgramFailed):
                    await program.stop()


async def run(
    *command: str | Path,
    stdin: str = "",
    name: str | None = None,
    on_line: Callable[[str, str], None] = lambda _name, _line: None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end; return its stdout. `ProgramFailed` unless it ends with 0."""
    program = await Program.start(name or str(command[0]), *command, on_line=on_line, environment=environment)
    await program.write(stdin)
    output = await program.output()
    status = await program.wait()
    if status != 0:
        raise ProgramFailed(f"{program.name} ended with status {status}: {program.last_words}")
    return output


def event(line: str) -> dict[str, Any] | None:
    """The JSON object in a line of stderr, or None when the line is text for people."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
