"""Consent: how the user is shown a request, and asked, at the terminal or on the page (`page.asking`).

The companion shows only what the device signed, and the device's label from the ring, which it got when it joined.
Names and notes are escaped for one line each. Each request needs a consent of its own: of several pending requests
the user chooses one, or none. Where the device shows match digits, the user consents by typing them. There is one
attempt: a wrong number refuses the request, and input of another form is asked for again. At the terminal, Ctrl-D and Ctrl-C
mean no.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Final, Protocol

from companion_push.companion.inbox import CheckedRequest, Notice, NoticeKind
from companion_push.companion.wording import ASKS
from headless_passkey.process.terminal import Terminal
from headless_passkey.trust.envelope import Announcement
from program_parts.domains import MAX_DOMAIN
from program_parts.names import printable, quoted

_NO: Final = ("n", "no")
_NOT_ME: Final = ("not me", "not-me", "notme")


class Answer(Enum):
    """The user's answer."""

    YES = "yes"
    NO = "no"
    NOT_ME = "not me"  # a no, and the device is muted
    WRONG_DIGITS = "wrong digits"


_MEANINGS: Final = {
    **dict.fromkeys(("y", "yes"), Answer.YES),
    **dict.fromkeys(_NO, Answer.NO),
    **dict.fromkeys(_NOT_ME, Answer.NOT_ME),
}
_MUTES: Final = (
    'If you did not ask for this, type "not me": it declines, and mutes this device until you say otherwise.'
)

Answered = tuple[Sequence[CheckedRequest], Answer]


class Consent(Protocol):
    """Answers requests: a user, or a policy."""

    async def ask(self, pending: Sequence[CheckedRequest]) -> Answered:
        """Ask about `pending`, at least one; returns the answered requests: one, or several with the same no.

        Cancelled when `pending` has changed. `TransportError` when nobody can be asked any more.
        """


UNASKED: Final = (
    "WARNING: --consent accept approves every request without asking anybody, and compares no digits"
)


@dataclass(frozen=True, slots=True)
class Policy:
    """Answers every request alike without asking, match digits included. For tests."""

    answer: Answer
    on_use: Callable[[CheckedRequest], None] = lambda _request: None  # called before each answer

    async def ask(self, pending: Sequence[CheckedRequest]) -> Answered:
        self.on_use(pending[0])
        return pending[:1], self.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class AtTerminal:
    """Asks the user at the terminal."""

    terminal: Terminal
    clock: Callable[[], float] = time.time

    async def ask(self, pending: Sequence[CheckedRequest]) -> Answered:
        request = pending[0] if len(pending) == 1 else await self._choose(pending)
        if request is None:
            return pending, Answer.NO
        await self.terminal.show("", *describe(request, self.clock()), _MUTES)
        said = request.announcement
        slip = None if said.digits is None else slip_of(said)
        question = (
            "Approve? y or n:"
            if said.digits is None
            else "Type the digits that the device shows, or n to decline:"
        )
        answer = await self.terminal.ask(question, partial(answer_of, said), slip=slip)
        return [request], answer or Answer.NO

    async def _choose(self, pending: Sequence[CheckedRequest]) -> CheckedRequest | None:
        """Ask which request the user means; None for none of them."""
        now = self.clock()
        await self.terminal.show("", f"{len(pending)} requests are waiting:")
        for number, request in enumerate(pending, 1):
            await self.terminal.show(f"  {number}  {summary(request)}, {_left(request, now)}")
        meanings = {str(number): number for number in range(1, len(pending) + 1)} | dict.fromkeys(_NO, 0)
        question = "Which one? Number, or n to decline them all:"
        which = await self.terminal.ask(question, lambda line: meanings.get(line.lower()))
        return pending[which - 1] if which else None


def answer_of(said: Announcement, line: str) -> Answer | None:
    """Parse the user's answer to a request; None for what is none, and is asked for again.

    Where the device shows match digits, the digits are the yes.
    """
    answer = meaning_of(line)
    if said.digits is None or answer in (Answer.NO, Answer.NOT_ME):
        return answer
    typed = "".join(line.split())
    if not (typed.isascii() and typed.isdigit() and len(typed) == len(said.digits)):
        return None
    return Answer.YES if said.digits_match(typed) else Answer.WRONG_DIGITS


def slip_of(said: Announcement) -> str:
    """Say what was wrong with an answer that is none, where digits are typed."""
    return f"That is no number of {len(said.digits or '')} digits."


def meaning_of(line: str) -> Answer | None:
    """Parse what a person types in answer to a question for yes or no; None for anything else."""
    return _MEANINGS.get(" ".join(line.lower().split()))


def summary(request: CheckedRequest) -> str:
    """Describe a request in one line: the device, what it asks for, and the relying party."""
    said = request.announcement
    return f"{request.known_as} asks to {ASKS[said.kind]} at {printable(said.rp_id, MAX_DOMAIN)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What the user is shown of a request, each text escaped for one line. It holds neither URL nor digits."""

    asks: str  # the device, and what it asks for
    at: str  # the relying party
    words: str | None  # what the device calls it
    note: str | None  # what the device says


def description(request: CheckedRequest) -> Description:
    """Describe a request completely."""
    said = request.announcement
    return Description(
        asks=f"{request.known_as} asks to {ASKS[said.kind]}",
        at=printable(said.rp_id, MAX_DOMAIN),
        words=None if said.rp_name is None else quoted(said.rp_name),
        note=None if said.note is None else quoted(said.note, 140),
    )


def describe(request: CheckedRequest, now: float) -> list[str]:
    """Describe a request completely, in lines. now: Unix seconds by our clock."""
    shown = description(request)
    words = "" if shown.words is None else f" (in its words: {shown.words})"
    lines = [shown.asks, f"  at       {shown.at}{words}"]
    if shown.note is not None:
        lines.append(f"  it says  {shown.note}")
    clock_time = time.strftime("%H:%M:%S", time.localtime(request.announcement.expires))
    lines.append(f"  until    {clock_time} ({_left(request, now)})")
    return lines


def told(notice: Notice) -> str:
    """A notice in one line."""
    if notice.arrived is not None:
        return summary(notice.arrived)
    said = printable(": ".join(filter(None, (notice.message, notice.advice))), 400)
    match notice.kind:
        case NoticeKind.REFUSED:
            return f"refused a request: {said} [{notice.reason}]"
        case NoticeKind.FAILED:
            return f"failed: {said}"
        case _:
            return said


def _left(request: CheckedRequest, now: float) -> str:
    seconds = int(request.announcement.expires - now)
    return f"{seconds} s left" if seconds > 0 else "about to expire"
