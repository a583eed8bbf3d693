"""Challenge records: once, not for long, and not without bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relying_party.core.callers import Caller, ClientKind
from relying_party.core.challenges import ChallengeRecord, Challenges, Purpose, RegistrationRecord
from relying_party.core.credentials import User
from relying_party.errors import CeremonyGone, RateLimited


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
    name = await challenges.add(record(), name=b"name", now=0)
    assert await challenges.take(name, now=0) == record()
    with pytest.raises(CeremonyGone):
        await challenges.take(name, now=0)


@pytest.mark.threat("T5")
async def test_an_expired_record_is_gone_and_stays_gone() -> None:
    challenges = Challenges()
    name = await challenges.add(record(expires_at=10), name=b"name", now=0)
    for now in (10, 0):
        with pytest.raises(CeremonyGone):
            await challenges.take(name, now=now)


@given(st.text())
async def test_any_other_name_is_gone(name: str) -> None:
    challenges = Challenges()
    kept = await challenges.add(record(), name=b"name", now=0)
    if name != kept:
        with pytest.raises(CeremonyGone):
            await challenges.take(name, now=0)
    assert len(challenges) == 1


async def test_expired_records_make_room_and_live_ones_do_not() -> None:
    challenges = Challenges(most=2)
    await challenges.add(record(expires_at=10), name=b"1", now=0)
    kept = await challenges.add(record(expires_at=20), name=b"2", now=0)
    with pytest.raises(RateLimited):
        await challenges.add(record(), name=b"3", now=9)
    await challenges.add(record(), name=b"3", now=10)
    assert len(challenges) == 2
    await challenges.take(kept, now=10)


@pytest.mark.threat("T11")
def test_a_record_shows_neither_challenge_nor_person() -> None:
    assert "nobody may read" not in repr(record())
    assert "ada" not in repr(record()).lower()
