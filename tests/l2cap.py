"""An L2CAP channel in memory, from end to end, for tests of what goes over it."""

import asyncio

from headless_passkey.errors import TransportError


class MemoryChannel:
    """One end. What the peer has sent and nobody has read is bounded, so a sender waits as over the air."""

    def __init__(self, mtu: int, room: int) -> None:
        self._mtu = mtu
        self._arrived: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(room)
        self.peer: MemoryChannel | None = None
        self.sent: list[bytes] = []  # all SDUs of this end
        self.closed = asyncio.Event()  # by this end

    @property
    def mtu(self) -> int:
        return self._mtu

    async def send(self, sdu: bytes) -> None:
        assert 0 < len(sdu) <= self._mtu
        assert self.peer is not None
        if self.closed.is_set() or self.peer.closed.is_set():
            raise TransportError("closed")
        self.sent.append(sdu)
        await self.peer._room.acquire()
        self.peer._arrived.put_nowait(sdu)

    async def receive(self) -> bytes:
        sdu = None if self.closed.is_set() else await self._arrived.get()
        if sdu is None:
            self._arrived.put_nowait(None)
            raise TransportError("closed")
        self._room.release()
        return sdu

    async def close(self) -> None:
        self.closed.set()
        assert self.peer is not None
        self.peer._arrived.put_nowait(None)


def pair(*, mtu: int = 4096, room: int = 1000) -> tuple[MemoryChannel, MemoryChannel]:
    """Both ends. mtu: bytes of the longest SDU. room: SDUs that may be unread."""
    one, other = MemoryChannel(mtu, room), MemoryChannel(mtu, room)
    one.peer, other.peer = other, one
    return one, other
