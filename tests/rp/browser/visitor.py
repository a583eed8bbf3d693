"""Somebody at a real browser with a virtual authenticator: Chromium's own WebAuthn, without a finger to touch.

The authenticator is Chromium's (the WebAuthn domain of the DevTools protocol), so client data, signatures
and refusals of the browser are what people get. It lives as long as its page.
"""

import base64
import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest
from certificates import Certificate
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate
from playwright.async_api import Browser, CDPSession, ConsoleMessage, Page, async_playwright, expect

from tests.programs import running

CHROMIUM: Final = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
# it is to talk to localhost and to nobody else
QUIET: Final = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)

expect.set_options(timeout=60_000)  # milliseconds: a machine that is busy is waited for

# What Chromium writes to the console when a page breaks its own policy.
POLICY: Final = re.compile(r"Content Security Policy|Permissions Policy|TrustedHTML|TrustedScript|Refused to")


@dataclass
class Visitor:
    page: Page
    cdp: CDPSession
    authenticator: str = ""  # the one added last
    console: list[str] = field(default_factory=list)
    answers: list[tuple[int, str]] = field(default_factory=list)  # status and path of what was fetched
    sent: list[str] = field(default_factory=list)  # bodies of its requests

    @property
    def complaints(self) -> list[str]:
        """What broke a policy of the page, and what its script did not catch."""
        return [line for line in self.console if POLICY.search(line) or line.startswith("uncaught: ")]

    async def another_authenticator(self, transport: str) -> None:
        """Add one that holds passkeys, recognises its owner and is touched when it asks."""
        options = {
            "protocol": "ctap2",
            "ctap2Version": "ctap2_1",
            "transport": transport,
            "hasResidentKey": True,
            "hasUserVerification": True,
            "hasPrf": True,
            "isUserVerified": True,
            "automaticPresenceSimulation": True,
            "defaultBackupEligibility": True,
            "defaultBackupState": True,
        }
        added = await self.cdp.send("WebAuthn.addVirtualAuthenticator", {"options": options})
        self.authenticator = added["authenticatorId"]

    async def autofills(self) -> None:
        """From the next page on, the browser offers passkeys in form fields, and notes how it is asked."""
        await self.page.context.add_init_script(
            """PublicKeyCredential.isConditionalMediationAvailable = async () => true;
            const get = navigator.credentials.get.bind(navigator.credentials);
            const asked = [];
            navigator.credentials.get = (options) => {
                asked.push(options.mediation ?? "modal");
                document.documentElement.dataset.asked = asked.join(" ");
                return get(options);
            };"""
        )

    async def presence(self, *, touches: bool) -> None:
        """Whether somebody touches the authenticator when it asks."""
        await self._tell("setAutomaticPresenceSimulation", enabled=touches)

    async def verified(self, *, recognises: bool) -> None:
        """Whether the authenticator recognises its owner."""
        await self._tell("setUserVerified", isUserVerified=recognises)

    async def faults(self, **bits: bool) -> None:
        """isBogusSignature, isBadUV, isBadUP: from now on."""
        await self._tell("setResponseOverrideBits", **bits)

    async def properties(self, **changes: bool) -> None:
        """backupEligibility, backupState: of the one credential there is."""
        (credential,) = await self.credentials()
        await self._tell("setCredentialProperties", credentialId=credential["credentialId"], **changes)

    async def credentials(self) -> list[dict[str, Any]]:
        found = await self._tell("getCredentials")
        return list(found["credentials"])

    async def set_counter(self, count: int) -> None:
        """Put the one credential back with another signature counter."""
        (credential,) = await self.credentials()
        await self._tell("removeCredential", credentialId=credential["credentialId"])
        await self.put_back({**credential, "signCount": count})

    async def put_back(self, credential: dict[str, Any]) -> None:
        """Give the authenticator a passkey that `credentials` of one told."""
        await self._tell("addCredential", credential=credential)

    async def remove_authenticator(self) -> None:
        await self._tell("removeVirtualAuthenticator")

    async def _tell(self, command: str, **parameters: Any) -> dict[str, Any]:
        answer = await self.cdp.send(
            f"WebAuthn.{command}", {"authenticatorId": self.authenticator, **parameters}
        )
        return dict(answer)


async def visit(
    browser: Browser,
    url: str,
    path: str = "/",
    *,
    transport: str = "internal",
    scripts: Sequence[str] = (),
    offers: bool = False,
    **options: Any,
) -> Visitor:
    """A browser of one's own at `url`, with an authenticator behind `transport`; options: of its context.

    scripts: run before the page's own, as those of a password manager's extension are.

    offers: whether passkeys are offered in form fields. If not, they are not until `autofills`: a virtual
    authenticator answers such an offer at once, without anybody choosing.
    """
    context = await browser.new_context(**options)
    if not offers:
        await context.add_init_script(
            "PublicKeyCredential.isConditionalMediationAvailable = async () => false;"
        )
    for script in scripts:
        await context.add_init_script(script)
    page = await context.new_page()
    cdp = await context.new_cdp_session(page)
    await cdp.send("WebAuthn.enable", {"enableUI": False})
    visitor = Visitor(page=page, cdp=cdp)
    await visitor.another_authenticator(transport)

    def heard(message: ConsoleMessage) -> None:
        visitor.console.append(f"{message.type}: {message.text}")

    page.on("console", heard)
    page.on("pageerror", lambda error: visitor.console.append(f"uncaught: {error}"))
    page.on(
        "response",
        lambda answer: visitor.answers.append((answer.status, answer.url.removeprefix(url).split("?")[0])),
    )
    page.on("request", lambda request: visitor.sent.append(request.post_data or ""))
    await page.goto(url + path)
    return visitor


@asynccontextmanager
async def chromium(certificate: Certificate) -> AsyncIterator[Browser]:
    """Debian's Chromium, which trusts this server's key and needs nothing else; without it the test fails."""
    if not CHROMIUM.exists():
        pytest.fail(f"no browser at {CHROMIUM}; please run: scripts/install-test-packages", pytrace=False)
    key = load_pem_x509_certificate(certificate.cert.read_bytes()).public_key()
    pin = base64.b64encode(
        sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    ).decode()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            chromium_sandbox=False,  # it needs a user other than root; the pages are ours
            args=[*QUIET, f"--ignore-certificate-errors-spki-list={pin}"],
        )
        yield browser
        await browser.close()


@asynccontextmanager
async def serving(certificate: Certificate, folder: Path, *more: str) -> AsyncIterator[str]:
    """Where the program serves over TLS; everybody who visits it keeps to a user name of their own.

    more: options of the program.
    """
    options: list[str | Path] = ["--listen", "127.0.0.1:0", "--page", "own"]
    options += ["--registrations-per-day", "100000"]  # all visitors come from one address
    options += ["--rp-name", "Example", "--store", folder / "store.sqlite"]
    options += ["--cert", certificate.cert, "--key", certificate.key, *more]
    async with running("relying_party", "serve", *options) as program:
        yield await program.line()
        assert await program.end() == 0
