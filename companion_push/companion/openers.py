"""How an approved FIDO URL gets to a phone's own passkey prompt.

An opener is entered when the user has agreed and the claim is won. Its body runs once the URL is handed over;
leaving it waits for what comes of that, where the opener can know. The URL is a secret: it goes to a child
process on stdin. The system's launcher is the one exception, since it takes nothing but an argument.
"""

import asyncio
import contextlib
import io
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, Self, TextIO

import segno

from companion_push.companion.phone import Announced, SoftwarePhone
from headless_passkey.command_line import UsageError
from headless_passkey.errors import TransportError

_LAUNCH_TIMEOUT: Final = 30.0  # seconds a launcher has to hand over a URL
_KILL_TIMEOUT: Final = 3.0  # seconds a child has to end when asked to

# white on black whatever the terminal's colours are: cameras want the light parts light
_ON, _OFF = "\x1b[97;40m", "\x1b[0m"
_OTHER_SCREEN, _OWN_SCREEN = "\x1b[?1049h\x1b[2J\x1b[H", "\x1b[?1049l"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """An approved request, as an opener gets it."""

    url: str = field(repr=False)
    announced: Announced
    seconds: float  # until it is worth nothing
    over: asyncio.Event  # set when the relay lists the request no more: done, cancelled or expired


class Opener(Protocol):
    """Something that brings a FIDO URL to a phone."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class QrPicture:
    """A QR code on the terminal, for the camera of any phone. Cleared when the request is over."""

    screen: TextIO

    @contextlib.asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[None]:
        lines = [*qr_lines(opening.url), "", "Scan this with the phone's camera.", ""]
        if not self.screen.isatty():
            self._write("\n".join(lines))  # somebody else's window: neither cleared nor waited for
            yield
            return
        self._write(_OTHER_SCREEN + "\r\n".join(lines))
        try:
            yield
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(opening.seconds):
                    await opening.over.wait()
        finally:
            self._write("\x1b[2J" + _OWN_SCREEN)

    def _write(self, text: str) -> None:
        try:
            self.screen.write(text)
            self.screen.flush()
        except OSError as error:
            raise TransportError("the terminal has gone") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltInPhone:
    """The software phone, in this process: for demonstrations and tests."""

    make_phone: Callable[[], SoftwarePhone]

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


def qr_lines(url: str) -> list[str]:
    """The QR code of `url`, two rows of modules per line, in a quiet zone."""
    picture = io.StringIO()
    segno.make(url, micro=False, error="m", boost_error=False).terminal(picture, border=4, compact=True)
    return [f"{_ON}{line}{_OFF}" for line in picture.getvalue().splitlines()]


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
