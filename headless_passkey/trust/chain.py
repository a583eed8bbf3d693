"""The rings one has verified, link by link: what everyone keeps, and extends or refuses."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Self

from headless_passkey.errors import LocalProtocolError, TrustError, TrustReason
from headless_passkey.trust.ring import Ring

MAX_KEPT: Final = 64  # rings; requests live five minutes, so older history answers no question


@dataclass(frozen=True, slots=True)
class RingChain:
    """Verified rings of one account, oldest first, each the next version of the one before it."""

    rings: tuple[Ring, ...]

    def __post_init__(self) -> None:
        if not self.rings:
            raise LocalProtocolError("a chain holds at least one ring")

    @classmethod
    def start(cls, ring: Ring) -> Self:
        """A chain from a ring that was founded here, or vouched for by the pinned inviter."""
        return cls((ring,))

    @classmethod
    def restore(cls, documents: Iterable[bytes]) -> Self:
        """A chain from our own storage: `documents` as it gave them."""
        first, *rest = documents
        return cls.start(Ring.parse_kept(first)).extend(rest)

    @property
    def documents(self) -> tuple[bytes, ...]:
        return tuple(ring.document for ring in self.rings)

    @property
    def head(self) -> Ring:
        return self.rings[-1]

    def extend(self, documents: Iterable[bytes]) -> Self:
        """This chain with `documents`, which must follow the head one by one; rings it holds are skipped.

        Raises `TrustError` (forked-ring, bad-signature), or `RemoteProtocolError` when malformed.
        """
        rings = list(self.rings)
        known = set(self.documents)
        for document in documents:
            if document not in known:
                rings.append(rings[-1].extend(document))
        return type(self)(tuple(rings[-MAX_KEPT:]))

    def ancestor(self, version: int, ring_hash: bytes) -> Ring | None:
        """The ring of that version and hash: the head or one before it, None when it is not on this chain."""
        return next((ring for ring in self.rings if (ring.version, ring.hash) == (version, ring_hash)), None)

    def agrees(self, version: int, ring_hash: bytes) -> bool:
        """Whether a relay whose newest ring this is has nothing newer, nor another history than ours.

        False: it has newer ones. `TrustError` (forked-ring): it has others.
        """
        if version > self.head.version:
            return False
        if version >= self.rings[0].version and self.ancestor(version, ring_hash) is None:
            raise TrustError(
                TrustReason.FORKED_RING, f"the relay holds another ring version {version} than we do"
            )
        return True

    def removed_since(self, version: int) -> frozenset[str]:
        """Names that were members in or after `version` and then were not, even if they came back."""
        later = [{member.name for member in ring.members} for ring in self.rings if ring.version >= version]
        return frozenset().union(*(before - after for before, after in pairwise(later)))
