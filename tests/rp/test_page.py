"""The page: who is registered and who is signed in, to whom it may be shown, and with nothing inline."""

import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from uuid import UUID

import pytest
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer

from relying_party.core.callers import ClientKind
from relying_party.core.credentials import Credential, Registered, User
from relying_party.core.sessions import MAX_SECONDS, Lifetimes, Session, hash_token
from relying_party.errors import StoreUnavailable
from relying_party.http import app
from relying_party.http.app import make_app
from relying_party.http.limits import RateLimit
from relying_party.http.page import provider, render
from tests.rp.authenticator_double import BS, SYNCED, UP, UV, Faults, unb64
from tests.rp.clients import WEB_ORIGIN, Browser, Clock, Device, Site, make_config


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
    for piece in ("Sign in with a passkey", "ada", "signed in", "on a device since 2027-01-15", "Passkey"):
        assert piece in text
    await everyone.send(device, "DELETE", "/session")
    assert "signed out" in await _page(everyone)


async def test_who_registered_before_all_that_are_shown_sees_the_own_account(
    everyone: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "MAX_USERS_SHOWN", 1)
    browser = Browser()
    await everyone.register(browser, "ada")
    everyone.clock.now += 1
    await everyone.register(Device(), "bert")
    text = await _page(everyone, browser)
    assert "Signed in as ada" in text
    assert "Sign in with a passkey" not in text


async def test_the_account_shows_passkeys_and_how_they_were_used(site: Site) -> None:
    browser = Browser()
    passkey, _ = await site.register(browser, "ada")
    text = await _page(site, browser)
    for piece in (
        "synced",
        "Created 2027-01-15 08:00 UTC",
        "Last used never",
        "Works from a phone nearby, on the device that has it",
    ):
        assert piece in text
    assert "00112233-4455-6677-8899-aabbccddeeff" not in text
    site.clock.now += 3600
    await site.sign_in(browser, passkey, Faults(counter=5))
    await site.sign_in(browser, passkey, Faults(flags=SYNCED & ~BS, counter=5))
    text = await _page(site, browser)
    for piece in (
        "not synced yet",
        "Last used 2027-01-15 09:00 UTC",
        "May have been copied: its counter stood still once",
    ):
        assert piece in text
    await site.sign_in(browser, passkey, Faults(counter=5))
    assert "its counter stood still 2 times" in await _page(site, browser)


async def test_a_passkey_on_one_device_says_so_and_may_keep_its_transports_to_itself(site: Site) -> None:
    browser = Browser()
    await site.register(browser, "ada", Faults(flags=UP | UV, transports=None))
    text = await _page(site, browser)
    assert "Passkey on one device" in text
    assert "Works" not in text


async def test_a_passkey_has_the_name_its_user_gave_it_and_who_keeps_it(site: Site) -> None:
    browser = Browser()
    passkey, answer = await site.register(browser, "ada")
    name = answer.body["credential_id"]
    await site.step_up(browser, passkey, "rename-passkey", target=name, name="Phone")
    await site.send(browser, "PATCH", f"/me/credentials/{name}", {"label": "Phone"})
    assert "Phone synced" in await _page(site, browser)
    (credential,) = await site.state.store.credentials_of(
        unb64(answer.body["user"]["handle"]), now=site.clock.now
    )
    known = replace(credential, aaguid=UUID("fbfc3007-154e-4ecc-8c0b-6e020557d7bd").bytes)
    assert "Kept by" in _account_of(site, known)
    assert "Kept by" not in _account_of(site, replace(known, label=None))


async def test_a_passkey_that_needs_a_name_first_says_so(site: Site) -> None:
    _, answer = await site.register(Browser(), "ada")
    (credential,) = await site.state.store.credentials_of(
        unb64(answer.body["user"]["handle"]), now=site.clock.now
    )
    for discoverable, told in ((None, False), (True, False), (False, True)):
        text = _account_of(site, replace(credential, discoverable=discoverable))
        assert ("only where you are signed in already" in text) is told


