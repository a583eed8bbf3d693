"""The ring: vectors, properties, refusals."""

import json
from collections.abc import Callable
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
    MAX_MEMBERS,
    HpkeKey,
    Member,
    Ring,
    Role,
    document_hash,
    prove_possession,
    proves_possession,
)
from headless_passkey.trust.signing import SoftwareSigningKey
from tests.trust.people import ACCOUNT, NOW, companion, device, encoded, forge, found, grow, twin
from tests.trust.refusal import refused

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "ring.json").read_text())
PHONE, TABLET, FRAME, STRANGER = (
    companion("phone"),
    companion("tablet"),
    device("frame"),
    companion("stranger"),
)


# Vectors


@pytest.mark.parametrize("case", VECTORS["rings"], ids=lambda case: case["name"])
def test_a_known_chain_verifies_and_has_the_known_hashes(case: dict[str, Any]) -> None:
    founding, *later = (bytes.fromhex(ring["document"]) for ring in case["chain"])
    ring = Ring.parse_founding(founding)
    rings = [ring]
    for document in later:
        ring = ring.extend(document)
        rings.append(ring)
    assert [ring.hash.hex() for ring in rings] == [ring["hash"] for ring in case["chain"]]
    assert [member.name for member in ring.members] == case["members"]


# Properties


def test_a_founded_ring_is_read_back_as_it_was_made() -> None:
    ring = found(PHONE)
    assert Ring.parse_founding(ring.document) == ring
    assert Ring.parse_kept(ring.document) == ring
    assert ring.member(PHONE.name) == PHONE.member
    assert ring.member(STRANGER.name) is None


def test_admission_revocation_and_rotation_are_all_the_next_version() -> None:
    first = found(PHONE)
    admitted = grow(first, PHONE, PHONE, TABLET, FRAME)
    rotated_frame = device("frame")
    rotated = grow(admitted, TABLET, PHONE, TABLET, rotated_frame)
    removed = grow(rotated, TABLET, TABLET, rotated_frame)
    assert first.extend(admitted.document) == admitted
    assert admitted.extend(rotated.document) == rotated
    assert rotated.extend(removed.document) == removed
    assert removed.companions == (TABLET.member,)


def test_a_companion_may_take_itself_out() -> None:
    both = grow(found(PHONE), PHONE, PHONE, TABLET)
    left = grow(both, PHONE, TABLET)
    assert both.extend(left.document) == left


@pytest.mark.parametrize(("suite", "size"), [(2, 1), (2, 1216), (2, 2048), (0xFFFF, 1)])
def test_a_member_with_a_suite_nobody_knows_yet_is_carried_along(suite: int, size: int) -> None:
    future = Member(
        role=Role.COMPANION,
        signing_key=TABLET.key.public_key,
        hpke_key=HpkeKey(suite=suite, public_key=bytes(size)),
        label="next year's phone",
    )
    first = found(PHONE)
    ring = first.next(PHONE.key, members=[PHONE.member, future], now=NOW)
    assert first.extend(ring.document).member(future.name) == future


def test_a_full_ring_fits_its_bound() -> None:
    members = [PHONE.member] + [
        Member(
            role=Role.COMPANION,
            signing_key=SoftwareSigningKey.generate().public_key,
            hpke_key=PHONE.member.hpke_key,
            label="\N{FAMILY}" * 64,
        )
        for _ in range(MAX_MEMBERS - 1)
    ]
    ring = found(PHONE).next(PHONE.key, members=members, now=NOW)
    assert len(ring.members) == MAX_MEMBERS


@given(st.binary(max_size=600))
@pytest.mark.threat("T12")
def test_any_bytes_are_refused_politely(document: bytes) -> None:
    for parse in (Ring.parse_founding, Ring.parse_kept, found(PHONE).extend):
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
        ring.extend(bytes(document))


# Refusals: what does not extend the ring


