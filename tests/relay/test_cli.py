"""``companion-push`` itself: one word per program, and a clear message where something is not installed."""

import asyncio
import importlib
import sys
from types import ModuleType

import pytest

from companion_push import cli
from companion_push.cli import PROGRAMS, Program
from tests.programs import run


async def test_help_names_every_program() -> None:
    status, stdout, _ = await run("companion_push", "--help")
    assert status == 0
    for name in PROGRAMS:
        assert name in stdout


@pytest.mark.parametrize("words", [[], ["nothing"], ["account"], ["account", "nothing"]])
async def test_other_words_are_usage_errors(words: list[str]) -> None:
    status, stdout, stderr = await run("companion_push", *words)
    assert (status, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("companion-push: ")


async def test_a_program_that_is_asked_for_imports_no_other() -> None:
    script = (
        "import sys; from companion_push.cli import make_parser; make_parser('account'); "
        "print('bumble' in sys.modules, 'companion_push.emulation.ether' in sys.modules)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert output.split() == [b"False", b"False"]


def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = ModuleType("companion_push.lacking")

    def add_parser(_subparsers: object) -> None:
        importlib.import_module("a_module_that_is_not_installed")

    lacking.add_parser = add_parser  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "companion_push.lacking", lacking)
    program = Program(module="companion_push.lacking", extra="emulation", help="…")
    monkeypatch.setitem(PROGRAMS, "lacking", program)
    assert cli.main(["lacking"]) == 10
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "this needs a_module_that_is_not_installed: `pip install '.[emulation]'` in the clone of headless-passkey"
        in line
    )


def test_a_missing_module_of_our_own_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(module="companion_push.absent", extra="push", help="…")
    monkeypatch.setitem(PROGRAMS, "absent", program)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["absent"])
