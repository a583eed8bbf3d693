"""The programs of a pipe: device and phone joined by their ends, `inspect`, `tunnel-domain`, the tunnel service,
and what every program does with `--help`, a word it does not know, a file and the environment.
"""

import json
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import webauthn
from certificates import Certificate
from programs import PROGRAMS

from headless_passkey.hybrid import cbor, eid
from headless_passkey.hybrid.authenticator import PhoneTransaction
from headless_passkey.hybrid.fido_url import PREFIX, FidoUrl, encode_digits
from headless_passkey.hybrid.tunnel_url import connect_url, new_url
from headless_passkey.net.tunnel import open_tunnel
from program_parts.base64url import base64url
from tests.end_to_end.black_box import (
    Outcome,
    outcome,
    running,
    side_by_side,
    tunnel_service,
    write_json,
)
from tests.vectors_loader import Vector, vectors

ORIGIN: Final = "https://login.example.com"
RP_ID: Final = "example.com"


@pytest.fixture(scope="module")
def tunnels(loopback_certificate: Certificate) -> Iterator[str]:
    """The real tunnel service: its base URL."""
    with tunnel_service(loopback_certificate) as base:
        yield base


# Device and phone, the product's own, joined by their pipes


class Pair:
    """A device and a phone that share a tunnel service, and the challenge of their relying party."""

    def __init__(self, base: str, certificate: Certificate, folder: Path, number: int = 300) -> None:
        self.folder, self.challenge = folder, secrets.token_bytes(32)
        self._both = ["--tunnel", f"{number}={base}", "--ca", certificate.ca, "--timeout", "25"]
        self._credentials = folder / f"{number}.json"

    def device(self, command: str, **options: Any) -> list[object]:
        options["challenge"] = base64url(self.challenge)
        return [
            *("headless-passkey", command, "--options", write_json(self.folder, options), "--origin", ORIGIN),
            *("--delivery", "stdout", "--radio", "stdin", *self._both),
        ]

    def phone(self, uv: str = "accept") -> list[object]:
        return [
            *("companion-push", "phone", "--url", "-", "--radio", "stdout", "--uv", uv),
            *("--credentials", self._credentials, *self._both),
        ]

    def registration(self) -> list[object]:
        return self.device(
            "register",
            rp={"id": RP_ID, "name": "Example"},
            user={"id": base64url(b"alice"), "name": "alice", "displayName": "Alice"},
            pubKeyCredParams=[{"type": "public-key", "alg": -7}],
            authenticatorSelection={"residentKey": "required", "userVerification": "required"},
        )

    def sign_in(self) -> list[object]:
        return self.device("sign-in", rpId=RP_ID, userVerification="required")

    async def talk(self, device_words: list[object], *, uv: str = "accept") -> tuple[Outcome, Outcome]:
        """Both programs to their ends, the one's lines passed on to the other."""
        async with running(*device_words) as device, running(*self.phone(uv)) as phone:
            await phone.give(f"{await device.line()}\n")
            assert phone.process.stdout is not None
            async for advert in phone.process.stdout:  # until the phone prints no more
                await device.give(advert)
            heard = Outcome(status=await phone.status(), stdout="", said=phone.said)
            device.close_stdin()
            stdout = await device.rest()
            return Outcome(status=await device.status(), stdout=stdout, said=device.said), heard

    def public_key(self, response: str) -> bytes:
        """The new passkey's, once the registration was verified."""
        return webauthn.verify_registration_response(
            credential=json.loads(response),
            expected_challenge=self.challenge,
            expected_rp_id=RP_ID,
            expected_origin=ORIGIN,
            require_user_verification=True,
        ).credential_public_key

    def signed_in(self, response: str, public_key: bytes) -> None:
        webauthn.verify_authentication_response(
            credential=json.loads(response),
            expected_challenge=self.challenge,
            expected_rp_id=RP_ID,
            expected_origin=ORIGIN,
            credential_public_key=public_key,
            credential_current_sign_count=0,
            require_user_verification=True,
        )


async def test_device_and_phone_register_and_sign_in_through_any_tunnel_domain_number(
    tunnels: str, loopback_certificate: Certificate, tmp_path: Path
) -> None:
    async def one(number: int) -> None:
        pair = Pair(tunnels, loopback_certificate, tmp_path, number)
        device, phone = await pair.talk(pair.registration())
        assert (device.status, phone.status) == (0, 0), (number, device.said, phone.said)
        key = pair.public_key(device.stdout)
        device, phone = await pair.talk(pair.sign_in())
        assert (device.status, phone.status) == (0, 0), (number, device.said, phone.said)
        pair.signed_in(device.stdout, key)

    # assigned, assigned, unassigned, hashed, the last one: ours overrides every built-in name
    await side_by_side(*map(one, (0, 1, 5, 300, 65535)), at_once=2)


