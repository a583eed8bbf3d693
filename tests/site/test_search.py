"""The documentation's site, as `make site` builds it, is searched in Chromium: from a folder and from a server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Page, async_playwright, expect

from tests.programs import ROOT
from tests.rp.browser.visitor import CHROMIUM, QUIET

MKDOCS = ROOT / ".venv-site" / "bin" / "mkdocs"
TUTORIAL = "From nothing to a sign-in"  # its heading
SHIM = "javascripts/iframe-worker.js"
# of package/shim/index.js in iframe-worker-1.0.4.tgz
PUBLISHED = "e8e412dbcfea9b7e31b5ffa288d7b6035915e714c542f4176a0cdbe262fc9609"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not MKDOCS.exists():
        pytest.skip("the packages of the documentation's site are not installed: make site")
    folder = tmp_path_factory.mktemp("site")
    building = await asyncio.create_subprocess_exec(
        *(MKDOCS, "build", "--quiet", "--site-dir", folder),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await building.communicate()
    assert building.returncode == 0, said.decode()
    return folder


@pytest_asyncio.fixture(loop_scope="session", params=["a folder", "a server"])
async def address(request: pytest.FixtureRequest, site: Path) -> AsyncIterator[str]:
    """Where the site is, with a slash at the end."""
    async with AsyncExitStack() as opened:
        if request.param == "a folder":
            yield f"{site.as_uri()}/"
        else:
            app = web.Application()
            app.router.add_static("/", site)
            yield str((await opened.enter_async_context(TestServer(app))).make_url("/"))


@pytest_asyncio.fixture(loop_scope="session")
async def page() -> AsyncIterator[Page]:
    if not CHROMIUM.exists():
        pytest.fail(f"no browser at {CHROMIUM}; please run: scripts/install-test-packages", pytrace=False)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            chromium_sandbox=False,  # it needs a user other than root; the pages are ours
            args=QUIET,
        )
        yield await browser.new_page()
        await browser.close()


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("begin", ["index.html", "how-to/install.html"])
async def test_a_search_leads_to_a_page_and_asks_nobody_else(page: Page, address: str, begin: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(address + begin)
    await page.get_by_role("textbox", name="Search").first.click()
    await page.keyboard.type("mkfifo")
    found = page.locator(".md-search-result__item", has_text=TUTORIAL)
    await found.get_by_role("link").first.click(timeout=60_000)
    await page.wait_for_url(f"{address}tutorial.html*", timeout=60_000)
    await expect(page.locator("h1")).to_contain_text(TUTORIAL)

    index = "search/search_index." + ("js" if address.startswith("file:") else "json")
    assert address + index in asked
    assert address + SHIM in asked
    assert [url for url in asked if not url.startswith((address, "data:"))] == []


def test_the_shim_is_the_published_one_with_its_licence_above_it() -> None:
    notice, end, code = (ROOT / "docs" / SHIM).read_bytes().partition(b"*/\n")
    assert end
    assert b"Permission is hereby granted" in notice
    assert sha256(code).hexdigest() == PUBLISHED
