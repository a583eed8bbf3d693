"""The air of a device and phones that can meet on it directly: adverts and L2CAP channels in memory."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from headless_passkey.errors import TransportError
from headless_passkey.radio.l2cap import L2capChannel
from headless_passkey.radio.source import Advert
from tests.device.test_ceremony import Air
from tests.l2cap import MemoryChannel, pair


@dataclass
class Listening:
    """A phone's radio that listens."""

    air: "DirectAir"
    address: str
    psm: int
    came: asyncio.Queue[MemoryChannel] = field(default_factory=asyncio.Queue)

    async def accept(self) -> L2capChannel:
        return await self.came.get()

    @contextlib.asynccontextmanager
    async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
        for address in (*self.air.imitators, self.address):
            self.air.put(Advert(service_data=service_data, address=address))
        yield


class DirectAir(Air):
    """The radio of both ends. Whoever knows a phone's address can open channels to it."""

    connects = True

    def __init__(self) -> None:
        super().__init__()
        self.room = 1000  # SDUs that either end of a channel may have unread
        self.imitators: list[str] = []  # addresses that repeat each advert, before the phone's own is heard
        self.phones: dict[str, Listening] = {}  # by address
        self.tried: list[str] = []  # addresses to which a device connected
        self.ends: list[MemoryChannel] = []  # all that were ever open, of devices and phones
        self.silent: set[str] = set()  # addresses that take a channel, and then say nothing
        self.connecting = asyncio.Event()

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[Listening]:
        phone = Listening(self, f"C0:00:00:00:00:{len(self.phones):02X}", 0x80 + len(self.phones))
        self.phones[phone.address] = phone
        yield phone

    @contextlib.asynccontextmanager
    async def connect(self, advert: Advert, psm: int) -> AsyncIterator[L2capChannel]:
        assert self.listening
        assert advert.address is not None
        self.tried.append(advert.address)
        self.connecting.set()
        phone = self.phones.get(advert.address)
        if advert.address not in self.silent and (phone is None or phone.psm != psm):
            raise TransportError("the phone cannot be reached over Bluetooth")
        near = self.open(None if advert.address in self.silent else phone)
        try:
            yield near
        finally:
            await near.close()

    def open(self, phone: Listening | None) -> MemoryChannel:
        """A channel to a phone, or to somebody who says nothing."""
        near, far = pair(room=self.room)
        self.ends += [near, far] if phone is not None else [near]
        if phone is not None:
            phone.came.put_nowait(far)
        return near

    def all_closed(self) -> bool:
        return all(end.closed.is_set() for end in self.ends)
