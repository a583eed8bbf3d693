"""Everything that can go wrong, as one tree whose branches are what a caller can do about it.

::

    HeadlessPasskeyError(advice)
    ├── UsageError                       2     the caller gave a value that cannot be used: correct the call
    │   └── JoinDiffers                  2     a join that was interrupted goes on in the same words only
    ├── ProtocolError
    │   ├── LocalProtocolError           70    our caller asked for something not allowed now: a bug
    │   └── RemoteProtocolError(reason)  3     the peer broke the protocol, or input is malformed: do not retry
    ├── SetupError(reason)               10    this machine, its files or its settings are not right: mend them first
    ├── TransportError(reason)           4     radio, tunnel, relay or relying party failed: retrying may help
    ├── TrustError(reason)               8     a ring, envelope, invitation or account did not check out
    ├── NotApproved(outcome)             6, 7  declined, expired, cancelled, superseded or withdrawn
    ├── CtapError(status, name)          5     the phone answered, and its answer is no
    ├── NotEnrolled(reason)              9     this device or companion belongs to no account yet
    └── NotSignedIn(reason)              11    there is no session at the relying party, or none any more: sign in again

What stands in parentheses is a public attribute, the number the exit status of a program that the error ends
(``exit_status``). Every error has ``reason`` besides, a stable word or None, and ``advice``, what a person can do about
it, or None. Messages say what was expected and what came, never the bytes, and do not repeat the advice.
"""

from enum import IntEnum, StrEnum
from typing import ClassVar, Final


class ExitStatus(IntEnum):
    """How every program of this project ends."""

    DONE = 0
    USAGE = 2
    PROTOCOL = 3
    TRANSPORT = 4
    PHONE_SAID_NO = 5
    DECLINED = 6
    EXPIRED = 7  # or ended without an answer in another way
    NOT_TRUSTED = 8
    NOT_ENROLLED = 9
    SETUP = 10
    NOT_SIGNED_IN = 11
    REFUSED = 12
    OUR_FAULT = 70
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """In a few words, as docs/cli.md has it."""
        return _MEANINGS[self]


_MEANINGS: Final = {
    ExitStatus.DONE: "done",
    ExitStatus.USAGE: "usage: an option or a value cannot be used",
    ExitStatus.PROTOCOL: "the peer broke the protocol, or input is malformed",
    ExitStatus.TRANSPORT: "transport: radio, tunnel, relay, relying party or input failed; trying again may help",
    ExitStatus.PHONE_SAID_NO: "the phone said no; the CTAP status is named on stderr",
    ExitStatus.DECLINED: "declined by the user",
    ExitStatus.EXPIRED: (
        "nobody answered: the deadline came, or the request or invitation expired, was cancelled or withdrawn by the"
        " other side, or superseded by a newer one of the same device; the reason on stderr says which"
    ),
    ExitStatus.NOT_TRUSTED: "refused by a trust check",
    ExitStatus.NOT_ENROLLED: "not enrolled",
    ExitStatus.SETUP: (
        "set-up: files, disk, packages, ports, certificates or the server's address are not right; trying again does"
        " not help before somebody has mended them"
    ),
    ExitStatus.NOT_SIGNED_IN: "not signed in: no session, or none any more",
    ExitStatus.REFUSED: "a service answered a request of `session fetch`, and its answer is no",
    ExitStatus.OUR_FAULT: "our fault",
    ExitStatus.INTERRUPTED: "interrupted",
}


class HeadlessPasskeyError(Exception):
    """The root: catch this to catch everything this package raises on purpose."""

    exit_status: ClassVar[ExitStatus] = ExitStatus.OUR_FAULT

    def __init__(self, message: str, *, advice: str | None = None) -> None:
        """advice: what a person can do about it, one line for a terminal (`headless_passkey.mends` has the words)."""
        super().__init__(message)
        self.advice = advice

    @property
    def reason(self) -> str | None:
        """A stable word for programs, where the branch has finer kinds than itself."""
        return None

    def explain(self) -> str:
        """The message, and behind it the advice: the line that programs print."""
        return f"{self}: {self.advice}" if self.advice else str(self)


