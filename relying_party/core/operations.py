"""Operations on an account that need a step-up of their own: one use of a passkey, for this operation and no other.

A session alone changes nothing that matters: whoever has it may be a thief, or a machine on which the user signed in
once. The challenge record of a step-up names the operation, the step-up is bound to the session in which it began, is
single use, and expires after `STEP_UP_SECONDS`.
"""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

STEP_UP_SECONDS: Final = 120  # for the ceremony, and from its end to the operation


class OperationKind(StrEnum):
    """What a step-up may be for."""

    ADD_PASSKEY = "add-passkey"
    REMOVE_PASSKEY = "remove-passkey"
    RENAME_PASSKEY = "rename-passkey"
    RENAME_USER = "rename-user"
    END_SESSION = "end-session"
    END_OTHER_SESSIONS = "end-other-sessions"
    DELETE_ACCOUNT = "delete-account"
    SERVICE = "service"  # of a service that mounts the relying party, in its own words

    @property
    def has_target(self) -> bool:
        """Whether the operation is done to one passkey or one session."""
        return self in (self.REMOVE_PASSKEY, self.RENAME_PASSKEY, self.END_SESSION)

    @property
    def has_name(self) -> bool:
        """Whether the operation has a text, which is part of what the user agrees to."""
        return self in (self.RENAME_PASSKEY, self.RENAME_USER, self.SERVICE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation, with everything that the user of the passkey agrees to."""

    kind: OperationKind
    target: bytes | None = field(default=None, repr=False)  # the id of a passkey or a session
    name: str | None = field(default=None, repr=False)  # the new name, or the service's words

    def digest(self) -> bytes:
        """Hash the operation (SHA-256): two operations have the same digest only if they are equal."""
        parts = (
            self.kind.encode(),
            b"-" if self.target is None else b"+" + self.target,
            b"-" if self.name is None else b"+" + self.name.encode(),
        )
        return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()
