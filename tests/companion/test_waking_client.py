"""The phone's side of being woken, against a tunnel service that says what it wants."""

import pytest
from aiohttp import web
from certificates import Certificate

from companion_push.companion.waking_client import MAX_WOKEN, open_waking
from companion_push.waking import SUBPROTOCOL, Registered, Wake, encode_waking
from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from headless_passkey.net.tls import tls_context
from tests.device.test_tunnel import Handler, service

WAKE = Wake(routing_id=bytes(3), tunnel_id=bytes(16), client_payload=b"payload")


def that_wakes(times: int) -> Handler:
    """A service that wakes a phone so many times before it answers its registration."""

    async def handler(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(protocols=(SUBPROTOCOL,), compress=False, timeout=0.1)
        await websocket.prepare(request)
        await websocket.receive()
        for _ in range(times):
            await websocket.send_str(encode_waking(WAKE))
        await websocket.send_str(encode_waking(Registered()))
        await websocket.receive()
        return websocket

    return handler


@pytest.mark.threat("T9")
async def test_of_calls_that_come_before_an_answer_some_wait_and_more_end_the_connection(
    loopback_certificate: Certificate,
) -> None:
    tls = tls_context(loopback_certificate.ca)
    async with (
        service(that_wakes(MAX_WOKEN), loopback_certificate) as url,
        open_waking(url.partition("/cable")[0], tls=tls) as waking,
    ):
        await waking.register([bytes(32)])
        assert [await waking.wake() for _ in range(MAX_WOKEN)] == [WAKE] * MAX_WOKEN
    async with (
        service(that_wakes(MAX_WOKEN + 1), loopback_certificate) as url,
        open_waking(url.partition("/cable")[0], tls=tls) as waking,
    ):
        with pytest.raises(RemoteProtocolError) as refused:
            await waking.register([bytes(32)])
        assert refused.value.reason is ProtocolReason.UNEXPECTED_MESSAGE
