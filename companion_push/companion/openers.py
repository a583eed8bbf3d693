"""Openers: they bring an approved FIDO URL to a phone's own passkey prompt.

An opener's context is entered after consent and claim. Its body runs once the URL is handed over; its exit waits for
the result, where the opener can know it. The URL is a secret, so a child process gets it on stdin. The system's
launcher is an exception: it takes arguments only.
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
from typing import Any, ClassVar, Final, Protocol, Self

from companion_push.companion import qr
from companion_push.companion.phone import Announced, SoftwarePhone
from companion_push.companion.wording import ASKS
from headless_passkey.errors import SetupError, SetupReason, TransportError, UsageError
from headless_passkey.mends import mend
from headless_passkey.process.private_file import remove_private, write_private
from headless_passkey.process.signals import terminal_lent
from headless_passkey.process.tasks import end_quietly
from headless_passkey.process.terminal import Terminal

_LAUNCH_TIMEOUT: Final = 30.0  # seconds that a launcher may run
_OVER_TIMEOUT: Final = 5.0  # seconds that a command may go on after its request has ended
_KILL_TIMEOUT: Final = 3.0  # seconds that a child may take to end after SIGTERM


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """An approved request for an opener."""

    url: str = field(repr=False)
    device: str  # as people know it (`wording.known_as`), escaped
    announced: Announced
    seconds: float  # until the URL expires
    over: asyncio.Event  # set when the request has ended, or another companion has it


class Opener(Protocol):
    """Brings a FIDO URL to a phone."""

    @property
    def handed_over(self) -> str:
        """A sentence that says exactly what has happened when the context of `open` is entered."""

    @property
    def phone_checks(self) -> bool:
        """Whether the phone itself refuses another relying party than was announced, or the opener says what it must name.

        Otherwise the user is told to compare (`wording.must_say`).
        """

    @property
    def stays(self) -> bool:
        """Whether the opener must stay: the URL's use ends with this process, and the opener waits for its end."""

    def open(self, opening: Opening) -> contextlib.AbstractAsyncContextManager[None]:
        """Hand the URL over, run the body, and wait for the result where the opener can know it.

        Raises what went wrong: `TransportError` when the URL could not be handed over.
        """


@dataclass(frozen=True, slots=True)
class SystemLauncher:
    """Opens a URL with the system's launcher, for a companion that runs on the phone itself.

    The launcher takes the URL as an argument, which every user of this machine can read for a moment (docs/security.md, T8).
    """

    command: tuple[str, ...]
    handed_over: ClassVar[str] = "handed to this system's URL launcher"
    phone_checks: ClassVar[bool] = False
    stays: ClassVar[bool] = False  # the phone's system may suspend this process

    @classmethod
    def find(cls, platform: str = sys.platform) -> Self:
        """Find this system's launcher; `UsageError` when there is none."""
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
    """Runs a program of the user's choice, with the URL as one line on its stdin; ends it when the request has ended."""

    words: tuple[str, ...]
    handed_over: ClassVar[str] = "handed to the opener command"
    phone_checks: ClassVar[bool] = False
    stays: ClassVar[bool] = False  # the program has the URL, also after this process has ended

    @classmethod
    def parse(cls, line: str) -> Self:
        """Parse a command line by a shell's rules, without running a shell; `UsageError` when it is malformed."""
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
            await _ended_well(process, "the opener command", opening.seconds, over=opening.over)


