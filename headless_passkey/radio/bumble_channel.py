"""L2CAP channels over bumble, from both ends."""

import asyncio
import contextlib
from collections import deque
from typing import Final

from bumble.device import Connection, Device
from bumble.hci import Address, HCI_Error, HCI_LE_Create_Connection_Cancel_Command
from bumble.l2cap import LeCreditBasedChannel, LeCreditBasedChannelSpec

from headless_passkey.errors import (
    HeadlessPasskeyError,
    ProtocolReason,
    RemoteProtocolError,
    TransportError,
    TransportReason,
)
from headless_passkey.mends import transport_error
from headless_passkey.process.tasks import end_quietly, to_its_end
from headless_passkey.radio.l2cap import CLOSE_TIMEOUT, CONNECT_TIMEOUT, MIN_MTU, MTU

MPS: Final = 247  # bytes of a packet: one HCI packet of 251 bytes
CREDITS: Final = 32  # packets that a peer may send before it waits
MAX_UNREAD: Final = 1 << 17  # bytes: two messages


async def open_channel(
    device: Device, address: Address, psm: int, *, alone: asyncio.Lock, lost: "asyncio.Future[None]"
) -> "BumbleChannel":
    """Connect to `address` and open a channel, whose close ends the link. `TransportError`.

    alone: held while connecting, because a controller makes one connection at a time. lost: done when the controller is lost.
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            async with alone:
                connection = await _link_to(device, address)
            try:
                return BumbleChannel(await _channel_over(connection, psm), lost=lost)
            except BaseException:
                await to_its_end(_hang_up(connection), seconds=CLOSE_TIMEOUT)
                raise
    except TransportError:
        raise
    except Exception as error:  # bumble's own errors share no useful base; a timeout
        raise _unreachable() from error


async def _link_to(device: Device, address: Address) -> Connection:
    """Make a link; called off when the caller is cancelled."""
    connecting = asyncio.ensure_future(device.connect(address, timeout=None))
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        await to_its_end(_call_off(device, connecting))
        raise


async def _channel_over(connection: Connection, psm: int) -> LeCreditBasedChannel:
    # a future of its own: bumble cancels what waits for a connection that is lost
    opening = asyncio.ensure_future(connection.create_l2cap_channel(channel_spec(psm)))
    try:
        await asyncio.wait({opening})
    finally:
        await end_quietly(opening)
    if opening.cancelled():
        raise _unreachable()
    return opening.result()


async def _call_off(device: Device, connecting: "asyncio.Future[Connection]") -> None:
    try:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                with contextlib.suppress(HCI_Error):  # connected meanwhile
                    # not `cancel_connection`, which does nothing before the controller has answered
                    await device.host.send_sync_command(HCI_LE_Create_Connection_Cancel_Command())
                await _hang_up(await asyncio.shield(connecting))
    finally:
        await end_quietly(connecting)


async def _hang_up(connection: Connection) -> None:
    """End a link; a failure is ignored."""
    if connection.device.lookup_connection(connection.handle) is not connection:
        return  # the peer has; bumble would wait for that
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await connection.disconnect()


def channel_spec(psm: int | None = None) -> LeCreditBasedChannelSpec:
    """What this end of a channel can take. psm: None for one that bumble chooses."""
    return LeCreditBasedChannelSpec(psm=psm, mtu=MTU, mps=MPS, max_credits=CREDITS)


class BumbleChannel:
    """A channel of bumble. Its link ends with it."""

    def __init__(self, channel: LeCreditBasedChannel, *, lost: "asyncio.Future[None]") -> None:
        """lost: done when the controller is lost."""
        self._channel, self._lost = channel, lost
        self._arrived: deque[bytes] = deque()
        self._unread = 0  # bytes in it
        self._changed = asyncio.Event()
        self._failure: HeadlessPasskeyError | None = None
        self._ended = asyncio.get_running_loop().create_future()
        lost.add_done_callback(self._lose)
        channel.sink = self._take
        channel.on(channel.EVENT_CLOSE, lambda: self._end(_closed()))
        if channel.state is not channel.State.CONNECTED:
            self._end(_closed())
        if min(channel.peer_mtu, channel.peer_mps) < MIN_MTU:
            self._end(
                RemoteProtocolError(
                    "the direct channel's peer takes less than 23 bytes", reason=ProtocolReason.TOO_LONG
                )
            )

    @property
    def mtu(self) -> int:
        return max(self._channel.peer_mtu, MIN_MTU)

    async def send(self, sdu: bytes) -> None:
        if self._failure is not None:
            raise self._failure
        self._channel.write(sdu)
        draining = asyncio.ensure_future(self._channel.drain())
        try:
            await asyncio.wait({draining, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            if not draining.done() and self._failure is not None:
                raise self._failure
        finally:
            await end_quietly(draining)

    async def receive(self) -> bytes:
        while not self._arrived:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        sdu = self._arrived.popleft()
        self._unread -= len(sdu)
        return sdu

    async def close(self) -> None:
        await to_its_end(self._close())

    async def _close(self) -> None:
        self._end(_closed())
        with contextlib.suppress(Exception):  # the peer, or the link, is gone
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._channel.disconnect()
        # bumble would set the result that nobody waits for any more when the link ends, fail, and keep the link (0.0.236)
        self._channel.disconnection_result = None
        await _hang_up(self._channel.connection)

    def _take(self, sdu: bytes) -> None:
        if not sdu or self._failure is not None:
            return
        if self._unread + len(sdu) > MAX_UNREAD:  # bumble lets a peer send on, however much is unread
            self._arrived.clear()
            self._end(
                RemoteProtocolError(
                    "the direct channel's peer sends more than anybody reads",
                    reason=ProtocolReason.TOO_MANY_MESSAGES,
                )
            )
            return
        self._arrived.append(sdu)
        self._unread += len(sdu)
        self._changed.set()

    def _lose(self, _: object) -> None:
        self._end(_closed())

    def _end(self, failure: HeadlessPasskeyError) -> None:
        self._lost.remove_done_callback(self._lose)  # the controller outlives its channels
        self._failure = self._failure or failure
        self._changed.set()
        if not self._ended.done():
            self._ended.set_result(None)


def _unreachable() -> TransportError:
    what = "the phone cannot be reached over Bluetooth"
    return transport_error(what, TransportReason.UNREACHABLE, "Bluetooth")


def _closed() -> TransportError:
    what = "the other end closed the direct channel"
    return transport_error(what, TransportReason.UNREACHABLE, "hung up")
