"""The requests in a row that nobody has approved, of each device and of each account, in the store.

Each function is a part of one transaction on an open store. A streak is over with an approval, when its device leaves the
ring, with the account, and a day after its last request.
"""

import sqlite3

from companion_push.relay.ladder import FORGOTTEN, End, Streak


def streak(db: sqlite3.Connection, whose: str) -> Streak:
    """Read a streak. whose: a device's name, or an account's id."""
    row = db.execute("SELECT count, at FROM streaks WHERE whose = ?", (whose,)).fetchone()
    return Streak() if row is None else Streak(count=row[0], at=row[1])


def count(db: sqlite3.Connection, account: str, device: str, end: End, now: float) -> None:
    """Count the end of a request of `device` for it and for its account."""
    for whose in (device, account):
        after = streak(db, whose).after(end, now)
        if after.count:
            db.execute("REPLACE INTO streaks VALUES (?, ?, ?, ?)", (whose, account, after.count, after.at))
        else:
            db.execute("DELETE FROM streaks WHERE whose = ?", (whose,))


def sweep_streaks(db: sqlite3.Connection, now: float) -> None:
    """Forget those that are a day old."""
    db.execute("DELETE FROM streaks WHERE at <= ?", (now - FORGOTTEN,))
