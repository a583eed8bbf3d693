"""The state of an account: what is kept of it, for how long, and how much at most."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from companion_push.relay.account_state import (
    ALL_OUTCOMES,
    BEHIND,
    EMPTY,
    OUTCOMES,
    AccountState,
    decoded,
    encoded,
)
from companion_push.relay.ladder import FORGOTTEN, End, Streak
from companion_push.relay.limits import Rate
from companion_push.relay.mailbox import GRACE, KEPT, CompanionEvent, Failure, Notice, Request
from companion_push.relay.problems import Problem
from headless_passkey.request import RequestState
from tests.relay.states import NOW, REQUEST

OVER = REQUEST.superseded()
CLAIMED = REQUEST.companion_says("anna", CompanionEvent.CLAIMED, None, now=NOW, word=b"word")


def state_of(*requests: Request) -> AccountState:
    return EMPTY.with_requests(requests)


# Requests


def test_a_request_is_found_by_its_device_and_id() -> None:
    other = replace(REQUEST, device="speaker")
    state = state_of(REQUEST, other)
    assert [state.request(key) for key in (("frame", "r1"), ("speaker", "r1"), ("frame", "r2"))] == [
        REQUEST,
        other,
        None,
    ]


def test_a_request_takes_the_place_of_the_one_with_its_key() -> None:
    assert state_of(REQUEST).with_requests([CLAIMED]).requests == (CLAIMED,)


def test_requests_are_in_the_order_in_which_they_came() -> None:
    later = [
        replace(REQUEST, device=name, submitted_at=NOW + at) for name, at in (("b", 1), ("c", 0), ("a", 1))
    ]
    assert [each.device for each in state_of(*later).requests] == ["c", "a", "b"]


@pytest.mark.threat("T13")
def test_of_each_devices_outcomes_the_newest_ones_stay_and_every_live_request() -> None:
    ended = [replace(OVER, id=f"r{number:02}", submitted_at=NOW + number) for number in range(OUTCOMES + 3)]
    waits = replace(REQUEST, id="waits", submitted_at=NOW - 1)
    others = replace(OVER, device="speaker", submitted_at=NOW - 2)
    state = EMPTY
    for request in (waits, others, *ended):
        state = state.with_requests([request])
    assert [each.id for each in state.requests] == ["r1", "waits", *(each.id for each in ended[3:])]


@pytest.mark.threat("T13")
def test_an_accounts_outcomes_are_bounded_whatever_its_devices_do() -> None:
    state = EMPTY
    for number in range(ALL_OUTCOMES + 10):
        state = state.with_requests([replace(OVER, device=f"device {number}", submitted_at=NOW + number)])
    assert [each.device for each in state.requests] == [
        f"device {number}" for number in range(10, ALL_OUTCOMES + 10)
    ]


def test_only_the_newest_outcome_of_a_device_tells_whom_it_notified() -> None:
    told = (Notice(to="anna", handle="", kind="inbox", outcome="sent"),)
    one, two, other = (
        replace(OVER, notices=told, **each)
        for each in ({}, {"id": "r2", "submitted_at": NOW + 1}, {"device": "speaker"})
    )
    live = replace(REQUEST, id="r0", notices=told)
    assert state_of(one, two, other, live).requests == (live, replace(one, notices=()), other, two)


# What time does


@pytest.mark.parametrize(
    ("state", "ends"),
    [
        (state_of(REQUEST), NOW + 300 + GRACE + KEPT),
        (state_of(OVER), NOW + 300 + GRACE + KEPT),
        (EMPTY.spending({"frame": {"3/60": NOW + 20}}, NOW), NOW + 20),
        (EMPTY.counting("alice", "frame", End.UNAPPROVED, NOW), NOW + FORGOTTEN),
    ],
    ids=["request", "outcome", "rate", "streak"],
)
def test_each_part_is_forgotten_at_its_end(state: AccountState, ends: float) -> None:
    assert state.ends_at() == ends
    assert state.at(ends - 1) is state
    assert state.at(ends).is_empty
    assert not state.is_empty


def test_what_is_not_over_stays_when_something_else_is_forgotten() -> None:
    state = state_of(REQUEST).spending({"frame": {"3/60": NOW + 20, "20/86400": NOW + 4320}}, NOW)
    assert state.at(NOW + 20) == state_of(REQUEST).spending({"frame": {"20/86400": NOW + 4320}}, NOW)


def changes_at(*requests: Request) -> float:
    return state_of(*requests).changes_at()


def test_time_changes_a_state_first_where_an_outcome_is_forgotten_or_all_of_it() -> None:
    assert changes_at(OVER) == NOW + 300 + GRACE + KEPT
    assert changes_at(OVER, replace(OVER, id="r2", expires_at=NOW + 200)) == NOW + 200 + GRACE + KEPT
    assert EMPTY.spending({"frame": {"a": NOW + 20, "b": NOW + 40}}, NOW).changes_at() == NOW + 40
    assert EMPTY.changes_at() == -math.inf


def test_time_may_change_a_state_at_any_moment_while_a_request_lives() -> None:
    opened = CLAIMED.companion_says("anna", CompanionEvent.OPENED, None, now=NOW)
    for live in (REQUEST, CLAIMED, opened):
        assert changes_at(live) == changes_at(replace(OVER, id="r2"), live) == -math.inf


# Rates and streaks


def test_rates_are_kept_by_whose_they_are() -> None:
    state = (
        EMPTY.spending({"frame": {"a": 1.0, "b": 2.0}}, 0.5)
        .spending({"frame": {"b": 3.0}}, 0.5)
        .spending({"alice": {"a": 4.0}}, 0.5)
    )
    assert state.spent_by("frame") == {"a": 1.0, "b": 3.0}
    assert state.spent_by("alice") == {"a": 4.0}
    assert state.spent_by("speaker") == {}


@pytest.mark.threat("T17")
@given(
    rate=st.builds(Rate, count=st.integers(1, 1000), seconds=st.sampled_from([60, 3600, 86_400])),
    uses=st.integers(1, 30),
    ahead=st.floats(0, 2 * 86_400),
)
def test_a_clock_that_jumped_ahead_and_back_has_used_no_more_than_was_asked_for(
    rate: Rate, uses: int, ahead: float
) -> None:
    """A day's rate is not spent by a clock that was wrong by less than a day."""

    def taken(state: AccountState, now: float) -> AccountState:
        return state.spending({"frame": {"r": rate.take(state.at(now).spent_by("frame").get("r"), now)}}, now)

    state = EMPTY
    for _ in range(min(uses, rate.count)):
        state = taken(state, NOW + ahead)
    for _ in range(rate.count - min(uses, rate.count)):
        state = taken(state, NOW)
    with pytest.raises(Problem):
        taken(state, NOW)


