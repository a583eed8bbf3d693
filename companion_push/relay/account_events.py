"""Events that the account service is to be told, in the store until it has taken them (`companion_push.serving.webhook`).

Each function is a part of one transaction on an open store. An event is stored in the transaction that it is about, so that
a relay that is killed tells it when it runs again. There is one event for a device at most, the newest: it takes the place of
one that still waits. An account has `MAX_WAITING` of them at most, and begins `RATE` at most; what is more waits.
"""

import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from companion_push.relay import accounts, subjects
from companion_push.relay.account_states import States
from companion_push.relay.limits import Rate
from companion_push.relay.problems import Problem
from companion_push.relay.transaction import Transaction
from companion_push.serving.webhook import Attempt
from program_parts.base64url import base64url

KEPT: Final = 3 * 86_400  # seconds after which an event is given up
PAUSES: Final = (
    5,
    60,
    300,
    1800,
    7200,
    14_400,
    21_600,
)  # seconds after each failed attempt; the last one again and again
MAX_WAITING: Final = 32  # events of an account; a new one takes the place of the oldest
RATE: Final = Rate(count=20, seconds=3600)  # of an account's events, each by its first attempt
_RATE_NAME: Final = "account events"
_FURTHEST: Final = 86_400  # seconds: what is due later was stored by a clock that has gone back since
_LOOKED_AT: Final = 100  # events that one transaction looks at
_JITTER: Final = 0.2  # the part of a pause that chance takes off
_ALL: Final = 1 << 31  # more rows than there are


class EventType(StrEnum):
    """What an event says."""

    MUTED = "device.muted"
    UNMUTED = "device.unmuted"


class Step(StrEnum):
    """What has become of an event."""

    MADE = "made"
    SENT = "sent"
    FAILED = "failed"  # one attempt, and there will be another one
    GIVEN_UP = "given-up"
    REPLACED = "replaced"  # by a newer one of its device


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event that is to be told now."""

    id: str
    body: bytes = field(repr=False)  # JSON


def add(
    db: Transaction, account: str, device: str, kind: EventType, *, now: float, **details: str
) -> tuple[Step, ...]:
    """Store an event about a device of an account. details: further members of its data."""
    data = {"account": account, **_owner(db, account), "device": device, **details}
    content = {"type": kind, "timestamp": timestamp(now, "milliseconds"), "data": data}
    body = json.dumps(content, separators=(",", ":")).encode()
    replaced = db.execute("DELETE FROM account_events WHERE device = ?", (device,)).rowcount
    db.execute(
        "INSERT INTO account_events VALUES (?, ?, ?, ?, ?, 0, ?)",
        (device, base64url(secrets.token_bytes(16)), account, body, now, now),
    )
    beyond = db.execute(
        "DELETE FROM account_events WHERE device IN (SELECT device FROM account_events WHERE account = ?"
        " ORDER BY at DESC, device LIMIT ? OFFSET ?)",
        (account, _ALL, MAX_WAITING),
    ).rowcount
    return (Step.MADE, *[Step.REPLACED] * replaced, *[Step.GIVEN_UP] * beyond)


def timestamp(seconds: float, precision: str = "seconds") -> str:
    """Write Unix seconds as RFC 3339 does, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision).replace("+00:00", "Z")


def _owner(db: Transaction, account: str) -> dict[str, str]:
    """By what the account service knows the account, in the words of ``/admin/v1/accounts``."""
    subject = subjects.subject_of(db, account)
    if subject is not None:
        return {"issuer": subject.issuer, "subject": subject.id}
    name = accounts.name_of_account(db, account)
    return {} if name is None else {"name": name}


def take(db: Transaction, states: States, now: float, *, lease: float = 0) -> Event | None:
    """Begin an attempt: the event with the fewest attempts of those that are due. It is due again in some seconds.

    lease: seconds for which no other process may begin one of it.

    An account that has had its share of events waits: its event is due when there is more.
    """
    rows = db.execute(
        "SELECT id, account, body, attempts FROM account_events WHERE due <= ? OR due > ? ORDER BY attempts, due LIMIT ?",
        (now, now + _FURTHEST, _LOOKED_AT),
    ).fetchall()
    for event_id, account, body, attempts in rows:
        if not attempts:
            state = states.of(account)
            try:
                full_at = RATE.take(state.spent_by(account).get(_RATE_NAME), now)
            except Problem as refused:
                later = now + (refused.retry_after or 1)
                db.execute("UPDATE account_events SET due = ? WHERE id = ?", (later, event_id))
                continue
            states.put(account, state.spending({account: {_RATE_NAME: full_at}}, now))
        db.execute(
            "UPDATE account_events SET attempts = attempts + 1, due = ? WHERE id = ?",
            (now + max(PAUSES[0], lease), event_id),
        )
        return Event(id=event_id, body=body)
    return None


def record(db: Transaction, event: Event, attempt: Attempt, *, chance: float, now: float) -> Step | None:
    """Store what became of an attempt; None where a newer event has taken the place of this one meanwhile. chance: 0 to 1."""
    if attempt.taken:
        db.execute("DELETE FROM account_events WHERE id = ?", (event.id,))
        return Step.SENT
    row = db.execute("SELECT at, attempts FROM account_events WHERE id = ?", (event.id,)).fetchone()
    if row is None:
        return None
    at, attempts = row
    if attempt.gone or now >= at + KEPT:
        db.execute("DELETE FROM account_events WHERE id = ?", (event.id,))
        return Step.GIVEN_UP
    pause = max(PAUSES[min(attempts, len(PAUSES)) - 1] * (1 - _JITTER * chance), attempt.retry_after or 0)
    due = min(now + pause, at + KEPT)
    db.execute("UPDATE account_events SET due = ? WHERE id = ?", (due, event.id))
    return Step.FAILED


def waiting(db: Transaction) -> tuple[int, float | None]:
    """How many events there are, and when the first of them is due, in Unix seconds."""
    count, due = db.execute("SELECT count(*), min(due) FROM account_events").fetchone()
    return count, due


def clear(db: Transaction) -> None:
    """Delete all events, of a relay that is set up to tell none."""
    db.execute("DELETE FROM account_events")
