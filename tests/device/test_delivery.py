"""The delivery of FIDO URLs: through a real relay to companions that open them, and on stdout."""

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headless_passkey.account import enrolment
from headless_passkey.account.delivery import MAX_RECIPIENTS, RelayDelivery, StdoutDelivery
from headless_passkey.account.enrolment import Enrolment
from headless_passkey.account.relay import RelayClient
from headless_passkey.ceremony import Ask
from headless_passkey.errors import (
    LocalProtocolError,
    NotApproved,
    NotEnrolled,
    Outcome,
    TransportError,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.net.proven_http import ProvenHttp, open_session
from headless_passkey.refusals import Refusal
from headless_passkey.request import DeviceEvent
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.envelope import open_envelope
from tests.relay.household import Household, running_relay

ASK = Ask(
    kind=RequestKind.GET_ASSERTION,
    origin="https://login.example",
    rp_id="login.example",
    note="by the window",
    digits="42",
)


def fresh_urls(*recipients: str) -> dict[str, FidoUrl]:
    return {
        name: QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=int(time.time())).url
        for name in recipients
    }


@contextlib.asynccontextmanager
async def delivering(
    folder: Path, *, companions: int = 2, rp_id: str | None = None
) -> AsyncIterator[tuple[RelayDelivery, Household]]:
    """A device that has joined a household on a real relay."""
    async with running_relay(folder / "relay.db") as server, open_session(None) as session:
        home = await server.household(companions=companions)
        frame = home.devices[0]
        joined = Enrolment(
            key=frame.person.key, relay_url=server.url, chain=RingChain.start(home.ring), rp_id=rp_id
        )
        state = folder / "state"
        state.mkdir(mode=0o700)
        enrolment._write(state, joined)
        yield RelayDelivery(RelayClient(ProvenHttp(session, server.url, frame.person.key)), state), home


async def test_stdout_gets_one_url_and_nothing_else() -> None:
    lines: list[str] = []
    delivery = StdoutDelivery(lines.append)
    urls = fresh_urls(*await delivery.recipients())
    await delivery.submit(ASK, urls, lifetime=300)
    await delivery.finish(DeviceEvent.COMPLETED)
    assert lines == [url.encode() for url in urls.values()]
    assert [progress async for progress in delivery.progress()] == []


@pytest.mark.threat("T2")
async def test_each_companion_gets_an_envelope_that_it_alone_opens(tmp_path: Path) -> None:
    async with delivering(tmp_path) as (delivery, home):
        names = await delivery.recipients()
        assert set(names) == {companion.name for companion in home.companions}
        urls = fresh_urls(*names)
        await delivery.submit(ASK, urls, lifetime=300)
        for companion in home.companions:
            (item,) = await companion.inbox()
            opened = open_envelope(
                from_base64url(item["sealed"]),
                hpke_private=companion.person.hpke_private,
                account=home.account,
                request_id=from_base64url(item["id"]),
                device=home.devices[0].name,
                recipient=companion.name,
            )
            said = opened.verified(home.devices[0].person.member)
            assert said.url == urls[companion.name].encode()
            assert (said.rp_id, said.note, said.digits) == ("login.example", "by the window", "42")


async def test_a_companion_that_has_come_since_is_found(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        assert len(await delivery.recipients()) == 1
        second = home.companions[0].person.__class__(home.companions[0].person.role, "tablet")
        await home.append(home.companions[0].person, home.devices[0].person, second)
        assert second.name in await delivery.recipients()


async def test_no_more_companions_are_asked_than_the_relay_takes(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=MAX_RECIPIENTS + 2) as (delivery, home):
        names = await delivery.recipients()
        assert set(names) == {companion.name for companion in home.companions[-MAX_RECIPIENTS:]}
        await delivery.submit(ASK, fresh_urls(*names), lifetime=300)


@pytest.mark.threat("T4")
async def test_a_relying_party_the_device_may_not_ask_for_is_refused(tmp_path: Path) -> None:
    async with delivering(tmp_path, rp_id="other.example") as (delivery, home):
        names = await delivery.recipients()
        with pytest.raises(TrustError) as refusal:
            await delivery.submit(ASK, fresh_urls(*names), lifetime=300)
        assert refusal.value.reason is TrustReason.RP_NOT_ALLOWED
        assert await home.companions[0].inbox() == []


async def test_progress_tells_the_states_and_their_claimer(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        phone, frame = home.companions[0], home.devices[0]
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,) = await phone.inbox()
        await phone.act(frame, item["id"], "claimed")
        await phone.act(frame, item["id"], "opened")
        async with contextlib.aclosing(delivery.progress()) as states:
            first = await anext(states)
        assert (first.state, first.claimed_by) == ("opened", phone.name)
        await delivery.finish(DeviceEvent.COMPLETED)
        assert (await frame.status(item["id"]))["state"] == "completed"


async def test_progress_tells_who_refused_by_label_and_ends_with_the_reason(tmp_path: Path) -> None:
    async with delivering(tmp_path) as (delivery, home):
        (one, two), frame = home.companions, home.devices[0]
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,) = await one.inbox()
        await two.inbox()
        await one.act(frame, item["id"], "failed", "clock-skew")
        states = delivery.progress()
        told = [await anext(states)]
        await two.act(frame, item["id"], "failed", "clock-skew")
        told.append(await anext(states))
        with pytest.raises(TrustError) as end:
            await anext(states)
        assert end.value.reason is TrustReason.CLOCK_SKEW
        first, second = (
            Refusal(companion=each.name, label=each.person.label, reason="clock-skew") for each in (one, two)
        )
        assert [progress.refusals for progress in told] == [(first,), (first, second)]
        for each in (one, two):
            assert f'"{each.person.label}" refuses' in str(end.value)


