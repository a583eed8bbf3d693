"""The bodies of answers, as the relay's OpenAPI description shows them (docs/protocol/relay.md).

The operations make them as plain values; a test holds what they answer against these types.
"""

from typing import Any

import msgspec

from companion_push.push.channel import Kind, PushOutcome
from headless_passkey.request import InvitationState, RequestState


class Healthy(msgspec.Struct, frozen=True):
    status: str
    channels: dict[str, str] = msgspec.field(default_factory=dict)  # by kind: "ok", or "failing"


class Nothing(msgspec.Struct, frozen=True):
    """An answer that says no more than its status."""


class Founded(msgspec.Struct, frozen=True):
    account: str


class SignInWay(msgspec.Struct, frozen=True):
    """Where a companion gets a token."""

    issuer: str
    client: str
    audience: str


class AccountOf(msgspec.Struct, frozen=True):
    account: str | None
    account_name: str


class Head(msgspec.Struct, frozen=True):
    """The newest ring of the account."""

    version: int
    hash: str


class GivenWord(msgspec.Struct, frozen=True):
    by: str
    word: str


class Rings(msgspec.Struct, frozen=True):
    version: int
    hash: str
    rings: list[str]
    words: list[GivenWord]
    gap: bool


class IntroductionOf(msgspec.Struct, frozen=True):
    body: str
    signature: str
    mac: str


class InvitationStage(msgspec.Struct, frozen=True):
    """An invitation, as its inviter sees it."""

    state: InvitationState
    introduction: IntroductionOf | None
    nonce: str | None

    def __repr__(self) -> str:
        return "InvitationStage()"  # it holds a secret


class Introduced(msgspec.Struct, frozen=True):
    id: str


class IntroductionStage(msgspec.Struct, frozen=True):
    """An invitation, as its newcomer sees it."""

    state: InvitationState
    nonce: str | None
    ring: str | None
    mac: str | None

    def __repr__(self) -> str:
        return "IntroductionStage()"  # it holds a secret


class FailureOf(msgspec.Struct, frozen=True):
    by: str
    reason: str


class NotifiedOf(msgspec.Struct, frozen=True):
    """What became of a push, or that a companion is there."""

    to: str
    channel: str
    outcome: str


class RequestStatus(msgspec.Struct, frozen=True):
    """A request, as its device sees it."""

    id: str
    state: RequestState
    version: int
    expires_at: int
    now: int
    claim: GivenWord | None
    ring: Head
    reason: str | None
    failures: list[FailureOf]
    notified: list[NotifiedOf]


class InboxItem(msgspec.Struct, frozen=True):
    """A request, as a companion sees it."""

    device: str
    id: str
    state: RequestState
    version: int
    sealed: str
    submitted_at: int
    expires_at: int
    claimed_by: str | None
    stays: bool


class Inbox(msgspec.Struct, frozen=True):
    cursor: str
    requests: list[InboxItem]
    word_wanted: bool
    muted: list[str]
    ring: Head


class MuteOf(msgspec.Struct, frozen=True):
    device: str
    by: str
    at: int


class Mutes(msgspec.Struct, frozen=True):
    mutes: list[MuteOf]


class ChannelOf(msgspec.Struct, frozen=True):
    handle: str
    kind: Kind
    state: str
    registered_at: int


class Channels(msgspec.Struct, frozen=True):
    channels: list[ChannelOf]
    offers: dict[str, dict[str, Any]]  # by kind


class Tested(msgspec.Struct, frozen=True):
    outcome: PushOutcome  # of the one push


class EventTaken(msgspec.Struct, frozen=True):
    state: RequestState
    version: int
    expires_at: int
    now: int
