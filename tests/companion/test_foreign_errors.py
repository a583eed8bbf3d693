"""What a caller's own opener and consent raise, of whatever kind: it reaches the caller, and the request is left to others."""

import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from companion_push.companion.attend import Outcomes, put_pending, wait_for_requests
from companion_push.companion.consent import Answered
from companion_push.companion.inbox import CheckedRequest, NoticeKind
from companion_push.companion.openers import Opening
from tests.companion.family import Companion, Frame, Hands
from tests.companion.test_inbox import failures
from tests.relay.household import claimer

FOREIGN = [RuntimeError("theirs"), OSError("theirs"), KeyError("theirs"), TimeoutError("theirs")]
RAISED = pytest.mark.parametrize("error", FOREIGN, ids=lambda error: type(error).__name__)


class FaultyHands(Hands):
    """An opener that raises something of its own."""

    def __init__(self, at: str, fault: Exception) -> None:
        super().__init__()
        self._at, self._fault = at, fault

    @contextlib.asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[None]:
        if self._at == "before it hands over":
            raise self._fault
        async with super().open(opening):
            yield
        raise self._fault


class FaultyConsent:
    """A person who is asked by something that breaks."""

    def __init__(self, fault: Exception) -> None:
        self._fault = fault

    async def ask(self, pending: Sequence[CheckedRequest]) -> Answered:
        raise self._fault


@RAISED
@pytest.mark.parametrize("at", ["before it hands over", "while it waits"])
async def test_what_an_opener_raises_gives_the_claim_back_and_another_companion_may_have_it(
    anna: Companion, bert: Companion, frame: Frame, at: str, error: Exception
) -> None:
    name = await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    with pytest.raises(type(error)) as caught:
        await anna.inbox.approve(anna.inbox.pending[0], FaultyHands(at, error))
    assert caught.value is error
    assert anna.kinds[-1] is NoticeKind.GIVEN_BACK
    assert anna.inbox.pending == ()
    status = await frame.caller.status(name)
    assert (status["state"], claimer(status)) == ("delivered", None)
    assert status["failures"] == failures(anna, "failed")
    await bert.inbox.poll()
    assert await bert.inbox.approve(bert.inbox.pending[0], Hands())


@RAISED
@pytest.mark.parametrize("how", ["asked once", "asked as they come"])
async def test_what_consent_raises_reaches_the_caller_and_nothing_was_claimed(
    anna: Companion, bert: Companion, frame: Frame, how: str, error: Exception
) -> None:
    name = await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    hands, outcomes = Hands(), Outcomes()
    attend = put_pending if how == "asked once" else wait_for_requests
    with pytest.raises(type(error)) as caught:
        await attend(anna.inbox, FaultyConsent(error), hands, outcomes, once=True)
    assert caught.value is error
    assert hands.opened == []
    status = await frame.caller.status(name)
    assert (status["state"], claimer(status), status["failures"]) == ("delivered", None, [])
    await bert.inbox.poll()
    assert await bert.inbox.approve(bert.inbox.pending[0], Hands())
