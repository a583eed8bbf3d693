"""Both ends of an admission: vectors, the whole way, crashes, and who stands between or pretends."""

import hmac
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError, TrustError, TrustReason
from headless_passkey.hybrid import cbor
from headless_passkey.trust.admission import Candidate, InvitationRecord, Newcomer
from headless_passkey.trust.introduction import Introduction, Nonces
from headless_passkey.trust.invitation import ANSWERABLE, LIFETIME, Invitation
from headless_passkey.trust.ring import HpkeKey, Ring, Role, prove_possession
from headless_passkey.trust.signing import sign_document
from program_parts.base64url import base64url
from tests.trust.people import NOW, Person, companion, device, forge, found, grow
from tests.trust.refusal import refused

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "introduction.json").read_text())
RELAY = "https://relay.example/push"
PHONE, TABLET, FRAME, THIEF = companion("phone"), companion("tablet"), device("frame"), device("thief")
RING = grow(found(PHONE), PHONE, PHONE, TABLET)


def invite(kind: Role = Role.DEVICE, **changes: Any) -> Invitation:
    made = Invitation.make(relay_url=RELAY, ring=RING, kind=kind, inviter=PHONE.name, now=NOW)
    return replace(made, **changes)


def come(invitation: Invitation, person: Person = FRAME) -> Newcomer:
    return Newcomer.make(invitation, key=person.key, hpke_key=person.hpke_key, label=person.label)


def check(record: InvitationRecord, introduction: Introduction, *, now: float = NOW) -> Introduction:
    return record.check(
        body=introduction.body, signature=introduction.signature, mac=introduction.mac, now=now
    )


def met(record: InvitationRecord, newcomer: Newcomer) -> tuple[Newcomer, Candidate]:
    """Both sides after the nonces were exchanged."""
    record = record.taken_by(check(record, newcomer.introduction))
    assert record.nonce is not None
    return newcomer.hears(record.nonce), record.candidate(newcomer.introduction, newcomer.nonce)


def agreed(invitation: Invitation, newcomer: Newcomer, **more: Any) -> tuple[Newcomer, InvitationRecord]:
    """Both sides after the number was typed. more: of the record."""
    newcomer, candidate = met(InvitationRecord(invitation=invitation, **more), newcomer)
    return newcomer, candidate.agree(newcomer.number)


def admitted(invitation: Invitation, newcomer: Newcomer, ring: Ring = RING) -> tuple[Newcomer, Ring, bytes]:
    """What the inviter answers after every check and consent."""
    newcomer, record = agreed(invitation, newcomer)
    return newcomer, *record.admit(newcomer.introduction, ring=ring, key=PHONE.key, now=NOW)


# Vectors


@pytest.mark.parametrize("case", VECTORS["introductions"], ids=lambda case: case["name"])
def test_a_known_newcomer_is_admitted_and_accepts(case: dict[str, Any]) -> None:
    invitation = Invitation.parse(case["invitation"])
    newcomer_nonce, inviter_nonce = (bytes.fromhex(case[f"{side}_nonce"]) for side in ("newcomer", "inviter"))
    parts = {part: bytes.fromhex(case[part]) for part in ("body", "signature", "mac")}
    record = InvitationRecord(invitation=invitation)
    introduction = record.check(**parts, now=NOW)
    record = replace(record, newcomer=introduction.hash, nonce=inviter_nonce)
    assert record.candidate(introduction, newcomer_nonce).agree(case["number"]).agreed is not None
    newcomer = Newcomer(invitation=invitation, introduction=introduction, nonce=newcomer_nonce)
    newcomer = newcomer.hears(inviter_nonce)
    assert newcomer.number == case["number"]
    ring, mac = bytes.fromhex(case["ring"]), bytes.fromhex(case["answer_mac"])
    assert newcomer.accept(ring=ring, mac=mac).document == ring


# The whole way


