"""Links: how a client platform reaches an authenticator again without a FIDO URL (CTAP 2.2 §11.5.2).

In a QR-initiated session the authenticator may hand over *linking information*: how to have it woken (contact
ID), which link this is (link ID), a secret for the link, and its long-term key, signed for this session:

    signature = HMAC-SHA256(key = ECDH(long-term key, key in the FIDO URL), data = handshake hash)

Both ends can compute that, so it proves possession of the long-term key to the one who made the FIDO URL, and
to nobody else. Linking information that is malformed or wrongly signed is dropped, and `NoLink` says why; the
session goes on without it. Later, the client platform sends a *client payload* with its contact request,
which tells the woken authenticator which link is meant, and with which nonce to seal its advert.
"""

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.hybrid.keys import ecdh, parse_uncompressed, uncompressed
from headless_passkey.hybrid.tunnel_url import MAX_CONTACT_ID_SIZE
from headless_passkey.names import plain

LINK_ID_SIZE: Final = 8
LINK_SECRET_SIZE: Final = 32
CLIENT_NONCE_SIZE: Final = 16

_CONTACT_ID, _LINK_ID, _LINK_SECRET, _PUBLIC_KEY, _NAME, _SIGNATURE = range(1, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkingInformation:
    """What travels, inside an update or the post-handshake message."""

    contact_id: bytes = field(repr=False)  # 1-4096 bytes; opaque to us, meaningful to the tunnel service
    link_id: bytes  # 8 bytes; meaningful to the authenticator
    link_secret: bytes = field(repr=False)  # 32 bytes
    public_key: bytes  # 65 bytes: the authenticator's long-term key
    name: str  # as the phone calls itself
    signature: bytes = field(repr=False)  # 32 bytes

    @classmethod
    def parse(cls, value: Any) -> Self:
        """From the CBOR map; `RemoteProtocolError` for anything else. The name is cleaned for display."""
        if not isinstance(value, dict):
            raise RemoteProtocolError("linking information is not a map")
        contact_id = value.get(_CONTACT_ID)
        if not isinstance(contact_id, bytes) or not 0 < len(contact_id) <= MAX_CONTACT_ID_SIZE:
            raise RemoteProtocolError("linking information has no contact ID that could be sent")
        public_key, name = _sized(value, _PUBLIC_KEY, 65), value.get(_NAME)
        parse_uncompressed(public_key)
        if not isinstance(name, str):
            raise RemoteProtocolError("the name in linking information is not text")
        return cls(
            contact_id=contact_id,
            link_id=_sized(value, _LINK_ID, LINK_ID_SIZE),
            link_secret=_sized(value, _LINK_SECRET, LINK_SECRET_SIZE),
            public_key=public_key,
            name=plain(name) or "",
            signature=_sized(value, _SIGNATURE, 32),
        )

    def as_map(self) -> dict[int, Any]:
        return {
            _CONTACT_ID: self.contact_id,
            _LINK_ID: self.link_id,
            _LINK_SECRET: self.link_secret,
            _PUBLIC_KEY: self.public_key,
            _NAME: self.name,
            _SIGNATURE: self.signature,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedPhone:
    """What a client platform keeps of a link that it has checked: a credential, to be protected like one.

    There is one link for each `public_key`: a newer one takes the place of the older.
    """

    contact_id: bytes = field(repr=False)  # 1-4096 bytes
    link_id: bytes  # 8 bytes
    link_secret: bytes = field(repr=False)  # 32 bytes
    public_key: bytes  # 65 bytes
    name: str  # a valid name, or empty
    tunnel_domain: int  # whose tunnel service can wake it: the number in the advert of the session


class NoLink(StrEnum):
    """Why a message brought no link."""

    NOT_OFFERED = "not-offered"  # the normal case: it had no linking information
    OUT_OF_PLACE = (
        "out-of-place"  # not QR-initiated, so nothing to check it with; or we never offered to keep links
    )
    MALFORMED = "malformed"
    BAD_SIGNATURE = "bad-signature"  # made for another session, or without the long-term key


ReadLink = Callable[[Any], LinkedPhone | NoLink]


def read_link(
    value: Any, *, static: EllipticCurvePrivateKey, handshake_hash: bytes, tunnel_domain: int
) -> LinkedPhone | NoLink:
    """The link in linking information, once its signature was found good for this session.

    static: our key in the FIDO URL. handshake_hash: 32 bytes. tunnel_domain: of the session.
    """
    try:
        linking = LinkingInformation.parse(value)
    except RemoteProtocolError:
        return NoLink.MALFORMED
    expected = link_signature(static, parse_uncompressed(linking.public_key), handshake_hash)
    if not hmac.compare_digest(expected, linking.signature):
        return NoLink.BAD_SIGNATURE
    return LinkedPhone(
        contact_id=linking.contact_id,
        link_id=linking.link_id,
        link_secret=linking.link_secret,
        public_key=linking.public_key,
        name=linking.name,
        tunnel_domain=tunnel_domain,
    )


def discard_link(_value: Any) -> NoLink:
    """In place of `read_link` where linking information has no business to be."""
    return NoLink.OUT_OF_PLACE


def link_signature(
    private: EllipticCurvePrivateKey, public: EllipticCurvePublicKey, handshake_hash: bytes
) -> bytes:
    """32 bytes, the same from either end: long-term key and key in the FIDO URL, one of them private."""
    return hmac.digest(ecdh(private, public), handshake_hash, "sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedLink:
    """What an authenticator keeps of a link: enough to offer it, and to recognise who uses it later."""

    contact_id: bytes = field(repr=False)  # 1-4096 bytes, with which its tunnel service can wake it
    link_id: bytes  # 8 bytes
    link_secret: bytes = field(repr=False)  # 32 bytes
    identity: EllipticCurvePrivateKey = field(repr=False)  # the long-term key
    name: str  # to be shown by the client platform

    def __post_init__(self) -> None:
        if not 0 < len(self.contact_id) <= MAX_CONTACT_ID_SIZE:
            raise LocalProtocolError(f"a contact ID has 1 to {MAX_CONTACT_ID_SIZE} bytes")
        if (len(self.link_id), len(self.link_secret)) != (LINK_ID_SIZE, LINK_SECRET_SIZE):
            raise LocalProtocolError("a link ID has 8 bytes and a link secret 32")

    @classmethod
    def create(cls, *, contact_id: bytes, identity: EllipticCurvePrivateKey, name: str) -> Self:
        """A fresh link, for one client platform."""
        return cls(
            contact_id=contact_id,
            link_id=secrets.token_bytes(LINK_ID_SIZE),
            link_secret=secrets.token_bytes(LINK_SECRET_SIZE),
            identity=identity,
            name=name,
        )

    def sign(self, *, client_static: EllipticCurvePublicKey, handshake_hash: bytes) -> LinkingInformation:
        """Linking information for the session of that hash with the owner of that key."""
        return LinkingInformation(
            contact_id=self.contact_id,
            link_id=self.link_id,
            link_secret=self.link_secret,
            public_key=uncompressed(self.identity.public_key()),
            name=self.name,
            signature=link_signature(self.identity, client_static, handshake_hash),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPayload:
    """What a client platform has carried to the authenticator that it wants woken."""

    link_id: bytes  # 8 bytes
    client_nonce: bytes = field(repr=False)  # 16 bytes, salts the EID key
    hint: RequestKind  # GET_ASSERTION or MAKE_CREDENTIAL

    def __post_init__(self) -> None:
        if (len(self.link_id), len(self.client_nonce)) != (LINK_ID_SIZE, CLIENT_NONCE_SIZE):
            raise LocalProtocolError("a client payload has a link ID of 8 bytes and a nonce of 16")
        if self.hint not in _HINTS:
            raise LocalProtocolError("a state-assisted transaction is for ga or mc")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        values = cbor.decode_map(data)
        hint = next((hint for hint in _HINTS if values.get(3) == hint), None)
        if hint is None:
            raise RemoteProtocolError("the client payload's hint is neither ga nor mc")
        return cls(
            link_id=_sized(values, 1, LINK_ID_SIZE),
            client_nonce=_sized(values, 2, CLIENT_NONCE_SIZE),
            hint=hint,
        )

    def encode(self) -> bytes:
        return cbor.encode({1: self.link_id, 2: self.client_nonce, 3: self.hint.value})


_HINTS: Final = (RequestKind.GET_ASSERTION, RequestKind.MAKE_CREDENTIAL)


def _sized(values: dict[Any, Any], key: int, size: int) -> bytes:
    value = values.get(key)
    if not isinstance(value, bytes) or len(value) != size:
        raise RemoteProtocolError(f"key {key} of a link is not a byte string of {size}")
    return value
