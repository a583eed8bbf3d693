"""What a store has of account states, as another program reads it."""

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from companion_push.relay.account_state import decoded
from companion_push.relay.account_states import SqliteStates, States
from companion_push.relay.mailbox import Notice, Request


def stored_requests(store: Path) -> list[Request]:
    """The requests of all accounts."""
    with sqlite3.connect(store) as other:
        rows = other.execute("SELECT value FROM account_states ORDER BY account").fetchall()
    other.close()
    return [request for (value,) in rows for request in decoded(value).requests]


def outcomes(store: Path) -> list[str | None]:
    """The outcomes of all pushes for requests."""
    return [notice.outcome for request in stored_requests(store) for notice in request.notices]


def states_of(db: sqlite3.Connection, now: float) -> States:
    return States(SqliteStates(db), now)


def change_requests(db: sqlite3.Connection, change: Callable[[Request], Request]) -> None:
    """Change all requests in the store."""
    states = states_of(db, 0)
    for (account,) in db.execute("SELECT account FROM account_states").fetchall():
        states.save(*map(change, states.of(account).requests))
    states.store()


def unknown_outcomes(request: Request) -> Request:
    """The request as it is while its pushes are under way."""
    notices: list[Notice] = [replace(each, outcome=None) for each in request.notices]
    return replace(request, notices=tuple(notices))
