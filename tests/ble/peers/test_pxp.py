"""Our phone and tunnel service with pxp, the client platform of the libwebauthn project (crate ``pxp``, in Rust).

pxp listens and connects through BlueZ, and verifies TLS of the host that it computes from the tunnel domain number in the
advert. `make interop` builds the peer and runs this in the guest.
"""

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from certificates import Certificate, make_certificate
from fido2 import cbor
from fido2.ctap2.base import AssertionResponse, AttestationResponse
from programs import Program, running

from headless_passkey.hybrid.ctap2 import Command, GetAssertionRequest, MakeCredentialRequest, User
from headless_passkey.hybrid.tunnel_url import tunnel_domain
from tests.ble.lab.guest import Guest

PXP: Final = os.environ.get("PXP_CLIENT", "")
PATIENCE: Final = 120.0  # seconds; a program takes ten to start on an emulated processor
NUMBER: Final = 300  # of the tunnel domain
HOST: Final = tunnel_domain(NUMBER)
HASH: Final = bytes(range(32))
MAKE: Final = (
    bytes([Command.MAKE_CREDENTIAL])
    + MakeCredentialRequest(
        client_data_hash=HASH,
        rp_id="login.example",
        rp_name="Example",
        user=User(id=b"ada's handle", name="ada", display_name="Ada"),
        algorithms=(-7,),
    ).encode()
)
GET: Final = (
    bytes([Command.GET_ASSERTION])
    + GetAssertionRequest(rp_id="login.example", client_data_hash=HASH).encode()
)

pytestmark = pytest.mark.skipif(not PXP, reason="the peer is not built: make interop")


@dataclass
class Peers:
    """A tunnel service at the host of the domain number, and the files of the phone."""

    guest: Guest
    folder: Path
    certificate: Certificate
    programs: list[Program]

    @property
    def links(self) -> Path:
        return self.folder / "links.json"

    async def phone(self, *options: str | Path) -> Program:
        """A phone with a controller of its own, which both adapters hear: pxp takes either, and not always the same."""
        phone = await Program.start(
            "phone", "companion-push", "phone", *options, "--credentials", self.folder / "passkeys.json",
            "--radio", f"bumble:{self.guest.air}", "--tunnel", f"{NUMBER}=wss://{HOST}", "--ca", self.certificate.ca,
            "--uv", "accept", "--json", "--timeout", f"{PATIENCE:g}",
        )  # fmt: skip
        self.programs.append(phone)
        return phone

    async def scans(self, url: str, *options: str | Path) -> Program:
        """A phone that was given a FIDO URL, as by a camera."""
        phone = await self.phone("--url", "-", *options)
        await phone.write(url)
        return phone

    async def client(self, *words: str) -> "Client":
        program = await Program.start(
            "pxp", PXP, *words,
            environment={"SSL_CERT_FILE": str(self.certificate.ca), "RUST_LOG": "pxp=debug"},
        )  # fmt: skip
        self.programs.append(program)
        return Client(program)


@dataclass
class Client:
    """pxp, by the lines that it reads and prints."""

    program: Program

    async def says(self, word: str) -> str:
        line = await self.program.line(timeout=PATIENCE)
        assert line.split(" ")[0] == word, "\n".join([line, *self.program.said])
        return line.partition(" ")[2]

    async def type(self, line: str) -> None:
        assert self.program.process.stdin is not None
        self.program.process.stdin.write(f"{line}\n".encode())
        await self.program.process.stdin.drain()

    async def command(self, command: bytes) -> bytes:
        """What the phone answers; its status was success."""
        await self.type(command.hex())
        reply = bytes.fromhex(await self.says("reply"))
        assert reply[0] == 0, hex(reply[0])
        return reply[1:]

    async def hangs_up(self) -> None:
        await self.type("")
        await self.says("closed")


@pytest.fixture
def name() -> Iterator[None]:
    """The host of the domain number is this guest."""
    hosts = Path("/etc/hosts")
    was = hosts.read_text()
    hosts.write_text(f"{was}\n127.0.0.1 {HOST}\n")
    yield
    hosts.write_text(was)


@pytest.fixture
async def peers(guest: Guest, name: None, tmp_path: Path) -> AsyncIterator[Peers]:
    programs: list[Program] = []
    async with running(programs):
        certificate = make_certificate(tmp_path, names=(HOST,))
        service = await Program.start(
            "tunnel service", "companion-push", "tunnel-service", "--listen", "127.0.0.1:443",
            "--cert", certificate.cert, "--key", certificate.key, "--contacts", tmp_path / "contacts",
        )  # fmt: skip
        programs.append(service)
        await service.line(timeout=PATIENCE)
        yield Peers(guest, tmp_path, certificate, programs)


def answer(payload: bytes) -> Mapping[int, Any]:
    value = cbor.decode(payload)
    assert isinstance(value, Mapping)
    return value


async def made_with(client: Client) -> AttestationResponse:
    return AttestationResponse.from_dict(answer(await client.command(MAKE)))


async def used_with(client: Client, made: AttestationResponse) -> AssertionResponse:
    """An assertion by the passkey that was made, which python-fido2 has verified."""
    used = AssertionResponse.from_dict(answer(await client.command(GET)))
    credential = made.auth_data.credential_data
    assert credential is not None
    assert used.credential["id"] == credential.credential_id
    used.verify(HASH, credential.public_key)
    assert used.auth_data.is_user_verified()
    return used


async def makes_and_uses(peers: Peers, channels: str, said: str) -> None:
    """Make a passkey and use it, with a FIDO URL for each; pxp says in its log which channel it has."""
    made: AttestationResponse | None = None
    for kind in ("mc", "ga"):
        client = await peers.client(channels, kind, "once")
        phone = await peers.scans(await client.says("url"))
        await client.says("connected")
        assert any(said in line for line in client.program.said), client.program.said
        if made is None:
            made = await made_with(client)
        else:
            await used_with(client, made)
        await client.hangs_up()
        assert await phone.wait(timeout=PATIENCE) == 0


async def test_pxp_makes_a_passkey_and_uses_it_through_the_tunnel(peers: Peers) -> None:
    await makes_and_uses(peers, "tunnel", "Connected over WebSocket tunnel")


async def test_pxp_makes_a_passkey_and_uses_it_over_the_direct_channel(peers: Peers) -> None:
    await makes_and_uses(peers, "any", "Connected over BLE L2CAP")


async def test_pxp_is_linked_by_our_phone_and_reaches_it_again_without_a_url(peers: Peers) -> None:
    client = await peers.client("tunnel", "mc", "link")
    phone = await peers.scans(await client.says("url"), "--links", peers.links)
    await client.says("connected")
    made = await made_with(client)
    await client.hangs_up()
    assert await phone.wait(timeout=PATIENCE) == 0
    assert (await client.says("link")).endswith(f" {HOST}")

    waiting = await peers.phone("--linked", "--links", peers.links)
    await waiting.stage("phone-waiting", timeout=PATIENCE)
    for _ in range(2):  # the second time with the link of the first
        await client.type("")
        await client.says("connected")
        await used_with(client, made)
        await client.hangs_up()
        assert await client.says("links") == "1"
    assert await waiting.stop() == 0
