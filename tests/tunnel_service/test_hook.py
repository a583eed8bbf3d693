"""The hook that wakes phones without a connection: whom it is called for, what the call holds, and what its refusal does."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from certificates import Certificate
from yarl import URL

from companion_push.companion.waking_client import open_waking
from companion_push.tunnel_service import hook
from companion_push.tunnel_service.app import _TUNNELS, make_app
from companion_push.tunnel_service.contacts import ContactLimits, KnownContacts
from companion_push.waking import SECRET_SIZE, contact_id
from headless_passkey.errors import UsageError
from headless_passkey.hybrid.tunnel_url import connect_url, contact_headers, contact_url
from headless_passkey.net.tunnel import Tunnel, TunnelClosed, TunnelRefused, open_tunnel
from headless_passkey.text.base64url import from_base64url
from tests.ports import reserved_port
from tests.programs import run
from tests.relay.account_service import AccountService, account_service, status
from tests.tunnel_service.test_memory import UPGRADE

SECRET = bytes(SECRET_SIZE)
CONTACT = contact_id(SECRET)
PAYLOAD = b"client payload"


@dataclass
class Bench:
    """A tunnel service with a hook, and who takes its calls."""

    app: web.Application
    base: str
    certificate: Certificate
    service: AccountService

    def device(self, contact: bytes = CONTACT) -> contextlib.AbstractAsyncContextManager[Tunnel]:
        """A linked device asks for its phone."""
        tls = self.certificate.client_context()
        return open_tunnel(contact_url(self.base, contact), headers=contact_headers(PAYLOAD), tls=tls)

    async def register(self) -> None:
        """The phone registers, and leaves: it is known then, and has no connection."""
        async with open_waking(self.base, tls=self.certificate.client_context()) as waking:
            await waking.register([SECRET])
        phones = self.app[_TUNNELS].phones
        assert phones is not None
        for phone in tuple(phones._phones):
            phone.end(1001)
        while len(phones):  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.001)


@pytest.fixture
async def bench(loopback_certificate: Certificate, tmp_path: Path) -> AsyncIterator[Bench]:
    async with account_service() as service:
        known = KnownContacts(tmp_path / "contacts", ContactLimits(requests_per_contact=1e6))
        app = make_app(contacts=known, hook=service.webhook())
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=loopback_certificate.server_context())
            await site.start()
            base = f"wss://127.0.0.1:{runner.addresses[0][1]}"
            yield Bench(app, base, loopback_certificate, service)
        finally:
            await runner.cleanup()


@pytest.mark.threat("T11")
async def test_a_phone_without_a_connection_comes_because_the_hook_was_called(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await bench.register()
    for _ in range(2):
        async with bench.device() as device:
            told = await bench.service.next()
            assert told.content["type"] == "phone.contacted"
            data = {name: from_base64url(value) for name, value in told.content["data"].items()}
            assert (data["contact_id"], data["client_payload"]) == (CONTACT, PAYLOAD)
            way = connect_url(bench.base, data["routing_id"], data["tunnel_id"])
            async with open_tunnel(way, tls=bench.certificate.client_context()) as phone:
                await device.send(b"message 1")
                assert await phone.receive() == b"message 1"
                await phone.send(b"message 2")
                assert await device.receive() == b"message 2"
            for secret in (CONTACT, data["tunnel_id"]):
                assert secret.hex() not in caplog.text.lower()
        phones = bench.app[_TUNNELS].phones
        assert phones is not None
        assert phones._called is not None
        while phones._called.woken:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.001)


@pytest.mark.threat("T9")
@pytest.mark.parametrize("answer", [301, 400, 410, 500])
async def test_a_call_that_is_not_taken_ends_the_tunnel_and_kills_no_link(bench: Bench, answer: int) -> None:
    await bench.register()
    bench.service.answers.append(status(answer))
    async with bench.device() as device:
        with pytest.raises(TunnelClosed):
            await device.receive()
    async with bench.device() as device:  # it is called again
        assert (await bench.service.next()).content["type"] == "phone.contacted"


async def test_a_hook_that_is_away_is_a_call_that_is_not_taken(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.register()
    phones = bench.app[_TUNNELS].phones
    assert phones is not None
    assert phones.hook is not None
    nobody = bench.service.webhook(url=f"http://127.0.0.1:{reserved_port()}/hook")
    away = hook.WakeHook(nobody)
    await phones.hook.close()
    monkeypatch.setattr(phones, "hook", away)
    async with bench.device() as device:
        with pytest.raises(TunnelClosed):
            await device.receive()
    await away.close()


async def test_the_hook_is_called_for_known_phones_without_a_connection_only(bench: Bench) -> None:
    with pytest.raises(TunnelRefused) as unknown:
        async with bench.device():
            pytest.fail("opened")
    assert unknown.value.status == 410
    async with open_waking(bench.base, tls=bench.certificate.client_context()) as waking:
        await waking.register([SECRET])
        async with bench.device():
            assert (await waking.wake()).client_payload == PAYLOAD
    assert bench.service.calls.empty()


@pytest.mark.threat("T16")
async def test_so_many_requests_wait_for_one_phone_and_no_more(bench: Bench) -> None:
    await bench.register()
    async with contextlib.AsyncExitStack() as devices:
        for _ in range(3):
            await devices.enter_async_context(bench.device())
            await bench.service.next()
        with pytest.raises(TunnelRefused) as refused:
            async with bench.device():
                pytest.fail("opened")
        assert refused.value.status == 503


@pytest.mark.threat("T16")
async def test_so_many_requests_wait_and_no_more_where_all_come_at_once(bench: Bench) -> None:
    await bench.register()
    url = URL(contact_url(bench.base, CONTACT))
    head = "".join(f"{name}: {value}\r\n" for name, value in contact_headers(PAYLOAD).items())
    tls, count = bench.certificate.client_context(), 20
    connections = [await asyncio.open_connection(url.host, url.port, ssl=tls) for _ in range(count)]
    try:
        for _, writer in connections:  # the service reads all of them in one turn of the event loop
            writer.write(f"GET {url.path} HTTP/1.1\r\n{head}{UPGRADE}".encode())
        answers = [await reader.readuntil(b"\r\n\r\n") for reader, _ in connections]
        assert Counter(answer[9:12] for answer in answers) == {b"101": 3, b"503": count - 3}
        for _ in range(3):
            await bench.service.next()
        assert bench.service.calls.empty()
    finally:
        for _, writer in connections:
            writer.transport.abort()


def test_an_application_is_made_without_a_running_loop(tmp_path: Path) -> None:
    known = KnownContacts(tmp_path / "contacts", ContactLimits())
    assert make_app(contacts=known, hook=AccountService(url="https://hook.example").webhook())


def test_a_hook_needs_contacts() -> None:
    with pytest.raises(UsageError, match="contacts"):
        make_app(hook=AccountService(url="https://hook.example").webhook())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--wake-hook", "https://hook.example"), "--wake-hook needs --wake-hook-secret"),
        (("--wake-hook-secret", "FILE"), "need --wake-hook"),
        (
            ("--wake-hook", "https://hook.example", "--wake-hook-secret", "FILE"),
            "--wake-hook needs --contacts",
        ),
        (("--wake-hook", "http://hook.example", "--wake-hook-secret", "FILE"), "expected https"),
    ],
)
async def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(AccountService().secret)
    secret.chmod(0o600)
    named = [str(secret) if option == "FILE" else option for option in options]
    ended, _, stderr = await run("companion_push", "tunnel-service", "--listen", "127.0.0.1:0", *named)
    assert ended == 2
    assert said in stderr
