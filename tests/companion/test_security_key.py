"""A security key in the phone's place, at python-fido2's own interface for keys."""

import asyncio
import contextlib
import hashlib
import os
import pty
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from certificates import Certificate
from fido2.ctap import CtapDevice
from fido2.webauthn import AuthenticatorData
from hypothesis import given
from hypothesis import strategies as st

from companion_push.companion.phone import SoftwarePhone, TunnelService, accept
from companion_push.companion.security_key import LOOK, AtTerminal, FoundKey, SecurityKey, wait_for_key
from headless_passkey.errors import (
    CtapError,
    HeadlessPasskeyError,
    NotApproved,
    Outcome,
    RemoteProtocolError,
    TransportError,
)
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import (
    Command,
    GetAssertionRequest,
    GetAssertionResponse,
    MakeCredentialRequest,
    MakeCredentialResponse,
    Status,
    User,
)
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.process.terminal import Terminal
from headless_passkey.webauthn.options import AuthenticationOptions
from tests.companion.device import RP_ID, Air, Device, assertion, creation, ok, transaction, tunnel_service
from tests.companion.program import outcome
from tests.companion.virtual_key import VirtualKey
from tests.loop_clock import LoopClock
from tests.screen import Screen

PIN = "1234"
UP, UV = AuthenticatorData.FLAG.UP, AuthenticatorData.FLAG.UV


@dataclass
class Someone:
    """A person before the key."""

    pins: list[str | None] = field(default_factory=list)
    account: int | None = 0
    key: int | None = 0
    told: list[str] = field(default_factory=list)
    tries: list[int] = field(default_factory=list)  # as the questions said
    asked: list[Sequence[User]] = field(default_factory=list)
    keys: Sequence[str] = ()

    def tell(self, stage: str, text: str) -> None:
        assert text
        self.told.append(stage)

    async def pin(self, tries: int) -> str | None:
        self.tries.append(tries)
        return self.pins.pop(0)

    async def choose(self, accounts: Sequence[User]) -> int | None:
        self.asked.append(accounts)
        return self.account

    async def choose_key(self, names: Sequence[str]) -> int | None:
        self.keys = names
        return self.key


def before(key: VirtualKey, *pins: str | None, **more: Any) -> tuple[SecurityKey, Someone]:
    person = Someone(list(pins), **more)
    return SecurityKey(found=FoundKey("virtual", lambda: key), person=person), person


async def made(key: SecurityKey, **changes: Any) -> MakeCredentialResponse:
    asked = await key.ask(Command.MAKE_CREDENTIAL, creation(**changes).encode())
    return MakeCredentialResponse.parse(await asked.answer(account=0, now=0))


async def signed(key: SecurityKey, **changes: Any) -> GetAssertionResponse:
    asked = await key.ask(Command.GET_ASSERTION, assertion(**changes).encode())
    return GetAssertionResponse.parse(await asked.answer(account=0, now=0))


async def refused(work: Any) -> int:
    with pytest.raises(CtapError) as caught:
        await work
    return caught.value.status


def having(virtual: VirtualKey, *users: bytes, **changes: Any) -> list[bytes]:
    """Put passkeys onto the key; their IDs."""
    for number, user in enumerate(users):
        asked = virtual.credentials.make_credential(
            creation(user=User(id=user, name=user.decode()), **changes)
        )
        virtual.credentials = virtual.credentials.adding(asked.approve(now=number))
    return [each.credential_id for each in virtual.credentials.credentials]


# What it does


async def test_a_key_makes_a_passkey_and_signs_in_and_its_flags_are_its_own() -> None:
    virtual = VirtualKey()
    key, person = before(virtual)
    registered = AuthenticatorData((await made(key, user_verification=False)).auth_data)
    assert registered.credential_data is not None
    answer = await signed(key, user_verification=False)
    registered.credential_data.public_key.verify(answer.auth_data + bytes(32), answer.signature)
    assert registered.flags & (UP | UV) == UP
    assert AuthenticatorData(answer.auth_data).flags & (UP | UV) == UP
    assert answer.user_selected
    assert person.told == ["touch", "touch"]
    assert virtual.closed == 2


