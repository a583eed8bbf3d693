"""The relay's refusals as problems of RFC 9457: the table of docs/protocol/relay.md."""

from enum import StrEnum
from typing import Any, Final

from companion_push.serving.rate_limit import Policy


class Slug(StrEnum):
    """The last word of a problem's type, which never changes."""

    ACCOUNT_CLOSED = "account-closed"
    ACCOUNT_EXISTS = "account-exists"
    ACCOUNT_SUSPENDED = "account-suspended"
    ALREADY_CLAIMED = "already-claimed"
    AUTHORITY_UNAVAILABLE = "authority-unavailable"
    BAD_RING = "bad-ring"
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
        return _TABLE[self.slug][0]

    @property
    def retry_after(self) -> int | None:
        """Seconds to wait before a retry; None where a retry does not help."""
        seconds = self.members.get("retry_after")
        return seconds if isinstance(seconds, int) else None

    def body(self) -> dict[str, Any]:
        """The members of the problem document."""
        status, title = _TABLE[self.slug]
        body: dict[str, Any] = {
            "type": f"urn:headless-passkey:problem:{self.slug}",
            "title": title,
            "status": status,
        }
        if self.detail is not None:
            body["detail"] = self.detail
        return body | self.members


def not_found() -> Problem:
    """Make the problem for what does not exist or is somebody else's, which the answer does not tell apart."""
    return Problem(Slug.NOT_FOUND)


def invalid(detail: str) -> Problem:
    """Make the problem for a malformed request. detail: what was expected."""
    return Problem(Slug.INVALID_REQUEST, detail)


_TABLE: Final[dict[Slug, tuple[int, str]]] = {
    Slug.INVALID_REQUEST: (400, "The request is malformed"),
    Slug.BAD_RING: (400, "The ring is not valid"),
    Slug.UNKNOWN_RECIPIENT: (400, "An envelope is for somebody who is not a companion of the account"),
    Slug.UNKNOWN_RING: (400, "The word names a ring that the relay does not hold"),
    Slug.UNSUPPORTED_CHANNEL: (400, "The relay pushes to no such address"),
    Slug.PROOF_INVALID: (401, "The proof of the caller's key does not hold"),
    Slug.PROOF_CLOCK: (401, "The caller's clock differs too much from the relay's"),
    Slug.USE_DPOP_NONCE: (401, "The proof needs the newest nonce of this relay"),
    Slug.SIGN_IN_TOO_OLD: (401, "The sign-in at the account service is not recent enough"),
    Slug.TOKEN_REFUSED: (401, "The token of the account service does not hold here"),
    Slug.ACCOUNT_SUSPENDED: (403, "The account is suspended"),
    Slug.NOT_ALLOWED: (403, "The account service does not allow this"),
    Slug.NOT_FOUND: (404, "There is no such thing, or it is not yours"),
    Slug.ACCOUNT_EXISTS: (409, "Who signed in has an account already"),
    Slug.ALREADY_CLAIMED: (409, "Another companion holds the claim"),
    Slug.INVITATION_USED: (409, "Somebody else has used this, or is waiting"),
    Slug.REQUEST_CONFLICT: (409, "The id is taken by other bytes"),
    Slug.RING_CONFLICT: (409, "The ring does not extend the head"),
    Slug.STATE_CONFLICT: (409, "The state does not allow this"),
    Slug.TOO_MANY_CHANNELS: (409, "The companion has as many channels as it may have"),
    Slug.ACCOUNT_CLOSED: (410, "The account is closed"),
    Slug.EXPIRED: (410, "It has expired"),
    Slug.WITHDRAWN: (410, "The invitation has been withdrawn"),
    Slug.PAYLOAD_TOO_LARGE: (413, "The body is too large"),
    Slug.RATE_LIMITED: (429, "Too many in too short a time"),
    Slug.TOO_MANY_PENDING: (429, "Too many are waiting already"),
    Slug.AUTHORITY_UNAVAILABLE: (503, "The account service cannot be asked at the moment"),
    Slug.DRAINING: (503, "The relay is shutting down"),
    Slug.STORE_UNAVAILABLE: (503, "The store cannot be used at the moment"),
}
