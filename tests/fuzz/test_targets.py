"""The fuzz targets hold for where they begin, and one step beside it; no fuzzer needed."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz.corpus import seeds
from tests.fuzz.run import main
from tests.fuzz.targets import TARGETS
from tests.programs import ROOT

SEEDS = seeds()
FINDINGS = Path(__file__).parent / "findings"


def one_step_beside(data: bytes) -> Iterator[bytes]:
    """`data` cut short, grown, and with single bits and bytes changed."""
    yield data + b"\0"
    yield data + data
    for at in range(len(data)):
        yield data[:at]
        yield data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        yield data[:at] + b"\xff" + data[at + 1 :]


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_for_its_seeds(name: str) -> None:
    assert len(SEEDS[name]) >= 2  # something, and nothing
    for data in SEEDS[name]:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_one_step_beside_its_seeds(name: str) -> None:
    for data in SEEDS[name]:
        for changed in islice(one_step_beside(data), 300):
            TARGETS[name](changed)


def test_what_was_found_once_stays_mended() -> None:
    for file in sorted(FINDINGS.glob("*/*")):
        TARGETS[file.parent.name](file.read_bytes())


def test_an_input_can_be_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "input"
    file.write_bytes(b"\xa0")
    assert main(["--again", "cbor", str(file)]) == 0
    assert "cbor" in capsys.readouterr().out


FUZZ = """
import sys
from pathlib import Path
from tests.fuzz import run, targets
run.WORK = Path(sys.argv[1])
if sys.argv[2] == "broken":
    targets.TARGETS["eid"] = lambda data: 1 // (len(data) - 17)
sys.exit(run.main(["--seconds", "1", "eid"]))
"""


# the fuzzer has packages for x86-64 Linux alone, and is installed there; elsewhere there is nothing to test
STATES = ["whole", "broken"] if (sys.platform, platform.machine()) == ("linux", "x86_64") else []


@pytest.mark.parametrize("state", STATES)
def test_fuzzing_ends_well_or_says_what_it_found_and_how_to_see_it(tmp_path: Path, state: str) -> None:
    words = [sys.executable, "-c", FUZZ, str(tmp_path), state]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    found = list((tmp_path / "crashes" / "eid").iterdir())
    if state == "whole":
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 targets" in done.stdout
        assert not found
    else:
        assert done.returncode == 1
        assert "ZeroDivisionError" in done.stdout
        assert f"--again eid {os.path.relpath(found[0], ROOT)}" in done.stdout
        assert len(found[0].read_bytes()) == 17
