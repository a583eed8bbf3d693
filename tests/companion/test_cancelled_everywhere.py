"""A companion that is cancelled at every point where it waits, once and twice: nothing stays open, and no claim stays with it."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from companion_push.companion.attend import Outcomes, wait_for_requests
from companion_push.companion.consent import Answer, Policy
from companion_push.companion.founding import found_by_sign_in
from companion_push.companion.inbox import NoticeKind
from companion_push.companion.keys import CompanionState, Identity, KeyPair
from companion_push.companion.relay_client import CompanionRelay
from companion_push.companion.sign_in import sign_in
from companion_push.identity.settings import OpenIdSettings
from tests.companion.family import Companion, Frame, Hands
from tests.identity.issuer import Issuer
from tests.open_things import Interruption, cancel_everywhere, interrupted
from tests.relay.household import claimer, running_relay


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


async def test_a_founding_by_a_sign_in(tmp_path: Path) -> None:
    """Whatever was done before it was cancelled, the same command goes on."""
    people = map(str, range(1000))

    async def soon(_seconds: float) -> None:
        await asyncio.sleep(0)

    async with Issuer(now=int(time.time())).running() as issuer:
        openid = OpenIdSettings(issuer=issuer.url, audience="companion", clients=("companion",))
        async with running_relay(tmp_path / "relay.sqlite3", openid=openid) as relay:

            async def token(client: CompanionRelay, keys: KeyPair) -> str:
                way = await client.way()
                return await sign_in(way, key=keys.signing, tls=None, show=lambda _prompt: None, sleep=soon)

            def found(state: CompanionState) -> Coroutine[Any, Any, Identity]:
                return found_by_sign_in(state, relay.url, label="phone", token=token)

            async def one(interruption: Interruption) -> Interruption:
                issuer.signs = {"sub": next(people)}
                issuer.polls = [{"error": "authorization_pending"}]
                state = CompanionState(tmp_path / f"state {issuer.signs['sub']}")
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.create_task(interrupted(found(state), interruption))
                begun = state.joining()
                if not state.is_enrolled():
                    identity = await found(state)
                    assert begun is None or begun.keys.name == identity.keys.name
                assert state.joining() is None
                assert state.chain().head.member(state.identity().keys.name)
                return interruption

            await one(Interruption(at=0))
            assert await cancel_everywhere(one) > 5
