"""Versions of what is installed, for a report."""

import asyncio
import contextlib
import os
import platform
import shutil
from importlib import metadata
from typing import Final

PACKAGES: Final = ("headless-passkey", "aiohttp", "bleak", "bumble", "cryptography", "dbus-fast")
LIMIT: Final = 3.0  # seconds a program has to say its version

_DAEMONS: Final = ("/usr/libexec/bluetooth/bluetoothd", "/usr/lib/bluetooth/bluetoothd")


async def find_versions() -> dict[str, str | None]:
    """Find versions by name; None for what is not installed."""
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    found["python"] = platform.python_version()
    found["bluez"] = await bluez_version()
    found["kernel"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    found["os"] = None
    with contextlib.suppress(OSError):
        found["os"] = platform.freedesktop_os_release().get("PRETTY_NAME")
    return found


async def bluez_version() -> str | None:
    """The version of the installed bluetoothd, or else of bluetoothctl."""
    programs = [path for path in _DAEMONS if os.access(path, os.X_OK)]
    if control := shutil.which("bluetoothctl"):
        programs.append(control)
    for program in programs:
        if version := await _ask(program):
            return version
    return None


async def _ask(program: str) -> str | None:
    """Run `program --version`, and return the number at the end of its output."""
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return None
    try:
        async with asyncio.timeout(LIMIT):
            printed, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    words = printed.decode(errors="replace").split()
    return words[-1] if words and words[-1][0].isdigit() else None
