"""Refusals of companions: the reasons of docs/protocol/relay.md as errors of the device, and as sentences.

A companion that refuses a request, or fails with it, reports a reason to the relay: of a check (`TrustReason`), of a
failed connection (`TransportReason`), or one of those here. When every companion has refused, the device raises
the error to which the reason belongs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headless_passkey.errors import (
    CtapError,
    HeadlessPasskeyError,
    NotApproved,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    SetupReason,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid.ctap2 import Status, status_name
from headless_passkey.mends import clock_skew, mend
from program_parts.names import printable, quoted

INTERRUPTED: Final = "interrupted"  # the companion ended while it held the claim
MALFORMED: Final = "malformed"  # the companion could not parse the request
REMOVED: Final = "removed"  # the relay's reason for a companion that was taken out of the account
UNANSWERED: Final = "unanswered"  # the user did not answer the phone in time
VANISHED: Final = (
    "vanished"  # the relay's reason for a holder of the claim that stopped calling; it may come back
)

_WHY: Final = {
    TrustReason.CLOCK_SKEW: "its clock and this device's are too far apart",
    TrustReason.EXPIRED: "by its clock the request has expired",
    TrustReason.STALE_RING: "a member was removed since the membership that this device knows",
    TrustReason.FORKED_RING: "the relay shows it another membership than it knows",
    TrustReason.NOT_A_MEMBER: "it is no longer a member",
    TrustReason.UNKNOWN_DEVICE: "it does not know this device as a member",
    TrustReason.CANNOT_OPEN: "it cannot open what was sealed to it",
    TrustReason.BAD_SIGNATURE: "this device's signature does not verify",
    TrustReason.RP_NOT_ALLOWED: "this device may not ask for this relying party",
    TrustReason.DIGITS_MISSING: "it wants a number to be typed that this device shows",
    TrustReason.WRONG_DIGITS: "a wrong number was typed",
    TrustReason.REPLAYED: "it has opened the request before",
}
_WHAT: Final = {
    INTERRUPTED: "was ended before the phone had answered",
    MALFORMED: "finds the request malformed",
    UNANSWERED: "says that nobody answered on the phone in time",
    REMOVED: "was removed from the account meanwhile",
    VANISHED: "has vanished",
}
_CTAP: Final = {status_name(status).lower().replace("_", "-"): status for status in Status}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One companion's refusal of a request, which other companions may still take."""

    companion: str  # its name in the ring
    label: str | None  # its name for people; None where unknown
    reason: str  # one word of the tables

    @property
    def may_change(self) -> bool:
        """Whether this companion may still take the request."""
        return self.reason == VANISHED

    def __str__(self) -> str:
        """A sentence for people, without the reason itself."""
        who = "a companion" if self.label is None else quoted(self.label)
        return f"{who} {_what(self.reason)}"


def refused(refusals: Sequence[Refusal], *, holder: str | None = None) -> HeadlessPasskeyError:
    """What a request ended with that these companions, at least one, could not take.

    holder: who had claimed it: its reason counts. Where nobody had and the reasons are of different branches of the
    error tree, a refused check counts before what may go well the next time.
    """
    first = min(
        refusals,
        key=lambda each: (
            each.companion != holder,
            each.reason == REMOVED,  # which keeps nobody else from it
            each.reason not in tuple(TrustReason),
        ),
    )
    others = [str(refusal) for refusal in refusals if refusal is not first]
    return _error(first.reason, "; ".join([str(first), *others]))


def ctap_error(status: int) -> CtapError:
    """Make a `CtapError` with its mend as advice. status: as a phone answers it."""
    name = status_name(status)
    return CtapError(status, name, advice=mend(name))


def _error(reason: str, message: str) -> HeadlessPasskeyError:
    if reason == TrustReason.CLOCK_SKEW:  # of another reason's mend we do not know whose it is
        return clock_skew(message, "members")
    if reason in tuple(TrustReason):
        return TrustError(TrustReason(reason), message)
    if reason in tuple(TransportReason):
        return TransportError(message, reason=TransportReason(reason))
    if reason in _CTAP:
        return ctap_error(_CTAP[reason])
    match reason:
        case "interrupted" | "removed":
            return NotApproved(Outcome.CANCELLED, message)
        case "unanswered":
            return NotApproved(Outcome.EXPIRED, message)
        case "malformed":
            return RemoteProtocolError(message, reason=ProtocolReason.REFUSED)
        case _:
            return TransportError(message)


def _what(reason: str) -> str:
    if reason in tuple(TrustReason):
        why = _WHY.get(TrustReason(reason))
        return f"refuses the request: {why}" if why else "refuses the request"
    if reason in _WHAT:
        return _WHAT[reason]
    if reason in _CTAP:
        return f"says that the phone answered {status_name(_CTAP[reason])}"
    if reason.startswith("state-") and reason in tuple(SetupReason):
        return "cannot use what it keeps of its account"
    if reason in tuple(SetupReason):
        return f"is not set up to take it ({reason})"
    if reason in tuple(TransportReason):
        return "could not hand the request to the phone"
    return f"could not hand the request to the phone ({printable(reason)})"
