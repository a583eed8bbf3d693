"""Metrics in the Prometheus text format (version 0.0.4). They hold neither users nor credentials, and do no I/O.

Each label has a few fixed values, so that clients cannot create time series (cardinality).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PREFIX: Final = "relying_party_"
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
LAG_SECONDS: Final = 0.5  # between two looks at the event loop
HELP: Final = {
    "requests_total": ("counter", "Requests by route and status."),
    "request_seconds": ("histogram", "Time from a request's head to its answer."),
    "loop_lag_seconds": ("histogram", f"How late the event loop was, looked at every {LAG_SECONDS} s."),
    "ceremonies_total": ("counter", "Ceremonies by purpose, kind of client and outcome."),
    "refusals_total": ("counter", "Ceremonies that did not verify, by the check that failed."),
    "backup_eligibility_changes_total": (
        "counter",
        "Passkeys whose backup eligibility was gained or lost, and whether that was accepted or refused.",
    ),
    "counter_anomalies_total": ("counter", "Signature counters that did not grow."),
    "refresh_reuse_total": ("counter", "Sessions ended since a spent refresh token came back."),
    "refresh_late_total": ("counter", "Late copies of a refresh that was answered, which end nothing."),
    "introspections_total": (
        "counter",
        "Tokens that resource servers asked about, by whether they are good.",
    ),
    "rate_limited_total": ("counter", "Requests that came too soon."),
    "connections_closed_total": (
        "counter",
        "Connections that the server closed (handshake, head, idle, evicted), and what it refused, by reason.",
    ),
    "store_log_bytes": (
        "gauge",
        "Length of the write-ahead log beside the store's file when it was last used; 0 with another store.",
    ),
}

_Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Histogram:
    """Times, counted by the bounds of `SECONDS`."""

    _buckets: list[int] = field(default_factory=lambda: [0] * len(SECONDS))
    _sum: float = 0.0
    _count: int = 0

    def observe(self, seconds: float) -> None:
        self._count += 1
        self._sum += seconds
        for index, most in enumerate(SECONDS):
            self._buckets[index] += seconds <= most

    def lines(self, name: str) -> list[str]:
        buckets = [*zip(map(str, SECONDS), self._buckets, strict=True), ("+Inf", self._count)]
        return [
            *(f'{PREFIX}{name}_bucket{{le="{most}"}} {count}' for most, count in buckets),
            f"{PREFIX}{name}_sum {self._sum:.6f}",
            f"{PREFIX}{name}_count {self._count}",
        ]


@dataclass(slots=True)
class Metrics:
    """The counters of one application, and what is read when somebody looks."""

    store_log_bytes: Callable[[], int] = lambda: 0

    _counts: dict[tuple[str, _Labels], int] = field(default_factory=dict)
    _histograms: dict[str, _Histogram] = field(
        default_factory=lambda: {
            name: _Histogram() for name, (kind, _) in HELP.items() if kind == "histogram"
        }
    )

    def count(self, name: str, **labels: str) -> None:
        key = (name, tuple(labels.items()))
        self._counts[key] = self._counts.get(key, 0) + 1

    def request(self, *, route: str, status: int, seconds: float) -> None:
        self.count("requests_total", route=route, status=str(status))
        self._histograms["request_seconds"].observe(seconds)

    async def watch_loop(self) -> None:
        """Look regularly how late the event loop runs what is due, until it is cancelled: for so long everybody waits."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._histograms["loop_lag_seconds"].observe(max(0.0, loop.time() - due))

    def text(self) -> str:
        lines = []
        for name, (kind, about) in HELP.items():
            lines += [f"# HELP {PREFIX}{name} {about}", f"# TYPE {PREFIX}{name} {kind}"]
            if name in self._histograms:
                lines += self._histograms[name].lines(name)
            elif kind == "gauge":
                lines.append(f"{PREFIX}{name} {getattr(self, name)()}")
            else:
                lines += self._counters(name)
        return "\n".join(lines) + "\n"

    def _counters(self, name: str) -> list[str]:
        return [
            f"{PREFIX}{name}{_braces(labels)} {count}"
            for (counted, labels), count in sorted(self._counts.items())
            if counted == name
        ]


def _braces(labels: _Labels) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}" if labels else ""
