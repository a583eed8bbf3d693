"""What people do on the pages, for tests: each step ends when the page shows that it is done."""

from uuid import uuid4

from playwright.async_api import Locator, expect

from tests.rp.browser.visitor import Visitor


async def registered(visitor: Visitor) -> str:
    """A new user with a passkey, signed in; the user's name."""
    name = f"ada-{uuid4().hex[:8]}"
    await visitor.page.get_by_label("User name").fill(name)
    await visitor.page.get_by_role("button", name="Create an account").click()
    await signed_in(visitor, name)
    return name


async def signed_in(visitor: Visitor, name: str) -> None:
    await expect(visitor.page.get_by_text(f"Signed in as {name}")).to_be_visible()


async def sign_out(visitor: Visitor) -> None:
    await visitor.page.get_by_role("button", name="Sign out", exact=True).click()
    await welcomed(visitor)


async def welcomed(visitor: Visitor) -> None:
    """Nobody is signed in."""
    await expect(visitor.page.get_by_role("heading", name="Welcome")).to_be_visible()


async def sign_in(visitor: Visitor) -> None:
    await visitor.page.get_by_role("button", name="Sign in with a passkey").click()


async def says(visitor: Visitor, text: str) -> None:
    """The page says this; give words of a deed's end only: its name is said before, and then the page is loaded anew."""
    await expect(visitor.page.get_by_role("status")).to_contain_text(text)


async def has_passkeys(visitor: Visitor, count: int) -> None:
    await expect(passkeys(visitor)).to_have_count(count)


def passkeys(visitor: Visitor) -> Locator:
    return visitor.page.get_by_role("listitem").filter(has_text="Created")


def sessions(visitor: Visitor) -> Locator:
    return visitor.page.get_by_role("listitem").filter(has_text="Until")


async def answer(visitor: Visitor, text: str | None, *, yes: str) -> None:
    """Answer the question that is open."""
    dialog = visitor.page.get_by_role("dialog")
    await expect(dialog).to_be_visible()
    if text is not None:
        await dialog.get_by_role("textbox").fill(text)
    await dialog.get_by_role("button", name=yes, exact=True).click()
