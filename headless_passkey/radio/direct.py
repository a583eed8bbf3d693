"""The direct channel: messages over an L2CAP channel, as `headless_passkey.net.tunnel.Tunnel` carries them through a tunnel."""

from headless_passkey.hybrid.data_channel import Opens, Receiver, direct_frame
from headless_passkey.hybrid.noise import MESSAGE_SIZE
from headless_passkey.radio.l2cap import L2capChannel


class DirectChannel:
    """One end of a direct channel. The peer is not trusted: what it sends is bounded, and the caller bounds the time."""

    def __init__(self, channel: L2capChannel) -> None:
        self._channel = channel
        self._receiver = Receiver()

    async def send(self, message: bytes) -> None:
        """Send one message, framed as the peer frames its own; `TransportError` when the channel is closed."""
        framed, size = direct_frame(message, counted=self._receiver.counted), self._channel.mtu
        for start in range(0, len(framed), size):
            await self._channel.send(framed[start : start + size])

    async def receive(self, opens: Opens | None = None) -> bytes:
        """The next message, up to 64 KiB.

        opens: recognises it; None for a message of the handshake. `TransportError` when the channel is closed;
        `RemoteProtocolError` when what came can be no message.
        """
        while True:
            message = (
                self._receiver.take_exactly(MESSAGE_SIZE) if opens is None else self._receiver.take(opens)
            )
            if message is not None:
                return message
            self._receiver.feed(await self._channel.receive())
