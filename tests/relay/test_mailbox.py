"""The mailbox rules: the table of docs/protocol/relay.md, and what no sequence of events may bring about."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from companion_push.relay.mailbox import (
    CEILING,
    GRACE,
    LIVE,
    CompanionEvent,
    DeviceEvent,
    Failure,
    Quota,
    Rate,
    Request,
    State,
)
from companion_push.relay.problems import Problem, Slug

NOW = 1_800_000_000
ANNA, BERT = "anna", "bert"
FRAME = "frame"


def pending(*, device: str = FRAME, name: str = "r1") -> Request:
    return Request(
        account="alice",
        device=device,
        id=name,
        recipients=(ANNA, BERT),
        fingerprint=bytes(32),
        submitted_at=NOW,
        expires_at=NOW + CEILING,
    )


def in_state(state: State) -> Request:
    """A request in `state`; from `claimed` on Anna holds the claim."""
    claimed = state in (State.CLAIMED, State.OPENED, State.COMPLETED)
    return replace(pending(), state=state, version=7, claimed_by=ANNA if claimed else None)


def refused(request: Request, *what: object) -> Slug:
    """The slug with which an event is refused: (event,) of the device, or (companion, event)."""
    with pytest.raises(Problem) as problem:
        tell(request, *what)
    assert problem.value.members == {"state": request.state, "version": request.version}
    return problem.value.slug


def tell(request: Request, *what: object) -> Request:
    match what:
        case (DeviceEvent() as event,):
            return request.device_says(event, "because")
        case (str() as by, CompanionEvent() as event):
            return request.companion_says(by, event, "because")
    raise AssertionError(what)


P, D, C, O = State.PENDING, State.DELIVERED, State.CLAIMED, State.OPENED  # noqa: E741
TERMINAL = [state for state in State if state not in LIVE]

ALLOWED = [
    (P, (ANNA, CompanionEvent.CLAIMED), C),
    (D, (ANNA, CompanionEvent.CLAIMED), C),
    (C, (ANNA, CompanionEvent.OPENED), O),
    (P, (BERT, CompanionEvent.DECLINED), State.DECLINED),
    (D, (BERT, CompanionEvent.DECLINED), State.DECLINED),
    (C, (ANNA, CompanionEvent.DECLINED), State.DECLINED),
    (O, (ANNA, CompanionEvent.DECLINED), State.DECLINED),
    (C, (ANNA, CompanionEvent.FAILED), State.FAILED),
    (O, (ANNA, CompanionEvent.FAILED), State.FAILED),
    (P, (BERT, CompanionEvent.FAILED), P),
    (D, (BERT, CompanionEvent.FAILED), D),
    (C, (BERT, CompanionEvent.FAILED), C),
    (O, (BERT, CompanionEvent.FAILED), O),
    *[(state, (DeviceEvent.CANCELLED,), State.CANCELLED) for state in (P, D, C, O)],
    *[(state, (DeviceEvent.FAILED,), State.FAILED) for state in (P, D, C, O)],
    (C, (DeviceEvent.COMPLETED,), State.COMPLETED),
    (O, (DeviceEvent.COMPLETED,), State.COMPLETED),
]


@pytest.mark.parametrize(("before", "event", "after"), ALLOWED)
def test_an_allowed_event_leads_where_the_table_says_and_counts_up(
    before: State, event: tuple[object, ...], after: State
) -> None:
    request = in_state(before)
    result = tell(request, *event)
    assert result.state is after
    assert result.version == request.version + 1


AGAIN = [
    (C, (ANNA, CompanionEvent.CLAIMED)),
    (O, (ANNA, CompanionEvent.CLAIMED)),
    (O, (ANNA, CompanionEvent.OPENED)),
    (State.DECLINED, (ANNA, CompanionEvent.DECLINED)),
    (State.COMPLETED, (DeviceEvent.COMPLETED,)),
    (State.CANCELLED, (DeviceEvent.CANCELLED,)),
    (State.FAILED, (DeviceEvent.FAILED,)),
]


@pytest.mark.parametrize(("state", "event"), AGAIN)
def test_telling_the_same_again_changes_nothing(state: State, event: tuple[object, ...]) -> None:
    request = in_state(state)
    assert tell(request, *event) is request


LOST = [
    (state, (BERT, event))
    for state in (C, O)
    for event in (CompanionEvent.CLAIMED, CompanionEvent.OPENED, CompanionEvent.DECLINED)
]


@pytest.mark.threat("T5")
@pytest.mark.parametrize(("state", "event"), LOST)
def test_who_does_not_hold_the_claim_is_told_so(state: State, event: tuple[object, ...]) -> None:
    assert refused(in_state(state), *event) is Slug.ALREADY_CLAIMED


CONFLICTS = [
    (P, (ANNA, CompanionEvent.OPENED)),
    (D, (ANNA, CompanionEvent.OPENED)),
    (P, (DeviceEvent.COMPLETED,)),
    (D, (DeviceEvent.COMPLETED,)),
    *[
        (state, event)
        for state in TERMINAL
        for event in [
            *[(by, event) for by in (ANNA, BERT) for event in CompanionEvent],
            *[(event,) for event in DeviceEvent],
        ]
        if str(event[-1]) != str(state)
    ],
    (State.FAILED, (BERT, CompanionEvent.FAILED)),
]


@pytest.mark.threat("T5")
@pytest.mark.parametrize(("state", "event"), CONFLICTS)
def test_an_event_the_state_does_not_allow_is_refused(state: State, event: tuple[object, ...]) -> None:
    expected = Slug.EXPIRED if state is State.EXPIRED else Slug.STATE_CONFLICT
    assert refused(in_state(state), *event) is expected


def test_fetching_marks_a_pending_request_delivered_and_no_other() -> None:
    assert pending().fetched().state is State.DELIVERED
    for state in State:
        request = in_state(state)
        assert (request.fetched() is request) == (state is not State.PENDING)


def test_another_request_or_a_removal_ends_a_live_request_and_no_other() -> None:
    for state in State:
        request = in_state(state)
        if request.live:
            assert request.superseded().state is State.SUPERSEDED
            assert request.withdrawn("removed").state is State.CANCELLED
        else:
            assert request.superseded() is request
            assert request.withdrawn("removed") is request


def test_a_companion_that_failed_leaves_the_request_to_the_others() -> None:
    request = pending().companion_says(BERT, CompanionEvent.FAILED, "stale-ring")
    assert request.failures == (Failure(by=BERT, reason="stale-ring"),)
    assert not request.waits_for(BERT)
    assert request.waits_for(ANNA)
    assert request.companion_says(BERT, CompanionEvent.FAILED, "again") is request
    assert refused(request, BERT, CompanionEvent.CLAIMED) is Slug.STATE_CONFLICT


def test_a_request_fails_when_every_recipient_has_failed() -> None:
    request = pending().companion_says(BERT, CompanionEvent.FAILED, "stale-ring")
    request = request.companion_says(ANNA, CompanionEvent.FAILED, "clock-skew")
    assert request.state is State.FAILED
    assert request.reason == "clock-skew"
    assert [failure.by for failure in request.failures] == [BERT, ANNA]


def test_a_claimed_request_fails_with_its_claimer_alone() -> None:
    request = pending().companion_says(ANNA, CompanionEvent.CLAIMED, None)
    assert request.companion_says(BERT, CompanionEvent.FAILED, "lost").state is State.CLAIMED
    assert request.companion_says(ANNA, CompanionEvent.FAILED, "no-radio").state is State.FAILED


@pytest.mark.threat("T5")
@pytest.mark.parametrize("state", sorted(LIVE))
def test_expiry_ends_claims_at_once_and_a_claimed_request_after_its_grace(state: State) -> None:
    request = in_state(state)
    end = request.expires_at + (GRACE if state in (C, O) else 0)
    assert request.ends_at == end
    assert request.at(end - 0.001) is request
    assert request.at(end).state is State.EXPIRED


@pytest.mark.parametrize("state", TERMINAL)
def test_no_time_changes_a_terminal_state(state: State) -> None:
    request = in_state(state)
    assert request.at(NOW + 10_000_000) is request


# Quotas


def waiting(count: int) -> list[Request]:
    return [pending(device=f"frame {number}") for number in range(count)]


@pytest.mark.threat("T6")
def test_only_so_many_requests_wait_for_an_account() -> None:
    quota = Quota(pending=3, rates=())
    assert quota.admit(waiting(2), {}, NOW) == {}
    with pytest.raises(Problem) as problem:
        quota.admit(waiting(3), {}, NOW + 100)
    assert problem.value.slug is Slug.TOO_MANY_PENDING
    assert problem.value.retry_after == CEILING - 100


def test_what_is_claimed_or_over_does_not_count_as_waiting() -> None:
    quota = Quota(pending=1, rates=())
    others = [in_state(state) for state in State if state not in (P, D)]
    assert quota.admit(others, {}, NOW) == {}


@pytest.mark.threat("T6")
def test_five_requests_a_minute_and_then_one_every_twelve_seconds() -> None:
    quota = Quota()
    spent: dict[str, float] = {}
    for _ in range(5):
        spent = quota.admit([], spent, NOW)
    with pytest.raises(Problem) as problem:
        quota.admit([], spent, NOW)
    assert problem.value.slug is Slug.RATE_LIMITED
    assert problem.value.retry_after == 12
    spent = quota.admit([], spent, NOW + 12)
    with pytest.raises(Problem):
        quota.admit([], spent, NOW + 12)


@pytest.mark.threat("T6")
def test_thirty_requests_a_day() -> None:
    quota = Quota()
    spent: dict[str, float] = {}
    for number in range(30):
        spent = quota.admit([], spent, NOW + 60 * number)
    with pytest.raises(Problem) as problem:
        quota.admit([], spent, NOW + 60 * 30)
    assert problem.value.slug is Slug.RATE_LIMITED


@given(
    count=st.integers(1, 20),
    seconds=st.floats(1, 1000),
    gaps=st.lists(st.floats(0, 100), min_size=1, max_size=60),
)
def test_no_window_ever_lets_more_than_twice_the_rate_through(
    count: int, seconds: float, gaps: list[float]
) -> None:
    rate = Rate(count=count, seconds=seconds)
    now, full_at, taken = float(NOW), None, []
    for gap in gaps:
        now += gap
        with contextlib.suppress(Problem):
            full_at = rate.take(full_at, now)
            taken.append(now)
    for start in taken:
        assert sum(start <= time < start + seconds for time in taken) <= 2 * count


@given(count=st.integers(1, 20), seconds=st.floats(1, 1000))
def test_who_waits_as_long_as_told_is_admitted(count: int, seconds: float) -> None:
    rate = Rate(count=count, seconds=seconds)
    full_at: float | None = None
    for _ in range(count):
        full_at = rate.take(full_at, NOW)
    with pytest.raises(Problem) as problem:
        rate.take(full_at, NOW)
    assert problem.value.retry_after is not None
    rate.take(full_at, NOW + problem.value.retry_after)


# Any sequence of events


class AnyEvents(RuleBasedStateMachine):
    """Two devices' worth of events in any order, at any time, repeated and refused."""

    requests = Bundle("requests")

    @initialize()
    def begin(self) -> None:
        self.now = float(NOW)
        self.request = pending()
        self.claimers: set[str] = set()
        self.openers: set[str] = set()

    @rule(seconds=st.sampled_from([0.5, 60, 119, 120, 299, 300]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def somebody_fetches(self) -> None:
        self.become(self.request.at(self.now).fetched())

    @rule()
    def the_device_submits_another(self) -> None:
        self.become(self.request.at(self.now).superseded())

    @rule(event=st.sampled_from(DeviceEvent))
    def the_device_says(self, event: DeviceEvent) -> None:
        self.attempt(event)

    @rule(by=st.sampled_from([ANNA, BERT]), event=st.sampled_from(CompanionEvent))
    def a_companion_says(self, by: str, event: CompanionEvent) -> None:
        if self.attempt(by, event):
            if event is CompanionEvent.CLAIMED:
                self.claimers.add(by)
            if event is CompanionEvent.OPENED:
                self.openers.add(by)

    def attempt(self, *what: object) -> bool:
        current = self.request.at(self.now)
        try:
            self.become(tell(current, *what))
        except Problem as problem:
            assert problem.slug in (Slug.ALREADY_CLAIMED, Slug.STATE_CONFLICT, Slug.EXPIRED)  # noqa: PT017
            return False
        return True

    def become(self, after: Request) -> None:
        before = self.request
        if not before.live:
            assert after is before
        if before != after:
            assert after.version > before.version
        if before.claimed_by is not None:
            assert after.claimed_by == before.claimed_by
        assert len(after.failures) >= len(before.failures)
        self.request = after

    @invariant()
    def one_companion_is_ever_granted_the_claim_and_it_alone_opens(self) -> None:
        assert len(self.claimers) <= 1
        assert self.openers <= self.claimers

    @invariant()
    def nothing_is_live_after_its_end(self) -> None:
        seen = self.request.at(self.now)
        assert not seen.live or self.now < seen.expires_at + GRACE
        assert seen.state not in (P, D) or self.now < seen.expires_at


TestAnyEvents = pytest.mark.threat("T5")(AnyEvents.TestCase)
