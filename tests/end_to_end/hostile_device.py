"""A device that a test can make misbehave at every stage, for the phone to talk to.

It is a device of its own: from the product it takes the client platform's cryptography, and nothing of the
device's program. What it asks is put together member by member, so that every member can be wrong.
"""

import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from headless_passkey.errors import TransportError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.channel import ClientChannel
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.eid import Eid
from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.hybrid.messages import Ctap
from headless_passkey.hybrid.tunnel_url import connect_url
from headless_passkey.net.tunnel import Tunnel, open_tunnel

RP_ID: Final = "example.com"
HASH: Final = bytes(range(32))


def assertion(**changes: Any) -> bytes:
    """A getAssertion, command byte first; changes: members by `key_N`, None leaves one out."""
    return b"\x02" + _members({1: RP_ID, 2: HASH, 5: {"uv": True}}, changes)


def creation(**changes: Any) -> bytes:
    """A makeCredential."""
    members = {
        1: HASH,
        2: {"id": RP_ID, "name": "Example"},
        3: {"id": b"alice", "name": "alice@example.com", "displayName": "Alice"},
        4: [{"alg": -7, "type": "public-key"}],
        7: {"rk": True, "uv": True},
    }
    return b"\x01" + _members(members, changes)


def descriptor(credential_id: bytes) -> dict[str, Any]:
    return {"id": credential_id, "type": "public-key"}


def _members(members: dict[int, Any], changes: dict[str, Any]) -> bytes:
    members |= {int(name.removeprefix("key_")): value for name, value in changes.items()}
    return cbor.encode({key: value for key, value in members.items() if value is not None})


@dataclass
class Line:
    """The encrypted channel to the phone."""

    tunnel: Tunnel
    channel: ClientChannel

    async def send(self, request: bytes) -> None:
        """A CTAP message, in or out of turn, well-formed or not."""
        await self.say(b"\x01" + request)

    async def say(self, plaintext: bytes) -> None:
        self.channel._awaiting_reply = True
        await self.tunnel.send(self.channel._seal(plaintext))

    async def reply(self) -> Ctap:
        event = self.channel.receive(await self.tunnel.receive())
        assert isinstance(event, Ctap)
        return event

    async def ask(self, request: bytes) -> Ctap:
        await self.send(request)
        return await self.reply()

    async def goodbye(self) -> None:
        """The shutdown; the phone does not wait for it for ever."""
        message = self.channel.shutdown()
        assert message is not None
        with suppress(TransportError):
            await self.tunnel.send(message)


class HostileDevice:
    """A device that has made a FIDO URL."""

    def __init__(
        self, base: str, tls: ssl.SSLContext, hint: RequestKind = RequestKind.GET_ASSERTION, **changes: Any
    ) -> None:
        """changes: what else the URL should say."""
        self.transaction = QrTransaction.create(hint=hint, time=int(time.time()))
        self.base, self.tls = base, tls
        self.shown: FidoUrl = replace(self.transaction.url, **changes)

    @property
    def url(self) -> str:
        """The URL as a line."""
        return f"{self.shown.encode()}\n"

    def hear(self, advert: str) -> Eid:
        eid = self.transaction.open_advert(bytes.fromhex(advert))
        assert eid is not None
        return eid

    @asynccontextmanager
    async def joined(self, advert: str) -> AsyncIterator[Tunnel]:
        """In the tunnel, and nothing said yet."""
        eid = self.hear(advert)
        url = connect_url(self.base, eid.routing_id, self.transaction.url.tunnel_id)
        async with open_tunnel(url, tls=self.tls) as tunnel:
            yield tunnel

    @asynccontextmanager
    async def connected(self, advert: str) -> AsyncIterator[Line]:
        """As a device should, up to the phone's post-handshake message."""
        async with self.joined(advert) as tunnel:
            pending = self.transaction.handshake(self.hear(advert))
            await tunnel.send(pending.message)
            channel = pending.finish(await tunnel.receive())
            channel.receive_post_handshake(await tunnel.receive())
            yield Line(tunnel, channel)
