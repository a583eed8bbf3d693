"""The dispatcher: hands pushes to their channels, and nobody waits for it.

It knows channels and pushes, and nothing of who orders them: each order's end is told to whoever made the dispatcher. All
channels work in parallel, and within one channel all accounts take turns, so that none waits for what another has ordered.

    ordered → waiting → with the service → told
              ↑ pause: one retry, or until the service's circuit is tried again ↓

A push that has outlived its time is dropped (`LATE`). Of two pushes about the same thing to the same channel the later takes the
place of the earlier, which is dropped unless it is with the service already; then the later follows it, never overtakes it.

A push service that fails ten times in a row, for three accounts or more, is left alone for 5 s, then for twice as long each
time, at most 60 s: its circuit is open, and one push tries it. So no account can close a service to the others.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from companion_push.push.channel import (
    Address,
    Apns,
    Channel,
    Delivery,
    Fcm,
    Kind,
    Purpose,
    Push,
    PushOutcome,
)
from companion_push.serving.tracing import Tracing
from headless_passkey.errors import UsageError
from headless_passkey.process.tasks import end_quietly, until_done

if TYPE_CHECKING:
    from opentelemetry.context import Context

MOST: Final = 10_000  # orders of one kind that are not told yet; more are refused as busy
MOST_OF_ACCOUNT: Final = 256  # the same, of one account: four times all channels that it can have
RUNNING: Final = 256  # pushes of one kind that are with their services at a time
RUNNING_OF_ACCOUNT: Final = 8
SEND_SECONDS: Final = 10.0  # for one attempt
RETRY: Final = 1.0  # seconds before the second attempt, and at most as much more by chance
MAX_RETRY_AFTER: Final = 300.0  # seconds; a service that asks for more gets no second attempt
FAILURES: Final = 10  # in a row, which open a circuit
ACCOUNTS: Final = 3  # that these failures have to concern
FIRST_PAUSE: Final = 5.0  # seconds that a circuit stays open
LAST_PAUSE: Final = 60.0
_PROBING: Final = 1.0  # seconds until another push looks whether the one that tries the service is back
_CIRCUITS: Final = 1000  # services of one kind that are remembered
_CLOSING: Final = 1.0  # seconds for a channel to close its connections

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One push to one channel."""

    number: int  # of whoever orders it
    address: Address = field(repr=False)
    push: Push
    parent: "Context | None" = field(default=None, repr=False, compare=False)  # of its spans

    @property
    def kind(self) -> Kind:
        return kind_of(self.address)


class Dispatcher:
    """Dispatches orders to the channels of a relay."""

    def __init__(
        self,
        channels: Sequence[Channel],
        *,
        told: Callable[[Order, Delivery], None],
        clock: Callable[[], float],
        chance: Callable[[], float] = random.random,
        traces: Tracing | None = None,
    ) -> None:
        """channels: at most one of a kind. told: called on the event loop with each order's end. clock: Unix seconds.

        traces: makes a span of each attempt, a child of the one in which its order was taken; None for no spans.
        """
        self._told, self._traces = told, traces
        self._lanes = {channel.kind: _Lane(channel, told, clock, chance, traces) for channel in channels}
        if len(self._lanes) != len(channels):
            raise UsageError("channels: expected at most one of each kind")

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset(self._lanes)

    @property
    def channels(self) -> Mapping[Kind, Channel]:
        return {kind: lane.channel for kind, lane in self._lanes.items()}

    @property
    def failing(self) -> Mapping[Kind, int]:
        """How many services of each kind are left alone for a while, since they fail."""
        return {kind: lane.failing for kind, lane in self._lanes.items()}

    def __len__(self) -> int:
        """How many orders are not told yet."""
        return sum(map(len, self._lanes.values()))

    def dispatch(self, order: Order) -> None:
        """Take an order. Never waits, and what goes wrong is told."""
        lane = self._lanes.get(order.kind)
        if lane is None:
            self._told(order, Delivery(outcome=PushOutcome.REFUSED, detail="no such channel is set up"))
        else:
            # an attempt begins in the context of whichever one ended before it
            lane.put(order if self._traces is None else replace(order, parent=self._traces.parent()))

    async def send_now(self, order: Order, seconds: float) -> Delivery:
        """Send an order at once and once, past all others, within `seconds`; its end is the result, and not told."""
        lane = self._lanes.get(order.kind)
        if lane is None:
            return Delivery(outcome=PushOutcome.REFUSED, detail="no such channel is set up")
        return await lane.send(order, seconds)

    async def close(self, seconds: float) -> None:
        """Wait at most `seconds` for what is with the services, drop the rest, and close the channels. Nothing is told of the dropped."""
        await asyncio.gather(*(lane.close(seconds) for lane in self._lanes.values()))


