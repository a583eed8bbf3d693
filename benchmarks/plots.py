"""Draws the tables of benchmarks/RESULTS.md: one picture for each path, made from the text of the page alone.

    python benchmarks/plots.py            draw, and put the pictures into the page
    python benchmarks/plots.py --check    say whether the pictures are those of the page

A bar is a ratio: what was measured over what it was measured against, whose own ratio, 1, is the dashed line. A mark is the aim. The
stages of a sign-in are drawn one after the other. Of a soak, a bar is how long sign-ins took, and what memory a server had after the
warm-up and at the end. The same page gives the same bytes.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
RESULTS: Final = ROOT / "benchmarks" / "RESULTS.md"
PICTURES: Final = ROOT / "docs" / "images" / "numbers"
STAGES: Final = "stage"  # the first heading of the table of stages
LATENCIES: Final = "sign-ins"  # of the table of how long sign-ins took in a soak
MEMORY: Final = "PSS the same"  # the heading of a server's memory after the warm-up and at the end
WIDTH: Final = 820
MARGIN: Final = 16
NUMBER: Final = 72  # room for the number after the longest bar
FAST, MET, MISSED, NONE, BOARD = "#3d6fb4", "#2e7d4f", "#b3422f", "#3d6fb4", "#c58a2b"
_TIME: Final = re.compile(r"([0-9.]+) (s|ms|µs)")
_TWO_SIZES: Final = re.compile(r"([0-9.]+) / ([0-9.]+) MiB")
_UNITS: Final = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
_PICTURE: Final = re.compile(r"!\[[^]\n]*\]\(\.\./docs/images/numbers/[^)\n]*\)\n\n")

Cells = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page under one heading of the first level."""

    title: str
    body: str

    @property
    def file(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") + ".svg"

    def tables(self) -> Iterator[list[Cells]]:
        """Each table: its headings, then its rows."""
        rows: list[Cells] = []
        for line in [*self.body.splitlines(), ""]:
            if line.startswith("|"):
                rows.append(
                    tuple(
                        cell.strip().replace("`", "").replace("**", "") for cell in line.strip("|").split("|")
                    )
                )
            elif rows:
                yield [rows[0], *rows[2:]]
                rows = []


def sections(page: str) -> list[Section]:
    parts = re.split(r"^# ", page, flags=re.MULTILINE)[1:]
    return [Section(title=title, body=body) for title, _, body in (part.partition("\n") for part in parts)]


def picture(section: Section) -> str | None:
    """The section's picture; None for one without ratios and stages."""
    drawn: list[str] = []
    height = 34
    for headings, *rows in section.tables():
        if headings[0] == STAGES:
            part, height = _stages(headings, rows, height)
        elif headings[0] == LATENCIES:
            part, height = _latencies(headings, rows, height)
        elif MEMORY in headings:
            part, height = _memory(headings, rows, height)
        else:
            part, height = _ratios(headings, rows, height)
        drawn += part
    if not drawn:
        return None
    title = escape(section.title)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height + 8}" role="img" aria-label="{title}" font-family="sans-serif">',
            f"<title>{title}</title>",
            f'<rect width="{WIDTH}" height="{height + 8}" rx="6" fill="#ffffff"/>',
            _text(MARGIN, 24, section.title, 15, bold=True),
            *drawn,
            "</svg>\n",
        ]
    )


def _ratios(headings: Cells, rows: Sequence[Cells], top: int) -> tuple[list[str], int]:
    """A bar for each row that has a ratio."""
    if "ratio" not in headings:
        return [], top
    at = headings.index("ratio")
    found = [row for row in rows if row[at]]
    if not found:
        return [], top
    aims = [_aim(row[at + 1]) if headings[-1] == "aim" else None for row in found]
    longest = max(*(float(row[at]) for row in found), *(aim or 1.0 for aim in aims), 1.0)
    scale = (WIDTH - 2 * MARGIN - NUMBER) / longest
    begin, drawn = top, []
    for row, aim in zip(found, aims, strict=True):
        ratio = float(row[at])
        color = NONE if aim is None else MET if row[at + 1].endswith("yes") else MISSED
        drawn += [
            _text(MARGIN, top + 16, f"{row[0]}: {row[1]}", 12),
            _text(WIDTH - MARGIN, top + 16, f"beside {row[2]}: {row[3]}", 11, end=True, faint=True),
            f'<rect x="{MARGIN}" y="{top + 21}" width="{ratio * scale:.1f}" height="12" fill="{color}"/>',
            _text(MARGIN + ratio * scale + 6, top + 31, f"{ratio:.2f}", 11),
        ]
        if aim is not None:
            drawn.append(_line(MARGIN + aim * scale, top + 18, top + 36, "#111111"))
        top += 42
    drawn.append(_line(MARGIN + scale, begin + 4, top, "#888888", dashed=True))
    drawn.append(
        _text(MARGIN, top + 12, "dashed: 1, what it is measured against; black: the aim", 10, faint=True)
    )
    return drawn, top + 18


def _aim(cell: str) -> float | None:
    """The aim of a ratio; None where there is none, or where it is a size."""
    found = re.fullmatch(r"at most ([0-9.]+): .*", cell)
    return float(found[1]) if found else None


