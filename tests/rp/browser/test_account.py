"""The account page in a real browser: names, removal, sessions, and what passkey providers are told."""

import base64
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

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


async def test_a_new_passkey_that_is_not_made_after_all_is_waited_for_no_more(visiting: Visit) -> None:
    visitor = await visiting()
    await registered(visitor)
    # as after a use of the first passkey that took long
    await visitor.page.evaluate(
        "Object.defineProperty(navigator, 'userActivation', { value: { isActive: false } })"
    )
    await visitor.page.get_by_role("button", name="Add a passkey").click()
    await expect(visitor.page.get_by_role("dialog")).to_contain_text("Make the new passkey")
    await says(visitor, "Waiting for your new passkey…")
    await visitor.page.get_by_role("button", name="Cancel").click()
    await expect(visitor.page.get_by_role("status")).to_be_empty()
    await has_passkeys(visitor, 1)


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


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A change on the page: its button, the answer to its question, and what the page says while the browser asks."""

    button: str
    says: str
    operation: str
    text: str | None = None
    yes: str | None = None


CHANGES = {
    "add": Asked(
        button="Add a passkey",
        says="To add a passkey to your account, use your passkey…",
        operation='{"operation":"add-passkey"}',
    ),
    "name": Asked(
        button="Change name",
        text="Ada L.",
        yes="Save",
        says="To change your name to “Ada L.”, use your passkey…",
        operation='{"operation":"rename-user","name":"Ada L."}',
    ),
    "rename": Asked(
        button="Rename Passkey",
        text="Phone",
        yes="Save",
        says="To rename “Passkey” to “Phone”, use your passkey…",
        operation='{"operation":"rename-passkey","target":"…","name":"Phone"}',
    ),
    "remove": Asked(
        button="Remove Security key",
        yes="Remove",
        says="To remove the passkey “Security key”, use your passkey…",
        operation='{"operation":"remove-passkey","target":"…"}',
    ),
    "end": Asked(
        button="Sign out: In a browser",
        says="To sign out “In a browser”, use your passkey…",
        operation='{"operation":"end-session","target":"…"}',
    ),
    "end-others": Asked(
        button="Sign out everywhere else",
        says="To sign out everywhere else, use your passkey…",
        operation='{"operation":"end-other-sessions"}',
    ),
    "delete": Asked(
        button="Delete account",
        yes="Delete",
        says="To delete your account, use your passkey…",
        operation='{"operation":"delete-account"}',
    ),
}


@pytest.mark.threat("T3")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_the_page_says_what_a_passkey_is_used_for_while_it_is_asked_for(
    visiting: Visit, change: Asked
) -> None:
    here, there = await visiting(), await visiting()
    await same_user_twice(here, there)
    first = here.authenticator
    await here.another_authenticator("usb")
    await here.page.get_by_role("button", name="Add a passkey").click()
    await has_passkeys(here, 2)
    if change.operation != '{"operation":"add-passkey"}':
        await here.remove_authenticator()
        here.authenticator = first
    here.sent.clear()
    shown: list[str] = []

    async def looked(route: Route) -> None:
        shown.append(await here.page.get_by_role("status").inner_text())
        await route.continue_()

    await here.page.route("**/webauthn/step-up/result", looked)
    async with here.page.expect_response("**/webauthn/step-up/result"):
        await here.page.get_by_role("button", name=change.button, exact=True).click()
        if change.yes is not None:
            await answer(here, change.text, yes=change.yes)
    assert shown == [change.says]
    asked = [re.sub(r'"target":"[^"]+"', '"target":"…"', sent) for sent in here.sent]
    assert change.operation in asked


@pytest.mark.threat("T3")
async def test_who_does_not_use_their_passkey_changes_nothing(visiting: Visit) -> None:
    visitor = await visiting()
    name = await registered(visitor)
    await visitor.cdp.send(
        "WebAuthn.setUserVerified", {"authenticatorId": visitor.authenticator, "isUserVerified": False}
    )
    await visitor.page.get_by_role("button", name="Change name").click()
    await answer(visitor, "Eve", yes="Save")
    await says(visitor, "That was cancelled, or took too long.")
    assert not any(path == "/me" for _, path in visitor.answers)
    await signed_in(visitor, name)


@pytest.mark.threat("T16")
async def test_the_removal_of_an_old_passkey_is_announced_and_called_off(
    visiting: Visit, store: Path
) -> None:
    here, there = await visiting(), await visiting()
    await same_user_twice(here, there)
    (old,) = await here.credentials()
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute(
            "UPDATE credentials SET created_at = created_at - 7 * 86400 WHERE credential_id = ?",
            (base64.b64decode(old["credentialId"]),),
        )
    first = here.authenticator
    await here.another_authenticator("usb")
    await here.page.get_by_role("button", name="Add a passkey").click()
    await has_passkeys(here, 2)
    await here.remove_authenticator()
    here.authenticator = first
    await here.page.get_by_role("button", name="Remove Passkey").click()
    await answer(here, None, yes="Remove")
    await says(here, "The passkey “Passkey” is going to be removed. Until then, it can be called off here.")
    await there.page.reload()
    await expect(there.page.get_by_role("alert")).to_contain_text("The passkey “Passkey” is removed on")
    changes = there.page.get_by_role("region", name="Recent changes").get_by_role("listitem")
    await expect(changes).to_contain_text(["A removal was asked for, in a browser:", "A passkey was added"])
    await there.page.get_by_role("button", name="Keep Passkey").click()
    await says(there, "The passkey “Passkey” stays.")
    await expect(there.page.get_by_role("alert")).to_have_count(0)
    await expect(changes.first).to_contain_text("A removal was called off, in a browser, here:")


async def test_an_account_is_deleted(visiting: Visit) -> None:
    visitor = await visiting()
    await registered(visitor)
    await visitor.page.get_by_role("button", name="Delete account").click()
    await answer(visitor, None, yes="Delete")
    await welcomed(visitor)
    await says(visitor, "Your account is deleted.")
    await sign_in(visitor)
    await says(visitor, "This passkey was not accepted.")
