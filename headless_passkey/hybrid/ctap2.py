"""The CTAP2 commands of the hybrid transport, as both ends see them (CTAP 2.2 §6.1, §6.2, §6.4).

A request is a command byte and a CBOR map; a response is a status byte and, on success, a CBOR map. The
classes here are those maps. `parse` checks the members it knows and ignores others; `encode` leaves out absent members.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid import cbor

CLIENT_DATA_HASH_SIZE: Final = 32
LARGE_BLOB_KEY_SIZE: Final = 32


class Command(IntEnum):
    """The command byte."""

    MAKE_CREDENTIAL = 0x01
    GET_ASSERTION = 0x02
    GET_INFO = 0x04
    SELECTION = 0x0B  # §6.9; without parameters, and answered by its status alone


class Status(IntEnum):
    """The status byte, named as CTAP 2.2 §8.2 names it."""

    SUCCESS = 0x00
    INVALID_COMMAND = 0x01
    INVALID_PARAMETER = 0x02
    INVALID_LENGTH = 0x03
    INVALID_SEQ = 0x04
    TIMEOUT = 0x05
    CHANNEL_BUSY = 0x06
    LOCK_REQUIRED = 0x0A
    INVALID_CHANNEL = 0x0B
    CBOR_UNEXPECTED_TYPE = 0x11
    INVALID_CBOR = 0x12
    MISSING_PARAMETER = 0x14
    LIMIT_EXCEEDED = 0x15
    FP_DATABASE_FULL = 0x17
    LARGE_BLOB_STORAGE_FULL = 0x18
    CREDENTIAL_EXCLUDED = 0x19
    PROCESSING = 0x21
    INVALID_CREDENTIAL = 0x22
    USER_ACTION_PENDING = 0x23
    OPERATION_PENDING = 0x24
    NO_OPERATIONS = 0x25
    UNSUPPORTED_ALGORITHM = 0x26
    OPERATION_DENIED = 0x27
    KEY_STORE_FULL = 0x28
    UNSUPPORTED_OPTION = 0x2B
    INVALID_OPTION = 0x2C
    KEEPALIVE_CANCEL = 0x2D
    NO_CREDENTIALS = 0x2E
    USER_ACTION_TIMEOUT = 0x2F
    NOT_ALLOWED = 0x30
    PIN_INVALID = 0x31
    PIN_BLOCKED = 0x32
    PIN_AUTH_INVALID = 0x33
    PIN_AUTH_BLOCKED = 0x34
    PIN_NOT_SET = 0x35
    PUAT_REQUIRED = 0x36
    PIN_POLICY_VIOLATION = 0x37
    REQUEST_TOO_LARGE = 0x39
    ACTION_TIMEOUT = 0x3A
    UP_REQUIRED = 0x3B
    UV_BLOCKED = 0x3C
    INTEGRITY_FAILURE = 0x3D
    INVALID_SUBCOMMAND = 0x3E
    UV_INVALID = 0x3F
    UNAUTHORIZED_PERMISSION = 0x40
    OTHER = 0x7F


def status_name(status: int) -> str:
    """The name of a status in the specification, such as ``CTAP2_ERR_…``; an unknown status as its number."""
    try:
        name = Status(status).name
    except ValueError:
        return f"CTAP2_ERR_0x{status:02X}"
    return f"{'CTAP1' if status < 0x10 or status == Status.OTHER else 'CTAP2'}_ERR_{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """WebAuthn's user entity: an account at the relying party. It is personal data, so a repr shows none of it."""

    id: bytes = field(repr=False)  # the user handle, 1-64 bytes
    name: str | None = field(repr=False, default=None)
    display_name: str | None = field(repr=False, default=None)

    @classmethod
    def of(cls, value: Any) -> "User":
        user_id = _get(value, "id", bytes)
        if user_id is None or not 1 <= len(user_id) <= 64:
            raise RemoteProtocolError(
                "a user entity has no id of 1 to 64 bytes", reason=ProtocolReason.MALFORMED_CTAP
            )
        return cls(id=user_id, name=_get(value, "name", str), display_name=_get(value, "displayName", str))

    def to_map(self) -> dict[str, Any]:
        return _present({"id": self.id, "name": self.name, "displayName": self.display_name})


