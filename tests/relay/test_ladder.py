"""A device whose requests nobody approves has to pause, longer each time, and keeps no other device from asking."""

from pathlib import Path

import pytest

from companion_push.relay.ladder import End, Ladder, Rung, Streak, end_of
from companion_push.relay.problems import Problem
from headless_passkey.errors import UsageError
from headless_passkey.request import RequestState
from tests.relay.household import Caller, Household, Reply, fresh_id, running_relay

DAY = 86_400
NOW = 1_800_000_000.0

# The rules


def streak(count: int, at: float = NOW) -> Streak:
    found = Streak()
    for _ in range(count):
        found = found.after(End.UNAPPROVED, at)
    return found


def pause(device: Streak, account: Streak = Streak(), now: float = NOW) -> int:  # noqa: B008  a value
    """Seconds that the device has to wait."""
    try:
        Ladder().admit(device, account, now)
    except Problem as problem:
        return problem.retry_after or 0
    return 0


@pytest.mark.threat("T6")
@pytest.mark.parametrize(
    ("count", "seconds"),
    [(0, 0), (1, 0), (2, 0), (3, 60), (4, 300), (5, 900), (6, 3600), (7, 3600), (50, 3600)],
)
def test_the_pauses_grow_with_each_request_that_nobody_approves(count: int, seconds: int) -> None:
    assert pause(streak(count)) == seconds
    if seconds:
        assert pause(streak(count), now=NOW + seconds - 0.5) == 1
        assert pause(streak(count), now=NOW + seconds) == 0


@pytest.mark.parametrize(("count", "seconds"), [(7, 0), (8, 60), (11, 60), (12, 300), (16, 900), (90, 900)])
def test_the_pauses_of_an_account_are_for_devices_with_a_streak_of_their_own(
    count: int, seconds: int
) -> None:
    assert pause(streak(1), streak(count)) == seconds
    assert pause(Streak(), streak(count)) == 0


def test_an_approval_ends_a_streak_and_so_does_a_day() -> None:
    assert streak(6).after(End.APPROVED, NOW) == Streak()
    assert streak(6).count_at(NOW + DAY - 1) == 6
    assert streak(6).count_at(NOW + DAY) == 0
    assert streak(6).after(End.UNAPPROVED, NOW + DAY).count == 1


def test_a_clock_that_goes_back_lets_nobody_wait_for_it_to_catch_up() -> None:
    assert pause(streak(6, at=NOW + 10 * DAY)) == 0


S = RequestState


@pytest.mark.threat("T6")
@pytest.mark.parametrize(
    ("was", "state", "by_device", "claimed", "end"),
    [
        (S.OPENED, S.COMPLETED, True, True, End.APPROVED),
        (S.DELIVERED, S.DECLINED, False, False, End.UNAPPROVED),
        (S.OPENED, S.DECLINED, False, True, End.UNAPPROVED),
        (S.PENDING, S.EXPIRED, False, False, End.UNAPPROVED),
        (S.DELIVERED, S.EXPIRED, False, False, End.UNAPPROVED),
        (S.OPENED, S.EXPIRED, False, True, None),
        (S.DELIVERED, S.CANCELLED, True, False, End.UNAPPROVED),
        (S.DELIVERED, S.SUPERSEDED, True, False, End.UNAPPROVED),
        (S.DELIVERED, S.FAILED, True, False, End.UNAPPROVED),
        (S.PENDING, S.CANCELLED, True, False, None),
        (S.PENDING, S.SUPERSEDED, True, False, None),
        (S.OPENED, S.FAILED, True, True, None),
        (S.DELIVERED, S.FAILED, False, False, None),
        (S.DELIVERED, S.CANCELLED, False, False, None),
        (None, S.PENDING, True, False, None),
        (S.PENDING, S.DELIVERED, False, False, None),
    ],
)
def test_what_the_end_of_a_request_counts_as(
    was: RequestState | None, state: RequestState, *, by_device: bool, claimed: bool, end: End | None
) -> None:
    assert end_of(was, state, by_device=by_device, claimed=claimed) is end


def test_a_ladder_is_made_of_rungs() -> None:
    with pytest.raises(UsageError, match="device"):
        Ladder(device=((3, 60),))  # type: ignore[arg-type]
    for wrong in ({"count": 0, "seconds": 60}, {"count": 3, "seconds": 0}, {"count": 3, "seconds": DAY + 1}):
        with pytest.raises(UsageError):
            Rung(**wrong)


# At the relay


async def no(phone: Caller, frame: Caller) -> None:
    """A request that `phone` declines."""
    name = fresh_id()
    reply = await frame.submit(phone, name=name)
    assert reply.status == 201, reply
    assert (await phone.act(frame, name, "declined")).status == 200


