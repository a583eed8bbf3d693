"""The relying party as a program with TLS, and Debian's Chromium to look at it with."""

import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate
from playwright.async_api import Browser, async_playwright

from tests.certificates import Certificate
from tests.programs import running
from tests.rp.browser.visitor import Visitor, visit

CHROMIUM: Final = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
# it is to talk to localhost and to nobody else
QUIET: Final = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)

Visit = Callable[..., Awaitable[Visitor]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium(loopback_certificate: Certificate) -> AsyncIterator[Browser]:
    if not CHROMIUM.exists():
        pytest.fail(f"no browser at {CHROMIUM}; please run: scripts/install-test-packages", pytrace=False)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            chromium_sandbox=False,  # it needs a user other than root; the pages are ours
            args=[*QUIET, f"--ignore-certificate-errors-spki-list={_public_key_pin(loopback_certificate)}"],
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def url(
    loopback_certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """Where the program serves; everybody who visits it keeps to a user name of their own."""
    options: list[str | Path] = ["--listen", "127.0.0.1:0", "--page", "own"]
    options += ["--rp-name", "Example", "--store", tmp_path_factory.mktemp("rp") / "store.sqlite"]
    options += ["--cert", loopback_certificate.cert, "--key", loopback_certificate.key]
    async with running("relying_party", "serve", *options) as program:
        yield await program.line()
        assert await program.end() == 0


@pytest_asyncio.fixture(loop_scope="session")
async def visiting(chromium: Browser, url: str) -> AsyncIterator[Visit]:
    """Opens browsers at the page; when the test has ended none of them may have broken a policy."""
    visitors: list[Visitor] = []

    async def visiting(**options: Any) -> Visitor:
        visitors.append(await visit(chromium, url, **options))
        return visitors[-1]

    yield visiting
    for visitor in visitors:
        await visitor.page.context.close()
    assert [visitor.complaints for visitor in visitors] == [[] for _ in visitors]


def _public_key_pin(certificate: Certificate) -> str:
    """What Chromium is to trust: this server's key and no other."""
    key = load_pem_x509_certificate(certificate.cert.read_bytes()).public_key()
    return base64.b64encode(
        sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    ).decode()
