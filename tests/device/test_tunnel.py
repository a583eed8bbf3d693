"""The websocket client against real servers on loopback: what it accepts, and what it refuses."""

import asyncio
import datetime as dt
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, web
from certificates import Certificate, make_certificate

from headless_passkey.errors import (
    ExitStatus,
    LocalProtocolError,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TransportReason,
)
from headless_passkey.hybrid.tunnel_url import contact_headers
from headless_passkey.mends import mend
from headless_passkey.net.tls import tls_context
from headless_passkey.net.tunnel import MAX_UNREAD, MESSAGE_COST, TunnelClosed, open_tunnel

TUNNEL_ID = "00112233445566778899AABBCCDDEEFF"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def service(handler: Handler, certificate: Certificate, host: str = "localhost") -> AsyncIterator[str]:
    """A server that answers everything with `handler`; yields the URL of a new tunnel on it."""
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.server_context()).start()
        yield f"wss://{host}:{runner.addresses[0][1]}/cable/new/{TUNNEL_ID}"
    finally:
        await runner.cleanup()


def tunnel_service(
    then: Callable[[web.WebSocketResponse], Awaitable[None]],
    *,
    headers: dict[str, str] | None = None,
    autoping: bool = True,
) -> Handler:
    """A handler that shakes hands as a tunnel service does, and then does what the test says."""

    async def handler(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(
            protocols=("fido.cable",), max_msg_size=0, compress=False, timeout=0.1, autoping=autoping
        )
        websocket.headers.update(headers or {})
        await websocket.prepare(request)
        await then(websocket)
        return websocket

    return handler


async def echo(websocket: web.WebSocketResponse) -> None:
    async for message in websocket:
        if message.type is WSMsgType.BINARY:
            await websocket.send_bytes(message.data)


async def test_messages_go_out_and_come_back_whole_and_in_order(loopback_certificate: Certificate) -> None:
    messages = [b"", b"one", bytes(65535), bytes(1 << 20)]
    async with (
        service(tunnel_service(echo), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        for message in messages:
            await tunnel.send(message)
        assert [await tunnel.receive() for _ in messages] == messages


async def test_the_request_is_what_tunnel_services_expect(loopback_certificate: Certificate) -> None:
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        return await tunnel_service(echo)(request)

    async with service(handler, loopback_certificate) as url:
        async with open_tunnel(url, tls=tls_context(loopback_certificate.ca)):
            pass
        host = url.split("/")[2]
    (request,) = seen
    assert request.path == f"/cable/new/{TUNNEL_ID}"
    assert request.headers["Sec-WebSocket-Protocol"] == "fido.cable"
    assert request.headers["Origin"] == f"wss://{host}"
    assert not {"Sec-WebSocket-Extensions", "Cookie", "User-Agent"} & set(request.headers)


@pytest.mark.threat("T9")
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("answered", ["true", "false", None])
async def test_the_connect_signal_is_taken_where_it_was_asked_for_and_promised(
    loopback_certificate: Certificate, *, asked: bool, answered: str | None
) -> None:
    seen: list[web.Request] = []

    async def speak(websocket: web.WebSocketResponse) -> None:
        await websocket.send_bytes(b"\0")
        await websocket.send_bytes(b"message")
        await websocket.receive()

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        headers = {} if answered is None else {"X-caBLE-Signal-Connection": answered}
        return await tunnel_service(speak, headers=headers)(request)

    headers = contact_headers(b"payload") if asked else None
    async with (
        service(handler, loopback_certificate) as url,
        open_tunnel(url, headers=headers, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        swallowed = asked and answered == "true"
        assert await tunnel.receive() == (b"message" if swallowed else b"\0")
    assert seen[0].headers.get("X-caBLE-Client-Payload") == (b"payload".hex().upper() if asked else None)


@pytest.mark.threat("T9")
async def test_something_else_than_the_connect_signal_ends_the_tunnel(
    loopback_certificate: Certificate,
) -> None:
    codes: list[int | None] = []

    async def speak(websocket: web.WebSocketResponse) -> None:
        await websocket.send_bytes(b"\0\0")
        await websocket.receive()
        codes.append(websocket.close_code)

    handler = tunnel_service(speak, headers={"X-caBLE-Signal-Connection": "true"})
    async with (
        service(handler, loopback_certificate) as url,
        open_tunnel(
            url, headers=contact_headers(b"payload"), tls=tls_context(loopback_certificate.ca)
        ) as tunnel,
    ):
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for waiting in (tunnel.unless_it_ends(never), tunnel.receive()):
            with pytest.raises(RemoteProtocolError, match="connect signal"):
                await waiting
    assert codes == [1002]


async def test_what_happens_first_counts_an_event_or_the_end_of_the_tunnel(
    loopback_certificate: Certificate,
) -> None:
    hang_up = asyncio.Event()

    async def speak(_websocket: web.WebSocketResponse) -> None:
        await hang_up.wait()

    async with (
        service(tunnel_service(speak), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        event: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(event.set_result, "heard")
        assert await tunnel.unless_it_ends(event) == "heard"
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(hang_up.set)
        with pytest.raises(TunnelClosed):
            await tunnel.unless_it_ends(never)


@pytest.mark.parametrize("header", ["01ff0a", "01FF0A"])
async def test_the_routing_id_is_read_in_either_case(loopback_certificate: Certificate, header: str) -> None:
    handler = tunnel_service(echo, headers={"x-cable-routing-id": header})
    async with (
        service(handler, loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        assert tunnel.routing_id == bytes.fromhex("01ff0a")


async def test_a_service_need_not_name_a_routing_id(loopback_certificate: Certificate) -> None:
    async with (
        service(tunnel_service(echo), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        assert tunnel.routing_id is None


@pytest.mark.parametrize("header", ["", "01FF", "01FF0A00", "01FF0G", " 1FF0A "])
async def test_a_malformed_routing_id_is_refused(loopback_certificate: Certificate, header: str) -> None:
    handler = tunnel_service(echo, headers={"X-caBLE-Routing-ID": header})
    async with service(handler, loopback_certificate) as url:
        with pytest.raises(RemoteProtocolError):
            async with open_tunnel(url, tls=tls_context(loopback_certificate.ca)):
                pass


async def test_two_routing_ids_are_refused(loopback_certificate: Certificate) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(protocols=("fido.cable",), timeout=0.1)
        for value in ("01FF0A", "01FF0B"):
            websocket.headers.add("X-caBLE-Routing-ID", value)
        await websocket.prepare(request)
        return websocket

    async with service(handler, loopback_certificate) as url:
        with pytest.raises(RemoteProtocolError, match="several"):
            async with open_tunnel(url, tls=tls_context(loopback_certificate.ca)):
                pass


async def test_a_server_that_does_not_echo_the_subprotocol_is_refused(
    loopback_certificate: Certificate,
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(timeout=0.1)
        await websocket.prepare(request)
        await echo(websocket)
        return websocket

    async with service(handler, loopback_certificate) as url:
        with pytest.raises(SetupError, match=r"fido\.cable"):
            async with open_tunnel(url, tls=tls_context(loopback_certificate.ca)):
                pass


async def test_a_goodbye_is_a_clean_end(loopback_certificate: Certificate) -> None:
    async def leave(websocket: web.WebSocketResponse) -> None:
        await websocket.send_bytes(b"last words")
        await websocket.close(code=1000)

    async with (
        service(tunnel_service(leave), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        assert await tunnel.receive() == b"last words"
        with pytest.raises(TunnelClosed) as closed:
            await tunnel.receive()
        assert closed.value.clean
        assert closed.value.reason is TransportReason.UNREACHABLE
        assert closed.value.advice == mend(TransportReason.UNREACHABLE, "hung up")
        with pytest.raises(TransportError) as late:
            await tunnel.send(b"too late")
        assert late.value is closed.value


S: Final = "the tunnel service localhost"
NOT_TAKEN: Final = f"{S} closed the tunnel: it does not take what this end sends (close code %d)"


# what may be in a close frame (RFC 6455 section 7.4), and what an end says of it
@pytest.mark.parametrize(
    ("code", "why", "said", "reason"),
    [
        (1000, "", "the other end closed the tunnel", "unreachable"),
        (1001, "", f"the other end, or {S}, closed the tunnel (close code 1001)", "unreachable"),
        (1001, "\x1b[1mhello", f"the other end, or {S}, closed the tunnel (close code 1001)", "unreachable"),
        (1001, "draining", f"{S} is being shut down, and closed the tunnel", "unreachable"),
        (1001, "time-up", f"{S} closed the tunnel: its time was up", "unreachable"),
        (
            1001,
            "stood-still",
            f"{S} closed the tunnel: this end took nothing, or did not answer, for too long",
            "unreachable",
        ),
        (1001, "other-vanished", f"{S} has lost the other end", "unreachable"),
        (
            1001,
            "other-broke-a-rule",
            f"{S} closed the tunnel: the other end sent what it does not take",
            "unreachable",
        ),
        (1001, "not-woken", f"{S} could not have the phone woken", "unreachable"),
        (1002, "", NOT_TAKEN % 1002, "unreachable"),
        (1003, "", NOT_TAKEN % 1003, "unreachable"),
        (1007, "", NOT_TAKEN % 1007, "unreachable"),
        (1008, "draining", NOT_TAKEN % 1008, "unreachable"),  # words go with 1001 only
        (1009, "", NOT_TAKEN % 1009, "unreachable"),
        (1010, "", NOT_TAKEN % 1010, "unreachable"),
        (1011, "", f"{S} closed the tunnel: something failed there (close code 1011)", "server-failed"),
        (1012, "", f"{S} closed the tunnel: it is being restarted (close code 1012)", "server-failed"),
        (1013, "", f"{S} closed the tunnel: others needed its place (close code 1013)", "server-failed"),
        (3000, "", "the tunnel through localhost broke off (close code 3000)", "unreachable"),
        (4001, "", f"{S} hears nothing more of the other end", "went-silent"),
        (4002, "", "the tunnel through localhost broke off (close code 4002)", "unreachable"),
        (0, "", f"the other end, or {S}, closed the tunnel (without a close code)", "unreachable"),
    ],
)
async def test_each_close_code_says_who_ended_the_tunnel_and_why(
    loopback_certificate: Certificate, code: int, why: str, said: str, reason: str
) -> None:
    async def throw_out(websocket: web.WebSocketResponse) -> None:
        payload = code.to_bytes(2, "big") + why.encode() if code else b""
        await websocket._writer.send_frame(payload, WSMsgType.CLOSE)  # type: ignore[union-attr]

    async with (
        service(tunnel_service(throw_out), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        with pytest.raises(TunnelClosed) as closed:
            await tunnel.receive()
    assert (str(closed.value), closed.value.reason) == (said, reason)
    assert closed.value.clean is (code == 1000)
    assert closed.value.advice
    assert closed.value.exit_status == ExitStatus.TRANSPORT


async def test_a_connection_that_just_ends_is_not_a_clean_end(loopback_certificate: Certificate) -> None:
    async def die(websocket: web.WebSocketResponse) -> None:
        transport = websocket.get_extra_info("socket")
        assert transport is not None
        websocket._req.transport.abort()  # type: ignore[union-attr]

    async with (
        service(tunnel_service(die), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        with pytest.raises(TunnelClosed) as closed:
            await tunnel.receive()
        assert not closed.value.clean


async def test_receiving_can_be_cancelled_and_taken_up_again(loopback_certificate: Certificate) -> None:
    async with (
        service(tunnel_service(echo), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await tunnel.receive()
        await tunnel.send(b"still there")
        assert await tunnel.receive() == b"still there"


async def test_an_error_that_nobody_expected_is_raised_where_messages_are_received(
    loopback_certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(ClientWebSocketResponse, "receive", broken)

    async with (
        service(tunnel_service(echo), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
        asyncio.timeout(60),
    ):
        for _ in range(2):
            with pytest.raises(ValueError, match="a bug"):
                await tunnel.receive()


async def test_who_waits_for_a_message_is_told_when_the_tunnel_is_closed_at_this_end(
    loopback_certificate: Certificate,
) -> None:
    async with service(tunnel_service(echo), loopback_certificate) as url:
        async with open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel:
            waiting = asyncio.create_task(tunnel.receive())
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            with pytest.raises(TunnelClosed) as ended:
                await waiting
    assert ended.value.clean


@pytest.mark.threat("T9")
async def test_a_text_message_ends_the_tunnel(loopback_certificate: Certificate) -> None:
    heard: list[int | None] = []

    async def chat(websocket: web.WebSocketResponse) -> None:
        await websocket.send_str("hello")
        await websocket.receive()
        heard.append(websocket.close_code)

    async with (
        service(tunnel_service(chat), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        with pytest.raises(RemoteProtocolError, match="text"):
            await tunnel.receive()
    assert heard == [1003]


@pytest.mark.threat("T9")
async def test_a_message_over_one_mebibyte_is_refused(loopback_certificate: Certificate) -> None:
    async def flood(websocket: web.WebSocketResponse) -> None:
        await websocket.send_bytes(bytes((1 << 20) + 1))
        await websocket.receive()

    async with (
        service(tunnel_service(flood), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        with pytest.raises(RemoteProtocolError, match="1048576"):
            await tunnel.receive()


async def test_pings_are_answered_while_nobody_receives(loopback_certificate: Certificate) -> None:
    answered = asyncio.Event()

    async def ping(websocket: web.WebSocketResponse) -> None:
        await websocket.ping(b"are you there?")
        message = await websocket.receive()
        assert (message.type, message.data) == (WSMsgType.PONG, b"are you there?")
        answered.set()
        await websocket.receive()

    async with (
        service(tunnel_service(ping, autoping=False), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)),
    ):
        await asyncio.wait_for(answered.wait(), 30)


@pytest.mark.threat("T9")
async def test_what_nobody_receives_is_not_taken_in_without_end(loopback_certificate: Certificate) -> None:
    messages = [bytes([number]) * MAX_UNREAD for number in range(20)]

    async def tell(websocket: web.WebSocketResponse) -> None:
        for message in messages:
            await websocket.send_bytes(message)
        await websocket.receive()

    async with (
        service(tunnel_service(tell), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        async with asyncio.timeout(60):
            while tunnel._unread <= MAX_UNREAD:  # noqa: ASYNC110  nothing tells of it
                await asyncio.sleep(0)
        for message in messages:
            assert tunnel._unread <= 2 * MAX_UNREAD
            assert await tunnel.receive() == message


@pytest.mark.threat("T9")
async def test_of_empty_messages_that_nobody_receives_no_more_are_taken_in_than_fit(
    loopback_certificate: Certificate,
) -> None:
    number = 4 * MAX_UNREAD // MESSAGE_COST

    async def tell(websocket: web.WebSocketResponse) -> None:
        for _ in range(number):
            await websocket.send_bytes(b"")
        await websocket.send_bytes(b"the last")
        await websocket.receive()

    async with (
        service(tunnel_service(tell), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        async with asyncio.timeout(60):
            while tunnel._unread <= MAX_UNREAD:  # noqa: ASYNC110  nothing tells of it
                await asyncio.sleep(0)
        for _ in range(number):
            assert tunnel._arrived.qsize() <= MAX_UNREAD // MESSAGE_COST + 1
            assert await tunnel.receive() == b""
        assert await tunnel.receive() == b"the last"


@pytest.mark.threat("T9")
async def test_endless_pings_end_the_tunnel(
    loopback_certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headless_passkey.net.tunnel.MAX_CONTROLS", 10)
    codes: list[int | None] = []

    async def nag(websocket: web.WebSocketResponse) -> None:
        for _ in range(11):
            await websocket.ping()
        async for _message in websocket:
            pass
        codes.append(websocket.close_code)

    async with (
        service(tunnel_service(nag), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        with pytest.raises(RemoteProtocolError, match="nothing but pings"):
            await tunnel.receive()
    assert codes == [1008]


@pytest.mark.threat("T9")
async def test_a_service_that_floods_pings_reads_no_pongs_and_vanishes_is_a_typed_error(
    loopback_certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headless_passkey.net.tunnel.MAX_CONTROLS", 1 << 30)

    async def flood(websocket: web.WebSocketResponse) -> None:
        transport = websocket._req.transport  # type: ignore[union-attr]
        assert transport is not None
        transport.pause_reading()
        with suppress(TimeoutError):  # until the client can write no more pongs, and so reads no more pings
            while True:
                async with asyncio.timeout(1):
                    await websocket.ping(bytes(125))
        transport.abort()

    async with (
        service(tunnel_service(flood), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        with pytest.raises(TunnelClosed) as closed:
            await tunnel.receive()
        assert (closed.value.clean, closed.value.reason) == (False, TransportReason.UNREACHABLE)


@pytest.mark.threat("T9")
async def test_a_service_that_leaves_many_pings_unanswered_and_hangs_up_fills_no_log(
    loopback_certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang_up(websocket: web.WebSocketResponse) -> None:
        transport = websocket._req.transport  # type: ignore[union-attr]
        assert transport is not None
        for _ in range(200):
            await websocket.ping()
        transport.abort()

    async with (
        service(tunnel_service(hang_up), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        with pytest.raises(TunnelClosed):
            await tunnel.receive()
    assert caplog.records == []


async def test_an_end_that_the_service_hears_nothing_more_of_has_a_close_code_of_its_own(
    loopback_certificate: Certificate,
) -> None:
    async def give_up(websocket: web.WebSocketResponse) -> None:
        await websocket.close(code=4001)

    async with (
        service(tunnel_service(give_up), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        for _ in range(2):  # and again for who asks again
            with pytest.raises(TunnelClosed) as closed:
                await tunnel.receive()
            assert (closed.value.clean, closed.value.reason) == (False, TransportReason.WENT_SILENT)


@pytest.mark.threat("T9")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed_not_even_to_the_same_host(
    loopback_certificate: Certificate, status: int
) -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request.path)
        if request.path == "/elsewhere":
            return await tunnel_service(echo)(request)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    async with service(handler, loopback_certificate) as url:
        with pytest.raises(TransportError, match=str(status)):
            async with open_tunnel(url, tls=tls_context(loopback_certificate.ca)):
                pass
    assert seen == [f"/cable/new/{TUNNEL_ID}"]


@pytest.mark.parametrize("status", [200, 302, 400, 403, 404, 410, 500, 511])
async def test_an_http_answer_is_named_by_its_status(loopback_certificate: Certificate, status: int) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    async with service(handler, loopback_certificate) as url:
        with pytest.raises(TransportError, match=f"localhost answered HTTP status {status}") as caught:
            async with open_tunnel(url, tls=tls_context(loopback_certificate.ca)):
                pass
    in_between = status in (200, 302, 403, 511)  # such as the login page of a network
    assert ("wants a login" in caught.value.explain()) is in_between


async def test_a_wrong_websocket_answer_is_refused_without_showing_the_url(
    loopback_certificate: Certificate,
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            status=101,
            headers={"Upgrade": "websocket", "Connection": "upgrade", "Sec-WebSocket-Accept": "bm8="},
        )
        await response.prepare(request)
        return response

    async with service(handler, loopback_certificate) as url:
        with pytest.raises(SetupError) as refused:
            async with open_tunnel(url, tls=tls_context(loopback_certificate.ca)):
                pass
    assert refused.value.reason is SetupReason.WRONG_SERVER
    assert TUNNEL_ID not in refused.value.explain()
    assert refused.value.__cause__ is None


@pytest.mark.threat("T9")
async def test_a_certificate_for_another_host_is_refused(
    tmp_path: Path, loopback_certificate: Certificate
) -> None:
    elsewhere = make_certificate(tmp_path, names=("tunnel.example",))
    async with service(tunnel_service(echo), elsewhere) as url:
        with pytest.raises(TransportError, match=r"not trusted.*[Hh]ostname mismatch"):
            async with open_tunnel(url, tls=tls_context(elsewhere.ca)):
                pass


@pytest.mark.threat("T9")
async def test_an_address_is_checked_as_a_host_name_is(tmp_path: Path) -> None:
    elsewhere = make_certificate(tmp_path, names=("localhost",))
    async with service(tunnel_service(echo), elsewhere, host="127.0.0.1") as url:
        with pytest.raises(TransportError, match="not trusted"):
            async with open_tunnel(url, tls=tls_context(elsewhere.ca)):
                pass


@pytest.mark.threat("T9")
async def test_a_certificate_of_an_unknown_authority_is_refused(
    tmp_path: Path, loopback_certificate: Certificate
) -> None:
    other = make_certificate(tmp_path, names=("localhost",))
    async with service(tunnel_service(echo), loopback_certificate) as url:
        for tls in (tls_context(other.ca), None):
            with pytest.raises(TransportError, match="not trusted") as caught:
                async with open_tunnel(url, tls=tls):
                    pass
            assert caught.value.reason is TransportReason.UNTRUSTED_CERTIFICATE
            assert caught.value.explain().endswith(
                ": where the server has an authority of its own, name that with `--ca FILE`, which takes the"
                " place of the system's; elsewhere somebody may be in between"
            )


@pytest.mark.parametrize(("days", "words"), [(-30, "has expired"), (30, "not yet valid")])
async def test_a_certificate_out_of_its_dates_may_be_the_fault_of_this_clock(
    tmp_path: Path, days: int, words: str
) -> None:
    certificate = make_certificate(tmp_path, now=dt.datetime.now(dt.UTC) + dt.timedelta(days=days))
    async with service(tunnel_service(echo), certificate) as url:
        with pytest.raises(TransportError, match=words) as caught:
            async with open_tunnel(url, tls=tls_context(certificate.ca)):
                pass
    assert caught.value.explain().endswith(
        ": if this machine's clock is wrong, set it with `sudo timedatectl set-ntp true`; if it is right, the"
        " server needs a new certificate"
    )


async def test_a_port_where_nobody_listens_is_named_as_such() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(TransportError, match=r"127\.0\.0\.1 cannot be reached: .*refused") as caught:
            async with open_tunnel(f"wss://127.0.0.1:{port}/cable/new/{TUNNEL_ID}"):
                pass
    assert caught.value.reason is TransportReason.UNREACHABLE


async def test_a_host_without_an_address_is_named_as_such() -> None:
    with pytest.raises(TransportError, match=r"nowhere\.invalid .* resolved") as caught:
        async with open_tunnel(f"wss://nowhere.invalid/cable/new/{TUNNEL_ID}"):
            pass
    assert caught.value.reason is TransportReason.NAME_NOT_RESOLVED


async def test_a_server_without_tls_is_refused(loopback_certificate: Certificate) -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(TransportError, match="TLS"):
            async with open_tunnel(f"wss://localhost:{port}/cable/new/{TUNNEL_ID}"):
                pass


async def test_a_silent_server_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(TransportError, match="did not answer in time"):
            async with open_tunnel(f"wss://127.0.0.1:{port}/cable/new/{TUNNEL_ID}", connect_timeout=0.05):
                pass


@pytest.mark.parametrize(
    "url",
    [
        "ws://localhost/",
        "https://localhost/",
        "wss:///x",
        "localhost",
        "wss://h:65536/",
        "wss://h:0/",
        "wss://[/",
    ],
)
async def test_only_wss_is_a_tunnel(url: str) -> None:
    with pytest.raises(LocalProtocolError):
        async with open_tunnel(url):
            pass


# of more than 63 octets, or none (RFC 1035 §2.3.4); of A-labels that stand for nothing
NO_NAMES = ["a" * 64 + ".example", "a..example", ".example", "xn--a.example", "xn--" + "a" * 60 + ".example"]


@pytest.mark.parametrize("host", NO_NAMES)
async def test_a_name_that_nobody_can_look_up_is_a_typed_error(host: str) -> None:
    with pytest.raises(TransportError) as caught:
        async with open_tunnel(f"wss://{host}/cable/new/{TUNNEL_ID}"):
            pass
    assert caught.value.reason is TransportReason.NAME_NOT_RESOLVED
    assert TUNNEL_ID not in str(caught.value)


async def test_the_systems_roots_are_read_once_and_not_for_each_tunnel(
    loopback_certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading them takes tens of milliseconds, in which the event loop hears no advert."""

    def read(*_: object, **__: object) -> ssl.SSLContext:
        pytest.fail("the roots are read again")

    async with service(tunnel_service(echo), loopback_certificate) as url:
        monkeypatch.setattr(ssl, "create_default_context", read)
        with pytest.raises(TransportError) as caught:
            async with open_tunnel(url):
                pass
    assert caught.value.reason is TransportReason.UNTRUSTED_CERTIFICATE


@pytest.mark.threat("T11")
async def test_no_log_line_holds_the_tunnel_id(
    loopback_certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        service(tunnel_service(echo), loopback_certificate) as url,
        open_tunnel(url, tls=tls_context(loopback_certificate.ca)) as tunnel,
    ):
        await tunnel.send(b"a message nobody logs")
        await tunnel.receive()
    assert "tunnel open through localhost" in caplog.text
    assert TUNNEL_ID not in caplog.text.upper()
    assert "a message nobody logs" not in caplog.text


def test_the_ca_file_replaces_the_system_roots(loopback_certificate: Certificate) -> None:
    context = tls_context(loopback_certificate.ca)
    assert len(context.get_ca_certs()) == 1
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert tls_context(None).check_hostname


def test_a_ca_file_that_cannot_be_used_is_a_setup_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot read") as failed:
        tls_context(tmp_path / "missing.pem")
    (tmp_path / "empty.pem").touch()
    assert failed.value.reason is SetupReason.BAD_CERTIFICATE
    with pytest.raises(SetupError, match="PEM"):
        tls_context(tmp_path / "empty.pem")