@pytest.mark.threat("T2")
def test_a_ring_signed_by_a_device_is_refused() -> None:
    ring = grow(found(PHONE), PHONE, PHONE, FRAME)
    with refused(TrustReason.FORKED_RING):
        ring.extend(forge(ring, FRAME, PHONE, FRAME, TABLET))


@pytest.mark.threat("T2")
def test_a_ring_signed_by_a_non_member_is_refused() -> None:
    ring = found(PHONE)
    with refused(TrustReason.FORKED_RING):
        ring.extend(forge(ring, STRANGER, PHONE, STRANGER))


@pytest.mark.threat("T2")
def test_a_ring_signed_by_a_removed_member_is_refused() -> None:
    both = grow(found(PHONE), PHONE, PHONE, TABLET)
    removed = grow(both, PHONE, PHONE)
    with refused(TrustReason.FORKED_RING):
        removed.extend(forge(removed, TABLET, PHONE, TABLET))


@pytest.mark.threat("T2")
def test_a_newcomer_cannot_sign_the_ring_that_admits_it() -> None:
    ring = found(PHONE)
    with refused(TrustReason.FORKED_RING):
        ring.extend(forge(ring, TABLET, PHONE, TABLET))


@pytest.mark.threat("T2")
def test_a_ring_signed_in_a_companions_name_by_another_key_is_refused() -> None:
    ring = found(PHONE)
    with refused(TrustReason.BAD_SIGNATURE):
        ring.extend(forge(ring, STRANGER, PHONE, STRANGER, signer=PHONE.name))


@pytest.mark.threat("T2")
def test_a_skipped_version_is_refused_although_its_number_is_higher() -> None:
    first = found(PHONE)
    second = grow(first, PHONE, PHONE, TABLET)
    third = grow(second, PHONE, PHONE, TABLET, FRAME)
    with refused(TrustReason.FORKED_RING):
        first.extend(third.document)


@pytest.mark.threat("T2")
def test_a_fork_of_the_same_version_is_refused() -> None:
    first = found(PHONE)
    mine, theirs = grow(first, PHONE, PHONE, TABLET), grow(first, PHONE, PHONE, FRAME)
    for document in (theirs.document, grow(theirs, PHONE, PHONE).document):
        with refused(TrustReason.FORKED_RING):
            mine.extend(document)


@pytest.mark.threat("T2")
def test_an_older_ring_is_refused() -> None:
    first = found(PHONE)
    second = grow(first, PHONE, PHONE, TABLET)
    for document in (first.document, second.document):
        with refused(TrustReason.FORKED_RING):
            second.extend(document)


@pytest.mark.threat("T2")
def test_another_accounts_ring_is_refused() -> None:
    ring = found(PHONE)
    with refused(TrustReason.FORKED_RING):
        ring.extend(forge(ring, PHONE, PHONE, account="bob"))


@pytest.mark.threat("T2")
def test_a_ring_with_the_other_valid_signature_is_refused() -> None:
    first = found(PHONE)
    with refused(TrustReason.BAD_SIGNATURE):
        first.extend(twin(grow(first, PHONE, PHONE, TABLET).document))
    with refused(TrustReason.BAD_SIGNATURE):
        Ring.parse_founding(twin(first.document))


