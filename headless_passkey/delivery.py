"""What a ceremony asks for, and what it needs of whatever brings its FIDO URLs to phones.

`headless_passkey.account.delivery` brings them to the companions of an account; a product may bring them by another way.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.refusals import Refusal
from headless_passkey.request import DeviceEvent, RequestState
from headless_passkey.trust.freshness import ForgottenRings
from headless_passkey.webauthn.options import Options, RegistrationOptions
from headless_passkey.webauthn.origins import RelatedOrigins


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a ceremony asks for. It is announced to the companion, so options that come later must match it."""

    kind: RequestKind  # GET_ASSERTION or MAKE_CREDENTIAL
    origin: str
    rp_id: str
    rp_name: str | None = None  # shown on the companion; unverified
    note: str | None = None  # shown on the companion
    # match digits, which the device shows or speaks, and the user types on the companion
    digits: str | None = field(default=None, repr=False)
    user_handle: bytes | None = field(default=None, repr=False)  # of the expected account (T3)
    related: RelatedOrigins | None = None  # for an origin outside the RP ID's domain

    @classmethod
    def of(
        cls,
        options: Options,
        *,
        note: str | None = None,
        digits: str | None = None,
        user_handle: bytes | None = None,
    ) -> "Ask":
        """Make an `Ask` from known options. user_handle: of the expected account; for a registration the new user's."""
        rp_name = None
        if isinstance(options, RegistrationOptions):
            rp_name, user_handle = options.rp_name, user_handle or options.user.id
        return cls(
            kind=options.hint,
            origin=options.origin,
            rp_id=options.rp_id,
            rp_name=rp_name,
            note=note,
            digits=digits,
            user_handle=user_handle,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """A membership that no companion has confirmed for a week. The companion that did so last:"""

    companion: str  # its name in the ring
    label: str
    days: int  # since its last word


@dataclass(frozen=True, slots=True, kw_only=True)
class Notified:
    """A push to a companion, as the relay says."""

    companion: str  # its name in the ring
    label: str | None
    channel: str  # the kind of push service; `inbox` where the companion was waiting for requests
    outcome: str  # `pending`, `sent`, or a word for what went wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The state of a request, from the delivery."""

    state: RequestState
    claimed_by: str | None = None  # the recipient that holds the claim, verified by the delivery
    refusals: tuple[Refusal, ...] = ()  # of recipients
    unconfirmed: Unconfirmed | None = None  # told once
    forgotten: ForgottenRings | None = None  # told once
    notified: tuple[Notified, ...] | None = None  # None where the delivery knows of no pushes


class Delivery(Protocol):
    """Brings FIDO URLs to phones, for one ceremony at a time."""

    @property
    def needs_claim(self) -> bool:
        """Whether a recipient claims the request, as `progress` says, before its phone may get the command."""

    async def recipients(self) -> Sequence[str]:
        """Begin a ceremony; returns the recipients, each of which gets its own URL. `LocalProtocolError` during another ceremony."""

    async def submit(self, ask: Ask, urls: Mapping[str, FidoUrl], *, lifetime: float) -> None:
        """Deliver the URLs, which expire after `lifetime` seconds. `LocalProtocolError`, with nothing sent, during another ceremony."""

    def progress(self) -> AsyncGenerator[Progress, None]:
        """Follow the request's state; raises the error that ends it (`NotApproved`, `TrustError`, …)."""

    async def finish(self, outcome: DeviceEvent, reason: str | None = None) -> str | None:
        """Report the end of the ceremony; returns the recipient that held the claim then, verified, where the delivery learns of one.

        reason: one word, such as an error's. The claim may be one that `progress` has not told, as after a cut connection; it
        only counts for what the ceremony says of its end. `NotEnrolled` or `TrustError` when this device may ask for nothing any more:
        its account is closed or suspended, or it was removed.
        """
