"""The ring: an account's list of members, as a versioned and signed document (docs/protocol/trust.md).

    document = body || signature (64 bytes)
    body     = [label, account, version, previous, issued, members, signer]
    member   = [role, signing key, [suite, public key] | null, label, rp ids | null]

Version n + 1 is valid when it names the hash of version n and a companion of version n has signed it. Admission adds a
member, revocation removes one, rotation replaces a key; `Ring.extend` verifies all of them. Version 1 is signed by its
only member.

This module holds nothing that decrypts. The relay imports it to authorise its callers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from headless_passkey.errors import (
    LocalProtocolError,
    ProtocolReason,
    RemoteProtocolError,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid import cbor
from headless_passkey.text.domains import is_domain
from headless_passkey.text.names import MAX_LABEL, why_not_plain
from headless_passkey.trust.fields import PROJECT, Fields
from headless_passkey.trust.signing import (
    POINT_SIZE,
    SIGNATURE_SIZE,
    SigningKey,
    parse_public_key,
    sign_document,
    thumbprint,
    verify,
)

RING_LABEL: Final = f"{PROJECT} ring v1"
MEMBER_LABEL: Final = f"{PROJECT} member v2"
MAX_DOCUMENT: Final = 32768  # bytes
MAX_MEMBERS: Final = 64
MAX_RP_IDS: Final = 16
SUITE_P256: Final = 1  # DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM
_MAX_VERSION: Final = 1 << 32
_MAX_PUBLIC_KEY: Final = 2048  # bytes: room for a post-quantum hybrid


class Role(StrEnum):
    """A member's role: a companion opens envelopes and signs rings; a device seals envelopes."""

    COMPANION = "companion"
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class HpkeKey:
    """A public key that envelopes are sealed to. A ring may hold keys of unknown suites, which are never used."""

    suite: int  # 1-65535
    public_key: bytes  # suite 1: 65 bytes, uncompressed P-256

    def __post_init__(self) -> None:
        if not 0 < self.suite <= 0xFFFF:
            raise RemoteProtocolError(
                f"HPKE suites are 1 to 65535, got {self.suite}", reason=ProtocolReason.MALFORMED_KEY
            )
        if self.suite == SUITE_P256:
            parse_public_key(self.public_key)
        elif not 0 < len(self.public_key) <= _MAX_PUBLIC_KEY:
            raise RemoteProtocolError(
                f"an HPKE key of {len(self.public_key)} bytes", reason=ProtocolReason.MALFORMED_KEY
            )

    @property
    def name(self) -> bytes:
        """The key's name, 32 bytes: SHA-256 of the suite as two bytes, big-endian, and the public key."""
        return hashlib.sha256(self.suite.to_bytes(2, "big") + self.public_key).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of an account. A companion has an HPKE key; a device may be bound to rp ids."""

    role: Role
    signing_key: bytes  # 65 bytes, uncompressed P-256
    hpke_key: HpkeKey | None
    label: str  # its name for people, at most 64 characters
    rp_ids: tuple[str, ...] | None = None  # the relying parties it may ask for; None: any
    name: str = field(init=False, compare=False)  # the thumbprint of its signing key

    def __post_init__(self) -> None:
        parse_public_key(self.signing_key)
        object.__setattr__(self, "name", thumbprint(self.signing_key))
        if wrong := why_not_plain(self.label):
            raise RemoteProtocolError(f"a label {wrong}", reason=ProtocolReason.MALFORMED_RING)
        if (self.role is Role.COMPANION) != (self.hpke_key is not None):
            raise RemoteProtocolError(
                "companions have an HPKE key, devices have none", reason=ProtocolReason.MALFORMED_RING
            )
        if self.rp_ids is not None:
            if self.role is not Role.DEVICE:
                raise RemoteProtocolError(
                    "only devices are bound to rp ids", reason=ProtocolReason.MALFORMED_RING
                )
            check_rp_ids(self.rp_ids)

    def allows(self, rp_id: str) -> bool:
        """Whether this device may ask for a passkey of `rp_id`."""
        return self.rp_ids is None or rp_id in self.rp_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """One version of an account's membership. Every constructor verifies it."""

    account: str
    version: int  # from 1
    previous: bytes | None  # 32 bytes: the hash of version - 1; None in version 1
    issued: int  # Unix seconds by the signer's clock
    members: tuple[Member, ...]
    signer: str  # a member's name
    document: bytes = field(
        repr=False, compare=False
    )  # the verified bytes; their body is what the fields say

    @classmethod
    def found(cls, key: SigningKey, *, account: str, member: Member, now: float) -> "Ring":
        """Found the ring of `account`: version 1, whose only member is the companion that holds `key`."""
        if member.signing_key != key.public_key or member.role is not Role.COMPANION:
            raise LocalProtocolError("a ring is founded by its only member, a companion")
        return cls._sign(key, account=account, version=1, previous=None, members=(member,), now=now)

    @classmethod
    def parse_founding(cls, document: bytes) -> "Ring":
        """Parse and verify a version 1: its only member, a companion, has signed it."""
        ring = cls._parse(document)
        if ring.version != 1 or len(ring.members) != 1:
            raise TrustError(TrustReason.FORKED_RING, "a founding ring is version 1 with one member")
        return _verified(ring, ring.member(ring.signer))

    @classmethod
    def parse_vouched(cls, document: bytes, *, inviter: str) -> "Ring":
        """Parse and verify a newcomer's first ring, of any version: the pinned inviter, a companion in it, has signed it."""
        ring = cls._parse(document)
        if ring.signer != inviter:
            raise TrustError(TrustReason.BAD_SIGNATURE, "the ring is not signed by the inviter")
        return _verified(ring, ring.member(inviter))

    @classmethod
    def parse_kept(cls, document: bytes) -> "Ring":
        """Parse a ring from our own storage, which holds verified rings only; the signature is not verified again."""
        return cls._parse(document)

    def extend(self, document: bytes) -> "Ring":
        """Parse and verify `document` as the next version; anything else is a fork.

        Raises `TrustError` (forked-ring, bad-signature), or `RemoteProtocolError` when malformed.
        """
        ring = self._parse(document)
        if ring.account != self.account:
            raise TrustError(TrustReason.FORKED_RING, "the ring is another account's")
        if ring.version != self.version + 1:
            raise TrustError(
                TrustReason.FORKED_RING, f"expected ring version {self.version + 1}, got {ring.version}"
            )
        if ring.previous != self.hash:
            raise TrustError(
                TrustReason.FORKED_RING, f"ring version {ring.version} does not follow the one we hold"
            )
        return _verified(ring, self.member(ring.signer))

    def next(self, key: SigningKey, *, members: Sequence[Member], now: float) -> "Ring":
        """Make and sign the next version with `members`; the signer is a companion of this version."""
        signer = self.member(thumbprint(key.public_key))
        if signer is None or signer.role is not Role.COMPANION:
            raise LocalProtocolError("only a companion of the ring signs the next one")
        return self._sign(
            key,
            account=self.account,
            version=self.version + 1,
            previous=self.hash,
            members=tuple(members),
            now=now,
        )

    @property
    def hash(self) -> bytes:
        """The ring's hash, 32 bytes: SHA-256 of the body, without the signature."""
        return document_hash(self.document)

    def member(self, name: str) -> Member | None:
        return next((member for member in self.members if member.name == name), None)

    @property
    def companions(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.role is Role.COMPANION)

    @classmethod
    def _parse(cls, document: bytes) -> "Ring":
        if not SIGNATURE_SIZE < len(document) <= MAX_DOCUMENT:
            too_long = len(document) > MAX_DOCUMENT
            raise RemoteProtocolError(
                f"a ring has {SIGNATURE_SIZE + 1} to {MAX_DOCUMENT} bytes, got {len(document)}",
                reason=ProtocolReason.TOO_LONG if too_long else ProtocolReason.MALFORMED_RING,
            )
        fields = Fields.of(document[:-SIGNATURE_SIZE], RING_LABEL, 6, limit=MAX_DOCUMENT)
        account = fields.text(MAX_LABEL)
        version = fields.integer(1, _MAX_VERSION)
        previous = fields.optional(lambda: fields.octets(32))
        issued = fields.time()
        members = _parse_members(fields.take())
        signer = fields.name()
        if (version == 1) != (previous is None):
            raise RemoteProtocolError(
                "a ring names the one before it, and only version 1 has none",
                reason=ProtocolReason.MALFORMED_RING,
            )
        return cls(
            account=account,
            version=version,
            previous=previous,
            issued=issued,
            members=members,
            signer=signer,
            document=bytes(document),
        )

    @classmethod
    def _sign(
        cls,
        key: SigningKey,
        *,
        account: str,
        version: int,
        previous: bytes | None,
        members: tuple[Member, ...],
        now: float,
    ) -> "Ring":
        encoded = [_encode_member(member) for member in members]
        signer = thumbprint(key.public_key)
        body = cbor.encode([RING_LABEL, account, version, previous, int(now), encoded, signer])
        try:
            return cls._parse(body + sign_document(key, body))
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"the ring would be invalid: {error}") from error


