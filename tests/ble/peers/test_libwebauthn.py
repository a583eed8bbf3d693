"""Our phone and tunnel service with libwebauthn, the WebAuthn client of credentialsd (Linux), on its own transport pxp.

A small program of ours gives it the relying party's options in JSON, as a browser would, and python-fido2 verifies the credential
that comes out: libwebauthn asks the phone by CTAP, checks RP ID and answer, and writes the client data. It listens
through BlueZ, and verifies TLS of the host that it computes from the tunnel domain number in the advert. `make interop` builds it
and runs this in the guest.
"""

import json
import os
from typing import Any, Final

import pytest
from fido2.server import Fido2Server
from fido2.webauthn import (
    AttestedCredentialData,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialUserEntity,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from tests.ble.peers.parties import HOST, PATIENCE, Client, Parties

LIBWEBAUTHN: Final = os.environ.get("LIBWEBAUTHN_CLIENT", "")
SERVER: Final = Fido2Server(
    PublicKeyCredentialRpEntity(id="login.example", name="Example"),
    verify_origin="https://login.example".__eq__,
)
USER: Final = PublicKeyCredentialUserEntity(id=b"ada's handle", name="ada", display_name="Ada")

pytestmark = pytest.mark.skipif(not LIBWEBAUTHN, reason="the peer is not built: make interop")


async def client(parties: Parties, *words: str) -> Client:
    return await parties.client(LIBWEBAUTHN, *words, log="libwebauthn=info,pxp=debug")


async def asks(client: Client, options: Any) -> Any:
    """The credential that libwebauthn answers a relying party's options with."""
    await client.type(json.dumps(dict(options.public_key)))
    return json.loads(await client.says("credential"))


async def makes(client: Client) -> AttestedCredentialData:
    """A passkey, which python-fido2 has verified."""
    options, state = SERVER.register_begin(
        USER,
        resident_key_requirement=ResidentKeyRequirement.REQUIRED,
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    made = SERVER.register_complete(state, await asks(client, options))
    assert made.credential_data is not None
    return made.credential_data


async def uses(client: Client, passkey: AttestedCredentialData) -> None:
    """Sign in with the passkey; python-fido2 has verified the assertion."""
    options, state = SERVER.authenticate_begin(user_verification=UserVerificationRequirement.REQUIRED)
    SERVER.authenticate_complete(state, [passkey], await asks(client, options))


async def test_libwebauthn_makes_a_passkey_and_uses_it(parties: Parties) -> None:
    passkey: AttestedCredentialData | None = None
    for kind in ("mc", "ga"):
        asking = await client(parties, kind, "once")
        phone = await parties.scans(await asking.says("url"), radio=parties.own_radio)
        if passkey is None:
            passkey = await makes(asking)
        else:
            await uses(asking, passkey)
        assert await phone.wait(timeout=PATIENCE) == 0


async def test_libwebauthn_is_linked_by_our_phone_and_reaches_it_again_without_a_url(
    parties: Parties,
) -> None:
    asking = await client(parties, "mc", "link")
    phone = await parties.scans(await asking.says("url"), "--links", parties.links, radio=parties.own_radio)
    passkey = await makes(asking)
    assert await phone.wait(timeout=PATIENCE) == 0
    assert (await asking.says("link")).endswith(f" {HOST}")

    waiting = await parties.phone("--linked", "--links", parties.links, radio=parties.own_radio)
    await waiting.stage("phone-waiting", timeout=PATIENCE)
    for _ in range(2):
        await uses(asking, passkey)
        assert await asking.says("links") == "1"
    assert await waiting.stop() == 0
