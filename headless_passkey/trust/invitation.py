"""Enrolment of a newcomer into the ring: invitation, introduction, answer (docs/protocol/trust.md).

An invitation carries a secret S over a channel that the relay does not see. S derives a ticket, which is all that
the relay learns, and two MAC keys. With one the newcomer proves possession of the invitation. With the other the
inviter proves that the ring is its answer to this newcomer.

    newcomer                              inviter
    Introduction.make(invitation, …)  →   record.check(…), consent, record.taken_by(…), admit(…)
    accept(invitation, …)             ←   ring, MAC
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field, replace
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from headless_passkey.errors import (
    LocalProtocolError,
    ProtocolReason,
    RemoteProtocolError,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid import cbor
from headless_passkey.text.base64url import base64url
from headless_passkey.text.names import MAX_LABEL
from headless_passkey.trust.fields import PROJECT, Fields
from headless_passkey.trust.ring import (
    HpkeKey,
    Member,
    Ring,
    Role,
    check_rp_ids,
    encode_hpke_key,
    parse_hpke_key,
    parse_role,
    parse_rp_ids,
    prove_possession,
    proves_possession,
)
from headless_passkey.trust.signing import (
    POINT_SIZE,
    SIGNATURE_SIZE,
    SigningKey,
    parse_public_key,
    sign_document,
    thumbprint,
    verify,
)
from headless_passkey.trust.text_form import MAX_RELAY_URL, MAX_TEXT, check_relay_url, from_line, to_line

PREFIX: Final = "hpk-invitation:"
SECRET_SIZE: Final = 16
MAC_SIZE: Final = 32
LIFETIME: Final = 600  # seconds
MAX_INTRODUCTION: Final = 4096  # bytes
INVITATION_LABEL: Final = f"{PROJECT} invitation v1"
INTRODUCTION_LABEL: Final = f"{PROJECT} introduction v1"
_RECORD_LABEL: Final = f"{PROJECT} invitation record v1"
_MAX_RECORD: Final = 8192  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """An invitation: the secret that the inviter gives to one newcomer, on a channel that the relay does not see.

    text = "hpk-invitation:" base64url([label, relay URL, account, kind, inviter, S, expiry])
    """

    relay_url: str
    account: str
    kind: Role  # of the newcomer that it admits
    inviter: str  # the name of a companion, which the newcomer pins
    secret: bytes = field(repr=False)  # S: 16 random bytes
    expires_at: int  # Unix seconds by the inviter's clock

    @classmethod
    def make(cls, *, relay_url: str, account: str, kind: Role, inviter: str, now: float) -> "Invitation":
        return cls(
            relay_url=check_relay_url(relay_url),
            account=account,
            kind=kind,
            inviter=inviter,
            secret=secrets.token_bytes(SECRET_SIZE),
            expires_at=int(now) + LIFETIME,
        )

    def encode(self) -> str:
        """Encode the invitation as one line of text, which is a secret."""
        return to_line(PREFIX, self._encode())

    @classmethod
    def parse(cls, line: str) -> "Invitation":
        return cls._parse(from_line(PREFIX, line, "invitation", ProtocolReason.MALFORMED_INVITATION))

    def check_expiry(self, now: float, *, skew: int = 0) -> None:
        """Refuse an invitation that has expired by this clock.

        skew: seconds by which this clock may differ from the inviter's: `MAX_SKEW` at a newcomer.
        """
        late = int(now) - self.expires_at
        if late >= skew:
            raise TrustError(
                TrustReason.INVITATION_EXPIRED, f"by this clock the invitation expired {late} s ago"
            )

    @property
    def ticket(self) -> bytes:
        """The ticket, 32 bytes: admits one newcomer once. The relay sees no other part of an invitation."""
        return self._derive("ticket")

    @property
    def id(self) -> str:
        """The relay's name for this invitation: the hash of the ticket, base64url."""
        return base64url(hashlib.sha256(self.ticket).digest())

    @property
    def k_new(self) -> bytes:
        """The newcomer's MAC key, 32 bytes."""
        return self._derive("newcomer")

    @property
    def k_inv(self) -> bytes:
        """The inviter's MAC key, 32 bytes."""
        return self._derive("inviter")

    def _derive(self, purpose: str) -> bytes:
        info = f"{INVITATION_LABEL} {purpose}".encode()
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(self.secret)

    def _encode(self) -> bytes:
        return cbor.encode(
            [
                INVITATION_LABEL,
                self.relay_url,
                self.account,
                self.kind,
                self.inviter,
                self.secret,
                self.expires_at,
            ]
        )

    @classmethod
    def _parse(cls, data: bytes) -> "Invitation":
        fields = Fields.of(data, INVITATION_LABEL, 6, limit=MAX_TEXT)
        return cls(
            relay_url=check_relay_url(fields.text(MAX_RELAY_URL)),
            account=fields.account(),
            kind=parse_role(fields.take()),
            inviter=fields.name(),
            secret=fields.octets(SECRET_SIZE),
            expires_at=fields.time(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """A newcomer's introduction: its description, with proof of possession of its key and of the invitation.

    body = [label, kind, account, relay URL, inviter, signing key, [suite, public key] | null, possession,
            label text]
    """

    kind: Role
    account: str
    relay_url: str
    inviter: str
    signing_key: bytes  # 65 bytes
    hpke_key: HpkeKey | None
    possession: bytes = field(repr=False)  # 64 bytes: of the newcomer's entry in the ring
    label: str
    body: bytes = field(repr=False)
    signature: bytes = field(repr=False)  # of body, by signing_key: proof of possession
    mac: bytes = field(repr=False)  # HMAC(k_new, body)

    @classmethod
    def make(
        cls, invitation: Invitation, *, key: SigningKey, hpke_key: HpkeKey | None, label: str
    ) -> "Introduction":
        """Make the introduction of the holder of `key`; a companion has an `hpke_key` too."""
        possession = prove_possession(
            key, account=invitation.account, role=invitation.kind, hpke_key=hpke_key
        )
        body = cbor.encode(
            [
                INTRODUCTION_LABEL,
                invitation.kind,
                invitation.account,
                invitation.relay_url,
                invitation.inviter,
                key.public_key,
                encode_hpke_key(hpke_key),
                possession,
                label,
            ]
        )
        try:
            return cls._parse(body, sign_document(key, body), _mac(invitation.k_new, body))
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"the introduction would be invalid: {error}") from error

    @classmethod
    def parse(cls, *, body: bytes, signature: bytes, mac: bytes) -> "Introduction":
        """Parse an introduction, which is unverified until `InvitationRecord.check`."""
        return cls._parse(body, signature, mac)

    @property
    def check_number(self) -> str:
        """The check number (short authentication string): six digits, which two people compare, the same on both sides."""
        return check_number(self.body)

    def member(self, rp_ids: tuple[str, ...] | None = None) -> Member:
        """Make the newcomer's entry of the ring. rp_ids: the relying parties to which the inviter binds a device."""
        return Member(
            role=self.kind,
            signing_key=self.signing_key,
            hpke_key=self.hpke_key,
            possession=self.possession,
            label=self.label,
            rp_ids=rp_ids,
        )

    @classmethod
    def _parse(cls, body: bytes, signature: bytes, mac: bytes) -> "Introduction":
        if len(signature) != SIGNATURE_SIZE or len(mac) != MAC_SIZE:
            raise RemoteProtocolError(
                "an introduction has a signature of 64 bytes and a MAC of 32",
                reason=ProtocolReason.MALFORMED_INVITATION,
            )
        fields = Fields.of(body, INTRODUCTION_LABEL, 8, limit=MAX_INTRODUCTION)
        introduction = cls(
            kind=parse_role(fields.take()),
            account=fields.account(),
            relay_url=check_relay_url(fields.text(MAX_RELAY_URL)),
            inviter=fields.name(),
            signing_key=fields.octets(POINT_SIZE),
            hpke_key=fields.optional(lambda: parse_hpke_key(fields.take())),
            possession=fields.octets(SIGNATURE_SIZE),
            label=fields.text(MAX_LABEL),
            body=body,
            signature=signature,
            mac=mac,
        )
        parse_public_key(introduction.signing_key)
        introduction.member()  # refuses what no ring could hold
        return introduction


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitationRecord:
    """The inviter's own record of one invitation. It decides by this record, and not by what the relay says."""

    invitation: Invitation
    rp_ids: tuple[str, ...] | None = None  # the relying parties to which the device is bound
    newcomer: bytes | None = None  # SHA-256 of the first introduction's body; None before one came

    def __post_init__(self) -> None:
        if self.rp_ids is not None:
            if self.invitation.kind is not Role.DEVICE:
                raise LocalProtocolError("only devices are bound to rp ids")
            check_rp_ids(self.rp_ids)

    def check(self, *, body: bytes, signature: bytes, mac: bytes, now: float) -> Introduction:
        """Verify an introduction against this invitation.

        The same introduction may come again. The caller records it with `taken_by` before it asks for consent.
        """
        introduction = Introduction.parse(body=body, signature=signature, mac=mac)
        invitation = self.invitation
        if introduction.kind is not invitation.kind:
            raise TrustError(
                TrustReason.KIND_MISMATCH,
                f"a {introduction.kind} came with an invitation for a {invitation.kind}",
            )
        invitation.check_expiry(now)
        if self.newcomer is not None and not hmac.compare_digest(self.newcomer, _hash(body)):
            raise TrustError(
                TrustReason.INVITATION_USED,
                "somebody else came with this invitation before; look at the members",
            )
        if (introduction.account, introduction.relay_url) != (invitation.account, invitation.relay_url):
            raise TrustError(TrustReason.ACCOUNT_MISMATCH, "the newcomer means another account or relay")
        if introduction.inviter != invitation.inviter:
            raise TrustError(TrustReason.RECIPIENT_MISMATCH, "the newcomer means another inviter")
        if not verify(introduction.signing_key, signature, body):
            raise TrustError(TrustReason.BAD_SIGNATURE, "the newcomer does not hold the key it shows")
        if not hmac.compare_digest(mac, _mac(invitation.k_new, body)):
            raise TrustError(TrustReason.BAD_MAC, "the newcomer does not hold the invitation")
        if not proves_possession(
            introduction.possession,
            account=introduction.account,
            role=introduction.kind,
            signing_key=introduction.signing_key,
            hpke_key=introduction.hpke_key,
        ):
            raise TrustError(TrustReason.BAD_POSSESSION, "the newcomer does not prove its keys")
        return introduction

    def taken_by(self, introduction: Introduction) -> "InvitationRecord":
        """The record with its newcomer set, after which any other introduction is refused."""
        return replace(self, newcomer=_hash(introduction.body))

    def admit(
        self, introduction: Introduction, *, ring: Ring, key: SigningKey, now: float
    ) -> tuple[Ring, bytes]:
        """Make the answer after consent: the ring to append, and its MAC for the newcomer.

        introduction: from `check`. ring: the head. It is idempotent: after a conflict, or when the outcome of the append is
        unknown, call it again with the new head. A head that already holds the newcomer is returned as it is.
        """
        if self.newcomer is None or not hmac.compare_digest(self.newcomer, _hash(introduction.body)):
            raise LocalProtocolError("only the newcomer of this record can be admitted")
        if thumbprint(key.public_key) != self.invitation.inviter:
            raise LocalProtocolError("only the inviter answers its invitation")
        newcomer = introduction.member(self.rp_ids)
        present = ring.member(newcomer.name)
        if present is not None and (present.keys, present.label) != (newcomer.keys, newcomer.label):
            raise RemoteProtocolError(
                "the newcomer's key is already a member, under another description",
                reason=ProtocolReason.MALFORMED_INVITATION,
            )
        if present is None or ring.signer != self.invitation.inviter:
            others = [member for member in ring.members if member.name != newcomer.name]
            ring = ring.next(key, members=[*others, present or newcomer], now=now)
        return ring, answer_mac(self.invitation, introduction.body, ring.hash)

    def to_bytes(self) -> bytes:
        """Serialise the record for the inviter's disk; it is a secret."""
        rp_ids = None if self.rp_ids is None else list(self.rp_ids)
        return cbor.encode([_RECORD_LABEL, self.invitation.encode(), rp_ids, self.newcomer])

    @classmethod
    def from_bytes(cls, data: bytes) -> "InvitationRecord":
        fields = Fields.of(data, _RECORD_LABEL, 3, limit=_MAX_RECORD)
        return cls(
            invitation=Invitation.parse(fields.text(MAX_TEXT)),
            rp_ids=fields.optional(lambda: parse_rp_ids(fields.take())),
            newcomer=fields.optional(lambda: fields.octets(32)),
        )


def accept(invitation: Invitation, introduction: Introduction, *, ring: bytes, mac: bytes) -> Ring:
    """Verify the inviter's answer to exactly this introduction, and return the newcomer's first ring.

    ring: the document. The newcomer checks no earlier version: it trusts the inviter for the whole membership.
    """
    if len(ring) <= SIGNATURE_SIZE:
        raise RemoteProtocolError("the answer holds no ring", reason=ProtocolReason.MALFORMED_INVITATION)
    ring_hash = _hash(ring[:-SIGNATURE_SIZE])
    if not hmac.compare_digest(mac, answer_mac(invitation, introduction.body, ring_hash)):
        raise TrustError(TrustReason.BAD_MAC, "the answer is not from the inviter")
    first = Ring.parse_vouched(ring, inviter=invitation.inviter)
    if first.account != invitation.account:
        raise TrustError(TrustReason.ACCOUNT_MISMATCH, "the answer is a ring of another account")
    member = first.member(thumbprint(introduction.signing_key))
    if member is None or (member.keys, member.label) != (introduction.member().keys, introduction.label):
        raise TrustError(
            TrustReason.NOT_A_MEMBER, "the answer's ring does not hold us as we introduced ourselves"
        )
    return first


def answer_mac(invitation: Invitation, body: bytes, ring_hash: bytes) -> bytes:
    """Compute the MAC of an answer, 32 bytes: HMAC(k_inv, SHA-256(body) || ring hash)."""
    return _mac(invitation.k_inv, _hash(body) + ring_hash)


def check_number(body: bytes) -> str:
    """Compute the check number of an introduction's body, written as 123 456."""
    number = int.from_bytes(_hash(body)[:8], "big") % 1_000_000
    return f"{number // 1000:03d} {number % 1000:03d}"


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")
