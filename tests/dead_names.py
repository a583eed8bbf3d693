"""Name servers that never answer, for programs that a test starts: of every name that ends in .dead.example."""

import atexit
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import pytest

SOURCE: Final = Path(__file__).with_suffix(".c")


def dead_names() -> Mapping[str, str]:
    """The environment of a program that meets such names. The test is left out where there is no compiler."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler for name servers that do not answer")
    return {"LD_PRELOAD": str(_library())}


@cache
def _library() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dead-names-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = folder / "names.so"
    subprocess.run(
        ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", made, SOURCE, "-ldl"], check=True
    )
    return made
