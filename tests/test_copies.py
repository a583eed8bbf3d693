"""What stands in the relying party and in the other packages too is in a package that they share, but for some lines.

Those are the same code: a mistake that is mended in one copy is mended in the other. Docstrings and comments may differ.
"""

import ast
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from functools import cache
from typing import Final

import pytest

from tests.programs import ROOT

# module of the relying party, module of another package: what is the same in both
COPIES: Final[Mapping[tuple[str, str], str]] = {
    ("http/readiness", "companion_push/relay/readiness"): "READ_SECONDS SHARED_SECONDS",
    ("place", "companion_push/relay/store_place"): "StorePlace store_place",
    ("store_command", "companion_push/relay/store_command"): "_expect",
}
# what is alike in both and differs on purpose, as in an error of its own package; tests run over all servers (tests/test_serving.py)
ALIKE: Final = {
    *("_Claims", "_Header", "_identity", "_interrupted", "_log_kept", "_removed"),
    *("checked", "name_of", "tracing"),
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
    listed = COPIES[party, other].split()
    assert {each: code(ours, each) for each in listed} == {each: code(other, each) for each in listed}


def unlisted() -> Iterator[tuple[str, str, str]]:
    """Functions and classes of the same name that are the same, or nearly so: both modules and the name."""
    others = [*modules("headless_passkey"), *modules("companion_push")]
    for ours in modules("relying_party"):
        for other in others:
            listed = COPIES.get((ours.removeprefix("relying_party/"), other), "").split()
            for name in (definitions(ours).keys() & definitions(other).keys()) - ALIKE - {*listed}:
                if isinstance(definitions(ours)[name], FUNCTIONS) and are_alike(ours, other, name):
                    yield ours, other, name


def are_alike(ours: str, other: str, name: str) -> bool:
    one, another = code(ours, name), code(other, name)
    likeness = SequenceMatcher(None, one, another, autojunk=False)
    steps = likeness.real_quick_ratio, likeness.quick_ratio, likeness.ratio  # the cheapest first
    return len(one) >= LONG and all(step() > 0.9 for step in steps)


def test_what_is_alike_in_both_is_listed() -> None:
    assert list(unlisted()) == []