def _verified(ring: Ring, signer: Member | None) -> Ring:
    """Verify that `signer` is a companion and has signed `ring`."""
    if signer is None or signer.role is not Role.COMPANION:
        raise TrustError(TrustReason.FORKED_RING, "the ring is signed by someone who may not change it")
    body, signature = ring.document[:-SIGNATURE_SIZE], ring.document[-SIGNATURE_SIZE:]
    if not verify(signer.signing_key, signature, body):
        raise TrustError(TrustReason.BAD_SIGNATURE, "the ring's signature does not verify")
    return ring


def document_hash(document: bytes) -> bytes:
    """Hash a ring's document, 32 bytes: SHA-256 of the body. Documents are compared by it, because one body may be signed twice."""
    return hashlib.sha256(document[:-SIGNATURE_SIZE]).digest()


def prove_possession(key: SigningKey, *, account: str, role: Role, hpke_key: HpkeKey | None = None) -> bytes:
    """Make the proof of possession of a member's entry, 64 bytes: its own signature of account, role and keys."""
    return sign_document(key, _possession_body(account, role, key.public_key, hpke_key))


def proves_possession(
    possession: bytes, *, account: str, role: Role, signing_key: bytes, hpke_key: HpkeKey | None = None
) -> bool:
    """Verify a proof of possession: the holder of `signing_key` has asked for this role in this account."""
    return verify(signing_key, possession, _possession_body(account, role, signing_key, hpke_key))


