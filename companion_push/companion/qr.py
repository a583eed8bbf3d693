"""The QR code of a FIDO URL, laid out for a terminal's size. Pure: sizes are arguments, text is the result.

A code is drawn with half blocks, two modules in a character cell, where the screen's encoding has them, and else in
ASCII, one module in two cells. Less error correction and a narrower quiet zone make a code smaller: a screen has no
scratches, and phones read codes with a quiet zone of two modules. The caption is beside the code or below it.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import zip_longest
from os import terminal_size
from typing import Final

import segno
from rich.cells import cell_len, chop_cells

from companion_push.companion.wording import must_say
from headless_passkey.hybrid.fido_url import PREFIX
from program_parts.domains import MAX_DOMAIN
from program_parts.names import printable, shown_line

_QUIET: Final = 4  # light modules around a code, by ISO/IEC 18004
_MIN_QUIET: Final = 2
_ERRORS: Final = ("m", "l")  # of the error corrections, best first
_GAP: Final = 2  # columns between code and caption
_NARROWEST: Final = 24  # columns of a caption beside the code
_SCALE: Final = 8  # pixels of a module in a file
_DIFFERS: Final = "Phone differs? Cancel."  # `must_say`, where there is no room for it

# colours are set: cameras need light modules light, whatever the terminal's colours are
_LIGHT_ON_DARK, _LIGHT, _DARK, _OFF = "\x1b[97;40m", "\x1b[97;107m", "\x1b[30;40m", "\x1b[0m"

# the alternate screen, which has no scrollback; no cursor, and no wrapping of long lines
ENTER, CLEAR, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J", "\x1b[2J", "\x1b[2J\x1b[?7h\x1b[?25h\x1b[?1049l"


class Cells(Enum):
    """The characters that a code is drawn with."""

    HALF_BLOCKS = "half blocks"
    ASCII = "ASCII"

    @classmethod
    def of(cls, encoding: str) -> "Cells":
        """Choose the characters for a terminal's encoding."""
        try:
            "▀▄█".encode(encoding)
        except (UnicodeEncodeError, LookupError):
            return Cells.ASCII
        return Cells.HALF_BLOCKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """The text beside a code: device, kind of request, relying party, time left."""

    device: str  # as people know it, escaped
    asks: str  # sign in, create a passkey
    rp_id: str

    def lines(self, width: int, seconds: float) -> list[str]:
        """Write the caption in lines of `width` cells. seconds: until the code expires.

        The RP ID begins a line, so that no device name can move it, however a terminal draws that.
        """
        who, at = f"{shown_line(self.device)} asks to {self.asks}", f"at {printable(self.rp_id, MAX_DOMAIN)}"
        how = f"Scan this code with the phone's camera. {must_say(self.rp_id)}"
        return [*_wrap(who, width), *_wrap(at, width), "", *_wrap(how, width), "", _left(seconds)]

    def short_lines(self, width: int, seconds: float) -> list[str]:
        """Write the caption in three lines, or four where it is narrow. A long RP ID keeps its end, the registrable domain."""
        who = _cut(f"{shown_line(self.device)} asks to {self.asks}", width)
        at = printable(self.rp_id, MAX_DOMAIN)
        if cell_len(f"at {at}") > width:
            at = "…" + at[-max(1, width - 4) :]
        rest = f"{_left(seconds)}. {_DIFFERS}"
        return [who, f"at {at}", *([rest] if cell_len(rest) <= width else [_DIFFERS, _left(seconds)])]