async def test_a_user_who_declines_is_told_on_both_sides(
    tunnels: str, loopback_certificate: Certificate, tmp_path: Path
) -> None:
    pair = Pair(tunnels, loopback_certificate, tmp_path)
    device, phone = await pair.talk(pair.registration(), uv="decline")
    assert (device.status, phone.status) == (5, 6)
    assert "0x27" in device.failure
    assert device.stdout == ""


async def test_a_phone_without_a_passkey_is_told_on_both_sides(
    tunnels: str, loopback_certificate: Certificate, tmp_path: Path
) -> None:
    pair = Pair(tunnels, loopback_certificate, tmp_path)
    device, phone = await pair.talk(pair.sign_in())
    assert (device.status, phone.status) == (5, 5)
    assert "0x2E" in device.failure


async def test_a_shell_joins_them_with_a_pipe_and_a_fifo(
    tunnels: str, loopback_certificate: Certificate, tmp_path: Path
) -> None:
    pair = Pair(tunnels, loopback_certificate, tmp_path)
    script = tmp_path / "pipe"

    def quoted(words: list[object]) -> str:
        return " ".join(f"'{PROGRAMS / str(word) if at == 0 else word}'" for at, word in enumerate(words))

    async def shell(device: list[object]) -> str:
        script.write_text(
            f"cd '{tmp_path}' && rm -f adverts && mkfifo adverts && "
            f"{quoted(device)} <adverts | tee lines | {quoted(pair.phone())} >adverts\n"
        )
        ended = await outcome("/bin/sh", script)
        assert ended.status == 0, ended.said
        lines = (tmp_path / "lines").read_text().splitlines()
        assert len(lines) == 2, lines
        assert lines[0].startswith(PREFIX)
        return lines[1]

    key = pair.public_key(await shell(pair.registration()))
    pair.signed_in(await shell(pair.sign_in()), key)


# inspect


def _url(**keys: Any) -> str:
    """A FIDO URL with other members than usual, `key_N` each."""
    given = {int(name.removeprefix("key_")): value for name, value in keys.items()}
    return PREFIX + encode_digits(cbor.encode({0: PUBLIC_KEY, 1: SECRET} | given))


PUBLIC_KEY: Final = bytes.fromhex("03364c15eec34331d2865757421d497e569e1eba6cff9a69d32e90f19e7f6fd15e")
SECRET: Final = bytes(range(16))
MEMBERS: Final = {
    *("public_key", "assigned_domains", "time", "linking", "hint", "channels", "unknown_keys", "tunnel_id")
}


async def inspect(line: str | bytes, *words: object) -> Outcome:
    return await outcome("headless-passkey", "inspect", *words, stdin=line)


def shown(ended: Outcome) -> dict[str, Any]:
    """The one object on stdout."""
    assert (ended.status, ended.said) == (0, [])
    assert ended.stdout.count("\n") == 1
    value: dict[str, Any] = json.loads(ended.stdout)
    return value


async def test_inspect_shows_known_urls_as_they_are_known_and_refuses_the_others() -> None:
    cases: list[Vector] = vectors("fido_urls")
    ended = await side_by_side(*(inspect(f"{case['url']}\n") for case in cases))
    for case, one in zip(cases, ended, strict=True):
        if not case["valid"]:
            assert (one.status, one.stdout, len(one.said)) == (3, "", 1), case["name"]
            continue
        values = shown(one)
        assert values.keys() - {"hint_raw"} == MEMBERS, case["name"]
        expected = {key: value for key, value in case["expected"].items() if key in values}
        assert {key: values[key] for key in expected} == expected, case["name"]


async def test_inspect_shows_what_is_there_and_null_for_what_is_not() -> None:
    bare = shown(await inspect(_url()))
    assert bare == {
        "public_key": PUBLIC_KEY.hex(),
        "assigned_domains": 0,
        "time": None,
        "linking": None,
        "hint": "ga",
        "hint_raw": None,
        "channels": None,
        "unknown_keys": [],
        "tunnel_id": FidoUrl.parse(_url()).tunnel_id.hex(),
    }
    full = shown(
        await inspect(
            _url(key_2=2, key_3=1_700_000_000, key_4=True, key_5="later", key_6=[0, 1], key_7=1, key_65535=0)
            + "\r\n"
        )
    )
    assert (full["assigned_domains"], full["time"], full["linking"]) == (2, 1_700_000_000, True)
    assert (full["hint"], full["hint_raw"]) == ("ga", "later")
    assert (full["channels"], full["unknown_keys"]) == ([0, 1], [7, 65535])
    assert "hint_raw" not in shown(await inspect(_url(key_5="mc")))


