"""A device signs its user in with a passkey on a phone, all of it by programs that talk over the wire."""

import asyncio
import hashlib
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import webauthn
from programs import event
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)
from world import World

from headless_passkey.trust.ring import Role
from program_parts.base64url import base64url
from tests.end_to_end.household import Home, Session, ends, handle_of, make_passkey, page, session_of
from tests.end_to_end.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="module")

APPROVE = "Approve? y or n:"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ada(world: World) -> AsyncIterator[dict[str, Any]]:
    """The session with which a user called ada registered; the passkey is on every phone."""
    yield await (await Home.make(world)).registers_ada()


async def test_a_registered_user_signs_in_and_the_session_works_at_the_relying_party(
    world: World, home: Home, ada: dict[str, Any]
) -> None:
    companion = await world.companion(home.phone, "--once")
    device = await world.device(home.hub, "sign-in")
    session = await session_of(device)
    assert (await ends(device), await ends(companion)) == (0, 0)

    assert session["user"] == ada["user"]
    assert (session["token"], session["refresh_token"]) == (None, None)  # they are kept, and not shown
    said = await Session.of(home, home.hub).get()
    assert said["user"] == session["user"]
    assert "token" not in said or said["token"] is None
    shown = await page(world)
    assert "ada" in shown
    assert "on a device" in shown
    # what the relay tells and what the radio hears race
    told = [stage for stage in device.stages if stage in ("delivered", "claimed", "opened")]
    # whether the companion waits at its inbox already when the request comes is a race too
    heard = [stage for stage in device.stages if stage not in (*told, "not-notified")]
    assert told == ["delivered", "claimed", "opened"][: len(told)]
    assert heard == [
        *("prepared", "submitted", "advert-heard", "tunnel-joined"),
        *("channel-open", "request-sent", "reply-checked", "completed"),
    ]
    account = next(json.loads(line)["account"] for line in device.said if '"account"' in line)
    assert account == {
        "user_handle": ada["user"]["handle"],
        "user_name": "ada",
        "user_checked": False,  # by a device that has expected nobody yet
        "user_pinned": True,
    }


async def test_what_the_phone_answers_verifies_in_another_webauthn_library(world: World, home: Home) -> None:
    origin, rp_id = "https://login.example", "login.example"
    phone = ("--once", "--credentials", world.folder / "example-passkeys.json")

    async def answer(name: str, options: str) -> str:
        file = world.folder / f"{name}-options.json"
        file.write_text(options)
        companion = await world.companion(home.phone, *phone)
        device = await world.run(
            home.hub, "headless-passkey", name, "--options", file, "--origin", origin, "--state",
            world.state(home.hub), "--radio", world.radio, "--tunnel", world.tunnel, *world.trust,
        )  # fmt: skip
        (response,) = (await device.output()).splitlines()
        assert (await ends(device), await ends(companion)) == (0, 0)
        return response

    creating = webauthn.generate_registration_options(
        rp_id=rp_id,
        rp_name="Example",
        user_id=b"somebody",
        user_name="grace",
        authenticator_selection=AuthenticatorSelectionCriteria(resident_key=ResidentKeyRequirement.REQUIRED),
    )
    created = webauthn.verify_registration_response(
        credential=await answer("register", webauthn.options_to_json(creating)),
        expected_challenge=creating.challenge,
        expected_rp_id=rp_id,
        expected_origin=origin,
        require_user_verification=True,
    )
    asking = webauthn.generate_authentication_options(
        rp_id=rp_id, user_verification=UserVerificationRequirement.REQUIRED
    )
    response = await answer("sign-in", webauthn.options_to_json(asking))
    verified = webauthn.verify_authentication_response(
        credential=response,
        expected_challenge=asking.challenge,
        expected_rp_id=rp_id,
        expected_origin=origin,
        credential_public_key=created.credential_public_key,
        credential_current_sign_count=created.sign_count,
        require_user_verification=True,
    )
    assert verified.credential_id == created.credential_id
    assert json.loads(response)["response"]["userHandle"] == base64url(b"somebody")


async def test_a_companion_that_comes_later_asks_for_what_is_pending(
    world: World, home: Home, ada: dict[str, Any]
) -> None:
    device = await world.device(home.hub, "sign-in")
    await device.stage("submitted")
    companion = await world.companion(home.phone, "--pending")
    assert (await ends(device), await ends(companion)) == (0, 0)


async def test_with_nothing_pending_a_companion_that_asks_ends_at_once(world: World, home: Home) -> None:
    companion = await world.companion(home.phone, "--pending")
    assert await ends(companion) == 0
    assert companion.stages[-1] == "nothing-pending"