async def test_a_pin_verifies_the_user() -> None:
    key, person = before(VirtualKey(pin=PIN), PIN, PIN)
    assert AuthenticatorData((await made(key)).auth_data).flags & UV
    assert AuthenticatorData((await signed(key)).auth_data).flags & UV
    assert person.tries == [8, 8]


async def test_a_key_with_a_pin_makes_no_passkey_without_it_whatever_the_device_wants() -> None:
    key, person = before(VirtualKey(pin=PIN), PIN)
    assert AuthenticatorData((await made(key, user_verification=False)).auth_data).flags & UV
    assert not AuthenticatorData((await signed(key, user_verification=False)).auth_data).flags & UV
    assert len(person.tries) == 1


async def test_a_key_verifies_its_user_by_itself_where_it_can() -> None:
    key, person = before(VirtualKey(uv=True, pin=PIN))
    assert AuthenticatorData((await made(key)).auth_data).flags & UV
    assert person.told == ["verify", "touch"]


async def test_an_older_key_verifies_within_the_command() -> None:
    key, person = before(VirtualKey(uv=True, options={"pinUvAuthToken": False}))
    assert AuthenticatorData((await made(key)).auth_data).flags & UV
    assert person.told == ["verify", "touch"]


async def test_a_key_that_does_not_recognise_its_user_takes_the_pin() -> None:
    key, person = before(VirtualKey(uv=True, pin=PIN, recognises=2), PIN)
    assert AuthenticatorData((await made(key)).auth_data).flags & UV
    assert person.told == ["verify", "not-verified", "verify", "not-verified", "touch"]


async def test_info_says_what_holds_over_hybrid() -> None:
    key, _ = before(VirtualKey(pin=PIN))
    info = await key.info()
    assert info.options == {"rk": True, "up": True, "uv": True}
    assert info.extensions == ("credProtect", "prf")
    assert info.others == {}  # no PIN protocol, for one
    plain, _ = before(VirtualKey())
    assert "uv" not in (await plain.info()).options


async def test_of_several_accounts_the_user_chooses_one() -> None:
    virtual = VirtualKey()
    having(virtual, b"ada", b"bob", b"eve")
    key, person = before(virtual, account=1)
    answer = await signed(key, user_verification=False)
    (accounts,) = person.asked
    assert answer.user == accounts[1]
    assert answer.number_of_credentials is None
    none, _ = before(virtual, account=None)
    with pytest.raises(NotApproved):
        await signed(none, user_verification=False)


async def test_a_protection_reaches_the_key() -> None:
    key, _ = before(VirtualKey())
    reply = await made(key, user_verification=False, extensions={"credProtect": 2, "unknown": 1})
    assert AuthenticatorData(reply.auth_data).extensions == {"credProtect": 2}


async def test_prf_is_a_function_of_passkey_and_input() -> None:
    virtual = VirtualKey(pin=PIN)
    key, _ = before(virtual, *[PIN] * 6)
    reply = await made(key, extensions={"prf": {}})
    assert reply.unsigned_extension_outputs == {"prf": {"enabled": True}}
    first, second = bytes(32), bytes([1]) * 32

    async def evaluated(prf: dict[str, Any], *allowed: bytes) -> Any:
        answer = await signed(key, allow_list=allowed, extensions={"prf": prf})
        return answer.unsigned_extension_outputs["prf"]

    both = (await evaluated({"eval": {"first": first, "second": second}}))["results"]
    assert len(both["first"]) == len(both["second"]) == 32
    assert both["first"] != both["second"]
    assert (await evaluated({"eval": {"first": second}}))["results"] == {"first": both["second"]}
    name = virtual.credentials.credentials[0].credential_id
    by_credential = {"eval": {"first": first}, "evalByCredential": {name: {"first": second}}}
    assert (await evaluated(by_credential, b"other", name))["results"] == {"first": both["second"]}
    assert await evaluated({}) == {}


