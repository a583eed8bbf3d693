"""Writes of account states whose answer was lost, in a store beside the database (docs/adr/0061).

The transaction of such a write is rolled back, and with it what would have told the other processes of the relay. The write may be there
all the same, or come to the store later, and its caller, who asks again, changes nothing then. So the account's version is looked
at until it is another one, and whoever waits for the change is told: at any process, once or several times.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from companion_push.errors import StoreUnavailable
from companion_push.relay.nodes import WakeUp

logger = logging.getLogger(__name__)

# seconds before each look at an account, in all a minute: a server that stood still still takes what it was sent before
PAUSES: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


@dataclass(slots=True)
class _Unsure:
    """A change of an account that may be there."""

    before: int | None  # the version that it was written over; None: it is there
    wake: WakeUp
    looks: int  # that were made
    due: float  # by the event loop's clock


class UnsureWrites:
    """The writes of one process of which it does not know whether they are there."""

    def __init__(
        self,
        *,
        look: Callable[[Collection[str]], Awaitable[Mapping[str, int]]],
        tell: Callable[[WakeUp], Awaitable[None]],
    ) -> None:
        """look: the versions of accounts, of those that can be had. tell: wakes whoever waits, at every process.

        Both may raise `StoreUnavailable`, and are called again then.
        """
        self._look, self._tell = look, tell
        self._unsure: dict[str, _Unsure] = {}  # by account
        self._noted = asyncio.Event()

    def __len__(self) -> int:
        return len(self._unsure)

    def note(self, accounts: Mapping[str, int | None], wake: WakeUp) -> None:
        """Look after a change of accounts. accounts: the version that each was written over; None where the change is there."""
        for account, before in accounts.items():
            known = self._unsure.get(account)
            if known is not None:
                # over the older version: another one says that the first change is there, or the second
                before, wake = known.before, _both(known.wake, wake)  # noqa: PLW2901
            self._unsure[account] = _Unsure(before, wake, 0, _ticks() + PAUSES[0])
        self._noted.set()

    async def run(self) -> None:
        """Look after them, for ever."""
        while True:
            await self._until_due()
            try:
                await self._look_once()
            except StoreUnavailable as error:
                logger.debug("writes without an answer could not be looked for: %s", error)
            except Exception as error:  # noqa: BLE001  one that is a bug must not end the looking
                logger.error("writes without an answer could not be looked for: %s", type(error).__name__)  # noqa: TRY400

    async def _until_due(self) -> None:
        while True:
            self._noted.clear()
            due = min((each.due for each in self._unsure.values()), default=math.inf)
            if due <= _ticks():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(None if due == math.inf else due):
                    await self._noted.wait()

    async def _look_once(self) -> None:
        due = {account: each for account, each in self._unsure.items() if each.due <= _ticks()}
        self._put_off(due)
        asked = [account for account, each in due.items() if each.before is not None]
        found = await self._look(asked) if asked else {}
        done = {
            account: each
            for account, each in due.items()
            if each.before is None or found.get(account, each.before) != each.before
        }
        if not done:
            return
        wake = WakeUp()
        for each in done.values():
            wake = _both(wake, each.wake)
        await self._tell(wake)
        for account, each in done.items():
            if self._unsure.get(account) is each:  # else there is a later one
                del self._unsure[account]

    def _put_off(self, due: Mapping[str, _Unsure]) -> None:
        """Say when these are looked at again; those that were looked at for long enough are not."""
        for account, each in due.items():
            each.looks += 1
            if each.looks == len(PAUSES):
                del self._unsure[account]
            else:
                each.due = _ticks() + PAUSES[each.looks]


def _both(one: WakeUp, other: WakeUp) -> WakeUp:
    return WakeUp(topics=one.topics | other.topics, members=one.members | other.members)


def _ticks() -> float:
    return asyncio.get_running_loop().time()