def _possession_body(account: str, role: Role, signing_key: bytes, hpke_key: HpkeKey | None) -> bytes:
    return cbor.encode([MEMBER_LABEL, account, str(role), signing_key, encode_hpke_key(hpke_key)])


def check_rp_ids(rp_ids: Sequence[str]) -> None:
    """Refuse what is not a list of relying party ids: 1 to 16 different lower-case domain names."""
    if not 0 < len(rp_ids) <= MAX_RP_IDS or len(set(rp_ids)) != len(rp_ids):
        raise RemoteProtocolError(
            f"expected 1 to {MAX_RP_IDS} different rp ids", reason=ProtocolReason.MALFORMED_RING
        )
    for rp_id in rp_ids:
        if not is_domain(rp_id):
            raise RemoteProtocolError(
                "an rp id is a domain name in lower case", reason=ProtocolReason.MALFORMED_RING
            )


def _parse_members(items: Any) -> tuple[Member, ...]:
    if not isinstance(items, list) or not 0 < len(items) <= MAX_MEMBERS:
        raise RemoteProtocolError(
            f"a ring has 1 to {MAX_MEMBERS} members", reason=ProtocolReason.MALFORMED_RING
        )
    members = tuple(_parse_member(item) for item in items)
    if len({member.name for member in members}) != len(members):
        raise RemoteProtocolError(
            "a signing key appears twice in the ring", reason=ProtocolReason.MALFORMED_RING
        )
    if all(member.role is not Role.COMPANION for member in members):
        raise RemoteProtocolError("a ring has no companion", reason=ProtocolReason.MALFORMED_RING)
    return members


def _parse_member(item: Any) -> Member:
    fields = Fields(item, "ring member", 5)
    role = parse_role(fields.take())
    signing_key = fields.octets(POINT_SIZE)
    hpke_key = fields.optional(lambda: parse_hpke_key(fields.take()))
    label = fields.text(MAX_LABEL)
    rp_ids = fields.optional(lambda: parse_rp_ids(fields.take()))
    return Member(role=role, signing_key=signing_key, hpke_key=hpke_key, label=label, rp_ids=rp_ids)


def parse_role(item: Any) -> Role:
    """Parse a role."""
    try:
        return Role(item)
    except ValueError as error:
        raise RemoteProtocolError(
            "a role is companion or device", reason=ProtocolReason.MALFORMED_RING
        ) from error


def parse_hpke_key(item: Any) -> HpkeKey:
    """Parse an HPKE key: [suite, public key]."""
    fields = Fields(item, "HPKE key", 2)
    return HpkeKey(suite=fields.integer(1, 0xFFFF), public_key=fields.octets(1, _MAX_PUBLIC_KEY))


def parse_rp_ids(item: Any) -> tuple[str, ...]:
    """Parse a member's rp ids: a list of text."""
    if not isinstance(item, list) or not all(isinstance(rp_id, str) for rp_id in item):
        raise RemoteProtocolError("rp ids are a list of text", reason=ProtocolReason.MALFORMED_RING)
    check_rp_ids(item)
    return tuple(item)


def encode_hpke_key(key: HpkeKey | None) -> list[Any] | None:
    """Encode an HPKE key as `parse_hpke_key` takes it."""
    return None if key is None else [key.suite, key.public_key]


def _encode_member(member: Member) -> list[Any]:
    rp_ids = None if member.rp_ids is None else list(member.rp_ids)
    return [str(member.role), member.signing_key, encode_hpke_key(member.hpke_key), member.label, rp_ids]
