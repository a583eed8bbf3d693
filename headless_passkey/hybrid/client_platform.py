"""The client platform's transactions: QR-initiated (CTAP 2.2 §11.5.1) and state-assisted (§11.5.2).

Each stage returns the next, so a wrong order cannot be written down::

    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=now)
    transaction.url.encode()                       # hand this to the phone
    eid = transaction.open_advert(service_data)    # None: another device's phone, keep listening
    pending = transaction.handshake(eid)           # pending.message goes into the tunnel
    channel = pending.finish(reply)                # raises: the peer does not hold our PSK
    channel.receive_post_handshake(message)
    message = channel.send(GetAssertionRequest(...))
    event = channel.receive(message)               # Update(link=LinkedPhone(...)): store it

    transaction = StateAssistedTransaction.create(linked_phone, hint=RequestKind.GET_ASSERTION)
    transaction.contact_url(base), transaction.headers     # the contact request
    eid = transaction.open_advert(service_data)    # then as above
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
from headless_passkey.hybrid.data_channel import DataChannel
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
    """A QR-initiated transaction: a fresh FIDO URL, with the keys to open the advert of the phone that reads it."""

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
        direct: bool = False,
        private: EllipticCurvePrivateKey | None = None,
        secret: bytes | None = None,
    ) -> Self:
        """Create a transaction with fresh keys. time: Unix seconds. linking: whether the phone may offer a link.
        direct: whether the phone may offer the direct channel, beside the tunnel.

        private, secret: for tests; fresh otherwise.
        """
        private = private or generate()
        url = FidoUrl(
            public_key=compressed(private.public_key()),
            secret=secret or token_bytes(SECRET_SIZE),
            assigned_domains=len(ASSIGNED_DOMAINS),
            time=time,
            linking=linking,  # sent where false too: some phones take its absence for revision 0
            hint_raw=hint.value,
            # sent where asked for only: some phones refuse a URL with this key
            channels=(DataChannel.WEBSOCKET, DataChannel.BLE_L2CAP) if direct else None,
        )
        return cls(url=url, _private=private, _eid_key=_eid.eid_key(url.secret))

    def open_advert(self, service_data: bytes) -> Eid | None:
        """Open the advert of the phone that read our URL; None for any other advert.

        The EID names a tunnel domain. The caller ignores an advert whose domain is not assigned.
        """
        return _eid.open_advert(self._eid_key, service_data)

    def handshake(self, eid: Eid) -> "PendingHandshake":
        """Start the Noise handshake (KNpsk0) with the phone that sent `eid`."""
        return PendingHandshake(
            _initiator=noise.Initiator(psk=_eid.psk(self.url.secret, eid), static=self._private),
            _link_key=self._private if self.url.linking else None,
            _tunnel_domain=eid.tunnel_domain,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StateAssistedTransaction:
    """A state-assisted transaction: it reaches a phone through a stored link, without a FIDO URL."""

    phone: LinkedPhone
    payload: ClientPayload
    _eid_key: bytes = field(repr=False)  # 64 bytes

    @classmethod
    def create(cls, phone: LinkedPhone, *, hint: RequestKind, client_nonce: bytes | None = None) -> Self:
        """Create a transaction. hint: ``ga`` or ``mc``. client_nonce: for tests; fresh otherwise."""
        nonce = client_nonce or token_bytes(CLIENT_NONCE_SIZE)
        payload = ClientPayload(link_id=phone.link_id, client_nonce=nonce, hint=hint)
        return cls(phone=phone, payload=payload, _eid_key=_eid.eid_key(phone.link_secret, nonce))

    def contact_url(self, base: str) -> str:
        """The URL of the contact request. base: ``wss://host`` of the phone's tunnel domain."""
        return contact_url(base, self.phone.contact_id)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the contact request."""
        return contact_headers(self.payload.encode())

    def open_advert(self, service_data: bytes) -> Eid | None:
        """Open the advert of the linked phone; None for any other advert.

        The routing ID and tunnel domain of its EID have no meaning.
        """
        return _eid.open_advert(self._eid_key, service_data)

    def handshake(self, eid: Eid) -> "PendingHandshake":
        """Start the Noise handshake (NKpsk0) with the phone that sent `eid`. Such a session carries no new link."""
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
    """Open an advert with the keys of several transactions, at the cost of one HMAC for each."""
    keys = (transaction._eid_key for transaction in transactions)  # noqa: SLF001  of this module
    opened = _eid.open_with_any(keys, service_data)
    return None if opened is None else (transactions[opened[0]], opened[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingHandshake:
    """A handshake between message 1, which the caller sends, and message 2."""

    _initiator: noise.Initiator = field(repr=False)
    _link_key: EllipticCurvePrivateKey | None = field(
        repr=False, default=None
    )  # None: this session carries no link
    _tunnel_domain: int = 0

    @property
    def message(self) -> bytes:
        """Message 1, 81 bytes: the first message in the tunnel."""
        return self._initiator.message1

    def finish(self, reply: bytes) -> ClientChannel:
        """Take message 2 and open the channel; `RemoteProtocolError` when the peer does not hold our PSK or its static key."""
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
