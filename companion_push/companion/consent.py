"""Consent: how the user is shown a request, and asked.

The companion shows only what the device signed, and the device's label from the ring, which it got when it joined.
Names and notes are escaped for the terminal. Each request needs a consent of its own: of several pending requests
the user chooses one, or none. Where the device shows match digits, the user consents by typing them. There is one
attempt: a wrong number refuses the request, and input of another form is asked for again. At the terminal, Ctrl-D and Ctrl-C
mean no.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from companion_push.companion.inbox import CheckedRequest
from companion_push.companion.wording import ASKS
from headless_passkey.process.terminal import Terminal
from headless_passkey.text.domains import MAX_DOMAIN
from headless_passkey.text.names import printable, quoted
from headless_passkey.trust.envelope import Announcement

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
        self.terminal.show("", *describe(request, self.clock()), _MUTES)
        if request.announcement.digits is not None:
            return [request], await self._digits(request.announcement)
        answer = await self.terminal.ask("Approve? y or n:", meaning_of)
        return [request], answer or Answer.NO

    async def _choose(self, pending: Sequence[CheckedRequest]) -> CheckedRequest | None:
        """Ask which request the user means; None for none of them."""
        now = self.clock()
        self.terminal.show("", f"{len(pending)} requests are waiting:")
        for number, request in enumerate(pending, 1):
            self.terminal.show(f"  {number}  {summary(request)}, {_left(request, now)}")
        meanings = {str(number): number for number in range(1, len(pending) + 1)} | dict.fromkeys(_NO, 0)
        question = "Which one? Number, or n to decline them all:"
        which = await self.terminal.ask(question, lambda line: meanings.get(line.lower()))
        return pending[which - 1] if which else None

    async def _digits(self, said: Announcement) -> Answer:
        count = len(said.digits or "")

        def meaning(line: str) -> Answer | None:
            typed = "".join(line.split())
            said_no = meaning_of(line)
            if said_no in (Answer.NO, Answer.NOT_ME):
                return said_no
            if not (typed.isascii() and typed.isdigit() and len(typed) == count):
                return None
            return Answer.YES if said.digits_match(typed) else Answer.WRONG_DIGITS

        question = "Type the digits that the device shows, or n to decline:"
        answer = await self.terminal.ask(question, meaning, slip=f"That is no number of {count} digits.")
        return answer or Answer.NO


def meaning_of(line: str) -> Answer | None:
    """Parse what a person types in answer to a question for yes or no; None for anything else."""
    return _MEANINGS.get(" ".join(line.lower().split()))


def summary(request: CheckedRequest) -> str:
    """Describe a request in one line: the device, what it asks for, and the relying party."""
    said = request.announcement
    return f"{request.known_as} asks to {ASKS[said.kind]} at {printable(said.rp_id, MAX_DOMAIN)}"


def describe(request: CheckedRequest, now: float) -> list[str]:
    """Describe a request completely, in lines. now: Unix seconds by our clock."""
    said = request.announcement
    at = printable(said.rp_id, MAX_DOMAIN)
    if said.rp_name is not None:
        at += f" (in its words: {quoted(said.rp_name)})"
    lines = [
        f"{request.known_as} asks to {ASKS[said.kind]}",
        f"  at       {at}",
    ]
    if said.note is not None:
        lines.append(f"  it says  {quoted(said.note, 140)}")
    clock_time = time.strftime("%H:%M:%S", time.localtime(said.expires))
    lines.append(f"  until    {clock_time} ({_left(request, now)})")
    return lines


def _left(request: CheckedRequest, now: float) -> str:
    seconds = int(request.announcement.expires - now)
    return f"{seconds} s left" if seconds > 0 else "about to expire"
