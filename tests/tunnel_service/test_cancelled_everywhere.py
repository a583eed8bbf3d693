"""The tunnel service's handlers, cancelled at every point where they wait, once and twice: no tunnel and no connection stays."""

import asyncio
import contextlib

import pytest
from aiohttp import web
from certificates import Certificate

from companion_push.tunnel_service.app import _TUNNELS, make_app
from headless_passkey.errors import HeadlessPasskeyError
from headless_passkey.hybrid.tunnel_url import connect_url, new_url
from headless_passkey.net.tunnel import open_tunnel
from tests.open_things import Handlers, Interruption, cancel_everywhere, waiting

PATIENCE = 20.0  # seconds; a safety net


@pytest.mark.parametrize("again", [None, 1, 2], ids=["once", "and at once", "and two later"])
@pytest.mark.parametrize("which", ["/cable/new/", "/cable/connect/"], ids=["first end", "second end"])
async def test_a_handler(loopback_certificate: Certificate, which: str, again: int | None) -> None:
    handlers, tls = Handlers(), loopback_certificate.client_context()
    app = handlers.added_to(make_app())
    app.on_response_prepare.append(waiting)  # the one thing that a handler of an end waits for
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=loopback_certificate.server_context()).start()
        base = f"wss://127.0.0.1:{runner.addresses[0][1]}"
        numbers = iter(range(1 << 30))

        async def one(interruption: Interruption) -> Interruption:
            handlers.interrupt(which, interruption)
            tunnel_id = next(numbers).to_bytes(16, "big")
            with contextlib.suppress(HeadlessPasskeyError):
                async with open_tunnel(new_url(base, tunnel_id), tls=tls) as first:
                    assert first.routing_id is not None
                    async with open_tunnel(connect_url(base, first.routing_id, tunnel_id), tls=tls) as second:
                        await asyncio.gather(first.send(b"one"), second.send(b"two"))
                        await asyncio.gather(first.receive(), second.receive())
            handlers.interrupt(which, Interruption(at=0))
            return interruption

        await one(Interruption(at=0))
        assert await cancel_everywhere(one, again=(again,)) >= 1
        async with asyncio.timeout(PATIENCE):
            while app[_TUNNELS]._open:  # noqa: ASYNC110  the service's side of the last connections
                await asyncio.sleep(0)
        assert len(app[_TUNNELS].rendezvous) == 0
    finally:
        await runner.cleanup()
