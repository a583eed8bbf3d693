"""Turns: work that of several processes on one database one does at a time. Their table is PostgreSQL's alone."""

from companion_push.relay.transaction import Transaction


def take(db: Transaction, work: str, seconds: float, now: float) -> bool:
    """Take the turn for a work, unless somebody has taken it less than nearly so many seconds ago; returns whether it is taken.

    Whoever takes it and is killed has it no longer than that.
    """
    # each process looks as often: a little earlier, so that none comes a moment too soon for ever
    until = now + 0.9 * seconds
    taken = db.execute(
        "INSERT INTO turns VALUES (?, ?) ON CONFLICT (work) DO UPDATE SET until = excluded.until"
        " WHERE turns.until <= ? OR turns.until > ? RETURNING 1",  # one further ahead is of a clock that has gone back
        (work, until, now, until),
    ).fetchone()
    return taken is not None


def age(db: Transaction, work: str, now: float) -> float:
    """Seconds since the turn for a work was over; negative while somebody has it, and where nobody ever had."""
    row = db.execute("SELECT until FROM turns WHERE work = ?", (work,)).fetchone()
    return -1.0 if row is None else now - float(row[0])
