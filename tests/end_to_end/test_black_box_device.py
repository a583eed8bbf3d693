"""The device as a black box: adverts in, a FIDO URL and a response out, against a phone that misbehaves.

Every sentence of the contract is a test. The phone is the tests' own, on the real tunnel service, or, for what
that would never carry, behind a hostile one.
"""

import asyncio
import json
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
import webauthn
from aiohttp import web
from certificates import Certificate, make_certificate
from cryptography.hazmat.primitives.asymmetric import ec
from fido2.server import Fido2Server
from fido2.webauthn import PublicKeyCredentialRpEntity, PublicKeyCredentialUserEntity
from programs import PROGRAMS

from headless_passkey.errors import TransportError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.authenticator import PhoneTransaction
from headless_passkey.hybrid.channel import AuthenticatorChannel
from headless_passkey.hybrid.fido_url import FidoUrl
from headless_passkey.hybrid.messages import Ctap
from headless_passkey.text.base64url import from_base64url
from program_parts.base64url import base64url
from tests.end_to_end.black_box import (
    Outcome,
    Running,
    outcome,
    running,
    side_by_side,
    tunnel_service,
    write_json,
)
from tests.end_to_end.hostile_phone import (
    AT,
    ED,
    UP,
    UV,
    Behaviour,
    Call,
    HostilePhone,
    HostileTunnel,
    Passkey,
    raw_map,
    wait_for_hang_up,
    websocket_of,
)
from tests.ports import reserved_port

ORIGIN: Final = "https://login.example.com"
RP_ID: Final = "example.com"
FOREIGN_ADVERT: Final = "00" * 20
BOB: Final = {"id": b"bob", "name": "bob"}


@pytest.fixture(scope="module")
def tunnels(loopback_certificate: Certificate) -> Iterator[str]:
    """The real tunnel service: its base URL."""
    with tunnel_service(loopback_certificate) as base:
        yield base


@pytest.fixture
async def hostile(loopback_certificate: Certificate) -> AsyncIterator[HostileTunnel]:
    async with HostileTunnel.start(loopback_certificate) as service:
        yield service


class Outside:
    """What the device needs around it."""

    def __init__(self, base: str, certificate: Certificate, folder: Path) -> None:
        self.base, self.certificate, self.folder = base, certificate, folder
        self.challenge = secrets.token_bytes(32)

    def request_options(self, **changes: Any) -> dict[str, Any]:
        return _changed({"challenge": base64url(self.challenge), "rpId": RP_ID}, changes)

    def creation_options(self, **changes: Any) -> dict[str, Any]:
        options = {
            "challenge": base64url(self.challenge),
            "rp": {"id": RP_ID, "name": "Example"},
            "user": {"id": base64url(b"alice"), "name": "alice", "displayName": "Alice"},
            "pubKeyCredParams": [{"type": "public-key", "alg": -7}],
        }
        return _changed(options, changes)

    def words(self, command: str, options: object, *more: object, base: str | None = None) -> list[object]:
        file = options if isinstance(options, Path | str) else write_json(self.folder, options)
        return [
            *("headless-passkey", command, "--options", file, "--origin", ORIGIN),
            *("--delivery", "stdout", "--radio", "stdin", "--tunnel", f"300={base or self.base}"),
            *("--ca", self.certificate.ca, "--timeout", "25", *more),
        ]

    @asynccontextmanager
    async def device(
        self, *more: object, command: str = "sign-in", options: object = None, base: str | None = None
    ) -> AsyncIterator[tuple[Running, FidoUrl]]:
        """A device that has printed its FIDO URL."""
        if options is None:
            options = self.request_options() if command == "sign-in" else self.creation_options()
        async with running(*self.words(command, options, *more, base=base)) as device:
            yield device, FidoUrl.parse(await device.line())

    def phone(self, url: FidoUrl, **more: Any) -> HostilePhone:
        return HostilePhone(url, self.base, self.certificate.client_context(), **more)

    async def ceremony(
        self,
        behaviour: Behaviour,
        *more: object,
        command: str = "sign-in",
        options: object = None,
        passkey: Passkey | None = None,
        within: float = 20.0,
    ) -> Outcome:
        """One ceremony with a phone on the real tunnel service; the device ends by itself, in bounded time."""
        async with self.device(*more, command=command, options=options) as (device, url):
            phone = self.phone(url, passkey=passkey or Passkey())
            async with phone.advertising() as (advert, call):
                await device.give(advert)
                with suppress(TransportError):  # the device may go before the phone has said all it wants to
                    await behaviour(call)
                status = await device.status(within=within)
            return Outcome(status=status, stdout=await device.rest(), said=device.said)

    async def ceremonies(self, behaviours: Mapping[str, Behaviour], **how: Any) -> dict[str, Outcome]:
        """One ceremony with each phone, a few at a time."""
        ended = await side_by_side(*(self.ceremony(behaviour, **how) for behaviour in behaviours.values()))
        return dict(zip(behaviours, ended, strict=True))


def _changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (values | changes).items() if value is not None}


@pytest.fixture
def outside(tunnels: str, loopback_certificate: Certificate, tmp_path: Path) -> Outside:
    return Outside(tunnels, loopback_certificate, tmp_path)


def response_of(outcome: Outcome) -> dict[str, Any]:
    """What the device printed after its URL: one line, one object."""
    assert outcome.status == 0, outcome.said
    assert outcome.stdout.endswith("\n")
    assert outcome.stdout.count("\n") == 1
    value: dict[str, Any] = json.loads(outcome.stdout)
    return value


async def honest(call: Call) -> None:
    await call.answer()
    await call.goodbye()


# stdout: two lines, and what they hold


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "in publicKey"])
@pytest.mark.parametrize("command", ["sign-in", "register"])
async def test_stdout_is_the_url_before_any_advert_and_then_the_response_on_one_line(
    outside: Outside, command: str, *, wrapped: bool
) -> None:
    options = outside.request_options() if command == "sign-in" else outside.creation_options()
    async with outside.device(command=command, options={"publicKey": options} if wrapped else options) as (
        device,
        url,
    ):  # it is here before any advert was given
        assert url.hint == ("ga" if command == "sign-in" else "mc")
        assert url.assigned_domains == 2
        assert (url.linking, url.channels) == (False, None)
        async with outside.phone(url).advertising() as (advert, call):
            await device.give(advert)
            await honest(call)
            response = json.loads(await device.line())
            assert await device.rest() == ""
            assert await device.status() == 0
    assert response["type"] == "public-key"
    assert response["rawId"] == response["id"] == base64url(call.passkey.credential_id)
    client_data = json.loads(from_base64url(response["response"]["clientDataJSON"]))
    assert client_data["origin"] == ORIGIN
    assert client_data["challenge"] == base64url(outside.challenge)


