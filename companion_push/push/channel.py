"""The interface of a push service's channel, and what passes it.

A push says that something waits, and nothing else: whoever runs the push service learns no account, no name and no
URL. A companion that is woken reads its inbox, which is the truth; a push that is lost costs time only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

HANDLE_SIZE: Final = 16  # bytes, of a channel's handle, which its companion chooses


class Kind(StrEnum):
    """The push services."""

    WEB_PUSH = "web-push"  # RFC 8030; UnifiedPush is the same
    FCM = "fcm"
    APNS = "apns"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebPush:
    """A subscription of RFC 8030 and RFC 8291."""

    endpoint: str = field(repr=False)  # https; a secret, as everybody who knows it may push
    p256dh: bytes = field(repr=False)  # the user agent's public key, an uncompressed point of P-256, 65 bytes
    auth: bytes = field(repr=False)  # the authentication secret, 16 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fcm:
    """An app's installation, as FCM HTTP v1 addresses it."""

    app: str  # which of the operator's apps
    token: str = field(repr=False)  # the registration token


@dataclass(frozen=True, slots=True, kw_only=True)
class Apns:
    """An app on a device of Apple's."""

    topic: str  # the app's bundle id
    token: str = field(repr=False)  # the device token, hexadecimal
    sandbox: bool = False


Address = WebPush | Fcm | Apns


class Purpose(StrEnum):
    """What a push is for: the key of the fixed text that the app shows, in the user's language."""

    REQUEST = "request"  # a device asks for a passkey
    DISMISS = "dismiss"  # the request is over, or another companion has it: nothing is shown any more
    RING = "ring"  # who belongs to the account has changed
    REMOVED = "removed"  # this companion was taken out of the account
    RESET = "reset"  # the account was closed
    WORD = "word"  # a device waits for this companion's word
    TEST = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """What wakes one companion over one of its channels: these fields are all that a push service may learn."""

    purpose: Purpose
    handle: str  # of the channel, base64url of 16 random bytes, which only the relay and the companion know
    account: bytes = field(
        repr=False
    )  # 16 bytes that all pushes of one account share, and nobody else can make
    expires_at: float  # Unix seconds, after which the push is worth nothing
    request_id: str | None = None  # of the request that it is about: base64url of 16 bytes

    @property
    def content(self) -> dict[str, str]:
        """What the app is told, the same in each push service: members of text, as FCM carries nothing else."""
        said = {"v": "1", "purpose": str(self.purpose), "handle": self.handle}
        return said if self.request_id is None else {**said, "request": self.request_id}


class PushOutcome(StrEnum):
    """What became of a push."""

    SENT = "sent"  # the push service has taken it
    GONE = "gone"  # the address is dead: the channel is to be deleted
    STALE = "stale"  # the service says so, but has been wrong before: deleted if the companion does not confirm it
    REFUSED = (
        "refused"  # by this push service, for good: neither this push nor the next will do as it is set up
    )
    BUSY = "busy"  # not now: `Delivery.retry_after`
    FAILED = "failed"  # no answer, or one that means nothing
    LATE = "late"  # it was not sent, as its time was over


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The result of one attempt."""

    outcome: PushOutcome
    retry_after: float | None = None  # seconds, of the service; with `BUSY`
    since: float | None = None  # Unix seconds, with `GONE`: a channel that was registered later is kept
    detail: str = ""  # for the operator's log: what the service said, without a token, endpoint or name


class Channel(Protocol):
    """A push service that pushes can be handed to.

    `send` raises nothing of its own: what goes wrong is a `Delivery`. It may be called many times at once, and a cancelled
    call leaves nothing behind. It sends once; the dispatcher repeats, breaks the circuit, and bounds how many wait.
    """

    @property
    def kind(self) -> Kind: ...

    @property
    def offer(self) -> Mapping[str, object]:
        """What a companion must know to get an address here, as the relay answers it: JSON, and public.

        Of Web Push ``{"vapid_key": …}`` (base64url, what browsers call applicationServerKey), of FCM ``{"apps": […]}``,
        of APNs ``{"topics": […]}``.
        """
        ...

    def refusal(self, address: Address) -> str | None:
        """Say why no push ever goes to `address`, without repeating it; None for one that may be tried. For registrations.

        It looks nothing up. address: of this channel's kind.
        """
        ...

    async def send(self, address: Address, push: Push) -> Delivery:
        """Hand over one push, within the time that it has left. address: of this channel's kind."""
        ...

    async def check(self) -> str:
        """Ask the service whether it takes the credentials; returns its answer, for the operator. Raises `SetupError` or `TransportError`."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...
