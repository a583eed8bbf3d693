"""The device as a WebAuthn client: it turns options JSON and an origin into response JSON (WebAuthn Level 3).

`AuthenticationOptions` and `RegistrationOptions` parse what a relying party sends, make the CTAP request, and turn the
phone's checked reply into the JSON that the relying party expects. The device itself chooses the origin, so `parse`
checks that the origin may use the RP ID.

What happens where the options lack a member or the phone a feature: the RP ID stands for a missing ``rp.name``, and the
name for a missing ``user.displayName``. A missing ``user.name`` is an error, since people could not tell the passkey from
others. An unknown enumeration value counts as absent. ``residentKey: preferred`` and ``userVerification: preferred`` are
requested of phones that support them; ``required`` is an error where the phone does not. null and empty text count as
absent, except in required members. A list skips entries that it cannot parse, and takes numbers as browsers do. Extensions are in `extensions`, the rules for origin and RP ID in `origins`.
"""

import hashlib
import hmac
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import (
    GetAssertionRequest,
    GetAssertionResponse,
    GetInfoResponse,
    MakeCredentialRequest,
    MakeCredentialResponse,
    User,
)
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.hybrid.keys import parse_uncompressed
from headless_passkey.text.base64url import from_base64url
from headless_passkey.webauthn.extensions import (
    AuthenticationExtensions,
    RegistrationExtensions,
    optional_object,
)
from headless_passkey.webauthn.origins import RelatedOrigins, check_origin, host_of, is_within
from program_parts.base64url import base64url
from program_parts.json_text import decode_json

MAX_JSON_SIZE: Final = 64 * 1024
MAX_REQUEST_SIZE: Final = (
    65_000  # bytes of CBOR, which fit into a message of 64 KiB with type, command, padding and tag
)
DEFAULT_ALGORITHMS: Final = (-7, -257)  # WebAuthn's default for an empty list: ES256, RS256

