"""The event loop's clock in a test's hands: a deadline passes when the test says so, however slow the machine is."""

import asyncio


class LoopClock:
    """The running loop's clock, which a test moves on.

    Whatever waits for a time, as `asyncio.timeout` and `asyncio.sleep` do, waits for this clock. So a test gives a
    deadline that no machine misses, waits for the event itself, and then lets the deadline pass. Where one of two
    deadlines is to pass shortly before the other, the clock is stopped first, so that no machine misses the second.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ahead = 0.0
        self._real = loop.time
        self._stopped: float | None = None
        loop.time = self._now  # type: ignore[method-assign]

    def _now(self) -> float:
        return (self._real() if self._stopped is None else self._stopped) + self._ahead

    def stop(self) -> None:
        """Time goes by only as the test says, from now on."""
        self._stopped = self._real()

    def passes(self, seconds: float) -> None:
        """So much time has gone by, as far as the loop knows."""
        self._ahead += seconds
