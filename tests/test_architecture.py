"""The plan of the house, checked: who may import whom, what a process loads, what a repr shows."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import PACKAGES, ROOT

CORE = ("client_platform", "authenticator", "channel", "cbor", "fido_url", "tunnel_url")
IMPURE = {"asyncio", "socket", "ssl", "logging", "selectors", "subprocess", "aiohttp", "bleak", "bumble"}
CAN_OPEN = {
    *(f"headless_passkey.hybrid.{module}" for module in ("keys", "noise", "channel", "messages", "ctap2")),
    *(
        f"headless_passkey.hybrid.{module}"
        for module in ("fido_url", "eid", "linking", "client_platform", "authenticator")
    ),
    *(
        f"headless_passkey.trust.{module}"
        for module in ("envelope", "invitation", "introduction", "admission", "hpke", "checks")
    ),
    "cryptography.hazmat.primitives.hpke",
}


def loaded_by(module: str) -> set[str]:
    """What a fresh process holds after importing `module`."""
    code = f"import json, sys, {module}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("package", [*PACKAGES, "headless_passkey.hybrid"])
def test_a_package_loads_nothing_of_its_own_accord(package: str) -> None:
    ours = {module for module in loaded_by(package) if module.split(".")[0] in PACKAGES}
    assert ours == {package, package.partition(".")[0]}


@pytest.mark.parametrize("module", CORE)
def test_the_core_does_no_io(module: str) -> None:
    assert loaded_by(f"headless_passkey.hybrid.{module}") & IMPURE == set()


@pytest.mark.parametrize(
    "module",
    ["headless_passkey.webauthn.options", "headless_passkey.trust.envelope", "headless_passkey.net.proof"],
)
def test_what_stands_on_the_core_does_none_either(module: str) -> None:
    assert loaded_by(module) & IMPURE == set()


def test_a_device_without_bluetooth_library_can_still_be_built_on() -> None:
    loaded = loaded_by("headless_passkey.ceremony")
    assert loaded & {"bleak", "bumble", "dbus_fast", "companion_push", "relying_party"} == set()


def test_a_program_that_imports_the_device_loads_next_to_nothing_until_it_opens_one() -> None:
    """Its start is measured in docs/adr/0043."""
    loaded = loaded_by("headless_passkey.device")
    assert loaded & {"aiohttp", "attr", "cryptography", "bleak"} == set()
    assert {module for module in loaded if module.startswith("headless_passkey.")} == {
        f"headless_passkey.{module}" for module in ("device", "errors", "request")
    }


LATE = {  # what few sign-ins need
    "bleak",
    "bumble",
    "dbus_fast",
    "fido2",
    "joserfc",
    "msgspec",
    "publicsuffixlist",
    "rich",
    "argparse",
}


def test_a_device_loads_nothing_that_its_sign_in_may_not_need() -> None:
    loaded = loaded_by("headless_passkey.device; headless_passkey.device.load()")
    assert "headless_passkey.hybrid.noise" in loaded
    assert loaded & LATE == set()
    rooms = {".".join(module.split(".")[:2]) for module in loaded if module.startswith("headless_passkey.")}
    assert (
        rooms & {"headless_passkey.command", "headless_passkey.doctor", "headless_passkey.ctap_device"}
        == set()
    )
    assert (
        loaded & {f"headless_passkey.radio.{radio}" for radio in ("bleak", "bluez", "bumble", "pipe")}
        == set()
    )


def test_a_sign_in_loads_little_before_it_asks_the_relying_party() -> None:
    """The time until this request is measured in docs/adr/0043."""
    loaded = loaded_by("headless_passkey.command.cli, headless_passkey.command.sign_in")
    unused = {  # the formats of OpenSSH, and all ciphers
        "cryptography.hazmat.primitives.serialization",
        "cryptography.hazmat.backends.openssl.backend",
    }
    assert loaded & {"bleak", "bumble", "dbus_fast", "publicsuffixlist", *unused} == set()
    rooms = ("account", "ceremony", "command", "hybrid", "radio", "rp", "rp_ceremony", "trust", "webauthn")
    assert {
        module.removeprefix("headless_passkey.")
        for module in loaded
        if module.startswith(tuple(f"headless_passkey.{room}" for room in rooms))
    } == {
        *("account", "account.device_files"),
        *("command", "command.cli", "command.command_line", "command.sign_in"),
        *("rp", "rp.finding", "rp.key_store"),
        *("trust", "trust.signing"),
        *("webauthn", "webauthn.origins"),
    }


@pytest.mark.threat("T2")
@pytest.mark.parametrize("server", ["companion_push.relay.app", "companion_push.relay.command"])
def test_the_relay_cannot_open_what_it_carries(server: str) -> None:
    loaded = loaded_by(server)
    assert server in loaded
    assert loaded & CAN_OPEN == set()


@pytest.mark.threat("T9")
@pytest.mark.parametrize("server", ["companion_push.tunnel_service.app"])
def test_the_tunnel_service_cannot_open_what_it_carries(server: str) -> None:
    loaded = loaded_by(server)
    assert loaded & CAN_OPEN == set()
    of_the_core = {module for module in loaded if module.startswith("headless_passkey.hybrid.")}
    assert of_the_core == {"headless_passkey.hybrid.tunnel_url"}


def test_the_relying_party_loads_nothing_of_the_other_two() -> None:
    loaded = {module.split(".")[0] for module in loaded_by("relying_party.http.app")}
    assert loaded & {"headless_passkey", "companion_push"} == set()


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """As `make imports` runs it."""
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([program, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


OUTGOING = {  # calls that look names up by asyncio's pool, or may: where each is right
    "TCPConnector": {"relying_party/resource.py": "resolver"},
    "ClientSession": {"": "connector"},
    "create_connection": {"": "sock"},
    "open_connection": {},
    "getaddrinfo": {  # the first two are of our resolver; the last looks up where to listen
        "name_lookups/resolver.py": "",
        "companion_push/push/connect.py": "",
        "http_serving/listening.py": "flags",
    },
}


def outgoing(module: Path) -> Iterator[tuple[str, set[str]]]:
    """The calls of a module that look names up, with their keyword arguments."""
    for each in ast.walk(ast.parse(module.read_text())):
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute | ast.Name):
            name = each.func.attr if isinstance(each.func, ast.Attribute) else each.func.id
            if name in OUTGOING:
                yield name, {word.arg or "" for word in each.keywords}


def test_names_are_looked_up_by_our_resolver_alone() -> None:
    """In threads that are bounded and that nobody waits for (docs/adr/0065)."""
    found = [
        (str(file.relative_to(ROOT)), name, words)
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        for name, words in outgoing(file)
    ]
    assert {name for _, name, _ in found} == OUTGOING.keys() - {"open_connection"}
    for file, name, words in found:
        needed = OUTGOING[name].get(file, OUTGOING[name].get(""))
        assert needed is not None, f"{file} calls {name}"
        assert not needed or needed in words, f"{file} calls {name} without {needed}="


def test_the_import_contracts_are_kept() -> None:
    linted = lint_imports(ROOT)
    assert linted.returncode == 0, linted.stdout
    assert "0 broken" in linted.stdout


BREACHES = {
    "The device is one staircase": ("headless_passkey/errors.py", "headless_passkey.ceremony"),
    "The core: roles over messages over primitives": (
        "headless_passkey/hybrid/keys.py",
        "headless_passkey.hybrid.channel",
    ),
    "Only command rooms import a command line": (
        "companion_push/companion/consent.py",
        "headless_passkey.command.command_line",
    ),
    "The core does no I/O": ("headless_passkey/hybrid/noise.py", "asyncio"),
    "The device knows nothing of the push programs": (
        "headless_passkey/command/cli.py",
        "companion_push.errors",
    ),
    "Device and relying party meet only on the wire": (
        "relying_party/http/app.py",
        "headless_passkey.errors",
    ),
    "Push programs and relying party meet only on the wire": (
        "relying_party/errors.py",
        "companion_push.errors",
    ),
    "What programs share knows none of them": (
        "postgres_store/uri.py",
        "relying_party.errors",
    ),
    "Servers cannot open what they carry": (
        "companion_push/relay/store.py",
        "headless_passkey.trust.envelope",
    ),
    "Relay, tunnel service, companion and emulation are separate programs": (
        "companion_push/relay/mailbox.py",
        "companion_push.companion.consent",
    ),
    "The relay stands on its rooms": ("companion_push/push/channel.py", "companion_push.relay.mailbox"),
    "The relying party is one staircase": ("relying_party/core/sessions.py", "relying_party.store.sqlite"),
}


def test_every_contract_catches_a_breach(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, module in BREACHES.values():
        with (tmp_path / file).open("a") as source:
            source.write(f"\nimport {module}\n")
    linted = lint_imports(tmp_path)
    assert linted.returncode == 1
    broken = {line.removesuffix(" BROKEN") for line in linted.stdout.splitlines() if line.endswith(" BROKEN")}
    assert broken == set(BREACHES)
    assert "0 kept" in linted.stdout


SHOWN_FIELDS = """
import dataclasses, importlib, inspect, json, msgspec, pkgutil