# Lists


async def test_an_exclude_list_is_the_keys_matter() -> None:
    virtual = VirtualKey()
    (name,) = having(virtual, b"ada")
    key, _ = before(virtual)
    for excluded in ((name,), (*strangers(30), name), (name, *strangers(30))):
        changes = {"user_verification": False, "exclude_list": excluded}
        assert await refused(made(key, **changes)) == Status.CREDENTIAL_EXCLUDED
    await made(key, user_verification=False, exclude_list=strangers(30))


async def test_a_long_allow_list_is_probed_without_a_touch() -> None:
    virtual = VirtualKey(pin=PIN)
    (name,) = having(virtual, b"ada")
    key, person = before(virtual, *[PIN] * 2)
    answer = await signed(key, allow_list=(*strangers(30), b"x" * 500, name))
    assert answer.credential_id == name
    assert not answer.user_selected
    assert person.told == ["touch"]
    assert await refused(signed(key, allow_list=strangers(30))) == Status.NO_CREDENTIALS
    assert person.told == ["touch"]


def strangers(count: int) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(bytes([number])).digest() for number in range(count))


# PINs


async def test_a_wrong_pin_is_asked_for_again_with_the_tries_that_are_left() -> None:
    key, person = before(VirtualKey(pin=PIN), "12", "4321", PIN)
    await made(key)
    assert person.tries == [8, 8, 7]  # a PIN that is too short is none
    assert person.told == ["pin-wrong", "pin-wrong", "touch"]


async def test_three_wrong_pins_end_it_until_the_key_is_pulled_out() -> None:
    virtual = VirtualKey(pin=PIN)
    key, person = before(virtual, *["4321"] * 3)
    assert await refused(made(key)) == Status.OPERATION_DENIED
    assert person.told == ["pin-wrong", "pin-wrong", "pin-over"]
    assert virtual.tries == 5
    again, person = before(virtual, PIN)
    assert await refused(made(again)) == Status.OPERATION_DENIED
    assert person.told == ["pin-over"]


@pytest.mark.parametrize("tries", [0, 1])
async def test_a_blocked_pin_ends_it(tries: int) -> None:
    key, person = before(VirtualKey(pin=PIN, tries=tries), *["4321"] * tries)
    assert await refused(made(key)) == Status.OPERATION_DENIED
    assert person.told == ["pin-over"]


async def test_without_a_pin_nothing_happens() -> None:
    virtual = VirtualKey(pin=PIN)
    key, _ = before(virtual, None)
    with pytest.raises(NotApproved) as caught:
        await made(key)
    assert caught.value.reason is Outcome.DECLINED
    assert virtual.credentials.credentials == ()
    assert Command.MAKE_CREDENTIAL not in virtual.calls


async def test_a_key_that_knows_no_verification_says_so() -> None:
    virtual = VirtualKey()
    key, person = before(virtual)
    assert await refused(made(key)) == Status.INVALID_OPTION
    assert person.told == ["key-cannot-verify"]
    options = AuthenticationOptions.parse(
        {"challenge": "AQ", "rpId": RP_ID, "userVerification": "required"}, origin=f"https://{RP_ID}"
    )
    with pytest.raises(HeadlessPasskeyError):  # our own device hears it before it asks
        options.ctap_request(await key.info())


async def test_a_key_that_recognises_nobody_and_has_no_pin_denies() -> None:
    key, _ = before(VirtualKey(uv=True, recognises=2))
    assert await refused(made(key)) == Status.OPERATION_DENIED


