"""Connections end with their client session, whatever the server does, though the event loop ends at once."""

import asyncio
import base64
import gc
import hashlib
import os
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import aiohttp
import pytest
from certificates import Certificate

from headless_passkey.net.connector import Connector
from headless_passkey.net.proven_http import open_session
from headless_passkey.net.tls import tls_context
from headless_passkey.net.tunnel import open_tunnel
from tests.loop_clock import LoopClock
from tests.swallowing import PATIENCE as PATIENT
from tests.swallowing import SWALLOWING, first_address_swallows

PATIENCE = 20.0  # seconds; a safety net

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n%s\r\n{}"


def as_http(_request: bytes) -> bytes:
    return ANSWER % b""


def as_http_that_ends(_request: bytes) -> bytes:
    return ANSWER % b"Connection: close\r\n"


def as_http_cut_short(_request: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n{}"


def as_http_malformed(_request: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n"


def as_tunnel(request: bytes) -> bytes:
    """The answer to a websocket's request, and the frame that closes the websocket."""
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
    assert key is not None
    # RFC 6455 section 4.2.2, with its own GUID
    accept = base64.b64encode(
        hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
    )
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Protocol: fido.cable\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n\x88\x02\x03\xe8"
    )


@contextmanager
def silent_after(
    answer: Callable[[bytes], bytes], certificate: Certificate
) -> Iterator[tuple[int, "Future[None]"]]:
    """A server that answers once, and then neither closes TLS nor the connection: its port, and when the client did."""
    ended: Future[None] = Future()

    def serve() -> None:
        accepted, _ = listening.accept()
        with certificate.server_context().wrap_socket(accepted, server_side=True) as tls:
            tls.sendall(answer(tls.recv(65536)))
            with socket.socket(fileno=os.dup(tls.fileno())) as raw:  # TLS is not spoken any more
                raw.settimeout(PATIENCE)
                try:
                    with suppress(ConnectionError):
                        while raw.recv(65536):
                            pass
                    ended.set_result(None)
                except OSError as error:  # for the test
                    ended.set_exception(error)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1], ended
        thread.join()


@pytest.fixture
def without_the_collector() -> Iterator[None]:
    """The collector closes a forgotten socket some time, which nobody should wait for."""
    gc.disable()
    yield
    gc.enable()


async def use_tunnel(port: int, certificate: Certificate) -> None:
    url = f"wss://localhost:{port}/cable/new/00112233445566778899AABBCCDDEEFF"
    async with open_tunnel(url, tls=tls_context(certificate.ca)):
        pass


async def get(port: int, certificate: Certificate) -> None:
    async with (
        open_session(tls_context(certificate.ca)) as http,
        http.get(f"https://localhost:{port}/") as response,
    ):
        assert await response.content.readany() == b"{}"


async def get_in_vain(port: int, certificate: Certificate) -> None:
    with pytest.raises(aiohttp.ClientError):
        await get(port, certificate)


@pytest.mark.threat("T9")
@pytest.mark.parametrize(
    ("use", "answer"),
    [
        (use_tunnel, as_tunnel),
        (get, as_http),
        (get, as_http_that_ends),
        (get, as_http_cut_short),
        (get_in_vain, as_http_malformed),
    ],
)
def test_a_connection_ends_though_the_server_does_not_close_it_and_the_loop_ends(
    without_the_collector: None,
    loopback_certificate: Certificate,
    use: Callable[[int, Certificate], Awaitable[None]],
    answer: Callable[[bytes], bytes],
) -> None:
    with silent_after(answer, loopback_certificate) as (port, ended):

        async def work() -> None:
            await use(port, loopback_certificate)

        asyncio.run(work())
        ended.result(PATIENCE)


@contextmanager
def hanging_up_after(answer: bytes, certificate: Certificate) -> Iterator[tuple[int, "Future[None]"]]:
    """A server that answers once, and ends its side of the connection without a word of TLS: its port, and when the client ended its own."""
    ended: Future[None] = Future()

    def serve() -> None:
        accepted, _ = listening.accept()
        with certificate.server_context().wrap_socket(accepted, server_side=True) as tls:
            tls.recv(65536)
            tls.sendall(answer)
            with socket.socket(fileno=os.dup(tls.fileno())) as raw:
                raw.settimeout(PATIENCE)
                raw.shutdown(socket.SHUT_WR)
                try:
                    with suppress(ConnectionError):
                        while raw.recv(65536):
                            pass
                    ended.set_result(None)
                except OSError as error:  # for the test
                    ended.set_exception(error)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1], ended
        thread.join()


UNREAD = b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + bytes(
    800_000
)  # more than aiohttp reads ahead


@pytest.mark.threat("T9")
async def test_a_server_that_hangs_up_without_a_word_of_tls_keeps_no_connection(
    loopback_certificate: Certificate, loop_clock: LoopClock
) -> None:
    """asyncio reads no more in a connection whose reader is behind, and then gives it no time to close."""
    with hanging_up_after(UNREAD, loopback_certificate) as (port, ended):
        async with open_session(tls_context(loopback_certificate.ca)) as session:
            response = await session.get(f"https://localhost:{port}/")
            assert response.connection is not None
            wire: Any = response.connection.transport
            async with asyncio.timeout(PATIENCE):
                while wire._ssl_protocol._state.name != "FLUSHING":  # noqa: ASYNC110  asyncio tells nobody
                    await asyncio.sleep(0)
            response.close()
            loop_clock.passes(PATIENCE)
            await asyncio.wrap_future(ended)  # while the session goes on


async def test_an_address_that_swallows_packets_keeps_no_client_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(as_http_that_ends(b""))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with first_address_swallows(port, monkeypatch) as tried:
        async with (
            server,
            asyncio.timeout(PATIENT),
            aiohttp.ClientSession(connector=Connector()) as http,
            http.get(f"http://push.test:{port}/") as response,
        ):
            assert await response.read() == b"{}"
    assert tried == [SWALLOWING, "127.0.0.1"]
