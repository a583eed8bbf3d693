"""HTTP connections that have ended when their client session has: `Connector`."""

import asyncio
from typing import Any, cast

import aiohttp


class Connector(aiohttp.TCPConnector):
    """Opens the connections of one client session, and ends each of them with it.

    aiohttp forgets a connection that it does not keep, such as a websocket's: its TLS closes in the background, which
    takes as long as the server likes. An event loop that ends before leaves the socket open.
    """

    def __init__(self, **options: Any) -> None:
        """options: of `aiohttp.TCPConnector`."""
        super().__init__(**options)
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
