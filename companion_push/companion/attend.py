"""From arrived to done: each request is put to the person, and what the person said is carried out."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from companion_push.companion.consent import Answer, Consent
from companion_push.companion.inbox import CheckedRequest, Inbox, Notice, NoticeKind
from companion_push.companion.openers import Opener
from headless_passkey.errors import (
    HeadlessPasskeyError,
    NotApproved,
    Outcome,
    TransportError,
    TrustError,
    TrustReason,
)


class Outcomes:
    """How requests ended here. Feed it the inbox's notices; `error` is what the program ends with."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()  # at least one request has ended
        self.error: HeadlessPasskeyError | None = None
        self._answered = False

    def note(self, notice: Notice) -> None:
        """A request that was refused by a check, or went away before it was answered."""
        if notice.kind in (NoticeKind.REFUSED, NoticeKind.GONE) and not self._answered:
            self.error = self.error or notice.error
            self.ended.set()

    def answered(self, error: HeadlessPasskeyError | None) -> None:
        """A request that a person answered. error: None when it went well, or another companion has it."""
        self.error = (self.error if self._answered else None) or error
        self._answered = True
        self.ended.set()


async def wait_for_requests(
    inbox: Inbox, consent: Consent, opener: Opener, outcomes: Outcomes, *, once: bool
) -> None:
    """Follow the relay, and put to the person what arrives. once: return when one request has ended."""

    async def serve() -> None:
        while True:
            await put_pending(inbox, consent, opener, outcomes, once=once)
            if once and outcomes.ended.is_set():
                return
            await _first(inbox.changed(), outcomes.ended.wait() if once else asyncio.Event().wait())

    await _first(inbox.listen(), serve())


async def answer_pending(
    inbox: Inbox, consent: Consent, opener: Opener, outcomes: Outcomes, *, once: bool
) -> None:
    """Ask the relay once, and put to the person what is pending now; the rest is for another time."""
    await inbox.poll()
    await _first(
        inbox.listen(arrivals=False),  # what is withdrawn meanwhile is dismissed
        put_pending(inbox, consent, opener, outcomes, once=once),
    )


async def put_pending(
    inbox: Inbox, consent: Consent, opener: Opener, outcomes: Outcomes, *, once: bool
) -> None:
    """Put what is pending to the person, one act per request, until nothing is pending, or one is answered.

    When something arrives or goes while the person thinks, the question is taken back and asked anew, so that
    nobody answers a question other than the one on the screen. When nobody can be asked any more, that is reported,
    so that the request is left to other companions, and raised.
    """
    while pending := inbox.pending:
        asking = asyncio.ensure_future(consent.ask(pending))
        try:
            await _first(asyncio.wait({asking}), _differs(inbox, pending))
            if not asking.done():
                continue
            requests, answer = asking.result()
        except TransportError as error:  # nobody can be asked here any more
            for request in pending:
                await inbox.reject(request, error)
            raise
        finally:
            asking.cancel()
            await asyncio.wait({asking})
        answered = [request for request in requests if request in inbox.pending]
        for request in answered:
            outcomes.answered(await _carry_out(inbox, request, answer, opener))
        if once and answered:
            return


async def _differs(inbox: Inbox, pending: tuple[CheckedRequest, ...]) -> None:
    """Return when what is pending is not `pending` any more."""
    while inbox.pending == pending:
        seconds = inbox.drop_expired()
        try:
            async with asyncio.timeout(None if seconds is None else seconds + 0.01):
                await inbox.changed()
        except TimeoutError:
            continue


async def _carry_out(
    inbox: Inbox, request: CheckedRequest, answer: Answer, opener: Opener
) -> HeadlessPasskeyError | None:
    """What it came to, None when it went well or another companion has it."""
    try:
        match answer:
            case Answer.YES:
                await inbox.approve(request, opener)
                return None
            case Answer.NO:
                await inbox.decline(request)
                return NotApproved(Outcome.DECLINED, "declined")
            case Answer.WRONG_DIGITS:
                error = TrustError(TrustReason.WRONG_DIGITS, "those are not the digits that the device shows")
                await inbox.reject(request, error)
                return error
    except HeadlessPasskeyError as error:
        return error


async def _first(*works: Coroutine[Any, Any, object]) -> None:
    """Run all until the first ends, cancel the others, and raise what any of them raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    errors = [
        task.exception() for task in tasks if not task.cancelled()
    ]  # each is looked at, or asyncio complains
    for error in errors:
        if error is not None:
            raise error