class UsageError(HeadlessPasskeyError):
    """The caller gave a value that cannot be used: an empty label, a URL that is none, options that exclude each other."""

    exit_status = ExitStatus.USAGE


class JoinDiffers(UsageError):  # noqa: N818  it says what is to be done
    """A join that was interrupted is to go on with another label or pin than its inviter was, or will be, shown."""


class ProtocolError(HeadlessPasskeyError):
    """A rule of the protocol was broken, by us or by the peer."""


class LocalProtocolError(ProtocolError):
    """Our caller asked for something that is not allowed now: a bug in the calling program."""


class ProtocolReason(StrEnum):
    """How a peer broke the protocol, or what is malformed: a word for each kind, chosen where the bytes are parsed."""

    # what is not well-formed
    MALFORMED_CBOR = "malformed-cbor"
    MALFORMED_JSON = "malformed-json"
    MALFORMED_BASE64URL = "malformed-base64url"
    MALFORMED_KEY = "malformed-key"  # not a point on the curve, or not a key of its algorithm
    MALFORMED_INPUT = "malformed-input"  # a line on stdin or in a file
    MALFORMED_FIDO_URL = "malformed-fido-url"
    MALFORMED_ADVERT = "malformed-advert"
    MALFORMED_HANDSHAKE = "malformed-handshake"
    MALFORMED_MESSAGE = "malformed-message"  # of the channel: type, padding, post-handshake message
    MALFORMED_CTAP = "malformed-ctap"  # a member that is missing or of another type
    MALFORMED_LINKING = "malformed-linking"  # linking information, or the client payload that uses it
    MALFORMED_TUNNEL_HEADER = "malformed-tunnel-header"
    MALFORMED_AUTHENTICATOR_DATA = "malformed-authenticator-data"
    MALFORMED_EXTENSION = "malformed-extension"  # a WebAuthn extension's input or output
    MALFORMED_OPTIONS = "malformed-options"
    MALFORMED_RP_ID = "malformed-rp-id"
    MALFORMED_RELATED_ORIGINS = "malformed-related-origins"
    MALFORMED_DOCUMENT = "malformed-document"  # ring, envelope, invitation or introduction: its fields
    MALFORMED_RING = "malformed-ring"
    MALFORMED_ENVELOPE = "malformed-envelope"
    MALFORMED_INVITATION = "malformed-invitation"  # or the introduction that answers it
    MALFORMED_ACCOUNT_CODE = "malformed-account-code"
    MALFORMED_RELAY_URL = "malformed-relay-url"
    MALFORMED_ANSWER = "malformed-answer"  # of a server: a member that is missing or of another type
    TOO_LONG = "too-long"  # longer than anything of its kind may be
    # what a peer did
    WRONG_PSK = "wrong-psk"  # it does not hold our pre-shared key
    UNDECRYPTABLE = "undecryptable"  # a message of the channel does not decrypt
    UNEXPECTED_MESSAGE = "unexpected-message"  # well-formed, and not now
    TOO_MANY_MESSAGES = "too-many-messages"
    WEBSOCKET_VIOLATION = "websocket-violation"
    UNASSIGNED_TUNNEL_DOMAIN = "unassigned-tunnel-domain"
    NO_CTAP = "no-ctap"  # the phone offers something else only
    UNREQUESTED_CREDENTIAL = "unrequested-credential"  # none, another, or another's than was asked for
    UNREQUESTED_ALGORITHM = "unrequested-algorithm"
    OTHER_RELYING_PARTY = "other-relying-party"  # the phone answered for it
    USER_NOT_PRESENT = "user-not-present"
    USER_NOT_VERIFIED = "user-not-verified"
    EXTENSION_NOT_DONE = "extension-not-done"  # it was required
    UNSUPPORTED_OPTIONS = "unsupported-options"  # they require what this phone does not offer
    RP_ID_NOT_OF_ORIGIN = "rp-id-not-of-origin"
    UNKNOWN_STATE = "unknown-state"  # the relay names one that there is not
    CONTRADICTION = "contradiction"  # a server's answer does not go with its other answers
    REFUSED = "refused"  # by a server, in a problem document of no finer kind
    OTHER_KEY = "other-key"  # what it is for or from is somebody else


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol, or an input is malformed: hang up, do not retry."""

    exit_status = ExitStatus.PROTOCOL

    def __init__(self, message: str, *, reason: ProtocolReason, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self._reason = reason

    @property
    def reason(self) -> str:
        """A `ProtocolReason`, or a server's own word (`headless_passkey.net.proven_http.Problem`)."""
        return self._reason


