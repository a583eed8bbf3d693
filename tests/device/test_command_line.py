"""Settings from three places, one line per failure, signals: as real processes where a process is meant."""

import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.command.command_line import SettingsParser, add_settings, fail, out, read_secret_line
from headless_passkey.errors import (
    ExitStatus,
    NotApproved,
    Outcome,
    RemoteProtocolError,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.process.streams import talk
from program_parts.command_line import host_port
from tests.programs import run, running

VARIABLES = "SAMPLE"


def parser() -> SettingsParser:
    """A program with two commands, one of every kind of option in the second."""
    top = SettingsParser(prog="sample")
    commands = top.add_subparsers(required=True)
    commands.add_parser("other")
    serve = commands.add_parser("serve")
    add_settings(serve, section="sample.serve", environment=VARIABLES)
    serve.add_argument("place", nargs="?", default="here")
    serve.add_argument("--listen", type=host_port, required=True)
    serve.add_argument("--timeout", type=float, default=1.0)
    serve.add_argument("--label")
    serve.add_argument("--opener", choices=("qr", "system"), default="qr")
    serve.add_argument("--quiet", action="store_true")
    serve.add_argument("--consent", choices=("ask", "accept"), default="ask", said_only=("accept",))
    serve.add_argument("--advertise", action=argparse.BooleanOptionalAction, default=True)
    serve.add_argument("-t", "--tunnel", action="append", metavar="N=URL", default=[])
    serve.add_argument("--port-range", type=int, action="append")
    return top


def parse(*words: str) -> argparse.Namespace:
    return parser().parse_args(["serve", *words])


def config(folder: Path, text: str) -> str:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a wrong call ends with."""
    with pytest.raises(SystemExit) as ended:
        parse(*words)
    assert ended.value.code == ExitStatus.USAGE
    stdout, stderr = capsys.readouterr()
    assert (stdout, stderr.count("\n")) == ("", 1)
    return stderr


# --- settings ----------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config(
        tmp_path,
        '[sample.serve]\nlisten = "file:1"\nlabel = "file"\ntimeout = 5\ntunnel = ["1=f"]\nopener = "system"\n',
    )
    words = ["--config", file]
    args = parse(*words)
    assert (args.listen, args.label, args.timeout, args.opener) == (("file", 1), "file", 5.0, "system")
    assert (args.tunnel, args.place, args.quiet) == (["1=f"], "here", False)
    monkeypatch.setenv("SAMPLE_LABEL", "environment")
    monkeypatch.setenv("SAMPLE_TUNNEL", "2=e 3=e")
    monkeypatch.setenv("SAMPLE_LISTEN", "environment:2")
    args = parse(*words)
    assert (args.listen, args.label, args.timeout) == (("environment", 2), "environment", 5.0)
    assert args.tunnel == ["2=e", "3=e"]
    args = parse(*words, "--label", "words", "--listen", "words:3", "--tunnel", "4=w", "-t", "5=w")
    assert (args.listen, args.label, args.timeout) == (("words", 3), "words", 5.0)
    assert args.tunnel == ["4=w", "5=w"]


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b'\xef\xbb\xbf[sample.serve]\nlisten = "file:1"\n')
    assert parse("--config", str(path)).listen == ("file", 1)


def test_repeated_options_start_afresh_in_every_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMPLE_LISTEN", "a:1")
    monkeypatch.setenv("SAMPLE_PORT_RANGE", "1 2")
    same = parser()
    for _ in range(2):
        assert same.parse_args(["serve", "--tunnel", "1=x"]).tunnel == ["1=x"]
        assert same.parse_args(["serve", "--port-range", "3"]).port_range == [3]
        assert same.parse_args(["serve"]).port_range == [1, 2]


def test_an_option_that_is_required_may_come_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--listen" in refused(capsys)
    assert parse("--config", config(tmp_path, '[sample.serve]\nlisten = "a:1"\n')).listen == ("a", 1)
    monkeypatch.setenv("SAMPLE_LISTEN", "[::1]:2")
    assert parse().listen == ("::1", 2)


@pytest.mark.parametrize(
    ("said", "meant"),
    [("1", True), ("true", True), ("Yes", True), ("0", False), ("FALSE", False), ("no", False)],
)
def test_a_switch_is_turned_by_words_too(
    said: str,
    meant: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for option in ("QUIET", "ADVERTISE", "JSON"):
        monkeypatch.setenv(f"SAMPLE_{option}", said)
    args = parse("--listen", "a:1")
    assert (args.quiet, args.advertise, args.json) == (meant, meant, meant)
    assert parse("--listen", "a:1", "--quiet").quiet
    assert not parse("--listen", "a:1", "--no-advertise").advertise


def test_a_switch_in_a_file_is_a_boolean(tmp_path: Path) -> None:
    args = parse(
        "--listen=a:1", "--config=" + config(tmp_path, "[sample.serve]\nquiet = true\nadvertise = false")
    )
    assert (args.quiet, args.advertise) == (True, False)


def test_tables_of_other_commands_and_variables_of_other_programs_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMPLE_OF_SOMETHING", "else")
    monkeypatch.setenv("SAMPLE_CONFIG", "/nonexistent")
    file = config(
        tmp_path, '[other]\nx = 1\n[sample]\ny = 2\n[sample.serve.more]\nz = 3\n[sample.serve]\nlabel = "x"'
    )
    assert parse("--listen", "a:1", "--config", file).label == "x"
    assert parse("--listen", "a:1", "--config", config(tmp_path, "")).label is None


REFUSED_FILES = {
    "an unknown setting": ("labell = 'x'", "labell"),
    "a setting that is help": ("help = true", "help"),
    "a setting that is the file itself": ("config = 'x'", "config"),
    "a value of the wrong type": ("timeout = 'soon'", "timeout"),
    "a value that the option refuses": ("listen = 'nowhere'", "HOST:PORT"),
    "a choice that is none": ("opener = 'hand'", "choose from qr, system"),
    "a switch that is neither": ("quiet = 'maybe'", "neither true nor false"),
    "a switch that is a number": ("quiet = 2", "neither true nor false"),
    "a list for one value": ("label = ['a', 'b']", "label"),
    "an empty list for one value": ("timeout = []", "timeout"),
    "true for a text": ("label = true", "label"),
    "a date for a text": ("label = 2026-01-01", "label"),
    "a list in a list": ("tunnel = [['1=x']]", "tunnel"),
    "tables in a list": ("tunnel = [{ n = 1 }]", "tunnel"),
    "a number in a list that must be one": ("port-range = ['x']", "port-range"),
}


@pytest.mark.parametrize("why", REFUSED_FILES)
def test_a_file_is_refused_that_has(why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, told = REFUSED_FILES[why]
    file = config(tmp_path, f"[sample.serve]\n{text}\n")
    line = refused(capsys, "--config", file, "--listen", "a:1")
    assert told in line
    assert "sample.serve" in line


@pytest.mark.parametrize(
    "text",
    ["x", "[sample.serve", "[sample]\nserve = 1", "sample = 1", "x = " + "[" * 100_000, "\ud800"],
    ids=lambda text: repr(text)[:20],
)
def test_a_file_that_cannot_be_read_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert str(path) in refused(capsys, "--listen", "a:1", "--config", str(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot read" in refused(capsys, "--config", str(tmp_path / "none"))
    assert "cannot read" in refused(capsys, "--config", str(tmp_path))
    assert "expected one argument" in refused(capsys, "--listen", "a:1", "--config")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TIMEOUT", "soon"),
        ("TIMEOUT", ""),
        ("LISTEN", "x"),
        ("OPENER", "hand"),
        ("QUIET", ""),
        ("QUIET", "on it"),
        ("LOG_LEVEL", "loud"),
        ("PORT_RANGE", "1 x"),
    ],
)
def test_a_variable_with_a_wrong_value_is_refused(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"SAMPLE_{variable}", value)
    assert "the environment" in refused(capsys, "--listen", "a:1")


@pytest.mark.parametrize(
    "words",
    [["--no-such"], ["--timeout"], ["--timeout", "x"], ["--opener", "x"], ["a", "b"], ["--listen", "x"]],
)
def test_a_wrong_word_is_refused(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "see --help" in refused(capsys, "--listen", "a:1", *words)


def test_settings_need_their_parser() -> None:
    with pytest.raises(TypeError):
        add_settings(argparse.ArgumentParser(), section="x", environment="X")


def test_help_names_the_variables(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert ended.value.code == 0
    assert "SAMPLE_OPTION" in capsys.readouterr().out


# --- argument types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [("localhost:80", ("localhost", 80)), ("0.0.0.0:0", ("0.0.0.0", 0)), ("[::1]:65535", ("::1", 65535))],
)
def test_a_host_and_a_port(text: str, place: tuple[str, int]) -> None:
    assert host_port(text) == place


@pytest.mark.parametrize("text", ["", ":", "x", "x:", ":80", "x:y", "x:-1", "x:65536", "x:8 0", "x:\u0664"])
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="HOST:PORT"):
        host_port(text)


@given(st.text(max_size=30))
def test_any_text_is_a_host_and_port_or_refused(text: str) -> None:
    try:
        _, port = host_port(text)
    except argparse.ArgumentTypeError:
        return
    assert 0 <= port <= 0xFFFF


class Unbuffered(io.StringIO):
    """A stream that nothing buffers: each write is one of the system."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes += [text] if text else []
        return len(text)


def test_a_line_is_one_write_so_that_nobody_elses_comes_between(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, tell in (("stderr", talk), ("stdout", out)):
        stream = Unbuffered()
        monkeypatch.setattr(sys, name, stream)
        tell("a line")
        assert stream.writes == ["a line\n"]


async def test_a_secret_is_one_line_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"  secret\r\nand more\n")
    assert await read_secret_line(str(path)) == "secret"
    path.write_bytes(b"without end")
    assert await read_secret_line(str(path)) == "without end"


async def test_a_secrets_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"\xef\xbb\xbfsecret\r\n")
    assert await read_secret_line(str(path)) == "secret"
    path.write_bytes(b"\xef\xbb\xbf" + b"x" * 16384 + b"\r\n")
    assert len(await read_secret_line(str(path))) == 16384
    path.write_bytes(b"\xef\xbb\xbf" + b"x" * 16385)
    with pytest.raises(RemoteProtocolError, match="too long"):
        await read_secret_line(str(path))


