"""docs/how-to/linux-board.md: what the page has one type, install and start is taken, and does what the page says."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest

from companion_push.cli import make_parser as make_push_parser
from headless_passkey.command.ceremony import _TALK
from headless_passkey.command.cli import make_parser
from headless_passkey.doctor.finding import Check
from headless_passkey.errors import EnrolmentReason, ExitStatus, SetupReason, TransportReason, TrustReason
from headless_passkey.net.base_url import BaseUrl
from tests.programs import PACKAGES, ROOT

DEVICE: Final = {"headless_passkey", "name_lookups", "program_parts"}  # our packages that a device loads
PAGE: Final = (ROOT / "docs/how-to/linux-board.md").read_text(encoding="utf-8")
SYSTEMD: Final = ROOT / "examples/systemd"
UNIT: Final = SYSTEMD / "headless-passkey-sign-in.service"
SETTINGS: Final = SYSTEMD / "settings.toml"
PROGRAM: Final = "/opt/headless-passkey/bin/headless-passkey"


def blocks(language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    """The words of every command line on the page, those behind a pipe and inside a quoted command too."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    for line in filter(None, (line.split("  #")[0].strip() for line in lines)):
        for part in re.split(r" [|>] | && ", line):
            words = shlex.split(part)
            if words and words[0] == "ssh":
                words = shlex.split(words[-1])
            yield words


def calls(program: str) -> list[list[str]]:
    """What the page gives `program` to do."""
    return [
        words[position + 1 :]
        for words in commands()
        for position, word in enumerate(words)
        if word.endswith(f"/bin/{program}")
    ]


def unit(path: Path = UNIT) -> Mapping[str, list[str]]:
    """The settings of a unit file, in the order in which they stand."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, separator, value = line.partition("=")
            assert separator, line
            found.setdefault(name, []).append(value)
    return found


def words_of_the_unit() -> list[str]:
    """The command that the unit starts."""
    (start,) = unit()["ExecStart"]
    return shlex.split(start)


# the commands


def test_what_the_page_has_the_board_do_is_taken_by_the_program() -> None:
    seen = set()
    for words in calls("headless-passkey"):
        taken = [str(SETTINGS) if word == "/etc/headless-passkey/settings.toml" else word for word in words]
        if taken[0] == "--help":
            continue
        make_parser().parse_args(taken)
        seen.add(taken[0])
    assert {"join", "register", "sign-in", "doctor", "status", "leave"} <= seen


def test_what_the_page_has_the_laptop_do_is_taken_by_the_program() -> None:
    seen = {tuple(words[:2]) for words in calls("companion-push")}
    for words in calls("companion-push"):
        make_push_parser(words[0]).parse_args(words)
    assert {("companion", "join"), ("companion", "invite"), ("companion", "run")} <= seen


def test_no_command_of_the_page_has_an_invitation_in_its_words() -> None:
    given = [
        words[words.index("--invitation") + 1] for words in calls("headless-passkey") if words[0] == "join"
    ]
    assert given
    assert set(given) == {"-"}


def test_every_file_that_the_page_copies_is_there() -> None:
    copied = re.findall(r"examples/systemd/[\w./-]+\w", PAGE)
    assert {UNIT.name, SETTINGS.name, "private-authority.conf", "proxy.conf"} <= {
        Path(name).name for name in copied
    }
    for name in copied:
        assert (ROOT / name).exists(), name


# what is installed


def test_the_extras_that_the_page_installs_are_ours() -> None:
    packages = [word for words in commands() for word in words if word.startswith("./headless-passkey")]
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    installed = [re.fullmatch(r"\./headless-passkey\[(\w+)\]", package) for package in packages]
    assert {found and found[1] for found in installed} == {"device", "push"} & set(extras)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as pip installs it, into a folder of its own; what it depends on is that of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "headless-passkey"  # a build leaves files beside its sources
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", "--no-compile")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-warn-script-location")
    pip = (sys.executable, "-m", "pip", "install", *offline, *quiet, "--prefix", folder / "prefix")
    done = subprocess.run([*pip, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "prefix"


# on the path: what the device's extra does not bring is not there either
HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def modules(extra: str | None) -> set[str]:
    """What an extra brings, or with None the bare package, by the names under which it is imported."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    lines = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return {name_of(line) for line in lines}


