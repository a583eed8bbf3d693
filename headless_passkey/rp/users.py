"""A device's pinned users: those whom it expects at a relying party, one file for each RP ID, mode 0600 (T3).

::

    STATE/users-login.example-3f8a61d20c94.json

On a device without a screen nobody reads which account has answered. So the first user whom the relying party accepts is
pinned (trust on first use), and a passkey of another user is refused before anything of it is sent to the relying party::

    users = PinnedUsers(state, "login.example")
    await run_ceremony(ask, relying_party.begin, delivery=delivery, radio=radio, users=users)

A user is pinned only after the relying party has accepted: a refusal, an error or a lost answer pins nobody. The file's
lock is held from the last check to the write, so of two ceremonies that would pin different users, one is refused. A file
that is damaged, foreign or open to others is an error, and never counts as absent.
"""

import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from headless_passkey.account.device_files import (
    incompatible,
    lock_within,
    mend_names,
    private_directory,
    read_private,
    remove_private,
    write_private,
)
from headless_passkey.errors import (
    HeadlessPasskeyError,
    SetupError,
    SetupReason,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.mends import mend, setup_error
from headless_passkey.rp.conduit import OpenedSession
from headless_passkey.text.base64url import from_base64url
from headless_passkey.text.members import file_members
from headless_passkey.webauthn.options import Credential
from program_parts.base64url import base64url
from program_parts.domains import is_domain
from program_parts.json_text import decode_json

PREFIX: Final = "users-"
MAX_USERS: Final = 16  # for each RP ID
LOCK_SECONDS: Final = 60.0  # that others may hold the lock: longer than the slowest answer of a relying party
_MAX_FILE: Final = 64 * 1024  # bytes
_MAX_NAME: Final = 256  # characters
_FORMAT: Final = 1

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedUser:
    """A user whom the device expects."""

    handle: bytes  # the user handle, 1 to 64 bytes, which is permanent
    name: str | None  # as last told by the relying party, or else by the phone; names may change
    pinned_at: int  # Unix seconds by our own clock

    def to_json(self) -> dict[str, Any]:
        return {"user_handle": base64url(self.handle), "user_name": self.name, "pinned_at": self.pinned_at}


class PinnedUsers:
    """The users that are pinned for one RP ID, and what a ceremony does with them."""

    def __init__(
        self, state: Path, rp_id: str, *, add: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        """state: the device's directory. rp_id: else `UsageError`. add: a ceremony may pin one more user. clock: Unix seconds."""
        if not is_domain(rp_id):
            raise UsageError("an RP ID is a domain name in lower case")
        self.state, self.rp_id, self._add, self._clock = state, rp_id, add, clock
        self.newly_pinned = False  # whether a ceremony with this object has pinned its user

    @property
    def path(self) -> Path:
        """The file of the RP ID's users."""
        digest = hashlib.sha256(self.rp_id.encode()).hexdigest()[:12]
        return self.state / f"{PREFIX}{self.rp_id[:64]}-{digest}.json"

    def read(self) -> tuple[PinnedUser, ...]:
        """Read the pinned users, first pinned first; empty where none is yet. `SetupError` for a file that is not in order."""
        found = _read(self.path)
        if found is None:
            return ()
        rp_id, users = found
        if rp_id != self.rp_id:
            raise _damaged(self.path)
        return users

    def named(self, name: str) -> bytes | None:
        """The handle of the one pinned user of that name; None for none, or several."""
        handles = [user.handle for user in self.read() if user.name == name]
        return handles[0] if len(handles) == 1 and not self._add else None

    def check(self, handle: bytes | None) -> bool:
        """Refuse a user who is not pinned, with `TrustError` (unexpected-user), before the relying party hears of the user.

        Returns whether the user is pinned: False where nobody is pinned yet, or one more may be.
        """
        return self._check(self.read(), handle)

    def check_new(self) -> None:
        """Refuse a registration, whose user is always new, where only pinned users are expected."""
        self.check(None)

    async def settle(
        self, credential: Credential, settle: Callable[[Credential], Awaitable[_T]], *, expected: bool
    ) -> _T:
        """Check the response's user once more, hand it to the relying party, and pin the user that this accepts.

        settle: gives the relying party's result; the user of an `OpenedSession` counts more than what the phone says.
        expected: the caller expected this user, or the relying party listed this credential; nobody else is refused then,
        and a user is pinned where none is yet.
        """
        private_directory(self.state)
        async with lock_within(self.path, LOCK_SECONDS):
            users = self.read()
            if not expected or self._add:
                self._check(users, credential.user_handle)
            result = await settle(credential)
            self._accepted(users, _user_of(result, credential, now=int(self._clock())))
        return result

    async def pin(self, handle: bytes, name: str | None = None) -> bool:
        """Pin a user whom the caller knows, such as one whom a relying party has accepted elsewhere; False when it was pinned before.

        name: for people. `TrustError` (unexpected-user) when `MAX_USERS` are pinned.
        """
        private_directory(self.state)
        async with lock_within(self.path, LOCK_SECONDS):
            users = self.read()
            if any(user.handle == handle for user in users):
                return False
            self._check_room(users)
            self._write((*users, PinnedUser(handle=handle, name=name, pinned_at=int(self._clock()))))
        return True

    async def forget(self, handle: bytes | None = None) -> tuple[PinnedUser, ...]:
        """Remove a user, or with None all users of the RP ID; returns those who were removed."""
        if not self.state.is_dir():
            return ()
        async with lock_within(self.path, LOCK_SECONDS):
            users = self.read()
            gone = tuple(user for user in users if handle in (None, user.handle))
            if len(gone) == len(users):
                remove_private(self.path)
            elif gone:
                self._write(tuple(user for user in users if user not in gone))
        return gone

    def _check(self, users: tuple[PinnedUser, ...], handle: bytes | None) -> bool:
        if any(user.handle == handle for user in users):
            return True
        if users and not self._add:
            self._refuse("which expects others", mend(TrustReason.UNEXPECTED_USER))
        self._check_room(users)
        return False

    def _check_room(self, users: tuple[PinnedUser, ...]) -> None:
        if len(users) >= MAX_USERS:
            self._refuse(f"which has {MAX_USERS} already", mend(TrustReason.UNEXPECTED_USER, "full"))

    def _refuse(self, why: str, advice: str | None) -> NoReturn:
        raise TrustError(
            TrustReason.UNEXPECTED_USER,
            f"this is no user of {self.rp_id} on this device, {why}",
            advice=advice,
        )

    def _accepted(self, users: tuple[PinnedUser, ...], user: PinnedUser | None) -> None:
        """Pin an accepted user where there is a place, or note its new name."""
        if user is None:
            return
        known = next((one for one in users if one.handle == user.handle), None)
        if known is None:
            if (not users or self._add) and len(users) < MAX_USERS:
                self._write((*users, user))
                self.newly_pinned = True
                logger.info("user %d of this relying party is pinned", len(users) + 1)
        elif user.name not in (None, known.name):
            renamed = replace(known, name=user.name)
            self._write(tuple(renamed if one is known else one for one in users))

    def _write(self, users: tuple[PinnedUser, ...]) -> None:
        values = {"format": _FORMAT, "rp_id": self.rp_id, "users": [user.to_json() for user in users]}
        write_private(self.path, json.dumps(values, indent=1).encode())


def all_users(
    state: Path, on_damaged: Callable[[HeadlessPasskeyError], None] | None = None
) -> dict[str, tuple[PinnedUser, ...]]:
    """Read the pinned users of each RP ID. on_damaged: called for each file that is not in order."""
    found = {}
    try:
        paths = sorted(state.glob(f"{PREFIX}*.json"))
    except OSError as error:
        logger.info("the state directory cannot be listed: %s", error.strerror)
        paths = []
    for path in paths:
        try:
            content = _read(path)
        except HeadlessPasskeyError as error:
            logger.info("a file of users is passed over: %s", error.explain())
            if on_damaged is not None:
                on_damaged(error)
        else:
            if content is not None and PinnedUsers(state, content[0]).path == path:
                found[content[0]] = content[1]
    return dict(sorted(found.items()))


def is_users_file(path: Path) -> bool:
    """Whether a file of a state directory holds pinned users, or is its lock or temporary file."""
    return path.name.removeprefix(".").startswith(PREFIX)


def parse_handle(text: str) -> bytes:
    """Parse a user handle, 1 to 64 bytes in base64url; else `UsageError`."""
    try:
        handle = from_base64url(text)
    except HeadlessPasskeyError:
        handle = b""
    if not 1 <= len(handle) <= 64:
        raise UsageError("a user handle is 1 to 64 bytes in base64url")
    return handle


def _user_of(result: object, credential: Credential, *, now: int) -> PinnedUser | None:
    """The user whom the relying party has accepted; None where neither it nor the phone has said who that is."""
    if isinstance(result, OpenedSession):
        return PinnedUser(handle=from_base64url(result.user_handle), name=result.user_name, pinned_at=now)
    if credential.user_handle is None:
        return None
    name = None if credential.user_name is None else credential.user_name[:_MAX_NAME]
    return PinnedUser(handle=credential.user_handle, name=name, pinned_at=now)


def _read(path: Path) -> tuple[str, tuple[PinnedUser, ...]] | None:
    """Read a file's RP ID and users; None without a file."""
    content = read_private(path, limit=_MAX_FILE, case="users")
    if content is None:
        return None
    try:
        members = file_members(decode_json(content), path.name)
        if members.integer("format") != _FORMAT:
            raise incompatible(path)
        rp_id = members.text("rp_id")
        users = tuple(
            PinnedUser(
                handle=user.octets("user_handle", 1, 64),
                name=user.optional_text("user_name", _MAX_NAME),
                pinned_at=user.integer("pinned_at"),
            )
            for user in members.objects("users", MAX_USERS)
        )
    except ValueError as error:
        raise _damaged(path) from error
    if not users or not is_domain(rp_id) or len({user.handle for user in users}) < len(users):
        raise _damaged(path)
    return rp_id, users


def _damaged(path: Path) -> SetupError:
    return setup_error(f"{path} is damaged", SetupReason.STATE_DAMAGED, "users", **mend_names(path))