async def test_every_run_has_a_url_of_its_own(outside: Outside) -> None:
    async with outside.device() as (_, first), outside.device() as (_, second):
        assert first.secret != second.secret
        assert first.public_key != second.public_key


async def test_a_registration_and_a_sign_in_verify_in_py_webauthn(outside: Outside) -> None:
    passkey = Passkey()
    registered = await outside.ceremony(honest, command="register", passkey=passkey)
    made = webauthn.verify_registration_response(
        credential=response_of(registered),
        expected_challenge=outside.challenge,
        expected_rp_id=RP_ID,
        expected_origin=ORIGIN,
        require_user_verification=True,
    )
    assert made.credential_id == passkey.credential_id
    signed_in = await outside.ceremony(honest, passkey=passkey)
    verified = webauthn.verify_authentication_response(
        credential=response_of(signed_in),
        expected_challenge=outside.challenge,
        expected_rp_id=RP_ID,
        expected_origin=ORIGIN,
        credential_public_key=made.credential_public_key,
        credential_current_sign_count=0,
        require_user_verification=True,
    )
    assert verified.user_verified


async def test_a_registration_and_a_sign_in_complete_at_fido2s_server_with_its_own_options(
    outside: Outside,
) -> None:
    server = Fido2Server(PublicKeyCredentialRpEntity(id=RP_ID, name="Example"), verify_origin=ORIGIN.__eq__)
    passkey = Passkey()
    creation, state = server.register_begin(
        PublicKeyCredentialUserEntity(id=b"alice", name="alice", display_name="Alice")
    )
    registered = await outside.ceremony(honest, command="register", options=dict(creation), passkey=passkey)
    credential = server.register_complete(state, response_of(registered)).credential_data
    assert credential is not None
    request, state = server.authenticate_begin([credential])
    signed_in = await outside.ceremony(honest, options=dict(request), passkey=passkey)
    used = server.authenticate_complete(state, [credential], response_of(signed_in))
    assert used.credential_id == passkey.credential_id


# stdin: advert lines


FORMS: Final[dict[str, Callable[[str], str]]] = {
    "bare": lambda line: f"{line}\n",
    "upper case": lambda line: f"{line.upper()}\n",
    "CR LF": lambda line: f"{line}\r\n",
    "the FIDO prefix": lambda line: f"fff9:{line}\n",
    "Google's prefix, everything upper": lambda line: f"FDE2:{line.upper()}\r\n",
    "a suffix, as CTAP 2.3 puts it": lambda line: f"{line}a10119beef\n",
    "no end of line before the end of input": lambda line: line,
}


async def test_an_advert_line_may_have_a_prefix_any_case_cr_lf_and_more_than_20_bytes(
    outside: Outside,
) -> None:
    async def one(form: Callable[[str], str]) -> int:
        async with outside.device() as (device, url), outside.phone(url).advertising() as (advert, call):
            await device.give(form(advert.strip()))
            device.close_stdin()
            await honest(call)
            return await device.status()

    ended = await side_by_side(*map(one, FORMS.values()))
    assert dict(zip(FORMS, ended, strict=True)) == dict.fromkeys(FORMS, 0)


@pytest.mark.threat("T12")
async def test_lines_that_hold_no_advert_are_reported_and_skipped_and_foreign_adverts_ignored(
    outside: Outside,
) -> None:
    junk = [
        b"hello\n",
        b"\n",
        b"abc\n",
        b"00" * 19 + b"\n",
        b"fff9:\n",
        b"fffa:" + b"00" * 20 + b"\n",
        b"00 " * 20 + b"\n",
        b" " + b"00" * 20 + b"\n",
        b"\xff\xfe\x00\n",
        b"00" * 2000 + b"\n",
        b"0" * 200_000 + b"\n",
        b"\x1b[2J\n",
    ]
    async with outside.device() as (device, url), outside.phone(url).advertising() as (advert, call):
        for line in junk:
            await device.give(line)
        await device.give(f"{FOREIGN_ADVERT}\n" * 3)
        await device.give(f"fde2:{FOREIGN_ADVERT}{'00' * 30}\n")
        await device.give(advert)
        await honest(call)
        assert await device.status() == 0
    skipped = [line for line in device.said if "skipped" in line]
    assert len(skipped) == len(junk), device.said
    assert all(line.isprintable() for line in device.said)


async def test_input_that_ends_before_an_advert_opened_is_4(outside: Outside) -> None:
    for words in ("", f"{FOREIGN_ADVERT}\n", "what\n"):
        async with outside.device() as (device, _):
            await device.give(words)
            device.close_stdin()
            assert await device.status(within=20) == 4
            assert "ended" in device.failure()
            assert await device.rest() == ""


async def test_an_advert_that_names_a_domain_nobody_knows_is_ignored(outside: Outside) -> None:
    async with outside.device() as (device, url):
        for number in (2, 255):
            advertised = PhoneTransaction(url).advertise(routing_id=bytes(3), tunnel_domain=number)
            await device.give(f"{advertised.service_data.hex()}\n")
        device.close_stdin()
        assert await device.status(within=20) == 4


async def test_the_end_of_input_after_an_advert_opened_does_not_matter(outside: Outside) -> None:
    async with outside.device() as (device, url), outside.phone(url).advertising() as (advert, call):
        await device.give(advert)
        await call.connect()
        asked = await call.request()
        device.close_stdin()
        await call.reply(0, call.passkey.assertion(asked.payload))
        assert await device.status() == 0


async def test_one_advert_heard_many_times_is_one_visit(outside: Outside, hostile: HostileTunnel) -> None:
    async with outside.device(base=hostile.base) as (device, url):
        advert = hostile.advert(url, honest)
        await device.give(advert * 50)
        assert await device.status() == 0
    assert hostile.visits == 1


# The tunnel and the handshake


async def _close_at_once(call: Call) -> None:
    del call


async def _close_after_message_1(call: Call) -> None:
    await call.line.receive()


