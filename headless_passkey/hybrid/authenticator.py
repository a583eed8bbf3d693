"""The authenticator: what a phone does with a FIDO URL (CTAP 2.2 §11.5.1).

Each stage returns the next::

    transaction = PhoneTransaction(url)
    transaction.tunnel_id                          # open the tunnel under this ID
    advertised = transaction.advertise(routing_id=..., tunnel_domain=...)
    advertised.service_data                        # send this as a BLE advert
    message2, channel = advertised.respond(message1)
    channel.post_handshake(get_info)               # the first message after message 2
    event = channel.receive(message)
    channel.reply(Status.SUCCESS, response.encode())
"""

from dataclasses import dataclass, field
from secrets import token_bytes

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

from headless_passkey.hybrid import eid as _eid
from headless_passkey.hybrid import noise
from headless_passkey.hybrid.channel import AuthenticatorChannel
from headless_passkey.hybrid.eid import NONCE_SIZE, Eid
from headless_passkey.hybrid.fido_url import FidoUrl
from headless_passkey.hybrid.keys import KeyPurpose, derive, parse_compressed

PSK_SIZE = 32


@dataclass(frozen=True, slots=True)
class PhoneTransaction:
    """A FIDO URL that was read here."""

    url: FidoUrl

    @property
    def tunnel_id(self) -> bytes:
        """16 bytes: the tunnel to open."""
        return self.url.tunnel_id

    def advertise(self, *, routing_id: bytes, tunnel_domain: int, nonce: bytes | None = None) -> "Advertised":
        """Once the tunnel is open: the advert that leads the device to it. nonce: for tests."""
        eid = Eid(nonce=nonce or token_bytes(NONCE_SIZE), routing_id=routing_id, tunnel_domain=tunnel_domain)
        return Advertised(
            service_data=_eid.seal_advert(_eid.eid_key(self.url.secret), eid),
            _psk=derive(self.url.secret, eid.encode(), KeyPurpose.PSK, PSK_SIZE),
            _client_static=parse_compressed(self.url.public_key),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertised:
    """The advert is in the air; whoever heard it and holds the URL's key may join."""

    service_data: bytes  # 20 bytes
    _psk: bytes = field(repr=False)  # 32 bytes
    _client_static: EllipticCurvePublicKey = field(repr=False)

    def respond(
        self, message1: bytes, *, ephemeral: EllipticCurvePrivateKey | None = None
    ) -> tuple[bytes, AuthenticatorChannel]:
        """Message 2 and the channel; `RemoteProtocolError` when the peer does not hold our PSK."""
        responder = noise.Responder.respond(
            message1, psk=self._psk, client_static=self._client_static, ephemeral=ephemeral
        )
        to_authenticator, to_client = responder.state.split()
        return responder.message2, AuthenticatorChannel(sending=to_client, receiving=to_authenticator)
