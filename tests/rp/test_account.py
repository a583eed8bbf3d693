"""A user's own account: what it shows, what may be changed, by whom, and how lately they used a passkey."""

import pytest

from tests.rp.authenticator_double import UP, UV, Faults, b64, get
from tests.rp.clients import DEVICE_ORIGIN, WEB_ORIGIN, Browser, Device, Site, Who


async def test_an_account_shows_its_user_passkeys_and_sessions(site: Site) -> None:
    browser, device = Browser(), Device()
    faults = Faults(client_outputs={"credProps": {"rk": True}})
    passkey, _ = await site.register(browser, "ada", faults)
    ceremony, options = await site.begin(device, "authentication", client={"label": "hub"})
    response = get(passkey, options, DEVICE_ORIGIN, Faults(counter=5))
    await site.finish(device, "authentication", ceremony, response)
    answer = await site.send(browser, "GET", "/me")
    assert answer.status == 200
    now, handle, name = int(site.clock.now), b64(passkey.user_handle), b64(passkey.credential_id)
    assert answer.body["user"] == {"name": "ada", "display_name": "ada", "handle": handle}
    assert answer.body["credentials"] == [
        {
            "id": name,
            "label": None,
            "aaguid": "00112233-4455-6677-8899-aabbccddeeff",
            "algorithm": -7,
            "created_at": now,
            "last_used_at": now,
            "backup_eligible": True,
            "backed_up": True,
            "transports": ["hybrid", "internal"],
            "sign_count": 5,
            "counter_anomalies": 0,
            "discoverable": True,
            "prf": None,
        }
    ]
    listed = {one["client_kind"]: one for one in answer.body["sessions"]}
    assert (listed["web"]["here"], listed["device"]["here"]) == (True, False)
    assert (listed["web"]["label"], listed["device"]["label"]) == (None, "hub")
    assert answer.body["signals"] == {
        "allAcceptedCredentials": {
            "rpId": "rp.example",
            "userId": handle,
            "allAcceptedCredentialIds": [name],
        },
        "currentUserDetails": {"rpId": "rp.example", "userId": handle, "name": "ada", "displayName": "ada"},
    }


async def test_every_new_session_comes_with_the_signals_of_its_account(site: Site) -> None:
    browser = Browser()
    first, registered = await site.register(browser, "ada")
    second = await site.add_passkey(browser, first)
    signed_in = await site.sign_in(browser, second)
    ids = [
        sorted(answer.body["signals"]["allAcceptedCredentials"]["allAcceptedCredentialIds"])
        for answer in (registered, signed_in)
    ]
    assert ids == [[b64(first.credential_id)], sorted([b64(first.credential_id), b64(second.credential_id)])]


async def test_a_user_and_a_passkey_are_renamed(site: Site) -> None:
    browser = Browser()
    passkey, _ = await site.register(browser, "ada")
    await site.step_up(browser, passkey, "rename-user", name="Ada L.")
    answer = await site.send(browser, "PATCH", "/me", {"display_name": "Ada L."})
    assert answer.body["user"]["display_name"] == "Ada L."
    assert answer.body["signals"]["currentUserDetails"]["displayName"] == "Ada L."
    target = b64(passkey.credential_id)
    path = f"/me/credentials/{target}"
    for label in ("my phone", None):
        await site.step_up(browser, passkey, "rename-passkey", target=target, name=label)
        answer = await site.send(browser, "PATCH", path, {"label": label})
        assert answer.body["credentials"][0]["label"] == label
    for body in ({}, {"label": ""}, {"label": "a\nb"}, {"label": "x" * 65}, {"label": "a", "more": 1}):
        assert (await site.send(browser, "PATCH", path, body)).slug == "invalid-request"


async def test_a_removed_passkey_signs_nobody_in_and_its_sessions_are_over(site: Site) -> None:
    browser, device = Browser(), Device()
    lost, _ = await site.register(browser, "ada")
    assert (await site.sign_in(device, lost)).status == 200
    kept = await site.add_passkey(browser, lost)
    answer = await site.remove_passkey(browser, kept, lost)
    assert [one["id"] for one in answer.body["credentials"]] == [b64(kept.credential_id)]
    accepted = answer.body["signals"]["allAcceptedCredentials"]["allAcceptedCredentialIds"]
    assert accepted == [b64(kept.credential_id)]
    assert (await site.send(device, "GET", "/session")).slug == "not-signed-in"
    refused = await site.sign_in(Device(), lost)
    assert refused.slug == "verification-failed"
    assert refused.body["signals"]["unknownCredential"]["credentialId"] == b64(lost.credential_id)
    assert (await site.send(browser, "GET", "/session")).status == 200


