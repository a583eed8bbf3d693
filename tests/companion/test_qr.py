"""A QR code on a screen of any size: read back from its cells by a decoder that knows nothing of us."""

from os import terminal_size

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion_push.companion.qr import ENTER, Caption, Cells, Code, too_small
from tests.camera import Screen, read_file
from tests.companion.device import transaction

URL = transaction(time=1_800_000_000).url.encode()
CODE = Code(URL)
CAPTION = Caption(device="Kitchen hub", asks="sign in", rp_id="home.example")
ENCODINGS = {Cells.HALF_BLOCKS: "utf-8", Cells.ASCII: "ascii"}


def shown(
    columns: int,
    rows: int,
    cells: Cells,
    caption: Caption = CAPTION,
    *,
    code: Code = CODE,
    light: bool = False,
) -> Screen | None:
    """A screen with the code on it; None where it does not fit."""
    layout = code.lay_out(terminal_size((columns, rows)), cells, caption)
    if layout is None:
        return None
    screen = Screen(columns, rows, light=light)
    # whatever was there is gone
    screen.feed((ENTER + "x" * columns * rows + layout.frame(271.9)).encode(ENCODINGS[cells]))
    return screen


SIZES = [
    (80, 24, Cells.HALF_BLOCKS),
    (50, 24, Cells.HALF_BLOCKS),
    (37, 22, Cells.HALF_BLOCKS),
    (64, 19, Cells.HALF_BLOCKS),
    (200, 60, Cells.HALF_BLOCKS),
    (80, 48, Cells.ASCII),
    (74, 40, Cells.ASCII),
    (120, 45, Cells.ASCII),
    (100, 37, Cells.ASCII),
]


@pytest.mark.parametrize("ground", ["dark", "light"])
@pytest.mark.parametrize(
    ("columns", "rows", "cells"),
    SIZES,
    ids=[f"{columns}x{rows} {cells.value}" for columns, rows, cells in SIZES],
)
def test_a_camera_reads_the_url_from_the_screen(columns: int, rows: int, cells: Cells, ground: str) -> None:
    screen = shown(columns, rows, cells, light=ground == "light")
    assert screen is not None
    assert screen.read() == URL
    assert "Kitchen hub asks to sign in at home.example" in screen.text
    assert "4:31 left" in screen.text
    assert "x" not in screen.text.replace("example", "")


@pytest.mark.parametrize(
    ("columns", "rows", "cells"),
    [(36, 60, Cells.HALF_BLOCKS), (80, 18, Cells.HALF_BLOCKS), (80, 24, Cells.ASCII), (73, 60, Cells.ASCII)],
    ids=["narrow", "low", "ASCII at 80x24", "narrow ASCII"],
)
def test_a_code_that_does_not_fit_is_not_drawn(columns: int, rows: int, cells: Cells) -> None:
    assert shown(columns, rows, cells) is None


@settings(max_examples=40)
@given(st.integers(1, 120), st.integers(1, 60), st.sampled_from(Cells))
def test_what_is_laid_out_fits_and_is_read(columns: int, rows: int, cells: Cells) -> None:
    least = CODE.least(cells)
    screen = shown(columns, rows, cells)
    if columns >= least.columns and rows >= least.lines:
        assert screen is not None
    if screen is not None:
        assert screen.read() == URL
        assert "4:31 left" in screen.text


def test_the_least_size_is_that_of_the_smallest_code_and_three_lines() -> None:
    assert CODE.least(Cells.HALF_BLOCKS) == (37, 22)
    assert CODE.least(Cells.ASCII) == (74, 40)


@pytest.mark.parametrize("length", [40, 170, 176, 250, 300])
def test_a_longer_url_is_a_larger_code_and_is_read(length: int) -> None:
    code = Code("FIDO:/" + ("1234567890" * 40)[:length])
    screen = shown(100, 60, Cells.HALF_BLOCKS, code=code)
    assert screen is not None
    assert screen.read() == code.url


