"""Who may change an account: every endpoint that changes something, in every kind of session.

The endpoints come from the router: one that is not in the table below fails the test, so that none is forgotten.
"""

import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer

from relying_party.core.sessions import hash_token
from relying_party.errors import BrowsersOnly, InvalidRequest, StepUpRequired
from relying_party.http.app import make_app, require_step_up
from relying_party.http.request import SignedIn
from tests.rp.authenticator_double import Passkey, b64, create, get
from tests.rp.clients import (
    WEB_ORIGIN,
    Answer,
    Browser,
    Clock,
    Device,
    Site,
    Who,
    make_config,
)

APP = "android:apk-key-hash:" + b64(bytes(range(32)))
STEP_UP_SECONDS = 120


@dataclass(kw_only=True)
class Household:
    """Ada's account: a browser in which it began, a second passkey, and a session to change it in."""

    site: Site
    owner: Browser
    passkey: Passkey
    second: Passkey
    other_session: str = ""

    def target(self, kind: str) -> str:
        return {"credential": b64(self.second.credential_id), "session": self.other_session}[kind]


@pytest.fixture
async def household(tmp_path: Path) -> AsyncIterator[Household]:
    clock, config = Clock(), make_config(tmp_path / "rp.sqlite", android_apps=(APP,))
    app = make_app(config, clock=clock)
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        site, owner = Site(http=http, app=app, clock=clock, config=config), Browser()
        passkey, _ = await site.register(owner, "ada")
        second = await site.add_passkey(owner, passkey)
        (listed,) = (await site.send(owner, "GET", "/me")).body["sessions"]
        yield Household(site=site, owner=owner, passkey=passkey, second=second, other_session=listed["id"])


@dataclass(frozen=True, kw_only=True)
class Change:
    """A request that changes an account, and the operation that a step-up for it names."""

    path: str
    operation: str
    body: Any = None
    target: str | None = None
    name: str | None = None

    def asked(self, household: Household) -> dict[str, Any]:
        target = {} if self.target is None else {"target": household.target(self.target)}
        return {**target, **({} if self.name is None else {"name": self.name})}


CEREMONY = "a ceremony has checks of its own"
OWN = "it ends or renews the session that asks"
CHANGES: dict[tuple[str, str], str | Change] = {
    ("POST", "/webauthn/registration/options"): Change(
        path="/webauthn/registration/options", operation="add-passkey", body={"user_name": "ada"}
    ),
    ("POST", "/webauthn/registration/result"): CEREMONY,
    ("POST", "/webauthn/authentication/options"): CEREMONY,
    ("POST", "/webauthn/authentication/result"): CEREMONY,
    ("POST", "/webauthn/step-up/options"): CEREMONY,
    ("POST", "/webauthn/step-up/result"): CEREMONY,
    ("DELETE", "/session"): OWN,
    ("POST", "/session/refresh"): OWN,
    ("POST", "/introspect"): "it changes nothing, and is for services",
    ("PATCH", "/me"): Change(path="/me", operation="rename-user", body={"display_name": "Eve"}, name="Eve"),
    ("PATCH", "/me/credentials/{id}"): Change(
        path="/me/credentials/{credential}",
        operation="rename-passkey",
        body={"label": "mine"},
        target="credential",
        name="mine",
    ),
    ("DELETE", "/me/credentials/{id}"): Change(
        path="/me/credentials/{credential}", operation="remove-passkey", target="credential"
    ),
    ("DELETE", "/me/sessions/{id}"): Change(
        path="/me/sessions/{session}", operation="end-session", target="session"
    ),
    ("DELETE", "/me"): Change(path="/me", operation="delete-account"),
    ("DELETE", "/me/removals/{id}"): "it keeps what there is (test_removals.py)",
    ("DELETE", "/me/sessions"): Change(path="/me/sessions", operation="end-other-sessions"),
}
GUARDED = {
    f"{method} {path}": (method, change)
    for (method, path), change in CHANGES.items()
    if isinstance(change, Change)
}


async def a_stranger(_: Household) -> Who:
    return Browser()


