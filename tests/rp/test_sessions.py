"""Sessions over HTTP: whose they are, how long they last, and who cannot use them."""

import hashlib
from pathlib import Path

import pytest
from aiohttp import DummyCookieJar, web
from aiohttp.test_utils import TestClient, TestServer
from multidict import CIMultiDict

from program_parts.base64url import base64url
from relying_party.errors import StoreUnavailable
from relying_party.http.app import make_app
from tests.rp.authenticator_double import DeviceKey, unb64
from tests.rp.clients import (
    DEVICE_ORIGIN,
    WEB_ORIGIN,
    Answer,
    Browser,
    Clock,
    Device,
    Site,
    Who,
    make_config,
)


async def test_nobody_is_signed_in_to_begin_with(site: Site, who: Who) -> None:
    for method in ("GET", "DELETE"):
        answer = await site.send(who, method, "/session")
        assert (answer.status, answer.slug) == (401, "not-signed-in")
        assert answer.headers["WWW-Authenticate"].startswith("DPoP")


async def test_a_browser_gets_a_cookie_that_scripts_and_other_sites_cannot_use(site: Site) -> None:
    _, answer = await site.register(Browser(), "ada")
    (cookie,) = answer.headers.getall("Set-Cookie")
    assert cookie.startswith("__Host-session=")
    attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "secure", "samesite=lax", "path=/"} <= attributes
    assert not any(part.startswith("domain") for part in attributes)


async def test_a_device_gets_a_token_and_no_cookie(site: Site) -> None:
    _, answer = await site.register(Device(), "ada")
    assert len(unb64(answer.body["token"])) == 32
    assert "Set-Cookie" not in answer.headers


@pytest.mark.threat("T11")
async def test_only_the_hash_of_a_token_is_on_disk(site: Site) -> None:
    device, browser = Device(), Browser()
    await site.register(device, "ada")
    await site.register(browser, "bea")
    tokens = [device.token or "", browser.cookie or ""]
    files = b"".join(path.read_bytes() for path in site.file.parent.iterdir())
    for token in tokens:
        assert token.encode() not in files
        assert unb64(token) not in files
        assert hashlib.sha256(token.encode()).digest() in files


async def test_a_session_ends_when_its_time_is_over(site: Site, who: Who) -> None:
    _, answer = await site.register(who, "ada")
    site.clock.now = answer.body["expires_at"] - 1
    assert (await site.send(who, "GET", "/session")).status == 200
    site.clock.now += 1
    assert (await site.send(who, "GET", "/session")).slug == "not-signed-in"


async def test_signing_in_again_ends_the_session_before(site: Site, who: Who) -> None:
    passkey, _ = await site.register(who, "ada")
    before = Device(key=who.key, token=who.token) if isinstance(who, Device) else Browser(cookie=who.cookie)
    assert (await site.sign_in(who, passkey)).status == 200
    assert (await site.send(before, "GET", "/session")).slug == "not-signed-in"
    assert (await site.send(who, "GET", "/session")).status == 200


async def test_a_session_that_has_ended_is_no_obstacle_to_signing_in(site: Site, who: Who) -> None:
    passkey, answer = await site.register(who, "ada")
    site.clock.now = answer.body["expires_at"]
    assert (await site.sign_in(who, passkey)).status == 200
    assert (await site.send(who, "GET", "/session")).status == 200


async def test_two_devices_are_signed_in_side_by_side(site: Site) -> None:
    first, second = Device(), Device()
    passkey, _ = await site.register(first, "ada")
    assert (await site.sign_in(second, passkey)).status == 200
    for device in (first, second):
        assert (await site.send(device, "GET", "/session")).status == 200


async def test_a_token_is_nothing_without_its_key(site: Site) -> None:
    device = Device()
    await site.register(device, "ada")
    thief = Device(token=device.token)
    assert (await site.send(thief, "GET", "/session")).slug == "not-signed-in"
    assert (await site.send(thief, "DELETE", "/session")).slug == "not-signed-in"
    bearer = {"Authorization": f"Bearer {device.token}"}
    assert (await site.raw("GET", "/session", bearer)).slug == "proof-invalid"
    without_proof = {"Authorization": f"DPoP {device.token}"}
    assert (await site.raw("GET", "/session", without_proof)).slug == "proof-invalid"
    as_cookie = {"Cookie": f"__Host-session={device.token}"}
    assert (await site.raw("GET", "/session", as_cookie)).slug == "not-signed-in"
    assert (await site.send(device, "GET", "/session")).status == 200


