"""The limit for each address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relying_party.errors import RateLimited
from relying_party.http import limits
from relying_party.http.limits import RateLimit


def test_an_address_has_its_share_at_once_and_then_waits() -> None:
    limit = RateLimit(name="some", most=6)
    for _ in range(6):
        limit.take("a", now=0)
    with pytest.raises(RateLimited) as refusal:
        limit.take("a", now=0)
    assert refusal.value.retry_after == 10
    limit.take("b", now=0)
    limit.take("a", now=10)


@given(st.lists(st.floats(0, 30), max_size=200))
def test_no_minute_sees_more_than_twice_the_share(gaps: list[float]) -> None:
    limit, now, taken = RateLimit(name="some", most=6), 0.0, []
    for gap in gaps:
        now += gap
        try:
            limit.take("a", now=now)
        except RateLimited:
            continue
        taken.append(now)
    assert all(sum(start <= one < start + 60 for one in taken) <= 12 for start in taken)


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    limit = RateLimit(name="some", most=1)
    limit.take("a", now=100)
    for now in (0, 59):
        with pytest.raises(RateLimited):
            limit.take("a", now=now)


@pytest.mark.threat("T12")
def test_a_clock_that_was_ahead_keeps_nobody_out_once_it_is_right() -> None:
    limit = RateLimit(name="some", most=2)
    for _ in range(2):
        limit.take("a", now=86_400)
    with pytest.raises(RateLimited):
        limit.take("a", now=0)
    limit.take("a", now=30)


@pytest.mark.threat("T12")
def test_many_addresses_are_not_remembered_and_keep_no_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ADDRESSES", 10)
    limit = RateLimit(name="some", most=1)
    limit.take("a", now=0)
    for number in range(9):
        limit.take(f"10.0.0.{number}", now=0)
    with pytest.raises(RateLimited):
        limit.take("a", now=0)
    for number in range(9, 500):
        limit.take(f"10.0.{number >> 8}.{number & 255}", now=0)
        assert len(limit._spent) == 10
    limit.take("a", now=0)


def test_an_address_that_asks_is_remembered_longer_than_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_ADDRESSES", 2)
    limit = RateLimit(name="some", most=2)
    for address in ("a", "b", "a", "c"):  # b is forgotten
        limit.take(address, now=0)
    with pytest.raises(RateLimited):
        limit.take("a", now=0)


def test_an_ipv6_network_is_one_address() -> None:
    limit = RateLimit(name="some", most=1)
    limit.take("2001:db8::1", now=0)
    with pytest.raises(RateLimited):
        limit.take("2001:db8::2", now=0)
    limit.take("2001:db8:0:1::1", now=0)
