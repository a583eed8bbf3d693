"""The loop of the companion program: it asks the user about each request, and carries the answer out."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
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
from headless_passkey.process.tasks import end


class Outcomes:
    """Records how requests ended, from the inbox's notices. The program ends with `error`."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()  # at least one request has ended
        self.error: HeadlessPasskeyError | None = None
        self._answered = False

    def note(self, notice: Notice) -> None:
        """Take a notice: a check refused a request, or a request ended before its answer."""
        if notice.kind in (NoticeKind.REFUSED, NoticeKind.GONE) and not self._answered:
            self.error = self.error or notice.error
            self.ended.set()

    def answered(self, error: HeadlessPasskeyError | None) -> None:
        """Take the end of an answered request. error: None when it succeeded, or when another companion has it."""
        self.error = (self.error if self._answered else None) or error
        self._answered = True
        self.ended.set()


async def wait_for_requests(
    inbox: Inbox, consent: Consent, opener: Opener, outcomes: Outcomes, *, once: bool
) -> None:
    """Wait for requests, and ask the user about each. once: return when one request has ended."""

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
    """Fetch the pending requests once, and ask the user about them; later requests are not fetched."""
    await inbox.poll()
    await _first(
        inbox.listen(arrivals=False),  # notices requests that are withdrawn meanwhile
        put_pending(inbox, consent, opener, outcomes, once=once),
    )


async def put_pending(
    inbox: Inbox, consent: Consent, opener: Opener, outcomes: Outcomes, *, once: bool
) -> None:
    """Ask the user about pending requests, one answer a request, until none is pending or one is answered.

    When the list of pending requests changes, the question is cancelled and asked again, so that an answer always
    belongs to the question on the screen. When nobody can be asked any more, the error is reported to the relay, which
    leaves the request to other companions, and raised.
    """
    while pending := inbox.pending:
        asking = asyncio.ensure_future(consent.ask(pending))
        try:
            await _first(asyncio.wait({asking}), _differs(inbox, pending))
            if not asking.done():
                continue
            requests, answer = asking.result()
        except TransportError as error:  # the terminal is gone
            with suppress(HeadlessPasskeyError):  # the relay too: there is nobody to tell
                for request in pending:
                    with suppress(NotApproved):  # it has ended meanwhile
                        await inbox.reject(request, error)
            raise
        finally:
            await end(asking)
        answered = [request for request in requests if request in inbox.pending]
        for request in answered:
            outcomes.answered(await _carry_out(inbox, request, answer, opener))
        if once and answered:
            return


async def _differs(inbox: Inbox, pending: tuple[CheckedRequest, ...]) -> None:
    """Return when the pending requests differ from `pending`."""
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
    """Carry out an answer; returns the error, or None when it succeeded or another companion has the request."""
    try:
        match answer:
            case Answer.YES:
                await inbox.approve(request, opener)
                return None
            case Answer.NO:
                await inbox.decline(request)
                return NotApproved(Outcome.DECLINED, "declined")
            case Answer.NOT_ME:
                await inbox.decline(request, not_me=True)
                return NotApproved(Outcome.DECLINED, "declined, and the device is muted")
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
        await end(*tasks)
    errors = [
        task.exception() for task in tasks if not task.cancelled()
    ]  # each is retrieved, or asyncio logs a warning
    for error in errors:
        if error is not None:
            raise error
