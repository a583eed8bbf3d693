"""Identifiers in base64url are taken as they are printed by every command, also those that begin with a hyphen, as one of 64 does."""

import argparse
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from companion_push.cli import PROGRAMS
from companion_push.cli import make_parser as make_push_parser
from headless_passkey.command.cli import make_parser as make_device_parser
from headless_passkey.text.base64url import from_base64url
from tests.test_documentation import leaves

CALLS: Final = [  # ID is the identifier
    "headless-passkey join --invitation FILE --label Hub --expect-account ID",
    "headless-passkey sign-in --rp https://login.example --expect-user ID --json",
    "headless-passkey register --expect-user ID --rp https://login.example",
    "headless-passkey users add --rp-id login.example --handle ID",
    "headless-passkey users forget --handle ID --rp-id login.example",
    "headless-passkey phones rename ID Phone",
    "headless-passkey phones rename --json ID Phone",
    "headless-passkey phones forget ID",
    "headless-passkey phones forget --state DIR ID --json",
    "companion-push companion join --code FILE --label Phone --expect-account ID",
    "companion-push companion remove ID",
    "companion-push companion remove Hub --confirm ID --only",
    "companion-push companion rename ID Hub --confirm Hub",
    "companion-push companion rename Hub Frame --confirm ID",
    "companion-push companion restore --state DIR ID",
    "companion-push companion mute add ID",
    "companion-push companion mute remove ID",
    "companion-push companion channel add FILE --handle ID",
    "companion-push companion channel remove ID --json",
    "companion-push push test ID",
    "companion-push phone --forget ID --links FILE",
]
IDENTIFIERS: Final = [
    "-bCdEfGhIjKlMnOpQrStUg",
    "-hCdEfGhIjKlMnOpQrStUg",  # `-h` is an option
    "-00000000000000000000A",
    "--jsonGhIjKlMnOpQrStUg",
    "---------------------A",
    "AbCdEfGhIjKlMnOpQrStUg",
]


@cache
def parser(program: str) -> argparse.ArgumentParser:
    return make_device_parser() if program == "headless-passkey" else make_push_parser(*PROGRAMS)


def taken(call: str, *words: str) -> argparse.Namespace:
    program, *said = call.split(" ")
    at = said.index("ID")
    return parser(program).parse_args([*said[:at], *words, *said[at + 1 :]])


@pytest.mark.parametrize("identifier", IDENTIFIERS)
@pytest.mark.parametrize("call", CALLS)
def test_an_identifier_is_taken_whatever_it_begins_with(call: str, identifier: str) -> None:
    values = vars(taken(call, identifier)).values()
    assert identifier in values or from_base64url(identifier) in values


def test_a_file_of_settings_may_have_such_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-settings").write_text("[status]\nstate = 'there'\n")
    args = make_device_parser().parse_args(["status", "--config", "-settings"])
    assert args.state == "there"


@pytest.mark.parametrize("words", [[], ["--json"], ["--state=there"], ["--sttae"], ["-h"]], ids=" ".join)
@pytest.mark.parametrize("call", [each for each in CALLS if re.search("--(?!json)[a-z-]+ ID", each)])
def test_a_missing_identifier_is_told(
    call: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    option = call.partition(" ID")[0].rpartition(" ")[2]
    with pytest.raises(SystemExit) as ended:
        taken(f"{call.partition(' ID')[0]} ID", *words)
    assert ended.value.code == 2
    assert f"argument {option}: expected one argument" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--sttae", "-x", "--Json"])
def test_a_word_that_is_no_option_is_told(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make_device_parser().parse_args(["status", word])
    assert ended.value.code == 2
    assert f"unrecognized arguments: {word}" in capsys.readouterr().err


def options() -> Iterator[str]:
    for program in (make_device_parser(), make_push_parser(*PROGRAMS)):
        for leaf in leaves(program):
            yield from leaf._option_string_actions


def test_no_options_name_looks_like_such_an_identifier() -> None:
    assert [each for each in options() if each != "-h" and not re.fullmatch("--[a-z-]+", each)] == []
