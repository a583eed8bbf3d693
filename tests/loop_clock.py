"""The event loop's clock in a test's hands: a deadline passes when the test says so, however slow the machine is."""

import asyncio


class LoopClock:
    """The running loop's clock, which a test moves on.

    Whatever waits for a time, as `asyncio.timeout` and `asyncio.sleep` do, waits for this clock. So a test gives a
    deadline that no machine misses, waits for the event itself, and then lets the deadline pass.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ahead = 0.0
        real = loop.time
        loop.time = lambda: real() + self._ahead  # type: ignore[method-assign]

    def passes(self, seconds: float) -> None:
        """So much time has gone by, as far as the loop knows."""
        self._ahead += seconds
