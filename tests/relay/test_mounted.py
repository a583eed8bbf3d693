"""The relay mounted in hosts that are not made for it: other limits, middlewares, prefixes."""

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.web_middlewares import normalize_path_middleware

from companion_push.relay.app import RELAY, make_app
from companion_push.relay.config import RelayConfig
from companion_push.relay.messages import MAX_BODY
from headless_passkey.trust.ring import MAX_MEMBERS
from program_parts.base64url import base64url
from tests.relay.household import NO_LIMITS, Clock, Relay
from tests.relay.stores import place_of
from tests.trust.people import device

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def reads_first(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Such as one that logs bodies or checks a signature over them."""
    await request.read()
    return await handler(request)


@web.middleware
async def hides_failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Makes answers of its own from what is raised: the relay's are answers already."""
    try:
        return await handler(request)
    except web.HTTPException:
        return web.Response(status=418)


HOSTS: dict[str, Callable[[], web.Application]] = {
    "a host with its own strict limit": lambda: web.Application(client_max_size=1024),
    "a host without a limit": lambda: web.Application(client_max_size=0),
    "a host with a large limit": lambda: web.Application(client_max_size=1 << 30),
    "a host that reads bodies first": lambda: web.Application(
        client_max_size=1 << 30, middlewares=[reads_first]
    ),
    "a host that answers what is raised": lambda: web.Application(middlewares=[hides_failures]),
    "a host that mends paths": lambda: web.Application(
        middlewares=[normalize_path_middleware(append_slash=True, merge_slashes=True)]
    ),
}
PREFIXES = ["/push", "/a/b/c", "/v1"]


@contextlib.asynccontextmanager
async def mounted(host: web.Application, prefix: str, store: Path) -> AsyncIterator[Relay]:
    clock = Clock()
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}{prefix}"
    app = make_app(RelayConfig(public_url=url, store=place_of(store), quota=NO_LIMITS, clock=clock))
    host.add_subapp(prefix, app)
    runner = web.AppRunner(host, shutdown_timeout=1, handler_cancellation=True)
    try:
        await runner.setup()
        await web.SockSite(runner, listening).start()
        async with aiohttp.ClientSession() as session:
            yield Relay(app, url, session, store, clock)
    finally:
        await runner.cleanup()
        listening.close()


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> web.Application:
    return HOSTS[request.param]()


@pytest.mark.threat("T13")
async def test_the_relays_own_limit_holds_in_every_host(host: web.Application, tmp_path: Path) -> None:
    async with mounted(host, "/push", tmp_path / "s") as relay:
        home = await relay.household()
        (frame,) = home.devices
        # legal, and more than a strict host takes itself
        members = [device(f"frame {number}") for number in range(MAX_MEMBERS - 3)]
        people = [*home.companions, frame]
        ring = await home.append(*(caller.person for caller in people), *members)
        assert len(base64url(ring.document)) > 1024
        for body in (b" " * MAX_BODY + b"{", b" " * 10 * MAX_BODY):
            reply = await frame.call("PUT", "/v1/requests/" + "A" * 22, body)
            assert (reply.status, reply.problem, reply.body["limit"]) == (413, "payload-too-large", 98_304)
        # just as long as allowed: read to its end, and then refused for what it says
        reply = await frame.call("PUT", "/v1/requests/" + "A" * 22, b" " * (MAX_BODY - 2) + b"{}")
        assert (reply.status, reply.problem) == (400, "invalid-request")


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b" " * 4096


@pytest.mark.threat("T13")
async def test_a_body_without_a_length_and_without_an_end_is_refused_at_the_limit(tmp_path: Path) -> None:
    async with mounted(web.Application(client_max_size=0), "/push", tmp_path / "s") as relay:
        home = await relay.household()
        (frame,) = home.devices
        path = "/v1/requests/" + "A" * 22
        headers = {"DPoP": frame.proof("PUT", path)}
        with contextlib.suppress(aiohttp.ClientConnectionError):  # it may find the connection closed first
            async with relay.session.put(relay.url + path, headers=headers, data=endless()) as response:
                assert response.status == 413
        assert (await frame.get("/v1/ring")).status == 200


async def test_a_request_goes_its_way_in_every_host(host: web.Application, tmp_path: Path) -> None:
    async with mounted(host, "/push", tmp_path / "s") as relay:
        home = await relay.household()
        anna, bert = home.companions
        assert (await home.devices[0].submit(anna, bert)).status == 201
        (item,) = await anna.inbox()
        assert (await anna.act(home.devices[0], item["id"], "claimed")).status == 200
        assert (await bert.act(home.devices[0], item["id"], "claimed")).problem == "already-claimed"
        assert (await anna.get("/v1/nothing")).problem == "not-found"
        refused = await anna.call("DELETE", "/v1/inbox")
        assert (refused.status, refused.body["type"]) == (405, "about:blank")


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_a_proof_is_for_the_relays_address_under_any_prefix(prefix: str, tmp_path: Path) -> None:
    async with mounted(web.Application(), prefix, tmp_path / "s") as relay:
        home = await relay.household()
        assert await home.companions[0].inbox() == []


async def test_two_relays_in_one_host_share_nothing(tmp_path: Path) -> None:
    host = web.Application()
    other = make_app(RelayConfig(public_url="http://localhost/other", store=place_of(tmp_path / "other")))
    host.add_subapp("/other", other)
    async with mounted(host, "/push", tmp_path / "one") as relay:
        home = await relay.household()
        anna = home.companions[0]
        assert other[RELAY].held_requests is not relay.held_requests
        proof = anna.proof("GET", "/v1/inbox")
        url = relay.url.removesuffix("/push") + "/other/v1/inbox"
        async with relay.session.get(url, headers={"DPoP": proof}) as response:
            assert response.status == 401


@pytest.mark.parametrize(
    ("path", "prefix", "warns"),
    [("/push", "/push", False), ("/a/push", "/push", False), ("/b", "/a", True), ("", "/a", True)],
)
async def test_a_public_url_that_does_not_fit_where_it_is_mounted_is_told_in_the_log(
    path: str, prefix: str, *, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = web.Application()
    host.add_subapp(
        prefix,
        make_app(RelayConfig(public_url="https://host.example" + path, store=place_of(tmp_path / "s"))),
    )
    runner = web.AppRunner(host)
    await runner.setup()
    await runner.cleanup()
    assert ("ends otherwise" in caplog.text) is warns
