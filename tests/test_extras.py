"""The extras: what the programs say where one is not installed, and how the page of the installation names them."""

import argparse
import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pytest

from companion_push.cli import PROGRAMS
from companion_push.cli import make_parser as make_push_parser
from headless_passkey.command.cli import make_parser as make_device_parser
from relying_party.cli import make_parser as make_relying_party_parser
from tests.programs import PACKAGES, ROOT

# what the extras bring; the distribution alone brings cryptography
EXTRAS = (
    "aiohappyeyeballs", "aiohttp", "bleak", "bumble", "dbus_fast", "fido2", "h2", "joserfc", "msgspec", "opentelemetry",
    "prometheus_client",
    "publicsuffixlist", "rich", "segno", "strawberry", "yarl",
)  # fmt: skip

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
from importlib import import_module
module, _, function = sys.argv[0].partition(":")
sys.exit(getattr(import_module(module), function)())
"""


def run(*words: str, without: tuple[str, ...] = EXTRAS) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"ABSENT = {without!r}{WITHOUT}", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("headless_passkey.command.cli:main", "sign-in", "--rp", "https://rp.example"), "device"),
        (("headless_passkey.command.cli:main", "status"), "device"),
        (("headless_passkey.command.cli:main", "doctor"), "device"),
        (("companion_push.cli:main", "relay"), "push"),
        (
            ("companion_push.cli:main", "tunnel-service", "--listen", ":::0", "--cert", "c", "--key", "k"),
            "push",
        ),
        (("companion_push.cli:main", "companion", "members"), "push"),
        (
            ("companion_push.cli:main", "phone", "--url", "-", "--credentials", "c", "--tunnel", "0=wss://x"),
            "push",
        ),
        (("companion_push.cli:main", "ether", "--listen", "127.0.0.1:0"), "emulation"),
        (("relying_party.__main__:main", "serve"), "rp"),
    ],
    ids=[
        "sign-in",
        "status",
        "doctor",
        "relay",
        "tunnel-service",
        "companion",
        "phone",
        "ether",
        "relying-party",
    ],
)
def test_what_is_missing_is_named_with_the_extra_that_brings_it(words: tuple[str, ...], extra: str) -> None:
    done = run(*words)
    assert done.returncode == 10, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"pip install '.[{extra}]' in the clone of headless-passkey" in line.replace("`", "")


@pytest.mark.parametrize("name", ["relay", "tunnel-service"])
@pytest.mark.parametrize(
    ("option", "package", "extra"),
    [
        (("--metrics", "127.0.0.1:0"), "prometheus_client", "metrics"),
        (("--event-loop", "uvloop"), "uvloop", "uvloop"),
    ],
    ids=["metrics", "uvloop"],
)
def test_an_option_that_needs_an_extra_of_its_own_names_that_one(
    name: str, option: tuple[str, ...], package: str, extra: str
) -> None:
    done = run("companion_push.cli:main", name, *option, without=(package,))
    assert done.returncode == 10, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"this needs {package}: " in line
    assert f"pip install '.[{extra}]' in the clone of headless-passkey" in line.replace("`", "")


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, ...]]:
    """The words after a program's name that lead to each of its parsers."""
    yield ()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                for words in commands(child):
                    yield name, *words


HELPED = [
    *(("headless_passkey.command.cli:main", *words) for words in commands(make_device_parser())),
    *(
        ("companion_push.cli:main", *words)
        for name in PROGRAMS
        for words in commands(make_push_parser(name))
        if words
    ),
    ("companion_push.cli:main",),
    *(("relying_party.__main__:main", *words) for words in commands(make_relying_party_parser())),
]