@pytest.mark.threat("T11")
async def test_a_pin_is_in_no_repr_and_no_error() -> None:
    key, _ = before(VirtualKey(pin=PIN), *["secret"] * 3)
    asked = await key.ask(Command.MAKE_CREDENTIAL, creation().encode())
    with pytest.raises(CtapError) as caught:
        await asked.answer(account=0, now=0)
    assert "secret" not in f"{caught.value!r}{caught.value.__cause__!r}{asked!r}{key!r}"


# Faults


class OffTheReaderError(Exception):
    """As pyscard's errors are."""

    __module__ = "smartcard.Exceptions"


@pytest.mark.parametrize("gone", [OSError(19, "No such device"), OffTheReaderError()], ids=["USB", "NFC"])
async def test_a_key_that_was_pulled_out_is_a_transport_error(gone: Exception) -> None:
    virtual = VirtualKey()
    key, _ = before(virtual)
    asked = await key.ask(Command.MAKE_CREDENTIAL, creation(user_verification=False).encode())
    virtual.gone = gone
    with pytest.raises(TransportError, match="has gone"):
        await asked.answer(account=0, now=0)
    with pytest.raises(TransportError, match="has gone"):
        await key.info()


async def test_nobody_who_waits_any_more_cancels_the_touch() -> None:
    virtual = VirtualKey(untouched=True)
    key, _ = before(virtual)
    answering = asyncio.ensure_future(made(key, user_verification=False))
    await asyncio.to_thread(virtual.waiting.wait)
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert virtual.cancelled.is_set()
    assert virtual.closed == 1


async def test_a_key_that_does_not_stop_keeps_nobody(loop_clock: LoopClock) -> None:
    deaf = threading.Event()
    virtual = VirtualKey(untouched=True, deaf=deaf)
    key, _ = before(virtual)
    answering = asyncio.ensure_future(made(key, user_verification=False))
    await asyncio.to_thread(virtual.waiting.wait)
    answering.cancel()
    await asyncio.to_thread(virtual.cancelled.wait)
    loop_clock.passes(2.5)
    with pytest.raises(asyncio.CancelledError):
        await answering
    deaf.set()


@pytest.mark.threat("T12")
@given(st.sampled_from([0x01, 0x02, 0x04, 0x06, 0x08]), st.binary(max_size=60))
async def test_whatever_a_key_answers_is_one_of_our_errors(command: int, reply: bytes) -> None:
    virtual = VirtualKey(pin=PIN, reply=lambda called: reply if called == command else None)
    having(virtual, b"ada", b"bob")
    for ask in (made, signed):
        key, _ = before(virtual, *[PIN] * 20)
        with contextlib.suppress(CtapError, RemoteProtocolError):
            await ask(key)


@pytest.mark.threat("T12")
@pytest.mark.parametrize("count", [65, 1 << 30])
async def test_a_key_with_endless_accounts_is_left(count: int) -> None:
    reply = GetAssertionResponse(
        auth_data=bytes(37), signature=b"s", credential_id=b"c" * 16, number_of_credentials=count
    )
    virtual = VirtualKey(reply=lambda called: b"\0" + reply.encode() if called == 0x02 else None)
    key, _ = before(virtual)
    with pytest.raises(RemoteProtocolError, match="accounts"):
        await signed(key, user_verification=False)


@pytest.mark.parametrize(
    ("command", "payload", "status"),
    [
        (0x04, b"", Status.INVALID_COMMAND),
        (0x07, b"", Status.INVALID_COMMAND),
        (0x01, b"\xff", Status.INVALID_CBOR),
        (0x02, cbor.encode({}), Status.INVALID_CBOR),
    ],
)
async def test_no_other_command_reaches_the_key(command: int, payload: bytes, status: Status) -> None:
    virtual = VirtualKey()
    key, _ = before(virtual)
    assert await refused(key.ask(command, payload)) == status
    assert virtual.calls == []