async def test_only_a_passkey_that_is_not_the_only_one_can_be_removed(site: Site) -> None:
    _, answer = await site.register(Browser(), "ada")
    (credential,) = await site.state.store.credentials_of(
        unb64(answer.body["user"]["handle"]), now=site.clock.now
    )
    assert "Remove" not in _account_of(site, credential)
    assert _account_of(site, credential, credential).count(">Remove<") == 2


async def test_sessions_are_named_by_their_label_or_their_kind(site: Site) -> None:
    browser, device, app = Browser(), Device(), Device()
    passkey, _ = await site.register(browser, "ada")
    await site.sign_in(device, passkey, client={"label": "<b>Coffee machine</b>"})
    await site.sign_in(app, passkey)
    text = await _page(site, browser)
    for piece in ("&lt;b&gt;Coffee machine&lt;/b&gt;", "Signed in on a device", "This browser here"):
        assert piece in text
    assert "On a device Since" in text


async def test_the_end_of_the_longest_session_is_shown(site: Site) -> None:
    longest = Lifetimes(cookie=MAX_SECONDS, session=MAX_SECONDS)
    site.state.config = make_config(site.config.store, lifetimes=longest)
    browser, device = Browser(), Device()
    passkey, _ = await site.register(browser, "ada")
    await site.sign_in(device, passkey)
    assert (await _page(site, browser)).count("Until 2126-12-22 08:00 UTC") == 2


async def test_a_session_that_began_with_a_longer_lifetime_is_shown_with_the_last_date_there_is(
    site: Site,
) -> None:
    browser = Browser()
    await site.register(browser, "ada")
    assert browser.cookie
    now, was = site.clock.now, hash_token(browser.cookie)
    found = await site.state.store.session(was, now=now)
    assert found is not None
    assert await site.state.store.replace_session(replace(found[0], ends_at=10**12), was=was)
    assert "Until 9999-12-31 23:59 UTC" in await _page(site, browser)


def _account_of(site: Site, *credentials: Credential) -> str:
    """The account of a user with these passkeys, as HTML."""
    user = User(handle=bytes(32), name="ada", display_name="Ada")
    session = Session(
        session_id=bytes(16),
        token_hash=bytes(32),
        user_handle=user.handle,
        credential_id=bytes(16),
        client_kind=ClientKind.WEB,
        key_thumbprint=None,
        created_at=0,
        auth_time=0,
        expires_at=1,
        ends_at=1,
    )
    own = Registered(user=user, credentials=credentials, sessions=(session,))
    return render(site.config, own, current=session)


@pytest.mark.parametrize(
    ("aaguid", "transports", "name"),
    [
        ("fbfc3007-154e-4ecc-8c0b-6e020557d7bd", ("hybrid", "internal"), "Apple Passwords"),
        ("f314e1c7-a943-4e95-be5a-b739b2b90776", ("hybrid",), "Software phone (for demos)"),
        ("00000000-0000-0000-0000-000000000000", ("internal",), "Passkey"),
        ("00000000-0000-0000-0000-000000000000", (), "Passkey"),
        ("00112233-4455-6677-8899-aabbccddeeff", ("nfc", "usb"), "Security key"),
        ("00112233-4455-6677-8899-aabbccddeeff", ("hybrid", "usb"), "Passkey"),
    ],
)
async def test_a_passkey_is_named_by_who_made_it(
    site: Site, aaguid: str, transports: tuple[str, ...], name: str
) -> None:
    _, answer = await site.register(Browser(), "ada")
    (credential,) = await site.state.store.credentials_of(
        unb64(answer.body["user"]["handle"]), now=site.clock.now
    )
    made = replace(credential, aaguid=UUID(aaguid).bytes, transports=transports)
    assert provider(made) == name


def test_the_providers_table_is_well_formed() -> None:
    text = resources.files("relying_party.http").joinpath("pages", "providers.toml").read_text("utf-8")
    names = tomllib.loads(text)["names"]
    assert list(names) == sorted(names)
    for aaguid, name in names.items():
        assert str(UUID(aaguid)) == aaguid
        assert name.strip() == name != ""


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