def _message_2(change: str) -> Behaviour:
    async def behaviour(call: Call) -> None:
        message1 = await call.line.receive()
        message2, _ = call.advertised.respond(message1)
        await call.line.send(
            {
                "echo": message1,
                "tag": message2[:-1] + bytes([message2[-1] ^ 1]),
                "point": b"\x04" + b"\x01" * 64 + message2[65:],
                "compressed": b"\x02" + message2[1:33] + message2[65:],
                "short": message2[:-1],
                "long": message2 + b"\0",
                "empty": b"",
                "other": secrets.token_bytes(81),
            }[change]
        )
        await wait_for_hang_up(call)

    return behaviour


async def _wrong_psk(call: Call) -> None:
    """The phone of somebody who has read another URL."""
    message1 = await call.line.receive()
    ephemeral = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    point = b"\x04" + ephemeral.x.to_bytes(32, "big") + ephemeral.y.to_bytes(32, "big")
    await call.line.send(point + message1[-16:])
    await wait_for_hang_up(call)


async def _text_for_message_2(call: Call) -> None:
    await call.line.receive()
    await websocket_of(call).send_str("hello")
    await wait_for_hang_up(call)


async def _oversize_message_2(call: Call) -> None:
    await call.line.receive()
    await call.line.send(bytes((1 << 20) + 1))


async def _close_after_message_2(call: Call) -> None:
    await call.shake_hands()


def _post_handshake(plaintext: bytes) -> Behaviour:
    async def behaviour(call: Call) -> None:
        await call.shake_hands()
        await call.say_raw(plaintext)
        await wait_for_hang_up(call)

    return behaviour


async def _garbage_post_handshake(call: Call) -> None:
    await call.shake_hands()
    await call.line.send(secrets.token_bytes(64))
    await wait_for_hang_up(call)


async def _text_post_handshake(call: Call) -> None:
    await call.shake_hands()
    await websocket_of(call).send_str("{}")
    await wait_for_hang_up(call)


_INFO = cbor.encode({1: ["FIDO_2_0"], 3: bytes(16)})
HANDSHAKES: Final[dict[str, Behaviour]] = {
    "closes at once": _close_at_once,
    "closes after message 1": _close_after_message_1,
    "message 2 is message 1": _message_2("echo"),
    "message 2 with a wrong tag": _message_2("tag"),
    "message 2 with a point off the curve": _message_2("point"),
    "message 2 with a compressed point": _message_2("compressed"),
    "message 2 too short": _message_2("short"),
    "message 2 too long": _message_2("long"),
    "message 2 empty": _message_2("empty"),
    "message 2 of noise": _message_2("other"),
    "wrong PSK": _wrong_psk,
    "text for message 2": _text_for_message_2,
    "message 2 of more than a MiB": _oversize_message_2,
    "closes after message 2": _close_after_message_2,
    "garbage after the handshake": _garbage_post_handshake,
    "text after the handshake": _text_post_handshake,
    "post-handshake that is no CBOR": _post_handshake(b"\xff" * 40),
    "post-handshake that is no map": _post_handshake(cbor.encode([1])),
    "post-handshake that is empty": _post_handshake(b""),
    "post-handshake without ctap": _post_handshake(cbor.encode({3: ["dc"]})),
    "post-handshake that claims ctap without getInfo": _post_handshake(cbor.encode({3: ["ctap"]})),
    "post-handshake with getInfo that is no map": _post_handshake(cbor.encode({1: b"\x80", 3: ["ctap"]})),
    "post-handshake with features that are no list": _post_handshake(cbor.encode({1: _INFO, 3: "ctap"})),
}


async def _not_found(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=404)


