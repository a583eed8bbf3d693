"""A phone that a test can make misbehave at every stage, on the real tunnel service or on a hostile one.

It is a phone of its own: from the product it takes the cryptography of the hybrid transport, and nothing of
the software phone. What it answers is put together byte by byte, so that every byte can be wrong.
"""

import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from aiohttp import WSMsgType, web
from certificates import Certificate
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.authenticator import Advertised, PhoneTransaction
from headless_passkey.hybrid.channel import AuthenticatorChannel
from headless_passkey.hybrid.ctap2 import GetInfoResponse
from headless_passkey.hybrid.fido_url import FidoUrl
from headless_passkey.hybrid.messages import Ctap, Shutdown
from headless_passkey.hybrid.tunnel_url import new_url
from headless_passkey.net.tunnel import open_tunnel

ROUTING_ID: Final = b"\x01\x02\x03"
UP, UV, AT, ED = 0x01, 0x04, 0x40, 0x80
INFO: Final = GetInfoResponse(
    versions=("FIDO_2_0", "FIDO_2_1"),
    aaguid=bytes(16),
    options={"rk": True, "uv": True},
    transports=("internal",),
)


class Line(Protocol):
    """Where messages go: an end of a tunnel, or a websocket straight to the device."""

    async def send(self, message: bytes) -> None: ...

    async def receive(self) -> bytes: ...


@dataclass
class Passkey:
    """One passkey, and everything a phone could get wrong about it."""

    rp_id: str = "example.com"
    user: Mapping[str, Any] | None = field(
        default_factory=lambda: {"id": b"alice", "name": "alice", "displayName": "Alice"}
    )
    credential_id: bytes = b"credential-of-alice"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def cose_key(self) -> bytes:
        point = self.key.public_key().public_numbers()
        return cbor.encode(
            {1: 2, 3: -7, -1: 1, -2: point.x.to_bytes(32, "big"), -3: point.y.to_bytes(32, "big")}
        )

    def auth_data(self, *, flags: int = UP | UV, tail: bytes = b"", rp_id: str | None = None) -> bytes:
        name = self.rp_id if rp_id is None else rp_id
        return hashlib.sha256(name.encode()).digest() + bytes([flags]) + bytes(4) + tail

    def attested(self, *, credential_id: bytes | None = None, cose_key: bytes | None = None) -> bytes:
        name = self.credential_id if credential_id is None else credential_id
        return bytes(16) + len(name).to_bytes(2, "big") + name + (cose_key or self.cose_key)

    def assertion(self, request: bytes, **changes: Any) -> bytes:
        """The reply's CBOR to a getAssertion; changes: `auth_data`, and members by `key_N` (None: left out)."""
        asked = cbor.decode_map(request)
        auth_data = changes.pop("auth_data", None) or self.auth_data()
        signature = self.key.sign(auth_data + asked[2], ec.ECDSA(SHA256()))
        members: dict[int, Any] = {
            1: {"id": self.credential_id, "type": "public-key"},
            2: auth_data,
            3: signature,
            4: self.user,
        }
        return _members(members, changes)

    def creation(self, request: bytes, **changes: Any) -> bytes:
        """The reply's CBOR to a makeCredential."""
        del request
        auth_data = changes.pop("auth_data", None) or self.auth_data(flags=UP | UV | AT, tail=self.attested())
        return _members({1: "none", 2: auth_data, 3: {}}, changes)


def _members(members: dict[int, Any], changes: dict[str, Any]) -> bytes:
    members |= {int(name.removeprefix("key_")): value for name, value in changes.items()}
    return cbor.encode({key: value for key, value in members.items() if value is not None})


def raw_map(*items: tuple[Any, Any]) -> bytes:
    """A CBOR map with its members in the order given, canonical or not, repeated or not."""
    assert len(items) < 24
    return bytes([0xA0 | len(items)]) + b"".join(
        cbor.encode(key) + cbor.encode(value) for key, value in items
    )