async def a_device(household: Household) -> Who:
    device = Device()
    assert (await household.site.sign_in(device, household.passkey)).status == 200
    return device


async def a_device_that_registered(household: Household) -> Who:
    """A device whose own passkey began another account."""
    device = Device()
    assert (await household.site.register(device, "hub"))[1].status == 201
    return device


async def a_browser(household: Household) -> Who:
    """Signed in at this moment, with the user's passkey."""
    browser = Browser()
    assert (await household.site.sign_in(browser, household.passkey)).status == 200
    return browser


async def an_app(household: Household) -> Who:
    app = Device(client_origin=APP)
    client = {"kind": "android"}
    assert (await household.site.sign_in(app, household.passkey, client=client)).status == 200
    return app


async def do(household: Household, who: Who, method: str, change: Change) -> Answer:
    path = change.path.format(credential=household.target("credential"), session=household.other_session)
    return await household.site.send(who, method, path, change.body)


async def account(household: Household) -> Any:
    """What there is to be changed. The owner's own session is in it, as one of several."""
    body = (await household.site.send(household.owner, "GET", "/me")).body
    return (
        body["user"],
        body["credentials"],
        household.other_session in [one["id"] for one in body["sessions"]],
    )


async def test_no_endpoint_that_changes_something_is_forgotten(household: Household) -> None:
    routes = {
        (route.method, route.resource.canonical)
        for route in household.site.app.router.routes()
        if route.resource is not None and route.method not in ("GET", "HEAD", "OPTIONS")
    }
    assert routes == set(CHANGES)


REFUSED: dict[str, tuple[Callable[[Household], Any], set[str]]] = {
    "nobody": (a_stranger, {"not-signed-in", "user-exists"}),
    "a device": (a_device, {"browsers-only"}),
    "a device of another account": (a_device_that_registered, {"browsers-only", "user-exists"}),
    "a browser that has just signed in": (a_browser, {"step-up-required"}),
    "an app that has just signed in": (an_app, {"step-up-required"}),
}


@pytest.mark.threat("T3")
@pytest.mark.threat("T14")
@pytest.mark.threat("T16")
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("endpoint", GUARDED)
async def test_a_session_alone_changes_nothing(household: Household, endpoint: str, kind: str) -> None:
    method, change = GUARDED[endpoint]
    make, slugs = REFUSED[kind]
    who, before = await make(household), await account(household)
    answer = await do(household, who, method, change)
    assert answer.slug in slugs
    if answer.slug == "step-up-required":
        assert (answer.status, answer.body["operation"]) == (401, change.operation)
        assert 'error="insufficient_user_authentication"' in answer.headers["WWW-Authenticate"]
    assert await account(household) == before


@pytest.mark.threat("T3")
@pytest.mark.parametrize("make", [a_browser, an_app], ids=["browser", "app"])
@pytest.mark.parametrize("endpoint", GUARDED)
async def test_a_step_up_made_for_a_change_lets_it_happen_once(
    household: Household, endpoint: str, make: Callable[[Household], Any]
) -> None:
    method, change = GUARDED[endpoint]
    site, who = household.site, await make(household)
    asked = change.asked(household)
    assert (await site.step_up(who, household.passkey, change.operation, **asked)).status == 200
    answer = await do(household, who, method, change)
    assert answer.status == (204 if change.operation == "delete-account" else 200), answer.body
    again = await do(household, who, method, change)
    assert again.slug == ("not-signed-in" if change.operation == "delete-account" else "step-up-required")


@pytest.mark.threat("T3")
@pytest.mark.parametrize(("endpoint", "other"), list(itertools.permutations(GUARDED, 2)))
async def test_a_step_up_is_for_one_operation(household: Household, endpoint: str, other: str) -> None:
    (method, change), (_, made_for) = GUARDED[endpoint], GUARDED[other]
    who = await a_browser(household)
    asked = made_for.asked(household)
    assert (await household.site.step_up(who, household.passkey, made_for.operation, **asked)).status == 200
    before = await account(household)
    assert (await do(household, who, method, change)).slug == "step-up-required"
    assert await account(household) == before


