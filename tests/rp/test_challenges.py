"""Challenge records: once, not for long, and not without bound; in the memory of a process, and in a file that processes share."""

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relying_party.core.callers import Caller, ClientKind
from relying_party.core.challenges import (
    AuthenticationRecord,
    ChallengeRecord,
    Challenges,
    Purpose,
    RegistrationRecord,
)
from relying_party.core.credentials import User
from relying_party.core.operations import Operation, OperationKind
from relying_party.errors import CeremonyGone
from relying_party.place import PostgresUri
from relying_party.store.minutes import PostgresChallenges
from relying_party.store.postgres import PostgresStore
from relying_party.store.shared import SharedChallenges
from tests.rp.stores import new_database, query


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


Place = Challenges | SharedChallenges | PostgresChallenges
in_each_place = pytest.mark.parametrize("kind", ["memory", "shared", "database"])


ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


@asynccontextmanager
async def place(kind: str, *, most: int = 20_000) -> AsyncIterator[Place]:
    if kind == "memory":
        yield Challenges(most=most)
        return
    if kind == "database":
        async with await emptied() as store:
            yield PostgresChallenges(store.database, most=most)
        return
    with tempfile.TemporaryDirectory() as folder:
        async with SharedChallenges(Path(folder) / "ceremonies", most=most) as shared:
            yield shared


@cache
def database() -> PostgresUri:
    """One database for all tests here: hypothesis has many examples."""
    return new_database()


async def emptied() -> PostgresStore:
    query(database(), "TRUNCATE ceremonies")
    return PostgresStore(database())


async def names_in(challenges: Place) -> set[str]:
    """The names of its records; in a shared place after a look at its own counts."""
    if isinstance(challenges, Challenges):
        assert sum(map(len, challenges._shares._by_size.values())) == len(challenges._shares._names)
        return set(challenges._records)

    if isinstance(challenges, PostgresChallenges):
        return {name for (name,) in query(database(), "SELECT name FROM ceremonies")}

    def work(connection: sqlite3.Connection) -> set[str]:
        rows = connection.execute("SELECT name FROM ceremonies").fetchall()
        sizes = connection.execute("SELECT share, size FROM shares ORDER BY share").fetchall()
        counted = connection.execute(
            "SELECT share, count(*) FROM ceremonies GROUP BY share ORDER BY share"
        ).fetchall()
        assert [tuple(row) for row in sizes] == [tuple(row) for row in counted]
        assert connection.execute("SELECT size FROM total").fetchone()[0] == len(rows)
        return {row["name"] for row in rows}

    return await challenges._worker.transaction("DEFERRED", work)


@in_each_place
@pytest.mark.threat("T5")
async def test_a_record_is_taken_once(kind: str) -> None:
    async with place(kind) as challenges:
        name = await challenges.add(record(), name=b"name", share="a", now=0)
        assert await challenges.take(name, now=0) == record()
        with pytest.raises(CeremonyGone):
            await challenges.take(name, now=0)


@in_each_place
@pytest.mark.threat("T5")
async def test_of_many_at_once_one_gets_a_record(kind: str) -> None:
    async with place(kind) as challenges:
        name = await challenges.add(record(), name=b"name", share="a", now=0)
        took = await asyncio.gather(
            *(challenges.take(name, now=0) for _ in range(10)), return_exceptions=True
        )
    assert [one for one in took if not isinstance(one, CeremonyGone)] == [record()]


@in_each_place
async def test_a_record_comes_back_as_it_was(kind: str) -> None:
    adds = RegistrationRecord(
        purpose=Purpose.REGISTRATION,
        user_verification="required",
        challenge=bytes(range(32)),
        caller=Caller(kind=ClientKind.DEVICE, key_thumbprint="thumb", label="Kühlschrank"),
        user=User(handle=bytes(32), name="ada", display_name="Ada \N{SNOWMAN}"),
        session_id=b"\xff" * 16,
        algorithms=(-7, -8, -257),
        extensions=frozenset({"credProps", "prf"}),
        expires_at=100.25,
    )
    steps_up = AuthenticationRecord(
        purpose=Purpose.STEP_UP,
        user_verification="required",
        challenge=bytes(32),
        caller=Caller(kind=ClientKind.WEB),
        expected=b"user",
        allowed=(b"one", b"\0\xfe"),
        session_id=bytes(16),
        operation=Operation(kind=OperationKind.RENAME_PASSKEY, target=b"one", name="phone"),
        expires_at=100.0,
    )
    signs_in = AuthenticationRecord(
        purpose=Purpose.SIGN_IN,
        user_verification="required",
        challenge=bytes(32),
        caller=Caller(kind=ClientKind.ANDROID, key_thumbprint="thumb"),
        expected=None,
        allowed=(),
        expires_at=100.0,
    )
    async with place(kind) as challenges:
        for number, known in enumerate((adds, steps_up, signs_in)):
            name = await challenges.add(known, name=b"%d" % number, share="a", now=0)
            assert await challenges.take(name, now=0) == known


@in_each_place
@pytest.mark.threat("T5")
async def test_an_expired_record_is_gone_and_stays_gone(kind: str) -> None:
    async with place(kind) as challenges:
        name = await challenges.add(record(expires_at=10), name=b"name", share="a", now=0)
        for now in (10, 0):
            with pytest.raises(CeremonyGone):
                await challenges.take(name, now=now)


