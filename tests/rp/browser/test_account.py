"""The account page in a real browser: names, removal, sessions, and what passkey providers are told."""

import json

import pytest
from certificates import Certificate
from playwright.async_api import Route, expect

from tests.rp.browser.conftest import Visit
from tests.rp.browser.device import BrowserDevice
from tests.rp.browser.steps import (
    answer,
    has_passkeys,
    passkeys,
    registered,
    says,
    sessions,
    sign_in,
    sign_out,
    signed_in,
    welcomed,
)
from tests.rp.browser.visitor import Visitor

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_passkey_gets_a_name_of_its_users(visiting: Visit) -> None:
    visitor = await visiting()
    await registered(visitor)
    await visitor.page.get_by_role("button", name="Rename Passkey").click()
    await answer(visitor, 'My "first" <key>', yes="Save")
    await expect(visitor.page.get_by_role("heading", name='My "first" <key>')).to_be_visible()


async def test_a_question_can_be_left_unanswered(visiting: Visit) -> None:
    visitor = await visiting()
    await registered(visitor)
    rename = visitor.page.get_by_role("button", name="Rename Passkey")
    for leave in ("click", "escape"):
        await rename.click()
        if leave == "click":
            await visitor.page.get_by_role("button", name="Cancel").click()
        else:
            await visitor.page.keyboard.press("Escape")
        await expect(visitor.page.get_by_role("dialog")).to_be_hidden()
        await expect(rename).to_be_enabled()
        await expect(rename).to_be_focused()
    assert not any(path.startswith("/me") for _, path in visitor.answers)


async def test_the_only_passkey_is_not_removed(visiting: Visit) -> None:
    visitor = await visiting()
    await registered(visitor)
    await expect(visitor.page.get_by_role("button", name="Remove Passkey")).to_have_count(0)


async def test_a_removed_passkey_is_gone_from_the_account_and_from_its_provider(visiting: Visit) -> None:
    visitor = await visiting()
    await registered(visitor)
    first = visitor.authenticator
    await visitor.another_authenticator("usb")
    await visitor.page.get_by_role("button", name="Add a passkey").click()
    await has_passkeys(visitor, 2)
    visitor.authenticator = first
    assert len(await visitor.credentials()) == 1
    await visitor.page.get_by_role("button", name="Remove Passkey").click()
    await expect(visitor.page.get_by_role("dialog")).to_contain_text("Remove “Passkey”?")
    await answer(visitor, None, yes="Remove")
    await has_passkeys(visitor, 1)
    await expect(passkeys(visitor)).to_contain_text("Security key")
    assert await visitor.credentials() == []  # signalAllAcceptedCredentials


async def test_a_provider_learns_that_its_passkey_is_unknown_here(visiting: Visit) -> None:
    visitor = await visiting()
    name = await registered(visitor)
    (removed,) = await visitor.credentials()
    first = visitor.authenticator
    await visitor.another_authenticator("usb")
    await visitor.page.get_by_role("button", name="Add a passkey").click()
    await has_passkeys(visitor, 2)
    await visitor.page.get_by_role("button", name="Remove Passkey").click()
    await answer(visitor, None, yes="Remove")
    await has_passkeys(visitor, 1)
    await sign_out(visitor)

    await visitor.remove_authenticator()
    visitor.authenticator = first
    await visitor.put_back(removed)  # as from a provider that was not there to hear of it
    await sign_in(visitor)
    await says(visitor, "This passkey was not accepted.")
    assert await visitor.credentials() == [], name  # signalUnknownCredential


async def test_a_new_name_is_shown_and_told_to_the_provider(visiting: Visit) -> None:
    visitor = await visiting()
    name = await registered(visitor)
    await visitor.page.get_by_role("button", name="Change name").click()
    await answer(visitor, "Ada Lovelace", yes="Save")
    await expect(visitor.page.get_by_role("heading", name="Ada Lovelace")).to_be_visible()
    await expect(visitor.page.get_by_text(f"Signed in as Ada Lovelace ({name})")).to_be_visible()
    (credential,) = await visitor.credentials()
    assert credential["userDisplayName"] == "Ada Lovelace"


async def test_one_browser_signs_the_other_out(visiting: Visit) -> None:
    here, there = await visiting(), await visiting()
    await same_user_twice(here, there)
    await here.page.get_by_role("button", name="Sign out: In a browser").click()
    await expect(sessions(here)).to_have_count(1)
    await signed_in(here, "ada")
    await there.page.reload()
    await welcomed(there)


async def test_everything_else_is_signed_out_at_once(visiting: Visit) -> None:
    here, there = await visiting(), await visiting()
    await same_user_twice(here, there)
    await here.page.get_by_role("button", name="Sign out everywhere else").click()
    await expect(sessions(here)).to_have_count(1)
    await expect(here.page.get_by_role("button", name="Sign out everywhere else")).to_have_count(0)
    await there.page.reload()
    await welcomed(there)


@pytest.mark.threat("T3")
async def test_a_device_is_listed_by_its_name_and_signed_out(
    visiting: Visit, url: str, loopback_certificate: Certificate
) -> None:
    visitor = await visiting()
    await registered(visitor)
    (credential,) = await visitor.credentials()
    async with BrowserDevice(url, loopback_certificate) as device:
        await device.sign_in(credential, "Coffee machine")
        assert await device.is_signed_in()
        await visitor.page.reload()
        await expect(visitor.page.get_by_role("heading", name="Coffee machine")).to_be_visible()
        await expect(sessions(visitor).filter(has_text="Coffee machine")).to_contain_text("on a device")
        await visitor.page.get_by_role("button", name="Sign out: Coffee machine").click()
        await expect(sessions(visitor)).to_have_count(1)
        assert not await device.is_signed_in()


async def same_user_twice(here: Visitor, there: Visitor) -> None:
    """A user who is signed in in two browsers with one passkey."""
    name = await registered(here)
    (credential,) = await here.credentials()
    await there.put_back(credential)
    await sign_in(there)
    await signed_in(there, name)
    await here.page.reload()
    await expect(sessions(here)).to_have_count(2)


async def test_what_matters_asks_for_the_passkey_once_more_and_then_goes_on(visiting: Visit) -> None:
    visitor = await visiting()
    await registered(visitor)
    await visitor.another_authenticator("usb")
    adding = await too_long_ago(visitor, "**/webauthn/registration/options")
    await visitor.page.get_by_role("button", name="Add a passkey").click()
    await has_passkeys(visitor, 2)
    removing = await too_long_ago(visitor, "**/me/credentials/*")
    await visitor.page.get_by_role("button", name="Remove Passkey").click()
    await answer(visitor, None, yes="Remove")
    await has_passkeys(visitor, 1)
    assert (len(adding), len(removing)) == (1, 1)
    assert visitor.answers.count((200, "/webauthn/step-up/result")) == 2


async def too_long_ago(visitor: Visitor, where: str) -> list[str]:
    """Have the first request there answered as if the last sign-in were long ago: nobody waits for that here."""
    asked: list[str] = []

    async def refuse(route: Route) -> None:
        asked.append(route.request.url)
        problem = {"type": "urn:headless-passkey:problem:step-up-required", "title": "again", "status": 401}
        await route.fulfill(status=401, content_type="application/problem+json", body=json.dumps(problem))

    await visitor.page.route(where, refuse, times=1)
    return asked
