"""The device SDK in a program: it signs in at a relying party, prints every stage, and uses the session.

    python examples/sign_in.py https://login.example

It needs a device that has joined an account (`headless-passkey join`) and a Bluetooth adapter.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from headless_passkey.device import Device
from headless_passkey.errors import HeadlessPasskeyError
from headless_passkey.text.names import printable

STATE = Path("~/.local/state/headless-passkey").expanduser()


async def main(relying_party: str) -> None:
    async with Device.open(STATE) as device:
        session = await device.sign_in(
            relying_party, on_stage=lambda event: print(f"{event.elapsed:6.2f} s  {event.stage}")
        )
        print(f"signed in as {printable(session.user_name)}; the session is kept in {session.path}")
        answer = await session.fetch(f"{session.relying_party}/session")
        print(f"the relying party knows it: status {answer.status}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("relying_party", metavar="URL")
    try:
        asyncio.run(main(parser.parse_args().relying_party))
    except HeadlessPasskeyError as error:
        sys.exit(f"{type(error).__name__}: {error.explain()}")
