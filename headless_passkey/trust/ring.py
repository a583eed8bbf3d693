"""The ring: an account's list of members, as a versioned and signed document (docs/protocol/trust.md).

    document   = body || signature (64 bytes)
    body       = [label, account, account name, version, previous, issued, members, signer]
    member     = [role, signing key, [suite, public key] | null, possession, label, joined, introduced by | null,
                  needs digits, rp ids | null]
    possession = signature by the signing key of [label, account, role, signing key, [suite, public key] | null]

Version n + 1 names the hash of version n and is signed by a member of version n. `check_next` is the whole rule, the
same for relay, devices and companions. Admission adds a member, removal leaves one out, a change of label keeps its keys.
Version 1 is signed by its only member.

This module holds nothing that decrypts. The relay imports it to authorise its callers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
from headless_passkey.mends import clock_skew, mend
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
from program_parts.domains import is_domain
from program_parts.names import MAX_LABEL, why_not_plain

RING_LABEL: Final = f"{PROJECT} ring v2"
MEMBER_LABEL: Final = f"{PROJECT} member v2"
MAX_DOCUMENT: Final = 49_152  # bytes
MAX_MEMBERS: Final = 64
MAX_COMPANIONS: Final = 16
MAX_RP_IDS: Final = 8
MAX_SKEW: Final = 120  # seconds that two members' clocks may differ: each may be 60 s off the relay's
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
    possession: bytes = field(
        repr=False
    )  # 64 bytes: the proof that its holder joins this account in this role
    label: str  # its name for people, at most 64 characters
    joined: int = 0  # Unix seconds by the introducer's clock; `Ring.next` sets it for a newcomer
    introduced_by: str | None = None  # a name; None for the founder
    needs_digits: bool = False  # a companion shows no request of this device without match digits
    rp_ids: tuple[str, ...] | None = None  # the relying parties it may ask for; None: any
    name: str = field(init=False, compare=False)  # the thumbprint of its signing key

    def __post_init__(self) -> None:
        parse_public_key(self.signing_key)
        object.__setattr__(self, "name", thumbprint(self.signing_key))
        if wrong := why_not_plain(self.label):
            raise RemoteProtocolError(f"a label {wrong}", reason=ProtocolReason.MALFORMED_RING)
        if len(self.possession) != SIGNATURE_SIZE:
            raise RemoteProtocolError(
                f"a proof of possession has {SIGNATURE_SIZE} bytes", reason=ProtocolReason.MALFORMED_RING
            )
        if (self.role is Role.COMPANION) != (self.hpke_key is not None):
            raise RemoteProtocolError(
                "companions have an HPKE key, devices have none", reason=ProtocolReason.MALFORMED_RING
            )
        if self.role is not Role.DEVICE and (self.rp_ids is not None or self.needs_digits):
            raise RemoteProtocolError(
                "only devices are bound to rp ids and digits", reason=ProtocolReason.MALFORMED_RING
            )
        if self.rp_ids is not None:
            check_rp_ids(self.rp_ids)

    @property
    def keys(self) -> tuple[Role, bytes, HpkeKey | None, bytes]:
        """What only its holder can have made: role, keys and the proof of possession."""
        return self.role, self.signing_key, self.hpke_key, self.possession

    def allows(self, rp_id: str) -> bool:
        """Whether this device may ask for a passkey of `rp_id`."""
        return self.rp_ids is None or rp_id in self.rp_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """One version of an account's membership. Every constructor verifies it."""

    account: str  # the account's id, 22 characters
    account_name: str  # a label
    version: int  # from 1
    previous: bytes | None  # 32 bytes: the hash of version - 1; None in version 1
    issued: int  # Unix seconds by the signer's clock, never before the ring's before
    members: tuple[Member, ...]
    signer: str  # a member's name
    document: bytes = field(
        repr=False, compare=False
    )  # the verified bytes; their body is what the fields say

    @classmethod
    def found(
        cls,
        key: SigningKey,
        *,
        account: str,
        account_name: str,
        hpke_key: HpkeKey,
        label: str,
        now: float,
    ) -> "Ring":
        """Found the ring of `account`: version 1, whose only member is the companion that holds `key`."""
        founder = Member(
            role=Role.COMPANION,
            signing_key=key.public_key,
            hpke_key=hpke_key,
            possession=prove_possession(key, account=account, role=Role.COMPANION, hpke_key=hpke_key),
            label=label,
            joined=int(now),
        )
        return cls._sign(
            key,
            account=account,
            account_name=account_name,
            version=1,
            previous=None,
            issued=int(now),
            members=(founder,),
        )

    @classmethod
    def parse_founding(cls, document: bytes) -> "Ring":
        """Parse and verify a version 1: its only member, a companion whom nobody introduced, has signed it."""
        ring = cls._parse(document)
        if ring.version != 1 or len(ring.members) != 1 or ring.members[0].introduced_by is not None:
            raise _refused(TrustReason.FORKED_RING, "a founding ring is version 1 with one member")
        return _verified_first(ring, ring.signer)

    @classmethod
    def parse_vouched(cls, document: bytes, *, inviter: str) -> "Ring":
        """Parse and verify a newcomer's first ring, of any version: the pinned inviter, a companion in it, has signed it."""
        ring = cls._parse(document)
        if ring.signer != inviter:
            raise _refused(TrustReason.BAD_SIGNATURE, "the ring is not signed by the inviter")
        return _verified_first(ring, inviter)

    @classmethod
    def parse_kept(cls, document: bytes) -> "Ring":
        """Parse a ring from our own storage, which holds verified rings only; nothing is verified again."""
        return cls._parse(document)

    def extend(self, document: bytes, *, now: float) -> "Ring":
        """Parse and verify `document` as the next version. now: Unix seconds by our own clock.

        Raises `TrustError` with the reason of `check_next`, or `RemoteProtocolError` when malformed.
        """
        ring = self._parse(document)
        check_next(self, ring, now=now)
        return ring

    def skip_to(self, document: bytes, *, now: float) -> "Ring":
        """Parse and verify a later version whose links to this one are lost; `freshness.take_over` says when it is taken.

        It is checked as a newcomer's first ring is, by a signer that it lists or that this version lists.
        """
        ring = self._parse(document)
        if (ring.account, ring.account_name) != (
            self.account,
            self.account_name,
        ) or ring.version <= self.version:
            raise _refused(TrustReason.FORKED_RING, "the ring is no later one of this account")
        signer = ring.member(ring.signer) or self.member(ring.signer)
        if signer is None:
            raise _refused(TrustReason.RING_GAP, "the ring is signed by somebody whom nobody knows")
        _check_signature(ring, signer)
        _check_time(self, ring, now)
        if not all(_possesses(ring, member) for member in ring.members):
            raise _refused(TrustReason.BAD_POSSESSION, "the ring lists a key without its holder")
        _check_whole(ring)
        return ring

    def next(self, key: SigningKey, *, members: Sequence[Member], now: float) -> "Ring":
        """Make and sign the next version with `members`; who is new among them is introduced by the signer, now.

        The signer is a member of this version: a companion, or a device that takes itself out. `TrustError` when
        `check_next` would refuse the members.
        """
        signer = self.member(thumbprint(key.public_key))
        if signer is None:
            raise LocalProtocolError("only a member of the ring signs the next one")
        issued = max(int(now), self.issued)
        known = {member.name for member in self.members}
        ring = self._sign(
            key,
            account=self.account,
            account_name=self.account_name,
            version=self.version + 1,
            previous=self.hash,
            issued=issued,
            members=tuple(
                member if member.name in known else replace(member, joined=issued, introduced_by=signer.name)
                for member in members
            ),
        )
        _check_content(self, ring, signer)
        return ring

    def without(self, key: SigningKey, *names: str, now: float) -> "Ring":
        """Make and sign the next version without these members."""
        return self.next(key, members=[each for each in self.members if each.name not in names], now=now)

    def with_hpke_key(self, key: SigningKey, hpke_key: HpkeKey, *, now: float) -> "Ring":
        """Make and sign the next version in which the signer, a companion, has another HPKE key."""
        possession = prove_possession(key, account=self.account, role=Role.COMPANION, hpke_key=hpke_key)
        signer = thumbprint(key.public_key)
        members = [
            replace(each, hpke_key=hpke_key, possession=possession) if each.name == signer else each
            for each in self.members
        ]
        return self.next(key, members=members, now=now)

    @property
    def hash(self) -> bytes:
        """The ring's hash, 32 bytes: SHA-256 of the body, without the signature."""
        return document_hash(self.document)

    @property
    def number(self) -> str:
        """Eighteen digits of the hash, in groups of three, which a person compares on two members' screens."""
        digits = f"{int.from_bytes(self.hash[:8]) % 10**18:018}"
        return " ".join(digits[start : start + 3] for start in range(0, 18, 3))

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
        fields = Fields.of(document[:-SIGNATURE_SIZE], RING_LABEL, 7, limit=MAX_DOCUMENT)
        account = fields.account()
        account_name = fields.text(MAX_LABEL)
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
            account_name=account_name,
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
        account_name: str,
        version: int,
        previous: bytes | None,
        issued: int,
        members: tuple[Member, ...],
    ) -> "Ring":
        encoded = [_encode_member(member) for member in members]
        signer = thumbprint(key.public_key)
        body = cbor.encode([RING_LABEL, account, account_name, version, previous, issued, encoded, signer])
        if len(body) + SIGNATURE_SIZE > MAX_DOCUMENT:
            raise _refused(
                TrustReason.RING_FULL,
                f"the ring would have more than {MAX_DOCUMENT} bytes: too many members with long rp ids and labels",
            )
        try:
            return cls._parse(body + sign_document(key, body))
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"the ring would be invalid: {error}") from error