@pytest.mark.parametrize(
    ("kind", "person"),
    [(Role.DEVICE, FRAME), (Role.COMPANION, companion("new phone"))],
    ids=["device", "companion"],
)
def test_a_newcomer_gets_in_and_everybody_agrees_on_the_ring(kind: Role, person: Person) -> None:
    invitation = invite(kind)
    newcomer, ring, mac = admitted(invitation, come(invitation, person))
    assert RING.extend(ring.document, now=NOW) == ring
    first = newcomer.accept(ring=ring.document, mac=mac)
    assert first == ring
    member = first.member(person.name)
    assert member is not None
    assert member.keys == newcomer.introduction.member().keys
    assert (member.label, member.joined, member.introduced_by) == (person.label, NOW, PHONE.name)


def test_the_inviter_binds_a_device_to_relying_parties_and_may_name_it() -> None:
    invitation = invite()
    newcomer, candidate = met(
        InvitationRecord(invitation=invitation, rp_ids=("example.com",)), come(invitation)
    )
    record = candidate.agree(newcomer.number, label="second frame")
    ring, mac = record.admit(newcomer.introduction, ring=RING, key=PHONE.key, now=NOW)
    member = newcomer.accept(ring=ring.document, mac=mac).member(FRAME.name)
    assert member is not None
    assert (member.rp_ids, member.label) == (("example.com",), "second frame")


@pytest.mark.threat("T4")
def test_the_inviter_lets_a_device_in_on_the_condition_that_it_shows_digits() -> None:
    invitation = invite()
    newcomer, candidate = met(InvitationRecord(invitation=invitation, needs_digits=True), come(invitation))
    record = InvitationRecord.from_bytes(candidate.agree(newcomer.number).to_bytes())
    ring, mac = record.admit(newcomer.introduction, ring=RING, key=PHONE.key, now=NOW)
    member = newcomer.accept(ring=ring.document, mac=mac).member(FRAME.name)
    assert member is not None
    assert member.needs_digits


@pytest.mark.threat("T2")
def test_one_wrong_number_is_refused_and_a_slip_never_fits() -> None:
    invitation = invite()
    newcomer, candidate = met(InvitationRecord(invitation=invitation), come(invitation))
    number = int(newcomer.number.replace(" ", ""))
    for wrong in (f"{(number + 1) % 1_000_000:06d}", f"{number:06d}0", "", "frame"):
        with refused(TrustReason.WRONG_NUMBER):
            candidate.agree(wrong)
    assert candidate.agree(f"{number:06d}") == candidate.agree(newcomer.number)


@pytest.mark.threat("T2")
def test_whoever_is_asked_is_not_told_the_number() -> None:
    invitation = invite()
    newcomer, candidate = met(InvitationRecord(invitation=invitation), come(invitation))
    public = [name for name in dir(candidate) if not name.startswith("_")]
    assert sorted(public) == ["agree", "agree_without_number", "introduction", "nonces", "record"]
    assert newcomer.number not in repr(candidate)


def test_a_newcomer_that_cannot_show_a_number_is_admitted_without_one() -> None:
    invitation = invite()
    newcomer, candidate = met(InvitationRecord(invitation=invitation), come(invitation))
    record = candidate.agree_without_number()
    ring, mac = record.admit(newcomer.introduction, ring=RING, key=PHONE.key, now=NOW)
    assert newcomer.accept(ring=ring.document, mac=mac) == ring


# Who stands between


@pytest.mark.threat("T2")
def test_a_go_between_with_the_stolen_invitation_is_noticed_on_both_halves() -> None:
    """It plays the inviter to the newcomer, and a newcomer to the inviter; the person carries the number across."""
    invitation = invite()
    rightful = come(invitation)
    theirs = come(invitation, Person(Role.DEVICE, "frame"))  # the same label, a key of the thief's
    # to the inviter it is the newcomer: the nonce of the inviter comes after its commitment
    _, candidate = met(InvitationRecord(invitation=invitation), theirs)
    # to the newcomer it is the inviter, with any nonce it likes: the inviter's own, or others
    own = candidate.record.nonce
    assert own is not None
    numbers = {rightful.hears(nonce).number for nonce in (own, theirs.nonce, bytes(32))}
    for number in numbers:
        with refused(TrustReason.WRONG_NUMBER):
            candidate.agree(number)


