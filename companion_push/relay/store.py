"""Requests in the store, with their envelopes and rate limits.

Each function is a part of one transaction on an open store (`companion_push.relay.database`). Envelopes are
deleted when their request ends; its outcome stays readable for a while (`mailbox.KEPT`).
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from companion_push.relay.mailbox import GRACE, KEPT, LIVE, Failure, Request
from headless_passkey.request import RequestState

PORTION: Final = 100  # requests that one transaction of the sweep looks at
_COLUMNS: Final = "account, device, id, fingerprint, submitted_at, expires_at, state, version, claimed_by, word, stays, reason"


def request(db: sqlite3.Connection, device: str, request_id: str) -> Request | None:
    rows = db.execute(f"SELECT {_COLUMNS} FROM requests WHERE device = ? AND id = ?", (device, request_id))  # noqa: S608
    return next(_requests(db, rows.fetchall()), None)


def requests_of(db: sqlite3.Connection, account: str) -> list[Request]:
    """Read all stored requests of the account."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM requests WHERE account = ?", (account,))  # noqa: S608
    return list(_requests(db, rows.fetchall()))


def sealed_for(db: sqlite3.Connection, companion: str) -> list[tuple[Request, bytes]]:
    """Read the requests with an envelope for `companion`, oldest first."""
    rows = db.execute(
        "SELECT device, id, sealed FROM envelopes JOIN requests USING (device, id)"
        " WHERE recipient = ? AND sealed IS NOT NULL ORDER BY submitted_at, device, id",
        (companion,),
    ).fetchall()
    pairs = ((request(db, device, request_id), sealed) for device, request_id, sealed in rows)
    return [(found, sealed) for found, sealed in pairs if found is not None]


def erase_envelopes(db: sqlite3.Connection, recipients: Iterable[str]) -> None:
    """Erase every envelope to these companions, which were removed."""
    db.executemany(
        "UPDATE envelopes SET sealed = NULL WHERE recipient = ?", [(recipient,) for recipient in recipients]
    )


def sealed_to(db: sqlite3.Connection, request: Request, companion: str) -> bytes | None:
    """Read the envelope of `request` for `companion`; None when it is deleted, or was for others only."""
    row = db.execute(
        "SELECT sealed FROM envelopes WHERE device = ? AND id = ? AND recipient = ?",
        (request.device, request.id, companion),
    ).fetchone()
    return None if row is None else row[0]


def insert(db: sqlite3.Connection, new: Request, envelopes: Mapping[str, bytes]) -> None:
    """Store a new request. envelopes: by recipient."""
    db.execute(
        f"INSERT INTO requests ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (
            new.account,
            new.device,
            new.id,
            new.fingerprint,
            new.submitted_at,
            new.expires_at,
            new.state,
            new.version,
            new.claimed_by,
            new.word,
            new.stays,
            new.reason,
        ),
    )
    db.executemany(
        "INSERT INTO envelopes (device, id, recipient, sealed) VALUES (?, ?, ?, ?)",
        [(new.device, new.id, recipient, sealed) for recipient, sealed in envelopes.items()],
    )


def save(db: sqlite3.Connection, changed: Request) -> None:
    """Store a request's new state; its envelopes are deleted when it has ended."""
    key = (changed.device, changed.id)
    db.execute(
        "UPDATE requests SET state = ?, version = ?, claimed_by = ?, word = ?, stays = ?, reason = ?"
        " WHERE device = ? AND id = ?",
        (
            changed.state,
            changed.version,
            changed.claimed_by,
            changed.word,
            changed.stays,
            changed.reason,
            *key,
        ),
    )
    failed = {
        failure.by: (order, failure.reason, failure.at) for order, failure in enumerate(changed.failures)
    }
    db.executemany(
        "UPDATE envelopes SET failed = ?, reason = ?, failed_at = ?, fetched = ?"
        " WHERE device = ? AND id = ? AND recipient = ?",
        [
            (*failed.get(recipient, (None, None, None)), recipient in changed.fetched_by, *key, recipient)
            for recipient in changed.recipients
        ],
    )
    if not changed.live:
        db.execute("UPDATE envelopes SET sealed = NULL WHERE device = ? AND id = ?", key)


def spent(db: sqlite3.Connection, whose: str) -> dict[str, float]:
    """Read the rate limits of a member or an account: for each the time at which it is unused again (GCRA)."""
    return dict(db.execute("SELECT rate, full_at FROM spent WHERE whose = ?", (whose,)))


def spend(db: sqlite3.Connection, whose: str, rates: Mapping[str, float]) -> None:
    rows = [(whose, rate, full_at) for rate, full_at in rates.items()]
    db.executemany("REPLACE INTO spent VALUES (?, ?, ?)", rows)


def sweep_requests(
    db: sqlite3.Connection,
    now: float,
    current: Callable[[Request], Request],
    *,
    after: tuple[str, str] | None,
) -> tuple[list[Request], tuple[str, str] | None]:
    """Store what time has changed of a portion of the requests; returns the changed ones, and where the next portion begins.

    current: maps a request to its state at `now`. after: where this portion begins; None for the first, which also deletes
    the requests whose outcome is no longer readable.
    """
    if after is None:
        db.execute("DELETE FROM requests WHERE expires_at <= ?", (now - GRACE - KEPT,))
        db.execute("DELETE FROM spent WHERE full_at <= ?", (now,))
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM requests WHERE (device, id) > (?, ?) AND state IN (?, ?, ?, ?)"  # noqa: S608
        " AND (expires_at <= ? OR claimed_by IS NOT NULL OR EXISTS (SELECT 1 FROM envelopes"
        " WHERE device = requests.device AND id = requests.id AND failed IS NOT NULL)) ORDER BY device, id LIMIT ?",
        (*(after or ("", "")), *LIVE, now, PORTION),
    ).fetchall()
    changed = []
    last = None
    for live in _requests(db, rows):
        last = live.device, live.id
        stored = current(live)
        if stored is not live:
            save(db, stored)
            changed.append(stored)
    return changed, last if len(rows) == PORTION else None


def _requests(db: sqlite3.Connection, rows: Iterable[tuple[Any, ...]]) -> Iterator[Request]:
    for (
        account,
        device,
        request_id,
        fingerprint,
        submitted_at,
        expires_at,
        state,
        version,
        claimed_by,
        word,
        stays,
        reason,
    ) in rows:
        envelopes = db.execute(
            "SELECT recipient, failed, reason, failed_at, fetched FROM envelopes WHERE device = ? AND id = ?"
            " ORDER BY failed, recipient",
            (device, request_id),
        ).fetchall()
        yield Request(
            account=account,
            device=device,
            id=request_id,
            recipients=tuple(sorted(recipient for recipient, *_ in envelopes)),
            fingerprint=fingerprint,
            submitted_at=submitted_at,
            expires_at=expires_at,
            state=RequestState(state),
            version=version,
            claimed_by=claimed_by,
            word=word,
            stays=bool(stays),
            reason=reason,
            failures=tuple(
                Failure(by=by, reason=why, at=at)
                for by, failed, why, at, _ in envelopes
                if failed is not None
            ),
            fetched_by=frozenset(recipient for recipient, *_, fetched in envelopes if fetched),
        )
