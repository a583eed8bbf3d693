"""What a person does on the companion's page, in Debian's Chromium."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Certificate
from playwright.async_api import Browser, BrowserContext, Locator, Route, expect

from companion_push.companion.consent import Answer, Answered
from companion_push.companion.inbox import CheckedRequest, Notice, NoticeKind
from companion_push.companion.keys import CompanionState
from tests.browser_policy import ATTACKS, attempt
from tests.camera import decode
from tests.companion.browser.conftest import Visit
from tests.companion.browser.requests import opening, request
from tests.companion.page_client import Page, served
from tests.rp.browser.test_looks import FITS, NAMELESS, TOO_FAINT, WIDE, drawn
from tests.rp.browser.visitor import Visitor, visit

pytestmark = pytest.mark.asyncio(loop_scope="session")


@contextlib.asynccontextmanager
async def asking(page: Page, *requests: CheckedRequest) -> AsyncIterator["asyncio.Task[Answered]"]:
    """The page asks about these, until one is answered."""
    task = asyncio.create_task(page.asking.ask(requests))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


def card(visitor: Visitor, label: str = "Kitchen hub") -> Locator:
    return visitor.page.locator("#requests > li").filter(has_text=f'"{label}"')


async def press(visitor: Visitor, name: str, label: str = "Kitchen hub") -> None:
    """Press a button of a request, once the list has settled."""
    button = card(visitor, label).get_by_role("button", name=f"{name}:")
    await expect(button).to_have_attribute("aria-disabled", "false")
    await button.click()


async def seen(context: BrowserContext, code: Locator) -> str | None:
    """What the QR code says to a camera in front of the screen. The picture is unpacked by another page, without our policy."""
    picture = base64.b64encode(await code.screenshot()).decode()
    other = await context.new_page()
    width, height, grey = await other.evaluate(
        """async (picture) => {
            const image = new Image();
            image.src = `data:image/png;base64,${picture}`;
            await image.decode();
            const canvas = new OffscreenCanvas(image.width, image.height);
            canvas.getContext("2d").drawImage(image, 0, 0);
            const { data } = canvas.getContext("2d").getImageData(0, 0, image.width, image.height);
            let grey = "";
            for (let place = 1; place < data.length; place += 4) grey += String.fromCharCode(data[place]);
            return [image.width, image.height, btoa(grey)];
        }""",
        picture,
    )
    await other.close()
    return decode(base64.b64decode(grey), height, width)


async def says(visitor: Visitor, text: str) -> None:
    await expect(visitor.page.get_by_role("status")).to_contain_text(text)


# Coming by a link


@pytest.mark.threat("T18")
async def test_the_links_secret_leaves_the_address_at_once(page: Page, visiting: Visit) -> None:
    visitor = await visiting()
    await expect(visitor.page.get_by_text("Nobody asks for anything")).to_be_visible()
    assert visitor.page.url == f"{page.origin}/"
    assert await visitor.page.evaluate("history.length") == 2  # the blank page, and this one
    await visitor.page.reload()
    await expect(visitor.page.get_by_text("Nobody asks for anything")).to_be_visible()


@pytest.mark.threat("T18")
async def test_a_link_that_was_used_shows_nothing(page: Page, chromium: Browser, visiting: Visit) -> None:
    await visiting()
    for path in ("/#used", "/"):
        visitor = await visit(chromium, page.origin, path)
        async with asking(page, request()):
            await says(visitor, "Get a link with: companion-push companion page --link")
            await expect(card(visitor)).to_have_count(0)
        await visitor.page.context.close()


async def test_over_tls_the_browser_keeps_the_cookie_for_this_host_alone(
    chromium: Browser, loopback_certificate: Certificate, tmp_path: Path
) -> None:
    state = CompanionState(tmp_path / "state")
    state.create()
    files: dict[str, Any] = {"cert": loopback_certificate.cert, "key": loopback_certificate.key}
    async with served(state, at=("localhost", 0), **files) as page, asking(page, request()):
        visitor = await visit(chromium, page.origin, page.link.removeprefix(page.origin))
        await expect(card(visitor)).to_be_visible()
        (cookie,) = await visitor.page.context.cookies()
        assert (cookie["name"], cookie["sameSite"]) == ("__Host-companion", "Strict")
        assert await visitor.page.evaluate("document.cookie") == ""
        await visitor.page.context.close()


async def test_a_second_tab_of_the_browser_needs_no_link(page: Page, visiting: Visit) -> None:
    visitor = await visiting()
    async with asking(page, request()) as answered:
        await expect(card(visitor)).to_be_visible()
        tab = await visitor.page.context.new_page()
        await tab.goto(page.origin)
        await expect(tab.locator("#requests > li")).to_have_count(1)
        await press(visitor, "Decline")
        assert (await answered)[1] is Answer.NO
        await expect(tab.locator("#requests > li")).to_have_count(0)


async def test_the_page_is_closed_by_its_button(page: Page, visiting: Visit) -> None:
    visitor = await visiting()
    async with asking(page, request()):
        await expect(card(visitor)).to_be_visible()
        await visitor.page.get_by_role("button", name="Close this page").click()
        await says(visitor, "This page is not open any more")
        await expect(card(visitor)).to_have_count(0)


# Answers


async def test_a_yes_brings_the_code_and_the_end_takes_it_away(page: Page, visiting: Visit) -> None:
    visitor, asked = await visiting(), request(note="by the window")
    async with asking(page, asked) as answered:
        for text in (
            "asks to sign in",
            "example.com",
            '"Example Inc"',
            '"by the window"',
            "left",
        ):
            await expect(card(visitor)).to_contain_text(text)
        assert await visitor.page.title() == "(1) Companion"
        assert "FIDO" not in await visitor.page.content()
        await press(visitor, "Approve")
        assert await answered == ([asked], Answer.YES)
    approved = opening(asked)
    async with page.asking.open(approved):
        code = visitor.page.get_by_role("img", name="QR code")
        await expect(code).to_be_visible()
        await expect(visitor.page.get_by_text('Your phone must now say "example.com"')).to_be_visible()
        assert await seen(visitor.page.context, code) == approved.url
        launch = visitor.page.get_by_role("link", name="passkey prompt")
        assert await launch.get_attribute("href") == approved.url
        approved.over.set()
    await expect(code).to_be_hidden()
    content = await visitor.page.content()
    assert "FIDO" not in content
    assert await visitor.page.evaluate("document.querySelector('#open path').getAttribute('d')") is None


@pytest.mark.threat("T4")
async def test_digits_are_typed_and_a_slip_is_asked_for_again(page: Page, visiting: Visit) -> None:
    visitor, asked = await visiting(), request(digits="4207")
    async with asking(page, asked) as answered:
        field = card(visitor).get_by_label("The digits that the device shows")
        await field.fill("420")
        await press(visitor, "Approve")
        await says(visitor, "That is no number of 4 digits.")
        await field.fill("42 07")
        await field.press("Enter")
        assert await answered == ([asked], Answer.YES)


async def test_not_me_is_a_button_of_its_own(page: Page, visiting: Visit) -> None:
    visitor, asked = await visiting(), request()
    async with asking(page, asked) as answered:
        await press(visitor, "Not me")
        assert await answered == ([asked], Answer.NOT_ME)
    await says(visitor, "the device is muted")


@pytest.mark.threat("T4")
async def test_a_click_that_was_meant_for_what_stood_there_before_does_not_count(
    page: Page, visiting: Visit
) -> None:
    """A device that asks, or gives up, at the right moment would move its button under the finger."""
    visitor = await visiting()
    await expect(visitor.page.get_by_text("Nobody asks for anything")).to_be_visible()
    await visitor.page.evaluate(
        """() => new MutationObserver((changes) => {
            for (const each of changes) for (const added of each.addedNodes) added.querySelector("button").click();
        }).observe(document.getElementById("requests"), { childList: true })"""
    )
    async with asking(page, request()) as answered:
        await says(visitor, "The list has just changed. Please look again.")
        assert not answered.done()
        await press(visitor, "Approve")
        assert (await answered)[1] is Answer.YES


async def test_what_is_typed_and_focused_stays_when_another_request_comes(
    page: Page, visiting: Visit
) -> None:
    visitor, first, second = await visiting(), request(digits="4207"), request("Lamp")
    async with asking(page, first):
        field = card(visitor).get_by_label("The digits that the device shows")
        await field.fill("42")
        async with asking(page, first, second):
            await expect(card(visitor, "Lamp")).to_be_visible()
            await expect(field).to_have_value("42")
            await expect(field).to_be_focused()


# What others write


@pytest.mark.threat("T4")
@pytest.mark.parametrize(
    "text",
    ["<img src=x onerror=alert(1)>", "</h2><script>document.title='x'</script>", "a\u202ekcats", "\u0639\u0644\u06cc", "x\u200b\nApproved"],
    ids=["markup", "script", "override", "right to left", "hidden"],
)  # fmt: skip
async def test_text_of_others_stays_text(page: Page, visiting: Visit, text: str) -> None:
    visitor, asked = await visiting(), request(text, note=text, rp_name=text)
    async with asking(page, asked):
        heading = visitor.page.locator("#requests h2")
        await expect(heading).to_have_text(f"{asked.known_as} asks to sign in", use_inner_text=False)
        assert (
            await visitor.page.locator("#requests").evaluate(
                "(list) => list.querySelectorAll('img, script').length"
            )
            == 0
        )
        assert await heading.evaluate("(each) => getComputedStyle(each).unicodeBidi") == "isolate"
        page.asking.note(Notice(kind=NoticeKind.RING_CHANGED, message=f"new: {asked.known_as}"))
        await expect(visitor.page.locator("#notices li")).to_have_count(2)


# Other pages, and the end


@pytest.mark.threat("T18")
async def test_the_page_is_shown_in_no_frame_and_gives_other_pages_nothing(
    page: Page, visiting: Visit
) -> None:
    """Clickjacking, and reading across origins: what another user serves on this machine gets the cookie, and no more."""
    visitor = await visiting()
    await expect(visitor.page.get_by_text("Nobody asks for anything")).to_be_visible()
    other = await visitor.page.context.new_page()

    given: list[str] = []

    async def evil(route: Route) -> None:
        given.append((await route.request.all_headers()).get("cookie", ""))
        await route.fulfill(body=f"<iframe src='{page.origin}/'></iframe>", content_type="text/html")

    await other.route("http://127.0.0.1:1/", evil)
    await other.goto("http://127.0.0.1:1/", wait_until="load")
    assert given[0].startswith("companion="), "which is why a cookie alone is nothing"
    assert [frame.url for frame in other.frames[1:]] == ["chrome-error://chromewebdata/"]
    calls = ["fetch(url + '/state?seen=', { credentials: 'include' })",
             "fetch(url + '/answer', { method: 'POST', credentials: 'include', body: '{}' })",
             "fetch(url + '/session', { method: 'DELETE', credentials: 'include' })"]  # fmt: skip
    for call in calls:
        reached = await other.evaluate(f"(url) => {call}.then(() => 'read', () => 'not read')", page.origin)
        assert reached == "not read"
    async with asking(page, request()):
        await expect(card(visitor)).to_be_visible()


async def test_the_page_says_that_the_relay_does_not_answer(page: Page, visiting: Visit) -> None:
    visitor = await visiting()
    await expect(visitor.page.get_by_text("Nobody asks for anything")).to_be_visible()
    page.asking.note(Notice(kind=NoticeKind.UNREACHABLE, message="the relay does not answer; trying again"))
    await expect(visitor.page.get_by_text("no request can come until it does")).to_be_visible()
    await expect(visitor.page.locator("#notices li").first).to_contain_text("trying again")


async def test_the_page_says_that_the_companion_has_ended(page: Page, visiting: Visit) -> None:
    visitor = await visiting()
    async with asking(page, request()):
        await expect(card(visitor)).to_be_visible()
        page.asking.end()
        await says(visitor, "The companion does not answer")
        await expect(card(visitor)).to_have_count(0)
        await expect(visitor.page.locator("#nothing")).to_be_hidden()
        page.asking.ended = False
        await expect(card(visitor)).to_be_visible()
        await expect(visitor.page.get_by_role("status")).to_have_text("")
    visitor.console.clear()


@pytest.mark.threat("T12")
@pytest.mark.parametrize("attack", ATTACKS)
async def test_the_policy_holds(visiting: Visit, attack: str) -> None:
    visitor = await visiting()
    await attempt(visitor.page, attack)
    assert await visitor.page.evaluate("window.ran") is None
    assert visitor.complaints
    visitor.console.clear()


# Looks


@pytest.mark.parametrize(("scheme", "width"), [("light", 320), ("dark", 1280)])
async def test_it_can_be_read_and_named_and_fits(
    page: Page, visiting: Visit, scheme: str, width: int
) -> None:
    visitor = await visiting(color_scheme=scheme, viewport={"width": width, "height": 640})
    asked = [request(digits="42"), request("Lamp", note="x" * 140), request(WIDE["one ligature of many"])]
    page.asking.note(Notice(kind=NoticeKind.RING_CHANGED, message="W" * 200))
    async with asking(page, *asked):
        await expect(visitor.page.locator("#requests > li")).to_have_count(3)
        for question, expected in ((TOO_FAINT, []), (NAMELESS, []), (FITS, True)):
            assert await drawn(visitor.page, question) == expected
        await press(visitor, "Approve", "Lamp")
    async with page.asking.open(opened := opening(asked[1])):
        await expect(visitor.page.get_by_role("img", name="QR code")).to_be_visible()
        for question, expected in ((TOO_FAINT, []), (NAMELESS, []), (FITS, True)):
            assert await drawn(visitor.page, question) == expected
        opened.over.set()


async def test_without_its_script_the_page_says_what_it_needs(visiting: Visit) -> None:
    visitor = await visiting(java_script_enabled=False)
    await expect(visitor.page.locator("noscript p")).to_be_visible()


async def test_a_keyboard_is_enough(page: Page, visiting: Visit) -> None:
    visitor, asked = await visiting(), request()
    async with asking(page, asked) as answered:
        approve = card(visitor).get_by_role("button", name="Approve:")
        await expect(approve).to_have_attribute("aria-disabled", "false")
        for _ in range(10):
            await visitor.page.keyboard.press("Tab")
            if await approve.evaluate("(each) => each === document.activeElement"):
                break
        assert await approve.evaluate("(each) => getComputedStyle(each).outlineStyle") == "solid"
        await visitor.page.keyboard.press("Enter")
        assert await answered == ([asked], Answer.YES)
    await expect(visitor.page.get_by_role("status")).to_be_focused()


async def test_a_browser_without_time_limits_for_its_calls_shows_the_page_too(
    visiting: Visit, page: Page
) -> None:
    visitor = await visiting(scripts=["delete AbortSignal.timeout;"])
    async with asking(page, request()) as answered:
        await press(visitor, "Decline")
        assert (await answered)[1] is Answer.NO
