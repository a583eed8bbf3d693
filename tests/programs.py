"""Running the programs as a user does: processes of their own, told apart by what they print."""

import asyncio
import os
import re
import signal
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
with (ROOT / "pyproject.toml").open("rb") as _project:
    PACKAGES: Final[tuple[str, ...]] = tuple(
        tomllib.load(_project)["tool"]["importlinter"]["root_packages"]
    )  # ours


class Program:
    """A running program whose stdout is read line by line and whose stderr is kept."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self._stdout = process.stdout
        self._stderr = asyncio.ensure_future(self._listen(process.stderr))
        self._heard, self._more = bytearray(), asyncio.Event()

    async def line(self) -> str:
        """The next line of stdout; fails with what stderr says when there is none."""
        line = await self._stdout.readline()
        assert line, f"no output, exit status {await self.process.wait()}: {await self.stderr()}"
        return line.decode().rstrip("\n")

    async def stderr(self) -> str:
        """All of stderr, once the program has ended."""
        await asyncio.shield(self._stderr)
        return self._heard.decode()

    async def heard(self, pattern: str) -> re.Match[str]:
        """What `pattern` finds in stderr, as soon as it does."""
        while (found := re.search(pattern, self._heard.decode())) is None:
            assert not self._stderr.done(), f"{pattern} was not said, but: {self._heard.decode()}"
            self._more.clear()
            await self._more.wait()
        return found

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        while data := await stderr.read(1 << 16):
            self._heard += data
            self._more.set()
        self._more.set()

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask the program to end; its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()


@asynccontextmanager
async def running(
    module: str,
    *args: str | Path,
    environment: Mapping[str, str] | None = None,
    limits: str = "",
) -> AsyncIterator[Program]:
    """`python -m module args…`, killed when the context is left. limits: options of the shell's ulimit."""
    limited = ("sh", "-c", f'ulimit {limits} && exec "$@"', "sh") if limits else ()
    process = await asyncio.create_subprocess_exec(
        *limited,
        sys.executable,
        "-m",
        module,
        *map(str, args),
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    program = Program(process)
    try:
        yield program
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await program.stderr()


async def run(
    module: str, *args: str | Path, environment: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """`python -m module args…` to its end: exit status, stdout, stderr."""
    async with running(module, *args, environment=environment) as program:
        stdout = (await program._stdout.read()).decode()
        return await program.process.wait(), stdout, await program.stderr()


def fill(writer: int) -> None:
    """Fill a pipe to its last byte."""
    os.set_blocking(writer, False)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * size)
    os.set_blocking(writer, True)


@contextmanager
def nobody_reads() -> Iterator[int]:
    """A pipe for the stderr of a program, which takes nothing more."""
    reader, writer = os.pipe()
    fill(writer)
    yield writer
    os.close(writer)
    os.close(reader)
