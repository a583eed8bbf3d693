"""The software phone as a black box: a FIDO URL in, adverts out, against a device that misbehaves.

The device is the tests' own, on the real tunnel service.
"""

import asyncio
import hashlib
import json
import os
import signal
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web
from certificates import Certificate, make_certificate
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from headless_passkey.errors import RemoteProtocolError, TransportError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import Status
from headless_passkey.hybrid.fido_url import PREFIX, RequestKind, encode_digits
from headless_passkey.hybrid.messages import Ctap
from tests.end_to_end.black_box import Running, outcome, running, side_by_side, tunnel_service
from tests.end_to_end.hostile_device import (
    HASH,
    RP_ID,
    HostileDevice,
    assertion,
    creation,
    descriptor,
)
from tests.end_to_end.terminal import Terminal
from tests.ports import reserved_port

MC, GA = RequestKind.MAKE_CREDENTIAL, RequestKind.GET_ASSERTION


@pytest.fixture(scope="module")
def tunnels(loopback_certificate: Certificate) -> Iterator[str]:
    """The real tunnel service: its base URL."""
    with tunnel_service(loopback_certificate) as base:
        yield base


class Outside:
    """What the phone needs around it."""

    def __init__(self, base: str, certificate: Certificate, folder: Path) -> None:
        self.base, self.certificate, self.folder = base, certificate, folder
        self.credentials = folder / "passkeys.json"

    def words(
        self, *more: object, number: int = 300, base: str | None = None, uv: str = "accept"
    ) -> list[object]:
        return [
            *("companion-push", "phone", "--url", "-", "--radio", "stdout"),
            *("--tunnel", f"{number}={base or self.base}", "--credentials", self.credentials),
            *("--ca", self.certificate.ca, "--uv", uv, "--timeout", "25", *more),
        ]

    def device(self, hint: RequestKind = GA, **changes: Any) -> HostileDevice:
        return HostileDevice(self.base, self.certificate.client_context(), hint, **changes)

    @asynccontextmanager
    async def phone(
        self, device: HostileDevice, *more: object, **how: Any
    ) -> AsyncIterator[tuple[Running, str]]:
        """A phone that has read the device's URL; its first advert line."""
        async with running(*self.words(*more, **how)) as phone:
            await phone.give(device.url)
            yield phone, await phone.line()

    async def transaction(
        self,
        request: bytes,
        *more: object,
        hint: RequestKind | None = None,
        uv: str = "accept",
        **changes: Any,
    ) -> tuple[int, Ctap, list[str]]:
        """One command as a device should send it: exit status, reply, stderr."""
        device = self.device(hint or (MC if request[0] == 1 else GA), **changes)
        async with self.phone(device, *more, uv=uv) as (phone, advert):
            async with device.connected(advert) as line:
                reply = await line.ask(request)
                await line.goodbye()
            return await phone.status(within=20), reply, phone.said

    async def register(self, **changes: Any) -> tuple[bytes, ec.EllipticCurvePublicKey]:
        """A passkey in the file: its credential ID and public key."""
        status, reply, said = await self.transaction(creation(**changes))
        assert (status, reply.code) == (0, 0), said
        return _attested(cbor.decode_map(reply.payload)[2])


def _attested(auth_data: bytes) -> tuple[bytes, ec.EllipticCurvePublicKey]:
    size = int.from_bytes(auth_data[53:55], "big")
    cose = cbor.decode_map(auth_data[55 + size :])
    x, y = (int.from_bytes(cose[label], "big") for label in (-2, -3))
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    return auth_data[55 : 55 + size], key


@pytest.fixture
def outside(tunnels: str, loopback_certificate: Certificate, tmp_path: Path) -> Outside:
    return Outside(tunnels, loopback_certificate, tmp_path)


# The advert


@pytest.mark.parametrize("number", [5, 65535])
async def test_its_advert_names_the_domain_and_comes_again_until_the_first_message(
    outside: Outside, number: int
) -> None:
    device = outside.device(MC)
    async with outside.phone(device, number=number) as (phone, advert):
        began = time.monotonic()
        eid = device.hear(advert)
        assert (eid.tunnel_domain, len(advert)) == (number, 40)
        assert [await phone.line() for _ in range(2)] == [advert] * 2
        assert 0.8 < time.monotonic() - began < 10  # two pauses of half a second
        async with device.connected(advert) as line:
            before = len((await _printed_until_now(phone)).splitlines())
            assert before <= 2
            assert (await line.ask(creation())).code == 0
            await line.goodbye()
        assert await phone.status() == 0
        assert await phone.rest() == ""


