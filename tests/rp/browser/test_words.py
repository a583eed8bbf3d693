"""What the pages say: a sentence and what to do, for whatever goes wrong; what was done; and where the focus is then."""

import json
import re
from typing import Any

import pytest
from playwright.async_api import Page, Route, expect

from relying_party.errors import RequestRefused
from tests.rp.browser.conftest import Visit
from tests.rp.browser.steps import (
    answer,
    has_passkeys,
    registered,
    says,
    sessions,
    sign_in,
    signed_in,
    welcomed,
)
from tests.rp.browser.visitor import Visitor

pytestmark = pytest.mark.asyncio(loop_scope="session")

CREATE = "Create an account"
RAW = ("`", "urn:", "HTTP", "undefined", "null", "NaN", "Error", "JSON", "fetch", "object", "PublicKey")


# Both at once: a page that is loaded anew says nothing between "Waiting…" or "…, use your passkey…" and what it has to say
SETTLED = re.compile(r"^(?!.*…\s*$).*\S", re.DOTALL)


async def said(visitor: Visitor) -> str:
    """What the page says, which is for people: whole sentences, and nobody's raw words."""
    status = visitor.page.get_by_role("status")
    await expect(status).to_have_text(SETTLED)
    text = await status.inner_text()
    assert text[0].isupper()
    assert text.endswith((".", "/")) or " https://" in text
    assert not [word for word in RAW if word in text]
    return text


async def tries_to_register(visitor: Visitor, name: str = "nobody of that name") -> None:
    await visitor.page.get_by_label("User name").fill(name)
    await visitor.page.get_by_role("button", name=CREATE).click()


# What the server says


async def answers(visitor: Visitor, where: str, status: int, body: Any, kind: str) -> None:
    async def fulfil(route: Route) -> None:
        await route.fulfill(
            status=status, content_type=kind, body=body if isinstance(body, str) else json.dumps(body)
        )

    await visitor.page.route(where, fulfil, times=1)


def _refusals(kind: type[RequestRefused]) -> dict[str, int]:
    found: dict[str, int] = {}
    for child in kind.__subclasses__():
        found |= {child.slug: child.status, **_refusals(child)}
    return found


TRY_AGAIN = "Something went wrong on the server. Try again in a while"
RELOAD = "The page and the server did not understand each other. Reload the page"
SAID = {
    "browsers-only": "This is not possible where you are signed in. Open this page in a browser",
    "ceremony-gone": "That took too long. Please try again.",
    "internal-error": TRY_AGAIN,
    "invalid-request": "This name cannot be used. A name has 1 to 64 characters",
    "last-credential": "This is your only passkey. Add another one first",
    "rate-limited": "Too many attempts. Wait 7 seconds, and try again.",
    "step-up-required": "Your passkey was not used for this, or too long ago. Please try again.",
    "store-unavailable": "The site cannot look anything up right now. Try again in 7 seconds.",
    "younger-passkey": "To keep it, sign in with a passkey that is older",
    "too-many-passkeys": "You have as many passkeys as an account can have.",
    "user-exists": "That user name is taken. If it is yours, sign in with your passkey",
    "verification-failed": "This passkey was not accepted. Try again, or use another one",
}
ELSEWHERE = {"not-found", "not-signed-in"}  # of the account page: see below
STATUSES = {"internal-error": 500, "store-unavailable": 503, "unheard-of": 418, "constructor": 502}


async def test_each_refusal_of_the_server_is_a_sentence_of_ours(visiting: Visit) -> None:
    visitor = await visiting()
    for slug, status in {**_refusals(RequestRefused), **STATUSES}.items():
        problem = {"type": f"urn:headless-passkey:problem:{slug}", "title": "raw `words`", "detail": "`more`"}
        problem |= {"status": status, "retry_after": 7}  # type: ignore[dict-item]
        await answers(visitor, "**/registration/options", status, problem, "application/problem+json")
        await tries_to_register(visitor)
        text = await said(visitor)
        if slug not in ELSEWHERE:
            assert SAID.get(slug, TRY_AGAIN if status >= 500 else RELOAD) in text, slug
        await expect(visitor.page.get_by_role("button", name=CREATE)).to_be_enabled()


