"""The software phone's files, FOR DEMONSTRATIONS AND TESTS ONLY: JSON of mode 0600, with private keys in it.

They are parsed strictly and in bounded size, and replaced atomically. Whoever changes one holds its lock
(`private_file.lock_within`) from reading to writing. A file can be sealed with a passphrase (`seal`).
"""

from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from companion_push.companion.seal import Sealed, SealKey
from headless_passkey.errors import SetupError, SetupReason
from headless_passkey.process.private_file import read_private, write_private
from program_parts.json_text import without_mark

VERSION: Final = 1

_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Versioned(Protocol):
    """The content of a file, which says its version."""

    @property
    def version(self) -> int: ...


_T = TypeVar("_T", bound=Versioned)
_K = TypeVar("_K")


class _Form(msgspec.Struct, frozen=True):
    """What tells a sealed file from a plain one."""

    seal: str | None = None


def read_file(path: Path, kind: type[_T], *, what: str, limit: int, key: SealKey | None = None) -> _T | None:
    """Read a file; None when there is none, `SetupError` when it cannot be used.

    what: its name; limit: bytes. key: for a sealed file; a plain one is refused with it, and a sealed one without.
    """
    content = read_private(path.resolve(), limit=limit)
    if content is None:
        return None
    is_sealed = _decode(path, content, _Form, what).seal is not None
    if is_sealed and key is None:
        raise SetupError(f"{path} is sealed with a passphrase", reason=SetupReason.STATE_UNREADABLE)
    if key is not None and not is_sealed:
        raise SetupError(
            f"{path} is not sealed, although it was: another file is in its place",
            reason=SetupReason.STATE_DAMAGED,
        )
    if key is not None:
        content = _unsealed(path, _decode(path, content, Sealed, what), key)
    file = _decode(path, content, kind, what)
    _check_version(path, file)
    return file


def sealed_file(path: Path, *, what: str, limit: int) -> Sealed | None:
    """The sealed file at `path`; None when there is none, or it is plain. `SetupError` when it cannot be used."""
    content = read_private(path.resolve(), limit=limit)
    if content is None or _decode(path, content, _Form, what).seal is None:
        return None
    sealed = _decode(path, content, Sealed, what)
    _check_version(path, sealed)
    return sealed


def write_file(path: Path, file: Versioned, *, key: SealKey | None = None, warning: str = "") -> None:
    """Write a file, sealed where there is a key. warning: to be read in a sealed one."""
    if key is not None:
        file = key.seal(msgspec.json.encode(file), version=file.version, warning=warning)
    write_private(path.resolve(), msgspec.json.format(msgspec.json.encode(file)) + b"\n")


def _unsealed(path: Path, sealed: Sealed, key: SealKey) -> bytes:
    _check_version(path, sealed)
    if not key.fits(sealed):
        raise SetupError(
            f"{path} is sealed with another passphrase than it was: another file is in its place, or somebody has sealed it anew",
            reason=SetupReason.STATE_UNREADABLE,
        )
    content = key.open(sealed)
    if content is None:
        raise SetupError(
            f"{path} was changed since it was sealed, and opens no more", reason=SetupReason.STATE_DAMAGED
        )
    return content


def _decode(path: Path, content: bytes, kind: type[_K], what: str) -> _K:
    try:
        return msgspec.json.decode(without_mark(content), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # not the decoder's message: it may quote a key
        raise SetupError(f"{path} is not a file of {what}", reason=SetupReason.STATE_DAMAGED) from error


def _check_version(path: Path, file: Versioned) -> None:
    if file.version != VERSION:
        raise SetupError(
            f"{path} has version {file.version}, this program knows {VERSION}",
            reason=SetupReason.STATE_INCOMPATIBLE,
        )


def check_private_key(path: Path, private_key: bytes) -> int:
    """The scalar of a P-256 private key in the file at `path`; `SetupError` when it is none. private_key: 32 bytes."""
    scalar = int.from_bytes(private_key, "big")
    if not 0 < scalar < _P256_ORDER:
        raise SetupError(f"{path} holds an invalid private key", reason=SetupReason.STATE_DAMAGED)
    return scalar
