"""What the server remembers between begin and complete: a challenge with everything it was made for.

A record is handed out once and not after its time; asking for it is what deletes it, before anything is
verified. Only its opaque name leaves the server. The records live in memory, so that a stranger who begins
ceremonies writes nothing to disk; a restart ends the ceremonies under way and their clients begin again.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from relying_party.encoding import base64url
from relying_party.errors import CeremonyGone, RateLimited

NAME_SIZE: Final = 24
MOST_RECORDS: Final = 20_000


class ClientKind(StrEnum):
    """Who writes the client data: a browser, or a device that is its own WebAuthn client."""

    WEB = "web"
    DEVICE = "device"


class Purpose(StrEnum):
    CREATE = "create"
    GET = "get"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sends a request."""

    kind: ClientKind
    key_thumbprint: str | None = None  # RFC 7638, of the device's key; None for a browser


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeRecord:
    """One ceremony under way."""

    challenge: bytes = field(repr=False)  # 32 bytes
    purpose: Purpose
    caller: Caller
    user_handle: bytes | None = field(default=None, repr=False)  # who registers, or who is expected
    user_name: str | None = field(default=None, repr=False)
    display_name: str | None = field(default=None, repr=False)
    adds_to_user: bool = False  # the user exists: this registration needs that user's session
    algorithms: tuple[int, ...] = ()  # COSE, as offered
    extensions: frozenset[str] = frozenset()  # client extensions, as asked for
    allowed: tuple[bytes, ...] = ()  # credential ids; empty: any discoverable one
    expires_at: float


class Challenges:
    """The ceremonies under way, by name."""

    def __init__(self, *, most: int = MOST_RECORDS) -> None:
        self._records: dict[str, ChallengeRecord] = {}
        self._most = most

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: ChallengeRecord, *, name: bytes, now: float) -> str:
        """Remember `record` under a fresh random `name`; `RateLimited` when there are too many."""
        if len(self._records) >= self._most:
            self._records = {key: kept for key, kept in self._records.items() if kept.expires_at > now}
        if len(self._records) >= self._most:
            raise RateLimited(retry_after=60)
        text = base64url(name)
        self._records[text] = record
        return text

    def take(self, name: str, *, now: float) -> ChallengeRecord:
        """The record, which is gone afterwards; `CeremonyGone` when it already was."""
        record = self._records.pop(name, None)
        if record is None or record.expires_at <= now:
            raise CeremonyGone("the ceremony is unknown, was used, or has expired")
        return record
