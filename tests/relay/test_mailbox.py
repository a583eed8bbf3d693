"""The mailbox rules: the table of docs/protocol/relay.md, and what no sequence of events may bring about."""

import contextlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from companion_push.relay.limits import CEILING, LEASE, Quota, Rate
from companion_push.relay.mailbox import (
    GRACE,
    LAST_CHANCE,
    LIVE,
    REMOVED,
    VANISHED,
    CompanionEvent,
    Failure,
    LeasesInMemory,
    Request,
)
from companion_push.relay.problems import Problem, Slug
from headless_passkey.request import DeviceEvent, RequestState

NOW = 1_800_000_000
ANNA, BERT = "anna", "bert"
FRAME = "frame"
FOR_EVER = float("inf")  # the lease of a holder that always calls


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


def in_state(state: RequestState) -> Request:
    """A request in `state`; from `claimed` on Anna holds the claim."""
    claimed = state in (RequestState.CLAIMED, RequestState.OPENED, RequestState.COMPLETED)
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
            return request.companion_says(by, event, "because", now=NOW)
    raise AssertionError(what)


P, D, C, O = RequestState.PENDING, RequestState.DELIVERED, RequestState.CLAIMED, RequestState.OPENED  # noqa: E741
TERMINAL = [state for state in RequestState if state not in LIVE]

ALLOWED = [
    (P, (ANNA, CompanionEvent.CLAIMED), C),
    (D, (ANNA, CompanionEvent.CLAIMED), C),
    (C, (ANNA, CompanionEvent.OPENED), O),
    (C, (ANNA, CompanionEvent.RELEASED), D),
    (O, (ANNA, CompanionEvent.RELEASED), D),
    (P, (BERT, CompanionEvent.DECLINED), RequestState.DECLINED),
    (D, (BERT, CompanionEvent.DECLINED), RequestState.DECLINED),
    (C, (ANNA, CompanionEvent.DECLINED), RequestState.DECLINED),
    (O, (ANNA, CompanionEvent.DECLINED), RequestState.DECLINED),
    (C, (ANNA, CompanionEvent.FAILED), RequestState.FAILED),
    (O, (ANNA, CompanionEvent.FAILED), RequestState.FAILED),
    (P, (BERT, CompanionEvent.FAILED), P),
    (D, (BERT, CompanionEvent.FAILED), D),
    (C, (BERT, CompanionEvent.FAILED), C),
    (O, (BERT, CompanionEvent.FAILED), O),
    *[(state, (DeviceEvent.CANCELLED,), RequestState.CANCELLED) for state in (P, D, C, O)],
    *[(state, (DeviceEvent.FAILED,), RequestState.FAILED) for state in (P, D, C, O)],
    (C, (DeviceEvent.COMPLETED,), RequestState.COMPLETED),
    (O, (DeviceEvent.COMPLETED,), RequestState.COMPLETED),
]


@pytest.mark.parametrize(("before", "event", "after"), ALLOWED)
def test_an_allowed_event_leads_where_the_table_says_and_counts_up(
    before: RequestState, event: tuple[object, ...], after: RequestState
) -> None:
    request = in_state(before)
    result = tell(request, *event)
    assert result.state is after
    assert result.version == request.version + 1


@pytest.mark.threat("T3")
def test_a_request_knows_the_digest_of_each_envelope_while_it_lives() -> None:
    live = replace(pending(), digests=(b"for anna", b"for bert"))
    assert [live.digest_for(each) for each in (ANNA, BERT, "cleo")] == [b"for anna", b"for bert", None]
    claimed = tell(live, ANNA, CompanionEvent.CLAIMED)
    for ended in (
        claimed.device_says(DeviceEvent.COMPLETED, None),
        tell(claimed, ANNA, CompanionEvent.DECLINED),
        live.superseded(),
        live.withdrawn("muted"),
        live.at(live.ends_at, FOR_EVER),
    ):
        assert (ended.digests, ended.digest_for(ANNA)) == ((), None)
    assert claimed.digest_for(BERT) == b"for bert"


