"""The software phone against a client platform, over a real tunnel service with TLS."""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import Certificate
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.phone import (
    Announced,
    Question,
    SoftwarePhone,
    TunnelService,
    _title,
    accept,
    check_url,
    decline,
)
from headless_passkey.errors import (
    CtapError,
    ExitStatus,
    HeadlessPasskeyError,
    NotApproved,
    Outcome,
    RemoteProtocolError,
    TransportError,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid.channel import AuthenticatorChannel
from headless_passkey.hybrid.ctap2 import (
    Command,
    GetAssertionRequest,
    GetAssertionResponse,
    GetInfoResponse,
    MakeCredentialRequest,
    Status,
)
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.hybrid.messages import Ctap, Event, MessageType, Shutdown
from headless_passkey.hybrid.tunnel_url import connect_url
from headless_passkey.net.tunnel import open_tunnel
from tests.companion.device import (
    ALICE,
    RP_ID,
    Air,
    Device,
    assertion,
    creation,
    framed,
    ok,
    raw,
    transaction,
    tunnel_service,
)
from tests.loop_clock import LoopClock
from tests.ports import reserved_port

TIMEOUT = 20.0
NOW = 1_800_000_000


class Bench:
    """A phone, its air, its tunnel service, and devices as needed."""

    def __init__(self, base: str, certificate: Certificate, folder: Path) -> None:
        self.air = Air()
        self.base, self.tls = base, certificate.client_context()
        self.stages: list[str] = []
        self.file = CredentialFile(path=folder / "passkeys.json")
        self.phone = SoftwarePhone(
            credentials=self.file,
            advertiser=self.air,
            tunnel_service=TunnelService(number=300, base=base),
            tls=self.tls,
            verify_user=accept,
            on_stage=self.stages.append,
        )

    def device(self, kind: RequestKind = RequestKind.GET_ASSERTION) -> Device:
        return Device(self.air, self.base, self.tls, transaction(kind, time=int(time.time())))

    async def transact(
        self,
        request: GetAssertionRequest | MakeCredentialRequest,
        device: Device | None = None,
        *,
        announced: Announced | None = None,
    ) -> tuple[Ctap, HeadlessPasskeyError | None]:
        """The device's reply and what became of the phone."""
        if device is None:
            asks = isinstance(request, GetAssertionRequest)
            device = self.device(RequestKind.GET_ASSERTION if asks else RequestKind.MAKE_CREDENTIAL)
        reply, error = await asyncio.gather(
            device.ask(request),
            self.ends(self.phone.answer(device.url, timeout=TIMEOUT, announced=announced)),
        )
        assert self.air.sending == 0
        return reply, error

    async def ends(self, answer: Awaitable[None]) -> HeadlessPasskeyError | None:
        try:
            await answer
        except HeadlessPasskeyError as error:
            return error
        return None


@pytest.fixture
async def bench(loopback_certificate: Certificate, tmp_path: Path) -> AsyncIterator[Bench]:
    async with tunnel_service(loopback_certificate) as base:
        yield Bench(base, loopback_certificate, tmp_path)


# What it does


async def test_a_passkey_is_made_and_then_signs_in(bench: Bench) -> None:
    reply, error = await bench.transact(creation())
    assert error is None
    ok(reply)
    reply, error = await bench.transact(assertion(client_data_hash=b"h" * 32))
    assert error is None
    answer = GetAssertionResponse.parse(ok(reply))
    assert answer.user == ALICE
    assert answer.auth_data[:32] == hashlib.sha256(RP_ID.encode()).digest()
    (credential,) = bench.file.load().credentials
    public = ec.derive_private_key(int.from_bytes(credential.private_key, "big"), ec.SECP256R1()).public_key()
    public.verify(answer.signature, answer.auth_data + b"h" * 32, ec.ECDSA(SHA256()))
    assert bench.stages[-6:] == ["connecting", "advertising", "connected", "asked", "verified", "answered"]


async def test_the_advert_is_taken_down_once_somebody_comes(bench: Bench) -> None:
    await bench.transact(creation())
    device = bench.device()
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        assert bench.air.sending == 0
        await tunnel.send(channel.send(assertion()))
        ok(await device.reply(tunnel, channel))
    await answering


async def test_get_info_may_be_asked_before_the_one_command(bench: Bench) -> None:
    await bench.transact(creation())
    device = bench.device()
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(raw(channel, Command.GET_INFO))
        info = GetInfoResponse.parse(ok(await device.reply(tunnel, channel)))
        assert channel.peer is not None
        assert info == channel.peer.get_info
        await tunnel.send(channel.send(assertion()))
        ok(await device.reply(tunnel, channel))
    await answering


async def test_updates_mean_nothing_to_a_phone(bench: Bench) -> None:
    await bench.transact(creation())
    device = bench.device()
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(framed(channel, MessageType.UPDATE, b"\xa0"))
        await tunnel.send(channel.send(assertion()))
        await tunnel.send(framed(channel, MessageType.UPDATE, b"\xa0"))
        ok(await device.reply(tunnel, channel))
    await answering


async def test_a_user_who_declines_is_status_27(bench: Bench) -> None:
    await bench.transact(creation())
    bench.phone = replace(bench.phone, verify_user=decline)
    reply, error = await bench.transact(assertion())
    assert reply.code == 0x27
    assert isinstance(error, NotApproved)
    assert error.exit_status == ExitStatus.DECLINED


async def test_declining_a_registration_leaves_no_credential(bench: Bench) -> None:
    bench.phone = replace(bench.phone, verify_user=decline)
    reply, _ = await bench.transact(creation())
    assert reply.code == 0x27
    assert bench.file.load().credentials == ()


async def test_no_passkey_is_status_2e(bench: Bench) -> None:
    reply, error = await bench.transact(assertion())
    assert reply.code == 0x2E
    assert isinstance(error, CtapError)
    assert error.exit_status == ExitStatus.PHONE_SAID_NO


async def test_the_user_is_shown_who_asks_and_may_choose_an_account(bench: Bench) -> None:
    bob = replace(ALICE, id=b"bob", name="bob@example.com")
    await bench.transact(creation())
    await bench.transact(creation(user=bob))
    shown: list[Question] = []

    async def choose_the_second(question: Question) -> int:
        shown.append(question)
        return 1

    bench.phone = replace(bench.phone, verify_user=choose_the_second)
    reply, _ = await bench.transact(assertion())
    assert GetAssertionResponse.parse(ok(reply)).user == ALICE
    assert shown[0].kind is RequestKind.GET_ASSERTION
    assert shown[0].rp_id == RP_ID
    assert {user.id for user in shown[0].accounts} == {b"alice", b"bob"}


# authenticatorSelection


SELECTION = 0x0B


async def select(
    bench: Bench, device: Device, announced: Announced | None = None
) -> tuple[Ctap, HeadlessPasskeyError | None]:
    """What the phone answers to a client that asks whether this is the phone to use, and what became of it."""
    answer = bench.phone.answer(device.url, timeout=TIMEOUT, announced=announced)
    answering = asyncio.create_task(bench.ends(answer))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(raw(channel, SELECTION))
        reply = await device.reply(tunnel, channel)
        await tunnel.send(device.goodbye(channel))
    return reply, await answering


@pytest.mark.parametrize("hint", ["mc", "ga", None], ids=["mc", "ga", "no hint"])
async def test_selection_asks_the_user_and_is_answered_with_success_alone(
    bench: Bench, hint: str | None
) -> None:
    """As Chromium asks a FIDO_2_1 phone that has none of the wanted algorithms, whatever its URL announced."""
    shown: list[Question] = []

    async def yes(question: Question) -> int:
        shown.append(question)
        return 0

    bench.phone = replace(bench.phone, verify_user=yes)
    device = bench.device()
    device.transaction = replace(device.transaction, url=replace(device.transaction.url, hint_raw=hint))
    reply, error = await select(bench, device)
    assert (reply.code, reply.payload, error) == (0x00, b"", None)
    assert shown == [Question(kind=None, rp_id=None, accounts=())]
    assert bench.file.load().credentials == ()
    assert bench.stages[-3:] == ["asked", "verified", "answered"]


async def test_a_selection_that_the_user_declines_is_status_27(bench: Bench) -> None:
    bench.phone = replace(bench.phone, verify_user=decline)
    reply, error = await select(bench, bench.device())
    assert reply.code == 0x27
    assert isinstance(error, NotApproved)
    assert error.exit_status == ExitStatus.DECLINED


async def test_a_goodbye_takes_a_selection_back_too(bench: Bench) -> None:
    user = Asking()
    phone = replace(bench.phone, verify_user=user.verify)
    device = bench.device()
    answering = asyncio.create_task(phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(raw(channel, SELECTION))
        await user.asked.wait()
        await tunnel.send(device.goodbye(channel))
        await user.taken_back.wait()
        await cancelled(answering)


@pytest.mark.threat("T10")
async def test_a_selection_is_the_one_command(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.transact(creation())
    device = bench.device()
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(raw(channel, SELECTION))
        ok(await device.reply(tunnel, channel))
        await tunnel.send(channel.send(assertion()))
        assert (await device.reply(tunnel, channel)).code == Status.NOT_ALLOWED
        with pytest.raises(TransportError):
            await tunnel.receive()
    await answering
    assert "second command" in caplog.text


@pytest.mark.threat("T10")
async def test_a_selection_is_not_what_an_envelope_announced(bench: Bench) -> None:
    async def nobody_is_asked(question: Question) -> int:
        raise AssertionError(question)

    bench.phone = replace(bench.phone, verify_user=nobody_is_asked)
    announced = Announced(kind=RequestKind.GET_ASSERTION, rp_id=RP_ID)
    reply, error = await select(bench, bench.device(), announced)
    assert reply.code == 0x30
    assert isinstance(error, TrustError)
    assert error.reason is TrustReason.KIND_MISMATCH


@pytest.mark.threat("T12")
@pytest.mark.parametrize("payload", [b"\x00", b"\xa0", b"\xff"], ids=bytes.hex)
async def test_a_selection_with_parameters_is_no_command(bench: Bench, payload: bytes) -> None:
    device = bench.device()
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(raw(channel, SELECTION, payload))
        assert (await device.reply(tunnel, channel)).code == Status.INVALID_COMMAND
    with pytest.raises(RemoteProtocolError):
        await answering


# When nobody waits for the answer any more


class Asking:
    """A user who is asked, and answers when the test says so."""

    def __init__(self) -> None:
        self.asked, self.taken_back = asyncio.Event(), asyncio.Event()
        self.answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def verify(self, question: Question) -> int:
        try:
            self.asked.set()
            return await self.answer
        except asyncio.CancelledError:
            self.taken_back.set()
            raise


async def cancelled(answering: "asyncio.Task[None]") -> None:
    """The phone ends, and its end is that of a request that was taken back."""
    with pytest.raises(NotApproved) as caught:
        await answering
    assert caught.value.reason is Outcome.CANCELLED
    assert caught.value.exit_status == ExitStatus.EXPIRED


@pytest.mark.threat("T4")
@pytest.mark.parametrize("kind", [RequestKind.GET_ASSERTION, RequestKind.MAKE_CREDENTIAL], ids=str)
async def test_a_goodbye_while_the_user_is_asked_takes_the_question_back_though_the_tunnel_stays_open(
    bench: Bench, kind: RequestKind
) -> None:
    """As Chromium does when a page gives up: a shutdown, and the socket stays open for three minutes."""
    await bench.transact(creation())
    before, user = bench.file.load(), Asking()
    bench.phone = replace(bench.phone, verify_user=user.verify)
    device = bench.device(kind)
    request = assertion() if kind is RequestKind.GET_ASSERTION else creation(user=replace(ALICE, id=b"bob"))
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(channel.send(request))
        await user.asked.wait()
        await tunnel.send(device.goodbye(channel))
        await user.taken_back.wait()
        await cancelled(answering)
        with pytest.raises(TransportError):  # it is not answered, only closed
            await tunnel.receive()
    assert bench.file.load() == before
    assert "verified" not in bench.stages[bench.stages.index("answered") + 1 :]


async def test_a_yes_that_comes_with_the_goodbye_is_too_late(bench: Bench) -> None:
    await bench.transact(creation())
    said = asyncio.Event()

    async def yes_once_it_was_said(question: Question) -> int:
        await said.wait()
        return 0

    def on_goodbye(self: AuthenticatorChannel, message: bytes) -> Event:
        event = receive(self, message)
        if isinstance(event, Shutdown):
            said.set()
        return event

    receive = AuthenticatorChannel.receive
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AuthenticatorChannel, "receive", on_goodbye)
        bench.phone = replace(bench.phone, verify_user=yes_once_it_was_said)
        device = bench.device()
        answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
        async with device.joined() as (tunnel, channel):
            await tunnel.send(channel.send(assertion()))
            await tunnel.send(device.goodbye(channel))
            await cancelled(answering)
            with pytest.raises(TransportError):
                await tunnel.receive()


@pytest.mark.parametrize("before", ["at once", "after getInfo", "after an update"])
async def test_a_goodbye_between_handshake_and_request_is_a_cancel(bench: Bench, before: str) -> None:
    device = bench.device()
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        if before == "after getInfo":
            await tunnel.send(raw(channel, Command.GET_INFO))
            ok(await device.reply(tunnel, channel))
        elif before == "after an update":
            await tunnel.send(framed(channel, MessageType.UPDATE, b"\xa0"))
        await tunnel.send(device.goodbye(channel))
        await cancelled(answering)


async def test_a_goodbye_after_the_answer_is_how_it_ends(bench: Bench) -> None:
    reply, error = await bench.transact(creation())
    ok(reply)
    assert error is None


@pytest.mark.parametrize("stage", ["connecting", "advertising", "connected", "asked"])
async def test_a_request_that_is_withdrawn_ends_it_at_every_stage(bench: Bench, stage: str) -> None:
    await bench.transact(creation())
    withdrawn, user = asyncio.Event(), Asking()

    def note(now: str) -> None:
        if now == stage and stage != "asked":
            withdrawn.set()

    phone = replace(bench.phone, verify_user=user.verify, on_stage=note)
    device = bench.device()
    answering = asyncio.create_task(phone.answer(device.url, timeout=TIMEOUT, withdrawn=withdrawn))
    asking = asyncio.create_task(device.ask(assertion()))
    if stage == "asked":
        await user.asked.wait()
        withdrawn.set()
        await user.taken_back.wait()
        asking.cancel()  # the device learns of it too, and goes
    await cancelled(answering)
    assert bench.air.sending == 0
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError, TransportError):
        await asking


async def test_a_request_that_ends_with_the_answer_was_not_withdrawn(bench: Bench) -> None:
    await bench.transact(creation())
    over = asyncio.Event()

    def note(now: str) -> None:
        if now == "answered":
            over.set()

    device = bench.device()
    phone = replace(bench.phone, on_stage=note)
    reply, _ = await asyncio.gather(
        device.ask(assertion()), phone.answer(device.url, timeout=TIMEOUT, withdrawn=over)
    )
    ok(reply)


@pytest.mark.parametrize("how", ["the device hangs up", "the tunnel breaks off"])
async def test_a_tunnel_that_ends_takes_the_question_back(bench: Bench, how: str) -> None:
    await bench.transact(creation())
    user = Asking()
    bench.phone = replace(bench.phone, verify_user=user.verify)
    device = bench.device()
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(channel.send(assertion()))
        await user.asked.wait()
        if how == "the tunnel breaks off":
            transport = tunnel._websocket._response.connection.transport  # type: ignore[union-attr]
            assert transport is not None
            transport.abort()
    with pytest.raises(TransportError) as caught:
        await answering
    assert caught.value.exit_status == ExitStatus.TRANSPORT
    assert user.taken_back.is_set()


# What binds a command


@pytest.mark.threat("T10")
@pytest.mark.parametrize(
    ("hint", "request_"),
    [(RequestKind.MAKE_CREDENTIAL, assertion()), (RequestKind.GET_ASSERTION, creation())],
)
async def test_a_command_of_the_other_kind_is_status_30(
    bench: Bench, hint: RequestKind, request_: GetAssertionRequest | MakeCredentialRequest
) -> None:
    reply, error = await bench.transact(request_, bench.device(hint))
    assert reply.code == 0x30
    assert isinstance(error, TrustError)
    assert error.reason is TrustReason.KIND_MISMATCH
    assert bench.file.load().credentials == ()


@pytest.mark.threat("T10")
@pytest.mark.parametrize("hint_raw", [None, "", "dcp", "unheard-of"])
async def test_a_hint_that_promises_nothing_binds_nothing(bench: Bench, hint_raw: str | None) -> None:
    device = bench.device()
    device.transaction = replace(device.transaction, url=replace(device.transaction.url, hint_raw=hint_raw))
    reply, error = await bench.transact(creation(), device)
    ok(reply)
    assert error is None


@pytest.mark.threat("T10")
async def test_what_the_envelope_announced_binds_the_kind_whatever_the_url_says(bench: Bench) -> None:
    announced = Announced(kind=RequestKind.GET_ASSERTION, rp_id=RP_ID)
    reply, error = await bench.transact(creation(), announced=announced)
    assert reply.code == 0x30
    assert isinstance(error, TrustError)


@pytest.mark.threat("T4")
async def test_another_relying_party_than_announced_is_refused_before_the_user_is_asked(bench: Bench) -> None:
    await bench.transact(creation())
    announced = Announced(kind=RequestKind.GET_ASSERTION, rp_id="bank.example")

    async def nobody_is_asked(question: Question) -> int:
        raise AssertionError(question)

    bench.phone = replace(bench.phone, verify_user=nobody_is_asked)
    reply, error = await bench.transact(assertion(), announced=announced)
    assert reply.code == 0x30
    assert isinstance(error, TrustError)
    assert error.reason is TrustReason.OPTIONS_DIFFER


# Exactly one command


@pytest.mark.threat("T10")
async def test_a_second_command_is_refused(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.transact(creation())
    device = bench.device()
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(channel.send(assertion()))
        ok(await device.reply(tunnel, channel))
        await tunnel.send(channel.send(assertion()))
        assert (await device.reply(tunnel, channel)).code == Status.NOT_ALLOWED
        with pytest.raises(TransportError):
            await tunnel.receive()
    await answering  # the first command was answered
    assert "second command" in caplog.text


@pytest.mark.threat("T10")
async def test_a_second_command_while_the_user_is_asked_ends_it_unanswered(bench: Bench) -> None:
    await bench.transact(creation())
    taken_back = asyncio.Event()
    asked = asyncio.Event()

    async def slow(question: Question) -> int:
        try:
            asked.set()
            return await asyncio.Future()
        finally:
            taken_back.set()

    bench.phone = replace(bench.phone, verify_user=slow)
    device = bench.device()
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(channel.send(assertion()))
        await asked.wait()
        await tunnel.send(raw(channel, Command.GET_ASSERTION, assertion().encode()))
        with pytest.raises(TransportError):
            await tunnel.receive()
    with pytest.raises(RemoteProtocolError):
        await answering
    assert taken_back.is_set()


@pytest.mark.threat("T10")
@pytest.mark.parametrize("command", [0x00, 0x06, 0x07, 0x08, 0x0A, 0x0C, 0x41, 0xFF])
async def test_no_other_command_is_served(bench: Bench, command: int) -> None:
    device = bench.device()
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(raw(channel, command, b"\xa0"))
        assert (await device.reply(tunnel, channel)).code == Status.INVALID_COMMAND
    with pytest.raises(RemoteProtocolError):
        await answering


@pytest.mark.threat("T12")
async def test_a_malformed_command_gets_its_status_and_is_a_protocol_error(bench: Bench) -> None:
    device = bench.device()
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(raw(channel, Command.GET_ASSERTION, b"\xff"))
        assert (await device.reply(tunnel, channel)).code == Status.INVALID_CBOR
    with pytest.raises(RemoteProtocolError):
        await answering


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (MessageType.JSON, b"{}"),
        (MessageType.UPDATE, b"\xff"),
        (MessageType.CTAP, b""),
    ],
)
async def test_anything_but_a_command_ends_the_transaction(
    bench: Bench, kind: MessageType, payload: bytes
) -> None:
    device = bench.device()
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        await tunnel.send(framed(channel, kind, payload))
        with pytest.raises(TransportError):
            await tunnel.receive()
    with pytest.raises(RemoteProtocolError):
        await answering


