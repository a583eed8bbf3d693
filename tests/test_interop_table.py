"""The table of docs/interop.md is made by scripts/interop: a row for each test with a program of others, and its command."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "interop"))
PAGE = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")


def test_the_page_has_the_rows_of_the_script_with_what_has_passed() -> None:
    assert SCRIPT["table"](PAGE, {}) == PAGE


def test_each_test_with_a_peer_has_a_row_and_each_row_a_test() -> None:
    files = [*ROOT.glob("tests/peers/test_*.py"), *ROOT.glob("tests/ble/peers/test_*.py")]
    tests = [
        name
        for file in files
        for name in re.findall(
            r"^(?:async )?def (test_\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE
        )
    ]
    assert sorted(tests) == sorted(test for test, _, _ in SCRIPT["ROWS"])


def test_a_run_writes_version_and_date_of_what_has_passed_and_leaves_the_others() -> None:
    test = "test_snow_begins_a_handshake_that_we_answer"
    made = SCRIPT["table"](PAGE, {test: ("9.9", "2030-01-02")})
    (old,) = set(PAGE.splitlines()) - set(made.splitlines())
    (new,) = set(made.splitlines()) - set(PAGE.splitlines())
    assert f"-k {test}" in old
    assert f"-k {test}" in new
    assert [cell.strip() for cell in new.strip("|").split("|")][1::4] == ["9.9", "2030-01-02"]


def test_a_test_without_a_row_is_an_error() -> None:
    with pytest.raises(SystemExit, match="no row for test_snow_sings"):
        SCRIPT["write"]({"test_snow_sings"}, {})
