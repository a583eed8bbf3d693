"""Ceremonies over the direct channel: both ends' programs, and an air in memory. `tests/companion/test_direct_phone.py` has the phone alone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from certificates import Certificate

from headless_passkey.ceremony import DIRECT_TIMEOUT, MAX_WAYS, CeremonyResult
from headless_passkey.delivery import Progress
from headless_passkey.errors import NotApproved, TransportError, UsageError
from headless_passkey.hybrid.authenticator import PhoneTransaction
from headless_passkey.hybrid.data_channel import DataChannel
from headless_passkey.hybrid.eid import ADVERT_SIZE
from headless_passkey.radio.pipe import PipeRadio
from headless_passkey.radio.source import Advert
from headless_passkey.request import DeviceEvent, RequestState
from headless_passkey.stages import Stage, StageEvent
from tests.companion.device import tunnel_service
from tests.device.direct_air import DirectAir
from tests.device.test_ceremony import (
    CANCELLABLE,
    DOMAIN,
    USER,
    Bench,
    Carrier,
    Tunnels,
    tunnels,
    with_digits,
)
from tests.loop_clock import LoopClock
from tests.ports import reserved_port

__all__ = ["tunnels"]


class DirectBench(Bench):
    """A bench whose device offers the direct channel."""

    air: DirectAir

    async def sign_in(self, *args: object, **more: object) -> CeremonyResult:
        return await super().sign_in(*args, **{"direct": True, **more})  # type: ignore[arg-type]


@pytest.fixture
async def bench(
    loopback_certificate: Certificate, tmp_path: Path, loop_clock: LoopClock
) -> AsyncIterator[DirectBench]:
    async with tunnel_service(loopback_certificate) as base:
        yield DirectBench(base, loopback_certificate, tmp_path, loop_clock, air=DirectAir())


async def test_a_registration_and_a_sign_in_need_no_tunnel(bench: DirectBench, tunnels: Tunnels) -> None:
    registered = await bench.register()
    signed_in, _ = await asyncio.gather(bench.sign_in(), bench.answered())
    assert signed_in.credential.credential_id == registered.credential.credential_id
    assert bench.stages == [
        Stage.PREPARED,
        Stage.SUBMITTED,
        Stage.ADVERT_HEARD,
        Stage.DIRECT_JOINED,
        Stage.CHANNEL_OPEN,
        Stage.REQUEST_SENT,
        Stage.REPLY_CHECKED,
        Stage.COMPLETED,
    ]
    assert tunnels.opened == 0
    assert bench.air.all_closed()


async def test_a_sign_in_works_where_no_tunnel_service_exists(bench: DirectBench) -> None:
    bench.base = f"wss://localhost:{reserved_port()}"
    registered = await bench.register()
    signed_in, _ = await asyncio.gather(bench.sign_in(), bench.answered())
    assert signed_in.credential.credential_id == registered.credential.credential_id


async def test_a_device_that_does_not_offer_it_gets_the_advert_that_every_client_hears(
    bench: DirectBench, tunnels: Tunnels
) -> None:
    await bench.register()
    heard: list[int] = []
    put = bench.air.put

    def listen(what: bytes | Advert | TransportError | None) -> None:
        heard.append(len(what.service_data if isinstance(what, Advert) else what))  # type: ignore[arg-type]
        put(what)

    bench.air.put = listen  # type: ignore[method-assign]
    await asyncio.gather(bench.sign_in(direct=False), bench.answered())
    assert heard == [ADVERT_SIZE]
    assert (await bench.carrier.urls)["phone"].channels is None
    assert tunnels.opened == 1
    assert Stage.DIRECT_JOINED not in bench.stages


async def test_the_url_offers_both_channels(bench: DirectBench) -> None:
    await bench.register()
    await asyncio.gather(bench.sign_in(), bench.answered())
    url = (await bench.carrier.urls)["phone"]
    assert all(url.offers(channel) for channel in DataChannel)


async def test_a_radio_that_cannot_connect_is_refused_before_anything_is_sent(bench: DirectBench) -> None:
    with pytest.raises(UsageError, match="radio that connects"):
        await bench.sign_in(radio=PipeRadio())
    bench.air.connects = False
    with pytest.raises(UsageError, match="radio that connects"):
        await bench.sign_in()
    assert not bench.carrier.urls.done()


# What fails


@pytest.mark.threat("T12")
async def test_the_tunnel_is_joined_when_the_direct_channel_fails(
    bench: DirectBench, tunnels: Tunnels
) -> None:
    await bench.register()

    async def out_of_reach() -> None:
        await bench.air.heard.wait()
        bench.air.phones.clear()

    signed_in, *_ = await asyncio.gather(bench.sign_in(), bench.answered(), out_of_reach())
    assert signed_in.credential.user_handle == USER
    assert bench.stages[2:6] == [
        Stage.ADVERT_HEARD,
        Stage.DIRECT_FAILED,
        Stage.TUNNEL_JOINED,
        Stage.CHANNEL_OPEN,
    ]
    assert (tunnels.opened, tunnels.closed) == (1, 1)


@pytest.mark.threat("T12")
async def test_a_peer_that_opens_the_channel_and_says_nothing_holds_the_device_for_seconds(
    bench: DirectBench, tunnels: Tunnels
) -> None:
    await bench.register()
    bench.air.imitators = []
    signing_in = asyncio.create_task(bench.sign_in())
    url = (await bench.carrier.urls)["phone"]
    forged = PhoneTransaction(url).advertise(routing_id=b"abc", tunnel_domain=DOMAIN, psm=0x80)
    bench.air.silent.add("66:66:66:66:66:66")
    bench.air.put(Advert(service_data=forged.service_data, address="66:66:66:66:66:66"))
    await bench.reached(Stage.DIRECT_JOINED).wait()
    bench.clock.passes(DIRECT_TIMEOUT)
    await bench.reached(Stage.DIRECT_FAILED).wait()
    assert bench.air.all_closed()  # before the tunnel is tried
    await bench.reached(Stage.ATTEMPT_FAILED).wait()  # nor is there such a tunnel
    signed_in, _ = await asyncio.gather(signing_in, bench.answered())
    assert signed_in.credential.user_handle == USER


@pytest.mark.threat("T12")
async def test_an_advert_that_strangers_repeat_still_leads_to_its_phone(bench: DirectBench) -> None:
    """Without a tunnel service, so that only the phone's own address helps."""
    bench.base = f"wss://localhost:{reserved_port()}"
    await bench.register()
    bench.air.imitators = [f"66:66:66:66:66:{n:02X}" for n in range(MAX_WAYS + 2)]

    async def time_passes() -> None:
        while Stage.CHANNEL_OPEN not in bench.stages:
            bench.clock.passes(0.5)  # the pauses between attempts
            await asyncio.sleep(0.01)

    signed_in, *_ = await asyncio.gather(bench.sign_in(timeout=1000.0), bench.answered(), time_passes())
    assert signed_in.credential.user_handle == USER
    assert len(set(bench.air.tried)) <= MAX_WAYS + 3


