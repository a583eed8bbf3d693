"""The device SDK as a program of its own: a sign-in at a relying party, with every stage told.

    python examples/sign_in.py https://login.example

It needs a device that has joined an account (`headless-passkey join`) and a Bluetooth adapter.
"""

import asyncio
import sys
from pathlib import Path

from headless_passkey import enrolment
from headless_passkey.conduit import Conduit
from headless_passkey.delivery import RelayDelivery
from headless_passkey.errors import HeadlessPasskeyError
from headless_passkey.hybrid.fido_url import Hint
from headless_passkey.proven_http import ProvenHttp, open_session
from headless_passkey.radio.bleak import BleakRadio
from headless_passkey.relay import Relay
from headless_passkey.sign_in import Ask, sign_in

STATE = Path("~/.local/state/headless-passkey").expanduser()


async def main(relying_party: str) -> None:
    device = enrolment.load(STATE)
    async with open_session(tls=None) as http:
        conduit = Conduit(
            ProvenHttp(http, relying_party, device.key),
            origin=relying_party,
            kind=Hint.GET_ASSERTION,
            label=device.label,
        )
        delivery = RelayDelivery(Relay(ProvenHttp(http, device.relay_url, device.key)), STATE)
        signed_in = await sign_in(
            Ask(kind=Hint.GET_ASSERTION, origin=conduit.origin, rp_id=conduit.host),
            conduit.begin,  # asked for a challenge when the phone is there
            delivery=delivery,
            radio=BleakRadio(),
            on_stage=lambda event: print(f"{event.elapsed:6.2f} s  {event.stage}"),
            settle=conduit.complete,  # the relying party verifies, and opens a session
        )
    checked = "" if signed_in.user_checked else " (nobody was expected)"
    print(f"signed in as {conduit.session.user_name if conduit.session else '?'}{checked}")


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1]))
    except HeadlessPasskeyError as error:
        sys.exit(f"{type(error).__name__}: {error}")
