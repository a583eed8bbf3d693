"""Twins: labels that people cannot tell apart, by the skeletons of UTS #39 §4.

Who signs a ring refuses a label whose twin is in it, and who shows a member that has a twin says more than its label.
The validity of a ring does not depend on this: the table of look-alikes grows with Unicode.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final

from headless_passkey.errors import TrustError, TrustReason
from headless_passkey.mends import mend
from headless_passkey.trust.ring import Member
from program_parts.names import quoted

_MAX_STEPS: Final = 8  # twice what the table needs today
_MARK: Final = "\u200e"  # stands around right-to-left characters in the table
_BLANK: Final = "\N{BRAILLE PATTERN BLANK}"
# the default-ignorable code points (UAX #44)
_IGNORED: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def twin_of(label: str, members: Iterable[Member], *, but: str | None = None) -> Member | None:
    """Find a member whose label looks like `label`, or is the same; None when there is none.

    but: the name of a member that does not count, such as the one that gets the label.
    """
    wanted = _skeletons(label)
    for member in members:
        if member.name != but and _are_alike(wanted, _skeletons(member.label)):
            return member
    return None


def refuse_a_twin(label: str, members: Iterable[Member], *, but: str | None = None) -> None:
    """Refuse a label that looks like a member's, with `TrustError` (label-taken): called by whoever signs a ring.

    but: as for `twin_of`.
    """
    twin = twin_of(label, members, but=but)
    if twin is not None:
        raise TrustError(
            TrustReason.LABEL_TAKEN,
            f"{quoted(label)} looks like the label of {quoted(twin.label)}",
            advice=mend(TrustReason.LABEL_TAKEN),
        )


def are_twins(one: str, other: str) -> bool:
    """Whether two labels look alike, in upper or lower case too."""
    return _are_alike(_skeletons(one), _skeletons(other))


def _are_alike(one: tuple[str, str], other: tuple[str, str]) -> bool:
    return one[0] == other[0] or one[1] == other[1]


def _skeletons(label: str) -> tuple[str, str]:
    """Reduce a label to the skeleton of what it looks like, and to that of its lower case.

    `KIT` and `Kit` are alike in the second only, `KIT` and `KlT` in the first only.
    """
    return skeleton(label).casefold(), skeleton(label.casefold())


def skeleton(text: str) -> str:
    """Reduce text to its skeleton (UTS #39 §4): without ignorable code points, of look-alikes one each.

    Compatibility forms count as look-alikes too, such as full-width letters.
    """
    text = _IGNORED.sub("", unicodedata.normalize("NFKD", text.replace(_BLANK, " ")))
    text = "".join(_prototypes().get(character, character) for character in text)
    return " ".join(unicodedata.normalize("NFD", text).split())


@functools.cache
def _prototypes() -> Mapping[str, str]:
    """Make the table of characters and what stands for each and its look-alikes.

    The library lists look-alikes both ways: a prototype beside all that look like it, and each of those beside the
    prototype alone. Of two that have only each other the longer text is the prototype, as in Unicode's own table, or
    else the first.
    """
    from confusable_homoglyphs.confusables import (  # noqa: PLC0415  a third of a megabyte, needed by few commands
        confusables_data,
    )

    alike = {
        _bare(text): [_bare(other["c"]) for other in others] for text, others in confusables_data.items()
    }
    single: dict[str, str] = {}
    for text, others in alike.items():
        if len(text) == 1 and len(others) == 1:
            prototype = others[0]
            alone = len(alike.get(prototype, ())) == 1
            if not alone or len(prototype) > 1 or text > prototype:
                single[text] = prototype
    return {text: _resolved(prototype, single) for text, prototype in single.items()}


def _resolved(text: str, single: Mapping[str, str]) -> str:
    """Replace what has a prototype until nothing has one: the compatibility form of a prototype may have one of its own."""
    for _ in range(_MAX_STEPS):
        replaced = "".join(
            single.get(character, character) for character in unicodedata.normalize("NFKD", text)
        )
        if replaced == text:
            break
        text = replaced
    return text


def _bare(text: str) -> str:
    return str(text).strip(_MARK) if len(text) > 1 else str(text)
