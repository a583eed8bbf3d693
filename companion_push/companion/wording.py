"""The sentences in which several parts of the companion name a request, a member and a relying party."""

from collections.abc import Iterable
from typing import Final

from companion_push.companion.twins import twin_of
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.text.domains import MAX_DOMAIN
from headless_passkey.text.names import printable, quoted
from headless_passkey.trust.ring import Member

ASKS: Final = {RequestKind.GET_ASSERTION: "sign in", RequestKind.MAKE_CREDENTIAL: "create a passkey"}
SHORT_NAME: Final = 8  # characters of a member's name, which is a thumbprint


def known_as(member: Member, members: Iterable[Member]) -> str:
    """Name a member of a ring for people: its label, and more where another member's label looks the same."""
    shown = quoted(member.label)
    if twin_of(member.label, members, but=member.name) is None:
        return shown
    return f"{shown} ({member.name[:SHORT_NAME]}; another member is called the same)"


def must_say(rp_id: str) -> str:
    """Tell people what to compare on the phone.

    A hostile device can give a URL for another relying party than its envelope names. A phone of this project
    refuses it; a stock phone knows only the URL, and shows whom it really signs for.
    """
    return f'Your phone must now say "{printable(rp_id, MAX_DOMAIN)}". If it names anything else, cancel.'
