"""Opens the software phone's file of passkeys with its passphrase, and seals it with a new one.

A passphrase comes from a file or a descriptor, or is asked for at the terminal, which does not show it. Nothing is written before
the right one is there.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Final

from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.seal import LONGEST, SHORTEST, Sealed, SealKey, parse_passphrase
from headless_passkey.errors import NotApproved, Outcome, SetupError, SetupReason, UsageError
from headless_passkey.process.terminal import Terminal

ATTEMPTS: Final = 3  # at the terminal; each takes a third of a second

OpenTerminal = Callable[[], AbstractContextManager[Terminal]]


async def open_file(file: CredentialFile, given: str | None, terminal: OpenTerminal) -> CredentialFile:
    """The file with the key that opens it; a plain file as it is.

    given: the passphrase; None asks for it, where the file is sealed. `SetupError` for a wrong one, for one that is given for a
    file that is not sealed, and where the file cannot be used.
    """
    sealed = file.sealed()
    if sealed is None:
        if given is not None:
            raise SetupError(
                f"{file.path} is not sealed, and a passphrase was given for it",
                reason=SetupReason.STATE_DAMAGED,
                advice="if it is your file, `companion-push phone --seal` seals it",
            )
        return file
    if given is not None:
        key = await _derive(given, sealed)
        if key is None:
            raise _wrong(file.path)
        return replace(file, key=key)
    with terminal() as asked:
        for _ in range(ATTEMPTS):
            typed = await asked.ask(f"Passphrase of {file.path}:", parse_passphrase, hidden=True)
            if typed is None:
                raise _declined()
            key = await _derive(typed, sealed)
            if key is not None:
                return replace(file, key=key)
            await asked.show("That is not its passphrase.")
    raise _wrong(file.path)


async def new_key(given: str | None, terminal: OpenTerminal) -> SealKey:
    """The key of a new passphrase. given: the passphrase; None asks for it, twice."""
    passphrase = given
    if passphrase is None:
        with terminal() as asked:
            passphrase = await _ask_new(asked)
    if _new_passphrase(passphrase) is None:
        raise UsageError(_BOUNDS)
    return await asyncio.to_thread(SealKey.derive, passphrase)


async def _ask_new(terminal: Terminal) -> str:
    while True:
        first = await terminal.ask("New passphrase:", _new_passphrase, slip=_BOUNDS, hidden=True)
        again = None if first is None else await terminal.ask("Again:", parse_passphrase, hidden=True)
        if first is None or again is None:
            raise _declined()
        if first == again:
            return first
        await terminal.show("These are two passphrases.")


_BOUNDS: Final = f"A new passphrase has {SHORTEST} characters or more, and {LONGEST} bytes at the most."


def _new_passphrase(text: str) -> str | None:
    passphrase = parse_passphrase(text)
    return passphrase if passphrase is not None and len(passphrase) >= SHORTEST else None


async def _derive(passphrase: str, sealed: Sealed) -> SealKey | None:
    """The key that opens the sealed file; None when the passphrase is another one."""
    key = await asyncio.to_thread(SealKey.derive, passphrase, sealed.salt)
    return key if key.fits(sealed) else None


def _wrong(path: Path) -> SetupError:
    return SetupError(f"that is not the passphrase of {path}", reason=SetupReason.STATE_UNREADABLE)


def _declined() -> NotApproved:
    return NotApproved(Outcome.DECLINED, "no passphrase was given; nothing has changed")
