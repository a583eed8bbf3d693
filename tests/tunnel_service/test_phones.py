"""Linked phones at the tunnel service: registered, woken, forgotten; over real websockets with TLS."""

import asyncio
import contextlib
import hashlib
import logging
import os
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from certificates import Certificate
from multidict import CIMultiDict

from companion_push.tunnel_service.app import _TUNNELS, TunnelEndpoints, drain, make_app
from companion_push.tunnel_service.contacts import KEPT, ContactLimits, KnownContacts
from companion_push.tunnel_service.phones import NOTED, Phones
from companion_push.tunnel_service.phones import Phone as Connection
from companion_push.tunnel_service.rendezvous import Limits
from companion_push.waking import (
    PATH,
    SUBPROTOCOL,
    Forget,
    Forgotten,
    Register,
    Registered,
    Wake,
    contact_id,
    encode_waking,
    parse_from_service,
)
from headless_passkey.errors import HeadlessPasskeyError
from headless_passkey.hybrid.tunnel_url import connect_url, contact_url
from headless_passkey.net.tunnel import Tunnel, open_tunnel
from http_serving.log_limit import MAX_LINES
from tests.loop_clock import LoopClock
from tests.open_things import Handlers, Interruption, cancel_everywhere, waiting

SECRET, OTHER, THIRD, FOURTH = bytes(range(32)), bytes(32), bytes([3]) * 32, bytes([4]) * 32
PAYLOAD = bytes(range(33))
PATIENCE = 60.0  # seconds: a safety net, so that a hang is a failure


