"""The relying party mounted in a host's service: examples/rp_backend.py, and docs/how-to/relying-party.md."""

import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_bytes
from typing import Any

import pytest
import rp_backend
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer

from relying_party.core.callers import Caller, ClientKind
from relying_party.core.ceremonies import Ceremonies, RelyingParty
from relying_party.core.challenges import Challenges
from relying_party.core.credentials import User
from relying_party.core.messages import RegistrationResponse, parse_registration_result
from relying_party.http.app import make_app
from relying_party.store.sqlite import SqliteStore
from tests.rp.authenticator_double import b64, create, get
from tests.rp.clients import WEB_ORIGIN, Browser, Clock, Device, Site, make_config


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Site]:
    service = rp_backend.make_service(WEB_ORIGIN, tmp_path / "s", rp_id="rp.example")
    async with TestClient(TestServer(service), cookie_jar=DummyCookieJar()) as http:
        passkeys = service[rp_backend.PASSKEYS]
        config = make_config(tmp_path / "s")
        yield Site(http=http, app=passkeys, clock=Clock(time.time()), config=config, prefix=rp_backend.PREFIX)


async def test_a_browser_and_a_device_are_known_to_the_host(host: Site) -> None:
    browser, device = Browser(), Device(client_origin=WEB_ORIGIN)
    passkey, answer = await host.register(browser, "ada")
    assert answer.status == 201
    assert (await host.sign_in(device, passkey)).status == 200
    assert (await host.send(browser, "POST", "/notes", "from the browser")).status == 204
    assert (await host.send(device, "POST", "/notes", "from the device")).status == 204
    for who in (browser, device):
        assert (await host.send(who, "GET", "/notes")).body == ['"from the browser"', '"from the device"']


async def test_devices_that_know_the_host_alone_are_told_where_passkeys_are_mounted(host: Site) -> None:
    answer = await host.raw("GET", "/.well-known/headless-passkey", {})
    assert (answer.status, answer.body) == (200, {"relying_party": f"{WEB_ORIGIN}/passkeys"})
    assert (await host.raw("GET", "/passkeys/session", {})).slug == "not-signed-in"


async def test_a_stranger_is_not(host: Site) -> None:
    for who in (Browser(), Device()):
        for method in ("GET", "POST"):
            answer = await host.send(who, method, "/notes", None if method == "GET" else "x")
            assert (answer.status, answer.slug) == (401, "not-signed-in")


@pytest.mark.threat("T14")
async def test_another_site_writes_nothing_at_the_host(host: Site) -> None:
    browser = Browser()
    await host.register(browser, "ada")
    for origin in ({}, {"Origin": "https://evil.test"}):
        headers = {"Cookie": f"__Host-session={browser.cookie}", **origin}
        assert (await host.raw("POST", "/notes", headers, b"x")).slug == "invalid-request"
    assert (await host.send(browser, "GET", "/notes")).body == []


async def test_a_proof_for_one_address_of_the_host_opens_no_other(host: Site) -> None:
    device = Device(client_origin=WEB_ORIGIN)
    await host.register(device, "ada")
    elsewhere = device.headers("GET", "/passkeys/session", host.clock.now)
    assert (await host.raw("GET", "/notes", elsewhere)).slug == "proof-invalid"


async def test_the_mounted_application_keeps_its_bounds_and_its_answers(host: Site) -> None:
    path = "/passkeys/webauthn/authentication/options"
    headers = Browser().headers("POST", path, 0)
    assert (await host.raw("POST", path, headers, b" " * 65537)).slug == "payload-too-large"
    assert (await host.raw("GET", "/passkeys/nowhere", {})).slug == "not-found"
    assert (await host.raw("GET", "/passkeys/", {})).slug == "not-found"
    assert (
        "frame-ancestors 'none'"
        in (await host.raw("GET", "/passkeys/livez", {})).headers["Content-Security-Policy"]
    )
    assert (await host.raw("GET", "/.well-known/webauthn", {})).body == {"origins": [WEB_ORIGIN]}


async def test_accounts_are_managed_under_the_prefix(host: Site) -> None:
    browser = Browser()
    passkey, _ = await host.register(browser, "ada")
    target = b64(passkey.credential_id)
    path = f"/passkeys/me/credentials/{target}"
    await host.step_up(browser, passkey, "rename-passkey", target=target, name="phone")
    assert (await host.send(browser, "PATCH", path, {"label": "phone"})).body["credentials"][0][
        "label"
    ] == "phone"


async def test_another_store_takes_the_place_of_the_file(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    app = make_app(make_config(tmp_path / "unused"), open_store=lambda: SqliteStore(elsewhere), clock=Clock())
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        site = Site(http=http, app=app, clock=Clock(), config=make_config(elsewhere))
        assert (await site.register(Browser(), "ada"))[1].status == 201
    assert elsewhere.exists()
    assert not (tmp_path / "unused").exists()


async def test_two_processes_with_one_place_for_ceremonies_finish_each_others(tmp_path: Path) -> None:
    shared, config = Challenges(), make_config(tmp_path / "s", shared_store=True)
    apps = [make_app(config, challenges=shared, clock=Clock()) for _ in range(2)]
    async with (
        TestClient(TestServer(apps[0]), cookie_jar=DummyCookieJar()) as first,
        TestClient(TestServer(apps[1]), cookie_jar=DummyCookieJar()) as second,
    ):
        one, two = (
            Site(http=http, app=app, clock=Clock(), config=config)
            for http, app in zip((first, second), apps, strict=True)
        )
        device = Device()
        ceremony, options = await one.begin(device, "registration", user_name="ada")
        passkey, response = create(options, device.client_origin)
        assert (await two.finish(device, "registration", ceremony, response)).status == 201
        ceremony, options = await two.begin(device, "authentication")
        response = get(passkey, options, device.client_origin)
        assert (await one.finish(device, "authentication", ceremony, response)).status == 200
        assert (await two.finish(device, "authentication", ceremony, response)).slug == "ceremony-gone"


def test_the_page_shows_what_the_example_does() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs/how-to/relying-party.md").read_text()
    example = (root / "examples/rp_backend.py").read_text()
    for name in ("make_app(config, with_pages=False)", "well_known_routes(config)", "await who(request, "):
        assert name in page
        assert name in example
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    for name in re.findall(r"\b(begin_\w+|complete_\w+)\(", code):
        assert hasattr(Ceremonies, name)


class Names(dict[str, Any]):
    """The names of a page's code, in which a response comes when it is asked for, to what was begun."""

    def __missing__(self, name: str) -> RegistrationResponse:
        if name != "response":
            raise KeyError(name)
        _, response = create(self["begun"].public_key, "https://example.com")
        _, parsed = parse_registration_result(json.dumps({"ceremony": "", "response": response}).encode())
        return parsed


def test_the_pages_ceremonies_run_as_they_are_written() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/relying-party.md").read_text()
    (code,) = re.findall(r"```python\n(ceremonies = .*?)```", page, re.DOTALL)
    names = Names(
        Ceremonies=Ceremonies,
        RelyingParty=RelyingParty,
        ClientKind=ClientKind,
        caller=Caller(kind=ClientKind.WEB),
        user=User(handle=bytes(32), name="ada", display_name="Ada"),
        time=time,
        token_bytes=token_bytes,
    )
    exec(code, {}, names)  # noqa: S102  our own page
    assert names["done"].credential.user_handle == bytes(32)
    assert names["done"].session_id is None
