"""The cast of the trust tests: key holders who say things, honestly or not."""

import secrets
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.hybrid.keys import compressed
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.envelope import ENVELOPE_LABEL, Announcement, seal
from headless_passkey.trust.hpke import SoftwareHpkeKey
from headless_passkey.trust.ring import RING_LABEL, HpkeKey, Member, Ring, Role, prove_possession
from headless_passkey.trust.signing import CURVE, SoftwareSigningKey, sign_document, uncompressed
from tests.trust import reference_hpke

NOW = 1_700_000_000  # in the past, so that a program with the real clock takes what was signed then
ACCOUNT = "YWxpY2UncyBhY2NvdW50IQ"  # base64url of 16 bytes, "alice's account!"
ACCOUNT_NAME = "alice"
BOBS = "Ym9iJ3MgYWNjb3VudCBoZQ"  # another account
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256


@dataclass
class Person:
    """Somebody with a signing key, and an HPKE key where the role asks for one."""

    role: Role
    label: str
    rp_ids: tuple[str, ...] | None = None
    account: str = ACCOUNT  # that it joins
    needs_digits: bool = False
    key: SoftwareSigningKey = field(default_factory=SoftwareSigningKey.generate)
    hpke: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(CURVE))
    _proofs: dict[object, bytes] = field(default_factory=dict)

    @property
    def hpke_key(self) -> HpkeKey | None:
        if self.role is not Role.COMPANION:
            return None
        return HpkeKey(suite=1, public_key=uncompressed(self.hpke.public_key()))

    @property
    def member(self) -> Member:
        """Its entry before it joins: `Ring.next` says when that was, and by whom."""
        return Member(
            role=self.role,
            signing_key=self.key.public_key,
            hpke_key=self.hpke_key,
            possession=self.possession,
            label=self.label,
            needs_digits=self.needs_digits,
            rp_ids=self.rp_ids,
        )

    @property
    def possession(self) -> bytes:
        """The proof of possession, always the same one for the same account and keys."""
        what = (self.account, self.role, self.key.public_key, self.hpke_key)
        if what not in self._proofs:
            self._proofs[what] = prove_possession(
                self.key, account=self.account, role=self.role, hpke_key=self.hpke_key
            )
        return self._proofs[what]

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def hpke_private(self) -> SoftwareHpkeKey:
        return SoftwareHpkeKey(self.hpke)


def companion(label: str = "phone") -> Person:
    return Person(Role.COMPANION, label)


def device(label: str = "frame", *, rp_ids: tuple[str, ...] | None = None) -> Person:
    return Person(Role.DEVICE, label, rp_ids)


def found(
    first: Person, *, account: str = ACCOUNT, account_name: str = ACCOUNT_NAME, now: float = NOW
) -> Ring:
    """The first ring of an account, which `first` joins by it."""
    first.account = account
    assert first.hpke_key is not None
    return Ring.found(
        first.key,
        account=account,
        account_name=account_name,
        hpke_key=first.hpke_key,
        label=first.label,
        now=now,
    )


def entry(ring: Ring, person: Person) -> Member:
    """What the next ring says of `person`: as before, or that it joins."""
    present = ring.member(person.name)
    if present is not None:
        return present
    person.account = ring.account
    return person.member


def grow(ring: Ring, signer: Person, *members: Person, now: float | None = None) -> Ring:
    """The next version with exactly `members`, made at once unless `now` says otherwise."""
    return ring.next(
        signer.key,
        members=[entry(ring, person) for person in members],
        now=ring.issued if now is None else now,
    )


def chain_of(*rings: Ring) -> RingChain:
    return RingChain.start(rings[0]).extend((ring.document for ring in rings[1:]), now=rings[-1].issued)


def forge(ring: Ring, by: Person, /, *members: Person, **changes: object) -> bytes:
    """A next version as an attacker would write it: any field changed, signed by anyone."""
    values: dict[str, object] = {
        "label": RING_LABEL,
        "account": ring.account,
        "account_name": ring.account_name,
        "version": ring.version + 1,
        "previous": ring.hash,
        "issued": ring.issued,
        "members": [encoded(ring, person, by=by) for person in members],
        "signer": by.name,
    }
    body = cbor.encode(list((values | changes).values()))
    return body + sign_document(by.key, body)