def check_next(held: Ring, ring: Ring, *, now: float) -> None:
    """Check that `ring` follows `held`, the ring before it: the table of docs/protocol/trust.md, in its order.

    now: Unix seconds by our own clock. Raises `TrustError`; the first rule that fails gives the reason.
    """
    signer = _check_lineage(held, ring)
    _check_signature(ring, signer)
    _check_time(held, ring, now)
    _check_content(held, ring, signer)


def _check_content(held: Ring, ring: Ring, signer: Member) -> None:
    _check_who_stays(held, ring)
    _check_newcomers(held, ring)
    _check_right(held, ring, signer)
    _check_whole(ring)


def _check_lineage(held: Ring, ring: Ring) -> Member:
    """Check what `ring` says that it follows; returns its signer's entry of the ring before."""
    if (ring.account, ring.account_name) != (held.account, held.account_name):
        raise _refused(TrustReason.FORKED_RING, "the ring is another account's")
    if ring.version != held.version + 1:
        raise _refused(
            TrustReason.FORKED_RING, f"expected ring version {held.version + 1}, got {ring.version}"
        )
    if ring.previous != held.hash:
        raise _refused(
            TrustReason.FORKED_RING, f"ring version {ring.version} does not follow the one we hold"
        )
    signer = held.member(ring.signer)
    if signer is None:
        raise _refused(
            TrustReason.FORKED_RING, f"ring version {ring.version} is signed by somebody who is no member"
        )
    return signer


