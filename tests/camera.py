"""A terminal that shows what a program draws, and a camera in front of it that reads QR codes."""

import codecs
import struct
import zlib
from typing import Any, Final

import pyte
import zxingcpp

WIDTH, HEIGHT = 8, 16  # pixels of a character cell
_BLACK, _GREY, _WHITE = 0, 128, 255
_COLOURS: Final = {"black": _BLACK, "white": _GREY, "brightwhite": _WHITE}


class Screen:
    """A terminal of some size. light: dark text on a light ground, as some like it."""

    def __init__(self, columns: int, rows: int, *, encoding: str = "utf-8", light: bool = False) -> None:
        self._screen = pyte.Screen(columns, rows)
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        self._stream = pyte.Stream(self._screen)
        self._ground, self._text = (_WHITE, _BLACK) if light else (_BLACK, _GREY)

    def feed(self, data: bytes) -> None:
        """What the program has written."""
        self._stream.feed(self._decoder.decode(data))

    def resize(self, columns: int, rows: int) -> None:
        self._screen.resize(rows, columns)

    @property
    def lines(self) -> list[str]:
        """The text, without the spaces behind it."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """All the words on it, whatever lines they stand on, without what codes are drawn with."""
        return " ".join(" ".join(self.lines).translate(dict.fromkeys(map(ord, "█▀▄#"), " ")).split())

    def read(self) -> str | None:
        """What the QR code on the screen says; None when no code can be read."""
        return decode(self._pixels(), self._screen.lines * HEIGHT, self._screen.columns * WIDTH)

    def _pixels(self) -> bytes:
        pixels = bytearray()
        for row in range(self._screen.lines):
            cells = [self._cell(self._screen.buffer[row][column]) for column in range(self._screen.columns)]
            for line in range(HEIGHT):
                for ground, ink, shape in cells:
                    pixels += _line(ground, ink, shape, line)
        return bytes(pixels)

    def _cell(self, cell: Any) -> tuple[int, int, str]:
        ground = _COLOURS.get(cell.bg, self._ground)
        ink = _COLOURS.get(cell.fg, self._text)
        return (ink, ground, cell.data) if cell.reverse else (ground, ink, cell.data)


def read_file(content: bytes) -> str | None:
    """What the QR code in a picture file says: a PNG in black and white."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height, depth, colours = struct.unpack_from(">IIBB", content, 16)
    assert (depth, colours) == (1, 0)
    start = content.index(b"IDAT")
    (size,) = struct.unpack_from(">I", content, start - 4)
    data = zlib.decompress(content[start + 4 : start + 4 + size])
    pixels, stride = bytearray(), (width + 7) // 8 + 1
    above = [0] * (stride - 1)
    for row in range(height):
        kind, *line = data[row * stride : (row + 1) * stride]
        assert kind in (0, 2)  # as it is, or as it differs from the line above
        above = (
            [(here + there) & 0xFF for here, there in zip(line, above, strict=True)] if kind == 2 else line
        )
        bits = "".join(f"{byte:08b}" for byte in above)[:width]
        pixels += bytes(_WHITE if bit == "1" else _BLACK for bit in bits)
    return decode(bytes(pixels), height, width)


def decode(pixels: bytes, height: int, width: int) -> str | None:
    """What the QR code in a picture says. pixels: a byte of grey each, row by row."""
    image = memoryview(pixels).cast("B", (height, width))
    found = zxingcpp.read_barcodes(image, try_invert=False)
    return next((each.text for each in found), None)


def _line(ground: int, ink: int, shape: str, line: int) -> bytes:
    """The pixels of one line of a cell."""
    if shape == " ":
        return bytes([ground]) * WIDTH
    if shape == "█" or (shape == "▀" and line < HEIGHT // 2) or (shape == "▄" and line >= HEIGHT // 2):
        return bytes([ink]) * WIDTH
    if shape in "▀▄":
        return bytes([ground]) * WIDTH
    if 3 <= line < HEIGHT - 3:  # some letter
        return bytes([ground, *[ink] * (WIDTH - 2), ground])
    return bytes([ground]) * WIDTH