async def test_a_phone_that_hangs_up_ends_the_ceremony(bench: DirectBench) -> None:
    await bench.register()
    phone = asyncio.create_task(bench.answered())

    def hang_up(event: StageEvent) -> None:
        if event.stage is Stage.REQUEST_SENT:
            phone.cancel()

    with pytest.raises(TransportError):
        await bench.sign_in(on_stage=hang_up)
    await asyncio.wait({phone})
    assert bench.air.all_closed()


@pytest.mark.threat("T12")
async def test_a_phone_that_never_reads_holds_the_ceremony_until_its_deadline(bench: DirectBench) -> None:
    await bench.register()
    phone = asyncio.create_task(bench.answered())

    def stall(event: StageEvent) -> None:
        bench._on_stage(event)
        if event.stage is Stage.CHANNEL_OPEN:
            for end in bench.air.ends:
                end._room = asyncio.Semaphore(0)
            asyncio.get_running_loop().call_later(0.05, bench.clock.passes, 1000.0)

    with pytest.raises(NotApproved):
        await bench.sign_in(on_stage=stall)
    phone.cancel()
    await asyncio.wait({phone})
    assert bench.air.all_closed()


# Who else is there


@pytest.mark.threat("T3")
async def test_of_two_phones_that_answer_the_claimers_gets_the_command(bench: DirectBench) -> None:
    await bench.register()
    bench.carrier = Carrier(bench.air, ("one", "two"), needs_claim=True)
    held = asyncio.Event()

    def note(event: StageEvent) -> None:
        bench._on_stage(event)
        if bench.stages.count(Stage.CHANNEL_OPEN) == 2:
            held.set()

    async def claim() -> None:
        await held.wait()  # both have a channel, and wait
        bench.carrier.states.put_nowait(Progress(state=RequestState.CLAIMED, claimed_by="two"))

    signed_in, *_ = await asyncio.gather(
        bench.sign_in(on_stage=note),
        claim(),
        bench.answered(recipient="one"),
        bench.answered(recipient="two"),
    )
    assert signed_in.credential.user_handle == USER
    assert bench.stages.count(Stage.DIRECT_JOINED) == 2
    assert bench.stages.count(Stage.REQUEST_SENT) == 1
    assert bench.air.all_closed()


@pytest.mark.parametrize(
    "stage", [Stage.DIRECT_JOINED, *(stage for stage in CANCELLABLE if stage is not Stage.TUNNEL_JOINED)]
)
async def test_it_can_be_cancelled_at_every_stage(bench: DirectBench, stage: Stage) -> None:
    await bench.register()
    tasks: list[asyncio.Task[CeremonyResult]] = []

    def cancel(event: StageEvent) -> None:
        if event.stage is stage:
            tasks[0].cancel()

    tasks.append(asyncio.create_task(bench.sign_in(with_digits(), on_stage=cancel)))
    phone = asyncio.create_task(bench.answered())
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert bench.carrier.finished == [(DeviceEvent.CANCELLED, None)]
    phone.cancel()
    await asyncio.wait({phone})
    assert not bench.air.listening
    assert bench.air.all_closed()


async def test_it_can_be_cancelled_while_it_connects(bench: DirectBench) -> None:
    await bench.register()
    bench.air.connecting.clear()

    async def cancelled() -> None:
        await bench.air.connecting.wait()
        signing_in.cancel()

    signing_in = asyncio.create_task(bench.sign_in())
    phone = asyncio.create_task(bench.answered())
    await cancelled()
    with pytest.raises(asyncio.CancelledError):
        await signing_in
    phone.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await phone
    assert bench.air.all_closed()