async def test_who_removes_the_passkey_they_came_with_stays(site: Site) -> None:
    browser = Browser()
    first, _ = await site.register(browser, "ada")
    second = await site.add_passkey(browser, first)
    assert (await site.sign_in(browser, second)).status == 200
    assert (await site.remove_passkey(browser, first, first)).status == 200
    assert (await site.send(browser, "GET", "/me")).status == 200


async def test_the_only_passkey_stays(site: Site) -> None:
    browser = Browser()
    passkey, _ = await site.register(browser, "ada")
    answer = await site.remove_passkey(browser, passkey, passkey)
    assert (answer.status, answer.slug) == (409, "last-credential")
    assert (await site.sign_in(browser, passkey)).status == 200


async def test_a_device_is_signed_out_from_the_account_page(site: Site) -> None:
    browser, device = Browser(), Device()
    passkey, _ = await site.register(browser, "ada")
    tokens = (await site.sign_in(device, passkey)).body
    sessions = (await site.send(browser, "GET", "/me")).body["sessions"]
    (theirs,) = [one["id"] for one in sessions if one["client_kind"] == "device"]
    await site.step_up(browser, passkey, "end-session", target=theirs)
    answer = await site.send(browser, "DELETE", f"/me/sessions/{theirs}")
    assert [one["client_kind"] for one in answer.body["sessions"]] == ["web"]
    assert (await site.send(device, "GET", "/session")).slug == "not-signed-in"
    device.token = None
    refresh = {"refresh_token": tokens["refresh_token"]}
    assert (await site.send(device, "POST", "/session/refresh", refresh)).slug == "not-signed-in"
    step_up = {"operation": "end-session", "target": theirs}
    assert (await site.send(browser, "POST", "/webauthn/step-up/options", step_up)).slug == "not-found"


async def test_ones_own_session_ends_with_its_cookie(site: Site) -> None:
    browser = Browser()
    await site.register(browser, "ada")
    (own,) = (await site.send(browser, "GET", "/me")).body["sessions"]
    answer = await site.send(browser, "DELETE", f"/me/sessions/{own['id']}")
    assert (answer.status, answer.cookies["__Host-session"]) == (204, "")


async def test_all_other_sessions_end_at_once(site: Site) -> None:
    browser = Browser()
    others: list[Who] = [Device(), Browser()]
    passkey, _ = await site.register(browser, "ada")
    for other in others:
        await site.sign_in(other, passkey)
    stranger = Browser()
    await site.register(stranger, "eve")
    await site.step_up(browser, passkey, "end-other-sessions")
    answer = await site.send(browser, "DELETE", "/me/sessions")
    assert [one["here"] for one in answer.body["sessions"]] == [True]
    for other in others:
        assert (await site.send(other, "GET", "/session")).slug == "not-signed-in"
    assert (await site.send(stranger, "GET", "/session")).status == 200


async def test_what_is_somebody_elses_is_not_there(site: Site) -> None:
    ada, eve = Browser(), Browser()
    passkey, _ = await site.register(ada, "ada")
    eves, _ = await site.register(eve, "eve")
    await site.add_passkey(eve, eves, "eve")
    (session,) = (await site.send(ada, "GET", "/me")).body["sessions"]
    credential = f"/me/credentials/{b64(passkey.credential_id)}"
    for method, path, body, slug in (
        ("PATCH", credential, {"label": "mine"}, "step-up-required"),
        ("DELETE", credential, None, "step-up-required"),
        ("DELETE", f"/me/sessions/{session['id']}", None, "step-up-required"),
        ("DELETE", "/me/sessions/%21", None, "not-found"),
    ):
        assert (await site.send(eve, method, path, body)).slug == slug
    (theirs,) = (await site.send(ada, "GET", "/me")).body["credentials"]
    assert theirs["label"] is None


CHANGES = [
    ("PATCH", "/me", b'{"display_name": "eve"}'),
    ("PATCH", "/me/credentials/AAAA", b'{"label": "eve"}'),
    ("DELETE", "/me/credentials/AAAA", None),
    ("DELETE", "/me/sessions/AAAA", None),
    ("DELETE", "/me/sessions", None),
    ("POST", "/webauthn/step-up/options", b"{}"),
]


