"""The parser of requests: JSON bodies, ids and queries become typed values, or `invalid-request`.

It is strict: unknown members, padded base64url and exceeded bounds are refused.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from companion_push.identity.authority import MAX_TOKEN
from companion_push.push.channel import HANDLE_SIZE, Address, Apns, Fcm, Kind, WebPush
from companion_push.relay.accounts import Introduction
from companion_push.relay.mailbox import CompanionEvent
from companion_push.relay.problems import invalid
from headless_passkey.errors import RemoteProtocolError
from headless_passkey.request import DeviceEvent, InvitationState
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.account_code import CODE_SIZE
from headless_passkey.trust.fields import ACCOUNT_SIZE, REQUEST_ID_SIZE
from headless_passkey.trust.ring import MAX_COMPANIONS, MAX_DOCUMENT, Role
from headless_passkey.trust.signing import NAME_SIZE, SIGNATURE_SIZE
from headless_passkey.trust.word import MAX_WORD
from program_parts.json_text import without_mark

MAX_BODY: Final = 98_304  # bytes: a ring, or sixteen envelopes, in base64url
MAX_LINKS: Final = 32  # rings that are handed in again in one call
MAX_WAIT: Final = 25  # seconds a request may be held
MAX_SEALED: Final = 3072  # bytes
_HASH_SIZE: Final = 32  # bytes, of a SHA-256 and of an HMAC
_TICKET_SIZE: Final = 32  # bytes
_NONCE_SIZE: Final = 32  # bytes
_MAX_INTRODUCTION: Final = 4096  # bytes
_MAX_CURSOR: Final = 64  # characters

Reason = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,64}\Z")]
Body = TypeVar("Body", bound=msgspec.Struct)


Token = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TOKEN)]


class Founding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ring: str
    code: str | None = None  # of a built-in account
    token: Token | None = None  # of the account authority
    reset: bool = False  # close the account before; with a token only

    def __post_init__(self) -> None:
        if (self.code is None) is (self.token is None):
            raise ValueError("an account is founded with a code or with a token")
        if self.reset and self.token is None:
            raise ValueError("reset goes with a token")

    def __repr__(self) -> str:
        return f"Founding(reset={self.reset})"  # the rest is a secret, or long

    def secret(self) -> bytes:
        """Parse to the account code's secret."""
        return octets(self.code or "", "code", CODE_SIZE)

    def document(self) -> bytes:
        """Parse to the ring document."""
        return octets(self.ring, "ring", 1, MAX_DOCUMENT)


class TokenBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: Token

    def __repr__(self) -> str:
        return "TokenBody()"  # it is a secret


class AccountBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which account the account service means: by id, by the name of a built-in one, or by the subject."""

    account: str | None = None
    name: str | None = None
    issuer: str | None = None
    subject: str | None = None

    def __post_init__(self) -> None:
        if (self.issuer is None) is not (self.subject is None):
            raise ValueError("issuer and subject go together")
        if [self.account, self.name, self.subject].count(None) != 2:
            raise ValueError("an account is named by its id, by its name, or by issuer and subject")


class RingBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ring: str

    def parse(self) -> bytes:
        return octets(self.ring, "ring", 1, MAX_DOCUMENT)


class WordBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    word: str

    def parse(self) -> bytes:
        return octets(self.word, "word", 1, MAX_WORD)


class LinksBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rings: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_LINKS)]

    def parse(self) -> list[bytes]:
        return [octets(ring, "ring", 1, MAX_DOCUMENT) for ring in self.rings]


class Announcement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["device", "companion"]
    expires_at: Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]

    @property
    def role(self) -> Role:
        return Role(self.kind)


class IntroductionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    account: Annotated[str, msgspec.Meta(min_length=ACCOUNT_SIZE, max_length=ACCOUNT_SIZE)]
    ticket: str
    body: str
    signature: str
    mac: str

    def __repr__(self) -> str:
        return "IntroductionBody()"  # it holds a secret

    def parse(self) -> tuple[bytes, Introduction]:
        """Parse to the ticket, and the introduction for the inviter."""
        return octets(self.ticket, "ticket", _TICKET_SIZE), Introduction(
            body=octets(self.body, "body", 1, _MAX_INTRODUCTION),
            signature=octets(self.signature, "signature", SIGNATURE_SIZE),
            mac=octets(self.mac, "mac", _HASH_SIZE),
        )


class NonceBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    nonce: str

    def __repr__(self) -> str:
        return "NonceBody()"  # it holds a secret

    def parse(self) -> bytes:
        return octets(self.nonce, "nonce", _NONCE_SIZE)


class AnswerBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ring: str
    mac: str

    def parse(self) -> tuple[bytes, bytes]:
        """Parse to ring document and MAC."""
        return octets(self.ring, "ring", 1, MAX_DOCUMENT), octets(self.mac, "mac", _HASH_SIZE)


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    to: str
    sealed: str


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    expires_in: Annotated[int, msgspec.Meta(ge=1, le=300)]
    envelopes: Annotated[list[_Envelope], msgspec.Meta(min_length=1, max_length=MAX_COMPANIONS)]

    def parse(self) -> dict[str, bytes]:
        """Parse to the envelopes by recipient."""
        sealed = {
            member_name(envelope.to, "to"): octets(envelope.sealed, "sealed", 1, MAX_SEALED)
            for envelope in self.envelopes
        }
        if len(sealed) != len(self.envelopes):
            raise invalid("two envelopes for one recipient")
        return sealed

    def fingerprint(self) -> bytes:
        """A hash of the submission, which does not depend on the form of its JSON."""
        return hashlib.sha256(msgspec.json.encode(self)).digest()


class DeviceReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    event: DeviceEvent
    reason: Reason | None = None


class CompanionReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    event: CompanionEvent
    reason: Reason | None = None
    stays: bool | None = None  # with `opened`
    word: str | None = None  # with `claimed`, always

    def __post_init__(self) -> None:
        if self.stays is not None and self.event is not CompanionEvent.OPENED:
            raise ValueError("stays goes with opened")
        if (self.word is not None) != (self.event is CompanionEvent.CLAIMED):
            raise ValueError("claimed needs a word, and no other event has one")

    def claim(self) -> bytes | None:
        """Parse to the word, unverified; None with other events."""
        return None if self.word is None else octets(self.word, "word", 1, MAX_WORD)


class ChannelBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A push address: the members of its kind, and no others."""

    kind: Kind
    endpoint: str | None = None
    p256dh: str | None = None
    auth: str | None = None
    app: str | None = None
    topic: str | None = None
    token: str | None = None
    sandbox: bool | None = None

    def __post_init__(self) -> None:
        needed = _CHANNEL_MEMBERS[self.kind]
        given = {name for name in self.__struct_fields__ if getattr(self, name) is not None} - {"kind"}
        if given - {"sandbox"} != needed or ("sandbox" in given and self.kind is not Kind.APNS):
            raise ValueError(f"{self.kind} has the members {', '.join(sorted(needed))}")

    def __repr__(self) -> str:
        return f"ChannelBody(kind={self.kind})"  # the rest is a secret

    def parse(self) -> Address:
        """Parse to an address of its kind; nothing is looked up."""
        match self.kind:
            case Kind.WEB_PUSH:
                return WebPush(
                    endpoint=_endpoint(self.endpoint or ""),
                    p256dh=_p256_point(self.p256dh or ""),
                    auth=octets(self.auth or "", "auth", _AUTH_SIZE),
                )
            case Kind.FCM:
                return Fcm(
                    app=_matching(self.app, "app", _NAME, "an app's id"),
                    token=_matching(self.token, "token", _FCM_TOKEN, "a registration token"),
                )
            case Kind.APNS:
                return Apns(
                    topic=_matching(self.topic, "topic", _NAME, "a bundle id"),
                    token=_matching(self.token, "token", _APNS_TOKEN, "a device token, hexadecimal").lower(),
                    sandbox=bool(self.sandbox),
                )


def _matching(text: str | None, what: str, pattern: re.Pattern[str], expected: str) -> str:
    if text is None or pattern.fullmatch(text) is None:
        raise invalid(f"{what}: expected {expected}")
    return text


def _endpoint(text: str) -> str:
    """Check the URL of a push subscription (RFC 8030); where it may lead to, the channel knows."""
    wrong = invalid(
        f"endpoint: expected an https URL without user and fragment, at most {_MAX_ENDPOINT} characters"
    )
    if _URL.fullmatch(text) is None:
        raise wrong
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise wrong from error
    has_dots = any(unquote(segment) in (".", "..") for segment in parts.path.split("/"))
    if (
        parts.scheme != "https"
        or not parts.hostname
        or port == 0
        or "@" in parts.netloc
        or "#" in text
        or has_dots
    ):
        raise wrong
    return text