async def _printed_until_now(phone: Running) -> str:
    """What is on stdout already: the phone has had the first message, so no advert follows."""
    stdout = phone.process.stdout
    assert stdout is not None
    text = bytes(stdout._buffer).decode()  # type: ignore[attr-defined]
    del stdout._buffer[:]  # type: ignore[attr-defined]
    return text


async def test_joining_the_tunnel_is_not_yet_a_message(outside: Outside) -> None:
    device = outside.device()
    async with outside.phone(device) as (phone, advert), device.joined(advert):
        assert [await phone.line() for _ in range(3)] == [advert] * 3


# What it answers


async def test_a_registration_and_then_a_sign_in_with_a_file_that_is_the_owners_alone(
    outside: Outside,
) -> None:
    credential_id, key = await outside.register()
    assert stat.S_IMODE(outside.credentials.stat().st_mode) == 0o600
    for request in (assertion(), assertion(key_3=[descriptor(b"other"), descriptor(credential_id)])):
        status, reply, _ = await outside.transaction(request)
        assert (status, reply.code) == (0, 0)
        answer = cbor.decode_map(reply.payload)
        assert answer[1] == descriptor(credential_id)
        assert answer[2][:32] == hashlib.sha256(RP_ID.encode()).digest()
        assert answer[2][32] & 0x05 == 0x05  # present and verified
        assert answer[4]["id"] == b"alice"
        key.verify(answer[3], answer[2] + HASH, ec.ECDSA(SHA256()))


async def test_what_it_says_of_itself(outside: Outside) -> None:
    device = outside.device(MC)
    async with outside.phone(device) as (_, advert), device.connected(advert) as line:
        peer = line.channel.peer
        assert peer is not None
        assert (peer.revision, peer.features) == (1, ("ctap",))
        assert peer.get_info is not None
        assert peer.get_info.options["uv"] is True
        assert "hybrid" in peer.get_info.transports
        told = await line.ask(b"\x04")  # getInfo is no command that counts
        assert (told.code, cbor.decode_map(told.payload)[3]) == (0, peer.get_info.aaguid)
        assert (await line.ask(creation())).code == 0


async def test_a_selection_is_answered_as_its_user_says(outside: Outside) -> None:
    """CTAP 2.2 §6.9, which getInfo's FIDO_2_1 lets a client ask."""
    answers = [(await outside.transaction(b"\x0b", hint=MC, uv=uv))[:2] for uv in ("accept", "decline")]
    assert [(status, reply.code, reply.payload) for status, reply in answers] == [(0, 0, b""), (6, 0x27, b"")]
    assert not outside.credentials.exists()


NO: Final[dict[str, tuple[bytes, Status]]] = {
    "no credential": (assertion(key_1="elsewhere.example"), Status.NO_CREDENTIALS),
    "an unknown credential": (assertion(key_3=[descriptor(b"unknown")]), Status.NO_CREDENTIALS),
    "an algorithm it lacks": (
        creation(key_4=[{"alg": -257, "type": "public-key"}]),
        Status.UNSUPPORTED_ALGORITHM,
    ),
}


@pytest.mark.parametrize("name", NO)
async def test_a_no_is_5_and_named(outside: Outside, name: str) -> None:
    request, no = NO[name]
    await outside.register()
    status, reply, said = await outside.transaction(request)
    assert (status, reply.code, reply.payload) == (5, no, b"")
    assert no.name in said[-1]


async def test_an_excluded_credential_is_5(outside: Outside) -> None:
    credential_id, _ = await outside.register()
    status, reply, _ = await outside.transaction(creation(key_5=[descriptor(credential_id)]))
    assert (status, reply.code) == (5, Status.CREDENTIAL_EXCLUDED)
    assert len(json.loads(outside.credentials.read_text())["credentials"]) == 1


async def test_decline_is_0x27_and_6(outside: Outside) -> None:
    for request in (creation(), assertion()):
        if request[0] == 2:
            await outside.register()
        status, reply, said = await outside.transaction(request, uv="decline")
        assert (status, reply.code) == (6, Status.OPERATION_DENIED)
        assert "declined" in said[-1]


