"""The word: vectors, properties, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import HeadlessPasskeyError, LocalProtocolError, TrustReason
from headless_passkey.hybrid import cbor
from headless_passkey.trust.ring import HpkeKey, Member, Role
from headless_passkey.trust.signing import sign_document
from headless_passkey.trust.word import MAX_WORD, WORD_LABEL, Claim, Word
from tests.strategies import exactly
from tests.trust.people import NOW, REQUEST_ID, Home, Person
from tests.trust.refusal import refused

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "word.json").read_text())
HOME = Home()
CLAIM = Claim.of(device=HOME.frame.name, request_id=REQUEST_ID, sealed=b"sealed")


def signing(case: dict[str, Any]) -> Member:
    key = bytes.fromhex(case["signing_key"])
    return Member(
        role=Role.COMPANION,
        signing_key=key,
        hpke_key=HpkeKey(suite=1, public_key=key),
        possession=bytes(64),
        label="phone",
    )


def signed(signer: Person, /, **changes: object) -> bytes:
    """A word as anybody would write it: any field changed, signed by anyone."""
    values: dict[str, object] = {
        "label": WORD_LABEL,
        "account": HOME.account,
        "by": signer.name,
        "version": HOME.ring.version,
        "hash": HOME.ring.hash,
        "at": NOW,
        "claim": None,
    }
    body = cbor.encode(list((values | changes).values()))
    return body + sign_document(signer.key, body)


# Vectors


@pytest.mark.parametrize("case", VECTORS["words"], ids=lambda case: case["name"])
def test_a_known_word_says_what_it_said(case: dict[str, Any]) -> None:
    word = Word.parse(bytes.fromhex(case["document"]), by=signing(case))
    said = case["says"]
    assert word.by == case["by"]
    assert (word.account, word.version, word.ring_hash.hex(), word.at) == (
        said["account"],
        said["version"],
        said["hash"],
        said["at"],
    )
    claim = said["claim"]
    assert word.claim == (
        None
        if claim is None
        else Claim.of(
            device=claim["device"],
            request_id=bytes.fromhex(claim["request_id"]),
            sealed=bytes.fromhex(claim["sealed"]),
        )
    )


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["name"])
@pytest.mark.threat("T3")
def test_a_known_bad_word_is_refused_with_its_reason(case: dict[str, Any]) -> None:
    with pytest.raises(HeadlessPasskeyError) as caught:
        Word.parse(bytes.fromhex(case["document"]), by=signing(case))
    assert caught.value.reason == case["reason"]


# Properties


@given(
    now=st.integers(0, 1 << 48),
    claim=st.none()
    | st.builds(Claim, device=st.sampled_from([HOME.frame.name]), request_id=exactly(16), sealed=exactly(32)),
)
def test_a_word_parses_to_what_was_given(now: int, claim: Claim | None) -> None:
    word = Word.give(HOME.phone.key, ring=HOME.ring, now=now, claim=claim)
    again = Word.parse(word.document, by=HOME.phone.member)
    assert again == word
    assert (again.by, again.version, again.ring_hash) == (
        HOME.phone.name,
        HOME.ring.version,
        HOME.ring.hash,
    )
    assert (again.at, again.claim) == (now, claim)
    assert len(word.document) <= MAX_WORD


@given(st.binary(max_size=MAX_WORD + 1))
@pytest.mark.threat("T12")
def test_any_bytes_are_refused_politely(document: bytes) -> None:
    with pytest.raises(HeadlessPasskeyError):
        Word.parse(document, by=HOME.phone.member)


@given(st.binary(max_size=300))
@pytest.mark.threat("T12")
def test_any_signed_bytes_are_refused_politely(body: bytes) -> None:
    with pytest.raises(HeadlessPasskeyError):
        Word.parse(body + sign_document(HOME.phone.key, body), by=HOME.phone.member)


@given(st.data())
@pytest.mark.threat("T3")
def test_a_flipped_bit_is_refused(data: st.DataObject) -> None:
    document = bytearray(Word.give(HOME.phone.key, ring=HOME.ring, now=NOW, claim=CLAIM).document)
    bit = data.draw(st.integers(0, len(document) * 8 - 1))
    document[bit // 8] ^= 1 << bit % 8
    with refused(TrustReason.BAD_SIGNATURE):
        Word.parse(bytes(document), by=HOME.phone.member)


def test_a_claim_names_the_bytes_that_came_by_their_hash() -> None:
    assert CLAIM.sealed.hex() == "c9d0036bed6744bcdf692fc980d8717d7e5f5a4f4e8266b4a84982602fb1cd09"
    assert Claim.of(device=HOME.frame.name, request_id=REQUEST_ID, sealed=b"sealee") != CLAIM


# Refusals


@pytest.mark.threat("T3")
def test_only_the_companion_itself_gives_its_word() -> None:
    with refused(TrustReason.BAD_SIGNATURE):
        Word.parse(signed(HOME.tablet, by=HOME.phone.name), by=HOME.phone.member)
    with refused(TrustReason.BAD_SIGNATURE, saying="another companion's name"):
        Word.parse(signed(HOME.tablet, by=HOME.phone.name), by=HOME.tablet.member)
    with refused(TrustReason.BAD_SIGNATURE):
        Word.parse(signed(HOME.phone), by=HOME.tablet.member)


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "headless-passkey ring v1"},
        {"account": 7},
        {"account": "line\nbreak"},
        {"by": "short"},
        {"version": 0},
        {"version": (1 << 32) + 1},
        {"hash": bytes(31)},
        {"at": -1},
        {"claim": []},
        {"claim": [HOME.frame.name, REQUEST_ID]},
        {"claim": [HOME.frame.name, bytes(15), bytes(32)]},
        {"claim": [HOME.frame.name, REQUEST_ID, bytes(33)]},
        {"claim": ["frame", REQUEST_ID, bytes(32)]},
        {"claim": False},
        {"more": None},
    ],
    ids=lambda changes: next(iter(changes)) + " " + type(next(iter(changes.values()))).__name__,
)
@pytest.mark.threat("T12")
def test_a_signed_word_of_another_form_is_malformed(changes: dict[str, object]) -> None:
    with pytest.raises(HeadlessPasskeyError) as caught:
        Word.parse(signed(HOME.phone, **changes), by=HOME.phone.member)
    assert caught.value.reason == "malformed-document"


def test_a_word_that_would_be_malformed_is_a_bug_of_the_caller() -> None:
    with pytest.raises(LocalProtocolError, match="claim"):
        Word.give(
            HOME.phone.key,
            ring=HOME.ring,
            now=NOW,
            claim=Claim(device=HOME.frame.name, request_id=b"", sealed=bytes(32)),
        )
