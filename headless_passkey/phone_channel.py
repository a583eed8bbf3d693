"""The channel to a phone that a ceremony has reached: the handshake, the one command, and the goodbye (CTAP 2.2 §11.5.1.2)."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

from headless_passkey.errors import HeadlessPasskeyError, ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid.channel import ClientChannel
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.ctap2 import GetAssertionRequest, GetInfoResponse, MakeCredentialRequest
from headless_passkey.hybrid.eid import Eid
from headless_passkey.hybrid.messages import Ctap
from headless_passkey.net.tunnel import Tunnel

SHUTDOWN_TIMEOUT: Final = 1.0  # seconds for the shutdown message to a phone


@dataclass(slots=True, kw_only=True, eq=False)
class PhoneChannel:
    """A phone with an open channel. The task that opened it holds the tunnel until `let_go` is set."""

    recipient: str  # whose URL the phone has
    tunnel: Tunnel
    channel: ClientChannel
    get_info: GetInfoResponse
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    async def open(cls, tunnel: Tunnel, transaction: QrTransaction, eid: Eid, *, recipient: str) -> Self:
        """Make the handshake, which proves the phone's possession of the URL, and receive the post-handshake message."""
        pending = transaction.handshake(eid)
        await tunnel.send(pending.message)
        channel = pending.finish(await tunnel.receive())
        peer = channel.receive_post_handshake(await tunnel.receive())
        if peer.get_info is None:
            raise RemoteProtocolError("the phone does not speak CTAP", reason=ProtocolReason.NO_CTAP)
        return cls(recipient=recipient, tunnel=tunnel, channel=channel, get_info=peer.get_info)

    async def send(self, request: GetAssertionRequest | MakeCredentialRequest) -> None:
        """Send the one command."""
        await self.tunnel.send(self.channel.send(request))

    async def reply(self) -> Ctap:
        """Receive the reply to the command; updates are ignored."""
        while True:
            event = self.channel.receive(await self.tunnel.receive())
            if isinstance(event, Ctap):
                return event

    async def hold(self) -> None:
        """Keep the tunnel open until `let_go` or cancellation; then send the shutdown message.

        The phone then cancels its question to the user. A closed tunnel or spoiled channel is ignored.
        """
        try:
            await self.let_go.wait()
        finally:
            with suppress(HeadlessPasskeyError, TimeoutError):
                goodbye = self.channel.shutdown()
                if goodbye is not None:
                    async with asyncio.timeout(SHUTDOWN_TIMEOUT):
                        await self.tunnel.send(goodbye)
