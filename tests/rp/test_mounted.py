"""The relying party mounted in services that are not made for it: other limits, middlewares, prefixes."""

import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import DummyCookieJar, web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web_middlewares import normalize_path_middleware

from relying_party.errors import RequestRefused
from relying_party.http.app import make_app, who
from tests.rp.clients import WEB_ORIGIN, Browser, Clock, Device, Site, make_config

MAX_BODY = 65_536

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def reads_first(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Such as one that logs bodies or checks a signature over them."""
    await request.read()
    return await handler(request)


@web.middleware
async def hides_failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Makes answers of its own from what is raised: the relying party's are answers already."""
    try:
        return await handler(request)
    except web.HTTPException:
        return web.Response(status=418)


HOSTS: dict[str, Callable[[], web.Application]] = {
    "a service with its own strict limit": lambda: web.Application(client_max_size=64),
    "a service without a limit": lambda: web.Application(client_max_size=0),
    "a service with a large limit": lambda: web.Application(client_max_size=1 << 30),
    "a service that reads bodies first": lambda: web.Application(
        client_max_size=1 << 30, middlewares=[reads_first]
    ),
    "a service that answers what is raised": lambda: web.Application(middlewares=[hides_failures]),
    "a service that mends paths": lambda: web.Application(
        middlewares=[normalize_path_middleware(append_slash=True, merge_slashes=True)]
    ),
}


@contextlib.asynccontextmanager
async def mounted(
    host: web.Application, prefix: str, store: Path, *, path: str | None = None, with_pages: bool = False
) -> AsyncIterator[Site]:
    """path: of the public URL, where a proxy makes it into `prefix`."""
    public_url = WEB_ORIGIN + (prefix if path is None else path)
    clock, config = Clock(), make_config(store, public_url=public_url)
    app = make_app(config, with_pages=with_pages, clock=clock)
    if prefix:
        host.add_subapp(prefix, app)
    else:
        host = app
    async with TestClient(TestServer(host), cookie_jar=DummyCookieJar()) as http:
        yield Site(http=http, app=app, clock=clock, config=config, prefix=prefix)


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> web.Application:
    return HOSTS[request.param]()


@pytest.mark.threat("T12")
async def test_its_own_limit_holds_in_every_service(host: web.Application, tmp_path: Path) -> None:
    async with mounted(host, "/passkeys", tmp_path / "s") as site:
        path = "/passkeys/webauthn/registration/options"
        headers = {"Origin": WEB_ORIGIN}
        for body in (b" " * MAX_BODY + b"{", b" " * 15 * MAX_BODY):
            answer = await site.raw("POST", path, headers, body)
            assert (answer.status, answer.slug, answer.body["limit"]) == (413, "payload-too-large", 65_536)
        # just as long as allowed
        wanted = json.dumps({"user_name": "ada"}).encode()
        assert (await site.raw("POST", path, headers, wanted.rjust(MAX_BODY))).status == 200


async def test_both_kinds_of_clients_sign_in_in_every_service(host: web.Application, tmp_path: Path) -> None:
    async with mounted(host, "/passkeys", tmp_path / "s") as site:
        browser, device = Browser(), Device()
        passkey, answer = await site.register(browser, "ada")
        assert answer.status == 201
        assert (await site.sign_in(device, passkey)).status == 200
        assert (await site.send(device, "GET", "/passkeys/session")).body["user"]["name"] == "ada"
        answer = await site.raw("GET", "/passkeys/nothing", {})
        assert (answer.status, answer.slug) == (404, "not-found")
        answer = await site.raw("PUT", "/passkeys/session", {})
        assert (answer.status, answer.slug) == (405, "method-not-allowed")


# Prefixes: the path of the public URL, as clients know it, and the one that arrives


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("", ""),
        ("/passkeys", ""),
        ("/passkeys", "/passkeys"),
        ("/a/b", "/b"),
        ("/auth", "/internal/rp"),
        ("", "/x"),
    ],
)
async def test_a_proof_is_for_the_address_that_clients_know(path: str, prefix: str, tmp_path: Path) -> None:
    async with mounted(web.Application(), prefix, tmp_path / "s", path=path) as site:
        device, body = Device(nonce=site.nonce), b"{}"
        for known, status in ((path, 200), (path + "/other", 401), ("/passkeys/passkeys", 401)):
            headers = device.headers("POST", f"{known}/webauthn/authentication/options", site.clock.now)
            answer = await site.raw("POST", f"{prefix}/webauthn/authentication/options", headers, body)
            assert answer.status == status, (known, answer.body)


@pytest.mark.parametrize(
    ("path", "prefix", "known"),
    [
        ("/passkeys", "/passkeys", "/notes"),
        ("/api/passkeys", "/passkeys", "/api/notes"),  # a proxy has the whole service below /api
        ("/auth", "/internal", "/notes"),
    ],
)
async def test_a_handler_of_the_service_is_asked_at_the_address_that_clients_know(
    path: str, prefix: str, known: str, tmp_path: Path
) -> None:
    host = web.Application()

    async def notes(request: web.Request) -> web.Response:
        try:
            return web.Response(status=204 if await who(request, site.app) else 401)
        except RequestRefused:
            return web.Response(status=400)

    host.router.add_get("/notes", notes)
    async with mounted(host, prefix, tmp_path / "s", path=path) as site:
        for address, status in ((known, 401), ("/elsewhere", 400), (path + "/notes", 400)):  # 401: a stranger
            headers = Device(nonce=site.nonce).headers("GET", address, site.clock.now)
            assert (await site.raw("GET", "/notes", headers)).status == status, address


@pytest.mark.parametrize(
    ("path", "prefix", "warns"),
    [
        ("/passkeys", "/passkeys", False),
        ("/a/b", "/b", False),
        ("", "", False),
        ("/b", "/a", True),
        ("", "/a", True),
    ],
)
async def test_a_public_url_that_does_not_fit_where_it_is_mounted_is_told_in_the_log(
    path: str, prefix: str, *, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with mounted(web.Application(), prefix, tmp_path / "s", path=path):
        assert ("ends otherwise" in caplog.text) is warns


@pytest.mark.parametrize(
    ("path", "prefix"), [("", ""), ("/passkeys", "/passkeys"), ("/a/b", "/a/b"), ("/passkeys", "")]
)
async def test_all_that_pages_name_is_found_below_the_public_url(
    path: str, prefix: str, tmp_path: Path
) -> None:
    async with mounted(web.Application(), prefix, tmp_path / "s", path=path, with_pages=True) as site:
        for page, status in (("/", 200), ("/nowhere", 404)):
            answer = await site.raw("GET", prefix + page, {"Accept": "text/html"})
            assert answer.status == status
            named = set(re.findall(r'(?:href|src)="([^"#]*)"', answer.body))
            assert {f"{path}/static/passkeys.js", f"{path}/static/page.css", f"{path}/"} <= named
            for one in named:
                assert one.startswith(f"{path}/")
                arrives = prefix + one.removeprefix(path)
                assert (await site.raw("GET", arrives, {})).status == 200, one
