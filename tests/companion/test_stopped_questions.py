"""Keys that stop or kill a program at a question, at a terminal that shows nothing of what is typed: whoever types next sees it."""

import asyncio
import contextlib
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.seal import SealKey
from tests.companion.program import PROGRAM, ROOT, at_terminal
from tests.screen import TIMEOUT, Screen

PASSPHRASE = "correct horse battery"
STOP, QUIT = "\x1a", "\x1c"  # Ctrl-Z, Ctrl-\
ASKED = "passkeys.json: "

# What a shell does with one program in its foreground: it says on stdout when that is stopped or has ended, and goes on with it at
# "fg", or in the background at "bg". It leaves the terminal's modes alone, as plain shells do.
_SHELL = """
import os, signal, sys
terminal = os.open(sys.argv[1], os.O_RDWR)  # of this session from now on
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
program = os.fork()
if not program:
    os.setpgid(0, 0)
    os.tcsetpgrp(terminal, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[2], sys.argv[2:])
while True:
    _, status = os.waitpid(program, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)
        break
    os.tcsetpgrp(terminal, os.getpid())
    print(f"stopped {os.WSTOPSIG(status)}", flush=True)
    if sys.stdin.readline() == "fg\\n":
        os.tcsetpgrp(terminal, program)
    os.killpg(program, signal.SIGCONT)
"""


@dataclass
class Shell:
    """A shell with one program."""

    process: asyncio.subprocess.Process
    terminal: int  # the end of whoever sees it
    screen: Screen

    async def told(self) -> str:
        """What has become of the program."""
        assert self.process.stdout is not None
        async with asyncio.timeout(TIMEOUT):
            return (await self.process.stdout.readline()).decode().strip()

    def kill(self, number: signal.Signals) -> None:
        """Send the program a signal, while it is in the foreground."""
        os.killpg(os.tcgetpgrp(self.terminal), number)

    def order(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())


@contextlib.asynccontextmanager
async def shell(*words: object) -> AsyncIterator[Shell]:
    outer, inner = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SHELL, os.ttyname(inner), *PROGRAM, *map(str, words), cwd=ROOT,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    screen = Screen(outer)
    try:
        yield Shell(process, outer, screen)
    finally:
        screen.close()  # SIGHUP to what is left
        os.close(inner)
        if process.returncode is None:
            process.kill()
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


@pytest.fixture
def unseal(tmp_path: Path) -> tuple[object, ...]:
    """The words of a command that asks for a passphrase."""
    file = CredentialFile(path=tmp_path / "passkeys.json")
    asyncio.run(file.reseal(SealKey.derive(PASSPHRASE)))
    return ("phone", "--unseal", "--credentials", file.path)


@pytest.mark.threat("T11")
async def test_a_program_that_is_killed_by_a_key_at_a_hidden_question_leaves_the_terminal_as_it_was(
    unseal: tuple[object, ...],
) -> None:
    async with at_terminal(*unseal, raw=False) as (program, screen):
        await screen.until(ASKED)
        assert not screen.echoes
        screen.type(QUIT)
        assert await program.ended() == -signal.SIGQUIT
        assert screen.echoes


@pytest.mark.threat("T11")
async def test_a_program_that_is_stopped_at_a_hidden_question_gives_the_terminal_back_and_asks_again(
    unseal: tuple[object, ...],
) -> None:
    async with shell(*unseal) as stopped:
        await stopped.screen.until(ASKED)
        for _ in range(2):
            assert not stopped.screen.echoes
            stopped.screen.type(f"half{STOP}")
            assert await stopped.told() == f"stopped {int(signal.SIGTSTP)}"
            assert stopped.screen.echoes
            stopped.order("fg")
            assert "half" not in await stopped.screen.until(ASKED)
        assert not stopped.screen.echoes
        stopped.screen.type(f"{PASSPHRASE}\n")
        assert await stopped.told() == "ended 0"
        assert stopped.screen.echoes
        assert "horse" not in stopped.screen.seen


@pytest.mark.threat("T11")
@pytest.mark.parametrize("stop", ["key", "SIGSTOP"])
async def test_what_goes_on_in_the_background_leaves_the_terminal_alone_until_it_is_in_front(
    unseal: tuple[object, ...], stop: str
) -> None:
    async with shell(*unseal) as stopped:
        await stopped.screen.until(ASKED)
        if stop == "key":
            stopped.screen.type(STOP)
            await stopped.told()
        else:
            stopped.kill(signal.SIGSTOP)
            await stopped.told()
            stopped.screen.show_typed()  # as a shell does that has its terminal back
        stopped.order("bg")
        assert await stopped.told() == f"stopped {int(signal.SIGTTOU)}"
        assert stopped.screen.echoes
        stopped.order("fg")
        await stopped.screen.until(ASKED)
        assert not stopped.screen.echoes
        stopped.screen.type(f"{PASSPHRASE}\n")
        # it asks once, and takes what is typed then
        assert ASKED not in await stopped.screen.until("\n")
        assert await stopped.told() == "ended 0"


@pytest.mark.threat("T11")
async def test_after_a_stop_that_nobody_handles_nothing_that_is_typed_is_shown(
    unseal: tuple[object, ...],
) -> None:
    async with at_terminal(*unseal, raw=False) as (program, screen):
        await screen.until(ASKED)
        program.process.send_signal(signal.SIGSTOP)
        screen.show_typed()  # as a shell does that has its terminal back
        program.process.send_signal(signal.SIGCONT)
        await screen.until(ASKED)
        assert not screen.echoes
        screen.type(f"{PASSPHRASE}\n")
        assert await program.ended() == 0
        assert screen.echoes


async def test_where_nobody_could_let_a_program_go_on_it_does_not_stop(unseal: tuple[object, ...]) -> None:
    async with at_terminal(*unseal, raw=False) as (program, screen):  # without a shell
        await screen.until(ASKED)
        screen.type(STOP)
        await screen.until(ASKED)
        assert not screen.echoes
        screen.type(f"{PASSPHRASE}\n")
        assert await program.ended() == 0


async def test_what_is_ignored_stays_ignored(unseal: tuple[object, ...]) -> None:
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    try:
        async with at_terminal(*unseal, raw=False) as (program, screen):
            await screen.until(ASKED)
            program.process.send_signal(signal.SIGQUIT)
            screen.type(f"{PASSPHRASE}\n")
            assert await program.ended() == 0
    finally:
        signal.signal(signal.SIGQUIT, before)
