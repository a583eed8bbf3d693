"""`companion-push` as a program of its own, with pipes or with a terminal."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import sys
import tty
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.screen import TIMEOUT, Screen

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "companion_push")


@dataclass
class Program:
    """A running program."""

    process: asyncio.subprocess.Process
    said: list[str] = field(default_factory=list)  # lines of stderr so far

    async def line(self) -> str:
        """The next line of stdout."""
        assert self.process.stdout is not None
        async with asyncio.timeout(TIMEOUT):
            return (await self.process.stdout.readline()).decode().rstrip("\n")

    async def until_said(self, text: str) -> str:
        """The next line of stderr that holds `text`."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                line = await self._stderr_line()
                assert line is not None, f"{text!r} was not said, but {self.said}"
                if text in line:
                    return line

    async def until_stage(self, stage: str) -> dict[str, Any]:
        """The next progress object of that stage; the program runs with --json."""
        while True:
            said: dict[str, Any] = json.loads(await self.until_said('"stage"'))
            if said["stage"] == stage:
                return said

    async def write(self, text: str, *, close: bool = False) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        await self.process.stdin.drain()
        if close:
            self.process.stdin.close()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """The exit status; what is left of stderr is in `said` then."""
        async with asyncio.timeout(TIMEOUT):
            while await self._stderr_line() is not None:
                pass
            return await self.process.wait()

    async def _stderr_line(self) -> str | None:
        if self.process.stderr is None:  # it is a terminal
            return None
        line = await self.process.stderr.readline()
        if not line:
            return None
        self.said.append(line.decode().rstrip("\n"))
        return self.said[-1]


@contextlib.asynccontextmanager
async def running(
    *words: object, stdin: str | None = None, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Program]:
    """`companion-push words…`, with no terminal. stdin: what it can read; None leaves the pipe open."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *map(str, words),
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    program = Program(process)
    try:
        if stdin is not None:
            with contextlib.suppress(ConnectionError):  # it has read the line and ended already
                await program.write(stdin, close=True)
        yield program
    finally:
        await _finish(process)


async def outcome(*words: object, stdin: str = "") -> tuple[int, str, list[str]]:
    """Exit status, stdout, and stderr's lines of a program that ends by itself."""
    async with running(*words, stdin=stdin) as program:
        status = await program.ended()
        assert program.process.stdout is not None
        return status, (await program.process.stdout.read()).decode(), program.said


# Takes a terminal as its own, then becomes the program: a session leader gets the first one it opens.
_WITH_TERMINAL = "import os, sys; os.open(sys.argv[1], os.O_RDWR); os.execv(sys.argv[2], sys.argv[2:])"


@contextlib.asynccontextmanager
async def at_terminal(
    *words: object,
    stdin: str | None = None,
    raw: bool = True,
    stdout: bool = False,
    stderr: bool | int = False,
) -> AsyncIterator[tuple[Program, Screen]]:
    """`companion-push words…` with a terminal to ask at; stdin, stdout and stderr are pipes all the same.

    stdout, stderr: whether it is the terminal too; or another descriptor.

    raw: keys are bytes and not shown; otherwise Ctrl-C and Ctrl-D do what they do at any terminal.
    """
    outer, inner = pty.openpty()
    if raw:
        tty.setraw(outer)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _WITH_TERMINAL,
        os.ttyname(inner),
        *PROGRAM,
        *map(str, words),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=inner if stdout else asyncio.subprocess.PIPE,
        stderr=inner if stderr is True else stderr or asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    program, screen = Program(process), Screen(outer)
    try:
        if stdin is not None:
            await program.write(stdin, close=True)
        yield program, screen
    finally:
        await _finish(process)
        screen.close()
        os.close(inner)


async def _finish(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()
    if process.stdin is not None:
        process.stdin.close()
    # closes the pipes' transports in this loop, not later in the garbage collector
    process._transport.close()  # type: ignore[attr-defined]
