"""The sender of the webhook: takes up stored events, and tells them to the account service, one at a time.

It follows the relay (`RelayEndpoints.follow`) to hear of new events, and looks at the store by itself when one is due. No call
waits for it. An attempt is counted before it begins, so that a relay that is killed meanwhile tries again with the same id.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from companion_push.errors import StoreUnavailable
from companion_push.relay.account_events import Event, Step
from companion_push.relay.operations import Answer, Operation, record_event, take_event
from companion_push.relay.problems import Problem
from companion_push.serving.webhook import Attempt
from companion_push.serving.webhook_client import WebhookClient
from headless_passkey.process.tasks import end_quietly

AFTER_ANSWER: Final = 0.01  # seconds after a new event, in which its caller gets its answer
LOOKS: Final = 30.0  # seconds at most until the store is looked at again
_AGAIN: Final = 2.0  # seconds until a store that did not answer is tried again

logger = logging.getLogger(__name__)


class WebhookSender:
    """The webhook of one relay."""

    def __init__(
        self,
        client: WebhookClient,
        *,
        run: Callable[[Operation], Awaitable[Answer]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """run: makes an operation of the relay's own. clock: Unix seconds."""
        self._client, self._run, self._clock = client, run, clock
        self._new = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self._is_failing = False
        self.waiting = 0  # events that are not told, when the store was looked at last

    def start(self) -> None:
        self._sending = asyncio.create_task(self._send())

    def follow(self, answer: Answer) -> None:
        """Hear of new events."""
        if Step.MADE in answer.events:
            self.look()

    def look(self) -> None:
        """Look at the store now."""
        self._new.set()

    async def close(self) -> None:
        """Stop. What is not told stays in the store, for the next start."""
        if self._sending is not None:
            await end_quietly(self._sending)
        await self._client.close()

    async def _send(self) -> None:
        while True:
            try:
                self._new.clear()
                taken = await self._run(take_event)
                self.waiting = taken.body["waiting"]
                if taken.event is not None:
                    await self._tell(taken.event)
                    continue
                pause = LOOKS if taken.body["due"] is None else taken.body["due"] - self._clock()
            except (StoreUnavailable, Problem) as error:
                logger.warning("the store could not be asked what to tell the account service: %s", error)
                pause = _AGAIN
            except Exception as error:  # noqa: BLE001  a bug must not end the telling of all others
                logger.error("an event could not be told: %s", type(error).__name__)  # noqa: TRY400
                pause = LOOKS
            await self._rest(min(max(pause, AFTER_ANSWER), LOOKS))

    async def _rest(self, seconds: float) -> None:
        """Wait so long, or until there is a new event."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._new.wait()
        await asyncio.sleep(AFTER_ANSWER)

    async def _tell(self, event: Event) -> None:
        """Try once, and store what became of it, however long the store takes."""
        attempt = await self._client.post(event.id, event.body)
        record = record_event(event, attempt, chance=random.random())  # noqa: S311
        while True:
            try:
                steps = (await self._run(record)).events
                break
            except (StoreUnavailable, Problem) as error:
                logger.warning("the outcome of a webhook could not be stored: %s", error)
                await asyncio.sleep(_AGAIN)
        self._log(attempt, gave_up=Step.GIVEN_UP in steps)

    def _log(self, attempt: Attempt, *, gave_up: bool) -> None:
        """Say once that the account service fails, once that it takes events again, and each event that is given up."""
        if gave_up:
            logger.error("an event is given up, the account service has not taken it: %s", attempt.detail)
        elif not attempt.taken and not self._is_failing:
            logger.warning(
                "the account service does not take an event, which is tried again: %s; %d wait",
                attempt.detail,
                self.waiting,
            )
        elif attempt.taken and self._is_failing:
            logger.warning("the account service takes events again")
        self._is_failing = not attempt.taken