def test_a_ring_signed_twice_is_the_same_ring() -> None:
    first = found(PHONE)
    one, other = forge(first, PHONE, PHONE, TABLET), forge(first, PHONE, PHONE, TABLET)
    assert one != other
    assert first.extend(one) == first.extend(other)
    assert document_hash(one) == first.extend(other).hash


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


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "headless-passkey envelope v1"},
        {"label": None},
        {"account": ""},
        {"account": "a" * 65},
        {"account": "alice\nbob"},
        {"account": " alice"},
        {"account": b"alice"},
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
        {"members": [encoded(FRAME)]},
        {"members": [encoded(PHONE), encoded(PHONE)]},
        {"members": [encoded(PHONE)[:4]]},
        {"members": [["owner", *encoded(PHONE)[1:]]]},
        {"members": [[b"companion", *encoded(PHONE)[1:]]]},
        {"members": [["companion", b"\x04" + bytes(64), *encoded(PHONE)[2:]]]},
        {"members": [["companion", PHONE.key.public_key[:33], *encoded(PHONE)[2:]]]},
        {"members": [["companion", PHONE.key.public_key, None, "phone", None]]},
        {"members": [["companion", PHONE.key.public_key, [0, PHONE.key.public_key], "phone", None]]},
        {"members": [["companion", PHONE.key.public_key, [1, bytes(65)], "phone", None]]},
        {"members": [["companion", PHONE.key.public_key, [2, b""], "phone", None]]},
        {"members": [["companion", PHONE.key.public_key, [2, bytes(2049)], "phone", None]]},
        {"members": [[*encoded(PHONE)[:3], "phone\u202egnp.exe", None]]},
        {"members": [[*encoded(PHONE)[:4], ["example.com"]]]},
        {"members": [encoded(PHONE), [*encoded(FRAME)[:2], [1, PHONE.key.public_key], "frame", None]]},
        {"members": [encoded(PHONE), [*encoded(FRAME)[:4], []]]},
        {"members": [encoded(PHONE), [*encoded(FRAME)[:4], "example.com"]]},
        {"members": [encoded(PHONE), [*encoded(FRAME)[:4], ["Example.com"]]]},
        {"members": [encoded(PHONE), [*encoded(FRAME)[:4], ["example.com", "example.com"]]]},
        {"members": [encoded(PHONE), [*encoded(FRAME)[:4], [f"{n}.example" for n in range(17)]]]},
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
    ring = found(PHONE)
    with pytest.raises(RemoteProtocolError) as refusal:
        ring.extend(forge(ring, PHONE, PHONE, FRAME, **changes))
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
        (0, ProtocolReason.MALFORMED_RING, "a ring has 65 to 32768 bytes, got 0"),
        (64, ProtocolReason.MALFORMED_RING, "a ring has 65 to 32768 bytes, got 64"),
        (65, ProtocolReason.MALFORMED_DOCUMENT, ""),  # of a right size, and no ring
        (32768, ProtocolReason.MALFORMED_CBOR, ""),
        (32769, ProtocolReason.TOO_LONG, "a ring has 65 to 32768 bytes, got 32769"),
    ):
        with pytest.raises(RemoteProtocolError) as refusal:
            ring.extend(bytes(size))
        assert refusal.value.reason is reason, size
        assert said in str(refusal.value)


def test_a_ring_cannot_be_made_wrong() -> None:
    ring = grow(found(PHONE), PHONE, PHONE, FRAME)
    with pytest.raises(LocalProtocolError):
        grow(ring, FRAME, PHONE)
    with pytest.raises(LocalProtocolError):
        grow(ring, STRANGER, PHONE, STRANGER)
    with pytest.raises(LocalProtocolError):
        grow(ring, PHONE, FRAME)
    with pytest.raises(LocalProtocolError):
        Ring.found(PHONE.key, account=ACCOUNT, member=TABLET.member, now=NOW)
    with pytest.raises(LocalProtocolError):
        Ring.found(FRAME.key, account=ACCOUNT, member=FRAME.member, now=NOW)


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
        lambda: Member(role=Role.DEVICE, signing_key=bytes(65), hpke_key=None, label="frame"),
        lambda: Member(role=Role.DEVICE, signing_key=FRAME.key.public_key, hpke_key=None, label=" frame"),
        lambda: Member(role=Role.COMPANION, signing_key=PHONE.key.public_key, hpke_key=None, label="phone"),
    ],
    ids=range(6),
)
def test_a_key_or_member_cannot_be_made_out_of_shape(wrong: Callable[[], object]) -> None:
    with pytest.raises(RemoteProtocolError):
        wrong()
