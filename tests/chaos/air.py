"""What is on the air of a run: an ear that hears every advert, and a probe that shows when it has listened for long enough.

The ear is one more host on the emulated radio link, past the junction. Whether somebody still advertises is not a matter of seconds: a
probe advertises too, at the interval of each phone, and who is not heard while the probe is heard several times is silent.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from companion_push.companion.advertiser.bumble import BumbleAdvertiser
from headless_passkey.errors import TransportError
from headless_passkey.process.tasks import end_quietly
from headless_passkey.radio.bumble import BumbleRadio

TIMES: Final = 4  # that the probe is heard
AGAIN: Final = 0.2  # seconds until the ear comes back to a radio that had gone


class Air:
    """The adverts of a run."""

    def __init__(self, transport: str) -> None:
        """transport: of the emulated radio, in bumble's notation."""
        self.senders: dict[bytes, set[str]] = {}  # the addresses from which each service data was sent
        self._transport = transport
        self._probes: set[bytes] = set()
        self._latest: list[bytes] = []  # since the probe began
        self._news = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def listen(cls, transport: str) -> AsyncIterator["Air"]:
        """Listen while the context is open, also when the radio is killed and started again."""
        air = cls(transport)
        listening = asyncio.create_task(air._listen())
        try:
            yield air
        finally:
            await end_quietly(listening)

    async def others(self) -> set[bytes]:
        """The service data that is sent now, by anybody. `TransportError` when the radio is lost meanwhile."""
        probe = os.urandom(20)
        self._probes.add(probe)
        self._latest.clear()
        async with BumbleAdvertiser(self._transport).advertise(probe):
            while self._latest.count(probe) < TIMES:
                self._news.clear()
                await self._news.wait()
        first = self._latest.index(probe)
        return {*self._latest[first:]} - self._probes

    @property
    def doubled(self) -> list[bytes]:
        """The service data that several hosts have sent."""
        return [data for data, senders in self.senders.items() if len(senders) > 1]

    async def _listen(self) -> None:
        while True:
            with suppress(TransportError):  # the radio was killed, or stands still
                async with BumbleRadio(self._transport).adverts() as adverts:
                    async for advert in adverts:
                        self._latest.append(advert.service_data)
                        if advert.service_data not in self._probes:
                            self.senders.setdefault(advert.service_data, set()).add(str(advert.address))
                        self._news.set()
            await asyncio.sleep(AGAIN)
