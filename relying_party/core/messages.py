"""The parser of request bodies: bytes become typed values, or `InvalidRequest`.

WebAuthn objects are WebAuthn Level 3 JSON (§5.1.8), which peers may extend; our own objects may not be. Clients write
"nothing" in several ways (`Nothing`), and all of them mean the same.
"""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import parse_qsl

import msgspec

from program_parts.base64url import from_base64url
from program_parts.json_text import without_mark
from relying_party.core.callers import ClientKind
from relying_party.core.operations import Operation, OperationKind
from relying_party.errors import InvalidRequest
from relying_party.names import name_of

MAX_CREDENTIAL_ID: Final = 1023  # bytes, WebAuthn Level 3 §4
MAX_USER_HANDLE: Final = 64
MAX_CLIENT_DATA: Final = 4096
MAX_AUTHENTICATOR_DATA: Final = 8192
MAX_ATTESTATION_OBJECT: Final = 32768
MAX_SIGNATURE: Final = 5120  # ML-DSA-87 needs 4627
MAX_TOKEN: Final = 4096  # characters
MAX_TRANSPORTS: Final = 8

_Struct = TypeVar("_Struct", bound=msgspec.Struct)

# What WebAuthn clients write for an absent member. Each is false.
Nothing = Annotated[list[Any], msgspec.Meta(max_length=0)] | Literal[""] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """What a caller with a key says about itself; unverified."""

    kind: ClientKind
    label: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationOptionsRequest:
    user_name: str = field(repr=False)
    display_name: str = field(repr=False)
    client: Client | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationOptionsRequest:
    user_name: str | None = field(repr=False)
    client: Client | None
    conditional: bool  # the browser offers passkeys while its user types (conditional mediation)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationResponse:
    """The verified members of a client's RegistrationResponseJSON."""

    credential_id: bytes = field(repr=False)
    client_data: bytes = field(repr=False)  # clientDataJSON
    attestation_object: bytes = field(repr=False)
    transports: tuple[str, ...]
    discoverable: bool | None = None  # credProps.rk
    prf: bool | None = None  # prf.enabled


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationResponse:
    """The verified members of a client's AuthenticationResponseJSON."""

    credential_id: bytes = field(repr=False)
    client_data: bytes = field(repr=False)
    authenticator_data: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    user_handle: bytes | None = field(repr=False)


class _Client(msgspec.Struct, forbid_unknown_fields=True):
    kind: Literal["device", "android"] = "device"
    label: str | None = None


class _RegistrationOptions(msgspec.Struct, forbid_unknown_fields=True):
    user_name: str
    display_name: str | None = None
    client: _Client | None = None


class _AuthenticationOptions(msgspec.Struct, forbid_unknown_fields=True):
    user_name: str | None = None
    client: _Client | None = None
    mediation: Literal["conditional"] | None = None


class _StepUpOptions(msgspec.Struct, forbid_unknown_fields=True):
    operation: OperationKind
    target: str | None = None
    name: str | None = None


class _Refresh(msgspec.Struct, forbid_unknown_fields=True):
    refresh_token: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]

    def __repr__(self) -> str:
        return "_Refresh()"  # it holds a secret


class _DisplayName(msgspec.Struct, forbid_unknown_fields=True):
    display_name: str


class _Label(msgspec.Struct, forbid_unknown_fields=True):
    label: str | None


class _Attestation(msgspec.Struct, rename="camel"):
    client_data_json: str = msgspec.field(name="clientDataJSON")
    attestation_object: str
    transports: list[Any] | Literal[""] | None = None


class _Assertion(msgspec.Struct, rename="camel"):
    client_data_json: str = msgspec.field(name="clientDataJSON")
    authenticator_data: str
    signature: str
    user_handle: str | Nothing = None

    def __repr__(self) -> str:
        return "_Assertion()"  # it holds a secret


class _Credential(msgspec.Struct, rename="camel"):
    id: str
    raw_id: str
    type: Literal["public-key"]
    client_extension_results: dict[str, Any] | Nothing = None


