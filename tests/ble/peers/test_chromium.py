"""Our phone and tunnel service with Debian's Chromium, a browser that shows a QR code on its screen.

Chromium scans for the phone's advert through BlueZ, and finds the tunnel service by the domain number in it. The phone
advertises over the other adapter, and python-fido2 verifies what Chromium gives to the page. `make interop` runs this.
"""

import asyncio
import base64
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate
from fido2.server import Fido2Server
from fido2.webauthn import (
    AttestedCredentialData,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialUserEntity,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from program_parts.base64url import base64url
from tests.ble.lab.guest import ADAPTERS
from tests.ble.peers.display import Display
from tests.ble.peers.parties import PATIENCE, Parties
from tests.rp.browser.visitor import QUIET

CHROMIUM: Final = os.environ.get("CHROMIUM_PEER", "")
USER: Final = PublicKeyCredentialUserEntity(name="ada", id=b"ada's handle", display_name="Ada")
SALT: Final = base64url(bytes(range(32)))
PAGE: Final = """<!doctype html><title>Example</title><script>
(async () => {
    for (;;) {
        const {kind, publicKey} = await (await fetch("/asked")).json();
        let body;
        try {
            const credential = kind === "create"
                ? await navigator.credentials.create(
                    {publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(publicKey)})
                : await navigator.credentials.get(
                    {publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(publicKey)});
            body = {credential: credential.toJSON()};
        } catch (error) {
            body = {error: error.name};
        }
        await fetch("/answer", {method: "POST", body: JSON.stringify(body)});
    }
})();
</script>"""

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="there is no browser, or no display for it: make interop"
)


@dataclass
class Site:
    """A page that asks the browser for what a test asks it, and a relying party behind it."""

    origin: str = ""
    asked: asyncio.Queue[Mapping[str, Any]] = field(default_factory=asyncio.Queue)
    answers: asyncio.Queue[Mapping[str, Any]] = field(default_factory=asyncio.Queue)
    server: Fido2Server = field(init=False)

    def __post_init__(self) -> None:
        self.server = Fido2Server(
            PublicKeyCredentialRpEntity(name="Example", id="localhost"),
            verify_origin=lambda origin: origin == self.origin,
        )

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        async def page(_request: web.Request) -> web.Response:
            return web.Response(text=PAGE, content_type="text/html")

        async def asked(_request: web.Request) -> web.Response:
            return web.json_response(await self.asked.get())

        async def answer(request: web.Request) -> web.Response:
            await self.answers.put(await request.json())
            return web.Response(status=204)

        app = web.Application()
        app.add_routes([web.get("/", page), web.get("/asked", asked), web.post("/answer", answer)])
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=5)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.origin = f"http://localhost:{runner.addresses[0][1]}"
            yield
        finally:
            await runner.cleanup()


