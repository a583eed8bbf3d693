"""Our phone and tunnel service with pxp, the client platform of the libwebauthn project (crate ``pxp``, in Rust).

pxp listens and connects through BlueZ, and verifies TLS of the host that it computes from the tunnel domain number in the
advert. `make interop` builds the peer and runs this in the guest.
"""

import os
from collections.abc import Mapping
from typing import Any, Final

import pytest
from fido2 import cbor
from fido2.ctap2.base import AssertionResponse, AttestationResponse

from headless_passkey.hybrid.ctap2 import Command, GetAssertionRequest, MakeCredentialRequest, User
from tests.ble.peers.parties import HOST, PATIENCE, Client, Parties

PXP: Final = os.environ.get("PXP_CLIENT", "")
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


async def client(parties: Parties, *words: str) -> Client:
    return await parties.client(PXP, *words, log="pxp=debug")


async def command(client: Client, command: bytes) -> Mapping[int, Any]:
    """What the phone answers; its status was success."""
    await client.type(command.hex())
    reply = bytes.fromhex(await client.says("reply"))
    assert reply[0] == 0, hex(reply[0])
    value = cbor.decode(reply[1:])
    assert isinstance(value, Mapping)
    return value


async def hangs_up(client: Client) -> None:
    await client.type("")
    await client.says("closed")


async def made_with(client: Client) -> AttestationResponse:
    return AttestationResponse.from_dict(await command(client, MAKE))


async def used_with(client: Client, made: AttestationResponse) -> AssertionResponse:
    """An assertion by the passkey that was made, which python-fido2 has verified."""
    used = AssertionResponse.from_dict(await command(client, GET))
    credential = made.auth_data.credential_data
    assert credential is not None
    assert used.credential["id"] == credential.credential_id
    used.verify(HASH, credential.public_key)
    assert used.auth_data.is_user_verified()
    return used


async def makes_and_uses(parties: Parties, channels: str, said: str) -> None:
    """Make a passkey and use it, with a FIDO URL for each; pxp says in its log which channel it has."""
    made: AttestationResponse | None = None
    for kind in ("mc", "ga"):
        pxp = await client(parties, channels, kind, "once")
        phone = await parties.scans(await pxp.says("url"), radio=parties.own_radio)
        await pxp.says("connected")
        assert any(said in line for line in pxp.program.said), pxp.program.said
        if made is None:
            made = await made_with(pxp)
        else:
            await used_with(pxp, made)
        await hangs_up(pxp)
        assert await phone.wait(timeout=PATIENCE) == 0


async def test_pxp_makes_a_passkey_and_uses_it_through_the_tunnel(parties: Parties) -> None:
    await makes_and_uses(parties, "tunnel", "Connected over WebSocket tunnel")


async def test_pxp_makes_a_passkey_and_uses_it_over_the_direct_channel(parties: Parties) -> None:
    await makes_and_uses(parties, "any", "Connected over BLE L2CAP")


async def test_pxp_is_linked_by_our_phone_and_reaches_it_again_without_a_url(parties: Parties) -> None:
    pxp = await client(parties, "tunnel", "mc", "link")
    phone = await parties.scans(await pxp.says("url"), "--links", parties.links, radio=parties.own_radio)
    await pxp.says("connected")
    made = await made_with(pxp)
    await hangs_up(pxp)
    assert await phone.wait(timeout=PATIENCE) == 0
    assert (await pxp.says("link")).endswith(f" {HOST}")

    waiting = await parties.phone("--linked", "--links", parties.links, radio=parties.own_radio)
    await waiting.stage("phone-waiting", timeout=PATIENCE)
    for _ in range(2):  # the second time with the link of the first
        await pxp.type("")
        await pxp.says("connected")
        await used_with(pxp, made)
        await hangs_up(pxp)
        assert await pxp.says("links") == "1"
    assert await waiting.stop() == 0
