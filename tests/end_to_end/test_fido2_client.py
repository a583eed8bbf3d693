"""The example for python-fido2, as its readers run it."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "fido2_client.py"


def test_a_program_for_python_fido2_makes_and_uses_a_credential_on_a_phone() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.split()[0] for line in said if "verified by the server" in line] == [
        "made:",
        "used:",
        "used:",
    ]
    for each in ("request-sent", "confirm on your phone", "completed"):
        assert len([line for line in said if each in line]) == 3
    assert not done.stderr
