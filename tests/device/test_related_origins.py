"""Fetching related origins, from a real https server that behaves and misbehaves."""

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from certificates import Certificate, make_certificate

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.net.related_origins import fetch_related_origins
from headless_passkey.webauthn.origins import MAX_DOCUMENT_SIZE

RP_ID = "example.com"
DOCUMENT = {"origins": ["https://example.de"]}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Everywhere(AbstractResolver):
    """Every name is on this machine, and every port is this port."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=self._port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("rp"), names=(RP_ID,))


@contextlib.asynccontextmanager
async def rp_host(certificate: Certificate, handler: Handler) -> AsyncIterator[aiohttp.ClientSession]:
    """A session for which example.com is our own server."""
    app = web.Application()
    app.router.add_get("/.well-known/webauthn", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.server_context())
    await site.start()
    connector = aiohttp.TCPConnector(
        ssl=certificate.client_context(), resolver=Everywhere(runner.addresses[0][1])
    )
    try:
        async with aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        ) as http:
            yield http
    finally:
        await runner.cleanup()


async def test_what_the_host_of_the_rp_id_lists_is_read(certificate: Certificate) -> None:
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        return web.json_response(DOCUMENT)

    async with rp_host(certificate, answer) as http:
        related = await fetch_related_origins(http, RP_ID)
    assert related.rp_id == RP_ID
    assert related.allow("https://example.de")
    assert seen[0].host == RP_ID
    assert not {"Cookie", "Referer", "Authorization", "Origin", "DPoP"} & set(seen[0].headers)


async def redirect(_request: web.Request) -> web.Response:
    raise web.HTTPFound("https://example.com/.well-known/webauthn")


async def missing(_request: web.Request) -> web.Response:
    raise web.HTTPNotFound(content_type="application/json", text='{"origins": []}')


async def page(_request: web.Request) -> web.Response:
    return web.Response(text='{"origins": []}', content_type="text/html")


async def other(_request: web.Request) -> web.Response:
    return web.json_response([])


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        for _ in range(8):
            await response.write(b" " * (MAX_DOCUMENT_SIZE // 4))
    return response


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "99"})
    await response.prepare(request)
    assert request.transport is not None
    request.transport.close()
    return response


@pytest.mark.threat("T14")
@pytest.mark.parametrize("handler", [redirect, missing, page, other, endless, cut])
async def test_any_other_answer_relates_nothing(certificate: Certificate, handler: Handler) -> None:
    async with rp_host(certificate, handler) as http:
        with pytest.raises(RemoteProtocolError):
            await fetch_related_origins(http, RP_ID)


@pytest.mark.threat("T14")
async def test_a_host_with_another_ones_certificate_is_not_asked(
    certificate: Certificate, loopback_certificate: Certificate
) -> None:
    async with rp_host(certificate, other) as http:
        with pytest.raises(RemoteProtocolError, match="cannot be reached"):
            await fetch_related_origins(http, "example.org")


async def test_what_is_no_host_is_not_asked(certificate: Certificate) -> None:
    async with rp_host(certificate, other) as http:
        with pytest.raises(RemoteProtocolError):
            await fetch_related_origins(http, "example.com/path")
