"""The last lines of `make test` name what was left out."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent

TESTS: Final = """
import pytest

@pytest.mark.skipif(True, reason="there is no C compiler for a clock that jumps: make test-stores")
@pytest.mark.parametrize("number", range(3))
def test_marked(number):
    pass

@pytest.fixture
def server():
    pytest.skip("PostgreSQL is not installed: make test-stores")

def test_of_a_fixture(server):
    pass

def test_in_the_middle():
    pytest.skip("PostgreSQL is not installed: make test-stores")

@pytest.mark.xfail
def test_that_is_expected_to_fail():
    assert False

def test_that_passes():
    pass
"""
MODULE: Final = 'import pytest\npytest.skip("the sockets are Linux\'s", allow_module_level=True)\n'


def test_each_reason_is_named_once_with_the_number_of_its_tests(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text(MODULE)
    assert left_out(tmp_path, "-n", "2") == [
        "left out: PostgreSQL is not installed: make test-stores (2)",
        "left out: the sockets are Linux's (1)",
        "left out: there is no C compiler for a clock that jumps: make test-stores (3)",
    ]


def test_where_nothing_is_left_out_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("def test_that_passes():\n    pass\n")
    assert left_out(tmp_path) == []


def left_out(folder: Path, *words: str) -> list[str]:
    """The lines right above pytest's own last one."""
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -ra\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.left_out",
        "-p",
        "xdist",
        *words,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert " passed" in last
    said = [line for line in lines if line.startswith("left out: ")]
    assert lines[len(lines) - len(said) :] == said, done.stdout
    return said
