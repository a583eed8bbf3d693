"""Register and sign in in a real browser, and what the relying party says to one that misbehaves."""

from uuid import uuid4

import pytest
from playwright.async_api import expect

from tests.rp.browser.conftest import Visit
from tests.rp.browser.visitor import Visitor

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize(
    ("transport", "shown"), [("internal", "internal"), ("cable", "hybrid"), ("usb", "usb")]
)
async def test_a_passkey_is_made_and_signs_in(visiting: Visit, transport: str, shown: str) -> None:
    visitor = await visiting(transport=transport)
    name = await registered(visitor)
    await expect(visitor.page.get_by_text(shown)).to_be_visible()
    await sign_out(visitor)
    await sign_in(visitor)
    await expect(visitor.page.get_by_text(f"Signed in as {name}")).to_be_visible()


async def registered(visitor: Visitor) -> str:
    """A new user with a passkey, signed in; the user's name."""
    name = f"ada-{uuid4().hex[:8]}"
    await visitor.page.get_by_label("User name").fill(name)
    await visitor.page.get_by_role("button", name="Create a passkey").click()
    await expect(visitor.page.get_by_text(f"Signed in as {name}")).to_be_visible()
    return name


async def sign_out(visitor: Visitor) -> None:
    await visitor.page.get_by_role("button", name="Sign out").click()
    await expect(visitor.page.get_by_role("button", name="Sign out")).to_have_count(0)


async def sign_in(visitor: Visitor) -> None:
    await visitor.page.get_by_role("button", name="Sign in", exact=True).click()
