"""Everything that can go wrong, as one tree whose branches are what a caller can do about it.

::

    RelyingPartyError
    ├── UsageError               the operator's words or settings are wrong
    ├── SetupError               files, store, certificate or address of this machine cannot be used
    ├── StoreUnavailable         the database does not answer: retrying may help
    ├── IssuerUnavailable        a resource server cannot ask the relying party now
    └── RequestRefused           the answer to a request is a problem document (RFC 9457)
        ├── InvalidRequest       400  malformed: nothing changed
        ├── ProofInvalid         401  the proof of possession is missing or wrong
        ├── ProofClock(now)      401  only the proof's clock is wrong
        ├── UseDpopNonce(nonce)  401  the proof lacks a recent nonce of the server
        ├── NotSignedIn          401  no session, or one that has ended
        ├── RefreshTokenReused   401  reuse of a spent refresh token, which ends the session
        ├── TokenInvalid         401  at a resource server: no valid access token
        ├── UnknownResource      401  introspection by an unknown resource server
        ├── StepUpRequired(operation)  401  the operation needs a step-up of its own
        ├── VerificationFailed   403  a check failed; the check's name stays inside
        ├── BrowsersOnly         403  a device does not manage its user's account
        ├── YoungerPasskey       403  a removal is called off with an older passkey
        ├── NotFound             404
        ├── UserExists           409  that name is taken, and the caller is not its owner
        ├── TooManyPasskeys      409  the user has as many as a user may have
        ├── LastCredential       409  a user's only passkey is not removed
        ├── RefreshTokenSpent    409  a late copy of an answered refresh: the session goes on
        ├── CeremonyGone         410  unknown, used or expired: begin again
        ├── PayloadTooLarge      413
        └── RateLimited          429

``exit_status`` is what the program ends with when the error reaches its edge.
"""

from enum import IntEnum, StrEnum
from typing import Any, ClassVar, Final

from http_serving.rate_limit import Policy


class ExitStatus(IntEnum):
    """The program's exit statuses."""

    DONE = 0
    USAGE = 2
    TRANSPORT = 4
    SETUP = 10
    OUR_FAULT = 70
    INTERRUPTED = 130


class RelyingPartyError(Exception):
    """The root: catch this to catch everything this package raises on purpose."""

    exit_status: ClassVar[ExitStatus] = ExitStatus.OUR_FAULT


class UsageError(RelyingPartyError):
    """The operator's words or settings are wrong."""

    exit_status = ExitStatus.USAGE


class SetupError(RelyingPartyError):
    """Files, store, certificate or address of this machine cannot be used: somebody has to mend them first."""

    exit_status = ExitStatus.SETUP


class StoreUnavailable(RelyingPartyError):  # noqa: N818  a state, not a fault
    """The database does not answer: locked, full, gone, or not the file at its path. Retrying may help."""

    exit_status = ExitStatus.TRANSPORT


class IssuerUnavailable(RelyingPartyError):  # noqa: N818  a state, not a fault
    """The relying party cannot be asked about a token: unreachable, or its answer is malformed. Retrying may help."""


class RequestRefused(RelyingPartyError):  # noqa: N818  an answer, not a fault
    """A request is refused. Its problem document has these fixed texts only, and repeats neither library nor request."""

    slug: ClassVar[str]
    status: ClassVar[int]
    title: ClassVar[str]  # fixed for each class

    def __init__(self, detail: str | None = None, **members: Any) -> None:
        """detail: what was expected in this case, never what came. members: for programs, beside the others."""
        super().__init__(detail or self.title)
        self.detail: Final = detail
        self.members: Final = members


class InvalidRequest(RequestRefused):
    """The request is malformed; nothing was looked up or changed."""

    slug, status = "invalid-request", 400
    title = "The request is malformed"


class ProofInvalid(RequestRefused):
    """The proof of possession is missing, malformed, for another request, or replayed."""

    slug, status = "proof-invalid", 401
    title = "The proof of the caller's key does not hold"


class ProofClock(RequestRefused):
    """The proof is valid except for its time."""

    slug, status = "proof-clock", 401
    title = "The caller's clock differs too much from the relying party's"

    def __init__(self, detail: str, *, now: int) -> None:
        """now: Unix seconds by this relying party's clock, for the caller to correct its own."""
        super().__init__(detail, now=now)
        self.now: Final = now


class UseDpopNonce(RequestRefused):
    """The proof is valid except that it lacks a recent nonce of this server: send a new one with `nonce` (RFC 9449 §8)."""

    slug, status = "use-dpop-nonce", 401
    title = "The proof needs the newest nonce of this server"

    def __init__(self, *, nonce: str) -> None:
        """nonce: for the header ``DPoP-Nonce`` of the answer."""
        super().__init__()
        self.nonce: Final = nonce


class NotSignedIn(RequestRefused):
    """The request has no session, or an ended one."""

    slug, status = "not-signed-in", 401
    title = "No session goes with this request"