class _Job:
    """An order, until it is told."""

    __slots__ = ("attempts", "order", "running", "shown", "successor", "timer", "waited")

    def __init__(self, order: Order) -> None:
        self.order = order
        self.attempts = 0
        self.shown = order.push.purpose is Purpose.DISMISS  # whether the companion may show what it is about
        self.waited = False  # for a circuit, which it does once
        self.running = False
        self.timer: asyncio.TimerHandle | None = None  # while it pauses
        self.successor: Order | None = None  # what follows it, when it is with the service


class _Share:
    """The jobs of one account."""

    __slots__ = ("jobs", "ready", "running", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Job] = deque()
        self.jobs = 0
        self.running = 0
        self.ready = False  # whether it stands in line for the next free place


class _Lane:
    """The orders of one kind."""

    def __init__(
        self,
        channel: Channel,
        told: Callable[[Order, Delivery], None],
        clock: Callable[[], float],
        chance: Callable[[], float],
        traces: Tracing | None,
    ) -> None:
        self.channel, self._traces = channel, traces
        self._told, self._clock, self._chance = told, clock, chance
        self._jobs: dict[tuple[bytes, str, str], _Job] = {}  # by what they are about
        self._shares: dict[bytes, _Share] = {}  # by account
        self._line: deque[bytes] = deque()  # accounts with a job that may begin
        self._circuits: dict[str, _Circuit] = {}  # by service, longest unused first
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def failing(self) -> int:
        return sum(circuit.is_broken for circuit in self._circuits.values())

    def put(self, order: Order) -> None:
        if self._closed:
            return
        job = self._jobs.get(_about(order))
        if job is None:
            share = self._shares.get(order.push.account)
            if len(self._jobs) >= MOST or (share is not None and share.jobs >= MOST_OF_ACCOUNT):
                self._tell(order, Delivery(outcome=PushOutcome.BUSY, detail="too many pushes wait"))
                return
            self._begin(order)
        elif job.running:
            if job.successor is not None:
                self._tell(job.successor, _DROPPED)
            job.successor = order
        else:
            self._replace(job, order)

    def _begin(self, order: Order) -> None:
        job = self._jobs[_about(order)] = _Job(order)
        share = self._shares.setdefault(order.push.account, _Share())
        share.jobs += 1
        self._queue(job)

    def _replace(self, job: _Job, order: Order) -> None:
        """Put `order` in the place of one that waits or pauses."""
        before, job.order = job.order, order
        self._tell(before, _DROPPED)
        if order.push.purpose is Purpose.DISMISS and not job.shown:
            self._end(job, _DROPPED)
            return
        job.attempts, job.waited = 0, False
        if job.timer is not None:
            job.timer.cancel()
            self._queue(job)

    def _queue(self, job: _Job) -> None:
        job.timer = None
        account = job.order.push.account
        self._shares[account].waiting.append(job)
        self._stand_in_line(account)
        self._pump()

    def _stand_in_line(self, account: bytes) -> None:
        share = self._shares[account]
        if share.waiting and not share.ready and share.running < RUNNING_OF_ACCOUNT:
            share.ready = True
            self._line.append(account)

    def _pump(self) -> None:
        """Begin with as many jobs as may be with their services."""
        while self._line and len(self._tasks) < RUNNING and not self._closed:
            account = self._line.popleft()
            share = self._shares[account]
            share.ready = False
            job = share.waiting.popleft()
            job.running = True
            share.running += 1
            task = asyncio.create_task(self._run(job))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._stand_in_line(account)

    async def _run(self, job: _Job) -> None:
        order = job.order
        delivery, pause = await self._attempt(job)
        self._shares[order.push.account].running -= 1
        job.running = False
        task = asyncio.current_task()
        if task is not None:
            self._tasks.discard(task)  # its place is free now
        if job.successor is not None:
            self._follow(job, delivery)
        elif pause is None or self._clock() + pause >= order.push.expires_at:
            self._end(job, delivery)
        elif not self._closed:
            job.timer = asyncio.get_running_loop().call_later(pause, self._queue, job)
        if order.push.account in self._shares:
            self._stand_in_line(order.push.account)
        self._pump()

    def _follow(self, job: _Job, delivery: Delivery) -> None:
        """Go on with what was ordered meanwhile about the same thing."""
        before, successor = job.order, job.successor
        self._tell(before, delivery)
        if successor is not None:
            job.order, job.successor, job.attempts, job.waited = successor, None, 0, False
            self._queue(job)

    async def _attempt(self, job: _Job) -> tuple[Delivery, float | None]:
        """Make one attempt; returns its result, and the seconds after which another one is worth while."""
        order, loop = job.order, asyncio.get_running_loop()
        left = order.push.expires_at - self._clock()
        if left <= 0:
            return Delivery(outcome=PushOutcome.LATE), None
        circuit = self._circuit(order.address)
        closed_for = circuit.closed_for(loop.time())
        if closed_for:
            again = None if job.waited else closed_for
            job.waited = True
            return Delivery(outcome=PushOutcome.FAILED, detail="the service does not answer"), again
        job.attempts += 1
        job.shown = True
        delivery = await self.send(order, min(SEND_SECONDS, left))
        circuit.note(delivery.outcome, order.push.account, loop.time())
        if job.attempts > 1:
            return delivery, None
        match delivery.outcome:
            case PushOutcome.FAILED:
                return delivery, RETRY + self._chance()
            case PushOutcome.BUSY if (delivery.retry_after or 0.0) <= MAX_RETRY_AFTER:
                return delivery, max(RETRY, delivery.retry_after or 0.0) + self._chance()
        return delivery, None

    async def send(self, order: Order, seconds: float) -> Delivery:
        """Make one attempt, whatever the circuit says."""
        if self._traces is None:
            return await self._send(order, seconds)
        attributes = {
            "companion_push.kind": str(order.kind),
            "companion_push.purpose": str(order.push.purpose),
        }
        with self._traces.call(f"push {order.kind}", attributes, parent=order.parent) as span:
            delivery = await self._send(order, seconds)
            span.note("companion_push.outcome", delivery.outcome)
            if delivery.outcome in (PushOutcome.REFUSED, PushOutcome.BUSY, PushOutcome.FAILED):
                span.fail(delivery.outcome)
            return delivery

    async def _send(self, order: Order, seconds: float) -> Delivery:
        try:
            async with asyncio.timeout(seconds):
                return await self.channel.send(order.address, order.push)
        except TimeoutError:
            return Delivery(outcome=PushOutcome.FAILED, detail="no answer in time")
        except Exception as error:  # noqa: BLE001  a fault of the channel; its message may hold anything
            logger.error("%s: the channel raised %s", self.channel.kind, type(error).__name__)  # noqa: TRY400
            return Delivery(outcome=PushOutcome.FAILED, detail="the channel failed")

    def _end(self, job: _Job, delivery: Delivery) -> None:
        order = job.order
        if job.timer is not None:  # it pauses, and would begin again
            job.timer.cancel()
        del self._jobs[_about(order)]
        share = self._shares[order.push.account]
        share.jobs -= 1
        if job in share.waiting:
            share.waiting.remove(job)
            if not share.waiting and share.ready:
                share.ready = False
                self._line.remove(order.push.account)
        if not share.jobs:
            del self._shares[order.push.account]
        self._tell(order, delivery)

    def _tell(self, order: Order, delivery: Delivery) -> None:
        if delivery.outcome not in (PushOutcome.SENT, PushOutcome.LATE):
            logger.info(
                "%s: a push for %s ended as %s %s",
                self.channel.kind,
                order.push.purpose,
                delivery.outcome,
                f"({delivery.detail})" if delivery.detail else "",
            )
        self._told(order, delivery)

    def _circuit(self, address: Address) -> "_Circuit":
        """The circuit of the service that pushes to `address`, as the newest one."""
        service = service_of(address)
        circuit = self._circuits.pop(service, None) or _Circuit()
        if len(self._circuits) >= _CIRCUITS:
            del self._circuits[next(iter(self._circuits))]
        self._circuits[service] = circuit
        return circuit

    async def close(self, seconds: float) -> None:
        self._closed = True
        for job in self._jobs.values():
            if job.timer is not None:
                job.timer.cancel()
        tasks = tuple(self._tasks)
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=seconds)
        finally:
            await end_quietly(*tasks)
            await until_done(asyncio.ensure_future(self._close_channel()))

    async def _close_channel(self) -> None:
        try:
            async with asyncio.timeout(_CLOSING):
                await self.channel.close()
        except Exception as error:  # noqa: BLE001  the relay ends all the same
            logger.warning("%s: the channel was not closed: %s", self.channel.kind, type(error).__name__)


