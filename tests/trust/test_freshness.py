"""Freshness: which words count, which alarms they raise, and who is a witness."""

import pytest

from headless_passkey.errors import TrustReason
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.freshness import DAY, hear, witnesses
from headless_passkey.trust.ring import Ring
from headless_passkey.trust.word import Claim, Word
from tests.trust.people import BOBS, NOW, Home, Person, chain_of, companion, device, found, grow
from tests.trust.refusal import refused

HOME = Home()
TABLET = HOME.tablet


def word(by: Person, ring: Ring, *, at: float = NOW, claim: Claim | None = None) -> tuple[str, bytes]:
    return by.name, Word.give(by.key, ring=ring, now=at, claim=claim).document


def longer(chain: RingChain, *members: Person, by: Person = HOME.phone) -> RingChain:
    ring = grow(chain.head, by, *members)
    return chain.extend([ring.document], now=ring.issued)


def test_a_word_that_names_a_ring_of_the_chain_counts_from_its_time() -> None:
    first, head = HOME.chain.rings
    words = [
        word(TABLET, first, at=NOW + 5),
        word(HOME.phone, head, at=NOW + 7),
        word(TABLET, head, at=NOW + 9),
    ]
    heard = hear(words, HOME.chain, now=NOW + 10)
    assert heard.at == {TABLET.name: NOW + 9, HOME.phone.name: NOW + 7}
    assert heard.ahead is None


@pytest.mark.threat("T2")
def test_a_word_that_names_a_newer_ring_says_that_there_is_one() -> None:
    newer = longer(longer(HOME.chain, HOME.phone, TABLET), HOME.phone)
    heard = hear([word(TABLET, newer.rings[-2])], HOME.chain, now=NOW)
    assert (heard.at, heard.ahead) == ({}, HOME.ring.version + 1)
    both = [word(HOME.phone, newer.head), word(TABLET, newer.rings[-2])]
    assert hear(both, HOME.chain, now=NOW).ahead == HOME.ring.version + 2


@pytest.mark.threat("T2")
def test_a_word_that_names_another_ring_of_a_version_that_we_hold_is_a_fork() -> None:
    other = grow(HOME.chain.rings[0], HOME.phone, HOME.phone, TABLET, device("another"))
    assert other.version == HOME.ring.version
    with refused(TrustReason.FORKED_RING, saying='"tablet" holds another ring version 2'):
        hear([word(TABLET, other)], HOME.chain, now=NOW)


@pytest.mark.threat("T2")
def test_what_is_no_word_of_a_companion_of_the_head_is_ignored() -> None:
    ahead = longer(HOME.chain, HOME.phone, TABLET).head
    eve, frame = companion("eve"), HOME.frame
    foreign = found(companion("bob"), account=BOBS)
    words = [
        word(eve, ahead),
        (TABLET.name, word(eve, ahead)[1]),
        word(frame, ahead),
        (TABLET.name, b"word"),
        (TABLET.name, word(TABLET, ahead)[1][:-1] + b"\x00"),
        word(TABLET, foreign),
        word(TABLET, ahead, at=NOW + 121),
        ("", word(TABLET, ahead)[1]),
    ]
    heard = hear(words, HOME.chain, now=NOW)
    assert (heard.at, heard.ahead) == ({}, None)
    assert hear([word(TABLET, HOME.ring, at=NOW + 120)], HOME.chain, now=NOW).at == {TABLET.name: NOW + 120}


def test_a_word_about_a_ring_older_than_what_is_kept_says_nothing() -> None:
    head_only = RingChain.start(HOME.ring)
    assert hear([word(TABLET, HOME.chain.rings[0])], head_only, now=NOW).at == {}


def test_a_witness_is_a_companion_that_has_not_signed_the_newest_ring() -> None:
    third = companion("third")
    chain = longer(HOME.chain, HOME.phone, TABLET, third, HOME.frame, by=TABLET)
    names = [each.member.name for each in witnesses(chain, {third.name: NOW + 50, HOME.phone.name: NOW + 70})]
    assert names == [HOME.phone.name, third.name]
    assert [each.at for each in witnesses(chain, {third.name: NOW + 50})] == [NOW + 50, NOW]


def test_an_account_with_one_companion_has_no_witness() -> None:
    assert witnesses(chain_of(found(HOME.phone)), {HOME.phone.name: NOW}) == ()


@pytest.mark.threat("T2")
def test_a_witness_that_said_nothing_for_more_than_seven_days_is_silent() -> None:
    (tablet,) = witnesses(HOME.chain, {TABLET.name: NOW})
    assert not tablet.is_silent(NOW + 7 * DAY)
    assert tablet.is_silent(NOW + 7 * DAY + 1)
    assert tablet.is_silent(NOW + 2 * DAY, after=DAY)
    assert (tablet.days(NOW + 9 * DAY + 5), tablet.age(NOW - 60)) == (9, 0)