@dataclass
class Browser:
    """Somebody in front of Chromium, with a phone in their hand."""

    parties: Parties
    display: Display
    site: Site
    scanned: str | None = None  # the last code, which may still be there for a moment

    async def ask(self, kind: str, options: Mapping[str, Any], *, uv: str = "accept") -> Mapping[str, Any]:
        """Have the page ask for a credential, and scan the code with the phone; what the page got."""
        public_key = {**options["publicKey"], "hints": ["hybrid"], "timeout": int(1000 * PATIENCE)}
        await self.site.asked.put({"kind": kind, "publicKey": public_key})
        async with asyncio.timeout(PATIENCE):
            while (url := self.display.code()) in (None, self.scanned):  # noqa: ASYNC110  nothing tells of a change
                await asyncio.sleep(1)  # what looks more often takes the processor from the browser
        assert url is not None
        self.scanned = url
        phone = await self.parties.scans(url, radio=f"bluez:{await self._other_adapter()}", uv=uv)
        async with asyncio.timeout(PATIENCE):
            answer = await self.site.answers.get()
        assert await phone.wait(timeout=PATIENCE) == (0 if uv == "accept" else 6), phone.said
        return answer

    async def _other_adapter(self) -> str:
        """The one over which the browser does not scan: an adapter does not hear itself."""
        scanning: list[str] = []

        async def known() -> bool:
            scanning[:] = [each for each in ADAPTERS if await self.parties.guest.discovering(each)]
            return bool(scanning)

        await self.parties.guest.until(known)
        (other,) = set(ADAPTERS) - set(scanning)
        return other

    async def creates(
        self, extensions: Mapping[str, Any] | None = None
    ) -> tuple[AttestedCredentialData, Any]:
        """Make a passkey, which python-fido2 has verified; with the client's extension results."""
        options, state = self.site.server.register_begin(
            USER,
            resident_key_requirement=ResidentKeyRequirement.REQUIRED,
            user_verification=UserVerificationRequirement.REQUIRED,
            extensions=extensions,
        )
        credential = (await self.ask("create", dict(options)))["credential"]
        made = self.site.server.register_complete(state, credential)
        assert made.is_user_verified()
        assert made.credential_data is not None
        return made.credential_data, credential["clientExtensionResults"]

    async def gets(
        self,
        passkey: AttestedCredentialData,
        *,
        named: bool = False,
        extensions: Mapping[str, Any] | None = None,
    ) -> Any:
        """Use a passkey, and have python-fido2 verify it. named: the page allows this one alone."""
        options, state = self.site.server.authenticate_begin(
            [passkey] if named else None,
            user_verification=UserVerificationRequirement.REQUIRED,
            extensions=extensions,
        )
        credential = (await self.ask("get", dict(options)))["credential"]
        self.site.server.authenticate_complete(state, [passkey], credential)
        if not named:
            assert credential["response"]["userHandle"] == base64url(USER.id)
        return credential["clientExtensionResults"]


@pytest.fixture
async def browser(parties: Parties, tmp_path: Path) -> AsyncIterator[Browser]:
    display, server = await Display.open(tmp_path)
    parties.programs.append(server)
    key = load_pem_x509_certificate(parties.certificate.cert.read_bytes()).public_key()
    pin = sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    site = Site()
    with (tmp_path / "chromium.log").open("wb") as log:
        async with site.serve():
            chromium = await asyncio.create_subprocess_exec(
                CHROMIUM, *QUIET, "--no-sandbox", "--disable-gpu", "--ozone-platform=x11",
                "--password-store=basic", f"--user-data-dir={tmp_path / 'profile'}", "--window-position=0,0",
                f"--ignore-certificate-errors-spki-list={base64.b64encode(pin).decode()}", site.origin,
                env={**os.environ, "DISPLAY": display.name}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            yield Browser(parties, display, site)
            os.killpg(chromium.pid, signal.SIGKILL)  # all of its processes
            await chromium.wait()

    async def quiet() -> bool:
        return not any([await parties.guest.discovering(each) for each in ADAPTERS])

    await parties.guest.until(quiet)


async def test_chromium_makes_a_passkey_and_uses_it_with_and_without_an_allow_list(browser: Browser) -> None:
    passkey, _ = await browser.creates()
    await browser.gets(passkey)
    await browser.gets(passkey, named=True)


async def test_chromium_has_a_passkey_evaluate_a_prf(browser: Browser) -> None:
    passkey, made = await browser.creates({"prf": {}})
    assert made["prf"] == {"enabled": True}
    prf = {"prf": {"eval": {"first": SALT}}}
    first = await browser.gets(passkey, extensions=prf)
    assert len(base64.urlsafe_b64decode(f"{first['prf']['results']['first']}=")) == 32
    assert await browser.gets(passkey, named=True, extensions=prf) == first


async def test_chromium_tells_the_page_that_the_phones_user_declines(browser: Browser) -> None:
    options, _ = browser.site.server.register_begin(
        USER,
        resident_key_requirement=ResidentKeyRequirement.REQUIRED,
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    assert await browser.ask("create", dict(options), uv="decline") == {"error": "NotAllowedError"}