async def test_a_secret_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="cannot read"):
            await read_secret_line(str(path))


@pytest.mark.threat("T12")
async def test_a_line_that_is_not_ascii_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    for line in (b"\xff\n", "FIDO:/\uff11\n".encode()):
        path.write_bytes(line)
        with pytest.raises(RemoteProtocolError, match="ASCII"):
            await read_secret_line(str(path))


@pytest.mark.threat("T11")
async def test_a_line_too_long_to_be_a_secret_is_refused_and_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"x" * 16384)
    assert len(await read_secret_line(str(path))) == 16384
    path.write_bytes(b"x" * 16385)
    with pytest.raises(RemoteProtocolError, match="too long") as refusal:
        await read_secret_line(str(path))
    assert "xx" not in str(refusal.value)


# --- how a program ends ------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, sys
from headless_passkey.command.command_line import *
from headless_passkey.process.signals import *
from headless_passkey.errors import *

SECRET = "pa55word"

async def main(args):
    {body}

parser = SettingsParser(prog="sample")
add_settings(parser, section="sample", environment="SAMPLE")
sys.exit(run(main, parser.parse_args()))
"""

ENDINGS: dict[str, tuple[ExitStatus, str, str | None]] = {
    "pass": (ExitStatus.DONE, "", None),
    "raise UsageError('two\\nlines')": (ExitStatus.USAGE, "two lines", None),
    "raise RemoteProtocolError('bad reply', reason=ProtocolReason.MALFORMED_ANSWER)": (
        ExitStatus.PROTOCOL,
        "bad reply",
        "malformed-answer",
    ),
    "raise TransportError('gone')": (ExitStatus.TRANSPORT, "gone", None),
    "raise CtapError(0x2E, 'CTAP2_ERR_NO_CREDENTIALS')": (
        ExitStatus.PHONE_SAID_NO,
        "CTAP2_ERR_NO_CREDENTIALS",
        "CTAP2_ERR_NO_CREDENTIALS",
    ),
    "raise NotApproved(Outcome.DECLINED, 'no')": (ExitStatus.DECLINED, "no", "declined"),
    "raise NotApproved(Outcome.EXPIRED, 'late')": (ExitStatus.EXPIRED, "late", "expired"),
    "raise NotApproved(Outcome.CANCELLED, 'off')": (ExitStatus.EXPIRED, "off", "cancelled"),
    "raise NotApproved(Outcome.SUPERSEDED, 'other')": (ExitStatus.EXPIRED, "other", "superseded"),
    "raise TrustError(TrustReason.FORKED_RING, 'fork')": (ExitStatus.NOT_TRUSTED, "fork", "forked-ring"),
    "raise NotEnrolled('join first', reason=EnrolmentReason.NOT_ENROLLED)": (
        ExitStatus.NOT_ENROLLED,
        "join first",
        "not-enrolled",
    ),
    "raise SetupError('no room', reason=SetupReason.DISK_FULL, advice='make room')": (
        ExitStatus.SETUP,
        "no room",
        "disk-full",
    ),
    "raise NotSignedIn('sign in', reason=SessionReason.NO_SESSION)": (
        ExitStatus.NOT_SIGNED_IN,
        "sign in",
        "no-session",
    ),
    "raise LocalProtocolError('bug')": (ExitStatus.OUR_FAULT, "bug", None),
    "raise RuntimeError(SECRET)": (ExitStatus.OUR_FAULT, "unexpected RuntimeError at program.py:10", None),
    "raise asyncio.CancelledError": (ExitStatus.INTERRUPTED, "interrupted", None),
}


@pytest.fixture
def program(tmp_path: Path) -> Any:
    """Write a program whose `main` is that body; the environment in which it is found."""

    def write(body: str) -> dict[str, str]:
        source = PROGRAM.replace("{body}", body.replace("\n", "\n    "))
        (tmp_path / "program.py").write_text(source, encoding="utf-8")
        return {"PYTHONPATH": str(tmp_path)}

    return write


@pytest.mark.parametrize("body", ENDINGS)
@pytest.mark.parametrize("as_json", [False, True], ids=["plain", "json"])
async def test_a_program_ends_with_the_status_of_its_branch_and_one_line(
    body: str,
    as_json: bool,  # noqa: FBT001
    program: Any,
) -> None:
    expected, message, reason = ENDINGS[body]
    status, stdout, stderr = await run("program", *(["--json"] if as_json else []), environment=program(body))
    assert (status, stdout) == (expected, "")
    assert "Traceback" not in stderr
    assert "pa55word" not in stderr
    if expected is ExitStatus.DONE:
        assert stderr == ""
        return
    assert stderr.count("\n") == 1
    if as_json:
        told = json.loads(stderr)
        assert set(told) == {"error", "reason", "status", "message", "advice"}
        assert (told["status"], told["reason"]) == (expected, reason)
        assert message in told["message"]
        assert told["advice"] or expected != ExitStatus.TRANSPORT  # what may go well another time says so
        kind = re.search(r"\w*(Error|NotApproved|NotEnrolled|NotSignedIn)", body)
        assert kind is not None
        assert told["error"] in (kind[0], "Interrupted")
    else:
        assert stderr.startswith("program.py: ")
        assert message in stderr
        assert reason is None or f"[{reason}]" in stderr


async def test_a_wrong_call_is_one_line_in_json_too(program: Any) -> None:
    status, stdout, stderr = await run("program", "--json", "--no-such", environment=program("pass"))
    assert (status, stdout, stderr.count("\n")) == (ExitStatus.USAGE, "", 1)
    assert json.loads(stderr)["status"] == ExitStatus.USAGE
    status, _, stderr = await run("program", "--no-such", environment=program("pass") | {"SAMPLE_JSON": "1"})
    assert (status, stderr.count("\n")) == (ExitStatus.USAGE, 1)


WAITING = """try:
    out("ready")
    await asyncio.sleep(60)
