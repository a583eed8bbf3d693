"""The examples as programs: help on demand, and a line in place of a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PARTS = {"memory_states", "programs", "world"}  # of other examples, no programs
PROGRAMS = [path for path in sorted(EXAMPLES.glob("*.py")) if path.stem not in PARTS]
NEED_SOMETHING = ["certificates", "own_radio", "resource_server", "sign_in"]


def run(example: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, example, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("example", PROGRAMS, ids=lambda path: path.stem)
def test_an_example_says_what_it_is_for_and_how_it_is_called(example: Path) -> None:
    done = run(example, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {example.name}")
    first_line, *_ = example.read_text(encoding="utf-8").removeprefix("r").removeprefix('"""').splitlines()
    assert first_line in done.stdout


@pytest.mark.parametrize("name", NEED_SOMETHING)
def test_an_example_that_needs_to_be_told_something_says_so(name: str) -> None:
    done = run(EXAMPLES / f"{name}.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the following arguments are required" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    done = run(EXAMPLES / "certificates.py", tmp_path / "nowhere")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("certificates: ")


def test_without_a_device_the_sdks_example_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = run(EXAMPLES / "sign_in.py", "https://login.example")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("NotEnrolled: ")
    assert "headless-passkey join" in line
