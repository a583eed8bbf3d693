"""A companion that is cancelled at every point where it waits, once and twice: nothing stays open, and no claim stays with it."""

import asyncio
import contextlib

import pytest

from companion_push.companion.attend import Outcomes, wait_for_requests
from companion_push.companion.consent import Answer, Policy
from companion_push.companion.inbox import NoticeKind
from tests.companion.family import Companion, Frame, Hands
from tests.open_things import Interruption, cancel_everywhere, interrupted
from tests.relay.household import claimer


@pytest.mark.parametrize(
    "again", [None, 1, 2, 4], ids=["once", "and at once", "and two later", "and four later"]
)
async def test_an_approval(anna: Companion, frame: Frame, again: int | None) -> None:
    async def one(interruption: Interruption) -> Interruption:
        name = await frame.ask(anna.caller)
        await anna.inbox.poll()
        (request,) = anna.inbox.pending
        approved = False
        with contextlib.suppress(asyncio.CancelledError):
            approved = await asyncio.create_task(
                interrupted(anna.inbox.approve(request, Hands()), interruption)
            )
        status = await frame.caller.status(name)
        assert (claimer(status) is not None) == approved
        assert not anna.inbox._claims
        assert not anna.inbox._in_hand
        return interruption

    await one(Interruption(at=0))  # opens the connections that are kept
    assert await cancel_everywhere(one, again=(again,)) > 1


@pytest.mark.parametrize(
    "again", [None, 1, 2, 4], ids=["once", "and at once", "and two later", "and four later"]
)
async def test_a_companion_that_waits_for_one_request(
    anna: Companion, frame: Frame, again: int | None
) -> None:
    async def one(interruption: Interruption) -> Interruption:
        name = await frame.ask(anna.caller)
        anna.notices.clear()
        waiting = wait_for_requests(anna.inbox, Policy(Answer.YES), Hands(), Outcomes(), once=True)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.create_task(interrupted(waiting, interruption))
        status = await frame.caller.status(name)
        assert (claimer(status) is not None) == (NoticeKind.FINISHED in anna.kinds)
        assert not anna.inbox._claims
        assert not anna.inbox._in_hand
        return interruption

    await one(Interruption(at=0))  # opens the connections that are kept
    assert await cancel_everywhere(one, again=(again,)) > 1
