"""A device for the phone to talk to: it hears adverts out of a queue, and can be made to misbehave."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from certificates import Certificate

from companion_push.companion.software_key import ES256
from companion_push.tunnel_service.app import make_app
from headless_passkey.hybrid.channel import ClientChannel
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.ctap2 import GetAssertionRequest, MakeCredentialRequest, Status, User
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.hybrid.messages import Ctap, MessageType, frame
from headless_passkey.hybrid.tunnel_url import connect_url
from headless_passkey.net.tunnel import Tunnel, open_tunnel

RP_ID = "example.com"
ALICE = User(id=b"alice", name="alice@example.com", display_name="Alice")


class Air:
    """The air between phone and device, and the phone's radio."""

    def __init__(self) -> None:
        self.adverts: asyncio.Queue[bytes] = asyncio.Queue()
        self.sending = 0

    @contextlib.asynccontextmanager
    async def advertise(self, service_data: bytes) -> AsyncIterator[None]:
        self.adverts.put_nowait(service_data)
        self.sending += 1
        try:
            yield
        finally:
            self.sending -= 1


@dataclass
class Device:
    """One transaction, as a client platform has it."""

    air: Air
    tunnels: str  # base URL
    tls: ssl.SSLContext
    transaction: QrTransaction = field(repr=False)

    @property
    def url(self) -> str:
        return self.transaction.url.encode()

    @contextlib.asynccontextmanager
    async def joined(self) -> AsyncIterator[tuple[Tunnel, ClientChannel]]:
        """The channel to the phone, once its advert was heard."""
        while (eid := self.transaction.open_advert(await self.air.adverts.get())) is None:
            pass
        url = connect_url(self.tunnels, eid.routing_id, self.transaction.url.tunnel_id)
        async with open_tunnel(url, tls=self.tls) as tunnel:
            pending = self.transaction.handshake(eid)
            await tunnel.send(pending.message)
            channel = pending.finish(await tunnel.receive())
            channel.receive_post_handshake(await tunnel.receive())
            yield tunnel, channel

    async def ask(self, request: GetAssertionRequest | MakeCredentialRequest) -> Ctap:
        """One command, answered, and goodbye."""
        async with self.joined() as (tunnel, channel):
            await tunnel.send(channel.send(request))
            reply = await self.reply(tunnel, channel)
            await tunnel.send(self.goodbye(channel))
            return reply

    async def reply(self, tunnel: Tunnel, channel: ClientChannel) -> Ctap:
        event = channel.receive(await tunnel.receive())
        assert isinstance(event, Ctap)
        return event

    def goodbye(self, channel: ClientChannel) -> bytes:
        """The message that says there will be no more requests."""
        shutdown = channel.shutdown()
        assert shutdown is not None
        return shutdown


def raw(channel: ClientChannel, command: int, payload: bytes = b"") -> bytes:
    """A message with any command, in or out of turn."""
    channel._awaiting_reply = True
    return channel._seal(frame(MessageType.CTAP, bytes([command]) + payload))


def framed(channel: ClientChannel, kind: MessageType, payload: bytes) -> bytes:
    """A message of any type."""
    return channel._seal(frame(kind, payload))


def creation(**changes: Any) -> MakeCredentialRequest:
    values: dict[str, Any] = {
        "client_data_hash": bytes(32),
        "rp_id": RP_ID,
        "rp_name": "Example",
        "user": ALICE,
        "algorithms": (ES256,),
    }
    return MakeCredentialRequest(**(values | changes))


def assertion(**changes: Any) -> GetAssertionRequest:
    values: dict[str, Any] = {"rp_id": RP_ID, "client_data_hash": bytes(32)}
    return GetAssertionRequest(**(values | changes))


def transaction(kind: RequestKind = RequestKind.GET_ASSERTION, *, time: int) -> QrTransaction:
    return QrTransaction.create(hint=kind, time=time)


@contextlib.asynccontextmanager
async def tunnel_service(certificate: Certificate) -> AsyncIterator[str]:
    """The real tunnel service on loopback with TLS; its base URL."""
    runner = web.AppRunner(make_app(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.server_context()).start()
        yield f"wss://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def ok(reply: Ctap) -> bytes:
    assert reply.code == Status.SUCCESS, hex(reply.code)
    return reply.payload
