"""docs/tutorial.md, typed line by line into shells, as it stands but for the ports."""

import asyncio
import re
import secrets
import shutil
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.end_to_end.household import processes
from tests.end_to_end.window import Window
from tests.ports import reserved_port

ROOT: Final = Path(__file__).parents[2]
PROMPT: Final = "ready> "
PORTS: Final = ("7000", "7001", "7002", "7003")


class Shell:
    """A terminal with a shell in it."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._from = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, **environment: str) -> AsyncIterator["Shell"]:
        words = ("/bin/bash", "--norc", "--noprofile", "-i")
        more = {"PS1": PROMPT, "PS2": "", "TERM": "dumb", "HISTFILE": "", "HOME": str(folder), **environment}
        async with Window.open(300, 50, *words, **more) as (window, process):
            shell = cls(window)
            await shell.type(f"cd '{folder}'")
            yield shell
            window.type("exit\n")
            async with asyncio.timeout(60):
                await process.wait()

    async def type(self, lines: str) -> str:
        """Type a command and wait for its end; what it has shown."""
        self.begin(lines)
        return await self.until(rf"{PROMPT}$")

    def begin(self, lines: str) -> None:
        """Type a command, and do not wait for its end."""
        self._from = len(self._window.written)
        self._window.type(f"{lines}\n")

    async def until(self, pattern: str) -> str:
        """What has been shown since the last command, once that matches."""
        await self._window.until(lambda: re.search(pattern, self._shown) is not None)
        return self._shown

    async def answer(self, question: str, keys: str) -> None:
        """Wait for a question at the end of what is shown, and answer it."""
        await self.until(rf"{question} ")  # something else may be said after it
        self._from = len(self._window.written)
        self._window.type(f"{keys}\n")

    async def interrupt(self) -> None:
        self._from = len(self._window.written)
        self._window.type("\x03")
        await self.until(rf"{PROMPT}$")

    @property
    def _shown(self) -> str:
        return self._window.written[self._from :].replace("\r", "")


def page(ports: dict[str, str]) -> list[list[str]]:
    """The blocks of the tutorial, each as its commands."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    for port, other in ports.items():
        text = text.replace(port, other)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"\\\n", "\0", block).strip().replace("\0", "\\\n").split("\n") for block in blocks]


def commands(block: list[str]) -> list[str]:
    """Lines that end in a backslash go on with the next one."""
    return re.split(r"(?<!\\)\n", "\n".join(block))


def free_ports() -> dict[str, str]:
    return {port: str(reserved_port()) for port in PORTS}


def repository(folder: Path) -> Path:
    """The repository, as far as the tutorial needs it, with an environment that is set up."""
    folder.mkdir()
    (folder / ".venv").symlink_to(Path(sys.prefix))
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def open_to_others(folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in (folder, *folder.rglob("*"))
        if stat.S_IMODE(path.stat().st_mode) & 0o077
    ]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the tutorial asks the relying party with curl")
@pytest.mark.timeout(600)
async def test_the_tutorial_works_as_it_is_written(tmp_path: Path) -> None:
    ports = free_ports()
    (
        begin,
        certificates,
        servers,
        founding,
        joining,
        running,
        ceremonies,
        session,
        qr,
        pipes,
        options,
        device,
        result,
    ) = map(commands, page(ports))
    folder, mark = repository(tmp_path / "repository"), secrets.token_hex(8)
    async with AsyncExitStack() as stack:

        async def terminal() -> Shell:
            shell = await stack.enter_async_context(Shell.open(folder, TUTORIAL=mark))
            for line in begin:
                await shell.type(line)
            return shell

        companion, hub = await terminal(), await terminal()
        running_servers = list[Shell]()
        for line in certificates:
            await companion.type(line)
        assert len(servers) == len(PORTS)
        for line, port in zip(servers, ports.values(), strict=True):
            server = await terminal()
            running_servers.append(server)
            server.begin(line)
            await server.until(rf"\n(wss|https|tcp-client)\S+{port}\n")

        found, join, invite = founding
        await companion.type(found)
        assert "joined account" in await companion.type(join)
        companion.begin(invite)
        await companion.until(r"\nhpk-invitation:\S+\n")
        hub.begin(*joining)
        number = re.search(r"number: (\d{3} \d{3})", await hub.until(r"number: \d{3} \d{3}"))
        assert number is not None
        await hub.answer("Go on\\? y or n:", "y")
        assert number[1] not in await companion.until(r"Type the six digits [^\n]*: ")
        await companion.answer("refuse it:", number[1])
        await companion.until(rf"belongs to the account now\n{PROMPT}$")
        await hub.until(rf"joined account [^\n]*\n{PROMPT}$")

        companion.begin(*running)
        await companion.until("connected to the relay")
        for line in ceremonies:
            hub.begin(line)
            await companion.answer("Approve\\? y or n:", "y")
            await companion.answer("y or n:", "y")
            assert '"token": null' in await hub.until(rf"{PROMPT}$")
        fetch, sign_out = session
        assert '"name":"ada"' in (await hub.type(fetch)).replace(" ", "")
        assert "signed out" in await hub.type(sign_out)

        await companion.interrupt()
        companion.begin(*qr)
        await companion.until("connected to the relay")
        await companion.interrupt()

        make, phone = pipes
        await companion.type(make)
        companion.begin(phone)
        for line in options:
            await hub.type(line)
        hub.begin(*device)
        await companion.answer("y or n:", "y")
        await companion.until(rf"{PROMPT}$")
        assert "the passkey of ada answered" in await hub.until(rf"{PROMPT}$")
        write, complete = result
        await hub.type(write)
        assert '"name":"ada"' in (await hub.type(complete)).replace(" ", "")
        assert open_to_others(folder / "try") == []
        for each in running_servers:
            await each.interrupt()
    assert processes(f"TUTORIAL={mark}") == []