@pytest.mark.parametrize(
    ("encoding", "cells"),
    [
        ("utf-8", Cells.HALF_BLOCKS),
        ("UTF-8", Cells.HALF_BLOCKS),
        ("cp437", Cells.HALF_BLOCKS),
        ("koi8-r", Cells.HALF_BLOCKS),
        ("ascii", Cells.ASCII),
        ("iso8859-1", Cells.ASCII),
        ("ANSI_X3.4-1968", Cells.ASCII),
        ("no such thing", Cells.ASCII),
    ],
)
def test_half_blocks_are_used_where_the_encoding_has_them(encoding: str, cells: Cells) -> None:
    assert Cells.of(encoding) is cells


def test_half_blocks_of_an_older_encoding_are_read() -> None:
    layout = CODE.lay_out(terminal_size((80, 24)), Cells.of("cp437"), CAPTION)
    assert layout is not None
    screen = Screen(80, 24, encoding="cp437")
    screen.feed(layout.frame(10).encode("cp437"))
    assert screen.read() == URL


@pytest.mark.threat("T4")
@pytest.mark.parametrize(
    "device",
    [
        "x" * 64,
        "冷蔵庫" * 21,
        "Ada \U0001f469\u200d\U0001f4bb",
        "\x1b[2J\x1b[H",
        "a\u202eb",
        "many short words " * 3 + "x",
    ],
    ids=["long", "wide", "emoji", "escape", "override", "words"],
)
@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (50, 24), (37, 22)], ids=["80x24", "50x24", "37x22"])
def test_no_name_moves_the_code(device: str, columns: int, rows: int) -> None:
    screen = shown(
        columns, rows, Cells.HALF_BLOCKS, Caption(device=device, asks="sign in", rp_id="home.example")
    )
    assert screen is not None
    assert screen.read() == URL
    assert "at home.example" in screen.text
    assert "4:31 left" in screen.text


@pytest.mark.threat("T4")
def test_beside_the_code_it_says_what_the_phone_must_name() -> None:
    wide, narrow = shown(100, 30, Cells.HALF_BLOCKS), shown(37, 22, Cells.HALF_BLOCKS)
    assert wide is not None
    assert narrow is not None
    said = " ".join(" ".join(CAPTION.lines(200, 61)).split())
    assert 'Your phone must now say "home.example". If it names anything else, cancel.' in said
    assert "If it names" in wide.text
    assert "Phone differs? Cancel." in narrow.text
    assert "at home.example" in narrow.text


@pytest.mark.threat("T4")
def test_of_an_rp_id_that_is_too_long_its_end_is_shown() -> None:
    """Its end says whose it is."""
    rp_id = "login.bank.example." + "sub." * 20 + "evil.test"
    screen = shown(37, 22, Cells.HALF_BLOCKS, Caption(device="hub", asks="sign in", rp_id=rp_id))
    assert screen is not None
    assert any(line.startswith("at …") and line.endswith(".evil.test") for line in screen.lines)


def test_on_a_screen_that_is_too_small_it_says_how_large_it_must_be_and_where_the_picture_is() -> None:
    size, least = terminal_size((50, 12)), CODE.least(Cells.HALF_BLOCKS)
    screen = Screen(50, 12)
    screen.feed((ENTER + too_small(size, least, CAPTION, "/home/ada/fido-url.png", 61)).encode())
    assert screen.read() is None
    assert (
        "This terminal has 50 columns and 12 rows. The QR code needs 37 and 22: make it larger, or open the picture"
        " /home/ada/fido-url.png" in screen.text
    )
    assert "Kitchen hub asks to sign in at home.example 1:01 left" in screen.text


@given(st.integers(4, 100), st.integers(1, 30))
@settings(max_examples=30)  # a terminal is slow
def test_any_screen_can_be_told_that_it_is_too_small(columns: int, rows: int) -> None:
    screen = Screen(columns, rows)
    least = CODE.least(Cells.ASCII)
    told = too_small(terminal_size((columns, rows)), least, CAPTION, "/a/file.png", 5)
    screen.feed((ENTER + told).encode())
    assert screen.lines[0].startswith("This")


@pytest.mark.threat("T11")
def test_the_file_holds_the_code_and_a_repr_does_not() -> None:
    assert read_file(CODE.png()) == URL
    layout = CODE.lay_out(terminal_size((80, 24)), Cells.HALF_BLOCKS, CAPTION)
    assert "FIDO" not in repr((CODE, layout))
    assert "█" not in repr((CODE, layout))