async def _redirect(request: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect(request.path.replace("0", "1"))


async def _no_websocket(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="hello")


async def _no_subprotocol(request: web.Request) -> web.StreamResponse:
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    await websocket.close()
    return websocket


@pytest.mark.threat("T9")
async def test_after_every_tunnel_and_handshake_that_fails_the_device_listens_on_and_a_good_advert_succeeds(
    outside: Outside, hostile: HostileTunnel
) -> None:
    async with outside.device("--json", base=hostile.base) as (device, url):
        failures = 0
        for name, behaviour in HANDSHAKES.items():
            await device.give(hostile.advert(url, behaviour))
            failures += 1
            await _failures(device, failures, name)
        for refuse in (_not_found, _redirect, _no_websocket, _no_subprotocol):
            await device.give(hostile.advert(url, honest, refuse=refuse))
            failures += 1
            await _failures(device, failures, refuse.__name__)
        assert len(hostile.paths) == failures  # no redirect was followed
        await device.give(hostile.advert(url, honest))
        assert await device.status() == 0
        assert json.loads(await device.line())["type"] == "public-key"


async def _failures(device: Running, count: int, name: str) -> None:
    """Wait until so many adverts have been tried in vain; each may be tried again."""

    def first_failures(lines: Sequence[str]) -> int:
        return sum('"attempt-failed"' in line and '"attempt": 1' in line for line in lines)

    said = await device.until(lambda lines: first_failures(lines) >= count)
    assert said, f"{name} ended the device: {device.said}"


async def test_a_phone_that_never_answers_message_1_does_not_keep_the_device_from_another(
    outside: Outside, hostile: HostileTunnel
) -> None:
    async def silent(call: Call) -> None:
        await call.line.receive()
        silence.set()
        await call.line.receive()

    silence = asyncio.Event()
    async with outside.device(base=hostile.base) as (device, url):
        await device.give(hostile.advert(url, silent))
        await silence.wait()
        await device.give(hostile.advert(url, honest))
        assert await device.status(within=20) == 0


async def test_many_tunnels_that_fail_one_after_the_other_are_no_reason_to_stop_listening(
    outside: Outside, hostile: HostileTunnel
) -> None:
    async with outside.device("--json", base=hostile.base) as (device, url):
        for count in range(1, 60):
            await device.give(hostile.advert(url, _close_at_once))
            await _failures(device, count, "a tunnel that closes")
        await device.give(hostile.advert(url, honest))
        assert await device.status() == 0


async def test_the_same_advert_is_tried_again_when_its_tunnel_failed_before(
    outside: Outside, hostile: HostileTunnel
) -> None:
    calls = 0

    async def better_later(call: Call) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            await honest(call)

    async with outside.device(base=hostile.base) as (device, url):
        advert = hostile.advert(url, better_later)

        async def repeat() -> None:
            while True:
                await device.give(advert)
                await asyncio.sleep(0.05)  # as a radio does

        repeating = asyncio.create_task(repeat())
        try:
            assert await device.status() == 0
        finally:
            repeating.cancel()
    assert calls == 3


async def test_a_tunnel_that_cannot_be_reached_is_said_and_the_deadline_is_7(outside: Outside) -> None:
    nobody = f"wss://localhost:{reserved_port()}"
    async with outside.device("--timeout", "1.5", base=nobody) as (device, url):
        advertised = PhoneTransaction(url).advertise(routing_id=bytes(3), tunnel_domain=300)
        await device.give(f"{advertised.service_data.hex()}\n")
        assert await device.status() == 7


@pytest.mark.threat("T9")
@pytest.mark.parametrize("wrong", ["authority", "host name", "system roots"])
async def test_a_tunnel_that_cannot_prove_its_name_is_not_spoken_to(
    outside: Outside, hostile: HostileTunnel, tmp_path: Path, wrong: str
) -> None:
    base, more = hostile.base, ["--log-level", "info"]
    if wrong == "authority":
        (tmp_path / "other").mkdir()
        more += ["--ca", str(make_certificate(tmp_path / "other", names=["localhost"]).ca)]
    words = outside.words("sign-in", outside.request_options(), *more, base=base)
    if wrong == "system roots":
        at = words.index("--ca")
        del words[at : at + 2]
    async with _with_name(outside, tmp_path, wrong) as other:
        if other is not None:
            words[words.index(f"300={base}")] = f"300={other.base}"
        async with running(*words) as device:
            url = FidoUrl.parse(await device.line())
            await device.give((other or hostile).advert(url, honest))
            await device.until_said("certificate")
            device.signal(signal.SIGTERM)  # it would listen on
            assert await device.status() == 130
    assert (other or hostile).visits == 0


@asynccontextmanager
async def _with_name(outside: Outside, folder: Path, wrong: str) -> AsyncIterator[HostileTunnel | None]:
    """A tunnel whose certificate, of the right authority, is for another host; or none."""
    if wrong != "host name":
        yield None
        return
    certificate = make_certificate(folder, names=["elsewhere.example"])
    outside.certificate = certificate
    async with HostileTunnel.start(certificate) as service:
        yield service


# The deadline and signals


async def test_the_deadline_is_7_whatever_it_waits_for(outside: Outside) -> None:
    async def silent(call: Call) -> None:
        await call.connect()
        await call.request()

    async def nothing() -> int:
        async with outside.device("--timeout", "1.5") as (device, _):
            return await device.status(within=20)

    ended, heard_nothing = await asyncio.gather(outside.ceremony(silent, "--timeout", "1.5"), nothing())
    assert (ended.status, heard_nothing) == (7, 7)


async def test_the_deadline_holds_for_options_that_never_come(outside: Outside) -> None:
    words = outside.words("sign-in", "-", "--timeout", "0.5")
    words[words.index("stdin")] = f"bumble:tcp-client:127.0.0.1:{reserved_port()}"
    async with running(*words) as device:
        assert await device.status(within=20) == 4  # nobody has been asked
    assert "[no-input]" in device.failure()


STAGES: Final = ("listening", "handshake", "asked")
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


async def test_a_signal_ends_it_with_130_at_every_stage(outside: Outside) -> None:
    async def one(number: signal.Signals, stage: str) -> None:
        async with outside.device() as (device, url), outside.phone(url).advertising() as (advert, call):
            if stage != "listening":
                await device.give(advert)
            if stage == "handshake":
                await call.line.receive()
            if stage == "asked":
                await call.connect()
                await call.request()
            device.signal(number)
            assert await device.status(within=20) == 130, (number, stage)
            assert "interrupted" in device.failure()
            assert await device.rest() == ""

    await side_by_side(*(one(number, stage) for number in SIGNALS for stage in STAGES))


async def test_a_signal_ends_it_with_130_while_it_reads_its_input(outside: Outside) -> None:
    commands: list[list[object]] = [
        ["headless-passkey", "inspect"],
        ["headless-passkey", "join", "--invitation", "-", "--label", "x", "--state", outside.folder],
        ["headless-passkey", "sign-in", "--options", "-", "--origin", ORIGIN, "--delivery", "stdout"],
    ]

    async def one(words: list[object], number: signal.Signals) -> None:
        async with running(*words, "--log-level", "debug") as program:
            await program.until_said("reading stdin")
            program.signal(number)
            assert await program.status(within=20) == 130, (words, number)

    await side_by_side(*(one(words, number) for words in commands for number in SIGNALS))


# What the phone answers


def _answer(**changes: Any) -> Behaviour:
    async def behaviour(call: Call) -> None:
        await call.answer(**changes)

    return behaviour


def _with_auth_data(**how: Any) -> Behaviour:
    async def behaviour(call: Call) -> None:
        await call.answer(auth_data=call.passkey.auth_data(**how))

    return behaviour


def _payload(change: str) -> Behaviour:
    """A reply of status success whose CBOR is not as it should be."""

    async def behaviour(call: Call) -> None:
        await call.connect()
        good = call.passkey.assertion((await call.request()).payload)
        values = cbor.decode_map(good)
        backwards = raw_map(*reversed(values.items()))
        repeated = raw_map((1, values[1]), (1, values[1]), (2, values[2]), (3, values[3]), (4, values[4]))
        await call.reply(
            0,
            {
                "empty": b"",
                "truncated": good[:-1],
                "trailing": good + b"\0",
                "backwards": backwards,
                "repeated": repeated,
                "array": cbor.encode([values]),
                "indefinite": b"\xbf" + good[1:] + b"\xff",
                "long head": good.replace(b"\x58\x25", b"\x59\x00\x25", 1),
                "deep": b"\x81" * 5000 + b"\x00",
                "huge": b"\x5b" + b"\xff" * 8,
                "tag": b"\xc0" + good,
            }[change],
        )

    return behaviour


def _says(kind: int, payload: bytes = b"") -> Behaviour:
    """Another message than a reply, after the request."""

    async def behaviour(call: Call) -> None:
        await call.connect()
        await call.request()
        await call.say(kind, payload)

    return behaviour


async def _early_reply(call: Call) -> None:
    """An answer to what was not asked yet."""
    await call.connect()
    await call.say(1, b"\x00" + cbor.encode({}))


async def _empty_message(call: Call) -> None:
    await call.connect()
    await call.request()
    await call.say_raw(b"")


async def _bad_padding(call: Call) -> None:
    await call.connect()
    await call.request()
    await call.line.send(call.open_channel._sending.encrypt(b"\x01\x00" + b"\xff" * 30))


async def _garbage(call: Call) -> None:
    await call.connect()
    await call.request()
    await call.line.send(secrets.token_bytes(96))


async def _replayed(call: Call) -> None:
    await call.shake_hands()
    message = call.open_channel._seal(cbor.encode({1: _INFO}))
    await call.line.send(message)
    await call.request()
    await call.line.send(message)


PROTOCOL: Final[dict[str, Behaviour]] = {
    "wrong rpIdHash": _with_auth_data(rp_id="evil.example"),
    "user presence missing": _with_auth_data(flags=UV),
    "authData too short": _answer(auth_data=b"\x01" * 36),
    "authData with trailing bytes": _with_auth_data(tail=b"\0"),
    "authData that announces a credential it lacks": _with_auth_data(flags=UP | UV | AT),
    "authData with extensions that are no map": _with_auth_data(flags=UP | UV | ED, tail=b"\x01"),
    "no user without allow list": _answer(key_4=None),
    "a user with an empty id": _answer(key_4={"id": b""}),
    "no credential without allow list": _answer(key_1=None),
    "no signature": _answer(key_3=None),
    "an empty payload": _payload("empty"),
    "CBOR cut short": _payload("truncated"),
    "CBOR with trailing bytes": _payload("trailing"),
    "CBOR keys out of order": _payload("backwards"),
    "CBOR keys repeated": _payload("repeated"),
    "CBOR of indefinite length": _payload("indefinite"),
    "CBOR with a length in too many bytes": _payload("long head"),
    "CBOR nested without end": _payload("deep"),
    "CBOR that claims exabytes": _payload("huge"),
    "a JSON message": _says(3, b"{}"),
    "a shutdown in place of a reply": _says(0),
    "a message of unknown type": _says(9),
    "a CTAP message without status": _says(1),
    "an update that is no CBOR": _says(2, b"\xff"),
    "a reply before the request": _early_reply,
    "an empty message": _empty_message,
    "padding that does not fit": _bad_padding,
    "garbage": _garbage,
    "the post-handshake message replayed": _replayed,
}


@pytest.mark.threat("T9")
@pytest.mark.threat("T12")
async def test_a_phone_that_breaks_the_protocol_is_3(outside: Outside) -> None:
    ended = await outside.ceremonies(PROTOCOL)
    assert {name: (one.status, one.stdout) for name, one in ended.items()} == dict.fromkeys(PROTOCOL, (3, ""))
    for one in ended.values():
        assert len([line for line in one.said if line.startswith("headless-passkey:")]) == 1


def _registered(
    *,
    flags: int = UP | UV | AT,
    rp_id: str = RP_ID,
    cut: int | None = None,
    more: bytes = b"",
    **attested: Any,
) -> Behaviour:
    """A registration that gets something wrong. attested: of the credential; cut, more: at its end."""

    async def behaviour(call: Call) -> None:
        tail = call.passkey.attested(**attested)[:cut] + more if flags & AT else b""
        await call.answer(auth_data=call.passkey.auth_data(flags=flags, rp_id=rp_id, tail=tail))

    return behaviour


async def _an_assertion(call: Call) -> None:
    await call.connect()
    asked = await call.request()
    await call.reply(0, call.passkey.assertion(cbor.encode({2: cbor.decode_map(asked.payload)[1]})))


_ED25519: Final = cbor.encode({1: 1, 3: -8, -1: 6, -2: bytes(32)})
REGISTRATION: Final[dict[str, Behaviour]] = {
    "wrong rpIdHash": _registered(rp_id="evil.example"),
    "no credential": _registered(flags=UP | UV),
    "user presence missing": _registered(flags=UV | AT),
    "an empty credential ID": _registered(credential_id=b""),
    "a key of an algorithm nobody offered": _registered(cose_key=_ED25519),
    "a key that is no map": _registered(cose_key=b"\x80"),
    "a key that is no CBOR": _registered(cose_key=b"\xff"),
    "trailing bytes": _registered(more=b"\0"),
    "authData cut short": _registered(cut=20),
    "authData cut in the key": _registered(cut=-1),
    "an assertion": _an_assertion,
}


@pytest.mark.threat("T12")
async def test_a_phone_that_breaks_the_protocol_of_registration_is_3(outside: Outside) -> None:
    ended = await outside.ceremonies(REGISTRATION, command="register")
    assert {name: (one.status, one.stdout) for name, one in ended.items()} == dict.fromkeys(
        REGISTRATION, (3, "")
    )


@pytest.mark.parametrize("stage", ["before the request", "after the request"])
async def test_a_phone_that_hangs_up_is_4(outside: Outside, stage: str) -> None:
    async with outside.device() as (device, url):
        async with outside.phone(url).advertising() as (advert, call):
            await device.give(advert)
            await call.connect()
            if stage == "after the request":
                await call.request()
        assert await device.status(within=20) == 4
        assert await device.rest() == ""


@pytest.mark.parametrize("how", ["text", "oversize"])
async def test_a_frame_that_no_tunnel_carries_is_3(
    outside: Outside, hostile: HostileTunnel, how: str
) -> None:
    async def behaviour(call: Call) -> None:
        await call.connect()
        await call.request()
        if how == "text":
            await websocket_of(call).send_str("{}")
        else:
            await call.line.send(bytes((1 << 20) + 1))
        await wait_for_hang_up(call)

    async with outside.device(base=hostile.base) as (device, url):
        await device.give(hostile.advert(url, behaviour))
        assert await device.status(within=20) == 3


NO: Final = {
    0x27: "CTAP2_ERR_OPERATION_DENIED",
    0x2E: "CTAP2_ERR_NO_CREDENTIALS",
    0x7F: "CTAP1_ERR_OTHER",
    0xE7: "0xE7",  # which the specification does not name
}


async def test_a_no_of_the_phone_is_5_and_its_status_is_named(outside: Outside) -> None:
    async def one(status: int) -> Outcome:
        async def no(call: Call) -> None:
            await call.connect()
            await call.request()
            await call.reply(status)

        return await outside.ceremony(no)

    for (status, name), ended in zip(NO.items(), await side_by_side(*map(one, NO)), strict=True):
        assert (ended.status, ended.stdout) == (5, ""), name
        assert name in ended.failure
        assert f"0x{status:02X}" in ended.failure


async def test_uv_missing_is_3_when_it_was_required_and_fine_when_not(outside: Outside) -> None:
    unverified = _with_auth_data(flags=UP)
    refused, taken = await asyncio.gather(
        outside.ceremony(unverified, options=outside.request_options(userVerification="required")),
        outside.ceremony(unverified),
    )
    assert (refused.status, taken.status) == (3, 0)
    selection = {"userVerification": "required"}

    async def behaviour(call: Call) -> None:
        tail = call.passkey.attested()
        await call.answer(auth_data=call.passkey.auth_data(flags=UP | AT, tail=tail))

    ended = await outside.ceremony(
        behaviour, command="register", options=outside.creation_options(authenticatorSelection=selection)
    )
    assert ended.status == 3


async def test_a_credential_outside_the_allow_list_is_3(outside: Outside) -> None:
    allowed = [{"type": "public-key", "id": base64url(b"another"), "transports": ["usb"]}]
    ended = await outside.ceremony(_answer(), options=outside.request_options(allowCredentials=allowed))
    assert (ended.status, ended.stdout) == (3, "")
    assert "allow list" in ended.failure


async def test_with_one_allowed_credential_the_phone_need_name_neither_it_nor_the_user(
    outside: Outside,
) -> None:
    name = Passkey().credential_id
    options = outside.request_options(allowCredentials=[{"type": "public-key", "id": base64url(name)}])
    ended = await outside.ceremony(_answer(key_1=None, key_4=None), options=options)
    assert response_of(ended)["id"] == base64url(name)
    assert "userHandle" not in response_of(ended)["response"]


async def _update_first(call: Call) -> None:
    await call.connect()
    await call.say(2, cbor.encode({0: bytes(300), 7: "later"}))
    asked = await call.request()
    await call.say(2, cbor.encode({1: {1: b"contact"}}))
    await call.reply(0, call.passkey.assertion(asked.payload))


async def _two_replies(call: Call) -> None:
    await call.answer()
    await call.say(1, b"\x00" + cbor.encode({1: 2}))


async def _goodbye_after_the_reply(call: Call) -> None:
    await call.answer()
    await call.say(0)


async def _revision_0(call: Call) -> None:
    await call.shake_hands()
    body = cbor.encode({1: _INFO})
    zeros = 510 - len(body)
    await call.say_raw(body + bytes(zeros) + zeros.to_bytes(2, "little"))
    channel = call.open_channel
    request = _unframed(channel, await call.line.receive())
    assert request[0] == 2
    await call.say_raw(b"\x00" + call.passkey.assertion(request[1:]))


def _unframed(channel: AuthenticatorChannel, message: bytes) -> bytes:
    plaintext = channel._receiving.decrypt(message)
    return plaintext[: -1 - plaintext[-1]]


async def _strange_features(call: Call) -> None:
    await call.shake_hands()
    await call.say_raw(cbor.encode({0: bytes(100), 1: _INFO, 3: ["ctap", "dc", "later"], 99: None}))
    asked = call.open_channel.receive(await call.line.receive())
    assert isinstance(asked, Ctap)
    await call.say_raw(b"\x01\x00" + call.passkey.assertion(asked.payload, key_99="later", key_6=True))


async def _padded_outside_the_type(call: Call) -> None:
    """Padded first and typed then, as one known phone does it: the total is no multiple of 32."""
    await call.connect()
    asked = await call.request()
    body = b"\x00" + call.passkey.assertion(asked.payload)
    zeros = 31 - len(body) % 32
    padded = b"\x01" + body + bytes(zeros) + bytes([zeros])
    await call.line.send(call.open_channel._sending.encrypt(padded))


FINE: Final[dict[str, Behaviour]] = {
    "updates before the reply": _update_first,
    "two replies": _two_replies,
    "a goodbye after the reply": _goodbye_after_the_reply,
    "revision 0": _revision_0,
    "unknown features and members": _strange_features,
    "padding outside the type": _padded_outside_the_type,
    "extension outputs": _with_auth_data(flags=UP | UV | ED, tail=cbor.encode({"later": True})),
}


async def test_what_phones_may_do_is_taken(outside: Outside) -> None:
    passkey = Passkey()
    for name, ended in (await outside.ceremonies(FINE, passkey=passkey)).items():
        assert ended.status == 0, (name, ended.said)
        webauthn.verify_authentication_response(
            credential=response_of(ended),
            expected_challenge=outside.challenge,
            expected_rp_id=RP_ID,
            expected_origin=ORIGIN,
            credential_public_key=passkey.cose_key,
            credential_current_sign_count=0,
        )


# Whose passkey it was


@pytest.mark.threat("T3")
async def test_the_expected_user_is_let_in_and_announced_and_any_other_is_8(outside: Outside) -> None:
    expect = ("--expect-user", base64url(b"alice"), "--json")
    expected = await outside.ceremony(honest, *expect)
    assert expected.status == 0
    (account,) = (json.loads(line)["account"] for line in expected.said if '"account"' in line)
    assert account == {
        "user_handle": base64url(b"alice"),
        "user_name": "alice",
        "user_checked": True,
        "user_pinned": False,
    }
    ended = await outside.ceremony(_answer(), *expect, passkey=Passkey(user=BOB))
    assert (ended.status, ended.stdout) == (8, "")
    assert ended.error["reason"] == "unexpected-user"


@pytest.mark.threat("T3")
async def test_the_expected_user_is_checked_with_an_allow_list_too(outside: Outside) -> None:
    allowed = [{"type": "public-key", "id": base64url(Passkey().credential_id)}]
    options = outside.request_options(allowCredentials=allowed)
    expect = ("--expect-user", base64url(b"alice"))
    ended = await outside.ceremony(_answer(), *expect, options=options, passkey=Passkey(user=BOB))
    assert (ended.status, ended.stdout) == (8, "")


@pytest.mark.threat("T3")
async def test_a_registration_for_another_user_than_expected_is_8_before_any_url_is_made(
    outside: Outside,
) -> None:
    words = outside.words("register", outside.creation_options(), "--expect-user", base64url(b"bob"))
    ended = await outcome(*words)
    assert (ended.status, ended.stdout) == (8, "")


async def test_names_that_a_phone_sends_cannot_paint_on_the_terminal(outside: Outside) -> None:
    user = {"id": b"alice", "name": "al\x1b[2Jice\r\n\N{RIGHT-TO-LEFT OVERRIDE}"}
    ended = await outside.ceremony(honest, passkey=Passkey(user=user))
    assert ended.status == 0
    assert all(line.isprintable() for line in ended.said)


# Options and words


def _without(values: dict[str, Any], *path: str) -> dict[str, Any]:
    """A copy of `values` that lacks one member."""
    if len(path) == 1:
        return {key: value for key, value in values.items() if key != path[0]}
    return values | {path[0]: _without(values[path[0]], *path[1:])}


SIGN_IN_OPTIONS: Final[dict[str, Any]] = {"challenge": base64url(bytes(32)), "rpId": RP_ID}
REGISTER_OPTIONS: Final[dict[str, Any]] = {
    "challenge": base64url(bytes(32)),
    "rp": {"id": RP_ID, "name": "Example"},
    "user": {"id": base64url(b"alice"), "name": "alice", "displayName": "Alice"},
    "pubKeyCredParams": [{"type": "public-key", "alg": -7}],
}
WRONG_OPTIONS: Final[dict[str, tuple[str, str | bytes]]] = {
    name: (command, text if isinstance(text, str | bytes) else json.dumps(text))
    for name, (command, text) in {
        "nothing": ("sign-in", ""),
        "no JSON": ("sign-in", "challenge=1"),
        "a list": ("sign-in", [SIGN_IN_OPTIONS]),
        "no text": ("sign-in", b"\xff\x00\xff"),
        "too deep": ("sign-in", "[" * 60_000),
        "too long": ("sign-in", SIGN_IN_OPTIONS | {"x": "x" * 65_536}),
        "no challenge": ("sign-in", _without(SIGN_IN_OPTIONS, "challenge")),
        "an empty challenge": ("sign-in", SIGN_IN_OPTIONS | {"challenge": ""}),
        "a challenge that is no base64url": ("sign-in", SIGN_IN_OPTIONS | {"challenge": "+/+/"}),
        "half a surrogate pair": ("sign-in", '{"challenge": "AAAA", "rpId": "\\ud800"}'),
        "another relying party": ("sign-in", SIGN_IN_OPTIONS | {"rpId": "evil.example"}),
        "a top-level domain": ("sign-in", SIGN_IN_OPTIONS | {"rpId": "com"}),
        "an allow list that allows nothing known": (
            "sign-in",
            SIGN_IN_OPTIONS | {"allowCredentials": [{"type": "password", "id": "AAAA"}]},
        ),
        "sign-in's options": ("register", SIGN_IN_OPTIONS),
        "an rp elsewhere": ("register", REGISTER_OPTIONS | {"rp": {"id": "evil.example", "name": "E"}}),
        "a user id of 65 bytes": (
            "register",
            REGISTER_OPTIONS | {"user": {"id": base64url(bytes(65)), "name": "alice"}},
        ),
        "no algorithms": ("register", _without(REGISTER_OPTIONS, "pubKeyCredParams")),
    }.items()
}  # fmt: skip


@pytest.mark.threat("T12")
async def test_options_of_every_wrong_kind_are_3_and_no_url_is_made(outside: Outside, tmp_path: Path) -> None:
    async def one(command: str, text: str | bytes) -> Outcome:
        file = tmp_path / f"{secrets.token_hex(4)}.json"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return await outcome(*outside.words(command, file))

    outcomes = await side_by_side(*(one(*case) for case in WRONG_OPTIONS.values()))
    for name, ended in zip(WRONG_OPTIONS, outcomes, strict=True):
        assert (ended.status, ended.stdout, len(ended.said)) == (3, "", 1), (name, ended)


SERVERS_WRITE: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "algorithms as text": lambda options: json.dumps(
        options | {"pubKeyCredParams": [{"type": "public-key", "alg": alg} for alg in ("-7", "-257")]}
    ),
    "null for what they have not": lambda options: json.dumps(
        options
        | dict.fromkeys(
            ("timeout", "extensions", "hints", "excludeCredentials", "attestation", "authenticatorSelection")
        )
    ),
    "entries that nobody knows": lambda options: json.dumps(
        options
        | {
            "pubKeyCredParams": [None, {"type": "password", "alg": 1}, *options["pubKeyCredParams"]],
            "excludeCredentials": [{"type": "password", "id": "AAAA"}, {"type": "public-key"}],
            "hints": ["warp", 7, "hybrid"],
        }
    ),
    "a byte order mark": lambda options: "\ufeff" + json.dumps({"publicKey": options}),
}