@dataclass(slots=True, kw_only=True)
class QrPicture:
    """Shows a QR code for any phone's camera while the request is open: on a terminal where it fits, else in a file."""

    screen: Terminal | None  # None: without a terminal
    file: Path  # in a private directory
    on_file: Callable[[Path, str], None]  # called with file and RP ID when the picture is not on a terminal
    on_end: Callable[[], None] = lambda: None  # called when the terminal's main screen is back
    tick: float = 1.0  # seconds between two checks of clock and window size
    showing: bool = field(default=False, init=False)  # whether the terminal's alternate screen is in use
    handed_over: ClassVar[str] = "the QR code is there to be scanned"
    phone_checks: ClassVar[bool] = True  # beside the code it says so
    stays: ClassVar[bool] = True

    @contextlib.asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[None]:
        code, clock = qr.Code(opening.url), asyncio.get_running_loop().time
        caption = qr.Caption(
            device=opening.device, asks=ASKS[opening.announced.kind], rp_id=opening.announced.rp_id
        )
        ends, drawn, anew = clock() + opening.seconds, None, False

        def leave() -> None:
            if self.screen is not None:
                self.screen.restore(qr.LEAVE)

        def draw_anew() -> None:
            nonlocal anew
            anew = True

        with terminal_lent(give_back=leave, take_again=draw_anew):
            try:
                if self.screen is None:
                    self._write(code)
                    self.on_file(self.file, opening.announced.rp_id)
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
                        if anew:
                            drawn, anew = None, False
                        drawn = await self._draw(self.screen, code, caption, drawn, ends - clock())
            finally:
                self.showing = False
                leave()
                self.forget()
                self.on_end()

    def forget(self) -> None:
        """Remove the picture's file, also one that a killed run left."""
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
        """Draw for the terminal's current size, and return that. drawn: the size before."""
        size, cells = screen.size(), qr.Cells.of(screen.encoding)
        layout = code.lay_out(size, cells, caption)
        if layout is not None:
            frame = layout.frame(seconds)
        else:
            if not self.file.exists():
                self._write(code)
            frame = qr.too_small(size, code.least(cells), caption, str(self.file), seconds)
        start = qr.ENTER if drawn is None else "" if drawn == size else qr.CLEAR
        await screen.draw(start + frame)
        return size

    def _write(self, code: qr.Code) -> None:
        try:
            write_private(self.file, code.png())
        except SetupError as error:  # of the picture, and not of what this companion keeps
            full = error.reason is SetupReason.DISK_FULL
            reason = SetupReason.DISK_FULL if full else SetupReason.OUTPUT_UNWRITABLE
            raise SetupError(str(error), reason=reason, advice=mend(reason)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltInPhone:
    """Runs the software phone in this process, for demonstrations and tests."""

    phone: SoftwarePhone
    handed_over: ClassVar[str] = "handed to the phone"
    phone_checks: ClassVar[bool] = True
    stays: ClassVar[bool] = True

    @contextlib.asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[None]:
        answer = self.phone.answer(
            opening.url,
            timeout=opening.seconds,
            announced=opening.announced,
            withdrawn=opening.over,
            device=opening.device,
        )
        answering = asyncio.create_task(answer)
        try:
            yield
            await answering
        finally:
            await end_quietly(answering)


@contextlib.asynccontextmanager
async def _child(words: Sequence[str], line: bytes | None) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a child with `line` on its stdin; it is ended when the context exits."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE if line is not None else asyncio.subprocess.DEVNULL,
            stdout=2,  # this program's stdout is data
        )
    except OSError as error:
        # not "from error": its text may hold the arguments
        raise TransportError(f"{words[0]} cannot be started: {error.strerror}") from None
    try:
        if process.stdin is not None and line is not None:
            with contextlib.suppress(ConnectionError):  # a child that does not read: its exit status tells
                process.stdin.write(line)
                await process.stdin.drain()
            process.stdin.close()
        yield process
    finally:
        await _end(process)


async def _ended_well(
    process: asyncio.subprocess.Process,
    what: str,
    timeout: float,  # noqa: ASYNC109
    *,
    over: asyncio.Event | None = None,
) -> None:
    """Wait until a child ends by itself, which `_child` ends otherwise. over: when set, it has nothing left to do."""
    ended = asyncio.ensure_future(process.wait())
    waited_for: list[asyncio.Future[Any]] = [ended]
    if over is not None:
        waited_for.append(asyncio.ensure_future(over.wait()))
    try:
        await asyncio.wait(waited_for, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        is_over = over is not None and over.is_set()
        if not ended.done() and is_over:
            await asyncio.wait({ended}, timeout=_OVER_TIMEOUT)
    finally:
        await end_quietly(*waited_for)
    if process.returncode is None:
        if is_over:
            return
        raise TransportError(f"{what} did not end within {timeout:.0f} s")
    if process.returncode != 0:
        raise TransportError(f"{what} ended with status {process.returncode}")


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