@dataclass(frozen=True, kw_only=True)
class Service:
    base: str  # wss://localhost:port
    tls: ssl.SSLContext
    app: web.Application
    session: aiohttp.ClientSession
    # which stay open until the end
    devices: list[aiohttp.ClientWebSocketResponse] = field(default_factory=list)

    @property
    def endpoints(self) -> TunnelEndpoints:
        return self.app[_TUNNELS]

    @asynccontextmanager
    async def from_address(self, address: str) -> AsyncIterator["Service"]:
        """The same service, called from another address of this machine."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(address, 0))) as session:
            yield replace(self, session=session)

    @asynccontextmanager
    async def phone(self, *secrets: bytes) -> AsyncIterator["Phone"]:
        async with self.session.ws_connect(
            self.base + PATH, protocols=(SUBPROTOCOL,), ssl=self.tls
        ) as websocket:
            phone = Phone(websocket)
            if secrets:
                assert await phone.asks(Register(secrets=secrets)) == Registered()
            yield phone

    async def contact(
        self,
        secret: bytes = SECRET,
        *,
        payload: str | None = PAYLOAD.hex(),
        signal: bool = False,
        protocols: Sequence[str] = ("fido.cable",),
    ) -> tuple[int, aiohttp.ClientWebSocketResponse | None]:
        """The status of the answer, and the websocket where there is one; it closes with the service."""
        headers = {} if payload is None else {"X-caBLE-Client-Payload": payload}
        if signal:
            headers["X-caBLE-Signal-Connection"] = "true"
        try:
            websocket = await self.session.ws_connect(
                contact_url(self.base, contact_id(secret)),
                protocols=protocols,
                headers=headers,
                ssl=self.tls,
            )
        except aiohttp.WSServerHandshakeError as error:
            return error.status, None
        self.devices.append(websocket)
        return 101, websocket

    async def reached(self, *, signal: bool = False) -> aiohttp.ClientWebSocketResponse:
        status, websocket = await self.contact(signal=signal)
        assert status == 101
        assert websocket is not None
        return websocket

    def joins(self, wake: Wake) -> AbstractAsyncContextManager[Tunnel]:
        return open_tunnel(connect_url(self.base, wake.routing_id, wake.tunnel_id), tls=self.tls)


@dataclass(frozen=True)
class Phone:
    websocket: aiohttp.ClientWebSocketResponse

    async def asks(self, message: Register | Forget) -> object:
        await self.websocket.send_str(encode_waking(message))
        return parse_from_service(await self.websocket.receive_str(timeout=PATIENCE))

    async def woken(self) -> Wake:
        wake = parse_from_service(await self.websocket.receive_str(timeout=PATIENCE))
        assert isinstance(wake, Wake)
        return wake

    async def closed(self) -> int | None:
        message = await self.websocket.receive(timeout=PATIENCE)
        assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
        return self.websocket.close_code


Start = Callable[..., AbstractAsyncContextManager[Service]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  the service tells nobody
            await asyncio.sleep(0.001)


@pytest.fixture
def start(loopback_certificate: Certificate, tmp_path: Path) -> Start:
    """`async with start(phones=1) as service`: a tunnel service that wakes phones, with these limits of contacts."""

    @asynccontextmanager
    async def started(handlers: Handlers | None = None, **limits: float) -> AsyncIterator[Service]:
        known = KnownContacts(tmp_path / "contacts", ContactLimits(**limits))  # type: ignore[arg-type]
        app = make_app(Limits(), contacts=known)
        if handlers is not None:
            app.on_response_prepare.append(waiting)
        runner = web.AppRunner(
            app if handlers is None else handlers.added_to(app), access_log=None, shutdown_timeout=1
        )
        await runner.setup()
        try:
            await web.TCPSite(
                runner, "127.0.0.1", 0, ssl_context=loopback_certificate.server_context()
            ).start()
            async with aiohttp.ClientSession() as session:
                service = Service(
                    base=f"wss://localhost:{runner.addresses[0][1]}",
                    tls=loopback_certificate.client_context(),
                    app=app,
                    session=session,
                )
                yield service
                # who does not read its websocket does not notice that the session ends
                await asyncio.gather(*(device.close() for device in service.devices))
        finally:
            await runner.cleanup()

    return started


async def test_a_contact_request_wakes_the_phone_which_joins_its_tunnel(start: Start) -> None:
    async with start() as service, service.phone(OTHER, SECRET) as phone:
        device = await service.reached()
        assert "X-caBLE-Signal-Connection" not in device._response.headers
        assert device.protocol == "fido.cable"
        await device.send_bytes(b"message 1")  # before the phone is there
        wake = await phone.woken()
        assert wake.client_payload == PAYLOAD
        async with service.joins(wake) as tunnel:
            assert await tunnel.receive() == b"message 1"
            await tunnel.send(b"message 2")
            assert await device.receive_bytes() == b"message 2"


async def test_the_connect_signal_comes_first_and_only_where_it_was_asked_for(start: Start) -> None:
    async with start() as service, service.phone(SECRET) as phone:
        device = await service.reached(signal=True)
        assert device._response.headers["X-caBLE-Signal-Connection"] == "true"
        async with service.joins(await phone.woken()) as tunnel:
            await tunnel.send(b"message 2")
            assert await device.receive_bytes() == b"\0"
            assert await device.receive_bytes() == b"message 2"


async def test_a_wake_gives_its_tunnel_to_one_end_only(start: Start) -> None:
    async with start() as service, service.phone(SECRET) as phone:
        await service.reached()
        wake = await phone.woken()
        async with service.joins(wake):
            url = connect_url(service.base, wake.routing_id, wake.tunnel_id)
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await service.session.ws_connect(url, protocols=("fido.cable",), ssl=service.tls)
            assert refused.value.status == 404


async def test_a_tunnel_whose_device_has_left_is_not_there_for_the_phone(start: Start) -> None:
    async with start() as service, service.phone(SECRET) as phone:
        device = await service.reached()
        wake = await phone.woken()
        await device.close()
        await until(lambda: not (len(service.endpoints)))
        url = connect_url(service.base, wake.routing_id, wake.tunnel_id)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await service.session.ws_connect(url, protocols=("fido.cable",), ssl=service.tls)
        assert refused.value.status == 404


async def test_unknown_is_410_and_not_there_is_503(start: Start) -> None:
    async with start() as service:
        assert (await service.contact())[0] == 410
        async with service.phone(SECRET):
            assert (await service.contact(OTHER))[0] == 410
            assert (await service.contact())[0] == 101
        await until(lambda: not (len(service.endpoints.phones or ())))
        assert (await service.contact())[0] == 503
    async with start() as service:  # a restart has forgotten nothing
        assert (await service.contact())[0] == 503
        assert (await service.contact(OTHER))[0] == 410


async def test_what_the_phone_forgets_is_410_at_once_and_after_a_restart(start: Start) -> None:
    async with start() as service, service.phone(SECRET, OTHER) as phone:
        assert await phone.asks(Forget(secrets=(SECRET,))) == Forgotten()
        assert (await service.contact())[0] == 410
        assert (await service.contact(OTHER))[0] == 101
    async with start() as service:
        assert (await service.contact())[0] == 410


async def test_another_connection_of_the_phone_may_forget_for_it(start: Start) -> None:
    async with start() as service, service.phone(SECRET), service.phone() as command:
        assert await command.asks(Forget(secrets=(SECRET,))) == Forgotten()
        assert (await service.contact())[0] == 410


async def test_the_connection_that_registered_last_is_woken_and_the_other_ones_end_changes_nothing(
    start: Start,
) -> None:
    async with start() as service:
        async with service.phone(SECRET), service.phone(SECRET) as newer:
            await service.reached()
            await newer.woken()
        async with service.phone(SECRET) as older, service.phone(SECRET) as newer:
            await older.websocket.close()
            await until(lambda: not (len(service.endpoints.phones or ()) > 1))
            await service.reached()
            await newer.woken()


async def test_a_connection_that_only_registered_leaves_the_contact_to_the_one_that_waits(
    start: Start,
) -> None:
    """A link is registered when it is made, over a connection of its own, while another one may have it already."""
    async with start() as service, service.phone(SECRET) as waits:
        async with service.phone(SECRET, SECRET):
            pass
        await until(lambda: len(service.endpoints.phones or ()) == 1)
        assert (await service.contact())[0] == 101
        await waits.woken()


@pytest.mark.threat("T13")
@pytest.mark.parametrize("secret", [SECRET, OTHER], ids=["known", "unknown"])
async def test_requests_for_a_contact_id_are_limited_whether_it_is_known_or_not(
    start: Start, secret: bytes
) -> None:
    async with start(requests_per_contact=2) as service, service.phone(SECRET):
        answers = [(await service.contact(secret))[0] for _ in range(3)]
        assert answers[2] == 429
        assert 429 not in answers[:2]


@pytest.mark.threat("T13")
async def test_so_many_requests_wait_for_a_phone_until_it_joins_one(start: Start) -> None:
    async with start(waiting_per_contact=2) as service, service.phone(SECRET) as phone:
        assert [(await service.contact())[0] for _ in range(3)] == [101, 101, 503]
        async with service.joins(await phone.woken()):
            assert (await service.contact())[0] == 101


@pytest.mark.parametrize(
    "payload",
    [None, "", "0", "zz", "00" * 1025],
    ids=["none", "empty", "half a byte", "no digits", "too long"],
)
@pytest.mark.parametrize("secret", [SECRET, OTHER], ids=["known", "unknown"])
async def test_a_request_without_a_client_payload_is_400_whoever_it_is_for(
    start: Start, payload: str | None, secret: bytes
) -> None:
    async with start() as service, service.phone(SECRET):
        assert (await service.contact(secret, payload=payload))[0] == 400


async def test_without_a_folder_of_contacts_both_paths_are_404(loopback_certificate: Certificate) -> None:
    runner = web.AppRunner(make_app(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession() as session:
            for path in (PATH, "/cable/contact/AAAA"):
                async with session.get(base + path) as answer:
                    assert answer.status == 404
    finally:
        await runner.cleanup()


async def test_a_phones_upgrade_is_read_as_that_of_a_tunnels_end(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    subprotocols = [("Sec-WebSocket-Protocol", name) for name in ("of-a-stranger", SUBPROTOCOL)]
    async with start() as service:
        for version, status, name, value in (
            ("13", 101, "Sec-WebSocket-Protocol", SUBPROTOCOL),
            ("6", 400, "Sec-WebSocket-Version", "13"),
        ):
            asked = CIMultiDict([*(headers | {"Sec-WebSocket-Version": version}).items(), *subprotocols])
            url = service.base.replace("wss", "https") + PATH
            async with service.session.get(url, headers=asked, ssl=service.tls) as answer:
                assert (answer.status, answer.headers[name]) == (status, value)
                answer.close()
    assert "of-a-stranger" not in caplog.text


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("{}", 1008),
        ('{"type": "wake"}', 1008),
        ('{"type": "register", "secrets": []}', 1008),
        ("x" * 9000, 1009),
        (b"binary", 1003),
    ],
    ids=["nothing", "what the service says", "no secrets", "too long", "binary"],
)
async def test_a_phone_that_breaks_a_rule_is_closed(start: Start, said: str | bytes, code: int) -> None:
    async with start() as service, service.phone(SECRET) as phone:
        if isinstance(said, str):
            await phone.websocket.send_str(said)
        else:
            await phone.websocket.send_bytes(said)
        assert await phone.closed() == code
        await until(lambda: not (len(service.endpoints.phones or ())))


@pytest.mark.threat("T13")
async def test_a_phone_that_says_too_much_is_closed(start: Start) -> None:
    async with start() as service, service.phone() as phone:
        for _ in range(61):
            with contextlib.suppress(ConnectionError, aiohttp.ClientError):
                await phone.websocket.ping()
        while (message := await phone.websocket.receive(timeout=PATIENCE)).type is not WSMsgType.CLOSE:
            assert message.type not in (WSMsgType.CLOSED, WSMsgType.ERROR)
        assert message.data == 1008


@pytest.mark.threat("T13")
async def test_one_phone_has_64_contact_ids_at_the_most(start: Start) -> None:
    async with start(new_per_address=100) as service:
        secrets = [bytes([number]) * 32 for number in range(65)]
        async with service.phone(*secrets[:64]) as phone:
            await phone.websocket.send_str(encode_waking(Register(secrets=(secrets[64],))))
            assert await phone.closed() == 1008


@pytest.mark.threat("T13")
async def test_no_room_for_a_new_contact_id_is_try_again_later(start: Start) -> None:
    async with start(contacts=1) as service, service.phone(SECRET), service.phone() as phone:
        await phone.websocket.send_str(encode_waking(Register(secrets=(OTHER,))))
        assert await phone.closed() == 1013


@pytest.mark.threat("T13")
@pytest.mark.parametrize("limit", ["phones", "phones_per_address"])
async def test_so_many_phones_are_there_at_a_time(start: Start, limit: str) -> None:
    async with start(**{limit: 1}) as service, service.phone(SECRET):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with service.phone():
                pass
        assert refused.value.status == 503


@pytest.mark.threat("T17")
async def test_where_all_phones_are_there_the_address_with_most_gives_way_to_one_with_few(
    start: Start,
) -> None:
    async with (
        start(phones=3) as service,
        service.from_address("127.0.0.2") as elsewhere,
        service.phone(SECRET),
        service.phone(OTHER),
        service.phone(THIRD) as last,
        elsewhere.phone(FOURTH),
    ):
        assert await last.closed() == 1013
        for caller in (service, elsewhere):  # two are of one address and one of the other: it stays so
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with caller.phone():
                    pass
            assert refused.value.status == 503
        statuses = [(await service.contact(each))[0] for each in (SECRET, OTHER, THIRD, FOURTH)]
        assert statuses == [101, 101, 503, 101]


@pytest.mark.threat("T17")
@pytest.mark.parametrize("useless", [(), (OTHER,)], ids=["registered nothing", "registered anew by another"])
async def test_of_the_address_with_most_the_phone_goes_that_would_be_woken_for_nothing(
    start: Start, useless: tuple[bytes, ...]
) -> None:
    async with (
        start(phones=3) as service,
        service.from_address("127.0.0.2") as elsewhere,
        service.phone(SECRET),
        service.phone(*useless) as goes,
        service.phone(OTHER),
        elsewhere.phone(THIRD),
    ):
        assert await goes.closed() == 1013
        assert [(await service.contact(each))[0] for each in (SECRET, OTHER, THIRD)] == [101] * 3


@pytest.mark.threat("T17")
async def test_eight_addresses_do_not_keep_the_phones_of_others_out(tmp_path: Path) -> None:
    phones = Phones(KnownContacts(tmp_path / "contacts", ContactLimits()), silence=20)

    def come(address: str) -> bool:
        room = phones._make_room(address)
        if room:
            phones._phones[Connection(neighbourhood=address)] = None
        return room

    hostile = [f"198.51.100.{number}" for number in range(8)]
    assert all(come(address) for address in hostile for _ in range(32))
    others = [f"192.0.2.{number}" for number in range(100)]
    for address in others:
        assert come(address)
        assert not any(come(each) for each in hostile * 5)  # those that were put out come again
    assert len(phones) == 256
    there = Counter(each.neighbourhood for each in phones._phones)
    assert [there[address] for address in others] == [1] * 100


async def test_a_device_does_not_wait_for_a_phone_whose_connection_is_being_closed(start: Start) -> None:
    async with start() as service, service.phone(SECRET) as phone:
        assert service.endpoints.phones is not None
        (here,) = service.endpoints.phones._phones
        here.end(1001)
        for _ in range(5):
            await asyncio.sleep(0)
        assert (await service.contact())[0] == 503
        assert await phone.closed() == 1001


@pytest.mark.parametrize("protocols", [(), ("fido.cable",)], ids=["none", "that of tunnels"])
async def test_a_phone_names_its_subprotocol(start: Start, protocols: Sequence[str]) -> None:
    async with start() as service:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await service.session.ws_connect(service.base + PATH, protocols=protocols, ssl=service.tls)
        assert refused.value.status == 400


async def test_a_plain_request_for_the_phones_path_is_400(start: Start) -> None:
    async with start() as service:
        url = service.base.replace("wss", "https") + PATH
        headers = {"Sec-WebSocket-Protocol": SUBPROTOCOL}
        async with service.session.get(url, headers=headers, ssl=service.tls) as answer:
            assert answer.status == 400


async def test_a_service_that_stops_wakes_no_phone_and_closes_their_connections(start: Start) -> None:
    async with start() as service, service.phone(SECRET) as phone:
        await drain(service.app, 1)
        assert (await service.contact())[0] == 503
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with service.phone():
                pass
        assert refused.value.status == 503
        await service.endpoints.close()
        assert await phone.closed() == 1001


async def test_a_phone_that_is_there_is_known_however_long_ago_it_registered(
    start: Start, tmp_path: Path
) -> None:
    clock = LoopClock(asyncio.get_running_loop())
    async with start() as service, service.phone(SECRET) as phone:
        (file,) = (tmp_path / "contacts").iterdir()
        old = time.time() - KEPT
        os.utime(file, (old, old))
        assert (await service.contact())[0] == 101
        await phone.woken()
        clock.passes(NOTED)
        await phone.websocket.ping()
        await until(lambda: file.stat().st_mtime > old)
        await phone.websocket.close()
        await until(lambda: not len(service.endpoints.phones or ()))
        assert (await service.contact())[0] == 503


async def test_a_folder_that_does_not_answer_deletes_no_link(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with start() as service, service.phone(SECRET), service.phone() as phone:
        folder = tmp_path / "contacts"
        folder.rename(tmp_path / "elsewhere")
        folder.touch()
        assert (await service.contact())[0] == 503
        await phone.websocket.send_str(encode_waking(Register(secrets=(OTHER,))))
        assert await phone.closed() == 1011
        folder.unlink()
    assert hashlib.sha256(contact_id(SECRET)).hexdigest() not in caplog.text


@pytest.mark.threat("T11")
async def test_a_folder_that_does_not_answer_fills_no_log(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with start() as service:
        folder = tmp_path / "contacts"
        folder.rmdir()
        folder.touch()
        for number in range(MAX_LINES + 5):
            assert (await service.contact(bytes([number]) * 32))[0] == 503
        lines = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(lines) == MAX_LINES
        await service.endpoints.close()
        folder.unlink()
    assert "5 more times within 60 s the folder of contacts did not answer" in caplog.text


@pytest.mark.threat("T11")
async def test_the_log_holds_no_id(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with start() as service, service.phone(SECRET) as phone:
        device = await service.reached()
        wake = await phone.woken()
        async with service.joins(wake) as tunnel:
            await tunnel.send(b"message 2")
            await device.receive_bytes()
        await phone.asks(Forget(secrets=(SECRET,)))
        await service.contact()
    said = caplog.text.lower()
    for secret in (SECRET, contact_id(SECRET), wake.tunnel_id, PAYLOAD):
        assert secret.hex() not in said
    assert "companion_push.tunnel_service" in said


@pytest.mark.parametrize("again", [None, 1, 2], ids=["once", "and at once", "and two later"])
@pytest.mark.parametrize("which", ["/cable/phone", "/cable/contact/"], ids=["phone", "contact request"])
async def test_a_handler_cancelled_everywhere_leaves_nothing(
    start: Start, which: str, again: int | None
) -> None:
    handlers = Handlers()
    async with start(handlers, requests_per_contact=1e6, new_per_address=1e6) as service:

        async def one(interruption: Interruption) -> Interruption:
            handlers.interrupt(which, interruption)
            with contextlib.suppress(
                HeadlessPasskeyError, aiohttp.ClientError, ConnectionError, TypeError, AssertionError
            ):
                await a_wake(service)
            handlers.interrupt(which, Interruption(at=0))
            return interruption

        await one(Interruption(at=0))
        assert await cancel_everywhere(one, again=(again,)) >= 1
        await until(lambda: not (len(service.endpoints) or len(service.endpoints.phones or ())))
        phones = service.endpoints.phones
        assert phones is not None
        assert not phones._by_contact


async def a_wake(service: Service) -> None:
    async with service.phone(SECRET) as phone:
        await phone.asks(Forget(secrets=(OTHER,)))
        device = await service.reached()
        try:
            wake = await phone.woken()
            async with service.joins(wake) as tunnel:
                await tunnel.send(b"message 2")
                await device.receive_bytes()
        finally:
            await device.close()