@pytest.mark.threat("T2")
def test_a_go_between_cannot_change_its_nonce_when_it_has_seen_the_inviters() -> None:
    invitation = invite()
    thief = come(invitation, THIEF)
    record = InvitationRecord(invitation=invitation)
    record = record.taken_by(check(record, thief.introduction))
    for nonce in (bytes(32), b"", thief.nonce + b"\0", record.nonce or b""):
        with refused(TrustReason.BAD_COMMITMENT):
            record.candidate(thief.introduction, nonce)


@pytest.mark.threat("T2")
def test_a_newcomer_hears_one_nonce_also_after_a_crash() -> None:
    newcomer = come(invite())
    first = newcomer.hears(bytes(32))
    assert Newcomer.from_bytes(newcomer.to_bytes()) == newcomer
    restarted = Newcomer.from_bytes(first.to_bytes())
    assert restarted.hears(bytes(32)) == first
    assert restarted.number == first.number
    with refused(TrustReason.REPLAYED):
        restarted.hears(b"another nonce of thirty-two byte")


def test_a_newcomer_has_no_number_before_the_inviters_nonce() -> None:
    newcomer = come(invite())
    with pytest.raises(LocalProtocolError):
        _ = newcomer.number
    with pytest.raises(LocalProtocolError):
        newcomer.accept(ring=RING.document, mac=bytes(32))


@pytest.mark.parametrize(
    "more", [{"needs_digits": True}, {"rp_ids": ("example.com",)}], ids=["digits", "rp ids"]
)
def test_what_is_for_devices_is_not_asked_of_a_companion(more: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError, match="only devices"):
        InvitationRecord(invitation=invite(Role.COMPANION), **more)


# Crashes


def test_a_record_survives_on_disk_at_each_step() -> None:
    invitation = invite()
    newcomer = come(invitation)
    record = InvitationRecord(invitation=invitation, rp_ids=("example.com", "example.org"))
    taken = record.taken_by(newcomer.introduction)
    done = taken.candidate(newcomer.introduction, newcomer.nonce).agree_without_number(label="new")
    for step in (record, taken, done):
        assert InvitationRecord.from_bytes(step.to_bytes()) == step
    assert taken.taken_by(newcomer.introduction) == taken, "the same newcomer keeps its nonce"


def test_an_answer_can_be_made_again_when_the_ring_has_moved_or_the_append_is_in_doubt() -> None:
    invitation = invite()
    newcomer, record = agreed(invitation, come(invitation))
    introduction = newcomer.introduction
    ring, mac = record.admit(introduction, ring=RING, key=PHONE.key, now=NOW)
    assert record.admit(introduction, ring=ring, key=PHONE.key, now=NOW) == (ring, mac)
    moved = ring.without(TABLET.key, "nobody", now=NOW)
    ours, mac = record.admit(introduction, ring=moved, key=PHONE.key, now=NOW)
    assert moved.extend(ours.document, now=NOW) == ours
    assert newcomer.accept(ring=ours.document, mac=mac) == ours


@pytest.mark.parametrize(
    "changes",
    [{"nonce": None}, {"newcomer": None}, {"newcomer": None, "nonce": None}],
    ids=["no nonce", "no newcomer", "agreed about nobody"],
)
def test_a_record_that_skips_a_step_is_none(changes: dict[str, Any]) -> None:
    _, record = agreed(INVITATION, come(INVITATION))
    with pytest.raises(RemoteProtocolError):
        replace(record, **changes)


INVITATION = invite()


def test_a_newcomers_record_with_another_nonce_is_damaged() -> None:
    newcomer = come(INVITATION)
    with pytest.raises(RemoteProtocolError):
        Newcomer.from_bytes(replace(newcomer, nonce=bytes(32)).to_bytes())


@given(st.binary(max_size=200))
@pytest.mark.threat("T12")
def test_any_bytes_on_disk_are_refused_politely(data: bytes) -> None:
    for parse in (InvitationRecord.from_bytes, Newcomer.from_bytes):
        with suppress(RemoteProtocolError):
            parse(data)


