"""A display that nobody looks at, and a camera in front of it that reads QR codes."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from programs import Program

from tests.camera import decode

XVFB: Final = "/usr/bin/Xvfb"
_PIXEL: Final = 4  # bytes: blue, green, red, and one without a meaning


@dataclass(frozen=True)
class Display:
    """An X server that draws into a file: Xvfb."""

    name: str  # the value of DISPLAY
    picture: Path  # what is shown now, as an X window dump of version 7

    @classmethod
    async def open(cls, folder: Path) -> tuple["Display", Program]:
        """Start the server; the caller ends the program."""
        server = await Program.start(
            "Xvfb",
            XVFB,
            "-displayfd",
            "1",
            "-fbdir",
            folder,
            "-screen",
            "0",
            "1000x800x24",
            "-nolisten",
            "tcp",
        )
        number = await server.line()
        return cls(f":{number}", folder / "Xvfb_screen0"), server

    def code(self) -> str | None:
        """What the QR code that is shown says; None when none can be read."""
        dump = self.picture.read_bytes()
        size, _, _, _, _, height, *_ = header = struct.unpack_from(">25I", dump)
        stride, colours = header[12], header[19]
        start = size + 12 * colours
        greens = dump[start + 1 : start + height * stride : _PIXEL]
        return decode(greens, height, stride // _PIXEL)