class RefreshTokenReused(RequestRefused):
    """Reuse of a spent refresh token means theft, so its session has ended (RFC 9700 §4.14.2)."""

    slug, status = "refresh-token-reused", 401
    title = "A spent refresh token came back: its session is over"


class RefreshTokenSpent(RequestRefused):
    """A late copy of a refresh whose answer was used. It is refused, and the session goes on."""

    slug, status = "refresh-token-spent", 409
    title = "The refresh token was used a moment ago: go on with what it gave"

    def __init__(self, retry_after: int) -> None:
        """retry_after: seconds after which the same request would count as reuse."""
        super().__init__(retry_after=retry_after)
        self.retry_after: Final = retry_after


class TokenInvalid(RequestRefused):
    """The access token is missing, malformed, expired, of another issuer, for another audience, or bound to another key."""

    slug, status = "token-invalid", 401
    title = "No access token that holds goes with this request"

    def __init__(self, detail: str, *, given: bool = True) -> None:
        """given: whether the request had a token; only then the answer names an error (RFC 6750 §3.1)."""
        super().__init__(detail)
        self.given: Final = given


class UnknownResource(RequestRefused):
    """The client of an introspection has no valid resource secret."""

    slug, status = "unknown-resource", 401
    title = "Who asks about a token is no resource server known here"


class StepUpRequired(RequestRefused):
    """The request needs a use of a passkey for this very operation: step up, then retry (RFC 9470)."""

    slug, status = "step-up-required", 401
    title = "The passkey has to be used for this"

    def __init__(self, operation: str) -> None:
        """operation: its kind, as a step-up's options name it."""
        super().__init__(operation=operation)
        self.operation: Final = operation


class BrowsersOnly(RequestRefused):
    """A session that began on a device may not manage the user's account; only browsers and apps may."""

    slug, status = "browsers-only", 403
    title = "Accounts are managed in a browser"


class YoungerPasskey(RequestRefused):
    """A removal can be called off only in a session of the passkey that asked for it, or of an older one."""

    slug, status = "younger-passkey", 403
    title = "A removal is called off with an older passkey"


class Check(StrEnum):
    """The checks of a ceremony, by name, for logs and tests. The answer never names one."""

    PURPOSE = "purpose"
    CLIENT_KIND = "client-kind"
    DEVICE_KEY = "device-key"
    CLIENT_DATA = "client-data"
    CHALLENGE = "challenge"
    ORIGIN = "origin"
    CROSS_ORIGIN = "cross-origin"
    USER_VERIFICATION = "user-verification"
    LIBRARY = "library"  # python-fido2: type, rpIdHash, UP, UV, signature, and every malformed byte
    CREDENTIAL_ID = "credential-id"
    CREDENTIAL_TAKEN = "credential-taken"
    UNKNOWN_CREDENTIAL = "unknown-credential"
    NOT_ALLOWED = "not-allowed"
    OWNER = "owner"
    ALGORITHM = "algorithm"
    PUBLIC_KEY = "public-key"
    BACKUP_STATE = "backup-state"
    BACKUP_ELIGIBILITY = "backup-eligibility"
    EXTENSIONS = "extensions"
    SESSION = "session"


class VerificationFailed(RequestRefused):
    """A check of a ceremony failed. The answer is the same for every check, which `check` names for the log."""

    slug, status = "verification-failed", 403
    title = "The response did not verify"

    def __init__(self, check: Check, **members: Any) -> None:
        super().__init__(**members)
        self.check: Final = check


class NotFound(RequestRefused):
    slug, status = "not-found", 404
    title = "There is no such thing, or it is not yours"


class UserExists(RequestRefused):
    """The user name is registered: only a session of that user can add a passkey."""

    slug, status = "user-exists", 409
    title = "The user name is taken"


class TooManyPasskeys(RequestRefused):
    """The user has as many passkeys as a user may have."""

    slug, status = "too-many-passkeys", 409
    title = "A user has a limited number of passkeys"


class LastCredential(RequestRefused):
    """The passkey is the user's only one, and is not removed, so that the user can still sign in."""

    slug, status = "last-credential", 409
    title = "A user's only passkey is not removed"


class CeremonyGone(RequestRefused):
    """The ceremony is unknown, was used, or has expired: begin again."""

    slug, status = "ceremony-gone", 410
    title = "The ceremony is unknown, was used, or has expired"


class PayloadTooLarge(RequestRefused):
    slug, status = "payload-too-large", 413
    title = "The body is too large"


class RateLimited(RequestRefused):
    """A rate limit is exceeded; `retry_after` says when to retry."""

    slug, status = "rate-limited", 429
    title = "There are too many requests"

    def __init__(self, retry_after: int, policy: Policy) -> None:
        """retry_after: seconds."""
        super().__init__(retry_after=retry_after)
        self.retry_after: Final = retry_after
        self.policy: Final = policy
