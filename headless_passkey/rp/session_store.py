"""A device's stored sessions: one file for each relying party in its state directory, mode 0600.

::

    STATE/session-login.example-3f8a61d20c94.json

A file holds the tokens, and the name of the key that they are bound to: the device's key for the relying party's origin
(`headless_passkey.rp.key_store`). A change holds the file's lock from before the request to the
relying party until the write, so that no two processes use the same refresh token. A write is atomic, and durable before
its tokens are used (docs/protocol/relying-party.md, Refreshing).
"""

import hashlib
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

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
from headless_passkey.rp.conduit import OpenedSession, service_origin
from headless_passkey.text.members import file_members
from program_parts.json_text import decode_json

PREFIX: Final = "session-"
LOCK_SECONDS: Final = 60.0  # that others may hold the lock: longer than the slowest refresh
MAX_FILE: Final = 64 * 1024  # bytes
_FORMAT: Final = 2
_PROBE: Final = 32 * 1024  # bytes, more than what a sign-in stores

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSession:
    """A session as it is stored."""

    relying_party: str  # its base URL
    opened: OpenedSession
    key_name: str  # thumbprint (RFC 7638) of the key that the tokens are bound to
    told: tuple[str, ...] = ()  # origins of services that the owner named
    received_at: int  # Unix seconds by our own clock

    @property
    def audience(self) -> tuple[str, ...]:
        """The origins that may get the token: the relying party, and the services that it or the owner named."""
        own = BaseUrl.parse(self.relying_party).origin
        return tuple(dict.fromkeys((own, *self.opened.audience, *self.told)))

    def public(self) -> dict[str, Any]:
        """The session without tokens and key."""
        return {
            **self.opened.to_json(),
            "token": None,
            "refresh_token": None,
            "relying_party": self.relying_party,
            "audience": list(self.audience),
            "key": self.key_name,
        }


class SessionStore:
    """The sessions in one state directory."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def path(self, relying_party: str) -> Path:
        """The file of a relying party's session. relying_party: its base URL."""
        host = BaseUrl.parse(relying_party).host.replace(":", ".")[:64]
        return self.state / f"{PREFIX}{host}-{hashlib.sha256(relying_party.encode()).hexdigest()[:12]}.json"

    def read(self, relying_party: str) -> KeptSession | None:
        """Read the session of a relying party; None without one."""
        return _read(self.path(relying_party))

    def all(self, on_damaged: Callable[[HeadlessPasskeyError], None] | None = None) -> list[KeptSession]:
        """Read all sessions, by relying party. on_damaged: called for each file that is damaged."""
        kept = []
        for path in self._files():
            try:
                session = _read(path)
            except HeadlessPasskeyError as error:
                logger.info("a session is passed over: %s", error.explain())
                if on_damaged is not None:
                    on_damaged(error)
            else:
                if session is not None and self.path(session.relying_party) == path:
                    kept.append(session)
        return sorted(kept, key=lambda session: session.relying_party)

    def prepare(self) -> None:
        """Make the state directory, or refuse one that others may enter or that has no room; called before a user is asked.

        A sign-in that could not be stored would end the earlier session nevertheless.
        """
        private_directory(self.state)
        probe = self.state / f".{PREFIX}{secrets.token_hex(8)}"
        try:
            write_private(probe, bytes(_PROBE))
        finally:
            remove_private(probe)

    def write(self, session: KeptSession) -> Path:
        """Write a session in place of the earlier one; returns its file. The caller holds its lock."""
        private_directory(self.state)
        values = {
            "format": _FORMAT,
            "relying_party": session.relying_party,
            "key_name": session.key_name,
            "told": list(session.told),
            "received_at": session.received_at,
            "session": session.opened.to_json(),
        }
        path = self.path(session.relying_party)
        write_private(path, json.dumps(values, indent=1).encode())
        return path

    def remove(self, relying_party: str) -> None:
        """Remove the session of a relying party, if there is one. The caller holds its lock."""
        path = self.path(relying_party)
        if path.parent.is_dir():
            remove_private(path)

    def remove_all(self) -> list[str]:
        """Remove all sessions, whose keys have been removed; returns the relying parties of those that can be read.

        It waits for no lock: without its key no process can refresh a session.
        """
        gone = [session.relying_party for session in self.all()]
        for path in self._files():
            remove_private(path)
        return gone

    @asynccontextmanager
    async def locked(self, relying_party: str, *, seconds: float = LOCK_SECONDS) -> AsyncIterator[None]:
        """Lock the session of a relying party against other processes and tasks."""
        private_directory(self.state)
        async with lock_within(self.path(relying_party), seconds):
            yield

    def _files(self) -> Iterator[Path]:
        try:
            yield from sorted(self.state.glob(f"{PREFIX}*.json"))
        except OSError as error:
            logger.info("the state directory cannot be listed: %s", error.strerror)


def is_session_file(path: Path) -> bool:
    """Whether a file of a state directory is a session, its lock, or its temporary file."""
    return path.name.removeprefix(".").startswith(PREFIX)


def _read(path: Path) -> KeptSession | None:
    content = read_private(path, limit=MAX_FILE, case="session")
    if content is None:
        return None
    try:
        members = file_members(decode_json(content), path.name)
        if members.integer("format") != _FORMAT:
            raise incompatible(path, "session")
        session = KeptSession(
            relying_party=str(BaseUrl.parse(members.text("relying_party", 1024))),
            opened=OpenedSession.parse(members.object("session")),
            key_name=members.text("key_name", 64),
            told=tuple(service_origin(str(origin)) for origin in members.items("told", 64)),
            received_at=members.integer("received_at"),
        )
    except (ValueError, HeadlessPasskeyError) as error:
        if isinstance(error, SetupError):
            raise
        raise _damaged(path) from error
    return session


def _damaged(path: Path) -> SetupError:
    return setup_error(f"{path} is damaged", SetupReason.STATE_DAMAGED, "session", **mend_names(path))
