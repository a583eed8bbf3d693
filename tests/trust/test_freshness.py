"""Freshness: which words count, which alarms they raise, and who is a witness."""

import pytest

from headless_passkey.errors import TrustReason
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.freshness import DAY, ForgottenRings, hear, take_over, unconfirmed, witnesses
from headless_passkey.trust.ring import Ring
from headless_passkey.trust.word import Claim, Word
from tests.trust.people import (
    BOBS,
    NOW,
    Home,
    Person,
    chain_of,
    companion,
    device,
    encoded,
    forge,
    found,
    grow,
    spoiled,
    twin,
)
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
        (TABLET.name, spoiled(word(TABLET, ahead)[1])),
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


# A ring whose links are gone


def far(*members: Person, by: Person = HOME.phone) -> Ring:
    """A ring three versions after the head, with `members` in the end."""
    chain = longer(HOME.chain, HOME.phone, TABLET, HOME.frame)
    chain = longer(chain, HOME.phone, TABLET, HOME.frame)
    return longer(chain, *members, by=by).head


def taken(ring: Ring, *words: tuple[str, bytes], document: bytes | None = None, now: float = NOW) -> Ring:
    return take_over(HOME.chain, document or ring.document, words=words, me=HOME.frame.name, now=now).head


def test_the_newest_ring_is_taken_by_the_words_of_two_companions() -> None:
    ring = far(HOME.phone, TABLET, HOME.frame)
    assert taken(ring, word(TABLET, ring), word(HOME.phone, ring)) == ring


@pytest.mark.threat("T16")
def test_too_few_words_for_exactly_this_ring_are_a_gap() -> None:
    ring = far(HOME.phone, TABLET, HOME.frame)
    puppet = companion("puppet")
    with_puppet = far(HOME.phone, puppet, HOME.frame)
    head = HOME.chain.head
    for words in (
        [],
        [word(TABLET, ring)],
        [word(TABLET, ring), word(TABLET, ring)],
        [word(TABLET, ring), word(HOME.phone, head)],
        [word(TABLET, ring), (HOME.phone.name, word(TABLET, ring)[1])],
        [word(TABLET, ring), word(HOME.frame, ring)],
    ):
        with refused(TrustReason.RING_GAP):
            taken(ring, *words)
    with refused(TrustReason.RING_GAP, saying="1 of 2"):  # the puppet is nobody to us, the tablet is out
        taken(
            with_puppet, word(HOME.phone, with_puppet), word(puppet, with_puppet), word(TABLET, with_puppet)
        )


@pytest.mark.threat("T16")
def test_a_ring_over_a_gap_is_checked_as_a_first_ring_is() -> None:
    ring = far(HOME.phone, TABLET, HOME.frame)
    words = [word(TABLET, ring), word(HOME.phone, ring)]
    with refused(TrustReason.BAD_SIGNATURE):
        taken(ring, *words, document=twin(ring.document))
    with refused(TrustReason.CLOCK_SKEW):
        taken(ring, *words, now=NOW - 500)
    with refused(TrustReason.FORKED_RING):
        taken(HOME.chain.head, *words)
    with refused(TrustReason.FORKED_RING):
        taken(ring, *words, document=forge(ring, HOME.phone, HOME.phone, account=BOBS))
    stolen = [
        encoded(ring, HOME.phone, by=HOME.phone),
        encoded(ring, HOME.frame, by=HOME.phone),
        encoded(ring, device("stolen"), by=HOME.phone, possession=bytes(64)),
    ]
    with refused(TrustReason.BAD_POSSESSION):
        taken(ring, *words, document=forge(ring, HOME.phone, members=stolen))
    without = far(HOME.phone, TABLET)
    with refused(TrustReason.RING_GAP):
        taken(without, word(TABLET, without), word(HOME.phone, without))
    by_stranger = encoded(ring, HOME.phone, by=HOME.phone)
    with refused(TrustReason.RING_GAP, saying="somebody whom nobody knows"):
        taken(ring, *words, document=forge(ring, companion("eve"), members=[by_stranger]))


@pytest.mark.threat("T2")
def test_a_ring_that_nobody_confirms_names_who_spoke_last() -> None:
    (tablet,) = witnesses(HOME.chain, {TABLET.name: NOW})
    with refused(TrustReason.UNCONFIRMED_RING, saying='no word from "tablet" for 9 days'):
        raise unconfirmed(tablet, NOW + 9 * DAY)


@pytest.mark.threat("T2")
@pytest.mark.parametrize(
    ("alarm", "said"),
    [
        (
            ForgottenRings(first=5, last=5, given=True),
            "the relay has forgotten ring 5 and was given it again",
        ),
        (
            ForgottenRings(first=5, last=7, given=True),
            "the relay has forgotten rings 5 to 7 and was given them again",
        ),
        (ForgottenRings(first=5, last=7, given=False), "the relay has forgotten rings 5 to 7"),
        (
            ForgottenRings(first=5, last=5, given=False, why_not="rate-limited"),
            "the relay has forgotten ring 5 and does not take it again (rate-limited)",
        ),
    ],
    ids=["one, given", "some, given", "not given", "not taken"],
)
def test_what_a_relay_has_forgotten_is_said_in_a_sentence(alarm: ForgottenRings, said: str) -> None:
    assert str(alarm) == said
