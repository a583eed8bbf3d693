"""The documentation's links lead somewhere, the help of each program has an example that it takes, and the SDK's reference is current."""

import argparse
import ast
import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from companion_push.cli import PROGRAMS
from companion_push.cli import make_parser as make_push_parser
from headless_passkey.command.cli import make_parser as make_device_parser
from relying_party.cli import make_parser as make_relying_party_parser

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for folder in ("", "docs/**/", "tests/**/", "benchmarks/")
    for page in sorted(ROOT.glob(f"{folder}*.md"))
    if "node_modules" not in page.parts
]


def links(page: Path) -> Iterator[tuple[str, str]]:
    """(path, anchor) of every link of `page` into this repository."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of `page`."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {path}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {path}#{anchor}"


def test_there_are_links_to_check() -> None:
    assert sum(1 for page in PAGES for _ in links(page)) > 50


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a page in that language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


SHOWN_AS_TEXT = {"", "haproxy"}  # the site has no colours for it


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_site_can_show_each_block_and_picture(page: Path) -> None:
    """A language that a browser would have to draw, such as a diagram's, is shown as its source there."""
    text = page.read_text(encoding="utf-8")
    languages = set(re.findall(r"^ *```([^`\n]*)\n.*?^ *```$", text, flags=re.MULTILINE | re.DOTALL))
    lexers = importlib.import_module("pygments.lexers")  # what the site colours by; it has no types
    for language in languages - SHOWN_AS_TEXT:
        lexers.find_lexer_class_by_name(language)  # raises for one that it does not know
    assert "![](" not in text, "a picture says nothing to who does not see it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_rows_are_those_of_a_table(page: Path) -> None:
    """A table begins with one row and a line of dashes; without them its rows are shown as one paragraph."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for rows in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert re.match(r".*\n[|: -]+\n", rows), rows.partition("\n")[0]


def test_the_sequence_diagrams_are_made_from_their_script() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "diagrams"))["pictures"]()
    kept = {each.name: each.read_text(encoding="utf-8") for each in ROOT.glob("docs/images/*-sequence.svg")}
    assert kept == made


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of the commands that do something."""
    children = [
        child
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for child in action.choices.values()
    ]
    yield from (leaf for child in children for leaf in leaves(child)) if children else (parser,)


COMMANDS = {
    leaf.prog: leaf
    for parser in (make_device_parser(), *map(make_push_parser, PROGRAMS), make_relying_party_parser())
    for leaf in leaves(parser)
}
SETTABLE = [name for name in COMMANDS if not name.endswith(" completion")]  # that one has no options


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_shows_how_it_is_called(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example stands apart, on lines that no terminal breaks, and is taken by the program."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = COMMANDS[command].format_help().splitlines()
    assert all(len(line) <= 80 for line in lines)
    start = lines.index("Example:") + 1
    assert lines[start - 2] == ""
    example = lines[start : lines.index("", start) if "" in lines[start:] else None]
    assert all(line.startswith("  ") for line in example)
    words = shlex.split(re.split(r" [|<>]", "\n".join(example).replace("\\\n", " "))[0])
    assert words[: len(command.split())] == command.split()
    COMMANDS[command].parse_args(words[len(command.split()) :])


def test_the_help_of_every_program_tells_of_its_settings() -> None:
    for name in SETTABLE:
        assert "\n\nEvery option can be set as " in COMMANDS[name].format_help(), name


@pytest.mark.parametrize("name", SETTABLE)
def test_every_long_option_of_every_program_is_a_setting(name: str) -> None:
    parser = COMMANDS[name]
    options = {option for action in parser._actions for option in action.option_strings}
    long = {option.removeprefix("--") for option in options if option.startswith("--")} - {"help", "config"}
    assert set(vars(parser)["settings"]) == long


# The reference of the SDK

API_DOCS = runpy.run_path(str(ROOT / "scripts" / "api-docs"), run_name="api_docs")
PUBLIC = {
    (f"headless_passkey.{module}", name)
    for modules in API_DOCS["PUBLIC"].values()
    for module, names in modules.items()
    for name in names
}
SHOWN = [
    "README.md",
    "docs/how-to/device-sdk.md",
    "docs/how-to/python-fido2.md",
    "docs/how-to/doctor.md",
    "examples/sign_in.py",
    "examples/own_radio.py",
    "examples/fido2_client.py",
]


def imported(source: str) -> Iterator[tuple[str, str]]:
    """Module and name of what `source` takes from this package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("headless_passkey"):
            yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("document", SHOWN)
def test_what_pages_and_examples_show_of_the_sdk_are_public_names(document: str) -> None:
    codes = blocks(document, "python") if document.endswith(".md") else [(ROOT / document).read_text("utf-8")]
    used = {each for code in codes for each in imported(code)}
    assert used
    modules = {module for module, _ in PUBLIC}
    assert {each for each in used - PUBLIC if ".".join(each) not in modules} == set()


def test_every_public_name_is_there() -> None:
    for module, name in PUBLIC:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_the_reference_is_made_without_a_warning_and_is_current() -> None:
    warnings: list[str] = []
    text = API_DOCS["document"](warnings)
    assert warnings == []
    assert (ROOT / "docs/reference/sdk.md").read_text(encoding="utf-8") == text


def test_a_name_that_is_gone_or_says_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {"A chapter": {"errors": ("NoSuchError",), "command.session": ("refresh",)}}
    monkeypatch.setitem(API_DOCS["document"].__globals__, "PUBLIC", listed)
    warnings: list[str] = []
    API_DOCS["document"](warnings)
    assert warnings == [
        "headless_passkey.errors has no NoSuchError",
        "headless_passkey.command.session.refresh has no docstring",
    ]


def test_the_signature_and_the_fields_of_a_name_are_those_of_the_source() -> None:
    page = (ROOT / "docs/reference/sdk.md").read_text(encoding="utf-8")
    assert "class Answer\n    status: int\n    headers: Mapping[str, str]" in page
    assert "def session(relying_party: str | None = None, *, url: str | None = None) -> Session\n" in page
    assert '    NO_SESSION = "no-session"  # none is stored for this relying party\n' in page
    assert "_kept" not in page
