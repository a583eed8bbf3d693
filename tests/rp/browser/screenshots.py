"""Takes the pictures of docs/how-to/accounts-page.md.

python -m tests.rp.browser.screenshots
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Final, Literal

from certificates import Certificate, make_certificate
from playwright.async_api import Browser, expect

from tests.rp.browser.device import BrowserDevice
from tests.rp.browser.steps import answer, has_passkeys, sessions, signed_in
from tests.rp.browser.visitor import Visitor, chromium, serving, visit

IMAGES: Final = Path(__file__).parents[3] / "docs" / "images"
SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")


async def take(browser: Browser, url: str, certificate: Certificate, folder: Path) -> None:
    """Each page in light and dark."""
    visitor = await visit(
        browser,
        url,
        viewport={"width": 760, "height": 560},
        locale="en-GB",
        timezone_id="Europe/Berlin",
    )
    await _picture(visitor, folder, "sign-in")
    await _fill_account(visitor, url, certificate)
    await _picture(visitor, folder, "account")
    await visitor.page.set_viewport_size({"width": 380, "height": 700})
    await visitor.page.get_by_role("button", name="Rename").first.click()
    await visitor.page.emulate_media(color_scheme="light")
    await visitor.page.screenshot(path=folder / "rename.png")


async def _fill_account(visitor: Visitor, url: str, certificate: Certificate) -> None:
    page = visitor.page
    await page.get_by_label("User name").fill("ada")
    await page.get_by_role("button", name="Create an account").click()
    await signed_in(visitor, "ada")
    await page.get_by_role("button", name="Change name").click()
    await answer(visitor, "Ada Lovelace", yes="Save")
    await expect(page.get_by_role("heading", name="Ada Lovelace")).to_be_visible()
    await page.get_by_role("button", name="Rename Passkey").click()
    await answer(visitor, "Phone", yes="Save")
    await expect(page.get_by_role("heading", name="Phone")).to_be_visible()
    phone = visitor.authenticator
    await visitor.another_authenticator("usb")
    await page.get_by_role("button", name="Add a passkey").click()
    await has_passkeys(visitor, 2)
    visitor.authenticator = phone
    (credential,) = await visitor.credentials()  # with the counter of all that it was used for
    async with BrowserDevice(url, certificate) as device:
        await device.sign_in(credential, "Coffee machine")
    await page.reload()
    await expect(sessions(visitor)).to_have_count(2)


async def _picture(visitor: Visitor, folder: Path, name: str) -> None:
    for scheme in SCHEMES:
        await visitor.page.emulate_media(color_scheme=scheme)
        await visitor.page.screenshot(path=folder / f"{name}-{scheme}.png", full_page=True)


async def _main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificate(Path(folder), names=("localhost", "127.0.0.1"))
        async with serving(certificate, Path(folder)) as url, chromium(certificate) as browser:
            await take(browser, url, certificate, IMAGES)


if __name__ == "__main__":
    asyncio.run(_main())