@pytest.mark.threat("T4")
async def test_the_person_is_shown_who_asks_for_what_and_says_yes(
    world: World, home: Home, ada: dict[str, Any], terminal: Terminal
) -> None:
    companion = await world.companion(
        home.phone, "--once", "--consent", "ask", "--uv", "ask", in_front=terminal.in_front
    )
    device = await world.device(home.hub, "sign-in", "--note", "a film")
    shown = await terminal.answer(APPROVE, "y")
    assert home.hub in shown
    assert "sign in" in shown
    assert "localhost" in shown
    assert "a film" in shown
    asked = await terminal.answer("y or n:", "y")
    assert "ada" in asked
    assert (await ends(device), await ends(companion)) == (0, 0)


async def test_declining_on_the_companion_ends_it_for_the_device(
    world: World, home: Home, terminal: Terminal
) -> None:
    companion = await world.companion(home.phone, "--once", "--consent", "ask", in_front=terminal.in_front)
    device = await world.device(home.hub, "sign-in")
    await terminal.until(APPROVE)
    request = await home.request(home.hub, home.phone)
    terminal.type("n\n")
    assert (await ends(device), await ends(companion)) == (6, 6)
    assert (await home.request_status(home.hub, request)).state == "declined"


async def test_declining_on_the_phone_is_the_phones_no(world: World, home: Home, ada: dict[str, Any]) -> None:
    companion = await world.companion(home.phone, "--once", "--uv", "decline")
    device = await world.device(home.hub, "sign-in")
    assert (await ends(device), await ends(companion)) == (5, 6)
    assert device.failure is not None
    assert "0x27" in device.failure["message"]
    assert "completed" not in device.stages


@pytest.mark.threat("T5")
async def test_a_request_nobody_answers_expires_everywhere(
    world: World, home: Home, terminal: Terminal
) -> None:
    companion = await world.companion(home.phone, "--once", "--consent", "ask", in_front=terminal.in_front)
    device = await world.device(home.hub, "sign-in", "--timeout", "2")
    await terminal.until(APPROVE)
    request = await home.request(home.hub, home.phone)
    assert (await ends(device), await ends(companion)) == (7, 7)
    assert (await home.request_status(home.hub, request)).state in ("cancelled", "expired")
    assert "gone" in companion.stages


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_cancelling_on_the_device_takes_the_question_back(
    world: World, home: Home, terminal: Terminal, number: signal.Signals
) -> None:
    companion = await world.companion(home.phone, "--once", "--consent", "ask", in_front=terminal.in_front)
    device = await world.device(home.hub, "sign-in")
    await terminal.until(APPROVE)
    request = await home.request(home.hub, home.phone)
    device.process.send_signal(number)
    assert (await ends(device), await ends(companion)) == (130, 7)
    assert (await home.request_status(home.hub, request)).state == "cancelled"
    gone = await companion.stage("gone")
    assert gone["reason"] == "cancelled"


async def test_a_newer_request_takes_the_place_of_the_older(
    world: World, home: Home, ada: dict[str, Any]
) -> None:
    older = await world.device(home.hub, "sign-in")
    await older.stage("submitted")
    request = await home.request(home.hub, home.phone)
    newer = await world.device(home.hub, "sign-in")
    await newer.stage("submitted")
    assert await ends(older) == 7
    assert older.failure is not None
    assert older.failure["reason"] == "superseded"
    assert (await home.request_status(home.hub, request)).state == "superseded"
    companion = await world.companion(home.phone, "--pending")
    assert (await ends(newer), await ends(companion)) == (0, 0)


@pytest.mark.threat("T4")
async def test_the_digits_that_the_device_shows_are_typed_on_the_companion(
    world: World, home: Home, ada: dict[str, Any], terminal: Terminal
) -> None:
    companion = await world.companion(home.phone, "--once", "--consent", "ask", in_front=terminal.in_front)
    device = await world.device(home.hub, "sign-in", "--match-digits", "--digits-by", "speak")
    told = await device.stage("digits")
    assert told["by"] == "speak"
    await terminal.until("Type the digits")
    digits = _digits(device.said)
    assert told["digits"] == digits
    terminal.type(f"{digits}\n")
    assert (await ends(device), await ends(companion)) == (0, 0)


@pytest.mark.threat("T4")
async def test_other_digits_open_nothing(world: World, home: Home, terminal: Terminal) -> None:
    companion = await world.companion(home.phone, "--once", "--consent", "ask", in_front=terminal.in_front)
    device = await world.device(home.hub, "sign-in", "--match-digits")
    await terminal.until("Type the digits")
    wrong = f"{(int(_digits(device.said)) + 1) % 100:02d}"
    terminal.type(f"{wrong}\n")
    assert (await ends(device), await ends(companion)) == (8, 8)
    assert device.failure is not None
    assert device.failure["reason"] == "wrong-digits"
    assert "claimed" not in companion.stages


