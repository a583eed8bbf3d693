"""Invitations, introductions and account codes: vectors, properties, refusals."""

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
from headless_passkey.text.base64url import base64url
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.invitation import (
    INVITATION_LABEL,
    LIFETIME,
    Introduction,
    Invitation,
    InvitationRecord,
    accept,
    answer_mac,
    check_number,
)
from headless_passkey.trust.ring import MAX_SKEW, Ring, Role
from headless_passkey.trust.text_form import check_relay_url
from tests.trust.people import ACCOUNT, ACCOUNT_NAME, BOBS, NOW, Person, companion, device, forge, found, grow
from tests.trust.refusal import refused

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "invitation.json").read_text())
RELAY = "https://relay.example/push"
PHONE, TABLET, FRAME, THIEF = companion("phone"), companion("tablet"), device("frame"), device("thief")
RING = grow(found(PHONE), PHONE, PHONE, TABLET)


def invite(kind: Role = Role.DEVICE, **changes: Any) -> Invitation:
    values: dict[str, Any] = {
        "relay_url": RELAY,
        "account": ACCOUNT,
        "kind": kind,
        "inviter": PHONE.name,
        "now": NOW,
    }
    return Invitation.make(**(values | changes))


def introduce(invitation: Invitation, person: Person = FRAME) -> Introduction:
    return Introduction.make(invitation, key=person.key, hpke_key=person.member.hpke_key, label=person.label)


def check(record: InvitationRecord, introduction: Introduction, *, now: float = NOW) -> Introduction:
    return record.check(
        body=introduction.body, signature=introduction.signature, mac=introduction.mac, now=now
    )


def admitted(invitation: Invitation, introduction: Introduction, ring: Ring = RING) -> tuple[Ring, bytes]:
    """What the inviter answers after every check and consent."""
    record = InvitationRecord(invitation=invitation)
    record = record.taken_by(check(record, introduction))
    return record.admit(introduction, ring=ring, key=PHONE.key, now=NOW)


# Vectors


@pytest.mark.parametrize("case", VECTORS["invitations"], ids=lambda case: case["name"])
def test_a_known_invitation_gives_the_known_keys(case: dict[str, Any]) -> None:
    invitation = Invitation.parse(case["text"])
    assert invitation.secret.hex() == case["secret"]
    assert invitation.ticket.hex() == case["ticket"]
    assert invitation.k_new.hex() == case["k_new"]
    assert invitation.k_inv.hex() == case["k_inv"]
    assert invitation.id == case["id"]


@pytest.mark.parametrize("case", VECTORS["introductions"], ids=lambda case: case["name"])
def test_a_known_introduction_is_admitted_and_accepted(case: dict[str, Any]) -> None:
    invitation = Invitation.parse(case["invitation"])
    body, ring = bytes.fromhex(case["body"]), bytes.fromhex(case["ring"])
    introduction = InvitationRecord(invitation=invitation).check(
        body=body, signature=bytes.fromhex(case["signature"]), mac=bytes.fromhex(case["mac"]), now=NOW
    )
    assert introduction.check_number == check_number(body) == case["check_number"]
    assert accept(invitation, introduction, ring=ring, mac=bytes.fromhex(case["answer_mac"])).document == ring


@pytest.mark.parametrize("case", VECTORS["account_codes"], ids=lambda case: case["name"])
def test_a_known_account_code_is_read(case: dict[str, Any]) -> None:
    code = AccountCode.parse(case["text"])
    assert (code.relay_url, code.account, code.code.hex()) == (
        case["relay_url"],
        case["account"],
        case["code"],
    )


# Properties


@pytest.mark.parametrize("kind", Role)
def test_an_invitation_is_one_line_and_read_back(kind: Role) -> None:
    invitation = invite(kind)
    line = invitation.encode()
    assert line.isascii()
    assert len(line.split()) == 1
    assert Invitation.parse(f"  {line}\n") == invitation
    assert invitation.expires_at == NOW + LIFETIME


def test_an_account_code_is_one_line_and_read_back() -> None:
    code = AccountCode.generate(relay_url=RELAY, account=ACCOUNT, account_name=ACCOUNT_NAME)
    assert AccountCode.parse(code.encode() + "\n") == code
    assert AccountCode.generate(relay_url=RELAY, account=ACCOUNT, account_name=ACCOUNT_NAME) != code