def check_paused(reply: Reply, count: int, seconds: int, of: str = "device") -> None:
    assert (reply.status, reply.problem) == (429, "rate-limited")
    assert reply.headers["RateLimit-Policy"] == f'"unapproved-of-{of}";q={count};w={seconds}'
    assert seconds - 30 <= int(reply.headers["Retry-After"]) <= seconds  # the clock goes on


@pytest.mark.threat("T6")
async def test_a_device_that_is_declined_pauses_and_goes_on_after_an_approval(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r", ladder=Ladder()) as relay:
        home = await relay.household()
        phone, (frame,) = home.companions[0], home.devices
        for _ in range(3):
            await no(phone, frame)
        check_paused(await frame.submit(phone), 3, 60)
        relay.clock.ahead += 61
        await no(phone, frame)
        check_paused(await frame.submit(phone), 4, 300)
        relay.clock.ahead += 301
        name = fresh_id()
        assert (await frame.submit(phone, name=name)).status == 201
        assert (await phone.act(frame, name, "claimed")).status == 200
        assert (await frame.tell(name, "completed")).status == 200
        for _ in range(3):
            await no(phone, frame)
        check_paused(await frame.submit(phone), 3, 60)


@pytest.mark.threat("T6")
async def test_requests_that_nobody_answers_count_at_the_moment_they_expire(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r", ladder=Ladder()) as relay:
        home = await relay.household()
        phone, (frame,) = home.companions[0], home.devices
        for _ in range(3):
            assert (await frame.submit(phone, expires_in=100)).status == 201
            relay.clock.ahead += 101
        check_paused(await frame.submit(phone), 3, 60)
        relay.clock.ahead += 60
        assert (await frame.submit(phone)).status == 201


@pytest.mark.threat("T6")
@pytest.mark.parametrize("how", ["cancelled", "failed", "superseded"])
async def test_a_device_that_takes_back_what_somebody_sees_gets_no_more_of_it(
    tmp_path: Path, how: str
) -> None:
    async with running_relay(tmp_path / "r", ladder=Ladder()) as relay:
        home = await relay.household()
        phone, (frame,) = home.companions[0], home.devices
        for _ in range(3):
            name = fresh_id()
            assert (await frame.submit(phone, name=name)).status == 201
            assert len(await phone.inbox()) == 1
            if how != "superseded":
                await frame.tell(name, how)
        if how == "superseded":
            assert (await frame.submit(phone)).status == 201
        check_paused(await frame.submit(phone), 3, 60)


@pytest.mark.threat("T17")
async def test_one_bad_device_does_not_keep_another_from_asking(tmp_path: Path) -> None:
    ladder = Ladder(device=(), account=Ladder().account)
    async with running_relay(tmp_path / "r", ladder=ladder) as relay:
        home = await relay.household(devices=3)
        phone, (bad, good, unlucky) = home.companions[0], home.devices
        await no(phone, unlucky)
        for _ in range(7):
            await no(phone, bad)
        check_paused(await bad.submit(phone), 8, 60, of="account")
        check_paused(await unlucky.submit(phone), 8, 60, of="account")
        name = fresh_id()
        assert (await good.submit(phone, name=name)).status == 201
        await phone.act(good, name, "claimed")
        await good.tell(name, "completed")
        assert (await unlucky.submit(phone)).status == 201, "an approval resets the account's"


@pytest.mark.threat("T6")
async def test_pauses_last_over_a_restart_and_a_removal_ends_them(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r", ladder=Ladder()) as relay:
        home = await relay.household()
        phone, (frame,) = home.companions[0], home.devices
        for _ in range(3):
            await no(phone, frame)
    async with running_relay(tmp_path / "r", ladder=Ladder()) as relay:
        again = Household(
            account=home.account,
            ring=home.ring,
            companions=[relay.caller(each.person) for each in home.companions],
            devices=[relay.caller(frame.person)],
        )
        (phone, other), (frame,) = again.companions, again.devices
        check_paused(await frame.submit(phone), 3, 60)
        await again.append(phone.person, other.person)
        await again.append(phone.person, other.person, frame.person)
        assert (await frame.submit(phone)).status == 201


async def test_the_same_submission_again_is_answered_during_a_pause(tmp_path: Path) -> None:
    async with running_relay(tmp_path / "r", ladder=Ladder()) as relay:
        home = await relay.household()
        phone, (frame,) = home.companions[0], home.devices
        for _ in range(2):
            await no(phone, frame)
        name = fresh_id()
        await frame.submit(phone, name=name)
        await phone.act(frame, name, "declined")
        reply = await frame.submit(phone, name=name)
        assert (reply.status, reply.body["state"]) == (200, "declined")