@dataclass(frozen=True, slots=True)
class Picture:
    """A code as lines of one width, with colours."""

    lines: tuple[str, ...] = field(repr=False)
    size: terminal_size


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of code and caption on a screen."""

    picture: Picture
    caption: Callable[[float], Sequence[str]]  # called with the seconds left
    beside: bool  # the caption beside the code; else below it

    def frame(self, seconds: float) -> str:
        """Make the text that draws the layout over the previous one."""
        code, caption = self.picture.lines, tuple(self.caption(seconds))
        if not self.beside:
            return _from_the_top([*code, *caption])
        blank, gap = " " * self.picture.size.columns, " " * _GAP
        rows = zip_longest(code, caption)
        return _from_the_top([(left or blank) + (f"{gap}{right}" if right else "") for left, right in rows])


@dataclass(frozen=True, slots=True)
class Code:
    """The QR code of one FIDO URL, and as secret as the URL."""

    url: str = field(repr=False)

    def png(self) -> bytes:
        """Make a PNG file."""
        file = io.BytesIO()
        _encode(self.url, _ERRORS[0]).save(file, kind="png", scale=_SCALE, border=_QUIET)
        return file.getvalue()

    def modules(self) -> list[str]:
        """The code's rows with their quiet zone, a character for each module: 1 is dark."""
        rows = _encode(self.url, _ERRORS[0]).matrix_iter(border=_QUIET)
        return ["".join("1" if dark else "0" for dark in row) for row in rows]

    def pictures(self, cells: Cells) -> Iterator[Picture]:
        """Make pictures, from the most readable to the smallest."""
        for quiet in range(_QUIET, _MIN_QUIET - 1, -1):
            for error in _ERRORS:
                yield _draw(_encode(self.url, error), quiet, cells)

    def lay_out(self, size: terminal_size, cells: Cells, caption: Caption) -> Layout | None:
        """Choose the best picture and the longest caption that fit a screen together; None when none fits."""
        pictures = tuple(self.pictures(cells))
        for write in (caption.lines, caption.short_lines):
            for picture in pictures:
                width = size.columns - picture.size.columns - _GAP
                if (
                    picture.size.lines <= size.lines
                    and width >= _NARROWEST
                    and len(write(width, 0)) <= size.lines
                ):
                    return Layout(picture, partial(write, width), beside=True)
                below = picture.size.lines + len(write(size.columns, 0))
                if picture.size.columns <= size.columns and below <= size.lines:
                    return Layout(picture, partial(write, size.columns), beside=False)
        return None

    def least(self, cells: Cells) -> terminal_size:
        """The smallest screen on which code and caption fit."""
        *_, smallest = self.pictures(cells)
        return terminal_size((smallest.size.columns, smallest.size.lines + 3))


def too_small(size: terminal_size, least: terminal_size, caption: Caption, file: str, seconds: float) -> str:
    """Make the text for a screen that is too small: the size needed, and the file that holds the code instead."""
    lines = [
        *_wrap(
            f"This terminal has {size.columns} columns and {size.lines} rows. The QR code needs {least.columns} and"
            f" {least.lines}: make it larger, or open the picture {printable(file, 4096)}",
            size.columns,
        ),
        "",
        *caption.short_lines(size.columns, seconds),
    ]
    return _from_the_top(lines[: size.lines])


def _encode(url: str, error: str) -> segno.QRCode:
    """Encode in two segments, prefix and digits: numeric mode needs less than half the space."""
    prefix, digits = url[: len(PREFIX)], url[len(PREFIX) :]
    return segno.make([prefix.upper(), digits], micro=False, error=error, boost_error=False)  # type: ignore[arg-type]  # a list of segments will do


def _draw(code: segno.QRCode, quiet: int, cells: Cells) -> Picture:
    rows = [[bool(dark) for dark in row] for row in code.matrix_iter(border=quiet)]
    width = len(rows[0])
    if cells is Cells.ASCII:
        lines = ["".join(f"{_DARK}  " if dark else f"{_LIGHT}##" for dark in row) + _OFF for row in rows]
        return Picture(tuple(lines), terminal_size((2 * width, len(lines))))
    rows += [[False] * width] * (len(rows) % 2)
    lines = [
        _LIGHT_ON_DARK + "".join(map(_half_block, upper, lower)) + _OFF
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    ]
    return Picture(tuple(lines), terminal_size((width, len(lines))))


def _half_block(upper: bool, lower: bool) -> str:  # noqa: FBT001  dark or not
    return "█▀▄ "[2 * upper + lower]


def _from_the_top(lines: Sequence[str]) -> str:
    """Draw from the top, and leave the cursor where the next output scrolls nothing."""
    return "".join(f"\x1b[{row};1H\x1b[K{line}" for row, line in enumerate(lines, 1)) + "\x1b[H"


def _left(seconds: float) -> str:
    whole = max(0, int(seconds))
    return f"{whole // 60}:{whole % 60:02} left"


def _wrap(text: str, width: int) -> list[str]:
    """Wrap text to `width` cells; a longer word is broken."""
    lines, line = [], ""
    for word in text.split(" "):
        for part, piece in enumerate(chop_cells(word, max(2, width)) or [""]):
            joined = f"{line} {piece}" if line and part == 0 else piece
            if part > 0 or cell_len(joined) > width:
                lines.append(line)
                joined = piece
            line = joined
    return [*lines, line]


def _cut(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    return (chop_cells(text, max(1, width - 1)) or [""])[0] + "…"
