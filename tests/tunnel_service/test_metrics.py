"""The tunnel service's metrics: tunnels, what they carried, and why they ended."""

import re
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from companion_push.serving.http_server import Runner
from companion_push.tunnel_service.app import make_app
from companion_push.tunnel_service.contacts import ContactLimits, KnownContacts
from companion_push.tunnel_service.rendezvous import Limits
from companion_push.waking import PATH
from companion_push.waking import SUBPROTOCOL as WAKING
from headless_passkey.hybrid.tunnel_url import SUBPROTOCOL
from tests.programs import running
from tests.tunnel_service.by_program import listen

TUNNEL_ID = "0123456789ABCDEF0123456789ABCDEF"


@pytest.mark.threat("T11")
async def test_tunnels_are_counted_and_none_is_named() -> None:
    registry = CollectorRegistry()
    runner = Runner(make_app(Limits(rate=3), registry=registry))
    await runner.setup()
    url = f"http://127.0.0.1:{await listen(runner)}/cable"
    value = registry.get_sample_value
    try:
        async with aiohttp.ClientSession() as session:
            first = await session.ws_connect(f"{url}/new/{TUNNEL_ID}", protocols=(SUBPROTOCOL,))
            routing_id = first._response.headers["X-caBLE-Routing-ID"]
            second = await session.ws_connect(
                f"{url}/connect/{routing_id}/{TUNNEL_ID}", protocols=(SUBPROTOCOL,)
            )
            assert value("companion_push_tunnels_open") == 1
            await first.send_bytes(bytes(100))
            await second.send_bytes(bytes(23))
            assert (await second.receive_bytes(), await first.receive_bytes()) == (bytes(100), bytes(23))
            await first.close()
            await second.receive()
            await second.close()
            for status in (404, 429):
                async with session.get(
                    f"{url}/connect/{routing_id}/{TUNNEL_ID}",
                    headers={
                        "Upgrade": "websocket",
                        "Connection": "Upgrade",
                        "Sec-WebSocket-Version": "13",
                        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
                        "Sec-WebSocket-Protocol": SUBPROTOCOL,
                    },
                ) as response:
                    assert response.status == status
    finally:
        await runner.cleanup()
    assert value("companion_push_tunnels_open") == 0
    assert value("companion_push_tunnels_in_flight_bytes") == 0
    assert value("companion_push_tunnels_messages_total") == 2
    assert value("companion_push_tunnels_bytes_total") == 123
    assert value("companion_push_tunnels_ended_total", {"reason": "an end left"}) == 1
    assert value("companion_push_tunnels_refused_total", {"reason": "no such tunnel"}) == 1
    assert (
        value("companion_push_tunnels_refused_total", {"reason": "too many arrivals from this address"}) == 1
    )
    text = generate_latest(registry).decode()
    for secret in (TUNNEL_ID, routing_id, "127.0.0.1"):
        assert not re.search(rf"\b{secret}\b", text, re.IGNORECASE)


async def test_waiting_phones_are_counted_and_those_that_gave_way(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    known = KnownContacts(tmp_path / "contacts", ContactLimits(phones=2))
    runner = Runner(make_app(contacts=known, registry=registry))
    await runner.setup()
    url = f"http://127.0.0.1:{await listen(runner)}{PATH}"
    value = registry.get_sample_value
    try:
        elsewhere = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
        async with aiohttp.ClientSession() as one, aiohttp.ClientSession(connector=elsewhere) as other:
            first, last = [await one.ws_connect(url, protocols=(WAKING,)) for _ in range(2)]
            assert value("companion_push_tunnels_phones_evicted_total") == 0
            async with other.ws_connect(url, protocols=(WAKING,)):
                assert (await first.receive()).data == 1013
                assert value("companion_push_tunnels_phones") == 2
                assert value("companion_push_tunnels_phones_evicted_total") == 1
            await last.close()
    finally:
        await runner.cleanup()
    assert value("companion_push_tunnels_phones") == 0


async def test_the_program_shows_them_on_an_address_of_their_own(tmp_path: Path) -> None:
    words = ("tunnel-service", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    async with running("companion_push", *words) as program, aiohttp.ClientSession() as session:
        await program.line()
        metrics = (await program.heard(r"metrics at (http://127\.0\.0\.1:\d+/metrics)"))[1]
        async with session.get(metrics) as response:
            text = await response.text()
        assert "\ncompanion_push_tunnels_open 0.0\n" in text
        assert "\ncompanion_push_connections 0.0\n" in text
        assert await program.end() == 0