def twin(signed: bytes) -> bytes:
    """`signed`, which ends with a signature (r, s), with (r, n - s) instead: as ECDSA goes, as valid."""
    s = int.from_bytes(signed[-32:], "big")
    return signed[:-32] + (ORDER - s).to_bytes(32, "big")


def spoiled(signed: bytes) -> bytes:
    """`signed` with another last bit. A fixed last byte would leave one signature of 256 as it is."""
    return signed[:-1] + bytes([signed[-1] ^ 1])


def encoded(ring: Ring, person: Person, /, *, by: Person, **changes: object) -> list[object]:
    """A member as the CBOR of the next ring has it, any field changed. by: who introduces it, when it is new."""
    member = entry(ring, person)
    new = ring.member(person.name) is None
    values: dict[str, object] = {
        "role": str(member.role),
        "signing_key": member.signing_key,
        "hpke_key": None if member.hpke_key is None else [member.hpke_key.suite, member.hpke_key.public_key],
        "possession": member.possession,
        "label": member.label,
        "joined": ring.issued if new else member.joined,
        "introduced_by": by.name if new else member.introduced_by,
        "needs_digits": member.needs_digits,
        "rp_ids": None if member.rp_ids is None else list(member.rp_ids),
    }
    return list((values | changes).values())


# Envelopes


def fido_url(*, kind: str | None = "ga", time: int | None = NOW) -> str:
    """A FIDO URL as a device makes it, fresh."""
    point = compressed(ec.generate_private_key(CURVE).public_key())
    return FidoUrl(public_key=point, secret=secrets.token_bytes(16), time=time, hint_raw=kind).encode()


@dataclass
class Home:
    """An account with two companions and a device."""

    phone: Person = field(default_factory=lambda: companion("phone"))
    tablet: Person = field(default_factory=lambda: companion("tablet"))
    frame: Person = field(default_factory=lambda: device("frame"))
    account: str = ACCOUNT

    def __post_init__(self) -> None:
        first = found(self.phone, account=self.account)
        self.chain = chain_of(first, grow(first, self.phone, self.phone, self.tablet, self.frame))

    @property
    def ring(self) -> Ring:
        return self.chain.head

    def say(self, to: Person | None = None, **changes: Any) -> Announcement:
        """What the frame says to a companion (the phone, unless told otherwise)."""
        values: dict[str, Any] = {
            "ring": self.ring,
            "device": self.frame.name,
            "request_id": REQUEST_ID,
            "confirmed": NOW,
            "now": NOW,
            "lifetime": 300,
            "kind": RequestKind.GET_ASSERTION,
            "url": fido_url(),
            "rp_id": "example.com",
        }
        return Announcement.address((to or self.phone).member, **(values | changes))

    def seal(self, to: Person | None = None, **changes: Any) -> bytes:
        recipient = (to or self.phone).member.hpke_key
        assert recipient is not None
        return seal(self.say(to, **changes), self.frame.key, recipient)


REQUEST_ID = bytes(range(16))


def reseal(
    said: Announcement,
    *,
    by: Person,
    to: Person,
    sealed_id: bytes | None = None,
    sealed_from: str | None = None,
    **changes: object,
) -> bytes:
    """What an attacker can do who knows `to`'s public key: any content, signed by `by`, sealed properly.

    sealed_id, sealed_from: request and device it is sealed for, where these are not the ones said inside.
    changes: items of the signed body, by name.
    """
    hpke_key = to.member.hpke_key
    assert hpke_key is not None
    values: dict[str, object] = {
        "label": ENVELOPE_LABEL,
        "account": said.account,
        "request_id": said.request_id,
        "device": said.device,
        "recipient": said.recipient,
        "hpke_key_name": said.hpke_key_name,
        "suite": said.suite,
        "ring_version": said.ring_version,
        "ring_hash": said.ring_hash,
        "confirmed": said.confirmed,
        "issued": said.issued,
        "expires": said.expires,
        "kind": said.kind,
        "url": said.url,
        "rp_id": said.rp_id,
        "rp_name": said.rp_name,
        "note": said.note,
        "digits": said.digits,
    }
    body = cbor.encode(list((values | changes).values()))
    info = cbor.encode(
        [
            ENVELOPE_LABEL,
            1,
            said.account,
            sealed_id or said.request_id,
            sealed_from or said.device,
            to.name,
            hpke_key.name,
        ]
    )
    return reference_hpke.seal(hpke_key.public_key, body + sign_document(by.key, body), info)
