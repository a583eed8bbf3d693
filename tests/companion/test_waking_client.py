"""The phone's side of being woken, against a tunnel service that says what it wants."""

import pytest
from aiohttp import WSMsgType, web
from certificates import Certificate

from companion_push.companion.waking_client import MAX_WOKEN, open_waking
from companion_push.waking import SUBPROTOCOL, Registered, Wake, encode_waking
from headless_passkey.errors import ProtocolReason, RemoteProtocolError, TransportError, TransportReason
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


CLOSED = "the tunnel service localhost closed the connection over which it wakes this phone"
NOT_TAKEN = f"{CLOSED}: it does not take what this phone sends (close code %d)"


# what may be in a close frame (RFC 6455 section 7.4), and what the phone says of it
@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"\x03\xe8", CLOSED),
        (b"\x03\xe9", f"{CLOSED}: close code 1001"),
        (b"\x03\xe9\x1b[1mhello", f"{CLOSED}: close code 1001"),
        (b"\x03\xe9draining", f"{CLOSED}: it is being shut down"),
        (b"\x03\xe9stood-still", f"{CLOSED}: this phone took nothing for too long"),
        (b"\x03\xeb", NOT_TAKEN % 1003),
        (b"\x03\xf0", NOT_TAKEN % 1008),
        (b"\x03\xf1", NOT_TAKEN % 1009),
        (b"\x03\xf3", f"{CLOSED}: something failed there (close code 1011)"),
        (
            b"\x03\xf5",
            f"{CLOSED}: it has no room for this phone, or for a new contact ID, for now (close code 1013)",
        ),
        (b"\x0f\xa1", f"{CLOSED}: close code 4001"),
        (b"", f"{CLOSED}: it does not say why"),
        (None, "the connection over which the tunnel service localhost wakes this phone broke off"),
    ],
)
async def test_each_close_code_says_why_the_phone_is_woken_no_more(
    loopback_certificate: Certificate, payload: bytes | None, said: str
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(protocols=(SUBPROTOCOL,), compress=False, timeout=0.1)
        await websocket.prepare(request)
        if payload is None:
            assert request.transport is not None
            request.transport.abort()
        else:
            assert websocket._writer is not None
            await websocket._writer.send_frame(payload, WSMsgType.CLOSE)
        await websocket.receive()
        return websocket

    async with (
        service(handler, loopback_certificate) as url,
        open_waking(url.partition("/cable")[0], tls=tls_context(loopback_certificate.ca)) as waking,
    ):
        with pytest.raises(TransportError) as closed:
            await waking.wake()
    assert (str(closed.value), closed.value.reason) == (said, TransportReason.UNREACHABLE)
