"""The channel to a phone that a ceremony has reached: the handshake, the one command, the link that the phone may offer, and the goodbye (CTAP 2.2 §11.5.1.2)."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

from headless_passkey.errors import HeadlessPasskeyError, ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid.channel import ClientChannel
from headless_passkey.hybrid.client_platform import QrTransaction, StateAssistedTransaction
from headless_passkey.hybrid.ctap2 import GetAssertionRequest, GetInfoResponse, MakeCredentialRequest
from headless_passkey.hybrid.eid import Eid
from headless_passkey.hybrid.linking import LinkedPhone, NoLink
from headless_passkey.hybrid.messages import Ctap, Event, Update
from headless_passkey.net.tunnel import Tunnel
from headless_passkey.radio.direct import DirectChannel

SHUTDOWN_TIMEOUT: Final = 1.0  # seconds for the shutdown message to a phone
LINK_TIMEOUT: Final = (
    1.0  # seconds after the reply in which a phone may still offer a link that was asked for
)
MAX_UPDATES: Final = 16  # of one phone


@dataclass(slots=True, kw_only=True, eq=False)
class PhoneChannel:
    """A phone with an open channel. The task that opened it holds the tunnel, or the direct channel, until `let_go` is set."""

    recipient: str | None  # whose URL the phone has; None: it was reached through a link
    transaction: QrTransaction | StateAssistedTransaction
    carrier: Tunnel | DirectChannel
    channel: ClientChannel
    get_info: GetInfoResponse
    offered: LinkedPhone | NoLink = NoLink.NOT_OFFERED  # the link that it has offered
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    _updates: int = 0

    @classmethod
    async def open(
        cls,
        carrier: Tunnel | DirectChannel,
        transaction: QrTransaction | StateAssistedTransaction,
        eid: Eid,
        *,
        recipient: str | None,
    ) -> Self:
        """Make the handshake, which proves the phone's possession of the URL or the link, and receive the post-handshake message."""
        pending = transaction.handshake(eid)
        await carrier.send(pending.message)
        channel = pending.finish(await carrier.receive())
        peer = channel.receive_post_handshake(await carrier.receive(channel.opens))
        if peer.get_info is None:
            raise RemoteProtocolError("the phone does not speak CTAP", reason=ProtocolReason.NO_CTAP)
        return cls(
            recipient=recipient,
            transaction=transaction,
            carrier=carrier,
            channel=channel,
            get_info=peer.get_info,
            offered=peer.link,
        )

    @property
    def linked(self) -> LinkedPhone | None:
        """The link through which the phone was reached; None where it has a URL."""
        return self.transaction.phone if isinstance(self.transaction, StateAssistedTransaction) else None

    @property
    def was_asked_for_a_link(self) -> bool:
        """Whether the phone's URL says that this device keeps links."""
        return isinstance(self.transaction, QrTransaction) and self.transaction.url.linking is True

    async def send(self, request: GetAssertionRequest | MakeCredentialRequest) -> None:
        """Send the one command."""
        await self.carrier.send(self.channel.send(request))

    async def reply(self) -> Ctap:
        """Receive the reply to the command."""
        while True:
            event = await self._event()
            if isinstance(event, Ctap):
                return event

    async def hold(self) -> None:
        """Keep the channel open until `let_go` or cancellation; then send the shutdown message.

        The phone then cancels its question to the user. A channel that is closed or spoiled is ignored. A phone that was asked for a
        link and has sent no update yet has `LINK_TIMEOUT` for it: some send it after their reply.
        """
        try:
            await self.let_go.wait()
            if self.was_asked_for_a_link:
                with suppress(HeadlessPasskeyError, TimeoutError):
                    async with asyncio.timeout(LINK_TIMEOUT):
                        while self.offered is NoLink.NOT_OFFERED and not self._updates:
                            await self._event()
        finally:
            with suppress(HeadlessPasskeyError, TimeoutError):
                goodbye = self.channel.shutdown()
                if goodbye is not None:
                    async with asyncio.timeout(SHUTDOWN_TIMEOUT):
                        await self.carrier.send(goodbye)

    async def _event(self) -> Event:
        """Receive the next event, and note the link of an update."""
        event = self.channel.receive(await self.carrier.receive(self.channel.opens))
        if isinstance(event, Update):
            self._updates += 1
            if self._updates > MAX_UPDATES:
                raise RemoteProtocolError(
                    f"the phone sent more than {MAX_UPDATES} updates", reason=ProtocolReason.TOO_MANY_MESSAGES
                )
            if event.link is not NoLink.NOT_OFFERED:
                self.offered = event.link
        return event
