"""The companion's checks of a request, in this order: before it shows the request, and again before it opens the URL.

Each check that fails raises a `TrustError` with a reason of its own (docs/protocol/trust.md has the table). A
malformed request raises a `RemoteProtocolError`.
"""

from collections.abc import Container
from typing import Final

from headless_passkey.errors import RemoteProtocolError, TrustError, TrustReason
from headless_passkey.hybrid.fido_url import PREFIX, FidoUrl
from headless_passkey.mends import clock_skew, mend
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.envelope import Announcement, open_envelope
from headless_passkey.trust.freshness import withheld
from headless_passkey.trust.hpke import HpkePrivateKey
from headless_passkey.trust.ring import MAX_SKEW, Member, Role
from program_parts.names import quoted

TELLING_TIME: Final = 600  # seconds after which a device that asks knows of a ring
MAX_URL_AGE: Final = 300  # seconds
MAX_URL_LENGTH: Final = 512  # characters; ours have about 170


def check_envelope(
    sealed: bytes,
    *,
    device: str,
    request_id: bytes,
    hpke_private: HpkePrivateKey,
    me: str,
    chain: RingChain,
    opened_before: Container[tuple[str, bytes]],
    now: float,
    needs_digits: bool = False,
) -> Announcement:
    """Open and check an envelope; returns what the device asks for.

    device, request_id: as the relay names the request. me: our own name in the ring. chain: our verified rings, up to
    date with the relay. opened_before: (device, request id) of each request that was handed to an opener and has not
    expired yet, to detect a replay. now: Unix seconds by our clock. needs_digits: whether this companion shows no request
    without match digits; the device's entry in the ring may demand them too.
    """
    opened = open_envelope(
        sealed,
        hpke_private=hpke_private,
        account=chain.head.account,
        request_id=request_id,
        device=device,
        recipient=me,
    )
    sender = _device_in_ring(chain, device)
    announcement = opened.verified(sender)
    if (device, request_id) in opened_before:
        raise TrustError(TrustReason.REPLAYED, "this request was opened before")
    _check_times(announcement, now)
    _check_ring(announcement, chain)
    _check_url(announcement, now)
    if not sender.allows(announcement.rp_id):
        raise TrustError(
            TrustReason.RP_NOT_ALLOWED, f"{quoted(sender.label)} may not ask for {announcement.rp_id}"
        )
    if (needs_digits or sender.needs_digits) and announcement.digits is None:
        raise TrustError(
            TrustReason.DIGITS_MISSING,
            "the device shows no digits, and without them nothing is approved here",
            advice=mend(TrustReason.DIGITS_MISSING),
        )
    return announcement


def recheck(announcement: Announcement, now: float) -> None:
    """Check the times once more, between the claim and the opening of the URL, since consent takes time."""
    _check_times(announcement, now)
    _check_url(announcement, now)


def usable_until(announcement: Announcement) -> int:
    """The last second, by our clock, at which `recheck` passes. announcement: from `check_envelope`."""
    made = FidoUrl.parse(announcement.url).time
    times_end = announcement.expires + MAX_SKEW
    return times_end if made is None else min(times_end, made + MAX_URL_AGE)


def untold_ring(announcement: Announcement, chain: RingChain) -> int | None:
    """The version of a ring that the relay had had for a while and that the device did not know; None without one."""
    later = next((ring for ring in chain.rings if ring.version == announcement.ring_version + 1), None)
    if later is None or later.issued + TELLING_TIME >= announcement.issued:
        return None
    return later.version


def _device_in_ring(chain: RingChain, name: str) -> Member:
    member = chain.head.member(name)
    if member is None or member.role is not Role.DEVICE:
        raise TrustError(TrustReason.UNKNOWN_DEVICE, "the request is from no device of this account")
    return member


def _check_times(announcement: Announcement, now: float) -> None:
    ahead = announcement.issued - int(now)
    if ahead > MAX_SKEW:
        raise _clock_skew(
            f"the device's clock is {ahead} s ahead of this one; at most {MAX_SKEW} s are allowed"
        )
    late = int(now) - announcement.expires
    if late > MAX_SKEW:
        raise TrustError(
            TrustReason.EXPIRED,
            f"by this clock the request was made {-ahead} s ago and expired {late} s ago; if it is new, the "
            f"clocks differ by {-ahead} s; at most {MAX_SKEW} s are allowed",
        )


def _clock_skew(what: str) -> TrustError:
    return clock_skew(what, "members")


def _check_ring(announcement: Announcement, chain: RingChain) -> None:
    """Check that the device used our ring or an earlier one, and that no member or key that it used was removed since."""
    ring = chain.ancestor(announcement.ring_version, announcement.ring_hash)
    if ring is None and announcement.ring_version > chain.head.version:
        raise withheld(announcement.ring_version)
    if ring is None and announcement.ring_version >= chain.rings[0].version:
        raise TrustError(
            TrustReason.FORKED_RING,
            f"the device sealed from another ring version {announcement.ring_version} than we hold",
        )
    if ring is None:
        raise TrustError(
            TrustReason.STALE_RING,
            f"the device sealed from a ring version {announcement.ring_version} that is not on our chain",
        )
    if chain.removed_since(ring.version) & {announcement.device, announcement.recipient}:
        raise TrustError(
            TrustReason.STALE_RING, f"a member was removed since the device's ring version {ring.version}"
        )
    recipient = chain.head.member(announcement.recipient)
    if (
        recipient is None
        or recipient.hpke_key is None
        or recipient.hpke_key.name != announcement.hpke_key_name
    ):
        raise TrustError(
            TrustReason.STALE_RING, f"this companion's key was replaced since ring version {ring.version}"
        )


def _check_url(announcement: Announcement, now: float) -> None:
    """Check the FIDO URL, before any program may open it: its form, its age, and its kind."""
    text = announcement.url
    if len(text) > MAX_URL_LENGTH:
        raise TrustError(TrustReason.BAD_URL, f"a FIDO URL of {len(text)} characters is too long")
    if not text.startswith(PREFIX):
        raise TrustError(TrustReason.BAD_URL, f"the URL does not start with {PREFIX}")
    try:
        url = FidoUrl.parse(text)
    except RemoteProtocolError as error:
        raise TrustError(TrustReason.BAD_URL, str(error)) from error
    if url.time is None:
        raise TrustError(TrustReason.BAD_URL, "the FIDO URL does not say when it was made")
    age = int(now) - url.time
    if age > MAX_URL_AGE:
        raise TrustError(
            TrustReason.EXPIRED,
            f"by this clock the FIDO URL is {age} s old; at most {MAX_URL_AGE} s are allowed",
        )
    if -age > MAX_SKEW:
        raise _clock_skew(f"the FIDO URL is {-age} s ahead of this clock; at most {MAX_SKEW} s are allowed")
    if url.hint_raw != announcement.kind:
        raise TrustError(TrustReason.KIND_MISMATCH, "the FIDO URL asks for something else than the envelope")