@pytest.mark.threat("T12")
async def test_endless_messages_are_not_listened_to(bench: Bench) -> None:
    device = bench.device()
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    async with device.joined() as (tunnel, channel):
        with contextlib.suppress(TransportError):
            for _ in range(40):
                await tunnel.send(framed(channel, MessageType.UPDATE, b"\xa0"))
        with pytest.raises(RemoteProtocolError):
            await answering


# Who may talk to it


@pytest.mark.threat("T12")
@pytest.mark.parametrize("message1", [b"", b"\x00", b"\x04" * 81, b"\xff" * 200])
async def test_whoever_does_not_hold_the_url_gets_no_channel(bench: Bench, message1: bytes) -> None:
    device = bench.device()
    answering = asyncio.create_task(bench.phone.answer(device.url, timeout=TIMEOUT))
    eid = device.transaction.open_advert(await bench.air.adverts.get())
    assert eid is not None
    url = connect_url(bench.base, eid.routing_id, device.transaction.url.tunnel_id)
    async with open_tunnel(url, tls=bench.tls) as tunnel:
        await tunnel.send(message1)
        with pytest.raises(RemoteProtocolError):
            await answering


async def test_a_tunnel_service_that_is_not_there_is_a_transport_error(bench: Bench) -> None:
    gone = replace(
        bench.phone, tunnel_service=TunnelService(number=300, base=f"wss://127.0.0.1:{reserved_port()}")
    )
    with pytest.raises(TransportError):
        await gone.answer(bench.device().url, timeout=TIMEOUT)


