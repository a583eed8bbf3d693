"""A Web Push service for tests, over TLS: it takes nothing that RFC 8030, 8291 and 8292 do not allow, and decrypts it.

Keys, tokens and content coding are written here a second time, from the RFCs and without the module under test;
tests/interop/test_web_push.py compares both with Node.js's web-push.
"""

import asyncio
import hashlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web
from aiohttp.test_utils import TestServer
from certificates import Certificate
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from companion_push.push.channel import WebPush
from headless_passkey.text.base64url import from_base64url
from program_parts.base64url import base64url

HEADERS: Final = {
    *("Host", "TTL", "Urgency", "Topic", "Authorization", "Content-Encoding", "Content-Type"),
    *("Content-Length", "Accept", "Accept-Encoding"),
}


class Subscription:
    """What a user agent has made: an endpoint, a key pair and a secret."""

    def __init__(self, endpoint: str, *, private: bytes | None = None, auth: bytes | None = None) -> None:
        number = int.from_bytes(private or b"", "big")
        self.key = ec.derive_private_key(number, ec.SECP256R1()) if private else _new_key()
        self.auth = auth or secrets.token_bytes(16)
        self.endpoint = endpoint

    @property
    def address(self) -> WebPush:
        return WebPush(endpoint=self.endpoint, p256dh=point(self.key.public_key()), auth=self.auth)

    def decrypt(self, body: bytes) -> bytes:
        """Decrypt one record of aes128gcm (RFC 8188 §2), with the key of RFC 8291 §3.4."""
        salt, size, length = body[:16], int.from_bytes(body[16:20], "big"), body[20]
        sender, record = body[21 : 21 + length], body[21 + length :]
        assert length == 65
        assert 17 < len(record) <= size
        shared = self.key.exchange(
            ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), sender)
        )
        info = b"WebPush: info\x00" + point(self.key.public_key()) + sender + b"\x01"
        secret = _hmac(_hmac(self.auth, shared), info)
        extracted = _hmac(salt, secret)
        key = _hmac(extracted, b"Content-Encoding: aes128gcm\x00\x01")[:16]
        nonce = _hmac(extracted, b"Content-Encoding: nonce\x00\x01")[:12]
        padded = AESGCM(key).decrypt(nonce, record, None).rstrip(b"\x00")
        assert padded.endswith(b"\x02"), "the delimiter of the last record"
        return padded[:-1]


@dataclass(kw_only=True)
class Received:
    """A push that was taken."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    claims: dict[str, Any]  # of the token
    key: bytes  # that signed the token

    @property
    def ttl(self) -> int:
        return int(self.headers["TTL"])


@dataclass(kw_only=True)
class Reply:
    """How the service answers."""

    status: int = 201
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    endless: bool = False  # the body begins, and does not go on
    flood: int = 0  # so many MiB are sent as the body
    silent: bool = False  # no answer comes


class Receiver:
    """The service. `origin` is where it listens, `received` what it took."""

    def __init__(self, server: TestServer, host: str) -> None:
        self._server, self.host = server, host
        self.received: list[Received] = []
        self.arrived = asyncio.Event()  # a push has arrived, whether it was taken or not
        self._taken = asyncio.Event()  # a push has been taken
        self.ended = asyncio.Event()  # so that silent answers end
        self.wrong: list[str] = []  # what broke the rules
        self.cut = asyncio.Event()  # the client has hung up on a flood
        self.reply = Reply()

    @property
    def port(self) -> int:
        assert self._server.port is not None
        return self._server.port

    @property
    def origin(self) -> str:
        return f"https://{self.host}:{self.port}"

    def subscribe(self) -> Subscription:
        return Subscription(f"{self.origin}/push/{secrets.token_urlsafe(32)}")

    async def took(self, count: int) -> list[Received]:
        """Wait until so many pushes were taken; returns them."""
        async with asyncio.timeout(60):
            while len(self.received) < count:
                await self._taken.wait()
        return self.received

    async def take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.arrived.set()
        try:
            received = check(request, body, self.origin)
        except (AssertionError, KeyError, ValueError, InvalidSignature) as error:
            self.wrong.append(f"{type(error).__name__}: {error}")
            return web.Response(status=400)
        reply = self.reply
        if reply.silent:
            await self.ended.wait()
        if reply.endless:
            response = web.StreamResponse(status=reply.status, headers=reply.headers)
            await response.prepare(request)
            await response.write(b"{")
            await self.ended.wait()
            return response
        if reply.flood:
            response = web.StreamResponse(status=reply.status, headers=reply.headers)
            await response.prepare(request)
            try:
                for _ in range(reply.flood):
                    await response.write(b" " * (1 << 20))
            except BaseException:  # the server cancels what nobody waits for
                self.cut.set()
                raise
            return response
        if reply.status in (200, 201, 202):
            self.received.append(received)
            self._taken.set()
            self._taken = asyncio.Event()
        return web.Response(status=reply.status, headers=reply.headers, body=reply.body)


def check(request: web.Request, body: bytes, origin: str) -> Received:
    """Read a push, and refuse what the RFCs do not allow."""
    headers = dict(request.headers)
    assert len(headers) == len(request.headers), "a header came twice"
    assert set(headers) <= HEADERS, set(headers) - HEADERS
    assert request.path.startswith("/push/")
    assert int(headers["TTL"]) >= 0
    assert headers["Urgency"] in ("very-low", "low", "normal", "high")
    topic = headers["Topic"]
    assert topic == base64url(from_base64url(topic))
    assert 0 < len(topic) <= 32
    assert headers["Content-Encoding"] == "aes128gcm"
    assert headers["Content-Type"] == "application/octet-stream"
    assert len(body) <= 4096
    scheme, _, rest = headers["Authorization"].partition(" ")
    assert scheme == "vapid"
    parameters = dict(part.strip().split("=", 1) for part in rest.split(","))
    assert set(parameters) == {"t", "k"}
    key = from_base64url(parameters["k"])
    claims = verified(parameters["t"], key)
    assert claims["aud"] == origin
    return Received(path=request.path, headers=headers, body=body, claims=claims, key=key)


def verified(token: str, key: bytes) -> dict[str, Any]:
    """Verify a JWT with ES256 (RFC 7515, RFC 7518 §3.4), and return its claims."""
    head, payload, signature = token.split(".")
    assert json.loads(from_base64url(head)) == {"typ": "JWT", "alg": "ES256"}
    raw = from_base64url(signature)
    assert len(raw) == 64
    encoded = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key)
    public.verify(encoded, f"{head}.{payload}".encode(), ec.ECDSA(hashes.SHA256()))
    return dict(json.loads(from_base64url(payload)))


@asynccontextmanager
async def receiving(certificate: Certificate, host: str = "localhost") -> AsyncIterator[Receiver]:
    """A service at 127.0.0.1, which is called `host`."""
    app = web.Application()
    server = TestServer(app, scheme="https", host="127.0.0.1")
    receiver = Receiver(server, host)
    app.router.add_post("/{path:.*}", receiver.take)
    await server.start_server(ssl=certificate.server_context())
    try:
        yield receiver
    finally:
        receiver.ended.set()
        await server.close()


def point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()
