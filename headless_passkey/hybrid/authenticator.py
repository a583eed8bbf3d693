"""The authenticator: what a phone does with a FIDO URL, or when a linked device wants it (CTAP 2.2 §11.5).

Each stage returns the next::

    transaction = PhoneTransaction(url)
    transaction.tunnel_id                          # open the tunnel under this ID
    advertised = transaction.advertise(routing_id=..., tunnel_domain=...)
    advertised.service_data                        # send this as a BLE advert
    message2, channel = advertised.respond(message1)
    channel.post_handshake(get_info)               # the first message after message 2
    event = channel.receive(message)
    channel.reply(Status.SUCCESS, response.encode())
    channel.update(offered_link)                   # at any time; with None unless channel.may_link

    payload = ClientPayload.parse(...)             # came with the wake-up, names one of our links
    transaction = LinkedPhoneTransaction(offered_link, payload)
    advertised = transaction.advertise()           # and on as above
"""

from dataclasses import dataclass, field
from functools import partial
from secrets import token_bytes

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

from headless_passkey.errors import LocalProtocolError
from headless_passkey.hybrid import eid as _eid
from headless_passkey.hybrid import noise
from headless_passkey.hybrid.channel import AuthenticatorChannel
from headless_passkey.hybrid.eid import NONCE_SIZE, Eid
from headless_passkey.hybrid.fido_url import FidoUrl
from headless_passkey.hybrid.keys import parse_compressed
from headless_passkey.hybrid.linking import ClientPayload, OfferedLink


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
            _psk=_eid.psk(self.url.secret, eid),
            _client_static=parse_compressed(self.url.public_key),
            _linking=self.url.linking is True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertised:
    """The advert is in the air; whoever heard it and holds the URL's key may join."""

    service_data: bytes  # 20 bytes
    _psk: bytes = field(repr=False)  # 32 bytes
    _client_static: EllipticCurvePublicKey = field(repr=False)
    _linking: bool  # whether the device would keep a link

    def respond(
        self, message1: bytes, *, ephemeral: EllipticCurvePrivateKey | None = None
    ) -> tuple[bytes, AuthenticatorChannel]:
        """Message 2 and the channel; `RemoteProtocolError` when the peer does not hold our PSK."""
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
    """A client platform that we linked ourselves to has had us woken."""

    link: OfferedLink
    payload: ClientPayload  # its `hint` says what we shall be asked

    def __post_init__(self) -> None:
        if self.payload.link_id != self.link.link_id:
            raise LocalProtocolError("the client payload is for another link")

    def advertise(self, *, eid: Eid | None = None) -> "LinkedAdvertised":
        """The advert that only the client platform with that link recognises. eid: for tests."""
        eid = eid or Eid.state_assisted()
        key = _eid.eid_key(self.link.link_secret, self.payload.client_nonce)
        return LinkedAdvertised(
            service_data=_eid.seal_advert(key, eid),
            _psk=_eid.psk(self.link.link_secret, eid),
            _static=self.link.identity,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedAdvertised:
    """The advert is in the air; whoever heard it and holds the link may join."""

    service_data: bytes  # 20 bytes
    _psk: bytes = field(repr=False)  # 32 bytes
    _static: EllipticCurvePrivateKey = field(repr=False)

    def respond(
        self, message1: bytes, *, ephemeral: EllipticCurvePrivateKey | None = None
    ) -> tuple[bytes, AuthenticatorChannel]:
        """Message 2 and the channel; `RemoteProtocolError` when the peer does not hold our link."""
        responder = noise.Responder.respond(message1, psk=self._psk, static=self._static, ephemeral=ephemeral)
        to_authenticator, to_client = responder.state.split()
        return responder.message2, AuthenticatorChannel(sending=to_client, receiving=to_authenticator)
