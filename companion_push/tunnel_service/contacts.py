"""Which contact IDs a tunnel service knows, and what limits requests for them.

A contact ID is known from its phone's first registration until the phone forgets it, or has not been there with it for
`KEPT` seconds. It is kept as an empty file named by its hash: whoever reads the folder learns no contact ID, nodes on one machine can share it, and a restart
forgets nothing. That matters: a device deletes its link at the answer "unknown" (410).
"""

import asyncio
import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from companion_push.serving.bounds import check_bounds
from companion_push.tunnel_service.buckets import Buckets
from headless_passkey.errors import SetupError
from headless_passkey.process.private_file import private_directory, reason_of
from headless_passkey.process.tasks import to_its_end
from http_serving.addresses import neighbourhood

KEPT: Final = 180 * 86_400.0  # seconds since the last registration
REFRESHED: Final = 86_400.0  # seconds after which a registration is noted anew
# Unix seconds, 1 January 2026, before there was such a service: an earlier time is of a clock that was behind, and says nothing
BEGAN: Final = 1_767_225_600.0
_NAME: Final = re.compile("[0-9a-f]{64}")  # of a file: the hash of a contact ID


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactLimits:
    """What phones and contact requests may use. A setting that cannot be is a `UsageError` with its name."""

    phones: int = 256  # connections of phones at a time
    phones_per_address: int = 32
    contacts: int = 100_000  # that are known
    new_per_address: float = 60  # contact IDs that become known, an hour
    requests_per_contact: float = 12  # a minute
    waiting_per_contact: int = 3  # contact requests whose phone has not come yet

    def __post_init__(self) -> None:
        check_bounds(self, "phones", "phones_per_address", "contacts", "waiting_per_contact", lowest=1)
        check_bounds(self, "new_per_address", "requests_per_contact", lowest=0, whole=False)


class KnownContacts:
    """The folder of the contact IDs that are known."""

    def __init__(self, folder: Path, limits: ContactLimits, clock: Callable[[], float] = time.time) -> None:
        """Take the folder, or make it, mode 0700; `SetupError` where that cannot be. clock: Unix seconds."""
        private_directory(folder)
        self._folder, self.limits, self._clock = folder, limits, clock
        self._new = Buckets(limits.new_per_address, 3600)
        self._count = self._sweep()
        self._swept = clock()

    def __len__(self) -> int:
        return self._count

    def knows(self, contact_id: bytes, *, registered: bool = False) -> bool:
        """Whether the contact ID is registered or was, not long ago, and is not forgotten. `SetupError` without an answer.

        registered: its phone is there, so that its age does not count, which a clock that was set may have made up.
        """
        try:
            status = self._file(contact_id).stat()
        except FileNotFoundError as error:
            if self._is_gone():
                raise _unusable(error) from error
            return False
        except OSError as error:
            raise _unusable(error) from error
        return registered or not _is_old(status.st_mtime, self._clock())

    async def add(self, contact_ids: Sequence[bytes], *, address: str, now: float) -> bool:
        """Know these from now on, on the disk; False when there are too many, or too many new ones from this address.

        now: of the clock of the rates. `SetupError` when the disk does not take it.
        """
        new = [each for each in dict.fromkeys(contact_ids) if not self.knows(each)]
        if self._count + len(new) > self.limits.contacts and self._clock() - self._swept > REFRESHED:
            self._swept, self._count = self._clock(), await asyncio.to_thread(self._sweep)
        if self._count + len(new) > self.limits.contacts:
            return False
        if new and not self._new.take(neighbourhood(address), now=now, tokens=len(new)):
            return False
        self._count += len(new)  # before it is so: others ask meanwhile
        await to_its_end(self._add(contact_ids, counted=len(new)))
        return True

    async def _add(self, contact_ids: Sequence[bytes], *, counted: int) -> None:
        """Write contact IDs, and count those alone that were made. counted: how many are already."""
        made, failed = await asyncio.to_thread(self._write, contact_ids)
        self._count += made - counted
        if failed is not None:
            raise _unusable(failed) from failed

    async def note(self, contact_ids: Sequence[bytes]) -> None:
        """Note that the phone of these is still there. One that was forgotten stays so. `SetupError` when the disk does not take it."""
        failed = await asyncio.to_thread(self._refresh, contact_ids)
        if failed is not None:
            raise _unusable(failed) from failed

    async def forget(self, contact_ids: Sequence[bytes]) -> None:
        """Know these no more, on the disk. `SetupError` when the disk does not take it."""
        await to_its_end(self._forget(contact_ids))

    async def _forget(self, contact_ids: Sequence[bytes]) -> None:
        gone, failed = await asyncio.to_thread(self._remove, contact_ids)
        self._count -= gone
        if failed is not None:
            raise _unusable(failed) from failed

    def _write(self, contact_ids: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Make files, or note them anew; returns how many were made, and what the disk has refused."""
        made = 0
        try:
            for each in contact_ids:
                made += self._write_one(self._file(each))
            self._sync()
        except OSError as error:
            return made, error
        return made, None

    def _write_one(self, path: Path) -> bool:
        """Make a file, or note it anew; returns whether it was made."""
        now, flags = self._clock(), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor, made = os.open(path, flags | os.O_EXCL, 0o600), True
        except FileExistsError:
            descriptor, made = os.open(path, flags, 0o600), False
        try:
            if (
                made or now - os.fstat(descriptor).st_mtime >= REFRESHED
            ):  # never back: this clock may be behind
                os.utime(descriptor, (now, now))
        finally:
            os.close(descriptor)
        return made

    def _refresh(self, contact_ids: Sequence[bytes]) -> OSError | None:
        """Note files anew that are there; returns what the disk has refused."""
        now = self._clock()
        for each in contact_ids:
            path = self._file(each)
            try:
                if now - path.stat().st_mtime >= REFRESHED:
                    os.utime(path, (now, now))
            except OSError as error:
                if not isinstance(error, FileNotFoundError) or self._is_gone():
                    return error
                # else it was forgotten, through another node maybe
        return None

    def _remove(self, contact_ids: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Remove files; returns how many were there, and what the disk has refused."""
        gone = 0
        try:
            for each in contact_ids:
                with contextlib.suppress(FileNotFoundError):
                    self._file(each).unlink()
                    gone += 1
            self._sync()
        except OSError as error:
            return gone, error
        return gone, None

    def _sweep(self) -> int:
        """Remove the contact IDs that are too old; returns how many are left. Whatever else is in the folder stays."""
        left, now = 0, self._clock()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if not _NAME.fullmatch(entry.name):
                    continue
                with contextlib.suppress(OSError):  # another node may have removed it
                    noted = entry.stat(follow_symlinks=False).st_mtime
                    if _is_old(noted, now):
                        os.unlink(entry.path)  # noqa: PTH108
                        continue
                    left += 1
                    if noted < BEGAN <= now:
                        os.utime(entry.path, (now, now), follow_symlinks=False)
        return left

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _is_gone(self) -> bool:
        """Whether the folder itself is, so that a file that is not there says nothing."""
        return not self._folder.is_dir()

    def _file(self, contact_id: bytes) -> Path:
        return self._folder / hashlib.sha256(contact_id).hexdigest()


def _is_old(noted: float, now: float) -> bool:
    """Whether a contact ID that was noted then is known no more. Both are Unix seconds."""
    return noted >= BEGAN and now - noted >= KEPT


def _unusable(error: OSError) -> SetupError:
    # not its text, whose path names a contact
    return SetupError(f"the folder of contacts does not answer: {error.strerror}", reason=reason_of(error))
