"""The bound on log lines of a server."""

import asyncio

from http_serving.log_limit import LogLimit


class Lines:
    """A limit of three lines in ten seconds, by a clock that stands still, and what it told."""

    def __init__(self, *, seconds: float = 10.0) -> None:
        self.now = 0.0
        self.told: list[tuple[str, int]] = []
        self.heard = asyncio.Event()
        self.limit = LogLimit(tell=self._tell, most=3, seconds=seconds, clock=lambda: self.now)

    def _tell(self, kind: str, count: int) -> None:
        self.told.append((kind, count))
        self.heard.set()

    def log(self, count: int, kind: str = "a") -> int:
        return sum(self.limit.allows(kind) for _ in range(count))


def test_the_first_lines_of_a_period_are_logged_and_the_others_are_counted() -> None:
    lines = Lines()
    assert lines.log(1000) == 3
    assert lines.told == []
    lines.now = 9.9
    assert lines.log(1) == 0
    lines.now = 10.0
    assert lines.log(5) == 3
    assert lines.told == [("a", 998)]


def test_a_kind_of_line_does_not_hide_another() -> None:
    lines = Lines()
    assert (lines.log(50, "a"), lines.log(2, "b")) == (3, 2)
    lines.limit.end()
    assert lines.told == [("a", 47)]


def test_where_nothing_was_left_out_nothing_is_told() -> None:
    lines = Lines()
    assert lines.log(3) == 3
    lines.limit.end()
    lines.limit.end()
    assert lines.told == []


async def test_when_the_flood_is_over_its_number_is_told_without_a_further_line() -> None:
    lines = Lines(seconds=0.01)
    assert lines.log(20) == 3
    await lines.heard.wait()
    assert lines.told == [("a", 17)]
    assert lines.log(20) == 3
    lines.limit.end()
    assert lines.told == [("a", 17), ("a", 17)]


async def test_what_is_kept_does_not_grow_with_the_flood() -> None:
    lines = Lines()
    lines.log(100_000)
    assert len(lines.limit._periods) == 1