# The URL


@pytest.mark.threat("T1")
@pytest.mark.threat("T5")
async def test_a_url_older_than_300_s_or_more_than_120_s_ahead_is_refused_before_anything_is_opened(
    outside: Outside,
) -> None:
    now = int(time.time())
    outcomes = await side_by_side(
        *(
            outcome(*outside.words("--json"), stdin=outside.device(time=now + seconds).url)
            for seconds in (-310, -86_400, 180, 10**12, -now)
        )
    )
    for ended in outcomes:
        assert (ended.status, ended.stdout) == (8, ""), ended
        assert ended.error["reason"] in ("expired", "clock-skew")


async def test_a_url_of_the_last_five_minutes_or_a_little_ahead_is_served(outside: Outside) -> None:
    for seconds in (-290, 110):
        device = outside.device(MC, time=int(time.time()) + seconds)
        async with outside.phone(device) as (_, advert):
            device.hear(advert)


async def test_a_url_without_a_time_is_served_with_a_warning(outside: Outside) -> None:
    status, _, said = await outside.transaction(creation(), time=None)
    assert status == 0
    assert any("does not say when" in line for line in said)


@pytest.mark.threat("T10")
@pytest.mark.parametrize(("hint", "request_"), [(GA, creation()), (MC, assertion())], ids=["ga", "mc"])
async def test_a_command_of_the_other_kind_is_0x30_and_then_it_closes(
    outside: Outside, hint: RequestKind, request_: bytes
) -> None:
    await outside.register()
    device = outside.device(hint)
    async with outside.phone(device) as (phone, advert):
        async with device.connected(advert) as line:
            assert (await line.ask(request_)).code == Status.NOT_ALLOWED
            with pytest.raises(TransportError):
                await line.tunnel.receive()
        assert await phone.status() == 8


@pytest.mark.parametrize("hint", [None, "dcp", "later"])
async def test_a_hint_that_is_neither_ga_nor_mc_binds_nothing(outside: Outside, hint: str | None) -> None:
    status, reply, _ = await outside.transaction(creation(), hint_raw=hint)
    assert (status, reply.code) == (0, 0)


@pytest.mark.threat("T12")
async def test_a_malformed_url_is_3_and_one_line(outside: Outside) -> None:
    good = outside.device().url.strip()
    key = outside.device().shown.public_key
    lines = [
        "\n",
        "FIDO:/\n",
        f"{good}9\n",
        f"{good[:-1]}\n",
        good.replace("FIDO:/", "FIDO://") + "\n",
        good + "\N{ARABIC-INDIC DIGIT ONE}\n",
        PREFIX + "1" * 5000 + "\n",
        "1" * 100_000,
        PREFIX + encode_digits(cbor.encode({0: key, 1: bytes(15)})) + "\n",
        PREFIX + encode_digits(cbor.encode({0: b"\x02" + b"\xff" * 32, 1: bytes(16)})) + "\n",
        PREFIX + encode_digits(cbor.encode({0: key, 1: bytes(16), 3: -1})) + "\n",
        PREFIX + encode_digits(cbor.encode({0: key, 1: bytes(16), 5: 1})) + "\n",
        PREFIX + encode_digits(cbor.encode({0: key, 1: bytes(16)}) + b"\0") + "\n",
    ]
    outcomes = await side_by_side(*(outcome(*outside.words(), stdin=line) for line in lines))
    for text, ended in zip(lines, outcomes, strict=True):
        assert (ended.status, ended.stdout) == (3, ""), (text[:80], ended)
        assert len([line for line in ended.said if line.startswith("companion-push:")]) == 1


async def test_the_prefix_may_be_lower_case_and_only_the_first_line_counts(outside: Outside) -> None:
    device = outside.device(MC)
    async with running(*outside.words()) as phone:
        await phone.give(device.url.replace("FIDO", "fido").replace("\n", "\r\n") + "another line\n")
        device.hear(await phone.line())


async def test_the_end_of_input_is_4(outside: Outside) -> None:
    assert (await outcome(*outside.words())).status == 4


# A device that misbehaves


