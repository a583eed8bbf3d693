"""Members of an account for people: found by label or name, described, and with what they let in."""

import time
import unicodedata
from collections.abc import Collection
from typing import Final

from headless_passkey.errors import TrustError, TrustReason, UsageError
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.ring import Member, Ring
from program_parts.names import quoted

_SHORTEST: Final = 6  # characters of a name that find a member
_SHORT_NAME: Final = 10  # characters of a name that are shown, and that stand for the label


def short_name(name: str) -> str:
    """The start of a member's name, as people are shown it."""
    return name[:_SHORT_NAME]


def joining_day(member: Member) -> str:
    """The day on which a member joined, in local time."""
    return time.strftime("%Y-%m-%d", time.localtime(member.joined))


def is_called(member: Member, text: str) -> bool:
    """Whether `text` is the member's label, in whatever normal form, or its short name or more of its name."""
    text = text.strip(" ")
    return _normal(text) == _normal(member.label) or (
        len(text) >= _SHORT_NAME and member.name.startswith(text)
    )


def is_same_name(one: str, other: str) -> bool:
    """Whether two names are the same, in whatever normal form."""
    return _normal(one.strip(" ")) == _normal(other)


def _normal(label: str) -> str:
    return unicodedata.normalize("NFC", label)


def find(ring: Ring, who: str) -> Member:
    """Find the one member with this label, or whose name begins with `who`; `UsageError` when there is none, or several."""
    return _one_of(
        ring.members,
        who,
        several="several members are called so",
        none="no member has this label or name: `companion-push companion members` lists them",
    )


def find_former(chain: RingChain, who: str) -> Member:
    """Find somebody who is in an earlier ring and not in the newest: its newest entry. `UsageError` as with `find`."""
    former = {member.name: member for ring in chain.rings for member in ring.members}
    for member in chain.head.members:
        del former[member.name]
    return _one_of(
        former.values(),
        who,
        several="several former members were called so",
        none="nobody with this label or name was a member in the rings that are kept here",
    )


def _one_of(members: Collection[Member], who: str, *, several: str, none: str) -> Member:
    found = [member for member in members if _normal(member.label) == _normal(who)]
    if not found and len(who) >= _SHORTEST:
        found = [member for member in members if member.name.startswith(who)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(short_name(member.name) for member in found)
        raise UsageError(f"{several}: name one by the start of its name ({names})")
    raise UsageError(none)


def introduced(ring: Ring, name: str) -> tuple[Member, ...]:
    """Whom this member let in, and whom those let in, in the order of the ring; not the member itself."""
    guests: set[str] = set()
    while more := {
        member.name
        for member in ring.members
        if member.introduced_by in {name, *guests} and member.name not in {name, *guests}
    }:
        guests |= more
    return tuple(member for member in ring.members if member.name in guests)


def described(member: Member, ring: Ring) -> str:
    """A line for a terminal: role, label, short name, and when it came and by whom."""
    host = None if member.introduced_by is None else ring.member(member.introduced_by)
    by = "" if host is None else f", let in by {quoted(host.label)}"
    if host is None and member.introduced_by is not None:
        by = f", let in by {short_name(member.introduced_by)}, who is gone"
    named = f"{quoted(member.label)} ({short_name(member.name)})"
    return f"{member.role} {named}, here since {joining_day(member)}{by}"


def refuse_removed(chain: RingChain, me: str) -> None:
    """Refuse to go on as a companion that the newest ring does not hold; `TrustError` (not-a-member) says who took it out."""
    if chain.head.member(me) is None:
        raise TrustError(
            TrustReason.NOT_A_MEMBER,
            f"this companion was removed from the account {chain.removal(me) or ''}".rstrip(),
            advice="join again with a new invitation and a new state directory",
        )
