"""The relay's refusals as problems of RFC 9457: the one table of them, from which pages, OpenAPI description and documentation follow."""

from enum import StrEnum
from typing import Any, Final, NamedTuple

from http_serving.rate_limit import Policy

PROBLEM_TYPE: Final = "urn:headless-passkey:problem:"  # and then the slug


class Slug(StrEnum):
    """The last word of a problem's type, which never changes."""

    ACCOUNT_CLOSED = "account-closed"
    ACCOUNT_EXISTS = "account-exists"
    ACCOUNT_SUSPENDED = "account-suspended"
    ALREADY_CLAIMED = "already-claimed"
    AUTHORITY_UNAVAILABLE = "authority-unavailable"
    BAD_RING = "bad-ring"
    DEVICE_MUTED = "device-muted"
    DRAINING = "draining"
    EXPIRED = "expired"
    INVALID_REQUEST = "invalid-request"
    INVITATION_USED = "invitation-used"
    NOT_ALLOWED = "not-allowed"
    NOT_FOUND = "not-found"
    PAYLOAD_TOO_LARGE = "payload-too-large"
    PROOF_CLOCK = "proof-clock"
    PROOF_INVALID = "proof-invalid"
    RATE_LIMITED = "rate-limited"
    REQUEST_CONFLICT = "request-conflict"
    RING_CONFLICT = "ring-conflict"
    SIGN_IN_TOO_OLD = "sign-in-too-old"
    STATE_CONFLICT = "state-conflict"
    STORE_UNAVAILABLE = "store-unavailable"
    TOO_MANY_CHANNELS = "too-many-channels"
    TOKEN_REFUSED = "token-refused"  # noqa: S105  no password
    TOO_MANY_PENDING = "too-many-pending"
    UNKNOWN_RECIPIENT = "unknown-recipient"
    UNKNOWN_RING = "unknown-ring"
    UNSUPPORTED_CHANNEL = "unsupported-channel"
    USE_DPOP_NONCE = "use-dpop-nonce"
    WITHDRAWN = "withdrawn"


class ProblemType(NamedTuple):
    """What all problems of one type have in common: the one place where that stands."""

    status: int  # of HTTP
    title: str
    meaning: str  # one or two sentences
    advice: str  # what to do about it


class Problem(Exception):  # noqa: N818  a refusal, spelled as RFC 9457 spells it
    """The relay refuses a request; the HTTP shell sends this as the answer."""

    def __init__(
        self,
        slug: Slug,
        detail: str | None = None,
        *,
        policy: Policy | None = None,
        **members: str | int | None,
    ) -> None:
        """detail: for people; says what was expected, never what came. policy: the limit that refuses. members: for programs."""
        super().__init__(detail or slug)
        self.slug = slug
        self.policy = policy
        self.detail = detail
        self.members = members

    @property
    def status(self) -> int:
        return type_of(self.slug).status

    @property
    def retry_after(self) -> int | None:
        """Seconds to wait before a retry; None where a retry does not help."""
        seconds = self.members.get("retry_after")
        return seconds if isinstance(seconds, int) else None

    def body(self) -> dict[str, Any]:
        """The members of the problem document."""
        known = type_of(self.slug)
        body: dict[str, Any] = {
            "type": f"{PROBLEM_TYPE}{self.slug}",
            "title": known.title,
            "status": known.status,
        }
        if self.detail is not None:
            body["detail"] = self.detail
        return body | self.members


def type_of(slug: Slug) -> ProblemType:
    """What problems of this type mean."""
    return _TABLE[slug]


def not_found() -> Problem:
    """Make the problem for what does not exist or is somebody else's, which the answer does not tell apart."""
    return Problem(Slug.NOT_FOUND)


def invalid(detail: str) -> Problem:
    """Make the problem for a malformed request. detail: what was expected."""
    return Problem(Slug.INVALID_REQUEST, detail)