INSTEAD: list[tuple[int, str, str]] = [
    (502, "<h1>Bad Gateway</h1>", TRY_AGAIN),
    (503, "", TRY_AGAIN),
    (500, "null", TRY_AGAIN),
    (404, "not here", RELOAD),
    (413, "[]", RELOAD),
    (400, '"type"', RELOAD),
    (429, "{}", RELOAD),
    (200, "<h1>Log in to this network</h1>", "The server cannot be reached. Look at your connection"),
]


async def test_what_something_else_answers_in_the_servers_place_is_a_sentence(visiting: Visit) -> None:
    visitor = await visiting()
    for status, body, expected in INSTEAD:
        await answers(visitor, "**/registration/options", status, body, "text/html")
        await tries_to_register(visitor)
        assert expected in await said(visitor), body


async def test_a_server_that_cannot_be_reached_is_a_sentence(visiting: Visit) -> None:
    visitor = await visiting()
    await visitor.page.context.set_offline(True)
    for name in ("Sign in with a passkey", CREATE):
        await visitor.page.get_by_label("User name").fill("ada")
        await visitor.page.get_by_role("button", name=name).click()
        assert await said(visitor) == "The server cannot be reached. Look at your connection, and try again."


async def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(visiting: Visit) -> None:
    visitor = await visiting(scripts=["AbortSignal.timeout = () => AbortSignal.abort();"])
    await sign_in(visitor)
    assert await said(visitor) == "The server cannot be reached. Look at your connection, and try again."


# What the browser says

THROWN = {
    "AbortError": "That was cancelled. Try again when you are ready.",
    "ConstraintError": "A passkey needs something to recognise you by. Set up a screen lock",
    "InvalidStateError": "This device or its password manager has a passkey for this account already.",
    "NotAllowedError": "That was cancelled, or took too long. Try again when you are ready.",
    "NotSupportedError": "Nothing here can make a passkey as this site needs it. Try another device",
    "OperationError": "Another request for a passkey is still open",
    "SecurityError": "Passkeys of this site do not work at this address.",
    "TimeoutError": "That took too long. Try again when you are ready.",
}
PROVIDER = "Your browser or password manager could not do this. Try again"
OTHERS = ("DataError", "EncodingError", "NotReadableError", "UnknownError", "constructor", "__proto__", "")


THROWS = "async () => { throw window.thrown(); }"


async def test_each_error_of_the_browser_is_a_sentence_of_ours(visiting: Visit) -> None:
    visitor = await visiting(scripts=[f"navigator.credentials.create = {THROWS};"])
    for name in (*THROWN, *OTHERS):
        error = f"new DOMException('raw words', {json.dumps(name)})"
        await visitor.page.evaluate(f"() => {{ window.thrown = () => {error}; }}")
        await tries_to_register(visitor)
        assert THROWN.get(name, PROVIDER) in await said(visitor), name


async def test_whatever_a_password_manager_throws_is_a_sentence(visiting: Visit) -> None:
    visitor = await visiting(scripts=[f"navigator.credentials.get = {THROWS};"])
    for thrown in ("undefined", "null", "'raw words'", "7", "({})", "new TypeError('x is null')"):
        await visitor.page.evaluate(f"() => {{ window.thrown = () => {thrown}; }}")
        await sign_in(visitor)
        assert PROVIDER in await said(visitor), thrown


async def test_who_has_no_passkey_here_is_told_what_to_do(visiting: Visit) -> None:
    visitor = await visiting()
    await sign_in(visitor)
    assert "there is none for this site yet. Try again, or create an account." in await said(visitor)


# Where there are no passkeys

NO_PASSKEYS = {
    "a browser without passkeys": (
        "delete window.PublicKeyCredential;",
        "This browser does not have passkeys. Update it, or open this page in another one.",
    ),
    "a browser whose passkeys are switched off": (
        "delete window.PublicKeyCredential; delete Navigator.prototype.credentials;",
        "This browser does not have passkeys. Update it, or open this page in another one.",
    ),
    "a connection that is not secure": (
        "delete window.PublicKeyCredential; Object.defineProperty(window, 'isSecureContext', { value: false });",
        "Passkeys need a secure connection. Open this page at an address that begins with https.",
    ),
}


@pytest.mark.parametrize(("script", "expected"), NO_PASSKEYS.values(), ids=NO_PASSKEYS)
async def test_where_there_are_no_passkeys_the_page_says_so_at_once_and_when_asked(
    visiting: Visit, script: str, expected: str
) -> None:
    visitor = await visiting(scripts=[script], offers=True)
    assert await said(visitor) == expected
    await tries_to_register(visitor)
    assert await said(visitor) == expected
    await sign_in(visitor)
    assert await said(visitor) == expected
    assert not any("/webauthn/" in path for _, path in visitor.answers)


