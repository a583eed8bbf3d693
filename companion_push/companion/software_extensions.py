"""The extensions of the software phone: prf, largeBlob and credProtect, as phones serve them over hybrid.

prf and largeBlob have the form of `headless_passkey.webauthn.extensions`: an input of the extension's own name, and its
output among the unsigned extension outputs. credProtect is CTAP's own (CTAP 2.2 §12.1): its output is in the signed
authenticator data. Inputs are parsed before the user is asked, and a malformed one fails the command.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, NoReturn, Self

from headless_passkey.errors import CtapError
from headless_passkey.hybrid.ctap2 import Status, status_name

PRF: Final = "prf"
LARGE_BLOB: Final = "largeBlob"
CRED_PROTECT: Final = "credProtect"
EXTENSIONS: Final = (CRED_PROTECT, LARGE_BLOB, PRF)

MAX_BLOB: Final = 1 << 16  # bytes of a large blob, before compression
MAX_PACKED_BLOB: Final = MAX_BLOB + (1 << 10)  # compressed: what does not shrink grows a little


class Protection(IntEnum):
    """When a credential may be used and found, by its credProtect level (§12.1)."""

    OPTIONAL = 1
    OPTIONAL_WITH_ID = 2  # without user verification only where an allow list names it
    REQUIRED = 3  # never without user verification


@dataclass(frozen=True, slots=True)
class Prf:
    """The salts for a credential's pseudo-random function: 32 bytes each, ``first`` and perhaps ``second``."""

    salts: Mapping[str, bytes] | None = field(repr=False)  # for any credential
    by_credential: Mapping[bytes, Mapping[str, bytes]] = field(repr=False)  # by credential ID

    @classmethod
    def of(cls, extensions: Mapping[str, Any]) -> Self | None:
        """Parse a request's prf extension; `CtapError` when it is malformed."""
        if PRF not in extensions:
            return None
        members = _mapping(extensions[PRF])
        by_credential = _mapping(members.get("evalByCredential", {}))
        return cls(
            salts=_salts(members["eval"]) if "eval" in members else None,
            by_credential={key: _salts(values) for key, values in by_credential.items()},
        )

    def evaluated(self, credential_id: bytes, private_key: bytes) -> dict[str, Any]:
        """Evaluate for this credential: the member ``results``, or empty without a salt."""
        salts = self.by_credential.get(credential_id, self.salts)
        if salts is None:
            return {}
        secret = hmac.digest(private_key, b"software phone, prf", "sha256")
        return {"results": {name: hmac.digest(secret, salt, "sha256") for name, salt in salts.items()}}


@dataclass(frozen=True, slots=True)
class LargeBlob:
    """A relying party's data beside a credential, deflated by the client; the phone does not look into it."""

    packed: bytes = field(repr=False)  # at most `MAX_PACKED_BLOB`
    size: int  # bytes before compression, at most `MAX_BLOB`


def asks_large_blob(extensions: Mapping[str, Any], *, discoverable: bool) -> bool | None:
    """Whether a new credential is to have a large blob; None where the request does not say.

    Only a discoverable credential has one (§12.3). `CtapError` where the relying party requires one of another, and for a malformed input.
    """
    if LARGE_BLOB not in extensions:
        return None
    support = _mapping(extensions[LARGE_BLOB]).get("support")
    if support not in ("required", "preferred"):
        refuse(Status.INVALID_PARAMETER)
    if support == "required" and not discoverable:
        refuse(Status.INVALID_OPTION)
    return discoverable


@dataclass(frozen=True, slots=True)
class LargeBlobUse:
    """What an assertion asks of the credential's large blob: to read it, or to store another one."""

    write: LargeBlob | None  # None: read

    @classmethod
    def of(cls, extensions: Mapping[str, Any], *, allowed: int) -> Self | None:
        """Parse a request's largeBlob extension; `CtapError` when it is malformed. allowed: entries of the allow list."""
        if LARGE_BLOB not in extensions:
            return None
        members = _mapping(extensions[LARGE_BLOB])
        if members.keys() & {"read", "write"} == {"read"}:
            if members["read"] is not True:
                refuse(Status.INVALID_PARAMETER)
            return cls(write=None)
        packed, size = members.get("write"), members.get("originalSize")
        if "read" in members or type(packed) is not bytes or type(size) is not int or allowed != 1:
            refuse(Status.INVALID_PARAMETER)
        if len(packed) > MAX_PACKED_BLOB or not 0 <= size <= MAX_BLOB:
            refuse(Status.REQUEST_TOO_LARGE)
        return cls(write=LargeBlob(packed, size))

    def output(self, stored: LargeBlob | None, *, written: bool) -> dict[str, Any]:
        """Make the output. stored: the credential's blob; written: whether the new one was stored."""
        if self.write is not None:
            return {"written": written}
        return {} if stored is None else {"blob": stored.packed, "originalSize": stored.size}


def protection_of(extensions: Mapping[str, Any]) -> Protection | None:
    """Parse a registration's credProtect extension; None where there is none, `CtapError` when it is malformed."""
    if CRED_PROTECT not in extensions:
        return None
    level = extensions[CRED_PROTECT]
    if type(level) is not int:
        refuse(Status.CBOR_UNEXPECTED_TYPE)
    try:
        return Protection(level)
    except ValueError:
        refuse(Status.INVALID_OPTION)


def refuse(status: Status) -> NoReturn:
    """End the command with `status`."""
    raise CtapError(status, status_name(status))


def _salts(values: Any) -> dict[str, bytes]:
    salts = {name: salt for name, salt in _mapping(values).items() if name in ("first", "second")}
    if "first" not in salts or not all(
        isinstance(salt, bytes) and len(salt) == 32 for salt in salts.values()
    ):
        refuse(Status.INVALID_PARAMETER)
    return salts


def _mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        refuse(Status.CBOR_UNEXPECTED_TYPE)
    return value
