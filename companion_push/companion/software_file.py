"""The software phone's files, FOR DEMONSTRATIONS AND TESTS ONLY: JSON of mode 0600, with private keys in it.

They are parsed strictly and in bounded size, and replaced atomically. Whoever changes one holds its lock
(`private_file.lock_within`) from reading to writing.
"""

from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from headless_passkey.errors import SetupError, SetupReason
from headless_passkey.process.private_file import read_private, write_private
from headless_passkey.text.json_text import without_mark

VERSION: Final = 1

_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Versioned(Protocol):
    """The content of a file, which says its version."""

    @property
    def version(self) -> int: ...


_T = TypeVar("_T", bound=Versioned)


def read_file(path: Path, kind: type[_T], *, what: str, limit: int) -> _T | None:
    """Read a file; None when there is none, `SetupError` when it cannot be used. what: its name; limit: bytes."""
    content = read_private(path.resolve(), limit=limit)
    if content is None:
        return None
    try:
        file = msgspec.json.decode(without_mark(content), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # not the decoder's message: it may quote a key
        raise SetupError(f"{path} is not a file of {what}", reason=SetupReason.STATE_DAMAGED) from error
    if file.version != VERSION:
        raise SetupError(
            f"{path} has version {file.version}, this program knows {VERSION}",
            reason=SetupReason.STATE_INCOMPATIBLE,
        )
    return file


def write_file(path: Path, file: Versioned) -> None:
    write_private(path.resolve(), msgspec.json.format(msgspec.json.encode(file)) + b"\n")


def check_private_key(path: Path, private_key: bytes) -> int:
    """The scalar of a P-256 private key in the file at `path`; `SetupError` when it is none. private_key: 32 bytes."""
    scalar = int.from_bytes(private_key, "big")
    if not 0 < scalar < _P256_ORDER:
        raise SetupError(f"{path} holds an invalid private key", reason=SetupReason.STATE_DAMAGED)
    return scalar
