"""The well-known documents say what verification does."""

from pathlib import Path

import pytest
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer

from relying_party.http.app import make_app
from tests.rp.clients import DEVICE_ORIGIN, WEB_ORIGIN, Browser, Clock, Site, make_config

RELATED = "https://rp.test"


async def test_an_origin_that_is_published_is_one_that_is_accepted(tmp_path: Path) -> None:
    config = make_config(tmp_path / "s", related_origins=(RELATED,))
    app = make_app(config, clock=Clock())
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        site = Site(http=http, app=app, clock=Clock(), config=config)
        answer = await site.raw("GET", "/.well-known/webauthn", {})
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
        assert answer.body == {"origins": [DEVICE_ORIGIN, WEB_ORIGIN, RELATED]}
        for number, origin in enumerate((WEB_ORIGIN, RELATED)):
            browser = Browser(origin=origin, client_origin=origin)
            assert (await site.register(browser, f"user {number}"))[1].status == 201


async def test_an_origin_that_is_not_published_is_not_accepted(site: Site) -> None:
    answer = await site.raw("GET", "/.well-known/webauthn", {})
    assert answer.body == {"origins": [DEVICE_ORIGIN, WEB_ORIGIN]}
    assert (await site.register(Browser(client_origin=RELATED), "ada"))[1].slug == "verification-failed"


@pytest.mark.parametrize("name", ["enroll", "manage"])
async def test_passkeys_are_made_and_managed_at_pages_of_ours(site: Site, name: str) -> None:
    answer = await site.raw("GET", "/.well-known/passkey-endpoints", {})
    assert answer.headers["Content-Type"] == "application/json"
    assert set(answer.body) == {"enroll", "manage"}
    assert answer.body[name].startswith(WEB_ORIGIN + "/")
    assert (await site.raw("GET", answer.body[name].removeprefix(WEB_ORIGIN), {})).status == 200