def _stages(headings: Cells, rows: Sequence[Cells], top: int) -> tuple[list[str], int]:
    """When each stage began, as a step after the one before it, for each machine."""
    found = [row for row in rows if all(_TIME.fullmatch(cell) for cell in row[1:]) and " " not in row[0]]
    if not found:
        return [], top
    longest = max(_seconds(cell) for row in found for cell in row[1:])
    left = 170
    scale = (WIDTH - left - MARGIN - NUMBER) / longest
    drawn, top = [], top + 10
    before = [0.0, 0.0]
    for row in found:
        drawn.append(_text(left - 8, top + 14, row[0], 12, end=True))
        for number, (cell, color) in enumerate(zip(row[1:], (FAST, BOARD), strict=True)):
            until = _seconds(cell)
            begun = min(before[number], until)
            drawn += [
                f'<rect x="{left + begun * scale:.1f}" y="{top + 2 + number * 10}" width="{max(1.0, (until - begun) * scale):.1f}" height="8" fill="{color}"/>',
                _text(left + until * scale + 6, top + 10 + number * 10, cell, 9, faint=True),
            ]
            before[number] = until
        top += 26
    for number, (heading, color) in enumerate(zip(headings[1:], (FAST, BOARD), strict=True)):
        drawn += [
            f'<rect x="{left + number * 300}" y="{top + 6}" width="10" height="10" fill="{color}"/>',
            _text(left + 16 + number * 300, top + 15, heading, 11),
        ]
    return drawn, top + 26


def _latencies(headings: Cells, rows: Sequence[Cells], top: int) -> tuple[list[str], int]:
    """A bar for each part of the sign-ins of a soak: how long it took at most."""
    found = [
        (f"{row[0]} sign-ins, {heading}", cell, _seconds(cell), FAST)
        for row in rows
        for heading, cell in zip(headings, row, strict=True)
        if _TIME.fullmatch(cell)
    ]
    return _bars(found, top)


def _memory(headings: Cells, rows: Sequence[Cells], top: int) -> tuple[list[str], int]:
    """Two bars for each server of a soak: its memory (PSS) after the warm-up, and at the end."""
    found = []
    for row in rows:
        sizes = _TWO_SIZES.fullmatch(row[headings.index(MEMORY)])
        assert sizes is not None
        for when, size, color in zip(
            ("after the warm-up", "at the end"), sizes.groups(), (FAST, MET), strict=True
        ):
            found.append((f"{row[0]}: memory (PSS) {when}", f"{size} MiB", float(size), color))
    return _bars(found, top)


def _bars(found: Sequence[tuple[str, str, float, str]], top: int) -> tuple[list[str], int]:
    """A bar for each (name, number as it is written, number, color), on one scale."""
    left, drawn, top = 310, [], top + 10
    scale = (WIDTH - left - MARGIN - NUMBER) / max(number for _, _, number, _ in found)
    for name, written, number, color in found:
        drawn += [
            _text(left - 8, top + 12, name, 12, end=True),
            f'<rect x="{left}" y="{top + 2}" width="{number * scale:.1f}" height="12" fill="{color}"/>',
            _text(left + number * scale + 6, top + 12, written, 11),
        ]
        top += 20
    return drawn, top + 6


def _seconds(cell: str) -> float:
    found = _TIME.fullmatch(cell)
    assert found is not None
    return float(found[1]) * _UNITS[found[2]]


def _text(
    x: float, y: float, text: str, size: int, *, bold: bool = False, end: bool = False, faint: bool = False
) -> str:
    style = (' font-weight="bold"' if bold else "") + (' text-anchor="end"' if end else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{"#666666" if faint else "#111111"}"{style}>{escape(text)}</text>'


def _line(x: float, y1: int, y2: int, color: str, *, dashed: bool = False) -> str:
    style = ' stroke-dasharray="3 3"' if dashed else ' stroke-width="2"'
    return f'<line x1="{x:.1f}" y1="{y1}" x2="{x:.1f}" y2="{y2}" stroke="{color}"{style}/>'


def drawn(page: str) -> tuple[str, dict[str, str]]:
    """The page with its pictures, and the pictures by file."""
    files, parts = {}, []
    for section in sections(_PICTURE.sub("", page)):
        svg, body = picture(section), section.body
        if svg is not None:
            files[section.file] = svg
            at = body.index("\n|") + 1  # before the first table
            against = ", over what it was measured against" if "| ratio |" in body else ""
            shown = f"![{section.title}: what was measured{against}](../docs/images/numbers/{section.file})"
            body = f"{body[:at]}{shown}\n\n{body[at:]}"
        parts.append(f"# {section.title}\n{body}")
    return "".join(parts), files


def draw() -> None:
    """Draw, and put the pictures into the page."""
    page, files = drawn(RESULTS.read_text(encoding="utf-8"))
    PICTURES.mkdir(parents=True, exist_ok=True)
    for each in PICTURES.glob("*.svg"):
        if each.name not in files:
            each.unlink()
    for name, svg in files.items():
        (PICTURES / name).write_text(svg, encoding="utf-8")
    RESULTS.write_text(page, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw the tables of benchmarks/RESULTS.md.")
    parser.add_argument("--check", action="store_true", help="only say whether the pictures are current")
    args = parser.parse_args()
    old = RESULTS.read_text(encoding="utf-8")
    page, files = drawn(old)
    if args.check:
        kept = {each.name: each.read_text(encoding="utf-8") for each in PICTURES.glob("*.svg")}
        if (page, files) != (old, kept):
            print(
                "docs/images/numbers is not made from benchmarks/RESULTS.md: python benchmarks/plots.py",
                file=sys.stderr,
            )
            return 1
        return 0
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
