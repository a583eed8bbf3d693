"""The states of a request and of an invitation, and how a device reports the end of a request to the relay (docs/protocol/relay.md)."""

from enum import StrEnum
from typing import Final

CEREMONY_TIMEOUT: Final = (
    420.0  # seconds: a request lives 300 s, and one approved at its last second 120 s more
)
# with which a companion declines: its user did not ask for this, and the relay mutes the device
NOT_ME: Final = "not-me"
MUTED: Final = "muted"  # with which the relay then cancels what else the device asks for


class RequestState(StrEnum):
    """The state of a request. The states from `COMPLETED` on are terminal."""

    PENDING, DELIVERED, CLAIMED, OPENED = "pending", "delivered", "claimed", "opened"
    COMPLETED, DECLINED, FAILED = "completed", "declined", "failed"
    CANCELLED, SUPERSEDED, EXPIRED = "cancelled", "superseded", "expired"

    @property
    def terminal(self) -> bool:
        return self not in (self.PENDING, self.DELIVERED, self.CLAIMED, self.OPENED)


class InvitationState(StrEnum):
    """The state of an invitation at the relay: what came last."""

    OPEN = "open"
    INTRODUCED = "introduced"  # the newcomer's introduction
    ANSWERING = "answering"  # the inviter's nonce
    REVEALED = "revealed"  # the newcomer's nonce
    ANSWERED = "answered"  # the inviter's answer


class DeviceEvent(StrEnum):
    """How a request ended, as its device reports it."""

    CANCELLED = "cancelled"
    COMPLETED = "completed"
    FAILED = "failed"