@given(st.text(max_size=200))
@pytest.mark.threat("T12")
def test_any_text_is_refused_politely(text: str) -> None:
    for parse, prefix in ((Invitation.parse, "hpk-invitation:"), (AccountCode.parse, "hpk-account:")):
        for line in (text, prefix + text):
            with pytest.raises(RemoteProtocolError):
                parse(line)


@given(st.binary(max_size=200))
@pytest.mark.threat("T12")
def test_any_bytes_behind_the_prefix_are_refused_politely(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Invitation.parse("hpk-invitation:" + base64url(data))
    with suppress(RemoteProtocolError):
        InvitationRecord.from_bytes(data)


def test_the_three_keys_of_an_invitation_differ_and_come_from_its_secret_alone() -> None:
    one, two = invite(), invite()
    keys = {one.ticket, one.k_new, one.k_inv, two.ticket, two.k_new, two.k_inv}
    assert len(keys) == 6
    assert replace(two, secret=one.secret).ticket == one.ticket


@pytest.mark.parametrize(
    ("kind", "newcomer"), [(Role.DEVICE, FRAME), (Role.COMPANION, companion("new phone"))]
)
def test_a_newcomer_gets_in_and_everybody_agrees_on_the_ring(kind: Role, newcomer: Person) -> None:
    invitation = invite(kind)
    introduction = introduce(invitation, newcomer)
    ring, mac = admitted(invitation, introduction)
    assert RING.extend(ring.document, now=NOW) == ring
    first = accept(invitation, introduction, ring=ring.document, mac=mac)
    assert first == ring
    member = first.member(newcomer.name)
    assert member == replace(introduction.member(), joined=NOW, introduced_by=PHONE.name)


def test_the_inviter_binds_a_device_to_relying_parties() -> None:
    invitation = invite()
    introduction = introduce(invitation)
    record = InvitationRecord(invitation=invitation, rp_ids=("example.com",))
    record = record.taken_by(check(record, introduction))
    ring, mac = record.admit(introduction, ring=RING, key=PHONE.key, now=NOW)
    member = accept(invitation, introduction, ring=ring.document, mac=mac).member(FRAME.name)
    assert member is not None
    assert member.rp_ids == ("example.com",)


def test_both_sides_show_the_same_six_digits_and_different_newcomers_different_ones() -> None:
    invitation = invite()
    one, two = introduce(invitation), introduce(invitation, THIEF)
    assert check(InvitationRecord(invitation=invitation), one).check_number == one.check_number
    assert one.check_number != two.check_number
    digits = one.check_number.replace(" ", "")
    assert len(digits) == 6
    assert digits.isdigit()


def test_a_record_survives_on_disk() -> None:
    record = InvitationRecord(invitation=invite(), rp_ids=("example.com", "example.org"))
    assert InvitationRecord.from_bytes(record.to_bytes()) == record
    record = record.taken_by(introduce(record.invitation))
    assert InvitationRecord.from_bytes(record.to_bytes()) == record


def test_an_answer_can_be_made_again_when_the_ring_has_moved_or_the_append_is_in_doubt() -> None:
    invitation = invite()
    introduction = introduce(invitation)
    record = InvitationRecord(invitation=invitation)
    record = record.taken_by(check(record, introduction))
    ring, mac = record.admit(introduction, ring=RING, key=PHONE.key, now=NOW)
    assert record.admit(introduction, ring=ring, key=PHONE.key, now=NOW) == (ring, mac)
    moved = grow(ring, TABLET, PHONE, TABLET, FRAME)
    ours, mac = record.admit(introduction, ring=moved, key=PHONE.key, now=NOW)
    assert moved.extend(ours.document, now=NOW) == ours
    assert accept(invitation, introduction, ring=ours.document, mac=mac) == ours


# Refusals: text forms


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "values",
    [
        ["other label", RELAY, ACCOUNT, "device", PHONE.name, bytes(16), NOW],
        [INVITATION_LABEL, "http://relay.example", ACCOUNT, "device", PHONE.name, bytes(16), NOW],
        [INVITATION_LABEL, RELAY, "", "device", PHONE.name, bytes(16), NOW],
        [INVITATION_LABEL, RELAY, ACCOUNT, "owner", PHONE.name, bytes(16), NOW],
        [INVITATION_LABEL, RELAY, ACCOUNT, "device", "phone", bytes(16), NOW],
        [INVITATION_LABEL, RELAY, ACCOUNT, "device", PHONE.name, bytes(8), NOW],
        [INVITATION_LABEL, RELAY, ACCOUNT, "device", PHONE.name, bytes(16), -1],
        [INVITATION_LABEL, RELAY, ACCOUNT, "device", PHONE.name, bytes(16)],
        [INVITATION_LABEL, RELAY, ACCOUNT, "device", PHONE.name, bytes(16), NOW, 1],
        {},
    ],
    ids=range(10),
)
def test_a_field_out_of_shape_makes_it_no_invitation(values: object) -> None:
    with pytest.raises(RemoteProtocolError):
        Invitation.parse("hpk-invitation:" + base64url(cbor.encode(values)))


