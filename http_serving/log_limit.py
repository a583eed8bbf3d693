"""A rate limit for log lines that strangers can cause: the first lines of a minute, and then one line with the number of the rest."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

MAX_LINES: Final = 30  # of one kind in one period
PERIOD: Final = 60.0  # seconds


@dataclass(slots=True)
class _Period:
    ends: float  # by the limit's clock
    logged: int = 0
    left_out: int = 0


@dataclass(slots=True, kw_only=True)
class LogLimit:
    """Decides which lines may be logged. Its memory is bounded: two numbers for each kind of line."""

    tell: Callable[[str, int], None]  # logs that so many lines of a kind were left out
    most: int = MAX_LINES
    seconds: float = PERIOD
    clock: Callable[[], float] = time.monotonic
    _periods: dict[str, _Period] = field(default_factory=dict)

    def allows(self, kind: str) -> bool:
        """Whether one more line of that kind may be logged now. Kinds are our own words, and few."""
        period = self._periods.get(kind)
        if period is None or self.clock() >= period.ends:
            self._end(kind)
            period = self._periods[kind] = _Period(self.clock() + self.seconds)
        if period.logged < self.most:
            period.logged += 1
            return True
        if period.left_out == 0:
            with contextlib.suppress(RuntimeError):  # without a loop, the next line ends the period
                asyncio.get_running_loop().call_later(self.seconds, self._end, kind, period)
        period.left_out += 1
        return False

    def end(self) -> None:
        """Tell at once what was left out, as when the program ends."""
        for kind in list(self._periods):
            self._end(kind)

    def _end(self, kind: str, period: _Period | None = None) -> None:
        """End the period of that kind, or only if it still is `period`, and tell what was left out in it."""
        ended = self._periods.get(kind)
        if ended is None or (period is not None and period is not ended):
            return
        del self._periods[kind]
        if ended.left_out:
            self.tell(kind, ended.left_out)