def _p256_point(text: str) -> bytes:
    """Check a user agent's public key (RFC 8291 §2.1)."""
    data = octets(text, "p256dh", _POINT_SIZE)
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), data)
    except ValueError as error:
        raise invalid("p256dh: expected an uncompressed point of P-256") from error
    return data


_CHANNEL_MEMBERS: Final = {
    Kind.WEB_PUSH: {"endpoint", "p256dh", "auth"},
    Kind.FCM: {"app", "token"},
    Kind.APNS: {"topic", "token"},
}
_AUTH_SIZE: Final = 16  # bytes
_POINT_SIZE: Final = 65  # bytes
_MAX_ENDPOINT: Final = 1024  # characters
_URL: Final = re.compile(
    r"[!-\[\]-~]{9,1024}"
)  # printable ASCII, without the backslash, which programs read differently
_NAME: Final = re.compile(r"[A-Za-z0-9._:-]{1,200}")
_FCM_TOKEN: Final = re.compile(r"[A-Za-z0-9_:.=+/-]{1,1024}")
_APNS_TOKEN: Final = re.compile(r"(?:[0-9A-Fa-f]{2}){32,100}")


def parse_body(data: bytes, kind: type[Body]) -> Body:
    """Parse `data` as one JSON value of `kind`."""
    try:
        return msgspec.json.decode(without_mark(data), type=kind)
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid("the body is not JSON") from error


def body_of(kind: type[Body], members: Mapping[str, Any]) -> Body:
    """Parse the members of a body that came in another form than JSON."""
    try:
        return msgspec.convert(members, type=kind)
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from error


def octets(text: str, what: str, shortest: int, longest: int | None = None) -> bytes:
    """Decode base64url to exactly `shortest` bytes, or `shortest` to `longest`."""
    try:
        data = from_base64url(text)
    except RemoteProtocolError as error:
        raise invalid(f"{what}: {error}") from error
    longest = shortest if longest is None else longest
    if not shortest <= len(data) <= longest:
        size = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
        raise invalid(f"{what}: expected {size} bytes, got {len(data)}")
    return data


def request_id(text: str) -> str:
    """Check a request's id of the path."""
    octets(text, "request id", REQUEST_ID_SIZE)
    return text


def channel_id(text: str) -> str:
    """Check a channel's handle of the path."""
    octets(text, "channel", HANDLE_SIZE)
    return text


def invitation_id(text: str) -> bytes:
    """Decode an invitation's id of the path, the hash of its ticket."""
    return octets(text, "invitation id", _HASH_SIZE)


def member_name(text: str, what: str) -> str:
    """Check a member's name: base64url of 32 bytes, 43 characters."""
    if len(text) != NAME_SIZE:
        raise invalid(f"{what}: expected a member's name of {NAME_SIZE} characters")
    octets(text, what, _HASH_SIZE)
    return text


class Query:
    """The query of a URL: each parameter at most once, and no unknown ones."""

    def __init__(self, parameters: Mapping[str, str], count: int, *allowed: str) -> None:
        """count: of all parameters, repeated ones included."""
        if count != len(parameters) or not set(parameters) <= set(allowed):
            raise invalid(
                f"expected no parameters but {', '.join(allowed)}" if allowed else "expected no parameters"
            )
        self._parameters = parameters

    @classmethod
    def of(cls, **parameters: str | int | None) -> Self:
        """Parameters that came in another form than a URL; None is left out."""
        given = {name: str(value) for name, value in parameters.items() if value is not None}
        return cls(given, len(given), *parameters)

    def number(self, name: str, highest: int) -> int | None:
        text = self._parameters.get(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 10) or int(text) > highest:
            raise invalid(f"{name}: expected a whole number of at most {highest}")
        return int(text)

    def wait(self) -> int:
        """Seconds the caller is willing to wait; default: 0."""
        return self.number("wait", MAX_WAIT) or 0

    def invitation_state(self) -> InvitationState | None:
        """The state which the caller is willing to wait for the end of; None to be answered at once."""
        text = self._parameters.get("state")
        try:
            return None if text is None else InvitationState(text)
        except ValueError as error:
            raise invalid("state: expected a state of an invitation") from error

    def cursor(self, newer: Sequence[str] = ()) -> str | None:
        """newer: the values of the header ``Last-Event-ID``, with which a stream goes on after an interruption."""
        if len(newer) > 1:
            raise invalid("expected one header Last-Event-ID")
        text = newer[0] if newer else self._parameters.get("cursor")
        if text is not None and not 0 < len(text) <= _MAX_CURSOR:
            raise invalid(f"cursor: expected at most {_MAX_CURSOR} characters")
        return text
