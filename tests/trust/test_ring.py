"""The ring: vectors, properties, refusals."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import (
    HeadlessPasskeyError,
    LocalProtocolError,
    ProtocolReason,
    RemoteProtocolError,
    TrustError,
    TrustReason,
)
from headless_passkey.trust.ring import (
    MAX_COMPANIONS,
    MAX_MEMBERS,
    MAX_RP_IDS,
    HpkeKey,
    Member,
    Ring,
    Role,
    document_hash,
    prove_possession,
    proves_possession,
)
from tests.trust.people import ACCOUNT, NOW, Person, companion, device, encoded, forge, found, grow, twin
from tests.trust.refusal import refused

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "ring.json").read_text())
PHONE, TABLET, FRAME, STRANGER = (
    companion("phone"),
    companion("tablet"),
    device("frame"),
    companion("stranger"),
)

FOUNDED = found(PHONE)


# Vectors


@pytest.mark.parametrize("case", VECTORS["rings"], ids=lambda case: case["name"])
def test_a_known_chain_verifies_and_has_the_known_hashes(case: dict[str, Any]) -> None:
    founding, *later = (bytes.fromhex(ring["document"]) for ring in case["chain"])
    ring = Ring.parse_founding(founding)
    rings = [ring]
    for document in later:
        ring = ring.extend(document, now=NOW)
        rings.append(ring)
    assert [ring.hash.hex() for ring in rings] == [ring["hash"] for ring in case["chain"]]
    assert [member.name for member in ring.members] == case["members"]


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["name"])
@pytest.mark.threat("T16")
def test_a_known_ring_that_breaks_a_rule_is_refused_for_that(case: dict[str, Any]) -> None:
    held = Ring.parse_kept(bytes.fromhex(case["held"]))
    with refused(TrustReason(case["reason"])):
        held.extend(bytes.fromhex(case["document"]), now=case["now"])


@pytest.mark.parametrize("case", VECTORS["vouched"], ids=lambda case: case["name"])
@pytest.mark.threat("T16")
def test_a_known_first_ring_of_a_newcomer_is_taken_or_refused(case: dict[str, Any]) -> None:
    document = bytes.fromhex(case["document"])
    if case["reason"] is None:
        assert Ring.parse_vouched(document, inviter=case["inviter"]).hash.hex() == case["hash"]
        return
    with refused(TrustReason(case["reason"])):
        Ring.parse_vouched(document, inviter=case["inviter"])


# Properties


def test_a_founded_ring_is_read_back_as_it_was_made() -> None:
    ring = found(PHONE)
    assert Ring.parse_founding(ring.document) == ring
    assert Ring.parse_kept(ring.document) == ring
    assert (ring.account, ring.account_name) == (ACCOUNT, "alice")
    (member,) = ring.members
    assert (member.name, member.hpke_key, member.label) == (PHONE.name, PHONE.hpke_key, "phone")
    assert (member.joined, member.introduced_by, member.needs_digits, member.rp_ids) == (
        NOW,
        None,
        False,
        None,
    )
    assert ring.member(STRANGER.name) is None


def test_admission_revocation_and_rotation_are_all_the_next_version() -> None:
    first = found(PHONE)
    admitted = grow(first, PHONE, PHONE, TABLET, FRAME)
    rotated_frame = device("frame")
    rotated = grow(admitted, TABLET, PHONE, TABLET, rotated_frame)
    removed = grow(rotated, TABLET, TABLET, rotated_frame)
    assert first.extend(admitted.document, now=NOW) == admitted
    assert admitted.extend(rotated.document, now=NOW) == rotated
    assert rotated.extend(removed.document, now=NOW) == removed
    assert [member.name for member in removed.companions] == [TABLET.name]


def test_a_companion_may_take_itself_out() -> None:
    both = grow(found(PHONE), PHONE, PHONE, TABLET)
    left = grow(both, PHONE, TABLET)
    assert both.extend(left.document, now=NOW) == left


@pytest.mark.parametrize(("suite", "size"), [(2, 1), (2, 1216), (2, 2048), (0xFFFF, 1)])
def test_a_member_with_a_suite_nobody_knows_yet_is_carried_along(suite: int, size: int) -> None:
    hpke_key = HpkeKey(suite=suite, public_key=bytes(size))
    future = replace(
        TABLET.member,
        hpke_key=hpke_key,
        possession=prove_possession(TABLET.key, account=ACCOUNT, role=Role.COMPANION, hpke_key=hpke_key),
        label="next year's phone",
    )
    first = found(PHONE)
    ring = first.next(PHONE.key, members=[*first.members, future], now=NOW)
    assert first.extend(ring.document, now=NOW).member(future.name) == replace(
        future, joined=NOW, introduced_by=PHONE.name
    )


def test_a_full_ring_fits_its_bound_and_one_member_more_is_too_many() -> None:
    rp_ids = tuple(f"{n}.login.example" for n in range(MAX_RP_IDS))
    companions = [PHONE, *(companion("\N{FAMILY}" * 64) for _ in range(MAX_COMPANIONS - 1))]
    devices = [device("\N{FAMILY}" * 64, rp_ids=rp_ids) for _ in range(MAX_MEMBERS - MAX_COMPANIONS)]
    ring = grow(found(PHONE), PHONE, *companions, *devices)
    assert (len(ring.members), len(ring.companions)) == (64, 16)
    with refused(TrustReason.RING_FULL):
        grow(ring, PHONE, *companions, *devices, device())
    with refused(TrustReason.RING_FULL):
        grow(ring, PHONE, *companions, companion())


def test_a_ring_with_more_than_its_bytes_is_full_before_it_has_all_its_members() -> None:
    rp_ids = tuple(f"{n}.{'long-name-of-a-site.' * 12}example" for n in range(MAX_RP_IDS))
    people = [PHONE, *(device("\N{FAMILY}" * 64, rp_ids=rp_ids) for _ in range(30))]
    assert len(grow(found(PHONE), PHONE, *people[:16]).members) == 16
    with refused(TrustReason.RING_FULL):
        grow(found(PHONE), PHONE, *people)


@given(st.binary(max_size=600))
@pytest.mark.threat("T12")
def test_any_bytes_are_refused_politely(document: bytes) -> None:
    for parse in (Ring.parse_founding, Ring.parse_kept, partial(FOUNDED.extend, now=NOW)):
        with pytest.raises((RemoteProtocolError, TrustError)):
            parse(document)


@given(st.data())
@pytest.mark.threat("T2")
def test_a_flipped_bit_is_refused(data: st.DataObject) -> None:
    ring = found(PHONE)
    document = bytearray(grow(ring, PHONE, PHONE, FRAME).document)
    bit = data.draw(st.integers(0, len(document) * 8 - 1))
    document[bit // 8] ^= 1 << bit % 8
    with pytest.raises(HeadlessPasskeyError):
        ring.extend(bytes(document), now=NOW)


# Refusals: what does not extend the ring


@pytest.mark.threat("T2")
def test_a_device_signs_only_the_ring_that_takes_itself_out() -> None:
    hub = device("hub")
    ring = grow(found(PHONE), PHONE, PHONE, FRAME, hub)
    assert ring.extend(forge(ring, FRAME, PHONE, hub), now=NOW) == grow(ring, FRAME, PHONE, hub)
    assert ring.without(FRAME.key, FRAME.name, now=NOW) == grow(ring, FRAME, PHONE, hub)
    for members in [(PHONE, FRAME, hub), (PHONE, FRAME), (PHONE,), (hub, PHONE), (PHONE, hub, TABLET)]:
        with refused(TrustReason.NOT_A_COMPANION):
            ring.extend(forge(ring, FRAME, *members), now=NOW)


@pytest.mark.threat("T2")
def test_a_ring_signed_by_a_non_member_is_refused() -> None:
    ring = found(PHONE)
    with refused(TrustReason.FORKED_RING):
        ring.extend(forge(ring, STRANGER, PHONE, STRANGER), now=NOW)


@pytest.mark.threat("T2")
def test_a_ring_signed_by_a_removed_member_is_refused() -> None:
    both = grow(found(PHONE), PHONE, PHONE, TABLET)
    removed = grow(both, PHONE, PHONE)
    with refused(TrustReason.FORKED_RING):
        removed.extend(forge(removed, TABLET, PHONE, TABLET), now=NOW)


@pytest.mark.threat("T2")
def test_a_newcomer_cannot_sign_the_ring_that_admits_it() -> None:
    ring = found(PHONE)
    with refused(TrustReason.FORKED_RING):
        ring.extend(forge(ring, TABLET, PHONE, TABLET), now=NOW)


@pytest.mark.threat("T2")
def test_a_ring_signed_in_a_companions_name_by_another_key_is_refused() -> None:
    ring = found(PHONE)
    with refused(TrustReason.BAD_SIGNATURE):
        ring.extend(forge(ring, STRANGER, PHONE, STRANGER, signer=PHONE.name), now=NOW)


@pytest.mark.threat("T2")
def test_a_skipped_version_is_refused_although_its_number_is_higher() -> None:
    first = found(PHONE)
    second = grow(first, PHONE, PHONE, TABLET)
    third = grow(second, PHONE, PHONE, TABLET, FRAME)
    with refused(TrustReason.FORKED_RING):
        first.extend(third.document, now=NOW)


@pytest.mark.threat("T2")
def test_a_fork_of_the_same_version_is_refused() -> None:
    first = found(PHONE)
    mine, theirs = grow(first, PHONE, PHONE, TABLET), grow(first, PHONE, PHONE, FRAME)
    for document in (theirs.document, grow(theirs, PHONE, PHONE).document):
        with refused(TrustReason.FORKED_RING):
            mine.extend(document, now=NOW)


@pytest.mark.threat("T2")
def test_an_older_ring_is_refused() -> None:
    first = found(PHONE)
    second = grow(first, PHONE, PHONE, TABLET)
    for document in (first.document, second.document):
        with refused(TrustReason.FORKED_RING):
            second.extend(document, now=NOW)


@pytest.mark.threat("T2")
def test_another_accounts_ring_is_refused() -> None:
    ring = found(PHONE)
    for changes in ({"account": "A" * 22}, {"account_name": "bob"}):
        with refused(TrustReason.FORKED_RING):
            ring.extend(forge(ring, PHONE, PHONE, **changes), now=NOW)


@pytest.mark.threat("T2")
def test_a_ring_with_the_other_valid_signature_is_refused() -> None:
    first = found(PHONE)
    with refused(TrustReason.BAD_SIGNATURE):
        first.extend(twin(grow(first, PHONE, PHONE, TABLET).document), now=NOW)
    with refused(TrustReason.BAD_SIGNATURE):
        Ring.parse_founding(twin(first.document))


def test_a_ring_signed_twice_is_the_same_ring() -> None:
    first = found(PHONE)
    one, other = forge(first, PHONE, PHONE, TABLET), forge(first, PHONE, PHONE, TABLET)
    assert one != other
    assert first.extend(one, now=NOW) == first.extend(other, now=NOW)
    assert document_hash(one) == first.extend(other, now=NOW).hash


# What a companion may say of others


def changed(ring: Ring, name: str, **changes: Any) -> list[Member]:
    return [replace(each, **changes) if each.name == name else each for each in ring.members]


def test_a_companion_renames_others_and_binds_devices() -> None:
    ring = grow(found(PHONE), PHONE, PHONE, TABLET, FRAME)
    named = ring.next(TABLET.key, members=changed(ring, PHONE.name, label="Anna's phone"), now=NOW)
    bound = named.next(
        TABLET.key,
        members=changed(named, FRAME.name, needs_digits=True, rp_ids=("example.com",)),
        now=NOW,
    )
    assert ring.extend(named.document, now=NOW).extend(bound.document, now=NOW) == bound


@pytest.mark.threat("T16")
def test_only_its_holder_changes_a_companions_key_for_envelopes() -> None:
    ring = grow(found(PHONE), PHONE, PHONE, TABLET)
    new = companion().hpke_key
    assert new is not None
    proved = prove_possession(TABLET.key, account=ACCOUNT, role=Role.COMPANION, hpke_key=new)
    members = changed(ring, TABLET.name, hpke_key=new, possession=proved)
    assert ring.next(TABLET.key, members=members, now=NOW).companions[1].hpke_key == new
    with refused(TrustReason.CHANGED_MEMBER):
        ring.next(PHONE.key, members=members, now=NOW)
    with refused(TrustReason.BAD_POSSESSION):
        ring.next(TABLET.key, members=changed(ring, TABLET.name, hpke_key=new), now=NOW)


def test_a_ring_is_never_dated_before_the_one_that_it_follows() -> None:
    first = found(PHONE)
    second = grow(first, PHONE, PHONE, TABLET, now=NOW - 50)
    assert second.issued == NOW
    assert second.companions[1].joined == NOW
    assert first.extend(second.document, now=NOW - 120) == second
    with refused(TrustReason.CLOCK_SKEW, saying="121 s ahead"):
        first.extend(second.document, now=NOW - 121)


# Possession

HPKE = PHONE.member.hpke_key
ENTRIES: dict[str, tuple[Role, HpkeKey | None]] = {
    "companion": (Role.COMPANION, HPKE),
    "device": (Role.DEVICE, None),
}


@pytest.mark.parametrize(("role", "hpke_key"), ENTRIES.values(), ids=ENTRIES)
@pytest.mark.threat("T16")
def test_possession_is_proved_for_one_account_role_and_pair_of_keys(
    role: Role, hpke_key: HpkeKey | None
) -> None:
    said = {"account": "A" * 22, "role": role, "hpke_key": hpke_key}
    possession = prove_possession(PHONE.key, **said)  # type: ignore[arg-type]  # keywords by name
    entry = said | {"signing_key": PHONE.key.public_key}

    def proved(possession: bytes = possession, **changes: object) -> bool:
        return proves_possession(possession, **(entry | changes))  # type: ignore[arg-type]

    assert proved()
    assert not proved(twin(possession))
    assert not proved(possession[:63])
    assert not proved(account="B" * 22)
    assert not proved(role=Role.DEVICE if role is Role.COMPANION else Role.COMPANION)
    assert not proved(signing_key=TABLET.key.public_key)
    assert not proved(hpke_key=TABLET.member.hpke_key)
    assert not proved(hpke_key=None if hpke_key else HPKE)


# Refusals: what cannot be a first ring


@pytest.mark.threat("T2")
def test_a_founding_ring_is_version_one_with_one_member_and_its_own_signature() -> None:
    ring = found(PHONE)
    with refused(TrustReason.FORKED_RING):
        Ring.parse_founding(grow(ring, PHONE, PHONE).document)
    with refused(TrustReason.FORKED_RING):
        Ring.parse_founding(forge(ring, PHONE, PHONE, TABLET, version=1, previous=None))
    with refused(TrustReason.FORKED_RING):
        Ring.parse_founding(forge(ring, STRANGER, PHONE, version=1, previous=None))
    with refused(TrustReason.BAD_SIGNATURE):
        Ring.parse_founding(forge(ring, STRANGER, PHONE, version=1, previous=None, signer=PHONE.name))


@pytest.mark.threat("T2")
def test_a_newcomer_takes_its_first_ring_from_the_pinned_inviter_only() -> None:
    ring = grow(found(PHONE), PHONE, PHONE, TABLET, FRAME)
    assert Ring.parse_vouched(ring.document, inviter=PHONE.name) == ring
    with refused(TrustReason.BAD_SIGNATURE):
        Ring.parse_vouched(ring.document, inviter=TABLET.name)
    with refused(TrustReason.BAD_SIGNATURE):
        Ring.parse_vouched(forge(ring, STRANGER, PHONE, signer=PHONE.name), inviter=PHONE.name)
    with refused(TrustReason.FORKED_RING):
        Ring.parse_vouched(forge(ring, PHONE, TABLET), inviter=PHONE.name)
    with refused(TrustReason.FORKED_RING):
        Ring.parse_vouched(forge(ring, FRAME, PHONE, FRAME), inviter=FRAME.name)


# Refusals: what is not a ring


def said(person: Person, **changes: object) -> list[object]:
    return encoded(FOUNDED, person, by=PHONE, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "headless-passkey ring v1"},
        {"label": "headless-passkey envelope v1"},
        {"label": None},
        {"account": ""},
        {"account": "alice"},
        {"account": ACCOUNT[:21]},
        {"account": ACCOUNT[:21] + "R"},
        {"account": ACCOUNT + "A"},
        {"account": ACCOUNT.encode()},
        {"account_name": ""},
        {"account_name": "a" * 65},
        {"account_name": "alice\nbob"},
        {"account_name": " alice"},
        {"account_name": b"alice"},
        {"version": 0},
        {"version": True},
        {"version": -1},
        {"version": 1},
        {"version": 1 << 33},
        {"previous": None},
        {"previous": bytes(31)},
        {"issued": -1},
        {"issued": 1 << 49},
        {"issued": "now"},
        {"members": []},
        {"members": {}},
        {"members": [said(PHONE), said(PHONE)]},
        {"members": [said(PHONE)[:8]]},
        {"members": [[*said(PHONE), None]]},
        {"members": [said(PHONE, role="owner")]},
        {"members": [said(PHONE, role=b"companion")]},
        {"members": [said(PHONE, signing_key=b"\x04" + bytes(64))]},
        {"members": [said(PHONE, signing_key=PHONE.key.public_key[:33])]},
        {"members": [said(PHONE, hpke_key=None)]},
        {"members": [said(PHONE, hpke_key=[0, PHONE.key.public_key])]},
        {"members": [said(PHONE, hpke_key=[1, bytes(65)])]},
        {"members": [said(PHONE, hpke_key=[2, b""])]},
        {"members": [said(PHONE, hpke_key=[2, bytes(2049)])]},
        {"members": [said(PHONE, possession=bytes(63))]},
        {"members": [said(PHONE, possession=None)]},
        {"members": [said(PHONE, label="phone\u202egnp.exe")]},
        {"members": [said(PHONE, joined=-1)]},
        {"members": [said(PHONE, joined=None)]},
        {"members": [said(PHONE, introduced_by="phone")]},
        {"members": [said(PHONE, needs_digits=True)]},
        {"members": [said(PHONE, needs_digits=0)]},
        {"members": [said(PHONE, rp_ids=["example.com"])]},
        {"members": [said(PHONE), said(FRAME, hpke_key=[1, PHONE.key.public_key])]},
        {"members": [said(PHONE), said(FRAME, rp_ids=[])]},
        {"members": [said(PHONE), said(FRAME, rp_ids="example.com")]},
        {"members": [said(PHONE), said(FRAME, rp_ids=["Example.com"])]},
        {"members": [said(PHONE), said(FRAME, rp_ids=["example.com", "example.com"])]},
        {"members": [said(PHONE), said(FRAME, rp_ids=[f"{n}.example" for n in range(9)])]},
        {"signer": "phone"},
        {"signer": "A" * 42 + "B"},
        {"signer": "!" * 43},
        {"extra": 1},
    ],
    # members hold random keys: pytest numbers them
    ids=lambda changes: next(
        key if key == "members" else f"{key}-{value!a}"[:40].replace("\\", "/")
        for key, value in changes.items()
    ),
)
@pytest.mark.threat("T12")
def test_a_field_out_of_shape_makes_it_no_ring(changes: dict[str, Any]) -> None:
    ring = FOUNDED
    with pytest.raises(RemoteProtocolError) as refusal:
        ring.extend(forge(ring, PHONE, PHONE, FRAME, **changes), now=NOW)
    assert refusal.value.reason in {
        ProtocolReason.MALFORMED_RING,
        ProtocolReason.MALFORMED_DOCUMENT,
        ProtocolReason.MALFORMED_KEY,
        ProtocolReason.MALFORMED_BASE64URL,
    }
    assert str(refusal.value) not in {"", "None"}


@pytest.mark.threat("T12")
def test_a_ring_too_large_or_too_small_is_refused() -> None:
    ring = found(PHONE)
    for size, reason, said in (
        (0, ProtocolReason.MALFORMED_RING, "a ring has 65 to 49152 bytes, got 0"),
        (64, ProtocolReason.MALFORMED_RING, "a ring has 65 to 49152 bytes, got 64"),
        (65, ProtocolReason.MALFORMED_DOCUMENT, ""),  # of a right size, and no ring
        (49152, ProtocolReason.MALFORMED_CBOR, ""),
        (49153, ProtocolReason.TOO_LONG, "a ring has 65 to 49152 bytes, got 49153"),
    ):
        with pytest.raises(RemoteProtocolError) as refusal:
            ring.extend(bytes(size), now=NOW)
        assert refusal.value.reason is reason, size
        assert said in str(refusal.value)


@pytest.mark.threat("T16")
def test_a_ring_cannot_be_made_wrong() -> None:
    ring = grow(found(PHONE), PHONE, PHONE, FRAME)
    with refused(TrustReason.NOT_A_COMPANION):
        grow(ring, FRAME, PHONE, FRAME, TABLET)
    with refused(TrustReason.LAST_COMPANION):
        grow(ring, PHONE, FRAME)
    with refused(TrustReason.BAD_POSSESSION):
        ring.next(PHONE.key, members=[*ring.members, replace(TABLET.member, possession=bytes(64))], now=NOW)
    with refused(TrustReason.CHANGED_MEMBER):
        ring.next(PHONE.key, members=[ring.members[0], FRAME.member], now=NOW)
    with pytest.raises(LocalProtocolError):
        grow(ring, STRANGER, PHONE, STRANGER)
    with pytest.raises(LocalProtocolError):
        ring.next(PHONE.key, members=[ring.members[0], ring.members[0]], now=NOW)


def test_a_member_is_bound_to_its_rp_ids() -> None:
    bound = device("frame", rp_ids=("example.com",)).member
    assert bound.allows("example.com")
    assert not bound.allows("evil.example")
    assert FRAME.member.allows("evil.example")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: HpkeKey(suite=0, public_key=bytes(65)),
        lambda: HpkeKey(suite=1, public_key=bytes(65)),
        lambda: HpkeKey(suite=2, public_key=b""),
        lambda: replace(FRAME.member, signing_key=bytes(65)),
        lambda: replace(FRAME.member, label=" frame"),
        lambda: replace(FRAME.member, possession=bytes(65)),
        lambda: replace(PHONE.member, hpke_key=None),
        lambda: replace(PHONE.member, needs_digits=True),
        lambda: replace(PHONE.member, rp_ids=("example.com",)),
    ],
    ids=range(9),
)
def test_a_key_or_member_cannot_be_made_out_of_shape(wrong: Callable[[], object]) -> None:
    with pytest.raises(RemoteProtocolError):
        wrong()


@pytest.mark.threat("T16")
def test_a_companion_replaces_its_own_hpke_key_and_nobody_elses() -> None:
    held = grow(FOUNDED, PHONE, PHONE, TABLET, FRAME)
    fresh = companion().hpke_key
    assert fresh is not None
    ring = held.extend(held.with_hpke_key(TABLET.key, fresh, now=NOW).document, now=NOW)
    assert [each.hpke_key for each in ring.members] == [PHONE.hpke_key, fresh, None]
    entry, before = ring.members[1], held.members[1]
    assert replace(before, hpke_key=fresh, possession=entry.possession) == entry
    assert (ring.members[0], ring.members[2]) == (held.members[0], held.members[2])
    with pytest.raises(LocalProtocolError):
        held.with_hpke_key(STRANGER.key, fresh, now=NOW)


def test_a_rings_number_is_eighteen_digits_of_its_hash_for_two_people_to_compare() -> None:
    held = grow(FOUNDED, PHONE, PHONE, TABLET)
    digits = held.number.replace(" ", "")
    assert int(digits) == int.from_bytes(held.hash[:8]) % 10**18
    assert [len(group) for group in held.number.split(" ")] == [3] * 6
    assert held.number != FOUNDED.number
