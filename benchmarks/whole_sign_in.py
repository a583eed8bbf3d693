"""Whole sign-ins in one process: the device's ceremony, the software phone, and the tunnel service over TLS."""

import asyncio
import ssl
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from certificates import make_certificate

from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.phone import SoftwarePhone, TunnelService, accept
from companion_push.tunnel_service.app import make_app
from headless_passkey.ceremony import Ask, Progress, run_ceremony
from headless_passkey.hybrid.fido_url import FidoUrl
from headless_passkey.radio.source import Advert
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


class _Place:
    def __init__(self, service: TunnelService, tls: ssl.SSLContext, credentials: CredentialFile) -> None:
        self._service, self._tls, self._credentials = service, tls, credentials

    async def sign_in(self, options: AuthenticationOptions | RegistrationOptions) -> float:
        air, delivery = Air(), Handed()
        phone = SoftwarePhone(
            credentials=self._credentials,
            advertiser=air,
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
                radio=air,
                tunnels={NUMBER: self._service.base},
                tls=self._tls,
                timeout=20.0,
            )
        return time.perf_counter() - began
