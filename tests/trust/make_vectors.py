"""Make the vectors of tests/vectors that have no published source (marked ``self``).

    python -m tests.trust.make_vectors [ring|word|envelope|invitation|introduction]...

They pin our formats: a change here is a change of the protocol, and a port to another language starts from
them. Keys are fixed and signatures are random, so a second run gives other signatures over the same bodies.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.hybrid.keys import compressed
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.admission import InvitationRecord
from headless_passkey.trust.envelope import Announcement, seal
from headless_passkey.trust.introduction import Introduction, Nonces
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import Ring, document_hash
from headless_passkey.trust.signing import CURVE, SIGNATURE_SIZE, SoftwareSigningKey, sign_document
from headless_passkey.trust.word import Claim, Word
from tests.strategies import P256_ORDER
from tests.trust.people import (
    ACCOUNT,
    ACCOUNT_NAME,
    NOW,
    REQUEST_ID,
    Person,
    companion,
    device,
    encoded,
    forge,
    found,
    grow,
    twin,
)

FOLDER = Path(__file__).parent.parent / "vectors"


def fixed(person: Person, number: int) -> Person:
    """`person` with keys anyone can make again: scalars 100 + number and 200 + number."""
    person.key = SoftwareSigningKey.from_bytes((100 + number).to_bytes(32, "big"))
    person.hpke = ec.derive_private_key(200 + number, CURVE)
    return person


PHONE = fixed(companion("phone"), 1)
TABLET = fixed(companion("tablet \N{GREEK SMALL LETTER ALPHA}"), 2)
FRAME = fixed(device("frame", rp_ids=("example.com", "login.example.org")), 3)


def rings() -> dict[str, Any]:
    first = found(PHONE)
    second = grow(first, PHONE, PHONE, FRAME)
    third = grow(second, PHONE, PHONE, FRAME, TABLET)
    fourth = grow(third, TABLET, TABLET, FRAME)
    return {
        "source": "self",
        "spec": "docs/protocol/trust.md, the ring",
        "rings": [
            {
                "name": f"{ACCOUNT_NAME}: founded, a device, a second companion, the first one removed",
                "chain": [
                    {"version": ring.version, "document": ring.document.hex(), "hash": ring.hash.hex()}
                    for ring in (first, second, third, fourth)
                ],
                "members": [member.name for member in fourth.members],
            }
        ],
        "refused": list(_refused(third)),
        "vouched": list(_vouched(third)),
    }


def _refused(held: Ring) -> Iterator[dict[str, Any]]:
    """A next ring of `held` for each rule, which breaks this rule and no earlier one."""
    people = (PHONE, FRAME, TABLET)
    stranger, hub = fixed(companion("stranger"), 4), fixed(device("hub"), 5)
    key = fixed(companion(), 6).hpke_key
    assert key is not None
    said = [encoded(held, person, by=PHONE) for person in people]

    def changed(person: Person, **changes: object) -> list[object]:
        others = [each for each in people if each is not person]
        return [
            *(encoded(held, each, by=PHONE) for each in others),
            encoded(held, person, by=PHONE, **changes),
        ]

    def new(**changes: object) -> list[object]:
        return [*said, encoded(held, hub, by=PHONE, **changes)]

    hub.account = "A" * 22
    elsewhere = hub.possession
    replaced = [key.suite, key.public_key]
    crowd = [fixed(companion(f"tablet {number}"), 10 + number) for number in range(15)]
    cases: list[tuple[str, str, bytes]] = [
        ("another account", "forked-ring", forge(held, PHONE, *people, account="A" * 22)),
        ("another account name", "forked-ring", forge(held, PHONE, *people, account_name="bob")),
        ("a version is skipped", "forked-ring", forge(held, PHONE, *people, version=held.version + 2)),
        ("it follows another ring", "forked-ring", forge(held, PHONE, *people, previous=bytes(32))),
        ("the signer is no member", "forked-ring", forge(held, stranger, *people, stranger)),
        ("signed by another key", "bad-signature", forge(held, stranger, *people, signer=PHONE.name)),
        ("the higher s", "bad-signature", twin(forge(held, PHONE, *people))),
        (
            "dated before the ring before",
            "backdated-ring",
            forge(held, PHONE, *people, issued=held.issued - 1),
        ),
        ("dated 121 s ahead", "clock-skew", forge(held, PHONE, *people, issued=NOW + 121)),
        (
            "another role",
            "changed-member",
            forge(held, PHONE, members=changed(FRAME, role="companion", hpke_key=replaced, rp_ids=None)),
        ),
        (
            "joined at another time",
            "changed-member",
            forge(held, PHONE, members=changed(FRAME, joined=NOW + 1)),
        ),
        (
            "introduced by another",
            "changed-member",
            forge(held, PHONE, members=changed(FRAME, introduced_by=TABLET.name)),
        ),
        (
            "another's key for envelopes",
            "changed-member",
            forge(held, PHONE, members=changed(TABLET, hpke_key=replaced)),
        ),
        (
            "another's proof of possession",
            "changed-member",
            forge(held, PHONE, members=changed(TABLET, possession=bytes(64))),
        ),
        (
            "its own key without a new proof",
            "bad-possession",
            forge(held, PHONE, members=changed(PHONE, hpke_key=replaced)),
        ),
        ("no proof of possession", "bad-possession", forge(held, PHONE, members=new(possession=bytes(64)))),
        (
            "a proof for another account",
            "bad-possession",
            forge(held, PHONE, members=new(possession=elsewhere)),
        ),
        (
            "the higher s in a proof",
            "bad-possession",
            forge(
                held, PHONE, members=[*said, encoded(held, hub, by=PHONE, possession=twin(_proof(held, hub)))]
            ),
        ),
        ("a newcomer that joined before", "changed-member", forge(held, PHONE, members=new(joined=NOW - 1))),
        (
            "a newcomer introduced by another",
            "changed-member",
            forge(held, PHONE, members=new(introduced_by=TABLET.name)),
        ),
        (
            "a newcomer introduced by nobody",
            "changed-member",
            forge(held, PHONE, members=new(introduced_by=None)),
        ),
        ("a device takes another out", "not-a-companion", forge(held, FRAME, PHONE)),
        ("a device changes nothing", "not-a-companion", forge(held, FRAME, *people)),
        ("no companion remains", "last-companion", forge(held, PHONE, FRAME)),
        ("seventeen companions", "ring-full", forge(held, PHONE, *people, *crowd)),
    ]
    for name, reason, document in cases:
        yield {
            "name": name,
            "reason": reason,
            "held": held.document.hex(),
            "document": document.hex(),
            "now": NOW,
        }


def _proof(ring: Ring, person: Person) -> bytes:
    """The proof of possession with which `person` joins the account of `ring`."""
    person.account = ring.account
    return person.possession


def _vouched(ring: Ring) -> Iterator[dict[str, Any]]:
    """First rings of a newcomer, with the name of the inviter that it has pinned."""
    hub = fixed(device("hub"), 5)
    stolen = [
        *(encoded(ring, each, by=PHONE) for each in (PHONE, FRAME, TABLET)),
        encoded(ring, hub, by=PHONE, possession=bytes(64)),
    ]
    good = forge(ring, PHONE, PHONE, FRAME, TABLET, hub)
    for name, inviter, reason, document in (
        ("signed by the inviter", PHONE, None, good),
        ("signed by another companion", TABLET, "bad-signature", good),
        ("signed by a device", FRAME, "forked-ring", forge(ring, FRAME, PHONE, FRAME)),
        ("without the inviter", PHONE, "forked-ring", forge(ring, PHONE, FRAME, TABLET)),
        ("the higher s", PHONE, "bad-signature", twin(good)),
        ("a key without its holder", PHONE, "bad-possession", forge(ring, PHONE, members=stolen)),
    ):
        yield {
            "name": name,
            "inviter": inviter.name,
            "reason": reason,
            "document": document.hex(),
            "hash": document_hash(document).hex(),
        }


def words() -> dict[str, Any]:
    ring = grow(found(PHONE), PHONE, PHONE, FRAME, TABLET)
    claim = Claim.of(device=FRAME.name, request_id=REQUEST_ID, sealed=b"sealed")
    plain = Word.give(PHONE.key, ring=ring, now=NOW)
    claiming = Word.give(TABLET.key, ring=ring, now=NOW, claim=claim)

    def case(name: str, document: bytes, by: Person) -> dict[str, Any]:
        return {
            "name": name,
            "by": by.name,
            "signing_key": by.key.public_key.hex(),
            "document": document.hex(),
        }

    def said(word: Word, sealed: bytes | None) -> dict[str, Any]:
        claimed = (
            None
            if sealed is None
            else {"device": FRAME.name, "request_id": REQUEST_ID.hex(), "sealed": sealed.hex()}
        )
        return {
            "account": ACCOUNT,
            "version": ring.version,
            "hash": ring.hash.hex(),
            "at": word.at,
            "claim": claimed,
        }

    body = plain.document[:-SIGNATURE_SIZE]
    later = body.replace(NOW.to_bytes(4), (NOW + 1).to_bytes(4)) + plain.document[-SIGNATURE_SIZE:]
    return {
        "source": "self",
        "spec": "docs/protocol/trust.md, the word",
        "words": [
            case("of the phone, without a claim", plain.document, PHONE) | {"says": said(plain, None)},
            case("of the tablet, with a claim of the bytes 'sealed'", claiming.document, TABLET)
            | {"says": said(claiming, b"sealed")},
        ],
        "refused": [
            case("the word of the phone, said to be the tablet's", plain.document, TABLET)
            | {"reason": "bad-signature"},
            case("the tablet signs in the phone's name", body + sign_document(TABLET.key, body), TABLET)
            | {"reason": "bad-signature"},
            case("one second later than signed", later, PHONE) | {"reason": "bad-signature"},
            case("the higher of the two valid s", body + _higher(plain.document[-SIGNATURE_SIZE:]), PHONE)
            | {"reason": "bad-signature"},
            case("a byte more", body + b"\x00" + sign_document(PHONE.key, body + b"\x00"), PHONE)
            | {"reason": "malformed-cbor"},
            case("no word but its signature", plain.document[-SIGNATURE_SIZE:], PHONE)
            | {"reason": "malformed-document"},
            case("513 bytes", bytes(513), PHONE) | {"reason": "too-long"},
        ],
    }


def _higher(signature: bytes) -> bytes:
    s = P256_ORDER - int.from_bytes(signature[32:])
    return signature[:32] + s.to_bytes(32)


def envelopes() -> dict[str, Any]:
    first = found(PHONE)
    ring = grow(first, PHONE, PHONE, FRAME, TABLET)
    url = FidoUrl(
        public_key=compressed(ec.derive_private_key(301, CURVE).public_key()),
        secret=bytes(range(16)),
        assigned_domains=2,
        time=NOW,
        linking=False,
        hint_raw="ga",
    ).encode()
    cases = []
    for name, recipient, more in (
        ("to the phone, as little as can be said", PHONE, {}),
        (
            "to the tablet, everything",
            TABLET,
            {"rp_name": "Example, Inc.", "note": "Kitchen \N{EN DASH} next to the door", "digits": "042"},
        ),
    ):
        said = Announcement.address(
            recipient.member,
            ring=ring,
            device=FRAME.name,
            request_id=REQUEST_ID,
            confirmed=NOW - 3600,
            now=NOW,
            lifetime=300,
            kind=RequestKind.GET_ASSERTION,
            url=url,
            rp_id="example.com",
            **more,
        )
        assert recipient.member.hpke_key is not None
        cases.append(
            {
                "name": name,
                "ring": ring.document.hex(),
                "hpke_private": recipient.hpke_private.to_bytes().hex(),
                "request_id": REQUEST_ID.hex(),
                "device": FRAME.name,
                "recipient": recipient.name,
                "sealed": seal(said, FRAME.key, recipient.member.hpke_key).hex(),
                "says": {
                    "account": ACCOUNT,
                    "confirmed": NOW - 3600,
                    "issued": NOW,
                    "expires": NOW + 300,
                    "kind": "ga",
                    "url": url,
                    "rp_id": "example.com",
                    "rp_name": said.rp_name,
                    "note": said.note,
                    "digits": said.digits,
                },
            }
        )
    return {"source": "self", "spec": "docs/protocol/trust.md, the envelope", "envelopes": cases}


RELAY_URL = "https://relay.example/push"


def invitation_for(newcomer: Person) -> Invitation:
    return Invitation(
        relay_url=RELAY_URL,
        account=ACCOUNT,
        account_name=ACCOUNT_NAME,
        kind=newcomer.role,
        inviter=PHONE.name,
        inviter_label=PHONE.label,
        secret=hashlib.sha256(newcomer.role.encode()).digest()[:16],
        expires_at=NOW + 600,
    )


def invitations() -> dict[str, Any]:
    code = AccountCode(relay_url=RELAY_URL, account=ACCOUNT, account_name=ACCOUNT_NAME, code=bytes(range(32)))
    return {
        "source": "self",
        "spec": "docs/protocol/trust.md, invitation and account code",
        "invitations": [
            {
                "name": f"for a {newcomer.role}",
                "text": invitation.encode(),
                "secret": invitation.secret.hex(),
                "ticket": invitation.ticket.hex(),
                "id": invitation.id,
                "k_new": invitation.k_new.hex(),
                "k_inv": invitation.k_inv.hex(),
            }
            for newcomer in (FRAME, TABLET)
            for invitation in [invitation_for(newcomer)]
        ],
        "account_codes": [
            {
                "name": "an account",
                "text": code.encode(),
                "relay_url": code.relay_url,
                "account": code.account,
                "account_name": code.account_name,
                "code": code.code.hex(),
            }
        ],
    }


def introductions() -> dict[str, Any]:
    ring = found(PHONE)
    introduced = []
    for newcomer in (fixed(device("frame"), 3), TABLET):
        invitation = invitation_for(newcomer)
        theirs, ours = (
            hashlib.sha256(f"{newcomer.role} {side}".encode()).digest() for side in ("newcomer", "inviter")
        )
        introduction = Introduction.make(
            invitation, key=newcomer.key, hpke_key=newcomer.hpke_key, label=newcomer.label, nonce=theirs
        )
        record = InvitationRecord(invitation=invitation, newcomer=introduction.hash, nonce=ours)
        record = record.candidate(introduction, theirs).agree_without_number()
        next_ring, mac = record.admit(introduction, ring=ring, key=PHONE.key, now=NOW)
        introduced.append(
            {
                "name": f"a {newcomer.role}",
                "invitation": invitation.encode(),
                "kind": newcomer.role,
                "label": newcomer.label,
                "newcomer": newcomer.name,
                "body": introduction.body.hex(),
                "signature": introduction.signature.hex(),
                "mac": introduction.mac.hex(),
                "newcomer_nonce": theirs.hex(),
                "commitment": introduction.commitment.hex(),
                "inviter_nonce": ours.hex(),
                "number": Nonces(newcomer=theirs, inviter=ours).number(introduction),
                "ring": next_ring.document.hex(),
                "answer_mac": mac.hex(),
            }
        )
    return {
        "source": "self",
        "spec": "docs/protocol/trust.md, introduction, number and answer",
        "introductions": introduced,
    }


def main() -> None:
    made = {
        "ring": rings,
        "word": words,
        "envelope": envelopes,
        "invitation": invitations,
        "introduction": introductions,
    }
    for name in sys.argv[1:] or made:
        (FOLDER / f"{name}.json").write_text(json.dumps(made[name](), indent=1) + "\n")


if __name__ == "__main__":
    main()
