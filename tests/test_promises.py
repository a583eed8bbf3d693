"""What docs/how-to/several-relays.md promises: each sentence names its tests in docs/reference/promises.md, which are there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs/how-to/several-relays.md"
TABLE: Final = ROOT / "docs/reference/promises.md"
NO_PROMISE: Final = "no promise: "


def sentences(page: str) -> Iterator[str]:
    """The sentences of what is promised, as they are read: without marks and the targets of links."""
    section = page.partition("## What is promised\n")[2].partition("\n## ")[0]
    for line in section.splitlines():
        if line and not line.startswith("#"):
            plain = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", line.removeprefix("- ")).replace("**", "")
            yield from re.split(r"(?<=\.) (?=[A-Z`])", plain)


def rows(table: str) -> Iterator[tuple[str, str]]:
    """(beginning of a sentence, its tests) of every row."""
    for sentence, tests in re.findall(r"^\| (.+?) \| (.+) \|$", table, flags=re.MULTILINE):
        if sentence not in ("sentence", "---"):
            yield sentence.removesuffix(" …"), tests


def mistakes(page: str, table: str, tests: dict[str, set[str]]) -> list[str]:
    """What does not fit. tests: the names of the tests of each module, by path."""
    promised, listed = list(sentences(page)), list(rows(table))
    found = [f"no row: {each}" for each in promised if not any(each.startswith(row) for row, _ in listed)]
    for row, cell in listed:
        of_row = [each for each in promised if each.startswith(row)]
        if len(of_row) != 1:
            found.append(f"{len(of_row)} sentences: {row}")
        if cell.startswith(NO_PROMISE):
            continue
        named = re.findall(r"\[`(\w+)`\]\(\.\./\.\./([\w/.]+)\)", cell)
        if not named:
            found.append(f"no test: {row}")
        found += [
            f"no such test: {path} {name}" for name, path in named if name not in tests.get(path, set())
        ]
    return found


def named_tests(root: Path) -> dict[str, set[str]]:
    return {
        str(path.relative_to(root)): {
            node.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        }
        for path in (root / "tests").rglob("test_*.py")
        if "node_modules" not in path.parts
    }


def test_each_sentence_of_what_is_promised_has_a_test() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert len(list(sentences(page))) > 50
    assert mistakes(page, TABLE.read_text(encoding="utf-8"), named_tests(ROOT)) == []


SECTION: Final = (
    "# Page\nNot this.\n## What is promised\n\n- One [is](a.md) kept. **Two** is.\n\n## Limits\nNor this.\n"
)
ONE: Final = "| One is … | [`test_one`](../../tests/test_a.py) |\n"
TWO: Final = "| Two is … | no promise: advice |\n"
TESTS: Final = {"tests/test_a.py": {"test_one"}}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (ONE + TWO, []),
        (ONE, ["no row: Two is."]),
        (ONE + TWO + TWO.replace("Two", "Three"), ["0 sentences: Three is"]),
        (ONE.replace("test_one", "test_two") + TWO, ["no such test: tests/test_a.py test_two"]),
        (ONE.replace("test_a", "test_b") + TWO, ["no such test: tests/test_b.py test_one"]),
        (ONE + "| Two is … | somewhere |\n", ["no test: Two is"]),
    ],
    ids=["all fits", "no row", "no sentence", "no such test", "no such module", "no test"],
)
def test_sentences_and_tests_that_do_not_fit_are_named(table: str, said: list[str]) -> None:
    head = "| sentence | tests |\n| --- | --- |\n"
    assert mistakes(SECTION, head + table, TESTS) == said