@dataclass(frozen=True, slots=True, kw_only=True)
class GetAssertionRequest:
    """authenticatorGetAssertion (§6.2)."""

    rp_id: str
    client_data_hash: bytes  # 32 bytes
    allow_list: tuple[bytes, ...] = ()  # credential IDs; empty: any discoverable credential
    extensions: Mapping[str, Any] = field(repr=False, default_factory=dict)  # for instance the inputs of prf
    user_presence: bool = True
    user_verification: bool = True

    @classmethod
    def parse(cls, payload: bytes) -> "GetAssertionRequest":
        values = cbor.decode_map(payload)
        options = _get(values, 5, dict) or {}
        return cls(
            rp_id=_required(values, 1, str),
            client_data_hash=_client_data_hash(values, 2),
            allow_list=_descriptor_ids(values, 3),
            extensions=_extensions(values, 4),
            user_presence=_option(options, "up", default=True),
            user_verification=_option(options, "uv", default=False),
        )

    def encode(self) -> bytes:
        options = _present(
            {"up": None if self.user_presence else False, "uv": self.user_verification or None}
        )
        return cbor.encode(
            _present(
                {
                    1: self.rp_id,
                    2: self.client_data_hash,
                    3: [_descriptor(credential_id) for credential_id in self.allow_list] or None,
                    4: dict(self.extensions) or None,
                    5: options or None,
                }
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GetAssertionResponse:
    """What authenticatorGetAssertion answers (§6.2)."""

    auth_data: bytes
    signature: bytes = field(repr=False)  # a secret until the challenge is used: with it anybody can sign in
    credential_id: bytes | None = None  # absent only when the allow list had exactly one entry
    user: User | None = None
    number_of_credentials: int | None = None  # for getNextAssertion, which phones do not serve
    user_selected: bool = False  # the user chose this credential, on the phone's own screen
    large_blob_key: bytes | None = field(repr=False, default=None)  # 32 bytes
    unsigned_extension_outputs: Mapping[str, Any] = field(
        repr=False, default_factory=dict
    )  # a prf's among them

    @classmethod
    def parse(cls, payload: bytes) -> "GetAssertionResponse":
        values = cbor.decode_map(payload)
        credential = _get(values, 1, dict)
        user = _get(values, 4, dict)
        number_of_credentials = _unsigned(values, 5)
        user_selected = _option(values, 6, default=False)
        if user_selected and (number_of_credentials or 1) > 1:
            raise RemoteProtocolError(
                "numberOfCredentials is there although the user has selected a credential",
                reason=ProtocolReason.MALFORMED_CTAP,
            )
        return cls(
            credential_id=None if credential is None else _descriptor_id(credential) or None,
            auth_data=_required(values, 2, bytes),
            signature=_required(values, 3, bytes),
            user=None if user is None or user.get("id") == b"" else User.of(user),
            number_of_credentials=number_of_credentials,
            user_selected=user_selected,
            large_blob_key=_large_blob_key(values, 7),
            unsigned_extension_outputs=_extensions(values, 8),
        )

    def encode(self) -> bytes:
        return cbor.encode(
            _present(
                {
                    1: None if self.credential_id is None else _descriptor(self.credential_id),
                    2: self.auth_data,
                    3: self.signature,
                    4: None if self.user is None else self.user.to_map(),
                    5: self.number_of_credentials,
                    6: self.user_selected or None,
                    7: self.large_blob_key,
                    8: dict(self.unsigned_extension_outputs) or None,
                }
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeCredentialRequest:
    """authenticatorMakeCredential (§6.1)."""

    client_data_hash: bytes  # 32 bytes
    rp_id: str
    rp_name: str | None
    user: User
    algorithms: tuple[int, ...]  # COSE algorithms, most preferred first
    exclude_list: tuple[bytes, ...] = ()  # credential IDs
    extensions: Mapping[str, Any] = field(repr=False, default_factory=dict)
    resident_key: bool = True
    user_verification: bool = True

    @classmethod
    def parse(cls, payload: bytes) -> "MakeCredentialRequest":
        values = cbor.decode_map(payload)
        rp = _required(values, 2, dict)
        options = _get(values, 7, dict) or {}
        return cls(
            client_data_hash=_client_data_hash(values, 1),
            rp_id=_required(rp, "id", str),
            rp_name=_get(rp, "name", str),
            user=User.of(_required(values, 3, dict)),
            algorithms=tuple(
                _required(item, "alg", int)
                for item in _required(values, 4, list)
                if _required(item, "type", str) == "public-key"
            ),
            exclude_list=_descriptor_ids(values, 5),
            extensions=_extensions(values, 6),
            resident_key=_option(options, "rk", default=False),
            user_verification=_option(options, "uv", default=False),
        )

    def encode(self) -> bytes:
        options = _present({"rk": self.resident_key or None, "uv": self.user_verification or None})
        return cbor.encode(
            _present(
                {
                    1: self.client_data_hash,
                    2: _present({"id": self.rp_id, "name": self.rp_name}),
                    3: self.user.to_map(),
                    4: [{"alg": algorithm, "type": "public-key"} for algorithm in self.algorithms],
                    5: [_descriptor(credential_id) for credential_id in self.exclude_list] or None,
                    6: dict(self.extensions) or None,
                    7: options or None,
                }
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeCredentialResponse:
    """What authenticatorMakeCredential answers (§6.1)."""

    fmt: str
    auth_data: bytes
    att_stmt: Mapping[str, Any] = field(default_factory=dict)
    enterprise_attestation: bool = False  # epAtt
    large_blob_key: bytes | None = field(repr=False, default=None)  # 32 bytes
    unsigned_extension_outputs: Mapping[str, Any] = field(
        repr=False, default_factory=dict
    )  # a prf's among them

    @classmethod
    def parse(cls, payload: bytes) -> "MakeCredentialResponse":
        values = cbor.decode_map(payload)
        return cls(
            fmt=_required(values, 1, str),
            auth_data=_required(values, 2, bytes),
            att_stmt=_get(values, 3, dict) or {},
            enterprise_attestation=_option(values, 4, default=False),
            large_blob_key=_large_blob_key(values, 5),
            unsigned_extension_outputs=_extensions(values, 6),
        )

    def encode(self) -> bytes:
        return cbor.encode(
            _present(
                {
                    1: self.fmt,
                    2: self.auth_data,
                    3: dict(self.att_stmt),
                    4: self.enterprise_attestation or None,
                    5: self.large_blob_key,
                    6: dict(self.unsigned_extension_outputs) or None,
                }
            )
        )


# Members of getInfo without meaning over hybrid, which has no PIN, no key management, and one message for one
# command. They are kept as received. By key, with the type of each.
_OTHER_INFO: Final[Mapping[int, type]] = {
    0x05: int,  # maxMsgSize
    0x06: list,  # pinUvAuthProtocols
    0x07: int,  # maxCredentialCountInList
    0x08: int,  # maxCredentialIdLength
    0x0B: int,  # maxSerializedLargeBlobArray
    0x0C: bool,  # forcePINChange
    0x0D: int,  # minPINLength
    0x0E: int,  # firmwareVersion
    0x0F: int,  # maxCredBlobLength
    0x10: int,  # maxRPIDsForSetMinPINLength
    0x11: int,  # preferredPlatformUvAttempts
    0x12: int,  # uvModality
    0x13: dict,  # certifications
    0x14: int,  # remainingDiscoverableCredentials
    0x15: list,  # vendorPrototypeConfigCommands
    0x16: list,  # attestationFormats
    0x17: int,  # uvCountSinceLastPinEntry
    0x18: bool,  # longTouchForReset
    0x19: bytes,  # encIdentifier
    0x1A: list,  # transportsForReset
    0x1B: bool,  # pinComplexityPolicy
    0x1C: bytes,  # pinComplexityPolicyURL
    0x1D: int,  # maxPINLength
    0x1E: bytes,  # encCredStoreState
    0x1F: list,  # authenticatorConfigCommands
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GetInfoResponse:
    """What authenticatorGetInfo answers (§6.4); over hybrid it arrives in the post-handshake message."""

    versions: tuple[str, ...]
    aaguid: bytes  # 16 bytes
    extensions: tuple[str, ...] = ()
    options: Mapping[str, bool] = field(default_factory=dict)
    transports: tuple[str, ...] = ()
    algorithms: tuple[int, ...] = ()
    others: Mapping[int, Any] = field(default_factory=dict)  # the specification's other members, by key

    @classmethod
    def parse(cls, payload: bytes) -> "GetInfoResponse":
        values = cbor.decode_map(payload)
        aaguid = _required(values, 3, bytes)
        if len(aaguid) != 16:
            raise RemoteProtocolError("an AAGUID has 16 bytes", reason=ProtocolReason.MALFORMED_CTAP)
        options = _get(values, 4, dict) or {}
        return cls(
            versions=_texts(values, 1),
            aaguid=aaguid,
            extensions=_texts(values, 2),
            options={str(key): value for key, value in options.items() if isinstance(value, bool)},
            transports=_texts(values, 9),
            algorithms=tuple(_required(item, "alg", int) for item in _get(values, 10, list) or []),
            others=_present(
                {
                    key: _unsigned(values, key) if kind is int else _get(values, key, kind)
                    for key, kind in _OTHER_INFO.items()
                }
            ),
        )

    def encode(self) -> bytes:
        algorithms = [{"alg": algorithm, "type": "public-key"} for algorithm in self.algorithms]
        return cbor.encode(
            _present(
                {
                    1: list(self.versions),
                    2: list(self.extensions) or None,
                    3: self.aaguid,
                    4: dict(self.options) or None,
                    9: list(self.transports) or None,
                    10: algorithms or None,
                    **self.others,
                }
            )
        )


def _present(values: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _get(values: Any, key: Any, kind: type) -> Any:
    if not isinstance(values, dict):
        raise RemoteProtocolError(
            f"expected a CBOR map, got {type(values).__name__}", reason=ProtocolReason.MALFORMED_CTAP
        )
    value = values.get(key)
    if value is not None and type(value) is not kind:
        raise RemoteProtocolError(
            f"CTAP member {key!r} is {type(value).__name__}, expected {kind.__name__}",
            reason=ProtocolReason.MALFORMED_CTAP,
        )
    return value


def _required(values: Any, key: Any, kind: type) -> Any:
    value = _get(values, key, kind)
    if value is None:
        raise RemoteProtocolError(f"CTAP member {key!r} is missing", reason=ProtocolReason.MALFORMED_CTAP)
    return value


def _option(values: Any, key: Any, *, default: bool) -> bool:
    value: bool | None = _get(values, key, bool)
    return default if value is None else value


def _unsigned(values: Any, key: Any) -> int | None:
    value: int | None = _get(values, key, int)
    if value is not None and value < 0:
        raise RemoteProtocolError(f"CTAP member {key!r} is negative", reason=ProtocolReason.MALFORMED_CTAP)
    return value


def _large_blob_key(values: Any, key: int) -> bytes | None:
    value: bytes | None = _get(values, key, bytes)
    if value is not None and len(value) != LARGE_BLOB_KEY_SIZE:
        raise RemoteProtocolError("a largeBlobKey has 32 bytes", reason=ProtocolReason.MALFORMED_CTAP)
    return value


def _extensions(values: Any, key: int) -> dict[str, Any]:
    """Parse inputs or outputs of extensions, by extension identifier."""
    extensions: dict[Any, Any] = _get(values, key, dict) or {}
    if not all(isinstance(name, str) for name in extensions):
        raise RemoteProtocolError("an extension is named by text", reason=ProtocolReason.MALFORMED_CTAP)
    return extensions


def _client_data_hash(values: Any, key: int) -> bytes:
    value: bytes = _required(values, key, bytes)
    if len(value) != CLIENT_DATA_HASH_SIZE:
        raise RemoteProtocolError("a client data hash has 32 bytes", reason=ProtocolReason.MALFORMED_CTAP)
    return value


def _descriptor(credential_id: bytes) -> dict[str, Any]:
    """A credential descriptor, without transports: some iPhones refuse one that names ``usb`` (2024)."""
    return {"id": credential_id, "type": "public-key"}


def _descriptor_id(descriptor: Any) -> bytes:
    if _required(descriptor, "type", str) != "public-key":
        raise RemoteProtocolError(
            "a credential descriptor is not of type public-key", reason=ProtocolReason.MALFORMED_CTAP
        )
    credential_id: bytes = _required(descriptor, "id", bytes)
    return credential_id


def _descriptor_ids(values: Any, key: int) -> tuple[bytes, ...]:
    """Parse credential descriptors to the IDs of type public-key; other types are skipped (§6.2)."""
    return tuple(
        _descriptor_id(item)
        for item in _get(values, key, list) or []
        if _required(item, "type", str) == "public-key"
    )


def _texts(values: Any, key: int) -> tuple[str, ...]:
    items = _get(values, key, list) or []
    if not all(isinstance(item, str) for item in items):
        raise RemoteProtocolError(
            f"CTAP member {key!r} is not a list of texts", reason=ProtocolReason.MALFORMED_CTAP
        )
    return tuple(items)
