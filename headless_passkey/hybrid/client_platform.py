"""The client platform: what the device does in a QR-initiated transaction (CTAP 2.2 §11.5.1).

Each stage returns the next, so a wrong order cannot be written down::

    transaction = QrTransaction.create(hint=Hint.GET_ASSERTION, time=now)
    transaction.url.encode()                       # hand this to the phone
    eid = transaction.open_advert(service_data)    # None: another device's phone, keep listening
    pending = transaction.handshake(eid)           # pending.message goes into the tunnel
    channel = pending.finish(reply)                # raises: the peer does not hold our PSK
    channel.receive_post_handshake(message)
    message = channel.send(GetAssertionRequest(...))
    event = channel.receive(message)
"""

from dataclasses import dataclass, field
from secrets import token_bytes
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from headless_passkey.hybrid import eid as _eid
from headless_passkey.hybrid import noise
from headless_passkey.hybrid.channel import ClientChannel
from headless_passkey.hybrid.eid import Eid
from headless_passkey.hybrid.fido_url import SECRET_SIZE, FidoUrl, Hint
from headless_passkey.hybrid.keys import KeyPurpose, compressed, derive, generate
from headless_passkey.hybrid.tunnel_url import ASSIGNED_DOMAINS

PSK_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class QrTransaction:
    """A FIDO URL that was born here, and the keys to hear and answer the phone that reads it."""

    url: FidoUrl
    _private: EllipticCurvePrivateKey = field(repr=False)
    _eid_key: bytes = field(repr=False)  # 64 bytes

    @classmethod
    def create(
        cls,
        *,
        hint: Hint,
        time: int,
        private: EllipticCurvePrivateKey | None = None,
        secret: bytes | None = None,
    ) -> Self:
        """A fresh transaction. time: Unix seconds. private, secret: for tests; fresh otherwise."""
        private = private or generate()
        url = FidoUrl(
            public_key=compressed(private.public_key()),
            secret=secret or token_bytes(SECRET_SIZE),
            assigned_domains=len(ASSIGNED_DOMAINS),
            time=time,
            linking=False,  # sent although false: without it some phones speak the old revision
            hint_raw=hint.value,
        )
        return cls(url=url, _private=private, _eid_key=_eid.eid_key(url.secret))

    def open_advert(self, service_data: bytes) -> Eid | None:
        """The EID of the phone that read our URL, or None for any other advert."""
        return _eid.open_advert(self._eid_key, service_data)

    def handshake(self, eid: Eid) -> "PendingHandshake":
        """Begin the handshake with the phone that sent `eid`."""
        psk = derive(self.url.secret, eid.encode(), KeyPurpose.PSK, PSK_SIZE)
        return PendingHandshake(_initiator=noise.Initiator(psk=psk, static=self._private))


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingHandshake:
    """Message 1 is on its way, message 2 has not come yet."""

    _initiator: noise.Initiator = field(repr=False)

    @property
    def message(self) -> bytes:
        """81 bytes, the first message into the tunnel."""
        return self._initiator.message1

    def finish(self, reply: bytes) -> ClientChannel:
        """The channel; `RemoteProtocolError` when the peer did not read our URL."""
        to_authenticator, to_client = self._initiator.finish(reply).split()
        return ClientChannel(sending=to_authenticator, receiving=to_client)