def _check_signature(ring: Ring, signer: Member) -> None:
    body, signature = ring.document[:-SIGNATURE_SIZE], ring.document[-SIGNATURE_SIZE:]
    if not verify(signer.signing_key, signature, body):
        raise _refused(
            TrustReason.BAD_SIGNATURE, f"the signature of ring version {ring.version} does not verify"
        )


def _check_time(held: Ring, ring: Ring, now: float) -> None:
    if ring.issued < held.issued:
        raise _refused(
            TrustReason.BACKDATED_RING, f"ring version {ring.version} is dated before the one that it follows"
        )
    ahead = ring.issued - int(now)
    if ahead > MAX_SKEW:
        raise clock_skew(
            f"ring version {ring.version} was signed by a clock {ahead} s ahead of this one; at most {MAX_SKEW} s are allowed",
            "members",
        )


def _check_who_stays(held: Ring, ring: Ring) -> None:
    """Check that who stays a member is the same one; keys for envelopes are changed only by their holder."""
    for member in ring.members:
        before = held.member(member.name)
        if before is None:
            continue
        itself = member.name == ring.signer
        if (before.role, before.joined, before.introduced_by) != (
            member.role,
            member.joined,
            member.introduced_by,
        ) or (not itself and before.keys != member.keys):
            raise _refused(
                TrustReason.CHANGED_MEMBER,
                f"ring version {ring.version} says of a member what only that member may change, or nobody",
            )