FIRST_MESSAGES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "a wrong tag": lambda message: message[:-1] + bytes([message[-1] ^ 1]),
    "too short": lambda message: message[:-1],
    "too long": lambda message: message + b"\0",
    "cut in the point": lambda message: message[:64],
    "empty": lambda _: b"",
    "noise": lambda _: os.urandom(81),
    "a point off the curve": lambda message: b"\x04" + b"\x01" * 64 + message[65:],
    "a compressed point": lambda message: b"\x02" + message[1:33] + message[65:],
    "huge": lambda _: bytes(60_000),
}


@pytest.mark.threat("T12")
async def test_a_wrong_first_message_is_3_and_gets_no_answer(outside: Outside) -> None:
    async def one(change: Callable[[bytes], bytes]) -> int:
        device = outside.device()
        async with outside.phone(device) as (phone, advert), device.joined(advert) as tunnel:
            await tunnel.send(change(device.transaction.handshake(device.hear(advert)).message))
            with pytest.raises(TransportError):
                await tunnel.receive()
            return await phone.status(within=20)

    ended = await side_by_side(*map(one, FIRST_MESSAGES.values()))
    assert dict(zip(FIRST_MESSAGES, ended, strict=True)) == dict.fromkeys(FIRST_MESSAGES, 3)


async def test_somebody_who_only_knows_the_advert_is_3(outside: Outside) -> None:
    device, stranger = outside.device(), outside.device()
    async with outside.phone(device) as (phone, advert):
        async with device.joined(advert) as tunnel:
            await tunnel.send(stranger.transaction.handshake(device.hear(advert)).message)
            with pytest.raises(TransportError):
                await tunnel.receive()
        assert await phone.status(within=20) == 3


@pytest.mark.parametrize("stage", ["before message 1", "after message 1", "connected"])
async def test_a_device_that_hangs_up_is_4(outside: Outside, stage: str) -> None:
    device = outside.device()
    async with outside.phone(device) as (phone, advert):
        if stage == "connected":
            async with device.connected(advert):
                pass
        else:
            async with device.joined(advert) as tunnel:
                if stage == "after message 1":
                    await tunnel.send(device.transaction.handshake(device.hear(advert)).message)
        assert await phone.status(within=20) == 4


WRONG: Final[dict[str, bytes]] = {
    "a JSON message": b"\x03{}",
    "a message of unknown type": b"\x09",
    "an empty message": b"",
    "a CTAP message without command": b"\x01",
    "an update that is no CBOR": b"\x02\xff",
}


@pytest.mark.threat("T10")
async def test_a_device_that_breaks_the_protocol_is_3(outside: Outside) -> None:
    async def one(message: bytes) -> int:
        device = outside.device()
        async with outside.phone(device) as (phone, advert), device.connected(advert) as line:
            await line.say(message)
            return await phone.status(within=20)

    ended = await side_by_side(*map(one, WRONG.values()))
    assert dict(zip(WRONG, ended, strict=True)) == dict.fromkeys(WRONG, 3)


async def test_a_goodbye_without_a_request_is_7(outside: Outside) -> None:
    device = outside.device()
    async with outside.phone(device) as (phone, advert), device.connected(advert) as line:
        await line.goodbye()
        assert await phone.status(within=20) == 7


async def test_garbage_on_the_channel_is_3(outside: Outside) -> None:
    device = outside.device()
    async with outside.phone(device) as (phone, advert), device.connected(advert) as line:
        await line.tunnel.send(os.urandom(64))
        assert await phone.status(within=20) == 3


async def test_updates_mean_nothing_and_a_flood_of_them_is_3(outside: Outside) -> None:
    device = outside.device(MC)
    async with outside.phone(device) as (phone, advert), device.connected(advert) as line:
        await line.say(b"\x02" + cbor.encode({0: bytes(10)}))
        assert (await line.ask(creation())).code == 0
        await line.goodbye()
        assert await phone.status() == 0
    flooded = outside.device(MC)
    async with outside.phone(flooded) as (phone, advert), flooded.connected(advert) as line:
        for _ in range(40):
            await line.say(b"\x02" + cbor.encode({}))
        assert await phone.status(within=20) == 3


