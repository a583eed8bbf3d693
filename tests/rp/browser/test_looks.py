"""What everybody needs of the pages: a strict policy that holds, names, contrast, a keyboard, a narrow window."""

from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.browser_policy import ATTACKS, attempt
from tests.rp.browser.conftest import Visit
from tests.rp.browser.steps import answer, has_passkeys, registered, sign_in, sign_out, signed_in, welcomed
from tests.rp.browser.visitor import Visitor

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCHEMES: list[Any] = ["light", "dark"]


@pytest.mark.threat("T12")
@pytest.mark.parametrize("attack", ATTACKS)
async def test_the_policy_holds_and_a_breach_would_be_noticed(visiting: Visit, attack: str) -> None:
    visitor = await visiting()
    await attempt(visitor.page, attack)
    assert await visitor.page.evaluate("window.ran") is None
    assert visitor.complaints
    visitor.console.clear()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_text_can_be_read_in_light_and_in_dark(visiting: Visit, scheme: str) -> None:
    visitor = await visiting(color_scheme=scheme)
    ground = await visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(int(part) for part in ground.removeprefix("rgb(").removesuffix(")").split(",")) < 3 * 128
    assert dark is (scheme == "dark")
    assert await drawn(visitor.page, TOO_FAINT) == []
    await registered(visitor)
    await visitor.another_authenticator("usb")
    await visitor.page.get_by_role("button", name="Add a passkey").click()
    await has_passkeys(visitor, 2)
    assert await drawn(visitor.page, TOO_FAINT) == []
    await visitor.page.get_by_role("button", name="Remove Passkey").click()
    await expect(visitor.page.get_by_role("dialog")).to_be_visible()
    assert await drawn(visitor.page, TOO_FAINT) == []


async def test_without_its_script_the_page_says_what_it_needs(visiting: Visit) -> None:
    visitor = await visiting(java_script_enabled=False)
    await expect(visitor.page.locator("noscript p")).to_be_visible()


async def test_everything_has_a_name_and_a_place(visiting: Visit) -> None:
    visitor = await visiting()
    assert await visitor.page.evaluate(NAMELESS) == []
    await registered(visitor)
    assert await visitor.page.evaluate(NAMELESS) == []
    await expect(visitor.page.get_by_role("banner")).to_have_count(1)
    await expect(visitor.page.get_by_role("main")).to_have_count(1)
    await expect(visitor.page.get_by_role("contentinfo")).to_have_count(1)
    for region in ("Passkeys", "Where you are signed in"):
        await expect(visitor.page.get_by_role("region", name=region)).to_be_visible()


async def test_a_keyboard_is_enough(visiting: Visit) -> None:
    visitor = await visiting()
    keyboard = visitor.page.keyboard
    await focus(visitor, "user-name")
    await keyboard.type("ada by keyboard")
    await keyboard.press("Enter")
    await signed_in(visitor, "ada by keyboard")
    await focus(visitor, "rename-passkey")
    await keyboard.press("Enter")
    await expect(visitor.page.get_by_role("dialog").get_by_role("textbox")).to_be_focused()
    await keyboard.press("Control+A")
    await keyboard.type("mine")
    await keyboard.press("Enter")
    await expect(visitor.page.get_by_role("heading", name="mine")).to_be_visible()
    await focus(visitor, "sign-out")
    await keyboard.press("Space")
    await welcomed(visitor)
    await focus(visitor, "sign-in")
    await keyboard.press("Enter")
    await signed_in(visitor, "ada by keyboard")


