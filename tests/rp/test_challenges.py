"""Challenge records: once, not for long, and not without bound."""

from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relying_party.core.callers import Caller, ClientKind
from relying_party.core.challenges import ChallengeRecord, Challenges, Purpose, RegistrationRecord
from relying_party.core.credentials import User
from relying_party.errors import CeremonyGone


def record(*, expires_at: float = 100.0) -> ChallengeRecord:
    return RegistrationRecord(
        purpose=Purpose.REGISTRATION,
        user_verification="required",
        challenge=b"a challenge nobody may read",
        caller=Caller(kind=ClientKind.WEB),
        user=User(handle=b"handle", name="ada", display_name="Ada"),
        session_id=None,
        algorithms=(),
        extensions=frozenset(),
        expires_at=expires_at,
    )


@pytest.mark.threat("T5")
async def test_a_record_is_taken_once() -> None:
    challenges = Challenges()
    name = await challenges.add(record(), name=b"name", share="a", now=0)
    assert await challenges.take(name, now=0) == record()
    with pytest.raises(CeremonyGone):
        await challenges.take(name, now=0)


@pytest.mark.threat("T5")
async def test_an_expired_record_is_gone_and_stays_gone() -> None:
    challenges = Challenges()
    name = await challenges.add(record(expires_at=10), name=b"name", share="a", now=0)
    for now in (10, 0):
        with pytest.raises(CeremonyGone):
            await challenges.take(name, now=now)


@given(st.text())
async def test_any_other_name_is_gone(name: str) -> None:
    challenges = Challenges()
    kept = await challenges.add(record(), name=b"name", share="a", now=0)
    if name != kept:
        with pytest.raises(CeremonyGone):
            await challenges.take(name, now=0)
    assert len(challenges) == 1


async def left(challenges: Challenges, names: dict[str, str]) -> list[str]:
    """Which of the names are still there. It takes them."""
    found = []
    for name, text in names.items():
        with suppress(CeremonyGone):
            await challenges.take(text, now=0)
            found.append(name)
    return found


async def filled(challenges: Challenges, begun: Sequence[str]) -> dict[str, str]:
    """begun: a letter for the share and a digit, in order."""
    return {name: await challenges.add(record(), name=name.encode(), share=name[0], now=0) for name in begun}


async def test_expired_records_make_room_before_live_ones_do() -> None:
    challenges = Challenges(most=2)
    await challenges.add(record(expires_at=10), name=b"1", share="a", now=0)
    kept = await challenges.add(record(expires_at=20), name=b"2", share="a", now=0)
    await challenges.add(record(), name=b"3", share="a", now=10)
    assert len(challenges) == 2
    await challenges.take(kept, now=10)


@pytest.mark.threat("T17")
@pytest.mark.parametrize(
    ("begun", "kept"),
    [
        ("a1 a2 a3 b1", "a2 a3 b1"),
        ("b1 a1 a2 a3 a4 a5", "b1 a4 a5"),
        ("a1 b1 b2 c1", "a1 b2 c1"),
        ("a1 b1 c1 d1", "b1 c1 d1"),
        ("a1 a2 b1 b2", "a2 b1 b2"),
        ("a1 a2 b1 b2 b3 b4", "a2 b3 b4"),
    ],
)
async def test_a_full_place_forgets_the_oldest_of_who_has_most(begun: str, kept: str) -> None:
    challenges = Challenges(most=3)
    names = await filled(challenges, begun.split())
    assert len(challenges) == 3
    assert await left(challenges, names) == kept.split()


@pytest.mark.threat("T17")
async def test_one_stranger_displaces_nobody_elses_ceremony() -> None:
    challenges = Challenges(most=100)
    ours = [
        await challenges.add(record(), name=b"%d" % number, share=f"us {number}", now=0)
        for number in range(50)
    ]
    for number in range(20_000):
        await challenges.add(record(), name=b"s%d" % number, share="a stranger", now=0)
    assert len(challenges) == 100
    for name in ours:
        await challenges.take(name, now=0)


@pytest.mark.threat("T17")
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60),
    st.integers(1, 6),
)
async def test_nobody_below_the_largest_share_loses_a_ceremony(
    steps: list[tuple[str, bool]], most: int
) -> None:
    """Against a model: the records of each share, oldest first."""
    challenges = Challenges(most=most)
    model: dict[str, list[str]] = {}
    for number, (share, adds) in enumerate(steps):
        if adds:
            full = sum(map(len, model.values())) >= most
            before = {name: len(names) for name, names in model.items()}
            text = await challenges.add(record(), name=b"%d" % number, share=share, now=0)
            if full:
                (lost,) = [
                    (name, one)
                    for name, names in model.items()
                    for one in names
                    if one not in challenges._records
                ]
                assert before[lost[0]] == max(before.values())
                assert model[lost[0]].pop(0) == lost[1]
            model.setdefault(share, []).append(text)
        elif model.get(share):
            await challenges.take(model[share].pop(), now=0)
        assert len(challenges) == sum(map(len, model.values())) <= most
        assert set(challenges._shares._names) == {name for name, names in model.items() if names}
    assert sum(map(len, challenges._shares._by_size.values())) == len(challenges._shares._names)


@pytest.mark.threat("T11")
def test_a_record_shows_neither_challenge_nor_person() -> None:
    assert "nobody may read" not in repr(record())
    assert "ada" not in repr(record()).lower()
