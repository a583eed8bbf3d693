"""A program that is told to end while it is still loading ends as it would later, and leaves nothing.

The signal comes when the program imports a module: a hook in front of its importers sends it, so that nothing here depends on how fast
the program is.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from headless_passkey.errors import ExitStatus
from tests.programs import ROOT, run, running

HOOK: Final = """
import os, sys

class Signals:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["SIGNALLED_AT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))

sys.meta_path.insert(0, Signals())
"""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of a program, how it ends when it is told to, and modules that it imports from its first to its last moment before that."""

    words: tuple[str, ...]  # {folder} is filled in
    modules: tuple[str, ...]
    status: ExitStatus = ExitStatus.DONE
    says: str = ""


CALLS: Final = {
    "sign-in": Call(
        words=("headless_passkey", "sign-in", "--rp", "http://localhost:9", "--state", "{folder}/state"),
        modules=(
            "headless_passkey.command.cli",
            "asyncio",
            "headless_passkey.command.ceremony",
            "headless_passkey.radio.choose",
        ),
        status=ExitStatus.INTERRUPTED,
        says="headless-passkey: interrupted\n",
    ),
    "relay": Call(
        words=("companion_push", "relay", "--listen", "127.0.0.1:0", "--store", "{folder}/store"),
        modules=("companion_push.cli", "companion_push.relay.command", "uvloop", "companion_push.relay.app"),
    ),
    "tunnel-service": Call(
        words=(
            *("companion_push", "tunnel-service", "--listen", "127.0.0.1:0"),
            *("--contacts", "{folder}/contacts"),
        ),
        modules=("companion_push.cli", "uvloop", "companion_push.tunnel_service.app"),
    ),
    "ether": Call(
        words=("companion_push", "ether", "--listen", "127.0.0.1:0"),
        modules=("companion_push.cli", "asyncio", "companion_push.emulation.controllers"),
    ),
    "companion run": Call(
        words=("companion_push", "companion", "run", "--state", "{folder}/state"),
        modules=(
            "companion_push.cli",
            "companion_push.companion.options",
            "companion_push.companion.command",
        ),
    ),
    "companion page": Call(
        words=("companion_push", "companion", "page", "--listen", "127.0.0.1:0", "--state", "{folder}/state"),
        modules=("companion_push.companion.command", "companion_push.companion.page.serving"),
    ),
    "companion run --once": Call(
        words=("companion_push", "companion", "run", "--once", "--state", "{folder}/state"),
        modules=("companion_push.companion.command",),
        status=ExitStatus.INTERRUPTED,
        says="companion-push: interrupted\n",
    ),
    "phone --linked": Call(
        words=("companion_push", "phone", "--linked", "--links", "{folder}/links"),
        modules=("companion_push.cli", "companion_push.companion.command"),
    ),
    "phone": Call(
        words=("companion_push", "phone", "--url", "-"),
        modules=("companion_push.companion.command",),
        status=ExitStatus.INTERRUPTED,
        says="companion-push: interrupted\n",
    ),
    "relying party": Call(
        words=("relying_party", "serve", "--listen", "127.0.0.1:0", "--store", "{folder}/store"),
        modules=("relying_party.cli", "asyncio", "relying_party.serving", "fido2"),
    ),
    "relying party with workers": Call(
        words=(
            "relying_party",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--workers",
            "2",
            "--store",
            "{folder}/s",
        ),
        modules=("server_workers.workers",),
    ),
    "store": Call(
        words=("relying_party", "store", "check", "--store", "{folder}/store"),
        modules=("relying_party.cli", "relying_party.store_command"),
        status=ExitStatus.INTERRUPTED,
        says="relying-party: interrupted\n",
    ),
}


def signalled(tmp_path: Path, module: str, number: signal.Signals) -> dict[str, str]:
    """The environment of a program that gets a signal when it imports a module."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    return {"PYTHONPATH": str(hook), "SIGNALLED_AT": module, "SIGNAL": str(int(number))}


def words(call: Call, folder: Path) -> tuple[str, ...]:
    folder.mkdir()
    return tuple(word.format(folder=folder) for word in call.words)


@pytest.mark.parametrize(
    ("name", "module", "number"),
    [
        *((name, module, signal.SIGTERM) for name, call in CALLS.items() for module in call.modules),
        *(
            (name, module, number)
            for name in ("sign-in", "relying party")
            for module in CALLS[name].modules[1:3]
            for number in (signal.SIGINT, signal.SIGHUP)
        ),
    ],
)
async def test_a_program_that_is_told_to_end_while_it_loads_ends_as_later(
    name: str, module: str, number: signal.Signals, tmp_path: Path
) -> None:
    call, folder = CALLS[name], tmp_path / "folder"
    environment = signalled(tmp_path, module, number)
    ended = await run(*words(call, folder), environment=environment)
    assert ended == (call.status, "", call.says)
    assert list(folder.iterdir()) == []


async def test_what_it_says_is_json_where_that_is_asked_for(tmp_path: Path) -> None:
    environment = signalled(tmp_path, "headless_passkey.command.cli", signal.SIGTERM)
    asked = words(CALLS["sign-in"], tmp_path / "folder")
    said = await run(*asked, environment=environment | {"HEADLESS_PASSKEY_SIGN_IN_JSON": "yes"})
    assert said[0] == ExitStatus.INTERRUPTED
    assert json.loads(said[2]) == {
        "error": "Interrupted",
        "reason": None,
        "status": 130,
        "message": "interrupted",
        "advice": None,
    }


async def test_what_is_to_outlive_its_terminal_does_so_from_the_first_moment(tmp_path: Path) -> None:
    environment = signalled(tmp_path, "headless_passkey.command.cli", signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited, as nohup does it
    try:
        done = await run("headless_passkey", "tunnel-domain", "0", environment=environment)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done == (0, "cable.ua5v.com\n", "")


@pytest.mark.parametrize(("module", "command"), [("headless_passkey", "status"), ("relying_party", "serve")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_settings_that_do_not_come_out_of_their_pipe_keep_no_program(
    module: str, command: str, number: signal.Signals, tmp_path: Path
) -> None:
    pipe = tmp_path / "settings"
    os.mkfifo(pipe)
    async with running(module, command, "--config", pipe) as program:
        descriptor = await asyncio.to_thread(os.open, pipe, os.O_WRONLY)  # as soon as the program opens it
        try:
            assert await program.end(number) == ExitStatus.INTERRUPTED
        finally:
            os.close(descriptor)
        assert await program.stderr() == f"{module.replace('_', '-')}: interrupted\n"


NEVER_READY: Final = """
import sys, threading
from relying_party import __main__, store_command

def checked(place):
    print("ready", flush=True)
    threading.Event().wait()

store_command.checked = checked
sys.exit(__main__.main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_database_that_does_not_answer_keeps_no_program(
    number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "never_ready.py").write_text(NEVER_READY, encoding="utf-8")
    store = tmp_path / "store"
    store.touch()
    environment = {"PYTHONPATH": str(tmp_path)}
    async with running("never_ready", "store", "check", "--store", store, environment=environment) as program:
        await program.line()
        assert await program.end(number) == ExitStatus.INTERRUPTED
        assert await program.stderr() == "relying-party: interrupted\n"


def test_the_first_process_of_a_container_ends_too(tmp_path: Path) -> None:
    """The kernel gives such a process no signal for which it has no handler."""
    alone = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("this needs unshare, and the right to make namespaces")
    call, folder = CALLS["relay"], tmp_path / "folder"
    environment = signalled(tmp_path, call.modules[0], signal.SIGTERM)
    done = subprocess.run(
        [*alone, sys.executable, "-m", *words(call, folder)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(folder.iterdir()) == []
