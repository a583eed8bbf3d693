"""Medians and ratios in pairs: subject and baseline run in turns, so that a disturbance affects both."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final, Self

ROUNDS: Final = 101
BATCH: Final = 0.004  # seconds that one turn should take, so that the clock's own cost does not count


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. Times are seconds."""

    what: str
    seconds: float
    against: str = ""
    baseline: float | None = None
    ratio: float | None = None  # the median of the turns' ratios, not the ratio of the medians
    aim: float | None = None  # the ratio should stay below this

    @classmethod
    def of_pairs(
        cls, what: str, against: str, pairs: Sequence[tuple[float, float]], *, aim: float | None = None
    ) -> Self:
        """pairs: the times of subject and baseline, for each turn."""
        return cls(
            what=what,
            seconds=median(first for first, _ in pairs),
            against=against,
            baseline=median(second for _, second in pairs),
            ratio=median(first / second for first, second in pairs),
            aim=aim,
        )

    @property
    def cells(self) -> tuple[str, ...]:
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        if self.aim is None or self.ratio is None:
            verdict = ""
        else:
            verdict = f"at most {self.aim:g}: " + ("yes" if self.ratio <= self.aim else "**no**")
        baseline = "" if self.baseline is None else shown(self.baseline)
        return self.what, shown(self.seconds), self.against, baseline, ratio, verdict


HEADINGS: Final = ("what", "median", "against", "median", "ratio", "aim")


def compare(
    what: str,
    subject: Callable[[], object],
    against: str,
    baseline: Callable[[], object],
    *,
    aim: float | None = None,
    rounds: int = ROUNDS,
) -> Row:
    """Measure `subject` and `baseline` in turns."""
    number = max(1, int(BATCH / min(_once(subject), _once(baseline))))
    pairs = []
    with _quiet():
        for turn in range(rounds):
            if turn % 2:
                second = timed(baseline, number)
                first = timed(subject, number)
            else:
                first = timed(subject, number)
                second = timed(baseline, number)
            pairs.append((first, second))
    return Row.of_pairs(what, against, pairs, aim=aim)


def timed(function: Callable[[], object], number: int = 1) -> float:
    """Seconds for one call, the mean of `number` in a row."""
    began = time.perf_counter()
    for _ in range(number):
        function()
    return (time.perf_counter() - began) / number


def processor_seconds(process: int, *, children: bool = False) -> float:
    """Seconds of processor time that a process has taken so far, all its threads.

    children: whether the processes that it has started count too.
    """
    seconds = 0.0
    for thread in Path(f"/proc/{process}/task").iterdir():
        seconds += int((thread / "schedstat").read_text().split()[0]) / 1e9
        if children:
            started = (thread / "children").read_text().split()
            seconds += sum(processor_seconds(int(each), children=True) for each in started)
    return seconds


def shown(seconds: float) -> str:
    """A time with three significant digits."""
    unit, size = next((each for each in _UNITS if seconds >= each[1]), _UNITS[-1])
    value = seconds / size
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"


_UNITS: Final = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown."""
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _once(function: Callable[[], object]) -> float:
    return max(1e-7, min(timed(function) for _ in range(5)))


class _quiet:  # noqa: N801  used as a statement
    """No garbage collection inside a measurement."""

    def __enter__(self) -> None:
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()
