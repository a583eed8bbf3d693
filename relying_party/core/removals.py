"""The removal of passkeys and accounts, which is delayed where it could take an account from its owner. Pure.

Somebody who got hold of one session and one use of a passkey can add a passkey of their own. So a young passkey must
not be able to put out the old ones at once: the removal of the last passkey that is older than `OLD_SECONDS` takes effect
after `DELAY_SECONDS`, and so does the end of an account that has such a passkey. Until then every session is told, and the
removal is called off with an older passkey than the one that asked (docs/adr/0017-removal-of-the-last-old-passkey.md).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from relying_party.core.callers import ClientKind

OLD_SECONDS: Final = 7 * 86400
DELAY_SECONDS: Final = 72 * 3600
SHOWN_SECONDS: Final = 30 * 86400  # how long a change is shown
CHANGES_OF_A_KIND: Final = 10  # of one user; older ones are forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class Aged:
    """A passkey, as far as its age matters."""

    credential_id: bytes = field(repr=False)
    created_at: int

    def is_old(self, now: float) -> bool:
        return self.created_at + OLD_SECONDS <= now


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A removal that has been asked for and has not taken effect."""

    removal_id: bytes = field(repr=False)
    credential_id: bytes | None = field(repr=False)  # None: the whole account
    asked_by: bytes = field(repr=False)  # the passkey used for it
    asked_at: int
    due_at: int


class ChangeKind(StrEnum):
    """What has happened to an account."""

    PASSKEY_ADDED = "passkey-added"
    PASSKEY_REMOVED = "passkey-removed"
    PASSKEY_RENAMED = "passkey-renamed"
    NAME_CHANGED = "name-changed"
    SESSIONS_ENDED = "sessions-ended"
    REMOVAL_ASKED = "removal-asked"
    REMOVAL_CALLED_OFF = "removal-called-off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of an account, which its sessions are told."""

    kind: ChangeKind
    at: int
    name: str | None = field(repr=False)  # of what was changed, or what it is called now
    session_id: bytes | None = field(repr=False)  # in which it was done; None: a removal took effect
    client_kind: ClientKind | None


def remaining(theirs: Sequence[Aged], target: bytes, pending: Iterable[Removal]) -> list[Aged]:
    """The passkeys that stay when `target` is removed, which also calls off what `target` asked for."""
    going = {one.credential_id for one in pending if one.asked_by != target}
    return [one for one in theirs if one.credential_id != target and one.credential_id not in going]


def is_delayed(removed: Aged, remaining: Iterable[Aged], *, now: float) -> bool:
    """Whether a passkey is the last old one, so that its removal is delayed."""
    return removed.is_old(now) and not any(one.is_old(now) for one in remaining)


def may_call_off(removal: Removal, theirs: Sequence[Aged], used: bytes) -> bool:
    """Whether a session of the passkey `used` may call a removal off: it asked, or it is older than the one that did."""
    ages = {one.credential_id: one.created_at for one in theirs}
    if used == removal.asked_by:
        return True
    return used in ages and (removal.asked_by not in ages or ages[used] < ages[removal.asked_by])
