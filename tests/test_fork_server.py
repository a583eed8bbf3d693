"""A program of the fork server is, from outside and for itself, like one that is executed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests import fork_server
from tests.programs import ROOT, run, running

pytestmark = pytest.mark.skipif(bool(os.environ.get("EXECUTED")), reason="all programs are executed")
RELAY = ("companion_push", "relay", "--listen", "127.0.0.1:0", "--store")


def started(*words: str, **options: object) -> "subprocess.Popen[str]":
    """`python -m words…`, with pipes."""
    pipe = subprocess.PIPE
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", *words], stdin=pipe, stdout=pipe, stderr=pipe, text=True, **options
    )


def forked(pid: int) -> bool:
    """Whether a process has the room for its arguments that the fork server has."""
    return len(Path(f"/proc/{pid}/cmdline").read_bytes()) > 1 << 16


def runs(pid: int) -> bool:
    """Whether there is a process, and it has not ended."""
    with suppress(FileNotFoundError):
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    return False


@pytest.fixture(params=["forked", pytest.param("executed", marks=pytest.mark.executed)])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_its_process_shows_arguments_environment_and_folder_of_its_own(
    way: str, tmp_path: Path
) -> None:
    process = started(*RELAY, "a store", env={**os.environ, "MARK": "x" * 9000}, cwd=tmp_path)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://")
        shown = Path("/proc", str(process.pid))
        assert shown.joinpath("cmdline").read_text().rstrip("\0").split("\0") == [
            sys.executable, "-m", *RELAY, "a store",
        ]  # fmt: skip
        environment = shown.joinpath("environ").read_text().rstrip("\0").split("\0")
        assert environment == [
            f"{name}={value}" for name, value in {**os.environ, "MARK": "x" * 9000}.items()
        ]
        assert shown.joinpath("cwd").readlink() == tmp_path
        assert (tmp_path / "a store").exists()
        assert f"PPid:\t{os.getpid()}\n" in shown.joinpath("status").read_text()
        assert forked(process.pid) is (way == "forked")
        process.terminate()
        assert process.wait() == 0


@pytest.mark.usefixtures("way")
async def test_it_has_no_descriptor_but_its_own(tmp_path: Path) -> None:
    """None of the test's sockets, of the fork server's or of another program's pipes."""
    async with running(*RELAY, tmp_path / "one") as one, running(*RELAY, tmp_path / "two") as two:
        await one.line()
        await two.line()

        def open_in(pid: int) -> set[str]:
            links = (str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir())
            return {link for link in links if link.startswith(("pipe:", "socket:"))}

        assert not open_in(one.process.pid) & open_in(two.process.pid)
        assert not open_in(fork_server.running_server().process.pid) & open_in(two.process.pid)
        assert await one.end() == 0
        assert await two.end() == 0


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("words", "status", "stdout", "stderr"),
    [
        (("companion_push", "--version"), 0, "companion-push ", ""),
        (
            ("relying_party", "serve", "--nonsense"),
            2,
            "",
            "relying-party: unrecognized arguments: --nonsense",
        ),
        (("headless_passkey", "status", "--state", "/nowhere"), 9, "", "headless-passkey: "),
    ],
    ids=["done", "usage", "not enrolled"],
)
async def test_its_exit_status_and_output_are_its_own(
    words: tuple[str, ...], status: int, stdout: str, stderr: str
) -> None:
    ended, said, complaints = await run(*words)
    assert ended == status
    assert said.startswith(stdout)
    assert complaints.startswith(stderr)
    assert len((said + complaints).splitlines()) == 1


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGHUP, 0), (signal.SIGKILL, -signal.SIGKILL)],
)
async def test_signals_end_it(number: signal.Signals, status: int, tmp_path: Path) -> None:
    async with running(*RELAY, tmp_path / "store") as relay:
        await relay.line()
        assert await relay.end(number) == status


@pytest.mark.usefixtures("way")
async def test_it_reads_its_stdin_and_has_its_session() -> None:
    process = started(
        "companion_push", "companion", "join", "--code", "-", "--label", "x", "--json", start_new_session=True
    )
    with process:
        assert os.getsid(process.pid) == process.pid
        _, stderr = process.communicate("no code\n")
    assert process.returncode == 3
    assert json.loads(stderr.splitlines()[-1])["status"] == 3


async def test_what_differs_from_its_start_on_is_executed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for environment, is_forked in (
        ({}, True),
        ({"PYTHONPATH": str(tmp_path)}, False),
        ({"LC_ALL": "C"}, False),
    ):
        async with running(*RELAY, tmp_path / "store", environment=environment) as relay:
            await relay.line()
            assert forked(relay.process.pid) is is_forked
            assert await relay.end() == 0
    async with running(*RELAY, tmp_path / "store", limits="-n 200") as relay:
        await relay.line()
        assert not forked(relay.process.pid)
        assert await relay.end() == 0
    monkeypatch.setattr(fork_server, "executed", True)
    async with running(*RELAY, tmp_path / "store") as relay:
        await relay.line()
        assert not forked(relay.process.pid)
        assert await relay.end() == 0


async def test_it_ends_with_the_process_that_it_serves() -> None:
    """Also when that is killed."""
    code = (
        "import os, signal; from tests import fork_server; server = fork_server.running_server();"
        "server.start('companion_push', ['x', '--version'], shown=['x'], environment={}, folder='/',"
        " descriptors=[0, 1, 2], session=False); print(server.process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    stdout, _ = await process.communicate()  # ends when nobody has it any more: the server neither
    assert process.returncode == -signal.SIGKILL
    (server,) = (int(line) for line in stdout.splitlines() if line.isdigit())
    assert not runs(server)
