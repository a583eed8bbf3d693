"""How `sign-in` and `register` begin: with the question to the relying party, while the rest is loaded."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from headless_passkey.command import sign_in
from headless_passkey.command.cli import make_parser
from headless_passkey.errors import ExitStatus, UsageError
from headless_passkey.rp.key_store import KeyStore
from tests.programs import run, running

if TYPE_CHECKING:
    from headless_passkey.command.ceremony import Ceremony

# the program waits at an import until it may go on: until a pipe is opened for writing, and closed
WAITING: Final = """
import os, sys

class Waits:
    def find_spec(self, name, path=None, target=None):
        if name == "headless_passkey.ceremony":
            sys.meta_path.remove(self)
            with open(os.environ["GO_ON"], "rb") as pipe:
                pipe.read()

sys.meta_path.insert(0, Waits())
"""


@contextlib.asynccontextmanager
async def stranger() -> AsyncIterator[tuple[str, asyncio.Queue[str]]]:
    """A server that is no relying party: its URL, and the paths that it is asked for."""
    asked: asyncio.Queue[str] = asyncio.Queue()

    async def answer(request: web.Request) -> web.Response:
        asked.put_nowait(request.path)
        return web.Response(status=404)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        yield f"http://localhost:{server.port}", asked


async def test_the_relying_party_is_asked_while_the_rest_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WAITING, encoding="utf-8")
    state, pipe = tmp_path / "state", tmp_path / "pipe"
    os.mkfifo(pipe)
    environment = {"PYTHONPATH": str(tmp_path), "GO_ON": str(pipe)}
    async with stranger() as (url, asked):
        await KeyStore(state).key(url)
        words = ("sign-in", "--rp", url, "--state", state, "--delivery", "stdout")
        async with running("headless_passkey", *words, environment=environment) as program:
            assert await asked.get() == "/session"
            with pipe.open("wb"):
                pass
            assert await program.process.wait() == ExitStatus.SETUP
            assert "not as a relying party" in await program.stderr()


async def test_the_question_is_on_its_way_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    async def find(*_: object) -> None:
        begun.append("question")
        await asyncio.Event().wait()

    def load(*_: object, **__: object) -> "Ceremony":
        begun.append("loading")
        raise UsageError("enough")

    state = tmp_path / "state"
    await KeyStore(state).key("http://localhost")
    monkeypatch.setattr(sign_in, "find_relying_party", find)
    monkeypatch.setattr(sign_in, "_loaded", load)
    args = make_parser().parse_args(["sign-in", "--rp", "http://localhost", "--state", str(state)])
    with pytest.raises(UsageError):
        await sign_in.run(args, registers=False)
    assert begun == ["question", "loading"]


async def test_what_is_wrong_here_comes_before_what_is_wrong_there(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with stranger() as (url, _):
        await KeyStore(state).key(url)
        status, stdout, stderr = await run("headless_passkey", "sign-in", "--rp", url, "--state", state)
    assert (status, stdout) == (ExitStatus.NOT_ENROLLED, "")
    assert stderr.count("\n") == 1


async def test_a_device_that_was_never_there_asks_nothing_before_it_has_looked_at_its_state(
    tmp_path: Path,
) -> None:
    state = tmp_path / "state"
    async with stranger() as (url, asked):
        status, _, _ = await run("headless_passkey", "sign-in", "--rp", url, "--state", state)
        assert status == ExitStatus.NOT_ENROLLED
        assert asked.empty()
    assert not state.exists()


def test_a_command_has_the_same_options_when_it_is_the_only_one_that_is_made() -> None:
    def helps(command: str = "") -> dict[str, str]:
        actions = make_parser(command)._subparsers._group_actions  # type: ignore[union-attr]
        return {name: parser.format_help() for name, parser in actions[0].choices.items()}  # type: ignore[union-attr]

    together = helps()
    assert len(together) > 10
    assert {name: helps(name) for name in together} == {name: {name: text} for name, text in together.items()}