finally:
    talk("tidied")"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_interrupts_a_one_shot_which_tidies_up(number: signal.Signals, program: Any) -> None:
    async with running("program", environment=program(WAITING)) as process:
        assert await process.line() == "ready"
        assert await process.end(number) == ExitStatus.INTERRUPTED
        assert await process.stderr() == "tidied\nprogram.py: interrupted\n"


SERVING = """ended = until_terminated()
try:
    out("ready")
    await ended
finally:
    talk("tidied")"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_a_server_as_it_should_end(number: signal.Signals, program: Any) -> None:
    async with running("program", environment=program(SERVING)) as process:
        assert await process.line() == "ready"
        assert await process.end(number) == ExitStatus.DONE
        assert await process.stderr() == "tidied\n"


HANGING_UP = """import os, signal
os.kill(os.getpid(), signal.SIGHUP)
for _ in range(9):
    await asyncio.sleep(0)
out("still here")"""


async def test_what_is_to_outlive_its_terminal_does(program: Any) -> None:
    assert (await run("program", environment=program(HANGING_UP)))[0] == ExitStatus.INTERRUPTED
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited, as nohup does it
    try:
        assert await run("program", environment=program(HANGING_UP)) == (0, "still here\n", "")
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_what_fails_while_a_one_shot_is_interrupted_is_told(program: Any) -> None:
    body = """try:
    out("ready")
    await asyncio.sleep(60)
