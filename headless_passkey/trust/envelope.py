"""The envelope: a FIDO URL signed by the device, sealed to one companion (docs/protocol/trust.md).

    envelope  = HPKE seal to the recipient, info, of body || signature (64 bytes)
    info      = [label, suite, account, request id, device, recipient, HPKE key name]
    body      = [label, account, request id, device, recipient, HPKE key name, suite, ring version, ring hash,
                 confirmed, issued, expires, kind, FIDO URL, rp id, rp name | null, note | null, match digits | null]

The device signs, then seals; the signature covers recipient and request id. So nobody can send an envelope to another
recipient or under another request id, and knowledge of the recipient's key is not enough to make one. Opening has two
stages, so that nothing is parsed before its signature is verified:

    opened = open_envelope(sealed, …)         # decrypted; from an unknown sender
    announcement = opened.verified(device)    # signed by that device
"""

import hmac
import secrets
from dataclasses import dataclass, field
from typing import Final

from headless_passkey.errors import (
    LocalProtocolError,
    ProtocolReason,
    RemoteProtocolError,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.trust.fields import PROJECT, REQUEST_ID_SIZE, Fields
from headless_passkey.trust.hpke import HpkePrivateKey, seal_to
from headless_passkey.trust.ring import HpkeKey, Member, Ring
from headless_passkey.trust.signing import SIGNATURE_SIZE, SigningKey, sign_document, thumbprint, verify
from program_parts.domains import is_domain
from program_parts.names import MAX_LABEL, plain

ENVELOPE_LABEL: Final = f"{PROJECT} envelope v2"
MAX_LIFETIME: Final = 300  # seconds; a limit of the format
MAX_SEALED: Final = 3072  # bytes, the relay's limit
MAX_NOTE: Final = 140  # characters
_MAX_VERSION: Final = 1 << 32
_KINDS: Final = (RequestKind.GET_ASSERTION, RequestKind.MAKE_CREDENTIAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """The content of an envelope: one device's request to one companion. Its URL is a secret."""

    account: str
    request_id: bytes  # 16 bytes, random, chosen by the device
    device: str  # the name of the member that signs
    recipient: str  # the name of the companion it is for
    hpke_key_name: bytes  # 32 bytes
    suite: int
    ring_version: int  # of the ring the device took the recipient from
    ring_hash: bytes  # 32 bytes
    confirmed: int  # Unix seconds: when two companions, or as many as there are, had confirmed that ring
    issued: int  # Unix seconds by the device's clock
    expires: int  # at most 300 s after issued
    kind: RequestKind  # GET_ASSERTION or MAKE_CREDENTIAL
    url: str = field(repr=False)  # the FIDO URL, fresh for this recipient
    rp_id: str
    rp_name: str | None = None  # as the device says; not verified
    note: str | None = None  # free text of the device, for instance its place
    digits: str | None = field(default=None, repr=False)  # 2 to 8 match digits the device shows or speaks

    @classmethod
    def address(
        cls,
        recipient: Member,
        *,
        ring: Ring,
        device: str,
        request_id: bytes,
        confirmed: int,
        now: float,
        lifetime: int,
        kind: RequestKind,
        url: str,
        rp_id: str,
        rp_name: str | None = None,
        note: str | None = None,
        digits: str | None = None,
    ) -> "Announcement":
        """Make an announcement to `recipient`, a companion of `ring`. lifetime: seconds, at most 300.

        rp_name, note: made valid as names, and cut to their maximum.
        """
        if recipient.hpke_key is None:
            raise LocalProtocolError("an envelope is sealed to a companion")
        if kind not in _KINDS:
            raise LocalProtocolError("an envelope asks for an assertion (ga) or a new credential (mc)")
        return cls(
            account=ring.account,
            request_id=request_id,
            device=device,
            recipient=recipient.name,
            hpke_key_name=recipient.hpke_key.name,
            suite=recipient.hpke_key.suite,
            ring_version=ring.version,
            ring_hash=ring.hash,
            confirmed=confirmed,
            issued=int(now),
            expires=int(now) + lifetime,
            kind=kind,
            url=url,
            rp_id=rp_id,
            rp_name=None if rp_name is None else plain(rp_name),
            note=None if note is None else plain(note, MAX_NOTE),
            digits=digits,
        )

    def digits_match(self, typed: str) -> bool:
        """Compare `typed` with the device's match digits, in constant time; spaces are ignored."""
        if self.digits is None:
            raise LocalProtocolError("the device shows no digits for this request")
        return hmac.compare_digest("".join(typed.split()).encode(), self.digits.encode())


def new_request_id() -> bytes:
    """Make a request id: 16 random bytes."""
    return secrets.token_bytes(REQUEST_ID_SIZE)


def seal(announcement: Announcement, key: SigningKey, recipient: HpkeKey) -> bytes:
    """Sign `announcement` with the device's `key` and seal it to `recipient`.

    Sealing is randomised. To repeat a request, send the same bytes again.
    """
    if announcement.device != thumbprint(key.public_key):
        raise LocalProtocolError("the announcement names another device")
    if (announcement.suite, announcement.hpke_key_name) != (recipient.suite, recipient.name):
        raise LocalProtocolError("the announcement names another HPKE key")
    body = _encode(announcement)
    try:
        _parse(body)
    except (RemoteProtocolError, TrustError) as error:
        raise LocalProtocolError(f"the envelope would be invalid: {error}") from error
    info = _info(
        hpke_key=recipient,
        account=announcement.account,
        request_id=announcement.request_id,
        device=announcement.device,
        recipient=announcement.recipient,
    )
    sealed = seal_to(recipient, body + sign_document(key, body), info)
    if len(sealed) > MAX_SEALED:
        raise LocalProtocolError(f"an envelope has at most {MAX_SEALED} bytes, not {len(sealed)}")
    return sealed


def open_envelope(
    sealed: bytes,
    *,
    hpke_private: HpkePrivateKey,
    account: str,
    request_id: bytes,
    device: str,
    recipient: str,
) -> "Opened":
    """Decrypt an envelope; `TrustError` (cannot-open) when it was sealed for another recipient or request.

    device: the sender, as the relay says. Only `Opened.verified` proves it.
    """
    if len(sealed) > MAX_SEALED:
        raise RemoteProtocolError(
            f"an envelope has at most {MAX_SEALED} bytes, got {len(sealed)}", reason=ProtocolReason.TOO_LONG
        )
    info = _info(
        hpke_key=hpke_private.public,
        account=account,
        request_id=request_id,
        device=device,
        recipient=recipient,
    )
    content = hpke_private.open(sealed, info)
    return Opened(
        content=content,
        account=account,
        request_id=request_id,
        device=device,
        recipient=recipient,
        hpke_key=hpke_private.public,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A decrypted envelope whose sender is unknown: everybody who knows our public key can seal one."""

    content: bytes = field(repr=False)  # body || signature
    account: str
    request_id: bytes
    device: str
    recipient: str
    hpke_key: HpkeKey

    def verified(self, device: Member) -> Announcement:
        """Verify that `device` signed this for us and this request; `TrustError` when not."""
        body, signature = self.content[:-SIGNATURE_SIZE], self.content[-SIGNATURE_SIZE:]
        if not verify(device.signing_key, signature, body):
            raise TrustError(TrustReason.BAD_SIGNATURE, "the envelope is not signed by that device")
        said = _parse(body)
        if said.device != device.name:
            raise TrustError(TrustReason.BAD_SIGNATURE, "the envelope is signed in another device's name")
        if said.account != self.account:
            raise TrustError(TrustReason.ACCOUNT_MISMATCH, "the device means another account")
        if said.recipient != self.recipient:
            raise TrustError(TrustReason.RECIPIENT_MISMATCH, "the device means another companion")
        if (said.suite, said.hpke_key_name) != (self.hpke_key.suite, self.hpke_key.name):
            raise TrustError(TrustReason.RECIPIENT_MISMATCH, "the device means another key of this companion")
        if said.request_id != self.request_id:
            raise TrustError(TrustReason.REPLAYED, "the device signed this for another request")
        return said


def _info(*, hpke_key: HpkeKey, account: str, request_id: bytes, device: str, recipient: str) -> bytes:
    return cbor.encode(
        [ENVELOPE_LABEL, hpke_key.suite, account, request_id, device, recipient, hpke_key.name]
    )


def _encode(said: Announcement) -> bytes:
    return cbor.encode(
        [
            ENVELOPE_LABEL,
            said.account,
            said.request_id,
            said.device,
            said.recipient,
            said.hpke_key_name,
            said.suite,
            said.ring_version,
            said.ring_hash,
            said.confirmed,
            said.issued,
            said.expires,
            said.kind,
            said.url,
            said.rp_id,
            said.rp_name,
            said.note,
            said.digits,
        ]
    )


def _parse(body: bytes) -> Announcement:
    fields = Fields.of(body, ENVELOPE_LABEL, 17, limit=MAX_SEALED)
    account = fields.account()
    request_id = fields.octets(REQUEST_ID_SIZE)
    device, recipient = fields.name(), fields.name()
    hpke_key_name = fields.octets(32)
    suite = fields.integer(1, 0xFFFF)
    ring_version, ring_hash = fields.integer(1, _MAX_VERSION), fields.octets(32)
    confirmed, issued, expires = fields.time(), fields.time(), fields.time()
    if not 0 < expires - issued <= MAX_LIFETIME:
        raise RemoteProtocolError(
            f"an envelope lives 1 to {MAX_LIFETIME} s, not {expires - issued}",
            reason=ProtocolReason.MALFORMED_ENVELOPE,
        )
    kind = fields.take()
    if kind not in _KINDS:
        raise TrustError(TrustReason.KIND_MISMATCH, "the device asks for something that is neither ga nor mc")
    url = fields.take()
    if not isinstance(url, str):
        raise TrustError(TrustReason.BAD_URL, "the FIDO URL is not text")
    rp_id = fields.text(253)
    if not is_domain(rp_id):
        raise RemoteProtocolError(
            "the envelope's rp id is not a domain name", reason=ProtocolReason.MALFORMED_ENVELOPE
        )
    rp_name = fields.optional(lambda: fields.text(MAX_LABEL))
    note = fields.optional(lambda: fields.text(MAX_NOTE))
    digits = fields.optional(lambda: fields.text(8))
    if digits is not None and not (len(digits) >= 2 and digits.isascii() and digits.isdigit()):
        raise RemoteProtocolError("match digits are 2 to 8 digits", reason=ProtocolReason.MALFORMED_ENVELOPE)
    return Announcement(
        account=account,
        request_id=request_id,
        device=device,
        recipient=recipient,
        hpke_key_name=hpke_key_name,
        suite=suite,
        ring_version=ring_version,
        ring_hash=ring_hash,
        confirmed=confirmed,
        issued=issued,
        expires=expires,
        kind=RequestKind(kind),
        url=url,
        rp_id=rp_id,
        rp_name=rp_name,
        note=note,
        digits=digits,
    )
