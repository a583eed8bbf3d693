"""Who may use the page: a link opens it once, and the browser that came by the link has a session.

The link holds a secret in its fragment, which browsers send to nobody. Only its hash is on disk, in the companion's state
directory: whoever may write there makes a link, also while the page runs (`companion page --link`), and it needs no
signal and no socket. A session is two secrets. The cookie is sent to every port of a host (RFC 6265 §8.5), so also to what another
user of this machine serves there; the key is in the browser's storage, which is of one origin with its port.
"""

import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headless_passkey.errors import HeadlessPasskeyError
from headless_passkey.process.private_file import read_private, remove_private, write_private
from headless_passkey.text.members import file_members
from program_parts.base64url import base64url
from program_parts.json_text import decode_json

LINK_SECONDS: Final = 300
SESSION_SECONDS: Final = 12 * 3600
MAX_SESSIONS: Final = 16  # beyond them the oldest ends
MAX_SECRET: Final = 64  # characters
_SIZE: Final = 32  # bytes of a secret
_LIMIT: Final = 512  # bytes of the link's file

logger = logging.getLogger(__name__)


def new_link(file: Path, *, now: float) -> str:
    """Make the secret of a link that opens the page once, in place of the one before. now: Unix seconds."""
    secret = base64url(secrets.token_bytes(_SIZE))
    write_private(file, json.dumps({"hash": _hash(secret), "expires": int(now) + LINK_SECONDS}).encode())
    return secret


def take_link(file: Path, secret: str, *, now: float) -> bool:
    """Whether `secret` is that of the link, which is used up then. A wrong one uses up nothing."""
    try:
        content = read_private(file, limit=_LIMIT)
        if content is None:
            return False
        link = file_members(decode_json(content), "the link")
        right = hmac.compare_digest(link.text("hash"), _hash(secret))
        fresh = 0 < link.integer("expires") - now <= LINK_SECONDS
        if right or not fresh:
            remove_private(file)
    except (HeadlessPasskeyError, ValueError) as error:
        logger.warning("the link's file is of no use: %s", type(error).__name__)
        return False
    return right and fresh


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """A browser that may use the page."""

    cookie: str = field(repr=False)
    key: str = field(repr=False)
    ends: float  # seconds, of a clock that only goes on
    held: int = 0  # calls that wait for news


class Sessions:
    """The sessions of one page; they end with its program."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: dict[str, Session] = {}  # by the hash of the cookie, the oldest first

    def begin(self) -> Session:
        """Begin a session, in place of the oldest where there are too many."""
        self._forget_ended()
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        cookie, key = (base64url(secrets.token_bytes(_SIZE)) for _ in range(2))
        session = Session(cookie=cookie, key=key, ends=self._clock() + SESSION_SECONDS)
        self._sessions[_hash(cookie)] = session
        return session

    def find(self, cookie: str, key: str) -> Session | None:
        """Find the session that has both secrets."""
        self._forget_ended()
        session = self._sessions.get(_hash(cookie))
        if session is None or not hmac.compare_digest(_hash(key), _hash(session.key)):
            return None
        return session

    def end(self, session: Session) -> None:
        self._sessions.pop(_hash(session.cookie), None)

    def _forget_ended(self) -> None:
        now = self._clock()
        for name, session in tuple(self._sessions.items()):
            if session.ends <= now:
                del self._sessions[name]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