HTML = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "status", "title"),
    [
        ("/nowhere", 404, "There is no page here"),
        ("/webauthn/registration/options", 405, "There is no page here"),
        ("/session", 401, "You are not signed in"),
        ("/me", 401, "You are not signed in"),
    ],
)
async def test_a_browser_gets_a_page_for_a_problem_and_a_program_the_problem(
    site: Site, method: str, path: str, status: int, title: str
) -> None:
    page = await site.raw(method, path, HTML)
    assert (page.status, page.headers["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert page.headers["Vary"] == "Accept"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    if method == "GET":
        assert f'<h1 id="problem">{title}</h1>' in page.body
        assert "urn:" not in page.body
    for accept in ("*/*", "application/json", "application/problem+json, text/html;q=0.1"):
        answer = await site.raw(method, path, {"Accept": accept})
        assert (answer.status, answer.headers["Vary"]) == (status, "Accept")
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert (await site.raw("POST", path, HTML)).headers["Content-Type"] == "application/problem+json"


async def test_a_site_in_trouble_says_when_to_come_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unavailable(*_: object, **__: object) -> None:
        raise StoreUnavailable("locked")

    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    cookie = {**HTML, "Cookie": "__Host-session=x"}
    monkeypatch.setattr(site.state.store, "session", unavailable)
    page = await site.raw("GET", "/", cookie)
    assert (page.status, page.headers["Retry-After"]) == (503, "5")
    assert "It cannot look anything up. Please try again in 5 seconds." in page.body
    monkeypatch.setattr(site.state.store, "session", broken)
    page = await site.raw("GET", "/", cookie)
    assert page.status == 500
    assert "Something went wrong" in page.body
    assert "Please try again in a while" in page.body
    monkeypatch.setattr(site.state, "rate_limit", RateLimit(name="some", most=1))
    await site.raw("GET", "/session", {"DPoP": "x"})
    page = await site.raw("GET", "/session", {**HTML, "DPoP": "x"})
    assert page.status == 429
    assert f"Please try again in {page.headers['Retry-After']} second" in page.body


async def test_what_a_browser_cannot_be_shown_has_a_page_too(site: Site) -> None:
    page = await site.raw("GET", "/session", {**HTML, "Authorization": "DPoP x", "Origin": WEB_ORIGIN})
    assert page.status == 400
    assert "This page cannot be shown" in page.body


async def test_a_service_that_has_pages_of_its_own_gets_problems(tmp_path: Path) -> None:
    app = make_app(make_config(tmp_path / "s"), with_pages=False)
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        site = Site(http=http, app=app, clock=Clock(), config=make_config(tmp_path / "s"))
        answer = await site.raw("GET", "/session", HTML)
        assert (answer.status, answer.slug) == (401, "not-signed-in")


async def test_the_page_knows_where_it_belongs(site: Site) -> None:
    site.state.config = make_config(
        site.config.store,
        web_origins=("https://www.rp.example", WEB_ORIGIN),
        related_origins=("https://rp.test",),
    )
    answer = await site.raw("GET", "/", {})
    assert 'data-origins="https://www.rp.example https://rp.example https://rp.test"' in answer.body


@pytest.mark.parametrize("transport", ["internal", "hybrid", "usb", "nfc", "ble", "smart-card"])
async def test_transports_are_shown_in_peoples_words(site: Site, transport: str) -> None:
    _, answer = await site.register(Browser(), "ada", Faults(transports=[transport, "teleport"]))
    (credential,) = await site.state.store.credentials_of(
        unb64(answer.body["user"]["handle"]), now=site.clock.now
    )
    text = re.sub(r"<[^>]+>", " ", _account_of(site, credential))
    assert "Works" in text
    assert not re.search(rf"\b({transport}|teleport)\b", text)


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
        tmp_path / "s", rp_id="localhost", web_origins=(origin,), device_origins=(), public_url=origin
    )
    app = make_app(config)
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        site = Site(http=http, app=app, clock=Clock(), config=config)
        _, answer = await site.register(Browser(origin=origin, client_origin=origin), "ada")
        assert list(answer.cookies) == ["session"]
        assert "Secure" not in answer.headers["Set-Cookie"]
        assert "Strict-Transport-Security" not in answer.headers
