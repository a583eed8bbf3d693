"""A push service in the test's hands: it keeps what it is given, and answers as it is told to."""

import asyncio
from collections.abc import Mapping
from typing import Any

from companion_push.push.channel import Address, Delivery, Fcm, Kind, Push, PushOutcome

SENT = Delivery(outcome=PushOutcome.SENT)


class RecordingChannel:
    """A channel that records.

    answers: what the next pushes are answered with, and then always `SENT`; an exception is raised. While `gate` is
    clear, no push is answered.
    """

    def __init__(
        self, kind: Kind = Kind.FCM, *answers: Delivery | Exception, refused: str | None = None
    ) -> None:
        self._kind = kind
        self.answers = list(answers)
        self.refused = refused
        self.pushes: list[tuple[Address, Push]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.with_it = 0  # pushes that wait for their answer
        self.most = 0  # the highest number of them
        self.closed = 0
        self._came = asyncio.Event()

    @property
    def kind(self) -> Kind:
        return self._kind

    @property
    def offer(self) -> Mapping[str, object]:
        return {"apps": ["app.example"]}

    def refusal(self, _address: Address) -> str | None:
        return self.refused

    async def send(self, address: Address, push: Push) -> Delivery:
        self.pushes.append((address, push))
        self._came.set()
        self._came = asyncio.Event()
        self.with_it += 1
        self.most = max(self.most, self.with_it)
        try:
            await self.gate.wait()
        finally:
            self.with_it -= 1
        answer = self.answers.pop(0) if self.answers else SENT
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def check(self) -> str:
        return "ok"

    async def close(self) -> None:
        self.closed += 1

    async def came(self, count: int) -> list[Push]:
        """Wait until so many pushes have come; returns them."""
        async with asyncio.timeout(20):
            while len(self.pushes) < count:
                await self._came.wait()
        return [push for _, push in self.pushes]

    def shown(self) -> list[tuple[str, str]]:
        """Purpose and token of each push."""
        return [(str(push.purpose), token_of(address)) for address, push in self.pushes]


def token_of(address: Any) -> str:
    return str(address.token if isinstance(address, Fcm) or hasattr(address, "token") else address.endpoint)
