"""What a store has of account states, as another program reads it, and an opening of a store that is cancelled."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
from msgspec.structs import replace

from companion_push.relay.account_state import decoded
from companion_push.relay.account_states import SqlStates, States
from companion_push.relay.mailbox import Notice, Request
from companion_push.relay.transaction import Transaction
from tests.relay import redis_servers
from tests.relay.stores import place_of, query, states_of

NOW: Final = 1_800_000_000
REQUEST: Final = Request(
    account="alice",
    device="frame",
    id="r1",
    recipients=("anna", "bert"),
    fingerprint=bytes(32),
    submitted_at=NOW,
    expires_at=NOW + 300,
)


def stored_requests(store: Path) -> list[Request]:
    """The requests of all accounts."""
    if (place := states_of(store)) is None:
        rows = query(place_of(store), "SELECT value FROM account_states ORDER BY account")
        values = [bytes(value) for (value,) in rows]
    else:
        with redis_servers.client(place) as client:
            values = [client.get(key)[8:] for key in redis_servers.keys(client, f"{place.prefix}:*:v:*")]
    return [request for value in values for request in decoded(value).requests]


def recipients_of_envelopes(store: Path) -> list[str]:
    """To whom the envelopes are that are stored."""
    if (place := states_of(store)) is None:
        return [recipient for (recipient,) in query(place_of(store), "SELECT recipient FROM envelopes")]
    with redis_servers.client(place) as client:
        names = [
            name for key in redis_servers.keys(client, f"{place.prefix}:*:e:*") for name in client.hkeys(key)
        ]
    return [name.decode().split()[-1] for name in names]


def outcomes(store: Path) -> list[str | None]:
    """The outcomes of all pushes for requests."""
    return [notice.outcome for request in stored_requests(store) for notice in request.notices]


def in_rows(db: Transaction, now: float) -> States:
    return States(SqlStates(db), now)


def change_requests(db: Transaction, change: Callable[[Request], Request]) -> None:
    """Change all requests in the store."""
    states = in_rows(db, time.time())  # at another time they would be taken along
    for (account,) in db.execute("SELECT account FROM account_states").fetchall():
        states.save(*map(change, states.of(account).requests))
    states.store()


def unknown_outcomes(request: Request) -> Request:
    """The request as it is while its pushes are under way."""
    notices: list[Notice] = [replace(each, outcome=None) for each in request.notices]
    return replace(request, notices=tuple(notices))


class OpeningThatWaits:
    """The opening of a store, whose thread waits in `function` of `module` until it is cancelled."""

    def __init__(self, module: ModuleType, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._begun, self._goes_on = threading.Event(), threading.Event()
        self._does = getattr(module, function)
        monkeypatch.setattr(module, function, self._wait)

    def _wait(self, *args: Any, **named: Any) -> Any:
        self._begun.set()
        assert self._goes_on.wait(30)
        return self._does(*args, **named)

    async def cancelled(self, opening: AbstractAsyncContextManager[object]) -> None:
        """Cancel the opening in its middle. It ends when its thread has ended, and not before."""
        entering = asyncio.ensure_future(opening.__aenter__())
        assert await asyncio.to_thread(self._begun.wait, 30)
        for _ in range(2):  # also while it closes
            entering.cancel()
            await asyncio.sleep(0)
        self._goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert not [each.name for each in threading.enumerate() if each.name.startswith("store")]
