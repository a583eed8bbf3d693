"""The page: who is registered and who is signed in, to whom it may be shown, and with nothing inline."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer

from relying_party.app import make_app
from tests.rp.authenticator_double import UP, UV, Faults
from tests.rp.clients import Browser, Clock, Device, Site, make_config


class _Inline(HTMLParser):
    """Collects what a strict content security policy would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        self.found += [name for name in names if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in names):
            self.found.append(tag)


async def _page(site: Site, who: Browser | None = None) -> str:
    answer = await site.raw("GET", "/", {} if who is None else who.headers("GET", "/", site.clock.now))
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    parser = _Inline()
    parser.feed(answer.body)
    assert parser.found == []
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", str(answer.body)))


@pytest.fixture
def everyone(site: Site) -> Site:
    site.state.config = make_config(site.config.store, page_shows="everyone")
    return site


async def test_it_shows_who_is_registered_and_who_is_signed_in(everyone: Site) -> None:
    assert "Nobody yet" in await _page(everyone)
    device = Device()
    await everyone.register(device, "ada")
    text = await _page(everyone)
    for piece in ("ada", "signed in", "on a device since 2027-01-15", "00112233-4455-6677-8899-aabbccddeeff"):
        assert piece in text
    for piece in ("never", "yes", "hybrid, internal", "Nobody is signed in in this browser"):
        assert piece in text
    await everyone.send(device, "DELETE", "/session")
    assert "signed out" in await _page(everyone)


async def test_it_shows_whether_a_passkey_is_synced_and_when_it_was_used(everyone: Site) -> None:
    device, flags = Device(), UP | UV
    passkey, _ = await everyone.register(device, "ada", Faults(flags=flags, transports=None))
    text = await _page(everyone)
    assert "never no unknown" in text
    everyone.clock.now += 86400
    await everyone.sign_in(device, passkey, Faults(flags=flags, counter=5))
    await everyone.sign_in(device, passkey, Faults(flags=flags, counter=5))
    text = await _page(everyone)
    assert "2027-01-16" in text
    assert "did not count up: 1" in text


async def test_it_greets_who_is_signed_in_here(everyone: Site) -> None:
    browser = Browser()
    await everyone.register(browser, "ada")
    text = await _page(everyone, browser)
    assert "Signed in as ada" in text
    assert "in a browser (here)" in text
    assert "Add a passkey" in text


async def test_strangers_see_only_that_there_is_a_relying_party(site: Site) -> None:
    browser = Browser()
    await site.register(browser, "ada")
    await site.register(Device(), "mallory")
    assert "ada" not in await _page(site)
    own = await _page(site, browser)
    assert "ada" in own
    assert "mallory" not in own


@pytest.mark.threat("T12")
async def test_a_name_is_text_and_not_markup(everyone: Site) -> None:
    browser, name = Browser(), "<script>alert('&amp;')</script>\" onload=x"
    await everyone.register(browser, name)
    answer = await everyone.raw("GET", "/", browser.headers("GET", "/", everyone.clock.now))
    assert "<script>" not in answer.body
    assert answer.body.count("&lt;script&gt;alert(&#x27;&amp;amp;&#x27;)&lt;/script&gt;&quot; onload=x") >= 3


async def test_on_localhost_without_tls_the_cookie_has_no_prefix(tmp_path: Path) -> None:
    origin = "http://localhost:8080"
    config = make_config(
        tmp_path / "s", rp_id="localhost", web_origins=(origin,), device_origins=(), reached_at=(origin,)
    )
    app = make_app(config)
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        site = Site(http=http, app=app, clock=Clock(), config=config)
        _, answer = await site.register(Browser(origin=origin, client_origin=origin), "ada")
        assert list(answer.cookies) == ["session"]
        assert "Secure" not in answer.headers["Set-Cookie"]
        assert "Strict-Transport-Security" not in answer.headers
