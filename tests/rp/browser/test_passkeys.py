"""Register and sign in in a real browser, and what the relying party says to an authenticator that misbehaves."""

from pathlib import Path
from uuid import uuid4

import pytest
from certificates import Certificate
from playwright.async_api import Browser, expect

from tests.ports import reserved_port
from tests.rp.browser.conftest import Visit
from tests.rp.browser.steps import has_passkeys, registered, says, sign_in, sign_out, signed_in
from tests.rp.browser.visitor import Visitor, serving, visit

pytestmark = pytest.mark.asyncio(loop_scope="session")

REFUSED = "This passkey was not accepted. Try again, or use another one"


@pytest.mark.parametrize(
    ("transport", "shown"),
    [("internal", "on the device that has it"), ("cable", "from a phone nearby"), ("usb", "plugged in")],
)
async def test_a_passkey_is_made_and_signs_in(visiting: Visit, transport: str, shown: str) -> None:
    visitor = await visiting(transport=transport)
    name = await registered(visitor)
    await expect(visitor.page.get_by_text(shown)).to_be_visible()
    await sign_out(visitor)
    await sign_in(visitor)
    await signed_in(visitor, name)


async def test_below_a_path_a_passkey_is_made_and_signs_in_too(
    chromium: Browser, loopback_certificate: Certificate, tmp_path: Path
) -> None:
    port = reserved_port()
    words = ("--listen", f"127.0.0.1:{port}", "--public-url", f"https://localhost:{port}/passkeys")
    async with serving(loopback_certificate, tmp_path, *words) as url:
        visitor = await visit(chromium, url, "/passkeys/")
        name = await registered(visitor)
        await sign_out(visitor)
        await sign_in(visitor)
        await signed_in(visitor, name)
        await visitor.page.get_by_role("link", name="Example").click()
        await signed_in(visitor, name)
        assert all(path.startswith("/passkeys/") for _, path in visitor.answers), visitor.answers
        await visitor.page.context.close()
        assert visitor.complaints == []


async def test_a_second_passkey_is_added_and_the_first_authenticator_does_not_make_another(
    visiting: Visit,
) -> None:
    visitor = await visiting()
    await registered(visitor)
    add = visitor.page.get_by_role("button", name="Add a passkey")
    await add.click()
    await says(visitor, "has a passkey for this account already. To add another one, use another device")
    await expect(add).to_be_focused()
    await visitor.another_authenticator("usb")
    await add.click()
    await has_passkeys(visitor, 2)
    await expect(visitor.page.get_by_role("heading", name="Security key")).to_be_visible()


async def test_a_name_that_is_taken_is_refused(visiting: Visit) -> None:
    first, second = await visiting(), await visiting()
    name = await registered(first)
    await second.page.get_by_label("User name").fill(name)
    await second.page.get_by_role("button", name="Create an account").click()
    await says(second, "That user name is taken. If it is yours, sign in with your passkey")
    assert await second.credentials() == []


async def test_an_owner_who_is_not_recognised_gets_no_passkey(visiting: Visit) -> None:
    visitor = await visiting()
    await visitor.verified(recognises=False)
    await visitor.page.get_by_label("User name").fill("nobody")
    await visitor.page.get_by_role("button", name="Create an account").click()
    await says(visitor, "That was cancelled, or took too long. Try again when you are ready.")
    await expect(visitor.page.get_by_role("button", name="Create an account")).to_be_enabled()


# Passkeys in the user name's field


async def test_a_passkey_is_offered_in_the_field_and_signs_in(visiting: Visit) -> None:
    visitor = await visiting()
    name = await registered(visitor)
    await sign_out(visitor)
    await visitor.autofills()
    await visitor.page.reload()
    await signed_in(visitor, name)


async def test_the_field_says_that_passkeys_go_there(visiting: Visit) -> None:
    visitor = await visiting()
    field = visitor.page.get_by_label("User name")
    await expect(field).to_have_attribute("autocomplete", "username webauthn")


async def test_the_offer_is_conditional_and_gives_way_to_a_button(visiting: Visit) -> None:
    visitor = await visiting()
    name = await registered(visitor)
    await sign_out(visitor)
    await visitor.presence(touches=False)
    await visitor.autofills()
    await visitor.page.reload()
    await asked_for(visitor, "conditional")
    await visitor.presence(touches=True)
    await sign_in(visitor)
    await signed_in(visitor, name)


async def test_the_offer_is_made_again_before_its_challenge_ends(visiting: Visit) -> None:
    visitor = await visiting()
    await visitor.presence(touches=False)
    await visitor.autofills()
    await visitor.page.clock.install()
    await visitor.page.reload()
    await asked_for(visitor, "conditional")
    await visitor.page.clock.fast_forward("14:00")
    await asked_for(visitor, "conditional conditional")
    assert visitor.answers.count((200, "/webauthn/authentication/options")) == 2
    await expect(visitor.page.locator(".status")).to_be_empty()


