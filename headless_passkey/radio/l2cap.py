"""The interface of an LE credit-based L2CAP channel, which carries SDUs: the way of the direct channel (CTAP 2.3 §11.5.1.1)."""

from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, runtime_checkable

from headless_passkey.radio.source import Advert, AdvertSource

MTU: Final = 4096  # bytes of the longest SDU we take; a response with an ML-DSA-44 signature fits into one
MIN_MTU: Final = 23  # of any peer (Bluetooth Core, Vol 3 Part A §4.22)
CONNECT_TIMEOUT: Final = 5.0  # seconds until link and channel are up
CLOSE_TIMEOUT: Final = 1.0  # seconds a peer has to answer that a channel is closed


class L2capChannel(Protocol):
    """An open channel. Its owner closes it."""

    @property
    def mtu(self) -> int:
        """The bytes of the longest SDU that the peer takes; 23 or more."""

    async def send(self, sdu: bytes) -> None:
        """Send an SDU of at most `mtu` bytes, and wait until the peer has room for it; `TransportError` when the channel is closed."""

    async def receive(self) -> bytes:
        """The next SDU, which is not empty; `TransportError` when the channel is closed. A cancelled call loses none."""

    async def close(self) -> None:
        """Close the channel, and the link if nothing else uses it. It takes `CLOSE_TIMEOUT` at most for each, also when it is cancelled."""


@runtime_checkable
class ConnectingSource(AdvertSource, Protocol):
    """A radio that can also open a channel to whoever sent an advert."""

    @property
    def connects(self) -> bool:
        """Whether it can on this system."""

    def connect(self, advert: Advert, psm: int) -> AbstractAsyncContextManager[L2capChannel]:
        """Open a channel while the context is open. The scan in which `advert` came must be open when the context is entered.

        psm: of the peer. `TransportError` when the peer cannot be reached, or listens for no such channel.
        """