@pytest.mark.threat("T12")
def test_an_overlong_line_is_refused_before_it_is_read() -> None:
    with pytest.raises(RemoteProtocolError):
        Invitation.parse("hpk-invitation:" + "A" * 5000)


@pytest.mark.threat("T9")
@pytest.mark.parametrize(
    "url",
    [
        "",
        "relay.example",
        "ftp://relay.example",
        "http://relay.example",
        "http://10.0.0.1:8080",
        "http://localhost.example",
        "https://Relay.example",
        "https://relay.example/",
        "https://relay.example/a//b",
        "https://relay.example?x=1",
        "https://relay.example#top",
        "https://user@relay.example",
        "https://user:word@relay.example",
        "https://relay.example:99999",
        "https://relay.example:port",
        "https://[::1",
        "https://",
        "https:///path",
        "https://relay.example/\n",
        "https://relay.example/%2e%2e",
        "https://" + "a" * 300,
    ],
)
def test_what_is_no_relay_url_is_refused(url: str) -> None:
    with pytest.raises(RemoteProtocolError):
        check_relay_url(url)


@pytest.mark.parametrize(
    "url",
    [
        RELAY,
        "https://relay.example",
        "https://relay.example:8443/a/b-c",
        "https://127.0.0.1:8443",
        "https://[::1]:8443",
        "http://127.0.0.1:8080",
        "http://localhost:8080/push",
        "http://[::1]:80",
    ],
)
def test_a_relay_is_reached_over_https_or_on_loopback(url: str) -> None:
    assert check_relay_url(url) == url


def test_an_account_code_out_of_shape_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        AccountCode(relay_url=RELAY, account=ACCOUNT, account_name="a\tb", code=bytes(32))
    with pytest.raises(RemoteProtocolError):
        AccountCode(relay_url=RELAY, account="alice", account_name="alice", code=bytes(32))
    with pytest.raises(RemoteProtocolError):
        AccountCode(relay_url=RELAY, account=ACCOUNT, account_name="alice", code=bytes(16))
    with pytest.raises(RemoteProtocolError):
        AccountCode(relay_url="http://relay.example", account=ACCOUNT, account_name="alice", code=bytes(32))


# Refusals: the inviter, by its own record and clock


@pytest.mark.threat("T2")
def test_a_newcomer_of_another_kind_than_invited_is_refused() -> None:
    invitation = invite(Role.DEVICE)
    wrong = introduce(replace(invitation, kind=Role.COMPANION), companion("sneaky"))
    with refused(TrustReason.KIND_MISMATCH):
        check(InvitationRecord(invitation=invitation), wrong)


@pytest.mark.threat("T5")
def test_an_expired_invitation_is_refused_by_the_inviters_clock() -> None:
    invitation = invite()
    record = InvitationRecord(invitation=invitation)
    check(record, introduce(invitation), now=NOW + LIFETIME - 1)
    with refused(TrustReason.INVITATION_EXPIRED):
        check(record, introduce(invitation), now=NOW + LIFETIME)


def test_a_newcomers_clock_may_differ_from_the_inviters_by_two_minutes() -> None:
    invitation = invite()
    invitation.check_expiry(NOW + LIFETIME + 119, skew=MAX_SKEW)
    with refused(TrustReason.INVITATION_EXPIRED, saying="120 s ago"):
        invitation.check_expiry(NOW + LIFETIME + 120, skew=MAX_SKEW)


