"""The tunnel service as its two ends meet it: real websockets over TLS on loopback."""

import asyncio
import contextlib
import gc
import json
import logging
import ssl
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import yarl
from aiohttp import web
from certificates import Certificate
from multidict import CIMultiDict

from companion_push.tunnel_service.app import TunnelEndpoints, make_app
from companion_push.tunnel_service.rendezvous import Limits
from companion_push.tunnel_service.websocket import Websocket
from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.hybrid.tunnel_url import connect_url, new_url
from headless_passkey.net.tunnel import Tunnel, TunnelClosed, open_tunnel

PATIENCE = 20.0  # seconds: a safety net, so that a hang is a failure
TUNNEL_ID = bytes(range(0xA0, 0xB0))
PROTOCOL = {"Sec-WebSocket-Protocol": "fido.cable"}
UPGRADE = PROTOCOL | {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    base: str  # wss://localhost:port
    tls: ssl.SSLContext

    def open(self) -> AbstractAsyncContextManager[Tunnel]:
        return open_tunnel(new_url(self.base, TUNNEL_ID), tls=self.tls)

    def join(self, routing_id: bytes | None) -> AbstractAsyncContextManager[Tunnel]:
        assert routing_id is not None
        return open_tunnel(connect_url(self.base, routing_id, TUNNEL_ID), tls=self.tls)

    @asynccontextmanager
    async def both(self) -> AsyncIterator[tuple[Tunnel, Tunnel]]:
        async with self.open() as first, self.join(first.routing_id) as second:
            yield first, second

    def url(self, path: str) -> str:
        return self.base.replace("wss", "https") + path


Start = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def start(loopback_certificate: Certificate) -> Start:
    """`async with start(waiting=1) as service`: a tunnel service with these limits."""

    @asynccontextmanager
    async def service(**limits: float) -> AsyncIterator[Service]:
        app = make_app(Limits(**limits))  # type: ignore[arg-type]
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(
                runner, "127.0.0.1", 0, ssl_context=loopback_certificate.server_context()
            ).start()
            yield Service(
                base=f"wss://localhost:{runner.addresses[0][1]}", tls=loopback_certificate.client_context()
            )
        finally:
            await runner.cleanup()

    return service


async def refusal(tunnel: AbstractAsyncContextManager[Tunnel]) -> str:
    with pytest.raises(TransportError) as refused:
        async with tunnel:
            pass
    return str(refused.value).rpartition(" ")[2]


async def ended(tunnel: Tunnel) -> TunnelClosed:
    with pytest.raises(TunnelClosed) as closed:
        await tunnel.receive()
    return closed.value


async def test_messages_are_carried_verbatim_in_order_and_both_ways(start: Start) -> None:
    messages = [b"", b"\0", b"one", bytes(range(256)) * 16, bytes(range(256)) * 256]
    async with start() as service, service.both() as (first, second):
        for message in messages:
            await first.send(message)
            await second.send(message[::-1])
        assert [await second.receive() for _ in messages] == messages
        assert [await first.receive() for _ in messages] == [message[::-1] for message in messages]


@pytest.mark.threat("T17")
async def test_nothing_of_a_tunnel_is_kept_when_it_has_ended(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, kept = Websocket.begin, weakref.WeakSet[Any]()

    def noted(websocket: Websocket, *given: Any) -> None:
        real(websocket, *given)
        kept.add(websocket)

    monkeypatch.setattr(Websocket, "begin", noted)
    async with start(silence=3600) as service:
        for _ in range(4):
            async with service.open() as first:
                async with service.join(first.routing_id) as second:
                    await first.send(b"one")
                    assert await second.receive() == b"one"
                    assert len(kept) >= 2
                await ended(first)  # which answers the service's close frame
        async with asyncio.timeout(PATIENCE):
            while len(kept):
                gc.collect()
                await asyncio.sleep(0.01)


async def test_what_the_first_end_says_waits_for_the_second(start: Start) -> None:
    async with start() as service, service.open() as first:
        await first.send(b"one")
        await first.send(b"two")
        async with service.join(first.routing_id) as second:
            await first.send(b"three")
            assert [await second.receive() for _ in range(3)] == [b"one", b"two", b"three"]


async def test_a_first_end_that_leaves_before_the_second_has_come_leaves_nothing(start: Start) -> None:
    async with start() as service:
        async with service.open() as first:
            for _ in range(16):
                await first.send(b"knock")
            routing_id = first.routing_id
        assert await refusal(service.join(routing_id)) == "404"
        async with service.open():
            pass


async def test_ids_are_compared_as_bytes_not_as_text(start: Start) -> None:
    async with start() as service, service.open() as first:
        assert first.routing_id is not None
        url = f"{service.base}/cable/connect/{first.routing_id.hex().lower()}/{TUNNEL_ID.hex().lower()}"
        async with open_tunnel(url, tls=service.tls) as second:
            await second.send(b"hello")
            assert await first.receive() == b"hello"


async def test_only_the_first_end_is_told_a_routing_id(start: Start) -> None:
    async with start() as service, service.both() as (first, second):
        assert first.routing_id is not None
        assert len(first.routing_id) == 3
        assert second.routing_id is None


async def test_tunnels_do_not_mix(start: Start) -> None:
    other_id = bytes(16)
    async with (
        start() as service,
        service.both() as (first, second),
        open_tunnel(new_url(service.base, other_id), tls=service.tls) as third,
    ):
        assert third.routing_id is not None
        url = connect_url(service.base, third.routing_id, other_id)
        async with open_tunnel(url, tls=service.tls) as fourth:
            await third.send(b"from third")
            await first.send(b"from first")
            assert await second.receive() == b"from first"
            assert await fourth.receive() == b"from third"


@pytest.mark.parametrize("leaver", [0, 1])
async def test_when_an_end_leaves_the_other_hears_its_last_words_and_a_clean_goodbye(
    start: Start, leaver: int
) -> None:
    async with start() as service, service.both() as ends:
        leaving, staying = ends[leaver], ends[1 - leaver]
        await leaving.send(b"last words")
        await leaving._websocket.close(code=1001)  # as browsers do
        assert await staying.receive() == b"last words"
        assert (await ended(staying)).clean


async def test_when_an_end_vanishes_the_other_is_closed(start: Start) -> None:
    async with start() as service, service.both() as (first, second):
        connection = first._websocket._response.connection
        assert connection is not None
        assert connection.transport is not None
        connection.transport.abort()
        await ended(second)


async def test_a_tunnel_id_is_free_again_when_its_tunnel_has_ended(start: Start) -> None:
    async with start() as service:
        async with service.both() as (first, second):
            await first._websocket.close()
            await ended(second)
        async with service.both() as (first, second):
            await first.send(b"again")
            assert await second.receive() == b"again"


async def test_an_open_tunnel_id_is_answered_409(start: Start) -> None:
    async with start() as service, service.open():
        assert await refusal(service.open()) == "409"


@pytest.mark.threat("T9")
async def test_a_third_party_a_wrong_routing_id_and_a_tunnel_that_is_not_there_are_answered_404(
    start: Start,
) -> None:
    async with start() as service:
        assert await refusal(service.join(b"\0\0\0")) == "404"
        async with service.open() as first:
            assert first.routing_id is not None
            wrong = bytes(byte ^ 1 for byte in first.routing_id)
            assert await refusal(service.join(wrong)) == "404"
            async with service.join(first.routing_id) as second:
                assert await refusal(service.join(first.routing_id)) == "404"
                await first.send(b"undisturbed")
                assert await second.receive() == b"undisturbed"
        assert await refusal(service.join(first.routing_id)) == "404"


NEW = f"/cable/new/{TUNNEL_ID.hex()}"
CONNECT = f"/cable/connect/010203/{TUNNEL_ID.hex()}"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", UPGRADE, 404),
        ("GET", "/cable/", UPGRADE, 404),
        ("GET", NEW + "/", UPGRADE, 404),
        ("GET", NEW[:-1], UPGRADE, 404),
        ("GET", NEW + "00", UPGRADE, 404),
        ("GET", NEW[:-2] + "zz", UPGRADE, 404),
        ("GET", NEW[:-2] + "%61%61", UPGRADE, 404),
        ("GET", CONNECT + "/more", UPGRADE, 404),
        ("GET", "/cable/connect/0102/" + TUNNEL_ID.hex(), UPGRADE, 404),
        ("GET", "/cable/contact/AAAA", UPGRADE, 404),
        ("GET", NEW, {}, 400),
        ("GET", NEW, PROTOCOL, 400),
        ("GET", NEW, {key: UPGRADE[key] for key in UPGRADE if key != "Sec-WebSocket-Protocol"}, 400),
        ("GET", NEW, UPGRADE | {"Sec-WebSocket-Protocol": "fido.cable2, chat"}, 400),
        ("GET", NEW, UPGRADE | {"Sec-WebSocket-Version": "12"}, 400),
        ("GET", NEW, UPGRADE | {"Sec-WebSocket-Key": "short"}, 400),
        ("GET", CONNECT, PROTOCOL, 400),
        ("GET", CONNECT, UPGRADE, 404),
        ("POST", NEW, UPGRADE, 405),
        ("HEAD", NEW, UPGRADE, 405),
        ("PUT", CONNECT, UPGRADE, 405),
        ("GET", "/livez", {}, 204),
    ],
)
async def test_other_requests_are_answered_in_plain_http(
    start: Start, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    async with start() as service, aiohttp.ClientSession() as session:
        url = yarl.URL(service.url(path), encoded=True)
        async with session.request(method, url, headers=headers, ssl=service.tls) as response:
            assert response.status == status
            assert response.headers.get("Allow") == ("GET" if status == 405 else None)


async def test_subprotocols_may_be_offered_in_headers_of_their_own(start: Start) -> None:
    """RFC 6455 §11.3.4: the same as one header with all."""
    async with start() as service, aiohttp.ClientSession() as session:
        headers = CIMultiDict(UPGRADE)
        headers.popall("Sec-WebSocket-Protocol")
        for name in ("chat", "fido.cable"):
            headers.add("Sec-WebSocket-Protocol", name)
        async with session.get(service.url(NEW), headers=headers, ssl=service.tls) as response:
            assert (response.status, response.headers["Sec-WebSocket-Protocol"]) == (101, "fido.cable")


async def test_who_speaks_another_version_hears_which_one_is_spoken(start: Start) -> None:
    async with start() as service, aiohttp.ClientSession() as session:
        headers = UPGRADE | {"Sec-WebSocket-Version": "8"}
        async with session.get(service.url(NEW), headers=headers, ssl=service.tls) as response:
            assert (response.status, response.headers["Sec-WebSocket-Version"]) == (400, "13")


async def test_compression_is_declined_and_an_origin_is_not_required(start: Start) -> None:
    async with start() as service, aiohttp.ClientSession() as session:
        headers = UPGRADE | {
            "Sec-WebSocket-Protocol": "chat, fido.cable",
            "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
        }
        async with session.get(service.url(NEW), headers=headers, ssl=service.tls) as response:
            assert response.status == 101
            assert response.headers["Sec-WebSocket-Protocol"] == "fido.cable"
            assert "Sec-WebSocket-Extensions" not in response.headers


@pytest.mark.threat("T9")
async def test_a_text_message_ends_the_tunnel(start: Start) -> None:
    async with start() as service, service.both() as (first, second):
        await first._websocket.send_str("hello")
        assert "1003" in str(await ended(first))
        await ended(second)


@pytest.mark.threat("T9")
@pytest.mark.parametrize(
    ("limits", "sizes", "code"),
    [
        ({"message_size": 100}, [100, 101], 1009),
        ({"messages": 2}, [1, 1, 1], 1008),
        ({"size": 100}, [50, 50, 1], 1008),
    ],
)
async def test_an_end_that_goes_over_its_budget_is_closed_and_the_other_with_it(
    start: Start, limits: dict[str, float], sizes: list[int], code: int
) -> None:
    async with start(**limits) as service, service.both() as (first, second):
        for size in sizes:
            await second.send(bytes(size))
        assert str(code) in str(await ended(second))
        for size in sizes[:-1]:
            assert await first.receive() == bytes(size)
        await ended(first)


@pytest.mark.threat("T9")
async def test_only_so_much_waits_for_the_second_end(start: Start) -> None:
    async with start(early_messages=2) as service, service.open() as first:
        for _ in range(3):
            await first.send(b"knock")
        assert "1008" in str(await ended(first))


@pytest.mark.threat("T9")
async def test_a_tunnel_nobody_joins_is_closed(start: Start) -> None:
    async with start(waiting=0.1) as service, service.open() as first:
        await ended(first)
        assert await refusal(service.join(first.routing_id)) == "404"


@pytest.mark.threat("T9")
async def test_a_tunnel_is_closed_at_the_end_of_its_life_and_joining_outlives_the_wait(start: Start) -> None:
    async with start(waiting=0.3, life=0.6) as service, service.open() as first:
        opened = asyncio.get_running_loop().time()
        async with service.join(first.routing_id) as second:
            await ended(second)
            await ended(first)
        assert asyncio.get_running_loop().time() - opened > 0.5


@pytest.mark.threat("T9")
async def test_there_is_room_for_so_many_tunnels(start: Start) -> None:
    async with start(tunnels=1) as service:
        async with service.both():
            other = open_tunnel(new_url(service.base, bytes(16)), tls=service.tls)
            assert await refusal(other) == "503"
        async with service.open():
            pass


@pytest.mark.threat("T9")
async def test_an_address_may_come_so_often(start: Start) -> None:
    async with start(rate=2) as service:
        answers = [await refusal(service.join(b"\0\0\0")) for _ in range(3)]
        assert answers == ["404", "404", "429"]


async def test_who_is_refused_is_told_when_to_come_again(start: Start) -> None:
    answers = []
    other = f"/cable/new/{'0' * 32}"
    async with aiohttp.ClientSession() as session:
        for limits in ({"rate": 2}, {"tunnels": 1}):
            async with (
                start(**limits) as service,
                service.both(),
                session.get(service.url(other), headers=UPGRADE, ssl=service.tls) as response,
            ):
                told = {"Retry-After", "RateLimit", "RateLimit-Policy"} & {*response.headers}
                answers.append((response.status, {name: response.headers[name] for name in told}))
    assert answers == [
        (
            429,
            {
                "Retry-After": "30",
                "RateLimit": '"arrivals-of-address";r=0;t=30',
                "RateLimit-Policy": '"arrivals-of-address";q=2;w=60',
            },
        ),
        (503, {"Retry-After": "5"}),
    ]


@pytest.mark.threat("T9")
async def test_an_end_that_does_not_read_slows_the_other_down_instead_of_filling_memory(start: Start) -> None:
    async with start(size=1 << 30, messages=1 << 20) as service, service.both() as (first, second):
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 1 << 12:
                async with asyncio.timeout(0.5):
                    await first.send(bytes(1 << 16))
                sent += 1
        # socket buffers, the service's and the reader's own queue: megabytes, not the gigabyte allowed
        assert sent < 1 << 10
        for _ in range(sent):
            assert len(await second.receive()) == 1 << 16


async def test_an_end_that_never_reads_again_is_given_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("companion_push.tunnel_service.open_tunnel.SEND_TIMEOUT", 0.1)
    async with start(size=1 << 30, messages=1 << 20) as service, service.both() as (first, _second):
        closed = False
        while not closed:
            try:
                await first.send(bytes(1 << 16))
                await asyncio.sleep(0)  # a send that need not wait lets nothing else happen, such as the end
            except TransportError:
                closed = True
        assert (await ended(first)).reason is TransportReason.WENT_SILENT


async def test_when_the_service_stops_both_ends_are_told(start: Start) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with start() as service:
            ends = await stack.enter_async_context(service.both())
        for end in ends:
            assert str(await ended(end)).endswith("is being shut down, and closed the tunnel")


@pytest.mark.threat("T11")
async def test_logs_hold_counts_and_no_ids_and_no_messages(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with start() as service:
        async with service.both() as (first, second):
            await first.send(b"a message nobody logs")
            await second.receive()
            assert first.routing_id is not None
            routing_id = first.routing_id.hex()
        await refusal(service.join(b"\x0a\x0b\x0c"))
    text = json.dumps([[str(part) for part in vars(record).values()] for record in caplog.records]).lower()
    assert "1 messages of 21 bytes one way, 0 of 0 the other" in text
    assert TUNNEL_ID.hex() not in text
    assert f"/{routing_id}" not in text
    assert "nobody logs" not in text


async def test_nothing_is_kept_of_a_tunnel_that_has_ended(start: Start) -> None:
    kept: list[TunnelEndpoints] = []
    keep = TunnelEndpoints.__init__

    def remember(endpoints: TunnelEndpoints, *given: Any) -> None:
        keep(endpoints, *given)
        kept.append(endpoints)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TunnelEndpoints, "__init__", remember)
        async with start() as service:
            async with service.both() as (first, second):
                await first._websocket.close()
                await ended(second)
            async with service.open():
                pass
    (endpoints,) = kept
    assert len(endpoints.rendezvous) == 0
    assert not endpoints._open
