"""A plan follows from its seed alone, and what is left of a shrunk one is a part of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.plan import (
    COMPANIONS,
    LINKED,
    MOMENTS,
    MOMENTS_LINKED,
    MOST_FAULTS,
    MOST_SECONDS,
    SERVERS,
    UNHEARD,
    UNHEARD_LINKED,
    WORKER,
    Deployment,
    Fault,
    Kind,
    make_plan,
)
from tests.chaos.run import PER_ROUND, SHORT, SHORT_SEED

seeds = st.integers(min_value=0, max_value=2**64)
rounds = st.integers(min_value=0, max_value=40)
deployments = st.sampled_from(Deployment)


@given(seeds, rounds, deployments)
def test_a_seed_has_one_plan(seed: int, number: int, deployment: Deployment) -> None:
    assert make_plan(seed, number, deployment) == make_plan(seed, number, deployment)


def test_it_is_the_same_plan_on_each_machine() -> None:
    said = [str(fault) for each in make_plan(1, 2).rounds for _, fault in each.faults]
    assert said == [
        "jump tunnel service by -90, when home 2 is at contacting, for 2 s",
        "kill companion 0.0, when home 0 is at opened, for 2.3 s",
        "kill companion 1.0, when home 1 is at submitted, for 2.8 s",
        "roll-back relay, when home 0 is at phone-advertising, for 2.8 s",
    ]


def test_two_seeds_have_two_plans() -> None:
    assert len({make_plan(seed, 3).rounds for seed in range(50)}) == 50


@given(seeds, rounds, rounds, deployments)
def test_a_longer_plan_begins_with_the_shorter_one(
    seed: int, one: int, other: int, deployment: Deployment
) -> None:
    shorter, longer = sorted((one, other))
    assert make_plan(seed, longer, deployment).rounds[:shorter] == make_plan(seed, shorter, deployment).rounds


@given(seeds, deployments)
def test_every_fault_can_be_made(seed: int, deployment: Deployment) -> None:
    plan = make_plan(seed, 20, deployment)
    assert plan.faults == tuple(range(len(plan.faults)))
    for each in plan.rounds:
        assert 1 <= len(each.faults) <= MOST_FAULTS
        for _, fault in each.faults:
            check(fault, deployment)


def check(fault: Fault, deployment: Deployment) -> None:
    kind, _, place = fault.target.partition(" ")
    behind = {*deployment.relays, *deployment.databases, *([WORKER] if deployment.databases else [])}
    if fault.target not in {*SERVERS, *behind}:
        home, _, companion = place.partition(".")
        assert int(home) == fault.home, "the home that is watched is the one that it concerns"
        assert kind in ("device", "companion", "phone")
        assert (kind == "phone") <= (fault.home == LINKED)
        assert int(companion or 0) < COMPANIONS[fault.home]
    assert fault.moment in (MOMENTS_LINKED if fault.home == LINKED else MOMENTS)
    if fault.kind is Kind.DEAFEN:
        assert fault.moment in (UNHEARD_LINKED if fault.home == LINKED else UNHEARD)
    assert 0 < fault.seconds <= MOST_SECONDS
    is_link = fault.kind in (Kind.CUT, Kind.DELAY, Kind.SWALLOW, Kind.DEAFEN)
    assert bool(fault.server) == is_link
    if fault.target in deployment.calls:
        assert not is_link or fault.server in deployment.calls[fault.target]
    else:
        assert fault.server not in deployment.databases
    assert (fault.amount == 0) or fault.kind in (Kind.JUMP, Kind.DELAY, Kind.ROLL_BACK)


@pytest.mark.parametrize("deployment", Deployment)
def test_every_kind_comes(deployment: Deployment) -> None:
    kinds = {fault.kind for each in make_plan(1, 200, deployment).rounds for _, fault in each.faults}
    assert kinds == set(Kind) - (set() if deployment is Deployment.REDIS else {Kind.LOSE})


@pytest.mark.parametrize("deployment", Deployment)
def test_all_that_runs_is_killed(deployment: Deployment) -> None:
    killed = {
        fault.target
        for each in make_plan(1, 400, deployment).rounds
        for _, fault in each.faults
        if fault.kind is Kind.KILL
    }
    assert killed >= {*SERVERS, *deployment.relays, *deployment.databases}
    assert (WORKER in killed) == (deployment is not Deployment.FILE)


def test_the_short_run_has_most_kinds() -> None:
    plan = make_plan(SHORT_SEED, SHORT // PER_ROUND)
    assert len({fault.kind for each in plan.rounds for _, fault in each.faults}) >= 9


@given(seeds, rounds, st.sets(st.integers(min_value=0, max_value=60)))
def test_a_part_has_the_named_faults_alone_in_their_rounds(seed: int, number: int, kept: set[int]) -> None:
    plan = make_plan(seed, number)
    part = plan.only(kept)
    assert part.faults == tuple(each for each in plan.faults if each in kept)
    everything = {(each.number, fault) for each in plan.rounds for fault in each.faults}
    assert {(each.number, fault) for each in part.rounds for fault in each.faults} <= everything
    assert all(each.faults for each in part.rounds)
    assert plan.only(plan.faults) == plan


@given(seeds, rounds)
def test_what_comes_until_a_round_is_a_shorter_plan(seed: int, number: int) -> None:
    assert make_plan(seed, number + 1).until(number) == make_plan(seed, number + 1)
    assert make_plan(seed, number + 5).until(number) == make_plan(seed, number + 1)
