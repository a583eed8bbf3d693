"""A failing plan is made as short as it gets, and nobody searches for ever."""

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.shrink import shrink

sizes = st.integers(min_value=1, max_value=40)


def shrunk(size: int, causes: set[int], tries: int = 10_000) -> tuple[Sequence[int], list[Sequence[int]]]:
    """What is left of 0, 1, … where all causes together are needed to fail; and what was tried."""
    tried: list[Sequence[int]] = []

    async def fails(items: Sequence[int]) -> bool:
        tried.append(items)
        return causes <= set(items)

    left = asyncio.run(shrink(range(size), fails, may_try=lambda: len(tried) < tries))
    return left, tried


@given(sizes, st.data())
def test_only_what_is_needed_is_left(size: int, data: st.DataObject) -> None:
    causes = data.draw(st.sets(st.integers(min_value=0, max_value=size - 1), min_size=1, max_size=4))
    left, tried = shrunk(size, causes)
    assert list(left) == sorted(causes)
    assert all(list(each) == sorted(each) for each in tried), "the order stays"


@given(sizes, st.integers(min_value=0, max_value=10), st.data())
def test_a_search_ends_with_its_tries_and_keeps_what_fails(
    size: int, tries: int, data: st.DataObject
) -> None:
    causes = data.draw(st.sets(st.integers(min_value=0, max_value=size - 1), min_size=1))
    left, tried = shrunk(size, causes, tries)
    assert len(tried) <= tries
    assert causes <= set(left)


def test_one_cause_among_many_is_found_soon() -> None:
    left, tried = shrunk(64, {63})
    assert list(left) == [63]
    assert len(tried) <= 12
