"""Pings: an idle tunnel outlives what is in between, and an end that vanishes without a word is missed."""

import asyncio
import base64
import contextlib
import logging
import secrets
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from aiohttp import web
from certificates import Certificate

from companion_push.serving.http_server import Runner
from companion_push.tunnel_service.app import make_app
from companion_push.tunnel_service.rendezvous import Limits
from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.hybrid.tunnel_url import connect_url, new_url
from headless_passkey.net.tunnel import Tunnel, TunnelClosed, open_tunnel
from tests.tunnel_service.between import Between

TUNNEL_ID = bytes(range(0xA0, 0xB0))
# seconds: a pong may take half of it, and more than that no machine should stand still
SILENCE = 2.5
NEVER = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    port: int
    tls: ssl.SSLContext

    def open(
        self, port: int | None = None, *, silence: float = NEVER
    ) -> contextlib.AbstractAsyncContextManager[Tunnel]:
        base = f"wss://localhost:{port or self.port}"
        return open_tunnel(new_url(base, TUNNEL_ID), tls=self.tls, silence=silence)

    def join(
        self, first: Tunnel, port: int | None = None, *, silence: float = NEVER
    ) -> contextlib.AbstractAsyncContextManager[Tunnel]:
        assert first.routing_id is not None
        base = f"wss://localhost:{port or self.port}"
        return open_tunnel(connect_url(base, first.routing_id, TUNNEL_ID), tls=self.tls, silence=silence)


@asynccontextmanager
async def serving(certificate: Certificate, **limits: float) -> AsyncIterator[Service]:
    runner = Runner(make_app(Limits(**limits)), shutdown_timeout=1)  # type: ignore[arg-type]
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.server_context()).start()
        yield Service(port=runner.addresses[0][1], tls=certificate.client_context())
    finally:
        await runner.cleanup()


async def ended(tunnel: Tunnel) -> TunnelClosed:
    with pytest.raises(TunnelClosed) as closed:
        await tunnel.receive()
    return closed.value


# What is in between


async def test_without_pings_a_proxy_drops_an_idle_tunnel(loopback_certificate: Certificate) -> None:
    async with (
        serving(loopback_certificate, silence=NEVER) as service,
        Between.to(service.port, idle=1) as proxy,
        service.open(proxy.port) as first,
    ):
        await proxy.dropped.wait()
        assert not (await ended(first)).clean


@pytest.mark.parametrize("pinging", ["service", "ends"])
async def test_pings_of_either_side_keep_an_idle_tunnel_open_through_a_proxy(
    loopback_certificate: Certificate, pinging: str
) -> None:
    silences = {"service": (SILENCE, NEVER), "ends": (NEVER, SILENCE)}
    of_service, of_ends = silences[pinging]
    idle = 1.5 * SILENCE
    async with (
        serving(loopback_certificate, silence=of_service) as service,
        Between.to(service.port, idle=idle) as proxy,
        service.open(proxy.port, silence=of_ends) as first,
        service.join(first, proxy.port, silence=of_ends) as second,
    ):
        await proxy.lasts(2 * idle)
        await first.send(b"are you there?")
        assert await second.receive() == b"are you there?"
        await second.send(b"yes")
        assert await first.receive() == b"yes"
        assert not proxy.dropped.is_set()


# An end that vanishes