async def test_an_offer_that_the_server_did_not_answer_is_made_again(visiting: Visit) -> None:
    visitor = await visiting()
    await visitor.presence(touches=False)
    await visitor.autofills()
    await visitor.page.clock.install()
    await visitor.page.route("**/webauthn/authentication/options", lambda route: route.abort())
    async with visitor.page.expect_event("requestfailed"):
        await visitor.page.reload()
    async with visitor.page.expect_event("requestfailed"):
        await visitor.page.clock.fast_forward("00:02")
    await visitor.page.unroute("**/webauthn/authentication/options")
    await visitor.page.clock.fast_forward("00:03")
    await asked_for(visitor, "conditional")
    await expect(visitor.page.locator(".status")).to_be_empty()


async def test_who_chose_a_passkey_in_the_field_that_is_refused_is_told_and_may_choose_again(
    visiting: Visit,
) -> None:
    visitor = await visiting()
    name = await registered(visitor)
    await sign_out(visitor)
    await visitor.faults(isBogusSignature=True)
    await visitor.autofills()
    await visitor.page.clock.install()
    await visitor.page.reload()
    await says(visitor, REFUSED)
    await asked_for(visitor, "conditional")
    await visitor.faults(isBogusSignature=False)
    await visitor.page.clock.fast_forward("00:02")
    await signed_in(visitor, name)


async def test_an_offer_that_failed_waits_for_whoever_asks_for_something_else(visiting: Visit) -> None:
    visitor = await visiting()
    await visitor.presence(touches=False)
    await visitor.autofills()
    await visitor.page.clock.install()
    await visitor.page.route("**/webauthn/authentication/options", lambda route: route.abort(), times=1)
    async with visitor.page.expect_event("requestfailed"):
        await visitor.page.reload()
    await visitor.page.get_by_role("button", name="Sign in with a passkey").click()
    await asked_for(visitor, "modal")
    await visitor.page.clock.fast_forward("00:10")
    await asked_for(visitor, "modal")
    assert visitor.answers.count((200, "/webauthn/authentication/options")) == 1


async def asked_for(visitor: Visitor, mediations: str) -> None:
    """Until the page has asked the browser for passkeys so often and in these ways."""
    await expect(visitor.page.locator("html")).to_have_attribute("data-asked", mediations)


# What goes wrong in an authenticator


@pytest.mark.threat("T14")
@pytest.mark.parametrize("bit", ["isBogusSignature", "isBadUV", "isBadUP"])
async def test_a_sign_in_with_a_false_signature_or_flag_is_refused(visiting: Visit, bit: str) -> None:
    visitor = await visiting()
    name = await registered(visitor)
    await sign_out(visitor)
    await visitor.faults(**{bit: True})
    await sign_in(visitor)
    await says(visitor, REFUSED)
    assert visitor.answers[-1] == (403, "/webauthn/authentication/result")
    await visitor.faults(**{bit: False})
    await sign_in(visitor)
    await signed_in(visitor, name)


@pytest.mark.threat("T14")
@pytest.mark.parametrize("bit", ["isBadUV", "isBadUP"])
async def test_a_registration_with_a_false_flag_is_refused(visiting: Visit, bit: str) -> None:
    visitor = await visiting()
    await visitor.faults(**{bit: True})
    await visitor.page.get_by_label("User name").fill(f"eve-{uuid4().hex[:8]}")
    await visitor.page.get_by_role("button", name="Create an account").click()
    await says(visitor, REFUSED)
    assert visitor.answers[-1] == (403, "/webauthn/registration/result")


@pytest.mark.threat("T14")
async def test_a_counter_that_goes_back_signs_in_and_is_told(visiting: Visit) -> None:
    visitor = await visiting()
    name = await registered(visitor)
    await sign_out(visitor)
    await visitor.set_counter(0)
    await sign_in(visitor)
    await signed_in(visitor, name)
    await expect(
        visitor.page.get_by_text("May have been copied: its counter stood still once.")
    ).to_be_visible()


@pytest.mark.threat("T14")
async def test_whether_a_passkey_can_be_synced_never_changes(visiting: Visit) -> None:
    visitor = await visiting()
    await registered(visitor)
    await sign_out(visitor)
    await visitor.properties(backupEligibility=False, backupState=False)
    await sign_in(visitor)
    await says(visitor, REFUSED)


@pytest.mark.threat("T14")
async def test_a_synced_passkey_that_cannot_be_synced_is_refused(visiting: Visit) -> None:
    visitor = await visiting()
    await registered(visitor)
    await sign_out(visitor)
    await visitor.properties(backupEligibility=False, backupState=True)
    await sign_in(visitor)
    await says(visitor, REFUSED)


async def test_whether_a_passkey_is_synced_now_may_change_and_is_shown(visiting: Visit) -> None:
    visitor = await visiting()
    name = await registered(visitor)
    await expect(visitor.page.get_by_text("synced", exact=True)).to_be_visible()
    await sign_out(visitor)
    await visitor.properties(backupEligibility=True, backupState=False)
    await sign_in(visitor)
    await signed_in(visitor, name)
    await expect(visitor.page.get_by_text("not synced yet")).to_be_visible()
