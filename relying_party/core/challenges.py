"""Challenge records: the server's state of a ceremony between begin and complete.

A record is single use and expires; `take` deletes it before anything is verified, so that a challenge cannot be
replayed. Only its opaque name leaves the server. Records are in memory, so that strangers who begin ceremonies cause no
writes to disk; a restart ends the running ceremonies, and clients begin again. A service of several processes
needs a shared place, with the interface `ChallengeStore`.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from relying_party.core.callers import Caller
from relying_party.core.credentials import User
from relying_party.core.encoding import base64url
from relying_party.core.operations import Operation
from relying_party.errors import CeremonyGone, RateLimited

NAME_SIZE: Final = 24
MAX_RECORDS: Final = 20_000
SWEEP_PAUSE: Final = 1.0  # seconds: looking through all records may not be asked for with each request


class Purpose(StrEnum):
    """The purpose of a ceremony, which cannot be completed for another purpose."""

    REGISTRATION = "registration"
    SIGN_IN = "sign-in"
    STEP_UP = "step-up"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeRecord:
    """A running ceremony, of one of the two kinds below."""

    purpose: Purpose
    challenge: bytes = field(repr=False)  # 32 bytes
    caller: Caller
    user_verification: str  # as in the options
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationRecord(ChallengeRecord):
    user: User
    session_id: bytes | None = field(
        repr=False
    )  # the session that adds a passkey to its user; None: a new user
    algorithms: tuple[int, ...]  # COSE, as in the options
    extensions: frozenset[str]  # requested client extensions; other outputs are ignored


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationRecord(ChallengeRecord):
    expected: bytes | None = field(repr=False)  # the handle of the expected user, if any
    allowed: tuple[bytes, ...] = field(repr=False)  # credential ids; empty: any discoverable one
    session_id: bytes | None = field(default=None, repr=False)  # of a step-up
    operation: Operation | None = None  # what a step-up is for


class ChallengeStore(Protocol):
    """The interface of a place for challenge records."""

    async def add(self, record: ChallengeRecord, *, name: bytes, now: float) -> str:
        """Remember `record` under a fresh random `name`; `RateLimited` when there are too many."""

    async def take(self, name: str, *, now: float) -> ChallengeRecord:
        """Take a record and delete it; `CeremonyGone` when it is unknown, used or expired.

        It is atomic: of two concurrent calls one gets the record.
        """


class Challenges:
    """Challenge records in this process, by name."""

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
