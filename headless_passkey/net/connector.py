"""HTTP connections that end, whatever their server or a name server does, and at the latest with their client session: `Connector`."""

import asyncio
from functools import partial
from typing import Any, Final, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler

from name_lookups.resolver import Resolver

CLOSE_SECONDS: Final = 5.0  # that TLS has for its farewell


class _Handler(ResponseHandler):
    """Cuts a connection off that does not close in time.

    asyncio's TLS transport sets itself no time where the server had hung up while nobody read, and closed twice, as aiohttp
    does after a malformed answer, it does nothing for `abort` any more.
    """

    _deadline: asyncio.TimerHandle | None = None

    def close(self) -> None:
        wire = self.transport
        if wire is not None and wire.is_closing():
            self.abort()
            return
        super().close()
        if wire is not None:
            self._deadline = self._loop.call_later(CLOSE_SECONDS, wire.abort)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)


class Connector(aiohttp.TCPConnector):
    """Opens the connections of one client session, and ends each of them with it.

    aiohttp forgets a connection that it does not keep, such as a websocket's: its TLS closes in the background, which
    takes as long as the server likes. An event loop that ends before leaves the socket open.
    """

    def __init__(self, **options: Any) -> None:
        """options: of `aiohttp.TCPConnector`; without a resolver, names are looked up by ours."""
        super().__init__(**{"resolver": Resolver(), **options})
        self._factory = cast("partial[ResponseHandler]", partial(_Handler, loop=self._loop))
        self._open: set[asyncio.WriteTransport] = set()

    async def connect(self, *args: Any, **options: Any) -> aiohttp.connector.Connection:
        """A connection, opened or kept, as aiohttp asks for it."""
        connection = await super().connect(*args, **options)
        # of TCP, and of TLS over it; uvloop's are of classes of its own
        transport = cast("asyncio.WriteTransport | None", connection.transport)
        closed = None if connection.protocol is None else connection.protocol.closed
        if transport is not None and closed is not None and transport not in self._open:
            self._open.add(transport)
            closed.add_done_callback(lambda closed: self._ended(transport, closed))
        return connection

    async def close(self, *, abort_ssl: bool = False) -> None:
        """Close all connections; what nobody waits for any more is cut off."""
        await super().close(abort_ssl=abort_ssl)
        open_, self._open = self._open, set()
        for transport in open_:
            transport.abort()  # no more than the server's farewell is lost
        if open_:
            await asyncio.sleep(0)  # the loop's next round closes the sockets

    def _ended(self, transport: asyncio.WriteTransport, closed: "asyncio.Future[None]") -> None:
        self._open.discard(transport)
        if not closed.cancelled():
            closed.exception()  # told already to whom it concerns