# Refusals: the inviter, by its own record and clock


@pytest.mark.threat("T2")
def test_a_newcomer_of_another_kind_than_invited_is_refused() -> None:
    invitation = invite(Role.DEVICE)
    wrong = come(replace(invitation, kind=Role.COMPANION), companion("sneaky"))
    with refused(TrustReason.KIND_MISMATCH):
        check(InvitationRecord(invitation=invitation), wrong.introduction)


@pytest.mark.threat("T5")
def test_an_invitation_ends_by_the_inviters_clock_for_newcomers_and_later_for_who_came() -> None:
    invitation = invite()
    record, introduction = InvitationRecord(invitation=invitation), come(invitation).introduction
    check(record, introduction, now=NOW + LIFETIME - 1)
    with refused(TrustReason.INVITATION_EXPIRED):
        check(record, introduction, now=NOW + LIFETIME)
    taken = record.taken_by(introduction)
    check(taken, introduction, now=NOW + LIFETIME + ANSWERABLE - 1)
    with refused(TrustReason.INVITATION_EXPIRED):
        check(taken, introduction, now=NOW + LIFETIME + ANSWERABLE)


@pytest.mark.threat("T2")
def test_the_loser_of_a_stolen_invitation_race_is_refused_whoever_comes_second() -> None:
    invitation = invite()
    record = InvitationRecord(invitation=invitation)
    thief = check(record, come(invitation, THIEF).introduction)
    record = InvitationRecord.from_bytes(record.taken_by(thief).to_bytes())
    with refused(TrustReason.INVITATION_USED, saying="look at the members"):
        check(record, come(invitation, FRAME).introduction)
    assert check(record, thief) == thief, "the same newcomer may ask again"


@pytest.mark.threat("T2")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"account": "Ym9iJ3MgYWNjb3VudCEhIQ"}, TrustReason.ACCOUNT_MISMATCH),
        ({"relay_url": "https://other.example"}, TrustReason.ACCOUNT_MISMATCH),
        ({"inviter": TABLET.name}, TrustReason.RECIPIENT_MISMATCH),
    ],
    ids=["account", "relay", "inviter"],
)
def test_a_newcomer_that_means_somebody_else_is_refused(changes: dict[str, Any], reason: TrustReason) -> None:
    invitation = invite()
    with refused(reason):
        check(InvitationRecord(invitation=invitation), come(replace(invitation, **changes)).introduction)


@pytest.mark.threat("T2")
def test_a_newcomer_without_the_private_key_is_refused() -> None:
    invitation = invite()
    honest = come(invitation).introduction
    stolen = replace(honest, signature=sign_document(THIEF.key, honest.body))
    with refused(TrustReason.BAD_SIGNATURE):
        check(InvitationRecord(invitation=invitation), stolen)


@pytest.mark.threat("T2")
def test_a_newcomer_that_knows_the_ticket_alone_is_refused() -> None:
    invitation = invite()
    honest = come(invitation, THIEF).introduction
    for key in (invitation.ticket, invitation.k_inv, bytes(32)):
        relays_guess = replace(honest, mac=hmac.digest(key, honest.body, "sha256"))
        with refused(TrustReason.BAD_MAC):
            check(InvitationRecord(invitation=invitation), relays_guess)


def introduced_with(invitation: Invitation, person: Person, place: int, value: object) -> Introduction:
    """An introduction with one item changed, signed and MACed properly."""
    items = cbor.decode(come(invitation, person).introduction.body)
    items[place] = value
    body = cbor.encode(items)
    return Introduction.parse(
        body=body,
        signature=sign_document(person.key, body),
        mac=hmac.digest(invitation.k_new, body, "sha256"),
    )


@pytest.mark.threat("T2")
@pytest.mark.parametrize("whose", ["nobody's", "for another account", "for another role"])
def test_a_newcomer_that_does_not_prove_its_entry_in_the_ring_is_refused(whose: str) -> None:
    invitation = invite()
    possession = {
        "nobody's": bytes(64),
        "for another account": prove_possession(
            FRAME.key, account="Ym9iJ3MgYWNjb3VudCEhIQ", role=Role.DEVICE, hpke_key=None
        ),
        "for another role": prove_possession(
            FRAME.key, account=invitation.account, role=Role.COMPANION, hpke_key=None
        ),
    }[whose]
    with refused(TrustReason.BAD_POSSESSION):
        check(InvitationRecord(invitation=invitation), introduced_with(invitation, FRAME, 7, possession))