@pytest.mark.threat("T9")
async def test_a_tunnel_service_with_another_certificate_is_refused(bench: Bench) -> None:
    with pytest.raises(TransportError, match="not trusted"):
        await replace(bench.phone, tls=None).answer(bench.device().url, timeout=TIMEOUT)


# Time


async def test_when_nobody_comes_the_deadline_ends_it_and_the_advert(bench: Bench) -> None:
    with pytest.raises(NotApproved) as caught:
        await bench.phone.answer(bench.device().url, timeout=0.3)
    assert caught.value.reason is Outcome.EXPIRED
    assert bench.air.sending == 0


async def test_a_user_who_does_not_answer_in_time_is_status_2f(bench: Bench, loop_clock: LoopClock) -> None:
    await bench.transact(creation())

    async def never(question: Question) -> int:
        loop_clock.passes(TIMEOUT - 0.5)  # a second is kept for the answer
        return await asyncio.Future()

    bench.phone = replace(bench.phone, verify_user=never)
    device = bench.device()
    loop_clock.stop()
    reply, error = await asyncio.gather(
        device.ask(assertion()), bench.ends(bench.phone.answer(device.url, timeout=TIMEOUT))
    )
    assert reply.code == Status.USER_ACTION_TIMEOUT
    assert isinstance(error, NotApproved)
    assert error.exit_status == ExitStatus.EXPIRED


