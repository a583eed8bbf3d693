"""What the programs say where an extra is not installed: one line with what to install, and status 2."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("aiohttp", "fido2", "bleak", "bumble"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
from importlib import import_module
module, _, function = sys.argv[0].partition(":")
sys.exit(getattr(import_module(module), function)())
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("headless_passkey.cli:main", "sign-in", "--rp", "https://rp.example"), "device"),
        (("headless_passkey.cli:main", "status"), "device"),
        (("headless_passkey.cli:main", "doctor"), "device"),
        (("companion_push.cli:main", "relay"), "push"),
        (("relying_party.__main__:main", "serve"), "rp"),
    ],
    ids=["sign-in", "status", "doctor", "relay", "relying-party"],
)
def test_what_is_missing_is_named_with_the_extra_that_brings_it(words: tuple[str, ...], extra: str) -> None:
    done = run(*words)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"install headless-passkey[{extra}]" in line


def test_the_bare_core_needs_no_extra() -> None:
    done = run("headless_passkey.cli:main", "tunnel-domain", "266")
    assert (done.returncode, done.stdout) == (0, "cable.wufkweyy3uaxb.com\n")
