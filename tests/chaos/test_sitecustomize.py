"""A program of a chaotic run has a clock that jumps, notes that it has read a wrong one, and says what its tasks are."""

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

from tests.chaos.town import CLOCKS

PROGRAM = """
import asyncio, sys, time

async def work():
    await asyncio.Event().wait()

async def main():
    working = asyncio.create_task(work())
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print(flush=True)
    while await lines.readline():
        print(time.time(), flush=True)

asyncio.run(main())
"""
# it looks up again and again: a signal that comes just before a program waits for its input is heard after that
WITHOUT_A_LOOP = """
import select, sys
print(flush=True)
while not select.select([sys.stdin], [], [], 0.05)[0]:
    pass
"""


def test_its_clock_jumps_and_it_notes_that_it_has_read_a_wrong_one(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_bytes(bytes(9))
    program = _started(PROGRAM, clock)
    assert program.stdin is not None
    assert program.stdout is not None

    def asked() -> float:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(b"what time is it?\n")
        program.stdin.flush()
        return float(program.stdout.readline())

    with program:
        program.stdout.readline()
        right = asked()
        assert clock.read_bytes()[8] == 0
        with clock.open("r+b") as file:
            file.write(struct.pack("=d", 86400.0))
        assert 86400 <= asked() - right < 2 * 86400
        assert clock.read_bytes()[8] == 1
        program.stdin.close()


def test_it_says_what_its_tasks_are_also_where_no_event_loop_runs(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_bytes(bytes(9))
    for program, tasks in ((PROGRAM, ["main", "work"]), (WITHOUT_A_LOOP, [])):
        with _started(program, clock) as running:
            assert running.stdin is not None
            assert running.stdout is not None
            assert running.stderr is not None
            running.stdout.readline()
            os.kill(running.pid, signal.SIGUSR2)
            said = json.loads(running.stderr.readline())
            assert said == {"process": running.pid, "tasks": tasks}
            running.stdin.write(b"\n")
            running.stdin.close()


def _started(program: str, clock: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(CLOCKS), "JUMPING_CLOCK": str(clock)},
    )
