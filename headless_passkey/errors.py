"""The tree of this project's errors, whose branches are what a caller can do about an error.

::

    HeadlessPasskeyError(advice)
    ├── UsageError                       2     the caller passed an unusable value: correct the call
    │   └── JoinDiffers                  2     an interrupted join resumes with the same label and pins only
    ├── ProtocolError
    │   ├── LocalProtocolError           70    the caller asked for something not allowed now: a bug
    │   └── RemoteProtocolError(reason)  3     the peer violated the protocol, or input is malformed: do not retry
    ├── SetupError(reason)               10    this machine, its files or its settings are wrong: mend them first
    ├── TransportError(reason)           4     radio, tunnel, relay or relying party failed: retrying may help
    ├── TrustError(reason)               8, 9  a check of a ring, envelope, invitation or account failed; 9: removed (not-a-member)
    ├── NotApproved(outcome)             6, 7  declined, expired, cancelled, superseded or withdrawn
    ├── CtapError(status, name)          5     the phone answered with an error
    ├── NotEnrolled(reason)              9     this device or companion belongs to no account yet
    └── NotSignedIn(reason)              11    there is no session at the relying party, or it has ended: sign in again

Names in parentheses are public attributes; the number is the exit status of a program that ends with the error
(``exit_status``). Every error also has ``reason``, a stable word or None, and ``advice``, what a person can do about
it, or None. Messages say what was expected and what came, without its bytes, and do not repeat the advice.
"""

from enum import IntEnum, StrEnum
from typing import ClassVar, Final


class ExitStatus(IntEnum):
    """The exit statuses of all programs."""

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
        """The meaning in a few words, for docs/cli.md."""
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
        " not help before they are mended"
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
        """A stable word for programs, where a branch has several kinds of errors; else None."""
        return None

    def explain(self) -> str:
        """The line that programs print: the message, then the advice."""
        return f"{self}: {self.advice}" if self.advice else str(self)


class UsageError(HeadlessPasskeyError):
    """The caller passed an unusable value: an empty label, a malformed URL, options that exclude each other."""

    exit_status = ExitStatus.USAGE


class JoinDiffers(UsageError):  # noqa: N818  it says what is to be done
    """A resumed join has another label or pin than its inviter was, or will be, shown."""


class ProtocolError(HeadlessPasskeyError):
    """The protocol was violated, by our caller or by the peer."""


class LocalProtocolError(ProtocolError):
    """The caller asked for something that is not allowed now: a bug in the calling program."""


class ProtocolReason(StrEnum):
    """The kinds of protocol violations and malformed input. Each is raised where the bytes are parsed."""

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
    # violations by a peer
    WRONG_PSK = "wrong-psk"  # the peer does not hold our pre-shared key
    UNDECRYPTABLE = "undecryptable"  # a message of the channel does not decrypt
    UNEXPECTED_MESSAGE = "unexpected-message"  # well-formed, and not allowed now
    TOO_MANY_MESSAGES = "too-many-messages"
    WEBSOCKET_VIOLATION = "websocket-violation"
    UNASSIGNED_TUNNEL_DOMAIN = "unassigned-tunnel-domain"
    NO_CTAP = "no-ctap"  # the phone offers something else only
    UNREQUESTED_CREDENTIAL = "unrequested-credential"  # no credential, or another than the requested one
    UNREQUESTED_ALGORITHM = "unrequested-algorithm"
    OTHER_RELYING_PARTY = "other-relying-party"  # the phone answered for another RP ID
    USER_NOT_PRESENT = "user-not-present"
    USER_NOT_VERIFIED = "user-not-verified"
    EXTENSION_NOT_DONE = "extension-not-done"  # a required extension
    UNSUPPORTED_OPTIONS = "unsupported-options"  # the options require what this phone lacks
    RP_ID_NOT_OF_ORIGIN = "rp-id-not-of-origin"
    UNKNOWN_STATE = "unknown-state"  # a state that the contract lacks
    CONTRADICTION = "contradiction"  # a server's answers contradict each other
    REFUSED = "refused"  # by a server, with a problem of another kind
    OTHER_KEY = "other-key"  # of another sender or recipient