class _Circuit:
    """Whether a push service is worth an attempt. Times are of the event loop's clock."""

    __slots__ = ("_accounts", "_failures", "_open_until", "_pause", "_probing")

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._failures, self._accounts = 0, frozenset[bytes]()
        self._open_until, self._pause, self._probing = 0.0, FIRST_PAUSE, False

    @property
    def is_broken(self) -> bool:
        return self._failures >= FAILURES and len(self._accounts) >= ACCOUNTS

    def closed_for(self, now: float) -> float:
        """Seconds until the service is worth an attempt; 0 now, and then the caller makes it."""
        if not self.is_broken:
            return 0.0
        if now < self._open_until:
            return self._open_until - now
        if self._probing:
            return _PROBING
        self._probing = True
        return 0.0

    def note(self, outcome: PushOutcome, account: bytes, now: float) -> None:
        """Note the result of an attempt: any answer of the service counts as one, also a refusal."""
        if outcome is PushOutcome.LATE:  # the service was not asked
            self._probing = False
            return
        if outcome is not PushOutcome.FAILED:
            self._reset()
            return
        self._failures += 1
        if len(self._accounts) < ACCOUNTS:
            self._accounts |= {account}
        if self.is_broken and now >= self._open_until:
            self._open_until = now + self._pause
            self._pause, self._probing = min(2 * self._pause, LAST_PAUSE), False


_DROPPED: Final = Delivery(outcome=PushOutcome.LATE, detail="a later push took its place")


def kind_of(address: Address) -> Kind:
    match address:
        case Fcm():
            return Kind.FCM
        case Apns():
            return Kind.APNS
        case _:
            return Kind.WEB_PUSH


def service_of(address: Address) -> str:
    """The push service behind an address: of Web Push the origin, of FCM the app's project, of APNs the environment."""
    match address:
        case Fcm():
            return address.app
        case Apns():
            return "sandbox" if address.sandbox else "production"
        case _:
            return urlsplit(address.endpoint).netloc.lower()


def _about(order: Order) -> tuple[bytes, str, str]:
    """What an order is about: a request, or a purpose, for one channel of an account."""
    push = order.push
    return push.account, push.handle, push.request_id or str(push.purpose)
