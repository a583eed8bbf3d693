"""scripts/keycloak-run says that it was not run, and why, and leaves the documentation as it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "how-to" / "openid-connect.md"


@pytest.mark.parametrize(
    ("programs", "why"),
    [
        ({}, "there is no java"),
        ({"java": "exit 0"}, "there is no mvn"),
        ({"java": "exit 0", "mvn": "echo no such version; exit 1"}, "Maven does not get"),
    ],
    ids=["no java", "no maven", "no keycloak"],
)
def test_where_it_cannot_run_it_says_so(tmp_path: Path, programs: dict[str, str], why: str) -> None:
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    before = PAGE.read_text()
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "keycloak-run"],
        env=os.environ | {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (77, "")
    assert done.stdout.startswith(f"not run: {why}")
    assert PAGE.read_text() == before


def test_there_is_one_row_for_it_to_write() -> None:
    assert PAGE.read_text().count("\n| Keycloak ") == 1
