"""How a newcomer gets into the ring: invitation, introduction, answer (docs/protocol/trust.md).

An invitation carries a secret S over a channel the relay does not see. From S come a ticket, which is all
the relay learns, and two MAC keys: the newcomer proves with one that it holds the invitation, the inviter
proves with the other that the ring it answers with is its answer to this newcomer.

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

from headless_passkey.base64url import base64url
from headless_passkey.errors import LocalProtocolError, RemoteProtocolError, TrustError, TrustReason
from headless_passkey.hybrid import cbor
from headless_passkey.names import MAX_LABEL
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
)
from headless_passkey.trust.signing import (
    POINT_SIZE,
    SIGNATURE_SIZE,
    SigningKey,
    parse_public_key,
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
    """What the inviter hands to one newcomer, out of the relay's sight.

    text = "hpk-invitation:" base64url([label, relay URL, account, kind, inviter, S, expiry])
    """

    relay_url: str
    account: str
    kind: Role  # what it admits
    inviter: str  # the name of a companion: the newcomer pins it
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
        """One line of text; a secret."""
        return to_line(PREFIX, self._encode())

    @classmethod
    def parse(cls, line: str) -> "Invitation":
        return cls._parse(from_line(PREFIX, line, "invitation"))

    def check_expiry(self, now: float, *, skew: int = 0) -> None:
        """Refuse when it is too late by this clock.

        skew: seconds by which the clock may differ from the inviter's: `MAX_SKEW` for a newcomer's.
        """
        late = int(now) - self.expires_at
        if late >= skew:
            raise TrustError(
                TrustReason.INVITATION_EXPIRED, f"by this clock the invitation expired {late} s ago"
            )

    @property
    def ticket(self) -> bytes:
        """32 bytes: admits one newcomer, once; the only part the relay ever sees."""
        return self._derive("ticket")

    @property
    def id(self) -> str:
        """What the relay calls this invitation: the hash of the ticket, base64url."""
        return base64url(hashlib.sha256(self.ticket).digest())

    @property
    def k_new(self) -> bytes:
        """32 bytes: the newcomer's MAC key."""
        return self._derive("newcomer")

    @property
    def k_inv(self) -> bytes:
        """32 bytes: the inviter's MAC key."""
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
            account=fields.text(MAX_LABEL),
            kind=parse_role(fields.take()),
            inviter=fields.name(),
            secret=fields.octets(SECRET_SIZE),
            expires_at=fields.time(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """What a newcomer says of itself, with proof of its key and of the invitation.

    body = [label, kind, account, relay URL, inviter, signing key, [suite, public key] | null, label text]
    """

    kind: Role
    account: str
    relay_url: str
    inviter: str
    signing_key: bytes  # 65 bytes
    hpke_key: HpkeKey | None
    label: str
    body: bytes = field(repr=False)
    signature: bytes = field(repr=False)  # of body, by signing_key: possession
    mac: bytes = field(repr=False)  # HMAC(k_new, body)

    @classmethod
    def make(
        cls, invitation: Invitation, *, key: SigningKey, hpke_key: HpkeKey | None, label: str
    ) -> "Introduction":
        """The introduction of who holds `key` and, a companion, the private half of `hpke_key`."""
        body = cbor.encode(
            [
                INTRODUCTION_LABEL,
                invitation.kind,
                invitation.account,
                invitation.relay_url,
                invitation.inviter,
                key.public_key,
                encode_hpke_key(hpke_key),
                label,
            ]
        )
        try:
            return cls._parse(body, key.sign(body), _mac(invitation.k_new, body))
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"this would not be an introduction: {error}") from error

    @classmethod
    def parse(cls, *, body: bytes, signature: bytes, mac: bytes) -> "Introduction":
        """As it came; only `InvitationRecord.check` says whether to believe it."""
        return cls._parse(body, signature, mac)

    @property
    def check_number(self) -> str:
        """Six digits for two people to compare: both sides show the same for the same newcomer."""
        return check_number(self.body)

    def member(self, rp_ids: tuple[str, ...] | None = None) -> Member:
        """The newcomer as a member. rp_ids: what the inviter binds a device to."""
        return Member(
            role=self.kind,
            signing_key=self.signing_key,
            hpke_key=self.hpke_key,
            label=self.label,
            rp_ids=rp_ids,
        )

    @classmethod
    def _parse(cls, body: bytes, signature: bytes, mac: bytes) -> "Introduction":
        if len(signature) != SIGNATURE_SIZE or len(mac) != MAC_SIZE:
            raise RemoteProtocolError("an introduction has a signature of 64 bytes and a MAC of 32")
        fields = Fields.of(body, INTRODUCTION_LABEL, 7, limit=MAX_INTRODUCTION)
        introduction = cls(
            kind=parse_role(fields.take()),
            account=fields.text(MAX_LABEL),
            relay_url=check_relay_url(fields.text(MAX_RELAY_URL)),
            inviter=fields.name(),
            signing_key=fields.octets(POINT_SIZE),
            hpke_key=fields.optional(lambda: parse_hpke_key(fields.take())),
            label=fields.text(MAX_LABEL),
            body=body,
            signature=signature,
            mac=mac,
        )
        parse_public_key(introduction.signing_key)
        introduction.member()  # what could not be a member is no newcomer
        return introduction


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitationRecord:
    """The inviter's own memory of one invitation, by which it judges, whatever the relay says."""

    invitation: Invitation
    rp_ids: tuple[str, ...] | None = None  # what a device that joins by it is bound to
    newcomer: bytes | None = None  # SHA-256 of the body of the one newcomer, once there is one

    def __post_init__(self) -> None:
        if self.rp_ids is not None:
            if self.invitation.kind is not Role.DEVICE:
                raise LocalProtocolError("only devices are bound to rp ids")
            check_rp_ids(self.rp_ids)

    def check(self, *, body: bytes, signature: bytes, mac: bytes, now: float) -> Introduction:
        """The newcomer's introduction, when it is the one this invitation is for.

        The same introduction again is fine; remember it with `taken_by` before anybody is asked for consent.
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
        return introduction

    def taken_by(self, introduction: Introduction) -> "InvitationRecord":
        """The record to keep from now on: no second newcomer."""
        return replace(self, newcomer=_hash(introduction.body))

    def admit(
        self, introduction: Introduction, *, ring: Ring, key: SigningKey, now: float
    ) -> tuple[Ring, bytes]:
        """After consent: the ring to append and answer with, and the MAC that goes with the answer.

        introduction: as `check` returned it. ring: the head. Call it again with the new head when the ring has
        moved, or when it is not known whether the append arrived: a head that already is our answer comes back.
        """
        if self.newcomer is None or not hmac.compare_digest(self.newcomer, _hash(introduction.body)):
            raise LocalProtocolError("admit the newcomer that was checked and remembered, nobody else")
        if thumbprint(key.public_key) != self.invitation.inviter:
            raise LocalProtocolError("only the inviter answers its invitation")
        newcomer = introduction.member(self.rp_ids)
        present = ring.member(newcomer.name)
        if present is not None and present != newcomer:
            raise RemoteProtocolError("the newcomer's key is already a member, under another description")
        if present is None or ring.signer != self.invitation.inviter:
            others = [member for member in ring.members if member.name != newcomer.name]
            ring = ring.next(key, members=[*others, newcomer], now=now)
        return ring, answer_mac(self.invitation, introduction.body, ring.hash)

    def to_bytes(self) -> bytes:
        """For the inviter's disk; a secret."""
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
    """The newcomer's first ring, when it is the inviter's answer to exactly this newcomer.

    ring: the document. Older history does not matter: the inviter vouches for the whole membership.
    """
    if len(ring) <= SIGNATURE_SIZE:
        raise RemoteProtocolError("the answer holds no ring")
    ring_hash = _hash(ring[:-SIGNATURE_SIZE])
    if not hmac.compare_digest(mac, answer_mac(invitation, introduction.body, ring_hash)):
        raise TrustError(TrustReason.BAD_MAC, "the answer is not from the one who invited")
    first = Ring.parse_vouched(ring, inviter=invitation.inviter)
    if first.account != invitation.account:
        raise TrustError(TrustReason.ACCOUNT_MISMATCH, "the answer is a ring of another account")
    member = first.member(thumbprint(introduction.signing_key))
    if member is None or member != introduction.member(member.rp_ids):
        raise TrustError(
            TrustReason.NOT_A_MEMBER, "the answer's ring does not hold us as we introduced ourselves"
        )
    return first


def answer_mac(invitation: Invitation, body: bytes, ring_hash: bytes) -> bytes:
    """32 bytes: HMAC(k_inv, SHA-256(body) || ring hash)."""
    return _mac(invitation.k_inv, _hash(body) + ring_hash)


def check_number(body: bytes) -> str:
    """Six digits from an introduction's body, as people read them: 123 456."""
    number = int.from_bytes(_hash(body)[:8], "big") % 1_000_000
    return f"{number // 1000:03d} {number % 1000:03d}"


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")
