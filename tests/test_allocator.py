"""What a server has freed goes back to the system."""

import subprocess
import sys

import pytest

from tests.programs import ROOT

# blocks are freed between others that stay, as those of connections are
PROGRAM = """
import argparse, asyncio, ctypes, sys
from companion_push.serving import allocator
from companion_push.serving.options import add_serving

allocator._SECONDS = 0.01
parser = argparse.ArgumentParser()
add_serving(parser, port=0)
args = parser.parse_args(["--event-loop", sys.argv[1]])
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]


def heap():
    with open("/proc/self/smaps") as lines:
        for line in lines:
            if line.rstrip().endswith("[heap]"):
                return next(int(each.split()[1]) for each in lines if each.startswith("Rss:"))


async def main():
    blocks = [library.malloc(100_000) for _ in range(300)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    for block in blocks[:-1]:
        if block is not blocks[0]:
            library.free(block)
    print("held", heap(), flush=True)
    while heap() > 15_000:
        await asyncio.sleep(0)
    print("given back", flush=True)


with asyncio.Runner(loop_factory=args.choose_loop(args)) as runner:
    runner.run(main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_server_gives_back_what_is_free_between_what_is_not(loop: str) -> None:
    started = subprocess.run(
        [sys.executable, "-c", PROGRAM, loop], cwd=ROOT, check=True, capture_output=True, text=True
    )
    (_, held), end = (line.split() for line in started.stdout.splitlines())
    assert int(held) > 25_000  # KiB: it was not given back before
    assert end == ["given", "back"]
