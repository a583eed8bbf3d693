"""The scripts that complete command lines: in a real bash, and current with what the programs take."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.terminal import Terminal
from tests.programs import ROOT, run

PROGRAMS = {
    "headless-passkey": "headless_passkey",
    "companion-push": "companion_push",
    "relying-party": "relying_party",
}
BASH = shutil.which("bash")

pytestmark = pytest.mark.skipif(BASH is None, reason="there is no bash here")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_program_prints_the_script_of_its_package(program: str, shell: str) -> None:
    script = ROOT / PROGRAMS[program] / "completions" / f"{program}.{shell}"
    assert await run(PROGRAMS[program], "completion", shell) == (0, script.read_text("utf-8"), "")


@pytest.mark.parametrize("words", [["tcsh"], [], ["bash", "zsh"]], ids=["another-shell", "none", "two"])
@pytest.mark.parametrize("program", PROGRAMS)
async def test_another_shell_is_a_usage_error(program: str, words: list[str]) -> None:
    status, stdout, stderr = await run(PROGRAMS[program], "completion", *words)
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)


def test_the_scripts_say_what_the_programs_take() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts" / "completions", "--check"],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def completed(program: str, *words: str, folder: Path) -> list[str]:
    """What bash offers for the last of `words`, in `folder`."""
    script = ROOT / PROGRAMS[program] / "completions" / f"{program}.bash"
    line = " ".join([program, *words])
    code = f"""
        source '{script}'
        COMP_WORDS=({program} {" ".join(f"'{word}'" for word in words)}) COMP_CWORD={len(words)}
        COMP_LINE='{line}' COMP_POINT={len(line)}
        $(complete -p {program} | sed 's/.*-F \\([^ ]*\\) .*/\\1/') 2>&1
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert BASH is not None
    done = subprocess.run(
        [BASH, "--norc", "-c", code], cwd=folder, capture_output=True, text=True, check=True, timeout=120
    )
    return sorted(set(done.stdout.split()))


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("headless-passkey", ("s",), ["session", "sign-in", "status"]),
        ("headless-passkey", ("session", "re"), ["refresh"]),
        ("headless-passkey", ("sign-in", "--scan", ""), ["active", "passive"]),
        ("headless-passkey", ("sign-in", "--min"), ["--min-rssi"]),
        ("headless-passkey", ("completion", ""), ["bash", "fish", "zsh"]),
        ("companion-push", ("c",), ["companion", "completion"]),
        ("companion-push", ("companion", "in"), ["invite"]),
        ("companion-push", ("companion", "invite", "--kind", ""), ["companion", "device"]),
        ("companion-push", ("tunnel-service", "--ce"), ["--cert"]),
        ("companion-push", ("account", "a"), ["add"]),
        ("relying-party", ("serve", "--page", ""), ["everyone", "own"]),
        ("relying-party", ("serve", "--backup"), ["--backup-eligibility"]),
        ("relying-party", ("serve", "--no-such"), []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bash_completes(program: str, words: tuple[str, ...], expected: list[str], tmp_path: Path) -> None:
    assert completed(program, *words, folder=tmp_path) == expected


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("headless-passkey", ("join", "--invitation", ""), ["invitation.txt", "state"]),
        ("headless-passkey", ("status", "--state", ""), ["state"]),
        ("companion-push", ("relay", "--config", "inv"), ["invitation.txt"]),
        ("relying-party", ("serve", "--store", "inv"), ["invitation.txt"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_file_or_directory_is_completed_as_one(
    program: str, words: tuple[str, ...], expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "invitation.txt").touch()
    (tmp_path / "state").mkdir()
    assert completed(program, *words, folder=tmp_path) == expected


async def test_the_tab_key_completes_a_command_line(tmp_path: Path) -> None:
    script = ROOT / "headless_passkey" / "completions" / "headless-passkey.bash"
    assert BASH is not None
    async with Terminal.open() as terminal:
        process = await asyncio.create_subprocess_exec(
            *terminal.in_front,
            BASH,
            "-c",
            f"stty sane </dev/tty && PS1='ready> ' exec {BASH} --noprofile --norc -i </dev/tty >/dev/tty 2>&1",
            cwd=tmp_path,
            env={
                "PATH": "/usr/bin:/bin",
                "TERM": "vt100",
                "HISTFILE": "",
            },  # bash edits no line on a dumb one
        )
        try:
            await terminal.until("ready> ")
            terminal.type(f"source '{script}'\n")
            await terminal.until("ready> ")
            terminal.type("headless-passkey sess\tref\t--ca-")
            await terminal.until("headless-passkey session refresh --ca-")
            terminal.type("\x15exit\n")
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
