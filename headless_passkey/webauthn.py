"""The device as WebAuthn client: options JSON and an origin in, response JSON out (WebAuthn Level 3).

`AuthenticationOptions` and `RegistrationOptions` are what a relying party sends. Each knows the CTAP command
it turns into, and checks and dresses the phone's reply as the JSON the relying party expects. The origin is
the device's own word, so `parse` insists that the RP ID belongs to it.
"""

import hashlib
import hmac
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import (
    GetAssertionRequest,
    GetAssertionResponse,
    GetInfoResponse,
    MakeCredentialRequest,
    MakeCredentialResponse,
    User,
)
from headless_passkey.hybrid.fido_url import Hint
from headless_passkey.hybrid.keys import parse_uncompressed

MAX_JSON_SIZE: Final = 64 * 1024
DEFAULT_ALGORITHMS: Final = (-7, -257)  # what WebAuthn assumes for an empty list: ES256, RS256

_REQUIREMENTS: Final = ("required", "preferred", "discouraged")
_CONVEYANCES: Final = ("none", "indirect", "direct", "enterprise")
_USER_PRESENT, _USER_VERIFIED, _ATTESTED, _EXTENSIONS = 0x01, 0x04, 0x40, 0x80
_HOST: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
_ADDRESS: Final = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)")  # ends in a number: an IPv4 address to browsers
_MAX_HOST_SIZE: Final = 253
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What the phone answered, checked, in the form the relying party takes."""

    response: Mapping[str, Any] = field(repr=False)  # AuthenticationResponseJSON or RegistrationResponseJSON
    credential_id: bytes
    user_handle: bytes | None = field(repr=False, default=None)  # whose passkey it is, as the phone says
    user_name: str | None = field(repr=False, default=None)

    def to_json(self) -> str:
        """The response on one line."""
        return json.dumps(self.response, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationOptions:
    """PublicKeyCredentialRequestOptionsJSON, as far as a phone over hybrid can serve it."""

    hint: ClassVar[Hint] = Hint.GET_ASSERTION

    origin: str
    rp_id: str
    challenge: bytes = field(repr=False)
    allow_list: tuple[bytes, ...] = ()  # credential IDs; empty: any discoverable credential
    user_verification: str = "preferred"

    @classmethod
    def parse(cls, options: Any, *, origin: str) -> Self:
        """From JSON text, a parsed object, or either inside ``{"publicKey": …}``."""
        values = _options_object(options)
        return cls(
            origin=origin,
            rp_id=_rp_id(_text(values, "rpId"), origin),
            challenge=_challenge(values),
            allow_list=_descriptor_ids(values, "allowCredentials"),
            user_verification=_user_verification(values),
        )

    @property
    def client_data(self) -> bytes:
        return _client_data("webauthn.get", self.challenge, self.origin)

    def ctap_request(self) -> GetAssertionRequest:
        return GetAssertionRequest(
            rp_id=self.rp_id,
            client_data_hash=hashlib.sha256(self.client_data).digest(),
            allow_list=self.allow_list,
            user_verification=self.user_verification != "discouraged",
        )

    def accept(self, payload: bytes, _peer: GetInfoResponse | None = None) -> Credential:
        """The phone's reply as AuthenticationResponseJSON; `RemoteProtocolError` for one we did not ask for."""
        reply = GetAssertionResponse.parse(payload)
        data = AuthenticatorData.parse(reply.auth_data)
        data.check(self.rp_id, self.user_verification)
        credential_id = reply.credential_id
        if credential_id is None and len(self.allow_list) == 1:
            credential_id = self.allow_list[0]
        if credential_id is None:
            raise RemoteProtocolError("the phone did not name the credential it used")
        if self.allow_list and credential_id not in self.allow_list:
            raise RemoteProtocolError("the phone used a credential that is not in the allow list")
        if not self.allow_list and reply.user is None:
            raise RemoteProtocolError("the phone did not name the user of a discoverable credential")
        response = {
            "clientDataJSON": base64url(self.client_data),
            "authenticatorData": base64url(reply.auth_data),
            "signature": base64url(reply.signature),
        }
        if reply.user is not None:
            response["userHandle"] = base64url(reply.user.id)
        return Credential(
            response=_credential_json(credential_id, response, {}),
            credential_id=credential_id,
            user_handle=None if reply.user is None else reply.user.id,
            user_name=None if reply.user is None else reply.user.name,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationOptions:
    """PublicKeyCredentialCreationOptionsJSON, as far as a phone over hybrid can serve it."""

    hint: ClassVar[Hint] = Hint.MAKE_CREDENTIAL

    origin: str
    rp_id: str
    rp_name: str  # phones want one, so it falls back to the RP ID
    user: User  # phones want a display name, so it falls back to the name
    challenge: bytes = field(repr=False)
    algorithms: tuple[int, ...] = DEFAULT_ALGORITHMS
    exclude_list: tuple[bytes, ...] = ()
    resident_key: str = "discouraged"
    user_verification: str = "preferred"
    attestation: str = "none"
    cred_props: bool = False

    @classmethod
    def parse(cls, options: Any, *, origin: str) -> Self:
        """From JSON text, a parsed object, or either inside ``{"publicKey": …}``."""
        values = _options_object(options)
        rp, user = _object(values, "rp"), _object(values, "user")
        if rp is None or user is None:
            raise RemoteProtocolError("the options have no rp or no user")
        selection = _object(values, "authenticatorSelection") or {}
        if selection.get("authenticatorAttachment") == "platform":
            raise RemoteProtocolError("the options ask for a platform authenticator, a phone is none")
        rp_id = _rp_id(_text(rp, "id"), origin)
        name = _text(user, "name")
        user_id = _bytes(user, "id")
        if not name or not 1 <= len(user_id) <= 64:
            raise RemoteProtocolError("the options' user has no name, or no id of 1 to 64 bytes")
        resident_key = "required" if selection.get("requireResidentKey") is True else "discouraged"
        extensions = _object(values, "extensions") or {}
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
            cred_props=extensions.get("credProps") is True,
        )

    @property
    def client_data(self) -> bytes:
        return _client_data("webauthn.create", self.challenge, self.origin)

    def ctap_request(self) -> MakeCredentialRequest:
        return MakeCredentialRequest(
            client_data_hash=hashlib.sha256(self.client_data).digest(),
            rp_id=self.rp_id,
            rp_name=self.rp_name,
            user=self.user,
            algorithms=self.algorithms,
            exclude_list=self.exclude_list,
            resident_key=self._asks_resident_key,
            user_verification=self.user_verification != "discouraged",
        )

    @property
    def _asks_resident_key(self) -> bool:
        return self.resident_key in ("required", "preferred")

    def accept(self, payload: bytes, peer: GetInfoResponse | None = None) -> Credential:
        """The phone's reply as RegistrationResponseJSON; `RemoteProtocolError` for one we did not ask for.

        peer: what the phone said of itself; its transports go to the relying party.
        """
        reply = MakeCredentialResponse.parse(payload)
        data = AuthenticatorData.parse(reply.auth_data)
        data.check(self.rp_id, self.user_verification)
        if data.credential_id is None or data.public_key is None:
            raise RemoteProtocolError("the phone's registration holds no credential")
        algorithm = data.public_key.get(3)
        if algorithm not in self.algorithms:
            raise RemoteProtocolError("the phone made a key of an algorithm that was not offered")
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
        outputs = {"credProps": {"rk": self._asks_resident_key}} if self.cred_props else {}
        return Credential(
            response=_credential_json(data.credential_id, response, outputs),
            credential_id=data.credential_id,
            user_handle=self.user.id,
            user_name=self.user.name,
        )


