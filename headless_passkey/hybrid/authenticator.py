"""The authenticator's transactions: from a FIDO URL (CTAP 2.2 §11.5.1), or for a client platform with a link (§11.5.2).

Each stage returns the next::

    transaction = PhoneTransaction(url)
    transaction.tunnel_id                          # open the tunnel under this ID
    advertised = transaction.advertise(routing_id=..., tunnel_domain=...)
    advertised.service_data                        # send this as a BLE advert
    message2, channel = advertised.respond(message1)
    channel.post_handshake(get_info)               # the first message after message 2
    event = channel.receive(message)
    channel.reply(Status.SUCCESS, response.encode())
    channel.update(offered_link)                   # at any time; None where channel.may_link is False

    payload = ClientPayload.parse(...)             # from the tunnel service; names one of our links
    transaction = LinkedPhoneTransaction(offered_link, payload)
    advertised = transaction.advertise()           # then as above
"""

from dataclasses import dataclass, field
from functools import partial
from secrets import token_bytes

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

from headless_passkey.errors import LocalProtocolError
from headless_passkey.hybrid import eid as _eid
from headless_passkey.hybrid import noise
from headless_passkey.hybrid.channel import AuthenticatorChannel
from headless_passkey.hybrid.data_channel import DataChannel
from headless_passkey.hybrid.eid import NONCE_SIZE, Eid, Suffix
from headless_passkey.hybrid.fido_url import FidoUrl
from headless_passkey.hybrid.keys import parse_compressed
from headless_passkey.hybrid.linking import ClientPayload, OfferedLink


@dataclass(frozen=True, slots=True)
class PhoneTransaction:
    """A QR-initiated transaction: this phone has read a FIDO URL."""

    url: FidoUrl

    @property
    def tunnel_id(self) -> bytes:
        """The ID under which to open the tunnel, 16 bytes."""
        return self.url.tunnel_id

    def advertise(
        self, *, routing_id: bytes, tunnel_domain: int, psm: int | None = None, nonce: bytes | None = None
    ) -> "Advertised":
        """Seal the BLE advert that tells the client platform which tunnel to join; the tunnel is open before.

        routing_id: from the tunnel service. psm: of the direct channel, where the phone listens for it. It makes the advert
        longer, which older client platforms ignore, so it is refused unless the URL offers that channel. nonce: for
        tests; fresh otherwise.
        """
        if psm is not None and not self.url.offers(DataChannel.BLE_L2CAP):
            raise LocalProtocolError("the FIDO URL does not offer the direct channel")
        eid = Eid(nonce=nonce or token_bytes(NONCE_SIZE), routing_id=routing_id, tunnel_domain=tunnel_domain)
        return Advertised(
            service_data=_eid.seal_advert(_eid.eid_key(self.url.secret), eid)
            + (b"" if psm is None else Suffix(psm=psm).encode()),
            _psk=_eid.psk(self.url.secret, eid),
            _client_static=parse_compressed(self.url.public_key),
            _linking=self.url.linking is True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertised:
    """A transaction whose advert is sent: it answers the handshake of a peer that received the advert and made the URL."""

    service_data: bytes  # 20 bytes, and the suffix of a direct channel
    _psk: bytes = field(repr=False)  # 32 bytes
    _client_static: EllipticCurvePublicKey = field(repr=False)
    _linking: bool  # whether the client platform keeps links

    def respond(
        self, message1: bytes, *, ephemeral: EllipticCurvePrivateKey | None = None
    ) -> tuple[bytes, AuthenticatorChannel]:
        """Answer message 1 with message 2, and open the channel; `RemoteProtocolError` when the peer does not hold our PSK."""
        responder = noise.Responder.respond(
            message1, psk=self._psk, client_static=self._client_static, ephemeral=ephemeral
        )
        to_authenticator, to_client = responder.state.split()
        sign = partial(OfferedLink.sign, client_static=self._client_static, handshake_hash=responder.state.h)
        return responder.message2, AuthenticatorChannel(
            sending=to_client, receiving=to_authenticator, sign_link=sign if self._linking else None
        )


@dataclass(frozen=True, slots=True)
class LinkedPhoneTransaction:
    """A state-assisted transaction: a client platform with one of our links has sent a contact request."""

    link: OfferedLink
    payload: ClientPayload  # its `hint`: ``ga`` or ``mc``

    def __post_init__(self) -> None:
        if self.payload.link_id != self.link.link_id:
            raise LocalProtocolError("the client payload is for another link")

    def advertise(self, *, eid: Eid | None = None) -> "LinkedAdvertised":
        """Seal the BLE advert, which only the holder of the link can open. eid: for tests; fresh otherwise."""
        eid = eid or Eid.state_assisted()
        key = _eid.eid_key(self.link.link_secret, self.payload.client_nonce)
        return LinkedAdvertised(
            service_data=_eid.seal_advert(key, eid),
            _psk=_eid.psk(self.link.link_secret, eid),
            _static=self.link.identity,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedAdvertised:
    """A transaction whose advert is sent: it answers the handshake of a peer that received the advert and holds the link."""

    service_data: bytes  # 20 bytes
    _psk: bytes = field(repr=False)  # 32 bytes
    _static: EllipticCurvePrivateKey = field(repr=False)

    def respond(
        self, message1: bytes, *, ephemeral: EllipticCurvePrivateKey | None = None
    ) -> tuple[bytes, AuthenticatorChannel]:
        """Answer message 1 with message 2, and open the channel; `RemoteProtocolError` when the peer does not hold our link."""
        responder = noise.Responder.respond(message1, psk=self._psk, static=self._static, ephemeral=ephemeral)
        to_authenticator, to_client = responder.state.split()
        return responder.message2, AuthenticatorChannel(sending=to_client, receiving=to_authenticator)