@pytest.mark.threat("T5")
@pytest.mark.parametrize("back", [61, 3600, 86_400])
def test_a_request_whose_clock_has_gone_back_has_its_own_life_again_and_no_more(back: int) -> None:
    failure = Failure(by="bert", reason="clock-skew", at=NOW + 8)
    older = replace(OVER, id="r0", submitted_at=NOW - 10, expires_at=NOW + 290)
    claimed = replace(CLAIMED, failures=(failure,), heard_at=NOW + 9.5)
    now = NOW - back
    state = state_of(older, claimed).at(now)
    assert state == state_of(
        replace(older, submitted_at=now - 10, expires_at=now + 290),
        replace(
            claimed,
            submitted_at=now,
            expires_at=now + 300,
            failures=(replace(failure, at=now + 8),),
            heard_at=now + 9.5,
        ),
    )
    assert state.at(now + 0.5) is state


@pytest.mark.threat("T5")
def test_a_transaction_that_began_a_little_before_a_submission_leaves_the_request_its_time() -> None:
    state = state_of(REQUEST)
    assert state.at(NOW - BEHIND) is state


def test_the_end_of_a_request_counts_for_its_device_and_its_account() -> None:
    state = EMPTY.counting("alice", "frame", End.UNAPPROVED, NOW)
    state = state.counting("alice", "speaker", End.UNAPPROVED, NOW + 1)
    assert [state.streak(whose).count for whose in ("frame", "speaker", "alice", "hub")] == [1, 1, 2, 0]
    state = state.counting("alice", "frame", End.APPROVED, NOW + 2)
    assert state.streaks == {"speaker": Streak(count=1, at=NOW + 1)}