class RemoteProtocolError(ProtocolError):
    """The peer violated the protocol, or an input is malformed: close the connection, do not retry."""

    exit_status = ExitStatus.PROTOCOL

    def __init__(self, message: str, *, reason: ProtocolReason, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self._reason = reason

    @property
    def reason(self) -> str:
        """A `ProtocolReason`, or a server's own word (`headless_passkey.net.proven_http.ProblemAnswer`)."""
        return self._reason


class SetupReason(StrEnum):
    """What is wrong with this machine, its files or its settings. A retry does not help."""

    ALREADY_ENROLLED = "already-enrolled"  # the state holds an account, to leave first
    STATE_EXPOSED = "state-exposed"  # a private file is accessible to others
    STATE_FOREIGN = "state-foreign"  # a file belongs to another user
    STATE_DAMAGED = "state-damaged"
    STATE_INCOMPATIBLE = "state-incompatible"  # of another version of the program
    STATE_UNREADABLE = "state-unreadable"
    STATE_UNWRITABLE = "state-unwritable"
    DISK_FULL = "disk-full"  # or the user's share of it
    OUTPUT_UNWRITABLE = "output-unwritable"  # stdout, or an output file
    BAD_CERTIFICATE = "bad-certificate"  # an unusable certificate, key or authority file
    PORT_TAKEN = "port-taken"
    CANNOT_LISTEN = "cannot-listen"  # at this address, or as this user
    WRONG_SERVER = "wrong-server"  # another kind of server answered
    MISSING_PACKAGE = "missing-package"
    CREDENTIALS_REFUSED = "credentials-refused"  # the operator's own, by a push service


class SetupError(HeadlessPasskeyError):
    """This machine, its files or its settings are wrong. A retry does not help: somebody must mend them."""

    exit_status = ExitStatus.SETUP

    def __init__(self, message: str, *, reason: SetupReason, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self._reason = reason

    @property
    def reason(self) -> SetupReason:
        return self._reason


class TransportReason(StrEnum):
    """What failed, where it is known. A caller can act on it, and `headless-passkey doctor` uses the same reasons.

    `headless_passkey.mends.mend` says what to do about each.
    """

    # Bluetooth
    NO_DBUS = "no-d-bus"  # the system bus, which leads to bluetoothd on Linux
    NO_BLUETOOTH_SERVICE = "no-bluetooth-service"  # bluetoothd does not run
    NO_ADAPTER = "no-adapter"  # there is none, or not the named one, or it was unplugged
    ADAPTER_OFF = "adapter-off"
    ADAPTER_BLOCKED = "adapter-blocked"  # by rfkill or airplane mode
    ADAPTER_UNABLE = "adapter-unable"  # adapter or Bluetooth service lacks the function
    ADAPTER_BUSY = "adapter-busy"  # in use, or at its limit
    BLUETOOTH_FORBIDDEN = "bluetooth-forbidden"  # to this user
    BLUETOOTH_FAILED = "bluetooth-failed"  # none of the above
    # other processes of this machine
    NO_INPUT = "no-input"  # expected input did not come, or not in time
    IN_USE = "in-use"  # another process holds the file
    # the network: relay, tunnel service and relying party alike
    NAME_NOT_RESOLVED = "name-not-resolved"
    UNREACHABLE = "unreachable"  # refused, no route, hung up or no answer in time
    UNTRUSTED_CERTIFICATE = "untrusted-certificate"
    PROXY_FAILED = "proxy-failed"  # the proxy that HTTPS_PROXY names
    WENT_SILENT = "went-silent"  # the connection was open, and no answer comes
    UNKNOWN_TO_RELAY = (
        "unknown-to-relay"  # the relay knows no member with this key, and shows no ring without it
    )
    RELAY_INCONSISTENT = "relay-inconsistent"  # the relay's answers contradict each other, try after try
    SERVER_FAILED = "server-failed"  # the server answered with a transient failure


class TransportError(HeadlessPasskeyError):
    """Radio, tunnel, relay or relying party is unreachable or was lost: a retry may help."""

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
    """The failed check: each check of docs/protocol/trust.md, and of a session, has its own reason."""

    ACCOUNT_EXISTS = "account-exists"  # who signed in has one: a token lets nobody into it
    ACCOUNT_MISMATCH = "account-mismatch"
    BACKDATED_RING = "backdated-ring"
    BAD_CLAIM = "bad-claim"
    BAD_COMMITMENT = "bad-commitment"
    BAD_MAC = "bad-mac"
    BAD_POSSESSION = "bad-possession"
    BAD_SIGNATURE = "bad-signature"
    BAD_URL = "bad-url"
    CANNOT_OPEN = "cannot-open"
    CHANGED_MEMBER = "changed-member"
    CHANGE_NOT_ALLOWED = "change-not-allowed"  # by the account service
    CLOCK_SKEW = "clock-skew"
    DIGITS_MISSING = "digits-missing"
    EXPIRED = "expired"
    FORKED_RING = "forked-ring"
    INVITATION_EXPIRED = "invitation-expired"
    INVITATION_USED = "invitation-used"
    KIND_MISMATCH = "kind-mismatch"
    LABEL_TAKEN = "label-taken"
    LAST_COMPANION = "last-companion"
    NOT_A_COMPANION = "not-a-companion"
    NOT_A_MEMBER = "not-a-member"
    NOT_CLAIMED = "not-claimed"
    NOT_ITS_AUDIENCE = "not-its-audience"
    OPTIONS_DIFFER = "options-differ"
    RECIPIENT_MISMATCH = "recipient-mismatch"
    REPLAYED = "replayed"
    RING_FULL = "ring-full"
    RING_GAP = "ring-gap"
    RP_NOT_ALLOWED = "rp-not-allowed"
    RP_REFUSED = "rp-refused"
    SESSION_REUSED = "session-reused"
    STALE_RING = "stale-ring"
    UNCONFIRMED_RING = "unconfirmed-ring"
    UNEXPECTED_USER = "unexpected-user"
    UNKNOWN_DEVICE = "unknown-device"
    UNSUPPORTED_SUITE = "unsupported-suite"
    WITHHELD_RING = "withheld-ring"
    WRONG_DIGITS = "wrong-digits"
    WRONG_NUMBER = "wrong-number"


class TrustError(HeadlessPasskeyError):
    """A check of a ring, envelope, invitation, account or session failed; or this device or companion was removed."""

    def __init__(self, reason: TrustReason, message: str, *, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self._reason = reason

    @property
    def reason(self) -> TrustReason:
        return self._reason

    @property
    def exit_status(self) -> ExitStatus:  # type: ignore[override]  # finer than its class
        removed = self._reason is TrustReason.NOT_A_MEMBER
        return ExitStatus.NOT_ENROLLED if removed else ExitStatus.NOT_TRUSTED


class Outcome(StrEnum):
    """The ends of a request or an invitation without success."""

    DECLINED = "declined"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"  # by the inviter


class NotApproved(HeadlessPasskeyError):  # noqa: N818  the outcome is not a fault
    """Nobody approved: declined, expired, cancelled, superseded or withdrawn."""

    def __init__(self, outcome: Outcome, message: str, *, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self.outcome: Final = outcome

    @property
    def reason(self) -> Outcome:
        return self.outcome

    @property
    def exit_status(self) -> ExitStatus:  # type: ignore[override]  # finer than its class
        return ExitStatus.DECLINED if self.outcome is Outcome.DECLINED else ExitStatus.EXPIRED


class CtapError(HeadlessPasskeyError):
    """The phone answered with an error: a CTAP2 status other than 0x00."""

    exit_status = ExitStatus.PHONE_SAID_NO

    def __init__(self, status: int, name: str, *, advice: str | None = None) -> None:
        """status: the CTAP2 status byte, 1-255. name: as the specification spells it."""
        super().__init__(f"the phone answered CTAP status 0x{status:02X} ({name})", advice=advice)
        self.status: Final = status
        self.name: Final = name

    @property
    def reason(self) -> str:
        return self.name


class EnrolmentReason(StrEnum):
    """Why there is no account that can be used."""

    NOT_ENROLLED = "not-enrolled"
    ACCOUNT_CLOSED = "account-closed"  # the relay says so: it was reset or deleted by its operator
    ACCOUNT_SUSPENDED = "account-suspended"  # the relay says so: it goes on when its operator lifts that
    DEVICE_MUTED = (
        "device-muted"  # the relay says so: somebody who was asked said "not me", until a companion ends that
    )
    JOIN_UNFINISHED = "join-unfinished"  # an interrupted join, which can be resumed


class NotEnrolled(HeadlessPasskeyError):  # noqa: N818  a state, not a fault
    """This device or companion belongs to no account that it can use: it must join first, its account is closed or suspended, or it is muted."""

    exit_status = ExitStatus.NOT_ENROLLED

    def __init__(self, message: str, *, reason: EnrolmentReason, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self._reason = reason

    @property
    def reason(self) -> EnrolmentReason:
        return self._reason


class SessionReason(StrEnum):
    """Why there is no session or sign-in to use."""

    NO_SESSION = "no-session"  # none is stored for this relying party
    SESSION_OVER = "session-over"  # it has ended: by expiry, by its user, or by a newer sign-in
    SESSION_KEY_GONE = "session-key-gone"  # this device no longer has the key that it is bound to
    SIGN_IN_REFUSED = "sign-in-refused"  # at the account service, or its token at the relay
    SIGN_IN_TOO_OLD = "sign-in-too-old"  # at the account service: a reset needs one of the last minutes


class NotSignedIn(HeadlessPasskeyError):  # noqa: N818  a state, not a fault
    """There is no session at the relying party, or no sign-in at the account service, or it is over: sign in again."""

    exit_status = ExitStatus.NOT_SIGNED_IN

    def __init__(self, message: str, *, reason: SessionReason, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self._reason = reason

    @property
    def reason(self) -> SessionReason:
        return self._reason