async def test_at_another_address_of_the_same_server_the_page_names_the_right_one(
    visiting: Visit, url: str
) -> None:
    visitor = await visiting()
    await visitor.page.goto(url.replace("localhost", "127.0.0.1"))
    assert (
        await said(visitor)
        == f"Passkeys of this site do not work at this address. Use this one instead: {url}"
    )
    await sign_in(visitor)
    assert url in await said(visitor)
    await visitor.page.get_by_role("status").get_by_role("link").click()
    await expect(visitor.page).to_have_url(url + "/")
    await expect(visitor.page.get_by_role("status")).to_have_text("")


# Names


@pytest.mark.parametrize("name", ["", "   ", "\u3000 "], ids=["nothing", "spaces", "wide spaces"])
async def test_a_name_of_nothing_is_asked_for_at_the_field(visiting: Visit, name: str) -> None:
    visitor = await visiting()
    field = visitor.page.get_by_label("User name")
    await tries_to_register(visitor, name)
    await expect(field).to_be_focused()
    assert (await field.evaluate("field => field.validationMessage")).startswith(
        "Please give a name. A name has"
    )
    assert not any("/webauthn/" in path for _, path in visitor.answers)
    await field.fill("ada")
    assert await field.evaluate("field => field.validationMessage") == ""


@pytest.mark.parametrize("name", ["a\u202eb", "x" * 65, "\u200d"], ids=["hidden", "long", "joiner"])
async def test_a_name_that_the_server_refuses_is_explained(visiting: Visit, name: str) -> None:
    visitor = await visiting()
    await tries_to_register(visitor, name)
    assert "This name cannot be used. A name has 1 to 64 characters in one line" in await said(visitor)


async def test_a_new_name_of_nothing_is_asked_for_in_the_question(visiting: Visit) -> None:
    visitor = await visiting()
    await registered(visitor)
    await visitor.page.get_by_role("button", name="Change name").click()
    await answer(visitor, "  ", yes="Save")
    field = visitor.page.get_by_role("dialog").get_by_role("textbox")
    await expect(field).to_be_focused()
    assert (await field.evaluate("field => field.validationMessage")).startswith("Please give a name.")
    await answer(visitor, "Ada", yes="Save")
    await says(visitor, "Your name is “Ada” now.")


# What was done, and where the focus is then


async def focused(page: Page) -> list[str]:
    """The deed, and of which name; or the role."""
    return list(
        await page.evaluate(
            "() => { const { dataset, role, tagName } = document.activeElement;"
            " return [dataset.do ?? role ?? tagName, dataset.name ?? '']; }"
        )
    )


async def test_everything_that_was_done_is_said_and_the_focus_stays(visiting: Visit) -> None:
    visitor = await visiting()
    page = visitor.page
    await registered(visitor)
    assert await said(visitor) == "Your account is ready, and you are signed in."
    assert await focused(page) == ["status", ""]

    await page.get_by_role("button", name="Change name").click()
    await answer(visitor, "Ada", yes="Save")
    await says(visitor, "Your name is “Ada” now.")
    assert await focused(page) == ["rename-user", "Ada"]

    await page.get_by_role("button", name="Rename Passkey").click()
    await answer(visitor, "Laptop", yes="Save")
    await says(visitor, "The passkey is called “Laptop” now.")
    assert await focused(page) == ["rename-passkey", "Laptop"]

    await visitor.another_authenticator("usb")
    await page.get_by_role("button", name="Add a passkey").click()
    await has_passkeys(visitor, 2)
    assert await said(visitor) == "The new passkey is added. You can sign in with it from now on."
    assert (await focused(page))[0] == "add-passkey"

    await page.get_by_role("button", name="Remove Laptop").click()
    await answer(visitor, None, yes="Remove")
    await says(visitor, "The passkey “Laptop” is removed.")
    assert await focused(page) == ["status", ""]

    await page.get_by_role("button", name="Sign out", exact=True).click()
    await welcomed(visitor)
    assert await said(visitor) == "You are signed out."
    await sign_in(visitor)
    await signed_in(visitor, "Ada")
    assert await said(visitor) == "You are signed in."


async def test_what_was_said_once_is_not_said_again(visiting: Visit) -> None:
    visitor = await visiting()
    await registered(visitor)
    await says(visitor, "Your account is ready")
    await visitor.page.reload()
    await expect(visitor.page.get_by_role("status")).to_have_text("")