class _Registration(_Credential, rename="camel", kw_only=True):
    response: _Attestation


class _Authentication(_Credential, rename="camel", kw_only=True):
    response: _Assertion


class _RegistrationResult(msgspec.Struct, forbid_unknown_fields=True):
    ceremony: Annotated[str, msgspec.Meta(max_length=64)]
    response: _Registration


class _AuthenticationResult(msgspec.Struct, forbid_unknown_fields=True):
    ceremony: Annotated[str, msgspec.Meta(max_length=64)]
    response: _Authentication


def parse_registration_options(body: bytes) -> RegistrationOptionsRequest:
    parsed = _decode(body, _RegistrationOptions)
    user_name = name_of(parsed.user_name)
    display_name = user_name if parsed.display_name is None else name_of(parsed.display_name)
    return RegistrationOptionsRequest(
        user_name=user_name, display_name=display_name, client=_client(parsed.client)
    )


def parse_authentication_options(body: bytes) -> AuthenticationOptionsRequest:
    parsed = _decode(body, _AuthenticationOptions)
    conditional = parsed.mediation == "conditional"
    if conditional and (parsed.user_name is not None or parsed.client is not None):
        raise InvalidRequest("conditional mediation is for browsers, and before anybody is named")
    return AuthenticationOptionsRequest(
        user_name=None if parsed.user_name is None else name_of(parsed.user_name),
        client=_client(parsed.client),
        conditional=conditional,
    )


def parse_step_up_options(body: bytes) -> Operation:
    """Parse the operation that a step-up is for. It has a target and a name exactly where its kind has them."""
    parsed = _decode(body, _StepUpOptions)
    kind, target = parsed.operation, None
    if (parsed.target is not None) is not kind.has_target:
        raise InvalidRequest("target is the id of a passkey or a session, where the operation has one")
    if parsed.target is not None:
        target = _bytes(parsed.target, "target", MAX_CREDENTIAL_ID)
    if parsed.name is not None and not kind.has_name:
        raise InvalidRequest("name is text, where the operation has one")
    if parsed.name is None and kind.has_name and kind is not OperationKind.RENAME_PASSKEY:
        raise InvalidRequest("name is missing")
    return Operation(kind=kind, target=target, name=None if parsed.name is None else name_of(parsed.name))


def parse_refresh(body: bytes) -> str:
    """Parse the body of a refresh: the refresh token."""
    return _decode(body, _Refresh).refresh_token


def parse_display_name(body: bytes) -> str:
    return name_of(_decode(body, _DisplayName).display_name)


def parse_label(body: bytes) -> str | None:
    """Parse a passkey's new name; None removes it."""
    label = _decode(body, _Label).label
    return None if label is None else name_of(label)


def parse_registration_result(body: bytes) -> tuple[str, RegistrationResponse]:
    """The ceremony's name and the response."""
    parsed = _decode(body, _RegistrationResult)
    credential, response = parsed.response, parsed.response.response
    return parsed.ceremony, RegistrationResponse(
        credential_id=_credential_id(credential),
        client_data=_bytes(response.client_data_json, "clientDataJSON", MAX_CLIENT_DATA),
        attestation_object=_bytes(response.attestation_object, "attestationObject", MAX_ATTESTATION_OBJECT),
        transports=_transports(response.transports or []),
        discoverable=_output(credential, "credProps", "rk"),
        prf=_output(credential, "prf", "enabled"),
    )


def parse_authentication_result(body: bytes) -> tuple[str, AuthenticationResponse]:
    """The ceremony's name and the response."""
    parsed = _decode(body, _AuthenticationResult)
    credential, response = parsed.response, parsed.response.response
    return parsed.ceremony, AuthenticationResponse(
        credential_id=_credential_id(credential),
        client_data=_bytes(response.client_data_json, "clientDataJSON", MAX_CLIENT_DATA),
        authenticator_data=_bytes(response.authenticator_data, "authenticatorData", MAX_AUTHENTICATOR_DATA),
        signature=_bytes(response.signature, "signature", MAX_SIGNATURE),
        user_handle=_user_handle(response.user_handle),
    )


