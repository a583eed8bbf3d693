"""A device's keys for relying parties: one for each origin, made at first use, in a file of mode 0600.

::

    STATE/key-login.example-3f8a61d20c94.json

The key in the account's ring speaks to the relay only. If a device had this one key everywhere, a relay and relying
parties could tell by its thumbprint that they serve the same device. The keys are random and independent: hardware keys
cannot be derived from each other, and a certificate by the ring's key would link them again.

A program whose keys are elsewhere, such as in a TPM, gives an `OriginKeys` of its own to `Device`, `Conduit.connect` and
`Session.load`.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

from headless_passkey.account.device_files import (
    incompatible,
    lock_within,
    mend_names,
    private_directory,
    read_private,
    remove_private,
    write_private,
)
from headless_passkey.errors import HeadlessPasskeyError, SetupError, SetupReason
from headless_passkey.mends import setup_error
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.text.members import file_members
from headless_passkey.trust.signing import SigningKey, SoftwareSigningKey
from program_parts.base64url import base64url
from program_parts.json_text import decode_json

PREFIX: Final = "key-"
_MAX_FILE: Final = 4096  # bytes
_FORMAT: Final = 1

logger = logging.getLogger(__name__)


class OriginKeys(Protocol):
    """A device's signing keys, one for each relying party's origin."""

    async def key(self, origin: str) -> SigningKey:
        """Get the key for an origin, always the same one; make it at first use."""


class KeyStore:
    """The keys in one state directory."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def path(self, origin: str) -> Path:
        """The file of the key for an origin."""
        host = BaseUrl.parse(origin).host.replace(":", ".")[:64]
        return self.state / f"{PREFIX}{host}-{hashlib.sha256(origin.encode()).hexdigest()[:12]}.json"

    async def key(self, origin: str) -> SoftwareSigningKey:
        """Get the key for an origin; the first call makes it, once for all processes."""
        key = self.kept(origin)
        if key is None:
            path = self.path(origin)
            private_directory(self.state)
            async with lock_within(path):
                key = self.kept(origin)
                if key is None:
                    key = SoftwareSigningKey.generate()
                    values = {"format": _FORMAT, "origin": origin, "key": base64url(key.to_bytes())}
                    write_private(path, json.dumps(values, indent=1).encode())
                    logger.info("made a key for a relying party")
        return key

    def kept(self, origin: str) -> SoftwareSigningKey | None:
        """Get the key for an origin; None where none was made yet."""
        path = self.path(origin)
        kept = _read(path)
        if kept is None:
            return None
        if kept[0] != origin:
            raise _damaged(path)
        return kept[1]

    def all(
        self, on_damaged: Callable[[HeadlessPasskeyError], None] | None = None
    ) -> dict[str, SoftwareSigningKey]:
        """Read all keys, by origin. on_damaged: called for each file that is not in order."""
        keys = {}
        for path in self._files():
            try:
                kept = _read(path)
            except HeadlessPasskeyError as error:
                logger.info("a key is passed over: %s", error.explain())
                if on_damaged is not None:
                    on_damaged(error)
            else:
                if kept is not None and self.path(kept[0]) == path:
                    keys[kept[0]] = kept[1]
        return keys

    def remove_all(self) -> None:
        """Remove all keys, also those whose files are not in order."""
        for path in self._files():
            remove_private(path)

    def _files(self) -> Iterator[Path]:
        try:
            yield from sorted(self.state.glob(f"{PREFIX}*.json"))
        except OSError as error:
            logger.info("the state directory cannot be listed: %s", error.strerror)


def is_key_file(path: Path) -> bool:
    """Whether a file of a state directory holds such a key, or is its lock or temporary file."""
    return path.name.removeprefix(".").startswith(PREFIX)


def _read(path: Path) -> tuple[str, SoftwareSigningKey] | None:
    """Read a file's origin and key; None without a file."""
    content = read_private(path, limit=_MAX_FILE, case="session")
    if content is None:
        return None
    try:
        members = file_members(decode_json(content), path.name)
        if members.integer("format") != _FORMAT:
            raise incompatible(path)
        origin = BaseUrl.parse(members.text("origin", 1024)).origin
        return origin, SoftwareSigningKey.from_bytes(members.octets("key", 32))
    except (ValueError, HeadlessPasskeyError) as error:
        if isinstance(error, SetupError):
            raise
        raise _damaged(path) from error


def _damaged(path: Path) -> SetupError:
    return setup_error(f"{path} is damaged", SetupReason.STATE_DAMAGED, "session", **mend_names(path))
