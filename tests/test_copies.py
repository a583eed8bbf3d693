"""What stands in the relying party and in the other packages too, which meet it on the wire alone, is the same code.

A mistake that is mended in one copy is mended in the other. Docstrings and comments may differ: each speaks of its own program.
"""

import ast
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from functools import cache
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.text import base64url, names
from relying_party import names as party_names
from relying_party.core import encoding
from tests.programs import ROOT

# module of the relying party, module of another package: what is the same in both; "" for all of it
COPIES: Final[Mapping[tuple[str, str], str]] = {
    ("early_signals", "headless_passkey/process/early_signals"): "",
    ("log_thread", "headless_passkey/process/log_thread"): "",
    ("memory", "headless_passkey/process/memory"): "",
    (
        "cli",
        "headless_passkey/command/command_line",
    ): "DISTRIBUTION MAX_MESSAGE SHELLS _JsonRecords _PlainLines _Version",
    ("core/domains", "headless_passkey/text/domains"): (
        "MAX_DOMAIN _ADDRESS _LABELS is_domain is_localhost is_this_machine"
    ),
    ("core/encoding", "headless_passkey/text/base64url"): "base64url",
    ("core/encoding", "headless_passkey/text/json_text"): "without_mark",
    ("core/proofs", "companion_push/relay/proofs"): (
        "KnownKeys MAX_IDS MAX_KEYS _DEFAULT_PORTS _REGISTRY _UNRESERVED _normal_path"
    ),
    ("http/readiness", "companion_push/relay/readiness"): "READ_SECONDS SHARED_SECONDS",
    ("names", "headless_passkey/text/names"): (
        "MAX_SHOWN _ATTACHED _COMPOSED _HIDDEN _INVISIBLE _JOINERS _MAX_MARKS _MISPLACED _NOT_IN_A_NAME _NOT_SHOWN"
    ),
    ("output", "headless_passkey/text/secret_words"): (
        "_HIDDEN _KNOWN _LONG _is_random without_keys without_secrets"
    ),
    ("place", "companion_push/relay/store_place"): "StorePlace store_place",
    ("proxy", "headless_passkey/net/proxy"): "_HOST _SCHEMES _TLS",
    ("store/copying", "companion_push/relay/store_copy"): "Checked",
    ("store_command", "companion_push/relay/store_command"): "_expect",
}
# what is alike in both and differs on purpose, as in an error of its own package; tests run over all servers (tests/test_serving.py)
ALIKE: Final = {
    *(
        "_Claims",
        "_Header",
        "_identity",
        "_interrupted",
        "_log_kept",
        "_removed",
    ),
    *("checked", "name_of", "proxy_for", "tracing", "why_not_plain"),
}
FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
LONG: Final = 100  # characters of a function or class that is worth a comparison


@cache
def definitions(module: str) -> Mapping[str, ast.stmt]:
    """What a module defines, by name: functions, classes and constants."""
    found: dict[str, ast.stmt] = {}
    for each in ast.parse((ROOT / f"{module}.py").read_text()).body:
        match each:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found[each.name] = each
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = each
    return found


@cache
def code(module: str, name: str) -> str:
    """What a module says of a name, without docstrings and comments."""
    found = definitions(module)[name]
    for part in ast.walk(found):
        if isinstance(part, FUNCTIONS) and ast.get_docstring(part):
            part.body = part.body[1:] or [ast.Pass()]
    return ast.unparse(found)


def modules(package: str) -> list[str]:
    return [str(file.relative_to(ROOT).with_suffix("")) for file in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize(("party", "other"), COPIES, ids=" ".join)
def test_copies_are_the_same(party: str, other: str) -> None:
    ours = f"relying_party/{party}"
    listed = COPIES[party, other].split() or sorted({*definitions(ours), *definitions(other)})
    assert {each: code(ours, each) for each in listed} == {each: code(other, each) for each in listed}


def unlisted() -> Iterator[tuple[str, str, str]]:
    """Functions and classes of the same name that are the same, or nearly so: both modules and the name."""
    others = [*modules("headless_passkey"), *modules("companion_push")]
    for ours in modules("relying_party"):
        for other in others:
            listed = COPIES.get((ours.removeprefix("relying_party/"), other), "nothing").split()
            for name in (definitions(ours).keys() & definitions(other).keys()) - ALIKE - {*listed}:
                if listed and isinstance(definitions(ours)[name], FUNCTIONS) and are_alike(ours, other, name):
                    yield ours, other, name


def are_alike(ours: str, other: str, name: str) -> bool:
    one, another = code(ours, name), code(other, name)
    likeness = SequenceMatcher(None, one, another, autojunk=False)
    steps = likeness.real_quick_ratio, likeness.quick_ratio, likeness.ratio  # the cheapest first
    return len(one) >= LONG and all(step() > 0.9 for step in steps)


def test_what_is_alike_in_both_is_listed() -> None:
    assert list(unlisted()) == []


# What is written in two ways has the same rule


@given(st.text(st.characters() | st.sampled_from("a \x1b\u0301\u20dd\u200b\u200d\u202e\u2066\ufe0f")))
def test_names_have_one_rule_and_are_shown_alike(text: str) -> None:
    assert party_names.why_not_plain(text) == names.why_not_plain(text)
    assert party_names.printable(text, 10) == names.printable(text, 10)


@given(st.text(base64url._CHARACTERS + "=+/ \n\u00e9"))
def test_base64url_has_one_rule(text: str) -> None:
    try:
        data: bytes | None = base64url.from_base64url(text)
    except RemoteProtocolError:
        data = None
    assert encoding.from_base64url(text) == data
