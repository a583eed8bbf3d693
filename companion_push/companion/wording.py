"""The sentences in which several parts of the companion name a request, a member and a relying party."""

from collections.abc import Sequence
from typing import Final

from companion_push.companion.members import joining_day, short_name
from companion_push.companion.twins import twin_of
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.trust.ring import Member
from program_parts.domains import MAX_DOMAIN
from program_parts.names import printable, quoted

ASKS: Final = {RequestKind.GET_ASSERTION: "sign in", RequestKind.MAKE_CREDENTIAL: "create a passkey"}


def known_as(member: Member, members: Sequence[Member]) -> str:
    """Name a member of a ring for people: its label, and where another member's label looks the same more.

    Nobody can choose the rest: the start of its name, which is a thumbprint, the day on which it joined, and who
    introduced it.
    """
    shown = quoted(member.label)
    if twin_of(member.label, members, but=member.name) is None:
        return shown
    return (
        f"{shown} ({short_name(member.name)}, joined {joining_day(member)}, {_introduced(member, members)})"
    )


def _introduced(member: Member, members: Sequence[Member]) -> str:
    if member.introduced_by is None:
        return "the first member"
    for each in members:
        if each.name == member.introduced_by:
            return f"introduced by {quoted(each.label)} ({short_name(each.name)})"
    return f"introduced by {short_name(member.introduced_by)}, which was removed"


def must_say(rp_id: str) -> str:
    """Tell people what to compare on the phone.

    A hostile device can give a URL for another relying party than its envelope names. A phone of this project
    refuses it; a stock phone knows only the URL, and shows whom it really signs for.
    """
    return f'Your phone must now say "{printable(rp_id, MAX_DOMAIN)}". If it names anything else, cancel.'