_TABLE: Final[dict[Slug, ProblemType]] = {
    Slug.INVALID_REQUEST: ProblemType(
        400,
        "The request is malformed",
        "The body, the path or the query is not what this endpoint takes: the detail says what was expected. Nothing was changed.",
        "Correct the client. The same request is refused again.",
    ),
    Slug.BAD_RING: ProblemType(
        400,
        "The ring is not valid",
        "The ring that was handed in breaks a rule of rings, which is named by the member reason. Nothing was changed.",
        "Read the newest ring and make the change again from there; with the reason clock-skew set the clock first.",
    ),
    Slug.UNKNOWN_RECIPIENT: ProblemType(
        400,
        "An envelope is for somebody who is not a companion of the account",
        "The device has sealed an envelope to a key that the newest ring does not list as a companion.",
        "Read the newest ring, verify it, and seal to the companions that it lists.",
    ),
    Slug.UNKNOWN_RING: ProblemType(
        400,
        "The word names a ring that the relay does not hold",
        "The companion's word is about a ring that this relay does not have: it may have lost rings, as after a restore from a backup.",
        "Hand in the rings that the relay has lost, and give the word again.",
    ),
    Slug.UNSUPPORTED_CHANNEL: ProblemType(
        400,
        "The relay pushes to no such address",
        "The relay is not set up for this kind of push service, or not for this app, or its guard does not let it push to that host.",
        "Read what the relay offers (GET /v1/channels), and register a channel of that. Without one the companion polls.",
    ),
    Slug.PROOF_INVALID: ProblemType(
        401,
        "The proof of the caller's key does not hold",
        "The header DPoP is missing, comes twice, was used before, is for another method or URL, or its signature does not verify.",
        "Make a new proof for each request, for the relay's public URL. A relay behind a proxy must be told its public URL.",
    ),
    Slug.PROOF_CLOCK: ProblemType(
        401,
        "The caller's clock differs too much from the relay's",
        "The proof was made more than 60 seconds before or after the relay's time, which is the member now.",
        "Set the clock. A device without a clock may take the relay's time.",
    ),
    Slug.USE_DPOP_NONCE: ProblemType(
        401,
        "The proof needs the newest nonce of this relay",
        "The proof has no nonce, or an old one. Nothing was used up, and the header DPoP-Nonce of this answer has the newest.",
        "Send the same request again at once, with a new proof that has this nonce.",
    ),
    Slug.SIGN_IN_TOO_OLD: ProblemType(
        401,
        "The sign-in at the account service is not recent enough",
        "A reset of the account needs a sign-in of the last minutes, and the token is of an earlier one.",
        "Sign in at the account service again, and repeat the request with the new token.",
    ),
    Slug.TOKEN_REFUSED: ProblemType(
        401,
        "The token of the account service does not hold here",
        "The token is not of the account service that this relay trusts, is for somebody else, has expired, or was changed.",
        "Sign in at the account service that the relay names (GET /v1/accounts/sign-in), and use the token that it gives.",
    ),
    Slug.ACCOUNT_SUSPENDED: ProblemType(
        403,
        "The account is suspended",
        "The account service has suspended the account. Nothing of it is lost, and it goes on when that is lifted.",
        "Ask the account service. Its members need to do nothing.",
    ),
    Slug.DEVICE_MUTED: ProblemType(
        403,
        "The device is muted",
        "Somebody who was asked to approve a request of this device has said that it is not theirs. The relay takes no requests of it until a companion ends that.",
        "Find out who asked, and for what. A companion lists what is muted (GET /v1/mutes) and ends it, or removes the device.",
    ),
    Slug.NOT_ALLOWED: ProblemType(
        403,
        "The account service does not allow this",
        "Whoever knows the people to whom accounts belong has refused this founding or this change of the account.",
        "Ask the account service.",
    ),
    Slug.NOT_FOUND: ProblemType(
        404,
        "There is no such thing, or it is not yours",
        "The relay gives one answer for what does not exist and for what belongs to somebody else, so that nobody can ask what exists.",
        "Check the URL, the id, and with which key the request was made. A removed member is answered so too.",
    ),
    Slug.ACCOUNT_EXISTS: ProblemType(
        409,
        "Who signed in has an account already",
        "A sign-in founds an account and lets nobody into one: companions that are in it decide who joins.",
        "Join by an invitation of a companion, or reset the account with a fresh sign-in.",
    ),
    Slug.ALREADY_CLAIMED: ProblemType(
        409,
        "Another companion holds the claim",
        "Only one companion at a time has the claim of a request, and another one has it.",
        "Leave the request to that companion. It is offered again when the claim is given back or its lease is over.",
    ),
    Slug.INVITATION_USED: ProblemType(
        409,
        "Somebody else has used this, or is waiting",
        "An invitation or an account code admits one newcomer, and another key has shown it before.",
        "Take a new invitation. If nobody else should have had this one, withdraw it.",
    ),
    Slug.REQUEST_CONFLICT: ProblemType(
        409,
        "The id is taken by other bytes",
        "Something with this id was submitted before, with other content.",
        "Submit with a new id, of 16 random bytes.",
    ),
    Slug.RING_CONFLICT: ProblemType(
        409,
        "The ring does not extend the head",
        "Somebody else has changed the account meanwhile. The members version and hash are those of the newest ring.",
        "Read the newest ring, verify it, make the change again on top of it, and try again.",
    ),
    Slug.STATE_CONFLICT: ProblemType(
        409,
        "The state does not allow this",
        "The request or the invitation is in a state, the member state, that this event does not follow.",
        "Read it again, and go on from its state.",
    ),
    Slug.TOO_MANY_CHANNELS: ProblemType(
        409,
        "The companion has as many channels as it may have",
        "A companion registers at most four channels by which it is woken.",
        "Remove one of them, or register the new address under the handle of an old one.",
    ),
    Slug.ACCOUNT_CLOSED: ProblemType(
        410,
        "The account is closed",
        "The operator of the relay has closed or reset the account. This id of it never comes back.",
        "Join the new account, with a code or an invitation. Every companion and device does so.",
    ),
    Slug.EXPIRED: ProblemType(
        410,
        "It has expired",
        "The request, the invitation or the account code had an end, and it has passed.",
        "Begin again: with a new request, invitation or code.",
    ),
    Slug.WITHDRAWN: ProblemType(
        410,
        "The invitation has been withdrawn",
        "The inviter or the newcomer has withdrawn the invitation, or the inviter was removed.",
        "Take a new invitation.",
    ),
    Slug.PAYLOAD_TOO_LARGE: ProblemType(
        413,
        "The body is too large",
        "The body has more bytes than the member limit says.",
        "Correct the client. Where many rings are handed in, send fewer at a time.",
    ),
    Slug.RATE_LIMITED: ProblemType(
        429,
        "Too many in too short a time",
        "A limit is used up. The headers RateLimit-Policy and RateLimit name it, and Retry-After says when to ask again.",
        "Wait for so long. Nothing is gained by asking earlier.",
    ),
    Slug.TOO_MANY_PENDING: ProblemType(
        429,
        "Too many are waiting already",
        "As many requests or invitations as an account may have are open. Retry-After says when the first of them ends.",
        "Answer, cancel or withdraw one of them, or wait.",
    ),
    Slug.AUTHORITY_UNAVAILABLE: ProblemType(
        503,
        "The account service cannot be asked at the moment",
        "The relay needs the account service for this, and it does not answer. Nothing was changed.",
        "Try again after Retry-After.",
    ),
    Slug.DRAINING: ProblemType(
        503,
        "The relay is shutting down",
        "The relay ends, or begins anew. Everything that it has acknowledged is kept.",
        "Try again after Retry-After, with a new connection.",
    ),
    Slug.STORE_UNAVAILABLE: ProblemType(
        503,
        "The store cannot be used at the moment",
        "The relay's disk is full, its file is locked by another program, or was moved. Nothing was changed.",
        "Try again after Retry-After. The relay's operator finds the cause in its log.",
    ),
}