@pytest.mark.threat("T11")
async def test_inspect_opens_an_advert_and_shows_no_secret() -> None:
    url = FidoUrl.parse(_url())
    service_data = (
        PhoneTransaction(url)
        .advertise(routing_id=b"\xab\xcd\xef", tunnel_domain=257, nonce=bytes(range(10)))
        .service_data.hex()
    )
    for form in (service_data, f"FFF9:{service_data.upper()}", f"fde2:{service_data}a10119beef"):
        ended = await inspect(_url(), "--advert", form)
        advert = shown(ended)["advert"]
        assert advert == {
            "nonce": bytes(range(10)).hex(),
            "routing_id": "abcdef",
            "tunnel_domain": 257,
            "tunnel_url": connect_url("wss://cable.4a6bwmj6hiyyd.net", b"\xab\xcd\xef", url.tunnel_id),
        }
        key = eid.eid_key(SECRET)
        for secret in (SECRET, key, key[:32], key[32:]):
            assert secret.hex() not in ended.stdout.lower()


async def test_inspect_of_an_advert_that_names_no_known_domain_has_no_tunnel_url() -> None:
    advertised = PhoneTransaction(FidoUrl.parse(_url())).advertise(routing_id=bytes(3), tunnel_domain=5)
    advert = shown(await inspect(_url(), "--advert", advertised.service_data.hex()))["advert"]
    assert (advert["tunnel_domain"], advert["tunnel_url"]) == (5, None)


@pytest.mark.threat("T12")
async def test_inspect_refuses_what_is_malformed_in_one_line() -> None:
    cases: list[tuple[int, str | bytes, list[str]]] = [
        (4, "", []),
        (3, "\n", []),
        (3, "FIDO:/\n", []),
        (3, b"\xff\xfe\n", []),
        (3, "FIDO:/" + "\N{ARABIC-INDIC DIGIT ONE}" * 17, []),
        (3, "FIDO:/" + "1" * 1_000_000, []),
        (3, _url(key_6="x"), []),
        (3, _url(key_3=-5), []),
        (3, _url(), ["--advert", "00" * 20]),
        (3, _url(), ["--advert", "00" * 19]),
        (3, _url(), ["--advert", "hello"]),
        (3, _url(), ["--advert", ""]),
        (3, _url(), ["--advert", "00" * 4000]),
    ]
    ended = await side_by_side(*(inspect(line, *words) for _, line, words in cases))
    for (status, line, words), one in zip(cases, ended, strict=True):
        assert (one.status, one.stdout, len(one.said)) == (status, "", 1), (line[:40], words, one)


# tunnel-domain


async def test_tunnel_domain_prints_the_host() -> None:
    cases = {
        0: "cable.ua5v.com",
        1: "cable.auth.com",
        256: "cable.qz2ekwmnd332c.info",
        257: "cable.4a6bwmj6hiyyd.net",
        261: "cable.pyzci7hxyjsvc.org",
        266: "cable.wufkweyy3uaxb.com",
        0xF980: "cable.my4kstlhndi4c.net",
    }
    ended = await side_by_side(*(outcome("headless-passkey", "tunnel-domain", number) for number in cases))
    assert [(one.status, one.stdout) for one in ended] == [(0, f"{host}\n") for host in cases.values()]


async def test_numbers_that_name_no_tunnel_domain_are_errors() -> None:
    words = ["2", "255", "65536", "-1", "1e3", "0x100", "", " ", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 5000]
    ended = await side_by_side(*(outcome("headless-passkey", "tunnel-domain", word) for word in words))
    for word, one in zip(words, ended, strict=True):
        assert (one.status, one.stdout, len(one.said)) == (2, "", 1), (word, one)


# The tunnel service