finally:
    raise TransportError("could not say goodbye")"""
    async with running("program", environment=program(body)) as process:
        assert await process.line() == "ready"
        assert await process.end() == ExitStatus.TRANSPORT
        assert await process.stderr() == "program.py: could not say goodbye: try again\n"


async def test_two_signals_end_a_one_shot_once(program: Any) -> None:
    body = """try:
    out("ready")
    await asyncio.sleep(60)
finally:
    out("ending")
    await asyncio.Event().wait()"""
    async with running("program", environment=program(body)) as process:
        assert await process.line() == "ready"
        process.process.send_signal(signal.SIGTERM)
        assert await process.line() == "ending"
        assert await process.end() == ExitStatus.INTERRUPTED
        assert (await process.stderr()).count("\n") == 1


def start(program: Any, body: str, **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "program"],
        env=os.environ | program(body),
        **streams,
        cwd=Path(__file__).parents[2],
    )


def test_a_reader_that_has_gone_is_a_transport_failure_without_noise(program: Any) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with start(program, "out('line')\nout('more')", stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        _, stderr = process.communicate()
    assert (process.returncode, stderr) == (ExitStatus.TRANSPORT, b"")


def test_a_terminal_that_has_gone_does_not_hide_the_status(program: Any) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with start(program, "talk('x')\nraise TransportError('gone')", stderr=writer) as process:
        os.close(writer)
    assert process.returncode == ExitStatus.TRANSPORT


def test_a_full_disk_under_stdout_is_one_line(program: Any) -> None:
    with (
        Path("/dev/full").open("wb") as full,
        start(program, "out('line')", stdout=full, stderr=subprocess.PIPE) as process,
    ):
        _, stderr = process.communicate()
    assert process.returncode == ExitStatus.SETUP
    assert stderr.count(b"\n") == 1
    assert b"[disk-full]" in stderr
    assert b"Traceback" not in stderr


def test_a_secret_comes_from_stdin(program: Any) -> None:
    body = "out(str(len(await read_secret_line('-'))))"
    for given_line, told in ((b"secret\nrest", b"6\n"), (b"\n", b"0\n"), (b"secret", b"6\n")):
        with start(program, body, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            stdout, _ = process.communicate(given_line)
        assert (process.returncode, stdout) == (0, told)


def test_data_is_there_before_the_program_ends(program: Any) -> None:
    body = "out('line')\nsys.stdin.readline()"
    with start(program, body, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"line\n"
        process.communicate(b"\n")
    assert process.returncode == 0


@pytest.mark.parametrize("level", ["debug", "warning"])
async def test_logs_go_to_stderr_from_the_level_asked_for(level: str, program: Any) -> None:
    body = """import logging
logging.getLogger("x").debug("detail")
logging.getLogger("x").warning("attention")"""
    status, stdout, stderr = await run("program", "--log-level", level, environment=program(body))
    assert (status, stdout) == (0, "")
    assert "attention" in stderr
    assert ("detail" in stderr) == (level == "debug")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotApproved(Outcome.DECLINED, "x"), ExitStatus.DECLINED),
        (TrustError(TrustReason.BAD_MAC, "x"), ExitStatus.NOT_TRUSTED),
    ],
)
def test_an_error_knows_its_status_and_reason(
    error: NotApproved | TrustError, status: ExitStatus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail(error.exit_status, "x", error.reason, str(error), as_json=True) == status
    assert json.loads(capsys.readouterr().err)["reason"] == error.reason
