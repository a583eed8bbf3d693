"""Whole sign-ins in one process: the device's ceremony and the software phone, through the tunnel service over TLS, or directly over emulated Bluetooth."""

import asyncio
import ssl
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from certificates import make_certificate

from companion_push.companion.advertiser.advertiser import Advertiser
from companion_push.companion.advertiser.bumble import BumbleAdvertiser
from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.phone import SoftwarePhone, TunnelService, accept
from companion_push.emulation.controllers import Air as EmulatedAir
from companion_push.emulation.controllers import Host
from companion_push.tunnel_service.app import make_app
from headless_passkey.ceremony import run_ceremony
from headless_passkey.delivery import Ask, Progress
from headless_passkey.hybrid.fido_url import FidoUrl
from headless_passkey.radio.bumble import BumbleRadio
from headless_passkey.radio.source import Advert, AdvertSource
from headless_passkey.request import DeviceEvent, RequestState
from headless_passkey.webauthn.options import AuthenticationOptions, RegistrationOptions

NUMBER: Final = 300  # the tunnel service's domain number
ORIGIN: Final = "https://login.example"
CREATION: Final[dict[str, Any]] = {
    "rp": {"id": "login.example", "name": "Example"},
    "user": {"id": "YWRh", "name": "ada", "displayName": "Ada"},
    "challenge": "A" * 43,
    "pubKeyCredParams": [{"type": "public-key", "alg": -7}],
    "authenticatorSelection": {"residentKey": "required", "userVerification": "required"},
}
REQUEST: Final[dict[str, Any]] = {
    "challenge": "A" * 43,
    "rpId": "login.example",
    "userVerification": "required",
}


class Air:
    """The radio of both ends."""

    def __init__(self) -> None:
        self._adverts: asyncio.Queue[bytes] = asyncio.Queue()

    @asynccontextmanager
    async def adverts(self) -> AsyncIterator[AsyncIterator[Advert]]:
        async def heard() -> AsyncIterator[Advert]:
            while True:
                yield Advert(service_data=await self._adverts.get())

        yield heard()

    @asynccontextmanager
    async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
        self._adverts.put_nowait(service_data)
        yield


class Handed:
    """A delivery without a relay: the phone gets its URL at once."""

    needs_claim: Final = False

    def __init__(self) -> None:
        self.url: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def recipients(self) -> Sequence[str]:
        return ("phone",)

    async def submit(self, ask: Ask, urls: Mapping[str, FidoUrl], *, lifetime: float) -> None:  # noqa: ARG002
        self.url.set_result(urls["phone"].encode())

    async def progress(self) -> AsyncGenerator[Progress, None]:
        await asyncio.get_running_loop().create_future()  # this delivery never reports anything
        yield Progress(state=RequestState.DELIVERED)

    async def finish(self, outcome: DeviceEvent, reason: str | None = None) -> None:
        pass


async def sign_ins(count: int = 30) -> list[float]:
    """Seconds that each sign-in took, from making the FIDO URL until both ends have closed."""
    with tempfile.TemporaryDirectory() as folder:
        certificates = make_certificate(Path(folder))
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(certificates.cert, certificates.key)
        runner = web.AppRunner(make_app(), access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server).start()
            place = _Place(
                TunnelService(number=NUMBER, base=f"wss://127.0.0.1:{runner.addresses[0][1]}"),
                ssl.create_default_context(cafile=certificates.ca),
                CredentialFile(path=Path(folder) / "passkeys.json"),
            )
            await place.sign_in(RegistrationOptions.parse(CREATION, origin=ORIGIN))
            options = AuthenticationOptions.parse(REQUEST, origin=ORIGIN)
            return [await place.sign_in(options) for _ in range(count + 3)][3:]
        finally:
            await runner.cleanup()


async def direct_sign_ins(cryptography: Callable[[], object], count: int = 15) -> list[tuple[float, float]]:
    """Seconds of each sign-in over the direct channel, and of its radio with `cryptography` alone, in turns.

    There is no tunnel service.
    """
    air = EmulatedAir(4)
    server = await asyncio.get_running_loop().create_server(lambda: Host(air), "127.0.0.1", 0)
    async with server:
        transport = f"tcp-client:127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with tempfile.TemporaryDirectory() as folder:
            place = _Place(
                TunnelService(number=NUMBER, base="wss://127.0.0.1:9"),
                ssl.create_default_context(),
                CredentialFile(path=Path(folder) / "passkeys.json"),
                transport,
            )
            await place.sign_in(RegistrationOptions.parse(CREATION, origin=ORIGIN))
            options = AuthenticationOptions.parse(REQUEST, origin=ORIGIN)
            pairs = []
            for _ in range(count):
                took = await place.sign_in(options)
                pairs.append((took, await _radio_alone(transport, cryptography)))
        air.close()
    return pairs


async def _radio_alone(transport: str, cryptography: Callable[[], object]) -> float:
    """Advert, link and channel, and SDUs of the sizes of a sign-in, from both controllers' start to their end."""
    began = time.perf_counter()
    radio = BumbleRadio(transport)
    async with (
        BumbleAdvertiser(transport).listen() as listener,
        radio.adverts() as adverts,
        listener.advertise(bytes(24)),
        radio.connect(await anext(adverts), listener.psm) as device,
    ):
        phone = await listener.accept()
        cryptography()
        for sender, receiver, size in (
            (device, phone, 83),  # message 1 and its end
            (phone, device, 83),
            (phone, device, 210),  # post-handshake message
            (device, phone, 178),  # getAssertion
            (phone, device, 306),  # its response
            (device, phone, 50),  # shutdown
        ):
            await sender.send(bytes(size))
            await receiver.receive()
        await phone.close()
    return time.perf_counter() - began


class _Place:
    def __init__(
        self,
        service: TunnelService,
        tls: ssl.SSLContext,
        credentials: CredentialFile,
        transport: str | None = None,
    ) -> None:
        """transport: of emulated controllers, for the direct channel."""
        self._service, self._tls, self._credentials = service, tls, credentials
        self._transport = transport

    async def sign_in(self, options: AuthenticationOptions | RegistrationOptions) -> float:
        delivery, air = Handed(), Air()
        device_radio: AdvertSource = air
        phone_radio: Advertiser = air
        if self._transport is not None:
            device_radio, phone_radio = BumbleRadio(self._transport), BumbleAdvertiser(self._transport)
        phone = SoftwarePhone(
            credentials=self._credentials,
            advertiser=phone_radio,
            tunnel_service=self._service,
            tls=self._tls,
            verify_user=accept,
        )

        async def answer() -> None:
            await phone.answer(await delivery.url, timeout=20)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as both:
            both.create_task(answer())
            await run_ceremony(
                Ask.of(options),
                options,
                delivery=delivery,
                radio=device_radio,
                tunnels={NUMBER: self._service.base},
                tls=self._tls,
                timeout=20.0,
                direct=self._transport is not None,
            )
        return time.perf_counter() - began