@pytest.mark.parametrize("kind", ["memory", "shared"])
@given(ANY_TEXT)
async def test_any_other_name_is_gone(kind: str, name: str) -> None:
    await any_other_is_gone(kind, name)


@settings(max_examples=10)
@given(ANY_TEXT)
async def test_any_other_name_is_gone_in_a_database(name: str) -> None:
    await any_other_is_gone("database", name)


async def any_other_is_gone(kind: str, name: str) -> None:
    async with place(kind) as challenges:
        kept = await challenges.add(record(), name=b"name", share="a", now=0)
        if name != kept:
            with pytest.raises(CeremonyGone):
                await challenges.take(name, now=0)
            assert await names_in(challenges) == {kept}


async def left(challenges: Place, names: dict[str, str]) -> list[str]:
    """Which of the names are still there. It takes them."""
    found = []
    for name, text in names.items():
        with suppress(CeremonyGone):
            await challenges.take(text, now=0)
            found.append(name)
    return found


async def filled(challenges: Place, begun: Sequence[str]) -> dict[str, str]:
    """begun: a letter for the share and a digit, in order."""
    return {name: await challenges.add(record(), name=name.encode(), share=name[0], now=0) for name in begun}


@in_each_place
async def test_expired_records_make_room_before_live_ones_do(kind: str) -> None:
    async with place(kind, most=2) as challenges:
        await challenges.add(record(expires_at=10), name=b"1", share="a", now=0)
        kept = await challenges.add(record(expires_at=20), name=b"2", share="a", now=0)
        last = await challenges.add(record(), name=b"3", share="a", now=10)
        assert await names_in(challenges) == {kept, last}
        await challenges.take(kept, now=10)


@in_each_place
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
async def test_a_full_place_forgets_the_oldest_of_who_has_most(kind: str, begun: str, kept: str) -> None:
    async with place(kind, most=3) as challenges:
        names = await filled(challenges, begun.split())
        assert len(await names_in(challenges)) == 3
        assert await left(challenges, names) == kept.split()


@pytest.mark.threat("T17")
@pytest.mark.parametrize(("kind", "tries"), [("memory", 20_000), ("shared", 500), ("database", 300)])
async def test_one_stranger_displaces_nobody_elses_ceremony(kind: str, tries: int) -> None:
    async with place(kind, most=100) as challenges:
        ours = [
            await challenges.add(record(), name=b"%d" % number, share=f"us {number}", now=0)
            for number in range(50)
        ]
        for number in range(tries):
            await challenges.add(record(), name=b"s%d" % number, share="a stranger", now=0)
        assert len(await names_in(challenges)) == 100
        for name in ours:
            await challenges.take(name, now=0)


STEPS = st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60)


@pytest.mark.parametrize("kind", ["memory", "shared"])
@pytest.mark.threat("T17")
@given(STEPS, st.integers(1, 6))
async def test_nobody_below_the_largest_share_loses_a_ceremony(
    kind: str, steps: list[tuple[str, bool]], most: int
) -> None:
    await nobody_below_loses(kind, steps, most)


@pytest.mark.threat("T17")
@settings(max_examples=5)
@given(STEPS, st.integers(1, 6))
async def test_nobody_below_the_largest_share_loses_a_ceremony_in_a_database(
    steps: list[tuple[str, bool]], most: int
) -> None:
    await nobody_below_loses("database", steps, most)


async def nobody_below_loses(kind: str, steps: list[tuple[str, bool]], most: int) -> None:
    """Against a model: the records of each share, oldest first."""
    async with place(kind, most=most) as challenges:
        model: dict[str, list[str]] = {}
        for number, (share, adds) in enumerate(steps):
            if adds:
                full = sum(map(len, model.values())) >= most
                before = {name: len(names) for name, names in model.items()}
                text = await challenges.add(record(), name=b"%d" % number, share=share, now=0)
                if full:
                    there = await names_in(challenges)
                    (lost,) = [
                        (name, one) for name, names in model.items() for one in names if one not in there
                    ]
                    assert before[lost[0]] == max(before.values())
                    assert model[lost[0]].pop(0) == lost[1]
                model.setdefault(share, []).append(text)
            elif model.get(share):
                await challenges.take(model[share].pop(), now=0)
            assert await names_in(challenges) == {name for names in model.values() for name in names}


async def test_who_shares_the_file_shares_the_records(tmp_path: Path) -> None:
    async with (
        SharedChallenges(tmp_path / "ceremonies", most=3) as one,
        SharedChallenges(tmp_path / "ceremonies", most=3) as other,
    ):
        names = {f"{number}": await (one, other)[number % 2].add(
            record(), name=b"%d" % number, share="a", now=0) for number in range(4)}  # fmt: skip
        assert await other.take(names["2"], now=0) == record()
        for gone in ("0", "2"):
            with pytest.raises(CeremonyGone):
                await one.take(names[gone], now=0)
    assert (tmp_path / "ceremonies").stat().st_mode & 0o777 == 0o600


@pytest.mark.threat("T11")
def test_a_record_shows_neither_challenge_nor_person() -> None:
    assert "nobody may read" not in repr(record())
    assert "ada" not in repr(record()).lower()