AGAIN = [
    (C, (ANNA, CompanionEvent.CLAIMED)),
    (O, (ANNA, CompanionEvent.CLAIMED)),
    (O, (ANNA, CompanionEvent.OPENED)),
    (P, (ANNA, CompanionEvent.RELEASED)),
    (D, (BERT, CompanionEvent.RELEASED)),
    (RequestState.DECLINED, (ANNA, CompanionEvent.DECLINED)),
    (RequestState.COMPLETED, (DeviceEvent.COMPLETED,)),
    (RequestState.CANCELLED, (DeviceEvent.CANCELLED,)),
    (RequestState.FAILED, (DeviceEvent.FAILED,)),
]


@pytest.mark.parametrize(("state", "event"), AGAIN)
def test_telling_the_same_again_changes_nothing(state: RequestState, event: tuple[object, ...]) -> None:
    request = in_state(state)
    assert tell(request, *event) is request


LOST = [
    (state, (BERT, event))
    for state in (C, O)
    for event in (
        CompanionEvent.CLAIMED,
        CompanionEvent.OPENED,
        CompanionEvent.RELEASED,
        CompanionEvent.DECLINED,
    )
]


@pytest.mark.threat("T5")
@pytest.mark.parametrize(("state", "event"), LOST)
def test_who_does_not_hold_the_claim_is_told_so(state: RequestState, event: tuple[object, ...]) -> None:
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
    (RequestState.FAILED, (BERT, CompanionEvent.FAILED)),
]


@pytest.mark.threat("T5")
@pytest.mark.parametrize(("state", "event"), CONFLICTS)
def test_an_event_the_state_does_not_allow_is_refused(state: RequestState, event: tuple[object, ...]) -> None:
    expected = Slug.EXPIRED if state is RequestState.EXPIRED else Slug.STATE_CONFLICT
    assert refused(in_state(state), *event) is expected


def test_fetching_marks_a_pending_request_delivered_and_no_other() -> None:
    assert pending().fetched(ANNA).state is RequestState.DELIVERED
    for state in sorted({*RequestState} - {RequestState.PENDING}):
        fetched = in_state(state).fetched(ANNA)
        assert replace(fetched, fetched_by=frozenset()) == in_state(state)
        assert fetched.fetched(ANNA) is fetched


def test_a_request_that_all_who_fetched_it_refused_fails_soon_unless_another_fetches_it() -> None:
    request = pending().fetched(ANNA)
    assert request.given_up_at == FOR_EVER
    request = request.companion_says(ANNA, CompanionEvent.FAILED, "clock-skew", now=NOW + 3)
    end = NOW + 3 + LAST_CHANCE
    assert LAST_CHANCE < 10
    assert (request.given_up_at, request.changes_at(FOR_EVER)) == (end, end)
    assert request.at(end - 0.001, FOR_EVER) is request
    failed = request.at(end, FOR_EVER)
    assert (failed.state, failed.reason, failed.claimed_by) == (RequestState.FAILED, "clock-skew", None)
    saved = request.fetched(BERT)
    assert (saved.version, saved.given_up_at) == (request.version, FOR_EVER)
    assert saved.companion_says(BERT, CompanionEvent.CLAIMED, None, now=end).state is RequestState.CLAIMED


def test_who_failed_without_fetching_counts_as_having_fetched() -> None:
    request = pending().companion_says(ANNA, CompanionEvent.FAILED, "cannot-open", now=NOW)
    assert request.at(NOW + LAST_CHANCE, FOR_EVER).state is RequestState.FAILED


@pytest.mark.parametrize("state", [C, O])
def test_a_claimed_request_is_not_given_up_until_its_claim_is(state: RequestState) -> None:
    request = in_state(state).fetched(ANNA).fetched(BERT)
    request = request.companion_says(BERT, CompanionEvent.FAILED, "clock-skew", now=NOW)
    assert request.given_up_at == FOR_EVER
    released = request.companion_says(ANNA, CompanionEvent.RELEASED, None, now=NOW + 50)
    assert released.given_up_at == FOR_EVER