def test_a_device_that_has_left_takes_its_streak_along() -> None:
    state = EMPTY.counting("alice", "frame", End.UNAPPROVED, NOW)
    assert state.without_streaks_of({"frame", "speaker"}).streaks == {"alice": Streak(count=1, at=NOW)}
    assert state.without_streaks_of({"speaker"}) is state


# Bytes

NAMES = st.text(max_size=3)
TIMES = st.integers(0, 2**53)
REQUESTS = st.builds(
    Request,
    account=NAMES,
    device=NAMES,
    id=NAMES,
    recipients=st.lists(NAMES, max_size=3).map(tuple),
    fingerprint=st.binary(max_size=4),
    submitted_at=TIMES,
    expires_at=TIMES,
    state=st.sampled_from(RequestState),
    version=st.integers(1, 2**32),
    claimed_by=st.none() | NAMES,
    word=st.none() | st.binary(max_size=4),
    stays=st.booleans(),
    reason=st.none() | NAMES,
    failures=st.lists(st.builds(Failure, by=NAMES, reason=NAMES, at=st.floats(0, 1e12)), max_size=2).map(
        tuple
    ),
    fetched_by=st.frozensets(NAMES, max_size=3),
    notices=st.lists(
        st.builds(
            Notice,
            to=NAMES,
            handle=NAMES,
            kind=NAMES,
            outcome=st.none() | NAMES,
            dismissed=st.booleans(),
            again=st.integers(0, 9),
        ),
        max_size=2,
    ).map(tuple),
)
STATES = st.builds(
    AccountState,
    requests=st.lists(REQUESTS, max_size=3).map(tuple),
    spent=st.dictionaries(NAMES, st.dictionaries(NAMES, st.floats(0, 1e12), max_size=2), max_size=2),
    spent_at=st.floats(0, 1e12),
    streaks=st.dictionaries(
        NAMES, st.builds(Streak, count=st.integers(0, 99), at=st.floats(0, 1e12)), max_size=2
    ),
)


@given(STATES)
def test_a_state_comes_back_from_its_bytes(state: AccountState) -> None:
    assert decoded(encoded(state)) == state


@given(st.binary(max_size=64))
def test_bytes_that_are_no_state_are_refused(data: bytes) -> None:
    try:
        state = decoded(data)
    except ValueError:
        return
    assert isinstance(state, AccountState)


@pytest.mark.parametrize(
    "value",
    [
        [1],
        {"requests": [{"account": "alice"}]},
        {"spent": {"frame": 3}},
        {"streaks": {"frame": {"count": "many", "at": 0.0}}},
        {"requests": [{**msgspec.to_builtins(REQUEST, builtin_types=[bytes]), "state": "asleep"}]},
    ],
    ids=["list", "short request", "number for rates", "text for a count", "unknown state"],
)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not the state of an account"):
        decoded(msgspec.msgpack.encode(value))


def test_a_state_of_another_version_is_read_by_what_both_know() -> None:
    value = msgspec.msgpack.decode(encoded(state_of(REQUEST)))
    newer = {**value, "new": 1, "requests": [{**value["requests"][0], "new": 1}]}
    assert decoded(msgspec.msgpack.encode(newer)) == state_of(REQUEST)
    (request,) = value["requests"]
    older = {"requests": [{name: each for name, each in request.items() if name != "notices"}]}
    assert decoded(msgspec.msgpack.encode(older)) == state_of(REQUEST)


def test_a_household_takes_some_hundred_bytes() -> None:
    names = [f"{number:043}" for number in range(4)]
    one = replace(REQUEST, account="a" * 22, device=names[0], id="i" * 22, recipients=tuple(names[1:]))
    assert len(encoded(state_of(one))) < 700
    three = [replace(one, device=names[which], id=f"{which:022}") for which in range(3)]
    assert len(encoded(state_of(*three))) < 2000
