"""The envelope: vectors, properties, refusals. The companion's checks in their order are in test_checks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import HeadlessPasskeyError, LocalProtocolError, RemoteProtocolError, TrustReason
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.trust.envelope import (
    MAX_SEALED,
    Announcement,
    Opened,
    new_request_id,
    open_envelope,
    seal,
)
from headless_passkey.trust.hpke import SoftwareHpkeKey
from headless_passkey.trust.ring import Ring
from tests.trust.people import BOBS, REQUEST_ID, Home, Person, companion, device, fido_url, reseal
from tests.trust.refusal import refused

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "envelope.json").read_text())
HOME = Home()
PLAIN = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1)


def opened(sealed: bytes, *, by: Person = HOME.phone, **changes: Any) -> Opened:
    """What `by` opens, when the relay says it is the frame's request."""
    values: dict[str, Any] = {
        "hpke_private": by.hpke_private,
        "account": HOME.account,
        "request_id": REQUEST_ID,
        "device": HOME.frame.name,
        "recipient": by.name,
    }
    return open_envelope(sealed, **(values | changes))


# Vectors


@pytest.mark.parametrize("case", VECTORS["envelopes"], ids=lambda case: case["name"])
def test_a_known_envelope_opens_to_what_was_said(case: dict[str, Any]) -> None:
    ring = Ring.parse_kept(bytes.fromhex(case["ring"]))
    said = open_envelope(
        bytes.fromhex(case["sealed"]),
        hpke_private=SoftwareHpkeKey.from_bytes(bytes.fromhex(case["hpke_private"])),
        account=ring.account,
        request_id=bytes.fromhex(case["request_id"]),
        device=case["device"],
        recipient=case["recipient"],
    )
    member = ring.member(case["device"])
    assert member is not None
    announcement = said.verified(member)
    assert (announcement.ring_version, announcement.ring_hash) == (ring.version, ring.hash)
    assert {key: getattr(announcement, key) for key in case["says"]} == case["says"]


# Properties


@given(
    kind=st.sampled_from((RequestKind.GET_ASSERTION, RequestKind.MAKE_CREDENTIAL)),
    lifetime=st.integers(1, 300),
    rp_name=st.none() | PLAIN.map(lambda text: text[:64]),
    note=st.none() | PLAIN.map(lambda text: text[:140]),
    digits=st.none() | st.text("0123456789", min_size=2, max_size=8),
)
def test_an_envelope_opens_to_what_was_sealed(**what: Any) -> None:
    said = HOME.say(**what)
    hpke_key = HOME.phone.member.hpke_key
    assert hpke_key is not None
    sealed = seal(said, HOME.frame.key, hpke_key)
    assert opened(sealed).verified(HOME.frame.member) == said
    assert len(sealed) <= MAX_SEALED


def test_names_and_notes_of_any_length_are_made_to_fit() -> None:
    said = HOME.say(rp_name="Example, Inc. " * 20, note="line one\nline two\x1b[2J" * 20)
    hpke_key = HOME.phone.member.hpke_key
    assert hpke_key is not None
    assert opened(seal(said, HOME.frame.key, hpke_key)).verified(HOME.frame.member) == said
    assert said.rp_name is not None
    assert len(said.rp_name) == 64
    assert HOME.say(rp_name="\n").rp_name is None


def test_a_retry_must_send_the_stored_bytes_because_sealing_is_random() -> None:
    assert HOME.seal(url="FIDO:/1") != HOME.seal(url="FIDO:/1")


@given(st.binary(max_size=300))
@pytest.mark.threat("T12")
def test_any_bytes_are_refused_politely(sealed: bytes) -> None:
    with refused(TrustReason.CANNOT_OPEN):
        opened(sealed)


@given(st.binary(max_size=300))
@pytest.mark.threat("T12")
def test_any_sealed_bytes_are_refused_politely(content: bytes) -> None:
    whole = opened(HOME.seal())
    with pytest.raises(HeadlessPasskeyError):
        replace(whole, content=content).verified(HOME.frame.member)