COMMANDS: Final[dict[str, tuple[bytes, set[int]]]] = {
    "a PIN command": (b"\x06\xa0", {Status.INVALID_COMMAND}),
    "getNextAssertion": (b"\x08", {Status.INVALID_COMMAND}),
    "reset": (b"\x07", {Status.INVALID_COMMAND}),
    "a selection with parameters": (b"\x0b\xa0", {Status.INVALID_COMMAND}),
    "a command nobody knows": (b"\xff", {Status.INVALID_COMMAND}),
    "no CBOR": (b"\x02\xff\xff", {Status.INVALID_CBOR}),
    "no payload": (b"\x02", {Status.INVALID_CBOR}),
    "trailing bytes": (assertion() + b"\0", {Status.INVALID_CBOR}),
    "no hash": (assertion(key_2=None), {Status.MISSING_PARAMETER}),
    "a short hash": (assertion(key_2=b"x"), {Status.CBOR_UNEXPECTED_TYPE, Status.INVALID_LENGTH}),
    "an rp id that is a number": (assertion(key_1=7), {Status.CBOR_UNEXPECTED_TYPE}),
}


@pytest.mark.threat("T10")
@pytest.mark.threat("T12")
async def test_a_command_that_cannot_be_served_is_refused_by_its_status_and_3(outside: Outside) -> None:
    ended = await side_by_side(
        *(outside.transaction(request, hint_raw=None) for request, _ in COMMANDS.values())
    )
    for (name, (_, codes)), (status, reply, _) in zip(COMMANDS.items(), ended, strict=True):
        assert reply.code in codes, name
        assert (status, reply.payload) == (3, b""), name


@pytest.mark.threat("T10")
async def test_a_second_command_is_refused(outside: Outside) -> None:
    device = outside.device(MC)
    async with outside.phone(device) as (phone, advert):
        async with device.connected(advert) as line:
            assert (await line.ask(creation())).code == 0
            try:
                second = await line.ask(assertion())
            except (TransportError, RemoteProtocolError):
                pass  # it has hung up
            else:
                assert second.code == Status.NOT_ALLOWED
        assert await phone.status() == 0
    assert len(json.loads(outside.credentials.read_text())["credentials"]) == 1


# The user at the terminal


async def test_asking_without_a_terminal_is_2_before_anything_is_opened(outside: Outside) -> None:
    ended = await outcome(*outside.words(uv="ask"), stdin=outside.device().url)
    assert (ended.status, ended.stdout) == (2, "")
    assert "terminal" in ended.failure


@asynccontextmanager
async def at_terminal(*words: object) -> AsyncIterator[tuple[Running, Terminal]]:
    """The phone with a terminal of its own; its pipes are pipes all the same."""
    async with Terminal.open() as terminal, running(*words, in_front=terminal.in_front) as phone:
        yield phone, terminal


@pytest.mark.parametrize(("keys", "status", "code"), [("y\n", 0, 0), ("n\n", 6, 0x27), ("\nn\n", 6, 0x27)])
async def test_the_user_is_asked_at_the_terminal(outside: Outside, keys: str, status: int, code: int) -> None:
    device = outside.device(MC)
    async with at_terminal(*outside.words(uv="ask")) as (phone, screen):
        await phone.give(device.url)
        async with device.connected(await phone.line()) as line:
            await line.send(creation())
            shown = await screen.until("y or n:")
            assert RP_ID in shown
            *slips, answer = keys.splitlines(keepends=True)
            for slip in slips:
                screen.type(slip)
                await screen.until("y or n:")
            screen.type(answer)
            assert (await line.reply()).code == code
            await line.goodbye()
        assert await phone.status() == status


@pytest.mark.threat("T4")
async def test_a_second_command_while_the_user_is_asked_takes_the_question_back(outside: Outside) -> None:
    device = outside.device(MC)
    async with at_terminal(*outside.words(uv="ask")) as (phone, screen):
        await phone.give(device.url)
        async with device.connected(await phone.line()) as line:
            await line.send(creation())
            await screen.until("y or n:")
            await line.send(creation())
            assert await phone.status(within=20) == 3
    assert not outside.credentials.exists()


