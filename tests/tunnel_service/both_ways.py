"""What a tunnel service makes of the bytes of one connection: with upgrades taken before aiohttp's server sees them, and without.

The connection is in memory: it takes all that is written, and its peer hangs up at the end.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from companion_push.serving.http_server import Runner
from companion_push.tunnel_service.app import _TUNNELS, make_app
from companion_push.tunnel_service.buckets import Buckets
from companion_push.tunnel_service.rendezvous import Limits
from http_serving.runner import _Server

ADDRESS = "192.0.2.1"
SILENCE = 1e6  # seconds: no deadline passes meanwhile
BETWEEN = 2  # turns of the event loop between two parts of what a connection says: the first request's handler may not be done
SETTLED = 40  # and after the last: more than an answer takes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a connection was told."""

    said: bytes  # without what differs each time
    closed: bool  # by the service
    arrivals: int  # that count against its address


async def outcomes(parts: Sequence[bytes]) -> tuple[Outcome, Outcome]:
    """What a connection that says these parts is told: by the service as it is, and by aiohttp's server alone."""
    return await _outcome(parts, first=True), await _outcome(parts, first=False)


async def _outcome(parts: Sequence[bytes], *, first: bool) -> Outcome:
    app = make_app(Limits(waiting=SILENCE, life=SILENCE, silence=SILENCE))
    endpoints, runner = app[_TUNNELS], Runner(app)
    endpoints.rendezvous._arrivals = arrivals = _Counted(600, 60)
    await runner.setup()
    try:
        slot = runner.connections.admit(ADDRESS)
        assert slot is not None
        server = cast("_Server", runner.server)
        wire = Wire()
        wire.set_protocol(server.first(slot) if first else server(slot))
        wire.protocol.connection_made(wire)
        for part in parts:
            await _turns(BETWEEN, unless=lambda: wire.reads)
            if wire.closed:
                break
            wire.protocol.data_received(part)
            await _turns(BETWEEN)
        await _turns(SETTLED)
        outcome = Outcome(_comparable(bytes(wire.said)), wire.closed, arrivals.taken)
        wire.abort()
        await _turns(SETTLED)
        # whatever was said, every place has been given back
        assert not len(runner.connections)
        assert not len(endpoints)
        assert not len(endpoints.rendezvous)
        assert not server._waiting
        return outcome
    finally:
        await runner.cleanup()


async def _turns(number: int, *, unless: Callable[[], bool] = lambda: False) -> None:
    for _ in range(number):
        if unless():
            return
        await asyncio.sleep(0)


def _comparable(said: bytes) -> bytes:
    return re.sub(rb"Date: [^\r]*\r\n", b"", re.sub(rb"(Routing-ID: )\w{6}", rb"\1", said))


class _Counted(Buckets):
    taken = 0

    def take(self, key: bytes | str, *, now: float, tokens: int = 1) -> bool:
        self.taken += 1
        return super().take(key, now=now, tokens=tokens)

    def give_back(self, key: bytes | str) -> None:
        self.taken -= 1
        super().give_back(key)


class Wire(asyncio.Transport):
    """A connection, and its own socket."""

    def __init__(self) -> None:
        super().__init__()
        self.said = bytearray()
        self.closed = False
        self.reads = True
        self.protocol = asyncio.Protocol()
        self._lost = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": (ADDRESS, 1), "socket": self}.get(name, default)

    family = type = 0  # of no network: aiohttp sets nothing

    def setsockopt(self, *_: int) -> None:
        """Its buffers stay as they are."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = cast("asyncio.Protocol", protocol)

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing waits in it."""

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.closed:
            self.said += data

    def close(self) -> None:
        self.closed = True
        asyncio.get_running_loop().call_soon(self._lose)

    abort = close

    def _lose(self) -> None:
        if not self._lost:
            self._lost = True
            self.protocol.connection_lost(None)
