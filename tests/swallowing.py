"""A host of two addresses, of which the first swallows every packet, as one of IPv6 in a network without a way to it does."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

SWALLOWING = "127.0.0.9"
PATIENCE = 60.0  # seconds; a connection to that address alone fails after some 130


@contextlib.contextmanager
def first_address_swallows(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let every name resolve to an address that swallows, and 127.0.0.1, where a server listens at `port`.

    The list is of the addresses that were tried.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((SWALLOWING, port))
        listener.listen(0)  # of one connection, which nobody accepts: Linux drops what comes beyond
        for _ in range(3):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex((SWALLOWING, port))
        loop = asyncio.get_running_loop()
        connect, tried = loop.sock_connect, []

        def resolve(_host: str, asked: int, *_: Any, **__: Any) -> list[Any]:
            places = ((SWALLOWING, asked), ("127.0.0.1", asked))
            return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place) for place in places]

        async def connecting(sock: socket.socket, place: Any) -> None:
            tried.append(place[0])
            await connect(sock, place)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(loop, "sock_connect", connecting)
        yield tried
