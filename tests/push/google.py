"""A stand-in for Google's token server and for FCM HTTP v1, over TLS: it checks what they check, and fails as it is told.

The signature of each assertion is verified here by RSA itself, not by the library that made it.
"""

import asyncio
import base64
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web
from certificates import Certificate
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

PROJECT = "passkeys-4711"
EMAIL = "push@passkeys-4711.iam.gserviceaccount.com"
KEY_ID = "0123456789abcdef0123456789abcdef01234567"

# seconds that channels wait: no machine is that slow, and a test lets them pass
PATIENCE = 10_000.0
PING = 600.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Clock:
    """Two clocks in a test's hands: Unix seconds, and seconds that only go forward."""

    now: float = 1_800_000_000.0
    ticks: float = 5000.0

    def unix(self) -> float:
        return self.now

    def steady(self) -> float:
        return self.ticks

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.ticks += seconds


@dataclass(frozen=True, kw_only=True)
class Message:
    """A request to FCM."""

    token: str  # the access token
    body: dict[str, Any]


@dataclass
class Google:
    """The servers, and what they were asked."""

    clock: Clock
    private: rsa.RSAPrivateKey
    url: str = ""
    phones: set[str] = field(default_factory=set)  # registration tokens that are alive
    granted: dict[str, float] = field(default_factory=dict)  # access tokens, and their ends in ticks
    token_requests: int = 0
    messages: list[Message] = field(default_factory=list)
    to_token_requests: list[Handler] = field(default_factory=list)  # how the next are answered instead
    to_messages: list[Handler] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # what no caller may do
    arrived: asyncio.Queue[str] = field(default_factory=asyncio.Queue)  # "token" or "message"
    released: asyncio.Event = field(default_factory=asyncio.Event)  # for those that are held
    open_token_requests: int = 0

    def account(self) -> dict[str, Any]:
        """The file of the service account, as Google's console gives it."""
        pem = self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": KEY_ID,
            "private_key": pem.decode(),
            "client_email": EMAIL,
            "client_id": "100000000000000000000",
            "auth_uri": f"{self.url}/auth",
            "token_uri": f"{self.url}/token",
            "auth_provider_x509_cert_url": f"{self.url}/certs",
            "universe_domain": "googleapis.com",
        }

    def revoke(self) -> None:
        """No access token that was given is good any more."""
        self.granted.clear()

    # The token's server

    async def _token(self, request: web.Request) -> web.StreamResponse:
        self.token_requests += 1
        self.open_token_requests += 1
        if self.open_token_requests > 1:
            self.faults.append("two token requests at the same time")
        self.arrived.put_nowait("token")
        try:
            if self.to_token_requests:
                return await self.to_token_requests.pop(0)(request)
            return await self.grant(request)
        finally:
            self.open_token_requests -= 1

    async def grant(self, request: web.Request) -> web.StreamResponse:
        why = self._assertion_fault(dict(parse_qsl((await request.read()).decode(), strict_parsing=True)))
        if request.content_type != "application/x-www-form-urlencoded":
            why = "the content type is not that of a form"
        if why is not None:
            self.faults.append(why)
            return web.json_response({"error": "invalid_grant", "error_description": why}, status=400)
        token = "ya29." + secrets.token_urlsafe(100)
        self.granted[token] = self.clock.steady() + 3600
        return web.json_response({"access_token": token, "expires_in": 3599, "token_type": "Bearer"})

    def _assertion_fault(self, form: dict[str, str]) -> str | None:
        if set(form) != {"grant_type", "assertion"}:
            return "other members in the form"
        if form["grant_type"] != "urn:ietf:params:oauth:grant-type:jwt-bearer":
            return "another grant type"
        header, claims, signature = form["assertion"].split(".")
        signed = f"{header}.{claims}".encode()
        self.private.public_key().verify(_bytes(signature), signed, padding.PKCS1v15(), hashes.SHA256())
        if json.loads(_bytes(header)) != {"alg": "RS256", "typ": "JWT", "kid": KEY_ID}:
            return "another header"
        said = json.loads(_bytes(claims))
        issued = said.get("iat")
        if not isinstance(issued, int) or abs(issued - self.clock.unix()) > 30:
            return "another time"
        expected = {
            "iss": EMAIL,
            "scope": "https://www.googleapis.com/auth/firebase.messaging",
            "aud": f"{self.url}/token",
            "iat": issued,
            "exp": issued + 3600,
        }
        return None if said == expected else "other claims"

    # FCM

    async def _send(self, request: web.Request) -> web.StreamResponse:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        body = await request.json()
        self.messages.append(Message(token=token, body=body))
        self.arrived.put_nowait("message")
        if self.to_messages:
            return await self.to_messages.pop(0)(request)
        if scheme != "Bearer" or self.granted.get(token, 0.0) <= self.clock.steady():
            return failure(401, "UNAUTHENTICATED")
        if request.match_info["project"] != PROJECT:
            return failure(403, "PERMISSION_DENIED")
        why = self._message_fault(request, body)
        if why is not None:
            self.faults.append(why)
            return failure(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT")
        if body.get("validate_only"):
            return web.json_response({"name": f"projects/{PROJECT}/messages/fake_message_id"})
        if body["message"]["token"] not in self.phones:
            return failure(404, "NOT_FOUND", "UNREGISTERED")
        return web.json_response({"name": f"projects/{PROJECT}/messages/0:{secrets.token_hex(8)}"})

    def _message_fault(self, request: web.Request, body: Any) -> str | None:
        if request.content_type != "application/json" or request.charset != "utf-8":
            return "not JSON in UTF-8"
        if request.headers.get("Cookie") or "Referer" in request.headers:
            return "more than FCM is to know"
        message = body["message"]
        targets = {"token", "topic", "condition"} & set(message)
        if len(targets) != 1:
            return "not one target"
        data = message["data"]
        if not all(isinstance(value, str) for value in data.values()):
            return "data that is no text"
        if any(name in ("from", "message_type") or name.startswith(("google", "gcm")) for name in data):
            return "a reserved name"
        if sum(len(name) + len(value) for name, value in data.items()) > (
            4096 if "token" in targets else 2048
        ):
            return "too big"
        if body.get("validate_only"):
            return None
        android = message["android"]
        if set(message) != {"token", "data", "android"} or set(android) != {
            "priority",
            "ttl",
            "collapse_key",
        }:
            return "other members"
        ttl = android["ttl"]
        if not (ttl.endswith("s") and ttl[:-1].isdigit() and int(ttl[:-1]) <= 28 * 86_400):
            return "a bad ttl"
        return None if android["priority"] == "HIGH" else "not of high priority"

    # How a test lets them fail

    async def hold(self, request: web.Request) -> web.StreamResponse:
        """Answer when the test has released it, or ended."""
        await self.released.wait()
        return await (self.grant(request) if request.path == "/token" else self._send(request))

    async def reset(self, request: web.Request) -> web.StreamResponse:
        """Break the connection off."""
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def garble(self, request: web.Request) -> web.StreamResponse:
        """Answer with what is no HTTP."""
        assert request.transport is not None
        request.transport.write(b"\x00\x01 this is no answer\r\n\r\n")
        request.transport.close()
        return web.Response()


def answers(status: int, body: Any, headers: dict[str, str] | None = None) -> Handler:
    """Make an answer. body: bytes, or what becomes JSON."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=status, body=data, content_type="application/json", headers=headers)

    return answer


def failure(
    status: int, word: str, code: str | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    """An error of FCM. word: its status; code: the errorCode of its details, if it has any."""
    details = [{"@type": "type.googleapis.com/google.rpc.BadRequest"}]
    if code is not None:
        details.append({"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code})
    error = {"code": status, "message": "No.", "status": word, "details": details}
    return web.json_response({"error": error}, status=status, headers=headers)


def fails(status: int, word: str, code: str | None = None, headers: dict[str, str] | None = None) -> Handler:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return failure(status, word, code, headers)

    return answer


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@contextlib.asynccontextmanager
async def serving_google(
    certificate: Certificate, private: rsa.RSAPrivateKey, clock: Clock
) -> AsyncIterator[Google]:
    google = Google(clock=clock, private=private)
    app = web.Application()
    app.router.add_post("/token", google._token)
    app.router.add_post("/v1/projects/{project}/messages:send", google._send)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.server_context())
        await site.start()
        google.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        yield google
    finally:
        google.released.set()
        await runner.cleanup()


def write_account(path: Path, account: dict[str, Any], mode: int = 0o600) -> Path:
    path.touch(mode=mode)
    path.chmod(mode)
    path.write_text(json.dumps(account), encoding="utf-8")
    return path