async def test_sessions_that_were_ended_are_named(visiting: Visit) -> None:
    here, there, third = await visiting(), await visiting(), await visiting()
    name = await registered(here)
    (credential,) = await here.credentials()
    for other in (there, third):
        await other.put_back(credential)
        await sign_in(other)
        await signed_in(other, name)
    await here.page.reload()
    await here.page.get_by_role("button", name="Sign out: In a browser").first.click()
    await says(here, "“In a browser” is signed out.")
    await expect(sessions(here)).to_have_count(2)
    await here.page.get_by_role("button", name="Sign out everywhere else").click()
    await says(here, "You are signed out everywhere else.")
    await expect(sessions(here)).to_have_count(1)
    for other in (there, third):  # who was signed out is told, whatever they do next
        await other.page.get_by_role("button", name="Change name").click()
        await answer(other, "Eve", yes="Save")
        await welcomed(other)
        assert await said(other) == "You were signed out here. Sign in again to go on."


async def test_what_is_gone_meanwhile_is_said_and_the_page_shows_what_there_is(visiting: Visit) -> None:
    here, there = await visiting(), await visiting()
    name = await registered(here)
    (credential,) = await here.credentials()
    await there.put_back(credential)
    await sign_in(there)
    await signed_in(there, name)
    await there.another_authenticator("usb")
    await there.page.get_by_role("button", name="Add a passkey").click()
    await has_passkeys(there, 2)
    await here.page.reload()
    await there.page.get_by_role("button", name="Remove Security key").click()
    await answer(there, None, yes="Remove")
    await has_passkeys(there, 1)
    await here.page.get_by_role("button", name="Rename Security key").click()
    await answer(here, "Mine", yes="Save")
    await says(here, "That is not there any more. What you see now is what there is.")
    await has_passkeys(here, 1)


async def test_the_focus_stays_where_it_is_when_something_fails(visiting: Visit) -> None:
    visitor = await visiting()
    await visitor.verified(recognises=False)
    field = visitor.page.get_by_label("User name")
    await field.fill("ada")
    await field.press("Enter")
    assert "That was cancelled" in await said(visitor)
    await expect(field).to_be_focused()
    await sign_in(visitor)
    await says(visitor, "No passkey was used")
    await expect(visitor.page.get_by_role("button", name="Sign in with a passkey")).to_be_focused()


HELD = """
let asked = 0;
navigator.credentials.get = () => new Promise((_, refuse) => {
    document.documentElement.dataset.asked = ++asked;
    window.cancel = () => refuse(new DOMException("", "NotAllowedError"));
});
"""


async def test_nothing_is_done_twice_at_once(visiting: Visit) -> None:
    visitor = await visiting(scripts=[HELD])
    button = visitor.page.get_by_role("button", name="Sign in with a passkey")
    for times in (1, 2):
        await button.click()
        await expect(visitor.page.locator("html")).to_have_attribute("data-asked", str(times))
        await says(visitor, "Waiting for your passkey…")
        await expect(button).to_be_disabled()
        await expect(button).to_be_focused()
        await visitor.page.keyboard.press("Enter")
        await visitor.page.evaluate("document.querySelector('[data-do=sign-in]').click()")
        await visitor.page.evaluate("window.cancel()")
        await says(visitor, "No passkey was used")
    await expect(visitor.page.locator("html")).to_have_attribute("data-asked", "2")
    assert visitor.sent.count("{}") == 2


# Addresses that are not pages


@pytest.mark.parametrize(
    ("path", "status", "title"),
    [
        ("/passkeys", 404, "There is no page here"),
        ("/static/nothing.css", 404, "There is no page here"),
        ("/webauthn/registration/options", 405, "There is no page here"),
        ("/me", 401, "You are not signed in"),
        ("/session", 401, "You are not signed in"),
    ],
)
async def test_a_wrong_address_is_a_page(
    visiting: Visit, url: str, path: str, status: int, title: str
) -> None:
    visitor = await visiting()
    answered = await visitor.page.goto(url + path)
    assert answered is not None
    assert (answered.status, answered.headers["content-type"]) == (status, "text/html; charset=utf-8")
    await expect(visitor.page.get_by_role("heading", name=title)).to_be_visible()
    await visitor.page.get_by_role("link", name="Go to the start page").click()
    await welcomed(visitor)
