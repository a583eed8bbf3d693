"""Links: how a client platform reaches an authenticator again without a FIDO URL (CTAP 2.2 §11.5.2).

In a QR-initiated session the authenticator may send *linking information*: a contact ID, with which its tunnel service
wakes it, a link ID, a link secret, and its long-term public key, signed for this session:

    signature = HMAC-SHA256(key = ECDH(long-term key, key in the FIDO URL), data = handshake hash)

Both ends can compute this value, so it proves possession of the long-term key to the maker of the FIDO URL and to
nobody else. Linking information that is malformed or wrongly signed is dropped, and `NoLink` says why; the
session goes on without a link. Later, the client platform sends a *client payload* with its contact request: it
names the link, and the nonce that salts the key of the advert.
"""

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

from headless_passkey.errors import LocalProtocolError, ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.hybrid.keys import ecdh, parse_uncompressed, uncompressed
from headless_passkey.hybrid.tunnel_url import MAX_CONTACT_ID_SIZE
from program_parts.names import plain

LINK_ID_SIZE: Final = 8
LINK_SECRET_SIZE: Final = 32
CLIENT_NONCE_SIZE: Final = 16

_CONTACT_ID, _LINK_ID, _LINK_SECRET, _PUBLIC_KEY, _NAME, _SIGNATURE = range(1, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkingInformation:
    """Linking information as it is sent, inside an update or the post-handshake message."""

    contact_id: bytes = field(repr=False)  # 1-4096 bytes; opaque to us, meaningful to the tunnel service
    link_id: bytes  # 8 bytes; meaningful to the authenticator
    link_secret: bytes = field(repr=False)  # 32 bytes
    public_key: bytes  # 65 bytes: the authenticator's long-term key
    name: str  # the phone's name for itself
    signature: bytes = field(repr=False)  # 32 bytes

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Parse the CBOR map; `RemoteProtocolError` for anything else. The name is made valid for display."""
        if not isinstance(value, dict):
            raise RemoteProtocolError(
                "linking information is not a map", reason=ProtocolReason.MALFORMED_LINKING
            )
        contact_id = value.get(_CONTACT_ID)
        if not isinstance(contact_id, bytes) or not 0 < len(contact_id) <= MAX_CONTACT_ID_SIZE:
            raise RemoteProtocolError(
                "linking information has no contact ID of a possible size",
                reason=ProtocolReason.MALFORMED_LINKING,
            )
        public_key, name = _sized(value, _PUBLIC_KEY, 65), value.get(_NAME)
        parse_uncompressed(public_key)
        if not isinstance(name, str):
            raise RemoteProtocolError(
                "the name in linking information is not text", reason=ProtocolReason.MALFORMED_LINKING
            )
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
    """A verified link, as a client platform stores it. It is a credential, and to be protected as one.

    There is one link for each `public_key`: a newer link replaces the older one.
    """

    contact_id: bytes = field(repr=False)  # 1-4096 bytes
    link_id: bytes  # 8 bytes
    link_secret: bytes = field(repr=False)  # 32 bytes
    public_key: bytes  # 65 bytes
    name: str  # a valid name, or empty
    tunnel_domain: int  # names the tunnel service that can wake it: the number in the session's advert


class NoLink(StrEnum):
    """Why a message brought no link."""

    NOT_OFFERED = "not-offered"  # the normal case: no linking information
    OUT_OF_PLACE = "out-of-place"  # no QR-initiated session, so no key to verify it with; or key 4 of the FIDO URL is not true
    MALFORMED = "malformed"
    BAD_SIGNATURE = "bad-signature"  # of another session, or made without the long-term key


ReadLink = Callable[[Any], LinkedPhone | NoLink]


def read_link(
    value: Any, *, static: EllipticCurvePrivateKey, handshake_hash: bytes, tunnel_domain: int
) -> LinkedPhone | NoLink:
    """Parse linking information and verify its signature for this session.

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
    """Drop linking information: stands for `read_link` in a session that takes no link."""
    return NoLink.OUT_OF_PLACE


def link_signature(
    private: EllipticCurvePrivateKey, public: EllipticCurvePublicKey, handshake_hash: bytes
) -> bytes:
    """Compute the signature, 32 bytes: from one private and one public key of the pair long-term key and key in the FIDO URL."""
    return hmac.digest(ecdh(private, public), handshake_hash, "sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedLink:
    """A link as an authenticator stores it: enough to offer the link, and to recognise it in a contact request."""

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
        """Create a link for one client platform, with fresh ID and secret."""
        return cls(
            contact_id=contact_id,
            link_id=secrets.token_bytes(LINK_ID_SIZE),
            link_secret=secrets.token_bytes(LINK_SECRET_SIZE),
            identity=identity,
            name=name,
        )

    def sign(self, *, client_static: EllipticCurvePublicKey, handshake_hash: bytes) -> LinkingInformation:
        """Make linking information, signed for one session. client_static: the key in its FIDO URL."""
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
    """The client payload of a contact request, which the tunnel service carries to the authenticator."""

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
            raise RemoteProtocolError(
                "the client payload's hint is neither ga nor mc", reason=ProtocolReason.MALFORMED_LINKING
            )
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
        raise RemoteProtocolError(
            f"key {key} of a link is not a byte string of {size}", reason=ProtocolReason.MALFORMED_LINKING
        )
    return value
