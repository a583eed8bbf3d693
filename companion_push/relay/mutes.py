"""Muted devices: those of which a companion's user has said "not me". The relay takes no requests of them.

Any companion mutes by declining a request as `NOT_ME`, and any companion ends it. A mute belongs to the membership: it is
over when the device leaves the ring, and with the account. Each function is a part of one transaction on an open store.
"""

from collections.abc import Callable
from dataclasses import dataclass

from companion_push.relay import accounts
from companion_push.relay.problems import Problem, Slug
from companion_push.relay.transaction import Transaction, ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Mute:
    """A muted device."""

    device: str  # the device's name
    by: str  # the companion's name
    at: int  # Unix seconds


def mute(db: Transaction, account: str, device: str, *, by: str, now: float) -> bool:
    """Mute a device of the account; returns whether it was not muted before."""
    done = db.execute(
        "INSERT INTO mutes SELECT name, account, ?, ? FROM members WHERE name = ? AND account = ?"
        " ON CONFLICT (device) DO NOTHING",
        (by, int(now), device, account),
    )
    if done.rowcount > 0:
        accounts.change_authority(db, account)
    return done.rowcount > 0


def unmute(db: Transaction, account: str, device: str) -> bool:
    """End the mute of a device of the account; returns whether there was one."""
    done = db.execute("DELETE FROM mutes WHERE device = ? AND account = ?", (device, account))
    return done.rowcount > 0


def mutes_of(db: Transaction, account: str) -> list[Mute]:
    """Read the muted devices of an account, the oldest mute first."""
    return ask_mutes(db, account)()


def ask_mutes(db: Transaction, account: str) -> Callable[[], list[Mute]]:
    """Ask for what `mutes_of` reads."""
    rows = ask(db, "SELECT device, by, at FROM mutes WHERE account = ? ORDER BY at, device", (account,))
    return lambda: [Mute(device=device, by=by, at=at) for device, by, at in rows()]


def count(db: Transaction) -> int:
    """Count the muted devices of all accounts."""
    return int(db.execute("SELECT count(*) FROM mutes").fetchone()[0])


def refuse_muted(db: Transaction, device: str) -> Callable[[], None]:
    """Ask whether a device is muted; returns what refuses its request then (`device-muted`)."""
    rows = ask(db, "SELECT 1 FROM mutes WHERE device = ?", (device,))

    def refuse() -> None:
        if rows():
            raise Problem(Slug.DEVICE_MUTED)

    return refuse
