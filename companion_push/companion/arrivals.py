"""Where a device comes to the software phone that listens for it: at the tunnel, and at the direct channel (CTAP 2.3 §11.5.1.1).

The phone answers the handshake wherever one comes, because a device that gives one channel up tries the other one. The first
encrypted message after a handshake decides: its channel is the one, and the others are closed before the message is opened.

Anybody near can open direct channels. What comes without a valid handshake is closed: after `HANDSHAKE_TIMEOUT`, or when
`MAX_STRANGERS` have come after it. Whoever replays the device's message 1 gets an answer, and no further. So strangers keep no device out for longer than they keep coming faster than its handshake.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from companion_push.companion.advertiser.advertiser import Listener
from headless_passkey.errors import ProtocolReason, RemoteProtocolError, TransportError
from headless_passkey.hybrid.authenticator import Advertised
from headless_passkey.hybrid.channel import AuthenticatorChannel
from headless_passkey.hybrid.ctap2 import GetInfoResponse
from headless_passkey.net.tunnel import Tunnel
from headless_passkey.process.tasks import end, task_group
from headless_passkey.radio.direct import DirectChannel
from headless_passkey.radio.l2cap import L2capChannel

HANDSHAKE_TIMEOUT: Final = 10.0  # seconds from opening a direct channel to message 1
MAX_STRANGERS: Final = 4  # direct channels without a handshake at a time

MAX_MET: Final = 8  # with one, which whoever has recorded a message 1 can begin, and nothing more

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A device that has made the handshake and sent a message."""

    carrier: Tunnel | DirectChannel
    channel: AuthenticatorChannel
    first: bytes = field(repr=False)  # its first message, not opened yet


class Arrivals:
    """The channels of one transaction, until one of them is the right one."""

    def __init__(self, advertised: Advertised, info: GetInfoResponse, tasks: asyncio.TaskGroup) -> None:
        self._advertised, self._info, self._tasks = advertised, info, tasks
        self._first: asyncio.Future[Arrival] = asyncio.get_running_loop().create_future()
        self._winner: asyncio.Task[None] | None = None  # of the first arrival
        self._running: set[asyncio.Task[None]] = set()
        self._strangers: list[asyncio.Task[None]] = []  # the oldest first
        self._met = 0  # direct channels with a handshake
        self._open: set[L2capChannel] = set()

    def listen_at(self, tunnel: Tunnel | None, listener: Listener | None) -> None:
        """Take devices at both from now on. None: where there is none."""
        if listener is not None:
            self._run(self._accept(listener))
        if tunnel is not None:
            self._run(self._at_tunnel(tunnel))

    async def first(self) -> Arrival:
        """The device whose message came first; the others are gone when this returns."""
        arrival = await asyncio.shield(self._first)
        await end(*(task for task in self._running if task is not self._winner))
        return arrival

    async def close(self) -> None:
        """Close every direct channel."""
        await end(*self._running)
        for channel in list(self._open):  # of tasks that were cancelled before they ran
            await channel.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _accept(self, listener: Listener) -> None:
        while True:
            channel = await listener.accept()
            self._open.add(channel)
            task = self._run(self._at_direct(channel))
            self._strangers = [each for each in self._strangers if not each.done()] + [task]
            await asyncio.sleep(0)  # it runs, and so closes its channel whatever ends it
            if len(self._strangers) > MAX_STRANGERS:
                self._strangers.pop(0).cancel()

    async def _at_tunnel(self, tunnel: Tunnel) -> None:
        arrival = await self._meet(tunnel, await tunnel.receive())
        if not self._first.done():
            self._first.set_result(arrival)

    async def _at_direct(self, channel: L2capChannel) -> None:
        """Serve one direct channel; how a stranger fails is of no importance."""
        try:
            carrier = DirectChannel(channel)
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                message1 = await carrier.receive()
            arrival = await self._meet_one_of_few(carrier, message1)
            if not self._first.done():
                self._winner = asyncio.current_task()
                self._first.set_result(arrival)
                await asyncio.get_running_loop().create_future()  # until it is closed
        except (TransportError, RemoteProtocolError, TimeoutError) as error:
            logger.info("a direct channel led to nothing: %s", error or "no handshake came")
        finally:
            await channel.close()
            self._open.discard(channel)

    async def _meet_one_of_few(self, carrier: DirectChannel, message1: bytes) -> Arrival:
        if self._met == MAX_MET:
            raise RemoteProtocolError(
                "too many direct channels with a handshake", reason=ProtocolReason.TOO_MANY_MESSAGES
            )
        self._met += 1
        try:
            return await self._meet(carrier, message1)
        finally:
            self._met -= 1

    async def _meet(self, carrier: Tunnel | DirectChannel, message1: bytes) -> Arrival:
        message2, channel = self._advertised.respond(message1)
        task = asyncio.current_task()
        self._strangers = [each for each in self._strangers if each is not task]
        await carrier.send(message2)
        await carrier.send(channel.post_handshake(self._info))
        return Arrival(carrier=carrier, channel=channel, first=await carrier.receive(channel.opens))


@asynccontextmanager
async def open_arrivals(advertised: Advertised, info: GetInfoResponse) -> AsyncIterator[Arrivals]:
    """The channels of one transaction, closed when the context is left."""
    async with task_group() as tasks:
        arrivals = Arrivals(advertised, info, tasks)
        try:
            yield arrivals
        finally:
            await arrivals.close()
