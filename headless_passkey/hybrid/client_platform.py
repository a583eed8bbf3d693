"""The client platform: what the device does in a transaction (CTAP 2.2 §11.5.1, state-assisted: §11.5.2).

Each stage returns the next, so a wrong order cannot be written down::

    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=now)
    transaction.url.encode()                       # hand this to the phone
    eid = transaction.open_advert(service_data)    # None: another device's phone, keep listening
    pending = transaction.handshake(eid)           # pending.message goes into the tunnel
    channel = pending.finish(reply)                # raises: the peer does not hold our PSK
    channel.receive_post_handshake(message)
    message = channel.send(GetAssertionRequest(...))
    event = channel.receive(message)               # Update(link=LinkedPhone(...)): worth keeping

    transaction = StateAssistedTransaction.create(linked_phone, hint=RequestKind.GET_ASSERTION)
    transaction.contact_url(base), transaction.headers     # have the phone woken
    eid = transaction.open_advert(service_data)    # and on as above
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from secrets import token_bytes
from typing import Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from headless_passkey.hybrid import eid as _eid
from headless_passkey.hybrid import noise
from headless_passkey.hybrid.channel import ClientChannel
from headless_passkey.hybrid.eid import Eid
from headless_passkey.hybrid.fido_url import SECRET_SIZE, FidoUrl, RequestKind
from headless_passkey.hybrid.keys import compressed, generate, parse_uncompressed
from headless_passkey.hybrid.linking import (
    CLIENT_NONCE_SIZE,
    ClientPayload,
    LinkedPhone,
    discard_link,
    read_link,
)
from headless_passkey.hybrid.tunnel_url import ASSIGNED_DOMAINS, contact_headers, contact_url


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
        hint: RequestKind,
        time: int,
        linking: bool = False,
        private: EllipticCurvePrivateKey | None = None,
        secret: bytes | None = None,
    ) -> Self:
        """A fresh transaction. time: Unix seconds. linking: whether the phone may offer a link.

        private, secret: for tests; fresh otherwise.
        """
        private = private or generate()
        url = FidoUrl(
            public_key=compressed(private.public_key()),
            secret=secret or token_bytes(SECRET_SIZE),
            assigned_domains=len(ASSIGNED_DOMAINS),
            time=time,
            linking=linking,  # sent although false: without it some phones speak the old revision
            hint_raw=hint.value,
        )
        return cls(url=url, _private=private, _eid_key=_eid.eid_key(url.secret))

    def open_advert(self, service_data: bytes) -> Eid | None:
        """The EID of the phone that read our URL, or None for any other advert.

        It names a tunnel domain; an advert whose domain nobody knows is to be ignored.
        """
        return _eid.open_advert(self._eid_key, service_data)

    def handshake(self, eid: Eid) -> "PendingHandshake":
        """Begin the handshake with the phone that sent `eid`."""
        return PendingHandshake(
            _initiator=noise.Initiator(psk=_eid.psk(self.url.secret, eid), static=self._private),
            _link_key=self._private if self.url.linking else None,
            _tunnel_domain=eid.tunnel_domain,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StateAssistedTransaction:
    """A phone that linked itself earlier is asked to come, without any FIDO URL."""

    phone: LinkedPhone
    payload: ClientPayload
    _eid_key: bytes = field(repr=False)  # 64 bytes

    @classmethod
    def create(cls, phone: LinkedPhone, *, hint: RequestKind, client_nonce: bytes | None = None) -> Self:
        """A fresh transaction. hint: ``ga`` or ``mc``. client_nonce: for tests; fresh otherwise."""
        nonce = client_nonce or token_bytes(CLIENT_NONCE_SIZE)
        payload = ClientPayload(link_id=phone.link_id, client_nonce=nonce, hint=hint)
        return cls(phone=phone, payload=payload, _eid_key=_eid.eid_key(phone.link_secret, nonce))

    def contact_url(self, base: str) -> str:
        """Where to have the phone woken. base: ``wss://host`` of the phone's tunnel domain."""
        return contact_url(base, self.phone.contact_id)

    @property
    def headers(self) -> dict[str, str]:
        """What goes with that request."""
        return contact_headers(self.payload.encode())

    def open_advert(self, service_data: bytes) -> Eid | None:
        """The EID of the phone we had woken, or None for any other advert.

        Its routing ID and tunnel domain say nothing.
        """
        return _eid.open_advert(self._eid_key, service_data)

    def handshake(self, eid: Eid) -> "PendingHandshake":
        """Begin the handshake with the phone that sent `eid`; it cannot bring another link."""
        return PendingHandshake(
            _initiator=noise.Initiator(
                psk=_eid.psk(self.phone.link_secret, eid),
                authenticator_static=parse_uncompressed(self.phone.public_key),
            )
        )


_Transaction = TypeVar("_Transaction", bound=QrTransaction | StateAssistedTransaction)


def open_for_any(
    transactions: Sequence[_Transaction], service_data: bytes
) -> tuple[_Transaction, Eid] | None:
    """As `open_advert` of each of several transactions, at the cost of one HMAC for each."""
    keys = (transaction._eid_key for transaction in transactions)  # noqa: SLF001  of this module
    opened = _eid.open_with_any(keys, service_data)
    return None if opened is None else (transactions[opened[0]], opened[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingHandshake:
    """Message 1 is on its way, message 2 has not come yet."""

    _initiator: noise.Initiator = field(repr=False)
    _link_key: EllipticCurvePrivateKey | None = field(
        repr=False, default=None
    )  # None: links are not for this session
    _tunnel_domain: int = 0

    @property
    def message(self) -> bytes:
        """81 bytes, the first message into the tunnel."""
        return self._initiator.message1

    def finish(self, reply: bytes) -> ClientChannel:
        """The channel; `RemoteProtocolError` when the peer is not the phone we asked for."""
        state = self._initiator.finish(reply)
        to_authenticator, to_client = state.split()
        if self._link_key is None:
            return ClientChannel(sending=to_authenticator, receiving=to_client, read_link=discard_link)
        check = partial(
            read_link,
            static=self._link_key,
            handshake_hash=state.h,
            tunnel_domain=self._tunnel_domain,
        )
        return ClientChannel(sending=to_authenticator, receiving=to_client, read_link=check)
