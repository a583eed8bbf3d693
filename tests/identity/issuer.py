"""An OpenID Connect issuer on loopback, which signs whatever it is asked for: honest tokens and hostile ones."""

import hmac
import json
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey

from companion_push.serving.http_server import Runner
from program_parts.base64url import base64url

NOW = 1_800_000_000
KEY = base64url(bytes(32))  # the name of a caller's key
OTHER_KEY = base64url(b"\1" * 32)


def ec_key(kid: str, curve: str = "P-256") -> ECKey:
    return ECKey.generate_key(curve, {"kid": kid})


def rsa_key(kid: str, bits: int = 2048) -> RSAKey:
    return RSAKey.generate_key(bits, {"kid": kid})


def edwards_key(kid: str, alg: str | None = None) -> OKPKey:
    return OKPKey.generate_key("Ed25519", {"kid": kid} if alg is None else {"kid": kid, "alg": alg})


@dataclass
class Issuer:
    """An issuer, its keys, and how often it was asked for them."""

    url: str = ""
    port: int = 0
    now: int = NOW
    keys: list[Any] = field(default_factory=lambda: [ec_key("first")])
    asked: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)  # that differ from those of an honest one
    answer: web.Response | None = None  # in place of the JWK set
    grant: dict[str, Any] = field(
        default_factory=dict
    )  # that differs from an honest answer of the device grant
    polls: list[dict[str, Any] | int | None] = field(
        default_factory=list
    )  # answers before the token; a number is a status without JSON, and None a connection that breaks
    forms: list[dict[str, str]] = field(default_factory=list)  # that it was sent
    proofs: list[str] = field(default_factory=list)  # that came with them
    signs: dict[str, Any] = field(default_factory=dict)  # what `token` is given for the grant
    more: list[dict[str, Any]] = field(default_factory=list)  # keys beside its own

    def claims(self, **changes: Any) -> dict[str, Any]:
        """The claims of an ID token of a moment ago; a change to None leaves one out."""
        claims = {
            "iss": self.url,
            "sub": "17",
            "aud": "companion",
            "iat": self.now - 5,
            "exp": self.now + 300,
            "auth_time": self.now - 20,
            "preferred_username": "anna",
        }
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def token(
        self,
        *,
        key: Any = None,
        alg: str = "ES256",
        header: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        """A signed token. key: by default the newest. header: changes of the JWS header."""
        key = key or self.keys[-1]
        # whatever it is for
        signing = type(key).import_key({**key.as_dict(private=True), "alg": alg})
        protected = {"alg": alg, "kid": key.kid, "typ": "JWT"} | (header or {})
        protected = {name: value for name, value in protected.items() if value is not None}
        registry = jws.JWSRegistry(algorithms=[alg], strict_check_header=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)  # EdDSA
            return jws.serialize_compact(
                protected, json.dumps(self.claims(**changes)).encode(), signing, registry=registry
            )

    def unsigned(self, **changes: Any) -> str:
        """A token of the algorithm ``none``."""
        header = base64url(json.dumps({"alg": "none", "typ": "JWT"}).encode())
        return f"{header}.{base64url(json.dumps(self.claims(**changes)).encode())}."

    def confused(self) -> str:
        """A token that is signed by HS256 with the bytes of the public key as the secret (key confusion)."""
        header = base64url(json.dumps({"alg": "HS256", "kid": self.keys[-1].kid, "typ": "JWT"}).encode())
        signed = f"{header}.{base64url(json.dumps(self.claims()).encode())}"
        secret = self.keys[-1].as_pem(private=False)
        return f"{signed}.{base64url(hmac.digest(secret, signed.encode(), 'sha256'))}"

    async def _metadata(self, _request: web.Request) -> web.Response:
        self.asked += 1
        honest = {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/keys",
            "device_authorization_endpoint": f"{self.url}/device",
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
        }
        return web.json_response(honest | self.metadata)

    async def _device(self, request: web.Request) -> web.Response:
        self.forms.append({name: str(value) for name, value in (await request.post()).items()})
        honest = {
            "device_code": "device code",
            "user_code": "WDJB-MJHT",
            "verification_uri": f"{self.url}/activate",
            "expires_in": 600,
            "interval": 1,
        }
        return web.json_response(honest | self.grant, status=400 if "error" in self.grant else 200)

    async def _token(self, request: web.Request) -> web.Response:
        self.forms.append({name: str(value) for name, value in (await request.post()).items()})
        self.proofs += request.headers.getall("DPoP", [])
        if self.polls:
            poll = self.polls.pop(0)
            if poll is None and request.transport is not None:
                request.transport.abort()
            if poll is None or isinstance(poll, int):
                return web.Response(status=poll or 500, text="<html>not now</html>")
            return web.json_response(poll, status=400, headers={"DPoP-Nonce": f"nonce-{len(self.polls)}"})
        token = self.token(**self.signs)
        return web.json_response({"access_token": token, "id_token": token, "token_type": "DPoP"})

    async def _keys(self, _request: web.Request) -> web.Response:
        if self.answer is not None:
            return web.Response(status=self.answer.status, headers=self.answer.headers, body=self.answer.body)
        keys = [key.as_dict(private=False) for key in self.keys]
        return web.json_response({"keys": keys + self.more})

    @asynccontextmanager
    async def running(
        self, *, tls: ssl.SSLContext | None = None, host: str | None = None
    ) -> AsyncIterator["Issuer"]:
        """Serve. tls: for https. host: by which a proxy reaches it at the usual port, in place of its address."""
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._metadata)
        app.router.add_get("/keys", self._keys)
        app.router.add_get("/elsewhere", self._keys)
        app.router.add_post("/device", self._device)
        app.router.add_post("/token", self._token)
        runner = Runner(app, shutdown_timeout=1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
            await site.start()
            address, self.port = runner.addresses[0][:2]
            place = host or f"{address}:{self.port}"
            self.url = f"http{'s' if tls else ''}://{place}"
            yield self
        finally:
            await runner.cleanup()