# each in turn; a program for each of them would take its start eighty times
_ALL_HELPED: Final = """
import contextlib, io, json, sys
from importlib import import_module

def all_helped():
    answers = []
    for place, *words in json.load(sys.stdin):
        module, _, function = place.partition(":")
        sys.argv = ["program", *words, "--help"]
        with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
            try:
                status = getattr(import_module(module), function)()
            except SystemExit as end:
                status = end.code
        answers.append((status, stderr.getvalue(), stdout.getvalue()))
    print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def helped(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], list[Any]]:
    """By the words of a command: status, stderr and stdout of its ``--help``, without any extra."""
    folder = tmp_path_factory.mktemp("helped")
    (folder / "helped.py").write_text(_ALL_HELPED)
    start = f"ABSENT = {EXTRAS!r}; import sys; sys.path.insert(0, {str(folder)!r}){WITHOUT}"
    command = [sys.executable, "-c", start, "helped:all_helped"]
    done = subprocess.run(command, input=json.dumps(HELPED), capture_output=True, text=True, check=True)
    return dict(zip(HELPED, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("words", HELPED, ids=" ".join)
def test_help_needs_no_extra(words: tuple[str, ...], helped: dict[tuple[str, ...], list[Any]]) -> None:
    status, stderr, stdout = helped[words]
    assert (status, stderr) == (0, "")
    assert stdout.startswith("usage: ")


def test_every_program_is_asked_for_help() -> None:
    assert len(HELPED) > 20


@pytest.mark.parametrize(
    ("main", "program"),
    [
        ("headless_passkey.command.cli:main", "headless-passkey"),
        ("companion_push.cli:main", "companion-push"),
        ("relying_party.__main__:main", "relying-party"),
    ],
    ids=["headless-passkey", "companion-push", "relying-party"],
)
def test_a_program_says_its_version_and_needs_no_extra(main: str, program: str) -> None:
    done = run(main, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"{program} {version('headless-passkey')}\n",
        "",
    )


def test_the_bare_core_needs_no_extra() -> None:
    done = run("headless_passkey.command.cli:main", "tunnel-domain", "266")
    assert (done.returncode, done.stdout) == (0, "cable.wufkweyy3uaxb.com\n")


# What each extra is for: its modules, and those of other extras, by their names' beginnings.
OF_METRICS = (
    "http_serving.metrics", "companion_push.serving.metrics", "companion_push.relay.metrics", "companion_push.tunnel_service.metrics"
)  # fmt: skip
RP_IN_POSTGRES = ("relying_party.store.postgres", "relying_party.store.minutes")
MODULES = {
    "device": (("headless_passkey.",), ("headless_passkey.ctap_device", "headless_passkey.radio.bumble")),
    "fido2": (("headless_passkey.ctap_device", "companion_push.companion.security_key"), ()),
    "push": (
        ("companion_push.",),
        (
            "companion_push.emulation", "companion_push.companion.advertiser.bumble", "companion_push.companion.security_key", *OF_METRICS,
            "companion_push.relay.graphql", "companion_push.relay.postgres", "companion_push.relay.redis_states", "companion_push.push.http2",
        ),
    ),
    "graphql": (("companion_push.relay.graphql",), ()),
    "apns": (("companion_push.push.http2",), ()),
    "rp": (("relying_party.",), RP_IN_POSTGRES),
    "emulation": (
        ("companion_push.emulation", "companion_push.companion.advertiser.bumble", "headless_passkey.radio.bumble"),
        (),
    ),
    "metrics": (OF_METRICS, ()),
    "postgres": (("companion_push.relay.postgres", "postgres_store.", *RP_IN_POSTGRES), ()),
    "redis": (("companion_push.relay.redis_states",), ()),
    "tracing": (("companion_push.serving.tracing", "relying_party.http.tracing"), ()),
    "uvloop": (("companion_push.serving.options",), ()),
}  # fmt: skip
# its interface speaks in their types, or it is imported by another name
BROUGHT_BY = {
    "opentelemetry": "opentelemetry_api", "yarl": "aiohttp", "multidict": "aiohttp", "graphql": "strawberry_graphql", "strawberry": "strawberry_graphql",
}  # fmt: skip


def our_modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports_of(path: Path, *, late: bool) -> Iterator[str]:
    """What a module imports, as dotted names; with `late`, also what it imports inside functions."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo.extend(ast.iter_child_nodes(node))


def packages_behind(extra: str, *, late: bool) -> set[str]:
    """Which packages of others the modules of an extra import, themselves or through other modules of ours."""
    wanted, others = MODULES[extra]
    modules, packages, seen = our_modules(), set(), set()
    todo = [name for name in modules if f"{name}.".startswith(wanted) and not name.startswith(others or "-")]
    assert todo
    while todo:
        name = todo.pop()
        while name not in modules and "." in name:  # the name of something in a module
            name = name.rpartition(".")[0]
        if name in modules:
            if name not in seen:
                seen.add(name)
                todo.extend(imports_of(modules[name], late=late))
        elif name not in sys.stdlib_module_names:
            packages.add(BROUGHT_BY.get(name, name))
    return packages


def brought(extra: str | None) -> set[str]:
    """The packages of an extra, or without one of the bare distribution, as they are imported."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    lines = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return {re.split(r"[>=<;\[ ]", line)[0].replace("-", "_") for line in lines}


@pytest.mark.parametrize("extra", MODULES)
def test_an_extra_brings_nothing_that_its_modules_do_not_import(extra: str) -> None:
    assert brought(extra) - packages_behind(extra, late=True) == set()


@pytest.mark.parametrize("extra", MODULES)
def test_an_extra_brings_what_its_modules_import(extra: str) -> None:
    """But for what they import when it is asked for, and then say what brings it."""
    also = {
        "fido2": brought("device") | brought("push"),
        "emulation": brought("device") | brought("push"),
        "metrics": brought("push"),
        "uvloop": brought("push"),
        "graphql": brought("push"),
        "apns": brought("push"),
        "postgres": brought("rp") | brought("push"),
        "redis": brought("push"),
    }.get(extra, set())
    assert packages_behind(extra, late=False) - brought(extra) - brought(None) - also == set()


def test_every_extra_has_modules_and_all_has_every_extra() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    assert {*MODULES, "all"} == set(extras)
    assert extras["all"] == [f"headless-passkey[{','.join(sorted(MODULES))}]"]


INSTALLS = [
    line.split("  #")[0].strip()
    for line in (ROOT / "docs/how-to/install.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("pip install ")
]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build needs of this repository; a build leaves files beside its sources."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("line", INSTALLS)
def test_the_install_lines_work_from_a_clone(clone: Path, line: str) -> None:
    """As pip would do it: nothing is fetched, since what the extras need is here."""
    words = shlex.split(line)
    assert words[:2] == ["pip", "install"]
    offline = ["--dry-run", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *offline, *words[2:]]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Would install headless-passkey-" in done.stdout
    assert "WARNING: headless-passkey" not in done.stderr  # such as one about an extra that does not exist


def test_there_is_a_line_for_every_extra_and_nothing_comes_from_an_index() -> None:
    named = {line.partition("[")[2].partition("]")[0] for line in INSTALLS}
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert named == set(tomllib.load(file)["project"]["optional-dependencies"])
    assert all(line.startswith("pip install '.[") for line in INSTALLS)
