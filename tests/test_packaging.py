"""What a packager gets: a source distribution with all that is in the repository, and metadata that says whose it is.

That it is the same each time is checked by `make dist`, and that it can be installed and run by `make test-dist`.
"""

import email
import re
import shutil
import subprocess
import sys
import tarfile
from email.message import Message
from pathlib import Path

import pytest

from tests.programs import ROOT

BUILD = "from setuptools import build_meta; print(build_meta.build_sdist({!r}))"


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """What git tracks, as a source distribution names it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    return [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory, tracked: list[str]) -> tarfile.TarFile:
    """Made from a copy of the tracked files, as a fresh clone has them."""
    clone, made = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("made")
    for name in tracked:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)
    built = subprocess.run(
        [sys.executable, "-c", BUILD.format(str(made))],
        cwd=clone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return tarfile.open(made / built.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def metadata(sdist: tarfile.TarFile) -> Message:
    member = next(name for name in sdist.getnames() if name.endswith("PKG-INFO") and name.count("/") == 1)
    content = sdist.extractfile(member)
    assert content is not None
    return email.message_from_bytes(content.read())


def test_the_version_is_the_same_wherever_it_stands(metadata: Message) -> None:
    version = metadata["Version"]
    released = re.findall(r"^## \[(\d[^]]*)\] - \d{4}-\d\d-\d\d$", text("CHANGELOG.md"), re.MULTILINE)
    assert released[0] == version
    assert f"[{version}]: " in text("CHANGELOG.md")
    assert f"\nARG VERSION={version}\n" in text("docker/Dockerfile")
    tags = [
        tag
        for file in ROOT.glob("docker/kubernetes/*.yaml")
        for tag in re.findall(r"image: \S+/headless-passkey/\S+:(\S+)", file.read_text(encoding="utf-8"))
    ]
    assert tags == [version] * 3
    assert f" headless-passkey {version}, " in text("docs/how-to/linux-board.md")


def text(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def test_the_source_distribution_holds_every_tracked_file(sdist: tarfile.TarFile, tracked: list[str]) -> None:
    inside = {str(Path(*Path(name).parts[1:])) for name in sdist.getnames()}
    assert sorted(set(tracked) - inside) == []


def test_the_metadata_say_who_made_it_and_where_it_lives(metadata: Message) -> None:
    assert metadata["Author"] == "the Headless Passkey authors"
    urls = dict(url.split(", ", 1) for url in metadata.get_all("Project-URL", []))
    assert set(urls) == {"Source", "Documentation", "Changelog", "Issues", "Security"}
    assert all(url.startswith("https://") for url in urls.values())


@pytest.mark.parametrize(
    "path",
    [".ci/run", ".pre-commit-config.yaml", ".github/workflows/nightly.yml", ".github/workflows/release.yml"],
)
def test_what_checks_a_change_elsewhere_calls_targets_that_there_are(path: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    text = (ROOT / path).read_text(encoding="utf-8")
    called = set(re.findall(r"\bmake (?:--silent )?([a-z][a-z-]*)", text))
    for listed in re.findall(r"target: \[(.*)\]", text):
        called |= set(listed.split(", "))
    assert called
    assert called <= targets
