"""The chain of rings one has verified."""

from dataclasses import replace

import pytest

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError, TrustReason
from headless_passkey.trust.chain import MAX_KEPT, RingChain
from tests.trust.people import NOW, chain_of, companion, device, forge, found, grow
from tests.trust.refusal import refused

PHONE, TABLET, FRAME = companion("phone"), companion("tablet"), device("frame")
FIRST = found(PHONE)
SECOND = grow(FIRST, PHONE, PHONE, TABLET, FRAME)
THIRD = grow(SECOND, TABLET, TABLET, FRAME)


def test_a_chain_grows_link_by_link_and_is_restored_as_it_was() -> None:
    chain = RingChain.start(FIRST).extend([SECOND.document, THIRD.document], now=NOW)
    assert chain.head == THIRD
    assert RingChain.restore(chain.documents) == chain


def test_rings_it_already_holds_are_skipped() -> None:
    chain = chain_of(FIRST, SECOND)
    assert chain.extend([FIRST.document, SECOND.document, THIRD.document], now=NOW).head == THIRD


@pytest.mark.threat("T2")
def test_a_ring_it_holds_is_skipped_whatever_signature_it_comes_with() -> None:
    again = forge(FIRST, PHONE, PHONE, TABLET, FRAME)
    assert again != SECOND.document
    assert chain_of(FIRST, SECOND).extend([again, THIRD.document], now=NOW).head == THIRD


def test_ancestors_are_found_by_version_and_hash_together() -> None:
    chain = chain_of(FIRST, SECOND, THIRD)
    assert chain.ancestor(2, SECOND.hash) == SECOND
    assert chain.ancestor(3, THIRD.hash) == THIRD
    assert chain.ancestor(3, SECOND.hash) is None
    assert chain.ancestor(4, THIRD.hash) is None


def test_the_removed_are_remembered_even_when_they_came_back() -> None:
    again = grow(THIRD, TABLET, TABLET, FRAME, PHONE)
    chain = chain_of(FIRST, SECOND, THIRD, again)
    assert chain.removed_since(1) == {PHONE.name}
    assert chain.removed_since(2) == {PHONE.name}
    assert chain.removed_since(3) == frozenset()
    assert chain.removed_since(4) == frozenset()


def test_old_rings_are_let_go() -> None:
    chain = RingChain.start(FIRST)
    for _ in range(MAX_KEPT + 5):
        chain = chain.extend([grow(chain.head, PHONE, PHONE).document], now=NOW)
    assert len(chain.rings) == MAX_KEPT
    assert RingChain.restore(chain.documents) == chain


def test_it_agrees_with_a_relay_that_holds_the_same_or_less() -> None:
    chain = chain_of(SECOND, THIRD)
    assert chain.agrees(3, THIRD.hash)
    assert chain.agrees(2, SECOND.hash)
    assert chain.agrees(1, FIRST.hash), "older than what was vouched for: nobody can tell"


def test_it_does_not_agree_with_a_relay_that_holds_more() -> None:
    assert not chain_of(FIRST, SECOND).agrees(3, THIRD.hash)


@pytest.mark.threat("T2")
def test_a_relay_that_holds_other_rings_than_we_do_is_refused() -> None:
    with refused(TrustReason.FORKED_RING):
        chain_of(FIRST, SECOND).agrees(2, grow(FIRST, PHONE, PHONE).hash)


@pytest.mark.threat("T2")
def test_a_fork_anywhere_in_the_answer_is_refused_and_changes_nothing() -> None:
    chain = chain_of(FIRST, SECOND)
    fork = grow(FIRST, PHONE, PHONE)
    for documents in ([fork.document], [THIRD.document, fork.document], [grow(fork, PHONE, PHONE).document]):
        with refused(TrustReason.FORKED_RING):
            chain.extend(documents, now=NOW)
    assert chain.head == SECOND


def test_a_chain_is_never_empty() -> None:
    with pytest.raises(LocalProtocolError):
        RingChain(())


@pytest.mark.threat("T4")
def test_a_label_with_quotation_marks_says_nothing_beyond_itself() -> None:
    liar = companion('x" came, by "phone"; "y')
    shown = '"x<U+0022> came, by <U+0022>phone<U+0022>; <U+0022>y"'
    first = grow(FIRST, PHONE, PHONE, TABLET, liar)
    chain = chain_of(FIRST, first, grow(first, liar, PHONE, liar))
    assert chain.changes_since(2) == f'"tablet" was taken out, by {shown}'
    assert chain.removal(TABLET.name) == f"by {shown} in ring 3"


def test_who_took_a_member_out_is_said_of_the_removed_alone() -> None:
    left = grow(THIRD, FRAME, TABLET)
    chain = chain_of(FIRST, SECOND, THIRD, left)
    assert chain.removal(TABLET.name) is None
    assert chain.removal(companion("nobody").name) is None
    assert chain.removal(PHONE.name) == 'by "tablet" in ring 3'
    assert chain.removal(FRAME.name) == "by itself in ring 4"


def test_a_new_key_for_requests_is_told_apart_from_another_change() -> None:
    fresh = companion("phone").hpke_key
    assert fresh is not None
    rekeyed = SECOND.with_hpke_key(PHONE.key, fresh, now=NOW)
    members = [
        replace(each, label="old tablet") if each.name == TABLET.name else each for each in rekeyed.members
    ]
    renamed = rekeyed.next(PHONE.key, members=members, now=NOW)
    chain = chain_of(FIRST, SECOND, rekeyed, renamed)
    assert (
        chain.changes_since(2)
        == '"phone" was given a new key for requests, by "phone"; "tablet" was changed, by "phone"'
    )


def test_documents_that_do_not_follow_each_other_are_restored_as_no_chain() -> None:
    with pytest.raises(RemoteProtocolError, match="do not follow each other"):
        RingChain.restore([FIRST.document, THIRD.document])
