"""The programs behind a proxy, which alone knows where their servers are."""

import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from certificates import Certificate, make_certificate

from program_parts.base64url import base64url
from tests.device.connect_proxy import ConnectProxy
from tests.end_to_end.black_box import outcome, running, tunnel_service, write_json

PASSWORD = "p@ssw0rd"
TUNNELS, RELAY = "tunnels.test", "relay.test"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("proxied"), names=(TUNNELS, RELAY, "localhost"))


@pytest.fixture(scope="module")
def tunnels(certificate: Certificate) -> Iterator[int]:
    with tunnel_service(certificate) as base:
        yield int(base.rpartition(":")[2])


def through(address: str) -> dict[str, str]:
    return {"HTTPS_PROXY": f"http://ada:{PASSWORD.replace('@', '%40')}@{address}"}


async def test_device_and_phone_meet_through_a_proxy_with_a_password(
    certificate: Certificate, tunnels: int, tmp_path: Path
) -> None:
    options = {
        "challenge": base64url(secrets.token_bytes(32)),
        "rp": {"id": "example.com", "name": "Example"},
        "user": {"id": base64url(b"alice"), "name": "alice", "displayName": "Alice"},
        "pubKeyCredParams": [{"type": "public-key", "alg": -7}],
    }
    ours = ("--tunnel", f"300=wss://{TUNNELS}", "--ca", certificate.ca, "--log-level", "debug")
    device_words = (
        *("headless-passkey", "register", "--options", write_json(tmp_path, options)),
        *("--origin", "https://login.example.com", "--delivery", "stdout", "--radio", "stdin"),
    )
    phone_words = (
        *("companion-push", "phone", "--url", "-", "--radio", "stdout", "--uv", "accept"),
        *("--credentials", tmp_path / "passkeys.json"),
    )
    proxy = ConnectProxy({f"{TUNNELS}:443": tunnels}, credentials=f"ada:{PASSWORD}")
    async with (
        proxy.running() as address,
        running(*device_words, *ours, environment=through(address)) as device,
        running(*phone_words, *ours, environment=through(address)) as phone,
    ):
        await phone.give(await device.line() + "\n")
        await device.give(await phone.line() + "\n")
        assert await device.status() == 0, device.said
        assert await phone.status() == 0, phone.said
        assert json.loads(await device.rest())["type"] == "public-key"
    assert set(proxy.asked) == {f"{TUNNELS}:443"}
    assert len(proxy.asked) >= 2
    assert PASSWORD not in "\n".join(device.said + phone.said)


@asynccontextmanager
async def relay(certificate: Certificate, folder: Path) -> AsyncIterator[tuple[int, str]]:
    """The relay as a program, under the name that only the proxy knows: its port, and an account's code."""
    store = ("--store", folder / "relay.sqlite3")
    words = ("--listen", "localhost:0", "--public-url", f"https://{RELAY}", "--cert", certificate.cert)
    async with running("companion-push", "relay", *words, "--key", certificate.key, *store) as process:
        port = int((await process.line()).rpartition(":")[2])
        added = await outcome(
            "companion-push", "account", "add", "alice", "--relay", f"https://{RELAY}", *store
        )
        assert added.status == 0, added.said
        yield port, added.stdout


async def test_a_companion_joins_through_a_proxy_and_lets_a_device_in_whose_doctor_names_the_proxy(
    certificate: Certificate, tmp_path: Path
) -> None:
    ca = ("--ca", certificate.ca)
    async with relay(certificate, tmp_path) as (port, code):
        proxy = ConnectProxy({f"{RELAY}:443": port}, credentials=f"ada:{PASSWORD}")
        async with proxy.running() as address:
            environment = through(address)
            companion = ("--state", tmp_path / "companion")
            joined = await outcome(
                *("companion-push", "companion", "join", "--code", "-", "--label", "My phone"),
                *companion, *ca, stdin=code, environment=environment,
            )  # fmt: skip
            assert joined.status == 0, joined.said
            device = ("--state", tmp_path / "device")
            invite = ("companion-push", "companion", "invite", "--kind", "device", "--any-rp-id", "--yes")
            unasked = ("--without-number", *companion, *ca)
            async with running(*invite, *unasked, environment=environment) as inviter:
                invitation = await inviter.line()
                let_in = await outcome(
                    *("headless-passkey", "join", "--invitation", "-", "--label", "Kitchen hub"),
                    *device, *ca, stdin=invitation, environment=environment,
                )  # fmt: skip
                assert let_in.status == 0, let_in.said
                assert await inviter.status() == 0, inviter.said
            examined = await outcome(
                "headless-passkey", "doctor", "--json", *device, *ca, environment=environment
            )
    findings = {one["check"]: one for one in json.loads(examined.stdout)["findings"]}
    assert findings["relay"]["message"] == f"{RELAY} answers through the proxy {address}"
    assert findings["membership"]["status"] == "ok"
    # the services of other people's phones, which this proxy does not know
    assert findings["tunnel-service"]["reason"] == "proxy-failed"
    assert findings["tunnel-service"]["message"].startswith(f"the proxy {address} does not connect to cable.")
    assert PASSWORD not in examined.stdout + "\n".join(examined.said)