@pytest.mark.threat("T2")
@pytest.mark.parametrize("suite", [2, 0xFFFF])
def test_a_companion_with_a_suite_that_nobody_here_knows_is_refused(suite: int) -> None:
    invitation, person = invite(Role.COMPANION), companion("new phone")
    unknown = HpkeKey(suite=suite, public_key=b"of a suite to come")
    newcomer = Newcomer.make(invitation, key=person.key, hpke_key=unknown, label="new phone")
    with refused(TrustReason.UNSUPPORTED_SUITE, saying=str(suite)):
        check(InvitationRecord(invitation=invitation), newcomer.introduction)


@pytest.mark.threat("T12")
def test_an_introduction_with_a_flipped_bit_is_refused() -> None:
    invitation = invite()
    honest = come(invitation).introduction
    record = InvitationRecord(invitation=invitation)
    parts = {"body": honest.body, "signature": honest.signature, "mac": honest.mac}
    for part, whole in parts.items():
        for bit in range(0, len(whole) * 8, 7):
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << bit % 8
            with pytest.raises((RemoteProtocolError, TrustError)):
                record.check(**parts | {part: bytes(broken)}, now=NOW)


def test_a_key_that_is_a_member_already_gets_no_second_description() -> None:
    invitation = invite()
    newcomer, record = agreed(invitation, come(invitation, Person(Role.DEVICE, "twin", key=PHONE.key)))
    with pytest.raises(RemoteProtocolError):
        record.admit(newcomer.introduction, ring=RING, key=PHONE.key, now=NOW)


def test_the_inviter_cannot_answer_wrongly() -> None:
    invitation = invite()
    newcomer, record = agreed(invitation, come(invitation))
    introduction, thief = newcomer.introduction, come(invitation, THIEF).introduction
    for wrong in (InvitationRecord(invitation=invitation), replace(record, agreed=None)):
        with pytest.raises(LocalProtocolError):
            wrong.admit(introduction, ring=RING, key=PHONE.key, now=NOW)
    with pytest.raises(LocalProtocolError):
        record.admit(thief, ring=RING, key=PHONE.key, now=NOW)
    with pytest.raises(LocalProtocolError):
        record.candidate(thief, newcomer.nonce)
    with pytest.raises(LocalProtocolError):
        record.admit(introduction, ring=RING, key=TABLET.key, now=NOW)
    with pytest.raises(LocalProtocolError):
        InvitationRecord(invitation=invite(Role.COMPANION), rp_ids=("example.com",))


# Refusals: the newcomer


@pytest.mark.threat("T2")
def test_an_answer_without_the_inviters_mac_is_refused() -> None:
    invitation = invite()
    newcomer, ring, mac = admitted(invitation, come(invitation))
    nonces = Nonces(newcomer=newcomer.nonce, inviter=newcomer.inviter_nonce or b"")
    thief = come(invitation, THIEF).introduction
    others = [
        nonces.answer_mac(invitation, thief, ring.hash),
        nonces.answer_mac(invite(), newcomer.introduction, ring.hash),
        replace(nonces, newcomer=bytes(32)).answer_mac(invitation, newcomer.introduction, ring.hash),
        replace(nonces, inviter=bytes(32)).answer_mac(invitation, newcomer.introduction, ring.hash),
    ]
    assert nonces.answer_mac(invitation, newcomer.introduction, ring.hash) == mac
    for wrong in (b"", bytes(32), mac[:-1], *others):
        with refused(TrustReason.BAD_MAC):
            newcomer.accept(ring=ring.document, mac=wrong)


