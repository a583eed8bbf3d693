"""The relying party mounted in services that are not made for it: other limits, middlewares, prefixes."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import DummyCookieJar, web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web_middlewares import normalize_path_middleware

from relying_party.http.app import make_app
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
async def mounted(host: web.Application, prefix: str, store: Path) -> AsyncIterator[Site]:
    clock, config = Clock(), make_config(store, mounted_at=prefix)
    app = make_app(config, with_pages=False, clock=clock)
    host.add_subapp(prefix, app)
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