@pytest.mark.threat("T4")
async def test_a_companion_that_demands_digits_approves_nothing_without_them(
    world: World, home: Home, ada: dict[str, Any], terminal: Terminal
) -> None:
    companion = await world.companion(
        home.phone, "--once", "--consent", "ask", "--digits", in_front=terminal.in_front
    )
    device = await world.device(home.hub, "sign-in")
    assert (await ends(device), await ends(companion)) == (8, 8)
    assert device.failure is not None
    assert device.failure["reason"] == "digits-missing"
    assert "claimed" not in companion.stages


def _digits(said: list[str]) -> str:
    """What the device shows, or speaks."""
    (digits,) = [each["digits"] for each in map(event, said) if each is not None and "digits" in each]
    return str(digits)


@pytest.mark.threat("T3")
async def test_the_account_of_another_user_is_refused_by_the_device(
    world: World, home: Home, ada: dict[str, Any]
) -> None:
    companion = await world.companion(home.phone, "--once")
    other = base64url(hashlib.sha256(b"somebody else").digest())
    device = await world.device(home.hub, "sign-in", "--expect-user", other)
    await device.stage("submitted")
    output = await device.output()
    assert output == ""
    assert await ends(device) == 8
    assert device.failure is not None
    assert device.failure["reason"] == "unexpected-user"
    assert await ends(companion) == 0  # the phone has answered; what for, the device judges


@pytest.mark.threat("T3")
async def test_the_account_that_is_expected_is_checked(world: World, home: Home, ada: dict[str, Any]) -> None:
    companion = await world.companion(home.phone, "--once")
    device = await world.device(home.hub, "sign-in", "--expect-user", base64url(handle_of(ada)))
    assert (await ends(device), await ends(companion)) == (0, 0)
    account = next(json.loads(line)["account"] for line in device.said if '"account"' in line)
    assert account["user_checked"] is True


@pytest.mark.threat("T4")
async def test_several_requests_are_listed_and_answered_one_by_one(
    world: World, home: Home, ada: dict[str, Any], terminal: Terminal
) -> None:
    den = f"den of {home.account}"
    await home.let_in(Role.DEVICE, den)
    hub_asks, den_asks = await asyncio.gather(world.device(home.hub, "sign-in"), world.device(den, "sign-in"))
    await asyncio.gather(hub_asks.stage("submitted"), den_asks.stage("submitted"))
    companion = await world.companion(home.phone, "--pending", "--consent", "ask", in_front=terminal.in_front)
    listed = await terminal.until("Which one? Number, or n to decline them all:")
    (line,) = [line for line in listed.splitlines() if den in line]
    terminal.type(f"{line.split()[0]}\n")
    shown = await terminal.answer(APPROVE, "n")
    assert f'"{den}" asks' in shown
    assert await ends(den_asks) == 6

    shown = await terminal.answer(APPROVE, "y")
    assert f'"{home.hub}" asks' in shown
    assert await ends(hub_asks) == 0
    assert await ends(companion) == 6  # one was declined


async def test_a_user_the_relying_party_does_not_know_is_nobody_whom_the_phone_can_prove(
    world: World, home: Home, ada: dict[str, Any]
) -> None:
    companion = await world.companion(home.phone, "--once")
    device = await world.device(home.hub, "sign-in", "--user", "nobody")
    await device.stage("submitted")
    request = await home.request(home.hub, home.phone)
    # To a stranger the options of an unknown user are those of a known one, so the phone offers the passkey that it has.
    assert (await ends(device), await ends(companion)) == (8, 0)
    assert device.failure is not None
    assert device.failure["reason"] == "rp-refused"
    assert (await home.request_status(home.hub, request)).state == "failed"


async def test_a_response_the_relying_party_refuses_fails_the_request(world: World, home: Home) -> None:
    strangers = world.folder / "strangers-passkeys.json"
    await make_passkey(strangers, "localhost")
    companion = await world.companion(home.phone, "--once", "--credentials", strangers)
    device = await world.device(home.hub, "sign-in")
    await device.stage("submitted")
    request = await home.request(home.hub, home.phone)
    assert await ends(device) == 8
    assert device.failure is not None
    assert device.failure["reason"] == "rp-refused"
    assert (await home.request_status(home.hub, request)).state == "failed"
    assert await ends(companion) == 0
