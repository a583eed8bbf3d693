"""Every code block of the documentation is run or read by a test, or the line before it says that it is not, and why.

A block of a language that `READERS` has is read here. One that another test takes from its page, and runs, is in `TAKEN`. Before any other
stands a line that neither the site nor GitHub shows: `<!-- not run: REASON -->`.
"""

import argparse
import ast
import http
import importlib
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest
from graphql import build_schema, parse, validate

from companion_push.cli import make_parser as make_push_parser
from companion_push.relay.metrics import MILESTONES, RelayMetrics
from companion_push.relay.problems import Slug
from companion_push.serving.metrics import ProgramMetrics
from headless_passkey.command.cli import make_parser as make_device_parser
from relying_party.cli import make_parser as make_relying_party_parser
from tests.test_documentation import PAGES, ROOT

MADE: Final = {"docs/cli.md", "docs/reference/sdk.md"}  # by scripts, with whose output tests compare them
TAKEN: Final = {
    "docs/how-to/linux-board.md text": "tests/test_linux_board.py::test_the_stages_that_the_page_shows_are_what_a_sign_in_says",
    "docs/how-to/resource-server.md toml": "tests/rp/test_resource.py::test_the_pages_file_of_secrets_is_taken",
    "docs/how-to/reverse-proxy.md caddy": "tests/end_to_end/test_behind_a_proxy.py::test_a_sign_in_goes_through_the_proxy_and_its_request_comes_by_a_stream",
    "docs/how-to/reverse-proxy.md haproxy": "tests/tunnel_service/test_nodes.py::test_both_ends_meet_at_the_node_that_the_phone_came_to",
    "docs/how-to/reverse-proxy.md nginx": "tests/end_to_end/test_behind_a_proxy.py::test_a_sign_in_goes_through_the_proxy_and_its_request_comes_by_a_stream",
    "docs/how-to/several-relays.md haproxy": "tests/end_to_end/test_several_relays.py::test_a_sign_in_ends_in_a_session_though_each_relay_is_killed_while_the_companion_asks",
    "docs/protocol/trust.md text": "tests/test_names.py::test_the_page_lists_the_code_points_of_the_rule",
}
_FENCED: Final = re.compile(
    r"(?:^ *<!-- not run: ([^\n]*) -->\n)?^( *)```([^`\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL
)
_INDENTED: Final = re.compile(r"(?<=\n\n)(?: {4}|\t)\S[^\n]*")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block; `not_run` is the reason that stands before it."""

    page: str
    line: int
    language: str
    code: str
    not_run: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in _FENCED.finditer(text):
        not_run, indent, language, code = found.groups()
        yield Block(
            page=str(page.relative_to(ROOT)),
            line=text.count("\n", 0, found.start(2)) + 1,
            language=language,
            code=re.sub(rf"^{indent}", "", code, flags=re.MULTILINE),
            not_run=not_run,
        )


BLOCKS: Final = [
    block for page in PAGES if str(page.relative_to(ROOT)) not in MADE for block in blocks_of(page)
]
READ_HERE: Final = [block for block in BLOCKS if block.not_run is None]


def test_no_page_has_a_block_without_a_fence() -> None:
    """It would have no language, and no test would see it."""
    for page in PAGES:
        rest = _FENCED.sub("", page.read_text(encoding="utf-8"))
        if str(page.relative_to(ROOT)) not in MADE:
            assert _INDENTED.findall(rest) == [], page
            assert "```" not in re.sub(r"`` ?```.*? ?``", "", rest), page


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_is_read_by_a_test_or_says_why_it_is_not(block: Block) -> None:
    if block.language in READERS:
        assert block.not_run is None, "it is read"
    elif f"{block.page} {block.language}" not in TAKEN:
        assert block.not_run, "write before it: <!-- not run: REASON -->"


@pytest.mark.parametrize("taken", TAKEN)
def test_the_test_that_takes_blocks_is_there(taken: str) -> None:
    assert taken in {f"{block.page} {block.language}" for block in BLOCKS}
    file, _, name = TAKEN[taken].partition("::")
    assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("block", READ_HERE, ids=lambda block: block.place)
def test_a_block_is_what_its_language_says(block: Block) -> None:
    if (reader := READERS.get(block.language)) is not None:
        reader(block.code)


def of_python(code: str) -> None:
    """It compiles, and what it imports is there."""
    compile(code, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


# Command lines

OTHERS: Final = frozenset(  # programs whose command lines no test reads
    [
        *(
            "alias",
            "cd",
            "cat",
            "chown",
            "cp",
            "echo",
            "export",
            "kill",
            "mkdir",
            "mkfifo",
            "mktemp",
            "read",
            "rm",
            "tee",
            "umask",
            "wait",
        ),
        *(
            "apt",
            "bluetoothctl",
            "createdb",
            "createuser",
            "curl",
            "install",
            "journalctl",
            "openssl",
            "sqlite3",
            "systemctl",
        ),
        *(
            "compose",
            "docker",
            "kubectl",
            "opentelemetry-instrument",
            "raspi-config",
            "rfkill",
            "sudoedit",
            "useradd",
            "userdel",
        ),
    ]
)
OURS: Final = ("headless-passkey", "companion-push", "relying-party")
_WORDS_OF_THE_SHELL: Final = frozenset(("do", "done", "{", "}", "$"))
_BETWEEN: Final = ";()|&\n"


def command_lines(code: str) -> Iterator[list[str]]:
    """The words of each command: those in pipes, subshells and quoted commands of ssh too; without redirections and settings."""
    code = re.sub(r"\\\n *", " ", re.sub(r"(^|[ \t])#.*$", r"\1", code, flags=re.MULTILINE))
    lexer = shlex.shlex(code, posix=True, punctuation_chars=f"{_BETWEEN}<>")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if word and set(word) <= set(_BETWEEN):
            while words and (words[0] in _WORDS_OF_THE_SHELL or re.match(r"\w+=", words[0])):
                words.pop(0)
            if words and words[0] == "ssh":
                yield from command_lines(words[-1])
            elif words and words[0] != "for":
                yield words
            words = []
        elif set(word) <= set("<>&"):
            skip = True
        elif skip:
            skip = False
        else:
            words.append(word)


def without_requirements(parser: argparse.ArgumentParser) -> None:
    """Let `parser` take a line that leaves options out."""
    for action in parser._actions:
        action.required = False
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                without_requirements(child)


def take(program: str, words: list[str]) -> None:
    """Let the parser of a program of ours take its words; `…` stands for options that are left out."""
    if program == "companion-push":
        parser = make_push_parser(words[0])
    else:
        parser = {"headless-passkey": make_device_parser, "relying-party": make_relying_party_parser}[
            program
        ]()
    if "…" in words:
        without_requirements(parser)
    if words != ["--help"]:
        parser.parse_args([_placed(word) for word in words if word != "…"])


def _placed(word: str) -> str:
    """A word with a value for a variable, and with the settings that the page of the board has one install."""
    word = word.replace("/etc/headless-passkey/settings.toml", str(ROOT / "examples/systemd/settings.toml"))
    return re.sub(r"=\$\w+$", "=wss://localhost", word)


def of_its_own(words: list[str]) -> list[str]:
    """What sudo, a container or a wrapper is given to run; otherwise `words`."""
    if words[0] == "sudo":
        words = words[1:]
        while words[0].startswith("-"):
            words = words[2 if words[0] == "-u" else 1 :]
    if words[0] in ("docker", "compose", "opentelemetry-instrument"):
        if "companion-push" in words:
            return words[words.index("companion-push") :]
        if "run" in words and "companion" in words:  # the image's entry point is the program
            return ["companion-push", *words[words.index("companion") :]]
    return words


EXTRAS: Final = set(
    tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
)
TARGETS: Final = set(
    re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
)


def of_commands(code: str) -> None:
    """A shell can read it; our programs take what they are given; files, targets and extras are there; other programs are known."""
    subprocess.run(["sh", "-n"], input=code, text=True, check=True)
    for words in map(of_its_own, command_lines(code)):
        name = Path(words[0]).name
        if name in OURS:
            take(name, words[1:])
        elif name == "make":
            assert {word for word in words[1:] if "=" not in word} <= TARGETS
        elif name == "pip":
            groups = [group.split(",") for word in words for group in re.findall(r"\[([^]]*)\]", word)]
            assert {extra for group in groups for extra in group} <= EXTRAS
        elif name.startswith("python"):
            scripts = [word for word in words[1:] if word.endswith(".py")]
            assert words[1] in ("-m", "-c") or scripts
            assert all((ROOT / script.removeprefix("../")).is_file() for script in scripts)
        else:
            assert name in OTHERS or (ROOT / words[0]).is_file(), f"what is {words[0]}?"


# The others

PATHS: Final = json.loads((ROOT / "docs/reference/relay-openapi.json").read_text(encoding="utf-8"))["paths"]
SCHEMA: Final = build_schema((ROOT / "docs/reference/relay.graphql").read_text(encoding="utf-8"))


def of_json(code: str) -> None:
    """A document of GraphQL is one of our schema, and a problem one of ours."""
    value = json.loads(code)
    if "query" in value:
        assert validate(SCHEMA, parse(value["query"])) == []
    for error in value.get("errors", ()):
        Slug(error["extensions"]["type"].removeprefix("urn:headless-passkey:problem:"))


def of_http(code: str) -> None:
    """A request line, fields, and a body of JSON."""
    head, _, body = code.partition("\n\n")
    request, *fields = head.splitlines()
    method, path, version = request.split(" ")
    assert (http.HTTPMethod(method), version) == (method, "HTTP/1.1")
    assert all(re.fullmatch(r"[\w-]+: \S.*", each) for each in fields)
    json.loads(body)
    if path.startswith("/v1/"):
        assert method.lower() in PATHS[path]


def of_javascript(code: str) -> None:
    if shutil.which("node") is None:
        pytest.skip("there is no node")
    subprocess.run(["node", "--input-type=module", "--check"], input=code, text=True, check=True)


def relays_metrics() -> dict[str, set[str]]:
    """The labels of each series that a relay with `--metrics` has, by the series' name."""
    program = ProgramMetrics()
    numbers = dict.fromkeys(
        (
            "held_calls", "transactions", "log_bytes", "used_proofs", "pushes", "failing_services", "events_waiting",
        ),
        int,
    )  # fmt: skip
    RelayMetrics(program.registry, clock=float, **numbers)
    return {
        name: {*metric._labelnames, *(("le",) if name.endswith("_bucket") else ())}
        for name, metric in program.registry._names_to_collectors.items()
        if hasattr(metric, "_labelnames")
    }


def of_promql(code: str) -> None:
    """Its series are the relay's, with these labels; its milestones too."""
    series = relays_metrics()
    names = re.findall(r"\bcompanion_push_\w+", code)
    assert set(names) <= series.keys()
    for name, labels in re.findall(r"\b(companion_push_\w+)\{([^}]*)\}", code.replace('{id}"', '"')):
        assert set(re.findall(r"(\w+)[!=]", labels)) <= series[name]
    for values in re.findall(r'milestone=~?"([^"]*)"', code):
        assert set(values.split("|")) <= set(MILESTONES)
    for line in code.splitlines():
        query = re.sub(r"(^| {2,})#.*", "", line)
        labels = {each for group in re.findall(r"by \(([^)]*)\)", query) for each in group.split(", ")}
        assert labels <= set().union(*(series[name] for name in re.findall(r"\bcompanion_push_\w+", query)))
        assert all(query.count(a) == query.count(b) for a, b in ("()", "[]", "{}"))


READERS: Final[MappingProxyType[str, Callable[[str], None]]] = MappingProxyType(
    {
        "python": of_python,
        "sh": of_commands,
        "json": of_json,
        "http": of_http,
        "js": of_javascript,
        "promql": of_promql,
    }
)
