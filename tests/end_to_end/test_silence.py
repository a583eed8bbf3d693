"""The programs when one of them, or the network to it, falls silent without a word: the others hear of it."""

import json
import secrets
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Certificate

from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from program_parts.base64url import base64url
from tests.end_to_end.black_box import Running, running, write_json
from tests.end_to_end.hostile_device import HostileDevice
from tests.end_to_end.hostile_phone import HostilePhone
from tests.tunnel_service.between import Between

SILENCE = 12  # seconds: a pong may take half of it, and more than that no machine should stand still


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The tunnel service as a process of its own, and a proxy that may swallow what goes through it."""

    base: str
    process: Running
    hole: Between
    certificate: Certificate
    folder: Path

    @property
    def through_the_hole(self) -> str:
        return f"wss://localhost:{self.hole.port}"

    async def shut_down(self) -> None:
        """Stop it, and its tunnels with it."""
        self.process.signal(signal.SIGTERM)
        assert await self.process.status() == 0

    def device(self, *more: object) -> list[object]:
        options = {"challenge": base64url(secrets.token_bytes(32)), "rpId": "example.com"}
        return [
            *("headless-passkey", "sign-in", "--options", write_json(self.folder, options), "--json"),
            *("--origin", "https://login.example.com", "--delivery", "stdout", "--radio", "stdin"),
            *("--tunnel", f"300={self.base}", "--ca", self.certificate.ca, *more),
        ]

    def phone(self, *more: object) -> list[object]:
        return [
            *("companion-push", "phone", "--url", "-", "--radio", "stdout", "--uv", "accept"),
            *("--tunnel", f"300={self.base}", "--credentials", self.folder / "passkeys.json"),
            *("--ca", self.certificate.ca, *more),
        ]


@pytest.fixture
async def service(loopback_certificate: Certificate, tmp_path: Path) -> AsyncIterator[Service]:
    words = ("--listen", "localhost:0", "--silence", SILENCE, "--drain", 0)
    tls = ("--cert", loopback_certificate.cert, "--key", loopback_certificate.key)
    async with running("companion-push", "tunnel-service", *words, *tls) as process:
        base = await process.line()
        async with Between.to(int(base.rpartition(":")[2])) as hole:
            yield Service(
                base=base, process=process, hole=hole, certificate=loopback_certificate, folder=tmp_path
            )


@pytest.mark.threat("T9")
async def test_a_device_hears_of_a_phone_that_vanished_while_its_user_was_asked(service: Service) -> None:
    async with running(*service.device()) as device:
        phone = HostilePhone(
            FidoUrl.parse(await device.line()), service.through_the_hole, service.certificate.client_context()
        )
        async with phone.advertising() as (advert, call):
            await device.give(advert)
            await call.connect()
            await call.request()
            service.hole.swallows = True
            assert await device.status() == 4
    error = device.error()
    assert (error["error"], error["reason"]) == ("TunnelClosed", "went-silent")
    assert error["message"].startswith("the tunnel service localhost hears nothing more of the other end")
    assert error["advice"].startswith("try again")


async def test_a_device_that_joins_a_phone_that_was_stopped_says_why_it_listens_on(service: Service) -> None:
    async with running(*service.device()) as device, running(*service.phone()) as phone:
        await phone.give(await device.line() + "\n")
        advert = await phone.line()
        phone.signal(signal.SIGSTOP)
        await device.give(advert + "\n")
        failed = json.loads(await device.until_said("attempt-failed"))
        assert failed["why"].startswith("the tunnel service localhost hears nothing more of the other end")
        phone.signal(signal.SIGKILL)


@pytest.mark.threat("T9")
async def test_a_phone_hears_of_a_device_that_vanished(service: Service) -> None:
    vanishing = HostileDevice(
        service.through_the_hole, service.certificate.client_context(), RequestKind.GET_ASSERTION
    )
    async with running(*service.phone("--json")) as phone:
        await phone.give(vanishing.url)
        async with vanishing.connected(await phone.line()):
            service.hole.swallows = True
            assert await phone.status() == 4
    assert phone.error()["reason"] == "went-silent", phone.error()


async def test_a_phone_hears_of_a_service_that_was_stopped(service: Service) -> None:
    """By its own pings, which come after 20 s and are waited for 10 s."""
    device = HostileDevice(service.base, service.certificate.client_context(), RequestKind.GET_ASSERTION)
    async with running(*service.phone("--json", "--timeout", "290")) as phone:
        await phone.give(device.url)
        await phone.line()  # it advertises, and so its tunnel is open
        service.process.signal(signal.SIGSTOP)
        assert await phone.status(within=120) == 4
        service.process.signal(signal.SIGCONT)
    assert phone.error()["reason"] == "went-silent", phone.error()
    assert "does not answer any more" in phone.error()["message"]


# A service that is shut down


async def test_a_device_hears_that_the_service_was_shut_down_and_not_that_the_phone_hung_up(
    service: Service,
) -> None:
    async with running(*service.device()) as device:
        phone = HostilePhone(
            FidoUrl.parse(await device.line()), service.base, service.certificate.client_context()
        )
        async with phone.advertising() as (advert, call):
            await device.give(advert)
            await call.connect()
            await call.request()
            await service.shut_down()
            assert await device.status() == 4
    error = device.error()
    assert (error["error"], error["reason"]) == ("TunnelClosed", "unreachable")
    assert error["message"].startswith("the tunnel service localhost is being shut down, and closed")


async def test_a_phone_hears_that_the_service_was_shut_down_or_that_the_device_hung_up(
    service: Service,
) -> None:
    trust = service.certificate.client_context()
    for leaves, said in (
        (True, "the device hung up before it was answered"),
        (False, "the tunnel service localhost is being shut down, and closed the tunnel"),
    ):
        device = HostileDevice(service.base, trust, RequestKind.GET_ASSERTION)
        async with running(*service.phone("--json")) as phone:
            await phone.give(device.url)
            async with device.connected(await phone.line()):
                if not leaves:
                    await service.shut_down()
                    assert await phone.status() == 4
            assert await phone.status() == 4
        assert phone.error()["message"].startswith(said), phone.error()