Options = AuthenticationOptions | RegistrationOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticatorData:
    """What the authenticator signs (WebAuthn §6.1), as far as a client reads it."""

    rp_id_hash: bytes  # 32 bytes
    flags: int
    credential_id: bytes | None = None
    public_key: Mapping[int, Any] | None = None  # COSE key

    @classmethod
    def parse(cls, data: bytes) -> Self:
        if len(data) < 37:
            raise RemoteProtocolError(f"authenticator data has 37 bytes or more, got {len(data)}")
        rp_id_hash, flags, rest = data[:32], data[32], data[37:]
        credential_id, public_key = None, None
        if flags & _ATTESTED:
            size = int.from_bytes(rest[16:18], "big")
            credential_id, rest = rest[18 : 18 + size], rest[18 + size :]
            if not 1 <= len(credential_id) == size <= 1023:
                raise RemoteProtocolError("authenticator data ends inside the credential ID")
            public_key, rest = cbor.decode_first(rest)
            if not isinstance(public_key, dict):
                raise RemoteProtocolError("a credential's public key is not a COSE key")
        if flags & _EXTENSIONS:
            outputs, rest = cbor.decode_first(rest)
            if not isinstance(outputs, dict):
                raise RemoteProtocolError("extension outputs are not a map")
        if rest:
            raise RemoteProtocolError(
                "authenticator data has bytes at its end that its flags do not announce"
            )
        return cls(rp_id_hash=rp_id_hash, flags=flags, credential_id=credential_id, public_key=public_key)

    def check(self, rp_id: str, user_verification: str) -> None:
        """That this is for our relying party, with the user present and, if required, verified."""
        if not hmac.compare_digest(self.rp_id_hash, hashlib.sha256(rp_id.encode()).digest()):
            raise RemoteProtocolError("the phone answered for another relying party")
        if not self.flags & _USER_PRESENT:
            raise RemoteProtocolError("the phone did not say that the user was present")
        if user_verification == "required" and not self.flags & _USER_VERIFIED:
            raise RemoteProtocolError("the phone did not verify the user, which was required")


