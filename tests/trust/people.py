"""The cast of the trust tests: key holders who say things, honestly or not."""

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from headless_passkey.hybrid import cbor
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.ring import RING_LABEL, HpkeKey, Member, Ring, Role
from headless_passkey.trust.signing import CURVE, SoftwareSigningKey, uncompressed

NOW = 1_800_000_000
ACCOUNT = "alice"


@dataclass
class Person:
    """Somebody with a signing key, and an HPKE key where the role asks for one."""

    role: Role
    label: str
    rp_ids: tuple[str, ...] | None = None
    key: SoftwareSigningKey = field(default_factory=SoftwareSigningKey.generate)
    hpke: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(CURVE))

    @property
    def member(self) -> Member:
        hpke_key = HpkeKey(suite=1, public_key=uncompressed(self.hpke.public_key()))
        return Member(
            role=self.role,
            signing_key=self.key.public_key,
            hpke_key=hpke_key if self.role is Role.COMPANION else None,
            label=self.label,
            rp_ids=self.rp_ids,
        )

    @property
    def name(self) -> str:
        return self.member.name


def companion(label: str = "phone") -> Person:
    return Person(Role.COMPANION, label)


def device(label: str = "frame", *, rp_ids: tuple[str, ...] | None = None) -> Person:
    return Person(Role.DEVICE, label, rp_ids)


def found(first: Person, *, account: str = ACCOUNT) -> Ring:
    return Ring.found(first.key, account=account, member=first.member, now=NOW)


def grow(ring: Ring, signer: Person, *members: Person) -> Ring:
    """The next version with exactly `members`."""
    return ring.next(signer.key, members=[person.member for person in members], now=NOW)


def chain_of(*rings: Ring) -> RingChain:
    return RingChain.start(rings[0]).extend(ring.document for ring in rings[1:])


def forge(ring: Ring, by: Person, /, *members: Person, **changes: object) -> bytes:
    """A next version as an attacker would write it: any field changed, signed by anyone."""
    values: dict[str, object] = {
        "label": RING_LABEL,
        "account": ring.account,
        "version": ring.version + 1,
        "previous": ring.hash,
        "issued": NOW,
        "members": [encoded(person) for person in members],
        "signer": by.name,
    }
    body = cbor.encode(list((values | changes).values()))
    return body + by.key.sign(body)


def encoded(person: Person) -> list[object]:
    """A member as the ring's CBOR has it."""
    member = person.member
    hpke_key = None if member.hpke_key is None else [member.hpke_key.suite, member.hpke_key.public_key]
    rp_ids = None if member.rp_ids is None else list(member.rp_ids)
    return [str(member.role), member.signing_key, hpke_key, member.label, rp_ids]