@pytest.mark.threat("T4")
async def test_a_goodbye_while_the_user_is_asked_takes_the_question_back_and_is_7(outside: Outside) -> None:
    """As Chromium does when a page gives up; its socket stays open for three minutes."""
    device = outside.device(MC)
    async with at_terminal(*outside.words(uv="ask")) as (phone, screen):
        await phone.give(device.url)
        async with device.connected(await phone.line()) as line:
            await line.send(creation())
            await screen.until("y or n:")
            await line.goodbye()
            assert await phone.status(within=20) == 7
            assert "goodbye" in phone.failure()
    assert not outside.credentials.exists()


async def test_a_user_who_does_not_answer_is_0x2f_and_7(outside: Outside) -> None:
    device = outside.device(MC)
    async with at_terminal(*outside.words("--timeout", "3", uv="ask")) as (phone, _screen):
        await phone.give(device.url)
        async with device.connected(await phone.line()) as line:
            assert (await line.ask(creation())).code == Status.USER_ACTION_TIMEOUT
            await line.goodbye()
        assert await phone.status(within=20) == 7


# Deadlines, signals, pipes


async def test_the_deadline_is_7_whatever_it_waits_for(outside: Outside) -> None:
    async def no_url() -> int:
        async with running(*outside.words("--timeout", "2")) as phone:
            return await phone.status(within=20)

    async def no_device() -> int:
        async with outside.phone(outside.device(), "--timeout", "2") as (phone, _):
            return await phone.status(within=20)

    async def no_message() -> int:
        device = outside.device()
        async with outside.phone(device, "--timeout", "2") as (phone, advert), device.joined(advert):
            return await phone.status(within=20)

    async def no_command() -> int:
        device = outside.device()
        async with outside.phone(device, "--timeout", "2") as (phone, advert), device.connected(advert):
            return await phone.status(within=20)

    assert list(await asyncio.gather(no_device(), no_message(), no_command())) == [7, 7, 7]
    assert await no_url() == 4  # nobody has been asked for anything


async def test_a_signal_ends_it_with_130_whatever_it_waits_for(outside: Outside) -> None:
    async def no_url(number: signal.Signals) -> int:
        async with running(*outside.words("--log-level", "debug")) as phone:
            await phone.until_said("reading stdin")
            phone.signal(number)
            return await phone.status(within=20)

    async def no_device(number: signal.Signals) -> int:
        async with outside.phone(outside.device()) as (phone, _):
            phone.signal(number)
            return await phone.status(within=20)

    async def no_command(number: signal.Signals) -> int:
        device = outside.device()
        async with outside.phone(device) as (phone, advert), device.connected(advert):
            phone.signal(number)
            return await phone.status(within=20)

    waits = (no_url, no_device, no_command)
    ended = await side_by_side(*(one(number) for one in waits for number in (signal.SIGINT, signal.SIGTERM)))
    assert ended == [130] * 6


async def test_a_reader_of_its_adverts_that_has_gone_is_4(outside: Outside) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        async with running(*outside.words(), stdout=writer) as phone:
            await phone.give(outside.device().url)
            assert await phone.status(within=20) == 4
    finally:
        os.close(writer)


# The tunnel service


@pytest.mark.threat("T9")
async def test_a_tunnel_service_that_cannot_be_reached_or_believed_is_4(
    outside: Outside, tmp_path: Path
) -> None:
    nobody = f"wss://localhost:{reserved_port()}"
    (tmp_path / "other").mkdir()
    other = make_certificate(tmp_path / "other", names=["localhost"])
    named = outside.base.replace("localhost", "127.0.0.2")
    url = outside.device().url
    unreachable, untrusted, misnamed = await side_by_side(
        outcome(*outside.words(base=nobody), stdin=url),
        outcome(*outside.words("--ca", other.ca), stdin=url),
        outcome(*outside.words(base=named), stdin=url),
    )
    for ended in (unreachable, untrusted, misnamed):
        assert (ended.status, ended.stdout) == (4, ""), ended
    assert "its certificate is not trusted" in untrusted.failure
    assert untrusted.failure.endswith("elsewhere somebody may be in between [untrusted-certificate]")


