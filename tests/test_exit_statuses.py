"""How programs end: the drawing of the errors, their classes, the programs themselves and docs/cli.md say the same."""

import asyncio
import contextlib
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import companion_push.errors
import headless_passkey.errors
from headless_passkey.errors import CtapError, ExitStatus, NotApproved, Outcome, TrustError, TrustReason
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import Role
from tests.device.test_session import keep
from tests.programs import ROOT
from tests.test_error_trees import ERRORS, drawing, made, named

TREES = (headless_passkey.errors, companion_push.errors)

# without an error of the tree, or of no class that stands in a drawing
OTHERS = {ExitStatus.DONE, ExitStatus.REFUSED, ExitStatus.INTERRUPTED}


def drawn_statuses(tree: ModuleType) -> dict[str, set[int]]:
    """The exit statuses that a drawing has behind each name."""
    found = {}
    for line in (tree.__doc__ or "").splitlines():
        match = re.match(r" {4}[│├└─ ]*(\w+)(?:\([\w, ]+\))? +(\d+(?:, \d+)*)  ", line)
        if match:
            found[match[1]] = set(map(int, match[2].split(", ")))
    return found


def statuses_of(error: type[Exception]) -> set[int]:
    """What a program may end with for an error of this class."""
    if issubclass(error, NotApproved):
        return {int(error(outcome, "").exit_status) for outcome in Outcome}
    if issubclass(error, TrustError):
        return {int(error(reason, "").exit_status) for reason in TrustReason}
    instance, _ = made(error)
    return {int(instance.exit_status)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_a_drawing_has_the_exit_status_of_each_class(tree: ModuleType) -> None:
    drawn = drawn_statuses(tree)
    ours = {each.name for each in drawing(tree) if named(tree, each.name).__module__ == tree.__name__}
    abstract = {"HeadlessPasskeyError", "ProtocolError"}  # nobody raises them
    assert set(drawn) >= ours - abstract
    assert drawn == {name: statuses_of(named(tree, name)) for name in drawn}


def test_every_error_of_any_module_ends_as_one_that_is_drawn() -> None:
    drawn = set().union(*(status for tree in TREES for status in drawn_statuses(tree).values()))
    assert drawn | OTHERS == set(ExitStatus)
    for error in ERRORS:
        if issubclass(error, headless_passkey.errors.HeadlessPasskeyError):
            assert statuses_of(error) <= drawn | OTHERS, error


def test_the_page_has_each_status_with_its_meaning_and_no_others() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)
    assert rows == [(str(int(status)), status.meaning) for status in ExitStatus]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a program, and how it ends."""

    words: Sequence[str]  # {state}, {url} and {port} are filled in
    status: ExitStatus
    reason: str | None
    stdin: str | None = ""  # None: it stays open, and nothing comes


def invitation(kind: Role) -> str:
    return Invitation(
        relay_url="https://relay.example",
        account="aG9tZSdzIGFjY291bnQhIQ",
        account_name="home",
        kind=kind,
        inviter="A" * 43,
        inviter_label="phone",
        secret=bytes(16),
        expires_at=1 << 40,
    ).encode()


OPTIONS = json.dumps({"challenge": "AAAA", "rpId": "example.com"})
DEVICE, PUSH = "headless_passkey", "companion_push"
SIGN_IN = (DEVICE, "sign-in", "--origin", "https://example.com", "--delivery", "stdout", "--state", "{state}")
SESSION = (DEVICE, "session")

CALLS: dict[str, Call] = {
    "done": Call(words=(DEVICE, "tunnel-domain", "0"), status=ExitStatus.DONE, reason=None),
    "no such option": Call(words=(DEVICE, "status", "--what"), status=ExitStatus.USAGE, reason=None),
    "options that need each other": Call(words=SIGN_IN, status=ExitStatus.USAGE, reason=None),
    "an empty label": Call(
        words=(DEVICE, "join", "--invitation", "-", "--label", ""), status=ExitStatus.USAGE, reason=None
    ),
    "a relay without its key": Call(
        words=(PUSH, "relay", "--cert", "x.pem"), status=ExitStatus.USAGE, reason=None
    ),
    "a FIDO URL that is none": Call(
        words=(DEVICE, "inspect"), stdin="FIDO:/x", status=ExitStatus.PROTOCOL, reason="malformed-fido-url"
    ),
    "an invitation that is none": Call(
        words=(DEVICE, "join", "--invitation", "-", "--label", "x", "--state", "{state}"),
        stdin="hello\n",
        status=ExitStatus.PROTOCOL,
        reason="malformed-invitation",
    ),
    "an input that ends": Call(words=(DEVICE, "inspect"), status=ExitStatus.TRANSPORT, reason="no-input"),
    "an invitation that does not come": Call(
        words=(DEVICE, "join", "--invitation", "-", "--label", "x", "--timeout", "0.1", "--state", "{state}"),
        stdin=None,
        status=ExitStatus.TRANSPORT,
        reason="no-input",
    ),
    "options that do not come": Call(
        words=(*SIGN_IN, "--options", "-", "--timeout", "0.1"),
        stdin=None,
        status=ExitStatus.TRANSPORT,
        reason="no-input",
    ),
    "a code that does not come": Call(
        words=(
            PUSH,
            "companion",
            "join",
            "--code",
            "-",
            "--label",
            "x",
            "--timeout",
            "0.1",
            "--state",
            "{state}",
        ),
        stdin=None,
        status=ExitStatus.TRANSPORT,
        reason="no-input",
    ),
    "nobody who answers": Call(
        words=(*SIGN_IN, "--options", "{state}/options.json", "--radio", "stdin", "--timeout", "0.5"),
        stdin=None,
        status=ExitStatus.EXPIRED,
        reason="expired",
    ),
    "an invitation for somebody else": Call(
        words=(DEVICE, "join", "--invitation", "-", "--label", "x", "--state", "{state}"),
        stdin=invitation(Role.COMPANION),
        status=ExitStatus.NOT_TRUSTED,
        reason="kind-mismatch",
    ),
    "a device without an account": Call(
        words=(DEVICE, "status", "--state", "{state}"), status=ExitStatus.NOT_ENROLLED, reason="not-enrolled"
    ),
    "a companion without an account": Call(
        words=(PUSH, "companion", "members", "--state", "{state}/companion"),
        status=ExitStatus.NOT_ENROLLED,
        reason="not-enrolled",
    ),
    "a state that others may read": Call(
        words=(DEVICE, "status", "--state", "{state}/open"), status=ExitStatus.SETUP, reason="state-exposed"
    ),
    "a state that is damaged": Call(
        words=(DEVICE, "status", "--state", "{state}/damaged"),
        status=ExitStatus.SETUP,
        reason="state-damaged",
    ),
    "an authority that is none": Call(
        words=(*SESSION, "fetch", "--ca", "{state}/options.json", "--state", "{state}", "{url}"),
        status=ExitStatus.SETUP,
        reason="bad-certificate",
    ),
    "a relay's port that is taken": Call(
        words=(PUSH, "relay", "--listen", "127.0.0.1:{port}", "--store", "{state}/store"),
        status=ExitStatus.SETUP,
        reason="port-taken",
    ),
    "an ether's port that is taken": Call(
        words=(PUSH, "ether", "--listen", "127.0.0.1:{port}"), status=ExitStatus.SETUP, reason="port-taken"
    ),
    "a relay's store that is none": Call(
        words=(PUSH, "relay", "--listen", "127.0.0.1:0", "--store", "{state}/text"),
        status=ExitStatus.SETUP,
        reason="state-damaged",
    ),
    "no session": Call(
        words=(*SESSION, "show", "--state", "{state}/nothing"),
        status=ExitStatus.NOT_SIGNED_IN,
        reason="no-session",
    ),
    "a service that says no": Call(
        words=(*SESSION, "fetch", "--state", "{state}", "{url}"), status=ExitStatus.REFUSED, reason="http-403"
    ),
}
# whole ceremonies show them in tests/end_to_end; here, `run` is given what they raise
RAISED: dict[str, tuple[str, ExitStatus, str]] = {
    "a phone that says no": (
        "CtapError(0x27, 'CTAP2_ERR_OPERATION_DENIED')",
        ExitStatus.PHONE_SAID_NO,
        "CTAP2_ERR_OPERATION_DENIED",
    ),
    "a person who says no": ("NotApproved(Outcome.DECLINED, 'no')", ExitStatus.DECLINED, "declined"),
    "a bug": ("LocalProtocolError('a bug')", ExitStatus.OUR_FAULT, ""),
}


@pytest.fixture
async def filled(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """What the calls find: state directories in every condition, and a service that says no."""

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=403)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    async with TestServer(app, host="127.0.0.1") as server:
        state = tmp_path / "state"
        url = f"http://127.0.0.1:{server.port}"
        await keep(state, url, expires_at=1 << 40)
        (state / "options.json").write_text(OPTIONS)
        (state / "text").write_text("a letter, and not a database of anybody's" * 40)
        (state / "text").chmod(0o600)
        for name in ("open", "damaged"):
            (state / name).mkdir(mode=0o700)
            (state / name / "enrolment.json").write_text("{")
            (state / name / "enrolment.json").chmod(0o644 if name == "open" else 0o600)
        yield {"state": str(state), "url": url, "port": str(server.port)}


async def ended(words: Sequence[str], stdin: str | None) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *words,
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        if stdin is not None:
            with contextlib.suppress(ConnectionError):  # one that needs no input may have ended
                process.stdin.write(stdin.encode())
                await process.stdin.drain()
            process.stdin.close()
        stdout, stderr = await asyncio.gather(process.stdout.read(), process.stderr.read())
        return await process.wait(), stdout.decode(), stderr.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("case", CALLS)
async def test_each_branch_ends_the_program_with_its_status_and_one_line(
    case: str, filled: dict[str, str]
) -> None:
    call = CALLS[case]
    status, _, stderr = await ended([word.format(**filled) for word in call.words], call.stdin)
    assert status == call.status, stderr
    assert "Traceback" not in stderr
    if call.status is ExitStatus.DONE:
        assert stderr == ""
        return
    (line,) = stderr.splitlines()
    assert line.startswith(f"{call.words[0].replace('_', '-')}: ")
    assert line.endswith(f" [{call.reason}]") if call.reason else not line.endswith("]")


@pytest.mark.parametrize("case", RAISED)
async def test_what_a_ceremony_raises_ends_the_program_in_the_same_way(case: str) -> None:
    error, expected, reason = RAISED[case]
    code = (
        "import sys\nfrom headless_passkey.command.command_line import *\nfrom headless_passkey.errors import *\n"
        f"async def main(args):\n    raise {error}\n"
        "parser = SettingsParser()\nadd_settings(parser, section='x', environment='X')\n"
        "sys.exit(run(main, parser.parse_args([])))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await process.communicate()
    assert process.returncode == expected, stderr
    (line,) = stderr.decode().splitlines()
    assert line.endswith(f" [{reason}]" if reason else "a bug")


async def test_an_interrupted_program_ends_with_130_and_one_line(filled: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *(word.format(**filled) for word in SIGN_IN),
        *("--options", "-", "--log-level", "debug"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    line = b""
    while b"reading stdin" not in line:  # it takes signals from before that on
        line = await process.stderr.readline()
        assert line
    process.send_signal(signal.SIGINT)
    *_, last = (await process.stderr.read()).decode().splitlines()
    assert await process.wait() == ExitStatus.INTERRUPTED
    assert last == "headless-passkey: interrupted"


def test_each_status_is_shown_by_a_program() -> None:
    shown = {call.status for call in CALLS.values()} | {status for _, status, _ in RAISED.values()}
    assert shown | {ExitStatus.INTERRUPTED} == set(ExitStatus)
    assert CtapError.exit_status is ExitStatus.PHONE_SAID_NO