async def test_a_token_needs_a_proof_that_names_it(site: Site) -> None:
    device = Device()
    await site.register(device, "ada")
    url = WEB_ORIGIN + "/session"
    for bound_to in (None, "another token"):
        headers = {
            "DPoP": device.key.proof("GET", url, site.clock.now, bound_to),
            "Authorization": f"DPoP {device.token}",
        }
        assert (await site.raw("GET", "/session", headers)).slug == "proof-invalid"
    headers = {
        "DPoP": device.key.proof("GET", url, site.clock.now, device.token, nonce=site.nonce),
        "Authorization": f"Bearer {device.token}",
    }
    assert (await site.raw("GET", "/session", headers)).slug == "not-signed-in"


async def test_a_cookie_is_nothing_to_a_device(site: Site) -> None:
    browser, device = Browser(), Device()
    await site.register(browser, "ada")
    device.token = browser.cookie
    assert (await site.send(device, "GET", "/session")).slug == "not-signed-in"
    headers = Device(nonce=site.nonce).headers("GET", "/session", site.clock.now)
    headers["Cookie"] = f"__Host-session={browser.cookie}"
    assert (await site.raw("GET", "/session", headers)).slug == "not-signed-in"


OPTIONS = "/webauthn/authentication/options"


async def _options(site: Site, headers: dict[str, str]) -> Answer:
    return await site.raw("POST", OPTIONS, headers, b"{}")


@pytest.mark.parametrize(
    "origin",
    [None, "null", "", "https://evil.test", "https://rp.example:8443", "http://rp.example", DEVICE_ORIGIN],
)
async def test_a_browser_comes_from_a_page_of_ours(site: Site, origin: str | None) -> None:
    answer = await _options(site, {} if origin is None else {"Origin": origin})
    assert (answer.status, answer.slug) == (400, "invalid-request")
    browser = Browser()
    await site.register(browser, "ada")
    headers = {"Cookie": f"__Host-session={browser.cookie}"} | ({} if origin is None else {"Origin": origin})
    assert (await site.raw("DELETE", "/session", headers)).slug == "invalid-request"
    assert (await site.send(browser, "GET", "/session")).status == 200


@pytest.mark.threat("T14")
async def test_a_page_cannot_pose_as_a_device(site: Site) -> None:
    headers = {"DPoP": DeviceKey().proof("POST", WEB_ORIGIN + OPTIONS, site.clock.now), "Origin": WEB_ORIGIN}
    assert (await _options(site, headers)).slug == "invalid-request"


async def test_a_proof_is_for_one_request(site: Site) -> None:
    key, now = DeviceKey(), site.clock.now
    proof = key.proof("POST", WEB_ORIGIN + OPTIONS, now, nonce=site.nonce)
    assert (await _options(site, {"DPoP": proof})).status == 200
    answer = await _options(site, {"DPoP": proof})
    assert (answer.status, answer.slug) == (401, "proof-invalid")
    for method, url in (("GET", WEB_ORIGIN + OPTIONS), ("POST", "https://evil.test" + OPTIONS)):
        answer = await _options(site, {"DPoP": key.proof(method, url, now)})
        assert answer.slug == "proof-invalid"


@pytest.mark.threat("T13")
async def test_a_proof_without_the_relying_partys_nonce_is_answered_with_it(site: Site) -> None:
    bare = DeviceKey().proof("POST", WEB_ORIGIN + OPTIONS, site.clock.now)
    answer = await _options(site, {"DPoP": bare})
    assert (answer.status, answer.slug) == (401, "use-dpop-nonce")
    assert answer.headers["WWW-Authenticate"] == 'DPoP algs="ES256", error="use_dpop_nonce"'
    assert answer.headers["DPoP-Nonce"] == site.nonce
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.threat("T13")
async def test_every_answer_to_a_proof_has_the_newest_nonce_and_no_other_has(site: Site) -> None:
    device = Device(nonce=site.nonce)
    for path in ("/session", "/me"):
        assert (await site.send(device, "GET", path)).headers["DPoP-Nonce"] == site.nonce
    await site.register(device, "ada")
    assert (await site.send(device, "DELETE", "/session")).headers["DPoP-Nonce"] == site.nonce
    assert "DPoP-Nonce" not in (await site.send(Browser(), "GET", "/session")).headers