@given(st.data())
@pytest.mark.threat("T2")
def test_a_flipped_bit_inside_is_refused(data: st.DataObject) -> None:
    whole = opened(HOME.seal(url="FIDO:/1"))
    content = bytearray(whole.content)
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    with refused(TrustReason.BAD_SIGNATURE):
        replace(whole, content=bytes(content)).verified(HOME.frame.member)


def test_request_ids_are_random() -> None:
    assert len({new_request_id() for _ in range(50)}) == 50
    assert len(new_request_id()) == 16


def test_digits_match_however_they_are_typed() -> None:
    said = HOME.say(digits="042")
    assert said.digits_match("042")
    assert said.digits_match(" 0 42\n")
    assert not said.digits_match("42")
    assert not said.digits_match("")
    with pytest.raises(LocalProtocolError):
        HOME.say().digits_match("42")


# Refusals: whoever carries it can do nothing with it


@pytest.mark.threat("T1")
def test_another_companion_cannot_open_it() -> None:
    with refused(TrustReason.CANNOT_OPEN):
        opened(HOME.seal(), by=HOME.tablet)


@pytest.mark.threat("T2")
@pytest.mark.parametrize(
    "changes",
    [
        {"account": BOBS},
        {"request_id": bytes(16)},
        {"device": device().name},
        {"recipient": HOME.tablet.name},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_envelope_moved_elsewhere_does_not_open(changes: dict[str, Any]) -> None:
    with refused(TrustReason.CANNOT_OPEN):
        opened(HOME.seal(), **changes)


@pytest.mark.threat("T1")
def test_a_url_sealed_by_who_only_knows_our_public_key_is_refused() -> None:
    for stranger in (device("stranger"), HOME.tablet, companion("relay")):
        sealed = reseal(HOME.say(), by=stranger, to=HOME.phone)
        with refused(TrustReason.BAD_SIGNATURE):
            opened(sealed).verified(HOME.frame.member)


@pytest.mark.threat("T2")
def test_a_device_that_signs_in_another_devices_name_is_refused() -> None:
    other = device("other")
    sealed = reseal(HOME.say(), by=other, to=HOME.phone, sealed_from=other.name)
    with refused(TrustReason.BAD_SIGNATURE, saying="another device's name"):
        opened(sealed, device=other.name).verified(other.member)


@pytest.mark.threat("T2")
def test_an_announcement_to_another_companion_sealed_again_to_us_is_refused() -> None:
    sealed = reseal(HOME.say(HOME.tablet), by=HOME.frame, to=HOME.phone)
    with refused(TrustReason.RECIPIENT_MISMATCH):
        opened(sealed).verified(HOME.frame.member)


@pytest.mark.threat("T2")
def test_an_announcement_to_another_key_of_ours_is_refused() -> None:
    for changes in ({"hpke_key_name": bytes(32)}, {"suite": 2}):
        sealed = reseal(HOME.say(), by=HOME.frame, to=HOME.phone, **changes)
        with refused(TrustReason.RECIPIENT_MISMATCH):
            opened(sealed).verified(HOME.frame.member)


@pytest.mark.threat("T5")
def test_an_announcement_of_another_request_sealed_again_under_this_id_is_refused() -> None:
    sealed = reseal(HOME.say(request_id=bytes(16)), by=HOME.frame, to=HOME.phone, sealed_id=REQUEST_ID)
    with refused(TrustReason.REPLAYED):
        opened(sealed).verified(HOME.frame.member)


@pytest.mark.threat("T2")
def test_an_announcement_for_another_account_is_refused() -> None:
    sealed = reseal(HOME.say(), by=HOME.frame, to=HOME.phone, account=BOBS)
    with refused(TrustReason.ACCOUNT_MISMATCH):
        opened(sealed).verified(HOME.frame.member)


@pytest.mark.threat("T10")
@pytest.mark.parametrize("kind", [RequestKind.DIGITAL_PRESENTATION, RequestKind.DIGITAL_ISSUANCE])
def test_an_envelope_is_not_made_for_what_companions_do_not_serve(kind: RequestKind) -> None:
    with pytest.raises(LocalProtocolError, match="an assertion"):
        HOME.say(kind=kind)


def test_a_kind_that_does_not_exist_is_refused() -> None:
    for kind in ("dcp", "", None, 1, b"ga"):
        sealed = reseal(HOME.say(), by=HOME.frame, to=HOME.phone, kind=kind)
        with refused(TrustReason.KIND_MISMATCH):
            opened(sealed).verified(HOME.frame.member)


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "headless-passkey ring v1"},
        {"account": ""},
        {"request_id": bytes(15)},
        {"device": "frame"},
        {"recipient": None},
        {"hpke_key_name": bytes(31)},
        {"suite": 0},
        {"suite": 1 << 16},
        {"ring_version": 0},
        {"ring_hash": b""},
        {"issued": -1},
        {"expires": 0},
        {"expires": 1_800_000_301},
        {"expires": 1_800_000_000},
        {"rp_id": "Example.com"},
        {"rp_id": "https://example.com"},
        {"rp_id": "example.com."},
        {"rp_id": ""},
        {"rp_name": "ex\nample"},
        {"rp_name": "a" * 65},
        {"note": "a" * 141},
        {"note": "\u202e"},
        {"digits": "1"},
        {"digits": "1234567\uff19"},
        {"digits": "\uff14\uff12"},
        {"digits": "1a"},
        {"more": None},
    ],
    ids=lambda changes: next(f"{key}-{value!a}"[:40].replace("\\", "/") for key, value in changes.items()),
)
@pytest.mark.threat("T12")
def test_a_field_out_of_shape_makes_it_no_envelope(changes: dict[str, Any]) -> None:
    sealed = reseal(HOME.say(), by=HOME.frame, to=HOME.phone, **changes)
    with pytest.raises(RemoteProtocolError):
        opened(sealed).verified(HOME.frame.member)