def name_of(requirement: str) -> str:
    """The name under which what is required is imported."""
    return re.split(r"[^\w-]", requirement)[0].replace("-", "_")


def hidden() -> set[str]:
    """What other extras bring, and our packages that are not the device's."""
    others = modules("fido2") | modules("push") | modules("rp") | modules("emulation")
    brought = {
        name_of(line)
        for name in modules("device")
        for line in metadata.requires(name) or ()
        if "extra ==" not in line
    }
    return others - modules("device") - brought | (set(PACKAGES) - DEVICE)


def test_all_that_the_device_imports_comes_with_its_extra_or_with_one_for_other_radios_and_programs() -> None:
    imported = set()
    for path in (path for package in DEVICE for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    foreign = imported - sys.stdlib_module_names - DEVICE - {"yarl", "multidict"}  # aiohttp's types
    assert foreign - modules(None) - modules("device") == modules("fido2") | modules("emulation")


def run_installed(prefix: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    (site,) = prefix.glob("lib/python*/site-packages")
    (site / "sitecustomize.py").write_text(HIDE.replace("HIDDEN", repr(hidden())), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(site), "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"}
    return subprocess.run(
        [prefix / "bin/headless-passkey", *words],
        env=environment, cwd=prefix, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_extra_is_all_that_a_board_needs(installed: Path, tmp_path: Path) -> None:
    assert "sign-in" in run_installed(installed, "--help").stdout
    options = tmp_path / "options.json"
    options.write_text('{"challenge": "AAAAAAAAAAAAAAAAAAAAAA", "rpId": "login.example"}', encoding="utf-8")
    ceremony = ("--options", options, "--origin", "https://login.example", "--delivery", "stdout")
    done = run_installed(installed, "sign-in", *ceremony, "--timeout", "60")
    assert (done.returncode, "[no-d-bus]" in done.stderr) == (ExitStatus.TRANSPORT, True), done.stderr
    done = run_installed(installed, "status", "--state", tmp_path / "state")
    assert done.returncode == ExitStatus.NOT_ENROLLED, done.stderr


# the settings file


def test_the_settings_file_has_options_that_its_commands_have(capsys: pytest.CaptureFixture[str]) -> None:
    with SETTINGS.open("rb") as file:
        tables = tomllib.load(file)
    more = {"join": ("--invitation", "-", "--label", "Hub"), "register": ("--user", "ada")}
    for command, table in tables.items():
        taken = make_parser().parse_args([command, "--config", str(SETTINGS), *more.get(command, ())])
        found = {key: getattr(taken, key.replace("-", "_")) for key in table}
        assert {
            key: str(value) if isinstance(value, BaseUrl) else value for key, value in found.items()
        } == table
        assert taken.state == "/var/lib/headless-passkey"  # as the unit's StateDirectory= has it
    broken = capsys.readouterr().err
    assert not broken


# the unit


def test_the_unit_starts_the_program_with_options_that_it_has() -> None:
    words = words_of_the_unit()
    assert words[0] == PROGRAM
    taken = make_parser().parse_args(
        [str(SETTINGS) if word == "/etc/headless-passkey/settings.toml" else word for word in words[1:]]
    )
    assert taken.timeout < int(unit()["TimeoutStartSec"][0])
    assert PROGRAM in PAGE


@pytest.mark.threat("T11")
def test_what_is_on_stdout_never_goes_to_the_journal() -> None:
    assert unit()["StandardOutput"] == ["null"]
    assert unit()["UMask"] == ["0077"]
    assert unit()["StateDirectoryMode"] == ["0700"]


def test_only_a_failing_transport_is_tried_again() -> None:
    never_again = {int(status) for status in unit()["RestartPreventExitStatus"][0].split()}
    assert unit()["Restart"] == ["on-failure"]
    assert never_again == {int(status) for status in ExitStatus} - {ExitStatus.DONE, ExitStatus.TRANSPORT}


def test_the_page_says_of_every_exit_status_what_the_unit_does() -> None:
    rows = {int(found) for found in re.findall(r"^\| (\d+) \|", PAGE, flags=re.MULTILINE)}
    assert rows == {int(status) for status in ExitStatus}


def test_a_proxy_is_given_to_the_sign_in_out_of_a_file_for_root_alone() -> None:
    (file,) = unit(SYSTEMD / "proxy.conf")["EnvironmentFile"]
    made = [words for words in commands() if words[:2] == ["sudo", "install"] and words[-1] == file]
    assert [words[2:] for words in made] == [["--mode=0600", "/dev/null", file]]
    assert any(words[:2] == ["sudo", "tee"] and words[2] == file for words in commands())


def test_a_private_authority_is_given_to_the_sign_in() -> None:
    drop_in = unit(SYSTEMD / "private-authority.conf")
    (credential,) = drop_in["LoadCredential"]
    (variable,) = drop_in["Environment"]
    name, _, value = variable.partition("=")
    assert value == f"%d/{credential.partition(':')[0]}"
    assert name == "HEADLESS_PASSKEY_SIGN_IN_CA"
    actions = make_parser()._subparsers._group_actions[0].choices["sign-in"]._actions  # type: ignore[union-attr,index]
    assert "--ca" in {option for action in actions for option in action.option_strings}


systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)


@systemd_analyze
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    """With a program that is there: it looks for that too."""
    there = tmp_path / UNIT.name
    there.write_text(UNIT.read_text(encoding="utf-8").replace(PROGRAM, "/bin/true"), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(there)], capture_output=True, text=True, check=False
    )
    about_it = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, about_it) == (0, [])


