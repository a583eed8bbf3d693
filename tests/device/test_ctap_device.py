"""A phone as python-fido2's device: what reaches it, what is answered here, and how it ends."""

import asyncio
import contextlib
import errno
import gc
import os
import resource
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest
from certificates import Certificate
from fido2.client import ClientError, DefaultClientDataCollector, Fido2Client, UserInteraction
from fido2.ctap import STATUS
from fido2.ctap import CtapError as Fido2Error
from fido2.ctap2.base import Ctap2
from fido2.hid import CTAPHID
from fido2.server import Fido2Server
from fido2.webauthn import (
    AttestedCredentialData,
    PublicKeyCredentialCreationOptions,
    PublicKeyCredentialDescriptor,
    PublicKeyCredentialRequestOptions,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialType,
    PublicKeyCredentialUserEntity,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)
from hypothesis import given
from hypothesis import strategies as st

from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.phone import SoftwarePhone, TunnelService, accept
from companion_push.companion.software_key import Assertion, Registration, SoftwareKey
from headless_passkey.ceremony import CeremonyResult, run_ceremony
from headless_passkey.ctap_device import MAX_PROBES, PhoneDevice
from headless_passkey.delivery import Ask
from headless_passkey.errors import (
    CtapError,
    HeadlessPasskeyError,
    LocalProtocolError,
    NotApproved,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import (
    Command,
    GetAssertionRequest,
    GetAssertionResponse,
    GetInfoResponse,
    MakeCredentialRequest,
    Status,
    User,
)
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.stages import Stage, StageEvent
from headless_passkey.webauthn.options import AuthenticationOptions, RegistrationOptions
from tests.companion.device import tunnel_service
from tests.device.test_ceremony import Air, Carrier
from tests.strategies import cbor_values

RP_ID, ORIGIN = "login.example", "https://login.example"
HASH = bytes(range(32))
RP = {"id": RP_ID, "name": "Example"}
ADA: Final = {"id": b"ada", "name": "ada", "displayName": "Ada"}
ES256: list[Mapping[str, Any]] = [{"type": "public-key", "alg": -7}]
WAIT = 10.0  # seconds, for what takes none


@dataclass
class Phone:
    """A ceremony without radio and tunnel: the software authenticator, asked as the ceremony asks a phone."""

    key: SoftwareKey = field(default_factory=SoftwareKey)
    asks: list[Ask] = field(default_factory=list)
    requests: list[GetAssertionRequest | MakeCredentialRequest] = field(default_factory=list)
    error: Exception | None = None
    answers: bool = True
    change: Callable[[GetAssertionResponse], GetAssertionResponse] = lambda reply: reply
    asked: threading.Event = field(default_factory=threading.Event)
    ended: int = 0

    async def __call__(
        self, ask: Ask, options: Any, /, *, on_stage: Callable[[StageEvent], None]
    ) -> CeremonyResult:
        self.asks.append(ask)
        try:
            on_stage(StageEvent(stage=Stage.SUBMITTED, elapsed=0.0))
            if self.error is not None:
                raise self.error
            on_stage(StageEvent(stage=Stage.CHANNEL_OPEN, elapsed=0.0, phone=self.key.info))
            return await self._answer(ask, await options(), on_stage)
        finally:
            await asyncio.sleep(0)  # a farewell takes a moment
            self.ended += 1

    async def _answer(
        self,
        ask: Ask,
        given: AuthenticationOptions | RegistrationOptions,
        on_stage: Callable[[StageEvent], None],
    ) -> CeremonyResult:
        if (ask.kind, ask.rp_id, ask.origin) != (given.hint, given.rp_id, given.origin):
            raise TrustError(TrustReason.OPTIONS_DIFFER, "something else was announced")
        request = given.ctap_request(self.key.info)
        self.requests.append(request)
        on_stage(StageEvent(stage=Stage.REQUEST_SENT, elapsed=0.0))
        self.asked.set()
        if not self.answers:
            await asyncio.Event().wait()
        creating = isinstance(request, MakeCredentialRequest)
        command = Command.MAKE_CREDENTIAL if creating else Command.GET_ASSERTION
        match self.key.ask(command, request.encode()):
            case Registration() as registration:
                made = registration.approve(now=1_800_000_000 + len(self.requests))
                self.key = self.key.adding(made)
                payload = made.response.encode()
            case Assertion() as assertion:
                payload = self.change(assertion.approve()).encode()
        return CeremonyResult(credential=given.accept(payload, self.key.info), user_checked=False)


@contextlib.contextmanager
def device_of(phone: Any, **more: Any) -> Iterator[PhoneDevice]:
    with contextlib.closing(PhoneDevice(phone, **more)) as device:
        yield device
    assert not [thread for thread in threading.enumerate() if thread.name == "headless-passkey"]


def client_of(device: PhoneDevice) -> Fido2Client:
    return Fido2Client(device, DefaultClientDataCollector(ORIGIN), UserInteraction())


def server() -> Fido2Server:
    return Fido2Server(
        PublicKeyCredentialRpEntity(id=RP_ID, name="Example"), verify_origin=lambda origin: origin == ORIGIN
    )


def creation(*excluded: bytes, **changes: Any) -> PublicKeyCredentialCreationOptions:
    user = PublicKeyCredentialUserEntity(id=b"ada", name="ada", display_name="Ada")
    options, _ = server().register_begin(
        user,
        resident_key_requirement=ResidentKeyRequirement.REQUIRED,
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    return replace(options.public_key, exclude_credentials=described(*excluded), **changes)


def request(*allowed: bytes, **changes: Any) -> PublicKeyCredentialRequestOptions:
    options, _ = server().authenticate_begin(user_verification=UserVerificationRequirement.REQUIRED)
    return replace(options.public_key, allow_credentials=described(*allowed), **changes)


def listed(*credential_ids: bytes) -> list[Mapping[str, Any]]:
    return [{"type": "public-key", "id": each} for each in credential_ids]


def described(*credential_ids: bytes) -> list[PublicKeyCredentialDescriptor] | None:
    return [
        PublicKeyCredentialDescriptor(type=PublicKeyCredentialType.PUBLIC_KEY, id=each)
        for each in credential_ids
    ] or None


def having(*names: str) -> Phone:
    """A phone on which these users registered, one after the other."""
    phone = Phone()
    for name in names:
        with device_of(phone) as device:
            user = {"id": name.encode(), "name": name, "displayName": name}
            Ctap2(device).make_credential(HASH, RP, user, ES256, options={"rk": True, "uv": True})
    return Phone(key=phone.key)


def ids(phone: Phone) -> list[bytes]:
    return [credential.credential_id for credential in phone.key.credentials]


# --- with python-fido2's own client ------------------------------------------------------------------------


def register_and_sign_in(device: PhoneDevice) -> None:
    """What a program does, and what its server says to that."""
    client, rp = client_of(device), server()
    user = PublicKeyCredentialUserEntity(id=b"ada", name="ada", display_name="Ada")
    options, state = rp.register_begin(
        user,
        resident_key_requirement=ResidentKeyRequirement.REQUIRED,
        user_verification=UserVerificationRequirement.REQUIRED,
        extensions={"credProps": True},
    )
    registered = client.make_credential(options.public_key)
    assert registered.client_extension_results["credProps"] == {"rk": True}
    data = rp.register_complete(state, registered).credential_data
    assert isinstance(data, AttestedCredentialData)
    for credentials in (None, [data]):
        asked, state = rp.authenticate_begin(credentials, UserVerificationRequirement.REQUIRED)
        (assertion,) = (selection := client.get_assertion(asked.public_key)).get_assertions()
        assert assertion.user is not None
        assert rp.authenticate_complete(state, [data], selection.get_response(0)) == data


def test_fido2_client_registers_and_signs_in() -> None:
    phone = Phone()
    with device_of(phone) as device:
        register_and_sign_in(device)
    assert [ask.kind for ask in phone.asks] == [
        RequestKind.MAKE_CREDENTIAL,
        RequestKind.GET_ASSERTION,
        RequestKind.GET_ASSERTION,
    ]
    assert len(phone.requests) == phone.ended == 3


async def test_fido2_client_registers_and_signs_in_through_radio_and_tunnel(
    loopback_certificate: Certificate, tmp_path: Path
) -> None:
    """The ceremony itself, the software phone, and a tunnel service; device and phone share the device's loop."""
    stages: list[Stage] = []

    async with tunnel_service(loopback_certificate) as base:

        async def ceremony(
            ask: Ask, options: Any, /, *, on_stage: Callable[[StageEvent], None]
        ) -> CeremonyResult:
            air = Air()
            carrier = Carrier(air)
            phone = SoftwarePhone(
                credentials=CredentialFile(path=tmp_path / "passkeys.json"),
                advertiser=air,
                tunnel_service=TunnelService(number=300, base=base),
                tls=loopback_certificate.client_context(),
                verify_user=accept,
            )

            async def answer() -> None:
                urls = await carrier.urls
                await phone.answer(urls["phone"].encode(), timeout=20)

            answering = asyncio.create_task(answer())
            signed_in: CeremonyResult = await run_ceremony(
                ask,
                options,
                delivery=carrier,
                radio=air,
                tunnels={300: base},
                tls=loopback_certificate.client_context(),
                timeout=20,
                on_stage=on_stage,
            )
            await answering
            return signed_in

        with device_of(ceremony, on_stage=lambda event: stages.append(event.stage)) as device:
            await asyncio.to_thread(register_and_sign_in, device)
    assert stages.count(Stage.REQUEST_SENT) == stages.count(Stage.COMPLETED) == 3


def test_an_allow_list_reaches_the_phone_whole_though_the_client_probes_for_one_of_it() -> None:
    phone = having("ada", "bob")
    strangers = tuple(bytes([number]) * 16 for number in range(20))
    with device_of(phone) as device:
        selection = client_of(device).get_assertion(request(*strangers, *ids(phone)))
    (sent,) = phone.requests
    assert isinstance(sent, GetAssertionRequest)
    assert sent.allow_list == (*strangers, *ids(phone))
    assert sent.user_presence
    assert sent.user_verification
    assert selection.get_assertions()[0].credential["id"] in ids(phone)


def test_an_exclude_list_reaches_the_phone_whole_and_the_phone_decides() -> None:
    phone = having("ada")
    (known,) = ids(phone)
    with device_of(phone) as device:
        with pytest.raises(ClientError) as refused:
            client_of(device).make_credential(creation(b"other", known))
        assert refused.value.code is ClientError.ERR.DEVICE_INELIGIBLE
        assert refused.value.cause.code is Fido2Error.ERR.CREDENTIAL_EXCLUDED
        client_of(device).make_credential(creation(b"other"))
    lists = [sent.exclude_list for sent in phone.requests if isinstance(sent, MakeCredentialRequest)]
    assert lists == [(b"other", known), (b"other",)]


def test_nothing_allowed_that_the_phone_has_is_told_by_the_phone() -> None:
    phone = having("ada")
    with device_of(phone) as device, pytest.raises(ClientError) as refused:
        client_of(device).get_assertion(request(b"other"))
    assert refused.value.code is ClientError.ERR.DEVICE_INELIGIBLE
    assert len(phone.asks) == 1


def test_more_than_can_be_probed_is_refused_before_anybody_is_asked() -> None:
    phone = having("ada")
    many = [number.to_bytes(2, "big") for number in range(MAX_PROBES + 1)]
    with device_of(phone) as device, pytest.raises(ClientError) as refused:
        client_of(device).get_assertion(request(*many))
    assert refused.value.cause.code is Fido2Error.ERR.LIMIT_EXCEEDED
    assert not phone.asks


def test_of_a_program_that_probes_on_no_more_is_kept() -> None:
    with device_of(having("ada")) as device:
        ctap = Ctap2(device)
        refused = Counter[int]()
        for number in range(3 * MAX_PROBES):
            with pytest.raises(Fido2Error) as answer:
                ctap.get_assertion(
                    "login.example",
                    bytes(32),
                    [{"type": "public-key", "id": b"%d" % number}],
                    options={"up": False},
                )
            refused[answer.value.code] += 1
        assert refused == {
            Fido2Error.ERR.NO_CREDENTIALS: MAX_PROBES,
            Fido2Error.ERR.LIMIT_EXCEEDED: 2 * MAX_PROBES,
        }
        assert len(device._probed) == MAX_PROBES


def test_a_list_that_no_message_carries_is_refused_before_anybody_is_asked() -> None:
    """The client divides it, and what it probes with becomes one list again."""
    phone = having("ada")
    long = [bytes([number]) * 300 for number in range(MAX_PROBES)]
    with device_of(phone) as device:
        with pytest.raises(ClientError) as refused:
            client_of(device).get_assertion(request(*long))
        assert refused.value.cause.code is Fido2Error.ERR.REQUEST_TOO_LARGE
        with pytest.raises(ClientError) as refused:
            client_of(device).make_credential(creation(*long))
        assert refused.value.cause.code is Fido2Error.ERR.REQUEST_TOO_LARGE
        assert not phone.asks
        client_of(device).get_assertion(request(*long[:200], *ids(phone)))
    assert len(phone.requests) == 1


@pytest.mark.parametrize("version", ["FIDO_2_0", "FIDO_2_1"])
def test_selecting_asks_nobody(version: str) -> None:
    phone = having("ada")
    with device_of(phone) as device:
        device._phone = GetInfoResponse(versions=(version,), aaguid=bytes(16), options={"uv": True})
        client_of(device).selection()
    assert not phone.asks


def test_names_that_phones_want_fall_back() -> None:
    phone = Phone()
    with device_of(phone) as device:
        ctap = Ctap2(device)
        ctap.make_credential(HASH, {"id": RP_ID}, {"id": b"u", "name": "n"}, ES256)
        with pytest.raises(Fido2Error, match="MISSING_PARAMETER"):
            ctap.make_credential(HASH, {"id": RP_ID}, {"id": b"u"}, ES256)
    (sent,) = phone.requests
    assert isinstance(sent, MakeCredentialRequest)
    assert (sent.rp_name, sent.user) == (RP_ID, User(id=b"u", name="n", display_name="n"))


# --- with Ctap2 --------------------------------------------------------------------------------------------


def test_getinfo_is_answered_here_and_is_the_phones_once_it_has_spoken() -> None:
    phone = having("ada")
    with device_of(phone) as device:
        ctap = Ctap2(device)
        assert ctap.info.versions == ["FIDO_2_0", "FIDO_2_1"]
        assert bytes(ctap.info.aaguid) == bytes(16)
        assert not phone.asks
        ctap.get_assertion(RP_ID, HASH)
        info = ctap.get_info()
        assert bytes(info.aaguid) == phone.key.info.aaguid
        assert info.options == {"rk": True, "up": True, "uv": True}


def test_what_a_phone_says_of_pins_and_management_is_not_passed_on() -> None:
    said = GetInfoResponse(
        versions=("FIDO_2_1",),
        aaguid=b"a" * 16,
        extensions=("prf", "hmac-secret", "largeBlobKey"),
        options={"uv": True, "clientPin": True, "credMgmt": True, "pinUvAuthToken": True},
        others={0x05: 1024, 0x06: [2, 1], 0x08: 64},
    )
    with device_of(Phone()) as device:
        device._phone = said
        info = Ctap2(device).info
    assert (info.options, info.extensions) == ({"uv": True}, ["prf"])
    assert (info.max_creds_in_list, info.max_cred_id_length) == (MAX_PROBES, 0)


def test_a_list_given_without_probing_goes_as_it_is() -> None:
    phone = having("ada", "bob")
    allowed: list[Mapping[str, Any]] = [{**listed(ids(phone)[1])[0], "transports": ["usb"]}]
    with device_of(phone) as device:
        Ctap2(device).get_assertion(RP_ID, HASH, allowed, options={"uv": True})
    (sent,) = phone.requests
    assert sent == GetAssertionRequest(
        rp_id=RP_ID, client_data_hash=HASH, allow_list=(ids(phone)[1],), user_verification=True
    )


def probe(ctap: Ctap2, *credential_ids: bytes, rp_id: str = RP_ID) -> None:
    with pytest.raises(Fido2Error, match="NO_CREDENTIALS"):
        ctap.get_assertion(rp_id, HASH, listed(*credential_ids), options={"up": False})


def test_probes_are_for_the_next_command_alone() -> None:
    phone = having("ada")
    nothing_found = listed(b"\0")
    with device_of(phone) as device:
        ctap = Ctap2(device)
        probe(ctap, *ids(phone))
        ctap.get_assertion(RP_ID, HASH, nothing_found)
        with pytest.raises(Fido2Error):
            ctap.get_assertion(RP_ID, HASH, nothing_found)
        probe(ctap, b"forgotten")
        ctap.get_info()
        ctap.make_credential(HASH, RP, ADA, ES256)
        probe(ctap, b"elsewhere", rp_id="other.example")
        ctap.make_credential(HASH, RP, ADA, ES256)
        probe(ctap, b"not meant")
        ctap.get_assertion(RP_ID, HASH)
    lists = [
        sent.exclude_list if isinstance(sent, MakeCredentialRequest) else sent.allow_list
        for sent in phone.requests
    ]
    assert lists == [(ids(phone)[0],), (b"\0",), (), (), ()]


@pytest.mark.threat("T12")
def test_commands_that_hybrid_has_not_are_refused_here() -> None:
    phone = Phone()
    with device_of(phone) as device:
        ctap = Ctap2(device)
        calls: list[Callable[[], Any]] = [
            lambda: ctap.client_pin(1, 1),
            ctap.reset,
            ctap.get_next_assertion,
            lambda: ctap.large_blobs(0, get=1),
            lambda: ctap.config(1),
            lambda: device.call(CTAPHID.MSG, b"\0\1\0\0"),
            lambda: device.call(CTAPHID.CBOR, b""),
        ]
        for call in calls:
            with pytest.raises(Fido2Error, match="INVALID_COMMAND"):
                call()
        for pin_uv_param, status in ((b"", "PIN_NOT_SET"), (b"proof", "INVALID_PARAMETER")):
            with pytest.raises(Fido2Error, match=status):
                ctap.make_credential(HASH, RP, ADA, ES256, pin_uv_param=pin_uv_param, pin_uv_protocol=1)
            with pytest.raises(Fido2Error, match=status):
                ctap.get_assertion(RP_ID, HASH, pin_uv_param=pin_uv_param, pin_uv_protocol=1)
        for rp_id in ("", "Login.example", "https://login.example", "10.0.0.1"):
            with pytest.raises(Fido2Error, match="INVALID_PARAMETER"):
                ctap.get_assertion(rp_id, HASH)
    assert not phone.asks
    assert list(PhoneDevice.list_devices()) == []


@pytest.mark.threat("T12")
@given(
    st.binary(max_size=60)
    | st.tuples(st.sampled_from([1, 2, 4]), cbor_values()).map(
        lambda pair: bytes([pair[0]]) + cbor.encode(pair[1])
    )
)
def test_any_command_is_answered_or_refused_and_asks_nobody(data: bytes) -> None:
    device, phone = DEVICE_OF_NOBODY
    with contextlib.suppress(Fido2Error):
        assert device.call(CTAPHID.CBOR, data)
    assert not phone.asks


NOBODY = Phone()
DEVICE_OF_NOBODY = (PhoneDevice(NOBODY), NOBODY)


def test_a_reply_is_given_as_python_fido2_wants_it() -> None:
    """The credential is named even where the allow list says it; more credentials cannot be asked for."""
    phone = having("ada")
    phone.change = lambda reply: replace(
        reply,
        credential_id=None,
        number_of_credentials=2,
        user_selected=False,
        unsigned_extension_outputs={"prf": {"results": {"first": bytes(32)}}},
    )
    allowed = listed(ids(phone)[0])
    with device_of(phone) as device:
        (assertion,) = Ctap2(device).get_assertions(RP_ID, HASH, allowed)
        raw = Ctap2(device).send_cbor(2, {1: RP_ID, 2: HASH, 3: allowed})
    assert assertion.credential["id"] == ids(phone)[0]
    assert raw[8] == {"prf": {"results": {"first": bytes(32)}}}


@pytest.mark.threat("T3")
@pytest.mark.parametrize(
    "change",
    [
        lambda reply: replace(reply, auth_data=bytes(32) + reply.auth_data[32:]),
        lambda reply: replace(reply, auth_data=reply.auth_data[:32] + b"\1" + reply.auth_data[33:]),
        lambda reply: replace(reply, credential_id=b"another"),
        lambda reply: replace(reply, credential_id=None, auth_data=b""),
    ],
    ids=["another RP", "nobody verified", "not allowed", "no authenticator data"],
)
def test_a_reply_to_something_else_is_not_passed_on(
    change: Callable[[GetAssertionResponse], GetAssertionResponse],
) -> None:
    phone = having("ada")
    phone.change = change
    allowed = listed(ids(phone)[0])
    with device_of(phone) as device, pytest.raises(Fido2Error) as refused:
        Ctap2(device).get_assertion(RP_ID, HASH, allowed, options={"uv": True})
    assert refused.value.code is Fido2Error.ERR.OTHER
    assert isinstance(refused.value.__cause__, RemoteProtocolError)


# --- how a ceremony ends otherwise -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "client_error"),
    [
        (CtapError(Status.NO_CREDENTIALS, ""), Fido2Error.ERR.NO_CREDENTIALS, "DEVICE_INELIGIBLE"),
        (CtapError(Status.OPERATION_DENIED, ""), Fido2Error.ERR.OPERATION_DENIED, "BAD_REQUEST"),
        (CtapError(0xE3, ""), 0xE3, "OTHER_ERROR"),
        (NotApproved(Outcome.DECLINED, ""), Fido2Error.ERR.OPERATION_DENIED, "BAD_REQUEST"),
        (NotApproved(Outcome.EXPIRED, ""), Fido2Error.ERR.USER_ACTION_TIMEOUT, "TIMEOUT"),
        (NotApproved(Outcome.CANCELLED, ""), Fido2Error.ERR.KEEPALIVE_CANCEL, "TIMEOUT"),
        (NotApproved(Outcome.SUPERSEDED, ""), Fido2Error.ERR.KEEPALIVE_CANCEL, "TIMEOUT"),
        (TrustError(TrustReason.FORKED_RING, ""), Fido2Error.ERR.NOT_ALLOWED, "OTHER_ERROR"),
        (RemoteProtocolError("", reason=ProtocolReason.NO_CTAP), Fido2Error.ERR.OTHER, "OTHER_ERROR"),
    ],
    ids=lambda value: getattr(value, "name", type(value).__name__),
)
def test_an_end_for_which_ctap_has_a_word_is_that_word(
    error: HeadlessPasskeyError, code: int, client_error: str
) -> None:
    with device_of(Phone(error=error)) as device:
        with pytest.raises(Fido2Error) as ctap_end:
            Ctap2(device).get_assertion(RP_ID, HASH)
        assert int(ctap_end.value.code) == code
        assert ctap_end.value.__cause__ is error
        with pytest.raises(ClientError) as client_end:
            client_of(device).get_assertion(request())
        assert client_end.value.code.name == client_error


@pytest.mark.parametrize(
    "error",
    [
        TransportError("no Bluetooth adapter", advice="plug one in"),
        SetupError("no Bluetooth adapter", reason=SetupReason.MISSING_PACKAGE, advice="plug one in"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_radio_tunnel_relay_and_set_up_fail_as_devices_do(error: HeadlessPasskeyError) -> None:
    with device_of(Phone(error=error)) as device:
        with pytest.raises(OSError, match="no Bluetooth adapter: plug one in") as failed:
            client_of(device).get_assertion(request())
        assert failed.value.__cause__ is error


@pytest.mark.parametrize("error", [LocalProtocolError("a bug"), ValueError("another")])
def test_bugs_are_not_dressed_up(error: Exception) -> None:
    with device_of(Phone(error=error)) as device, pytest.raises(type(error)):
        Ctap2(device).get_assertion(RP_ID, HASH)


def test_a_ceremony_that_cannot_even_begin_ends() -> None:
    def not_a_ceremony(_ask: Ask) -> Coroutine[Any, Any, CeremonyResult]:
        raise AssertionError

    with device_of(not_a_ceremony) as device, pytest.raises(TypeError):
        Ctap2(device).get_assertion(RP_ID, HASH)


@pytest.fixture
def switching_often() -> Iterator[None]:
    """Threads take turns after each few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def once_asked(phone: Phone, do: Callable[[], None]) -> threading.Thread:
    """Somebody else, who does it while the phone's user thinks."""

    def wait() -> None:
        assert phone.asked.wait(WAIT)
        do()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_setting_the_event_takes_the_request_back() -> None:
    phone, event = replace(having("ada"), answers=False), threading.Event()
    with device_of(phone) as device:
        ctap = Ctap2(device)
        canceller = once_asked(phone, event.set)
        with pytest.raises(Fido2Error, match="KEEPALIVE_CANCEL"):
            ctap.get_assertion(RP_ID, HASH, event=event)
        canceller.join()
        assert phone.ended == 1
        phone.answers = True
        ctap.get_assertion(RP_ID, HASH)


def test_an_event_that_is_set_already_asks_nobody_for_long() -> None:
    phone, event = replace(having("ada"), answers=False), threading.Event()
    event.set()
    with device_of(phone) as device:
        with pytest.raises(Fido2Error, match="KEEPALIVE_CANCEL"):
            Ctap2(device).get_assertion(RP_ID, HASH, event=event)
        assert phone.ended == len(phone.asks)


def test_the_clients_timeout_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    phone = replace(having("ada"), answers=False)

    class Timer(threading.Timer):
        """Is over once the phone was asked, however slow this machine is."""

        def __init__(self, _seconds: float, over: Callable[[], object]) -> None:
            super().__init__(0, lambda: phone.asked.wait(WAIT) and over())

    monkeypatch.setattr("fido2.client.Timer", Timer)
    with device_of(phone) as device, pytest.raises(ClientError) as ended:
        client_of(device).get_assertion(request(timeout=50))
    assert ended.value.code is ClientError.ERR.TIMEOUT
    assert phone.ended == 1


def test_a_program_that_is_interrupted_leaves_no_request_behind() -> None:
    phone = replace(having("ada"), answers=False)

    def interrupt(event: StageEvent) -> None:
        if event.stage is Stage.REQUEST_SENT:
            raise KeyboardInterrupt

    with device_of(phone, on_stage=interrupt) as device:
        with pytest.raises(KeyboardInterrupt):
            Ctap2(device).get_assertion(RP_ID, HASH)
        assert phone.ended == 1


def test_closing_ends_what_is_going_on() -> None:
    phone = replace(having("ada"), answers=False)
    with device_of(phone) as device:
        ctap = Ctap2(device)
        closer = once_asked(phone, device.close)
        with pytest.raises(OSError, match="cancelled"):
            ctap.get_assertion(RP_ID, HASH)
        closer.join()
        assert phone.ended == 1
        with pytest.raises(OSError, match="closed"):
            ctap.get_assertion(RP_ID, HASH)
        device.close()


def test_any_number_of_threads_may_close_it_at_once(switching_often: None) -> None:
    """Each finds it closed afterwards; none meets an error, however they interleave."""
    phone, threads = having("ada"), 16
    for _ in range(25):
        together, results = threading.Barrier(threads), list[bool]()
        with device_of(phone) as device:
            Ctap2(device).get_assertion(RP_ID, HASH)

            def close(
                device: PhoneDevice = device,
                together: threading.Barrier = together,
                results: list[bool] = results,
            ) -> None:
                together.wait(WAIT)
                device.close()
                results.append(device._loop is not None and not device._loop.alive)

            closing = [threading.Thread(target=close) for _ in range(threads)]
            for thread in closing:
                thread.start()
            for thread in closing:
                thread.join(WAIT)
        assert results == [True] * threads


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the loop that was half made
def test_without_a_descriptor_for_its_event_loop_it_says_so_and_works_later() -> None:
    phone = having("ada")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    with device_of(phone) as device:
        ctap = Ctap2(device)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            with pytest.raises(OSError, match="Too many open files"):
                ctap.get_assertion(RP_ID, HASH)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in taken:
                os.close(descriptor)
        gc.collect()
        ctap.get_assertion(RP_ID, HASH)


def test_without_a_thread_for_its_event_loop_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with device_of(Phone()) as device:
        ctap = Ctap2(device)
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(OSError, match="no thread") as failed:
            ctap.get_assertion(RP_ID, HASH)
        monkeypatch.undo()
    assert failed.value.errno == errno.EAGAIN


def test_a_second_caller_is_told_that_the_channel_is_busy() -> None:
    phone, event = replace(having("ada"), answers=False), threading.Event()
    with device_of(phone) as device:
        ctap = Ctap2(device)
        refusals: list[int] = []

        def second() -> None:
            with pytest.raises(Fido2Error) as refused:
                ctap.get_assertion(RP_ID, HASH)
            refusals.append(refused.value.code)
            event.set()

        other = once_asked(phone, second)
        with pytest.raises(Fido2Error, match="KEEPALIVE_CANCEL"):
            ctap.get_assertion(RP_ID, HASH, event=event)
        other.join()
        assert refusals == [Fido2Error.ERR.CHANNEL_BUSY]


def test_the_user_is_said_to_be_needed_once_the_phone_asks() -> None:
    phone = having("ada")
    told: list[int] = []
    with device_of(phone) as device:
        Ctap2(device).get_assertion(RP_ID, HASH, on_keepalive=told.append)
    assert told == [STATUS.PROCESSING, STATUS.UPNEEDED]


# --- a phone that is reached first -------------------------------------------------------------------------


def test_a_phone_can_be_reached_before_the_command_and_is_then_the_one_that_getinfo_describes() -> None:
    phone = having("ada")
    with device_of(phone, origin="https://www.login.example") as device:
        device.reach(RequestKind.GET_ASSERTION, RP_ID)
        ctap = Ctap2(device)
        assert bytes(ctap.info.aaguid) == phone.key.info.aaguid
        with pytest.raises(LocalProtocolError):
            device.reach(RequestKind.GET_ASSERTION, RP_ID)
        ctap.get_assertion(RP_ID, HASH)
        assert len(phone.asks) == len(phone.requests) == 1
        ctap.get_assertion(RP_ID, HASH)
    assert {(ask.kind, ask.rp_id, ask.origin) for ask in phone.asks} == {
        (RequestKind.GET_ASSERTION, RP_ID, "https://www.login.example")
    }
    assert len(phone.asks) == 2


@pytest.mark.threat("T4")
def test_a_command_for_something_else_than_was_announced_is_refused() -> None:
    phone = having("ada")
    with device_of(phone) as device:
        for kind, rp_id in (
            (RequestKind.MAKE_CREDENTIAL, RP_ID),
            (RequestKind.GET_ASSERTION, "other.example"),
        ):
            device.reach(kind, rp_id)
            with pytest.raises(Fido2Error, match="NOT_ALLOWED"):
                Ctap2(device).get_assertion(RP_ID, HASH)
    assert not phone.requests
    assert phone.ended == 2


def test_reaching_nobody_fails_as_a_command_does() -> None:
    event = threading.Event()
    with device_of(Phone(error=NotApproved(Outcome.EXPIRED, ""))) as device:
        with pytest.raises(Fido2Error, match="USER_ACTION_TIMEOUT"):
            device.reach(RequestKind.GET_ASSERTION, RP_ID)
        event.set()
        with pytest.raises(Fido2Error, match="KEEPALIVE_CANCEL"):
            device.reach(RequestKind.GET_ASSERTION, RP_ID, event=event)
    with device_of(Phone(error=TransportError("gone"))) as device, pytest.raises(OSError, match="gone"):
        device.reach(RequestKind.GET_ASSERTION, RP_ID)


def test_a_phone_that_is_reached_and_not_used_is_let_go_at_the_end() -> None:
    phone = having("ada")
    with device_of(phone) as device:
        device.reach(RequestKind.GET_ASSERTION, RP_ID)
    assert phone.ended == 1
    assert not phone.requests


def test_a_phone_that_has_gone_again_is_told_with_the_command() -> None:
    async def leaves(ask: Ask, _options: Any, /, *, on_stage: Callable[[StageEvent], None]) -> CeremonyResult:
        on_stage(StageEvent(stage=Stage.CHANNEL_OPEN, elapsed=0.0))
        raise TransportError(f"the phone for {ask.rp_id} has gone")

    with device_of(leaves) as device:
        device.reach(RequestKind.GET_ASSERTION, RP_ID)
        with pytest.raises(OSError, match="has gone"):
            Ctap2(device).get_assertion(RP_ID, HASH)


def test_without_python_fido2_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['fido2'] = None; import headless_passkey.ctap_device"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install '.[device,fido2]' in the clone" in done.stderr
