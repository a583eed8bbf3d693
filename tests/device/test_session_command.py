"""``session …`` as a command: its words, what it prints, and how it ends."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from headless_passkey.command.cli import main
from headless_passkey.command.session import Refused
from headless_passkey.errors import ExitStatus
from headless_passkey.rp.session import Answer
from headless_passkey.rp.session_store import SessionStore
from tests.device.test_session import keep
from tests.ports import reserved_port

A, B = "https://a.example/passkeys", "https://b.example"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Two sessions that may be used at one service, and one of them at another."""
    asyncio.run(keep(tmp_path / "state", A, "https://api.example", "https://both.example"))
    asyncio.run(keep(tmp_path / "state", B, "https://both.example"))
    return tmp_path / "state"


def run(state: Path, *words: str) -> int:
    return main(["session", words[0], "--state", str(state), *words[1:]])


def test_every_session_is_a_line_without_tokens(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(state, "show") == 0
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [line["relying_party"] for line in lines] == [A, B]
    assert [line["token"] for line in lines] == [line["refresh_token"] for line in lines] == [None, None]
    assert lines[0]["audience"] == ["https://a.example", "https://api.example", "https://both.example"]
    assert lines[0]["file"] == str(SessionStore(state).path(A))


@pytest.mark.parametrize("named", [A, "https://a.example", "HTTPS://A.example:443/passkeys/"])
def test_one_is_named_by_its_relying_party(
    state: Path, capsys: pytest.CaptureFixture[str], named: str
) -> None:
    assert run(state, "show", "--rp", named) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["relying_party"] == A


def test_where_none_is_kept_it_says_so(
    tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "nothing", "show") == 11
    assert run(state, "show", "--rp", "https://c.example") == 11
    assert run(tmp_path / "nothing", "refresh") == 11
    assert run(tmp_path / "nothing", "sign-out") == 11
    assert run(tmp_path / "nothing", "fetch", "https://c.example/") == 11
    captured = capsys.readouterr()
    assert captured.out == ""
    any_rp, that_rp, *rest = captured.err.splitlines()
    assert "`headless-passkey sign-in --rp URL`" in any_rp
    assert "`headless-passkey sign-in --rp https://c.example`" in that_rp
    assert len(rest) == 3
    assert not (tmp_path / "nothing").exists()


def test_one_that_is_damaged_is_named_and_the_others_are_shown(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SessionStore(state).path(A).write_text("{")
    assert run(state, "show") == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "is damaged" in captured.err
    SessionStore(state).path(B).write_text("{")
    assert run(state, "show") == 10


@pytest.mark.parametrize(
    "words",
    [
        ("refresh",),
        ("sign-out",),
        ("fetch", "https://both.example/"),
        ("fetch", "https://api.example/", "--header", "no colon"),
        ("fetch", "https://api.example/", "--header", "Authorization: Bearer x"),
        ("fetch", "https://api.example/", "--method", "G T"),
        ("fetch", "https://api.example/", "--data", "@/nowhere/at/all"),
        ("fetch", "http://api.example/"),
        ("fetch", "api.example"),
    ],
    ids=[f"case-{number}" for number in range(9)],
)
def test_words_that_mean_nothing_are_2_and_one_line(
    state: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert run(state, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("fetch",),
        ("fetch", "https://api.example/", "--audience", "https://api.example/path"),
        ("fetch", "https://api.example/", "--audience", "http://api.example"),
        ("fetch", "https://api.example/", "--timeout", "0"),
        ("fetch", "https://api.example/", "--rp", "http://a.example"),
        ("show", "--ca", "x"),
    ],
    ids=[f"case-{number}" for number in range(6)],
)
def test_words_that_the_parser_does_not_take_are_2(state: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(state, *words)
    assert ended.value.code == 2


@pytest.mark.threat("T13")
def test_an_address_that_no_session_is_for_is_8(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(state, "fetch", "https://evil.example/") == 8
    assert run(state, "fetch", "https://evil.example/", "--rp", B) == 8
    assert "[not-its-audience]" in capsys.readouterr().err


def test_a_service_that_is_named_for_one_request_needs_a_session_that_is_named_too(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://localhost:{reserved_port()}"
    assert run(state, "fetch", url, "--audience", url) == 2
    assert "name one with `--rp URL`" in capsys.readouterr().err
    assert run(state, "fetch", url, "--audience", url, "--rp", B, "--timeout", "0.5") == 4


async def test_the_deadline_is_one_over_all_of_it(state: Path) -> None:
    """Also over the wait for another process that holds the session."""
    async with SessionStore(state).locked(B):
        words = [
            "session",
            "fetch",
            "--state",
            str(state),
            "--rp",
            B,
            "--timeout",
            "0.3",
            "https://b.example/",
        ]
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "headless_passkey", *words, stderr=asyncio.subprocess.PIPE
        )
        _, said = await program.communicate()
    assert program.returncode == 4
    assert b"no answer within 0.3 seconds" in said


@pytest.mark.parametrize(
    ("status", "ends"),
    [
        (301, 12),
        (304, 12),
        (400, 12),
        (401, 11),
        (403, 12),
        (404, 12),
        (408, 4),
        (429, 4),
        (500, 4),
        (599, 4),
    ],
)
def test_the_exit_status_is_what_the_answers_status_means(status: int, ends: int) -> None:
    refused = Refused(Answer(status=status, headers={}, body=b""), "api.example")
    assert refused.exit_status == ExitStatus(ends)
    assert refused.reason == f"http-{status}"
    assert f"api.example answered with status {status}" in str(refused)


def test_where_a_redirect_leads_is_said_and_not_followed() -> None:
    headers: dict[str, Any] = {"location": "https://evil.example/\x1b[2J" + "x" * 500}
    said = str(Refused(Answer(status=302, headers=headers, body=b""), "api.example"))
    assert "redirects are not followed" in said
    assert "\x1b" not in said
    assert len(said) < 400