@pytest.mark.threat("T3")
@pytest.mark.parametrize(
    "endpoint", [name for name, (_, change) in GUARDED.items() if change.target or change.name]
)
async def test_a_step_up_is_for_one_target_and_one_name(household: Household, endpoint: str) -> None:
    method, change = GUARDED[endpoint]
    site, who = household.site, await a_browser(household)
    asked = change.asked(household)
    if "name" in asked:
        others = {**asked, "name": "another"}
    else:
        own = (await site.send(who, "GET", "/me")).body
        (here,) = [one["id"] for one in own["sessions"] if one["here"]]
        others = {"target": here if change.target == "session" else b64(household.passkey.credential_id)}
    assert (await site.step_up(who, household.passkey, change.operation, **others)).status == 200
    assert (await do(household, who, method, change)).slug == "step-up-required"


@pytest.mark.threat("T3")
async def test_a_device_steps_up_for_nothing(household: Household) -> None:
    device = await a_device(household)
    for step, body in (
        ("options", {"operation": "add-passkey"}),
        ("options", {"operation": "service", "name": "pay"}),
        ("result", {"ceremony": "x", "response": {}}),
    ):
        answer = await household.site.send(device, "POST", f"/webauthn/step-up/{step}", body)
        assert (answer.status, answer.slug) == (403, "browsers-only")


@pytest.mark.threat("T3")
async def test_a_device_that_is_signed_in_may_begin_a_new_account(household: Household) -> None:
    device = await a_device(household)
    passkey, answer = await household.site.register(device, "hub")
    assert (answer.status, answer.body["user"]["name"]) == (201, "hub")
    assert answer.body["user"]["handle"] == b64(passkey.user_handle)


@pytest.mark.threat("T3")
async def test_a_step_up_lasts_two_minutes(household: Household) -> None:
    site, who = household.site, household.owner
    for waited, slug in ((STEP_UP_SECONDS - 1, None), (STEP_UP_SECONDS, "step-up-required")):
        name = f"after {waited}"
        await site.step_up(who, household.passkey, "rename-user", name=name)
        site.clock.now += waited
        answer = await site.send(who, "PATCH", "/me", {"display_name": name})
        assert (answer.status == 200) if slug is None else (answer.slug == slug)
    ceremony, options = await site.begin(who, "step-up", operation="end-other-sessions")
    assert options["timeout"] == STEP_UP_SECONDS * 1000
    site.clock.now += STEP_UP_SECONDS
    response = get(household.passkey, options, WEB_ORIGIN)
    assert (await site.finish(who, "step-up", ceremony, response)).slug == "ceremony-gone"


@pytest.mark.threat("T3")
async def test_a_session_has_one_step_up_and_the_last_counts(household: Household) -> None:
    site, who = household.site, household.owner
    for name in ("Ada L.", "Ada B."):
        await site.step_up(who, household.passkey, "rename-user", name=name)
    assert (await site.send(who, "PATCH", "/me", {"display_name": "Ada L."})).slug == "step-up-required"
    assert (await site.send(who, "PATCH", "/me", {"display_name": "Ada B."})).status == 200


@pytest.mark.threat("T3")
async def test_a_step_up_does_not_help_another_session_of_the_user(household: Household) -> None:
    site, other = household.site, await a_browser(household)
    await site.step_up(household.owner, household.passkey, "rename-user", name="Eve")
    assert (await site.send(other, "PATCH", "/me", {"display_name": "Eve"})).slug == "step-up-required"


@pytest.mark.threat("T3")
async def test_a_passkey_is_added_in_the_session_that_asked_for_it(household: Household) -> None:
    site, other = household.site, await a_browser(household)
    await site.step_up(household.owner, household.passkey, "add-passkey")
    ceremony, options = await site.begin(household.owner, "registration", user_name="ada")
    _, response = create(options, WEB_ORIGIN)
    answer = await site.finish(other, "registration", ceremony, response)
    assert answer.slug == "verification-failed"


