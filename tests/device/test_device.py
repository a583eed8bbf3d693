"""The SDK in one object, where no phone is needed; tests/end_to_end/test_documented.py has the rest."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headless_passkey.account import enrolment
from headless_passkey.device import Asked, Device
from headless_passkey.errors import (
    NotEnrolled,
    NotSignedIn,
    TransportError,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.radio.source import Advert
from tests.device.inviter import Inviter
from tests.device.test_doctor_servers import silent
from tests.ports import reserved_port
from tests.relay.household import Relay


class NoRadio:
    """A radio that must not be turned on."""

    @asynccontextmanager
    async def adverts(self) -> AsyncIterator[AsyncIterator[Advert]]:
        pytest.fail("the radio was turned on")
        yield


@asynccontextmanager
async def device(state: Path) -> AsyncIterator[Device]:
    async with Device.open(state, radio=NoRadio()) as opened:
        yield opened


async def test_a_device_that_has_not_joined_asks_nobody(tmp_path: Path) -> None:
    async with device(tmp_path / "nothing") as hub:
        with pytest.raises(NotEnrolled):
            await hub.sign_in("https://login.example")
        with pytest.raises(NotSignedIn):
            hub.session()
    assert not (tmp_path / "nothing").exists()


async def test_a_radio_that_there_is_not_is_an_error_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such radio"):
        async with Device.open(tmp_path, radio="wifi"):
            pytest.fail("opened")


async def join(relay: Relay, state: Path, **pins: str) -> None:
    inviter = await Inviter.invite(relay, await relay.household(devices=0))
    async with asyncio.TaskGroup() as tasks:
        joining = enrolment.join(state, inviter.invitation, label="Hub", clock=relay.clock, **pins)  # type: ignore[arg-type]
        tasks.create_task(joining)
        await inviter.admit(await inviter.introduced())


@pytest.mark.threat("T14")
async def test_a_relying_party_that_the_device_may_not_ask_for_is_not_even_called(
    relay: Relay, tmp_path: Path
) -> None:
    await join(relay, tmp_path / "state", rp_id="login.example", origin="https://login.example")
    elsewhere = f"http://localhost:{reserved_port()}"
    asked = Asked(kind=RequestKind.GET_ASSERTION, rp_id="login.example")
    async with device(tmp_path / "state") as hub:
        for attempt in (
            hub.sign_in(elsewhere),
            hub.register(elsewhere, "ada"),
            hub.ask(elsewhere, asked),
            hub.sign_in("https://login.example:8443"),
        ):
            with pytest.raises(TrustError) as refused:
                await attempt
            assert refused.value.reason is TrustReason.RP_NOT_ALLOWED


async def test_a_relying_party_that_does_not_answer_is_waited_for_until_the_deadline(
    relay: Relay, tmp_path: Path
) -> None:
    await join(relay, tmp_path / "state")
    async with silent() as host, device(tmp_path / "state") as hub:
        with pytest.raises(TransportError, match=r"did not answer within 0\.2 seconds"):
            await hub.sign_in(f"http://{host}", timeout=0.2)


@pytest.mark.parametrize(
    "url", ["http://login.example", "https://192.0.2.1", "login.example", "https://a.example?x"]
)
async def test_an_address_that_a_device_cannot_speak_for_is_an_error_of_the_caller(
    tmp_path: Path, url: str
) -> None:
    async with device(tmp_path) as hub:
        with pytest.raises(UsageError):
            await hub.sign_in(url)


@pytest.mark.threat("T13")
@pytest.mark.parametrize("service", ["http://api.example", "https://api.example/path", "api.example"])
async def test_a_service_that_no_token_may_go_to_is_refused_before_anybody_is_asked(
    tmp_path: Path, service: str
) -> None:
    async with device(tmp_path) as hub:
        with pytest.raises(UsageError):
            await hub.sign_in("https://login.example", audience=[service])
