"""Programs that hold keys leave no core dump, whatever the system does with those."""

import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from tests.programs import ROOT

CONTROL = (sys.executable, "-c", "print(flush=True); import time; time.sleep(600)")
PROGRAMS = {
    "relay": ("companion_push", "relay", "--listen", "127.0.0.1:0", "--store", "relay.sqlite3"),
    "relying party": ("relying_party", "serve", "--listen", "127.0.0.1:0", "--store", "rp.sqlite3"),
    "ether": ("companion_push", "ether", "--listen", "127.0.0.1:0"),
}


def dumped(words: tuple[str, ...], folder: Path) -> bool:
    """Whether a program that has said a line, and then fails badly, is dumped where all may be."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:  # nothing but system calls until exec
        os.chdir(folder)
        os.dup2(writer, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(words[0], words)  # noqa: S606  its status is needed as the system gives it
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        said.readline()
        os.kill(process, signal.SIGABRT)
        _, status = os.waitpid(process, 0)
    assert os.WTERMSIG(status) == signal.SIGABRT
    return os.WCOREDUMP(status)


@pytest.mark.threat("T11")
@pytest.mark.skipif(sys.platform != "linux", reason="the system's own word on core dumps")
@pytest.mark.parametrize("words", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_that_holds_keys_is_never_dumped(words: tuple[str, ...], tmp_path: Path) -> None:
    if not dumped(CONTROL, tmp_path):
        pytest.skip("this system dumps no process")
    assert not dumped((sys.executable, "-m", *words), tmp_path)