class SetupReason(StrEnum):
    """What is wrong with this machine, its files or its settings: trying again does not help."""

    ALREADY_ENROLLED = "already-enrolled"  # there is an account here, which has to be left first
    STATE_EXPOSED = "state-exposed"  # what is for its owner alone is open to others
    STATE_FOREIGN = "state-foreign"  # it belongs to another user
    STATE_DAMAGED = "state-damaged"
    STATE_INCOMPATIBLE = "state-incompatible"  # another version of the program wrote it
    STATE_UNREADABLE = "state-unreadable"
    STATE_UNWRITABLE = "state-unwritable"
    DISK_FULL = "disk-full"  # or the user's share of it
    OUTPUT_UNWRITABLE = "output-unwritable"  # stdout, or a file that was asked for
    BAD_CERTIFICATE = "bad-certificate"  # a certificate, key or authority file that cannot be used
    PORT_TAKEN = "port-taken"
    CANNOT_LISTEN = "cannot-listen"  # at this address, or as this user
    WRONG_SERVER = "wrong-server"  # it answers, and is something else than what was looked for
    MISSING_PACKAGE = "missing-package"


class SetupError(HeadlessPasskeyError):
    """This machine, its files or its settings are not right: trying again does not help, somebody has to mend them."""

    exit_status = ExitStatus.SETUP

    def __init__(self, message: str, *, reason: SetupReason, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self._reason = reason

    @property
    def reason(self) -> SetupReason:
        return self._reason


class TransportReason(StrEnum):
    """What failed, where it can be told: a caller can act on it, and `headless-passkey doctor` uses the same words.

    `headless_passkey.mends.mend` says what to do about each.
    """

    # Bluetooth
    NO_DBUS = "no-d-bus"  # the system bus, behind which Bluetooth is on Linux
    NO_BLUETOOTH_SERVICE = "no-bluetooth-service"  # bluetoothd does not run
    NO_ADAPTER = "no-adapter"  # none at all, not the one that was named, or it was pulled out
    ADAPTER_OFF = "adapter-off"
    ADAPTER_BLOCKED = "adapter-blocked"  # by rfkill or airplane mode: it cannot be turned on
    ADAPTER_UNABLE = "adapter-unable"  # too old, or its service is, for what is asked
    ADAPTER_BUSY = "adapter-busy"  # others use it, or all that it can do at once
    BLUETOOTH_FORBIDDEN = "bluetooth-forbidden"  # this user may not use it
    BLUETOOTH_FAILED = "bluetooth-failed"  # none of the above
    # what another process of this machine gives or holds
    NO_INPUT = "no-input"  # what was to be read did not come, or not in time
    IN_USE = "in-use"  # another process holds the file
    # the network: relay, tunnel service and relying party alike
    NAME_NOT_RESOLVED = "name-not-resolved"
    UNREACHABLE = "unreachable"  # refused, no route, hung up or no answer in time
    UNTRUSTED_CERTIFICATE = "untrusted-certificate"
    PROXY_FAILED = "proxy-failed"  # the proxy that HTTPS_PROXY names
    WENT_SILENT = "went-silent"  # it was reached, and does not answer any more
    SERVER_FAILED = "server-failed"  # it answered, and could not serve


class TransportError(HeadlessPasskeyError):
    """Radio, tunnel, relay or relying party could not be reached or went away: retrying may help."""

    exit_status = ExitStatus.TRANSPORT

    def __init__(
        self, message: str, *, reason: TransportReason | None = None, advice: str | None = None
    ) -> None:
        super().__init__(message, advice=advice)
        self._reason = reason

    @property
    def reason(self) -> TransportReason | None:
        return self._reason


class TrustReason(StrEnum):
    """Why something was refused: each check of docs/protocol/trust.md, and of a session, has its own word."""

    ACCOUNT_MISMATCH = "account-mismatch"
    BAD_MAC = "bad-mac"
    BAD_SIGNATURE = "bad-signature"
    BAD_URL = "bad-url"
    CANNOT_OPEN = "cannot-open"
    CLOCK_SKEW = "clock-skew"
    EXPIRED = "expired"
    FORKED_RING = "forked-ring"
    INVITATION_EXPIRED = "invitation-expired"
    INVITATION_USED = "invitation-used"
    KIND_MISMATCH = "kind-mismatch"
    NOT_A_MEMBER = "not-a-member"
    NOT_ITS_AUDIENCE = "not-its-audience"
    OPTIONS_DIFFER = "options-differ"
    RECIPIENT_MISMATCH = "recipient-mismatch"
    REPLAYED = "replayed"
    RP_NOT_ALLOWED = "rp-not-allowed"
    RP_REFUSED = "rp-refused"
    SESSION_REUSED = "session-reused"
    STALE_RING = "stale-ring"
    UNEXPECTED_USER = "unexpected-user"
    UNKNOWN_DEVICE = "unknown-device"
    WRONG_DIGITS = "wrong-digits"


class TrustError(HeadlessPasskeyError):
    """A ring, envelope, invitation or account did not check out."""

    exit_status = ExitStatus.NOT_TRUSTED

    def __init__(self, reason: TrustReason, message: str, *, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self._reason = reason

    @property
    def reason(self) -> TrustReason:
        return self._reason


class Outcome(StrEnum):
    """How a request or an invitation ended without an answer."""

    DECLINED = "declined"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"  # the inviter took the invitation back


class NotApproved(HeadlessPasskeyError):  # noqa: N818  the outcome is not a fault
    """Nobody approved: declined, expired, cancelled, superseded or withdrawn."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome: Final = outcome

    @property
    def reason(self) -> Outcome:
        return self.outcome

    @property
    def exit_status(self) -> ExitStatus:  # type: ignore[override]  # finer than its class
        return ExitStatus.DECLINED if self.outcome is Outcome.DECLINED else ExitStatus.EXPIRED


class CtapError(HeadlessPasskeyError):
    """The phone answered, and its answer is no: a CTAP2 status other than 0x00."""

    exit_status = ExitStatus.PHONE_SAID_NO

    def __init__(self, status: int, name: str) -> None:
        """status: the CTAP2 status byte, 1-255. name: as the specification spells it."""
        super().__init__(f"the phone answered CTAP status 0x{status:02X} ({name})")
        self.status: Final = status
        self.name: Final = name

    @property
    def reason(self) -> str:
        return self.name


class EnrolmentReason(StrEnum):
    """Why there is no account to use."""

    NOT_ENROLLED = "not-enrolled"
    JOIN_UNFINISHED = "join-unfinished"  # a join was interrupted, and can go on


class NotEnrolled(HeadlessPasskeyError):  # noqa: N818  a state, not a fault
    """This device or companion belongs to no account yet: it must join first."""

    exit_status = ExitStatus.NOT_ENROLLED

    def __init__(self, message: str, *, reason: EnrolmentReason, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self._reason = reason

    @property
    def reason(self) -> EnrolmentReason:
        return self._reason


class SessionReason(StrEnum):
    """Why there is no session to use."""

    NO_SESSION = "no-session"  # none is kept for this relying party
    SESSION_OVER = "session-over"  # it has ended, by time, by its user or by a newer sign-in
    SESSION_KEY_GONE = "session-key-gone"  # it is bound to a key that this device no longer has


class NotSignedIn(HeadlessPasskeyError):  # noqa: N818  a state, not a fault
    """There is no session at the relying party, or none any more: sign in again."""

    exit_status = ExitStatus.NOT_SIGNED_IN

    def __init__(self, message: str, *, reason: SessionReason, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self._reason = reason

    @property
    def reason(self) -> SessionReason:
        return self._reason