async def test_what_needs_the_users_consent_is_refused_without() -> None:
    key, _ = before(VirtualKey())
    silent = assertion(user_presence=False)
    assert await refused(key.ask(Command.GET_ASSERTION, silent.encode())) == Status.UNSUPPORTED_OPTION
    odd = creation(rp_id="not a domain")
    assert await refused(key.ask(Command.MAKE_CREDENTIAL, odd.encode())) == Status.INVALID_PARAMETER


# Finding one


def found(name: str) -> FoundKey:
    def open_none() -> CtapDevice:
        raise AssertionError

    return FoundKey(name, open_none)


async def test_a_key_is_waited_for(loop_clock: LoopClock) -> None:
    person, looks = Someone(), 0

    def find() -> list[FoundKey]:
        nonlocal looks
        looks += 1
        return [found("key")] if looks > 3 else []

    waiting = asyncio.ensure_future(wait_for_key(person, timeout=1000, find=find))
    while not waiting.done():
        loop_clock.passes(LOOK)
        await asyncio.sleep(0)
    assert waiting.result().name == "key"
    assert person.told == ["no-key"]


async def test_no_key_in_time_is_a_transport_error(loop_clock: LoopClock) -> None:
    waiting = asyncio.ensure_future(wait_for_key(Someone(), timeout=1000, find=list))
    while not waiting.done():
        loop_clock.passes(100)
        await asyncio.sleep(0)
    with pytest.raises(TransportError, match="no security key"):
        waiting.result()


async def test_of_several_keys_the_person_chooses_one() -> None:
    person = Someone(key=1)
    chosen = await wait_for_key(person, timeout=1000, find=lambda: [found("one"), found("two")])
    assert (chosen.name, person.keys) == ("two", ["one", "two"])
    with pytest.raises(NotApproved):
        await wait_for_key(Someone(key=None), timeout=1000, find=lambda: [found("one"), found("two")])


# The person at the terminal


@contextlib.contextmanager
def at_a_terminal(**more: Any) -> Iterator[tuple[AtTerminal, Screen]]:
    outer, inner = pty.openpty()
    screen = Screen(outer)
    try:
        path = os.ttyname(inner)
        yield AtTerminal(terminal=lambda: Terminal._at(path, "utf-8"), on_tell=print, **more), screen
    finally:
        screen.close()
        os.close(inner)


@pytest.mark.threat("T11")
async def test_a_pin_is_typed_unseen_and_the_tries_are_said() -> None:
    with at_a_terminal() as (person, screen):
        asking = asyncio.ensure_future(person.pin(3))
        seen = await screen.until("(3 tries left): ")
        screen.type("1234\n")
        assert await asking == "1234"
        assert "1234" not in seen + screen.seen


async def test_accounts_and_keys_are_chosen_by_number() -> None:
    with at_a_terminal() as (person, screen):
        choosing = asyncio.ensure_future(
            person.choose([User(id=b"1", name="ada"), User(id=b"2", name="b\x1bb")])
        )
        seen = await screen.until("Number, or n to decline: ")
        assert "1  ada" in seen
        assert "\x1b" not in seen
        screen.type("2\n")
        assert await choosing == 1
        keys = asyncio.ensure_future(person.choose_key(["one", "two"]))
        await screen.until("Number, or n to decline: ")
        screen.type("n\n")
        assert await keys is None


async def test_a_policy_takes_the_first_account() -> None:
    with at_a_terminal(first=True) as (person, _):
        assert await person.choose([User(id=b"1"), User(id=b"2")]) == 0


# The whole phone


@pytest.fixture
async def base(loopback_certificate: Certificate) -> AsyncIterator[str]:
    async with tunnel_service(loopback_certificate) as base:
        yield base


def phone(key: SecurityKey, air: Air, base: str, certificate: Certificate) -> SoftwarePhone:
    return SoftwarePhone(
        credentials=key,
        advertiser=air,
        tunnel_service=TunnelService(number=300, base=base),
        tls=certificate.client_context(),
        verify_user=accept,
    )