_REQUIREMENTS: Final = ("required", "preferred", "discouraged")
_CONVEYANCES: Final = ("none", "indirect", "direct", "enterprise")
_HINTS: Final = ("security-key", "client-device", "hybrid")
_NUMBER: Final = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_Request = TypeVar("_Request", GetAssertionRequest, MakeCredentialRequest)
_USER_PRESENT, _USER_VERIFIED, _ATTESTED, _EXTENSIONS = 0x01, 0x04, 0x40, 0x80


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """The phone's checked response, in the relying party's format."""

    response: Mapping[str, Any] = field(repr=False)  # AuthenticationResponseJSON or RegistrationResponseJSON
    credential_id: bytes
    user_handle: bytes | None = field(repr=False, default=None)  # the passkey's user, as the phone says
    user_name: str | None = field(repr=False, default=None)

    def to_json(self) -> str:
        """Encode the response as one line of JSON, in the form of a browser's ``toJSON``."""
        return json.dumps(self.response, separators=(",", ":"))

    def for_relying_party(self) -> dict[str, Any]:
        """The response without prf results, which are keys of this device and must not reach a server."""
        outputs = self.response.get("clientExtensionResults", {})
        if "prf" not in outputs:
            return dict(self.response)
        prf = {name: value for name, value in outputs["prf"].items() if name != "results"}
        return {**self.response, "clientExtensionResults": {**outputs, "prf": prf}}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationOptions:
    """PublicKeyCredentialRequestOptionsJSON: the members that a phone over hybrid can serve."""

    hint: ClassVar[RequestKind] = RequestKind.GET_ASSERTION

    origin: str
    rp_id: str
    challenge: bytes = field(repr=False)
    allow_list: tuple[bytes, ...] = ()  # credential IDs; empty: any discoverable credential
    user_verification: str = "preferred"
    hints: tuple[str, ...] = ()  # where the relying party expects the passkey, most likely first
    extensions: AuthenticationExtensions = field(default_factory=AuthenticationExtensions)

    @classmethod
    def parse(cls, options: Any, *, origin: str, related: RelatedOrigins | None = None) -> Self:
        """Parse JSON text, a parsed object, or either inside ``{"publicKey": …}``.

        related: the RP ID's related origins, for an origin that is not within the RP ID.
        """
        values = _options_object(options)
        allow_list = _descriptor_ids(values, "allowCredentials")
        if values.get("allowCredentials") and not allow_list:  # an empty list would allow every passkey
            raise RemoteProtocolError(
                "the options' allowCredentials names no public-key credential by an id in base64url",
                reason=ProtocolReason.MALFORMED_OPTIONS,
            )
        return cls(
            origin=origin,
            rp_id=_rp_id(_text(values, "rpId"), origin, related),
            challenge=_challenge(values),
            allow_list=allow_list,
            user_verification=_user_verification(values),
            hints=_hints(values),
            extensions=AuthenticationExtensions.parse(
                optional_object(values, "extensions") or {}, allow_list
            ),
        )

    @property
    def client_data(self) -> bytes:
        return _client_data("webauthn.get", self.challenge, self.origin)

    def ctap_request(self, phone: GetInfoResponse | None = None) -> GetAssertionRequest:
        """Make the CTAP request. phone: its getInfo; None takes it to support everything."""
        _check_can(phone, "uv", self.user_verification)
        wanted = self.user_verification != "discouraged" or self.extensions.prf is not None
        return _sendable(
            GetAssertionRequest(
                rp_id=self.rp_id,
                client_data_hash=hashlib.sha256(self.client_data).digest(),
                allow_list=self.allow_list,
                extensions=self.extensions.ctap_inputs(phone),
                user_verification=wanted and _can(phone, "uv"),
            )
        )

    def accept(self, payload: bytes, _peer: GetInfoResponse | None = None) -> Credential:
        """Check the phone's reply and make AuthenticationResponseJSON; `RemoteProtocolError` for a reply to something else."""
        reply = GetAssertionResponse.parse(payload)
        data = AuthenticatorData.parse(reply.auth_data)
        data.check(self.rp_id, self.user_verification)
        credential_id = reply.credential_id
        if credential_id is None and len(self.allow_list) == 1:
            credential_id = self.allow_list[0]
        if credential_id is None:
            raise RemoteProtocolError(
                "the phone did not name the credential it used", reason=ProtocolReason.UNREQUESTED_CREDENTIAL
            )
        if self.allow_list and credential_id not in self.allow_list:
            raise RemoteProtocolError(
                "the phone used a credential that is not in the allow list",
                reason=ProtocolReason.UNREQUESTED_CREDENTIAL,
            )
        if not self.allow_list and reply.user is None:
            raise RemoteProtocolError(
                "the phone did not name the user of a discoverable credential",
                reason=ProtocolReason.UNREQUESTED_CREDENTIAL,
            )
        response = {
            "clientDataJSON": base64url(self.client_data),
            "authenticatorData": base64url(reply.auth_data),
            "signature": base64url(reply.signature),
        }
        if reply.user is not None:
            response["userHandle"] = base64url(reply.user.id)
        return Credential(
            response=_credential_json(
                credential_id,
                response,
                self.extensions.results(reply.unsigned_extension_outputs, credential_id=credential_id),
            ),
            credential_id=credential_id,
            user_handle=None if reply.user is None else reply.user.id,
            user_name=None if reply.user is None else reply.user.name or None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationOptions:
    """PublicKeyCredentialCreationOptionsJSON: the members that a phone over hybrid can serve."""

    hint: ClassVar[RequestKind] = RequestKind.MAKE_CREDENTIAL

    origin: str
    rp_id: str
    rp_name: str  # phones require one; default: the RP ID
    user: User  # phones require a display name; default: the name
    challenge: bytes = field(repr=False)
    algorithms: tuple[int, ...] = DEFAULT_ALGORITHMS
    exclude_list: tuple[bytes, ...] = ()
    resident_key: str = "discouraged"
    user_verification: str = "preferred"
    attestation: str = "none"
    hints: tuple[str, ...] = ()  # where the relying party expects the passkey, most likely first
    extensions: RegistrationExtensions = field(default_factory=RegistrationExtensions)

    @classmethod
    def parse(cls, options: Any, *, origin: str, related: RelatedOrigins | None = None) -> Self:
        """Parse JSON text, a parsed object, or either inside ``{"publicKey": …}``.

        related: the RP ID's related origins, for an origin that is not within the RP ID.
        """
        values = _options_object(options)
        rp, user = optional_object(values, "rp"), optional_object(values, "user")
        if rp is None or user is None:
            raise RemoteProtocolError(
                "the options have no rp or no user", reason=ProtocolReason.MALFORMED_OPTIONS
            )
        selection = optional_object(values, "authenticatorSelection") or {}
        hints = _hints(values)
        if selection.get("authenticatorAttachment") == "platform" and "hybrid" not in hints:
            raise RemoteProtocolError(
                "the options ask for a platform authenticator, and a phone is a roaming one",
                reason=ProtocolReason.UNSUPPORTED_OPTIONS,
            )
        rp_id = _rp_id(_text(rp, "id"), origin, related)
        name = _text(user, "name")
        user_id = _bytes(user, "id")
        if not name or not 1 <= len(user_id) <= 64:
            raise RemoteProtocolError(
                "the options' user has no name, or no id of 1 to 64 bytes",
                reason=ProtocolReason.MALFORMED_OPTIONS,
            )
        resident_key = "required" if selection.get("requireResidentKey") is True else "discouraged"
        return cls(
            origin=origin,
            rp_id=rp_id,
            rp_name=_text(rp, "name") or rp_id,
            user=User(id=user_id, name=name, display_name=_text(user, "displayName") or name),
            challenge=_challenge(values),
            algorithms=_algorithms(values),
            exclude_list=_descriptor_ids(values, "excludeCredentials"),
            resident_key=_word(selection, "residentKey", _REQUIREMENTS, default=resident_key),
            user_verification=_user_verification(selection),
            attestation=_word(values, "attestation", _CONVEYANCES, default="none"),
            hints=hints,
            extensions=RegistrationExtensions.parse(optional_object(values, "extensions") or {}),
        )

    @property
    def client_data(self) -> bytes:
        return _client_data("webauthn.create", self.challenge, self.origin)

    def ctap_request(self, phone: GetInfoResponse | None = None) -> MakeCredentialRequest:
        """Make the CTAP request. phone: its getInfo; None takes it to support everything."""
        _check_can(phone, "uv", self.user_verification)
        _check_can(phone, "rk", self.resident_key)
        return _sendable(
            MakeCredentialRequest(
                client_data_hash=hashlib.sha256(self.client_data).digest(),
                rp_id=self.rp_id,
                rp_name=self.rp_name,
                user=self.user,
                algorithms=self.algorithms,
                exclude_list=self.exclude_list,
                extensions=self.extensions.ctap_inputs(phone),
                resident_key=self._asks_resident_key(phone),
                user_verification=self._asks_user_verification(phone),
            )
        )

    def _asks_resident_key(self, phone: GetInfoResponse | None) -> bool:
        return self.resident_key == "required" or (self.resident_key == "preferred" and _can(phone, "rk"))

    def _asks_user_verification(self, phone: GetInfoResponse | None) -> bool:
        """Whether to request user verification: also where it is discouraged, if the phone requires it (CTAP 2.2 §6.1.2 step 6)."""
        insists = phone is not None and not phone.options.get("makeCredUvNotRqd", False)
        wanted = self.user_verification != "discouraged" or self.extensions.prf is not None or insists
        return wanted and _can(phone, "uv")

    def accept(self, payload: bytes, peer: GetInfoResponse | None = None) -> Credential:
        """Check the phone's reply and make RegistrationResponseJSON; `RemoteProtocolError` for a reply to something else.

        peer: the phone's getInfo, whose transports go to the relying party.
        """
        reply = MakeCredentialResponse.parse(payload)
        data = AuthenticatorData.parse(reply.auth_data)
        data.check(self.rp_id, self.user_verification)
        if data.credential_id is None or data.public_key is None:
            raise RemoteProtocolError(
                "the phone's registration holds no credential",
                reason=ProtocolReason.MALFORMED_AUTHENTICATOR_DATA,
            )
        algorithm = data.public_key.get(3)
        if algorithm not in self.algorithms:
            raise RemoteProtocolError(
                "the phone made a key of an algorithm that was not offered",
                reason=ProtocolReason.UNREQUESTED_ALGORITHM,
            )
        anonymous = self.attestation == "none"
        attestation_object = cbor.encode(
            {
                "fmt": "none" if anonymous else reply.fmt,
                "attStmt": {} if anonymous else dict(reply.att_stmt),
                "authData": reply.auth_data,
            }
        )
        public_key = _public_key(data.public_key)
        response = {
            "clientDataJSON": base64url(self.client_data),
            "attestationObject": base64url(attestation_object),
            "authenticatorData": base64url(reply.auth_data),
            "publicKeyAlgorithm": algorithm,
            **({} if public_key is None else {"publicKey": base64url(public_key)}),
            "transports": sorted({*(peer.transports if peer else ()), "hybrid"}),
        }
        outputs = self.extensions.results(
            reply.unsigned_extension_outputs, resident_key=self._asks_resident_key(peer)
        )
        return Credential(
            response=_credential_json(data.credential_id, response, outputs),
            credential_id=data.credential_id,
            user_handle=self.user.id,
            user_name=self.user.name,
        )


Options = AuthenticationOptions | RegistrationOptions


def foreign_rp_id(options: Any, *, origin: str) -> str | None:
    """The RP ID of `options` where `origin` needs a related origins request to use it; None where it needs none."""
    values = _options_object(options)
    named = values.get("rp", values)
    rp_id = _text(named, "id" if "rp" in values else "rpId") if isinstance(named, Mapping) else None
    return None if rp_id is None or is_within(host_of(check_origin(origin)), rp_id) else rp_id


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticatorData:
    """Authenticator data (WebAuthn §6.1): the members that a client checks."""

    rp_id_hash: bytes  # 32 bytes
    flags: int
    credential_id: bytes | None = None
    public_key: Mapping[int, Any] | None = None  # COSE key

    @classmethod
    def parse(cls, data: bytes) -> Self:
        if len(data) < 37:
            raise RemoteProtocolError(
                f"authenticator data has 37 bytes or more, got {len(data)}",
                reason=ProtocolReason.MALFORMED_AUTHENTICATOR_DATA,
            )
        rp_id_hash, flags, rest = data[:32], data[32], data[37:]
        credential_id, public_key = None, None
        if flags & _ATTESTED:
            size = int.from_bytes(rest[16:18], "big")
            credential_id, rest = rest[18 : 18 + size], rest[18 + size :]
            if not 1 <= len(credential_id) == size <= 1023:
                raise RemoteProtocolError(
                    "authenticator data ends inside the credential ID",
                    reason=ProtocolReason.MALFORMED_AUTHENTICATOR_DATA,
                )
            public_key, rest = cbor.decode_first(rest)
            if not isinstance(public_key, dict):
                raise RemoteProtocolError(
                    "a credential's public key is not a COSE key", reason=ProtocolReason.MALFORMED_KEY
                )
        if flags & _EXTENSIONS:
            outputs, rest = cbor.decode_first(rest)
            if not isinstance(outputs, dict):
                raise RemoteProtocolError(
                    "extension outputs are not a map", reason=ProtocolReason.MALFORMED_AUTHENTICATOR_DATA
                )
        if rest:
            raise RemoteProtocolError(
                "authenticator data is longer than its flags say",
                reason=ProtocolReason.MALFORMED_AUTHENTICATOR_DATA,
            )
        return cls(rp_id_hash=rp_id_hash, flags=flags, credential_id=credential_id, public_key=public_key)

    def check(self, rp_id: str, user_verification: str) -> None:
        """Check RP ID hash, user presence and, if required, user verification."""
        if not hmac.compare_digest(self.rp_id_hash, hashlib.sha256(rp_id.encode()).digest()):
            raise RemoteProtocolError(
                "the phone answered for another relying party", reason=ProtocolReason.OTHER_RELYING_PARTY
            )
        if not self.flags & _USER_PRESENT:
            raise RemoteProtocolError(
                "the phone did not say that the user was present", reason=ProtocolReason.USER_NOT_PRESENT
            )
        if user_verification == "required" and not self.flags & _USER_VERIFIED:
            raise RemoteProtocolError(
                "the phone did not verify the user, which was required",
                reason=ProtocolReason.USER_NOT_VERIFIED,
            )


def _public_key(cose: Mapping[int, Any]) -> bytes | None:
    """Encode a COSE key as SubjectPublicKeyInfo, for the algorithms that every client implements (§5.2.1.1); else None."""
    key: PublicKeyTypes
    try:
        match cose:
            case {1: 2, 3: -7, -1: 1, -2: bytes(x), -3: bytes(y)} if len(x) == len(y) == 32:
                key = parse_uncompressed(b"\4" + x + y)
            case {1: 1, 3: -8, -1: 6, -2: bytes(x)}:
                key = Ed25519PublicKey.from_public_bytes(x)
            case {1: 3, 3: -257, -1: bytes(n), -2: bytes(e)}:
                key = RSAPublicNumbers(int.from_bytes(e, "big"), int.from_bytes(n, "big")).public_key()
            case {3: -7 | -8 | -257}:
                raise RemoteProtocolError(
                    "a credential's public key does not fit its algorithm",
                    reason=ProtocolReason.MALFORMED_KEY,
                )
            case _:
                return None
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError as error:
        raise RemoteProtocolError(
            "a credential's public key is not a key of its algorithm", reason=ProtocolReason.MALFORMED_KEY
        ) from error


def _options_object(options: Any) -> dict[str, Any]:
    if isinstance(options, str | bytes):
        if len(options) > MAX_JSON_SIZE:
            raise RemoteProtocolError("the options are longer than 64 KiB", reason=ProtocolReason.TOO_LONG)
        try:
            options = decode_json(options)
        except ValueError as error:
            raise RemoteProtocolError(
                "the options are not JSON", reason=ProtocolReason.MALFORMED_JSON
            ) from error
    if isinstance(options, Mapping) and isinstance(options.get("publicKey"), Mapping):
        options = options["publicKey"]
    if not isinstance(options, Mapping):
        raise RemoteProtocolError(
            "the options are not a JSON object", reason=ProtocolReason.MALFORMED_OPTIONS
        )
    return dict(options)


def _rp_id(rp_id: str | None, origin: str, related: RelatedOrigins | None) -> str:
    """§5.1.3: absent means the origin's host; otherwise the origin must be within it, or related to it."""
    host = host_of(check_origin(origin))
    if rp_id is None or is_within(host, rp_id):
        return rp_id or host
    if related is not None and related.rp_id == rp_id and related.allow(origin):
        return rp_id
    raise RemoteProtocolError(
        "the options' RP ID does not belong to the origin", reason=ProtocolReason.RP_ID_NOT_OF_ORIGIN
    )


def _can(phone: GetInfoResponse | None, option: str) -> bool:
    return phone is None or phone.options.get(option, False)


def _check_can(phone: GetInfoResponse | None, option: str, requirement: str) -> None:
    if requirement == "required" and not _can(phone, option):
        what = {"uv": "user verification", "rk": "a discoverable credential"}[option]
        raise RemoteProtocolError(
            f"the options require {what}, which this phone does not offer",
            reason=ProtocolReason.UNSUPPORTED_OPTIONS,
        )


def _sendable(request: _Request) -> _Request:
    """The request, where a message can carry it: tunnel services take 64 KiB, and so do direct channels."""
    size = len(request.encode())
    if size > MAX_REQUEST_SIZE:
        raise RemoteProtocolError(
            f"the options make a request of {size} bytes, and a phone is sent at most {MAX_REQUEST_SIZE}",
            reason=ProtocolReason.TOO_LONG,
        )
    return request


def _hints(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(hint for hint in _list(values, "hints") if hint in _HINTS)


def _algorithms(values: Mapping[str, Any]) -> tuple[int, ...]:
    items = values.get("pubKeyCredParams")
    if not isinstance(items, list):
        raise RemoteProtocolError(
            "the options have no list pubKeyCredParams", reason=ProtocolReason.MALFORMED_OPTIONS
        )
    if not items:
        return DEFAULT_ALGORITHMS
    algorithms = tuple(_long(item.get("alg")) for item in items if _is_public_key(item))
    if not any(algorithms):
        raise RemoteProtocolError(
            "pubKeyCredParams names no public-key algorithm", reason=ProtocolReason.MALFORMED_OPTIONS
        )
    return tuple(algorithm for algorithm in algorithms if algorithm)


def _long(value: Any) -> int:
    """A number as WebIDL converts it to a ``long``: from text too, towards zero, modulo 2**32.

    0, which is no COSE algorithm, for everything else.
    """
    if isinstance(value, str) and not (len(value) < 64 and _NUMBER.fullmatch(value)):
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0
    try:
        value = float(value)  # as browsers read every number of JSON
    except OverflowError:  # a whole number above the largest float
        return 0
    if not math.isfinite(value):
        return 0
    number = (int(value) + (1 << 31)) % (1 << 32) - (1 << 31)
    return number if number > -(1 << 31) else 0


def _is_public_key(item: Any) -> bool:
    """Whether an entry of a list is of the one type that there is; others are skipped (§5.1.3, §5.1.4)."""
    return isinstance(item, Mapping) and item.get("type") == "public-key"


def _challenge(values: Mapping[str, Any]) -> bytes:
    challenge = _bytes(values, "challenge")
    if not challenge:
        raise RemoteProtocolError("the options' challenge is empty", reason=ProtocolReason.MALFORMED_OPTIONS)
    return challenge


def _user_verification(values: Mapping[str, Any]) -> str:
    return _word(values, "userVerification", _REQUIREMENTS, default="preferred")


def _word(values: Mapping[str, Any], key: str, known: tuple[str, ...], *, default: str) -> str:
    """One of the `known` words; a client that does not know a word acts as if it were absent (§2.1.1)."""
    word = _text(values, key)
    return word if word in known else default


def _descriptor_ids(values: Mapping[str, Any], key: str) -> tuple[bytes, ...]:
    """Credential IDs of type public-key; transports stay here, since phones refuse some of them."""
    ids = (_credential_id(item) for item in _list(values, key))
    return tuple(credential_id for credential_id in ids if credential_id)


def _credential_id(item: Any) -> bytes | None:
    """The ID in a credential descriptor, None where there is none to be read."""
    try:
        return _bytes(item, "id") if _is_public_key(item) else None
    except RemoteProtocolError:
        return None


def _list(values: Mapping[str, Any], key: str) -> list[Any]:
    items = values.get(key)
    if items is None or items == "":
        return []
    if not isinstance(items, list):
        raise RemoteProtocolError(
            f"the options' {key} is not a list", reason=ProtocolReason.MALFORMED_OPTIONS
        )
    return items


def _text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise RemoteProtocolError(
            f"the options' {key} is not a string", reason=ProtocolReason.MALFORMED_OPTIONS
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RemoteProtocolError(
            f"the options' {key} is not Unicode text", reason=ProtocolReason.MALFORMED_OPTIONS
        ) from error
    return value


def _bytes(values: Mapping[str, Any], key: str) -> bytes:
    text = _text(values, key)
    if text is None:
        raise RemoteProtocolError(f"the options lack {key}", reason=ProtocolReason.MALFORMED_OPTIONS)
    return from_base64url(text)


def _client_data(kind: str, challenge: bytes, origin: str) -> bytes:
    """Serialise CollectedClientData (WebAuthn §5.8.1.1)."""
    values = {"type": kind, "challenge": base64url(challenge), "origin": origin, "crossOrigin": False}
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()


def _credential_json(
    credential_id: bytes, response: dict[str, Any], outputs: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": base64url(credential_id),
        "rawId": base64url(credential_id),
        "type": "public-key",
        "authenticatorAttachment": "cross-platform",
        "clientExtensionResults": outputs,
        "response": response,
    }
