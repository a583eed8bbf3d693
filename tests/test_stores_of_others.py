"""Stores and locks of the servers are files of their own user alone, as the clients' files are."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import companion_push.relay.database
import headless_passkey.errors
import relying_party.errors
import relying_party.store.sqlite

Refused = (headless_passkey.errors.SetupError, relying_party.errors.SetupError)
SOMEBODY = 12345  # a user ID

OPEN: dict[str, Callable[[Path], object]] = {
    "relay": companion_push.relay.database._make_private_file,
    "relying party": relying_party.store.sqlite._make_private,
}
LOCK: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    "relay": companion_push.relay.database.sole_user,
    "relying party": lambda path: relying_party.store.sqlite.locked(path, shared=True),
}


def open_to_others(path: Path, mode: int) -> None:
    path.touch()
    path.chmod(mode)


def of_somebody(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    path.touch(mode=0o600)
    os.chown(path, SOMEBODY, SOMEBODY)


def a_link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    elsewhere.touch(mode=0o600)
    path.symlink_to(elsewhere)


def a_pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


MADE: dict[str, Callable[[Path], None]] = {
    "0666": lambda path: open_to_others(path, 0o666),
    "0640": lambda path: open_to_others(path, 0o640),
    "0604": lambda path: open_to_others(path, 0o604),
    "of somebody else": of_somebody,
    "a link": a_link,
    "a pipe": a_pipe,
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
@pytest.mark.parametrize("end", ["", "-wal", "-shm"], ids=["store", "log", "index"])
@pytest.mark.parametrize("program", OPEN)
def test_a_store_that_others_may_use_is_refused(
    tmp_path: Path, program: str, end: str, made: Callable[[Path], None]
) -> None:
    made(tmp_path / f"store.sqlite{end}")
    with pytest.raises(Refused):
        OPEN[program](tmp_path / "store.sqlite")


@pytest.mark.threat("T12")
@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
@pytest.mark.parametrize("program", LOCK)
def test_a_lock_that_others_may_hold_is_refused(
    tmp_path: Path, program: str, made: Callable[[Path], None]
) -> None:
    made(tmp_path / "store.sqlite.lock")
    with pytest.raises(Refused), LOCK[program](tmp_path / "store.sqlite"):
        pass


@pytest.mark.threat("T12")
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o722], ids=oct)
@pytest.mark.parametrize("program", OPEN)
def test_a_store_in_a_folder_that_others_may_write_is_refused(
    tmp_path: Path, program: str, mode: int
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(Refused) as refused:
        OPEN[program](folder / "store.sqlite")
    assert f"chmod go-w {folder}" in f"{refused.value} {getattr(refused.value, 'advice', '')}"
    assert list(folder.iterdir()) == []


@pytest.mark.threat("T12")
@pytest.mark.parametrize("program", OPEN)
def test_a_store_in_a_folder_of_somebody_else_is_refused(tmp_path: Path, program: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives folders away")
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, SOMEBODY, SOMEBODY)
    with pytest.raises(Refused, match="belongs to another user"):
        OPEN[program](folder / "store.sqlite")


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o1777], ids=oct)
@pytest.mark.parametrize("program", OPEN)
def test_a_store_in_a_folder_that_others_may_read_is_opened(tmp_path: Path, program: str, mode: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)
    OPEN[program](folder / "store.sqlite")


@pytest.mark.parametrize("program", OPEN)
def test_a_store_of_ones_own_is_opened_again(tmp_path: Path, program: str) -> None:
    for _ in range(2):
        OPEN[program](tmp_path / "store.sqlite")
        with LOCK[program](tmp_path / "store.sqlite"):
            pass