@pytest.mark.threat("T9")
@pytest.mark.parametrize("vanishing", ["first", "second"])
async def test_an_end_that_vanishes_without_a_word_is_missed_and_the_other_is_told_so(
    loopback_certificate: Certificate, vanishing: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with (
        serving(loopback_certificate, silence=SILENCE) as service,
        Between.to(service.port) as hole,
        service.open(hole.port if vanishing == "first" else None) as first,
        service.join(first, hole.port if vanishing == "second" else None) as second,
    ):
        gone, left = (first, second) if vanishing == "first" else (second, first)
        await gone.send(b"last words")
        assert await left.receive() == b"last words"
        hole.swallows = True
        closed = await ended(left)
        assert closed.reason is TransportReason.WENT_SILENT
        assert not closed.clean
        assert closed.explain().startswith(
            "the tunnel service localhost hears nothing more of the other end: try"
        )
    assert "because an end went silent" in caplog.text


async def test_a_first_end_that_vanishes_before_the_second_has_come_leaves_nothing(
    loopback_certificate: Certificate,
) -> None:
    async with (
        serving(loopback_certificate, silence=SILENCE) as service,
        Between.to(service.port) as hole,
        service.open(hole.port) as first,
    ):
        hole.swallows = True
        again: Tunnel | None = None
        while again is None:
            with contextlib.suppress(TransportError):  # 409 as long as the service does not miss the first
                async with service.open() as again:
                    pass
            await hole.lasts(0.5)
        assert first.routing_id is not None


@pytest.mark.threat("T9")
async def test_a_service_that_vanishes_without_a_word_is_missed(loopback_certificate: Certificate) -> None:
    async with (
        serving(loopback_certificate, silence=NEVER) as service,
        Between.to(service.port) as hole,
        service.open(hole.port, silence=SILENCE) as first,
    ):
        hole.swallows = True
        closed = await ended(first)
        assert closed.reason is TransportReason.WENT_SILENT
        assert closed.explain().startswith(
            "the tunnel service localhost does not answer any more: try again; "
        )
        with pytest.raises(TunnelClosed) as refused:
            await first.send(b"too late")
        assert refused.value.reason is TransportReason.WENT_SILENT


async def test_pings_are_answered_whatever_the_ends_owner_waits_for(
    loopback_certificate: Certificate,
) -> None:
    async with (
        serving(loopback_certificate, silence=SILENCE) as service,
        Between.to(service.port) as clock,
        service.open() as first,
        service.join(first) as second,
    ):
        await clock.lasts(2 * SILENCE)  # neither receives anything meanwhile
        await first.send(b"still here")
        assert await second.receive() == b"still here"


# An end that pings


class RawEnd:
    """A websocket client that does what it wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, service: Service, tunnel_id: bytes = TUNNEL_ID) -> "RawEnd":
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", service.port, ssl=service.tls, server_hostname="localhost"
        )
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        writer.write(
            f"GET /cable/new/{tunnel_id.hex()} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Protocol: fido.cable\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        end = cls(reader, writer)
        end.routing_id = bytes.fromhex(head.lower().partition(b"x-cable-routing-id: ")[2][:6].decode())
        return end

    routing_id: bytes = b""

    def ping(self, count: int, payload: bytes = bytes(125)) -> None:
        frame = bytes([0x89, 0x80 | len(payload)]) + bytes(4) + payload  # masked with zeros
        self.writer.write(frame * count)

    async def frame(self) -> tuple[int, bytes]:
        """Opcode and payload of a short frame."""
        first, length = await self.reader.readexactly(2)
        return first & 0xF, await self.reader.readexactly(length)


@pytest.mark.threat("T9")
async def test_an_end_that_pings_hears_pongs(loopback_certificate: Certificate) -> None:
    async with serving(loopback_certificate, silence=NEVER) as service:
        end = await RawEnd.open(service)
        end.ping(3, b"hello")
        assert [await end.frame() for _ in range(3)] == [(0xA, b"hello")] * 3
        end.writer.transport.abort()


@pytest.mark.threat("T9")
async def test_an_end_that_pings_without_end_is_closed(loopback_certificate: Certificate) -> None:
    async with serving(loopback_certificate, silence=NEVER, controls=10) as service:
        end = await RawEnd.open(service)
        end.ping(12, b"")
        assert [await end.frame() for _ in range(11)] == [(0xA, b"")] * 10 + [(0x8, struct.pack(">H", 1008))]
        end.writer.transport.abort()


@pytest.mark.threat("T11")
@pytest.mark.threat("T13")
async def test_an_end_that_floods_pings_reads_no_pongs_and_vanishes_is_one_more_end_that_vanished(
    loopback_certificate: Certificate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("companion_push.tunnel_service.open_tunnel.SEND_TIMEOUT", NEVER)
    async with serving(loopback_certificate, silence=NEVER, controls=1 << 30) as service:
        end = await RawEnd.open(service)
        url = connect_url(f"wss://localhost:{service.port}", end.routing_id, TUNNEL_ID)
        async with open_tunnel(url, tls=service.tls) as second:
            # until the service can write no more pongs, and so reads no more pings
            while True:
                end.ping(1 << 10)
                try:
                    async with asyncio.timeout(1):
                        await end.writer.drain()
                except TimeoutError:
                    break
            end.writer.transport.abort()
            await ended(second)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    assert "because an end vanished" in caplog.text


@pytest.mark.threat("T11")
@pytest.mark.threat("T13")
async def test_an_end_that_leaves_many_pings_unanswered_and_hangs_up_fills_no_log(
    loopback_certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(loopback_certificate, silence=NEVER, controls=1 << 30) as service:
        end = await RawEnd.open(service)
        url = connect_url(f"wss://localhost:{service.port}", end.routing_id, TUNNEL_ID)
        async with open_tunnel(url, tls=service.tls) as second:
            end.ping(1000, b"")
            end.writer.transport.abort()
            await ended(second)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