def parse_introspection(body: bytes) -> str:
    """Parse an introspection request (RFC 7662 §2.1): the token. Other members are hints, and ignored."""
    try:
        members = parse_qsl(body.decode("ascii"), strict_parsing=True, max_num_fields=16)
    except ValueError as error:
        raise InvalidRequest("the body is no form") from error
    tokens = [value for name, value in members if name == "token"]
    if len(tokens) != 1 or not 0 < len(tokens[0]) <= MAX_TOKEN:
        raise InvalidRequest(f"expected one token of at most {MAX_TOKEN} characters")
    return tokens[0]


def _decode(body: bytes, form: type[_Struct]) -> _Struct:
    try:
        return msgspec.json.decode(without_mark(body), type=form)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_what_is_wrong(str(error))) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("the body is not JSON") from error


# The expected content of each member, for error messages.
_EXPECTED: Final = {
    "user_name": "text",
    "display_name": "text",
    "label": "text or null",
    "client": "an object",
    "kind": '"device" or "android"',
    "mediation": '"conditional"',
    "operation": "an operation that a step-up is for",
    "target": "text",
    "name": "text",
    "refresh_token": "a refresh token",
    "ceremony": "the name that came with the options",
    "response": "an object",
    "id": "text",
    "rawId": "text",
    "type": '"public-key"',
    "clientExtensionResults": "an object",
    "clientDataJSON": "text",
    "attestationObject": "text",
    "authenticatorData": "text",
    "signature": "text",
    "userHandle": "text",
    "transports": "a list",
}
_PLACE: Final = re.compile(r"`\$((?:\.\w+)*)[^`]*`\Z")  # of our own members; WebAuthn's may be extended
_MISSING: Final = re.compile(r"missing required field `(\w+)`")


def _what_is_wrong(found: str) -> str:
    """Say which member is wrong in words of our own: msgspec's change between versions, and may repeat input.

    found: msgspec's message.
    """
    place = _PLACE.search(found)
    path = place[1].removeprefix(".") if place else ""
    missing = _MISSING.search(found)
    if missing:
        return f"{f'{path}.' if path else ''}{missing[1]} is missing"
    if "unknown field" in found:
        return f"{path or 'the body'} has a member that does not belong there"
    expected = _EXPECTED.get(path.rpartition(".")[2], "as expected")
    return f"{path} is not {expected}" if path else "the body is not a JSON object"


def _credential_id(credential: _Credential) -> bytes:
    if credential.id != credential.raw_id:
        raise InvalidRequest("id and rawId differ")
    return _bytes(credential.raw_id, "rawId", MAX_CREDENTIAL_ID)


def _user_handle(given: str | Nothing) -> bytes | None:
    if isinstance(given, str) and given:
        return _bytes(given, "userHandle", MAX_USER_HANDLE)
    return None


def _client(given: _Client | None) -> Client | None:
    if given is None:
        return None
    return Client(kind=ClientKind(given.kind), label=None if given.label is None else name_of(given.label))


def _output(credential: _Credential, extension: str, member: str) -> bool | None:
    """Parse a boolean output of a client extension; other outputs are ignored."""
    results = credential.client_extension_results
    outputs = results.get(extension) if isinstance(results, dict) else None
    value = outputs.get(member) if isinstance(outputs, dict) else None
    return value if isinstance(value, bool) else None


def _bytes(text: str, name: str, most: int) -> bytes:
    data = from_base64url(text)
    if data is None:
        raise InvalidRequest(f"{name} is not base64url without padding")
    if not 0 < len(data) <= most:
        raise InvalidRequest(f"{name} is empty or longer than {most} bytes")
    return data


def _transports(given: list[Any]) -> tuple[str, ...]:
    """Take the first few strings in the form of transports, unknown ones included (WebAuthn Level 3 §5.2.1)."""
    plausible = (one for one in given if isinstance(one, str) and re.fullmatch(r"[a-z][a-z0-9-]{0,31}", one))
    return tuple(dict.fromkeys(plausible))[:MAX_TRANSPORTS]
