"""The program answers with a security key at /dev/hidrawN, its PIN typed at the terminal; the kernel's HID and python-fido2 are real."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from certificates import Certificate
from fido2.webauthn import AuthenticatorData

from companion_push.companion.security_key import FoundKey, SecurityKey, find_keys
from headless_passkey.hybrid.ctap2 import GetAssertionResponse, MakeCredentialResponse
from headless_passkey.hybrid.fido_url import RequestKind
from tests import screen
from tests.ble.lab.security_key import PluggedKey, plugged
from tests.companion import program
from tests.companion.device import Air, Device, assertion, creation, ok, transaction
from tests.companion.program import Program, at_terminal
from tests.companion.test_security_key import Someone, signed
from tests.companion.test_security_key import made as created
from tests.companion.virtual_key import VirtualKey
from tests.screen import Screen

PIN = "1234"
PATIENCE = 600.0  # seconds; a program takes ten to start on an emulated processor


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (program, screen):
        monkeypatch.setattr(module, "TIMEOUT", PATIENCE)


class Outside:
    """What the program needs around it."""

    def __init__(self, base: str, certificate: Certificate) -> None:
        self.base, self.certificate = base, certificate

    def words(self) -> list[object]:
        return [
            *("phone", "--security-key", "--url", "-", "--radio", "stdout", "--tunnel", f"300={self.base}"),
            *("--uv", "accept", "--ca", self.certificate.ca, "--json", "--timeout", PATIENCE),
        ]

    def device(self, kind: RequestKind) -> Device:
        tls, url = self.certificate.client_context(), transaction(kind, time=int(time.time()))
        return Device(Air(), self.base, tls, url)


@pytest.fixture
async def outside(tunnels: str, loopback_certificate: Certificate) -> AsyncIterator[Outside]:
    yield Outside(tunnels, loopback_certificate)
    await found(lambda keys: not keys)


async def found(enough: Callable[[list[FoundKey]], bool]) -> list[FoundKey]:
    """The keys that are seen, once they are as expected: the kernel takes its time."""
    async with asyncio.timeout(PATIENCE):
        while not enough(keys := await asyncio.to_thread(find_keys)):
            pass
        return keys


async def hear(phone: Program, device: Device) -> None:
    device.air.adverts.put_nowait(bytes.fromhex(await phone.line()))


async def type_pins(seen: Screen, *pins: str) -> None:
    for pin in pins:
        await seen.until("left):")
        seen.type(f"{pin}\n")


@pytest.mark.short
async def test_a_key_is_found_and_answers_through_the_kernel() -> None:
    with plugged(VirtualKey(pin=PIN)):
        (there,) = await found(lambda keys: len(keys) == 1)
        person = Someone([PIN, PIN])
        key = SecurityKey(found=there, person=person)
        assert (await key.info()).options["uv"]
        made = AuthenticatorData((await created(key)).auth_data)
        assert made.credential_data is not None
        answer = await signed(key)
        made.credential_data.public_key.verify(answer.auth_data + bytes(32), answer.signature)
    await found(lambda keys: not keys)


async def test_a_passkey_is_made_and_signs_in_at_a_key_with_a_pin(outside: Outside) -> None:
    virtual = VirtualKey(pin=PIN)
    with plugged(virtual):
        (key,) = await found(lambda keys: len(keys) == 1)
        assert key.name.startswith("Virtual Key (/dev/hidraw")
        device = outside.device(RequestKind.MAKE_CREDENTIAL)
        async with at_terminal(*outside.words(), stdin=f"{device.url}\n") as (phone, seen):
            asking = asyncio.create_task(device.ask(creation()))
            await hear(phone, device)
            await type_pins(seen, "4321", PIN)
            await phone.until_stage("phone-pin-wrong")
            made = AuthenticatorData(MakeCredentialResponse.parse(ok(await asking)).auth_data)
            assert await phone.ended() == 0
        assert made.credential_data is not None
        assert made.flags & made.FLAG.UV
        device = outside.device(RequestKind.GET_ASSERTION)
        async with at_terminal(*outside.words(), stdin=f"{device.url}\n") as (phone, seen):
            asking = asyncio.create_task(device.ask(assertion()))
            await hear(phone, device)
            await type_pins(seen, PIN)
            answer = GetAssertionResponse.parse(ok(await asking))
            assert await phone.ended() == 0
        made.credential_data.public_key.verify(answer.auth_data + bytes(32), answer.signature)


@pytest.mark.parametrize("ending", ["goodbye", "pulled out"])
async def test_a_key_that_waits_for_its_touch_is_told_that_nobody_waits_or_is_pulled_out(
    outside: Outside, ending: str
) -> None:
    virtual = VirtualKey(untouched=True)
    with plugged(virtual) as there:
        await found(lambda keys: len(keys) == 1)
        device = outside.device(RequestKind.MAKE_CREDENTIAL)
        async with at_terminal(*outside.words(), stdin=f"{device.url}\n") as (phone, _):
            hearing = asyncio.create_task(hear(phone, device))
            async with device.joined() as (tunnel, channel):
                await hearing
                await tunnel.send(channel.send(creation(user_verification=False)))
                await phone.until_stage("phone-touch")
                await _end(ending, there)
                if ending == "goodbye":
                    await tunnel.send(device.goodbye(channel))
                assert await phone.ended() == (7 if ending == "goodbye" else 4)
        assert await asyncio.to_thread(virtual.cancelled.wait, PATIENCE)
        assert virtual.credentials.credentials == ()


async def _end(ending: str, there: PluggedKey) -> None:
    if ending == "pulled out":
        await asyncio.to_thread(there.pull_out)


async def test_a_key_may_be_plugged_in_later_and_of_two_one_is_chosen(outside: Outside) -> None:
    device = outside.device(RequestKind.MAKE_CREDENTIAL)
    first, second = VirtualKey(), VirtualKey()
    async with at_terminal(*outside.words(), stdin=f"{device.url}\n") as (phone, seen):
        await phone.until_stage("phone-no-key")
        with plugged(first, "One"):
            await hear(phone, device)
            ok(await device.ask(creation(user_verification=False)))
            assert await phone.ended() == 0
    assert len(first.credentials.credentials) == 1
    device = outside.device(RequestKind.MAKE_CREDENTIAL)
    with plugged(first, "One"), plugged(second, "Two"):
        keys = await found(lambda keys: len(keys) == 2)
        number = [each.name.startswith("Two") for each in keys].index(True) + 1
        async with at_terminal(*outside.words(), stdin=f"{device.url}\n") as (phone, seen):
            await seen.until("Number, or n to decline:")
            seen.type(f"{number}\n")
            await hear(phone, device)
            ok(await device.ask(creation(user_verification=False)))
            assert await phone.ended() == 0
    assert len(second.credentials.credentials) == 1