async def focus(visitor: Visitor, what: str) -> None:
    """Press Tab until the focus, which can be seen, is on the element of that id or deed."""
    for _ in range(20):
        await visitor.page.keyboard.press("Tab")
        found, outline = await visitor.page.evaluate(
            "[document.activeElement.id || document.activeElement.dataset.do,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        if found == what:
            assert outline == "solid"
            return
    pytest.fail(f"Tab does not lead to {what}")


@pytest.mark.parametrize("width", [320, 1280])
async def test_it_fits_a_narrow_and_a_wide_window(visiting: Visit, width: int) -> None:
    visitor = await visiting(viewport={"width": width, "height": 640})
    assert await drawn(visitor.page, FITS)
    name = await registered(visitor)
    assert await drawn(visitor.page, FITS)
    await sign_out(visitor)
    await sign_in(visitor)
    await signed_in(visitor, name)


async def drawn(page: Page, question: str) -> Any:
    """What the page answers once its style sheets are there too; its text is there sooner."""
    await page.wait_for_load_state("load")
    return await page.evaluate(question)


FITS = "document.documentElement.scrollWidth <= window.innerWidth"
WIDE = {
    "letters": "W" * 64,
    "one ligature of many": "\ufdfa" * 64,
    "ideographs": "\u9f98" * 64,
    "underscores": "_" * 64,
}


@pytest.mark.parametrize("name", WIDE.values(), ids=WIDE)
async def test_no_name_makes_the_page_wider_than_a_phone(visiting: Visit, name: str) -> None:
    visitor = await visiting(viewport={"width": 320, "height": 640})
    page = visitor.page
    await page.get_by_label("User name").fill(name)
    await page.get_by_role("button", name="Create an account").click()
    await signed_in(visitor, name)
    assert await drawn(page, FITS)
    await page.get_by_role("button", name="Change name").click()
    await answer(visitor, name[:-1] + "a", yes="Save")
    await signed_in(visitor, name[:-1] + "a")  # and the user name beside it
    assert await drawn(page, FITS)
    await page.get_by_role("button", name="Rename Passkey").click()
    await answer(visitor, name, yes="Save")
    await expect(page.get_by_role("heading", name=name)).to_be_visible()
    assert await drawn(page, FITS)
    await visitor.another_authenticator("usb")
    await page.get_by_role("button", name="Add a passkey").click()
    await has_passkeys(visitor, 2)
    await page.get_by_role("button", name=f"Remove {name}").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    assert await drawn(page, FITS)
    assert await page.evaluate(
        "() => { const dialog = document.querySelector('dialog'); return dialog.scrollWidth <= dialog.clientWidth; }"
    )
    await answer(visitor, None, yes="Remove")
    await has_passkeys(visitor, 1)
    assert await drawn(page, FITS)


# Text whose contrast with what is behind it is below 4.5 to 1 (WCAG 2.2, 1.4.3).
TOO_FAINT = """() => {
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const linear = (part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const behind = (element) => {
        for (let each = element; each !== null; each = each.parentElement) {
            const colour = parse(getComputedStyle(each).backgroundColor);
            if (colour[3] !== 0) return colour;
        }
        return [255, 255, 255];
    };
    const faint = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !element.checkVisibility() || element.closest("svg") || element.disabled) continue;
        const [one, other] = [parse(getComputedStyle(element).color), behind(element)].map(luminance);
        const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (contrast < 4.5) faint.push([element.textContent.trim(), contrast]);
    }
    return faint;
}"""

# What a screen reader could not name or find: no label, no text, two of one id, more than one first heading.
NAMELESS = """() => {
    const wrong = [];
    const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
    if (new Set(ids).size !== ids.length) wrong.push("an id is not alone");
    if (document.querySelectorAll("h1").length !== 1) wrong.push("not one h1");
    if (document.documentElement.lang === "" || document.title === "") wrong.push("no language or title");
    for (const input of document.querySelectorAll("input")) {
        if (input.labels.length !== 1) wrong.push(`input ${input.id}`);
    }
    for (const button of document.querySelectorAll("button")) {
        if (!(button.ariaLabel ?? button.textContent).trim()) wrong.push("a button");
    }
    const names = [...document.querySelectorAll("main button")].map((one) => one.ariaLabel ?? one.textContent);
    if (new Set(names).size !== names.length) wrong.push(`buttons of one name: ${names}`);
    for (const image of document.querySelectorAll("img")) {
        if (!image.hasAttribute("alt")) wrong.push("an image");
    }
    for (const element of document.querySelectorAll("[aria-labelledby], [aria-describedby]")) {
        for (const name of ["aria-labelledby", "aria-describedby"]) {
            const target = element.getAttribute(name);
            if (target !== null && document.getElementById(target) === null) wrong.push(target);
        }
    }
    return wrong;
}"""
