"""What a program of somebody else's has to write: its own relying party, delivery, radio and display, under mypy --strict.

The types are looked at too: `assert_type` fails in mypy, and the ceremonies run with the software phone over a real tunnel
service.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, assert_type

from certificates import Certificate

from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.phone import SoftwarePhone, TunnelService, accept
from headless_passkey.ceremony import CeremonyResult, Settled, run_ceremony
from headless_passkey.ctap_device import PhoneDevice
from headless_passkey.delivery import Ask, Progress
from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.radio.source import Advert
from headless_passkey.refusals import Refusal
from headless_passkey.request import DeviceEvent, RequestState
from headless_passkey.rp.users import PinnedUsers
from headless_passkey.stages import Stage, StageEvent
from headless_passkey.webauthn.options import AuthenticationOptions, Credential, RegistrationOptions
from program_parts.base64url import base64url
from tests.companion.device import tunnel_service

ORIGIN, RP_ID = "https://login.example", "login.example"
REGISTRATION: dict[str, Any] = {
    "rp": {"id": RP_ID, "name": "Example"},
    "user": {"id": base64url(b"ada"), "name": "ada", "displayName": "Ada"},
    "challenge": base64url(bytes(32)),
    "pubKeyCredParams": [{"type": "public-key", "alg": -7}],
    "authenticatorSelection": {"residentKey": "required", "userVerification": "required"},
}
SIGN_IN: dict[str, Any] = {
    "challenge": base64url(bytes(32)),
    "rpId": RP_ID,
    "userVerification": "required",
}


class Radio:
    """Hears what the program was told of adverts in its own way."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Advert] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def adverts(self) -> AsyncIterator[AsyncIterator[Advert]]:
        async def each() -> AsyncIterator[Advert]:
            while True:
                yield await self.heard.get()

        yield each()

    @contextlib.asynccontextmanager
    async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
        """The other end: the phone's."""
        self.heard.put_nowait(Advert(service_data=service_data, rssi=-40))
        yield


@dataclass
class ByHand:
    """Gives the URL to one phone."""

    needs_claim: ClassVar = False

    phone: SoftwarePhone
    ended: list[DeviceEvent] = field(default_factory=list)
    _answering: asyncio.Task[None] | None = None

    async def recipients(self) -> Sequence[str]:
        return ("the phone on the table",)

    async def submit(self, ask: Ask, urls: Mapping[str, FidoUrl], *, lifetime: float) -> None:
        (url,) = urls.values()
        self._answering = asyncio.create_task(self.phone.answer(url.encode(), timeout=lifetime))

    async def progress(self) -> AsyncGenerator[Progress, None]:
        yield Progress(state=RequestState.OPENED)

    async def finish(self, outcome: DeviceEvent, reason: str | None = None) -> None:
        self.ended.append(outcome)
        if self._answering is not None:
            await asyncio.wait([self._answering])


@dataclass(frozen=True)
class Session:
    user: str


@dataclass(frozen=True)
class Login:
    """A ceremony that this program's own relying party has begun."""

    options: dict[str, Any]

    async def complete(self, credential: Credential, /) -> Session:
        return Session(user=credential.user_name or "nobody")


@dataclass
class Display:
    """Shows each stage as a line."""

    lines: list[str] = field(default_factory=list)

    def show(self, event: StageEvent) -> None:
        match event.stage:
            case Stage.PREPARED:
                assert_type(event.detail.get("recipients"), int | None)
                self.lines.append(f"{event.detail.get('recipients')} asked")
            case Stage.ADVERT_HEARD:
                assert_type(event.detail.get("rssi"), int | None)
                self.lines.append(f"near: {event.detail.get('rssi')} dBm")
            case Stage.REFUSED:
                assert_type(event.refusal, Refusal | None)
            case Stage.COMPLETED:
                self.lines.append("done")
            case _:
                pass


async def register(delivery: ByHand, radio: Radio, world: "World") -> CeremonyResult:
    options = RegistrationOptions.parse(REGISTRATION, origin=ORIGIN)
    ended = await run_ceremony(
        Ask.of(options, note="by the window", digits="42"),
        options,
        delivery=delivery,
        radio=radio,
        tunnels=world.tunnels,
        tls=world.certificate.client_context(),
    )
    assert_type(ended, CeremonyResult)
    return ended


async def begin() -> Login:
    return Login(options=SIGN_IN)


async def log_in(delivery: ByHand, radio: Radio, world: "World", display: Display) -> Session:
    ask = Ask(kind=RequestKind.GET_ASSERTION, origin=ORIGIN, rp_id=RP_ID)
    ended = await run_ceremony(
        ask,
        begin,
        delivery=delivery,
        radio=radio,
        tunnels=world.tunnels,
        tls=world.certificate.client_context(),
        on_stage=display.show,
        users=PinnedUsers(world.folder / "state", RP_ID),
        timeout=60,
    )
    assert_type(ended, Settled[Session])
    return ended.result


async def check(delivery: ByHand, radio: Radio, world: "World") -> int:
    """With options that are known before, and somebody who judges the response."""

    async def judge(credential: Credential) -> int:
        return len(credential.credential_id)

    options = AuthenticationOptions.parse(SIGN_IN, origin=ORIGIN)
    ended = await run_ceremony(
        Ask.of(options, user_handle=b"ada"),
        options,
        delivery=delivery,
        radio=radio,
        tunnels=world.tunnels,
        tls=world.certificate.client_context(),
        settle=judge,
    )
    assert_type(ended, Settled[int])
    assert ended.user_checked
    return ended.result


@dataclass(frozen=True)
class World:
    tunnels: Mapping[int, str]
    certificate: Certificate
    folder: Path

    def phone(self, radio: Radio) -> SoftwarePhone:
        return SoftwarePhone(
            credentials=CredentialFile(path=self.folder / "passkeys.json"),
            advertiser=radio,
            tunnel_service=TunnelService(number=300, base=self.tunnels[300]),
            tls=self.certificate.client_context(),
            verify_user=accept,
        )


async def test_a_program_signs_in_with_parts_of_its_own(
    loopback_certificate: Certificate, tmp_path: Path
) -> None:
    async with tunnel_service(loopback_certificate) as base:
        world, radio, display = World({300: base}, loopback_certificate, tmp_path), Radio(), Display()
        delivery = ByHand(world.phone(radio))
        registered = await register(delivery, radio, world)
        assert registered.credential.credential_id
        assert await log_in(delivery, radio, world, display) == Session(user="ada")
        assert [user.name for user in PinnedUsers(world.folder / "state", RP_ID).read()] == ["ada"]
        assert await check(delivery, radio, world) == len(registered.credential.credential_id)
    assert display.lines == ["1 asked", "near: -40 dBm", "done"]
    assert delivery.ended == [DeviceEvent.COMPLETED] * 3


def test_a_ceremony_for_python_fido2_is_sign_in_with_its_parts(tmp_path: Path) -> None:
    phone = SoftwarePhone(
        credentials=CredentialFile(path=tmp_path / "passkeys.json"),
        advertiser=Radio(),
        tunnel_service=TunnelService(number=300, base="wss://tunnels.example"),
        tls=None,
        verify_user=accept,
    )
    ceremony = partial(run_ceremony, delivery=ByHand(phone), radio=Radio())
    with contextlib.closing(PhoneDevice(ceremony)) as device:
        assert device.capabilities
