"""What a line of log costs the relay for each answer, and what of that its thread costs: the program in turns with two others.

    make bench                                              with the other benchmarks
    PYTHONPATH=examples:. python benchmarks/log.py          measure and print

Each relay is the program with a store of its own, and its stderr is a pipe that is read. They answer the same calls in turns: at
the log level info, at info with the lines written on the event loop, as before there was a thread, and at warning, without lines.
"""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import aiohttp
import core
from measure import HEADINGS, Row, table
from relay import People, Server, populated

HEADING: Final = "# What the log costs the relay"
PEOPLE: Final = 20  # who call one after the other
BLOCKS: Final = 300  # turns of each relay
IN_BLOCK: Final = 20  # calls of one turn
# the program, with lines that are written where they come about
_ON_THE_LOOP: Final = """
import contextlib, sys
from companion_push.cli import main
from headless_passkey.command import command_line
command_line.written_by_a_thread = contextlib.nullcontext
sys.exit(main(sys.argv[1:]))
"""
_PROGRAM: Final = ("-m", "companion_push")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a turn of one relay has taken for each call, in seconds."""

    took: float  # until the answer was there
    processor: float  # of the relay


async def turns(
    folder: Path, *, blocks: int = BLOCKS, in_block: int = IN_BLOCK
) -> list[tuple[Turn, Turn, Turn]]:
    """Turns of the three relays: with the thread, without it, and without lines."""
    store = folder / "accounts.sqlite3"
    people = await populated(store, PEOPLE)
    kinds = ((_PROGRAM, "info"), (("-c", _ON_THE_LOOP), "info"), (_PROGRAM, "warning"))
    async with AsyncExitStack() as stack:
        servers = []
        for number, (words, level) in enumerate(kinds):
            copy = folder / f"copy {number}.sqlite3"
            shutil.copy(store, copy)
            servers.append(await stack.enter_async_context(_relay(words, copy, level)))
        for server in servers:
            await _turn(server, people, in_block)  # what is done once is done now
        found = []
        for block in range(blocks):
            first = block % len(servers)
            order = [*range(first, len(servers)), *range(first)]
            taken = {each: await _turn(servers[each], people, in_block) for each in order}
            found.append((taken[0], taken[1], taken[2]))
        return found


async def _turn(server: Server, people: People, number: int) -> Turn:
    used, began = server.processor(), time.perf_counter()
    for which in range(number):
        await server.call(people[which % len(people)][0], "GET", "/v1/inbox")
    took = time.perf_counter() - began
    await asyncio.sleep(0.02)  # for the thread's last lines
    return Turn(took=took / number, processor=(server.processor() - used) / number)


@asynccontextmanager
async def _relay(words: Sequence[str], store: Path, level: str) -> AsyncIterator[Server]:
    options = ("relay", "--listen", "127.0.0.1:0", "--store", str(store), "--log-level", level)
    reading, writing = os.pipe()
    reader = await asyncio.create_subprocess_exec("cat", stdin=reading, stdout=asyncio.subprocess.DEVNULL)
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, *options, cwd=core.ROOT, env={**os.environ, "PYTHONPATH": str(core.ROOT)},
        stdout=asyncio.subprocess.PIPE, stderr=writing,
    )  # fmt: skip
    os.close(writing)
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        async with aiohttp.ClientSession() as http:
            yield Server(url, process.pid, http)
    finally:
        process.terminate()
        await process.wait()
        await reader.wait()


def rows(found: Sequence[tuple[Turn, Turn, Turn]]) -> list[Row]:
    """The table."""
    names = ("a line by the thread", "a line on the event loop", "no line")
    compared = []
    for what, of in (("processor for an answer", "processor"), ("time of an answer", "took")):
        values = [tuple(getattr(turn, of) for turn in each) for each in found]
        for subject, baseline in ((0, 1), (0, 2), (1, 2)):
            pairs = [(each[subject], each[baseline]) for each in values]
            compared.append(Row.of_pairs(f"{what}, {names[subject]}", names[baseline], pairs))
    return compared


def apart(found: Sequence[tuple[Turn, Turn, Turn]], subject: int, baseline: int) -> float:
    """Seconds of processor that an answer costs more: the median of the turns."""
    return median(each[subject].processor - each[baseline].processor for each in found)


def _page(found: Sequence[tuple[Turn, Turn, Turn]]) -> list[str]:
    micro = [apart(found, *pair) * 1e6 for pair in ((0, 1), (0, 2))]
    return [
        HEADING,
        "",
        core.made(),
        "",
        table(HEADINGS, [each.cells for each in rows(found)]),
        "",
        f"For each answer of the relay at `--log-level info` its line costs {micro[1]:.0f} µs of processor, of which the thread is {micro[0]:.0f} µs (medians of the turns' differences).",
        f"An answer is that to `GET /v1/inbox`, whose caller makes the next call afterwards: {BLOCKS} turns of {IN_BLOCK} calls at each relay, on asyncio and without TLS. stderr is a pipe that is read.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the log costs the relay.")
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/RESULTS.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(turns(Path(folder)))
    page = "\n".join(_page(found)) + "\n"
    print(page)
    if args.write:
        core.put_section(HEADING, page)


if __name__ == "__main__":
    main()
