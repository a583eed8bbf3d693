"""The companion's page, asked by the test itself, and Debian's Chromium to answer with."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio
from certificates import Certificate
from playwright.async_api import Browser

from companion_push.companion.inbox import Notice, NoticeKind
from companion_push.companion.keys import CompanionState
from tests.companion.page_client import Page, served
from tests.rp.browser import visitor
from tests.rp.browser.visitor import Visitor, visit

Visit = Callable[..., Awaitable[Visitor]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium(loopback_certificate: Certificate) -> AsyncIterator[Browser]:
    async with visitor.chromium(loopback_certificate) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    state = CompanionState(tmp_path / "state")
    state.create()
    async with served(state) as page:
        page.asking.note(Notice(kind=NoticeKind.LISTENING, message="connected to the relay"))
        yield page


@pytest_asyncio.fixture(loop_scope="session")
async def visiting(chromium: Browser, page: Page) -> AsyncIterator[Visit]:
    """Opens browsers that come by a link; when the test has ended none of them may have broken a policy."""
    visitors: list[Visitor] = []

    async def visiting(**options: Any) -> Visitor:
        visitors.append(await visit(chromium, page.origin, page.link.removeprefix(page.origin), **options))
        return visitors[-1]

    yield visiting
    for one in visitors:
        await one.page.context.close()
    assert [one.complaints for one in visitors] == [[] for _ in visitors]
