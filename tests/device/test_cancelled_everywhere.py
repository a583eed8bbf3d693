"""Cancelled at every point where it waits, once and twice: nothing stays open."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from certificates import Certificate

from headless_passkey.errors import HeadlessPasskeyError
from headless_passkey.hybrid.tunnel_url import new_url
from headless_passkey.net.tunnel import open_tunnel
from headless_passkey.radio.bleak import BleakRadio
from headless_passkey.stages import Stage
from headless_passkey.webauthn.options import Credential
from tests.companion.device import tunnel_service
from tests.device.bluetooth import Bluetooth
from tests.device.test_ceremony import Air, Bench, Carrier
from tests.loop_clock import LoopClock
from tests.open_things import Interruption, cancel_everywhere, interrupted

AGAIN = (None, 1, 2, 3, 5)  # points later


async def test_a_tunnel(loopback_certificate: Certificate) -> None:
    tls = loopback_certificate.client_context()
    number = iter(range(1 << 30))
    async with tunnel_service(loopback_certificate) as base:

        async def one(interruption: Interruption) -> Interruption:
            async def use() -> None:
                async with open_tunnel(new_url(base, next(number).to_bytes(16, "big")), tls=tls) as tunnel:
                    await tunnel.send(b"to whoever comes")
                    async with asyncio.timeout(0.01):
                        await tunnel.receive()

            with contextlib.suppress(asyncio.CancelledError, TimeoutError, HeadlessPasskeyError):
                await asyncio.create_task(interrupted(use(), interruption))
            return interruption

        assert await cancel_everywhere(one, again=AGAIN) > 5


@pytest.mark.parametrize(
    "again", [None, 1, 2, 4], ids=["once", "and at once", "and two later", "and four later"]
)
async def test_a_sign_in(
    loopback_certificate: Certificate, tmp_path: Path, loop_clock: LoopClock, again: int | None
) -> None:
    async with tunnel_service(loopback_certificate) as base:
        bench = Bench(base, loopback_certificate, tmp_path, loop_clock)
        await bench.register()

        async def one(interruption: Interruption) -> Interruption:
            bench.air, bench.stages = Air(), []
            bench.carrier = Carrier(bench.air)
            phone = asyncio.create_task(bench.answered())
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.create_task(interrupted(bench.sign_in(settle=settle), interruption))
            assert not bench.air.listening
            if Stage.SUBMITTED in bench.stages:
                assert len(bench.carrier.finished) == 1
            phone.cancel()
            await asyncio.wait({phone})
            return interruption

        async def settle(_credential: Credential) -> None:
            await asyncio.sleep(0)

        assert await cancel_everywhere(one, again=(again,)) > 10


async def test_a_scan(bluetooth: Bluetooth) -> None:
    path = await bluetooth.add_adapter()
    async with BleakRadio().adverts():  # bleak keeps its connection to the bus
        pass

    async def one(interruption: Interruption) -> Interruption:
        async def listen() -> None:
            async with BleakRadio().adverts():
                await asyncio.sleep(0)

        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.create_task(interrupted(listen(), interruption))
        assert not await bluetooth.discovering(path)
        return interruption

    assert await cancel_everywhere(one, again=AGAIN) > 5