async def test_options_are_read_as_servers_write_them(outside: Outside, tmp_path: Path) -> None:
    asked: dict[str, bytes] = {}

    async def one(name: str) -> Outcome:
        async def behaviour(call: Call) -> None:
            await call.connect()
            request = await call.request()
            asked[name] = request.payload
            await call.reply(0, call.passkey.creation(request.payload))

        file = tmp_path / f"{name}.json"
        file.write_text(SERVERS_WRITE[name](outside.creation_options()), encoding="utf-8")
        return await outside.ceremony(behaviour, command="register", options=file)

    for name, ended in zip(SERVERS_WRITE, await side_by_side(*map(one, SERVERS_WRITE)), strict=True):
        assert response_of(ended)["type"] == "public-key", name
    algorithms = {name: tuple(each["alg"] for each in cbor.decode_map(asked[name])[4]) for name in asked}
    assert algorithms == dict.fromkeys(SERVERS_WRITE, (-7,)) | {"algorithms as text": (-7, -257)}


async def test_options_just_within_the_bound_are_taken(outside: Outside) -> None:
    options = outside.request_options()
    options["x"] = "x" * (64 * 1024 - len(json.dumps(options | {"x": ""})))
    assert len(json.dumps(options)) == 64 * 1024
    async with outside.device(options=options):
        pass  # it has printed a URL


