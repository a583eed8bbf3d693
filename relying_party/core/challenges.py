"""What the server remembers between begin and complete: a challenge with everything it was made for.

A record is handed out once and not after its time; asking for it is what deletes it, before anything is
verified. Only its opaque name leaves the server. The records live in memory, so that a stranger who begins
ceremonies writes nothing to disk; a restart ends the ceremonies under way and their clients begin again. A
service of several processes keeps them where all of them reach: `ChallengeStore` is what that place must do.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from relying_party.core.callers import Caller
from relying_party.core.credentials import User
from relying_party.core.encoding import base64url
from relying_party.errors import CeremonyGone, RateLimited

NAME_SIZE: Final = 24
MAX_RECORDS: Final = 20_000
SWEEP_PAUSE: Final = 1.0  # seconds: looking through all records may not be asked for with each request


class Purpose(StrEnum):
    """What a ceremony is for; what was begun for one ends for no other."""

    REGISTRATION = "registration"
    SIGN_IN = "sign-in"
    STEP_UP = "step-up"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeRecord:
    """A ceremony under way, of one of the two kinds below."""

    purpose: Purpose
    challenge: bytes = field(repr=False)  # 32 bytes
    caller: Caller
    user_verification: str  # as in the options; what is verified is what was asked for
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationRecord(ChallengeRecord):
    user: User
    adds_to_user: bool  # the user exists: this registration needs that user's session
    algorithms: tuple[int, ...]  # COSE, as offered
    extensions: frozenset[str]  # client extensions, as asked for: no other output is looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationRecord(ChallengeRecord):
    expected: bytes | None = field(repr=False)  # the handle of the user who was asked for, if any
    allowed: tuple[bytes, ...] = field(repr=False)  # credential ids; empty: any discoverable one
    session_id: bytes | None = field(default=None, repr=False)  # of the session that steps up


class ChallengeStore(Protocol):
    """Where the ceremonies under way are kept."""

    async def add(self, record: ChallengeRecord, *, name: bytes, now: float) -> str:
        """Remember `record` under a fresh random `name`; `RateLimited` when there are too many."""

    async def take(self, name: str, *, now: float) -> ChallengeRecord:
        """The record, which is gone afterwards; `CeremonyGone` when it already was.

        Of two who take it at once, one gets it.
        """


class Challenges:
    """The ceremonies under way, by name, in this process."""

    def __init__(self, *, most: int = MAX_RECORDS) -> None:
        self._records: dict[str, ChallengeRecord] = {}
        self._most = most
        self._swept_at = -math.inf

    def __len__(self) -> int:
        return len(self._records)

    async def add(self, record: ChallengeRecord, *, name: bytes, now: float) -> str:
        """Remember `record` under a fresh random `name`; `RateLimited` when there are too many."""
        if len(self._records) >= self._most and abs(now - self._swept_at) >= SWEEP_PAUSE:
            self._records = {key: kept for key, kept in self._records.items() if kept.expires_at > now}
            self._swept_at = now
        if len(self._records) >= self._most:
            raise RateLimited(retry_after=60)
        text = base64url(name)
        self._records[text] = record
        return text

    async def take(self, name: str, *, now: float) -> ChallengeRecord:
        """The record, which is gone afterwards; `CeremonyGone` when it already was."""
        record = self._records.pop(name, None)
        if record is None or record.expires_at <= now:
            raise CeremonyGone("begin again")
        return record