@pytest.mark.parametrize("stage", ["connecting", "advertising", "connected", "asked"])
async def test_it_can_be_cancelled_at_every_stage(bench: Bench, stage: str) -> None:
    await bench.transact(creation())
    reached = asyncio.Event()

    async def never(question: Question) -> int:
        return await asyncio.Future()

    def note(now: str) -> None:
        if now == stage:
            reached.set()

    phone = replace(bench.phone, verify_user=never, on_stage=note)
    device = bench.device()
    answering = asyncio.create_task(phone.answer(device.url, timeout=TIMEOUT))
    asking = asyncio.create_task(device.ask(assertion()))
    await reached.wait()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert bench.air.sending == 0
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError, TransportError):
        await asking


# The URL


def url_at(seconds: int | None, **changes: object) -> str:
    url = transaction(time=0).url
    return replace(url, time=seconds, **changes).encode()  # type: ignore[arg-type]


@pytest.mark.threat("T5")
@pytest.mark.parametrize("age", [301, 302, 100_000, NOW])
def test_a_url_older_than_300_seconds_is_refused(age: int) -> None:
    with pytest.raises(TrustError) as caught:
        check_url(url_at(NOW - age), now=NOW)
    assert caught.value.reason is TrustReason.EXPIRED
    assert str(age) in str(caught.value)