async def test_a_session_stays_what_it_is_when_it_adds_a_passkey(household: Household) -> None:
    site, owner = household.site, household.owner
    before = (await site.send(owner, "GET", "/me")).body["sessions"]
    cookie = owner.cookie
    await site.add_passkey(owner, household.passkey)
    assert (await site.send(owner, "GET", "/me")).body["sessions"] == before
    assert owner.cookie != cookie
    assert (await site.send(Browser(cookie=cookie), "GET", "/session")).slug == "not-signed-in"


async def test_what_is_somebody_elses_is_no_target(household: Household) -> None:
    site, eve = household.site, Browser()
    await site.register(eve, "eve")
    for operation in ("remove-passkey", "rename-passkey", "end-session"):
        target = household.target("session" if operation == "end-session" else "credential")
        body = {"operation": operation, "target": target}
        answer = await site.send(eve, "POST", "/webauthn/step-up/options", body)
        assert (answer.status, answer.slug) == (404, "not-found")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"operation": "own-everything"},
        {"operation": "remove-passkey"},
        {"operation": "remove-passkey", "target": "+"},
        {"operation": "add-passkey", "target": "AAAA"},
        {"operation": "add-passkey", "name": "x"},
        {"operation": "rename-user"},
        {"operation": "rename-user", "name": "a\nb"},
        {"operation": "service"},
        {"operation": "end-other-sessions", "more": 1},
    ],
    ids=str,
)
async def test_a_step_up_names_its_operation_whole(household: Household, body: Any) -> None:
    answer = await household.site.send(household.owner, "POST", "/webauthn/step-up/options", body)
    assert (answer.status, answer.slug) == (400, "invalid-request")


async def signed_in(household: Household, who: Who) -> SignedIn:
    """What `who` gives a service that mounts the relying party."""
    token = who.cookie if isinstance(who, Browser) else who.token
    found = await household.site.state.store.session(hash_token(token or ""), now=household.site.clock.now)
    return SignedIn(session=found[0], user=found[1])


@pytest.mark.threat("T3")
async def test_a_service_asks_for_a_passkey_for_operations_of_its_own(household: Household) -> None:
    site, owner, words = household.site, household.owner, "pay 5 EUR to Bert"
    with pytest.raises(StepUpRequired):
        await require_step_up(await signed_in(household, owner), site.app, words)
    await site.step_up(owner, household.passkey, "service", name=words)
    found = await signed_in(household, owner)
    with pytest.raises(StepUpRequired):
        await require_step_up(found, site.app, "pay 500 EUR to Eve")
    await require_step_up(found, site.app, words)
    with pytest.raises(StepUpRequired):
        await require_step_up(found, site.app, words)
    device = await a_device(household)
    with pytest.raises(BrowsersOnly):
        await require_step_up(await signed_in(household, device), site.app, words)


@pytest.mark.parametrize(
    ("words", "stepped_up_for"),
    [
        ("pay 5 EUR to Zoe\u0308", "pay 5 EUR to Zoe\u0308"),
        ("pay 5 EUR to Zoe\u0308", "pay 5 EUR to Zo\u00eb"),
        ("pay 5 EUR to Zo\u00eb", "pay 5 EUR to Zoe\u0308"),
        ("open gate \u212b", "open gate \u00c5"),
        ("w" * 64, "w" * 64),
    ],
    ids=ascii,
)
async def test_a_services_words_are_those_of_the_step_up_in_every_form(
    household: Household, words: str, stepped_up_for: str
) -> None:
    site, owner = household.site, household.owner
    answer = await site.step_up(owner, household.passkey, "service", name=stepped_up_for)
    assert answer.status == 200
    await require_step_up(await signed_in(household, owner), site.app, words)


@pytest.mark.parametrize("words", ["", "w" * 65, "pay\nEve", " pay", "pay \u202eEve"], ids=ascii)
async def test_words_that_no_step_up_can_be_for_are_refused_as_such(household: Household, words: str) -> None:
    found = await signed_in(household, household.owner)
    with pytest.raises(InvalidRequest, match="a name has"):
        await require_step_up(found, household.site.app, words)
