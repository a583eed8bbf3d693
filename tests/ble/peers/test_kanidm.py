"""Our phone and tunnel service with kanidm's client (the example ``authenticate`` of the crate webauthn-authenticator-rs, in Rust).

It draws a QR code in the terminal with the FIDO URL below it, scans through BlueZ, finds the tunnel service by the number in
the advert, and verifies what it is given, as a relying party of its own. `make interop` compiles it as it is published and runs
this in the guest.
"""

import os
from typing import Final

import pytest
from programs import Program

from headless_passkey.errors import ExitStatus
from tests.ble.peers.parties import PATIENCE, Parties

CLIENT: Final = os.environ.get("KANIDM_CLIENT", "")
PANIC: Final = 101  # the exit status of a program in Rust that does not go on

pytestmark = pytest.mark.skipif(not CLIENT, reason="the peer is not built: make interop")


async def client(parties: Parties) -> Program:
    return await parties.run(
        "kanidm's client", CLIENT, "--verification-policy", "required", "cable",
        environment={"SSL_CERT_FILE": str(parties.certificate.ca)},
    )  # fmt: skip


async def lines(asking: Program, beginning: str) -> list[str]:
    """What it prints, up to a line with this beginning."""
    said = [""]
    while not said[-1].startswith(beginning):
        said.append(await asking.line(timeout=PATIENCE))
    return said


async def scanned(parties: Parties, asking: Program, *, uv: str = "accept") -> int:
    """How the phone ends that scans the code which the client shows next."""
    url = (await lines(asking, "FIDO:/"))[-1]
    phone = await parties.scans(url, radio=parties.own_radio, uv=uv)
    return await phone.wait(timeout=PATIENCE)


async def test_kanidms_client_makes_a_passkey_and_uses_it(parties: Parties) -> None:
    asking = await client(parties)
    assert await scanned(parties, asking) == 0
    await lines(asking, "Press ENTER to authenticate")
    assert asking.process.stdin is not None
    asking.process.stdin.write(b"\n")
    assert await scanned(parties, asking) == 0
    said = await lines(asking, "Press ENTER")
    (verified,) = (line for line in said if "RP auth success" in line)
    assert "user_verified: true" in verified


async def test_kanidms_client_is_told_that_the_phones_user_declines(parties: Parties) -> None:
    asking = await client(parties)
    assert await scanned(parties, asking, uv="decline") == ExitStatus.DECLINED
    await asking.output()
    assert await asking.wait(timeout=PATIENCE) == PANIC
    assert any("Ctap2OperationDenied" in line for line in asking.said)