async def test_what_was_completed_after_the_claim_had_ended_is_over_for_the_others_too(
    tmp_path: Path,
) -> None:
    async with delivering(tmp_path) as (delivery, home):
        (one, two), frame = home.companions, home.devices[0]
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,) = await one.inbox()
        await one.act(frame, item["id"], "claimed")
        await one.act(frame, item["id"], "released")
        await delivery.finish(DeviceEvent.COMPLETED)
        status = await frame.status(item["id"])
        assert (status["state"], status["reason"]) == ("cancelled", "completed")
        assert await two.inbox() == []


async def test_a_decline_ends_the_progress_and_needs_no_farewell(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,) = await home.companions[0].inbox()
        await home.companions[0].act(home.devices[0], item["id"], "declined")
        with pytest.raises(NotApproved) as end:
            async for _ in delivery.progress():
                pass
        assert end.value.reason is Outcome.DECLINED
        await delivery.finish(DeviceEvent.FAILED)


async def test_a_reason_is_reported_as_a_word(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,) = await home.companions[0].inbox()
        await delivery.finish(DeviceEvent.FAILED, "CTAP2_ERR_OPERATION_DENIED")
        status = await home.devices[0].status(item["id"])
        assert (status["state"], status["reason"]) == ("failed", "ctap2-err-operation-denied")


async def test_a_delivery_serves_one_ceremony_after_the_other(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        phone, frame = home.companions[0], home.devices[0]
        states = []
        for outcome in (DeviceEvent.CANCELLED, DeviceEvent.FAILED):
            await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
            (item,) = await phone.inbox()
            await delivery.finish(outcome)
            states.append((await frame.status(item["id"]))["state"])
        assert states == ["cancelled", "failed"]


async def test_a_delivery_says_that_it_serves_one_ceremony_at_a_time(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        names = await delivery.recipients()
        await delivery.submit(ASK, fresh_urls(*names), lifetime=300)
        with pytest.raises(LocalProtocolError, match="one ceremony at a time"):
            await delivery.recipients()
        with pytest.raises(LocalProtocolError, match="one ceremony at a time"):
            await delivery.submit(ASK, fresh_urls(*names), lifetime=300)
        assert len(await home.companions[0].inbox()) == 1


async def test_a_delivery_over_a_connection_of_its_own(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (_, home):
        async with RelayDelivery.connect(tmp_path / "state") as delivery:
            await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
            (item,) = await home.companions[0].inbox()
            await delivery.finish(DeviceEvent.CANCELLED)
        assert (await home.devices[0].status(item["id"]))["state"] == "cancelled"


async def test_a_delivery_of_a_device_that_has_not_joined_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotEnrolled):
        async with RelayDelivery.connect(tmp_path / "state"):
            pass


async def test_a_relay_that_is_not_there_is_a_transport_error(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1):
        pass
    async with open_session(None) as session:
        joined = enrolment.load(tmp_path / "state")
        relay = RelayClient(ProvenHttp(session, joined.relay_url, joined.key, sleep=_no_pause))
        with pytest.raises(TransportError):
            await RelayDelivery(relay, tmp_path / "state").recipients()


async def _no_pause(_seconds: float) -> None:
    pass
