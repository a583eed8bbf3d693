"""The page of threats: each threat of docs/security.md, what is done, and the tests that are marked with it.

`page` makes it from the tests' sources; a threat without a test is an error, and so is a test of a threat that is not listed.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

HEADING = """# Threats and their tests

Made from the tests: each threat of [Security](../security.md), what is done, and the tests that are marked with it (`pytest -m threat`).
"""


def threats(security: str) -> dict[str, tuple[str, str]]:
    """The threats of docs/security.md by number: what each is, and what is done."""
    rows = re.findall(r"^\| (T\d+) \| (.*?) \| (.*) \|$", security, flags=re.MULTILINE)
    return {number: (threat, done) for number, threat, done in rows}


def covered(source: str) -> Iterator[tuple[str, str]]:
    """(threat, test) for every test of a module that is marked with one, itself or with its module."""
    tree = ast.parse(source)
    of_module = [
        number
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(getattr(name, "id", "") == "pytestmark" for name in node.targets)
        for number in _numbers(node.value)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            own = [number for decorator in node.decorator_list for number in _numbers(decorator)]
            yield from ((number, node.name) for number in dict.fromkeys([*own, *of_module]))


def _numbers(node: ast.AST) -> Iterator[str]:
    """The threats of the marks in an expression."""
    for part in ast.walk(node):
        match part:
            case ast.Call(func=ast.Attribute(attr="threat"), args=[ast.Constant(value=str(number))]):
                yield number


def page(security: str, tests: Mapping[str, str]) -> str:
    """The page. tests: the sources of the modules, by path. `ValueError` where threats and tests do not fit."""
    listed = threats(security)
    found: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path, source in sorted(tests.items()):
        for number, test in covered(source):
            found[number][path].append(test.removeprefix("test_").replace("_", " "))
    unknown, bare = sorted(found.keys() - listed.keys()), [each for each in listed if each not in found]
    if unknown or bare:
        raise ValueError(f"tests of threats that are not listed: {unknown}; threats without a test: {bare}")
    parts = [HEADING]
    for number, (threat, done) in listed.items():
        # the links of security.md, from one folder further down
        told = re.sub(r"\]\((?!\w+:)([^)]+)\)", r"](../\1)", f"{threat}\n\n{done}.")
        parts.append(f"## {number}\n\n{told}\n")
        parts += [
            f"- [`{path}`](../../{path})\n\n" + "\n".join(f"    - {each}" for each in sentences) + "\n"
            for path, sentences in found[number].items()
        ]
    return "\n".join(parts)


def sources(root: Path) -> dict[str, str]:
    """The sources of all test modules of a repository, by path."""
    return {
        str(path.relative_to(root)): path.read_text(encoding="utf-8")
        for path in sorted((root / "tests").rglob("test_*.py"))
        if "node_modules" not in path.parts
    }