def _check_newcomers(held: Ring, ring: Ring) -> None:
    for member in ring.members:
        before = held.member(member.name)
        if (before is None or before.keys != member.keys) and not _possesses(ring, member):
            raise _refused(
                TrustReason.BAD_POSSESSION, f"ring version {ring.version} lists a key without its holder"
            )
        if before is None and (member.joined, member.introduced_by) != (ring.issued, ring.signer):
            raise _refused(
                TrustReason.CHANGED_MEMBER,
                f"ring version {ring.version} does not say of a new member when it came and by whom",
            )


def _check_right(held: Ring, ring: Ring, signer: Member) -> None:
    """Check that a device signs nothing but the ring that takes itself out."""
    left = tuple(member for member in held.members if member.name != signer.name)
    if signer.role is not Role.COMPANION and ring.members != left:
        raise _refused(
            TrustReason.NOT_A_COMPANION, f"ring version {ring.version} is signed by a device, for others"
        )


def _check_whole(ring: Ring) -> None:
    companions = len(ring.companions)
    if not companions:
        raise _refused(TrustReason.LAST_COMPANION, "the ring would have no companion left")
    if companions > MAX_COMPANIONS or len(ring.members) > MAX_MEMBERS:
        raise _refused(
            TrustReason.RING_FULL,
            f"an account has at most {MAX_MEMBERS} members, {MAX_COMPANIONS} of them companions",
        )


def _verified_first(ring: Ring, signer_name: str) -> Ring:
    """Verify a first ring, which follows none that we hold: its signer is a companion in it, and all keys have their holders."""
    signer = ring.member(signer_name)
    if signer is None or signer.role is not Role.COMPANION:
        raise _refused(TrustReason.FORKED_RING, "the ring is signed by someone who may not change it")
    _check_signature(ring, signer)
    if not all(_possesses(ring, member) for member in ring.members):
        raise _refused(TrustReason.BAD_POSSESSION, "the ring lists a key without its holder")
    _check_whole(ring)
    return ring


def _refused(reason: TrustReason, what: str) -> TrustError:
    return TrustError(reason, what, advice=mend(reason))


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


def _possesses(ring: Ring, member: Member) -> bool:
    return proves_possession(
        member.possession,
        account=ring.account,
        role=member.role,
        signing_key=member.signing_key,
        hpke_key=member.hpke_key,
    )


def _possession_body(account: str, role: Role, signing_key: bytes, hpke_key: HpkeKey | None) -> bytes:
    return cbor.encode([MEMBER_LABEL, account, str(role), signing_key, encode_hpke_key(hpke_key)])


def check_rp_ids(rp_ids: Sequence[str]) -> None:
    """Refuse what is not a list of relying party ids: 1 to 8 different lower-case domain names."""
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
    if not isinstance(items, list) or not items:
        raise RemoteProtocolError("a ring has a list of members", reason=ProtocolReason.MALFORMED_RING)
    members = tuple(_parse_member(item) for item in items)
    if len({member.name for member in members}) != len(members):
        raise RemoteProtocolError(
            "a signing key appears twice in the ring", reason=ProtocolReason.MALFORMED_RING
        )
    return members


def _parse_member(item: Any) -> Member:
    fields = Fields(item, "ring member", 9)
    return Member(
        role=parse_role(fields.take()),
        signing_key=fields.octets(POINT_SIZE),
        hpke_key=fields.optional(lambda: parse_hpke_key(fields.take())),
        possession=fields.octets(SIGNATURE_SIZE),
        label=fields.text(MAX_LABEL),
        joined=fields.time(),
        introduced_by=fields.optional(fields.name),
        needs_digits=fields.truth(),
        rp_ids=fields.optional(lambda: parse_rp_ids(fields.take())),
    )


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
    return [
        str(member.role),
        member.signing_key,
        encode_hpke_key(member.hpke_key),
        member.possession,
        member.label,
        member.joined,
        member.introduced_by,
        member.needs_digits,
        None if member.rp_ids is None else list(member.rp_ids),
    ]
