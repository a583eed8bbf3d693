"""Challenge records: the server's state of a ceremony between begin and complete.

A record is single use and expires; `take` deletes it before anything is verified, so that a challenge cannot be
replayed. Only its opaque name leaves the server. Records are in memory, so that strangers who begin ceremonies cause no
writes to disk; a restart ends the running ceremonies, and clients begin again. A service of several processes
needs a shared place, with the interface `ChallengeStore`.

Their number is bounded. Whoever begins many displaces their own: when there are too many, the neighbourhood that has most
loses its oldest. A signed-in session is a share of its own, so that strangers displace none of its step-ups.
"""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from program_parts.base64url import base64url
from relying_party.core.callers import Caller
from relying_party.core.credentials import User
from relying_party.core.operations import Operation
from relying_party.errors import CeremonyGone

NAME_SIZE: Final = 24
MAX_RECORDS: Final = 20_000


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


# the record of each purpose, for stores
KINDS: Final[dict[Purpose, type[ChallengeRecord]]] = {
    Purpose.REGISTRATION: RegistrationRecord,
    Purpose.SIGN_IN: AuthenticationRecord,
    Purpose.STEP_UP: AuthenticationRecord,
}


class ChallengeStore(Protocol):
    """The interface of a place for challenge records."""

    async def add(self, record: ChallengeRecord, *, name: bytes, share: str, now: float) -> str:
        """Remember `record` under a fresh random `name`; returns the name as text.

        share: the neighbourhood or the session that begins the ceremony. A place that is full forgets a record of the
        share that has most, and refuses nobody.
        """

    async def take(self, name: str, *, now: float) -> ChallengeRecord:
        """Take a record and delete it; `CeremonyGone` when it is unknown, used or expired.

        It is atomic: of two concurrent calls one gets the record.
        """


class Challenges:
    """Challenge records in this process, by name. Every call costs the same, however many there are."""

    def __init__(self, *, most: int = MAX_RECORDS) -> None:
        self._records: OrderedDict[str, tuple[ChallengeRecord, str]] = OrderedDict()  # oldest in front
        self._shares = _Shares()
        self._most = most

    def __len__(self) -> int:
        return len(self._records)

    async def add(self, record: ChallengeRecord, *, name: bytes, share: str, now: float) -> str:
        """Remember `record`; where there are too many, the oldest of the share that has most is forgotten."""
        self._forget_expired(now)
        if len(self._records) >= self._most:
            self._drop(self._shares.oldest_of_largest())
        text = base64url(name)
        self._records[text] = record, share
        self._shares.add(share, text)
        return text

    async def take(self, name: str, *, now: float) -> ChallengeRecord:
        """The record, which is gone afterwards; `CeremonyGone` when it already was."""
        record = self._drop(name) if name in self._records else None
        if record is None or record.expires_at <= now:
            raise CeremonyGone("begin again")
        return record

    def _forget_expired(self, now: float) -> None:
        """Forget two of the oldest, if they have expired: each call cleans up more than it adds."""
        for _ in range(2):
            oldest = next(iter(self._records), None)
            if oldest is None or self._records[oldest][0].expires_at > now:
                return
            self._drop(oldest)

    def _drop(self, name: str) -> ChallengeRecord:
        record, share = self._records.pop(name)
        self._shares.remove(share, name)
        return record


class _Shares:
    """Names by the share that they belong to, and the shares by their size: the largest is found without a search."""

    def __init__(self) -> None:
        self._names: dict[str, OrderedDict[str, None]] = {}  # oldest in front
        self._by_size: defaultdict[int, OrderedDict[str, None]] = defaultdict(OrderedDict)
        self._largest = 0

    def add(self, share: str, name: str) -> None:
        names = self._names.setdefault(share, OrderedDict())
        self._move(share, len(names), len(names) + 1)
        names[name] = None

    def remove(self, share: str, name: str) -> None:
        names = self._names[share]
        self._move(share, len(names), len(names) - 1)
        del names[name]
        if not names:
            del self._names[share]

    def oldest_of_largest(self) -> str:
        """The oldest name of the largest share; of several, that which became so large first."""
        share = next(iter(self._by_size[self._largest]))
        return next(iter(self._names[share]))

    def _move(self, share: str, was: int, now: int) -> None:
        self._by_size[was].pop(share, None)
        if not self._by_size[was]:
            del self._by_size[was]
        if now:
            self._by_size[now][share] = None
        # a share grows or shrinks by one, so the largest does
        self._largest = max(self._largest, now) if now > was or self._largest in self._by_size else now