@pytest.mark.threat("T13")
async def test_a_proof_made_ahead_is_refused_at_its_time_for_want_of_a_nonce(site: Site) -> None:
    ahead = DeviceKey().proof("POST", WEB_ORIGIN + OPTIONS, site.clock.now + 3600, nonce=site.nonce)
    site.clock.now += 3600
    assert (await _options(site, {"DPoP": ahead})).slug == "use-dpop-nonce"


@pytest.mark.threat("T13")
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("ahead", [0, 59], ids=["clock right", "clock ahead"])
async def test_no_proof_is_good_again_after_a_restart(tmp_path: Path, shared: bool, ahead: int) -> None:  # noqa: FBT001
    config, clock, key = make_config(tmp_path / "s", shared_store=shared), Clock(), DeviceKey()
    answers = []
    nonce = None
    for _ in range(2):
        app = make_app(config, clock=clock)
        async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
            site = Site(http=http, app=app, clock=clock, config=config)
            if nonce is None:
                bare = key.proof("POST", WEB_ORIGIN + OPTIONS, clock.now)
                nonce = (await _options(site, {"DPoP": bare})).headers["DPoP-Nonce"]
                used = key.proof("POST", WEB_ORIGIN + OPTIONS, clock.now + ahead, nonce=nonce)
            answers.append(await _options(site, {"DPoP": used}))
            assert (await site.send(Device(), "POST", OPTIONS, {})).status == 200
    assert answers[0].status == 200
    assert answers[1].slug == ("proof-invalid" if shared else "use-dpop-nonce")


@pytest.mark.threat("T13")
async def test_a_second_process_takes_no_proof_that_the_first_has_taken(tmp_path: Path) -> None:
    config, clock = make_config(tmp_path / "s", shared_store=True), Clock()
    apps = [make_app(config, clock=clock) for _ in range(2)]
    async with (
        TestClient(TestServer(apps[0]), cookie_jar=DummyCookieJar()) as first,
        TestClient(TestServer(apps[1]), cookie_jar=DummyCookieJar()) as second,
    ):
        one, two = (
            Site(http=http, app=app, clock=clock, config=config)
            for http, app in zip((first, second), apps, strict=True)
        )
        device = Device()
        assert (await one.send(device, "POST", OPTIONS, {})).status == 200
        headers = device.headers("POST", OPTIONS, clock.now)
        assert (await two.raw("POST", OPTIONS, headers, b"{}")).status == 200
        assert (await one.raw("POST", OPTIONS, headers, b"{}")).slug == "proof-invalid"


@pytest.mark.threat("T13")
@pytest.mark.parametrize("first", [False, True], ids=["alone", "shared"])
async def test_a_second_process_that_would_not_share_used_proofs_does_not_start(
    tmp_path: Path,
    first: bool,  # noqa: FBT001
) -> None:
    other = make_app(make_config(tmp_path / "s", shared_store=not first))
    async with TestClient(TestServer(make_app(make_config(tmp_path / "s", shared_store=first)))):
        with pytest.raises(StoreUnavailable, match="--shared-store"):
            await web.AppRunner(other).setup()
    async with TestClient(TestServer(make_app(make_config(tmp_path / "s", shared_store=not first)))):
        pass  # once the first has ended


async def test_the_address_in_a_proof_is_ours_whatever_host_was_asked_for(site: Site) -> None:
    headers = {
        "DPoP": DeviceKey().proof("POST", "https://evil.test" + OPTIONS, site.clock.now),
        "Host": "evil.test",
    }
    assert (await _options(site, headers)).slug == "proof-invalid"


async def test_two_proofs_are_one_too_many(site: Site) -> None:
    key = DeviceKey()
    headers = CIMultiDict(
        [("DPoP", key.proof("POST", WEB_ORIGIN + OPTIONS, site.clock.now)) for _ in range(2)]
        + [("Content-Type", "application/json")]
    )
    async with site.http.post(OPTIONS, data=b"{}", headers=headers) as response:
        assert response.status == 401


async def test_a_device_with_a_wrong_clock_is_told_the_time(site: Site) -> None:
    late = DeviceKey().proof("POST", WEB_ORIGIN + OPTIONS, site.clock.now - 61)
    answer = await _options(site, {"DPoP": late})
    assert (answer.status, answer.slug) == (401, "proof-clock")
    assert answer.body["now"] == int(site.clock.now)


def test_a_token_is_base64url_as_we_read_it() -> None:
    assert unb64(base64url(bytes(range(256)))) == bytes(range(256))
