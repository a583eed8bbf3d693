"""Freshness of rings: what the words of companions say about the ring that a member holds (docs/protocol/trust.md).

A ring is signed once, and a relay could go on showing it after a companion was removed. Words that companions give again
and again bound that time: whoever gave one that names a ring of our chain knew of no other ring then.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from headless_passkey.errors import HeadlessPasskeyError, TrustError, TrustReason
from headless_passkey.mends import mend
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.ring import MAX_SKEW, Member, Role
from headless_passkey.trust.word import Word
from program_parts.names import quoted

DAY: Final = 86_400  # seconds
UNCONFIRMED_AFTER: Final = 7 * DAY  # age of the youngest witness from which its silence is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The words about the rings of one chain."""

    at: Mapping[str, int]  # time of each companion's newest word, by its name
    ahead: int | None = None  # the version that a word names and the chain does not have yet


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgottenRings:
    """An alarm: rings that the relay had once and no longer has, such as after it was restored from a backup."""

    first: int  # a version
    last: int
    given: bool  # whether the relay has them again, from us
    why_not: str | None = None  # a word, where it does not take them

    def __str__(self) -> str:
        rings = f"ring {self.first}" if self.first == self.last else f"rings {self.first} to {self.last}"
        said, them = f"the relay has forgotten {rings}", "it" if self.first == self.last else "them"
        if self.given:
            return f"{said} and was given {them} again"
        return said if self.why_not is None else f"{said} and does not take {them} again ({self.why_not})"


def hear(words: Iterable[tuple[str, bytes]], chain: RingChain, *, now: float) -> Words:
    """Verify words that the relay hands out, each with the name of its signer, and compare them with our chain.

    A word is ignored that is by nobody of our head's companions, does not verify, or is more than 120 s ahead of our
    clock. `TrustError` (forked-ring) when one names another ring of a version that we hold.
    """
    at: dict[str, int] = {}
    ahead: int | None = None
    for by, document in words:
        companion = chain.head.member(by)
        if companion is None or companion.role is not Role.COMPANION:
            continue
        try:
            word = Word.parse(document, by=companion)
        except HeadlessPasskeyError:
            continue
        if word.account != chain.head.account or word.at > now + MAX_SKEW:
            continue
        if word.version > chain.head.version:
            ahead = max(word.version, ahead or 0)
        elif word.version >= chain.rings[0].version:
            if chain.ancestor(word.version, word.ring_hash) is None:
                raise TrustError(
                    TrustReason.FORKED_RING,
                    f"{quoted(companion.label)} holds another ring version {word.version} than we do",
                    advice=mend(TrustReason.FORKED_RING),
                )
            at[by] = max(word.at, at.get(by, 0))
    return Words(at=at, ahead=ahead)


def take_over(
    chain: RingChain, document: bytes, *, words: Iterable[tuple[str, bytes]], me: str, now: float
) -> RingChain:
    """Take a later ring over although the relay has dropped the rings in between; the chain begins with it.

    Two companions of our head (the one, where there is one), who are in the new ring too, must have given words for
    exactly this ring, which must hold `me`. `TrustError` (ring-gap) otherwise, or what is wrong with the ring.
    """
    head = chain.head
    ring = head.skip_to(document, now=now)
    vouching = set()
    for by, said in words:
        companion = head.member(by)
        if companion is None or companion.role is not Role.COMPANION or ring.member(by) is None:
            continue
        try:
            word = Word.parse(said, by=companion)
        except HeadlessPasskeyError:
            continue
        if (word.account, word.version, word.ring_hash) == (ring.account, ring.version, ring.hash):
            vouching.add(by)
    needed = min(2, len(head.companions))
    if len(vouching) < needed or ring.member(me) is None:
        raise TrustError(
            TrustReason.RING_GAP,
            f"the relay has dropped the rings between {head.version} and {ring.version}, and {len(vouching)} of {needed} "
            "companions confirm the newest",
            advice=mend(TrustReason.RING_GAP),
        )
    return RingChain.start(ring)


def withheld(version: int) -> TrustError:
    """Make the error for a ring that somebody names and the relay does not show."""
    return TrustError(
        TrustReason.WITHHELD_RING,
        f"there is a ring version {version}, which the relay does not show",
        advice=mend(TrustReason.WITHHELD_RING),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """A companion whose word would tell us of a newer ring: any but the signer of the newest ring."""

    member: Member
    at: int  # Unix seconds of its newest word, or of its joining

    def age(self, now: float) -> int:
        """Seconds since its word, not below 0."""
        return max(0, int(now) - self.at)

    def days(self, now: float) -> int:
        return self.age(now) // DAY

    def is_silent(self, now: float, *, after: float = UNCONFIRMED_AFTER) -> bool:
        """Whether its word is older than `after` seconds."""
        return self.age(now) > after


def unconfirmed(witness: Witness, now: float) -> TrustError:
    """Make the error for a ring that nobody has confirmed for too long. witness: who spoke last."""
    return TrustError(
        TrustReason.UNCONFIRMED_RING,
        f"no word from {quoted(witness.member.label)} for {witness.days(now)} days: the relay may hide a change of the members",
        advice=mend(TrustReason.UNCONFIRMED_RING),
    )


def witnesses(chain: RingChain, at: Mapping[str, int]) -> tuple[Witness, ...]:
    """The witnesses of the head, who spoke last first; none in an account with one companion. at: as in `Words`."""
    head = chain.head
    heard = (
        Witness(member=member, at=max(at.get(member.name, 0), member.joined))
        for member in head.companions
        if member.name != head.signer
    )
    return tuple(sorted(heard, key=lambda witness: witness.at, reverse=True))
