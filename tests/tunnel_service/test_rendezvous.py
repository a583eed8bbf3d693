"""Pairing, expiry and budgets, without a socket or a clock."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from companion_push.tunnel_service.rendezvous import (
    Breach,
    End,
    Limits,
    Rendezvous,
    Tunnel,
    TunnelRefusal,
)
from headless_passkey.errors import UsageError

TUNNEL_ID = bytes(range(16))
ROUTING_ID = b"\x01\x02\x03"
HERE = "192.0.2.1"


def opened(rendezvous: Rendezvous, tunnel_id: bytes = TUNNEL_ID, *, now: float = 0) -> Tunnel:
    tunnel = rendezvous.open(tunnel_id, routing_id=ROUTING_ID, address=HERE, now=now)
    assert isinstance(tunnel, Tunnel)
    return tunnel


def test_the_second_end_finds_the_first() -> None:
    rendezvous = Rendezvous(Limits())
    tunnel = opened(rendezvous)
    assert rendezvous.join(ROUTING_ID, TUNNEL_ID, now=1) is tunnel


def test_an_open_tunnel_id_is_taken() -> None:
    rendezvous = Rendezvous(Limits())
    opened(rendezvous)
    again = rendezvous.open(TUNNEL_ID, routing_id=b"abc", address=HERE, now=1)
    assert again is TunnelRefusal.TAKEN


@pytest.mark.threat("T9")
def test_a_third_party_finds_nothing() -> None:
    rendezvous = Rendezvous(Limits())
    opened(rendezvous)
    rendezvous.join(ROUTING_ID, TUNNEL_ID, now=1)
    assert rendezvous.join(ROUTING_ID, TUNNEL_ID, now=2) is TunnelRefusal.UNKNOWN


@pytest.mark.threat("T9")
def test_gone_taken_misrouted_and_never_there_look_the_same() -> None:
    rendezvous = Rendezvous(Limits())
    assert rendezvous.join(ROUTING_ID, TUNNEL_ID, now=0) is TunnelRefusal.UNKNOWN
    tunnel = opened(rendezvous)
    assert rendezvous.join(b"\x03\x02\x01", TUNNEL_ID, now=0) is TunnelRefusal.UNKNOWN
    rendezvous.end(tunnel)
    assert rendezvous.join(ROUTING_ID, TUNNEL_ID, now=0) is TunnelRefusal.UNKNOWN


def test_a_tunnel_nobody_joins_expires() -> None:
    rendezvous = Rendezvous(Limits(waiting=10))
    assert opened(rendezvous).deadline == 10
    assert rendezvous.join(ROUTING_ID, TUNNEL_ID, now=10) is TunnelRefusal.UNKNOWN
    assert len(rendezvous) == 0


def test_joining_moves_the_deadline_and_does_not_remove_it() -> None:
    rendezvous = Rendezvous(Limits(waiting=10, life=60))
    tunnel = opened(rendezvous, now=5)
    rendezvous.join(ROUTING_ID, TUNNEL_ID, now=14)
    assert tunnel.deadline == 65


def test_waiting_longer_than_a_life_is_no_use() -> None:
    assert opened(Rendezvous(Limits(waiting=100, life=60))).deadline == 60


def test_an_expired_tunnel_does_not_end_its_successor() -> None:
    rendezvous = Rendezvous(Limits(waiting=10))
    expired = opened(rendezvous)
    successor = opened(rendezvous, now=20)
    rendezvous.end(expired)
    assert rendezvous.join(ROUTING_ID, TUNNEL_ID, now=21) is successor


class Opening:
    """A rendezvous at which tunnels are opened by number and joined at once, unless they wait."""

    def __init__(self, limits: Limits) -> None:
        self.rendezvous = Rendezvous(limits)
        self.tunnels: dict[int, Tunnel] = {}

    def open(self, number: int, address: str, *, waits: bool = False) -> TunnelRefusal | None:
        tunnel_id = bytes([number] * 16)
        result = self.rendezvous.open(tunnel_id, routing_id=ROUTING_ID, address=address, now=0)
        if isinstance(result, TunnelRefusal):
            return result
        self.tunnels[number] = result
        if not waits:
            assert self.rendezvous.join(ROUTING_ID, tunnel_id, now=0) is result
        return None

    def evicted(self) -> list[int]:
        """Which tunnels have been evicted since the last call."""
        gone, self.rendezvous.evicted[:] = list(self.rendezvous.evicted), []
        return [number for number, tunnel in self.tunnels.items() if tunnel in gone]


@pytest.mark.threat("T9")
def test_the_service_and_each_address_have_room_for_so_many() -> None:
    here = Opening(Limits(tunnels=3, tunnels_per_address=2))
    assert [here.open(number, HERE) for number in (1, 2, 3)] == [None, None, TunnelRefusal.FULL]
    assert here.open(4, "192.0.2.2") is None
    assert here.open(5, "192.0.2.3") is TunnelRefusal.FULL
    here.rendezvous.end(here.tunnels[1])
    assert here.open(6, "192.0.2.3") is None
    assert here.evicted() == []


@pytest.mark.threat("T17")
def test_for_a_new_tunnel_the_longest_waiting_one_of_its_address_goes_at_the_cap_of_the_address() -> None:
    here = Opening(Limits(tunnels=10, tunnels_per_address=3))
    here.open(9, "192.0.2.9", waits=True)
    here.open(1, "2001:db8::1")
    here.open(2, "2001:db8::2", waits=True)
    here.open(3, "2001:db8::3", waits=True)
    assert here.open(4, "2001:db8::4") is None
    assert here.evicted() == [2]
    assert here.open(5, "2001:db8::5") is None
    assert here.evicted() == [3]
    assert here.open(6, "2001:db8::6") is TunnelRefusal.FULL
    assert here.open(6, "2001:db8:0:1::6") is None
    assert here.evicted() == []


@pytest.mark.threat("T17")
def test_for_a_new_tunnel_the_longest_waiting_one_of_the_address_with_most_goes_at_the_cap_of_all() -> None:
    here = Opening(Limits(tunnels=5, tunnels_per_address=4))
    here.open(1, "192.0.2.1", waits=True)  # the longest of all, but of an address with one
    for number in (2, 3, 4):
        here.open(number, "192.0.2.2", waits=number > 2)
    here.open(5, "192.0.2.3")
    assert here.open(6, "192.0.2.6") is None
    assert here.evicted() == [3]
    assert here.rendezvous.join(ROUTING_ID, bytes([3] * 16), now=0) is TunnelRefusal.UNKNOWN
    assert here.open(7, "192.0.2.7") is None
    assert here.open(8, "192.0.2.8") is None  # the busiest has none that waits
    assert here.evicted() == [1, 4]
    assert here.open(9, "192.0.2.9") is TunnelRefusal.FULL


@pytest.mark.threat("T9")
def test_a_tunnel_has_so_many_bytes_in_flight_in_both_directions_together() -> None:
    here = Opening(Limits(in_flight=100))
    here.open(1, HERE)
    tunnel = here.tunnels[1]
    for end, size, breach in (
        (End.FIRST, 60, None), (End.SECOND, 40, None), (End.SECOND, 1, Breach.TOO_MUCH_AT_ONCE)
    ):  # fmt: skip
        assert tunnel.carry(end, size) is breach
        if breach is None:
            here.rendezvous.hold(tunnel, size)
    here.rendezvous.let_go(tunnel, 60)
    assert tunnel.carry(End.SECOND, 60) is None
    assert (tunnel.held, here.rendezvous.in_flight) == (40, 40)


@pytest.mark.threat("T17")
def test_when_all_tunnels_hold_too_much_the_address_that_holds_most_loses_the_tunnel_that_holds_most() -> (
    None
):
    here = Opening(Limits(in_flight_of_all=100))
    for number, address in ((1, "192.0.2.1"), (2, "192.0.2.2"), (3, "192.0.2.2"), (4, "192.0.2.4")):
        here.open(number, address)
    for number, size in ((1, 30), (2, 15), (3, 5), (4, 35)):
        here.rendezvous.hold(here.tunnels[number], size)
    for more in (9, -2, 8):  # of a message whose rest has not come
        here.rendezvous.wait(here.tunnels[3], more)
    assert here.rendezvous.in_flight == 100
    assert here.evicted() == []
    here.rendezvous.hold(here.tunnels[2], 1)  # 36 of two tunnels, against 35 of one
    assert here.evicted() == [3]
    assert here.rendezvous.in_flight == 81
    here.rendezvous.let_go(here.tunnels[3], 20)  # what is ended no longer counts
    here.rendezvous.hold(here.tunnels[3], 50)
    here.rendezvous.wait(here.tunnels[3], 50)
    for number in (1, 2, 3, 4):
        here.rendezvous.end(here.tunnels[number])
    assert here.rendezvous.in_flight == 0
    assert len(here.rendezvous) == 0


@pytest.mark.threat("T9")
def test_an_address_may_arrive_so_often_and_again_after_a_while() -> None:
    rendezvous = Rendezvous(Limits(rate=2))
    assert [rendezvous.arrive(HERE, now=0) for _ in range(3)] == [None, None, TunnelRefusal.TOO_OFTEN]
    assert rendezvous.arrive("192.0.2.2", now=0) is None
    assert rendezvous.arrive(HERE, now=29) is TunnelRefusal.TOO_OFTEN
    assert rendezvous.arrive(HERE, now=31) is None
    assert rendezvous.arrive(HERE, now=32) is TunnelRefusal.TOO_OFTEN


@pytest.mark.threat("T9")
@pytest.mark.parametrize(
    ("limits", "sizes", "breach"),
    [
        (Limits(message_size=10), [10, 11], Breach.TOO_LONG),
        (Limits(messages=2), [1, 1, 1], Breach.TOO_MANY),
        (Limits(size=10), [5, 5, 1], Breach.TOO_MUCH),
    ],
)
def test_an_end_has_a_budget_of_its_own(limits: Limits, sizes: list[int], breach: Breach) -> None:
    rendezvous = Rendezvous(limits)
    tunnel = opened(rendezvous)
    rendezvous.join(ROUTING_ID, TUNNEL_ID, now=0)
    assert [tunnel.carry(End.FIRST, size) for size in sizes] == [None] * (len(sizes) - 1) + [breach]
    assert tunnel.carry(End.SECOND, sizes[0]) is None


@pytest.mark.threat("T9")
def test_an_end_may_ping_so_often_beside_the_pongs_that_it_is_asked_for() -> None:
    rendezvous = Rendezvous(Limits(controls=3, life=100, silence=20))
    tunnel = opened(rendezvous)
    assert [tunnel.control(End.FIRST) for _ in range(9)] == [None] * 8 + [Breach.TOO_BUSY]
    assert tunnel.control(End.SECOND) is None
    assert tunnel.messages == [0, 0]


@pytest.mark.threat("T9")
@pytest.mark.parametrize("limits", [Limits(early_messages=2), Limits(early_size=20)])
def test_only_so_much_waits_for_the_second_end(limits: Limits) -> None:
    rendezvous = Rendezvous(limits)
    tunnel = opened(rendezvous)
    assert [tunnel.carry(End.FIRST, 10) for _ in range(3)] == [None, None, Breach.TOO_EARLY]
    rendezvous.join(ROUTING_ID, TUNNEL_ID, now=0)
    assert tunnel.carry(End.FIRST, 10) is None


@pytest.mark.threat("T11")
def test_a_tunnels_repr_keeps_its_id() -> None:
    assert repr(TUNNEL_ID) not in repr(opened(Rendezvous(Limits())))


@given(st.lists(st.floats(0, 100), max_size=50).map(sorted), st.integers(1, 20))
def test_no_minute_sees_more_than_a_burst_and_a_minutes_worth(times: list[float], rate: int) -> None:
    rendezvous = Rendezvous(Limits(rate=rate))
    admitted = [now for now in times if rendezvous.arrive(HERE, now=now) is None]
    for start in admitted:
        assert sum(start <= now < start + 60 for now in admitted) <= 2 * rate


class AnyOrder(RuleBasedStateMachine):
    """Opening, joining, ending and waiting in any order, against a model that is a plain dictionary."""

    tunnels: Bundle[Tunnel] = Bundle("tunnels")

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(waiting=10, life=30, tunnels=3, tunnels_per_address=3)
        self.rendezvous = Rendezvous(self.limits)
        self.now = 0.0
        self.model: dict[bytes, Tunnel] = {}

    @rule(target=tunnels, number=st.integers(1, 5), routing=st.integers(1, 2))
    def open(self, number: int, routing: int) -> Tunnel:
        tunnel_id = bytes([number] * 16)
        result = self.rendezvous.open(tunnel_id, routing_id=bytes([routing] * 3), address=HERE, now=self.now)
        while self.rendezvous.evicted:
            evicted = self.rendezvous.evicted.pop()
            assert not evicted.joined
            assert self.model.pop(evicted.tunnel_id) is evicted
        if isinstance(result, Tunnel):
            before = self.model.get(tunnel_id)
            assert before is None or before.deadline <= self.now
            self.model[tunnel_id] = result
            return result
        assert result in (TunnelRefusal.TAKEN, TunnelRefusal.FULL)
        assert len(self.rendezvous) > 0
        alive = [tunnel for tunnel in self.model.values() if tunnel.deadline > self.now]
        assert result is TunnelRefusal.TAKEN or all(tunnel.joined for tunnel in alive)
        return next(iter(self.model.values()))

    @rule(number=st.integers(1, 5), routing=st.integers(1, 2))
    def join(self, number: int, routing: int) -> None:
        tunnel_id = bytes([number] * 16)
        before = self.model.get(tunnel_id)
        joinable = (
            before is not None
            and not before.joined
            and before.deadline > self.now
            and before.routing_id == bytes([routing] * 3)
        )
        result = self.rendezvous.join(bytes([routing] * 3), tunnel_id, now=self.now)
        assert result is (before if joinable else TunnelRefusal.UNKNOWN)

    @rule(tunnel=tunnels)
    def end(self, tunnel: Tunnel) -> None:
        self.rendezvous.end(tunnel)
        if self.model.get(tunnel.tunnel_id) is tunnel:
            del self.model[tunnel.tunnel_id]

    @rule(seconds=st.sampled_from([1, 9, 10, 30]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def never_more_than_fit(self) -> None:
        assert len(self.rendezvous) <= self.limits.tunnels


TestAnyOrder = AnyOrder.TestCase


# Settings


@pytest.mark.parametrize("name", ["waiting", "life", "silence", "rate"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "20", None])
def test_a_time_or_rate_is_a_number_above_zero(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"\A{name}: expected a number above 0, got "):
        Limits(**{name: value})


COUNTS = [
    "message_size",
    "messages",
    "size",
    "early_messages",
    "early_size",
    "tunnels",
    "tunnels_per_address",
    "in_flight",
    "in_flight_of_all",
]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "20", None])
def test_a_count_is_a_whole_number_of_one_or_more(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"\A{name}: expected a whole number of 1 or more, got "):
        Limits(**{name: value})
