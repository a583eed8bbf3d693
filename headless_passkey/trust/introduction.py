"""A newcomer's introduction, and what both sides compute from it and their nonces: number and answer (docs/protocol/trust.md).

The introduction commits to a nonce of the newcomer. The inviter then sends a nonce of its own, and only after that the
newcomer reveals its nonce. Both sides compute a number of six digits from introduction and nonces, which a person carries from one
to the other. Somebody between the two must choose its own introductions and nonces before it knows a number: one
chance in a million (commitment before knowledge).
"""

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from headless_passkey.errors import LocalProtocolError, ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.trust.fields import PROJECT, Fields
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import (
    HpkeKey,
    Member,
    Role,
    encode_hpke_key,
    parse_hpke_key,
    parse_role,
    prove_possession,
)
from headless_passkey.trust.signing import (
    POINT_SIZE,
    SIGNATURE_SIZE,
    SigningKey,
    parse_public_key,
    sign_document,
    thumbprint,
)
from headless_passkey.trust.text_form import MAX_RELAY_URL, check_relay_url
from program_parts.names import MAX_LABEL

MAC_SIZE: Final = 32
NONCE_SIZE: Final = 32
DIGITS: Final = 6
MAX_INTRODUCTION: Final = 4096  # bytes
INTRODUCTION_LABEL: Final = f"{PROJECT} introduction v2"
_NONCE_LABEL: Final = f"{PROJECT} nonce v2"
_NUMBER_LABEL: Final = f"{PROJECT} number v2"
_ANSWER_LABEL: Final = f"{PROJECT} answer v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """A newcomer's introduction: its description, with proof of possession of its key and of the invitation.

    body = [label, kind, account, relay URL, inviter, signing key, [suite, public key] | null, possession,
            label text, commitment]
    """

    kind: Role
    account: str
    relay_url: str
    inviter: str
    signing_key: bytes  # 65 bytes
    hpke_key: HpkeKey | None
    possession: bytes = field(repr=False)  # 64 bytes: of the newcomer's entry in the ring
    label: str
    commitment: bytes  # 32 bytes: `commit` of the newcomer's nonce
    body: bytes = field(repr=False)
    signature: bytes = field(repr=False)  # of body, by signing_key: proof of possession
    mac: bytes = field(repr=False)  # HMAC(k_new, body)

    @classmethod
    def make(
        cls, invitation: Invitation, *, key: SigningKey, hpke_key: HpkeKey | None, label: str, nonce: bytes
    ) -> "Introduction":
        """Make the introduction of the holder of `key`; a companion has an `hpke_key` too. nonce: 32 random bytes."""
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
                commit(nonce),
            ]
        )
        mac = hmac.digest(invitation.k_new, body, "sha256")
        try:
            return cls.parse(body=body, signature=sign_document(key, body), mac=mac)
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"the introduction would be invalid: {error}") from error

    @classmethod
    def parse(cls, *, body: bytes, signature: bytes, mac: bytes) -> "Introduction":
        """Parse an introduction, which is unverified until `InvitationRecord.check`."""
        if len(signature) != SIGNATURE_SIZE or len(mac) != MAC_SIZE:
            raise RemoteProtocolError(
                "an introduction has a signature of 64 bytes and a MAC of 32",
                reason=ProtocolReason.MALFORMED_INVITATION,
            )
        fields = Fields.of(body, INTRODUCTION_LABEL, 9, limit=MAX_INTRODUCTION)
        introduction = cls(
            kind=parse_role(fields.take()),
            account=fields.account(),
            relay_url=check_relay_url(fields.text(MAX_RELAY_URL)),
            inviter=fields.name(),
            signing_key=fields.octets(POINT_SIZE),
            hpke_key=fields.optional(lambda: parse_hpke_key(fields.take())),
            possession=fields.octets(SIGNATURE_SIZE),
            label=fields.text(MAX_LABEL),
            commitment=fields.octets(hashlib.sha256().digest_size),
            body=body,
            signature=signature,
            mac=mac,
        )
        parse_public_key(introduction.signing_key)
        introduction.member()  # refuses what no ring could hold
        return introduction

    @property
    def name(self) -> str:
        """The newcomer's name in the ring."""
        return thumbprint(self.signing_key)

    @property
    def hash(self) -> bytes:
        """The introduction's hash, 32 bytes: SHA-256 of the body."""
        return hashlib.sha256(self.body).digest()

    def member(
        self,
        rp_ids: tuple[str, ...] | None = None,
        *,
        label: str | None = None,
        needs_digits: bool = False,
    ) -> Member:
        """Make the newcomer's entry of the ring.

        rp_ids: the relying parties to which the inviter binds a device. label: another one than it introduced itself with.
        needs_digits: whether companions refuse what this device asks without match digits.
        """
        return Member(
            role=self.kind,
            signing_key=self.signing_key,
            hpke_key=self.hpke_key,
            possession=self.possession,
            label=self.label if label is None else label,
            needs_digits=needs_digits,
            rp_ids=rp_ids,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Nonces:
    """The nonces of both sides, 32 bytes each."""

    newcomer: bytes = field(repr=False)
    inviter: bytes = field(repr=False)

    def number(self, introduction: Introduction) -> str:
        """Compute the number of an introduction, written as 123 456: the same on both sides."""
        items = [_NUMBER_LABEL, introduction.hash, self.newcomer, self.inviter]
        number = int.from_bytes(hashlib.sha256(cbor.encode(items)).digest()[:8], "big") % 10**DIGITS
        return f"{number // 1000:03d} {number % 1000:03d}"

    def answer_mac(self, invitation: Invitation, introduction: Introduction, ring_hash: bytes) -> bytes:
        """Compute the MAC of an answer, 32 bytes: the inviter's, over introduction, nonces and ring."""
        items = [_ANSWER_LABEL, introduction.hash, self.newcomer, self.inviter, ring_hash]
        return hmac.digest(invitation.k_inv, cbor.encode(items), "sha256")


def commit(nonce: bytes) -> bytes:
    """Commit to the newcomer's nonce: 32 bytes, which say nothing about it before it is revealed."""
    return hashlib.sha256(cbor.encode([_NONCE_LABEL, nonce])).digest()


def digits_of(typed: str) -> str | None:
    """Parse a number as a person types it: its six digits, or None for a slip."""
    digits = "".join(typed.split())
    return digits if len(digits) == DIGITS and digits.isascii() and digits.isdigit() else None
