"""The stages of a ceremony, which it tells a user interface."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypedDict

from headless_passkey.hybrid.ctap2 import GetInfoResponse
from headless_passkey.refusals import Refusal


class Stage(StrEnum):
    """The stages of a ceremony, for a user interface."""

    PREPARED = "prepared"  # FIDO URLs made, radio on
    DIGITS = "digits"  # tell the digits from now until a companion claims: show, speak, blink or vibrate them
    RING_UNCONFIRMED = "ring-unconfirmed"  # no companion has confirmed the membership for a week
    RELAY_FORGOT_RINGS = "relay-forgot-rings"  # the relay had lost rings that this device holds
    SUBMITTED = "submitted"  # given to the delivery
    NOTIFIED = "notified"  # a companion's phone has been notified
    NOT_NOTIFIED = "not-notified"  # no companion could be notified, and none has the request: open the app
    DELIVERED = "delivered"  # a companion has fetched its URL
    CLAIMED = "claimed"  # a companion's user approved
    REFUSED = "refused"  # a companion cannot take the request; others may
    OPENED = "opened"  # a companion has passed the URL to a phone, or shows it as a QR code
    CONTACTING = "contacting"  # the tunnel service of a linked phone is asked to wake it
    LINK_FORGOTTEN = "link-forgotten"  # a link is deleted, since it can never be used again
    ADVERT_HEARD = "advert-heard"  # an advert of the phone was received
    DIRECT_JOINED = "direct-joined"  # the direct channel is up
    DIRECT_FAILED = "direct-failed"  # it is not, or its handshake failed; the tunnel is tried
    TUNNEL_JOINED = "tunnel-joined"
    CHANNEL_OPEN = "channel-open"  # the handshake is done: the phone holds our URL, or the link
    ATTEMPT_FAILED = "attempt-failed"  # a tunnel or handshake failed, or a phone was left; the scan goes on
    REQUEST_SENT = "request-sent"  # the CTAP command is sent
    REPLY_CHECKED = "reply-checked"
    LINKED = "linked"  # the link that was asked for is stored
    NOT_LINKED = "not-linked"  # there is no link, although one was asked for
    COMPLETED = "completed"


class StageDetail(TypedDict, total=False):
    """Details of a stage. They hold no secret."""

    recipients: int  # PREPARED: the number of URLs
    links: int  # PREPARED: the number of linked phones that are tried before a URL is made
    phone: str  # CONTACTING, LINK_FORGOTTEN, LINKED: the label of the linked phone; where there is one, also at the stages of its channel
    companion: str  # REFUSED, RING_UNCONFIRMED, NOTIFIED: its name in the ring
    label: str  # the same: its name for people, where known
    channel: str  # NOTIFIED: the kind of push service
    days: int  # RING_UNCONFIRMED: since its last word
    first: int  # RELAY_FORGOT_RINGS: the version of the first ring that was lost
    last: int  # the same: of the last
    given: bool  # the same: whether the relay has them again
    reason: str  # REFUSED, LINK_FORGOTTEN, NOT_LINKED: one word; RELAY_FORGOT_RINGS: why the relay does not take them, where it does not
    tunnel_domain: int  # ADVERT_HEARD: the number of the phone's tunnel service
    rssi: int  # ADVERT_HEARD: dBm, where the radio reports it
    why: str  # ATTEMPT_FAILED, DIRECT_FAILED: a message for people
    attempt: int  # ATTEMPT_FAILED: from 1, for each advert; not where a phone was left


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEvent:
    """An event: the ceremony has reached a stage."""

    stage: Stage
    elapsed: float  # seconds since the ceremony began
    detail: StageDetail = field(default_factory=StageDetail)
    phone: GetInfoResponse | None = None  # the phone's getInfo, at CHANNEL_OPEN
    refusal: Refusal | None = None  # at REFUSED, with the content of `detail`
    digits: str | None = field(default=None, repr=False)  # at DIGITS: what the user types on the companion