def fields_of(thing):
    if dataclasses.is_dataclass(thing):
        return [(field.name, field.type) for field in dataclasses.fields(thing) if field.repr]
    if issubclass(thing, msgspec.Struct) and thing.__repr__ is msgspec.Struct.__repr__:
        return [(field.name, field.type) for field in msgspec.structs.fields(thing)]
    if hasattr(thing, "_fields") and thing.__repr__.__module__ == "collections":  # a NamedTuple's own
        return list(thing.__annotations__.items())
    return []

shown = []
for name in {packages}:
    package = importlib.import_module(name)
    for found in pkgutil.walk_packages(package.__path__, name + "."):
        if not found.name.endswith("__main__"):
            module = importlib.import_module(found.name)
            for thing in vars(module).values():
                if inspect.isclass(thing) and thing.__module__ == found.name:
                    shown += [[f"{found.name}.{thing.__name__}", name, str(kind)] for name, kind in fields_of(thing)]
print(json.dumps(shown))
"""
SECRETS = {"secret", "psk", "key", "private", "private_key", "eid_key", "nonce", "challenge", "code", "token"}
SECRETS |= {
    "token_hash",
    "tunnel_id",
    "user_handle",
    "url",
    "registration_secret",
    "link_secret",
    "refresh_token",
}
SECRETS |= {"ticket", "next_hpke_key"}


@pytest.mark.threat("T11")
def test_no_dataclass_or_struct_shows_a_secret() -> None:
    """By the names of their fields; whole values are searched where they are made, in the tests of each module."""
    code = SHOWN_FIELDS.replace("{packages}", repr(PACKAGES))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    shown = json.loads(done.stdout)
    assert len(shown) > 100
    secret = [
        f"{where}.{name}"
        for where, name, kind in shown
        if name.lstrip("_") in SECRETS
        and any(word in kind for word in ("bytes", "str", "PrivateKey", "SigningKey"))
    ]
    assert secret == [
        "headless_passkey.rp.conduit.OpenedSession.user_handle"
    ]  # goes to whoever asked for the session