def test_what_is_longer_than_an_envelope_is_not_opened() -> None:
    with pytest.raises(RemoteProtocolError):
        opened(bytes(MAX_SEALED + 1))


# Refusals: a device cannot make a wrong one


def test_an_envelope_cannot_be_made_wrong() -> None:
    with pytest.raises(LocalProtocolError):
        HOME.say(HOME.frame)
    with pytest.raises(LocalProtocolError):
        HOME.seal(lifetime=301)
    with pytest.raises(LocalProtocolError):
        HOME.seal(rp_id="not a domain")
    with pytest.raises(LocalProtocolError):
        HOME.seal(device=device().name)
    with pytest.raises(LocalProtocolError):
        HOME.seal(url="FIDO:/" + "1" * 5000)
    with pytest.raises(LocalProtocolError):
        HOME.seal(url="FIDO:/" + "1" * 2500, note="\N{FAMILY}" * 140)
    with pytest.raises(LocalProtocolError, match="at most 3072 bytes"):  # what fits unsigned, and not sealed
        HOME.seal(url="FIDO:/" + "1" * 2756)
    tablet_key = HOME.tablet.member.hpke_key
    assert tablet_key is not None
    with pytest.raises(LocalProtocolError):
        seal(HOME.say(HOME.phone), HOME.frame.key, tablet_key)


@pytest.mark.threat("T11")
def test_url_and_digits_do_not_show_in_a_repr() -> None:
    url = fido_url()
    said = HOME.say(url=url, digits="73155802")
    whole = opened(HOME.seal(url=url, digits="73155802"))
    for text in (repr(said), repr(whole), str(said)):
        assert url not in text
        assert url.removeprefix("FIDO:/") not in text
        assert "73155802" not in text
    assert isinstance(said, Announcement)
