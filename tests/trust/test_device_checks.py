"""The device's check of a claim that the relay shows: whose word it is, what it claims, and when."""

import pytest

from headless_passkey.errors import TrustReason
from headless_passkey.trust.device_checks import check_claim
from headless_passkey.trust.word import Claim, Word
from tests.trust.people import BOBS, NOW, REQUEST_ID, Home, Person, found, spoiled
from tests.trust.refusal import refused

HOME = Home()
SEALED = b"sealed"
CLAIM = Claim.of(device=HOME.frame.name, request_id=REQUEST_ID, sealed=SEALED)
ISSUED, EXPIRES = NOW, NOW + 300


def word(by: Person = HOME.tablet, *, at: float = NOW + 5, claim: Claim | None = CLAIM) -> bytes:
    return Word.give(by.key, ring=HOME.ring, now=at, claim=claim).document


def checked(document: bytes) -> Word:
    return check_claim(
        document, by=HOME.tablet.member, account=HOME.account, claim=CLAIM, issued=ISSUED, expires=EXPIRES
    )


@pytest.mark.threat("T3")
@pytest.mark.parametrize("at", [ISSUED - 120, ISSUED, EXPIRES, EXPIRES + 120])
def test_the_companions_claim_of_these_very_bytes_is_taken_while_the_request_lives(at: int) -> None:
    assert checked(word(at=at)).at == at


@pytest.mark.threat("T3")
@pytest.mark.parametrize("at", [ISSUED - 121, EXPIRES + 121])
def test_a_claim_of_another_time_is_refused(at: int) -> None:
    with refused(TrustReason.BAD_CLAIM, saying=f"made {at - ISSUED} s after the request, which lives 300 s"):
        checked(word(at=at))


@pytest.mark.threat("T3")
@pytest.mark.parametrize(
    "claim",
    [
        None,
        Claim.of(device=HOME.frame.name, request_id=REQUEST_ID, sealed=b"other bytes"),
        Claim.of(device=HOME.frame.name, request_id=bytes(16), sealed=SEALED),
        Claim.of(device=HOME.tablet.name, request_id=REQUEST_ID, sealed=SEALED),
    ],
    ids=["none", "other bytes", "another request", "another device"],
)
def test_a_claim_of_anything_else_is_refused(claim: Claim | None) -> None:
    with refused(TrustReason.BAD_CLAIM, saying="of another request, or of other bytes"):
        checked(word(claim=claim))


@pytest.mark.threat("T3")
def test_a_claim_in_another_account_is_refused() -> None:
    ring = found(HOME.tablet, account=BOBS)
    HOME.tablet.account = HOME.account
    with refused(TrustReason.BAD_CLAIM, saying="of another request, or of other bytes"):
        checked(Word.give(HOME.tablet.key, ring=ring, now=NOW + 5, claim=CLAIM).document)


@pytest.mark.threat("T3")
@pytest.mark.parametrize(
    "document", [b"", spoiled(word()), word(HOME.phone)], ids=["nothing", "changed", "another's"]
)
def test_what_is_not_that_companions_word_is_refused(document: bytes) -> None:
    with refused(TrustReason.BAD_CLAIM, saying="not that companion's word"):
        checked(document)
