"""A device's tokens: refreshed by its key alone, once each, and over when a spent one comes back."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer

from relying_party.core.sessions import LATE_SECONDS, Lifetimes
from relying_party.http import app
from relying_party.http.app import REFRESHES, make_app
from tests.rp.authenticator_double import b64
from tests.rp.clients import Answer, Browser, Clock, Device, Site, Who, make_config

PATH = "/session/refresh"
HOUR = 3600


async def _refresh(site: Site, device: Who, refresh_token: Any) -> Answer:
    """With the token the device has got: it may have ended."""
    return await site.send(device, "POST", PATH, {"refresh_token": refresh_token})


async def _signed_in(site: Site) -> tuple[Device, str]:
    device = Device()
    _, answer = await site.register(device, "ada")
    return device, answer.body["refresh_token"]


async def test_a_refresh_gives_new_tokens_for_the_same_session(site: Site) -> None:
    device, first = await _signed_in(site)
    old = Device(device.key, device.token)
    site.clock.now += HOUR
    answer = await _refresh(site, device, first)
    assert answer.status == 200
    assert answer.body["refresh_token"] != first
    assert answer.body["expires_at"] == int(site.clock.now) + 12 * HOUR
    assert answer.body["ends_at"] == answer.body["auth_time"] + 30 * 24 * HOUR
    assert answer.body["auth_time"] == int(site.clock.now) - HOUR
    assert answer.body["user"]["name"] == "ada"
    assert "signals" in answer.body
    assert (await site.send(device, "GET", "/session")).status == 200
    assert (await site.send(old, "GET", "/session")).slug == "not-signed-in"


async def test_a_token_that_has_ended_is_refreshed_until_the_session_ends(site: Site) -> None:
    device, token = await _signed_in(site)
    start = site.clock.now
    while True:
        site.clock.now += 12 * HOUR
        assert (await site.send(device, "GET", "/session")).slug == "not-signed-in"
        answer = await _refresh(site, device, token)
        if answer.status != 200:
            break
        token = answer.body["refresh_token"]
        assert (await site.send(device, "GET", "/session")).status == 200
    assert answer.slug == "not-signed-in"
    assert site.clock.now == start + 30 * 24 * HOUR


@pytest.mark.threat("T13")
async def test_a_refresh_token_is_nothing_without_its_key(site: Site) -> None:
    device, token = await _signed_in(site)
    for thief in (Device(), Browser()):
        answer = await _refresh(site, thief, token)
        assert (answer.status, answer.slug) == (401, "not-signed-in")
    assert (await site.send(device, "GET", "/session")).status == 200
    assert (await _refresh(site, device, token)).status == 200


@pytest.mark.threat("T5")
async def test_a_spent_token_that_comes_back_ends_the_session(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    device, first = await _signed_in(site)
    latest = (await _refresh(site, device, first)).body["refresh_token"]
    assert (await site.send(device, "GET", "/session")).status == 200  # the answer has arrived
    device.token, kept = None, device.token
    site.clock.now += LATE_SECONDS + 1  # before, it may be a late copy of the device's own request
    answer = await _refresh(site, device, first)
    assert (answer.status, answer.slug) == (401, "refresh-token-reused")
    assert "a spent refresh token came back" in caplog.text
    assert (await _refresh(site, device, latest)).slug == "not-signed-in"
    device.token = kept
    assert (await site.send(device, "GET", "/session")).slug == "not-signed-in"


@pytest.mark.threat("T5")
async def test_any_spent_token_ends_the_session_however_old(site: Site) -> None:
    device, first = await _signed_in(site)
    second = (await _refresh(site, device, first)).body["refresh_token"]
    third = (await _refresh(site, device, second)).body["refresh_token"]
    assert (await _refresh(site, device, first)).slug == "refresh-token-reused"
    device.token = None
    assert (await _refresh(site, device, third)).slug == "not-signed-in"


async def test_a_late_copy_of_a_refresh_that_was_sent_again_ends_nothing(site: Site) -> None:
    device, first = await _signed_in(site)
    # given up by the device, still on its way
    late = Device(device.key, nonce=site.nonce).headers("POST", PATH, site.clock.now)
    latest = (await _refresh(site, device, first)).body["refresh_token"]
    assert (await site.send(device, "GET", "/session")).status == 200
    site.clock.now += LATE_SECONDS
    answer = await site.raw("POST", PATH, late, json.dumps({"refresh_token": first}).encode())
    assert (answer.status, answer.slug) == (409, "refresh-token-spent")
    assert answer.body["retry_after"] == int(answer.headers["Retry-After"]) == LATE_SECONDS
    assert "token" not in answer.body
    assert (await site.send(device, "GET", "/session")).status == 200
    assert (await _refresh(site, device, latest)).status == 200
    assert site.state.metrics.registry.get_sample_value("relying_party_refresh_late_total") == 1


@pytest.mark.threat("T5")
async def test_within_that_minute_a_spent_token_gets_nothing_and_after_it_ends_the_session(
    site: Site,
) -> None:
    device, first = await _signed_in(site)
    await _refresh(site, device, first)
    assert (await site.send(device, "GET", "/session")).status == 200
    thief = Device(device.key)
    for _ in range(3):
        answer = await _refresh(site, thief, first)
        assert (answer.status, answer.slug, thief.token) == (409, "refresh-token-spent", None)
    site.clock.now += LATE_SECONDS + 1
    assert (await _refresh(site, thief, first)).slug == "refresh-token-reused"
    assert (await site.send(device, "GET", "/session")).slug == "not-signed-in"


@pytest.mark.threat("T5")
async def test_a_token_that_was_handed_out_and_never_presented_has_no_late_copies(site: Site) -> None:
    """Two have had the answers to the same token: whoever comes second is noticed at once."""
    device, first = await _signed_in(site)
    lost = (await _refresh(site, Device(device.key), first)).body["refresh_token"]
    await _refresh(site, device, first)
    assert (await site.send(device, "GET", "/session")).status == 200
    assert (await _refresh(site, Device(device.key), lost)).slug == "refresh-token-reused"


async def test_a_lost_answer_is_asked_for_again_even_days_later(site: Site) -> None:
    device, first = await _signed_in(site)
    await _refresh(site, Device(device.key), first)
    site.clock.now += 5 * 24 * HOUR
    assert (await _refresh(site, device, first)).status == 200
    assert (await site.send(device, "GET", "/session")).status == 200


async def test_a_lost_answer_is_asked_for_again(site: Site) -> None:
    device, first = await _signed_in(site)
    lost = [(await _refresh(site, Device(device.key), first)).body for _ in range(3)]
    answer = await _refresh(site, device, first)
    assert answer.status == 200
    assert answer.body["refresh_token"] not in [one["refresh_token"] for one in lost]
    assert (await site.send(device, "GET", "/session")).status == 200
    late = Device(device.key)
    assert (await _refresh(site, late, lost[0]["refresh_token"])).slug == "refresh-token-reused"
    assert (await site.send(device, "GET", "/session")).slug == "not-signed-in"


async def test_refreshing_twice_at_once_leaves_one_session_that_works(site: Site) -> None:
    device, first = await _signed_in(site)
    answers = await asyncio.gather(*(_refresh(site, Device(device.key), first) for _ in range(2)))
    assert [answer.status for answer in answers] == [200, 200]
    tokens = [Device(device.key, answer.body["token"]) for answer in answers]
    works = [(await site.send(one, "GET", "/session")).status for one in tokens]
    assert sorted(works) == [200, 401]


async def test_a_browser_has_nothing_to_refresh(site: Site) -> None:
    browser = Browser()
    _, answer = await site.register(browser, "ada")
    assert answer.body["refresh_token"] is None
    assert (await _refresh(site, browser, browser.cookie)).slug == "not-signed-in"
    assert (await site.send(browser, "GET", "/session")).status == 200


async def test_signing_in_again_ends_the_refresh_token_too(site: Site) -> None:
    device = Device()
    passkey, answer = await site.register(device, "ada")
    await site.sign_in(device, passkey)
    assert (await _refresh(site, device, answer.body["refresh_token"])).slug == "not-signed-in"
    assert (await site.send(device, "GET", "/session")).status == 200


@pytest.mark.parametrize(
    "body", [{}, {"refresh_token": ""}, {"refresh_token": "x" * 129}, {"refresh_token": 5}]
)
async def test_a_malformed_refresh_is_refused(site: Site, body: Any) -> None:
    device, _ = await _signed_in(site)
    assert (await site.send(device, "POST", PATH, body)).slug == "invalid-request"


async def test_an_invented_refresh_token_is_nothing(site: Site) -> None:
    device, _ = await _signed_in(site)
    assert (await _refresh(site, device, b64(bytes(32)))).slug == "not-signed-in"
    assert (await site.send(device, "GET", "/session")).status == 200


@pytest.mark.threat("T11")
async def test_no_refresh_token_is_on_disk(site: Site) -> None:
    device, first = await _signed_in(site)
    second = (await _refresh(site, device, first)).body["refresh_token"]
    files = b"".join(path.read_bytes() for path in site.file.parent.iterdir())
    for token in (first, second):
        assert token.encode() not in files


@pytest.mark.threat("T13")
async def test_a_session_is_refreshed_so_often_in_an_hour_and_others_go_on(site: Site) -> None:
    device, token = await _signed_in(site)
    for _ in range(REFRESHES):
        token = (await _refresh(site, device, token)).body["refresh_token"]
    refused = await _refresh(site, device, token)
    assert (refused.status, refused.slug) == (429, "rate-limited")
    assert refused.headers["RateLimit-Policy"] == f'"refreshes-of-session";q={REFRESHES};w=3600'
    other = Device()
    _, joined = await site.register(other, "eve")
    assert (await _refresh(site, other, joined.body["refresh_token"])).status == 200
    assert (await site.send(device, "GET", "/session")).status == 200  # what it has goes on
    site.clock.now += int(refused.headers["Retry-After"])
    assert (await _refresh(site, device, token)).status == 200
    assert (await _refresh(site, device, "spent")).slug == "not-signed-in"


@pytest.mark.threat("T5")
async def test_a_spent_token_that_comes_back_ends_a_session_that_has_been_refreshed_too_often(
    site: Site,
) -> None:
    device, first = await _signed_in(site)
    token = first
    for _ in range(REFRESHES):
        token = (await _refresh(site, device, token)).body["refresh_token"]
    assert (await _refresh(site, device, first)).slug == "refresh-token-reused"
    assert (await _refresh(site, device, token)).slug == "not-signed-in"


def test_tokens_that_end_soon_may_be_refreshed_more_often() -> None:
    assert [app._refreshes(Lifetimes(token=seconds)) for seconds in (12 * HOUR, 600, 240, 20)] == [
        REFRESHES,
        REFRESHES,
        REFRESHES,
        720,
    ]


async def test_lifetimes_are_the_operators_choice(tmp_path: Path) -> None:
    clock, lifetimes = Clock(), Lifetimes(cookie=10, token=20, session=30)
    config = make_config(tmp_path / "rp.sqlite", lifetimes=lifetimes)
    app = make_app(config, clock=clock)
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        site = Site(http=http, app=app, clock=clock, config=config)
        browser, device = Browser(), Device()
        passkey, of_browser = await site.register(browser, "ada")
        of_device = await site.sign_in(device, passkey)
        start = int(clock.now)
        assert (of_browser.body["expires_at"], of_browser.body["ends_at"]) == (start + 10, start + 10)
        assert (of_device.body["expires_at"], of_device.body["ends_at"]) == (start + 20, start + 30)
        assert "Max-Age=10;" in of_browser.headers["Set-Cookie"]
        clock.now += 20
        answer = await _refresh(site, device, of_device.body["refresh_token"])
        assert answer.body["expires_at"] == answer.body["ends_at"] == start + 30