WRONG_WORDS: Final = [
    ["--options", "/nowhere/options.json"],
    ["--options", "-"],
    ["--origin", "http://login.example.com"],
    ["--origin", "https://login.example.com/path"],
    ["--origin", "https://login.example.com:99999"],
    ["--rp", "https://login.example.com"],
    ["--tunnel", "300"],
    ["--tunnel", "300=http://localhost"],
    ["--tunnel", "300=wss://localhost/?path"],
    ["--tunnel", "300=wss://localhost:99999"],
    ["--tunnel", "300=wss://user@localhost"],
    ["--tunnel", "300=wss://[::1"],
    ["--tunnel", "65536=wss://localhost"],
    ["--tunnel", "9" * 5000 + "=wss://localhost"],
    ["--timeout", "0"],
    ["--timeout", "nan"],
    ["--timeout", "soon"],
    ["--radio", "carrier-pigeon"],
    ["--scan", "lazily"],
    ["--min-rssi", "-70"],  # the radio here is stdin, which tells no strength
    ["--direct"],  # nor opens a channel
    ["--min-rssi", "strong"],
    ["--require-witness", "0"],
    ["--require-witness", "a week"],
    ["--join-within", "0"],
    ["--delivery", "post"],
    ["--expect-user", "not base64url!"],
    ["--expect-user", ""],
    ["--what", "--json"],
]


