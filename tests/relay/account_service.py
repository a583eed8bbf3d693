"""A vendor's account service, which takes webhooks: it verifies them by code of its own, and answers as it is told."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from certificates import Certificate

from companion_push.serving.webhook import Webhook

PATIENCE = 60.0  # seconds, a safety net
RELEASED = web.AppKey("released", asyncio.Event)  # at the end of the test
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


@dataclass(frozen=True)
class Told:
    """One call."""

    id: str
    timestamp: int
    content: dict[str, Any]
    body: bytes
    path: str


@dataclass
class AccountService:
    """The server, and what it was told."""

    secret: str = field(default_factory=new_secret)
    url: str = ""
    port: int = 0
    answers: list[Handler] = field(default_factory=list)  # of the next calls; then 204
    told: list[Told] = field(default_factory=list)  # what it has taken
    calls: asyncio.Queue[Told] = field(default_factory=asyncio.Queue)  # every one, as it comes
    wrong: list[str] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def webhook(self, **changes: Any) -> Webhook:
        return Webhook(**({"url": self.url, "secrets": (self.secret,)} | changes))

    async def next(self) -> Told:
        async with asyncio.timeout(PATIENCE):
            return await self.calls.get()

    async def types(self, count: int) -> list[str]:
        """The types of the next calls."""
        return [(await self.next()).content["type"] for _ in range(count)]

    async def receive(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        told = Told(
            id=request.headers["webhook-id"],
            timestamp=int(request.headers["webhook-timestamp"]),
            content=json.loads(body),
            body=body,
            path=request.raw_path,
        )
        self._check(request, body)
        handler = self.answers.pop(0) if self.answers else status(204)
        self.calls.put_nowait(told)
        response = await handler(request)
        if 200 <= response.status < 300:
            self.told.append(told)
        return response

    def _check(self, request: web.Request, body: bytes) -> None:
        """As the specification says it: HMAC-SHA256 over "id.timestamp.body", key and result in base64."""
        key = base64.b64decode(self.secret.removeprefix("whsec_"))
        head = request.headers["webhook-id"] + "." + request.headers["webhook-timestamp"] + "."
        expected = base64.b64encode(hmac.new(key, head.encode() + body, hashlib.sha256).digest()).decode()
        if f"v1,{expected}" not in request.headers["webhook-signature"].split(" "):
            self.wrong.append("the signature")
        if request.method != "POST" or request.headers.getall("Content-Type") != ["application/json"]:
            self.wrong.append("the method, or the type of the body")
        if "Authorization" in request.headers or "Cookie" in request.headers:
            self.wrong.append("credentials")


def silent(service: AccountService) -> Handler:
    """No answer until the test is over."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        await service.released.wait()
        return web.Response(status=500)

    return answer


def status(code: int, headers: Mapping[str, str] | None = None) -> Handler:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=code, headers=headers)

    return answer


@contextlib.asynccontextmanager
async def account_service(
    certificate: Certificate | None = None, *, port: int = 0, secret: str | None = None
) -> AsyncIterator[AccountService]:
    """Serve on loopback, with TLS where there is a certificate."""
    service = AccountService() if secret is None else AccountService(secret=secret)
    app = web.Application()
    app[RELEASED] = service.released
    app.router.add_route("*", "/{path:.*}", service.receive)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", port))
    tls = None if certificate is None else certificate.server_context()
    await web.SockSite(runner, listening, ssl_context=tls).start()
    scheme = "http" if certificate is None else "https"
    service.port = listening.getsockname()[1]
    service.url = f"{scheme}://127.0.0.1:{service.port}/hooks?tenant=4711"
    try:
        yield service
        assert service.wrong == []
    finally:
        service.released.set()
        await runner.cleanup()
