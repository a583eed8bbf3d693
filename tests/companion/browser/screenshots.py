"""Takes the pictures of docs/how-to/companion-page.md.

python -m tests.companion.browser.screenshots
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Final

from certificates import make_certificate
from playwright.async_api import Browser, expect

from companion_push.companion.inbox import Notice, NoticeKind
from companion_push.companion.keys import CompanionState
from tests.companion.browser.requests import opening, request
from tests.companion.page_client import Page, served
from tests.rp.browser.screenshots import IMAGES, SCHEMES
from tests.rp.browser.visitor import chromium, visit

SETTLED: Final = "#requests button[aria-disabled=false]"


async def take(browser: Browser, page: Page, folder: Path) -> None:
    """The question in light and dark, and the code at a phone's width."""
    visitor = await visit(
        browser,
        page.origin,
        page.link.removeprefix(page.origin),
        viewport={"width": 760, "height": 560},
        locale="en-GB",
        timezone_id="Europe/Berlin",
    )
    asked = request("Kitchen hub", note="order of 14 March", digits="4207")
    page.asking.note(Notice(kind=NoticeKind.LISTENING, message="connected to the relay"))
    answered = asyncio.ensure_future(page.asking.ask([asked]))
    await expect(visitor.page.locator(SETTLED).first).to_be_visible()
    for scheme in SCHEMES:
        await visitor.page.emulate_media(color_scheme=scheme)
        await visitor.page.screenshot(path=folder / f"companion-page-{scheme}.png", full_page=True)
    await visitor.page.get_by_label("The digits that the device shows").fill("4207")
    await visitor.page.get_by_role("button", name="Approve").click()
    await answered
    async with page.asking.open(opened := opening(asked)):
        await expect(visitor.page.get_by_role("img", name="QR code")).to_be_visible()
        await visitor.page.set_viewport_size({"width": 420, "height": 700})
        await visitor.page.emulate_media(color_scheme="light")
        await visitor.page.locator("#open").screenshot(path=folder / "companion-page-code.png")
        opened.over.set()
    await visitor.page.context.close()


async def _main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificate(Path(folder), names=("localhost", "127.0.0.1"))
        state = CompanionState(Path(folder) / "state")
        state.create()
        async with served(state) as page, chromium(certificate) as browser:
            await take(browser, page, IMAGES)


if __name__ == "__main__":
    asyncio.run(_main())