def test_a_third_companion_has_its_last_chance_after_the_holder_gave_up() -> None:
    request = replace(in_state(O), recipients=(ANNA, BERT, "carl")).fetched(ANNA).fetched(BERT)
    request = request.companion_says(BERT, CompanionEvent.FAILED, "clock-skew", now=NOW)
    request = request.companion_says(ANNA, CompanionEvent.RELEASED, None, now=NOW + 50)
    request = request.companion_says(ANNA, CompanionEvent.FAILED, "interrupted", now=NOW + 50)
    assert (request.state, request.given_up_at) == (D, NOW + 50 + LAST_CHANCE)
    assert request.at(NOW + 60, FOR_EVER).reason == "interrupted"


def test_a_request_is_not_given_up_while_one_that_vanished_may_come_back() -> None:
    request = replace(in_state(C), recipients=(ANNA, BERT, "carl")).at(NOW + LEASE, NOW + LEASE)
    request = request.companion_says(BERT, CompanionEvent.FAILED, "clock-skew", now=NOW + LEASE)
    assert request.given_up_at == FOR_EVER


def test_another_request_or_a_removal_ends_a_live_request_and_no_other() -> None:
    for state in RequestState:
        request = in_state(state)
        if request.live:
            assert request.superseded().state is RequestState.SUPERSEDED
            assert request.withdrawn("removed").state is RequestState.CANCELLED
        else:
            assert request.superseded() is request
            assert request.withdrawn("removed") is request


def test_a_companion_that_failed_leaves_the_request_to_the_others() -> None:
    request = pending().companion_says(BERT, CompanionEvent.FAILED, "stale-ring", now=NOW)
    assert request.failures == (Failure(by=BERT, reason="stale-ring", at=NOW),)
    assert not request.waits_for(BERT)
    assert request.waits_for(ANNA)
    assert request.companion_says(BERT, CompanionEvent.FAILED, "again", now=NOW) is request
    assert refused(request, BERT, CompanionEvent.CLAIMED) is Slug.STATE_CONFLICT


def test_a_request_fails_when_every_recipient_has_failed() -> None:
    request = pending().companion_says(BERT, CompanionEvent.FAILED, "stale-ring", now=NOW)
    request = request.companion_says(ANNA, CompanionEvent.FAILED, "clock-skew", now=NOW)
    assert request.state is RequestState.FAILED
    assert request.reason == "clock-skew"
    assert [failure.by for failure in request.failures] == [BERT, ANNA]


def test_a_claimed_request_fails_with_its_claimer_alone() -> None:
    request = pending().companion_says(ANNA, CompanionEvent.CLAIMED, None, now=NOW)
    assert request.companion_says(BERT, CompanionEvent.FAILED, "lost", now=NOW).state is RequestState.CLAIMED
    assert (
        request.companion_says(ANNA, CompanionEvent.FAILED, "no-radio", now=NOW).state is RequestState.FAILED
    )


@pytest.mark.threat("T5")
@pytest.mark.parametrize("state", sorted(LIVE))
def test_expiry_ends_claims_at_once_and_a_claimed_request_after_its_grace(state: RequestState) -> None:
    request = in_state(state)
    end = request.expires_at + (GRACE if state in (C, O) else 0)
    assert request.ends_at == end
    assert request.changes_at(FOR_EVER) == end
    assert request.at(end - 0.001, FOR_EVER) is request
    assert request.at(end, FOR_EVER).state is RequestState.EXPIRED


@pytest.mark.parametrize("state", TERMINAL)
def test_no_time_changes_a_terminal_state(state: RequestState) -> None:
    request = in_state(state)
    assert request.at(NOW + 10_000_000, NOW) is request


# Claims that are given back, or whose holder has vanished


@pytest.mark.parametrize("state", [C, O])
def test_a_claim_that_is_given_back_may_be_had_by_any_recipient(state: RequestState) -> None:
    released = in_state(state).companion_says(ANNA, CompanionEvent.RELEASED, None, now=NOW)
    assert (released.state, released.claimed_by, released.failures) == (D, None, ())
    assert released.companion_says(BERT, CompanionEvent.CLAIMED, None, now=NOW).claimed_by == BERT
    assert released.companion_says(ANNA, CompanionEvent.CLAIMED, None, now=NOW).claimed_by == ANNA


def test_a_claim_that_is_given_back_and_then_failed_is_left_to_the_others() -> None:
    failed = (
        in_state(O)
        .companion_says(ANNA, CompanionEvent.RELEASED, None, now=NOW)
        .companion_says(ANNA, CompanionEvent.FAILED, "interrupted", now=NOW)
    )
    assert failed.state is D
    assert failed.waits_for(BERT)
    assert not failed.waits_for(ANNA)