@systemd_analyze
def test_the_unit_is_as_little_exposed_as_the_page_says() -> None:
    (said,) = re.findall(r"exposure level ([\d.]+)", PAGE)
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "offline" in done.stderr:
        pytest.skip("this systemd cannot look at a file")
    (found,) = re.findall(r"Overall exposure level for [^:]*: ([\d.]+)", done.stdout)
    assert float(found) <= float(said)


# what the page shows


def test_what_the_page_shows_of_the_doctor_are_words_of_the_doctor() -> None:
    reports = [block for block in blocks("text") if "d-bus" in block]
    assert len(reports) == 2
    for report in reports:
        lines = [line for line in report.splitlines() if re.match(r"(ok|WARNING|PROBLEM|not checked) ", line)]
        checks = {re.split(r"  +", line)[1].split()[0] for line in lines}
        assert checks <= set(Check)
        assert {Check.ADAPTER, Check.SCAN, Check.RELAY, Check.CLOCK} <= checks


def test_the_reasons_in_the_table_of_troubles_are_words_of_the_errors() -> None:
    rows = re.findall(r"^\|.*\| `([a-z-]+)` \|", PAGE, flags=re.MULTILINE)
    assert len(rows) >= 8
    for reason in rows:
        assert reason in {*TransportReason, *SetupReason, *EnrolmentReason, *TrustReason}


def test_the_stages_that_the_page_shows_are_what_a_sign_in_says() -> None:
    (told,) = [block for block in blocks("text") if _TALK_FIRST in block]
    said = [line.split(" s  ", 1)[1] for line in told.splitlines() if " s  " in line]
    assert len(said) >= 8
    assert set(said) <= set(_TALK.values())


_TALK_FIRST: Final = next(iter(_TALK.values()))
