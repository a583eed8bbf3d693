"""Token buckets: bursts, rates, and a bounded memory."""

import pytest

from companion_push.tunnel_service import buckets as buckets_module
from companion_push.tunnel_service.buckets import Buckets


def test_a_bucket_fills_again_in_its_time() -> None:
    buckets = Buckets(2, 60)
    assert [buckets.take("a", now=0) for _ in range(3)] == [True, True, False]
    assert buckets.take("b", now=0)
    assert [buckets.take("a", now=29), buckets.take("a", now=30)] == [False, True]


def test_it_holds_no_more_than_a_burst_and_a_refusal_takes_nothing() -> None:
    buckets = Buckets(3, 60)
    assert buckets.take("a", now=0, tokens=1)
    assert not buckets.take("a", now=1000, tokens=4)
    assert buckets.take("a", now=1000, tokens=3)


def test_a_rate_below_one_lets_one_through_and_the_next_when_its_time_has_come() -> None:
    buckets = Buckets(0.5, 60)
    taken = [buckets.take("a", now=now) for now in (0, 1, 110, 130, 131)]
    assert taken == [True, False, False, True, False]


@pytest.mark.threat("T9")
def test_keys_are_remembered_up_to_a_bound_those_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets_module, "REMEMBERED", 3)
    buckets = Buckets(1, 60)
    for key in ("a", "b", "c", "a", "d"):
        buckets.take(key, now=0)
    assert len(buckets) == 3
    assert [buckets.take(key, now=0) for key in ("a", "b")] == [False, True]  # b was forgotten
