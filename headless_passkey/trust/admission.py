"""Both ends of an admission, which each writes to its disk and goes on from after a crash (docs/protocol/trust.md).

    newcomer                              inviter
    Newcomer.make(invitation, …)      →   record.check(…), record.taken_by(introduction)
    newcomer.hears(nonce)             ←   record.nonce
    newcomer.nonce                    →   candidate = record.candidate(introduction, nonce)
    newcomer.number, shown            …   record = candidate.agree(number), typed by a person
    newcomer.accept(ring, MAC)        ←   record.admit(introduction, …)

The newcomer reveals its nonce only when the inviter's is on its disk. Nobody can so try one nonce after the other on a
newcomer that forgets.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field, replace
from typing import Final

from headless_passkey.errors import (
    LocalProtocolError,
    ProtocolReason,
    RemoteProtocolError,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid import cbor
from headless_passkey.mends import mend
from headless_passkey.trust.fields import PROJECT, Fields
from headless_passkey.trust.hpke import can_seal_to
from headless_passkey.trust.introduction import (
    MAC_SIZE,
    MAX_INTRODUCTION,
    NONCE_SIZE,
    Introduction,
    Nonces,
    commit,
    digits_of,
)
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import (
    HpkeKey,
    Ring,
    Role,
    check_rp_ids,
    document_hash,
    parse_rp_ids,
    proves_possession,
)
from headless_passkey.trust.signing import SIGNATURE_SIZE, SigningKey, thumbprint, verify
from headless_passkey.trust.text_form import MAX_TEXT
from program_parts.names import MAX_LABEL, quoted

_NEWCOMER_LABEL: Final = f"{PROJECT} newcomer record v2"
_RECORD_LABEL: Final = f"{PROJECT} invitation record v2"
MAX_RECORD: Final = 8192  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomer:
    """A newcomer's own record of its join. After a crash it goes on with the same bytes."""

    invitation: Invitation
    introduction: Introduction
    nonce: bytes = field(repr=False)  # 32 bytes, to which the introduction commits
    inviter_nonce: bytes | None = field(default=None, repr=False)  # 32 bytes; None before it came

    @classmethod
    def make(
        cls, invitation: Invitation, *, key: SigningKey, hpke_key: HpkeKey | None, label: str
    ) -> "Newcomer":
        """Make the record of the holder of `key`; a companion has an `hpke_key` too."""
        nonce = secrets.token_bytes(NONCE_SIZE)
        introduction = Introduction.make(invitation, key=key, hpke_key=hpke_key, label=label, nonce=nonce)
        return cls(invitation=invitation, introduction=introduction, nonce=nonce)

    def hears(self, inviter_nonce: bytes) -> "Newcomer":
        """The record with the inviter's nonce, to be written to disk before a number is shown or the own nonce revealed.

        `TrustError` (replayed) when another nonce came before: somebody tries for a number that fits.
        """
        if self.inviter_nonce is not None and not hmac.compare_digest(self.inviter_nonce, inviter_nonce):
            raise TrustError(
                TrustReason.REPLAYED,
                "another nonce of the inviter came before: somebody is between this newcomer and its inviter",
            )
        return replace(self, inviter_nonce=inviter_nonce)

    @property
    def number(self) -> str:
        """The number that a person types at the inviter, written as 123 456."""
        return self._nonces.number(self.introduction)

    def accept(self, *, ring: bytes, mac: bytes) -> Ring:
        """Verify the inviter's answer to exactly this introduction, and return the newcomer's first ring.

        ring: the document. The newcomer checks no earlier version: it trusts the inviter for the whole membership,
        and for the label that it is known by.
        """
        if len(ring) <= SIGNATURE_SIZE:
            raise RemoteProtocolError("the answer holds no ring", reason=ProtocolReason.MALFORMED_INVITATION)
        expected = self._nonces.answer_mac(self.invitation, self.introduction, document_hash(ring))
        if not hmac.compare_digest(mac, expected):
            raise TrustError(TrustReason.BAD_MAC, "the answer is not from the inviter")
        first = Ring.parse_vouched(ring, inviter=self.invitation.inviter)
        if first.account != self.invitation.account:
            raise TrustError(TrustReason.ACCOUNT_MISMATCH, "the answer is a ring of another account")
        member = first.member(self.introduction.name)
        if member is None or member.keys != self.introduction.member().keys:
            raise TrustError(
                TrustReason.NOT_A_MEMBER, "the answer's ring does not hold us as we introduced ourselves"
            )
        return first

    def to_bytes(self) -> bytes:
        """Serialise the record for the newcomer's disk; it is a secret."""
        said = self.introduction
        items = [self.invitation.encode(), said.body, said.signature, said.mac, self.nonce]
        return cbor.encode([_NEWCOMER_LABEL, *items, self.inviter_nonce])

    @classmethod
    def from_bytes(cls, data: bytes) -> "Newcomer":
        fields = Fields.of(data, _NEWCOMER_LABEL, 6, limit=MAX_RECORD)
        newcomer = cls(
            invitation=Invitation.parse(fields.text(MAX_TEXT)),
            introduction=Introduction.parse(
                body=fields.octets(1, MAX_INTRODUCTION),
                signature=fields.octets(SIGNATURE_SIZE),
                mac=fields.octets(MAC_SIZE),
            ),
            nonce=fields.octets(NONCE_SIZE),
            inviter_nonce=fields.optional(lambda: fields.octets(NONCE_SIZE)),
        )
        if commit(newcomer.nonce) != newcomer.introduction.commitment:
            raise RemoteProtocolError(
                "the record's nonce is not the introduction's", reason=ProtocolReason.MALFORMED_INVITATION
            )
        return newcomer

    @property
    def _nonces(self) -> Nonces:
        if self.inviter_nonce is None:
            raise LocalProtocolError("the inviter's nonce comes before the number and the answer")
        return Nonces(newcomer=self.nonce, inviter=self.inviter_nonce)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """What the inviter's user has agreed to: a newcomer, under this label."""

    nonce: bytes = field(repr=False)  # the newcomer's, 32 bytes
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitationRecord:
    """The inviter's own record of one invitation. It decides by this record, and not by what the relay says."""

    invitation: Invitation
    rp_ids: tuple[str, ...] | None = None  # the relying parties to which the device is bound
    needs_digits: bool = False  # whether the device must show digits with each request
    newcomer: bytes | None = None  # the hash of the first introduction; None before one came
    nonce: bytes | None = field(default=None, repr=False)  # the inviter's, 32 bytes, for this introduction
    agreed: Agreed | None = None  # None before the user has agreed

    def __post_init__(self) -> None:
        if self.needs_digits and self.invitation.kind is not Role.DEVICE:
            raise LocalProtocolError("only devices show digits")
        if self.rp_ids is not None:
            if self.invitation.kind is not Role.DEVICE:
                raise LocalProtocolError("only devices are bound to rp ids")
            check_rp_ids(self.rp_ids)
        if (self.newcomer is None) != (self.nonce is None) or (
            self.agreed is not None and self.nonce is None
        ):
            raise RemoteProtocolError(
                "a record has a newcomer, then a nonce for it, then an agreement",
                reason=ProtocolReason.MALFORMED_INVITATION,
            )

    @property
    def ends_at(self) -> int:
        """When the invitation is over: Unix seconds by the inviter's clock."""
        return self.invitation.expires_at if self.newcomer is None else self.invitation.ends_at

    def check(self, *, body: bytes, signature: bytes, mac: bytes, now: float) -> Introduction:
        """Verify an introduction against this invitation.

        The same introduction may come again. The caller records it with `taken_by` before it sends the nonce.
        """
        introduction = Introduction.parse(body=body, signature=signature, mac=mac)
        self._check_invited(introduction, now)
        self._check_addressed(introduction)
        self._check_proofs(introduction)
        if introduction.hpke_key is not None and not can_seal_to(introduction.hpke_key):
            raise TrustError(
                TrustReason.UNSUPPORTED_SUITE,
                f"the newcomer has an HPKE key of suite {introduction.hpke_key.suite}, which this version does not know",
            )
        return introduction

    def _check_invited(self, introduction: Introduction, now: float) -> None:
        if introduction.kind is not self.invitation.kind:
            raise TrustError(
                TrustReason.KIND_MISMATCH,
                f"a {introduction.kind} came with an invitation for a {self.invitation.kind}",
            )
        if self.newcomer is None:
            self.invitation.check_expiry(now)
        elif not hmac.compare_digest(self.newcomer, introduction.hash):
            raise TrustError(
                TrustReason.INVITATION_USED,
                "somebody else came with this invitation before; look at the members",
            )
        elif now >= self.ends_at:
            raise TrustError(TrustReason.INVITATION_EXPIRED, "the time to answer the newcomer is over")

    def _check_addressed(self, introduction: Introduction) -> None:
        invitation = self.invitation
        if (introduction.account, introduction.relay_url) != (invitation.account, invitation.relay_url):
            raise TrustError(TrustReason.ACCOUNT_MISMATCH, "the newcomer means another account or relay")
        if introduction.inviter != invitation.inviter:
            raise TrustError(TrustReason.RECIPIENT_MISMATCH, "the newcomer means another inviter")

    def _check_proofs(self, introduction: Introduction) -> None:
        if not verify(introduction.signing_key, introduction.signature, introduction.body):
            raise TrustError(TrustReason.BAD_SIGNATURE, "the newcomer does not hold the key it shows")
        mac = hmac.digest(self.invitation.k_new, introduction.body, "sha256")
        if not hmac.compare_digest(introduction.mac, mac):
            raise TrustError(TrustReason.BAD_MAC, "the newcomer does not hold the invitation")
        if not proves_possession(
            introduction.possession,
            account=introduction.account,
            role=introduction.kind,
            signing_key=introduction.signing_key,
            hpke_key=introduction.hpke_key,
        ):
            raise TrustError(TrustReason.BAD_POSSESSION, "the newcomer does not prove its keys")

    def taken_by(self, introduction: Introduction) -> "InvitationRecord":
        """The record with its newcomer and a fresh nonce for it, after which any other introduction is refused.

        It is written to disk before the nonce is sent. The same newcomer again keeps its nonce.
        """
        if self.newcomer == introduction.hash:
            return self
        return replace(self, newcomer=introduction.hash, nonce=secrets.token_bytes(NONCE_SIZE))

    def candidate(self, introduction: Introduction, nonce: bytes) -> "Candidate":
        """Verify the nonce that the newcomer has revealed; `TrustError` (bad-commitment) when it committed to another."""
        if self.newcomer != introduction.hash or self.nonce is None:
            raise LocalProtocolError("a candidate is the newcomer of this record")
        if not hmac.compare_digest(commit(nonce), introduction.commitment):
            raise TrustError(
                TrustReason.BAD_COMMITMENT, "the newcomer reveals another nonce than it committed to"
            )
        return Candidate(
            record=self, introduction=introduction, nonces=Nonces(newcomer=nonce, inviter=self.nonce)
        )

    def admit(
        self, introduction: Introduction, *, ring: Ring, key: SigningKey, now: float
    ) -> tuple[Ring, bytes]:
        """Make the answer after the agreement: the ring to append, and its MAC for the newcomer.

        introduction: from `check`. ring: the head. It is idempotent: after a conflict, or when the outcome of the append is
        unknown, call it again with the new head. A head that already holds the newcomer is returned as it is.
        """
        if self.agreed is None or self.nonce is None or self.newcomer != introduction.hash:
            raise LocalProtocolError("only the newcomer that the user agreed to can be admitted")
        if thumbprint(key.public_key) != self.invitation.inviter:
            raise LocalProtocolError("only the inviter answers its invitation")
        newcomer = introduction.member(self.rp_ids, label=self.agreed.label, needs_digits=self.needs_digits)
        present = ring.member(newcomer.name)
        if present is not None and present.keys != newcomer.keys:
            raise RemoteProtocolError(
                "the newcomer's key is already a member, under another description",
                reason=ProtocolReason.MALFORMED_INVITATION,
            )
        if present is None or ring.signer != self.invitation.inviter:
            others = [member for member in ring.members if member.name != newcomer.name]
            ring = ring.next(key, members=[*others, present or newcomer], now=now)
        nonces = Nonces(newcomer=self.agreed.nonce, inviter=self.nonce)
        return ring, nonces.answer_mac(self.invitation, introduction, ring.hash)

    def to_bytes(self) -> bytes:
        """Serialise the record for the inviter's disk; it is a secret."""
        rp_ids = None if self.rp_ids is None else list(self.rp_ids)
        agreed = None if self.agreed is None else [self.agreed.nonce, self.agreed.label]
        return cbor.encode(
            [
                _RECORD_LABEL,
                self.invitation.encode(),
                rp_ids,
                self.needs_digits,
                self.newcomer,
                self.nonce,
                agreed,
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "InvitationRecord":
        fields = Fields.of(data, _RECORD_LABEL, 6, limit=MAX_RECORD)
        return cls(
            invitation=Invitation.parse(fields.text(MAX_TEXT)),
            rp_ids=fields.optional(lambda: parse_rp_ids(fields.take())),
            needs_digits=fields.truth(),
            newcomer=fields.optional(lambda: fields.octets(hashlib.sha256().digest_size)),
            nonce=fields.optional(lambda: fields.octets(NONCE_SIZE)),
            agreed=fields.optional(lambda: _parse_agreed(Fields(fields.take(), "agreement", 2))),
        )


def _parse_agreed(fields: Fields) -> Agreed:
    return Agreed(nonce=fields.octets(NONCE_SIZE), label=fields.text(MAX_LABEL))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A newcomer about whom the inviter's user is asked. It shows kind and label, and keeps the number to itself."""

    record: InvitationRecord
    introduction: Introduction
    nonces: Nonces = field(repr=False)

    def agree(self, number: str, *, label: str | None = None) -> InvitationRecord:
        """Check the number that the user has typed from the newcomer; returns the record to write and to admit with.

        label: another one than the newcomer's own. `TrustError` (wrong-number) for another number, after which the invitation
        must end: the user has one attempt.
        """
        expected = self.nonces.number(self.introduction)
        if not hmac.compare_digest((digits_of(number) or "").encode(), expected.replace(" ", "").encode()):
            raise TrustError(
                TrustReason.WRONG_NUMBER,
                f"the number is not that of the {self.introduction.kind} that came as {quoted(self.introduction.label)}:"
                " somebody else may have the invitation",
                advice=mend(TrustReason.WRONG_NUMBER),
            )
        return self.agree_without_number(label=label)

    def agree_without_number(self, *, label: str | None = None) -> InvitationRecord:
        """As `agree`, for a newcomer that can neither show nor speak: whoever has seen the invitation may be the one that came."""
        agreed = Agreed(nonce=self.nonces.newcomer, label=self.introduction.label if label is None else label)
        self.introduction.member(label=agreed.label)  # refuses what no ring could hold
        return replace(self.record, agreed=agreed)
