"""What `make recording` leaves out of the recording of a demo, and the picture that it has made."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORDING = runpy.run_path(str(ROOT / "scripts" / "recording"), run_name="recording")


def cast(*events: tuple[float, str]) -> str:
    lines = [{"version": 2, "width": 80, "height": 24}, *([at, "o", data] for at, data in events)]
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def test_frames_in_which_only_the_spinner_turns_are_left_out_and_pauses_are_cut() -> None:
    recorded = cast((0.5, "⠋ \x1b[1mstarts"), (0.6, "⠙ \x1b[2mstarts"), (9.0, "⠹ runs"), (9.25, "⠹ ends"))
    assert RECORDING["shortened"](recorded) == cast(
        (0.0, "⠋ \x1b[1mstarts"), (1.0, "⠹ runs"), (1.25, "⠹ ends")
    )


def test_the_picture_loads_nothing_and_is_small() -> None:
    picture = RECORDING["PICTURE"].read_text(encoding="utf-8")
    assert len(picture.encode()) <= RECORDING["MOST"]
    assert RECORDING["LOADS"].search(picture) is None
    for loads in ('<image href="https://a.example/x.png"/>', "src: url(https://a.example/f)", "<script>"):
        assert RECORDING["LOADS"].search(loads) is not None


def test_without_its_tools_it_is_not_run(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts" / "recording", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 77
    assert ran.stdout.startswith("not run: ")