@dataclass
class Call:
    """One device on the line, from before the handshake to the end."""

    line: Line
    advertised: Advertised
    passkey: Passkey
    channel: AuthenticatorChannel | None = None

    @property
    def open_channel(self) -> AuthenticatorChannel:
        assert self.channel is not None
        return self.channel

    async def shake_hands(self) -> None:
        """As a phone should, up to message 2."""
        message2, self.channel = self.advertised.respond(await self.line.receive())
        await self.line.send(message2)

    async def connect(self) -> None:
        """As a phone should, up to the post-handshake message."""
        await self.shake_hands()
        await self.line.send(self.open_channel.post_handshake(INFO))

    async def request(self) -> Ctap:
        """The device's command."""
        event = self.open_channel.receive(await self.line.receive())
        assert isinstance(event, Ctap)
        return event

    async def goodbye(self) -> None:
        """The device's shutdown."""
        assert isinstance(self.open_channel.receive(await self.line.receive()), Shutdown)

    async def say(self, kind: int, payload: bytes = b"") -> None:
        """A message of any type, sealed."""
        await self.say_raw(bytes([kind]) + payload)

    async def say_raw(self, plaintext: bytes) -> None:
        await self.line.send(self.open_channel._seal(plaintext))

    async def reply(self, status: int, payload: bytes = b"") -> None:
        await self.line.send(self.open_channel.reply(status, payload))

    async def answer(self, **changes: Any) -> None:
        """The whole conversation; changes: what the reply gets wrong."""
        await self.connect()
        asked = await self.request()
        make = self.passkey.creation if asked.code == 1 else self.passkey.assertion
        await self.reply(0, make(asked.payload, **changes))


Behaviour = Callable[[Call], Awaitable[None]]


@dataclass
class HostilePhone:
    """A phone that has read a FIDO URL."""

    url: FidoUrl
    base: str  # of its tunnel service
    tls: ssl.SSLContext
    number: int = 300
    passkey: Passkey = field(default_factory=Passkey)

    @asynccontextmanager
    async def advertising(self) -> AsyncIterator[tuple[str, Call]]:
        """Its advert as a line, and the device once it has come through the tunnel."""
        transaction = PhoneTransaction(self.url)
        async with open_tunnel(new_url(self.base, transaction.tunnel_id), tls=self.tls) as tunnel:
            assert tunnel.routing_id is not None
            advertised = transaction.advertise(routing_id=tunnel.routing_id, tunnel_domain=self.number)
            yield f"{advertised.service_data.hex()}\n", Call(tunnel, advertised, self.passkey)


class WebSocketLine:
    """The device's websocket itself, for what no honest tunnel service carries."""

    def __init__(self, websocket: web.WebSocketResponse) -> None:
        self.websocket = websocket

    async def send(self, message: bytes) -> None:
        await self.websocket.send_bytes(message)

    async def receive(self) -> bytes:
        message = await self.websocket.receive()
        if message.type is not WSMsgType.BINARY:
            raise ConnectionResetError
        data: bytes = message.data
        return data


class HostileTunnel:
    """A tunnel service and the phone behind it in one: it does what it wants with the device's websocket."""

    def __init__(self) -> None:
        self.base = ""
        self.visits = 0
        self.paths: set[str] = set()  # that were visited
        self._adverts: dict[bytes, tuple[Advertised, Passkey, Behaviour]] = {}
        self._refusals: dict[bytes, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {}

    @classmethod
    @asynccontextmanager
    async def start(
        cls, certificate: Certificate, *, host: str = "localhost"
    ) -> AsyncIterator["HostileTunnel"]:
        service = cls()
        app = web.Application()
        app.router.add_get("/cable/connect/{routing_id}/{tunnel_id}", service._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.server_context()).start()
            service.base = f"wss://{host}:{runner.addresses[0][1]}"
            yield service
        finally:
            await runner.cleanup()

    def advert(
        self,
        url: FidoUrl,
        behaviour: Behaviour,
        *,
        passkey: Passkey | None = None,
        number: int = 300,
        refuse: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None,
    ) -> str:
        """An advert line whose tunnel does this. refuse: answer the HTTP request so, instead."""
        routing_id = len(self._adverts).to_bytes(3, "big")
        advertised = PhoneTransaction(url).advertise(routing_id=routing_id, tunnel_domain=number)
        self._adverts[routing_id] = advertised, passkey or Passkey(), behaviour
        if refuse is not None:
            self._refusals[routing_id] = refuse
        return f"{advertised.service_data.hex()}\n"

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.visits += 1
        self.paths.add(request.path)
        routing_id = bytes.fromhex(request.match_info["routing_id"])
        if routing_id in self._refusals:
            return await self._refusals[routing_id](request)
        advertised, passkey, behaviour = self._adverts[routing_id]
        websocket = web.WebSocketResponse(
            protocols=("fido.cable",), compress=False, max_msg_size=0, timeout=0.5
        )
        await websocket.prepare(request)
        await behaviour(Call(WebSocketLine(websocket), advertised, passkey))
        await websocket.close()
        return websocket


def websocket_of(call: Call) -> web.WebSocketResponse:
    """The raw websocket of a call on a hostile tunnel."""
    assert isinstance(call.line, WebSocketLine)
    return call.line.websocket


async def wait_for_hang_up(call: Call) -> None:
    """Say nothing more, until the device goes."""
    await call.line.receive()
