"""A chain of verified rings, which every member stores, and extends only by a valid next version."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Self

from headless_passkey.errors import (
    LocalProtocolError,
    ProtocolReason,
    RemoteProtocolError,
    TrustError,
    TrustReason,
)
from headless_passkey.trust.ring import Member, Ring, document_hash
from program_parts.names import quoted

MAX_KEPT: Final = 64  # rings; a request lives five minutes, so no check needs an older ring


@dataclass(frozen=True, slots=True)
class RingChain:
    """Verified rings of one account, oldest first, each the next version of the one before it."""

    rings: tuple[Ring, ...]

    def __post_init__(self) -> None:
        if not self.rings:
            raise LocalProtocolError("a chain holds at least one ring")

    @classmethod
    def start(cls, ring: Ring) -> Self:
        """Start a chain from a ring that this member founded, or that the pinned inviter signed."""
        return cls((ring,))

    @classmethod
    def restore(cls, documents: Iterable[bytes]) -> Self:
        """Restore a chain from our own storage, without verifying it again; `RemoteProtocolError` when it is none."""
        rings = tuple(map(Ring.parse_kept, documents))
        if any(later.previous != earlier.hash for earlier, later in pairwise(rings)):
            raise RemoteProtocolError(
                "the rings do not follow each other", reason=ProtocolReason.MALFORMED_RING
            )
        return cls(rings)

    @property
    def documents(self) -> tuple[bytes, ...]:
        return tuple(ring.document for ring in self.rings)

    @property
    def head(self) -> Ring:
        return self.rings[-1]

    def extend(self, documents: Iterable[bytes], *, now: float) -> Self:
        """Extend the chain by `documents`, each the next version; rings that it holds already are skipped.

        now: Unix seconds by our own clock. Raises `TrustError` (`ring.check_next` has the reasons), or
        `RemoteProtocolError` when malformed.
        """
        rings = list(self.rings)
        known = {ring.hash for ring in rings}
        for document in documents:
            if document_hash(document) not in known:
                rings.append(rings[-1].extend(document, now=now))
        return type(self)(tuple(rings[-MAX_KEPT:]))

    def ancestor(self, version: int, ring_hash: bytes) -> Ring | None:
        """Find a ring of the chain by version and hash; None when it is not on the chain."""
        return next((ring for ring in self.rings if (ring.version, ring.hash) == (version, ring_hash)), None)

    def removal(self, name: str) -> str | None:
        """Say who took a member out, and in which ring; None when the head holds it, or the chain never did."""
        if self.head.member(name) is not None:
            return None
        for before, after in reversed([*pairwise(self.rings)]):
            if before.member(name) is not None:
                signer = before.member(after.signer)
                by = "itself" if after.signer == name else quoted(signer.label if signer else "?")
                return f"by {by} in ring {after.version}"
        return None

    def changes_since(self, version: int) -> str:
        """Say for people what has changed since a version: who came, who went, and by whom; labels are escaped."""
        said = []
        for before, after in pairwise(ring for ring in self.rings if ring.version >= version):
            signer = before.member(after.signer)
            by = f"by {quoted(signer.label)}" if signer else "by somebody"
            was, now = (
                {each.name: each for each in before.members},
                {each.name: each for each in after.members},
            )
            said += [f"{quoted(now[name].label)} came, {by}" for name in now if name not in was]
            said += [f"{quoted(was[name].label)} was taken out, {by}" for name in was if name not in now]
            said += [
                f"{quoted(was[name].label)} {_change(was[name], now[name])}, {by}"
                for name in now
                if name in was and was[name] != now[name]
            ]
        return "; ".join(said) or "nobody came or went"

    def agrees(self, version: int, ring_hash: bytes) -> bool:
        """Compare our chain with the relay's newest ring, given by version and hash.

        True: the relay has nothing newer. False: it has newer rings. `TrustError` (forked-ring): it has another history.
        """
        if version > self.head.version:
            return False
        if version >= self.rings[0].version and self.ancestor(version, ring_hash) is None:
            raise TrustError(
                TrustReason.FORKED_RING, f"the relay holds another ring version {version} than we do"
            )
        return True

    def removed_since(self, version: int) -> frozenset[str]:
        """The names removed in or after `version`, those that were added again included."""
        later = [{member.name for member in ring.members} for ring in self.rings if ring.version >= version]
        return frozenset().union(*(before - after for before, after in pairwise(later)))


def _change(was: Member, now: Member) -> str:
    """Say what a later ring says otherwise of a member; a companion replaces its HPKE key every 30 days."""
    key_alone = replace(was, hpke_key=now.hpke_key, possession=now.possession) == now
    return "was given a new key for requests" if key_alone else "was changed"
