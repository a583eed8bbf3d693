"""The device's checks of what the relay shows it of companions, before it sends its command (docs/protocol/trust.md)."""

from headless_passkey.errors import RemoteProtocolError, TrustError, TrustReason
from headless_passkey.trust.ring import MAX_SKEW, Member
from headless_passkey.trust.word import Claim, Word


def check_claim(
    document: bytes, *, by: Member, account: str, claim: Claim, issued: int, expires: int
) -> Word:
    """Check, as the device, a claim that the relay shows; anything but `by`'s claim of `claim` is a `TrustError` (bad-claim).

    by: the companion that the relay names, by the ring that the device sealed from. claim: what that companion has to
    claim. issued, expires: of the envelope, by the device's clock.
    """
    try:
        word = Word.parse(document, by=by)
    except (RemoteProtocolError, TrustError) as error:
        raise TrustError(TrustReason.BAD_CLAIM, f"the claim is not that companion's word: {error}") from error
    if word.account != account or word.claim != claim:
        raise TrustError(
            TrustReason.BAD_CLAIM, "the claim is of another request, or of other bytes than were sealed"
        )
    if not issued - MAX_SKEW <= word.at <= expires + MAX_SKEW:
        raise TrustError(
            TrustReason.BAD_CLAIM,
            f"the claim was made {word.at - issued} s after the request, which lives {expires - issued} s;"
            f" clocks may differ by {MAX_SKEW} s",
        )
    return word