@pytest.mark.threat("T2")
def test_a_ring_that_is_not_the_one_that_was_answered_with_is_refused() -> None:
    invitation = invite()
    newcomer, ring, mac = admitted(invitation, come(invitation))
    for other in (
        RING.document,
        ring.without(PHONE.key, TABLET.name, now=NOW).document,
        ring.document[:-64] + b"\0" * 65,
    ):
        with refused(TrustReason.BAD_MAC):
            newcomer.accept(ring=other, mac=mac)
    for nothing in (b"", bytes(64)):
        with pytest.raises(RemoteProtocolError):
            newcomer.accept(ring=nothing, mac=mac)


def answered(newcomer: Newcomer, document: bytes) -> Ring:
    """What the newcomer makes of a ring of somebody who has the invitation, and so the MAC key."""
    nonces = Nonces(newcomer=newcomer.nonce, inviter=newcomer.inviter_nonce or b"")
    ring_hash = Ring.parse_kept(document).hash
    mac = nonces.answer_mac(newcomer.invitation, newcomer.introduction, ring_hash)
    return newcomer.accept(ring=document, mac=mac)


@pytest.mark.threat("T2")
def test_a_ring_signed_by_anybody_but_the_pinned_inviter_is_refused() -> None:
    newcomer = come(invite()).hears(bytes(32))
    with refused(TrustReason.BAD_SIGNATURE):
        answered(newcomer, grow(RING, TABLET, PHONE, TABLET, FRAME).document)
    with refused(TrustReason.BAD_SIGNATURE):
        answered(newcomer, forge(RING, THIEF, PHONE, FRAME, signer=PHONE.name))
    with refused(TrustReason.FORKED_RING):
        answered(newcomer, forge(RING, PHONE, TABLET, FRAME))


@pytest.mark.threat("T2")
def test_a_ring_of_another_account_is_refused() -> None:
    newcomer = come(invite()).hears(bytes(32))
    phone = Person(Role.COMPANION, "phone", key=PHONE.key)
    elsewhere = found(phone, account="Ym9iJ3MgYWNjb3VudCEhIQ")
    with refused(TrustReason.ACCOUNT_MISMATCH):
        answered(newcomer, elsewhere.document)


@pytest.mark.threat("T2")
def test_a_newcomer_must_be_in_the_ring_with_the_keys_and_the_role_that_it_introduced() -> None:
    invitation, person = invite(Role.COMPANION), companion("new phone")
    newcomer = come(invitation, person).hears(bytes(32))
    other_key = Person(Role.COMPANION, "new phone", key=person.key)
    demoted = Person(Role.DEVICE, "new phone", key=person.key)
    for members in ((PHONE,), (PHONE, other_key), (PHONE, demoted), (PHONE, THIEF)):
        with refused(TrustReason.NOT_A_MEMBER):
            answered(newcomer, grow(RING, PHONE, *members).document)


@pytest.mark.threat("T11")
def test_secrets_do_not_show_in_a_repr() -> None:
    invitation = invite()
    newcomer, record = agreed(invitation, come(invitation))
    _, candidate = met(InvitationRecord(invitation=invitation), come(invitation))
    secrets = [invitation.secret, invitation.k_new, invitation.k_inv, invitation.ticket, newcomer.nonce]
    secrets += [newcomer.inviter_nonce or b"", candidate.nonces.newcomer, candidate.nonces.inviter]
    for value in (record, newcomer, candidate, candidate.nonces):
        text = repr(value)
        for secret in secrets:
            assert repr(secret) not in text
            assert secret.hex() not in text
            assert base64url(secret) not in text


@pytest.mark.threat("T2")
def test_macs_nonces_and_numbers_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[object, object]] = []
    genuine = hmac.compare_digest

    def watched(one: bytes, two: bytes) -> bool:
        compared.append((one, two))
        return genuine(one, two)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    invitation = invite()
    newcomer, ring, mac = admitted(invitation, come(invitation))
    assert (newcomer.introduction.mac, newcomer.introduction.mac) in compared
    digits = newcomer.number.replace(" ", "").encode()
    assert (digits, digits) in compared
    newcomer.accept(ring=ring.document, mac=mac)
    assert (mac, mac) in compared
