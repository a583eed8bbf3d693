"""What waits between a radio and its listener: in order, once, and never too much."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import TransportError
from headless_passkey.radio.inbox import Inbox
from headless_passkey.radio.source import Advert


def advert(number: int) -> Advert:
    return Advert(service_data=number.to_bytes(20, "big"))


async def test_an_advert_wakes_the_listener() -> None:
    inbox = Inbox()
    listening = asyncio.ensure_future(anext(inbox))
    await asyncio.sleep(0)
    inbox.put(advert(1))
    assert await listening == advert(1)


@pytest.mark.threat("T12")
@given(st.lists(st.integers(0, 20)), st.integers(1, 5))
def test_the_newest_distinct_adverts_are_kept_in_order(numbers: list[int], size: int) -> None:
    inbox = Inbox(size)
    kept: list[int] = []
    for number in numbers:
        inbox.put(advert(number))
        if number not in kept:
            kept = [*kept, number][-size:]
    assert list(inbox._waiting) == [advert(number) for number in kept]


async def test_an_advert_that_was_taken_may_come_again() -> None:
    inbox = Inbox()
    for _ in range(2):
        inbox.put(advert(1))
        assert await anext(inbox) == advert(1)


async def test_a_failure_comes_after_what_was_heard_before_it() -> None:
    inbox = Inbox()
    inbox.put(advert(1))
    inbox.fail(TransportError("gone"))
    assert await anext(inbox) == advert(1)
    for _ in range(2):
        with pytest.raises(TransportError, match="gone"):
            await anext(inbox)


async def test_a_failure_wakes_the_listener() -> None:
    inbox = Inbox()
    listening = asyncio.ensure_future(anext(inbox))
    await asyncio.sleep(0)
    inbox.fail(TransportError("gone"))
    with pytest.raises(TransportError):
        await listening


async def test_listening_can_be_cancelled_and_taken_up_again() -> None:
    inbox = Inbox()
    listening = asyncio.ensure_future(anext(inbox))
    await asyncio.sleep(0)
    listening.cancel()
    await asyncio.wait([listening])
    inbox.put(advert(1))
    assert await anext(inbox) == advert(1)