@pytest.mark.threat("T9")
@pytest.mark.parametrize("routing_ids", [[], ["0102"], ["01020G"], ["010203", "010204"]])
async def test_a_tunnel_service_that_gives_no_routing_id_is_3(
    outside: Outside, routing_ids: list[str]
) -> None:
    async def serve(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse(protocols=("fido.cable",), timeout=0.2)
        for routing_id in routing_ids:
            websocket.headers.add("X-caBLE-Routing-ID", routing_id)
        await websocket.prepare(request)
        await websocket.receive()
        return websocket

    app = web.Application()
    app.router.add_get("/cable/new/{id}", serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=outside.certificate.server_context()).start()
        base = f"wss://localhost:{runner.addresses[0][1]}"
        ended = await outcome(*outside.words(base=base), stdin=outside.device().url)
    finally:
        await runner.cleanup()
    assert (ended.status, ended.stdout) == (3, "")


async def test_a_tunnel_that_exists_already_is_4(outside: Outside) -> None:
    device = outside.device()
    async with outside.phone(device):
        ended = await outcome(*outside.words(), stdin=device.url)
    assert (ended.status, ended.stdout) == (4, "")


# Files and words


async def test_a_credentials_file_that_cannot_be_used_is_refused_before_anything_is_opened(
    outside: Outside,
) -> None:
    await outside.register()
    good = outside.credentials.read_bytes()
    wrong: list[tuple[bytes, int]] = [
        (good, 0o644),
        (good, 0o660),
        (b"{}", 0o600),
        (b"\xff", 0o600),
        (b"", 0o600),
    ]
    for content, mode in wrong:
        outside.credentials.write_bytes(content)
        outside.credentials.chmod(mode)
        ended = await outcome(*outside.words(), stdin=outside.device().url)
        assert (ended.status, ended.stdout) == (10, ""), (content, mode, ended)
        assert outside.credentials.read_bytes() == content  # nothing is lost


WRONG_WORDS: Final = [
    ["--tunnel", "65536=wss://localhost"],
    ["--tunnel", "300=ws://localhost"],
    ["--tunnel", "300=wss://localhost:99999"],
    ["--tunnel", "9" * 5000 + "=wss://localhost"],
    ["--radio", "stdin"],
    ["--uv", "perhaps"],
    ["--timeout", "0"],
    ["--timeout", "soon"],
    ["--url", "/nowhere/url"],
    ["--credentials", "/nowhere/folder/passkeys.json"],
    ["--what"],
]


async def test_wrong_words_are_2(outside: Outside) -> None:
    url = outside.device().url
    ended = await side_by_side(*(outcome(*outside.words(*words), stdin=url) for words in WRONG_WORDS))
    for words, one in zip(WRONG_WORDS, ended, strict=True):
        assert (one.status, one.stdout) == (2, ""), (words, one)
        assert len([line for line in one.said if line.startswith("companion-push:")]) == 1


@pytest.mark.threat("T11")
async def test_with_json_everything_said_is_an_object_and_no_secret_is_in_it(outside: Outside) -> None:
    device = outside.device(MC, time=None)
    async with outside.phone(device, "--json", "--log-level", "debug") as (phone, advert):
        async with device.connected(advert) as line:
            assert (await line.ask(creation(key_4=[{"alg": -8, "type": "public-key"}]))).code == 0x26
            await line.goodbye()
        assert await phone.status() == 5
    assert phone.error()["reason"] == "CTAP2_ERR_UNSUPPORTED_ALGORITHM"
    said = "\n".join(phone.said).lower()
    secret = device.transaction.url.secret
    for word in (secret.hex(), device.shown.encode()[6:], device.transaction.url.tunnel_id.hex(), advert):
        assert word.lower() not in said


async def test_options_come_from_a_file_and_the_environment_and_the_command_line_wins(
    outside: Outside, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f"[phone]\nurl = '-'\nradio = 'stdout'\nuv = 'decline'\nca = '{outside.certificate.ca}'\n"
        f"tunnel = ['1=wss://localhost:1']\ncredentials = '{outside.credentials}'\n"
    )
    environment = {"COMPANION_PUSH_PHONE_UV": "accept", "COMPANION_PUSH_PHONE_TUNNEL": "2=wss://localhost:2"}
    device = outside.device(MC)
    words = ["companion-push", "phone", "--config", config, "--tunnel", f"7={outside.base}"]
    async with running(*words, environment=environment) as phone:
        await phone.give(device.url)
        advert = await phone.line()
        assert device.hear(advert).tunnel_domain == 7
        async with device.connected(advert) as line:
            assert (await line.ask(creation())).code == 0
            await line.goodbye()
        assert await phone.status() == 0
