"""How an approved FIDO URL gets to a phone's own passkey prompt.

An opener is entered when the user has agreed and the claim is won. Its body runs once the URL is handed over;
leaving it waits for what comes of that, where the opener can know. The URL is a secret: it goes to a child
process on stdin. The system's launcher is the one exception, since it takes nothing but an argument.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Protocol, Self

from companion_push.companion import qr
from companion_push.companion.phone import Announced, SoftwarePhone
from companion_push.companion.terminal import Terminal
from headless_passkey.command_line import UsageError
from headless_passkey.errors import TransportError
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.private_file import remove_private, write_private

_LAUNCH_TIMEOUT: Final = 30.0  # seconds a launcher has to hand over a URL
_KILL_TIMEOUT: Final = 3.0  # seconds a child has to end when asked to

_ASKS: Final = {RequestKind.GET_ASSERTION: "sign in", RequestKind.MAKE_CREDENTIAL: "create a passkey"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """An approved request, as an opener gets it."""

    url: str = field(repr=False)
    device: str  # by its label
    announced: Announced
    seconds: float  # until it is worth nothing
    over: asyncio.Event  # set when the request is over, or another companion's


class Opener(Protocol):
    """Something that brings a FIDO URL to a phone."""

    @property
    def handed_over(self) -> str:
        """What has happened once `open` has been entered, and no more than that, for people."""

    @property
    def stays(self) -> bool:
        """Whether what was handed over ends with this process, and the opener waits for it as long as the request lives."""

    def open(self, opening: Opening) -> contextlib.AbstractAsyncContextManager[None]:
        """Hand the URL over, run the body, and wait for the end where that can be seen.

        Raises what went wrong: `TransportError` when the URL could not be handed over.
        """


@dataclass(frozen=True, slots=True)
class SystemLauncher:
    """The system's own way of opening a URL: for a companion that runs on the phone itself, or beside it.

    The URL stands in the launcher's argument list, where processes of the same user can read it for a moment.
    """

    command: tuple[str, ...]
    handed_over: ClassVar[str] = "handed to this system's URL launcher"
    stays: ClassVar[bool] = False  # the phone's system may suspend us meanwhile

    @classmethod
    def find(cls, platform: str = sys.platform) -> Self:
        """This system's launcher; `UsageError` when there is none."""
        names: tuple[tuple[str, ...], ...] = (("xdg-open",), ("termux-open-url",))
        if platform == "darwin":
            names = (("open",),)
        elif platform == "win32":
            names = (("rundll32", "url.dll,FileProtocolHandler"),)  # what `start` does, without a shell
        for name, *rest in names:
            if path := shutil.which(name):
                return cls((path, *rest))
        raise UsageError(
            f"this system has no {' or '.join(name for name, *_ in names)}: choose another opener"
        )

    @contextlib.asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[None]:
        async with _child([*self.command, opening.url], None) as process:
            await _ended_well(process, "the system's launcher", _LAUNCH_TIMEOUT)
        yield


@dataclass(frozen=True, slots=True)
class Command:
    """A program of the user's, with the URL as one line on its stdin."""

    words: tuple[str, ...]
    handed_over: ClassVar[str] = "handed to the opener command"
    stays: ClassVar[bool] = False  # it has the URL, whatever becomes of us

    @classmethod
    def parse(cls, line: str) -> Self:
        """From one line, split as a shell would, with no shell involved; `UsageError` when it is none."""
        try:
            words = tuple(shlex.split(line))
        except ValueError as error:
            raise UsageError(f"the opener command cannot be read: {error}") from error
        if not words or shutil.which(words[0]) is None:
            raise UsageError("the opener command names no program that can be found")
        return cls(words)

    @contextlib.asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[None]:
        async with _child(self.words, f"{opening.url}\n".encode("ascii")) as process:
            yield
            await _ended_well(process, "the opener command", opening.seconds)


