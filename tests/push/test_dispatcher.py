"""The dispatcher: parallel, bounded, one retry, a circuit for each service, and nothing of it lost or doubled."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from companion_push.push import dispatcher as dispatching
from companion_push.push.channel import Apns, Delivery, Fcm, Kind, Purpose, Push, PushOutcome, WebPush
from companion_push.push.dispatcher import Dispatcher, Order, service_of
from headless_passkey.errors import UsageError
from tests.loop_clock import LoopClock
from tests.push.recording import SENT, RecordingChannel

NOW = 1_800_000_000.0
FAILED = Delivery(outcome=PushOutcome.FAILED)


@dataclass
class Desk:
    """A dispatcher with one channel, and what it has told."""

    channel: RecordingChannel
    clock: LoopClock
    told: list[tuple[int, PushOutcome]] = field(default_factory=list)
    ahead: float = 0.0
    numbers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    dispatcher: Dispatcher = field(init=False)

    def __post_init__(self) -> None:
        self.dispatcher = Dispatcher(
            [self.channel], told=self._tell, clock=lambda: NOW + self.ahead, chance=lambda: 0.0
        )

    def _tell(self, order: Order, delivery: Delivery) -> None:
        self.told.append((order.number, delivery.outcome))
        self.changed.set()
        self.changed = asyncio.Event()

    def order(
        self,
        handle: str = "handle",
        purpose: Purpose = Purpose.REQUEST,
        *,
        account: bytes = b"a" * 16,
        request: str | None = "request",
        seconds: float = 300,
    ) -> int:
        self.numbers += 1
        push = Push(
            purpose=purpose, handle=handle, account=account, expires_at=NOW + seconds, request_id=request
        )
        address = Fcm(app="app.example", token=handle)
        self.dispatcher.dispatch(Order(number=self.numbers, address=address, push=push))
        return self.numbers

    async def ends(self, count: int) -> list[tuple[int, PushOutcome]]:
        """Wait until so many orders have been told; returns them by number."""
        async with asyncio.timeout(20):
            while len(self.told) < count:
                await self.changed.wait()
        return sorted(self.told)

    async def idle(self) -> None:
        """Wait until nothing is with the service."""
        while any(lane._tasks for lane in self.dispatcher._lanes.values()):  # noqa: ASYNC110  tasks that end
            await asyncio.sleep(0)

    async def pauses(self) -> None:
        """Wait until nothing is with the service, and let every pause pass."""
        await self.idle()
        self.clock.passes(61)


@asynccontextmanager
async def desk(*answers: Delivery | Exception) -> AsyncIterator[Desk]:
    made = Desk(RecordingChannel(Kind.FCM, *answers), LoopClock(asyncio.get_running_loop()))
    try:
        yield made
    finally:
        made.channel.gate.set()
        await made.dispatcher.close(1)
        assert made.channel.closed == 1


async def test_all_channels_get_their_pushes_at_the_same_time() -> None:
    async with desk() as the:
        the.channel.gate.clear()
        numbers = [the.order(handle) for handle in ("one", "two", "three")]
        await the.channel.came(3)
        assert the.channel.with_it == 3
        assert the.told == []
        the.channel.gate.set()
        assert await the.ends(3) == [(number, PushOutcome.SENT) for number in numbers]


@pytest.mark.parametrize("failure", [FAILED, RuntimeError("boom")], ids=["failed", "raised"])
async def test_a_push_that_failed_is_tried_once_more(failure: Delivery | Exception) -> None:
    async with desk(failure) as the:
        the.order()
        await the.channel.came(1)
        await the.pauses()
        assert await the.ends(1) == [(1, PushOutcome.SENT)]
        assert len(the.channel.pushes) == 2


async def test_a_second_failure_is_the_end() -> None:
    async with desk(FAILED, FAILED) as the:
        the.order()
        await the.channel.came(1)
        await the.pauses()
        assert await the.ends(1) == [(1, PushOutcome.FAILED)]
        assert len(the.channel.pushes) == 2


async def test_what_a_service_takes_too_long_for_is_a_failure() -> None:
    async with desk() as the:
        the.channel.gate.clear()
        the.order()
        await the.channel.came(1)
        the.clock.passes(dispatching.SEND_SECONDS + 1)
        await the.pauses()
        await the.channel.came(2)
        the.clock.passes(dispatching.SEND_SECONDS + 1)
        assert await the.ends(1) == [(1, PushOutcome.FAILED)]


@pytest.mark.parametrize(
    "outcome", [PushOutcome.GONE, PushOutcome.STALE, PushOutcome.REFUSED], ids=["gone", "stale", "refused"]
)
async def test_what_the_service_says_of_the_address_is_told_at_once(outcome: PushOutcome) -> None:
    async with desk(Delivery(outcome=outcome)) as the:
        the.order()
        assert await the.ends(1) == [(1, outcome)]
        assert len(the.channel.pushes) == 1


async def test_a_busy_service_is_asked_again_when_it_says() -> None:
    async with desk(Delivery(outcome=PushOutcome.BUSY, retry_after=40)) as the:
        the.order()
        await the.channel.came(1)
        await the.idle()
        (job,) = the.dispatcher._lanes[Kind.FCM]._jobs.values()
        assert job.timer is not None
        assert job.timer.when() - asyncio.get_running_loop().time() == pytest.approx(40, abs=5)
        await the.pauses()
        assert await the.ends(1) == [(1, PushOutcome.SENT)]


@pytest.mark.parametrize(
    ("retry_after", "seconds"), [(60.0, 50.0), (301.0, 86_400.0)], ids=["past the request", "too long"]
)
async def test_a_busy_service_is_not_asked_again_when_that_is_too_late(
    retry_after: float, seconds: float
) -> None:
    async with desk(Delivery(outcome=PushOutcome.BUSY, retry_after=retry_after)) as the:
        the.order(seconds=seconds)
        assert await the.ends(1) == [(1, PushOutcome.BUSY)]
        assert len(the.channel.pushes) == 1


@pytest.mark.threat("T5")
async def test_a_push_that_outlived_its_request_is_dropped() -> None:
    async with desk(FAILED) as the:
        the.order(seconds=-1)
        assert await the.ends(1) == [(1, PushOutcome.LATE)]
        the.order(seconds=30)
        await the.channel.came(1)
        await the.pauses()
        the.ahead = 31
        assert await the.ends(2) == [(1, PushOutcome.LATE), (2, PushOutcome.LATE)]
        assert len(the.channel.pushes) == 1


async def test_a_dismissal_of_what_was_never_sent_is_not_sent_either() -> None:
    async with desk() as the:
        the.channel.gate.clear()
        for number in range(dispatching.RUNNING_OF_ACCOUNT):
            the.order(f"busy {number}")
        await the.channel.came(dispatching.RUNNING_OF_ACCOUNT)
        request, dismissal = the.order(), the.order(purpose=Purpose.DISMISS)
        assert the.told == [(request, PushOutcome.LATE), (dismissal, PushOutcome.LATE)]
        the.channel.gate.set()
        await the.ends(dispatching.RUNNING_OF_ACCOUNT + 2)
        assert len(the.channel.pushes) == dispatching.RUNNING_OF_ACCOUNT


async def test_a_dismissal_follows_a_push_that_is_with_the_service_and_never_overtakes_it() -> None:
    async with desk(FAILED) as the:
        the.channel.gate.clear()
        the.order()
        await the.channel.came(1)
        the.order(purpose=Purpose.DISMISS)
        the.order("other")
        await the.channel.came(2)  # the other one, and not yet the dismissal
        assert the.channel.shown() == [("request", "handle"), ("request", "other")]
        the.channel.gate.set()
        assert await the.ends(3) == [(1, PushOutcome.FAILED), (2, PushOutcome.SENT), (3, PushOutcome.SENT)]
        assert the.channel.shown()[-1] == ("dismiss", "handle")


async def test_a_dismissal_takes_the_place_of_a_retry() -> None:
    async with desk(FAILED) as the:
        the.order()
        await the.channel.came(1)
        await the.idle()
        the.order(purpose=Purpose.DISMISS)  # it may have arrived in spite of the failure
        assert await the.ends(2) == [(1, PushOutcome.LATE), (2, PushOutcome.SENT)]
        assert the.channel.shown() == [("request", "handle"), ("dismiss", "handle")]


async def test_a_second_dismissal_is_sent_when_the_first_one_never_was() -> None:
    async with desk() as the:
        the.order()
        await the.ends(1)
        the.channel.gate.clear()
        for number in range(dispatching.RUNNING_OF_ACCOUNT):
            the.order(f"busy {number}")
        await the.channel.came(dispatching.RUNNING_OF_ACCOUNT + 1)
        # claimed, given back, claimed again: all the while the phone shows the push that was sent
        the.order(purpose=Purpose.DISMISS)
        the.order()
        the.order(purpose=Purpose.DISMISS)
        the.channel.gate.set()
        await the.ends(dispatching.RUNNING_OF_ACCOUNT + 4)
        assert the.channel.shown()[-1] == ("dismiss", "handle")


@pytest.mark.threat("T17")
async def test_accounts_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "RUNNING", 2)
    async with desk() as the:
        the.channel.gate.clear()
        for number in range(20):
            the.order(f"greedy {number}", account=b"g" * 16)
        for number in range(2):
            the.order(f"modest {number}", account=b"m" * 16)
        await the.channel.came(2)
        the.channel.gate.set()
        await the.ends(22)
        tokens = [token for _, token in the.channel.shown()]
        assert max(tokens.index("modest 0"), tokens.index("modest 1")) < 8


@pytest.mark.threat("T17")
async def test_one_account_has_a_bounded_number_with_the_service_and_in_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatching, "MOST_OF_ACCOUNT", 10)
    async with desk() as the:
        the.channel.gate.clear()
        for number in range(12):
            the.order(f"{number}", account=b"g" * 16)
        other = the.order("other", account=b"m" * 16)
        await the.channel.came(dispatching.RUNNING_OF_ACCOUNT + 1)
        assert the.channel.with_it == dispatching.RUNNING_OF_ACCOUNT + 1
        assert the.told == [(11, PushOutcome.BUSY), (12, PushOutcome.BUSY)]
        the.channel.gate.set()
        assert (other, PushOutcome.SENT) in await the.ends(13)


async def test_the_queue_of_a_kind_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "MOST", 3)
    async with desk() as the:
        the.channel.gate.clear()
        for number in range(5):
            the.order(f"{number}", account=bytes([number]) * 16)
        assert the.told == [(4, PushOutcome.BUSY), (5, PushOutcome.BUSY)]
        assert len(the.dispatcher) == 3


# The circuit


async def tripped(the: Desk, accounts: int = dispatching.ACCOUNTS) -> int:
    """Let ten pushes of so many accounts fail, each twice, or until the circuit opens; returns how many orders."""
    count = 2 * dispatching.FAILURES
    for number in range(count):
        the.order(f"down {number}", account=bytes([number % accounts]) * 16, seconds=86_400)
    while len(the.told) < count:
        await the.pauses()
        await asyncio.sleep(0)
    return count


async def test_a_service_that_fails_for_several_accounts_is_left_alone_and_tried_by_one() -> None:
    async with desk(*[FAILED] * 100) as the:
        ordered = await tripped(the)
        asked = len(the.channel.pushes)
        assert asked < 2 * ordered  # some were never tried
        the.told.clear()
        the.channel.answers = [SENT]
        the.channel.gate.clear()
        the.clock.passes(61)
        the.order("first", seconds=86_400)
        await the.channel.came(asked + 1)
        the.order("second", account=b"s" * 16, seconds=86_400)
        for _ in range(50):
            await asyncio.sleep(0)
        assert the.channel.with_it == 1  # the one that tries
        the.channel.gate.set()
        await the.ends(1)
        await the.pauses()
        assert {outcome for _, outcome in await the.ends(2)} == {PushOutcome.SENT}


async def test_a_push_that_is_dismissed_while_it_waits_for_a_circuit_is_over() -> None:
    wrong: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
    async with desk(*[FAILED] * 100) as the:
        await tripped(the)
        the.clock.stop()
        asked = len(the.channel.pushes)
        the.order("probe", account=b"p" * 16, seconds=86_400)  # the service fails still
        await the.channel.came(asked + 1)
        await the.idle()
        the.told.clear()
        request = the.order("phone", account=b"w" * 16, seconds=86_400)
        await the.idle()
        assert len(the.channel.pushes) == asked + 1  # it waits
        dismissal = the.order("phone", Purpose.DISMISS, account=b"w" * 16, seconds=86_400)
        assert the.told == [(request, PushOutcome.LATE), (dismissal, PushOutcome.LATE)]
        the.channel.answers = [SENT]
        others = [the.order(handle, account=b"w" * 16, seconds=86_400) for handle in ("one", "two")]
        while len(the.told) < 2 + 1 + len(others):
            await the.pauses()
            await asyncio.sleep(0)
        await the.pauses()
        await the.idle()
        assert sorted(number for number, _ in the.told[2:]) == [request - 1, *others]  # each once
        assert ("dismiss", "phone") not in the.channel.shown()
        assert len(the.dispatcher) == 0
    gc.collect()
    assert wrong == []


@pytest.mark.threat("T17")
async def test_two_accounts_cannot_close_a_service_to_the_others() -> None:
    async with desk(*[FAILED] * 40) as the:
        ordered = await tripped(the, accounts=2)
        assert len(the.channel.pushes) == 2 * ordered  # each was tried twice
        the.told.clear()
        the.order("other", account=b"m" * 16)
        assert (await the.ends(1))[0][1] is PushOutcome.SENT


@pytest.mark.parametrize("tried", [False, True], ids=["is left alone", "is tried"])
def test_a_push_that_the_channel_drops_as_late_says_nothing_of_the_service(*, tried: bool) -> None:
    circuit = dispatching._Circuit()
    for number in range(dispatching.FAILURES):
        circuit.note(PushOutcome.FAILED, bytes([number]), 0.0)
    if tried:
        assert circuit.closed_for(dispatching.FIRST_PAUSE) == 0
    circuit.note(PushOutcome.LATE, b"a", dispatching.FIRST_PAUSE)
    assert circuit.is_broken
    assert circuit.closed_for(dispatching.FIRST_PAUSE) == 0  # another push tries it
    assert circuit.closed_for(dispatching.FIRST_PAUSE) > 0


# The end


async def test_closing_waits_for_what_is_with_the_service_and_drops_the_rest() -> None:
    async with desk() as the:
        the.channel.gate.clear()
        for number in range(dispatching.RUNNING_OF_ACCOUNT + 3):
            the.order(f"{number}")
        await the.channel.came(dispatching.RUNNING_OF_ACCOUNT)
        closing = asyncio.create_task(the.dispatcher.close(60))
        await asyncio.sleep(0)
        the.channel.gate.set()
        await closing
        assert len(the.told) == dispatching.RUNNING_OF_ACCOUNT
        assert len(the.channel.pushes) == dispatching.RUNNING_OF_ACCOUNT
        the.order("too late")
        assert len(the.told) == dispatching.RUNNING_OF_ACCOUNT
        the.channel.closed = 0  # the desk closes it again


async def test_closing_takes_no_longer_than_it_may() -> None:
    async with desk() as the:
        the.channel.gate.clear()
        the.order()
        await the.channel.came(1)
        await the.dispatcher.close(0)
        assert (the.channel.with_it, the.told) == (0, [])
        the.channel.closed = 0


async def test_a_channel_that_cannot_be_closed_keeps_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(RecordingChannel):
        async def close(self) -> None:
            raise OSError("a secret address")

    told: list[Any] = []
    made = Dispatcher([Stuck()], told=lambda *end: told.append(end), clock=lambda: NOW)
    with caplog.at_level(logging.WARNING):
        await made.close(1)
    assert "fcm: the channel was not closed: OSError" in caplog.text
    assert "secret" not in caplog.text


def test_two_channels_of_one_kind_are_a_mistake() -> None:
    with pytest.raises(UsageError, match="at most one of each kind"):
        Dispatcher([RecordingChannel(), RecordingChannel()], told=lambda *_: None, clock=lambda: NOW)


async def test_no_token_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with desk(RuntimeError("SECRET"), FAILED) as the:
            the.order("SECRET-TOKEN")
            await the.channel.came(1)
            await the.pauses()
            await the.ends(1)
    assert "fcm: a push for request ended as failed" in caplog.text
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize(
    ("address", "service"),
    [
        (WebPush(endpoint="https://Push.example:444/x", p256dh=b"", auth=b""), "push.example:444"),
        (Fcm(app="app.example", token="t"), "app.example"),
        (Apns(topic="app", token="t"), "production"),
        (Apns(topic="app", token="t", sandbox=True), "sandbox"),
    ],
    ids=["web push", "fcm", "apns", "apns sandbox"],
)
def test_each_push_service_has_a_circuit_of_its_own(address: Any, service: str) -> None:
    assert service_of(address) == service