def _public_key(cose: Mapping[int, Any]) -> bytes | None:
    """The SubjectPublicKeyInfo of a COSE key, for the algorithms that every client knows (§5.2.1.1); else None."""
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
                raise RemoteProtocolError("a credential's public key does not fit its algorithm")
            case _:
                return None
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError as error:
        raise RemoteProtocolError("a credential's public key is not a key of its algorithm") from error


def check_origin(origin: str) -> str:
    """`origin` itself when it is a web origin we can speak for; `LocalProtocolError` otherwise."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError as error:
        raise LocalProtocolError("the origin is not a URL") from error
    host = parts.hostname or ""
    secure = parts.scheme == "https" or (
        parts.scheme == "http" and (host == "localhost" or host.endswith(".localhost"))
    )
    is_name = _HOST.fullmatch(host) and not _ADDRESS.fullmatch(host) and len(host) <= _MAX_HOST_SIZE
    has_port = port is not None and port != _DEFAULT_PORTS.get(parts.scheme)
    if not secure or not is_name or origin != f"{parts.scheme}://{host}" + (f":{port}" if has_port else ""):
        raise LocalProtocolError(
            "an origin is https://NAME[:PORT], or http://localhost[:PORT], in lower case, as browsers write it:"
            " no address, no default port"
        )
    return origin


def base64url(data: bytes) -> str:
    """base64url without padding, as WebAuthn JSON has it."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_base64url(text: str) -> bytes:
    """The bytes of strict, unpadded base64url."""
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as error:
        raise RemoteProtocolError("not base64url") from error
    if base64url(data) != text:
        raise RemoteProtocolError("not canonical base64url without padding")
    return data


def _options_object(options: Any) -> dict[str, Any]:
    if isinstance(options, str | bytes):
        if len(options) > MAX_JSON_SIZE:
            raise RemoteProtocolError("the options are longer than 64 KiB")
        try:
            options = json.loads(options)
        except (ValueError, RecursionError) as error:
            raise RemoteProtocolError("the options are not JSON") from error
    if isinstance(options, Mapping) and isinstance(options.get("publicKey"), Mapping):
        options = options["publicKey"]
    if not isinstance(options, Mapping):
        raise RemoteProtocolError("the options are not a JSON object")
    return dict(options)


def _rp_id(rp_id: str | None, origin: str) -> str:
    """WebAuthn §5.1.3: absent means the origin's host; otherwise a domain the host is within."""
    host = urlsplit(check_origin(origin)).hostname or ""
    if rp_id is None:
        return host
    if rp_id != host and not (host.endswith("." + rp_id) and "." in rp_id):
        raise RemoteProtocolError("the options' RP ID does not belong to the origin")
    return rp_id


def _algorithms(values: Mapping[str, Any]) -> tuple[int, ...]:
    items = values.get("pubKeyCredParams")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RemoteProtocolError("the options have no list pubKeyCredParams")
    if not items:
        return DEFAULT_ALGORITHMS
    algorithms = [item.get("alg") for item in items if item.get("type") == "public-key"]
    if not algorithms or not all(
        type(algorithm) is int and abs(algorithm) < 1 << 31 for algorithm in algorithms
    ):
        raise RemoteProtocolError("pubKeyCredParams names no public-key algorithm")
    return tuple(algorithm for algorithm in algorithms if algorithm is not None)


def _challenge(values: Mapping[str, Any]) -> bytes:
    challenge = _bytes(values, "challenge")
    if not challenge:
        raise RemoteProtocolError("the options' challenge is empty")
    return challenge


def _user_verification(values: Mapping[str, Any]) -> str:
    return _word(values, "userVerification", _REQUIREMENTS, default="preferred")


def _word(values: Mapping[str, Any], key: str, known: tuple[str, ...], *, default: str) -> str:
    """One of the `known` words; a client that does not know a word acts as if it were absent (§2.1.1)."""
    word = _text(values, key)
    return word if word in known else default


def _descriptor_ids(values: Mapping[str, Any], key: str) -> tuple[bytes, ...]:
    """Credential IDs of type public-key; transports stay here, since phones refuse some of them."""
    items = values.get(key)
    if items is None:
        return ()
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RemoteProtocolError(f"the options' {key} is not a list of descriptors")
    ids = tuple(_bytes(item, "id") for item in items if item.get("type") == "public-key")
    if items and not ids:
        raise RemoteProtocolError(f"the options' {key} names no public-key credential")
    return ids


def _object(values: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    value = values.get(key)
    if value is not None and not isinstance(value, dict):
        raise RemoteProtocolError(f"the options' {key} is not an object")
    return value


def _text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise RemoteProtocolError(f"the options' {key} is not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RemoteProtocolError(f"the options' {key} is not Unicode text") from error
    return value


def _bytes(values: Mapping[str, Any], key: str) -> bytes:
    text = _text(values, key)
    if text is None:
        raise RemoteProtocolError(f"the options lack {key}")
    return from_base64url(text)


def _client_data(kind: str, challenge: bytes, origin: str) -> bytes:
    """CollectedClientData in the serialisation of WebAuthn §5.8.1.1."""
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