@pytest.mark.threat("T5")
@pytest.mark.parametrize("ahead", [121, 100_000])
def test_a_url_from_the_future_is_refused(ahead: int) -> None:
    with pytest.raises(TrustError) as caught:
        check_url(url_at(NOW + ahead), now=NOW)
    assert caught.value.reason is TrustReason.CLOCK_SKEW


@pytest.mark.parametrize("age", [300, 0, -120])
def test_a_fresh_url_is_taken(age: int) -> None:
    assert check_url(url_at(NOW - age), now=NOW).time == NOW - age


def test_a_url_without_time_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    check_url(url_at(None), now=NOW)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_device_without_websocket_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="data channel"):
        check_url(url_at(NOW, channels=(1,)), now=NOW)
    check_url(url_at(NOW, channels=(0, 1)), now=NOW)


@pytest.mark.threat("T12")
@given(st.text(max_size=80) | st.text(alphabet="0123456789", max_size=200).map("FIDO:/".__add__))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    with contextlib.suppress(RemoteProtocolError, TrustError):
        check_url(text, now=NOW)


# The tunnel service's words


@pytest.mark.parametrize("number", [0, 255, 256, 65535])
def test_a_tunnel_service_is_a_number_and_a_url(number: int) -> None:
    expected = TunnelService(number=number, base="wss://[::1]:8443")
    assert TunnelService.parse(f"{number}=wss://[::1]:8443") == expected
    assert TunnelService.parse(f"{number}=wss://[::1]:8443/") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "wss://host",
        "=wss://host",
        "65536=wss://host",
        "-1=wss://host",
        "\u0661=wss://host",
        "1=ws://host",
        "1=https://host",
        "1=wss://",
        "1=wss://host/../path",
        "1=wss://host?query",
        "1=wss://user@host",
        "1=wss://host:0",
        "1=wss://host:99999",
        "1=wss://host:port",
    ],
)
def test_anything_else_is_no_tunnel_service(text: str) -> None:
    with pytest.raises(ValueError):
        TunnelService.parse(text)


@pytest.mark.threat("T11")
async def test_nothing_secret_is_logged_or_shown(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    device = bench.device(RequestKind.MAKE_CREDENTIAL)
    await bench.transact(creation(), device)
    (credential,) = bench.file.load().credentials
    said = caplog.text + repr(bench.phone)
    for secret in (device.transaction.url.secret, credential.private_key, device.transaction.url.tunnel_id):
        assert secret.hex() not in said.lower()
    assert device.url not in said


@pytest.mark.threat("T4")
def test_the_question_shows_the_whole_rp_id_whose_end_says_whose_it_is() -> None:
    rp_id = "login.bank.example." + ".".join(["a" * 50] * 4) + ".evil.example"
    assert len(rp_id) == 235
    assert (
        _title(Question(kind=RequestKind.GET_ASSERTION, rp_id=rp_id, accounts=())) == f"Sign in at {rp_id}?"
    )
