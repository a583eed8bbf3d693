"""What docker/test runs in the demo's image beside a companion whose page it answers: a device, and a phone without a companion.

The device joins by the invitation that is the first line of stdin, and registers a passkey. The phone reads the FIDO URL that is the
second line, as a camera reads it off the page. stdout has a line when the device asks, and at the end the session as JSON.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

from certificates import Certificate
from programs import ProgramFailed, running
from world import World

CA: Final = Path("/secrets/certificate/ca.pem")
RELYING_PARTY: Final = "https://login.localhost:8443"
TUNNEL: Final = "300=wss://cable.localhost:8471"
DEVICE: Final = "Kitchen hub"


async def register(folder: Path) -> None:
    trusted = Certificate(CA, CA, CA)  # only the first is used: nothing is served here
    world = World(folder, lambda _name, _line: None, trusted, tunnel=TUNNEL)
    world.relying_party = RELYING_PARTY
    async with running(world.programs):
        world.radio = f"bumble:{await world.serve('radio', 'companion-push', 'ether', tls=False)}"
        await world.run_to_end(
            DEVICE, "headless-passkey", "join", "--invitation", "-", "--label", DEVICE,
            "--state", world.state(DEVICE), *world.trust, stdin=await line(),
        )  # fmt: skip
        device = await world.device(DEVICE, "register", "--user", "ada of the page")
        await device.stage("submitted")
        print("asked", flush=True)
        phone = await world.run(
            "phone", "companion-push", "phone", "--url", "-", "--uv", "accept", "--credentials", world.passkeys,
            "--radio", world.radio, "--tunnel", world.tunnel, *world.trust,
        )  # fmt: skip
        await phone.write(await line())
        session, status = await device.output(), (await device.wait(), await phone.wait())
    print(json.dumps({"status": status, "user": json.loads(session)["user"]["name"] if session else None, "failure": device.failure or phone.failure}))  # fmt: skip


async def line() -> str:
    return await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    try:
        with tempfile.TemporaryDirectory(prefix="headless-passkey-") as made:
            asyncio.run(register(Path(made)))
    except ProgramFailed as error:
        sys.exit(f"device_and_phone: {error}")