async def test_the_tunnel_service_says_where_it_is_serves_and_ends_with_0(
    loopback_certificate: Certificate, tmp_path: Path
) -> None:
    tls = ["--cert", loopback_certificate.cert, "--key", loopback_certificate.key]
    async with running("companion-push", "tunnel-service", "--listen", "127.0.0.1:0", *tls) as service:
        base = await service.line()
        assert base.startswith("wss://127.0.0.1:")
        assert int(base.rpartition(":")[2]) > 0
        async with open_tunnel(new_url(base, bytes(16)), tls=loopback_certificate.client_context()) as tunnel:
            assert tunnel.routing_id is not None
            service.signal(signal.SIGTERM)  # while a tunnel is open
            assert await service.status(within=20) == 0
        assert await service.rest() == ""

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        bad = tmp_path / "bad.pem"
        bad.write_text("-----BEGIN CERTIFICATE-----\n")
        busy, broken, missing = await side_by_side(
            outcome("companion-push", "tunnel-service", "--listen", f"127.0.0.1:{port}", *tls),
            outcome("companion-push", "tunnel-service", "--listen", "127.0.0.1:0", "--cert", bad, *tls[2:]),
            outcome("companion-push", "tunnel-service", "--listen", "127.0.0.1:0", *tls[:2], "--key", "none"),
        )
    assert [one.status for one in (busy, broken, missing)] == [10, 10, 10]
    assert all((one.stdout, len(one.said)) == ("", 1) for one in (busy, broken, missing))


# Every program


COMMANDS: Final = [
    *(f"headless-passkey {name}" for name in ("join", "leave", "status", "sign-in", "register")),
    *("headless-passkey inspect", "headless-passkey tunnel-domain"),
    *(f"companion-push {name}" for name in ("relay", "account add", "tunnel-service", "phone", "ether")),
    *(f"companion-push companion {name}" for name in ("join", "invite", "run", "members")),
    "relying-party serve",
]
GROUPS: Final = [
    *("headless-passkey", "companion-push", "companion-push account", "companion-push companion"),
    "relying-party",
]


async def test_every_program_helps_with_an_example_and_its_defaults() -> None:
    ended = await side_by_side(*(outcome(*name.split(), "--help") for name in COMMANDS + GROUPS))
    for name, one in zip(COMMANDS + GROUPS, ended, strict=True):
        assert (one.status, one.said) == (0, []), (name, one)
        assert one.stdout.startswith(f"usage: {name}"), name
        if name in COMMANDS:
            for word in ("--config", "--json", "--log-level", "_OPTION"):
                assert word in one.stdout, (name, word)


async def test_a_word_that_no_program_knows_is_2_and_one_line() -> None:
    calls = [[*name.split(), "what"] for name in GROUPS] + [name.split() for name in GROUPS]
    ended = await side_by_side(*(outcome(*call) for call in calls))
    for call, one in zip(calls, ended, strict=True):
        assert (one.status, one.stdout, len(one.said)) == (2, "", 1), (call, one)


async def test_a_usage_error_is_an_object_with_json() -> None:
    ended = await side_by_side(*(outcome(*name.split(), "--json", "--what") for name in COMMANDS))
    for name, one in zip(COMMANDS, ended, strict=True):
        assert (one.status, one.stdout, len(one.said)) == (2, "", 1), (name, one)
        assert one.error["status"] == 2
        assert one.error.keys() == {"error", "reason", "status", "message", "advice"}


async def test_every_program_takes_a_file_and_the_environment(tmp_path: Path) -> None:
    """A value that will not do, so that the program says whence it had it and ends."""

    async def from_environment(name: str) -> Outcome:
        prefix = (
            "_".join(name.split()).upper().replace("-", "_").replace("RELYING_PARTY_SERVE", "RELYING_PARTY")
        )
        return await outcome(*name.split(), environment={f"{prefix}_LOG_LEVEL": "loud"})

    async def from_file(name: str) -> Outcome:
        section = ".".join(name.split()[1:])
        file = tmp_path / f"{section}.toml"
        file.write_text(f"[{section}]\nlog-level = 'loud'\n")
        return await outcome(*name.split(), "--config", file)

    ended = await side_by_side(*map(from_environment, COMMANDS), *map(from_file, COMMANDS))
    for name, one in zip(COMMANDS * 2, ended, strict=True):
        assert (one.status, one.stdout, len(one.said)) == (2, "", 1), (name, one)
        assert "log-level" in one.failure, (name, one)


async def test_commands_without_an_account_say_so_with_9(tmp_path: Path) -> None:
    calls = ["headless-passkey status", "headless-passkey sign-in --rp https://localhost --radio stdin"]
    calls += ["companion-push companion members", "companion-push companion run --consent accept"]
    ended = await side_by_side(*(outcome(*call.split(), "--state", tmp_path / "state") for call in calls))
    for call, one in zip(calls, ended, strict=True):
        assert (one.status, one.stdout) == (9, ""), (call, one)
