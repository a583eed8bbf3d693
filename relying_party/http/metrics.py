"""What the relying party counts, in Prometheus' format. It tells neither users nor credentials.

Each label has a few fixed values, so that clients cannot create time series (cardinality).
"""

from collections.abc import Callable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from http_serving.metrics import SECONDS, LoopLag

PREFIX: Final = "relying_party"
# what is counted, by name: what it is, and its labels
COUNTED: Final[dict[str, tuple[str, Sequence[str]]]] = {
    "requests_total": ("Requests by route and status.", ("route", "status")),
    "ceremonies_total": (
        "Ceremonies by purpose, kind of client and outcome.",
        ("purpose", "kind", "outcome"),
    ),
    "refusals_total": ("Ceremonies that did not verify, by the check that failed.", ("check",)),
    "backup_eligibility_changes_total": (
        "Passkeys whose backup eligibility was gained or lost, and whether that was accepted or refused.",
        ("change", "outcome"),
    ),
    "counter_anomalies_total": ("Signature counters that did not grow.", ()),
    "refresh_reuse_total": ("Sessions ended since a spent refresh token came back.", ()),
    "refresh_late_total": ("Late copies of a refresh that was answered, which end nothing.", ()),
    "introspections_total": (
        "Tokens that resource servers asked about, by whether they are good.",
        ("active",),
    ),
    "rate_limited_total": ("Requests that came too soon.", ()),
}


class Metrics:
    """The metrics of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.loop_lag = LoopLag(self.registry, PREFIX)
        self._counters = {
            name: Counter(name, about, labels, namespace=PREFIX, registry=self.registry)
            for name, (about, labels) in COUNTED.items()
        }
        self._seconds = Histogram(
            "request_seconds",
            "Time from a request's head to its answer.",
            namespace=PREFIX,
            buckets=SECONDS,
            registry=self.registry,
        )
        self._log = Gauge(
            "store_log_bytes",
            "Length of the write-ahead log beside the store's file when it was last used; 0 with another store.",
            namespace=PREFIX,
            registry=self.registry,
        )

    def count(self, name: str, **labels: str) -> None:
        counter = self._counters[name]
        (counter.labels(**labels) if labels else counter).inc()

    def request(self, *, route: str, status: int, seconds: float) -> None:
        self.count("requests_total", route=route, status=str(status))
        self._seconds.observe(seconds)

    def shows_log(self, length: Callable[[], int]) -> None:
        """Show the length of the store's log from now on."""
        self._log.set_function(length)