def test_a_claim_ends_when_its_lease_has_run_out() -> None:
    request, lease = in_state(C), NOW + LEASE
    assert request.changes_at(lease) == lease
    assert request.at(lease - 0.001, lease) is request
    after = request.at(lease, lease)
    assert (after.state, after.claimed_by, after.version) == (D, None, request.version + 1)
    assert after.failures == (Failure(by=ANNA, reason="vanished", at=lease),)
    assert after.at(lease, lease) is after


@pytest.mark.parametrize("stays", [True, False])
def test_after_it_was_opened_only_who_said_that_it_stays_may_vanish(*, stays: bool) -> None:
    request = in_state(C).companion_says(ANNA, CompanionEvent.OPENED, None, stays=stays, now=NOW)
    after = request.at(NOW + LEASE, NOW + LEASE)
    assert (after.state is D, after is request) == (stays, not stays)
    assert request.changes_at(NOW + LEASE) == (NOW + LEASE if stays else request.ends_at)


def test_a_holder_may_say_later_that_it_does_not_stay() -> None:
    request = in_state(C).companion_says(ANNA, CompanionEvent.OPENED, None, stays=True, now=NOW)
    leaving = request.companion_says(ANNA, CompanionEvent.OPENED, None, now=NOW)
    assert (leaving.state, leaving.version, leaving.leased) == (O, request.version, False)


def test_who_has_vanished_may_come_back_or_fail_for_good() -> None:
    request = in_state(C).at(NOW + LEASE, NOW + LEASE)
    for by in (ANNA, BERT):
        assert request.waits_for(by)
        assert request.companion_says(by, CompanionEvent.CLAIMED, None, now=NOW).claimed_by == by
    back = request.companion_says(ANNA, CompanionEvent.CLAIMED, None, now=NOW)
    assert back.failures == ()
    failed = request.companion_says(ANNA, CompanionEvent.FAILED, "replayed", now=NOW)
    assert failed.failures == (Failure(by=ANNA, reason="replayed", at=NOW),)
    assert failed.state is D


def test_a_request_does_not_fail_while_one_that_vanished_may_come_back() -> None:
    vanished = in_state(C).at(NOW + LEASE, NOW + LEASE)
    failed = vanished.companion_says(BERT, CompanionEvent.FAILED, "clock-skew", now=NOW)
    assert failed.state is D
    assert (
        failed.companion_says(ANNA, CompanionEvent.FAILED, "clock-skew", now=NOW).state is RequestState.FAILED
    )


def test_no_companion_says_of_itself_that_it_has_vanished() -> None:
    request = pending().companion_says(BERT, CompanionEvent.FAILED, VANISHED, now=NOW)
    assert request.failures == (Failure(by=BERT, reason="unspecified", at=NOW),)
    assert not request.waits_for(BERT)


# Companions that are removed


@pytest.mark.threat("T16")
@pytest.mark.parametrize("state", [P, D, C, O])
def test_a_removed_companion_has_failed_and_holds_no_claim(state: RequestState) -> None:
    request = in_state(state)
    after = request.without(frozenset({ANNA, "a device"}), NOW)
    assert after.failures == (Failure(by=ANNA, reason="removed", at=NOW),)
    assert (after.state, after.claimed_by) == (P if state is P else D, None)
    assert after.version == request.version + 1
    assert not after.waits_for(ANNA)
    assert after.waits_for(BERT)
    assert after.without(frozenset({ANNA}), NOW + 1) is after


@pytest.mark.threat("T16")
def test_the_claim_of_another_companion_than_the_removed_one_stays() -> None:
    after = in_state(C).without(frozenset({BERT}), NOW)
    assert (after.state, after.claimed_by) == (C, ANNA)
    assert after.failures == (Failure(by=BERT, reason="removed", at=NOW),)


