"""A program written for python-fido2 uses a phone: it makes a credential, signs in with it, and a server verifies both.

    python examples/fido2_client.py

Everything the phone's side needs runs on this machine: a tunnel service, emulated Bluetooth, and a software
phone that approves everything. For a real phone change only `ceremony`: `BleakRadio()` in place of
`BumbleRadio(...)`, no `tunnels` and no `tls`, and a delivery that reaches the phone, such as `RelayDelivery`
or a QR code.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from certificates import Certificate, make_certificate
from fido2.client import ClientError, DefaultClientDataCollector, Fido2Client, UserInteraction
from fido2.server import Fido2Server
from fido2.webauthn import (
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialUserEntity,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)
from programs import Program, ProgramFailed, running

from headless_passkey.ceremony import CeremonyResult, OptionsSource, run_ceremony
from headless_passkey.ctap_device import PhoneDevice
from headless_passkey.delivery import Ask, Progress
from headless_passkey.hybrid.fido_url import FidoUrl
from headless_passkey.net.tls import tls_context
from headless_passkey.radio.bumble import BumbleRadio
from headless_passkey.request import DeviceEvent, RequestState
from headless_passkey.stages import StageEvent

RP_ID, ORIGIN = "login.example", "https://login.example"
TUNNEL_DOMAIN: Final = 300


class Prompts(UserInteraction):
    """Tells the user what to do; python-fido2 calls it when the phone asks its user."""

    def prompt_up(self) -> None:
        print("           confirm on your phone")


def program(device: PhoneDevice) -> None:
    """Make a credential and sign in, as with a security key: this code does not know that it uses a phone."""
    client = Fido2Client(device, DefaultClientDataCollector(ORIGIN), user_interaction=Prompts())
    server = Fido2Server(PublicKeyCredentialRpEntity(id=RP_ID, name="Example"))

    print("making a credential")
    options, state = server.register_begin(
        PublicKeyCredentialUserEntity(id=b"ada", name="ada", display_name="Ada"),
        resident_key_requirement=ResidentKeyRequirement.REQUIRED,
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    credential = server.register_complete(state, client.make_credential(options.public_key)).credential_data
    if credential is None:
        raise SystemExit("no credential was made")
    print(f"made:      {credential.credential_id.hex()[:16]}…, verified by the server")

    for credentials, how in ((None, "whoever the user is"), ([credential], "of a user who said her name")):
        print(f"using a credential, {how}")
        request, state = server.authenticate_begin(credentials, UserVerificationRequirement.REQUIRED)
        response = client.get_assertion(request.public_key).get_response(0)
        used = server.authenticate_complete(state, [credential], response)
        print(f"used:      {used.credential_id.hex()[:16]}…, verified by the server")


@dataclass
class SoftwarePhoneDelivery:
    """Hands the FIDO URL to a software phone, a program of its own."""

    needs_claim: ClassVar = False

    command: Sequence[str | Path]
    phone: Program | None = None
    completed: bool = False

    async def recipients(self) -> Sequence[str]:
        return ("phone",)

    async def submit(self, _ask: Ask, urls: Mapping[str, FidoUrl], *, lifetime: float) -> None:  # noqa: ARG002
        self.phone = await Program.start("phone", *self.command)
        await self.phone.write(urls["phone"].encode() + "\n")

    async def progress(self) -> AsyncGenerator[Progress, None]:
        yield Progress(state=RequestState.OPENED)

    async def finish(self, outcome: DeviceEvent, reason: str | None = None) -> None:  # noqa: ARG002
        self.completed = outcome is DeviceEvent.COMPLETED

    async def phone_ended(self) -> None:
        """Wait until the phone has ended, which may take longer than a ceremony waits for `finish`."""
        if self.phone is not None:
            await (self.phone.wait() if self.completed else self.phone.stop())


@dataclass
class Surroundings:
    """Where the servers around the program can be reached."""

    folder: Path
    certificates: Certificate
    tunnel: str  # wss://host:port
    radio: str  # a bumble transport

    async def ceremony(
        self, ask: Ask, options: OptionsSource, /, *, on_stage: Callable[[StageEvent], None]
    ) -> CeremonyResult:
        """One ceremony, in the device's own event loop."""
        phone = (
            "companion-push", "phone", "--url", "-", "--uv", "accept", "--radio", f"bumble:{self.radio}",
            "--tunnel", f"{TUNNEL_DOMAIN}={self.tunnel}", "--ca", self.certificates.ca,
            "--credentials", self.folder / "passkeys.json",
        )  # fmt: skip
        delivery = SoftwarePhoneDelivery(phone)
        try:
            return await run_ceremony(
                ask,
                options,
                delivery=delivery,
                radio=BumbleRadio(self.radio),
                tunnels={TUNNEL_DOMAIN: self.tunnel},
                tls=tls_context(self.certificates.ca),
                timeout=60,
                on_stage=on_stage,
            )
        finally:
            await delivery.phone_ended()


def tell(event: StageEvent) -> None:
    print(f"{event.elapsed:8.3f} s {event.stage}")


def use(surroundings: Surroundings) -> None:
    with closing(PhoneDevice(surroundings.ceremony, on_stage=tell)) as device:
        program(device)


async def main(folder: Path) -> None:
    certificates = make_certificate(folder)
    programs: list[Program] = []
    async with running(programs):
        service = await Program.start(
            "tunnel service", "companion-push", "tunnel-service", "--listen", "localhost:0",
            "--cert", certificates.cert, "--key", certificates.key,
        )  # fmt: skip
        programs.append(service)
        ether = await Program.start("radio", "companion-push", "ether", "--listen", "127.0.0.1:0")
        programs.append(ether)
        surroundings = Surroundings(folder, certificates, await service.line(), await ether.line())
        await asyncio.to_thread(use, surroundings)  # python-fido2 blocks; this loop reads programs' output


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory(prefix="fido2-client-") as work:
        try:
            asyncio.run(main(Path(work)))
        except (ClientError, ProgramFailed, OSError) as error:
            sys.exit(f"{error!r}")
        except KeyboardInterrupt:
            sys.exit(130)
