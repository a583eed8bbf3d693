"""What a person is shown of a request, and asked.

Everything shown comes from the part that the device signed, and the device's name from the ring, where it got
it when it joined. What names and notes hold is made harmless for the terminal first. Consent is one act per
request: several that wait are listed, and the person says which one is meant. Where the device shows digits,
typing them is the consent, once: a wrong number is an answer too.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from companion_push.companion.inbox import CheckedRequest
from companion_push.companion.terminal import Terminal
from headless_passkey.names import printable
from headless_passkey.trust.envelope import Kind

_YES: Final = ("y", "yes")
_NO: Final = ("n", "no")
_ASKS: Final = {Kind.GET_ASSERTION: "sign in", Kind.MAKE_CREDENTIAL: "create a passkey"}


class Answer(Enum):
    """What the person said."""

    YES = "yes"
    NO = "no"
    WRONG_DIGITS = "wrong digits"


class Consent(Protocol):
    """Somebody, or some policy, that answers requests."""

    async def ask(self, pending: Sequence[CheckedRequest]) -> tuple[CheckedRequest, Answer]:
        """Which of `pending` (at least one) is answered, and how. Cancelled when `pending` has changed."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Answers every request alike and asks nobody, digits included: for tests."""

    answer: Answer

    async def ask(self, pending: Sequence[CheckedRequest]) -> tuple[CheckedRequest, Answer]:
        return pending[0], self.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class AtTerminal:
    """A person at the terminal."""

    terminal: Terminal
    clock: Callable[[], float] = time.time

    async def ask(self, pending: Sequence[CheckedRequest]) -> tuple[CheckedRequest, Answer]:
        request = pending[0] if len(pending) == 1 else await self._choose(pending)
        self.terminal.show("", *describe(request, self.clock()))
        if request.announcement.digits is not None:
            return request, await self._digits(request)
        while True:
            answer = (await self.terminal.ask("Approve? y or n:")).lower()
            if answer in _YES:
                return request, Answer.YES
            if answer in _NO:
                return request, Answer.NO

    async def _choose(self, pending: Sequence[CheckedRequest]) -> CheckedRequest:
        now = self.clock()
        self.terminal.show("", f"{len(pending)} requests are waiting:")
        for number, request in enumerate(pending, 1):
            self.terminal.show(f"  {number}  {summary(request)}, {_left(request, now)}")
        by_number = {str(number): request for number, request in enumerate(pending, 1)}
        while True:
            answer = await self.terminal.ask("Which one? Number:")
            if answer in by_number:
                return by_number[answer]

    async def _digits(self, request: CheckedRequest) -> Answer:
        typed = ""
        while not typed:
            typed = await self.terminal.ask("Type the digits that the device shows, or n to decline:")
        if typed.lower() in _NO:
            return Answer.NO
        return Answer.YES if request.announcement.digits_match(typed) else Answer.WRONG_DIGITS


def summary(request: CheckedRequest) -> str:
    """One line: who asks for what, where."""
    said = request.announcement
    return f"{printable(request.device.label)} asks to {_ASKS[said.kind]} at {printable(said.rp_id, 253)}"


def describe(request: CheckedRequest, now: float) -> list[str]:
    """Everything a person needs to decide. now: Unix seconds by our clock."""
    said = request.announcement
    at = printable(said.rp_id, 253)
    if said.rp_name is not None:
        at += f' (in its words: "{printable(said.rp_name)}")'
    lines = [
        f"{printable(request.device.label)} asks to {_ASKS[said.kind]}",
        f"  at       {at}",
    ]
    if said.note is not None:
        lines.append(f'  it says  "{printable(said.note, 140)}"')
    clock_time = time.strftime("%H:%M:%S", time.localtime(said.expires))
    lines.append(f"  until    {clock_time} ({_left(request, now)})")
    return lines


def _left(request: CheckedRequest, now: float) -> str:
    seconds = int(request.announcement.expires - now)
    return f"{seconds} s left" if seconds > 0 else "about to expire"