@pytest.mark.threat("T16")
def test_a_removal_ends_a_request_that_nobody_is_left_to_take() -> None:
    failed = pending().companion_says(BERT, CompanionEvent.FAILED, "clock-skew", now=NOW)
    after = failed.without(frozenset({ANNA}), NOW)
    assert (after.state, after.reason) == (RequestState.FAILED, "removed")
    assert after.without(frozenset({BERT}), NOW) is after


@pytest.mark.threat("T16")
def test_a_removal_alone_does_not_let_a_request_be_given_up() -> None:
    """Whoever removed it may be the one who takes the request, as soon as that companion runs."""
    removed = pending().fetched(ANNA).without(frozenset({ANNA}), NOW)
    assert removed.given_up_at == FOR_EVER
    failed = pending().fetched(ANNA).fetched(BERT).companion_says(BERT, CompanionEvent.FAILED, None, now=NOW)
    assert failed.given_up_at == FOR_EVER
    assert failed.without(frozenset({ANNA}), NOW).state is RequestState.FAILED


def test_no_companion_says_of_itself_that_it_was_removed() -> None:
    request = pending().companion_says(BERT, CompanionEvent.FAILED, REMOVED, now=NOW)
    assert request.failures == (Failure(by=BERT, reason="unspecified", at=NOW),)


def test_what_is_over_before_the_lease_is_expired_and_what_is_over_after_it_too() -> None:
    request = in_state(C)
    late = request.ends_at + 1
    assert request.at(late, late).failures == ()
    for lease in (request.expires_at, request.expires_at + 1):
        after = request.at(lease, lease)
        assert (after.state, after.claimed_by) == (RequestState.EXPIRED, None)
        assert after.failures == (Failure(by=ANNA, reason="vanished", at=lease),)


@given(
    lease=st.integers(NOW, NOW + 600),
    looks=st.lists(st.integers(NOW, NOW + 700), max_size=6),
    state=st.sampled_from([P, D, C, O]),
    stays=st.booleans(),
    failed=st.none() | st.integers(NOW - 5, NOW),
)
def test_what_becomes_of_it_does_not_depend_on_who_looks_meanwhile(
    *, lease: int, looks: list[int], state: RequestState, stays: bool, failed: int | None
) -> None:
    request = replace(in_state(state), stays=stays and state is O)
    if failed is not None:
        request = request.companion_says(BERT, CompanionEvent.FAILED, "clock-skew", now=failed)
    looked_at = request
    for now in sorted(looks):
        looked_at = looked_at.at(now, lease)
    assert request.at(NOW + 700, lease) == looked_at.at(NOW + 700, lease)


def test_every_call_begins_the_lease_anew() -> None:
    leases = LeasesInMemory(60, began=NOW)
    assert leases.end(ANNA, NOW + 5) == NOW + 60
    leases.called(ANNA, NOW + 30)
    assert leases.end(ANNA, NOW + 40) == NOW + 90
    assert leases.end(BERT, NOW + 40) == NOW + 60


def test_a_held_call_counts_as_long_as_the_last_of_them_is_open() -> None:
    leases = LeasesInMemory(60, began=NOW)
    leases.hold(ANNA)
    leases.hold(ANNA)
    assert leases.end(ANNA, NOW + 99) == NOW + 159
    leases.let_go(ANNA, NOW + 100)
    assert leases.end(ANNA, NOW + 199) == NOW + 259
    leases.let_go(ANNA, NOW + 200)
    assert leases.end(ANNA, NOW + 220) == NOW + 260


@pytest.mark.parametrize("now", [NOW, NOW + 59, NOW + 60, NOW + 119, NOW + 500])
def test_forgetting_makes_no_difference(now: int) -> None:
    leases = LeasesInMemory(60, began=NOW)
    leases.called(ANNA, NOW + 40)
    leases.hold("carl")
    leases.let_go("carl", NOW + 50)
    before = [leases.end(by, now) <= now for by in (ANNA, BERT, "carl")]
    leases.forget(now)
    assert [leases.end(by, now) <= now for by in (ANNA, BERT, "carl")] == before


# Quotas


def waiting(count: int) -> list[Request]:
    return [pending(device=f"frame {number}") for number in range(count)]