@pytest.mark.threat("T2")
def test_the_loser_of_a_stolen_invitation_race_is_refused_whoever_comes_second() -> None:
    invitation = invite()
    record = InvitationRecord(invitation=invitation)
    thief = check(record, introduce(invitation, THIEF))
    record = InvitationRecord.from_bytes(record.taken_by(thief).to_bytes())
    with refused(TrustReason.INVITATION_USED, saying="look at the members"):
        check(record, introduce(invitation, FRAME))
    assert check(record, thief) == thief, "the same newcomer may ask again"


@pytest.mark.threat("T2")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"account": BOBS}, TrustReason.ACCOUNT_MISMATCH),
        ({"relay_url": "https://other.example"}, TrustReason.ACCOUNT_MISMATCH),
        ({"inviter": TABLET.name}, TrustReason.RECIPIENT_MISMATCH),
    ],
)
def test_a_newcomer_that_means_somebody_else_is_refused(changes: dict[str, Any], reason: TrustReason) -> None:
    invitation = invite()
    with refused(reason):
        check(InvitationRecord(invitation=invitation), introduce(replace(invitation, **changes)))


@pytest.mark.threat("T2")
def test_a_newcomer_without_the_private_key_is_refused() -> None:
    invitation = invite()
    honest = introduce(invitation)
    stolen = replace(honest, signature=THIEF.key.sign(honest.body))
    with refused(TrustReason.BAD_SIGNATURE):
        check(InvitationRecord(invitation=invitation), stolen)


@pytest.mark.threat("T2")
def test_a_newcomer_that_knows_the_ticket_alone_is_refused() -> None:
    invitation = invite()
    honest = introduce(invitation, THIEF)
    for key in (invitation.ticket, invitation.k_inv, bytes(32)):
        relays_guess = replace(honest, mac=hmac.digest(key, honest.body, "sha256"))
        with refused(TrustReason.BAD_MAC):
            check(InvitationRecord(invitation=invitation), relays_guess)


@pytest.mark.threat("T12")
def test_an_introduction_with_a_flipped_bit_is_refused() -> None:
    invitation = invite()
    honest = introduce(invitation)
    record = InvitationRecord(invitation=invitation)
    parts = {"body": honest.body, "signature": honest.signature, "mac": honest.mac}
    for part, whole in parts.items():
        for bit in range(0, len(whole) * 8, 7):
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << bit % 8
            with pytest.raises((RemoteProtocolError, TrustError)):
                record.check(**parts | {part: bytes(broken)}, now=NOW)


@pytest.mark.threat("T12")
@given(st.binary(max_size=300), st.binary(max_size=70), st.binary(max_size=40))
def test_any_introduction_is_refused_politely(body: bytes, signature: bytes, mac: bytes) -> None:
    record = InvitationRecord(invitation=invite())
    for parts in ((body, signature, mac), (body, bytes(64), bytes(32))):
        with pytest.raises(RemoteProtocolError):
            record.check(body=parts[0], signature=parts[1], mac=parts[2], now=NOW)


def test_a_key_that_is_a_member_already_gets_no_second_description() -> None:
    invitation = invite()
    twin = Person(Role.DEVICE, "twin", key=PHONE.key)
    introduction = introduce(invitation, twin)
    with pytest.raises(RemoteProtocolError):
        admitted(invitation, introduction)


def test_the_inviter_cannot_answer_wrongly() -> None:
    invitation = invite()
    introduction = introduce(invitation)
    record = InvitationRecord(invitation=invitation)
    with pytest.raises(LocalProtocolError):
        record.admit(introduction, ring=RING, key=PHONE.key, now=NOW)
    record = record.taken_by(introduction)
    with pytest.raises(LocalProtocolError):
        record.admit(introduce(invitation, THIEF), ring=RING, key=PHONE.key, now=NOW)
    with pytest.raises(LocalProtocolError):
        record.admit(introduction, ring=RING, key=TABLET.key, now=NOW)
    with pytest.raises(LocalProtocolError):
        InvitationRecord(invitation=invite(Role.COMPANION), rp_ids=("example.com",))
    with pytest.raises(LocalProtocolError):
        Introduction.make(invite(Role.COMPANION), key=FRAME.key, hpke_key=None, label="no HPKE key")
    with pytest.raises(LocalProtocolError):
        Introduction.make(invitation, key=FRAME.key, hpke_key=None, label="two\nlines")


# Refusals: the newcomer


