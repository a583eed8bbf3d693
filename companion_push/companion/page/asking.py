"""What the page shows, and the user's answers: a `Consent` and an `Opener`, as the terminal and the QR code on it are.

The page has no rules of its own: it is asked by `attend.put_pending`, and parses answers with `consent.answer_of`. Of several
browsers the first answer counts. The URL is given to the browser alone that has answered yes, and to nobody once the
request has ended.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Final

from companion_push.companion import qr
from companion_push.companion.consent import (
    Answered,
    answer_of,
    description,
    slip_of,
    told,
)
from companion_push.companion.inbox import CheckedRequest, Notice, NoticeKind
from companion_push.companion.openers import Opening
from companion_push.companion.wording import ASKS, must_say
from program_parts.base64url import base64url
from program_parts.domains import MAX_DOMAIN
from program_parts.names import printable

MAX_NOTICES: Final = 20  # that the page shows

By = object  # whoever answers: compared by identity


class Reception(Enum):
    """What became of an answer."""

    TAKEN = "taken"
    GONE = "gone"  # nobody asks about this request now
    SLIP = "slip"  # it is no answer to this request


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A request whose URL a browser shows."""

    opening: Opening
    modules: list[str] = field(repr=False)  # of the QR code
    by: By
    ends: float  # seconds, of the loop's clock


class AtPage:
    """Asks the user on the page, and shows the QR code there."""

    handed_over: ClassVar[str] = "the QR code is on the page"
    phone_checks: ClassVar[bool] = True  # beside the code it says what the phone must name
    stays: ClassVar[bool] = True

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.version = 0  # of what is shown
        self.ended = False  # whether the companion answers nothing any more
        self.reached: bool | None = None  # whether the relay has answered; None: it was not asked yet
        self._news = asyncio.Event()
        self._shown: list[CheckedRequest] = []
        self._answer: asyncio.Future[Answered] | None = None  # while the user is asked about those shown
        self._by: By = None  # who gave the last answer
        self._open: _Open | None = None
        self._notices: deque[tuple[float, str]] = deque(maxlen=MAX_NOTICES)

    # Consent

    async def ask(self, pending: Sequence[CheckedRequest]) -> Answered:
        """Ask about `pending` until one is answered; see `Consent`."""
        self._shown = list(pending)
        self._answer = asyncio.get_running_loop().create_future()
        self.publish()
        try:
            return await self._answer
        finally:
            self._answer = None
            self.publish()

    def answer(self, name: str, line: str, *, by: By) -> Reception:
        """Take an answer to the request of that name. line: as it is typed at the terminal; the digits are a yes."""
        request = next((each for each in self._pending() if name_of(each) == name), None)
        if request is None or self._answer is None or not self._asks:
            return Reception.GONE
        answer = answer_of(request.announcement, line)
        if answer is None:
            return Reception.SLIP
        self._by = by
        self._shown.remove(request)
        self._answer.set_result(([request], answer))
        self.publish()
        return Reception.TAKEN

    def slip(self, name: str) -> str:
        """What to say about an answer that is none."""
        for each in self._pending():
            if name_of(each) == name and each.announcement.digits is not None:
                return slip_of(each.announcement)
        return "That is no answer."

    # Opener

    @contextlib.asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[None]:
        """Show the URL to whoever has answered yes, until the request has ended; see `Opener`."""
        clock = asyncio.get_running_loop().time
        modules = qr.Code(opening.url).modules()
        self._open = _Open(opening=opening, modules=modules, by=self._by, ends=clock() + opening.seconds)
        self.publish()
        try:
            yield
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._open.ends):
                    await opening.over.wait()
        finally:
            self._open = None
            self.publish()

    # What is shown

    def note(self, notice: Notice) -> None:
        """Take a notice of the inbox."""
        if notice.kind in (NoticeKind.LISTENING, NoticeKind.UNREACHABLE):
            self.reached = notice.kind is NoticeKind.LISTENING
        if notice.arrived is not None and notice.arrived not in self._shown:
            self._shown.append(notice.arrived)
        self._notices.append((self._clock(), told(notice)))
        self.publish()

    def end(self) -> None:
        """Let whoever waits for news know that none come any more."""
        self.ended = True
        self.publish()

    async def newer(self, seen: int) -> None:
        """Return when what is shown is of another version than `seen`."""
        while self.version == seen and not self.ended:
            await self._news.wait()

    def state(self, *, by: By) -> dict[str, Any]:
        """What the page shows to `by`, for JSON; the URL only to whoever has answered yes."""
        return {
            "version": self.version,
            "reached": self.reached,
            "asking": self._asks,
            "requests": [self._request(each) for each in self._pending()],
            "open": None if self._open is None else self._opened(self._open, by),
            "notices": [{"at": at, "text": text} for at, text in self._notices],
        }

    @property
    def _asks(self) -> bool:
        """Whether an answer would be taken now: not while one is carried out, and what arrives meanwhile waits."""
        return self._answer is not None and not self._answer.done()

    def _pending(self) -> list[CheckedRequest]:
        now = self._clock()
        return [each for each in self._shown if not each.over.is_set() and each.seconds_left(now) > 0]

    def _request(self, request: CheckedRequest) -> dict[str, Any]:
        shown, digits = description(request), request.announcement.digits
        return {
            "name": name_of(request),
            "asks": shown.asks,
            "at": shown.at,
            "words": shown.words,
            "note": shown.note,
            "expires": request.announcement.expires,
            "seconds": int(request.seconds_left(self._clock())),
            "digits": None if digits is None else len(digits),
        }

    def _opened(self, found: _Open, by: By) -> dict[str, Any]:
        opening = found.opening
        announced = opening.announced
        rp_id = printable(announced.rp_id, MAX_DOMAIN)
        shown: dict[str, Any] = {
            "asks": f"{opening.device} asks to {ASKS[announced.kind]}",
            "at": rp_id,
            "compare": must_say(announced.rp_id),
            "seconds": max(0, int(found.ends - asyncio.get_running_loop().time())),
            "url": None,
            "modules": None,
        }
        if found.by is by:
            shown |= {"url": opening.url, "modules": found.modules}
        return shown

    def publish(self) -> None:
        """Let every browser ask for what is shown."""
        self.version += 1
        self._news.set()
        self._news = asyncio.Event()


def name_of(request: CheckedRequest) -> str:
    """Name a request towards the page: device and request id, which together are of one request."""
    device, request_id = request.key
    return f"{device}.{base64url(request_id)}"
