"""What a caller's own delivery, radio, options and callbacks raise, of whatever kind: it ends the ceremony and reaches the caller."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

import pytest

from headless_passkey.delivery import Ask, Notified, Progress, Unconfirmed
from headless_passkey.errors import TransportError
from headless_passkey.hybrid.fido_url import FidoUrl
from headless_passkey.radio.source import Advert
from headless_passkey.request import DeviceEvent, RequestState
from headless_passkey.stages import Stage, StageEvent
from headless_passkey.trust.freshness import ForgottenRings
from headless_passkey.webauthn.options import Credential
from tests.device.test_ceremony import (
    DOMAIN,
    WITH_DIRECT,
    WITH_LINKS,
    Air,
    Bench,
    Carrier,
    Tunnels,
    bench,
    tunnels,
    with_digits,
)
from tests.ports import reserved_port

__all__ = ["bench", "tunnels"]  # fixtures

FOREIGN = [RuntimeError("theirs"), OSError("theirs"), KeyError("theirs"), TimeoutError("theirs")]
RAISED = pytest.mark.parametrize("error", FOREIGN, ids=lambda error: type(error).__name__)


class Faulty(Carrier):
    """A delivery one of whose methods raises something of its own."""

    def __init__(self, air: Air, at: str, error: Exception) -> None:
        super().__init__(air)
        self._at, self._error = at, error

    def _raise(self, at: str) -> None:
        if self._at == at:
            raise self._error

    async def recipients(self) -> Sequence[str]:
        self._raise("recipients")
        return await super().recipients()

    async def submit(self, ask: Ask, urls: Mapping[str, FidoUrl], *, lifetime: float) -> None:
        self._raise("submit")
        await super().submit(ask, urls, lifetime=lifetime)

    async def progress(self) -> AsyncGenerator[Progress, None]:
        self._raise("progress")
        yield Progress(state=RequestState.DELIVERED)
        self._raise("progress, later")
        await asyncio.Future()


class FaultyAir(Air):
    """A radio that raises something of its own."""

    def __init__(self, at: str, error: Exception) -> None:
        super().__init__()
        self._at, self._error = at, error

    @contextlib.asynccontextmanager
    async def adverts(self) -> AsyncIterator[AsyncIterator[Advert]]:
        if self._at == "on":
            raise self._error
        async with super().adverts() as heard:
            yield self._spoiled(heard)
        if self._at == "off":
            raise self._error

    async def _spoiled(self, heard: AsyncIterator[Advert]) -> AsyncIterator[Advert]:
        if self._at == "next":
            raise self._error
        async for advert in heard:
            yield advert
            if self._at == "later":
                raise self._error


async def ends_with(bench: Bench, error: Exception, counted: Tunnels, **more: Any) -> None:
    """The ceremony raises just this, and leaves nothing open."""
    before = asyncio.all_tasks()
    phone = asyncio.create_task(bench.answered())
    try:
        with pytest.raises(type(error)) as caught:
            await bench.sign_in(**more)
    finally:
        phone.cancel()
        await asyncio.wait({phone})
    assert caught.value is error
    assert not bench.air.listening
    assert counted.opened == counted.closed
    assert {task for task in asyncio.all_tasks() - before if "ceremony" in repr(task.get_coro())} == set()


FAILED = [(DeviceEvent.FAILED, None)]


@RAISED
@pytest.mark.parametrize("at", ["recipients", "submit", "progress", "progress, later"])
async def test_what_a_delivery_raises_ends_the_ceremony(
    bench: Bench, tunnels: Tunnels, at: str, error: Exception
) -> None:
    bench.carrier = Faulty(bench.air, at, error)
    await ends_with(bench, error, tunnels)
    assert bench.carrier.finished == ([] if at == "recipients" else FAILED)


@RAISED
@pytest.mark.parametrize("at", ["on", "next", "later", "off"])
async def test_what_a_radio_raises_ends_the_ceremony(
    bench: Bench, tunnels: Tunnels, at: str, error: Exception
) -> None:
    await bench.register()
    tunnels.opened = tunnels.closed = 0
    bench.air = FaultyAir(at, error)
    bench.carrier = Carrier(bench.air)
    await ends_with(bench, error, tunnels)
    assert bench.carrier.finished == ([] if at == "on" else FAILED)


@RAISED
@pytest.mark.parametrize(
    "stage",
    [stage for stage in Stage if stage not in (Stage.REFUSED, Stage.OPENED, *WITH_LINKS, *WITH_DIRECT)],
)
async def test_what_is_raised_at_a_stage_ends_the_ceremony(
    bench: Bench, tunnels: Tunnels, stage: Stage, error: Exception
) -> None:
    await _at_a_stage(bench, tunnels, stage, error)


async def test_an_error_of_the_caller_at_a_stage_is_no_failed_attempt_whatever_its_kind(
    bench: Bench, tunnels: Tunnels
) -> None:
    await _at_a_stage(bench, tunnels, Stage.TUNNEL_JOINED, TransportError("the caller's display has gone"))
    assert Stage.ATTEMPT_FAILED not in bench.stages


async def _at_a_stage(bench: Bench, tunnels: Tunnels, stage: Stage, error: Exception) -> None:
    await bench.register()
    tunnels.opened = tunnels.closed = 0
    ways = {DOMAIN: f"wss://localhost:{reserved_port()}" if stage is Stage.ATTEMPT_FAILED else bench.base}
    silent = Unconfirmed(companion="phone", label="Phone", days=9)
    lost = ForgottenRings(first=5, last=7, given=True)
    woken = Notified(companion="phone", label="Phone", channel="fcm", outcome="sent")
    for progress in (
        Progress(state=RequestState.PENDING, notified=()),
        Progress(state=RequestState.PENDING, notified=(woken,)),
        Progress(state=RequestState.DELIVERED, unconfirmed=silent, forgotten=lost),
    ):
        bench.carrier.states.put_nowait(progress)
    bench.carrier.states.put_nowait(Progress(state=RequestState.CLAIMED, claimed_by="phone"))

    def spoil(event: StageEvent) -> None:
        bench._on_stage(event)
        if event.stage is stage:
            raise error

    await ends_with(bench, error, tunnels, ask=with_digits(), on_stage=spoil, tunnels=ways)
    expected = {Stage.PREPARED: [], Stage.DIGITS: [], Stage.COMPLETED: [(DeviceEvent.COMPLETED, None)]}
    assert bench.carrier.finished == expected.get(stage, FAILED)


@RAISED
@pytest.mark.parametrize("what", ["options", "settle"])
async def test_what_options_and_settle_raise_ends_the_ceremony(
    bench: Bench, tunnels: Tunnels, what: str, error: Exception
) -> None:
    await bench.register()
    tunnels.opened = tunnels.closed = 0

    async def spoil(*_: Credential) -> Any:
        raise error

    await ends_with(bench, error, tunnels, **{what: spoil})
    assert bench.carrier.finished == FAILED