async def test_wrong_words_are_2_and_one_line(outside: Outside) -> None:
    options = outside.request_options()
    ended = await side_by_side(
        *(outcome(*outside.words("sign-in", options, *words)) for words in WRONG_WORDS)
    )
    for words, one in zip(WRONG_WORDS, ended, strict=True):
        assert (one.status, one.stdout, len(one.said)) == (2, "", 1), (words, one)
        if "--json" in words:
            assert one.error["status"] == 2


async def test_an_authority_that_cannot_be_used_is_10_and_one_line(outside: Outside) -> None:
    options = outside.request_options()
    files = ("/nowhere/ca.pem", "/dev/null")
    ended = await side_by_side(*(outcome(*outside.words("sign-in", options, "--ca", file)) for file in files))
    for file, one in zip(files, ended, strict=True):
        assert (one.status, one.stdout, len(one.said)) == (10, "", 1), (file, one)


async def test_options_without_an_origin_are_2(outside: Outside) -> None:
    words = outside.words("sign-in", outside.request_options())
    at = words.index("--origin")
    ended = await outcome(*words[:at], *words[at + 2 :])
    assert (ended.status, ended.stdout, len(ended.said)) == (2, "", 1)


async def test_options_may_come_from_stdin_when_the_radio_does_not(outside: Outside) -> None:
    words = outside.words("sign-in", "-")
    words[words.index("stdin")] = f"bumble:tcp-client:127.0.0.1:{reserved_port()}"
    ended = await outcome(*words, stdin=json.dumps(outside.request_options()))
    assert ended.status == 4  # there is no such radio
    wrong = await outcome(*words, stdin="{}")
    assert wrong.status == 3