@pytest.mark.threat("T2")
def test_an_answer_without_the_inviters_mac_is_refused() -> None:
    invitation = invite()
    introduction = introduce(invitation)
    ring, mac = admitted(invitation, introduction)
    other = answer_mac(invitation, introduce(invitation, THIEF).body, ring.hash)
    for wrong in (b"", bytes(32), mac[:-1], other, answer_mac(invite(), introduction.body, ring.hash)):
        with refused(TrustReason.BAD_MAC):
            accept(invitation, introduction, ring=ring.document, mac=wrong)


@pytest.mark.threat("T2")
def test_a_ring_that_is_not_the_one_that_was_answered_with_is_refused() -> None:
    invitation = invite()
    introduction = introduce(invitation)
    ring, mac = admitted(invitation, introduction)
    for other in (
        RING.document,
        grow(ring, PHONE, PHONE, FRAME, THIEF).document,
        ring.document[:-64] + b"\0" * 65,
    ):
        with refused(TrustReason.BAD_MAC):
            accept(invitation, introduction, ring=other, mac=mac)
    for nothing in (b"", bytes(64)):
        with pytest.raises(RemoteProtocolError):
            accept(invitation, introduction, ring=nothing, mac=mac)


@pytest.mark.threat("T2")
def test_a_ring_signed_by_anybody_but_the_pinned_inviter_is_refused() -> None:
    invitation = invite()
    introduction = introduce(invitation)

    def accepted(document: bytes) -> Ring:
        """Even for somebody who has the invitation, and so the MAC key."""
        ring_hash = Ring.parse_kept(document).hash
        mac = answer_mac(invitation, introduction.body, ring_hash)
        return accept(invitation, introduction, ring=document, mac=mac)

    with refused(TrustReason.BAD_SIGNATURE):
        accepted(grow(RING, TABLET, PHONE, TABLET, FRAME).document)
    with refused(TrustReason.BAD_SIGNATURE):
        accepted(forge(RING, THIEF, PHONE, FRAME, signer=PHONE.name))
    with refused(TrustReason.FORKED_RING):
        accepted(forge(RING, PHONE, TABLET, FRAME))
    with refused(TrustReason.ACCOUNT_MISMATCH):
        accepted(found(replace(PHONE), account=BOBS).document)


@pytest.mark.threat("T2")
def test_a_newcomer_must_be_in_the_ring_exactly_as_it_introduced_itself() -> None:
    invitation = invite(Role.COMPANION)
    newcomer = companion("new phone")
    introduction = introduce(invitation, newcomer)
    renamed = Person(Role.COMPANION, "somebody's phone", key=newcomer.key, hpke=newcomer.hpke)
    other_key = Person(Role.COMPANION, "new phone", key=newcomer.key)
    demoted = Person(Role.DEVICE, "new phone", key=newcomer.key)
    for members in ((PHONE,), (PHONE, renamed), (PHONE, other_key), (PHONE, demoted), (PHONE, THIEF)):
        ring = grow(RING, PHONE, *members)
        mac = answer_mac(invitation, introduction.body, ring.hash)
        with refused(TrustReason.NOT_A_MEMBER):
            accept(invitation, introduction, ring=ring.document, mac=mac)


@pytest.mark.threat("T11")
def test_secrets_do_not_show_in_a_repr() -> None:
    invitation = invite()
    code = AccountCode.generate(relay_url=RELAY, account=ACCOUNT, account_name=ACCOUNT_NAME)
    record = InvitationRecord(invitation=invitation)
    for value in (invitation, record, introduce(invitation), code):
        text = repr(value)
        for secret in (invitation.secret, invitation.k_new, invitation.k_inv, invitation.ticket, code.code):
            assert repr(secret) not in text
            assert secret.hex() not in text
            assert base64url(secret) not in text


@pytest.mark.threat("T2")
def test_macs_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every comparison with a MAC goes through `hmac.compare_digest`."""
    compared: list[tuple[object, object]] = []
    genuine = hmac.compare_digest

    def watched(one: bytes, two: bytes) -> bool:
        compared.append((one, two))
        return genuine(one, two)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    invitation = invite()
    introduction = introduce(invitation)
    ring, mac = admitted(invitation, introduction)
    assert (introduction.mac, introduction.mac) in compared
    accept(invitation, introduction, ring=ring.document, mac=mac)
    assert (mac, mac) in compared
