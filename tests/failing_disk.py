"""A disk that is full, or fails to sync, for programs that a test starts; the folder is an ordinary one."""

import atexit
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import pytest

SOURCE: Final = Path(__file__).with_suffix(".c")


class FailingDisk:
    """The disk of a folder, for the programs that are started with its environment: well, until a test says otherwise."""

    def __init__(self, folder: Path) -> None:
        """The test is left out where there is no compiler."""
        if shutil.which("cc") is None:
            pytest.skip("there is no C compiler for a disk that fails")
        self._file = folder / "disk"
        self._file.write_bytes(bytes(3))

    @property
    def environment(self) -> Mapping[str, str]:
        return {"LD_PRELOAD": str(_library()), "FAILING_DISK": str(self._file)}

    @contextmanager
    def full(self) -> Iterator[None]:
        """No file becomes longer meanwhile."""
        self._set(0, 1)
        try:
            yield
        finally:
            self._set(0, 0)

    def fails_to_sync_logs(self, times: int) -> None:
        self._set(1, times)

    def fails_to_sync_files(self, times: int) -> None:
        """All but logs."""
        self._set(2, times)

    def _set(self, fault: int, value: int) -> None:
        with self._file.open("r+b") as file:
            file.seek(fault)
            file.write(bytes([value]))


@cache
def _library() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="failing-disk-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = folder / "disk.so"
    subprocess.run(
        ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", made, SOURCE, "-ldl"], check=True
    )
    return made