@pytest.mark.threat("T6")
def test_only_so_many_requests_wait_for_an_account() -> None:
    quota = Quota(pending=3, rates=())
    quota.admit(waiting(2), {}, {}, NOW)
    with pytest.raises(Problem) as problem:
        quota.admit(waiting(3), {}, {}, NOW + 100)
    assert problem.value.slug is Slug.TOO_MANY_PENDING
    assert problem.value.retry_after == CEILING - 100


def test_what_is_claimed_or_over_does_not_count_as_waiting() -> None:
    quota = Quota(pending=1, rates=())
    others = [in_state(state) for state in RequestState if state not in (P, D)]
    quota.admit(others, {}, {}, NOW)


@dataclass
class Home:
    """One account's devices, as the limits see them."""

    quota: Quota = field(default_factory=Quota)
    account: dict[str, float] = field(default_factory=dict)
    devices: defaultdict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))

    def submits(self, device: str, now: float) -> int | None:
        """None when the request is admitted, else the seconds to wait."""
        try:
            mine, ours = self.quota.admit([], self.devices[device], self.account, now)
        except Problem as problem:
            return problem.retry_after
        self.devices[device] |= mine
        self.account |= ours
        return None


@pytest.mark.threat("T6")
def test_three_requests_of_a_device_a_minute_and_then_one_every_twenty_seconds() -> None:
    home = Home()
    assert [home.submits("hub", NOW) for _ in range(4)] == [None, None, None, 20]
    assert home.submits("frame", NOW) is None
    assert [home.submits("hub", NOW + 20) for _ in range(2)] == [None, 20]


@pytest.mark.threat("T6")
def test_twenty_requests_of_a_device_a_day() -> None:
    home = Home()
    assert [home.submits("hub", NOW + 60 * number) for number in range(20)] == [None] * 20
    assert home.submits("hub", NOW + 60 * 20) == 4320 - 60 * 20


@pytest.mark.threat("T6")
def test_a_hundred_requests_of_an_account_a_day() -> None:
    home = Home()
    for hub in range(5):
        assert [home.submits(f"hub {hub}", NOW + 60 * number) for number in range(20)] == [None] * 20
    more = [home.submits("frame", NOW + 1200 + 60 * number) for number in range(6)]
    assert more[:5] == [None] * 5
    assert more[5] is not None


@pytest.mark.threat("T17")
@given(
    st.lists(st.tuples(st.sampled_from(["rogue", "other rogue", "hub"]), st.integers(0, 3600)), max_size=200)
)
def test_a_device_that_submits_five_a_day_is_never_refused_because_of_others(
    calls: list[tuple[str, int]],
) -> None:
    home = Home(Quota(rates=(), account_rates=(Rate(count=3, seconds=86_400),)))
    now, ours = NOW, 0
    for device, pause in calls:
        now += pause
        if device != "hub":
            home.submits(device, now)
        elif ours < 5:
            ours += 1
            assert home.submits("hub", now) is None


@pytest.mark.threat("T6")
def test_what_is_refused_costs_nothing() -> None:
    home = Home(Quota(rates=(Rate(count=1, seconds=60),)))
    assert [home.submits("hub", NOW) for _ in range(50)] == [None] + [60] * 49
    assert home.submits("hub", NOW + 60) is None


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


@given(count=st.integers(1, 20), seconds=st.floats(1, 1000), back=st.floats(1, 1e9))
def test_a_rate_that_a_clock_spent_in_the_future_is_whole_again(
    count: int, seconds: float, back: float
) -> None:
    rate = Rate(count=count, seconds=seconds)
    full_at: float | None = None
    for _ in range(count):
        full_at = rate.take(full_at, NOW)
    now = NOW - back
    for _ in range(count):
        full_at = rate.take(full_at, now)
    with pytest.raises(Problem):
        rate.take(full_at, now)


# Any sequence of events


