"""What a store has of account states, as another program reads it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from companion_push.relay.account_state import decoded
from companion_push.relay.account_states import SqlStates, States
from companion_push.relay.mailbox import Notice, Request
from companion_push.relay.transaction import Transaction
from tests.relay.stores import place_of, query


def stored_requests(store: Path) -> list[Request]:
    """The requests of all accounts."""
    rows = query(place_of(store), "SELECT value FROM account_states ORDER BY account")
    return [request for (value,) in rows for request in decoded(bytes(value)).requests]


def outcomes(store: Path) -> list[str | None]:
    """The outcomes of all pushes for requests."""
    return [notice.outcome for request in stored_requests(store) for notice in request.notices]


def states_of(db: Transaction, now: float) -> States:
    return States(SqlStates(db), now)


def change_requests(db: Transaction, change: Callable[[Request], Request]) -> None:
    """Change all requests in the store."""
    states = states_of(db, 0)
    for (account,) in db.execute("SELECT account FROM account_states").fetchall():
        states.save(*map(change, states.of(account).requests))
    states.store()


def unknown_outcomes(request: Request) -> Request:
    """The request as it is while its pushes are under way."""
    notices: list[Notice] = [replace(each, outcome=None) for each in request.notices]
    return replace(request, notices=tuple(notices))
