"""Secrets that came as an argument are in no message, of any program."""

import json
import secrets

import pytest

from headless_passkey.command.command_line import refuse_secret
from headless_passkey.errors import UsageError
from program_parts.base64url import base64url
from program_parts.secret_words import without_keys, without_secrets
from tests.programs import run

CODE = "hpk-account:g3hVaGVhZGxlc3MtcGFzc2tleSBhY2NvdW50IHYx"
INVITATION = "hpk-invitation:iHgfaGVhZGxlc3MtcGFzc2tleSBpbnZpdGF0aW9u"
FIDO_URL = "FIDO:/13086400838107303667332719012595115747821895775708323189557153075146383351399743589971313508078026948312026786722471666005727649643501784024544726574771401798171307406596245"
KEY = "2y1Jm0cGq7VbR5Tzq9xKf0aWc1LrP8uEo3sNh6DgXvI="


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"unrecognized arguments: {CODE}", "unrecognized arguments: hpk-account:…"),
        (f"invalid choice: '{INVITATION}' (choose from", "invalid choice: 'hpk-invitation:…' (choose from"),
        (f"cannot read {CODE.upper()}: no such file", "cannot read HPK-ACCOUNT:…: no such file"),
        (f"of {FIDO_URL} and", "of FIDO:/… and"),
        (f"of {FIDO_URL.lower()}", "of fido:/…"),
        ("at https://ada:secret@proxy.example:3128/", "at https://ada:…@proxy.example:3128/"),
        ("at https://ada@proxy.example/", "at https://ada@proxy.example/"),
        ("cannot read /home/Ada/hpk-account.txt: no", "cannot read /home/Ada/hpk-account.txt: no"),
    ],
    ids=["code", "invitation", "upper case", "FIDO URL", "lower case", "password", "user", "file"],
)
@pytest.mark.threat("T11")
def test_a_secret_of_a_known_form_is_named_and_not_repeated(said: str, shown: str) -> None:
    assert without_secrets(said) == shown
    assert without_keys(said) == shown


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"unrecognized arguments: --secret={KEY} x", "unrecognized arguments: --secret=… x"),
        (f"invalid choice: '{KEY}'", "invalid choice: '…'"),
        ("invalid choice: 'regsiter' (choose from", "invalid choice: 'regsiter' (choose from"),
        (
            "unrecognized arguments: --requests-per-minute-and-hour",
            "unrecognized arguments: --requests-per-minute-and-hour",
        ),
        (
            "cannot read /srv/Data/2026-01/Config-of-the-Hub.toml",
            "cannot read /srv/Data/2026-01/Config-of-the-Hub.toml",
        ),
        ("unrecognized arguments: 13086400838107303667332719", "unrecognized arguments: …"),
    ],
    ids=["option", "choice", "word", "long option", "path", "digits"],
)
@pytest.mark.threat("T11")
def test_an_argument_that_looks_like_a_key_is_not_repeated(said: str, shown: str) -> None:
    assert without_keys(said) == shown


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("eyJ" * 500_000, "eyJ" * 500_000),
        ("eyJ." * 500_000, "eyJ." * 500_000),
        ("x-eyJhbGc.eyJpc3M.c2ln", "x-eyJ…"),
        ("eyJeyJ.a.b c", "eyJ… c"),
        ("eyJx-hpk-account:secret", "eyJx-hpk-account:…"),
    ],
    ids=["one word", "many words", "token in a word", "twice", "no token before a code"],
)
def test_a_token_is_looked_for_in_a_time_that_grows_with_the_length_and_not_with_its_square(
    said: str, shown: str
) -> None:
    assert without_secrets(said) == shown


@pytest.mark.threat("T11")
def test_any_code_is_hidden() -> None:
    for size in (16, 32, 120):
        code = f"hpk-account:{base64url(secrets.token_bytes(size))}"
        assert without_keys(f"unrecognized arguments: {code} -x") == (
            "unrecognized arguments: hpk-account:… -x"
        )
        with pytest.raises(UsageError) as caught:
            refuse_secret(code)
        assert code not in str(caught.value)


CALLS = {
    "device: join": ("headless-passkey", "join", "--invitation", INVITATION, "--label", "Hub"),
    "device: no command": ("headless-passkey", INVITATION),
    "device: one too many": ("headless-passkey", "status", INVITATION),
    "device: no number": ("headless-passkey", "join", "--timeout", INVITATION),
    "companion: join": ("companion-push", "companion", "join", "--code", CODE, "--label", "Phone"),
    "companion: one too many": ("companion-push", "companion", "members", CODE),
    "companion: no choice": ("companion-push", "companion", "run", "--opener", CODE),
    "account: one too many": ("companion-push", "account", "add", "ada", CODE),
    "phone": ("companion-push", "phone", "--url", FIDO_URL),
    "relay: no number": ("companion-push", "relay", "--lease", CODE),
    "relay: a key for its file": ("companion-push", "relay", "--vapid-key", KEY),
    "push: a key for its file": ("companion-push", "push", "check", "--vapid-key", KEY),
    "push: a code for a new file": ("companion-push", "push", "keys", CODE),
    "tunnel service: one too many": ("companion-push", "tunnel-service", CODE),
    "relying party: one too many": ("relying-party", "serve", CODE),
    "relying party: no number": ("relying-party", "serve", "--requests-per-minute", KEY),
}


@pytest.mark.threat("T11")
@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_no_program_repeats_a_secret_that_came_as_an_argument(call: tuple[str, ...], form: str) -> None:
    program, *words = call
    status, stdout, said = await run(
        program.replace("-", "_"), *words, *(["--json"] if form == "json" else [])
    )
    assert (status, stdout) == (2, "")
    if form == "json":
        said = json.loads(said)["message"]
    for secret in (CODE, INVITATION, FIDO_URL, KEY):
        assert secret[12:24] not in said
