"""What a server has freed goes back to the system."""

import os
import subprocess
import sys

import pytest

from tests.programs import ROOT

# as a TLS connection has it: a block is freed, and the next one of its size is asked for
PROGRAM = """
import argparse, ctypes, sys
from companion_push.serving.options import add_serving
if sys.argv[1] == "server":
    parser = argparse.ArgumentParser()
    add_serving(parser, port=0)
    args = parser.parse_args([])
    args.choose_loop(args)
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
library.free(library.malloc(256 * 1024))
block = library.malloc(256 * 1024)
heap = next(line.split()[0] for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]"))
first, end = (int(each, 16) for each in heap.split("-"))
print("heap" if first <= block < end else "its own")
"""


def place(what: str, **environment: str) -> str:
    """Where a program has its second large block."""
    started = subprocess.run(
        [sys.executable, "-c", PROGRAM, what],
        env={**os.environ, **environment},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return started.stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_a_servers_large_blocks_are_no_part_of_its_heap() -> None:
    if place("any program") != "heap":
        pytest.skip("this allocator keeps large blocks apart by itself")
    assert place("server") == "its own"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
@pytest.mark.parametrize(
    "setting",
    [{"MALLOC_MMAP_THRESHOLD_": "33554432"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=33554432"}],
)
def test_what_the_operator_has_set_stands(setting: dict[str, str]) -> None:
    if place("any program", **setting) != "heap":
        pytest.skip("this allocator does not know the setting")
    assert place("server", **setting) == "heap"
