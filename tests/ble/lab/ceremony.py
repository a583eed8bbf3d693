"""A device and phones for whole sign-ins in one process: everything but the radio is real or in memory."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from certificates import Certificate

from companion_push.companion.advertiser.advertiser import Advertiser
from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.phone import SoftwarePhone, TunnelService, accept
from headless_passkey.ceremony import CeremonyResult, run_ceremony
from headless_passkey.delivery import Ask, Progress
from headless_passkey.errors import HeadlessPasskeyError
from headless_passkey.hybrid.fido_url import FidoUrl
from headless_passkey.radio.source import AdvertSource
from headless_passkey.request import DeviceEvent, RequestState
from headless_passkey.stages import Stage, StageEvent
from headless_passkey.webauthn.options import AuthenticationOptions, RegistrationOptions
from program_parts.base64url import base64url
from tests.ble.lab.guest import PATIENCE

DOMAIN: Final = 300
ORIGIN: Final = "https://login.example"
USER: Final = b"ada's handle"
CREATION: Final[Mapping[str, Any]] = {
    "rp": {"id": "login.example", "name": "Example"},
    "user": {"id": base64url(USER), "name": "ada", "displayName": "Ada"},
    "challenge": base64url(bytes(32)),
    "pubKeyCredParams": [{"type": "public-key", "alg": -7}],
    "authenticatorSelection": {"residentKey": "required", "userVerification": "required"},
}
REQUEST: Final[Mapping[str, Any]] = {
    "challenge": base64url(bytes(32)),
    "rpId": "login.example",
    "userVerification": "required",
}


class Carrier:
    """A delivery that keeps the URLs until somebody asks for them."""

    needs_claim: Final = False

    def __init__(self, recipients: Sequence[str]) -> None:
        self._recipients = recipients
        self.urls: asyncio.Future[Mapping[str, FidoUrl]] = asyncio.get_running_loop().create_future()

    async def recipients(self) -> Sequence[str]:
        return self._recipients

    async def submit(self, ask: Ask, urls: Mapping[str, FidoUrl], *, lifetime: float) -> None:
        self.urls.set_result(urls)

    async def progress(self) -> AsyncGenerator[Progress, None]:
        await asyncio.get_running_loop().create_future()
        yield Progress(state=RequestState.DELIVERED)

    async def finish(self, outcome: DeviceEvent, reason: str | None = None) -> None:
        """Nobody is told."""


@dataclass
class Ceremony:
    """One sign-in or registration: the device on one side, phones by name on the other."""

    tunnels: str
    certificate: Certificate
    folder: Path
    recipients: Sequence[str] = ("phone",)
    stages: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.carrier = Carrier(self.recipients)
        self._reached: dict[Stage, asyncio.Event] = {}

    async def sign_in(self, radio: AdvertSource, *, new: bool = False, **more: Any) -> CeremonyResult:
        """The device's side. new: a passkey is made."""
        options = (
            RegistrationOptions.parse(CREATION, origin=ORIGIN)
            if new
            else AuthenticationOptions.parse(REQUEST, origin=ORIGIN)
        )
        signed_in: CeremonyResult = await run_ceremony(
            Ask.of(options),
            options,
            delivery=self.carrier,
            radio=radio,
            tunnels={DOMAIN: self.tunnels},
            tls=self.certificate.client_context(),
            timeout=PATIENCE,
            on_stage=self._on_stage,
            **more,
        )
        return signed_in

    async def phone(self, advertiser: Advertiser, *, recipient: str = "phone") -> None:
        """A phone answers what was delivered to `recipient`; `HeadlessPasskeyError` when nobody came to it."""
        url = (await self.carrier.urls)[recipient]
        phone = SoftwarePhone(
            credentials=CredentialFile(path=self.folder / "passkeys.json"),
            advertiser=advertiser,
            tunnel_service=TunnelService(number=DOMAIN, base=self.tunnels),
            tls=self.certificate.client_context(),
            verify_user=accept,
        )
        await phone.answer(url.encode(), timeout=PATIENCE)

    async def phone_in_vain(self, advertiser: Advertiser, *, recipient: str = "phone") -> None:
        """The same for a phone whose fate is its own affair."""
        with contextlib.suppress(HeadlessPasskeyError):
            await self.phone(advertiser, recipient=recipient)

    def _on_stage(self, event: StageEvent) -> None:
        self.stages.append(event.stage)
        self.reached(event.stage).set()

    def reached(self, stage: Stage) -> asyncio.Event:
        """Set when the stage is reached for the first time."""
        return self._reached.setdefault(stage, asyncio.Event())