@pytest.mark.threat("T14")
@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
@pytest.mark.parametrize("origin", [None, "null", "https://evil.test", DEVICE_ORIGIN])
async def test_another_site_changes_nothing_with_the_visitors_cookie(
    site: Site, method: str, path: str, body: bytes | None, origin: str | None
) -> None:
    browser = Browser()
    await site.register(browser, "ada")
    headers = {"Cookie": f"__Host-session={browser.cookie}"} | ({} if origin is None else {"Origin": origin})
    answer = await site.raw(method, path, headers, body)
    assert (answer.status, answer.slug) == (400, "invalid-request")


@pytest.mark.parametrize(("method", "path", "body"), [("GET", "/me", None), *CHANGES])
async def test_a_stranger_has_no_account(site: Site, method: str, path: str, body: bytes | None) -> None:
    for headers in (
        Browser().headers(method, path, 0),
        Device(nonce=site.nonce).headers(method, path, site.clock.now),
    ):
        assert (await site.raw(method, path, headers, body)).slug == "not-signed-in"


@pytest.mark.threat("T14")
async def test_a_device_does_not_manage_its_users_account(site: Site) -> None:
    device = Device()
    await site.register(device, "ada")
    for method, path, body in (("GET", "/me", None), ("DELETE", "/me/sessions", None), ("PATCH", "/me", {})):
        answer = await site.send(device, method, path, body)
        assert (answer.status, answer.slug) == (403, "browsers-only")


async def test_a_step_up_renews_the_session_it_is_made_in(site: Site) -> None:
    browser = Browser()
    passkey, before = await site.register(browser, "ada")
    cookie = browser.cookie
    site.clock.now += 1000
    answer = await site.step_up(browser, passkey, "end-other-sessions")
    assert (answer.status, answer.body["auth_time"]) == (200, int(site.clock.now))
    assert answer.body["ends_at"] == before.body["ends_at"] + 1000
    assert browser.cookie != cookie
    assert (await site.send(Browser(cookie=cookie), "GET", "/session")).slug == "not-signed-in"


@pytest.mark.threat("T14")
async def test_nobody_elses_passkey_steps_a_session_up(site: Site) -> None:
    ada, eve = Browser(), Browser()
    await site.register(ada, "ada")
    eves, _ = await site.register(eve, "eve")
    ceremony, options = await site.begin(ada, "step-up", operation="add-passkey")
    assert b64(eves.credential_id) not in [item["id"] for item in options["allowCredentials"]]
    answer = await site.finish(ada, "step-up", ceremony, get(eves, options, WEB_ORIGIN))
    assert answer.slug == "verification-failed"


@pytest.mark.threat("T14")
async def test_a_step_up_ends_in_the_session_it_began_in(site: Site) -> None:
    first, second = Browser(), Browser()
    passkey, _ = await site.register(first, "ada")
    await site.sign_in(second, passkey)
    ceremony, options = await site.begin(first, "step-up", operation="add-passkey")
    answer = await site.finish(second, "step-up", ceremony, get(passkey, options, WEB_ORIGIN))
    assert answer.slug == "verification-failed"


@pytest.mark.threat("T14")
async def test_a_step_up_is_no_sign_in_and_a_sign_in_no_step_up(site: Site) -> None:
    browser = Browser()
    passkey, _ = await site.register(browser, "ada")
    for begun, ended in (("step-up", "authentication"), ("authentication", "step-up")):
        operation = {"operation": "add-passkey"} if begun == "step-up" else {}
        ceremony, options = await site.begin(browser, begun, **operation)
        answer = await site.finish(browser, ended, ceremony, get(passkey, options, WEB_ORIGIN))
        assert answer.slug == "verification-failed"


async def test_a_step_up_is_verified_like_a_sign_in(site: Site) -> None:
    browser = Browser()
    passkey, _ = await site.register(browser, "ada", Faults(flags=UP | UV))
    for faults in (Faults(flags=UP), Faults(signature=b"\0"), Faults(origin=DEVICE_ORIGIN)):
        assert (await site.step_up(browser, passkey, "add-passkey", faults)).slug == "verification-failed"
    assert (await site.send(browser, "GET", "/session")).body["auth_time"] == int(site.clock.now)
    assert (await site.step_up(browser, passkey, "add-passkey", Faults(flags=UP | UV))).status == 200


async def test_a_passkey_that_went_meanwhile_steps_nothing_up(site: Site) -> None:
    browser = Browser()
    first, _ = await site.register(browser, "ada")
    second = await site.add_passkey(browser, first)
    ceremony, options = await site.begin(browser, "step-up", operation="add-passkey")
    assert (await site.remove_passkey(browser, second, first)).status == 200
    answer = await site.finish(browser, "step-up", ceremony, get(first, options, WEB_ORIGIN))
    assert answer.slug == "verification-failed"