@dataclass(slots=True, kw_only=True)
class QrPicture:
    """A QR code for the camera of any phone, as long as the request lives: on a terminal where it fits, else in a file."""

    screen: Terminal | None  # None: there is no terminal to draw on
    file: Path  # in a directory that is the user's own
    on_file: Callable[[Path], None]  # told where the picture is, when it is on no terminal
    on_end: Callable[[], None] = lambda: None  # called when the terminal is its owner's again
    tick: float = 1.0  # seconds between two looks at clock and terminal
    showing: bool = field(default=False, init=False)  # whether the terminal's other screen is taken
    handed_over: ClassVar[str] = "the QR code is there to be scanned"
    stays: ClassVar[bool] = True

    @contextlib.asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[None]:
        code, clock = qr.Code(opening.url), asyncio.get_running_loop().time
        caption = qr.Caption(
            device=opening.device, asks=_ASKS[opening.announced.kind], rp_id=opening.announced.rp_id
        )
        ends, drawn = clock() + opening.seconds, None
        try:
            if self.screen is None:
                write_private(self.file, code.png())
                self.on_file(self.file)
            else:
                self.showing = True
                drawn = await self._draw(self.screen, code, caption, None, opening.seconds)
            yield
            while (left := ends - clock()) > 0 and not opening.over.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(self.tick, left)):
                        await opening.over.wait()
                        break
                if self.screen is not None:
                    drawn = await self._draw(self.screen, code, caption, drawn, ends - clock())
        finally:
            self.showing = False
            if self.screen is not None:
                self.screen.restore(qr.LEAVE)
            self.forget()
            self.on_end()

    def forget(self) -> None:
        """Remove the picture's file, also one that a run left behind which was ended by force."""
        if self.file.exists():
            remove_private(self.file)

    async def _draw(
        self,
        screen: Terminal,
        code: qr.Code,
        caption: qr.Caption,
        drawn: os.terminal_size | None,
        seconds: float,
    ) -> os.terminal_size:
        """Draw for the size that the terminal has now, and give that. drawn: the size before."""
        size, cells = screen.size(), qr.Cells.of(screen.encoding)
        layout = code.lay_out(size, cells, caption)
        if layout is not None:
            frame = layout.frame(seconds)
        else:
            if not self.file.exists():
                write_private(self.file, code.png())
            frame = qr.too_small(size, code.least(cells), caption, str(self.file), seconds)
        start = qr.ENTER if drawn is None else "" if drawn == size else qr.CLEAR
        await screen.draw(start + frame)
        return size


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltInPhone:
    """The software phone, in this process: for demonstrations and tests."""

    make_phone: Callable[[], SoftwarePhone]
    handed_over: ClassVar[str] = "handed to the phone"
    stays: ClassVar[bool] = True

    @contextlib.asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[None]:
        answer = self.make_phone().answer(
            opening.url, timeout=opening.seconds, announced=opening.announced, withdrawn=opening.over
        )
        answering = asyncio.create_task(answer)
        try:
            yield
            await answering
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)


@contextlib.asynccontextmanager
async def _child(words: Sequence[str], line: bytes | None) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running child that was given `line` and nothing else on stdin; it does not outlive the context."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE if line is not None else asyncio.subprocess.DEVNULL,
            stdout=2,  # our stdout is data
        )
    except OSError as error:
        # not "from error": its text may hold the arguments
        raise TransportError(f"{words[0]} cannot be started: {error.strerror}") from None
    try:
        if process.stdin is not None and line is not None:
            with contextlib.suppress(ConnectionError):  # a child that does not read says so by its status
                process.stdin.write(line)
                await process.stdin.drain()
            process.stdin.close()
        yield process
    finally:
        await _end(process)


async def _ended_well(process: asyncio.subprocess.Process, what: str, timeout: float) -> None:  # noqa: ASYNC109
    try:
        async with asyncio.timeout(timeout):
            status = await process.wait()
    except TimeoutError as error:
        raise TransportError(f"{what} did not end within {timeout:.0f} s") from error
    if status != 0:
        raise TransportError(f"{what} ended with status {status}")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_KILL_TIMEOUT):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