async def test_a_phone_answers_with_a_key(base: str, loopback_certificate: Certificate) -> None:
    key, _ = before(VirtualKey(pin=PIN), PIN, PIN)
    air = Air()
    requests: list[MakeCredentialRequest | GetAssertionRequest] = [creation(), assertion()]
    for kind, request in zip((RequestKind.MAKE_CREDENTIAL, RequestKind.GET_ASSERTION), requests, strict=True):
        device = Device(
            air, base, loopback_certificate.client_context(), transaction(kind, time=int(time.time()))
        )
        reply, _ = await asyncio.gather(
            device.ask(request),
            phone(key, air, base, loopback_certificate).answer(device.url, timeout=20),
        )
        ok(reply)


async def test_a_device_that_goes_takes_its_question_back_from_the_key(
    base: str, loopback_certificate: Certificate
) -> None:
    virtual = VirtualKey(untouched=True)
    key, _ = before(virtual)
    air = Air()
    url = transaction(RequestKind.MAKE_CREDENTIAL, time=int(time.time()))
    device = Device(air, base, loopback_certificate.client_context(), url)
    answering = asyncio.ensure_future(
        phone(key, air, base, loopback_certificate).answer(device.url, timeout=20)
    )
    async with device.joined() as (tunnel, channel):
        await tunnel.send(channel.send(creation(user_verification=False)))
        await asyncio.to_thread(virtual.waiting.wait)
        await tunnel.send(device.goodbye(channel))
        with pytest.raises(NotApproved) as caught:
            await answering
    assert caught.value.reason is Outcome.CANCELLED
    assert virtual.cancelled.is_set()
    assert virtual.credentials.credentials == ()


async def test_a_touch_that_does_not_come_in_time_is_status_2f(
    base: str, loopback_certificate: Certificate, loop_clock: LoopClock
) -> None:
    virtual = VirtualKey(untouched=True)
    key, _ = before(virtual)
    air = Air()
    url = transaction(RequestKind.MAKE_CREDENTIAL, time=int(time.time()))
    device = Device(air, base, loopback_certificate.client_context(), url)
    loop_clock.stop()
    answering = asyncio.ensure_future(
        phone(key, air, base, loopback_certificate).answer(device.url, timeout=60)
    )
    async with device.joined() as (tunnel, channel):
        await tunnel.send(channel.send(creation(user_verification=False)))
        await asyncio.to_thread(virtual.waiting.wait)
        loop_clock.passes(59.5)  # a second is kept for the answer
        assert (await device.reply(tunnel, channel)).code == Status.USER_ACTION_TIMEOUT
        await tunnel.send(device.goodbye(channel))
        with pytest.raises(NotApproved) as caught:
            await answering
    assert caught.value.reason is Outcome.EXPIRED
    assert virtual.cancelled.is_set()


# The program


@pytest.mark.parametrize(
    "more",
    [("--credentials", "passkeys.json"), ("--uv", "presence"), ("--algorithm", "es256"), ("--synced",)],
)
async def test_options_for_a_file_do_not_go_with_a_key(more: tuple[str, ...]) -> None:
    words = (
        "phone",
        "--url",
        "-",
        "--tunnel",
        "300=wss://localhost:1",
        "--radio",
        "stdout",
        "--security-key",
    )
    status, _, said = await outcome(*words, *more)
    assert status == 2
    assert "--security-key" in said[-1] or "security key" in said[-1]


async def test_without_a_key_the_program_asks_for_one_and_ends() -> None:
    words = (
        "phone",
        "--url",
        "-",
        "--tunnel",
        "300=wss://localhost:1",
        "--radio",
        "stdout",
        "--security-key",
    )
    status, _, said = await outcome(*words, "--uv", "accept", "--timeout", "0.1")
    assert status == 4
    assert "no security key was plugged in" in said[-1]
    assert not any("demonstrations" in line for line in said)  # a key protects its passkeys