async def test_without_a_radio_of_its_own_or_an_account_it_says_so(outside: Outside) -> None:
    words = outside.words("sign-in", outside.request_options(), "--delivery", "relay")
    ended = await outcome(*words, "--state", outside.folder / "state")
    assert (ended.status, ended.stdout, len(ended.said)) == (9, "", 1)


# The edges of the process


async def test_with_json_every_line_is_an_object_and_the_last_one_is_the_failure(outside: Outside) -> None:
    async with outside.device("--json") as (device, _):
        await device.give("what\n")
        device.close_stdin()
        assert await device.status() == 4
    assert device.error()["status"] == 4
    assert device.error()["error"] == "TransportError"


CLOSED: Final = {
    "stdin": '"$@" <&-',
    "stdout": '"$@" >&- </dev/null',
    "stderr": '"$@" 2>&- </dev/null',
    "full stdout": '"$@" >/dev/full </dev/null',
}


async def test_pipes_that_are_closed_or_full_end_it_without_a_traceback(outside: Outside) -> None:
    program, *words = outside.words("sign-in", outside.request_options())
    command = ["sh", PROGRAMS / str(program), *words]
    ended = await side_by_side(*(outcome("/bin/sh", "-c", shell, *command) for shell in CLOSED.values()))
    for closed, one in zip(CLOSED, ended, strict=True):
        assert one.status == (10 if "stdout" in closed else 4), (closed, one)
        assert len(one.stdout.splitlines()) == (0 if "stdout" in closed else 1), (closed, one)
        assert not any("report it" in line for line in one.said), (closed, one)


async def test_a_reader_that_has_gone_is_4(outside: Outside) -> None:
    words = [str(word) for word in outside.words("sign-in", outside.request_options())]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        async with running(*words, stdout=writer) as device:
            assert await device.status() == 4
    finally:
        os.close(writer)


# Settings


async def test_every_option_may_come_from_a_file_or_the_environment_and_the_command_line_wins(
    outside: Outside, tmp_path: Path
) -> None:
    options = write_json(tmp_path, outside.request_options())
    config = tmp_path / "config.toml"
    config.write_text(
        f"[sign-in]\norigin = {json.dumps(ORIGIN)}\ndelivery = 'stdout'\nradio = 'carrier-pigeon'\n"
        f"ca = '{outside.certificate.ca}'\ntunnel = ['300=wss://localhost:1']\ntimeout = 20\n"
    )
    environment = {
        "HEADLESS_PASSKEY_SIGN_IN_RADIO": "stdin",
        "HEADLESS_PASSKEY_SIGN_IN_TUNNEL": "300=wss://localhost:2",
        "HEADLESS_PASSKEY_SIGN_IN_OPTIONS": str(options),
    }
    words = ["headless-passkey", "sign-in", "--config", config, "--tunnel", f"300={outside.base}"]
    async with running(*words, environment=environment) as device:
        url = FidoUrl.parse(await device.line())
        async with outside.phone(url).advertising() as (advert, call):
            await device.give(advert)
            await honest(call)
            assert await device.status() == 0


WRONG_FILES: Final = {
    "an option nobody knows": "[sign-in]\nwhat = 1\n",
    "an option of another type": "[sign-in]\ntimeout = 'soon'\n",
    "a switch that is neither": "[sign-in]\njson = 'perhaps'\n",
    "no TOML": "[sign-in\n",
    "no table": "sign-in = 1\n",
}


async def test_a_wrong_config_file_is_2(outside: Outside, tmp_path: Path) -> None:
    async def one(text: str) -> Outcome:
        config = tmp_path / f"{secrets.token_hex(4)}.toml"
        config.write_text(text)
        return await outcome(*outside.words("sign-in", outside.request_options(), "--config", config))

    ended = await side_by_side(*map(one, WRONG_FILES.values()))
    for name, one_ended in zip(WRONG_FILES, ended, strict=True):
        assert (one_ended.status, one_ended.stdout, len(one_ended.said)) == (2, "", 1), (name, one_ended)
