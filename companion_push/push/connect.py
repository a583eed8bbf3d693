"""Connections for what speaks a protocol of its own on them: to a host, and through a proxy by CONNECT (RFC 9110 §9.3.6).

The proxy is the environment's (`program_parts.proxy`); it learns host and port, and carries TLS with the server.
"""

import asyncio
import re
import socket
import ssl
from typing import Final

import aiohappyeyeballs

from headless_passkey.net.proxy import ProxyFailed
from name_lookups.resolver import OURS
from program_parts.proxy import Proxy

NEXT_ADDRESS_SECONDS: Final = 0.25  # until the host's next address is tried too (RFC 8305 §5)
MAX_HEAD: Final = 16_384  # bytes of the proxy's answer
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")


async def connect_to(host: str, port: int) -> socket.socket:
    """Connect to the address of a host that takes the connection first (RFC 8305); `OSError` as the system raises it.

    An address that swallows packets, such as one of a network without a way to IPv6, costs `NEXT_ADDRESS_SECONDS`. asyncio's
    own `happy_eyeballs_delay` is no argument of uvloop's.
    """
    addresses = await OURS.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS)


async def connect_through(proxy: Proxy, host: str, port: int) -> asyncio.Transport:
    """Let the proxy connect to a host; returns the transport, which nobody reads yet. `ProxyFailed`."""
    loop = asyncio.get_running_loop()
    tls = ssl.create_default_context() if proxy.url.scheme == "https" else None
    its_host = proxy.url.host or ""
    try:
        connected = await connect_to(its_host, proxy.url.port or 0)
        transport, asked = await loop.create_connection(
            _Asked, sock=connected, ssl=tls, server_hostname=None if tls is None else its_host
        )
    except OSError as error:
        raise _failed(proxy, "cannot be reached") from error
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {name} HTTP/1.1", f"Host: {name}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    try:
        transport.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        _check(proxy, host, await asked.head)
    except BaseException:
        transport.abort()
        raise
    return transport


def _check(proxy: Proxy, host: str, head: bytes) -> None:
    """Refuse an answer that connects to nothing."""
    found = _STATUS.match(head)
    status = int(found[1]) if found is not None else None
    if status == 407:
        raise _failed(proxy, "wants a name and a password, or others", status)
    if status is None:
        raise _failed(proxy, f"does not connect to {host}")
    if not 200 <= status < 300:
        raise _failed(proxy, f"does not connect to {host} (HTTP status {status})", status)


def _failed(proxy: Proxy, how: str, status: int | None = None) -> ProxyFailed:
    return ProxyFailed(f"the proxy {proxy.name} {how}", proxy=proxy.name, status=status)


class _Asked(asyncio.Protocol):
    """Waits for the head of the proxy's answer."""

    def __init__(self) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        if b"\r\n\r\n" in self._received or len(self._received) > MAX_HEAD:
            self._answered(self._received)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's interface
        self._answered(b"")

    def _answered(self, head: bytes) -> None:
        if not self.head.done():
            self.head.set_result(head)
