"""The relay's metrics: what becomes of requests, what callers are answered, and how busy event loop and store are.

No label holds a name, an id or an address: their values are the states, the routes, the problems and the limits of this
program. The counters begin at 0 when the program starts.
"""

from collections.abc import Callable
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from companion_push.push.channel import Purpose, PushOutcome
from companion_push.relay.account_events import Step
from companion_push.relay.mailbox import HELD, LIVE
from companion_push.relay.operations import Answer, Change
from companion_push.relay.problems import Problem
from headless_passkey.request import RequestState
from http_serving.metrics import SECONDS, LoopLag

RECEIVED: Final = "received"
STORED: Final = "stored"
PUSHED: Final = "pushed"  # a push service has taken a push for it; one request may be pushed several times
RELEASED: Final = "released"  # the claim was given back, or its lease is over
MUTED: Final = "begun"
UNMUTED: Final = "ended"
MILESTONES: Final = (
    RECEIVED,
    STORED,
    PUSHED,
    *(state for state in RequestState if state != "pending"),
    RELEASED,
)
_AGES: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300)
_TIMED: Final = (RequestState.DELIVERED, RequestState.CLAIMED, RequestState.COMPLETED)


class RelayMetrics:
    """The metrics of one relay in one registry, which has room for one relay only."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float],
        held_calls: Callable[[], int],
        transactions: Callable[[], int],
        log_bytes: Callable[[], int],
        used_proofs: Callable[[], int],
        pushes: Callable[[], int],
        failing_services: Callable[[], int],
        events_waiting: Callable[[], int],
    ) -> None:
        """clock: Unix seconds. The others give a number of now."""
        self._clock = clock
        self.loop_lag = LoopLag(registry, "companion_push")
        place: Any = {"namespace": "companion_push", "subsystem": "relay", "registry": registry}
        self._requests = Counter(
            "requests", "Requests of devices that reached a milestone.", ["milestone"], **place
        )
        self._ages = Histogram(
            "request_age_seconds",
            "Time from a request's submission to a milestone, in whole seconds.",
            ["milestone"],
            buckets=_AGES,
            **place,
        )
        self._answers = Counter(
            "answers", "Answers by endpoint, status and problem.", ["endpoint", "status", "problem"], **place
        )
        self._seconds = Histogram(
            "answer_seconds",
            "Time from a call's head to its answer, of calls that were not willing to wait.",
            ["endpoint"],
            buckets=SECONDS,
            **place,
        )
        self._refused = Counter(
            "refused_by_limit", "Calls that a limit refused, by limit.", ["limit"], **place
        )
        self._store = Histogram(
            "store_seconds",
            "Time of a transaction of the store, from the call to the commit on the disk, waiting for others included.",
            buckets=SECONDS,
            **place,
        )
        Gauge("held_calls", "Calls that wait for news.", **place).set_function(held_calls)
        Gauge("transactions", "Transactions that run or wait.", **place).set_function(transactions)
        Gauge(
            "store_log_bytes",
            "Bytes of the write-ahead log beside the store's file; 0 with a database.",
            **place,
        ).set_function(log_bytes)
        Gauge("used_proofs", "Ids of proofs that are remembered.", **place).set_function(used_proofs)
        self._pushes = Counter(
            "pushes", "Pushes by channel, purpose and outcome.", ["channel", "purpose", "outcome"], **place
        )
        Gauge("pushes_under_way", "Pushes without an outcome.", **place).set_function(pushes)
        Gauge(
            "push_services_failing",
            "Push services that are left alone for a while, since they fail.",
            **place,
        ).set_function(failing_services)
        self._events = Counter(
            "account_events", "Events that the account service is to be told, by step.", ["step"], **place
        )
        Gauge(
            "account_events_waiting", "Events that the account service has not taken.", **place
        ).set_function(events_waiting)
        for step in Step:
            self._events.labels(step)
        self._mutes = Counter(
            "mutes", "Devices that were muted, and mutes that companions ended.", ["event"], **place
        )
        self._muted = Gauge("muted_devices", "Devices that are muted, counted twice a minute.", **place)
        for event in (MUTED, UNMUTED):
            self._mutes.labels(event)
        for milestone in MILESTONES:  # there from the start, so that their rates are right
            self._requests.labels(milestone)

    def received(self) -> None:
        """Count a submission by an authenticated caller, before any other check."""
        self._requests.labels(RECEIVED).inc()

    def follow(self, answer: Answer) -> None:
        """Count what an operation has changed."""
        for change in answer.changed:
            milestone = _milestone(change)
            if milestone is not None:
                self._requests.labels(milestone).inc()
            if milestone in _TIMED:
                self._ages.labels(milestone).observe(max(0.0, self._clock() - change.request.submitted_at))
        for step in answer.events:
            self._events.labels(step).inc()
        if answer.mutes is not None:
            self._mutes.labels(MUTED if answer.mutes else UNMUTED).inc()
        if answer.muted is not None:
            self._muted.set(answer.muted)
        for kind, purpose, outcome in answer.outcomes:
            self._pushes.labels(kind, purpose, outcome).inc()
            if purpose is Purpose.REQUEST and outcome is PushOutcome.SENT:
                self._requests.labels(PUSHED).inc()

    def transacted(self, seconds: float) -> None:
        self._store.observe(seconds)

    def answered(self, endpoint: str, status: int, problem: Problem | None, seconds: float | None) -> None:
        """Count an answer. endpoint: method and route. seconds: None for a call that was willing to wait."""
        slug = "none" if problem is None else str(problem.slug)
        self._answers.labels(endpoint, str(status), slug).inc()
        if seconds is not None:
            self._seconds.labels(endpoint).observe(seconds)
        if problem is not None and problem.policy is not None:
            self._refused.labels(problem.policy.name).inc()


def _milestone(change: Change) -> str | None:
    """The milestone that a change has reached; None when the request's state is the same."""
    state = change.request.state
    if change.was is None:
        return STORED
    if change.was is state:
        return None
    if change.was in HELD and state in LIVE - HELD:
        return RELEASED
    return str(state)
