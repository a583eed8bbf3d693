"""What continuous integration runs ends as its steps do, also those that run beside others."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# says what it was called with; ends with the status of the line in `statuses` that begins with it
STEP = """#!/bin/sh
echo "said by $(basename "$0") $*"
echo "$(basename "$0") $*" >>"$STEPS/called"
if grep -qx "$(basename "$0") $* waits" "$STEPS/statuses"; then echo $$ >"$STEPS/waiting"; exec sleep 600; fi
while read -r name words status; do
    [ "$name $words" = "$(basename "$0") $1" ] || continue
    while grep -q waits "$STEPS/statuses" && [ ! -e "$STEPS/waiting" ]; do sleep 0.02; done
    exit "$status"
done <"$STEPS/statuses"
"""


def ci(folder: Path, *statuses: str) -> subprocess.CompletedProcess[str]:
    """`.ci/run` with other programs in the place of its steps."""
    for name in (".ci/run", "steps/make", "scripts/install-test-packages", "scripts/ble-test", "docker/test"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(STEP)
        path.chmod(0o700)
    shutil.copy(ROOT / ".ci/run", folder / ".ci/run")
    (folder / "statuses").write_text("".join(f"{line}\n" for line in statuses))
    environment = {
        **os.environ,
        "STEPS": str(folder),
        "PATH": f"{folder}/steps:{os.environ['PATH']}",
        "TMPDIR": str(folder),
    }
    return subprocess.run([folder / ".ci/run"], env=environment, capture_output=True, text=True, check=False)


def called(folder: Path) -> list[str]:
    return (folder / "called").read_text().splitlines()


def test_all_is_well_when_every_step_is(tmp_path: Path) -> None:
    done = ci(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == sorted(f"said by {line}" for line in called(tmp_path))
    assert {"make test-set-up", "make test coverage", "test --short", "ble-test -m short"} <= set(
        called(tmp_path)
    )
    assert list(tmp_path.glob("tmp.*")) == []


@pytest.mark.parametrize(
    "step",
    [
        "make .venv/check.done",
        "make test-set-up",
        "make lint",
        "make test",
        "make fuzz-short",
        "make site",
        "test --short",
        "ble-test -m",
    ],
)
def test_a_step_that_fails_fails_the_run_with_its_status(step: str, tmp_path: Path) -> None:
    done = ci(tmp_path, f"{step} 41")
    assert done.returncode == 41
    assert f"said by {step}" in done.stdout


@pytest.mark.parametrize("step", ["test --short", "ble-test -m"])
def test_what_cannot_be_run_here_is_named_and_fails_nothing(step: str, tmp_path: Path) -> None:
    done = ci(tmp_path, f"{step} 77")
    assert done.returncode == 0
    assert "WARNING" in done.stdout
    assert "ble-test -m short" in called(tmp_path)


def test_what_runs_beside_a_step_that_fails_is_ended(tmp_path: Path) -> None:
    done = ci(tmp_path, "test --short waits", "make site 41")
    assert done.returncode == 41
    waiting = int((tmp_path / "waiting").read_text())
    assert not Path(f"/proc/{waiting}").exists()
