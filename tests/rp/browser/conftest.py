"""The relying party as a program with TLS, and Debian's Chromium to look at it with."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from certificates import Certificate
from playwright.async_api import Browser

from tests.rp.browser import visitor
from tests.rp.browser.visitor import Visitor, visit

Visit = Callable[..., Awaitable[Visitor]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium(loopback_certificate: Certificate) -> AsyncIterator[Browser]:
    async with visitor.chromium(loopback_certificate) as browser:
        yield browser


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rp") / "store.sqlite"  # as `serving` names it


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def url(loopback_certificate: Certificate, store: Path) -> AsyncIterator[str]:
    async with visitor.serving(loopback_certificate, store.parent) as url:
        yield url


@pytest_asyncio.fixture(loop_scope="session")
async def visiting(chromium: Browser, url: str) -> AsyncIterator[Visit]:
    """Opens browsers at the page; when the test has ended none of them may have broken a policy."""
    visitors: list[Visitor] = []

    async def visiting(**options: Any) -> Visitor:
        visitors.append(await visit(chromium, url, **options))
        return visitors[-1]

    yield visiting
    for one in visitors:
        await one.page.context.close()
    assert [one.complaints for one in visitors] == [[] for _ in visitors]
