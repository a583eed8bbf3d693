"""Names: the rule for valid ones, and the escaping of others' text for terminals.

One rule holds for labels, account names, user names, relying party names and notes, in all parsers of all
packages (docs/protocol/trust.md, "Names"). A parser checks the normal form C of its input, so that all programs accept the
same names. Signed text is checked as it is. The valid code points are a fixed list and no Unicode category, so that
implementations agree whatever version of Unicode they have.
"""

import re
import unicodedata
from typing import Final

MAX_LABEL: Final = 64  # code points of a label or a name
MAX_SHOWN: Final = 128  # default limit for others' text in one line, in code points

# Characters that can rewrite or hide the line that they are in: controls, separators, spaces other than U+0020, characters
# that set the direction of text, invisible and blank ones, most variation selectors, tags, surrogates.
_HIDDEN: Final = (
    "\u0000-\u001f\u007f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200b"
    "\u200e\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ud800-\udfff\ufe00-\ufe0d\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0000-\U000e0fff"
)
# Invisible, although the fixed rule allows them in names.
_INVISIBLE: Final = "\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"

# Scripts and emoji need these between characters: the joiners, and the selectors of text and emoji style.
_JOINERS: Final = "\u200c\u200d"
_ATTACHED: Final = _JOINERS + "\ufe0e\ufe0f"

# Patterns, which are compiled when they are first used: a start needs none of them.
_NOT_IN_A_NAME: Final = f"[{_HIDDEN}]"
_NOT_SHOWN: Final = f"[{_HIDDEN}{_INVISIBLE}]"
_MISPLACED: Final = rf"(?:\A|(?<= ))[{_ATTACHED}]|[{_JOINERS}](?=[{_JOINERS}]|\Z)"

# Normalising takes time that grows with the square of a long run of marks. Four code points at the most become
# one, so beyond this many nothing can be a valid name.
_COMPOSED: Final = 4
_MAX_LOOKED_AT: Final = 1024  # code points of a text that is cut
_MAX_MARKS: Final = 4  # nonspacing marks on one character, as UTS #39 §5.4 advises


def why_not_plain(text: str, longest: int = MAX_LABEL) -> str | None:
    """Say why `text`, as it is, is no valid name; None for a valid one. The message does not repeat the text.

    longest: code points.
    """
    if not 0 < len(text) <= longest:
        return f"has {len(text)} characters; 1 to {longest} are expected"
    if text.strip(" ") != text:
        return "has a space at an end"
    if found := re.search(_NOT_IN_A_NAME, text):
        return f"has U+{ord(found[0]):04X} as character {found.start() + 1}, which does not show as itself"
    if found := re.search(_MISPLACED, text):
        return f"has U+{ord(found[0]):04X} as character {found.start() + 1}, where it joins nothing"
    return None


def is_plain(text: str, longest: int = MAX_LABEL) -> bool:
    """Whether `text`, as it is, is a valid name."""
    return why_not_plain(text, longest) is None


def name_of(text: str, longest: int = MAX_LABEL) -> str:
    """Normalise a name to form C; `ValueError`, which does not repeat the text, when it is invalid."""
    if len(text) <= _COMPOSED * longest:
        text = unicodedata.normalize("NFC", text)
    wrong = why_not_plain(text, longest)
    if wrong is not None:
        raise ValueError(f"a name {wrong}")
    return text


def plain(text: str, longest: int = MAX_LABEL) -> str | None:
    """Make a valid name from `text`: invalid characters become spaces, and a long text is cut; None when nothing is left."""
    kept: list[str] = []
    for character in re.sub(_NOT_IN_A_NAME, " ", unicodedata.normalize("NFC", text[:_MAX_LOOKED_AT])):
        last = kept[-1] if kept else " "
        if last == " " and character in f" {_ATTACHED}":
            continue
        if last in _JOINERS and character in _JOINERS:
            continue
        kept.append(character)
    name = "".join(kept).rstrip(f" {_JOINERS}")
    if len(name) > longest:
        name = name[: longest - 1].rstrip(f" {_JOINERS}") + "\N{HORIZONTAL ELLIPSIS}"
    return name or None


def printable(text: str, limit: int = MAX_SHOWN) -> str:
    """Escape `text` for a terminal: one line, without control sequences and hidden characters.

    Controls, line ends, direction overrides and invisible characters are spelled out as ``<U+001B>``. So are
    joiners that join nothing, and marks that would pile up or be drawn on what is not part of `text`; otherwise
    a valid name is shown as it is. limit: code points of `text`; an ellipsis stands for what is beyond.
    """
    return _spelled_out(text[:limit]) + ("\N{HORIZONTAL ELLIPSIS}" if len(text) > limit else "")


_RIGHT_TO_LEFT: Final = frozenset(
    {"R", "AL", "AN"}
)  # bidirectional classes that reorder what stands beside them
_ISOLATE: Final = "\N{FIRST STRONG ISOLATE}"
_POP: Final = "\N{POP DIRECTIONAL ISOLATE}"
_ISOLATED: Final = f"{_ISOLATE}([^{_ISOLATE}{_POP}]*){_POP}"


def quoted(text: str, limit: int = MAX_SHOWN) -> str:
    """Escape others' text as `printable` does and put it in quotation marks, so that it is seen where it ends.

    A quotation mark in it is spelled out. Text with right-to-left characters is isolated (UAX #9 §2.4), so that it does
    not reorder what stands beside it.
    """
    shown = printable(text, limit).replace('"', "<U+0022>")
    if any(unicodedata.bidirectional(character) in _RIGHT_TO_LEFT for character in shown):
        shown = f"{_ISOLATE}{shown}{_POP}"
    return f'"{shown}"'


def shown_line(line: str) -> str:
    """Escape one whole line for a terminal, as the last thing before it is written.

    It leaves alone what `printable` and `quoted` have escaped, and spells out what nobody has.
    """
    isolates = (found.span() for found in re.finditer(_ISOLATED, line))
    return _spelled_out(line, frozenset(place for start, end in isolates for place in (start, end - 1)))


def _spelled_out(text: str, kept: frozenset[int] = frozenset()) -> str:
    """Spell out what does not show as itself. kept: places in `text` of characters that stay."""
    misplaced = {found.start() for found in re.finditer(_MISPLACED, text)}
    shown: list[str] = []
    base, marks = False, 0  # whether there is something to attach to; the marks on it
    for place, character in enumerate(text):
        attached = character in _ATTACHED
        mark = not attached and unicodedata.category(character) in ("Mn", "Me")
        marks = marks + mark if mark or attached else 0
        spelled = place not in kept and (
            place in misplaced
            or re.match(_NOT_SHOWN, character) is not None
            or (not base and (mark or attached))
            or marks > _MAX_MARKS
        )
        shown.append(f"<U+{ord(character):04X}>" if spelled else character)
        base = not spelled and place not in kept and (base if mark or attached else character != " ")
    return "".join(shown)
