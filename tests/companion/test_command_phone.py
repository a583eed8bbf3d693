"""`companion-push phone` from outside: pipes, terminal, exit statuses."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from certificates import Certificate
from fido2.webauthn import AuthenticatorData

from headless_passkey.hybrid.ctap2 import (
    GetAssertionRequest,
    GetAssertionResponse,
    MakeCredentialRequest,
    MakeCredentialResponse,
    Status,
    User,
)
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.hybrid.messages import Ctap
from headless_passkey.net.tunnel import TunnelClosed
from tests.companion.device import Air, Device, assertion, creation, ok, raw, transaction, tunnel_service
from tests.companion.program import Program, at_terminal, outcome, running
from tests.ports import reserved_port


class Outside:
    """What the program needs around it."""

    def __init__(self, base: str, certificate: Certificate, folder: Path) -> None:
        self.base, self.certificate, self.folder = base, certificate, folder
        self.credentials = folder / "passkeys.json"

    def words(self, *more: object, uv: str = "accept") -> list[object]:
        return [
            *("phone", "--url", "-", "--radio", "stdout", "--tunnel", f"300={self.base}", "--uv", uv),
            *("--credentials", self.credentials, "--ca", self.certificate.ca, *more),
        ]

    def device(self, kind: RequestKind = RequestKind.GET_ASSERTION) -> Device:
        return Device(
            Air(), self.base, self.certificate.client_context(), transaction(kind, time=int(time.time()))
        )

    async def ask(
        self, program: Program, device: Device, request: GetAssertionRequest | MakeCredentialRequest
    ) -> Ctap:
        """Hear the advert that the program prints, and ask."""
        device.air.adverts.put_nowait(bytes.fromhex(await program.line()))
        return await device.ask(request)

    async def register(self) -> None:
        device = self.device(RequestKind.MAKE_CREDENTIAL)
        async with running(*self.words(), stdin=f"{device.url}\n") as program:
            ok(await self.ask(program, device, creation()))
            assert await program.ended() == 0


@pytest.fixture
async def outside(loopback_certificate: Certificate, tmp_path: Path) -> AsyncIterator[Outside]:
    async with tunnel_service(loopback_certificate) as base:
        yield Outside(base, loopback_certificate, tmp_path)


async def test_it_registers_and_signs_in_and_says_what_it_is(outside: Outside) -> None:
    await outside.register()
    device = outside.device()
    async with running(*outside.words(), stdin=f"{device.url}\r\n") as program:
        ok(await outside.ask(program, device, assertion()))
        assert await program.ended() == 0
        assert "demonstrations and tests" in program.said[0]


async def test_a_passkey_of_ml_dsa_44_is_made_where_it_is_asked_for_and_signs_in(outside: Outside) -> None:
    words = outside.words("--algorithm", "ml-dsa-44", "--synced")
    device = outside.device(RequestKind.MAKE_CREDENTIAL)
    async with running(*words, stdin=f"{device.url}\n") as program:
        reply = await outside.ask(program, device, creation(algorithms=(-7, -48)))
        made = AuthenticatorData(MakeCredentialResponse.parse(ok(reply)).auth_data)
        assert await program.ended() == 0
    assert made.credential_data is not None
    assert made.flags & made.FLAG.BE
    device = outside.device()
    async with running(
        *outside.words(), stdin=f"{device.url}\n"
    ) as program:  # the file says what it signs with
        answer = GetAssertionResponse.parse(ok(await outside.ask(program, device, assertion())))
        assert await program.ended() == 0
    made.credential_data.public_key.verify(answer.auth_data + bytes(32), answer.signature)
    assert AuthenticatorData(answer.auth_data).flags & made.FLAG.BE
    assert not AuthenticatorData(answer.auth_data).flags & made.FLAG.BS  # this program was not told so


async def test_a_sealed_file_takes_a_passkey_and_signs_in_with_it(outside: Outside) -> None:
    passphrase = outside.folder / "passphrase"
    passphrase.write_text("correct horse\n")
    seal = ("phone", "--seal", "--credentials", outside.credentials, "--new-passphrase-file", passphrase)
    assert (await outcome(*seal))[0] == 0
    words = outside.words("--passphrase-file", passphrase)
    device = outside.device(RequestKind.MAKE_CREDENTIAL)
    async with running(*words, stdin=f"{device.url}\n") as program:
        ok(await outside.ask(program, device, creation()))
        assert await program.ended() == 0
    assert "private_key" not in outside.credentials.read_text()
    device = outside.device()
    async with running(*words, stdin=f"{device.url}\n") as program:
        ok(await outside.ask(program, device, assertion()))
        assert await program.ended() == 0


async def test_where_only_presence_is_asked_for_no_verification_is_claimed(outside: Outside) -> None:
    device = outside.device(RequestKind.MAKE_CREDENTIAL)
    words = outside.words(uv="presence")
    async with at_terminal(*words, stdin=f"{device.url}\n") as (program, screen):
        asking = asyncio.create_task(outside.ask(program, device, creation(user_verification=False)))
        await screen.until("y or n:")
        screen.type("y\n")
        made = AuthenticatorData(MakeCredentialResponse.parse(ok(await asking)).auth_data)
        assert await program.ended() == 0
    assert made.flags & made.FLAG.UP
    assert not made.flags & made.FLAG.UV
    device = outside.device()
    async with at_terminal(*words, stdin=f"{device.url}\n") as (program, screen):
        reply = await outside.ask(program, device, assertion())
        assert reply.code == Status.INVALID_OPTION  # verification is required
        assert await program.ended() == 5
        assert "Sign in" not in screen.seen


async def test_stdout_is_adverts_and_they_are_repeated_until_somebody_comes(outside: Outside) -> None:
    device = outside.device(RequestKind.MAKE_CREDENTIAL)
    async with running(*outside.words()) as program:
        await program.write(f"{device.url}\n")  # the pipe stays open
        first, second = await program.line(), await program.line()
        assert first == second
        assert len(bytes.fromhex(first)) == 20
        ok(await outside.ask(program, device, creation()))
        assert await program.ended() == 0


@pytest.mark.threat("T11")
async def test_neither_stderr_nor_json_holds_the_url_or_a_key(outside: Outside) -> None:
    device = outside.device(RequestKind.MAKE_CREDENTIAL)
    words = outside.words("--json", "--log-level", "debug")
    async with running(*words, stdin=f"{device.url}\n") as program:
        ok(await outside.ask(program, device, creation()))
        assert await program.ended() == 0
        said = "\n".join(program.said)
    key = json.loads(outside.credentials.read_text())["credentials"][0]["private_key"]
    assert device.url not in said
    assert device.url.removeprefix("FIDO:/") not in said
    assert device.transaction.url.secret.hex() not in said
    assert device.transaction.url.tunnel_id.hex() not in said.lower()
    assert key not in said
    stages = [json.loads(line)["stage"] for line in program.said if line.startswith('{"stage"')]
    assert stages[-1] == "phone-answered"


async def test_declined_is_6(outside: Outside) -> None:
    device = outside.device(RequestKind.MAKE_CREDENTIAL)
    async with running(*outside.words(uv="decline"), stdin=f"{device.url}\n") as program:
        assert (await outside.ask(program, device, creation())).code == 0x27
        assert await program.ended() == 6


async def test_a_no_of_the_phone_is_5_and_names_the_status(outside: Outside) -> None:
    device = outside.device()
    async with running(*outside.words(), stdin=f"{device.url}\n") as program:
        assert (await outside.ask(program, device, assertion())).code == 0x2E
        assert await program.ended() == 5
        assert "CTAP2_ERR_NO_CREDENTIALS" in program.said[-1]


@pytest.mark.threat("T10")
async def test_the_other_kind_is_8(outside: Outside) -> None:
    device = outside.device(RequestKind.GET_ASSERTION)
    async with running(*outside.words(), stdin=f"{device.url}\n") as program:
        assert (await outside.ask(program, device, creation())).code == 0x30
        assert await program.ended() == 8
        assert "[kind-mismatch]" in program.said[-1]


@pytest.mark.threat("T5")
@pytest.mark.parametrize(("seconds", "reason"), [(-301, "expired"), (130, "clock-skew")])
async def test_a_url_of_another_time_is_8(outside: Outside, seconds: int, reason: str) -> None:
    url = transaction(time=int(time.time()) + seconds).url.encode()
    status, stdout, said = await outcome(*outside.words("--json"), stdin=f"{url}\n")
    assert (status, stdout) == (8, "")
    assert json.loads(said[-1])["reason"] == reason


@pytest.mark.parametrize(
    "line", ["FIDO:/", "FIDO:/123", "https://example.com/", "FIDO:/" + "9" * 200, "\N{PILE OF POO}", " "]
)
async def test_a_line_that_is_no_url_is_3(outside: Outside, line: str) -> None:
    status, stdout, said = await outcome(*outside.words(), stdin=f"{line}\n")
    assert (status, stdout) == (3, "")
    assert len(said) == 2  # what it is, and what went wrong


async def test_endless_input_without_a_line_is_3(outside: Outside) -> None:
    status, _, _ = await outcome(*outside.words(), stdin="1" * 60_000)
    assert status == 3


async def test_the_end_of_input_is_4(outside: Outside) -> None:
    status, _, _ = await outcome(*outside.words(), stdin="")
    assert status == 4


async def test_a_tunnel_service_that_is_not_there_is_4(outside: Outside) -> None:
    outside.base = f"wss://127.0.0.1:{reserved_port()}"
    status, _, _ = await outcome(*outside.words(), stdin=f"{outside.device().url}\n")
    assert status == 4


async def test_a_device_that_goes_away_is_4(outside: Outside) -> None:
    await outside.register()
    device = outside.device()
    async with at_terminal(*outside.words(uv="ask"), stdin=f"{device.url}\n") as (program, screen):
        device.air.adverts.put_nowait(bytes.fromhex(await program.line()))
        async with device.joined() as (tunnel, channel):
            await tunnel.send(channel.send(assertion()))
            await screen.until("y or n:")
        assert await program.ended() == 4


@pytest.mark.parametrize(("source", "status"), [("stdin", 4), ("device", 7)])
async def test_a_url_that_does_not_come_in_time_is_4_and_a_device_that_does_not_is_7(
    outside: Outside, source: str, status: int
) -> None:
    async with running(*outside.words("--timeout", "1.5")) as program:
        if source == "device":
            await program.write(f"{outside.device().url}\n")
        assert await program.ended() == status


@pytest.mark.parametrize("source", ["stdin", "device"])
async def test_sigterm_ends_it_at_once(outside: Outside, source: str) -> None:
    async with running(*outside.words()) as program:
        await program.until_said("demonstrations")
        if source == "device":
            await program.write(f"{outside.device().url}\n")
            await program.line()
        else:
            await program.write("FIDO:/")  # half a line
        program.terminate()
        assert await program.ended() == 130


# Usage


async def test_a_url_in_the_arguments_is_2_and_not_repeated(outside: Outside) -> None:
    url = outside.device().url
    words = ["phone", "--url", url, *outside.words()[3:]]
    status, _, said = await outcome(*words)
    assert status == 2
    assert url not in "\n".join(said)


async def test_asking_without_a_terminal_is_2(outside: Outside) -> None:
    status, _, said = await outcome(*outside.words(uv="ask"), stdin=f"{outside.device().url}\n")
    assert status == 2
    assert "terminal" in said[-1]


@pytest.mark.parametrize(
    "words",
    [
        ["--tunnel", "70000=wss://host"],
        ["--tunnel", "wss://host"],
        ["--radio", "carrier-pigeon"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--uv", "perhaps"],
        ["--algorithm", "rs256"],
    ],
)
async def test_words_that_do_not_do_are_2(outside: Outside, words: list[str]) -> None:
    status, stdout, said = await outcome(*outside.words(*words), stdin=f"{outside.device().url}\n")
    assert (status, stdout) == (2, "")
    assert not any("Traceback" in line for line in said)


async def test_an_authority_that_cannot_be_read_is_10(outside: Outside) -> None:
    words = outside.words("--ca", "/nowhere/ca.pem")
    status, stdout, said = await outcome(*words, stdin=f"{outside.device().url}\n")
    assert (status, stdout) == (10, "")
    assert "[bad-certificate]" in said[-1]


@pytest.mark.threat("T11")
async def test_credentials_that_others_may_read_are_10(outside: Outside) -> None:
    await outside.register()
    outside.credentials.chmod(0o644)
    status, stdout, said = await outcome(*outside.words(), stdin=f"{outside.device().url}\n")
    assert (status, stdout) == (10, "")
    assert "open to others" in said[-1]


async def test_the_url_may_come_from_a_file(outside: Outside) -> None:
    device = outside.device(RequestKind.MAKE_CREDENTIAL)
    file = outside.folder / "url"
    file.write_text(f"{device.url}\n")
    words = ["phone", "--url", file, *outside.words()[3:]]
    async with running(*words, stdin="") as program:
        ok(await outside.ask(program, device, creation()))
        assert await program.ended() == 0


# At the terminal


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [("y\n", 0, 0), ("n\n", 6, 0x27), ("\x04", 6, 0x27)],
    ids=["y", "n", "Ctrl-D"],
)
async def test_the_user_is_asked_at_the_terminal(
    outside: Outside, answer: str, status: int, code: int
) -> None:
    await outside.register()
    device = outside.device()
    async with at_terminal(*outside.words(uv="ask"), stdin=f"{device.url}\n", raw=False) as (program, screen):
        asking = asyncio.create_task(outside.ask(program, device, assertion()))
        seen = await screen.until("y or n:")
        assert "Sign in at example.com?" in seen
        assert "Alice · alice@example.com" in seen
        for slip in ("\n", "1\n", "yy\n"):
            screen.type(slip)
            await screen.until("y or n:")
        screen.type(answer)
        assert (await asking).code == code
        assert await program.ended() == status


async def test_ctrl_c_at_the_question_ends_the_phone_and_is_no_answer(outside: Outside) -> None:
    await outside.register()
    device = outside.device()
    async with at_terminal(*outside.words(uv="ask"), stdin=f"{device.url}\n", raw=False) as (program, screen):
        device.air.adverts.put_nowait(bytes.fromhex(await program.line()))
        async with device.joined() as (tunnel, channel):
            await tunnel.send(channel.send(assertion()))
            await screen.until("y or n:")
            screen.type("\x03")
            with pytest.raises(TunnelClosed) as closed:
                await tunnel.receive()
            assert closed.value.clean
        assert await program.ended() == 130
        assert program.said[-1] == "companion-push: interrupted"


async def test_whether_this_is_the_phone_to_use_is_asked_without_naming_a_site(outside: Outside) -> None:
    device = outside.device()
    async with at_terminal(*outside.words(uv="ask"), stdin=f"{device.url}\n") as (program, screen):
        device.air.adverts.put_nowait(bytes.fromhex(await program.line()))
        async with device.joined() as (tunnel, channel):
            await tunnel.send(raw(channel, 0x0B))
            seen = await screen.until("y or n:")
            assert "Use this phone?" in seen
            assert "None" not in seen
            screen.type("y\n")
            assert ok(await device.reply(tunnel, channel)) == b""
            await tunnel.send(device.goodbye(channel))
        assert await program.ended() == 0


async def test_of_two_accounts_the_user_chooses_one(outside: Outside) -> None:
    await outside.register()
    second = outside.device(RequestKind.MAKE_CREDENTIAL)
    async with running(*outside.words(), stdin=f"{second.url}\n") as program:
        ok(await outside.ask(program, second, creation(user=User(id=b"bob", name="bob"))))
        await program.ended()
    device = outside.device()
    async with at_terminal(*outside.words(uv="ask"), stdin=f"{device.url}\n") as (program, screen):
        asking = asyncio.create_task(outside.ask(program, device, assertion()))
        seen = await screen.until("Number, or n to decline:")
        assert "1  bob" in seen
        for slip in ("\n", "0\n", "3\n", "y\n"):
            screen.type(slip)
            await screen.until("Number, or n to decline:")
        screen.type("2\n")
        assert b"alice" in ok(await asking)
        assert await program.ended() == 0


@pytest.mark.threat("T4")
async def test_keys_pressed_before_the_question_do_not_answer_it(outside: Outside) -> None:
    await outside.register()
    device = outside.device()
    async with at_terminal(*outside.words(uv="ask"), stdin=f"{device.url}\n") as (program, screen):
        screen.type("y\n" * 5)
        asking = asyncio.create_task(outside.ask(program, device, assertion()))
        await screen.until("y or n:")
        screen.type("n\n")
        assert (await asking).code == 0x27
        assert await program.ended() == 6