class AnyEvents(RuleBasedStateMachine):
    """Everybody's events and calls in any order, at any time, repeated and refused."""

    @initialize()
    def begin(self) -> None:
        self.now = float(NOW)
        self.request = pending()
        self.leases = LeasesInMemory(LEASE, began=NOW)
        self.holding: set[str] = set()
        self.calls: dict[str, float] = {}  # by companion: the end of its last call
        self.opened_by: set[str] = set()

    @property
    def current(self) -> Request:
        return self.request.at(self.now, self.leases.end(self.request.claimed_by, self.now))

    @rule(seconds=st.sampled_from([0.5, 25, 59, 60, 119, 120, 299, 300]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(by=st.sampled_from([ANNA, BERT]))
    def a_companion_fetches(self, by: str) -> None:
        if self.current.waits_for(by):
            self.become(self.current.fetched(by))
        self.has_called(by)

    @rule(by=st.sampled_from([ANNA, BERT]))
    def a_call_is_held(self, by: str) -> None:
        self.become(self.current)
        if by not in self.holding:
            self.leases.hold(by)
            self.holding.add(by)

    @rule()
    def the_held_calls_end(self) -> None:
        for by in self.holding:
            self.leases.let_go(by, self.now)
            self.calls[by] = self.now
        self.holding = set()

    @rule()
    def the_relay_sweeps(self) -> None:
        self.become(self.current)
        self.leases.forget(self.now)

    @rule()
    def the_device_submits_another(self) -> None:
        self.become(self.current.superseded())

    @rule(event=st.sampled_from(DeviceEvent))
    def the_device_says(self, event: DeviceEvent) -> None:
        self.attempt(lambda current: current.device_says(event, "because"))

    @rule(by=st.sampled_from([ANNA, BERT]), event=st.sampled_from(CompanionEvent), stays=st.booleans())
    def a_companion_says(self, by: str, event: CompanionEvent, *, stays: bool) -> None:
        before = self.current
        if self.attempt(
            lambda current: current.companion_says(by, event, "because", stays=stays, now=self.now)
        ):
            self.has_called(by)
            if event in (CompanionEvent.CLAIMED, CompanionEvent.OPENED):
                assert before.claimed_by in (None, by)
                assert self.request.claimed_by == by
            if event is CompanionEvent.OPENED:
                assert before.claimed_by == by
            if event is CompanionEvent.RELEASED:
                assert self.request.claimed_by is None

    def has_called(self, by: str) -> None:
        self.leases.called(by, self.now)
        self.calls[by] = self.now

    def attempt(self, what: Callable[[Request], Request]) -> bool:
        try:
            self.become(what(self.current))
        except Problem as problem:
            assert problem.slug in (Slug.ALREADY_CLAIMED, Slug.STATE_CONFLICT, Slug.EXPIRED)  # noqa: PT017
            return False
        return True

    def become(self, after: Request) -> None:
        before = self.request
        if not before.live:
            assert after is before
        if replace(before, stays=after.stays, fetched_by=after.fetched_by) != after:
            assert after.version > before.version
        self.request = after

    @invariant()
    def a_claim_is_one_companions_who_is_there(self) -> None:
        seen = self.current
        if seen.state in (C, O):
            assert seen.claimed_by in (ANNA, BERT)
            assert not any(failure.by == seen.claimed_by for failure in seen.failures)
            if seen.state is C or seen.stays:
                since = self.calls.get(seen.claimed_by or "", NOW)
                assert seen.claimed_by in self.holding or self.now < since + LEASE
        if seen.state in (P, D):
            assert seen.claimed_by is None

    @invariant()
    def nobody_fails_twice_and_somebody_may_take_it_while_it_lives(self) -> None:
        seen = self.current
        assert len({failure.by for failure in seen.failures}) == len(seen.failures)
        if seen.live:
            assert any(map(seen.waits_for, seen.recipients))
        have_seen_it = seen.fetched_by.union(failure.by for failure in seen.failures)
        if seen.state in (P, D) and not any(map(seen.waits_for, have_seen_it)):
            assert all(self.now < failure.at + LAST_CHANCE for failure in seen.failures[-1:])

    @invariant()
    def nothing_is_live_after_its_end(self) -> None:
        seen = self.current
        assert not seen.live or self.now < seen.expires_at + GRACE
        assert seen.state not in (P, D) or self.now < seen.expires_at

    @invariant()
    def it_says_itself_when_it_changes(self) -> None:
        seen = self.current
        if seen.live:
            lease = self.leases.end(seen.claimed_by, self.now)
            assert seen.changes_at(lease) > self.now
            assert seen.at(seen.changes_at(lease), lease) is not seen


TestAnyEvents = pytest.mark.threat("T5")(AnyEvents.TestCase)
